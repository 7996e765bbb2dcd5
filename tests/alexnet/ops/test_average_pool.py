"""Average pooling against PyTorch in float64 and finite differences, for any number of threads; rejected arguments."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.gradient import verify_grad

from alexnet.backends import mode_of
from alexnet.native import compiler
from alexnet.ops import AveragePool2D, AveragePoolGradient

pytestmark = pytest.mark.compatibility

IMAGES = np.zeros((2, 4, 4, 3), "float32")


def pool_function(size, stride, mode):
    """Return a compiled function (x, g) -> y, dx."""
    x, g = pt.tensor4("x"), pt.tensor4("g")
    y = AveragePool2D(size, stride)(x)
    return pytensor.function([x, g], [y, pytensor.grad((y * g).sum(), x)], mode=mode)


@pytest.mark.parametrize(("size", "stride", "height", "width"), [(7, 1, 7, 7), (5, 3, 14, 13), (2, 3, 9, 8)])
def test_means_and_gradient_match_pytorch(mode, size, stride, height, width, rng):
    torch = pytest.importorskip("torch")
    x = rng.normal(size=(3, height, width, 19)).astype("float32")
    images = torch.tensor(x.transpose(3, 0, 1, 2).astype("float64"), requires_grad=True)
    pooled = torch.nn.functional.avg_pool2d(images, size, stride)
    g = rng.normal(size=(3, *pooled.shape[2:], 19)).astype("float32")
    pooled.backward(torch.tensor(g.transpose(3, 0, 1, 2).astype("float64")))
    y, dx = pool_function(size, stride, mode)(x, g)
    np.testing.assert_allclose(y, pooled.detach().numpy().transpose(1, 2, 3, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dx, images.grad.numpy().transpose(1, 2, 3, 0), rtol=1e-5, atol=1e-7)


def test_gradient_matches_finite_differences(rng):
    x = rng.normal(size=(2, 7, 6, 2))
    verify_grad(AveragePool2D(3, 2), [x], rng=rng, mode=mode_of("numpy"))


@pytest.mark.skipif(not compiler.compiler_available(), reason="needs a C compiler")
def test_threads_do_not_change_the_result(rng):
    x, g = rng.normal(size=(5, 14, 14, 33)).astype("float32"), rng.normal(size=(5, 4, 4, 33)).astype("float32")
    run, found = pool_function(5, 3, mode_of("cpu")), []
    for threads in (1, 2, 3):
        compiler.use_threads(threads)
        found.append([array.copy() for array in run(x, g)])
    compiler.use_threads(None)
    for other in found[1:]:
        for array, alike in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(array, alike)


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda: AveragePool2D(0, 1), ValueError, "size must be at least 1, got 0"),
    (lambda: AveragePool2D(3, 0), ValueError, "stride must be at least 1, got 0"),
    (lambda: AveragePool2D(5, 1)(IMAGES), ValueError, "size 5 need at least as many pixels, got 4"),
    (lambda: AveragePool2D(2, 1)(IMAGES.astype("uint8")), TypeError, "x must be float32 or float64, got uint8"),
    (lambda: AveragePoolGradient(2, 1)(IMAGES[0], 5, 5), TypeError, "g must have 4 axes, got 3"),
])
def test_wrong_arguments_are_refused_with_the_value(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_gradient_of_wrong_shape_is_refused(mode):
    g = pt.tensor4("g")
    run = pytensor.function([g], AveragePoolGradient(3, 2)(g, 8, 9), mode=mode)
    with pytest.raises(ValueError, match=r"g must have \(3, 4\) rows and columns, got shape \(2, 4, 4, 3\)"):
        run(IMAGES)
