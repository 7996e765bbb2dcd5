"""Elementwise formulas: the C loops against NumPy in float64, and the cases that stay with NumPy."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from alexnet.backends import mode_of
from alexnet.backends.cpu.linker import CpuKernel
from alexnet.native import compiler

pytestmark = [
    pytest.mark.compatibility,
    pytest.mark.skipif(not compiler.compiler_available(), reason="needs a C compiler"),
]


def compiled(inputs, outputs, **updates):
    return pytensor.function(inputs, outputs, mode=mode_of("cpu"), **updates)


def kernels(function):
    return [node for node in function.maker.fgraph.toposort() if isinstance(node.op, CpuKernel)]


def elementwise_nodes(function):
    return [node for node in function.maker.fgraph.toposort() if "Elemwise" in type(node.op).__name__]


@pytest.mark.parametrize("batch", [1, 7, 5000])
def test_bias_and_relu_match_numpy_and_propagate_nan(batch, rng):
    x, b = pt.tensor("x", shape=(5, 3, 2, None)), pt.tensor("b", shape=(5,))
    relu = compiled([x, b], pt.maximum(x + b.dimshuffle(0, "x", "x", "x"), 0))
    assert len(kernels(relu)) == 1 and not elementwise_nodes(relu)
    images, bias = rng.normal(size=(5, 3, 2, batch)).astype("float32"), rng.normal(size=5).astype("float32")
    images[1, 2, 1, 0], images[2, 0, 0, 0] = np.nan, np.inf
    expected = np.maximum(images + bias[:, None, None, None], 0)                  # NumPy's maximum propagates NaN
    np.testing.assert_array_equal(relu(images, bias), expected)


def test_rows_columns_and_scalars_are_broadcast(rng):
    x, row, column = pt.matrix("x"), pt.tensor("row", shape=(None, 1)), pt.tensor("column", shape=(1, None))
    s = pt.scalar("s")
    run = compiled([x, row, column, s], (x - column) * row + s * x)
    assert len(kernels(run)) == 1 and not elementwise_nodes(run)
    arrays = [rng.normal(size=shape).astype("float32") for shape in ((31, 5), (31, 1), (1, 5), ())]
    x, row, column, s = (array.astype("float64") for array in arrays)
    np.testing.assert_allclose(run(*arrays), (x - column) * row + s * x, rtol=1e-5, atol=1e-6)


UNARY = {
    "sqr": np.square, "sqrt": np.sqrt, "exp": np.exp, "log": np.log, "log1p": np.log1p, "expm1": np.expm1,
    "tanh": np.tanh, "abs": np.abs, "sign": np.sign, "reciprocal": np.reciprocal, "neg": np.negative,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "softplus": lambda x: np.log1p(np.exp(x)),
}


@pytest.mark.parametrize("name", UNARY)
def test_function_matches_numpy(name, rng):
    x = pt.matrix("x")
    run = compiled([x], getattr(pt, name)(x))
    assert len(kernels(run)) == 1
    values = rng.uniform(0.1, 3, size=(13, 9)).astype("float32")
    np.testing.assert_allclose(run(values), UNARY[name](values.astype("float64")), rtol=1e-6)


def test_comparisons_switches_casts_and_several_outputs(rng):
    x, y, n = pt.matrix("x"), pt.matrix("y"), pt.tensor("n", dtype="uint8", shape=(None, None))
    larger = pt.gt(x, y)
    outputs = [larger, pt.switch(larger, x, y) * 2, pt.cast(n, "float32") - x, pt.clip(x, -0.5, 0.5), x**y, pt.eq(x, y)]
    run = compiled([x, y, n], outputs)
    assert kernels(run) and not elementwise_nodes(run)
    a, b = rng.integers(1, 4, size=(2, 33, 40)).astype("float32")
    bytes_ = rng.integers(0, 256, size=a.shape).astype("uint8")
    expected = [a > b, np.maximum(a, b) * 2, bytes_ - a, np.clip(a, -0.5, 0.5), a**b, a == b]
    for result, truth in zip(run(a, b, bytes_), expected, strict=True):
        np.testing.assert_allclose(result, truth, rtol=1e-6)


def momentum_step(w, v):
    g, rate = pt.matrix("g"), pt.scalar("rate")
    new_v = np.float32(0.9) * v - rate * (g + np.float32(0.0005) * w)
    return compiled([g, rate], [], updates=[(v, new_v), (w, w + new_v)])


def test_update_is_one_pass_in_place(rng):
    arrays = rng.normal(size=(2, 90, 101)).astype("float32")
    w, v = (pytensor.shared(array, shape=array.shape) for array in arrays)
    step = momentum_step(w, v)
    assert len(kernels(step)) == 1 and not elementwise_nodes(step)
    held_w, held_v = (variable.get_value(borrow=True) for variable in (w, v))
    expected_w, expected_v = arrays.astype("float64")
    for _ in range(3):
        g = rng.normal(size=w.type.shape).astype("float32")
        step(g, np.float32(0.1))
        expected_v = 0.9 * expected_v - 0.1 * (g + 0.0005 * expected_w)
        expected_w = expected_w + expected_v
    np.testing.assert_allclose(held_w, expected_w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(held_v, expected_v, rtol=1e-5, atol=1e-6)
    assert np.shares_memory(held_w, w.get_value(borrow=True)) and np.shares_memory(held_v, v.get_value(borrow=True))


def test_in_place_update_of_strided_memory(rng):
    owner = np.asfortranarray(rng.normal(size=(90, 101)).astype("float32"))
    w, v = pytensor.shared(owner, borrow=True), pytensor.shared(np.zeros_like(owner))
    before, g = owner.astype("float64"), rng.normal(size=owner.shape).astype("float32")
    momentum_step(w, v)(g, np.float32(0.1))
    np.testing.assert_allclose(owner, before - 0.1 * (g + 0.0005 * before), rtol=1e-5, atol=1e-6)


def test_arrays_of_unequal_shape_are_refused(rng):
    x, y = pt.matrix("x"), pt.matrix("y")
    run = compiled([x, y], x * y + x)
    for shape in ((3, 1), (1, 4), (4, 3)):
        with pytest.raises(ValueError, match=r"equal shapes, got \(3, 4\)"):
            run(np.ones((3, 4), "float32"), np.ones(shape, "float32"))


def test_formula_without_c_code_is_split(rng):
    x = pt.matrix("x")
    run = compiled([x], pt.cos(x) * pt.exp(x) + 1)
    assert "Composite" not in str(run.maker.fgraph)
    values = rng.normal(size=(70, 80)).astype("float32")
    np.testing.assert_allclose(run(values), np.cos(values) * np.exp(values) + 1, rtol=1e-5)


def test_numpy_computes_small_and_float64_nodes():
    small, double = pt.tensor("small", shape=(40,)), pt.dmatrix("double")
    run = compiled([small, double], [small * 2 + 1, double * 2 + 1])
    assert not kernels(run)
    assert [output.dtype for output in run(np.ones(40, "float32"), np.ones((100, 100)))] == ["float32", "float64"]


def test_all_shapes_share_the_code_of_a_formula(monkeypatch):
    sources = set()
    load = compiler.load
    monkeypatch.setattr(compiler, "load", lambda source, name: sources.add(source) or load(source, name))
    for shape in ((5000,), (90, 101), (3, 11, 11, 96)):
        w = pytensor.shared(np.zeros(shape, "float32"), shape=shape)
        compiled([], [], updates=[(w, np.float32(0.5) * w + np.float32(1))])()
    assert len(sources) == 1


@pytest.mark.parametrize("formula", [lambda s, x, y: s * x * y, lambda s, x, y: s + x + y], ids=["product", "sum"])
def test_no_small_array_is_computed_element_by_element(formula, rng):
    """NumPy's ufuncs take at most two operands; with three, PyTensor would call a Python function per element."""
    s, x, y = pt.scalar("s"), pt.tensor("x", shape=(40,)), pt.tensor("y", shape=(40,))
    run = compiled([s, x, y], formula(s, x, y))
    assert [len(node.inputs) for node in elementwise_nodes(run)] == [2, 2]
    x, y = rng.normal(size=(2, 40)).astype("float32")
    np.testing.assert_allclose(run(np.float32(3), x, y), formula(3, x, y), rtol=1e-5, atol=1e-6)
