"""The CPU backend on a complete training step: which Ops have kernels, and results that do not depend on threads."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.builders import OpFromGraph
from pytensor.tensor.blockwise import Blockwise

from alexnet.backends import mode_of
from alexnet.backends.cpu.linker import CpuKernel
from alexnet.native import compiler
from alexnet.ops import Convolution, CropMirror, InvertedDropout, LocalResponseNorm, MaxPool2D

pytestmark = [
    pytest.mark.compatibility,
    pytest.mark.skipif(not compiler.compiler_available(), reason="needs a C compiler"),
]
BATCH, FEATURES = 37, 16 * 5 * 5
LARGE = 2000                                                   # elements for one BATCH


def training_step(backend):
    """Return (step, parameters) of a small AlexNet; step takes images, corner, mirrors and labels."""
    rng = np.random.default_rng(1)
    shapes = [(3, 3, 3, 8), (4, 3, 3, 16), (16,), (FEATURES, 50), (50,), (50, 10)]
    W1, W2, b2, W3, b3, W4 = parameters = [
        pytensor.shared(rng.normal(size=shape, scale=0.1).astype("float32"), shape=shape) for shape in shapes
    ]
    images, corner = pt.tensor("images", shape=(3, 28, 28, None), dtype="uint8"), pt.ivector("corner")
    mirrors, labels = pt.vector("mirrors", dtype="uint8"), pt.ivector("labels")
    x = CropMirror(25)(images, np.full((3, 28, 28), 128, "float32"), corner, corner, mirrors)
    x = LocalResponseNorm()(pt.maximum(MaxPool2D(3, 2)(Convolution(1, 1)(x, W1))[0], 0))
    x = MaxPool2D(3, 2)(Convolution(1, 1, 2)(x, W2))[0]
    x = pt.maximum(x + b2.dimshuffle(0, "x", "x", "x"), 0).reshape((FEATURES, x.shape[3]))
    x = InvertedDropout()(pt.maximum(W3.T @ x + b3.dimshuffle(0, "x"), 0), 5, 6)
    log_p = pt.special.log_softmax(W4.T @ x, axis=0)
    cost = -log_p[labels, pt.arange(labels.shape[0])].mean()
    updates = []
    for w, g in zip(parameters, pytensor.grad(cost, parameters), strict=True):
        v = pytensor.shared(np.zeros(w.type.shape, "float32"), shape=w.type.shape)
        new_v = np.float32(0.9) * v - np.float32(0.01) * (g + np.float32(0.0005) * w)
        updates += [(v, new_v), (w, w + new_v)]
    inputs = [images, corner, mirrors, labels]
    return pytensor.function(inputs, cost, updates=updates, mode=mode_of(backend)), parameters


def trained(backend, steps=3):
    """Return the costs of some steps and the final parameters."""
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (3, 28, 28, BATCH)).astype("uint8")
    corner, mirrors = rng.integers(0, 4, BATCH).astype("int32"), rng.integers(0, 2, BATCH).astype("uint8")
    labels = rng.integers(0, 10, BATCH).astype("int32")
    step, parameters = training_step(backend)
    costs = [step(images, corner, mirrors, labels) for _ in range(steps)]
    return [np.array(costs), *(w.get_value() for w in parameters)]


def test_training_step_matches_numpy():
    for result, expected in zip(trained("cpu"), trained("numpy"), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-5)


def test_threads_do_not_change_a_training_step():
    try:
        compiler.use_threads(1)
        with_one = trained("cpu")
        compiler.use_threads(2)
        with_two = trained("cpu")
    finally:
        compiler.use_threads(None)
    for one, two in zip(with_one, with_two, strict=True):
        np.testing.assert_array_equal(one, two)


VIEWS = ("Shape_i", "ExpandDims", "DimShuffle", "Reshape", "MatrixTranspose")
LOSS = ("Alloc", "AdvancedInc")


def test_kernels_compute_all_large_arrays():
    """Exceptions are views and the (10, batch) arrays of the loss."""
    step, _ = training_step("cpu")
    for node in step.maker.fgraph.toposort():
        sizes = [np.prod([BATCH if n is None else n for n in v.type.shape]) for v in node.inputs + node.outputs]
        small = all(size < LARGE for size in sizes)
        assert small or isinstance(node.op, CpuKernel) or str(node.op).startswith(VIEWS + LOSS), node
        assert not isinstance(node.op, Blockwise), node


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_inner_graphs_are_inlined(backend):
    """PyTensor's softmax would be compiled with Numba at its first call."""
    step, _ = training_step(backend)
    assert not any(isinstance(node.op, OpFromGraph) for node in step.maker.fgraph.toposort())


def test_softmax_of_large_logits_is_finite():
    x = pt.tensor("x", shape=(10, None), dtype="float32")
    both = [pt.special.softmax(x, axis=0), pt.special.log_softmax(x, axis=0)]
    run = pytensor.function([x], both, mode=mode_of("cpu"))
    probability, log_probability = run(np.float32(1e4) * np.eye(10, dtype="float32"))
    np.testing.assert_array_equal(probability, np.eye(10))
    np.testing.assert_array_equal(log_probability, np.float32(1e4) * (np.eye(10) - 1))


@pytest.mark.parametrize("axis", [None, (1, 2, 3), (3,), (0, 1), (0, 2)])
@pytest.mark.parametrize("batch", [1, 20000])
def test_sum_over_any_axes_matches_float64(axis, batch, rng):
    x = pt.tensor4("x")
    run = pytensor.function([x], x.sum(axis=axis), mode=mode_of("cpu"))
    values = (rng.normal(size=(3, 5, 2, batch)) + 1).astype("float32")
    result = run(values)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, values.astype("float64").sum(axis=axis), rtol=2e-6)


def test_product_of_transposed_matrices(rng):
    a, b = pt.matrix("a"), pt.matrix("b")
    run = pytensor.function([a, b], [a.T @ b, b.T @ a], mode=mode_of("cpu"))
    a, b = rng.normal(size=(2, 30, 20)).astype("float32")
    np.testing.assert_allclose(run(a, b)[0], a.T @ b, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run(a, b)[1], b.T @ a, rtol=1e-5, atol=1e-5)


def test_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend must be one of cpu, numpy, jax, got 'tpu'"):
        mode_of("tpu")
