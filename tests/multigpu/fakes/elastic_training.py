"""The training of a rank of elastic_job: the loop, loader and rule are real, the network counts its steps."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alexnet.data.dataset import Dataset, Split
from alexnet.run.recorder import WorkerRecorder
from alexnet.training.loop import Position, Run
from multigpu.device import open_device
from multigpu.loader import ParallelBatches
from multigpu.rules import role_of, rule_of
from tests.multigpu.fakes import idle_training
from tests.multigpu.fakes.elastic_job import LATER_STEPS
from tests.multigpu.fakes.idle_training import Variable
from tests.multigpu.fakes.several_workers import STEPS, Points, Reader
from tests.multigpu.fakes.workers import mark

LONG = (2 << 20) + 77                            # floats: three pieces


class Present(NamedTuple):
    """The message multigpu.worker.Present, whose module would import PyTensor."""

    step: int = 0


class Network(idle_training.Network):
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
