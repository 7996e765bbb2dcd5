"""The training of a worker of several_workers: loop, loader and exchange are real, the network computes nothing."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from alexnet.data.dataset import Dataset, Split
from alexnet.run.recorder import WorkerRecorder
from alexnet.training.loop import Position, Run
from multigpu.device import open_device
from multigpu.loader import ParallelBatches
from multigpu.rules import role_of, rule_of
from tests.multigpu.fakes.several_workers import SECOND, STEPS, Points, Reader
from tests.multigpu.fakes.workers import mark


class Variable:
    """The part of a shared variable that an exchange uses."""

    name = "weights"

    def __init__(self, value):
        self.container = SimpleNamespace(storage=[value])

    def get_value(self, borrow=True, return_internal_type=False):
        return self.container.storage[0]

    def set_value(self, value):
        self.container.storage[0] = value


class Network:
    """A network that computes nothing and reaches pause points."""

    computes_on_host, frozen_parameters, averages, model = True, (), [], SimpleNamespace(image_size=4)
    sums_read = sums_written = None
    kernel_block = 0

    def __init__(self, points):
        self.points, self.step = points, Variable(np.int64(0))
        self.weights = self.parameters_and_velocities = [Variable(np.zeros(5000, np.float32))]
        self.rule_state = [Variable(np.zeros(5000, np.float32)) for _ in range(2)]           # of rule noloco

    def train(self, *inputs):
        self.points.reach("computing", SECOND)
        time.sleep(0.01)
        self.parameters_and_velocities[0].get_value()[:] += 1
        return 1.0, 0.5

    def validate(self, *inputs):
        self.points.reach("validating")
        return 1.0, 0.5, 0.5, None


def points_of(exchange):
    """Return the pause points of an exchange: (object, method, point before a call, point after a call)."""
    found = [(exchange, "after_step", "before Ready", "after the exchange"), (exchange, "total", "before the sums"),
             (exchange, "close", "closing")]
    if hasattr(exchange, "_groups"):               # not those of a server
        found += [(group.strategy, "average", "between Ready and Done", "after Done")
                  for group in exchange._groups if hasattr(group, "strategy")]
    inner = {"_exchange": "serving", "contact": "coming", "_push": "pushing", "_enter": "entering"}
    return found + [(exchange, name, point) for name, point in inner.items() if hasattr(exchange, name)]


def work(config, device, control, comm):
    """multigpu.worker.work without files, PyTensor and output."""
    folder, rank = Path(config.output), comm.rank
    points = Points(folder, rank, control.stop_requested)
    mark(folder / f"worker{rank}", os.getpid())
    points.reach("starting")
    if comm.over_mpi and rank == 0:
        log = Path(folder, config.run_name, "log.txt")
        log.touch()
        control.log_to(log)
    rule, reader = rule_of(config, comm), (folder, rank)
    part = role_of(rule, config, comm)
    n = STEPS * part.workers * config.batch_size
    split = Split((Path("none"),), np.array([n]), np.zeros(n, np.int32))
    with (
        comm.watch(lambda other: control.report(f"worker {other} has died", caused_by_peer=True)) as watch,
        open_device("cpu") as device,
        ParallelBatches(reader, (3, 4, 4, config.batch_size), "uint8", make_reader=Reader, device=device,
                        on_death=control.report) as batches,
    ):
        mark(folder / f"loader{rank}", batches.loader_pid)
        points.reach("connecting")
        network = Network(points)
        exchange = rule.connect(config, network, device, comm, WorkerRecorder(rank))
        for owner, *point in points_of(exchange):
            points.around(owner, *point)
        shares = split.shard(part.worker, part.workers), split.shard(*part.validates)
        data = Dataset(Path("none"), *shares, np.zeros((3, 4, 4), np.float32), None, 2)

        def save(position):
            points.reach("saving")
            mark(folder / f"saved{rank}", position.iteration)

        recorder = WorkerRecorder(rank)
        run = Run(config, network, data, batches, exchange, recorder, save, control.stop_requested, part.worker)
        exchange.run(run, Position())
        watch.close()
        points.times = 1                         # close() happens only once
        exchange.close()
