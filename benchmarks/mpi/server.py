"""The parameter server of rule asgd: the cost of applying a push, and the rate at which it serves pushes.

python -m benchmarks.mpi.server [--quick] [--json FILE] [--clients 1 2 4]

Apply: each update of AlexNet's 61 million floats runs on one core, in turn with a memcpy of the same size. A figure
counts each array once per read and once per write:

    plain                  4 arrays: push and center variable, read and written
    plain, push only       3 arrays: the new center variable is not returned
    Adagrad                2 arrays more than plain
    Adadelta               4 arrays more than plain
    memcpy                 2 arrays

The C library decides whether memcpy bypasses the caches. An update writes to the locations that it has read, so it may
move more bytes per second than memcpy.

Serve: MPI clients that compute nothing push 243.9 MB repeatedly and fetch the center variable with each push, using the
code of the rule. The figure includes the client's work: making the update and copying the returned data. It overlaps
with the server's work if each has a core. "MPI only" is the same with a server that does not modify the data. The peer
of all is 6 memcpys of the same size in sequence: into the shared memory and out of it, for each direction, and the
update, which takes as long as two. If there are more ranks than cores, the ranks take turns.

Source: Paine et al. 2013, section 2.3.
"""

import json
import pathlib
import statistics
from functools import partial
from typing import NamedTuple

import numpy as np
import pytensor

from alexnet.config import load_config
from alexnet.run.recorder import WorkerRecorder
from benchmarks.harness import report
from benchmarks.harness.mpi import NEEDED, mpiexec, open_communicator, rows_of_ranks
from multigpu.device.host import HostDevice
from multigpu.rules.asgd import AsgdClient, AsgdRule, Schedule
from multigpu.rules.parameter_server import server
from multigpu.rules.parameter_server.center import GrantMeta, ParameterServer, PushMeta
from multigpu.rules.parameter_server.updates import adadelta, adagrad, plain

ALEXNET, QUICK = 60_965_224, 1 << 24             # floats; larger than the caches
RUNS, QUICK_RUNS = 7, 3
PUSHES, QUICK_PUSHES = 4, 3                      # per client
COPIES = 6                                       # memcpys equivalent to a push, a fetch and the update
MEMCPY, MPI_ONLY = "memcpy", "MPI only"
NEVER = 1 << 30                                  # steps
# name -> (server_update, number of steps between two fetches of a client)
KINDS = {
    MPI_ONLY: ("plain", 1), "plain": ("plain", 1), "plain, push only": ("plain", NEVER), "adagrad": ("adagrad", 1),
    "adadelta": ("adadelta", 1),
}


# ---- apply


def apply_rows(floats, runs):
    """Yield the rows of the updates without communication, in GB/s, compared with memcpy."""
    ways = ways_of(floats)
    rates = {name: [] for name in ways}
    for _ in range(runs + 1):
        for name, (way, arrays) in ways.items():
            rates[name].append(arrays * 4 * floats / report.seconds(way) / 1e9)
    limit = statistics.median(rates[MEMCPY][1:])
    for name, found in rates.items():
        row = report.row(f"apply, {name}", found[1:], "GB/s")
        yield row if name == MEMCPY else report.compared(row, limit, MEMCPY)


def ways_of(floats):
    """Return {name: (function to time, number of arrays of `floats` floats that it reads and writes)}."""
    rng = np.random.default_rng(0)
    push, center, squares, steps, other = (rng.standard_normal(floats, np.float32) for _ in range(5))
    np.square(squares, out=squares)
    np.square(steps, out=steps)
    return {
        MEMCPY: (lambda: np.copyto(other, push), 2),
        "plain": (lambda: plain(push, center, 0.25), 4),
        "plain, push only": (lambda: plain(push, center, 0.25, back=False), 3),
        "adagrad": (lambda: adagrad(push, center, squares, 0.01, 1e-10), 6),
        "adadelta": (lambda: adadelta(push, center, squares, steps, 1, 0.95, 1e-6), 8),
    }


# ---- serve: code of each rank


class Plan(NamedTuple):
    """What the ranks measure: the floats of a push, the number of pushes per client, and the names of KINDS."""

    floats: int
    pushes: int
    kinds: tuple[str, ...]


class Weights:
    """A fake network with one trainable array."""

    frozen_parameters = ()

    def __init__(self, floats):
        self.weights = [pytensor.shared(np.zeros(floats, np.float32), name="W")]
        self.parameters_and_velocities, self.step = self.weights, pytensor.shared(np.int64(0), name="step")


class Quiet(WorkerRecorder):
    """A recorder that discards all records."""

    def record(self, kind, **values):
        """Discard the record."""


class Timed(ParameterServer):
    """A parameter server that records the time of each served push, until the first client leaves.

    Args:
        idle: whether pushes leave the center variable unchanged.
    """

    def __init__(self, center, config, clients, channel, idle):
        super().__init__(center, config, clients, channel.now)
        self.channel, self.times, self.left, self._idle = channel, [], 0, idle

    def answer(self, push):
        answer = super().answer(push)
        return answer._replace(update=lambda piece, part: None) if self._idle else answer

    def completed(self, message, recorder):
        super().completed(message, recorder)
        if type(message) is server.Leave:
            self.left += 1
        elif not self.left:
            self.times.append(self.channel.now())


def work(plan, path):
    """Main function of a rank: measure the Plan, given as JSON; rank 0 writes the rows to the path."""
    plan = Plan(*json.loads(plan))
    comm, rows = open_communicator(), []
    copied = memcpy_seconds(plan.floats) if comm.rank == 0 else None
    comm.mpi.Barrier()
    for kind in plan.kinds:
        policy = pushed(comm, plan, kind)
        if policy:
            rows.append(row_of(comm.size - 1, kind, 4 * plan.floats, policy, copied))
    if comm.rank == 0:
        report.write(rows, pathlib.Path(path))


def memcpy_seconds(floats):
    here, there = np.zeros((2, floats), np.float32)
    here += 1
    return statistics.median([report.seconds(partial(np.copyto, there, here)) for _ in range(4)][1:])


def pushed(comm, plan, kind):
    """Run all pushes of one kind. Return the Timed server on rank 0 and None on the clients."""
    clients, (update, fetch), policies = comm.size - 1, KINDS[kind], []
    settings = {"data": "none", "rule": "asgd", "server_update": update, "server_scale": 0.5, "n_sync": 1}
    config = load_config([f"{name}={value}" for name, value in settings.items()])

    def policy_of(center, channel):
        policies.append(Timed(center, config, clients, channel, idle=kind == MPI_ONLY))
        return policies[0]

    exchange = server.connect(
        AsgdRule(), config, Weights(plan.floats), HostDevice(), comm, Quiet(comm.rank), 0,
        policy=policy_of, client=lambda *parts: AsgdClient(*parts, Schedule(fetch, 1)), client_note=PushMeta,
        server_note=GrantMeta,
    )
    with exchange:
        if comm.rank == server.SERVER:
            while policies[0].left < clients:
                policies[0].channel.until(exchange.serve)
            return policies[0]
        for step in range(1, plan.pushes + 2):          # the first push is not counted
            exchange.after_step(step, 0.0, 0.0, np.float32(0), False, False)
        exchange.leave(plan.pushes + 1)
    return None


def row_of(clients, kind, nbytes, policy, copied):
    """Return the row of one kind, in pushes per second.

    The interval is from the last client's first push to the last push before a client leaves.
    """
    times, limit = policy.times[clients - 1 :], 1 / (COPIES * copied)
    per_round = [clients / (later - before) for before, later in zip(times, times[clients:], strict=False)]
    found = report.row(f"{clients} clients, {nbytes / 1e6:.1f} MB, {kind}", per_round, "pushes/s")
    found["value"] = (len(times) - 1) / (times[-1] - times[0])
    found |= {"clients": clients, "bytes": nbytes, "kind": kind, "busy": policy.load.share(policy.channel.now())}
    return report.compared(found, limit, f"{COPIES} memcpys")


# ---- main program


def serve_rows(clients, plan):
    """Run an MPI job with `clients` clients and return its rows."""
    return rows_of_ranks("benchmarks.mpi.server", clients + 1, plan)


def rows(options):
    quick = options.quick
    yield from apply_rows(QUICK if quick else ALEXNET, QUICK_RUNS if quick else RUNS)
    if mpiexec() is None:
        yield report.not_measured("serve", NEEDED)
        return
    plan = Plan(QUICK, QUICK_PUSHES, ("plain",)) if quick else Plan(ALEXNET, PUSHES, tuple(KINDS))
    for clients in options.clients:
        yield from serve_rows(clients, plan)


def add_options(parser):
    parser.add_argument("--clients", type=int, nargs="+", metavar="K", default=[1, 2, 4])


if __name__ == "__main__":
    quick = {"clients": [2]}
    raise SystemExit(report.main(rows, __doc__, "67 MB, 3 runs, 2 clients, plain updates", quick, add_options, work))
