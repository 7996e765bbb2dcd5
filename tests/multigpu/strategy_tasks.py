"""Rank functions for the tests of the strategies over MPI, and the plain reference results they are compared with."""

import sys
import zlib
from contextlib import nullcontext
from functools import partial
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy as np
import pytensor

from multigpu.device.host import HostBuffer, HostDevice
from multigpu.exchange import allreduce, strategy_of
from multigpu.exchange.allreduce import Allreduce
from multigpu.exchange.asa import Asa
from multigpu.exchange.codecs import Float16, Float32
from multigpu.exchange.copper import Copper

SHAPES = {"W": (7, 5), "b": (5,), "scalar": (), "V": (3, 33, 11)}


# ---- values and reference results: float16 by NumPy, sequential sums


def values_of(kind, rank, n):
    rng = np.random.default_rng([rank, n])
    if kind == "integers":
        return rng.integers(-100, 101, n).astype(np.float32)
    # all magnitudes of float16, subnormal numbers included
    return (rng.normal(size=n) * 2.0 ** rng.integers(-24, 10, n)).astype(np.float32)


def halved(x):
    return x.astype(np.float16).astype(np.float32)


def in_rank_order(arrays, divisor, rounded=lambda x: x):
    total = rounded(arrays[0])
    for each in arrays[1:]:
        total = total + rounded(each)
    return rounded(total / np.float32(divisor))


def up_the_tree(arrays, divisor, rounded=lambda x: x):
    """Sum along the binomial tree, level by level: adjacent ranks first, then ranks at twice the distance."""
    sums, distance = [rounded(each) for each in arrays], 1
    while distance < len(sums):
        for rank in range(0, len(sums) - distance, 2 * distance):
            sums[rank] = rounded(sums[rank] + sums[rank + distance])
        distance *= 2
    return rounded(sums[0] / np.float32(divisor))


TRUTHS = {
    "asa32": in_rank_order,
    "asa16": partial(in_rank_order, rounded=halved),
    "copper": up_the_tree,
    "copper16": partial(up_the_tree, rounded=halved),
}


# ---- reductions of arrays


class Counting:
    """A communicator that counts the bytes and messages passed to it and can modify what is sent."""

    def __init__(self, comm, change=lambda number, message: message):
        self.comm, self.rank, self.size, self._change = comm, comm.rank, comm.size, change
        self.Irecv, self.Recv, self.bytes, self.messages = comm.Irecv, comm.Recv, 0, 0

    def Isend(self, message, rank, tag):
        array, kind = message
        self.bytes += array.nbytes
        array = self._change(self.messages, array)
        self.messages += 1
        return self.comm.Isend([array, kind], rank, tag)

    def Allreduce(self, place, array):
        self.bytes += array.nbytes
        self.messages += 1
        self.comm.Allreduce(place, self._change(self.messages, array))


def reduction_of(name, comm, n, piece=None, feedback=False):
    if name == "ar":
        return Allreduce(comm)
    kind, wire = {"a": Asa, "c": Copper}[name[0]], partial(Float16, feedback) if name.endswith("16") else Float32
    return kind(name, comm, n, wire, **({} if piece is None else {"piece": piece}))


def reduce_lengths(comm, name, kind, lengths, mean, piece=None):
    """Return one tuple per length.

    Each holds the checksum of the result's bits, the bytes passed to MPI, the number of messages, the bytes that the
    reduction counts, and on rank 0 the result.
    """
    return [reduce_one(comm, name, values_of(kind, comm.rank, n), mean, piece) for n in lengths]


def reduce_one(comm, name, values, mean, piece=None, step=4100):
    n, comm = values.size, Counting(comm.mpi)
    reduction = reduction_of(name, comm, n, piece)
    array = np.concatenate([values, np.full(reduction.spare, 9, np.float32)])
    reduction.reduce(array, step, mean)
    result = array[:n]
    return zlib.crc32(result), comm.bytes, comm.messages, reduction.sent, result if comm.rank == 0 else None


def reduce_alexnet(comm, name, n):
    """Return whether the mean over two ranks is bit-identical to the reference."""
    ours, theirs = (np.arange(n, dtype=np.uint32) * np.uint32(2654435761 + 2 * rank) for rank in (0, 1))
    arrays = [each.astype(np.int32).astype(np.float32) / np.float32(2**31) for each in (ours, theirs)]
    reduction = reduction_of(name, comm.mpi, n)
    array = np.concatenate([arrays[comm.rank], np.zeros(reduction.spare, np.float32)])
    reduction.reduce(array, 1)
    expected = TRUTHS.get(name, in_rank_order)(arrays, 2)
    return bool((array[:n].view(np.uint32) == expected.view(np.uint32)).all())


def overflow(comm, name, culprit, value, mean=True, everybody=0.0, piece=None):
    """Return (the error message, whether the array is finite afterwards)."""
    array = np.zeros(100, np.float32)
    array[70] = value if comm.rank == culprit else everybody
    try:
        reduction_of(name, comm.mpi, 100, piece).reduce(array, 12, mean)
    except ArithmeticError as error:
        return str(error), bool(np.isfinite(array).all())
    return None, bool(np.isfinite(array).all())


def part(comm, name, late):
    """Run two steps; in the second, rank `late` uses the number of the third step."""
    reduction = reduction_of(name, comm.mpi, 300, 64)
    array = np.zeros(300 + reduction.spare, np.float32)
    reduction.reduce(array, 1)
    reduction.reduce(array, 3 if comm.rank == late else 2)


def repeat_a_message(comm, name):
    """In the second step, rank 1 sends its last message of the first step again."""
    sent = {}

    def change(number, message):
        return sent.setdefault(number % comm.per_step, message.copy())

    comm = Counting(comm.mpi, change if comm.rank == 1 else lambda number, message: message)
    comm.per_step = 10**9
    reduction = reduction_of(name, comm, 300)
    reduction.reduce(np.ones(300, np.float32), 1)
    comm.per_step = comm.messages
    reduction.reduce(np.ones(300, np.float32), 2)


def lose_an_addend(comm):
    """Simulate an MPI whose Allreduce drops the contribution of rank 1 and reports success."""
    comm = Counting(comm.mpi)

    def add_up(place, array):
        if comm.rank == 1:
            array[:] = 0
        comm.comm.Allreduce(place, array)

    comm.Allreduce = add_up
    Allreduce(comm).reduce(np.ones(300, np.float32), 1)


# ---- error feedback


def run_feedback(comm, feedback, steps):
    """Return (largest distance of the running sum of means from the exact sum, the weight after steps of 1e-5)."""
    reduction = reduction_of("asa16", comm.mpi, 2, feedback=feedback)
    value = np.float32([1 + 0.3 * 2**-10, -3.7 + 1e-4 * comm.rank])
    exact = np.mean([np.float64(np.float32([1 + 0.3 * 2**-10, -3.7 + 1e-4 * rank]))
                     for rank in range(comm.size)], axis=0)
    seen, worst = np.zeros(2), 0.0
    for step in range(1, steps + 1):
        array = value.copy()
        reduction.reduce(array, step)
        seen += array
        worst = max(worst, float(abs(seen - step * exact).max()))
    reduction, weight = reduction_of("asa16", comm.mpi, 1, feedback=feedback), np.ones(1, np.float32)
    for step in range(1, steps + 1):
        weight += np.float32(1e-5)
        reduction.reduce(weight, step)
    return worst, float(weight[0])


def first_with_feedback(comm):
    """Return whether the first exchange is the same with and without error feedback."""
    arrays = [values_of("all", comm.rank, 500) for _ in range(2)]
    for array, feedback in zip(arrays, (False, True), strict=True):
        reduction_of("asa16", comm.mpi, 500, feedback=feedback).reduce(array, 1)
    return bool((arrays[0] == arrays[1]).all())


# ---- strategies as a rule uses them


class Gpu(HostDevice):
    """Host memory with the interface of a GPU: buffers are not host arrays, and each has a pointer."""

    name = "cuda0"

    def __init__(self, on_host=True):
        super().__init__(on_host)
        self.copies = []

    def allocate(self, nbytes):
        buffer = super().allocate(nbytes)
        buffer.array((nbytes,), np.uint8)[:] = 0x7F          # 3.4e38: exceeds the range of float16
        return buffer

    def staging(self, buffer, shape, dtype):
        return np.empty(shape, dtype)

    def upload(self, buffer, array):
        self.copies.append("up")
        super().upload(buffer, array)

    def download(self, array, buffer):
        self.copies.append("down")
        super().download(array, buffer)

    def lent(self):
        return nullcontext("stream")


def settings(name, feedback=False, devices=("auto",)):
    return SimpleNamespace(exchange=name, error_feedback=feedback, devices=devices)


def address(buffer):
    return buffer.array((buffer.nbytes,), np.uint8).ctypes.data


@mock.patch.object(HostBuffer, "pointer", property(address), create=True)
def exchange(comm, name, feedback=False, gpu=False, aware=False, on_host=True):
    """Return (the arrays after one exchange, the warnings, the copies between GPU and host during that exchange)."""
    warned = []
    variables = [pytensor.shared(values_of("all", comm.rank, n).reshape(SHAPES[name]), name=name)
                 for name, n in zip(SHAPES, (35, 5, 1, 1089), strict=True)]
    config = settings(name, feedback)
    with Gpu(on_host) if gpu else HostDevice() as device, mock.patch.object(allreduce, "is_cuda_aware", lambda: aware):
        strategy = strategy_of(config, comm)(config, device, comm, list(SHAPES.values()), warned.append, 6)
        strategy.flat.pack(variables)
        before = len(getattr(device, "copies", []))
        strategy.average(7)
        copies = getattr(device, "copies", [])[before:]
        strategy.flat.unpack(variables)
        found = [variable.get_value(borrow=False) for variable in variables]
        variables.clear()
        strategy.close()
    return found, warned, copies


class FakeNccl:
    """A replacement for nccl4py's Communicator, implemented with MPI on host memory."""

    def __init__(self, comm):
        self._comm = comm

    def allreduce(self, source, destination, op, stream):
        source, destination = array_of(source), array_of(destination)
        destination[:] = in_rank_order(self._comm.allgather(source), 1)

    def destroy(self):
        self._comm = None


def array_of(memory):
    """Return the host array that a __cuda_array_interface__ describes."""
    if isinstance(memory, np.ndarray):
        return memory
    about = memory.__cuda_array_interface__
    host = SimpleNamespace(__array_interface__={key: about[key] for key in ("version", "data", "shape", "typestr")})
    return np.asarray(host)


def exchange_by_nccl(comm, name):
    """Run exchange() over a fake NCCL with each rank on its own host."""
    core = ModuleType("nccl.core")
    core.SUM = "sum"
    core.get_unique_id = lambda: SimpleNamespace(as_bytes=b"0" * 128)
    core.UniqueId = SimpleNamespace(from_bytes=bytes)
    core.Communicator = SimpleNamespace(init=lambda size, rank, identifier: FakeNccl(comm.mpi))
    nccl = ModuleType("nccl")
    nccl.core = core
    comm.hosts = [f"host{rank}" for rank in range(comm.size)]
    with mock.patch.dict(sys.modules, {"nccl": nccl, "nccl.core": core}):
        return exchange(comm, name, gpu=True, on_host=False)
