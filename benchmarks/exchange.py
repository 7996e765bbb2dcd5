"""Time to average AlexNet's parameters and momentum over all workers.

python -m benchmarks.exchange [--quick] [--json FILE] [--devices cuda0,cuda1]

Two, three and four processes hold 487.7 MB each and replace them by the mean of all processes, as after every training
step. The value is the time of the slowest worker, from Ready until all workers have sent Done. The peer is a memcpy of
the same number of bytes by one thread, alternating with the exchange. ShardedAverage is used on the host: each worker
averages one part of all buffers and writes it into all of them. PairwiseAverage is the paper's method for two GPUs:
each worker copies the other's whole buffer, then averages both. Gradients have half the bytes, but they are new arrays
in each step, which are first copied into the buffer.

Each worker is one process. More workers than cores share the cores.

With --devices cuda0,cuda1 (or cuda0,cuda0), the workers and their arrays are on GPUs. The peer is then a simultaneous
copy of the same number of bytes by every worker from another worker's memory.

Source: Ding et al. 2014, section 2.2 and figure 2.
"""

import importlib
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytensor

from alexnet.run.recorder import WorkerRecorder
from benchmarks.harness import report
from multigpu.communicator import PipeCommunicator
from multigpu.device import DeviceError, open_device
from multigpu.exchange.peer import PairwiseAverage, Peer, ShardedAverage, open_mesh
from multigpu.launch.process import CONTEXT, end, pipes_between, start
from multigpu.rules.averaging import Bsp
from multigpu.rules.gradients import GradientBsp
from multigpu.rules.groups import ParameterGroup

PARAMETERS = 60_965_224                          # of AlexNet with 1000 classes
GRACE = 5.0                                      # seconds until a worker that does not exit is killed


class Amount(NamedTuple):
    """Amount of measurement."""

    floats: int                                  # number of parameters, equal to that of momentum values
    runs: int
    sizes: tuple[int, ...]                       # numbers of workers


class Way(NamedTuple):
    """An exchange: its devices, arrays and algorithm."""

    devices: tuple[str, ...]                     # one per worker
    gradients: bool
    kind: type

    @property
    def size(self):
        return len(self.devices)

    @property
    def on_host(self):
        return self.devices[0] == "cpu"

    def name(self):
        where = "" if self.on_host else f" on {','.join(self.devices)}"
        what = "gradients" if self.gradients else "weights and momentum"
        return f"{self.size} workers{where}, {what}, {self.kind.__name__}"


def work(rank, way, floats, pipes, orders):
    """Run as a worker process: for each order, exchange or copy and reply with the seconds; exit on None."""
    names = ["gradient"] if way.gradients else ["weights", "momentum"]
    variables = [pytensor.shared(np.zeros(floats, "float32"), name=name, borrow=True) for name in names]
    with open_device(way.devices[rank], way.on_host) as device:
        fresh = np.full(floats, rank, "float32") if way.on_host else filled_by_jax(way.devices[rank], floats)
        comm = PipeCommunicator(rank, pipes)
        mesh, obstacle = open_mesh(device, comm, [(floats,)] * len(names), 0)
        if obstacle:
            raise SystemExit(obstacle)
        group = ParameterGroup(variables, Peer(mesh, way.kind))
        network = SimpleNamespace(apply=lambda rate: None, sums_read=None, sums_written=None)
        recorder = WorkerRecorder(rank)
        if way.gradients:
            exchange = GradientBsp(network, [group], None, comm, recorder)
        else:
            exchange = Bsp(network, [group], comm, recorder)
        buffer = device.allocate(mesh.flat.buffer.nbytes)
        other = mesh.others[(rank + 1) % way.size]
        for variable in variables:
            variable.container.storage[0] = fresh.copy()
        for step, copying in iter(orders.recv, None):
            if way.gradients:
                variables[0].container.storage[0] = fresh
            began = time.perf_counter()
            if copying:
                device.copy(buffer, other)
                device.synchronise()
            else:
                exchange.after_step(step, 0.0, 0.0, 0.0, False, False)
            orders.send(time.perf_counter() - began)
        exchange.close()


def filled_by_jax(name, floats):
    """Return an array in GPU memory that JAX has allocated, like the arrays of the jax backend."""
    jax = importlib.import_module("jax")
    device = next(each for each in jax.local_devices() if f"cuda{each.local_hardware_id}" == name)
    return jax.block_until_ready(jax.device_put(np.ones(floats, "float32"), device))


class Workers:
    """The worker processes of one Way."""

    def __init__(self, way, floats):
        self.steps, self.orders, self.processes = 0, [], []
        pipes = pipes_between(range(way.size))
        for rank in range(way.size):
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=work, args=(rank, way, floats, pipes[rank], theirs), daemon=True)
            start(process, threads=1)
            self.orders.append(ours)
            self.processes.append(process)
            theirs.close()
        for each in pipes.values():
            for pipe in each.values():
                pipe.close()

    def run(self, copying=False):
        """Return the slowest worker's seconds for one exchange or copy.

        Raises:
            EOFError: a worker has died.
        """
        self.steps += 1
        for orders in self.orders:
            orders.send((self.steps, copying))
        return max(orders.recv() for orders in self.orders)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for orders in self.orders:
            with suppress(BrokenPipeError):
                orders.send(None)
        for process in self.processes:
            end(process, GRACE)


def copy(source, target):
    """Return the seconds of a memcpy."""
    return report.seconds(lambda: np.copyto(target, source))


def way_row(way, floats, source, target, runs):
    """Return the row of an exchange in milliseconds, with an alternating copy of the same number of bytes as peer."""
    n = floats if way.gradients else 2 * floats
    with Workers(way, floats) as workers:
        rounds = []
        for _ in range(runs + 1):
            exchanged = workers.run()
            rounds.append((exchanged, copy(source[:n], target[:n]) if way.on_host else workers.run(copying=True)))
    exchanged, copied = ([1e3 * each for each in seconds] for seconds in zip(*rounds[1:], strict=True))
    row = report.row(way.name(), exchanged, "ms")
    what = "memcpy" if way.on_host else "simultaneous copies from each other"
    return report.compared(row, copied, f"{what}, {4 * n / 1e6:.1f} MB")


def host_ways(sizes):
    yield from (Way(("cpu",) * size, False, ShardedAverage) for size in sizes)
    yield Way(("cpu",) * 2, False, PairwiseAverage)
    yield from (Way(("cpu",) * size, True, ShardedAverage) for size in sizes)


def gpu_ways(devices):
    kinds = (PairwiseAverage, ShardedAverage) if len(devices) == 2 else (ShardedAverage,)
    return [Way(devices, gradients, kind) for gradients in (False, True) for kind in kinds]


def exchange_rows(amount, devices=None):
    """Yield the row of a memcpy of all bytes, then a row for each Way, on the GPUs `devices` or on the host."""
    source, target = (np.full(2 * amount.floats, value, "float32") for value in (1, 0))
    seconds = [copy(source, target) for _ in range(amount.runs + 1)][1:]
    yield report.row(f"memcpy of {source.nbytes / 1e6:.1f} MB by one thread", [1e3 * each for each in seconds], "ms")
    for way in gpu_ways(devices) if devices else host_ways(amount.sizes):
        yield way_row(way, amount.floats, source, target, amount.runs)


def rows(options):
    """Yield all rows.

    Raises:
        CannotMeasure: a device of --devices is not usable.
    """
    devices = tuple(options.devices.split(",")) if options.devices else None
    try:
        for name in sorted(set(devices or ())):
            open_device(name, on_host=False).close()
    except DeviceError as error:
        raise report.CannotMeasure(str(error)) from error
    amount = Amount(PARAMETERS // 16, 3, (2, 3)) if options.quick else Amount(PARAMETERS, 9, (2, 3, 4))
    yield from exchange_rows(amount, devices)


def add_options(parser):
    parser.add_argument("--devices", metavar="cuda0,cuda1", help="default: the host, two to four workers")


if __name__ == "__main__":
    raise SystemExit(report.main(rows, __doc__, "a sixteenth of the bytes, 3 runs", add_options=add_options))
