"""Rules: when workers exchange, and with whom. How arrays are moved is decided by the strategy (multigpu.exchange).

    bsp     after each step, all workers: all have the same weights                         bsp.py
    slowmo  every slowmo_steps steps, all workers; then an outer update, SlowMo or DiLoCo   slowmo.py
    easgd   every easgd_tau steps, each worker with a server that holds a center variable   easgd.py
    asgd    asynchronously, each worker with a server that adds up pushed updates           asgd.py
    gosgd   at random steps, one worker with another                                        gosgd.py
    noloco  every noloco_steps steps, random pairs; then an outer update                    noloco.py

single.py is the rule of a job with one worker. parameter_server/ contains the server, the client and the protocol of
the rules that have a server. gossip.py is the common part of gosgd and noloco.

A rule is a module with its equations as pure functions, its Section of settings, its Synchronizer, and its Rule, which
is registered in base.RULES. A rule outside this package is selected by rule=module:Class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alexnet.config import Config
from alexnet.training.base import StepResult, Synchronizer
from multigpu.rules.base import RULES, Role, Rule, check_rule, role_of
from multigpu.rules.single import Single

if TYPE_CHECKING:
    from multigpu.communicator import Communicator

__all__ = ["RULES", "Role", "Rule", "StepResult", "Synchronizer", "check_rule", "role_of", "rule_of"]


def rule_of(config: Config, comm: Communicator) -> Rule:
    """Return the rule of the settings for these workers.

    Raises:
        ConfigError: as for check_rule, or the rule cannot be used in this job.
    """
    rule = check_rule(config)
    rule.check_job(config, comm)
    return Single() if comm.size == 1 else rule
