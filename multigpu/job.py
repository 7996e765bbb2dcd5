"""A rank of an MPI job: what multigpu.launch is for workers that train.py starts.

    mpiexec -n 4 python -m mpi4py train.py rule=bsp exchange=asa16          (without `-m mpi4py` it is the same)

The process that MPI has started is the worker itself; its loader is a child of it, never a rank.  Rank 0 settles the
settings, makes the synthetic set, names the run, prints and saves; its child, the watchman, sees who fails.

    all ranks end by themselves     status 0
    something asked for cannot be   one sentence, status 2
    SIGINT, SIGTERM or SIGUSR1      to any rank: all finish the same step, save and end; status 130, 143 or 138
    another one, a second later     the job is ended at once; the same status
    a rank dies, fails, is silent   one sentence says which was first, and how, on standard error and in log.txt; the
                                    job is ended; status 1, 2 for a setting or a file, or that of mpiexec, never 0
    mpiexec itself is killed        it takes its ranks along, and they their loaders

Where the rule can do without a client, asgd, what happens to one client is its own affair once it has its device and
its data:

    it comes late                   the others begin without it; it takes up the server's weights and position
    SIGINT, SIGTERM or SIGUSR1      to it alone: it pushes what it has and leaves; to the server or all: as above
    it, or its loader, dies; is     a sentence says so, as above, and how many are left; the others
    silent for time_out seconds     train to the end, and the job's status is 0
    it fails: a bug, bad data       ends the job, as above
    no client is left               the server saves and ends; status 1

MPICH's mpiexec needs nothing for that: multigpu.stand_in.  Open MPI's ends all ranks where one dies, unless it is
started as `mpiexec --enable-recovery`.

What mpiexec does with signals that it gets:  MPICH's hands all three on to every rank.  Open MPI's hands on SIGUSR1
alone; on Ctrl-C and SIGTERM it kills its ranks after half a second, which is too short to save.  So stop its jobs by
`kill -USR1 PID`, its own or a rank's; Slurm does that by `scancel --signal=USR1 JOB`, or ahead of the time limit by
`sbatch --signal=USR1@300`.
"""

import os
import pkgutil
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

from alexnet.checkpoint import CheckpointError
from alexnet.compile import engine_of
from alexnet.config import ConfigError
from alexnet.cores import core_numbers
from alexnet.data import DataError
from multigpu.device import DeviceError, cuda_home, why_no_jax
from multigpu.launch import TWICE
from multigpu.lifeline import Lifeline
from multigpu.mpi import MPI, MpiPartners, end_without_finalize, leave_no_files
from multigpu.process import SIGNALS
from multigpu.rules import rule_of


class Settled(NamedTuple):
    """Rank 0 to all: the settings, or the sentence why there are none."""

    config: object
    sentence: str | None
    step: int = 0


class Place(NamedTuple):
    """Rank to ranks: the cores that it may use, and its device, or the sentence why it has none."""

    cores: frozenset
    device: str | None
    sentence: str | None
    step: int = 0


def run(settle, entry="multigpu.worker:work"):
    """Do this rank's part of the job; returns the exit status.

    settle  () -> Config, called at rank 0 alone
    entry   as multigpu.launch.launch's
    """
    partners = MpiPartners()
    leave_no_files()
    with Lifeline(partners) as lifeline:
        control = Control(lifeline, partners)
        config, sentence, _ = settle_at_rank_0(settle, partners)
        if sentence is None:
            device, sentence = take_place(config, partners)
        if sentence is None:
            partners.lone = rule_of(config, partners).lone
            if partners.rank == 0:
                log = Path(config.output, config.run_name, "log.txt")
                lifeline.settled(config.time_out, log, partners.lone)
            pkgutil.resolve_name(entry)(config, device, control, partners)
        lifeline.status = 2 if sentence else control.status()
    status = lifeline.status
    if status and partners.rank == 0:
        print(f"train.py: {sentence}" if sentence else f"stopped by {signal.Signals(status - 128).name}",
              file=sys.stderr, flush=True)  # fmt: skip
    if not lifeline.whole:
        end_without_finalize(status)
    if status:
        MPI.Finalize()                           # else mpi4py takes a status for a failure, and aborts the job
    return status


def settle_at_rank_0(settle, partners):
    """The Settled that rank 0 has come to."""
    settled = Settled(None, None)
    if partners.rank == 0:
        try:
            settled = Settled(settle(), None)
            refuse_by_hand(settled.config)
            rule_of(settled.config, partners)
        except (ConfigError, DataError, CheckpointError) as error:
            settled = Settled(None, str(error))
    return partners.meet(settled)[0]


def refuse_by_hand(config):
    """Raise ConfigError for the settings of a worker that is started by hand."""
    if config.rank is not None:
        raise ConfigError(
            f"rank={config.rank} size={config.size} device={config.device} start a worker by hand; in an MPI job the "
            "ranks are MPI's, and devices=... names one device for each rank of a machine"
        )


def take_place(config, partners):
    """(this rank's device, None), or (None, the sentence why a rank has none); OMP_NUM_THREADS becomes its share.

    Ranks of one machine that may use the same cores share them; an MPI that binds its ranks gives each its own.  Where
    OMP_NUM_THREADS is set it stays.
    """
    cores = core_numbers()
    try:
        place = Place(cores, device_of(config, partners), None)
    except (ConfigError, DeviceError) as error:
        place = Place(cores, None, str(error))
    places = partners.meet(place)
    here = partners.hosts[partners.rank]
    sharing = sum((host, each.cores) == (here, cores) for host, each in zip(partners.hosts, places, strict=True))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(cores) // sharing)))
    return place.device, next((each.sentence for each in places if each.sentence), None)


def device_of(config, partners):
    """The name of this rank's device: of the settings' devices, one for each rank of a machine, or one for all.

    auto: a GPU for each rank of the machine, around again where there are more ranks, or the cpu where there is none.
    """
    devices, local = config.devices, partners.local_rank
    if devices[0] == "auto":
        gpus = gpus_for(config)
        return f"cuda{local % gpus}" if gpus else "cpu"
    if len(devices) == 1:
        return devices[0]
    if len(devices) != partners.local_size:
        raise ConfigError(
            f"devices must name one device, or one for each of the {partners.local_size} ranks on "
            f"{partners.hosts[partners.rank]}, got {','.join(devices)}"
        )
    return devices[local]


def gpus_for(config):
    """How many GPUs of this machine the engine of the settings can use."""
    if engine_of(config.engine, "cuda0") != "jax" or why_no_jax():
        return 0
    try:
        return cuda_home("cuda0").count()
    except DeviceError:
        return 0


class Control:
    """What multigpu.control.Control is to a worker that train.py started; SIGNALS are taken from here on."""

    def __init__(self, lifeline, partners):
        self._lifeline, self._partners = lifeline, partners
        self._taken = None                       # (signal number, when)
        for number in SIGNALS:
            signal.signal(number, self._take)

    def _take(self, number, frame):
        now = time.monotonic()
        if self._taken is None:
            self._taken = number, now
        elif now - self._taken[1] >= TWICE:
            sentence = f"killed by a second {signal.Signals(number).name}, without saving"
            if self._partners.lone and self._partners.rank:
                self._lifeline.lost(sentence)
            else:
                self._lifeline.fail(sentence, 128 + number)

    def status(self):
        """The exit status that this rank's signal asks of the job, 0 without one, or where it has left alone."""
        return 128 + self._taken[0] if self._taken and not self._partners.left else 0

    def stop_requested(self):
        """Whether to finish the step, save and end; asked after each step, so this rank goes on."""
        self._partners.progress()
        return self._taken is not None

    def report(self, sentence, status=1, follows=False):
        """Say, from any thread, that this rank has lost its loader; it, or every rank, is then ended within seconds."""
        self._lifeline.lost(sentence)
