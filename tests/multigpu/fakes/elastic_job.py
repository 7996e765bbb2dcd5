"""Clients that join late, leave and die: the fakes of several_workers with rule asgd and arrays of three pieces.

Run as a script, it replaces train.py, like several_workers. FAULT accepts the points of several_workers and these:

    coming       after a step
    joining      before a client, which has its device and its data, connects to the server
    moving       before each piece of an exchange is sent or received

Each step adds 1 to the weights, which start at 0. With server_scale=1 the center variable therefore equals the number
of steps pushed. In the folder `output`, a client marks that it has done LATER_STEPS. At its end it marks (its
iteration, its steps, its weights before its first step). At each save the server marks (the iteration, the steps
recorded of each client, the center variable).
"""

import os
import sys
import time
from pathlib import Path

import numpy as np

from alexnet.data.dataset import Dataset, Split
from alexnet.run.recorder import WorkerRecorder
from alexnet.training.loop import Position, Run
from multigpu.device import open_device
from multigpu.loader import ParallelBatches
from multigpu.mpi.rank_wrapper import wrap_rank
from multigpu.rules import role_of, rule_of
from multigpu.train import load_settings, with_run
from multigpu.worker import Present
from tests.multigpu.fakes import several_workers
from tests.multigpu.fakes.several_workers import STEPS, Points, Reader, Variable
from tests.multigpu.fakes.workers import mark

LONG = (2 << 20) + 77                            # floats: three pieces
LATER_STEPS = 12                                 # steps after which a client counts as started
PATIENCE = 30.0                                  # seconds


def come_late():
    """Wait until another client has done LATER_STEPS steps."""
    end = time.monotonic() + PATIENCE
    while not any(Path(os.environ["WENT"]).parent.glob("runs/begun*")) and time.monotonic() < end:
        time.sleep(0.01)


several_workers.FAULTS["late"] = come_late


class Network(several_workers.Network):
    """A network of three pieces that computes nothing and counts its steps."""

    def __init__(self, points, begun):
        super().__init__(points)
        self.weights = self.parameters_and_velocities = [Variable(np.zeros(LONG, np.float32))]
        self.steps, self.first, self._begun = 0, None, begun

    def weight(self):
        return float(self.weights[0].get_value()[-1])

    def train(self, *inputs):
        self.steps += 1
        self.first = self.weight() if self.first is None else self.first
        if self.steps == LATER_STEPS:
            mark(self._begun, os.getpid())
        return super().train(*inputs)


class Recorder(WorkerRecorder):
    """Writes the server's log and stores the steps recorded of each client."""

    def __init__(self, rank, log):
        super().__init__(rank)
        self._log, self.steps = log, {}

    def log(self, message, screen=True):
        if not self.rank:
            with self._log.open("a") as file:
                file.write(f"{message}\n")

    def train_iteration(self, **record):
        self.steps.setdefault(record.get("worker"), []).append(record["iteration"])
        super().train_iteration(**{name: record[name] for name in record.keys() - {"times", "worker"}})

    def record(self, kind, **values):
        """Ignore records of rules."""


def work(config, device, control, comm):
    """multigpu.worker.work without PyTensor and output."""
    folder, rank = Path(config.output), comm.rank
    points, rule = Points(folder, rank), rule_of(config, comm)
    part, recorder = role_of(rule, config, comm), Recorder(rank, Path(folder, config.run_name, "log.txt"))
    if rank == 0:
        log = Path(folder, config.run_name, "log.txt")
        log.touch()
        control.log_to(log)
    comm.allgather(Present())
    n = STEPS * part.workers * config.batch_size
    split = Split((Path("none"),), np.array([n]), np.zeros(n, np.int32))
    shares = split.shard(part.worker, part.workers), split.shard(*part.validates)
    data = Dataset(Path("none"), *shares, np.zeros((3, 4, 4), np.float32), None, 2)
    with (
        open_device("cpu") as device,
        ParallelBatches((folder, rank), (3, 4, 4, config.batch_size), "uint8", make_reader=Reader, device=device,
                        on_death=control.report) as batches,
    ):
        mark(folder / f"worker{rank}", os.getpid())
        comm.detach()
        points.reach("joining")
        network = Network(points, folder / f"begun{rank}")
        with rule.connect(config, network, device, comm, recorder) as exchange:
            points.around(exchange._channel, "_swap", "moving")
            if rank:
                points.around(exchange, "contact", "coming")

            def save(position):
                if rank == 0:
                    mark(folder / "saved", [position.iteration, recorder.steps, network.weight()])

            run = Run(config, network, data, batches, exchange, recorder, save, control.stop_requested, part.worker)
            position = exchange.run(run, Position())
        mark(folder / f"ended{rank}", [position.iteration, network.steps, network.first])


def main(arguments):
    wrap_rank()
    given = ["data=none", "batch_size=2", "rand_crop=false", "rule=asgd", "server_scale=1", *arguments]
    from multigpu.mpi import job  # after wrap_rank: it initialises MPI

    return job.run(lambda: with_run(load_settings(given)), work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
