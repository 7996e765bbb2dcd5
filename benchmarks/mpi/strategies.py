"""The exchange strategies over MPI without training: time to replace the arrays of all ranks by their mean.

python -m benchmarks.mpi.strategies [--quick] [--json FILE] [--ranks 2 4]

Sizes range from 1 kB to 488 MB, the size of AlexNet's parameters and momentum; 244 MB is the size of the parameters or
the gradients. For each size, all methods run in turn on one array per rank. A figure is the time of the slowest rank.

The peer, between two ranks, is the fastest hand-written MPI exchange that was found on this machine: pieces of 1 MiB,
two in flight in each direction, averaged as they arrive. For reference, the benchmark also measures MPI's own Allreduce
with its default settings, which computes a sum without division, and a memcpy of the same size in each rank. `peer` is
the default strategy between ranks of one machine. It uses shared memory, and MPI only for the two messages.

asa16 and copper16 send float16, which halves the bytes. If there are more ranks than cores, ranks take turns and MPI
spins while it waits, so these figures do not predict the performance of a cluster.

The environment variable MPIEXEC replaces the command that starts the ranks, for ranks on several hosts. Fewer sizes and
methods are then measured, and the column `sent` is the number of bytes that left the host of rank 0.
`python -m tests.system.two_hosts` provides two hosts on one machine.

Source: Ma et al. 2016, "Theano-MPI", section 3.2.
"""

import json
import pathlib
import statistics
import time
from functools import partial
from typing import NamedTuple

import numpy as np

from benchmarks.harness import report
from benchmarks.harness.mpi import NEEDED, mpiexec, open_communicator, rows_of_ranks
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
BETWEEN_HOSTS = (BY_HAND, "ar", "asa32", "asa16", "asa16, error feedback")


class Plan(NamedTuple):
    """What the ranks measure.

    sizes  floats of the arrays
    runs   number of runs of each method and size
    """

    sizes: tuple[int, ...]
    runs: int


# ---- code of each rank


def work(plan, path):
    """Main function of a rank: measure the Plan, given as JSON; rank 0 writes the rows to the path."""
    plan = Plan(*json.loads(plan))
    comm = open_communicator()
    rows = []
    for floats in plan.sizes if comm.on_one_host else sorted({*plan.sizes} & {*FAR}):
        with HostDevice() as device:
            context = ExchangeContext(None, device, comm, [(floats,)], print)
            peer = Peer.connect(context) if comm.on_one_host else None
            array = peer.flat.array()[:floats] if peer else np.empty(floats, np.float32)
            array[:] = comm.rank
            found = in_turns(comm, ways_of(comm, peer, array), array.nbytes, plan.runs)
            rows += rows_of(comm, array.nbytes, *found)
            del array
            if peer:
                peer.close()
    if comm.rank == 0:
        report.write(rows, pathlib.Path(path))


def ways_of(comm, peer, array):
    """Return {name: function of the step that exchanges the array}; peer is None between hosts."""
    from multigpu.mpi.communicator import MPI  # initialises MPI, which only ranks may do

    group, n = comm.mpi, array.size
    other = np.empty_like(array)
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
        BY_MPI: lambda step: group.Allreduce(MPI.IN_PLACE, other),
    }
    if peer:
        ways["peer"] = partial(by_peer, comm, peer)
    if comm.size == 2:
        ways = {BY_HAND: partial(by_hand, group, array)} | ways
    ways |= {name: partial(reduce, reduction, array) for name, reduction in reductions.items()}
    return ways if comm.on_one_host else {name: way for name, way in ways.items() if name in BETWEEN_HOSTS}


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
    buffers = np.empty((WINDOW, min(PIECE, n)), np.float32)

    def begin(k):
        buffer = buffers[k % WINDOW][: parts[k].stop - parts[k].start]
        return buffer, comm.Irecv(buffer, other), comm.Isend(array[parts[k]], other)

    in_flight = {k: begin(k) for k in range(min(WINDOW, len(parts)))}
    for k, part in enumerate(parts):
        buffer, receive, send = in_flight.pop(k)
        receive.Wait()
        send.Wait()
        mine = array[part]
        np.add(mine, buffer, out=mine)
        np.multiply(mine, np.float32(0.5), out=mine)
        if k + WINDOW < len(parts):
            in_flight[k + WINDOW] = begin(k + WINDOW)


def in_turns(comm, ways, nbytes, runs):
    """Run all methods in turn; an additional first run is not counted.

    Returns:
        {name: seconds of the slowest rank in each run} and {name: bytes that left the host in each run}.
    """
    repeats, step = max(1, min(100, SHORTEST // nbytes)), 0
    seconds, sent = {name: [] for name in ways}, {name: [] for name in ways}
    for _ in range(runs + 1):
        for name, way in ways.items():
            comm.mpi.Barrier()
            before, began = bytes_sent(), time.perf_counter()
            for _ in range(repeats):
                step += 1
                way(step)
            took = (time.perf_counter() - began) / repeats
            seconds[name].append(max(comm.mpi.allgather(took)))
            sent[name].append((bytes_sent() - before) / repeats)
    return tuple({name: counted[1:] for name, counted in each.items()} for each in (seconds, sent))


def rows_of(comm, nbytes, seconds, sent):
    """Yield the rows of one size; between two ranks, compared with the hand-written exchange."""
    where = f"{comm.size} {'ranks' if comm.on_one_host else 'hosts'}"
    by_hand_ms = [1e3 * each for each in seconds.get(BY_HAND, [])]
    for name, taken in seconds.items():
        found = report.row(f"{where}, {size_of(nbytes)}, {name}", [1e3 * each for each in taken], "ms")
        if not comm.on_one_host:
            found["sent"] = statistics.median(sent[name])
        if by_hand_ms and name != BY_HAND:
            found = report.compared(found, by_hand_ms, BY_HAND)
        yield found


def size_of(nbytes):
    return f"{nbytes / 1e6:.1f} MB" if nbytes >= 1e6 else f"{nbytes / 1e3:.1f} kB"


def bytes_sent():
    """Return the bytes sent so far by this host, with headers, on all interfaces except loopback."""
    interfaces = [each for each in pathlib.Path("/sys/class/net").iterdir() if each.name != "lo"]
    return sum(int((each / "statistics" / "tx_bytes").read_text()) for each in interfaces)


# ---- main program


def rows(options):
    if mpiexec() is None:
        yield report.not_measured("strategies", NEEDED)
        return
    for n in options.ranks:
        runs = QUICK_RUNS if options.quick or n > 2 else RUNS
        plan = Plan(QUICK if options.quick else SIZES, runs)
        yield from rows_of_ranks("benchmarks.mpi.strategies", n, plan)


def add_options(parser):
    parser.add_argument("--ranks", type=int, nargs="+", metavar="N", default=[2, 4])


if __name__ == "__main__":
    quick = {"ranks": [2]}
    raise SystemExit(report.main(rows, __doc__, "up to 17 MB, 3 runs, two ranks", quick, add_options, work))
