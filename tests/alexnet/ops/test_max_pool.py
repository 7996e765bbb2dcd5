"""Max pooling against a loop over windows, PyTorch and finite differences."""

from itertools import product

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.gradient import NullTypeGradError, verify_grad

from alexnet.backends import mode_of
from alexnet.native import compiler
from alexnet.ops import MaxPool2D, MaxPoolGradient
from alexnet.ops.kernels import run_of
from tests import reference

pytestmark = pytest.mark.compatibility

GEOMETRIES = [(3, 2), (2, 2), (1, 1), (2, 3), (3, 1), (5, 2)]  # overlapping, adjacent and separate windows


def pool_function(size, stride, mode, pad=0, ceil=False):
    """Return a compiled function (x, g) -> y, index, dx."""
    x, g = pt.tensor4("x"), pt.tensor4("g")
    y, index = MaxPool2D(size, stride, pad, ceil)(x)
    return pytensor.function([x, g], [y, index, pytensor.grad((y * g).sum(), x)], mode=mode)


@pytest.mark.parametrize(("size", "stride"), GEOMETRIES)
@pytest.mark.parametrize("batch", [1, 130])
def test_maximum_index_and_gradient_match_a_loop(mode, size, stride, batch, rng):
    x = rng.integers(-2, 3, size=(2, 8, 6, batch)).astype("float32")              # many ties
    y, index = reference.max_pool(x, size, stride)
    g = rng.normal(size=y.shape).astype("float32")
    result, places, dx = pool_function(size, stride, mode)(x, g)
    np.testing.assert_array_equal(result, y)
    np.testing.assert_array_equal(places, index)
    np.testing.assert_allclose(dx, reference.max_pool_gradient(x, g, size, stride), rtol=1e-5, atol=1e-6)


def test_nan_is_the_maximum(mode, rng):
    x = rng.normal(size=(1, 5, 5, 70)).astype("float32")
    x[0, 2, 2, ::2] = np.nan
    x[0, 2, 1, ::3] = np.nan
    x[0, :, :, 1] = -np.inf
    y, index = reference.max_pool(x, 3, 2)
    result, places, _ = pool_function(3, 2, mode)(x, np.ones_like(y))
    np.testing.assert_array_equal(result, y)
    np.testing.assert_array_equal(places, index)


def test_ties_and_gradient_match_pytorch(mode, rng):
    torch = pytest.importorskip("torch")
    x = rng.integers(-2, 3, size=(2, 7, 7, 5)).astype("float32")
    images = torch.tensor(x.transpose(3, 0, 1, 2).copy(), requires_grad=True)
    pooled, flat = torch.nn.functional.max_pool2d(images, 3, 2, return_indices=True)
    g = rng.normal(size=(2, 3, 3, 5)).astype("float32")
    pooled.backward(torch.tensor(g.transpose(3, 0, 1, 2)))
    y, index, dx = pool_function(3, 2, mode)(x, g)
    rows, columns = np.divmod(index, 3)
    r, s = np.arange(3)[:, None, None] * 2 + rows, np.arange(3)[:, None] * 2 + columns
    np.testing.assert_array_equal(y, pooled.detach().numpy().transpose(1, 2, 3, 0))
    np.testing.assert_array_equal(r * 7 + s, flat.numpy().transpose(1, 2, 3, 0))
    np.testing.assert_allclose(dx, images.grad.numpy().transpose(1, 2, 3, 0), rtol=1e-6, atol=1e-6)


PADDED = [(3, 2, 1, 9, 8), (3, 1, 1, 7, 7), (2, 3, 1, 8, 7), (5, 2, 2, 6, 9), (3, 2, 1, 1, 4)]


@pytest.mark.parametrize(("size", "stride", "pad", "height", "width"), PADDED)
def test_padding_is_never_the_maximum(mode, size, stride, pad, height, width, rng):
    """Maxima, their pixels and the gradient match PyTorch in float64, for negative values with many ties."""
    torch = pytest.importorskip("torch")
    x = rng.integers(-6, -1, size=(2, height, width, 70)).astype("float32")
    x[0, :, :, 3] = -np.inf                               # the index must be the image's first pixel, not padding
    images = torch.tensor(x.transpose(3, 0, 1, 2).astype("float64"), requires_grad=True)
    pooled, flat = torch.nn.functional.max_pool2d(images, size, stride, pad, return_indices=True)
    g = rng.normal(size=(2, *pooled.shape[2:], 70)).astype("float32")
    pooled.backward(torch.tensor(g.transpose(3, 0, 1, 2).astype("float64")))
    symbols = pt.tensor4("x"), pt.tensor4("g")
    maxima, places = MaxPool2D(size, stride, pad)(symbols[0])
    gradient = pytensor.grad((maxima * symbols[1]).sum(), symbols[0])
    y, index, dx = pytensor.function(symbols, [maxima, places, gradient], mode=mode)(x, g)
    rows, columns = np.divmod(np.asarray(index).astype(int), size)
    r = np.arange(y.shape[1])[:, None, None] * stride + rows - pad
    s = np.arange(y.shape[2])[:, None] * stride + columns - pad
    np.testing.assert_array_equal(y, pooled.detach().numpy().transpose(1, 2, 3, 0))
    np.testing.assert_array_equal(r * width + s, flat.numpy().transpose(1, 2, 3, 0))
    np.testing.assert_allclose(dx, images.grad.numpy().transpose(1, 2, 3, 0), rtol=1e-5, atol=1e-6)


CEIL = [                                         # size, stride, pad, height, width
    (3, 2, 0, 8, 7),                             # Caffe's GoogLeNet: an incomplete window along the rows only
    (3, 2, 1, 8, 7),                             # padded: a window that starts after the image is left out
    (2, 2, 1, 6, 5),
    (2, 3, 0, 6, 5),                             # separate windows: none starts outside the image
    (3, 1, 1, 7, 5),                             # stride 1: as without ceil
    (5, 4, 2, 5, 10),
]


@pytest.mark.parametrize(("size", "stride", "pad", "height", "width"), CEIL)
def test_incomplete_windows_match_a_loop(mode, size, stride, pad, height, width, rng):
    x = rng.integers(-6, -1, size=(2, height, width, 70)).astype("float32")       # many ties; padding would be largest
    x[0, -1, -1, 5] = np.nan
    x[1, :, :, 3] = -np.inf
    y, index = reference.max_pool(x, size, stride, pad, ceil=True)
    g = rng.normal(size=y.shape).astype("float32")
    result, places, dx = pool_function(size, stride, mode, pad, ceil=True)(x, g)
    np.testing.assert_array_equal(result, y)
    np.testing.assert_array_equal(places, index)
    expected = reference.max_pool_gradient(x, g, size, stride, pad, ceil=True)
    np.testing.assert_allclose(dx, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 7, 7, 0), (0, 7, 7, 3)])
def test_no_images_or_channels_give_empty_arrays(mode, shape):
    x = np.ones(shape, "float32")
    y, index, dx = pool_function(3, 2, mode)(x, np.ones((shape[0], 3, 3, shape[3]), "float32"))
    assert y.shape == index.shape == (shape[0], 3, 3, shape[3]) and dx.shape == shape


def test_incomplete_windows_match_pytorch(rng):
    torch = pytest.importorskip("torch")
    for size, stride, pad, height, width in CEIL:
        x = rng.normal(size=(2, height, width, 3)).astype("float32")
        pooled = torch.nn.functional.max_pool2d(
            torch.tensor(x.transpose(3, 0, 1, 2)), size, stride, pad, ceil_mode=True
        )
        y, _ = reference.max_pool(x, size, stride, pad, ceil=True)
        np.testing.assert_array_equal(y, pooled.numpy().transpose(1, 2, 3, 0))


@pytest.mark.parametrize(("pad", "ceil"), [(1, False), (0, True)])
def test_gradient_at_the_border_matches_finite_differences(pad, ceil, rng):
    x = rng.permutation(2 * 5 * 6 * 2).reshape(2, 5, 6, 2) * 0.1
    verify_grad(lambda x: MaxPool2D(3, 2, pad, ceil)(x)[0], [x], rng=rng, mode=mode_of("numpy"))


def test_gradient_matches_finite_differences(rng):
    x = rng.permutation(2 * 7 * 6 * 2).reshape(2, 7, 6, 2) * 0.1                  # no near ties
    verify_grad(lambda x: MaxPool2D(3, 2)(x)[0], [x], rng=rng, mode=mode_of("numpy"))


def test_second_derivatives_are_refused():
    x = pt.tensor4("x")
    dx = pytensor.grad((MaxPool2D(3, 2)(x)[0] ** 2).sum(), x)
    with pytest.raises(NullTypeGradError, match="second derivatives of max pooling"):
        pytensor.grad(dx.sum(), x)


@pytest.mark.parametrize(("ceil", "columns"), [(False, 13), (True, 14)])
def test_static_and_symbolic_shapes_count_the_windows(ceil, columns):
    y, index = MaxPool2D(3, 2, ceil=ceil)(pt.tensor("x", shape=(96, 55, 28, None)))
    assert y.type.shape == index.type.shape == (96, 27, columns, None)
    assert index.type.dtype == "uint8"
    x = pt.tensor4("x")
    shape = pytensor.function([x], MaxPool2D(3, 2, 0, ceil)(x)[0].shape, mode=mode_of("numpy"))
    assert tuple(shape(np.zeros((1, 55, 28, 1), "float32"))) == (1, 27, columns, 1)


IMAGES = np.zeros((2, 4, 4, 3), "float32")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MaxPool2D(0, 1), ValueError, "size must be at least 1, got 0"),
        (lambda: MaxPool2D(17, 1), ValueError, "at most 16 .*, got 17"),
        (lambda: MaxPool2D(3, 0), ValueError, "stride must be at least 1, got 0"),
        (lambda: MaxPool2D(3, 1, -1), ValueError, "pad must be at least 0, got -1"),
        (lambda: MaxPool2D(3, 1, 3), ValueError, "pad must be less than the size, 3, got 3"),
        (lambda: MaxPool2D(5, 1)(IMAGES), ValueError, "size 5 need at least as many pixels, got 4"),
        (lambda: MaxPool2D(7, 1, 1)(IMAGES), ValueError, "size 7 need at least as many pixels, got 6 padded"),
        (lambda: MaxPool2D()(IMAGES.astype("uint8")), TypeError, "x must be float32 or float64, got uint8"),
        (lambda: MaxPool2D()(IMAGES[0]), TypeError, "x must have 4 axes, got 3"),
        (lambda: MaxPoolGradient()(IMAGES, IMAGES, 9, 9), TypeError, "index must be uint8, got float32"),
    ],
)
def test_wrong_arguments_are_refused_with_the_value(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_gradient_of_wrong_shape_is_refused(mode):
    g, index = pt.tensor4("g"), pt.tensor4("index", dtype="uint8")
    run = pytensor.function([g, index], MaxPoolGradient(3, 2)(g, index, 9, 8), mode=mode)
    with pytest.raises(ValueError, match=r"\(4, 3\) rows and columns"):
        run(IMAGES, IMAGES.astype("uint8"))


@pytest.mark.skipif(not compiler.compiler_available(), reason="needs a C compiler")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("nan", [False, True])
def test_kernel_equals_reference_for_few_and_many_images(dtype, nan, rng):
    """Windows of few images are copied before they are pooled, except at the edges and at large strides."""
    settings = product((2, 3), (1, 2, 3, 5), (0, 1), (False, True), (1, 5, 16, 17))
    for size, stride, pad, ceil, batch in settings:
        images = rng.integers(-3, 4, (2, 7, 150, batch)).astype(dtype)
        if nan:
            images[1, 2, 70, 0] = np.nan
        op = MaxPool2D(size, stride, pad, ceil)
        node = op.make_node(pt.tensor4(dtype=dtype))
        for result, expected in zip(run_of(op, node)(images), op.reference(images), strict=True):
            np.testing.assert_array_equal(result, expected, err_msg=str((size, stride, pad, ceil, batch)))
