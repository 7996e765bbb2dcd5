"""Rules: when workers exchange, and with whom. How arrays are moved is decided by the strategy (multigpu.exchange).

    bsp     after each step, all workers: all have the same weights                    multigpu/rules/bsp.py
    easgd   every tau steps, each worker with a server that holds a center variable    multigpu/rules/easgd.py
    asgd    asynchronously, each worker with a server that adds up pushed updates      multigpu/rules/asgd.py
    gosgd   at random steps, one worker with another                                   multigpu/rules/gosgd.py
    single  no exchange; the job has one worker                                        multigpu/rules/single.py

parameter_server/ contains the server, the client and the protocol of the rules that have a server. channel.py sends
asynchronous messages.

A rule is a module, with its equations as pure functions, and an entry in RULES. The connect() function of the module
returns the Synchronizer that the training loop uses:

    connect(config, network, device, comm, recorder, step=0) -> Synchronizer

config    connect() checks here that all workers have the same settings
network   alexnet.training.network.Network, with its state set: initial weights, or those of the checkpoint
device    an open device of multigpu.device; it is closed after the Synchronizer
comm  multigpu.communicator.PipeCommunicator, or in an MPI job multigpu.mpi.communicator.MpiCommunicator
recorder  alexnet.run.recorder.Recorder or WorkerRecorder: warn(message), called on rank 0 only, and time(section)
step      number of steps done before
Raises ConfigError if the workers are inconsistent; PeerDied, DesyncError; DeviceError.

How the training loop uses a Synchronizer:

    with synchronizer:                           calls close() on success; on an error, does not wait for other workers
        position = synchronizer.run(run, position)
                                                 this rank's whole part: training, or serving the clients
        cost, error = synchronizer.step(*images, labels, rate=rate)
                                                 the computation: including the update, or up to the gradients
        cost, error, stop = synchronizer.after_step(step, cost, error, rate, stop, last)
                                                 called by every worker after each step; measures its own time
        laps = synchronizer.gather(lap)          timing of all workers, as known to rank 0
        with synchronizer.consensus(stop) as stop:
                                                 around validation and saving; whether all workers stop there
        sums, stop = synchronizer.total(values, stop)
                                                 called by every worker, for example after its share of the validation
        synchronizer.close()                     notifies the others, closes their memory, then frees its own
"""

from abc import ABC, abstractmethod
from contextlib import nullcontext
from typing import NamedTuple

from alexnet.config.schema import DEFAULTS, ConfigError, check_known, read_settings
from alexnet.training.loop import train
from multigpu.exchange import strategy_of


class Rule(NamedTuple):
    """Where a rule is implemented, and its properties. The name is a string, so a run imports only the rule it uses.

    over_mpi    whether the rule requires an MPI job
    has_server  whether rank 0 is a server that does not train; the workers are then the ranks from 1 on
    elastic     whether training survives workers that join late, leave or die; see multigpu.mpi.job
    """

    connect: str
    over_mpi: bool = True
    has_server: bool = False
    elastic: bool = False


RULES = {
    "bsp": Rule("multigpu.rules.bsp:connect", over_mpi=False),
    "easgd": Rule("multigpu.rules.easgd:connect", has_server=True),
    "asgd": Rule("multigpu.rules.asgd:connect", has_server=True, elastic=True),
    "gosgd": Rule("multigpu.rules.gosgd:connect"),
}
ALONE = Rule("multigpu.rules.single:connect", over_mpi=False)
POST = "multigpu.rules.channel:Channel"                # a name, because the import initialises MPI
OF_BSP = ("sync", "exchange", "exchange_what", "error_feedback", "average_every")  # settings that only bsp uses


class Role(NamedTuple):
    """The part of a job that a rank performs.

    worker, workers  index of the worker and number of workers: they determine the shard of the training images and the
                     seed of the random streams; a server has the values of the first worker, but uses neither
    validates        (rank, size): the rank's share of the validation images
    functions        names of the Network functions that the rank calls
    """

    worker: int
    workers: int
    validates: tuple[int, int]
    functions: tuple[str, ...]


class StepResult(NamedTuple):
    """Result of a synchronised step: mean cost and error of the workers, and whether any worker has to stop."""

    cost: float
    error: float
    stop: bool


def rule_of(config, comm):
    """Return the Rule of the settings for these workers.

    Raises:
        ConfigError: the rule is unknown or cannot be used in this job, or a setting has no effect with it.
    """
    check_known(config.rule, RULES, "rule: there is no rule")
    rule = RULES[config.rule]
    if rule.over_mpi and not comm.over_mpi:
        raise ConfigError(
            f"rule={config.rule} works over MPI, so the workers have to be started by it: "
            f"mpiexec -n N python -m mpi4py train.py ... rule={config.rule}"
        )
    if rule.has_server and comm.size < 2:
        raise ConfigError(f"rule={config.rule} needs a server and at least one worker, so 2 ranks or more, got 1")
    if config.rule == "bsp":
        strategy_of(config, comm)            # detects errors before compilation
    else:
        refuse_settings_of_bsp(config)
    return ALONE if comm.size == 1 else rule


def refuse_settings_of_bsp(config):
    """Raise ConfigError if a setting that only rule bsp uses differs from its default."""
    settings, defaults = config.model_dump(mode="json"), read_settings(DEFAULTS)
    for name in OF_BSP:
        if settings[name] != defaults[name]:
            raise ConfigError(
                f"{name} is a setting of rule=bsp, so with rule={config.rule} it must stay {defaults[name]}, "
                f"got {settings[name]}"
            )


def role_of(rule, config, comm):
    """Return the Role of a rank under the given Rule."""
    rank, size = comm.rank, comm.size
    if not rule.has_server:
        apart = rule is not ALONE and config.rule == "bsp" and exchanged(config, comm) == "gradients"
        step = ("compute", "apply") if apart else ("train",)
        return Role(rank, size, (rank, size), (*step, "validate"))
    if rank == 0:
        return Role(0, size - 1, (0, 1), ("validate",))
    return Role(rank - 1, size - 1, (0, 1), ("train",))


def exchanged(config, comm):
    """Return what rule bsp exchanges: weights_and_momentum, weights or gradients; resolves `auto`."""
    if config.exchange_what != "auto":
        return config.exchange_what
    if config.sync == "cdd" or config.adapts:
        return "gradients"
    return "weights" if comm.over_mpi else "weights_and_momentum"


class Synchronizer(ABC):
    """Synchronises a worker with the others. The training loop calls it between steps."""

    def run(self, run, position):
        """Perform this rank's part of the training; returns the final Position.

        run  alexnet.training.loop.Run
        """
        return train(run, position)

    @abstractmethod
    def step(self, *inputs, rate):
        """Compute a step on this worker's batch; returns its cost and error.

        inputs  (*images, labels)
        rate    float32, the learning rate
        """

    @abstractmethod
    def after_step(self, step, cost, error, rate, stop, last):
        """Exchange with the other workers, if the rule requires it after this step; returns StepResult.

        step   counts from 1 and continues in a resumed run
        rate   the learning rate of the update
        stop   whether this worker was requested to stop
        last   whether an operation of all workers follows: the end of an epoch, or a checkpoint
        For a step without synchronisation, the result contains this worker's cost and error, and stop is False.
        Waiting for other workers counts as sync, the rest as comm. Raises PeerDied, DesyncError.
        """

    def consensus(self, stop=False):
        """Return a context in which the network holds the state of the whole job, for validation and saving.

        stop  whether this worker enters because it was requested to stop
        All workers that validate or save enter the context. Its value is True if any worker has to stop. In that case
        all workers end there: the state in the network is saved, and no further exchange follows. Most rules do
        nothing here, because after the `last` step all workers have the same state and stop after the same step.
        """
        return nullcontext(False)

    def gather(self, lap):
        """Return the alexnet.run.timing.Lap of each worker, as known to rank 0; [] on other ranks."""
        return [lap]

    @abstractmethod
    def total(self, values, stop):
        """Return a float64 array with each value summed over all workers, and whether any worker has to stop."""

    @abstractmethod
    def close(self):
        """Release all resources, in the order that CUDA requires: memory of other workers before they free it."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if kind is None:
            self.close()
