"""A rank of an MPI job: what multigpu.launch is for workers that train.py starts.

    mpiexec -n 4 python -m mpi4py train.py rule=bsp exchange=asa16

The process that MPI has started is the worker itself; its loader is a child of it, never a rank.  Rank 0 settles the
settings, makes the synthetic set, names the run, prints and saves.
"""

import os
import pkgutil
import sys
from typing import NamedTuple

from alexnet.checkpoint import CheckpointError
from alexnet.config import ConfigError
from alexnet.data import DataError
from multigpu.device import DeviceError
from multigpu.mpi import MPI, MpiPartners
from multigpu.rules import rule_of


class Settled(NamedTuple):
    """Rank 0 to all: the settings, or the sentence why there are none."""

    config: object
    sentence: str | None
    step: int = 0


def run(settle, entry="multigpu.worker:work"):
    """Do this rank's part of the job; returns the exit status.

    settle  () -> Config, called at rank 0 alone
    entry   as multigpu.launch.launch's
    """
    partners = MpiPartners()
    settled = settle_at_rank_0(settle, partners)
    if settled.sentence:
        if partners.rank == 0:
            print(f"train.py: {settled.sentence}", file=sys.stderr)
        return 2
    config = settled.config
    try:
        pkgutil.resolve_name(entry)(config, device_of(config, partners), Line(partners), partners)
    except (CheckpointError, ConfigError, DataError, DeviceError) as error:
        print(f"rank {partners.rank}: {error}", file=sys.stderr, flush=True)
        MPI.COMM_WORLD.Abort(2)
    return 0


def settle_at_rank_0(settle, partners):
    """The Settled that rank 0 has come to."""
    settled = Settled(None, None)
    if partners.rank == 0:
        try:
            settled = Settled(settle(), None)
            rule_of(settled.config, partners)
        except (ConfigError, DataError, CheckpointError) as error:
            settled = Settled(None, str(error))
    return partners.meet(settled)[0]


def device_of(config, partners):
    """The name of this rank's device: of the settings' devices, one for each rank of a machine, or one for all."""
    devices = config.devices
    if len(devices) == 1:
        return devices[0]
    if len(devices) != partners.local_size:
        raise ConfigError(
            f"devices must name one device, or one for each of the {partners.local_size} ranks on "
            f"{partners.hosts[partners.rank]}, got {','.join(devices)}"
        )
    return devices[partners.local_rank]


class Line:
    """What multigpu.control.Control is to a worker of train.py's."""

    def __init__(self, partners):
        self._rank = partners.rank

    def stop_requested(self):
        """Whether to finish the step, save and end."""
        return False

    def report(self, sentence, status=1, follows=False):
        """Say, from any thread, that the run cannot go on, and end the job."""
        os.write(2, f"rank {self._rank}: {sentence}\n".encode())
        MPI.COMM_WORLD.Abort(status)
