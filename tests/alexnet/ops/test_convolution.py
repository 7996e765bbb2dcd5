"""Convolution and its gradients against nested loops, PyTorch and finite differences."""

from typing import NamedTuple

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.gradient import verify_grad

from alexnet.backends import mode_of
from alexnet.ops import Convolution, ConvolutionFilterGradient, ConvolutionInputGradient
from tests import reference

pytestmark = pytest.mark.compatibility


class Case(NamedTuple):
    channels: int
    height: int
    width: int
    batch: int
    filter_height: int
    filter_width: int
    outputs: int
    stride: int = 1
    pad: int = 0
    groups: int = 1

    @property
    def geometry(self):
        return self.stride, self.pad, self.groups

    def arrays(self, rng, dtype="float32"):
        """Return random x and W, and g of the output's shape."""
        x = rng.normal(size=(self.channels, self.height, self.width, self.batch)).astype(dtype)
        W_shape = self.channels // self.groups, self.filter_height, self.filter_width, self.outputs
        W = rng.normal(size=W_shape).astype(dtype)
        y_shape = Convolution(*self.geometry)(x, W).type.shape
        return x, W, rng.normal(size=y_shape).astype(dtype)


CASES = [
    Case(1, 1, 1, 1, 1, 1, 1),
    Case(3, 11, 12, 5, 5, 3, 7, stride=4),                     # the right and bottom pixels are unused
    Case(4, 6, 5, 1, 5, 5, 6, pad=2, groups=2),
    Case(6, 5, 4, 17, 3, 3, 9, stride=2, pad=1, groups=3),
    Case(2, 4, 4, 3, 2, 1, 5, stride=3, pad=2),                # some windows are entirely in the padding
    Case(5, 1, 1, 50, 1, 1, 13),                               # a dense layer
    Case(2, 4, 8, 31, 2, 5, 9, stride=2, pad=1),               # XLA aborts on its usual input gradient
]


@pytest.mark.parametrize("case", CASES)
def test_convolution_and_gradients_match_nested_loops(mode, case, rng):
    arrays = case.arrays(rng)
    x, W, g = (pt.tensor4(name, dtype="float32") for name in ("x", "W", "g"))
    y = Convolution(*case.geometry)(x, W)
    run = pytensor.function([x, W, g], [y, *pytensor.grad((y * g).sum(), [x, W])], mode=mode)
    expected = [reference.convolution(*arrays[:2], *case.geometry)]
    expected += reference.convolution_gradients(*arrays, *case.geometry)
    for result, truth in zip(run(*arrays), expected, strict=True):
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, truth, rtol=1e-4, atol=1e-5 * np.abs(truth).max())


def test_float64_is_computed_in_float64(mode, rng):
    x, W, _ = CASES[3].arrays(rng, "float64")
    y = pytensor.function([], Convolution(*CASES[3].geometry)(x, W), mode=mode)()
    np.testing.assert_allclose(y, reference.convolution(x, W, *CASES[3].geometry), rtol=1e-12, atol=1e-12)


def test_convolution_matches_pytorch(mode, rng):
    torch = pytest.importorskip("torch")
    x, W, _ = CASES[3].arrays(rng)
    ours = pytensor.function([], Convolution(2, 1, 3)(x, W), mode=mode)()
    theirs = torch.nn.functional.conv2d(
        torch.tensor(x.transpose(3, 0, 1, 2)), torch.tensor(W.transpose(3, 0, 1, 2)), stride=2, padding=1, groups=3
    )
    np.testing.assert_allclose(ours, theirs.numpy().transpose(1, 2, 3, 0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", [Case(4, 4, 3, 2, 3, 2, 4, pad=1, groups=2), Case(2, 6, 5, 1, 2, 3, 3, stride=2)])
def test_gradients_match_finite_differences(case, rng):
    x, W, g = case.arrays(rng, "float64")
    forward, to_input, to_filter = (
        op(*case.geometry) for op in (Convolution, ConvolutionInputGradient, ConvolutionFilterGradient)
    )
    for function, arrays in (
        (forward, (x, W)),
        (lambda W, g: to_input(W, g, *x.shape[1:3]), (W, g)),
        (lambda x, g: to_filter(x, g, *W.shape[1:3]), (x, g)),
    ):
        verify_grad(function, arrays, rng=rng, mode=mode_of("numpy"))


def test_static_shapes_with_unknown_batch():
    x, W = pt.tensor("x", shape=(3, 227, 227, None)), pt.tensor("W", shape=(3, 11, 11, 96))
    y = Convolution(stride=4)(x, W)
    dx, dW = pytensor.grad(y.sum(), [x, W])
    assert [v.owner.outputs[0].type.shape for v in (y, dx, dW)] == [(96, 55, 55, None), x.type.shape, W.type.shape]


def test_symbolic_shape_is_inferred_without_convolving():
    x, W = pt.tensor4("x"), pt.tensor4("W")
    shape = pytensor.function([x, W], Convolution(2, 1, 2)(x, W).shape, mode=mode_of("numpy"))
    assert not any(isinstance(node.op, Convolution) for node in shape.maker.fgraph.toposort())
    assert shape(np.zeros((4, 9, 8, 3), "f4"), np.zeros((2, 3, 2, 6), "f4")).tolist() == [6, 5, 5, 3]


IMAGES, FILTERS = np.zeros((4, 5, 5, 2), "float32"), np.zeros((4, 3, 3, 6), "float32")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Convolution(stride=0), ValueError, "stride must be at least 1, got 0"),
        (lambda: Convolution(stride=1.5), TypeError, "stride must be an integer, got 1.5"),
        (lambda: Convolution(pad=-1), ValueError, "pad must be at least 0, got -1"),
        (lambda: Convolution(groups=0), ValueError, "groups must be at least 1, got 0"),
        (lambda: Convolution()(IMAGES.astype("int32"), FILTERS), TypeError, "x must be float32 or float64, got int32"),
        (lambda: Convolution()(IMAGES, FILTERS[0]), TypeError, "W must have 4 axes, got 3"),
        (lambda: Convolution()(IMAGES, FILTERS.astype("float64")), TypeError, "one dtype, got float32, float64"),
        (lambda: Convolution(groups=2)(IMAGES, FILTERS), ValueError, "need 8 input channels, got 4"),
        (lambda: Convolution(groups=4)(IMAGES, FILTERS[:1]), ValueError, "multiple of groups=4, got 6"),
        (lambda: Convolution()(IMAGES[:, :2], FILTERS), ValueError, "size 3 need at least as many pixels, got 2"),
        (lambda: ConvolutionInputGradient()(FILTERS, IMAGES, 5, 5), ValueError, "the gradient has 4"),
        (lambda: ConvolutionFilterGradient()(IMAGES, IMAGES, 3, 3), ValueError, "must have 3 outputs .* got 5"),
    ],
)
def test_wrong_arguments_are_refused_with_the_value(make, error, message):
    with pytest.raises(error, match=message):
        make()


EMPTY = [                                        # shapes of images and filters
    ((4, 5, 5, 0), (2, 3, 3, 6)),                # no images
    ((0, 5, 5, 2), (0, 3, 3, 6)),                # no terms
    ((4, 5, 5, 2), (2, 3, 3, 0)),                # no outputs
]


@pytest.mark.parametrize(("x_shape", "W_shape"), EMPTY)
def test_sums_without_terms_are_zero(mode, x_shape, W_shape):
    x, W, g = (pt.tensor4(name, dtype="float32") for name in ("x", "W", "g"))
    y = Convolution(1, 1, 2)(x, W)
    run = pytensor.function([x, W, g], [y, *pytensor.grad((y * g).sum(), [x, W])], mode=mode)
    y_shape = W_shape[3], 5, 5, x_shape[3]
    results = run(*(np.ones(shape, "float32") for shape in (x_shape, W_shape, y_shape)))
    assert [result.shape for result in results] == [y_shape, x_shape, W_shape]
    assert not any(np.any(result) for result in results)


def test_wrong_shapes_are_refused_at_run_time(mode):
    x, W = pt.tensor4("x"), pt.tensor4("W")
    run = pytensor.function([x, W], Convolution(groups=2)(x, W), mode=mode)
    with pytest.raises(ValueError, match="input"):
        run(IMAGES, FILTERS)
