"""The strategies over MPI: bit-exact sums and means, and the errors when a reduction cannot be correct."""

import numpy as np
import pytest

from multigpu.communicator import DesyncError
from multigpu.exchange.step_header import HEADER_BYTES, LANES
from tests.mpi import needs_mpi, results, team_of
from tests.multigpu.exchange import ranks
from tests.multigpu.exchange.fakes import SHAPES

pytestmark = [pytest.mark.mpi, needs_mpi]
team = team_of(8)

TASKS = "tests.multigpu.exchange.ranks"
LENGTHS = [1, 7, 8, 9, 255, 256, 257, 230_400]
SIZES = [1, 2, 3, 8]
STRATEGIES = ["ar", "asa32", "asa16", "copper", "copper16"]
BY_MESSAGES = [name for name in STRATEGIES if name != "ar"]
FLOAT16 = ["asa16", "copper16"]
OUTSIDE = f"{TASKS}:GatherStrategy"            # not in the package


def run(team, task, *arguments, size=None):
    return results(team.run(f"{TASKS}:{task}", *arguments, size=size))


def errors(team, task, *arguments, size):
    """Run a task that must fail on every rank; return the exception of each rank."""
    found = team.run(f"{TASKS}:{task}", *arguments, size=size)
    assert all(isinstance(each, Exception) for each in found), found
    return found


def identical(found):
    """Assert that all ranks returned the same bits; return the reduce_lengths() result of rank 0."""
    assert all(len({each[0] for each in length}) == 1 for length in zip(*found, strict=True))
    return found[0]


# ---- sums


@pytest.mark.parametrize(("name", "size"), [*(("ar", size) for size in SIZES), *((name, 3) for name in BY_MESSAGES)])
def test_sums_of_integers_are_exact(team, name, size):
    results = identical(run(team, "reduce_lengths", name, "integers", LENGTHS, False, size=size))
    for n, (*_, found) in zip(LENGTHS, results, strict=True):
        np.testing.assert_array_equal(found, sum(ranks.random_values("integers", rank, n) for rank in range(size)))


@pytest.mark.parametrize(("size", "mean"), [*((size, False) for size in SIZES), (3, True)])
@pytest.mark.parametrize("name", BY_MESSAGES)
def test_reduction_is_bit_exact_in_documented_order(team, name, size, mean):
    for n, (*_, found) in zip(LENGTHS, identical(run(team, "reduce_lengths", name, "all", LENGTHS, mean, size=size)),
                              strict=True):
        arrays = [ranks.random_values("all", rank, n) for rank in range(size)]
        expected = ranks.REFERENCES[name](arrays, size if mean else 1)
        np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("name", BY_MESSAGES)
def test_many_small_pieces_are_bit_exact(team, name):
    lengths = [1, 59, 60, 61, 257, 1003]
    for n, (*_, found) in zip(lengths, identical(run(team, "reduce_lengths", name, "all", lengths, True, 20, size=3)),
                              strict=True):
        arrays = [ranks.random_values("all", rank, n) for rank in range(3)]
        np.testing.assert_array_equal(found, ranks.REFERENCES[name](arrays, 3))


@pytest.mark.parametrize("size", [2, 8])
def test_asa16_error_is_bounded(team, size):
    for n, (*_, found) in zip(LENGTHS, run(team, "reduce_lengths", "asa16", "all", LENGTHS, False, size=size)[0],
                              strict=True):
        arrays = np.array([ranks.random_values("all", rank, n) for rank in range(size)], np.float64)
        exact = arrays.sum(0)
        bound = 2.0**-11 * (abs(arrays).sum(0) + abs(exact) * (1 + 2.0**-11)) + (size + 1) * 2.0**-25
        assert (abs(found - exact) <= bound).all()


# ---- bytes


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("name", ["asa32", "asa16"])
def test_asa_counts_the_bytes_it_sends(team, name, size):
    found = run(team, "reduce_lengths", name, "all", LENGTHS, True, 5000, size=size)
    for n, by_rank in zip(LENGTHS, zip(*found, strict=True), strict=True):
        headers = 2 * (size - 1) * HEADER_BYTES
        moved = 2 * (size - 1) / size * n * (4 if name == "asa32" else 2)
        assert sum(handed for _, handed, *_ in by_rank) == pytest.approx(size * (moved + headers))
        assert all(handed == counted for _, handed, _, counted, _ in by_rank)
        assert all(abs(handed - moved - headers) <= 8 * size for _, handed, *_ in by_rank)    # slices differ by 1


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize(("name", "item"), [("copper", 4), ("copper16", 2)])
def test_copper_sends_each_array_up_and_down(team, name, item, size):
    found = run(team, "reduce_lengths", name, "all", LENGTHS, True, size=size)
    for n, by_rank in zip(LENGTHS, zip(*found, strict=True), strict=True):
        assert sum(handed for _, handed, *_ in by_rank) == 2 * (size - 1) * (item * n + HEADER_BYTES)
        assert all(handed == counted for _, handed, _, counted, _ in by_rank)


def test_allreduce_is_one_call(team):
    for n, (_, handed, messages, counted, _) in zip(
        LENGTHS, run(team, "reduce_lengths", "ar", "all", LENGTHS, True, size=3)[0], strict=True
    ):
        assert (handed, messages, counted) == (4 * (n + LANES), 1, 4 * (n + LANES))


# ---- values beyond float16


@pytest.mark.parametrize("piece", [None, 9])
@pytest.mark.parametrize("culprit", [0, 2])
@pytest.mark.parametrize("name", FLOAT16)
def test_float16_overflow_is_reported_by_all_ranks(team, name, culprit, piece):
    found = run(team, "overflow", name, culprit, -65520.0, True, 0.0, piece, size=3)
    assert {finite for _, finite in found} == {True}
    assert {sentence for sentence, _ in found} == {
        f"exchange={name}: float16 holds numbers up to 65504, but in step 12 a value of rank {culprit} is -65520 "
        "(element 70); lower the learning_rate, or use a strategy that sends float32"
    }


@pytest.mark.parametrize("name", FLOAT16)
def test_largest_float16_is_no_overflow(team, name):
    assert run(team, "overflow", name, 1, 65519.99, size=3) == [(None, True)] * 3


@pytest.mark.parametrize("name", FLOAT16)
def test_infinity_is_reported_as_overflow(team, name):
    for sentence, _ in run(team, "overflow", name, 1, float("inf"), size=2):
        assert "a value of rank 1 is inf" in sentence


@pytest.mark.parametrize(("name", "owner"), [("asa16", 2), ("copper16", 0)])
def test_overflow_of_a_sum_is_reported_by_all_ranks(team, name, owner):
    found = run(team, "overflow", name, 1, 40000.0, False, 30000.0, size=3)
    assert {finite for _, finite in found} == {True}
    (sentence,) = {sentence for sentence, _ in found}
    assert f"the sum that rank {owner} computed is " in sentence


def test_mean_of_overflowing_sum_is_no_overflow(team):
    assert run(team, "overflow", "asa16", 1, 40000.0, True, 40000.0, size=3) == [(None, True)] * 3


# ---- the step header


@pytest.mark.parametrize("size", [2, 8])
@pytest.mark.parametrize("name", STRATEGIES)
def test_rank_at_another_step_is_detected_by_all(team, name, size):
    for error in errors(team, "reduce_out_of_step", name, size - 1, size=size):
        assert isinstance(error, DesyncError)
        assert f"exchange={name} expected step " in str(error)


@pytest.mark.parametrize("name", BY_MESSAGES)
def test_repeated_message_is_detected(team, name):
    found = team.run(f"{TASKS}:repeat_a_message", name, size=2)
    assert any(isinstance(each, DesyncError) and "steps 1 to 2 of 2 ranks" in str(each) for each in found)


def test_sum_without_one_rank_is_detected(team):
    for error in errors(team, "drop_a_term", size=3):
        assert isinstance(error, DesyncError)
        assert "expected step 1 of 3 ranks, got 2 ranks" in str(error)


# ---- error feedback


def test_error_feedback_bounds_the_running_sum(team):
    steps, largest = 150, 3.7
    plain, kept = (run(team, "run_feedback", feedback, steps, size=3)[0] for feedback in (False, True))
    assert kept[0] <= 2 * 2.0**-11 * 2 * largest                   # one rounding per rank, one by the owner
    assert plain[0] > 10 * kept[0]
    assert plain[1] == 1.0                                         # each update of 1e-5 is lost
    assert abs(kept[1] - (1 + steps * 1e-5)) <= 2 * 2.0**-11


def test_error_feedback_starts_at_zero(team):
    assert run(team, "first_with_feedback", size=3) == [True] * 3


# ---- strategies as a rule uses them


@pytest.mark.parametrize("name", [*STRATEGIES, OUTSIDE])
def test_average_computes_the_mean(team, name):
    for arrays, warned, _ in run(team, "exchange", name, size=3):
        assert warned == []
        check_means(arrays, REFERENCE_OF.get(name))


REFERENCE_OF = ranks.REFERENCES | {"nccl32": ranks.in_rank_order, OUTSIDE: ranks.in_rank_order}


def check_means(arrays, reference):
    for found, (name, shape) in zip(arrays, SHAPES.items(), strict=True):
        values = [ranks.random_values("all", rank, int(np.prod(shape))).reshape(shape) for rank in range(3)]
        if reference:
            np.testing.assert_array_equal(found, reference(values, 3), err_msg=name)
        else:
            np.testing.assert_allclose(found, np.mean(values, 0, np.float64), rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", STRATEGIES)
def test_gpu_arrays_are_copied_through_the_host(team, name):
    for rank, (arrays, warned, copies) in enumerate(run(team, "exchange", name, False, True, size=3)):
        warning = "cuda0's arrays are exchanged over MPI by way of page-locked memory of the host"
        assert warned == ([warning] if rank == 0 else [])
        assert copies == ["down", "up"]
        check_means(arrays, REFERENCE_OF.get(name))


def test_cuda_aware_mpi_gets_gpu_memory(team):
    for rank, (arrays, warned, copies) in enumerate(run(team, "exchange", "ar", False, True, True, size=3)):
        assert warned == (["cuda0's arrays are exchanged by MPI itself, which is CUDA-aware"] if rank == 0 else [])
        assert copies == ["up", "down", "up"]                      # the step header, twice, and the quotient
        check_means(arrays, None)


def test_nccl_gets_gpu_memory(team):
    for arrays, *_ in run(team, "exchange_by_nccl", "nccl32", size=3):
        check_means(arrays, ranks.in_rank_order)
    for arrays, *_ in run(team, "exchange_by_nccl", "nccl16", size=3):
        check_means(arrays, sum_in_float16)


def sum_in_float16(arrays, divisor):
    first, second, third = map(ranks.rounded_to_fp16, arrays)
    return ranks.rounded_to_fp16(ranks.rounded_to_fp16(first + second) + third) / np.float32(divisor)
