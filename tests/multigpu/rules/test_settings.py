"""Settings of the rules: what each rule refuses, and settings of a rule that is not used."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from alexnet.config import ConfigError, load_config
from multigpu.rules import check_rule
from multigpu.rules.bsp import exchanged


def refusal(*arguments):
    with pytest.raises(ConfigError) as caught:
        check_rule(load_config(["data=none", *arguments]))
    return str(caught.value)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("average_every=0", "average_every must be greater than 0, got 0"),
        ("easgd_alpha=1.5", "easgd_alpha must be less than or equal to 1, got 1.5"),
        ("slowmo_steps=0", "slowmo_steps must be greater than 0, got 0"),
        ("slowmo_beta=1", "slowmo_beta must be less than 1, got 1"),
        ("slowmo_buffers=keep", "slowmo_buffers must be 'reset', 'maintain' or 'average', got the text 'keep'"),
        ("gosgd_p=-0.1", "gosgd_p must be greater than or equal to 0, got -0.1"),
        ("noloco_beta=0", "noloco_beta must be greater than 0, got 0"),
        ("noloco_gamma=-1", "noloco_gamma must be greater than or equal to 0 or null, got -1"),
        ("easgd_tau=0", "easgd_tau must be greater than 0, got 0"),
        ("sync=sum", "sync must be 'avg' or 'cdd', got the text 'sum'"),
        ("server_update=sum", "server_update must be 'plain', 'adagrad', 'adadelta', 'nesterov' or 'delayed_nesterov', "
         "got the text 'sum'"),
        ("error_feedback=maybe", "error_feedback must be true or false, got the text 'maybe'"),
        ("rule=bps", "rule: there is no rule 'bps'; did you mean bsp?"),
        ("rule=nowhere:Rule", "rule must be a name or module:attribute with a module on Python's path, got "
         "nowhere:Rule: No module named 'nowhere'"),
        ("update=adagard", "update: there is no update rule 'adagard'; did you mean adagrad?"),
    ],
)
def test_invalid_value_is_refused(argument, message):
    assert refusal(argument) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["exchange_what=gradients", "average_every=4"],
            "average_every must be 1 when gradients are exchanged, because each is used only in its step, got 4",
        ),
        (
            ["sync=cdd", "average_every=4"],
            "average_every must be 1 when gradients are exchanged, because each is used only in its step, got 4",
        ),
        (
            ["sync=cdd", "exchange_what=weights"],
            "exchange_what must be auto, gradients or factors with sync=cdd, which adds updates, got weights",
        ),
        (
            ["sync=cdd", "lr_scaling=linear"],
            "lr_scaling must be none unless rule=bsp averages the updates of each step, got linear",
        ),
        (
            ["rule=easgd", "lr_scaling=linear"],
            "lr_scaling must be none unless rule=easgd averages the updates of each step, got linear",
        ),
        (
            ["rule=slowmo", "ema_decay=0.99"],
            "ema_decay must be 0 with rule=slowmo, whose workers have no common weights in each step, got 0.99",
        ),
        (
            ["rule=gosgd", "lr_policy=auto"],
            "lr_policy must not be auto with rule=gosgd, whose workers wait for no validation",
        ),
        (
            ["update=adagrad", "sync=cdd"],
            "sync must be avg with update=adagrad, because the updates by the parts of a batch do not add up to that "
            "by the whole, got cdd",
        ),
        (
            ["update=adadelta", "exchange_what=weights"],
            "exchange_what must be auto, gradients or factors with update=adadelta, because the mean of the workers' "
            "updates is not that of one worker, got weights",
        ),
        (
            ["update=lars", "exchange_what=weights"],
            "exchange_what must be auto, gradients or factors with update=lars, because the mean of the workers' "
            "updates is not that of one worker, got weights",
        ),
        (
            ["clip_norm=1", "sync=cdd"],
            "sync must be avg with clip_norm=1, because the updates by the parts of a batch do not add up to that by "
            "the whole, got cdd",
        ),
        (
            ["clip_norm=0.5", "exchange_what=weights_and_momentum"],
            "exchange_what must be auto, gradients or factors with clip_norm=0.5, because the mean of the workers' "
            "updates is not that of one worker, got weights_and_momentum",
        ),
        (
            ["clip_norm=0.5", "average_every=2"],
            "average_every must be 1 when gradients are exchanged, because each is used only in its step, got 2",
        ),
        (
            ["update=adagrad", "average_every=2"],
            "average_every must be 1 when gradients are exchanged, because each is used only in its step, got 2",
        ),
        (
            ["rule=slowmo", "slowmo_nesterov=true", "slowmo_beta=0"],
            "slowmo_beta must be greater than 0 with slowmo_nesterov=true, got 0",
        ),
        (
            ["rule=asgd", "server_update=adagrad"],
            "server_scale must be given with server_update=adagrad, because it is the learning rate of that update; "
            "0.01 is a usual value",
        ),
        (
            ["rule=asgd", "server_update=nesterov"],
            "server_scale must be given with server_update=nesterov, because it is the learning rate of that update; "
            "(1 - server_momentum) / clients is a usual value",
        ),
        (
            ["rule=asgd", "server_momentum=0.5"],
            "server_momentum is a setting of server_update=nesterov and delayed_nesterov, so with server_update=plain "
            "it must stay 0.9, got 0.5",
        ),
        (
            ["rule=asgd", "server_update=nesterov", "server_scale=0.07", "server_momentum_period=4"],
            "server_momentum_period is a setting of server_update=delayed_nesterov, so with server_update=nesterov "
            "it must stay null, got 4",
        ),
        (
            ["rule=asgd", "server_update=delayed_nesterov", "server_scale=0.7", "server_momentum_period=4",
             "server_momentum_activation=0.3"],
            "server_momentum_activation must be at most 1 / server_momentum_period, which must be given with it, got "
            "0.3 and 4",
        ),
        (
            ["rule=asgd", "server_update=delayed_nesterov", "server_scale=0.7", "server_momentum_activation=0.1"],
            "server_momentum_activation must be at most 1 / server_momentum_period, which must be given with it, got "
            "0.1 and null",
        ),
    ],
)
def test_contradictory_settings_are_refused(arguments, message):
    assert refusal(*arguments) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rule=easgd", "sync=cdd"], "sync is a setting of rule=bsp, so with rule=easgd it must stay avg, got cdd"),
        (
            ["rule=slowmo", "average_every=8"],
            "average_every is a setting of rule=bsp, so with rule=slowmo it must stay 1, got 8",
        ),
        (["gosgd_p=0.5"], "gosgd_p is a setting of rule=gosgd, so with rule=bsp it must stay 0.01, got 0.5"),
    ],
)
def test_setting_of_another_rule_is_refused(arguments, message):
    assert refusal(*arguments) == message


@pytest.mark.parametrize("rule", ["bsp", "slowmo", "easgd", "asgd", "gosgd", "noloco"])
def test_defaults_suit_every_rule(rule):
    check_rule(load_config(["data=none", f"rule={rule}"]))


def test_settings_are_checked_without_pytensor():
    """A rank checks them before it imports PyTensor, which takes longer than everything else that it imports."""
    program = """
import sys
from alexnet.config import load_config
from multigpu.rules import RULES, check_rule
for rule in RULES:
    check_rule(load_config(["data=none", f"rule={rule}"]))
print(*RULES, "pytensor" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    *rules, found = done.stdout.split()
    assert len(rules) >= 6 and found == "False"


ONE_HOST = {"size": 2, "over_mpi": True, "on_one_host": True, "works_in_threads": True}
TWO_HOSTS = ONE_HOST | {"on_one_host": False}


@pytest.mark.parametrize(
    ("arguments", "comm", "what"),
    [
        ([], ONE_HOST | {"over_mpi": False}, "weights_and_momentum"),
        ([], ONE_HOST, "weights"),
        ([], TWO_HOSTS, "gradients"),
        (["exchange=ar"], TWO_HOSTS, "gradients"),
        (["overlap=false"], TWO_HOSTS, "weights"),
        (["average_every=4"], TWO_HOSTS, "weights"),
        ([], TWO_HOSTS | {"works_in_threads": False}, "weights"),
        (["update=adagrad", "overlap=false"], TWO_HOSTS, "gradients"),
        (["clip_norm=1"], ONE_HOST, "gradients"),
        (["exchange_what=factors"], TWO_HOSTS, "factors"),
    ],
)
def test_auto_overlaps_gradients_between_hosts(arguments, comm, what):
    assert exchanged(load_config(["data=none", *arguments]), SimpleNamespace(**comm)) == what
