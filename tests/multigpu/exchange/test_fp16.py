"""Conversions between float32 and float16 against NumPy and the definition of rounding."""

import numpy as np
import pytest

from alexnet.native import compiler
from multigpu.exchange import fp16


@pytest.fixture(params=["plain", "auto", "portable"])
def converter(request, monkeypatch):
    """Conversions in NumPy, and in C with and without the processor's conversion instructions."""
    if request.param == "plain":
        return fp16.NumpyConversions()
    if not compiler.compiler_available():
        pytest.skip("needs a C compiler")
    monkeypatch.setattr(compiler.state, "isa", request.param)
    return fp16.CompiledConversions()


def test_numpy_converts_without_a_compiler(monkeypatch):
    monkeypatch.setattr(compiler, "compiler", lambda: None)
    fp16.conversions.cache_clear()
    compiler._load.cache_clear()
    assert isinstance(fp16.conversions(), fp16.NumpyConversions)
    fp16.conversions.cache_clear()


def test_from_fp16_is_exact(converter):
    halves, found = np.arange(1 << 16, dtype=np.uint16).view(np.float16), np.empty(1 << 16, np.float32)
    converter.from_fp16(found, halves)
    expected = halves.astype(np.float32)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(found[numbers].view(np.uint32), expected[numbers].view(np.uint32))
    np.testing.assert_array_equal(np.isnan(found), ~numbers)


def test_to_fp16_rounds_to_nearest_even(converter, rng):
    edges = np.arange(1 << 19, dtype=np.uint32) << 13              # each float16, and each midpoint of two of them
    bits = np.concatenate([edges, edges + 0x1000, edges + 0x0FFF, edges + 0x1001,
                           rng.integers(0, 1 << 32, 100_003, dtype=np.uint32)])
    values = bits.view(np.float32)
    found = np.empty(values.size, np.float16)
    converter.to_fp16(found, values)
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
def test_conversions_of_any_length_match_formula(converter, n, rng):
    values, lost = (rng.normal(size=n).astype(np.float32) for _ in range(2))
    to, before = np.empty(n, np.float16), lost.copy()
    assert not converter.to_fp16_with_feedback(to, values, lost)
    np.testing.assert_array_equal(to, (values + before).astype(np.float16))
    np.testing.assert_array_equal(lost, (values + before) - to.astype(np.float32))
    total = values.copy()
    converter.add_fp16(total, to)
    np.testing.assert_array_equal(total, values + to.astype(np.float32))


@pytest.mark.parametrize("place", [0, 7, 8, 15, 16])
def test_infinity_is_detected_at_any_position(converter, place):
    values, lost, to = np.zeros(17, np.float32), np.zeros(17, np.float32), np.empty(17, np.float16)
    values[place] = -65520
    assert converter.to_fp16(to, values)
    assert converter.to_fp16_with_feedback(to, values, lost)
    values[place] = np.nan
    assert not converter.to_fp16(to, values)
    assert not converter.to_fp16_with_feedback(to, values, np.zeros(17, np.float32))
