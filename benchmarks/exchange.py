"""What it takes workers to become one: the exchange of AlexNet's parameters and momentum.

python -m benchmarks.exchange [--quick] [--json FILE] [--devices cuda0,cuda1]

Two, three and four processes hold 487.7 MB each and make them the mean of all, as after every training step: from
Ready until all have said Done, the slowest worker's time.  The peer is a memcpy of as many bytes by one thread, in
turns with it.  Slices is what runs on the host: each worker averages one part of all buffers and writes it into all.
Pair is the paper's way, which GPUs take: each copies the other's whole buffer, then averages both.  Gradients are half
the bytes, but new arrays in each step, which are copied into the buffer first.

There are as many processes as workers on the cores named above, so more workers than cores take turns.

With --devices cuda0,cuda1, or cuda0,cuda0, the workers and what they hold are on GPUs, and the peer is every worker
copying as many bytes from another's memory at once.

Source: Ding et al. 2014, section 2.2 and figure 2.
"""

import importlib
import sys
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytensor

from alexnet.recorder import Silent
from benchmarks import report
from multigpu.device import DeviceError, open_device
from multigpu.exchange.peer import Pair, Peer, Slices, open_mesh
from multigpu.partners import Partners
from multigpu.process import CONTEXT, end, pipes_between, start
from multigpu.rules.bsp import Bsp, Lot

PARAMETERS = 60_965_224                          # of AlexNet with 1000 classes
GRACE = 5.0                                      # seconds in which a worker ends


class Amount(NamedTuple):
    """How much is measured."""

    floats: int                                  # of parameters, and of momentum
    runs: int
    sizes: tuple[int, ...]                       # numbers of workers


class Way(NamedTuple):
    """How many exchange, what, and how."""

    devices: tuple[str, ...]                     # of each worker
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
    """A worker's process: an exchange or a copy for each order; answers with its seconds, ends when nobody orders."""
    names = ["gradient"] if way.gradients else ["weights", "momentum"]
    variables = [pytensor.shared(np.zeros(floats, "float32"), name=name, borrow=True) for name in names]
    with open_device(way.devices[rank], way.on_host) as device:
        fresh = np.full(floats, rank, "float32") if way.on_host else filled_by_jax(way.devices[rank], floats)
        partners = Partners(rank, pipes)
        mesh, obstacle = open_mesh(device, partners, [(floats,)] * len(names), 0)
        if obstacle:
            raise SystemExit(obstacle)
        lot, network = Lot(variables, Peer(mesh, way.kind)), SimpleNamespace(apply=lambda rate: None)
        exchange = Bsp(network, [lot], "gradients" if way.gradients else "weights_and_momentum", partners, Silent(rank))
        room, other = device.allocate(mesh.flat.buffer.nbytes), mesh.others[(rank + 1) % way.size]
        for variable in variables:
            variable.container.storage[0] = fresh.copy()
        for step, copying in iter(orders.recv, None):
            if way.gradients:
                variables[0].container.storage[0] = fresh
            began = time.perf_counter()
            if copying:
                device.copy(room, other)
                device.synchronise()
            else:
                exchange.after_step(step, 0.0, 0.0, 0.0, False, False)
            orders.send(time.perf_counter() - began)
        exchange.close()


def filled_by_jax(name, floats):
    """An array in JAX's own memory on a GPU, as the engine's are."""
    jax = importlib.import_module("jax")
    device = next(each for each in jax.local_devices() if f"cuda{each.local_hardware_id}" == name)
    return jax.block_until_ready(jax.device_put(np.ones(floats, "float32"), device))


class Workers:
    """The processes of one way."""

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
        """Seconds of the slowest worker for one exchange, or one copy; raises EOFError when a worker has died."""
        self.steps += 1
        for orders in self.orders:
            orders.send((self.steps, copying))
        return max([orders.recv() for orders in self.orders])

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for orders in self.orders:
            with suppress(BrokenPipeError):
                orders.send(None)
        for process in self.processes:
            end(process, GRACE)


def copy_rows(source, target, runs):
    """What a memcpy takes of all the bytes."""
    seconds = [copy(source, target) for _ in range(runs + 1)][1:]
    yield report.row(f"memcpy of {source.nbytes / 1e6:.1f} MB by one thread", [1e3 * each for each in seconds], "ms")


def copy(source, target):
    """Seconds of a memcpy."""
    began = time.perf_counter()
    np.copyto(target, source)
    return time.perf_counter() - began


def way_row(way, floats, source, target, runs):
    """Milliseconds of an exchange, against a copy of as many bytes in turns with it."""
    n = floats if way.gradients else 2 * floats
    with Workers(way, floats) as workers:
        rounds = []
        for _ in range(runs + 1):
            exchanged = workers.run()
            rounds.append((exchanged, copy(source[:n], target[:n]) if way.on_host else workers.run(copying=True)))
    exchanged, copied = ([1e3 * each for each in seconds] for seconds in zip(*rounds[1:], strict=True))
    row = report.row(way.name(), exchanged, "ms")
    peer = report.row("", copied, "ms")["value"]
    what = "memcpy" if way.on_host else "copying from each other at once"
    return row | {"peer": peer, "ratio": row["value"] / peer, "peer_is": f"{what}, {4 * n / 1e6:.1f} MB"}


def host_ways(sizes):
    yield from (Way(("cpu",) * size, False, Slices) for size in sizes)
    yield Way(("cpu",) * 2, False, Pair)
    yield from (Way(("cpu",) * size, True, Slices) for size in sizes)


def gpu_ways(devices):
    kinds = (Pair, Slices) if len(devices) == 2 else (Slices,)
    return [Way(devices, gradients, kind) for gradients in (False, True) for kind in kinds]


def rows(amount, devices=None):
    source, target = (np.full(2 * amount.floats, value, "float32") for value in (1, 0))
    yield from copy_rows(source, target, amount.runs)
    for way in gpu_ways(devices) if devices else host_ways(amount.sizes):
        yield way_row(way, amount.floats, source, target, amount.runs)


def main():
    parser = report.parser(__doc__, quick="a sixteenth of the bytes, 3 runs")
    parser.add_argument("--devices", metavar="cuda0,cuda1", help="default: the host, two to four workers")
    options = parser.parse_args()
    amount = Amount(PARAMETERS // 16, 3, (2, 3)) if options.quick else Amount(PARAMETERS, 9, (2, 3, 4))
    devices = tuple(options.devices.split(",")) if options.devices else None
    try:
        for name in sorted(set(devices or ())):
            open_device(name, on_host=False).close()
    except DeviceError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{'':64} {'ms':>8} {'spread':>8} {'a copy':>8} {'ratio':>7}")
    found = []
    for row in rows(amount, devices):
        found.append(row)
        peer = f"{row['peer']:8.1f} {row['ratio']:7.2f}" if "peer" in row else ""
        print(f"{row['name']:64} {row['value']:8.1f} {row['spread']:8.1%} {peer}", flush=True)
    report.write(found, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
