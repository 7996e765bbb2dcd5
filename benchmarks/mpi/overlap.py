"""The exchange of rule bsp during the backward pass, against the same exchange after it.

python -m benchmarks.mpi.overlap [--quick] [--json FILE] [--ranks 2] [--model alexnet] [--batch 128] [--exchange asa32]

Each rank trains a network on one batch of random images that stays in memory. With every strategy, steps with
gradients, with factors, and without any exchange take turns. A figure is the time of the slowest rank. `visible` is the
time of the exchange that delays the step, `comm` in the log, and `hidden` the time that it ran beside the computation.
`sent` is the number of bytes that left the host of a rank in a step. Each rank computes on one thread.

The environment variable MPIEXEC replaces the command that starts the ranks, for ranks on several hosts:

python -m tests.system.two_hosts --rate 1gbit python -m benchmarks.mpi.overlap
"""

import json
import pathlib
import statistics
import time
from typing import NamedTuple

import numpy as np

from alexnet.config import load_config
from alexnet.models import model_class
from alexnet.run.recorder import WorkerRecorder
from alexnet.training.network import Network
from alexnet.training.updates import momentum_sgd
from benchmarks.harness import report
from benchmarks.harness.mpi import NEEDED, mpiexec, open_communicator, rows_of_ranks
from benchmarks.mpi.strategies import bytes_sent
from multigpu.device import open_device
from multigpu.rules.bsp import BspRule
from multigpu.rules.single import SingleWorker

RUNS, QUICK_RUNS = 5, 3
STRATEGIES = ("asa32", "asa16", "ar")
ALONE = "no exchange"
WAYS = {                                         # name -> settings
    "after the backward pass": ("exchange_what=gradients", "overlap=false"),
    "during it": ("exchange_what=gradients", "overlap=true"),
    "factors, after it": ("exchange_what=factors", "overlap=false"),
    "factors, during it": ("exchange_what=factors", "overlap=true"),
}


class Plan(NamedTuple):
    """What the ranks measure."""

    model: str
    batch: int
    strategies: list[str]
    runs: int


def work(plan, path):
    """Main function of a rank: measure the Plan, given as JSON; rank 0 writes the rows to the path."""
    plan = Plan(*json.loads(plan))
    comm = open_communicator()
    rng = np.random.default_rng(comm.rank)
    rows = []
    for strategy in plan.strategies:
        with open_device("cpu") as device:
            ways = {way: synchronizer(plan, comm, device, strategy, way) for way in (ALONE, *WAYS)}
            size = next(iter(ways.values()))[0].model.image_size
            images = rng.standard_normal((3, size, size, plan.batch), dtype=np.float32)
            labels = rng.integers(0, 1000, plan.batch, dtype=np.int32)
            times = {way: [] for way in ways}
            for run in range(plan.runs + 1):
                for way, (_, exchange, recorder) in ways.items():
                    step_times = train_step(comm, exchange, recorder, run + 1, images, labels)
                    if run:                      # the first step compiles
                        times[way].append(step_times)
            for way, (_, exchange, _) in ways.items():
                if way != ALONE:
                    exchange.close()
        rows += rows_of(plan, comm, strategy, times)
    if comm.rank == 0:
        report.write(rows, pathlib.Path(path))


def synchronizer(plan, comm, device, strategy, way):
    """Return a new network with its Synchronizer and recorder."""
    model = model_class(plan.model)(np.random.default_rng(0))
    network = Network(model, np.zeros((3, 256, 256), "float32"), momentum_sgd, crop=False)
    recorder = WorkerRecorder(comm.rank)
    if way == ALONE:
        return network, SingleWorker(network), recorder
    config = load_config([f"batch_size={plan.batch}", f"exchange={strategy}", *WAYS[way]])
    BspRule().configure(config, network, comm)
    return network, BspRule().connect(config, network, device, comm, recorder), recorder


def train_step(comm, exchange, recorder, step, images, labels):
    """Run one step on all ranks; return (seconds, visible, hidden, bytes sent) of the slowest rank."""
    comm.mpi.Barrier()
    recorder.restart()
    before, began = bytes_sent(), time.perf_counter()
    with recorder.time("calc"):
        cost, error = exchange.step(images, labels, rate=np.float32(1e-4))
    exchange.after_step(step, float(cost), float(error), 1e-4, False, False)
    seconds = time.perf_counter() - began
    times = recorder.end_iteration(step, 0.0, 0)
    return max(comm.mpi.allgather((seconds, times["comm"], times["hidden"], bytes_sent() - before)))


def rows_of(plan, comm, strategy, times):
    """Yield the rows of a strategy."""
    where = f"{plan.model}, batch {plan.batch}, {comm.size} {'ranks' if comm.on_one_host else 'hosts'}, {strategy}"
    alone = [seconds for seconds, *_ in times[ALONE]]
    yield report.row(f"{where}, {ALONE}", alone, "s")
    for way in WAYS:
        seconds, visible, hidden, sent = (list(values) for values in zip(*times[way], strict=True))
        found = report.row(f"{where}, {way}", seconds, "s")
        yield found | {"sent": statistics.median(sent)} if not comm.on_one_host else found
        yield report.row(f"{where}, {way}, visible", visible, "s")
        if "overlap=true" in WAYS[way]:
            yield report.row(f"{where}, {way}, hidden", hidden, "s")


def rows(options):
    if mpiexec() is None:
        yield report.not_measured("overlap", NEEDED)
        return
    plan = Plan(options.model, options.batch, options.exchange, QUICK_RUNS if options.quick else RUNS)
    for n in options.ranks:
        yield from rows_of_ranks("benchmarks.mpi.overlap", n, plan)


def add_options(parser):
    parser.add_argument("--ranks", type=int, nargs="+", metavar="N", default=[2])
    parser.add_argument("--model", default="alexnet")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--exchange", nargs="+", default=list(STRATEGIES))


if __name__ == "__main__":
    quick = {"batch": 16, "exchange": ["asa32"]}
    raise SystemExit(report.main(rows, __doc__, "batch 16, 3 runs, asa32", quick, add_options, work))
