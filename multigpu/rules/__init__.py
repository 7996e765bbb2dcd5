"""Rules: when workers exchange, and with whom; how the bytes move is a strategy's, multigpu.exchange.

    bsp     after each step, everybody with everybody: all hold the same weights      multigpu/rules/bsp.py
    easgd   every tau steps each worker with a server, which holds a centre            multigpu/rules/easgd.py
    asgd    each with a server that adds up what they push, when they come           multigpu/rules/asgd.py
    gosgd   now and then one worker with another, at random                            multigpu/rules/gosgd.py
    alone   the rule of a single worker                                                multigpu/rules/alone.py

server.py and client.py are any rule's that has a server, turns.py is what they say to each other; post.py moves the
messages that no barrier waits for.

A rule is a file, with its equations as pure functions, and a line in RULES.  connect(...) of its module makes the
Exchange that the training loop is handed:

    connect(config, network, device, partners, recorder, step=0) -> Exchange

config    what all workers must have alike is checked here
network   alexnet.compile.Network, its state settled: initial weights, or those of the checkpoint
device    of multigpu.device, open; it outlives the exchange
partners  multigpu.partners.Partners, or multigpu.mpi's in an MPI job
recorder  alexnet.recorder.Recorder, or Silent: warn(sentence), told at rank 0 alone, and time(section)
step      steps done before
Raises ConfigError where the workers do not belong together; PartnerDied, OutOfStep; DeviceError.

What the training loop sees of an Exchange:

    with exchange:                               on an error nobody is waited for; else as close()
        position = exchange.run(run, position)   the whole of this rank's part: training, or serving those who train
        cost, error = exchange.step(*images, labels, rate=rate)
                                                 the computation: with the update, or up to the gradients
        cost, error, stop = exchange.after_step(step, cost, error, rate, stop, last)
                                                 called by every worker after each step; counts its own time
        laps = exchange.gather(lap)              what rank 0 knows of where the workers' time went
        with exchange.consensus(stop) as stop:   around validation, and around saving; whether all stop there
        sums, stop = exchange.total(values, stop)
                                                 called by every worker, as after its part of the validation
        exchange.close()                         tells the others, then lets go of their memory, then of its own
"""

from abc import ABC, abstractmethod
from contextlib import nullcontext
from typing import NamedTuple

from alexnet.config import DEFAULTS, ConfigError, check_known, read_settings
from alexnet.training import train
from multigpu.exchange import strategy_of


class Rule(NamedTuple):
    """Where a rule lies, by name so that only a run that follows it imports it.

    over_mpi  whether it works between the ranks of an MPI job alone
    served    whether rank 0 does not train, but serves those who do: then the workers are the ranks from 1 on
    lone      whether the server does without a worker that comes late, leaves or dies: multigpu.job
    """

    connect: str
    over_mpi: bool = True
    served: bool = False
    lone: bool = False


RULES = {
    "bsp": Rule("multigpu.rules.bsp:connect", over_mpi=False),
    "easgd": Rule("multigpu.rules.easgd:connect", served=True),
    "asgd": Rule("multigpu.rules.asgd:connect", served=True, lone=True),
    "gosgd": Rule("multigpu.rules.gosgd:connect"),
}
ALONE = Rule("multigpu.rules.alone:connect", over_mpi=False)
POST = "multigpu.rules.post:Post"                # by name: it starts MPI
OF_BSP = ("sync", "exchange", "exchange_what", "error_feedback", "average_every")  # settings of no other rule


class Part(NamedTuple):
    """What of a job a rank does.

    worker, workers  which of the workers it is, of how many: the shard of the training images, and the seed of its
                     random streams; a server has the first's, and uses neither
    validates        (rank, size): its share of the validation images
    functions        of the Network, that it calls
    """

    worker: int
    workers: int
    validates: tuple[int, int]
    functions: tuple[str, ...]


class Agreed(NamedTuple):
    """What the workers know together after a step: means of cost and error, and whether any of them has to stop."""

    cost: float
    error: float
    stop: bool


def rule_of(config, partners):
    """The Rule of the settings among these partners.

    Raises ConfigError for one that is not there, or cannot be, and for settings that mean nothing with it.
    """
    check_known(config.rule, RULES, "rule: there is no rule")
    rule = RULES[config.rule]
    if rule.over_mpi and not partners.over_mpi:
        raise ConfigError(
            f"rule={config.rule} works over MPI, so the workers have to be started by it: "
            f"mpiexec -n N python -m mpi4py train.py ... rule={config.rule}"
        )
    if rule.served and partners.size < 2:
        raise ConfigError(f"rule={config.rule} needs a server and at least one worker, so 2 ranks or more, got 1")
    if config.rule == "bsp":
        strategy_of(config, partners)            # refuses here what would be refused after compiling
    else:
        refuse_settings_of_bsp(config)
    return ALONE if partners.size == 1 else rule


def refuse_settings_of_bsp(config):
    """Raise ConfigError for a setting that only rule bsp reads, where it is not left as it is by default."""
    settings, defaults = config.model_dump(mode="json"), read_settings(DEFAULTS)
    for name in OF_BSP:
        if settings[name] != defaults[name]:
            raise ConfigError(
                f"{name} is a setting of rule=bsp, so with rule={config.rule} it must stay {defaults[name]}, "
                f"got {settings[name]}"
            )


def part_of(rule, config, partners):
    """The Part of a rank among its partners, by the rule_of them."""
    rank, size = partners.rank, partners.size
    if not rule.served:
        apart = rule is not ALONE and config.rule == "bsp" and exchanged(config, partners) == "gradients"
        step = ("compute", "apply") if apart else ("train",)
        return Part(rank, size, (rank, size), (*step, "validate"))
    if rank == 0:
        return Part(0, size - 1, (0, 1), ("validate",))
    return Part(rank - 1, size - 1, (0, 1), ("train",))


def exchanged(config, partners):
    """What rule bsp exchanges, settled: weights_and_momentum, weights or gradients."""
    if config.exchange_what != "auto":
        return config.exchange_what
    if config.sync == "cdd" or config.adapts:
        return "gradients"
    return "weights" if partners.over_mpi else "weights_and_momentum"


class Exchange(ABC):
    """What the training loop is handed."""

    def run(self, run, position):
        """Do this rank's part of the whole training, an alexnet.training.Run; returns the Position where it ended."""
        return train(run, position)

    @abstractmethod
    def step(self, *inputs, rate):
        """Compute a step on this worker's batch; returns its cost and error.

        inputs  (*images, labels)
        rate    float32, the learning rate
        """

    @abstractmethod
    def after_step(self, step, cost, error, rate, stop, last):
        """Exchange with the others, if the rule says so; returns Agreed.

        step   counts from 1 and goes on in a run that is resumed
        rate   the learning rate of the update
        stop   whether this worker has been asked to stop
        last   whether something follows that concerns all: an epoch's end, a checkpoint
        A step that nobody is waited for has this worker's cost and error, and stop False.
        What waiting for others takes counts as sync, the rest as comm.  Raises PartnerDied, OutOfStep.
        """

    def consensus(self, stop=False):
        """A context in which the network holds what stands for all workers: what is validated, and saved.

        stop  whether this worker enters because it was asked to stop
        All workers that validate or save enter it.  Its value is whether one of them had to stop, and all end there:
        what the network holds is saved, and they meet no more.  Most rules have nothing to do: after the `last` step
        all are alike, and they stop after the same step.
        """
        return nullcontext(False)

    def gather(self, lap):
        """The alexnet.stopwatch.Laps that rank 0 knows of by now, its own among them; [] at the other ranks."""
        return [lap]

    @abstractmethod
    def total(self, values, stop):
        """(float64 array of the values, each summed over all workers, whether any of them has to stop)."""

    @abstractmethod
    def close(self):
        """Let go of everything, in the order that CUDA needs: of the others' memory before they free it."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if kind is None:
            self.close()
