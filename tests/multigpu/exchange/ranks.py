"""Tasks of the ranks in the tests of the strategies over MPI, and independent reference results."""

import zlib
from functools import partial
from math import prod
from unittest import mock

import numpy as np
import pytensor

from multigpu.device.host import HostDevice
from multigpu.exchange import ExchangeContext, strategy_of
from multigpu.exchange.allreduce import AllreduceReduction
from multigpu.exchange.asa import AsaReduction
from multigpu.exchange.codecs import Float16Codec, Float32Codec
from multigpu.exchange.copper import CopperReduction
from multigpu.exchange.mpi_strategy import MpiStrategy
from multigpu.exchange.step_header import LANES
from tests.multigpu.exchange.fakes import SHAPES, CountingComm, FakeGpu, fake_nccl
from tests.tiny import settings

# ---- values and reference results: float16 by NumPy, sequential sums


def random_values(kind, rank, n):
    rng = np.random.default_rng([rank, n])
    if kind == "integers":
        return rng.integers(-100, 101, n).astype(np.float32)
    # all magnitudes of float16, subnormal numbers included
    return (rng.normal(size=n) * 2.0 ** rng.integers(-24, 10, n)).astype(np.float32)


def rounded_to_fp16(x):
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


REFERENCES = {
    "asa32": in_rank_order,
    "asa16": partial(in_rank_order, rounded=rounded_to_fp16),
    "copper": up_the_tree,
    "copper16": partial(up_the_tree, rounded=rounded_to_fp16),
}


# ---- reductions of arrays


def reduction_of(name, comm, n, piece=None, feedback=False):
    if name == "ar":
        return AllreduceReduction(comm)
    kind = {"a": AsaReduction, "c": CopperReduction}[name[0]]
    codec = partial(Float16Codec, feedback=feedback) if name.endswith("16") else Float32Codec
    return kind(name, comm, n, codec, **({} if piece is None else {"piece": piece}))


def padded(name, values):
    """Return a copy of the values with space for the header lanes of strategy ar."""
    return np.append(values, np.full(LANES if name == "ar" else 0, 9, np.float32))


def reduce_lengths(comm, name, kind, lengths, mean, piece=None):
    """Return one tuple per length.

    Each holds the checksum of the result's bits, the bytes passed to MPI, the number of messages, the bytes that the
    reduction counts, and on rank 0 the result.
    """
    return [reduce_one(comm, name, random_values(kind, comm.rank, n), mean, piece) for n in lengths]


def reduce_one(comm, name, values, mean, piece=None, step=4100):
    n, comm = values.size, CountingComm(comm.mpi)
    reduction = reduction_of(name, comm, n, piece)
    array = padded(name, values)
    reduction.reduce(array, step, mean)
    result = array[:n]
    return zlib.crc32(result), comm.bytes, comm.messages, reduction.sent, result if comm.rank == 0 else None


def reduce_alexnet(comm, name, n):
    """Return whether the mean over two ranks is bit-identical to the reference."""
    ours, theirs = (np.arange(n, dtype=np.uint32) * np.uint32(2654435761 + 2 * rank) for rank in (0, 1))
    arrays = [each.astype(np.int32).astype(np.float32) / np.float32(2**31) for each in (ours, theirs)]
    reduction = reduction_of(name, comm.mpi, n)
    array = padded(name, arrays[comm.rank])
    reduction.reduce(array, 1)
    expected = REFERENCES.get(name, in_rank_order)(arrays, 2)
    return bool((array[:n].view(np.uint32) == expected.view(np.uint32)).all())


def overflow(comm, name, culprit, value, mean=True, others=0.0, piece=None):
    """Return (the error message, whether the array is finite afterwards)."""
    array = np.zeros(100, np.float32)
    array[70] = value if comm.rank == culprit else others
    try:
        reduction_of(name, comm.mpi, 100, piece).reduce(array, 12, mean)
    except ArithmeticError as error:
        return str(error), bool(np.isfinite(array).all())
    return None, bool(np.isfinite(array).all())


def reduce_out_of_step(comm, name, late):
    """Run two steps; in the second, rank `late` uses the number of the third step."""
    reduction = reduction_of(name, comm.mpi, 300, 64)
    array = padded(name, np.zeros(300, np.float32))
    reduction.reduce(array, 1)
    reduction.reduce(array, 3 if comm.rank == late else 2)


def repeat_a_message(comm, name):
    """In the second step, rank 1 sends its last message of the first step again."""
    sent = {}

    def change(number, message):
        return sent.setdefault(number % comm.per_step, message.copy())

    comm = CountingComm(comm.mpi, change if comm.rank == 1 else lambda number, message: message)
    comm.per_step = 10**9
    reduction = reduction_of(name, comm, 300)
    reduction.reduce(np.ones(300, np.float32), 1)
    comm.per_step = comm.messages
    reduction.reduce(np.ones(300, np.float32), 2)


def drop_a_term(comm):
    """Simulate an MPI whose Allreduce drops the contribution of rank 1 and reports success."""
    comm = CountingComm(comm.mpi)

    def add_up(place, array):
        if comm.rank == 1:
            array[:] = 0
        comm.comm.Allreduce(place, array)

    comm.Allreduce = add_up
    AllreduceReduction(comm).reduce(np.ones(300, np.float32), 1)



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
    arrays = [random_values("all", comm.rank, 500) for _ in range(2)]
    for array, feedback in zip(arrays, (False, True), strict=True):
        reduction_of("asa16", comm.mpi, 500, feedback=feedback).reduce(array, 1)
    return bool((arrays[0] == arrays[1]).all())


# ---- strategies as a rule uses them


def config_of(name, feedback=False, devices="auto"):
    return settings("none", "none", exchange=name, error_feedback=str(feedback).lower(), devices=devices)


def exchange(comm, name, feedback=False, gpu=False, aware=False, on_host=True):
    """Return (the arrays after one exchange, the warnings, the copies between GPU and host during that exchange)."""
    warned = []
    variables = [pytensor.shared(random_values("all", comm.rank, prod(shape)).reshape(shape), name=name)
                 for name, shape in SHAPES.items()]
    config = config_of(name, feedback)
    with FakeGpu(on_host) if gpu else HostDevice() as device, \
            mock.patch("multigpu.mpi.communicator.is_cuda_aware", lambda: aware):
        context = ExchangeContext(config, device, comm, list(SHAPES.values()), warned.append, 6)
        strategy = strategy_of(config, comm).connect(context)
        strategy.flat.pack(variables)
        before = len(getattr(device, "copies", []))
        strategy.average(7)
        copies = getattr(device, "copies", [])[before:]
        strategy.flat.unpack(variables)
        found = [variable.get_value(borrow=False) for variable in variables]
        variables.clear()
        strategy.close()
    return found, warned, copies


def exchange_by_nccl(comm, name):
    """Run exchange() over a fake NCCL with each rank on its own host."""
    comm.hosts = [f"host{rank}" for rank in range(comm.size)]
    with fake_nccl(comm.mpi):
        return exchange(comm, name, gpu=True, on_host=False)


class GatherStrategy(MpiStrategy):
    """A strategy from outside the package."""

    def reduce(self, array, step):
        array[:] = in_rank_order(self.comm.mpi.allgather(array), self.comm.size)
