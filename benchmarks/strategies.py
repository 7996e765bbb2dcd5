"""The exchange strategies over MPI without training: time to replace the arrays of all ranks by their mean.

python -m benchmarks.strategies [--quick] [--json FILE] [--ranks 2 4] [--hosts [RATE]]

Sizes range from 1 kB to 488 MB, the size of AlexNet's parameters and momentum; 244 MB is the size of the parameters or
the gradients. For each size, all methods run in turn on one array per rank. A figure is the time of the slowest rank.

The peer, between two ranks, is the fastest hand-written MPI exchange that was found on this machine: pieces of 1 MiB,
two in flight in each direction, averaged as they arrive. For reference, the benchmark also measures MPI's own Allreduce
with its default settings, which computes a sum without division, and a memcpy of the same size in each rank. `peer` is
the default strategy between ranks of one machine. It uses shared memory, and MPI only for the two messages.

asa16 and copper16 send float16, which halves the bytes. If there are more ranks than cores, ranks take turns and MPI
spins while it waits, so these figures do not predict the performance of a cluster.

With --hosts (as root), one rank runs on each of two simulated hosts, see benchmarks.two_hosts, and the bytes that they
send over the link are counted. RATE limits the link, in the notation of tc ("1gbit"); by default it is as fast as the
kernel copies.

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
from multigpu.communicator import Ready
from multigpu.device.host import HostDevice
from multigpu.exchange import ExchangeContext
from multigpu.exchange.allreduce import AllreduceReduction
from multigpu.exchange.asa import AsaReduction
from multigpu.exchange.codecs import Float16Codec, Float32Codec
from multigpu.exchange.copper import CopperReduction
from multigpu.exchange.peer import Peer

ALEXNET = 60_965_224                             # floats
SIZES = (256, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24, ALEXNET, 2 * ALEXNET)        # floats
QUICK = (256, 1 << 14, 1 << 18, 1 << 22)
RUNS, QUICK_RUNS = 7, 3
SHORTEST = 1 << 21                               # bytes: smaller exchanges are repeated per timing
FAR = (256, 1 << 18, 1 << 22, ALEXNET)           # floats, between hosts
PIECE, WINDOW = 1 << 18, 2                       # of the peer: floats per message, messages in flight
BY_HAND, BY_MPI, MEMCPY = "Sendrecv by hand", "MPI's Allreduce", "memcpy"
OVER_A_CABLE = (BY_HAND, "ar", "asa32", "asa16", "asa16, error feedback")


class Order(NamedTuple):
    """What the ranks measure.

    sizes  floats of the arrays
    runs   number of runs of each method and size
    ways   names of the methods; None: all
    where  the ranks run, for the names of the rows
    """

    sizes: tuple[int, ...]
    runs: int
    ways: tuple[str, ...] | None = None
    where: str = "2 ranks"


def measure(ranks, order, hosts=None):
    """Run an MPI job and return its rows, with the additional keys strategy, ranks, bytes and seconds (a median).

    Args:
        ranks: number of ranks.
        order: what to measure.
        hosts: two_hosts.Hosts to run one rank on each host. The rows then have the key `cable`: bytes that rank 0's
            host sent over the link.
    """
    within, across, variables = hosts.places(mpiexec()) if hosts else ((), (), {})
    variables = VARIABLES | {"OMP_NUM_THREADS": "1"} | variables
    with tempfile.TemporaryDirectory() as folder:
        rows = pathlib.Path(folder, "rows")
        program = [sys.executable, "-m", "mpi4py", "-m", "benchmarks.strategies", "--measure", json.dumps(order), rows]
        subprocess.run([*within, mpiexec(), *across, "-n", str(ranks), *program], check=True,
                       env=environment() | variables, cwd=pathlib.Path(__file__).parent.parent)
        return report.read(rows)


# ---- code of each rank


def work(order, path):
    """Run the measurement in one rank; rank 0 writes the rows to the path."""
    comm = pkgutil.resolve_name("multigpu.mpi.communicator:MpiCommunicator")()
    rows = []
    for floats in order.sizes:
        with HostDevice() as device:
            context = ExchangeContext(None, device, comm, [(floats,)], print)
            peer = Peer.connect(context) if comm.on_one_host else None
            array = peer.flat.array()[:floats] if peer else np.empty(floats, np.float32)
            array[:] = comm.rank
            found = in_turns(comm, ways_of(comm, peer, array, order.ways), array.nbytes, order.runs)
            rows += rows_of(order.where, comm, array.nbytes, *found)
            del array
            if peer:
                peer.close()
    if comm.rank == 0:
        report.write(rows, path)


def ways_of(comm, peer, array, names):
    """Return {name: function of the step that exchanges the array}; peer is None between hosts."""
    mpi = pkgutil.resolve_name("multigpu.mpi.communicator:MPI")
    group, n, other = comm.mpi, array.size, np.empty_like(array)
    reductions = {
        "ar": AllreduceReduction(group),
        "asa32": AsaReduction("asa32", group, n, Float32Codec),
        "asa16": AsaReduction("asa16", group, n, Float16Codec),
        "asa16, error feedback": AsaReduction("asa16", group, n, partial(Float16Codec, feedback=True)),
        "copper": CopperReduction("copper", group, n, Float32Codec),
        "copper16": CopperReduction("copper16", group, n, Float16Codec),
    }
    ways = {
        MEMCPY: lambda step: np.copyto(other, array),
        BY_MPI: lambda step: group.Allreduce(mpi.IN_PLACE, other),
    }
    if peer:
        ways["peer"] = partial(by_peer, comm, peer)
    if comm.size == 2:
        ways = {BY_HAND: partial(by_hand, group, array)} | ways
    ways |= {name: partial(reduce, reduction, array) for name, reduction in reductions.items()}
    return ways if names is None else {name: way for name, way in ways.items() if name in names}


def reduce(reduction, array, step):
    reduction.reduce(array, step)


def by_peer(comm, peer, step):
    """Exchange Ready messages, after which no transfer is pending, and average."""
    comm.allgather(Ready(step, 0.0, 0.0, False))
    peer.average(step)


def by_hand(comm, array, step):
    """Replace the arrays of two ranks by their mean. Each rank sends its array in pieces and averages what arrives."""
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


def in_turns(comm, ways, nbytes, runs):
    """Run all methods in turn; an additional first run is not counted.

    Returns:
        {name: seconds of the slowest rank in each run} and {name: bytes that left the host in each run}.
    """
    repeats, step = max(1, min(100, SHORTEST // nbytes)), 0
    seconds, cable = {name: [] for name in ways}, {name: [] for name in ways}
    for _ in range(runs + 1):
        for name, way in ways.items():
            comm.mpi.Barrier()
            before, began = two_hosts.sent(), time.perf_counter()
            for _ in range(repeats):
                step += 1
                way(step)
            took = (time.perf_counter() - began) / repeats
            seconds[name].append(max(comm.mpi.allgather(took)))
            cable[name].append((two_hosts.sent() - before) / repeats)
    return tuple({name: counted[1:] for name, counted in each.items()} for each in (seconds, cable))


def rows_of(where, comm, nbytes, seconds, cable):
    """Yield the rows of one size; between two ranks, compared with the hand-written exchange."""
    by_hand_ms = [1e3 * each for each in seconds.get(BY_HAND, [])]
    for name, taken in seconds.items():
        found = report.row(f"{where}, {size_of(nbytes)}, {name}", [1e3 * each for each in taken], "ms")
        found |= {"strategy": name, "ranks": comm.size, "bytes": nbytes, "seconds": found["value"] / 1e3}
        if not comm.on_one_host:
            found["cable"] = statistics.median(cable[name])
        if by_hand_ms and name != BY_HAND:
            peer = report.row("", by_hand_ms, "ms")["value"]
            found |= {"peer": peer, "ratio": found["value"] / peer, "peer_is": BY_HAND}
        yield found


def size_of(nbytes):
    return f"{nbytes / 1e6:.1f} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:.1f} kB"


# ---- main program


def obstacle(hosts):
    """Return the reason why nothing can be measured, or None."""
    if mpiexec() is None:
        return NEEDED
    return two_hosts.obstacle() if hosts else None


def rows(ranks, quick):
    """Yield the rows of ranks on this machine."""
    for n in ranks or ([2] if quick else [2, 4]):
        runs = QUICK_RUNS if quick or n > 2 else RUNS
        yield from measure(n, Order(QUICK if quick else SIZES, runs, where=f"{n} ranks"))


def rows_of_hosts(rate, quick):
    """Yield the rows of two hosts, connected by a link of this rate; "": not limited."""
    sizes, runs = (QUICK, QUICK_RUNS) if quick else (FAR, RUNS)
    order = Order(sizes, runs, OVER_A_CABLE, f"2 hosts, {rate or 'no limit'}")
    with tempfile.TemporaryDirectory() as folder, two_hosts.Hosts(folder, rate or None) as hosts:
        yield from measure(2, order, hosts)


def shown(rows):
    """Yield the rows and print each."""
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
