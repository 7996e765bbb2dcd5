"""The strategies over MPI: bit-exact sums and means, and the errors when a reduction cannot be correct."""

import sys
from types import SimpleNamespace

import numpy as np
import pytensor
import pytest

from alexnet.config.schema import ConfigError
from alexnet.native import compiler
from multigpu.communicator import DesyncError
from multigpu.device.host import HostDevice
from multigpu.exchange import fp16, strategy_of
from multigpu.exchange import step_header as proofs
from multigpu.exchange.flat_buffer import FlatBuffer
from multigpu.exchange.step_header import BYTES, DIGITS, Overflow, Overflowed, StepHeader
from tests.mpi import needs_mpi, results, team_of
from tests.multigpu import strategy_tasks as tasks

pytestmark = [pytest.mark.mpi, needs_mpi]
team = team_of(8)

TASKS = "tests.multigpu.strategy_tasks"
LENGTHS = [1, 7, 8, 9, 255, 256, 257, 230_400]
SIZES = [1, 2, 3, 8]
STRATEGIES = ["ar", "asa32", "asa16", "copper", "copper16"]
OVER_MESSAGES = [name for name in STRATEGIES if name != "ar"]
HALVED = ["asa16", "copper16"]


def run(team, task, *arguments, size=None):
    return results(team.run(f"{TASKS}:{task}", *arguments, size=size))


def errors(team, task, *arguments, size):
    """Run a task that must fail on every rank; return the exception of each rank."""
    found = team.run(f"{TASKS}:{task}", *arguments, size=size)
    assert all(isinstance(each, Exception) for each in found), found
    return found


def alike(found):
    """Assert that all ranks returned the same bits; return the reduce_lengths() result of rank 0."""
    assert all(len({each[0] for each in length}) == 1 for length in zip(*found, strict=True))
    return found[0]


# ---- sums


@pytest.mark.parametrize(("name", "size"), [*(("ar", size) for size in SIZES), *((name, 3) for name in OVER_MESSAGES)])
def test_sums_of_integers_are_exact(team, name, size):
    for n, (*_, found) in zip(LENGTHS, alike(run(team, "reduce_lengths", name, "integers", LENGTHS, False, size=size)),
                              strict=True):
        np.testing.assert_array_equal(found, sum(tasks.values_of("integers", rank, n) for rank in range(size)))


@pytest.mark.parametrize(("size", "mean"), [*((size, False) for size in SIZES), (3, True)])
@pytest.mark.parametrize("name", OVER_MESSAGES)
def test_every_bit_is_that_of_the_sum_in_the_order_that_the_strategy_promises(team, name, size, mean):
    for n, (*_, found) in zip(LENGTHS, alike(run(team, "reduce_lengths", name, "all", LENGTHS, mean, size=size)),
                              strict=True):
        arrays = [tasks.values_of("all", rank, n) for rank in range(size)]
        expected = tasks.TRUTHS[name](arrays, size if mean else 1)
        np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("name", OVER_MESSAGES)
def test_many_small_pieces_are_one_sum(team, name):
    lengths = [1, 59, 60, 61, 257, 1003]
    for n, (*_, found) in zip(lengths, alike(run(team, "reduce_lengths", name, "all", lengths, True, 20, size=3)),
                              strict=True):
        arrays = [tasks.values_of("all", rank, n) for rank in range(3)]
        np.testing.assert_array_equal(found, tasks.TRUTHS[name](arrays, 3))


@pytest.mark.parametrize("size", [2, 8])
def test_asa16_is_within_its_bound_of_the_exact_sum(team, size):
    for n, (*_, found) in zip(LENGTHS, run(team, "reduce_lengths", "asa16", "all", LENGTHS, False, size=size)[0],
                              strict=True):
        arrays = np.array([tasks.values_of("all", rank, n) for rank in range(size)], np.float64)
        exact = arrays.sum(0)
        bound = 2.0**-11 * (abs(arrays).sum(0) + abs(exact) * (1 + 2.0**-11)) + (size + 1) * 2.0**-25
        assert (abs(found - exact) <= bound).all()


# ---- bytes


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("name", ["asa32", "asa16"])
def test_asa_hands_mpi_the_bytes_that_it_says(team, name, size):
    found = run(team, "reduce_lengths", name, "all", LENGTHS, True, 5000, size=size)
    for n, ranks in zip(LENGTHS, zip(*found, strict=True), strict=True):
        proven = 2 * (size - 1) * BYTES
        moved = 2 * (size - 1) / size * n * (4 if name == "asa32" else 2)
        assert sum(handed for _, handed, *_ in ranks) == pytest.approx(size * (moved + proven))
        assert all(handed == counted for _, handed, _, counted, _ in ranks)
        assert all(abs(handed - moved - proven) <= 8 * size for _, handed, *_ in ranks)      # slices differ by a float


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize(("name", "item"), [("copper", 4), ("copper16", 2)])
def test_copper_sends_every_array_once_up_and_once_down(team, name, item, size):
    found = run(team, "reduce_lengths", name, "all", LENGTHS, True, size=size)
    for n, ranks in zip(LENGTHS, zip(*found, strict=True), strict=True):
        assert sum(handed for _, handed, *_ in ranks) == 2 * (size - 1) * (item * n + BYTES)
        assert all(handed == counted for _, handed, _, counted, _ in ranks)


def test_allreduce_is_one_call(team):
    for n, (_, handed, messages, counted, _) in zip(
        LENGTHS, run(team, "reduce_lengths", "ar", "all", LENGTHS, True, size=3)[0], strict=True
    ):
        assert (handed, messages, counted) == (4 * (n + DIGITS), 1, 4 * (n + DIGITS))


# ---- values beyond float16


@pytest.mark.parametrize("piece", [None, 9])
@pytest.mark.parametrize("culprit", [0, 2])
@pytest.mark.parametrize("name", HALVED)
def test_a_value_too_large_for_float16_is_reported_by_all_ranks_alike(team, name, culprit, piece):
    found = run(team, "overflow", name, culprit, -65520.0, True, 0.0, piece, size=3)
    assert {finite for _, finite in found} == {True}
    assert {sentence for sentence, _ in found} == {
        f"exchange={name}: float16 holds numbers up to 65504, but in step 12 a value of rank {culprit} is -65520 "
        "(element 70); lower the learning_rate, or take a strategy with float32 on the wire"
    }


@pytest.mark.parametrize("name", HALVED)
def test_what_float16_just_holds_is_no_overflow(team, name):
    assert run(team, "overflow", name, 1, 65519.99, size=3) == [(None, True)] * 3


@pytest.mark.parametrize("name", HALVED)
def test_infinity_is_reported_like_any_value_too_large(team, name):
    for sentence, _ in run(team, "overflow", name, 1, float("inf"), size=2):
        assert "a value of rank 1 is inf" in sentence


@pytest.mark.parametrize(("name", "maker"), [("asa16", 2), ("copper16", 0)])
def test_a_sum_too_large_for_float16_is_reported_by_all_ranks_alike(team, name, maker):
    found = run(team, "overflow", name, 1, 40000.0, False, 30000.0, size=3)
    assert {finite for _, finite in found} == {True}
    (sentence,) = {sentence for sentence, _ in found}
    assert f"the sum that rank {maker} made is " in sentence


def test_a_mean_that_float16_holds_is_no_overflow_though_its_sum_were(team):
    assert run(team, "overflow", "asa16", 1, 40000.0, True, 40000.0, size=3) == [(None, True)] * 3


# ---- the step header


@pytest.mark.parametrize("size", [2, 8])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_rank_in_another_step_is_found_by_all(team, name, size):
    for error in errors(team, "part", name, size - 1, size=size):
        assert isinstance(error, DesyncError)
        assert f"exchange={name} expected step " in str(error)


@pytest.mark.parametrize("name", OVER_MESSAGES)
def test_a_message_that_comes_again_is_found(team, name):
    found = team.run(f"{TASKS}:repeat_a_message", name, size=2)
    assert any(isinstance(each, DesyncError) and "steps 1 to 2 of 2 ranks" in str(each) for each in found)


def test_a_sum_that_lacks_a_rank_is_found(team):
    for error in errors(team, "lose_an_addend", size=3):
        assert isinstance(error, DesyncError)
        assert "expected step 1 of 3 ranks, got 2 ranks" in str(error)


@pytest.mark.parametrize("steps", [(5, 6), (6, 6, 3), (4095, 4096), (1, 2**30 - 1), (64, 1)])
def test_digits_tell_steps_apart_whatever_their_sum(steps):
    sums = np.zeros(DIGITS, np.float32)
    for step in steps:
        one = np.empty(DIGITS, np.float32)
        proofs.write_digits(one, step)
        sums += one
    for expected in {*steps, round(sum(steps) / len(steps))}:
        with pytest.raises(DesyncError, match="whose steps are not the same"):
            proofs.check_digits(sums, "ar", expected, len(steps))


@pytest.mark.parametrize("size", [1, 2, 1000, 4000])
@pytest.mark.parametrize("step", [0, 1, 4095, 10**6, 2**30 - 1])
def test_digits_of_one_step_prove_it_exactly(step, size):
    one, sums = np.empty(DIGITS, np.float32), np.zeros(DIGITS, np.float32)
    proofs.write_digits(one, step)
    for _ in range(size):
        sums += one
    proofs.check_digits(sums, "ar", step, size)


def test_a_proof_travels_as_it_is_and_names_the_first_culprit():
    proof = StepHeader(3, 3).noting(5, Overflowed(True, False, 10**12, -1e38))
    place = np.zeros(BYTES, np.uint8)
    proof.write(place)
    assert StepHeader.read(place) == proof
    together = proof.and_(StepHeader(3, 3).noting(2, Overflowed(False, False, 4, 7e4)), StepHeader(3, 3))
    with pytest.raises(Overflow, match="a value of rank 2 is 70000"):
        proofs.check([together], "asa16", 3, 3)
    with pytest.raises(DesyncError, match="got step 3 of 3 ranks"):
        proofs.check([together], "asa16", 3, 4)


# ---- error feedback


def test_error_feedback_keeps_the_running_sum_within_a_rounding_where_it_drifts_without(team):
    steps, largest = 150, 3.7
    plain, kept = (run(team, "run_feedback", feedback, steps, size=3)[0] for feedback in (False, True))
    assert kept[0] <= 2 * 2.0**-11 * 2 * largest                   # one rounding per rank, one by the owner
    assert plain[0] > 10 * kept[0]
    assert plain[1] == 1.0                                         # each update of 1e-5 is lost
    assert abs(kept[1] - (1 + steps * 1e-5)) <= 2 * 2.0**-11


def test_error_feedback_begins_at_zero(team):
    assert run(team, "first_with_feedback", size=3) == [True] * 3


@pytest.mark.parametrize("name", ["auto", "peer", "ar", "asa32", "copper", "copper16"])
def test_error_feedback_is_refused_where_nothing_is_kept(name):
    with pytest.raises(ConfigError, match="take exchange=asa16, or error_feedback=false"):
        strategy_of(tasks.settings(name, feedback=True), comm())


# ---- strategies as a rule uses them


@pytest.mark.parametrize("name", [*STRATEGIES, "allreduce"])
def test_arrays_become_their_mean_in_the_flat_buffer(team, name):
    for arrays, warned, _ in run(team, "exchange", name, size=3):
        assert warned == []
        check_means(arrays, TRUTH_OF.get(name))


TRUTH_OF = tasks.TRUTHS | {"nccl32": tasks.in_rank_order}


def check_means(arrays, truth):
    for found, (name, shape) in zip(arrays, tasks.SHAPES.items(), strict=True):
        values = [tasks.values_of("all", rank, int(np.prod(shape))).reshape(shape) for rank in range(3)]
        if truth:
            np.testing.assert_array_equal(found, truth(values, 3), err_msg=name)
        else:
            np.testing.assert_allclose(found, np.mean(values, 0, np.float64), rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_gpus_arrays_go_through_the_host_and_rank_0_says_so_once(team, name):
    for rank, (arrays, warned, copies) in enumerate(run(team, "exchange", name, False, True, size=3)):
        said = "cuda0's arrays are exchanged over MPI by way of page-locked memory of the host"
        assert warned == ([said] if rank == 0 else [])
        assert copies == ["down", "up"]
        check_means(arrays, TRUTH_OF.get(name))


def test_an_mpi_that_is_cuda_aware_is_handed_the_gpus_memory(team):
    for rank, (arrays, warned, copies) in enumerate(run(team, "exchange", "ar", False, True, True, size=3)):
        assert warned == (["cuda0's arrays are exchanged by MPI itself, which is CUDA-aware"] if rank == 0 else [])
        assert copies == ["up", "down", "up"]                      # the step header, twice, and the quotient
        check_means(arrays, None)


def test_nccl_is_handed_the_gpus_memory(team):
    for arrays, *_ in run(team, "exchange_by_nccl", "nccl32", size=3):
        check_means(arrays, tasks.in_rank_order)
    for arrays, *_ in run(team, "exchange_by_nccl", "nccl16", size=3):
        check_means(arrays, halves_added_one_by_one)


def halves_added_one_by_one(arrays, divisor):
    first, second, third = map(tasks.halved, arrays)
    return tasks.halved(tasks.halved(first + second) + third) / np.float32(divisor)


@pytest.mark.parametrize("n", [1, 1007, 1008, 1009, 1023, 1024])
def test_the_spare_end_of_a_flat_buffer_is_in_no_array(n):
    variables = [pytensor.shared(np.full(n, 3, np.float32))]
    with HostDevice() as device:
        flat = FlatBuffer(device, [(n,)], DIGITS)
        flat.pack(variables)
        flat.array()[-DIGITS:] = 9
        flat.unpack(variables)
        np.testing.assert_array_equal(variables.pop().get_value(borrow=False), 3)
        flat.close()


def comm(**changes):
    return SimpleNamespace(**{"size": 2, "rank": 0, "local_size": 2, "on_one_host": True, "over_mpi": True,
                              "hosts": ["here", "here"]} | changes)


@pytest.mark.parametrize(
    ("devices", "sentence"),
    [
        (("cpu",), "exchange=nccl32 needs a GPU for each rank, got devices=cpu"),
        (("cuda0",), "got devices=cuda0 for 2 ranks on here"),
        (("cuda0", "cuda0"), "got devices=cuda0,cuda0 for 2 ranks on here"),
    ],
)
def test_nccl_is_refused_before_anything_is_compiled_where_ranks_lack_gpus(devices, sentence):
    with pytest.raises(ConfigError, match=sentence):
        strategy_of(tasks.settings("nccl32", devices=devices), comm())


def test_nccl_is_refused_where_nccl4py_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "nccl", None)
    with pytest.raises(ConfigError, match=r"exchange=nccl16 needs nccl4py, which cannot be imported .*pip install"):
        strategy_of(tasks.settings("nccl16"), comm())


def test_what_another_strategy_cannot_import_is_not_laid_to_nccl4py(monkeypatch):
    monkeypatch.setitem(sys.modules, "multigpu.exchange.copper", None)
    with pytest.raises(ImportError, match=r"multigpu\.exchange\.copper"):
        strategy_of(tasks.settings("copper"), comm())


# ---- float16


@pytest.fixture(params=["plain", "auto", "portable"])
def converter(request, monkeypatch):
    """NumPy's conversions, and the C ones with and without the processor's conversion instructions."""
    if request.param == "plain":
        return fp16.Plain()
    if not compiler.compiler_available():
        pytest.skip("needs a C compiler")
    monkeypatch.setattr(compiler.state, "isa", request.param)
    return fp16.Compiled()


def test_without_a_compiler_numpy_converts(monkeypatch):
    monkeypatch.setattr(compiler, "compiler", lambda: None)
    fp16.conversions.cache_clear()
    compiler._load.cache_clear()
    assert isinstance(fp16.conversions(), fp16.Plain)
    fp16.conversions.cache_clear()


def test_every_float16_becomes_its_float32(converter):
    halves, found = np.arange(1 << 16, dtype=np.uint16).view(np.float16), np.empty(1 << 16, np.float32)
    converter.widen(found, halves)
    expected = halves.astype(np.float32)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(found[numbers].view(np.uint32), expected[numbers].view(np.uint32))
    np.testing.assert_array_equal(np.isnan(found), ~numbers)


def test_float32_becomes_the_nearest_float16_and_of_two_the_even_one(converter, rng):
    edges = np.arange(1 << 19, dtype=np.uint32) << 13              # each float16, and each midpoint of two of them
    bits = np.concatenate([edges, edges + 0x1000, edges + 0x0FFF, edges + 0x1001,
                           rng.integers(0, 1 << 32, 100_003, dtype=np.uint32)])
    values = bits.view(np.float32)
    found = np.empty(values.size, np.float16)
    converter.narrow(found, values)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(values))
    numbers = ~np.isnan(values)
    np.testing.assert_array_equal(found[numbers].view(np.uint16), nearest(values[numbers]))


def nearest(values):
    """Return the bits of the float16 nearest to each value, by search in the list of all float16 values."""
    exact = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    exact = np.append(exact, 65536.0)                              # the next value, if it were not infinity
    sizes = np.abs(values.astype(np.float64)).clip(max=65536.0)
    above = np.searchsorted(exact, sizes).clip(1)
    below, up, down = above - 1, exact[above] - sizes, sizes - exact[above - 1]
    chosen = np.where((up < down) | ((up == down) & (above % 2 == 0)), above, below)
    return (chosen | np.signbit(values) * 0x8000).astype(np.uint16)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 1030])
def test_conversions_of_any_length_keep_what_they_say(converter, n, rng):
    values, lost = (rng.normal(size=n).astype(np.float32) for _ in range(2))
    to, before = np.empty(n, np.float16), lost.copy()
    assert not converter.narrow_and_keep(to, values, lost)
    np.testing.assert_array_equal(to, (values + before).astype(np.float16))
    np.testing.assert_array_equal(lost, (values + before) - to.astype(np.float32))
    total = values.copy()
    converter.add(total, to)
    np.testing.assert_array_equal(total, values + to.astype(np.float32))


@pytest.mark.parametrize("place", [0, 7, 8, 15, 16])
def test_an_infinity_is_noticed_wherever_it_is(converter, place):
    values, lost, to = np.zeros(17, np.float32), np.zeros(17, np.float32), np.empty(17, np.float16)
    values[place] = -65520
    assert converter.narrow(to, values)
    assert converter.narrow_and_keep(to, values, lost)
    values[place] = np.nan
    assert not converter.narrow(to, values)
    assert not converter.narrow_and_keep(to, values, np.zeros(17, np.float32))
