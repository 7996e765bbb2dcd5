"""Run by the ranks of two hosts: compare what the strategies send for `n` floats with the bytes on the network.

traffic.py n     prints {strategy: [bytes that rank 0 passed to MPI, bytes that left its host]}
"""

import json
import pkgutil
import sys

import numpy as np

from tests.multigpu.exchange.ranks import padded, reduction_of
from tests.system.two_hosts import sent


def measure(comm, name, n, step):
    reduction = reduction_of(name, comm, n)
    array = padded(name, np.full(n, comm.rank, np.float32))
    comm.Barrier()
    before = sent()
    reduction.reduce(array, step)
    comm.Barrier()                               # all data has arrived
    assert (array[:n] == 0.5).all()
    return reduction.sent, sent() - before


def main(n):
    comm = pkgutil.resolve_name("multigpu.mpi.communicator:MPI").COMM_WORLD
    pkgutil.resolve_name("multigpu.mpi.communicator:leave_no_files")()
    names = ("ar", "asa32", "asa16", "copper", "copper16")
    found = {name: measure(comm, name, n, step) for step, name in enumerate(names)}
    if comm.rank == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]))
