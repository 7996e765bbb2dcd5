"""What it takes workers on the host to become one: the exchange of AlexNet's parameters and momentum.

python -m benchmarks.exchange [--quick] [--json FILE]

Two, three and four processes hold 487.7 MB each and make them the mean of all, as after every training step: from
Ready until all have said Done, the slowest worker's time.  The peer is a memcpy of as many bytes by one thread, in
turns with it.  Slices is what runs on the host: each worker averages one part of all buffers and writes it into all.
Pair is the paper's way, which GPUs take: each copies the other's whole buffer, then averages both.  Gradients are half
the bytes, but new arrays in each step, which are copied into the buffer first.

There are as many processes as workers on the cores named above, so more workers than cores take turns.

Source: Ding et al. 2014, section 2.2 and figure 2.
"""

import time
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytensor

from benchmarks import report
from multigpu.device import open_device
from multigpu.exchange.partners import Partners
from multigpu.exchange.peer import Pair, Peer, Slices, open_mesh
from multigpu.process import CONTEXT, end, start

PARAMETERS = 60_965_224                          # of AlexNet with 1000 classes
GRACE = 5.0                                      # seconds in which a worker ends


class Amount(NamedTuple):
    """How much is measured."""

    floats: int                                  # of parameters, and of momentum
    runs: int
    sizes: tuple[int, ...]                       # numbers of workers


class Way(NamedTuple):
    """How many exchange, what, and how."""

    size: int
    gradients: bool
    kind: type

    def name(self):
        what = "gradients" if self.gradients else "weights and momentum"
        return f"{self.size} workers, {what}, {self.kind.__name__}"


def work(rank, way, floats, pipes, orders):
    """A worker's process: one exchange for each order; answers with its seconds, ends when nobody orders."""
    names = ["gradient"] if way.gradients else ["weights", "momentum"]
    variables = [pytensor.shared(np.full(floats, rank, "float32"), name=name, borrow=True) for name in names]
    fresh = np.full(floats, rank, "float32")
    network = SimpleNamespace(apply=lambda rate: None)
    with open_device("cpu") as device:
        partners = Partners(rank, pipes)
        mesh, _ = open_mesh(device, partners, [(floats,)] * len(names), 0, ["cpu"] * way.size)
        exchange = Peer(network, variables, way.gradients, 1, mesh, way.kind)
        for step in iter(orders.recv, None):
            if way.gradients:
                variables[0].set_value(fresh, borrow=True)
            began = time.perf_counter()
            exchange.after_step(step, 0.0, 0.0, 0.0, False, False)
            orders.send(time.perf_counter() - began)
        exchange.close()


class Workers:
    """The processes of one way; exchange() is one exchange."""

    def __init__(self, way, floats):
        self.steps, self.orders, self.processes = 0, [], []
        pipes = [{} for _ in range(way.size)]
        for one in range(way.size):
            for two in range(one):
                pipes[one][two], pipes[two][one] = CONTEXT.Pipe()
        for rank in range(way.size):
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=work, args=(rank, way, floats, pipes[rank], theirs), daemon=True)
            start(process, threads=1)
            self.orders.append(ours)
            self.processes.append(process)
            theirs.close()
        for each in pipes:
            for pipe in each.values():
                pipe.close()

    def exchange(self):
        """Seconds of the slowest worker; raises EOFError when one has died."""
        self.steps += 1
        for orders in self.orders:
            orders.send(self.steps)
        return max([orders.recv() for orders in self.orders])

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for orders in self.orders:
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
    """Milliseconds of an exchange, against a memcpy in turns with it."""
    n = floats if way.gradients else 2 * floats
    with Workers(way, floats) as workers:
        rounds = [(workers.exchange(), copy(source[:n], target[:n])) for _ in range(runs + 1)][1:]
    exchanged, copied = ([1e3 * each for each in seconds] for seconds in zip(*rounds, strict=True))
    row = report.row(way.name(), exchanged, "ms")
    peer = report.row("", copied, "ms")["value"]
    return row | {"peer": peer, "ratio": row["value"] / peer, "peer_is": f"memcpy of {4 * n / 1e6:.1f} MB"}


def rows(amount):
    source, target = (np.full(2 * amount.floats, value, "float32") for value in (1, 0))
    yield from copy_rows(source, target, amount.runs)
    ways = [Way(size, False, Slices) for size in amount.sizes]
    ways += [Way(2, False, Pair), *(Way(size, True, Slices) for size in amount.sizes)]
    for way in ways:
        yield way_row(way, amount.floats, source, target, amount.runs)


def main():
    parser = report.parser(__doc__, quick="a sixteenth of the bytes, 3 runs")
    options = parser.parse_args()
    amount = Amount(PARAMETERS // 16, 3, (2, 3)) if options.quick else Amount(PARAMETERS, 9, (2, 3, 4))
    print(f"{'':44} {'ms':>8} {'spread':>8} {'memcpy':>8} {'ratio':>7}")
    found = []
    for row in rows(amount):
        found.append(row)
        peer = f"{row['peer']:8.1f} {row['ratio']:7.2f}" if "peer" in row else ""
        print(f"{row['name']:44} {row['value']:8.1f} {row['spread']:8.1%} {peer}", flush=True)
    report.write(found, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
