"""One rank of an MPI job: the counterpart of multigpu.launcher for ranks that mpiexec starts.

    mpiexec -n 4 python -m mpi4py train.py rule=bsp exchange=asa16          (also works without `-m mpi4py`)

The process that MPI has started is the worker; its loader is a child process, not a rank.  Rank 0 resolves the
settings, makes the synthetic data set, names the run, prints and saves.  Its child, the monitor, detects failures.

    all ranks end normally          status 0
    invalid settings or files       one message, status 2
    SIGINT, SIGTERM or SIGUSR1      to any rank: all finish the same step, save and end; status 130, 143 or 138
    again, a second later           the job is ended at once; same status
    a rank dies, fails or hangs     one message on standard error and in log.txt names the first rank and its error;
                                    the job is ended; status 1, 2 for a setting or a file, or mpiexec's, never 0
    mpiexec itself is killed        its ranks are killed, and their loaders with them

With an elastic rule (asgd), the events of one client affect only this client once it has opened its device and data:

    it comes late                   the others begin without it; it starts from the server's weights and position
    SIGINT, SIGTERM or SIGUSR1      to one client: it pushes its pending updates and leaves; to the server or to all
                                    ranks: as above
    it or its loader dies, or it    a message reports it, as above, and how many clients remain; the others
    is silent for heartbeat_timeout seconds  train to the end, and the job's status is 0
    it fails: a bug, bad data       ends the job, as above
    no client is left               the server saves and ends; status 1

MPICH's mpiexec needs no option for that, see multigpu.mpi.rank_wrapper.  Open MPI's mpiexec ends all ranks when one
dies, unless it is started as `mpiexec --enable-recovery`.

Signals sent to mpiexec:  MPICH's mpiexec forwards all three to every rank.  Open MPI's forwards only SIGUSR1; on
Ctrl-C and SIGTERM it kills its ranks after half a second, which is too short to save.  Stop its jobs by
`kill -USR1 PID`, with the process id of mpiexec or of a rank.  Slurm does that by `scancel --signal=USR1 JOB`, or
before the time limit by `sbatch --signal=USR1@300`.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

from alexnet.config.schema import ConfigError
from alexnet.data.dataset import DataError
from alexnet.native.cores import core_numbers
from alexnet.run.checkpoint_format import CheckpointError
from alexnet.training.network import backend_of
from multigpu.device import DeviceError, cuda_home, why_no_jax
from multigpu.failure.heartbeat import HeartbeatClient
from multigpu.launcher_link import JobLink
from multigpu.mpi.communicator import MPI, MpiCommunicator, end_without_finalize, leave_no_files
from multigpu.process import SIGNAL_DEBOUNCE, SIGNALS
from multigpu.rules import rule_of


class Settlement(NamedTuple):
    """Rank 0 to all: the settings, or the message why they are invalid."""

    config: object
    sentence: str | None
    step: int = 0


class RankPlacement(NamedTuple):
    """Rank to all ranks: the cores that it may use, and its device, or the message why it has none."""

    cores: frozenset
    device: str | None
    sentence: str | None
    step: int = 0


def run(settle, entry=None):
    """Run this rank's part of the job; return the exit status.

    Args:
        settle: () -> Config, called only at rank 0.
        entry: the function that each rank runs; None: multigpu.worker.work.
    """
    comm = MpiCommunicator()
    leave_no_files()
    with HeartbeatClient(comm) as lifeline:
        control = MpiLink(lifeline, comm)
        config, sentence, _ = settle_at_rank_0(settle, comm)
        if sentence is None:
            device, sentence = take_place(config, comm)
        if sentence is None:
            comm.elastic = rule_of(config, comm).elastic
            if comm.rank == 0:
                log = Path(config.output, config.run_name, "log.txt")
                lifeline.settled(config.heartbeat_timeout, log, comm.elastic)
            if entry is None:
                # imported here because it imports PyTensor, so that invalid settings are reported at once
                from multigpu.worker import work

                entry = work
            entry(config, device, control, comm)
        lifeline.status = 2 if sentence else control.status()
    status = lifeline.status
    if status and comm.rank == 0:
        print(f"train.py: {sentence}" if sentence else f"stopped by {signal.Signals(status - 128).name}",
              file=sys.stderr, flush=True)
    if not lifeline.whole:
        end_without_finalize(status)
    if status:
        MPI.Finalize()                           # otherwise mpi4py aborts the job on a nonzero status
    return status


def settle_at_rank_0(settle, comm):
    """Return rank 0's Settlement; collective."""
    settled = Settlement(None, None)
    if comm.rank == 0:
        try:
            settled = Settlement(settle(), None)
            refuse_by_hand(settled.config)
            rule_of(settled.config, comm)
        except (ConfigError, DataError, CheckpointError) as error:
            settled = Settlement(None, str(error))
    return comm.allgather(settled)[0]


def refuse_by_hand(config):
    """Raise ConfigError for the settings of a worker that is started by hand."""
    if config.rank is not None:
        raise ConfigError(
            f"rank={config.rank} size={config.size} device={config.device} start a worker by hand; in an MPI job the "
            "ranks are MPI's, and devices=... names one device for each rank of a machine"
        )


def take_place(config, comm):
    """Set OMP_NUM_THREADS to this rank's share of the cores; return (device, None), or (None, message).

    The message is the error of the first rank that has no device.  Ranks of one machine that may use the same cores
    share them.  If MPI binds its ranks, each rank uses its own cores.  An OMP_NUM_THREADS that is already set is kept.
    """
    cores = core_numbers()
    try:
        place = RankPlacement(cores, device_of(config, comm), None)
    except (ConfigError, DeviceError) as error:
        place = RankPlacement(cores, None, str(error))
    places = comm.allgather(place)
    here = comm.hosts[comm.rank]
    sharing = sum((host, each.cores) == (here, cores) for host, each in zip(comm.hosts, places, strict=True))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(cores) // sharing)))
    return place.device, next((each.sentence for each in places if each.sentence), None)


def device_of(config, comm):
    """Return the name of this rank's device from the setting `devices`: one for each rank of a machine, or one for all.

    auto: the GPUs of the machine are assigned to its ranks round-robin, or cpu if it has none.
    """
    devices, local = config.devices, comm.local_rank
    if devices[0] == "auto":
        gpus = gpus_for(config)
        return f"cuda{local % gpus}" if gpus else "cpu"
    if len(devices) == 1:
        return devices[0]
    if len(devices) != comm.local_size:
        raise ConfigError(
            f"devices must name one device, or one for each of the {comm.local_size} ranks on "
            f"{comm.hosts[comm.rank]}, got {','.join(devices)}"
        )
    return devices[local]


def gpus_for(config):
    """Return how many GPUs of this machine the configured backend can use."""
    if backend_of(config.backend, "cuda0") != "jax" or why_no_jax():
        return 0
    try:
        return cuda_home("cuda0").count()
    except DeviceError:
        return 0


class MpiLink(JobLink):
    """The counterpart of multigpu.launcher_link.LauncherLink in an MPI job; it installs handlers for SIGNALS."""

    def __init__(self, lifeline, comm):
        self._lifeline, self._comm = lifeline, comm
        self._taken = None                       # (signal number, time)
        for number in SIGNALS:
            signal.signal(number, self._take)

    def _take(self, number, frame):
        now = time.monotonic()
        if self._taken is None:
            self._taken = number, now
        elif now - self._taken[1] >= SIGNAL_DEBOUNCE:
            sentence = f"killed by a second {signal.Signals(number).name}, without saving"
            if self._comm.elastic and self._comm.rank:
                self._lifeline.lost(sentence)
            else:
                self._lifeline.fail(sentence, 128 + number)

    def status(self):
        """Return the exit status of this rank's signal, 0 without one or if this rank has left the others."""
        return 128 + self._taken[0] if self._taken and not self._comm.has_left else 0

    def stop_requested(self):
        """Return whether to finish the step, save and end. It is called after each step and counts as progress."""
        self._comm.progress()
        return self._taken is not None

    def report(self, message, status=1, caused_by_peer=False):
        """Report, from any thread, that this rank has lost its loader; the rank or the job then ends within seconds."""
        self._lifeline.lost(message)
