"""The strategies over MPI alone: what it takes ranks of this machine to replace arrays by their mean.

python -m benchmarks.strategies [--quick] [--json FILE] [--ranks 2 4] [--hosts [RATE]]

From 1 kB to 488 MB, AlexNet's parameters and momentum, of which 244 MB are the parameters or the gradients. All ways of
one size take turns on one array in each rank; a figure is the slowest rank's time. The peer is, between two ranks, the
best exchange that hand-written MPI came to here: pieces of 1 MiB, two on their way each way, averaged as they come.
Beside it stand MPI's own Allreduce as it is called by default, a sum without a division, and a memcpy of as many bytes
in each rank. `peer` is the default between ranks of one machine: shared memory, no MPI but for the two messages.

asa16 and copper16 send float16, and so half the bytes. Ranks that outnumber the cores take turns, and MPI's waiting
spins: their figures say little about a cluster.

With --hosts, as root, there is a rank on each of two hosts made of this machine, benchmarks.two_hosts, and what they
send over the cable is counted; RATE is the cable's, as tc has it ("1gbit"), else it is as fast as the kernel copies.

Source: Ma et al. 2016, "Theano-MPI", section 3.2.
"""

import json
import pathlib
import pkgutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from typing import NamedTuple

import numpy as np

from benchmarks import report, two_hosts
from benchmarks.mpi import NEEDED, VARIABLES, mpiexec
from benchmarks.program import environment
from multigpu.device.host import HostDevice
from multigpu.exchange.peer import connect
from multigpu.partners import Ready

ALEXNET = 60_965_224                             # floats
SIZES = (256, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24, ALEXNET, 2 * ALEXNET)        # floats
QUICK = (256, 1 << 14, 1 << 18, 1 << 22)
RUNS, QUICK_RUNS = 7, 3
SHORTEST = 1 << 21                               # bytes: so much is exchanged before the clock is read
FAR = (256, 1 << 18, 1 << 22, ALEXNET)           # between hosts
PIECE, WINDOW = 1 << 18, 2                       # of the peer: floats that travel together, and how many such
BY_HAND, BY_MPI, MEMCPY = "Sendrecv by hand", "MPI's Allreduce", "memcpy"
OVER_A_CABLE = (BY_HAND, "ar", "asa32", "asa16", "asa16, error feedback")


class Order(NamedTuple):
    """What the ranks are to measure: arrays of so many floats, each so often, by these ways; None: by all.

    where  the ranks are, for the rows' names
    """

    sizes: tuple[int, ...]
    runs: int
    ways: tuple[str, ...] | None = None
    where: str = "2 ranks"


def measure(ranks, order, hosts=None):
    """Rows of so many ranks: with strategy, ranks, bytes and seconds, a median, besides what every row has.

    hosts  two_hosts.Hosts, with a rank on each: rows have `cable`, too, the bytes that rank 0's end of it has sent
    """
    within, across, variables = hosts.places(mpiexec()) if hosts else ((), (), {})
    variables = VARIABLES | {"OMP_NUM_THREADS": "1"} | variables
    with tempfile.TemporaryDirectory() as folder:
        rows = pathlib.Path(folder, "rows")
        program = [sys.executable, "-m", "mpi4py", "-m", "benchmarks.strategies", "--measure", json.dumps(order), rows]
        subprocess.run([*within, mpiexec(), *across, "-n", str(ranks), *program], check=True,
                       env=environment() | variables, cwd=pathlib.Path(__file__).parent.parent)  # fmt: skip
        return report.read(rows)


# ---- in each rank


def work(order, path):
    """A rank's part of measure(); rank 0 writes the rows to the path."""
    partners = pkgutil.resolve_name("multigpu.mpi:MpiPartners")()
    rows = []
    for floats in order.sizes:
        with HostDevice() as device:
            peer = connect(None, device, partners, [(floats,)], print) if partners.on_one_host else None
            array = peer.flat.array()[:floats] if peer else np.empty(floats, np.float32)
            array[:] = partners.rank
            found = in_turns(partners, ways_of(partners, peer, array, order.ways), array.nbytes, order.runs)
            rows += rows_of(order.where, partners, array.nbytes, *found)
            del array
            if peer:
                peer.close()
    if partners.rank == 0:
        report.write(rows, path)


def ways_of(partners, peer, array, names):
    """{name: (step) -> None, which exchanges the array}; peer is None between hosts."""
    asa, copper, wire = (pkgutil.resolve_name(f"multigpu.exchange.{name}") for name in ("asa", "copper", "wire"))
    mpi = pkgutil.resolve_name("multigpu.mpi:MPI")
    comm, n, other = partners.comm, array.size, np.empty_like(array)
    reductions = {
        "ar": pkgutil.resolve_name("multigpu.exchange.allreduce:Allreduce")(comm),
        "asa32": asa.Asa("asa32", comm, n, wire.Float32),
        "asa16": asa.Asa("asa16", comm, n, partial(wire.Float16, False)),
        "asa16, error feedback": asa.Asa("asa16", comm, n, partial(wire.Float16, True)),
        "copper": copper.Copper("copper", comm, n, wire.Float32),
        "copper16": copper.Copper("copper16", comm, n, partial(wire.Float16, False)),
    }
    ways = {
        MEMCPY: lambda step: np.copyto(other, array),
        BY_MPI: lambda step: comm.Allreduce(mpi.IN_PLACE, other),
    }
    if peer:
        ways["peer"] = partial(by_peer, partners, peer)
    if partners.size == 2:
        ways = {BY_HAND: partial(by_hand, comm, array)} | ways
    ways |= {name: partial(reduce, reduction, array) for name, reduction in reductions.items()}
    return ways if names is None else {name: way for name, way in ways.items() if name in names}


def reduce(reduction, array, step):
    reduction.reduce(array, step)


def by_peer(partners, peer, step):
    """The exchange with the message that precedes it: nobody's buffer is under way."""
    partners.meet(Ready(step, 0.0, 0.0, False))
    peer.average(step)


def by_hand(comm, array, step):
    """The mean of two ranks' arrays: each sends all of its own and averages what comes, piece by piece."""
    other, n = 1 - comm.rank, array.size
    parts = [slice(first, min(first + PIECE, n)) for first in range(0, n, PIECE)]
    rooms = np.empty((WINDOW, min(PIECE, n)), np.float32)

    def begin(k):
        room = rooms[k % WINDOW][: parts[k].stop - parts[k].start]
        return room, comm.Irecv(room, other), comm.Isend(array[parts[k]], other)

    on_their_way = {k: begin(k) for k in range(min(WINDOW, len(parts)))}
    for k, part in enumerate(parts):
        room, coming, going = on_their_way.pop(k)
        coming.Wait()
        going.Wait()
        mine = array[part]
        np.add(mine, room, out=mine)
        np.multiply(mine, np.float32(0.5), out=mine)
        if k + WINDOW < len(parts):
            on_their_way[k + WINDOW] = begin(k + WINDOW)


def in_turns(partners, ways, nbytes, runs):
    """{name: seconds of the slowest rank in each run}, {name: bytes that left the host}; a first run is not counted."""
    repeats, step = max(1, min(100, SHORTEST // nbytes)), 0
    seconds, cable = {name: [] for name in ways}, {name: [] for name in ways}
    for _ in range(runs + 1):
        for name, way in ways.items():
            partners.comm.Barrier()
            before, began = two_hosts.sent(), time.perf_counter()
            for _ in range(repeats):
                step += 1
                way(step)
            took = (time.perf_counter() - began) / repeats
            seconds[name].append(max(partners.comm.allgather(took)))
            cable[name].append((two_hosts.sent() - before) / repeats)
    return tuple({name: counted[1:] for name, counted in each.items()} for each in (seconds, cable))


def rows_of(where, partners, nbytes, seconds, cable):
    """Rows of one size; between two ranks against the best by hand."""
    by_hand_ms = [1e3 * each for each in seconds.get(BY_HAND, [])]
    for name, taken in seconds.items():
        found = report.row(f"{where}, {size_of(nbytes)}, {name}", [1e3 * each for each in taken], "ms")
        found |= {"strategy": name, "ranks": partners.size, "bytes": nbytes, "seconds": found["value"] / 1e3}
        if not partners.on_one_host:
            found["cable"] = statistics.median(cable[name])
        if by_hand_ms and name != BY_HAND:
            peer = report.row("", by_hand_ms, "ms")["value"]
            found |= {"peer": peer, "ratio": found["value"] / peer, "peer_is": BY_HAND}
        yield found


def size_of(nbytes):
    return f"{nbytes / 1e6:.1f} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:.1f} kB"


# ---- the whole


def obstacle(hosts):
    """Why nothing can be measured here, or None."""
    if mpiexec() is None:
        return NEEDED
    return two_hosts.obstacle() if hosts else None


def rows(ranks, quick):
    """Rows of ranks of this machine."""
    for n in ranks or ([2] if quick else [2, 4]):
        runs = QUICK_RUNS if quick or n > 2 else RUNS
        yield from measure(n, Order(QUICK if quick else SIZES, runs, where=f"{n} ranks"))


def rows_of_hosts(rate, quick):
    """Rows of two hosts with a cable of this rate between them; "": not limited."""
    sizes, runs = (QUICK, QUICK_RUNS) if quick else (FAR, RUNS)
    order = Order(sizes, runs, OVER_A_CABLE, f"2 hosts, {rate or 'no limit'}")
    with tempfile.TemporaryDirectory() as folder, two_hosts.Hosts(folder, rate or None) as hosts:
        yield from measure(2, order, hosts)


def shown(rows):
    """The rows, each printed as it comes."""
    print(f"{'':48} {'ms':>9} {'spread':>8} {'by hand':>9} {'ratio':>7} {'sent, MB':>9}")
    for row in rows:
        peer = f"{row['peer']:9.3f} {row['ratio']:7.2f}" if "peer" in row else " " * 17
        cable = f"{row['cable'] / 1e6:9.3f}" if "cable" in row else ""
        print(f"{row['name']:48} {row['value']:9.3f} {row['spread']:8.1%} {peer} {cable}".rstrip(), flush=True)
        yield row


def main():
    parser = report.parser(__doc__, quick="up to 17 MB, 3 runs, two ranks")
    parser.add_argument("--ranks", type=int, nargs="+", metavar="N", help="default: 2 4")
    parser.add_argument("--hosts", nargs="?", const="", metavar="RATE", help="two hosts, and how fast their cable is")
    parser.add_argument("--measure", nargs=2, help="what a rank is started with")
    options = parser.parse_args()
    if options.measure:
        work(Order(*json.loads(options.measure[0])), pathlib.Path(options.measure[1]))
        return 0
    if why_not := obstacle(options.hosts is not None):
        report.write([report.not_measured("strategies", why_not)], options.json)
        return 0
    found = rows(options.ranks, options.quick) if options.hosts is None else rows_of_hosts(options.hosts, options.quick)
    report.write(list(shown(found)), options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
