"""conv2d() and the other functions: values in every mode of PyTensor, layouts, and how graphs around them behave."""

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.mode import Mode
from pytensor.gradient import verify_grad
from pytensor.tensor.elemwise import DimShuffle

from alexnet.native import compiler
from alexnet.ops import avg_pool2d, batch_norm, conv2d, crop_mirror, dropout, lrn, max_pool2d
from alexnet.ops.base import ShapedOp
from tests import reference

pytestmark = [
    pytest.mark.compatibility,
    pytest.mark.filterwarnings("ignore:Explicitly requested dtype float64"),         # by PyTensor's JAX mode
]
needs_compiler = pytest.mark.skipif(not compiler.compiler_available(), reason="needs a C compiler")

MODES = {                                        # Numba is PyTensor's default
    "numba": lambda: Mode("numba", "fast_run"),
    "c": lambda: Mode("cvm", "fast_run"),
    "python": lambda: Mode("vm", "fast_run"),
    "unoptimised": lambda: "FAST_COMPILE",
    "jax": lambda: "JAX",
}


@pytest.fixture(params=MODES)
def mode(request):
    """The modes of PyTensor, in which the tests of the backends do not run."""
    if request.param != "jax":
        yield MODES[request.param]()
        return
    jax = pytest.importorskip("jax", reason="needs jax, which is not installed")
    with jax.enable_x64("float32" not in request.node.name):
        yield "JAX"


def nchw(c01b):
    return c01b.transpose(3, 0, 1, 2)


def of_layout(nchw_values, layout):
    return nchw_values if layout == "NCHW" else nchw_values.transpose(1, 2, 3, 0)


def shared(values):
    return pytensor.shared(np.ascontiguousarray(values), shape=values.shape)


def expected_convolution(x, W, stride, margins, dilation, groups):
    """NCHW in float64, of the padded and dilated arrays, subsampled if the strides differ."""
    x = np.pad(x.transpose(1, 2, 3, 0), [(0, 0), *margins, (0, 0)])
    outputs, per_group, height, width = W.shape
    dilated = np.zeros((per_group, (height - 1) * dilation[0] + 1, (width - 1) * dilation[1] + 1, outputs))
    dilated[:, :: dilation[0], :: dilation[1]] = W.transpose(1, 2, 3, 0)
    return nchw(reference.convolution(x, dilated, 1, 0, groups)[:, :: stride[0], :: stride[1]])


CONVOLUTIONS = {
    "plain": ({}, (1, 1), [(0, 0), (0, 0)]),
    "stride and padding": ({"stride": 2, "padding": 1}, (2, 2), [(1, 1), (1, 1)]),
    "pairs": ({"stride": (2, 3), "padding": (2, 1)}, (2, 3), [(2, 2), (1, 1)]),
    "same": ({"padding": "same"}, (1, 1), [(1, 1), (0, 1)]),
    "same with stride": ({"padding": "same", "stride": 2}, (2, 2), [(1, 1), (0, 1)]),
    "dilation and groups": ({"dilation": (2, 1), "groups": 2, "padding": "valid"}, (1, 1), [(0, 0), (0, 0)]),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("layout", ["NCHW", "c01b"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_conv2d_matches_formula(name, layout, dtype, rng):
    settings, strides, margins = CONVOLUTIONS[name]
    groups = settings.get("groups", 1)
    x, W = rng.normal(size=(2, 4, 7, 6)).astype(dtype), rng.normal(size=(6, 4 // groups, 3, 2)).astype(dtype)
    bias = rng.normal(size=6).astype(dtype)
    y = conv2d(shared(of_layout(x, layout)), shared(of_layout(W, layout)), bias, layout=layout, **settings)
    result = pytensor.function([], y, mode="FAST_COMPILE")()
    expected = expected_convolution(x, W, strides, margins, settings.get("dilation", (1, 1)), groups)
    expected = of_layout(expected + bias[:, None, None], layout)
    assert result.dtype == dtype and y.type.shape == expected.shape
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)


def network(x, W1, W2, bias, gamma, beta, layout="NCHW"):
    """A chain of all functions on images of 3 x 9 x 9."""
    y = lrn(pt.maximum(conv2d(x, W1, bias, padding=1, layout=layout), 0), alpha=0.1, layout=layout)
    y = conv2d(max_pool2d(y, 3, 2, layout=layout), W2, groups=2, layout=layout)
    y, _, _ = batch_norm(y, gamma, beta, relu=True, layout=layout)
    return dropout(avg_pool2d(y, 2, layout=layout), 0.3, seed=5, step=7, layout=layout)


def values_and_gradients(layout, dtype, mode, rng):
    """Return cost, outputs and gradients of the chain in NCHW, and the function."""
    x, W1 = rng.normal(size=(5, 3, 9, 9)).astype(dtype), rng.normal(size=(6, 3, 3, 3)).astype(dtype)
    W2, bias = rng.normal(size=(4, 3, 2, 2)).astype(dtype), rng.normal(size=6).astype(dtype)
    vectors = bias, *rng.normal(size=(2, 4)).astype(dtype)
    images = pt.tensor("images", dtype=dtype, shape=of_layout(x, layout).shape)
    parameters = [shared(of_layout(W, layout)) for W in (W1, W2)] + [*map(shared, vectors)]
    y = network(images, *parameters, layout=layout)
    outputs = [y, *pytensor.grad((y**2).sum(), [images, *parameters])]
    run = pytensor.function([images], outputs, mode=mode)
    results = [np.asarray(each) for each in run(np.ascontiguousarray(of_layout(x, layout)))]
    return [nchw(each) if layout == "c01b" and each.ndim == 4 else each for each in results], run


@pytest.fixture(scope="module")
def expected_values():
    """Of the NumPy references in float64: all kernels are replaced."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alexnet.ops.kernels.run_of", lambda op, node: op.reference)
        return values_and_gradients("c01b", "float64", "FAST_COMPILE", np.random.default_rng(0))[0]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["NCHW", "c01b"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_mode_computes_the_same(mode, layout, dtype, expected_values, monkeypatch, rng):
    """With C kernels or lowerings: no reference is called, and PyTensor does not warn of object mode."""
    if compiler.compiler_available():
        for op_type in ShapedOp.__subclasses__():
            for each in (op_type, *op_type.__subclasses__()):
                monkeypatch.setattr(each, "reference", None)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Numba will use object mode")
        results, _ = values_and_gradients(layout, dtype, mode, rng)
    tolerance = 1e-5 if dtype == "float32" else 1e-11
    for result, expected in zip(results, expected_values, strict=True):
        np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def test_conversions_remain_at_the_ends_of_a_chain(rng):
    """Those of images and two filters, and of their gradients and the output; none between two functions."""
    _, run = values_and_gradients("NCHW", "float32", Mode("vm", "fast_run"), rng)
    nodes = [node for node in run.maker.fgraph.apply_nodes if isinstance(node.op, DimShuffle)]
    four = [node for node in nodes if sorted(map(str, node.op.new_order)) == ["0", "1", "2", "3"]]
    assert len(four) == 3 + 3 + 1


def test_conversions_cancel_across_sums_and_concatenations(rng):
    x = pt.tensor("x", dtype="float32", shape=(2, 3, 5, 5))
    W = shared(rng.normal(size=(3, 3, 1, 1)).astype("float32"))
    both = pt.concatenate([conv2d(x, W), conv2d(x, -W)], axis=1)
    outputs = [both.mean(axis=(0, 2, 3)), conv2d(both, shared(np.ones((1, 6, 5, 5), "float32"))).sum()]
    run = pytensor.function([x], outputs, mode=Mode("vm", "fast_run"))
    nodes = [node for node in run.maker.fgraph.apply_nodes if isinstance(node.op, DimShuffle)]
    assert sum(node.op.new_order == (3, 0, 1, 2) for node in nodes) == 0
    images = rng.normal(size=(2, 3, 5, 5)).astype("float32")
    plain = pytensor.function([x], outputs, mode="FAST_COMPILE")
    for result, expected in zip(run(images), plain(images), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def test_crop_mirror_in_both_layouts(rng):
    images = rng.integers(0, 256, (4, 3, 6, 7)).astype("uint8")
    mean = rng.normal(size=(3, 6, 7)).astype("float32")
    corners = np.array([0, 1, 2, 0], "int32"), np.array([3, 0, 1, 2], "int32"), np.array([0, 1, 0, 1], "uint8")
    of_c01b = crop_mirror(of_layout(images, "c01b"), mean, *corners, 4, layout="c01b").eval(mode="FAST_COMPILE")
    result = crop_mirror(images, mean, *corners, 4).eval(mode="FAST_COMPILE")
    np.testing.assert_allclose(result[1], (images - mean)[1, :, 1:5, 0:4][:, :, ::-1], rtol=1e-6)
    np.testing.assert_array_equal(result, nchw(of_c01b))


@needs_compiler
@pytest.mark.slow
def test_crop_outside_its_image_is_refused_in_numba_mode(rng):
    images, mean = rng.integers(0, 256, (4, 3, 6, 7)).astype("uint8"), np.ones((3, 6, 7), "float32")
    rows, mirrors = pt.ivector("rows"), np.array([0, 1, 0, 1], "uint8")
    run = pytensor.function([rows], crop_mirror(shared(images), mean, rows, rows, mirrors, 4), mode=MODES["numba"]())
    result = run(np.array([0, 1, 2, 0], "int32"))
    np.testing.assert_array_equal(result[1], (images[1, :, 1:5, 1:5] - np.float32(1))[:, :, ::-1])
    with pytest.raises(ValueError, match="a crop extends beyond its image"):
        run(np.array([0, 3, 2, 0], "int32"))


@needs_compiler
@pytest.mark.slow
def test_no_images_give_empty_arrays_in_numba_mode():
    x, W = pt.tensor4("x", dtype="float32"), shared(np.ones((4, 3, 3, 3), "float32"))
    y = max_pool2d(conv2d(x, W, padding=1), 3, 2)
    run = pytensor.function([x], [y, *pytensor.grad(y.sum(), [x, W])], mode=MODES["numba"]())
    y, dx, dW = run(np.ones((0, 3, 9, 9), "float32"))
    assert y.shape == (0, 4, 4, 4) and dx.shape == (0, 3, 9, 9) and not dW.any()


@pytest.mark.slow
def test_unknown_lengths(mode, rng):
    if mode == "JAX":
        pytest.skip("JAX needs the lengths for a gradient")
    x, W = pt.tensor4("x", dtype="float64"), pt.tensor4("W", dtype="float64")
    y = lrn(max_pool2d(conv2d(x, W, padding="same", stride=2), 2))
    run = pytensor.function([x, W], [y, *pytensor.grad((y**2).sum(), [x, W])], mode=mode)
    images, filters = rng.normal(size=(2, 3, 8, 9)), rng.normal(size=(4, 3, 3, 3))
    static = lrn(max_pool2d(conv2d(shared(images), shared(filters), padding="same", stride=2), 2))
    result, dx, dW = run(images, filters)
    np.testing.assert_allclose(result, static.eval(mode="FAST_COMPILE"), rtol=1e-12)
    assert (dx.shape, dW.shape) == (images.shape, filters.shape)
    with pytest.raises(ValueError, match=r"match|cannot share"):
        run(images, filters[:, :2])


@pytest.mark.slow
def test_derivatives_pickling_and_loops(mode, rng):
    """verify_grad, a jacobian, a pickled function, and pytensor.scan around a convolution."""
    images = rng.normal(size=(2, 3, 5, 5))
    x, W = pt.tensor("x", shape=images.shape, dtype="float64"), shared(rng.normal(size=(3, 3, 3, 3)))
    verify_grad(lambda x: avg_pool2d(conv2d(x, W, stride=2, padding=1), 2), [images], rng=rng, mode=mode)
    y = conv2d(x, W, padding=1)
    jacobian = pt.jacobian(y[0, 1, 2, 2:4], x)
    states = pytensor.scan(
        lambda h, W: pt.tanh(conv2d(h, W, padding=1)), outputs_info=x, non_sequences=W, n_steps=3, return_updates=False
    )
    run = pytensor.function([x], [y, jacobian, states[-1]], mode=mode)
    result, derivative, last = map(np.asarray, pickle.loads(pickle.dumps(run))(images))
    weights = W.get_value()
    np.testing.assert_allclose(derivative[1, 0, :, 1:4, 2:5], weights[1], rtol=1e-12)
    state = images
    for _ in range(3):
        state = reference.convolution(state.transpose(1, 2, 3, 0), weights.transpose(1, 2, 3, 0), 1, 1, 1)
        state = np.tanh(nchw(state))
    np.testing.assert_allclose(last, state, rtol=1e-9)
    np.testing.assert_allclose(result, run(images)[0], rtol=0)


@needs_compiler
@pytest.mark.slow
def test_outputs_of_numba_mode_stay_valid(rng):
    """The memory of an output is reused only after its last view is gone."""
    x = pt.tensor("x", shape=(8, 3, 64, 64), dtype="float32")
    run = pytensor.function([x], conv2d(x, shared(np.ones((2, 3, 3, 3), "float32"))), mode=MODES["numba"]())
    kept = [(k, run(np.full((8, 3, 64, 64), k, "float32"))[:, 1:]) for k in range(6)]
    for k, view in kept:
        np.testing.assert_array_equal(view, 27 * k)


def in_new_process(program, **environment):
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


IMPORT = """
import os, sys, pytensor
import pytensor.tensor
flags = "floatX", "cxx", "mode", "linker", "optimizer", "blas__ldflags"
def state():
    return dict(os.environ), [getattr(pytensor.config, flag) for flag in flags], sys.meta_path[:]
before = state()
import alexnet.ops
assert state() == before, (before, state())
assert not {"numba", "jax", "alexnet.backends", "alexnet.nn"} & set(sys.modules)
"""

NO_COMPILER = """
import warnings, numpy as np, pytensor
from alexnet.ops import conv2d, lrn
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    y = lrn(conv2d(np.ones((2, 3, 5, 5), "float32"), np.ones((4, 3, 3, 3), "float32")), alpha=0)
    print(pytensor.function([], y + y.sum())().shape)
print([str(each.message)[:24] for each in caught if "no C compiler" in str(each.message)])
print([str(each.message) for each in caught if "object mode" in str(each.message)])
"""


def test_import_changes_nothing_and_is_lazy(tmp_path):
    in_new_process(IMPORT, HOME=str(tmp_path), PYTHONPATH=":".join(sys.path), PYTENSOR_FLAGS="blas__ldflags=")


@pytest.mark.slow
def test_without_a_compiler_numpy_computes_after_one_warning(tmp_path):
    output = in_new_process(NO_COMPILER, HOME=str(tmp_path), PYTHONPATH=":".join(sys.path), CC="/nonexistent/cc")
    assert output.splitlines()[-3:] == ["(2, 4, 3, 3)", "['no C compiler was found,']", "[]"]


@pytest.mark.parametrize(("call", "error"), [
    (lambda x: conv2d(x, x, layout="NHWC"), "layout must be one of NCHW, c01b, got 'NHWC'"),
    (lambda x: conv2d(x[0], x), "x must have 4 axes, NCHW, got 3"),
    (lambda x: conv2d(x, x, padding="half"), 'padding must be an integer, a pair, "valid" or "same", got \'half\''),
    (lambda x: conv2d(x, x, stride=(1, 2, 3)), "stride must be an integer or a pair of integers"),
    (lambda x: conv2d(x, x, stride=0), "stride must be at least 1, got 0"),
    (lambda x: conv2d(x, x, groups=2), "filters of 3 channels in 2 groups need 6 input channels, got 3"),
    (lambda x: conv2d(x, x, x), "the bias must have one axis"),
    (lambda x: conv2d(x, x.astype("float64")), "inputs must share one dtype"),
    (lambda x: max_pool2d(x, (2, 3)), "the size of a pooling window must be the same along rows and columns"),
    (lambda x: avg_pool2d(x, 9), "windows of size 9 need at least as many pixels, got 5"),
])
def test_invalid_arguments_are_refused(call, error):
    x = pt.tensor("x", shape=(2, 3, 5, 5), dtype="float32")
    with pytest.raises((ValueError, TypeError), match=error.replace("(", r"\(")):
        call(x)
