"""The random tests of the Ops: graph, shapes, expected values, and bounds of the errors.

The expected values are computed in float64 from the formula in the docstring of the Op, by other NumPy calls than those
of its reference.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np
import pytensor
import pytensor.tensor as pt
from numpy.lib.stride_tricks import sliding_window_view

from alexnet.ops import (
    AveragePool2D,
    BatchNorm2D,
    Convolution,
    CropMirror,
    InvertedDropout,
    LocalResponseNorm,
    MaxPool2D,
    conv2d,
)
from alexnet.ops.inverted_dropout import keys, random_words
from alexnet.ops.kernels import convolution as kernels
from tests import reference
from tests.fuzz.cases import BATCHES, KINDS, LAYOUTS, Choose, Rounding, laid_out, pick, values

BACKENDS = "numpy", "cpu", "jax", "numba"
Expected = list[tuple[np.ndarray, np.ndarray | float]]               # values and bounds of their errors


class Target(ABC):
    """A function of arrays, with gradients. Its settings are hashable, and one compiled function serves all shapes."""

    name: str
    backends: tuple[str, ...] = BACKENDS
    dtypes: tuple[str, ...] = ("float32", "float64")
    kinds: tuple[str, ...] = KINDS
    refuses_shapes = True                        # arrays whose shapes do not match are refused

    @abstractmethod
    def settings(self, choose: Choose) -> tuple:
        """Return the constants of the Op."""

    @abstractmethod
    def graph(self, settings: tuple, dtype: str, shapes: Sequence[tuple[int | None, ...]]) -> tuple[list, list]:
        """Return symbolic inputs, of these static shapes, and outputs."""

    @abstractmethod
    def shapes(self, choose: Choose, settings: tuple) -> list[tuple[int, ...]]:
        """Return the shapes of the inputs."""

    @abstractmethod
    def expected(
        self, settings: tuple, arrays: Sequence[np.ndarray], results: Sequence[np.ndarray], rounding: Rounding
    ) -> Expected:
        """Return the expected outputs and the bounds of the errors; a bound of 0 demands equality."""

    def compiled(self, settings: tuple, dtype: str, mode, shapes: Sequence[tuple[int | None, ...]]):
        """Return the compiled function of the graph."""
        inputs, outputs = self.graph(settings, dtype, shapes)
        return pytensor.function(inputs, outputs, mode=mode, on_unused_input="ignore")

    def arrays(self, choose: Choose, settings: tuple, shapes: list[tuple[int, ...]], dtype: str) -> list[np.ndarray]:
        """Return the inputs, with a random kind of values and a random memory layout for each."""
        rng = np.random.default_rng(choose(0, 2**32 - 1))
        return [
            laid_out(values(rng, shape, pick(choose, self.kinds), dtype), pick(choose, LAYOUTS)) for shape in shapes
        ]


def tensors(names: str, dtype: str, shapes: Sequence[tuple[int | None, ...]]) -> list:
    """Return a symbolic variable for each name."""
    return [pt.tensor(name, dtype=dtype, shape=shape) for name, shape in zip(names, shapes, strict=False)]


class Geometry(NamedTuple):
    """Stride, pad and groups of a convolution."""

    stride: int
    pad: int
    groups: int


def taps(x_shape, W_shape, geometry):
    """Yield (i, j, rows, columns): the pixels of the padded image that tap (i, j) multiplies, one per output."""
    stride, pad, _ = geometry
    out = [(n + 2 * pad - size) // stride + 1 for n, size in zip(x_shape[1:3], W_shape[1:3], strict=True)]
    for i, j in product(range(W_shape[1]), range(W_shape[2])):
        yield i, j, slice(i, i + stride * (out[0] - 1) + 1, stride), slice(j, j + stride * (out[1] - 1) + 1, stride)


def correlated(x, W, geometry):
    """Return x * W in float64."""
    stride, pad, groups = geometry
    x, W = x.astype(np.float64), W.astype(np.float64)
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows = sliding_window_view(padded, W.shape[1:3], axis=(1, 2))[:, ::stride, ::stride]
    parts = [
        np.einsum("chwbij,cijo->ohwb", xg, Wg, optimize=True)
        for xg, Wg in zip(np.split(windows, groups), np.split(W, groups, axis=3), strict=True)
    ]
    return np.concatenate(parts)


def correlation_gradients(x, W, g, geometry):
    """Return the gradients of sum(g * (x * W)) with respect to x and W, in float64."""
    _, pad, groups = geometry
    x, W, g = (array.astype(np.float64) for array in (x, W, g))
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    dx, dW = np.zeros_like(padded), np.zeros_like(W)
    of_group = [np.split(array, groups, axis) for array, axis in ((padded, 0), (W, 3), (g, 0), (dx, 0), (dW, 3))]
    for i, j, rows, columns in taps(x.shape, W.shape, geometry):
        for xg, Wg, gg, dxg, dWg in zip(*of_group, strict=True):
            dxg[:, rows, columns] += np.einsum("co,ohwb->chwb", Wg[:, i, j], gg, optimize=True)
            dWg[:, i, j] = np.einsum("chwb,ohwb->co", xg[:, rows, columns], gg, optimize=True)
    return dx[:, pad : pad + x.shape[1], pad : pad + x.shape[2]], dW


def largest(*arrays: np.ndarray) -> float:
    """Return the sum of the largest absolute values of arrays."""
    return sum(float(np.abs(array).max(initial=0)) for array in arrays)


class ConvolutionTarget(Target):
    """y = x * W, dx and dW. Bound: each is a float sum of products (Rounding.of_sum).

    Where the cpu kernels use Winograd transforms, the bound is that of the target winograd.
    """

    name = "convolution"

    def settings(self, choose):
        return Geometry(choose(1, 4), choose(0, 3), choose(1, 3))

    def graph(self, settings, dtype, shapes):
        x, W, g = tensors("xWg", dtype, shapes)
        y = Convolution(*settings)(x, W)
        return [x, W, g], [y, *pytensor.grad((y * g).sum(), [x, W])]

    def shapes(self, choose, settings):
        stride, pad, groups = settings
        channels, outputs = groups * choose(0, 5), groups * choose(0, 9)
        rows, columns = choose(1, 5), choose(1, 5)
        height, width = (max(size - 2 * pad, 1) + choose(0, 9) for size in (rows, columns))
        batch = pick(choose, (0, *BATCHES))
        out = [(n + 2 * pad - size) // stride + 1 for n, size in ((height, rows), (width, columns))]
        return [
            (channels, height, width, batch), (channels // groups, rows, columns, outputs), (outputs, *out, batch)
        ]

    def expected(self, settings, arrays, results, rounding):
        x, W, g = arrays
        magnitudes = [np.abs(array) for array in arrays]
        truth = [correlated(x, W, settings), *correlation_gradients(*arrays, settings)]
        sizes = correlated(*magnitudes[:2], settings), *correlation_gradients(*magnitudes, settings)
        filter_terms = W.shape[0] * W.shape[1] * W.shape[2]
        image_terms = W.shape[3] // settings.groups * W.shape[1] * W.shape[2]
        terms = filter_terms, image_terms, g.shape[1] * g.shape[2] * g.shape[3]
        factors = largest(x, W), largest(W, g), largest(x, g)
        bounds = [rounding.of_sum(n + 1, *each) for n, *each in zip(terms, sizes, factors, strict=True)]
        if rounding.backend in ("cpu", "numba") and x.dtype == np.float32 and x.size and W.size:
            layer = kernels.Sizes(*x.shape, W.shape[3], *W.shape[1:3], *settings)
            transformed = winograd_bounds(*magnitudes, settings)
            for n, name in enumerate(PASSES):
                if self.uses_winograd(name, layer):
                    bounds[n] = np.maximum(bounds[n], transformed[n])
        return list(zip(truth, bounds, strict=True))

    def uses_winograd(self, name, sizes):
        """Return whether the kernels compute a pass by Winograd transforms."""
        return kernels.winograd_pays(name, sizes)


PASSES = "forward", "input_gradient", "filter_gradient"


def winograd_bounds(x, W, g, geometry):
    """Return bounds of y, dx and dW by Winograd transforms, from the absolute values of the arrays.

    A transform mixes the pixels of a tile. So the error of an output is bounded by the largest pixel of its image times
    the sum of its filter, and that of a filter gradient by the largest pixel times the sum of the gradient. The factor
    is one rounding of a transformed value, amplified by the matrices of winograd.h with the worst signs:
    (max |E'| (max |E| / |N| * sum |B|)) ** 2, 217 for three taps and 1769 for five.
    """
    stride, _, groups = geometry
    factor = (1769 if W.shape[1] / stride > 3 else 217) * 2.0**-24
    largest_x, largest_g = x.max((1, 2), initial=0), g.max((1, 2), initial=0)      # (channel, image)
    filters, gradients = W.sum((1, 2)), g.sum((1, 2))                              # (channel, output), (output, image)
    y, dx, dW = [], [], []
    for xg, Wg, gg, sums in zip(
        np.split(largest_x, groups), np.split(filters, groups, axis=1), np.split(largest_g, groups),
        np.split(gradients, groups), strict=True,
    ):
        y.append(Wg.T @ xg)
        dx.append(Wg @ gg)
        dW.append(xg @ sums.T)
    over_pixels = np.concatenate(y)[:, None, None], np.concatenate(dx)[:, None, None]
    return [factor * bound + 1e-36 for bound in (*over_pixels, np.concatenate(dW, axis=1)[:, None, None])]


class WinogradTarget(ConvolutionTarget):
    """The kernels with Winograd transforms, wherever they are possible; elsewhere the direct sums."""

    name = "winograd"
    backends = ("cpu",)
    dtypes = ("float32",)
    kinds = "normal", "whole", "zeros", "mixed"

    def settings(self, choose):
        return Geometry(choose(1, 4), choose(0, 4), choose(1, 3))

    def compiled(self, settings, dtype, mode, shapes):
        return partial(self.run, settings)

    def uses_winograd(self, name, sizes):
        return kernels.winograd_can(name, sizes)

    def run(self, settings, x, W, g):
        """Return y, dx and dW. They start as NaN, so that elements that are not written show."""
        x, W, g = map(np.ascontiguousarray, (x, W, g))
        sizes = kernels.Sizes(*x.shape, W.shape[3], *W.shape[1:3], *settings)
        inputs, results = ((x, W), (W, g), (x, g)), [np.full_like(array, np.nan) for array in (g, x, W)]
        for name, pair, out in zip(PASSES, inputs, results, strict=True):
            getattr(kernels, name)(*pair, *settings, out, kernels.winograd_can(name, sizes))
        return results

    def shapes(self, choose, settings):
        stride, pad, groups = settings
        channels, outputs = groups * choose(1, 5), groups * choose(1, 20)
        size = pick(choose, (2, 4)) * stride + choose(1, stride)                   # three or five taps in a phase
        height, width = (max(size - 2 * pad, 1) + choose(0, 14) for _ in range(2))
        out = [(n + 2 * pad - size) // stride + 1 for n in (height, width)]
        batch = pick(choose, BATCHES)
        return [(channels, height, width, batch), (channels // groups, size, size, outputs), (outputs, *out, batch)]


class DenseTarget(ConvolutionTarget):
    """Images and filters of one pixel: a dense layer, for batches on both sides of the limit of dense.c."""

    name = "dense"

    def settings(self, choose):
        return Geometry(1, 0, 1)

    def shapes(self, choose, settings):
        inputs, outputs, batch = choose(1, 300), choose(1, 150), pick(choose, BATCHES)
        return [(inputs, 1, 1, batch), (inputs, 1, 1, outputs), (outputs, 1, 1, batch)]


class Conv2dTarget(Target):
    """conv2d(): layouts, strides and paddings of each axis, dilation, bias. Bound: float sums, as for convolution."""

    name = "conv2d"

    def settings(self, choose):
        padding = pick(choose, ["same", "valid", (choose(0, 2), choose(0, 2)), choose(0, 2)])
        return (
            pick(choose, ["NCHW", "c01b"]), pick(choose, [1, 2, (1, 2), (3, 2), (2, 4)]), padding,
            pick(choose, [1, 2, (1, 3)]), choose(1, 2),
        )

    def graph(self, settings, dtype, shapes):
        layout, stride, padding, dilation, groups = settings
        x, W, g = tensors("xWg", dtype, shapes)
        b = pt.vector("b", dtype=dtype)
        y = conv2d(x, W, b, stride, padding, dilation, groups, layout)
        return [x, W, g, b], [y, *pytensor.grad((y * g).sum(), [x, W, b])]

    def geometry(self, settings, x_shape, W_shape):
        """Return strides, margins, dilations, and the shape (rows, columns) of the output."""
        _, stride, padding, dilation, _ = settings
        strides, dilations = ((each, each) if isinstance(each, int) else each for each in (stride, dilation))
        spans = [(n - 1) * step + 1 for n, step in zip(W_shape[1:3], dilations, strict=True)]
        if padding == "same":
            missing = [
                max((-(-n // step) - 1) * step + span - n, 0)
                for n, step, span in zip(x_shape[1:3], strides, spans, strict=True)
            ]
            margins = [(n // 2, n - n // 2) for n in missing]
        else:
            pads = 0 if padding == "valid" else padding
            margins = [(n, n) for n in ((pads, pads) if isinstance(pads, int) else pads)]
        out = [
            (n + sum(margin) - span) // step + 1
            for n, margin, span, step in zip(x_shape[1:3], margins, spans, strides, strict=True)
        ]
        return strides, margins, dilations, out

    def shapes(self, choose, settings):
        layout, *_, groups = settings
        channels, outputs, batch = groups * choose(1, 3), groups * choose(1, 4), pick(choose, (1, 2, 5, 16, 17))
        W = channels // groups, choose(1, 4), choose(1, 4), outputs
        x = channels, W[1] * 3 + choose(0, 5), W[2] * 3 + choose(0, 5), batch
        *_, out = self.geometry(settings, x, W)
        shapes = [x, W, (outputs, *out, batch)]
        if layout == "NCHW":
            shapes = [(shape[3], *shape[:3]) for shape in shapes]
        return [*shapes, (outputs,)]

    def dense_form(self, settings, arrays):
        """Return padded images, dilated filters and the gradient in c01b, as of a convolution with stride 1."""
        x, W, g = arrays[:3]
        if settings[0] == "NCHW":
            x, W, g = (array.transpose(1, 2, 3, 0) for array in (x, W, g))
        strides, margins, dilations, _ = self.geometry(settings, x.shape, W.shape)
        padded = np.pad(x.astype(np.float64), ((0, 0), *margins, (0, 0)))
        spans = [(n - 1) * step + 1 for n, step in zip(W.shape[1:3], dilations, strict=True)]
        filters = np.zeros((W.shape[0], *spans, W.shape[3]))
        filters[:, :: dilations[0], :: dilations[1]] = W
        rows, columns = (n - span + 1 for n, span in zip(padded.shape[1:3], spans, strict=True))
        spread = np.zeros((g.shape[0], rows, columns, g.shape[3]))
        spread[:, :: strides[0], :: strides[1]] = g
        return padded, filters, spread, strides, margins, dilations

    def values(self, settings, arrays):
        """Return y, dx, dW and db in float64."""
        groups = settings[-1]
        x, W, g, strides, margins, dilations = self.dense_form(settings, arrays)
        y = correlated(x, W, (1, 0, groups))[:, :: strides[0], :: strides[1]]
        dx, dW = correlation_gradients(x, W, g, (1, 0, groups))
        (top, bottom), (left, right) = margins
        dx = dx[:, top : dx.shape[1] - bottom, left : dx.shape[2] - right]
        dW = dW[:, :: dilations[0], :: dilations[1]]
        y = y + arrays[3].astype(np.float64)[:, None, None, None]
        if settings[0] == "NCHW":
            y, dx, dW = (array.transpose(3, 0, 1, 2) for array in (y, dx, dW))
        return y, dx, dW, g.sum((1, 2, 3))

    def expected(self, settings, arrays, results, rounding):
        truth = self.values(settings, arrays)
        magnitudes = self.values(settings, [np.abs(array) for array in arrays])
        x, W, g, _ = arrays
        images = g.size // len(truth[3])
        W_terms = W.size // len(truth[3])
        terms = W_terms + 2, W.size // W_terms * W_terms + 2, images + 1, images + 1
        factors = largest(x, W), largest(W, g), largest(x, g), 1.0
        bounds = [rounding.of_sum(n, *each) for n, *each in zip(terms, magnitudes, factors, strict=True)]
        return list(zip(truth, bounds, strict=True))


class Pooling(NamedTuple):
    """Size, stride, pad and rounding of a pooling."""

    size: int
    stride: int
    pad: int
    ceil: bool


class MaxPoolTarget(Target):
    """The maximum and its index are exact; the gradient is a float sum of the windows that cover a pixel."""

    name = "max_pool"
    kinds = (*KINDS, "not finite")

    def settings(self, choose):
        size = choose(1, 6)
        return Pooling(size, choose(1, 5), choose(0, size - 1), bool(choose(0, 1)))

    def graph(self, settings, dtype, shapes):
        x, g = tensors("xg", dtype, shapes)
        y, index = MaxPool2D(*settings)(x)
        return [x, g], [y, index, pytensor.grad((y * g).sum(), x, disconnected_inputs="ignore")]

    def counts(self, settings, height, width):
        """Return the numbers of windows along both axes."""
        return [len(reference.windows(n, *settings)) for n in (height, width)]

    def shapes(self, choose, settings):
        least = max(settings.size - 2 * settings.pad, 1)
        channels, height, width = choose(1, 3), least + choose(0, 8), least + choose(0, 30)
        batch = pick(choose, (0, 1, 2, 3, 5, 15, 16, 17, 63, 64, 65))
        return [(channels, height, width, batch), (channels, *self.counts(settings, height, width), batch)]

    def arrays(self, choose, settings, shapes, dtype):
        rng = np.random.default_rng(choose(0, 2**32 - 1))
        kind = pick(choose, self.kinds)
        x = values(rng, shapes[0], "whole" if kind == "not finite" else kind, dtype)
        if kind == "not finite":
            x[rng.random(x.shape) < 0.2] = np.nan
            x[rng.random(x.shape) < 0.2] = np.inf
            x[rng.random(x.shape) < 0.2] = -np.inf
        g = values(rng, shapes[1], pick(choose, KINDS), dtype)
        return [laid_out(array, pick(choose, LAYOUTS)) for array in (x, g)]

    def expected(self, settings, arrays, results, rounding):
        x, g = arrays
        if rounding.backend == "jax":            # XLA compares subnormal numbers as zero
            tiny = np.finfo(x.dtype).tiny
            x = np.where(np.abs(x) < tiny, np.zeros((), x.dtype), x)
        y, index, rows, columns = first_maxima(x, settings)
        dx, magnitude = np.zeros(x.shape), np.zeros(x.shape)
        c, _, _, b = np.indices(g.shape, sparse=True)
        np.add.at(dx, (c, rows, columns, b), g)
        np.add.at(magnitude, (c, rows, columns, b), np.abs(g))
        windows = (-(-settings.size // settings.stride)) ** 2
        smallest = 0.0 if rounding.backend != "jax" else rounding.smallest
        return [(y, smallest), (index, 0.0), (dx, rounding.of_sum(windows, magnitude, 0.0))]


def first_maxima(x, settings):
    """Return y, index, row and column of the first maximum of each window; NaN is the maximum, padding never is."""
    size, stride, pad, _ = settings
    spans = [reference.windows(n, *settings) for n in x.shape[1:3]]
    ends = [max(span[-1][2] + size - n, 0) for span, n in zip(spans, x.shape[1:3], strict=True)]
    ranks = np.where(np.isnan(x), 3e300, np.clip(x.astype(np.float64), -2e300, 2e300))
    padded = np.pad(ranks, ((0, 0), (pad, ends[0]), (pad, ends[1]), (0, 0)), constant_values=-3e300)
    windows = sliding_window_view(padded, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    windows = windows[:, : len(spans[0]), : len(spans[1])]
    index = windows.reshape(*windows.shape[:4], size * size).argmax(-1)
    r, s = np.indices(index.shape, sparse=True)[1:3]
    rows, columns = r * stride + index // size - pad, s * stride + index % size - pad
    c, _, _, b = np.indices(index.shape, sparse=True)
    return x[c, rows, columns, b], index, rows, columns


class AveragePoolTarget(Target):
    """Means and their adjoint. Bound: float sums of the pixels of a window, or of the windows that cover a pixel."""

    name = "average_pool"

    def settings(self, choose):
        return choose(1, 7), choose(1, 5)

    def graph(self, settings, dtype, shapes):
        x, g = tensors("xg", dtype, shapes)
        y = AveragePool2D(*settings)(x)
        return [x, g], [y, pytensor.grad((y * g).sum(), x)]

    def shapes(self, choose, settings):
        size, stride = settings
        channels, height, width = choose(1, 3), size + choose(0, 8), size + choose(0, 20)
        batch = pick(choose, (0, 1, 2, 3, 5, 15, 16, 17, 33))
        out = [(n - size) // stride + 1 for n in (height, width)]
        return [(channels, height, width, batch), (channels, *out, batch)]

    def values(self, settings, x, g):
        """Return y and dx in float64."""
        size, stride = settings
        x, g = x.astype(np.float64), g.astype(np.float64)
        y = sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride].mean((-2, -1))
        dx = np.zeros(x.shape)
        for _, _, rows, columns in taps(x.shape, (0, size, size), (stride, 0, 1)):
            dx[:, rows, columns] += g / size**2
        return y, dx

    def expected(self, settings, arrays, results, rounding):
        size, stride = settings
        terms = size**2 + 2, (-(-size // stride)) ** 2 + 2
        magnitudes = self.values(settings, *map(np.abs, arrays))
        return [
            (truth, rounding.of_sum(n, magnitude))
            for truth, n, magnitude in zip(self.values(settings, *arrays), terms, magnitudes, strict=True)
        ]


class LRNTarget(Target):
    """LRN and its gradient.

    Bound: the sum s has only positive terms, so its relative error is that of n + 3 roundings; a power of it has beta
    times this error, and 8 roundings of the function. The gradient is a sum of such terms.
    """

    name = "lrn"
    kinds = "normal", "whole", "zeros", "mixed", "subnormal"

    def settings(self, choose):
        return (
            2 * choose(0, 4) + 1, pick(choose, (2.0, 1.0, 1e-3)), pick(choose, (1e-4, 0.5, 0.0)),
            pick(choose, (0.75, 0.5, 0.6, 1.0)),
        )

    def graph(self, settings, dtype, shapes):
        x, g = tensors("xg", dtype, shapes)
        y = LocalResponseNorm(*settings)(x)
        return [x, g], [y, pytensor.grad((y * g).sum(), x)]

    def shapes(self, choose, settings):
        return [(choose(1, 12), choose(1, 5), choose(1, 12), pick(choose, (0, 1, 3, 16, 33)))] * 2

    def expected(self, settings, arrays, results, rounding):
        n, k, alpha, beta = settings
        x, g = (array.astype(np.float64) for array in arrays)
        s = k + alpha * self.window_sum(x**2, n)
        d = g * s**-beta
        y, t = x * s**-beta, self.window_sum(d * x / s, n)
        factor = 2 * alpha * beta
        power = beta * (n + 3) + 8
        slope = factor * np.abs(x) * self.window_sum(np.abs(d * x / s), n)
        small = 100 * rounding.smallest * (1 + largest(x, g)) ** 2 * max(k**-beta, 1) ** 2 / min(k, 1)
        bounds = (
            rounding.unit * power * np.abs(y) + small,
            rounding.unit * (power * np.abs(d) + (power + 2 * n + 12) * slope) + small,
        )
        return list(zip((y, d - factor * x * t), bounds, strict=True))

    def window_sum(self, array, n):
        """Return the sums over the channels at most n // 2 away."""
        return np.stack([array[max(c - n // 2, 0) : c + n // 2 + 1].sum(0) for c in range(len(array))])


class BatchNormTarget(Target):
    """Batch normalisation and its gradients. Bound: that of the mean and of the variance, carried through the formula.

    A sum of m values has the error of m roundings. For float32 the kernels of the CPU sum at most 65 values before they
    add in float64, and the NumPy reference adds in float64.
    """

    name = "batch_norm"
    kinds = "normal", "whole", "zeros", "mixed", "spread"

    def settings(self, choose):
        return pick(choose, (1e-5, 1e-3, 1.0)), bool(choose(0, 1))

    def graph(self, settings, dtype, shapes):
        x, g = tensors("xg", dtype, shapes)
        gamma, beta = (pt.vector(name, dtype=dtype) for name in ("gamma", "beta"))
        y, mean, variance = BatchNorm2D(*settings)(x, gamma, beta)
        return [x, g, gamma, beta], [y, mean, variance, *pytensor.grad((y * g).sum(), [x, gamma, beta])]

    def shapes(self, choose, settings):
        shape = choose(1, 4), choose(1, 9), choose(1, 17), pick(choose, (1, 2, 3, 16, 33, 64))
        return [shape, shape, shape[:1], shape[:1]]

    def expected(self, settings, arrays, results, rounding):
        epsilon, relu = settings
        x, g, gamma, beta = (array.astype(np.float64) for array in arrays)
        gamma, beta = (vector[:, None, None, None] for vector in (gamma, beta))
        u, pixels = rounding.unit, x[0].size
        in_float64 = {"numpy": 1, "cpu": 66, "numba": 66} if arrays[0].dtype == np.float32 else {}
        m = min(pixels, in_float64.get(rounding.backend, pixels)) + 4

        def mean_of(array):
            return array.mean((1, 2, 3), keepdims=True)

        mean = mean_of(x)
        c = x - mean
        variance = mean_of(c**2)
        s = (variance + epsilon) ** -0.5
        of_mean = m * u * mean_of(np.abs(x))
        of_c = of_mean + u * np.abs(c)
        of_variance = (m + 3) * u * variance + of_mean**2 + 2 * of_mean * mean_of(np.abs(c))
        of_s = of_variance / (2 * (variance + epsilon)) + 5 * u      # relative
        n = c * s
        of_n = s * of_c + np.abs(n) * (of_s + 2 * u)
        y = gamma * n + beta
        of_y = np.abs(gamma) * of_n + u * (3 * np.abs(gamma * n) + 2 * np.abs(beta))
        d = np.where(np.asarray(results[0]) > 0, g, 0) if relu else g
        D, P = mean_of(d), mean_of(d * n)
        of_D = m * u * mean_of(np.abs(d))
        of_P = (m + 4) * u * mean_of(np.abs(d * n)) + mean_of(np.abs(d) * of_n)
        inner = d - D - n * P
        of_inner = 4 * u * (np.abs(d) + np.abs(D) + np.abs(n * P)) + of_D + np.abs(n) * of_P + np.abs(P) * of_n
        of_dx = np.abs(gamma) * s * (of_inner + np.abs(inner) * (of_s + 4 * u))
        truth = (np.maximum(y, 0) if relu else y), mean, variance, gamma * s * inner, P * pixels, D * pixels
        bounds = of_y, of_mean, of_variance, of_dx, of_P * pixels, of_D * pixels
        small = 100 * pixels * rounding.smallest * (1 + largest(x, g, gamma)) ** 3 / epsilon
        return [
            (value.reshape(np.shape(result)), (1.1 * bound + small).reshape(np.shape(result)))
            for value, bound, result in zip(truth, bounds, results, strict=True)
        ]


class CropTarget(Target):
    """Crops are exact: one subtraction in float32, or float64."""

    name = "crop"

    def settings(self, choose):
        return (pick(choose, (1, 2, 3, 5, 7, 16, 21)),)

    def graph(self, settings, dtype, shapes):
        inputs = [pt.tensor4("images", dtype="uint8"), pt.tensor3("mean", dtype=dtype)]
        inputs += [pt.ivector("rows"), pt.ivector("columns"), pt.vector("mirrors", dtype="uint8")]
        return inputs, [CropMirror(*settings)(*inputs)]

    def shapes(self, choose, settings):
        batch = pick(choose, (0, 1, 2, 3, 15, 16, 17, 33))
        return [(choose(1, 3), settings[0] + choose(0, 20), settings[0] + choose(0, 20), batch)]

    def arrays(self, choose, settings, shapes, dtype):
        (shape,), (size,) = shapes, settings
        rng = np.random.default_rng(choose(0, 2**32 - 1))
        _, height, width, batch = shape
        arrays = [
            rng.integers(0, 256, shape).astype("uint8"), rng.uniform(0, 255, shape[:3]).astype(dtype),
            rng.integers(0, height - size + 1, batch).astype("int32"),
            rng.integers(0, width - size + 1, batch).astype("int32"), rng.integers(0, 3, batch).astype("uint8"),
        ]
        return [laid_out(array, pick(choose, LAYOUTS)) for array in arrays]

    def expected(self, settings, arrays, results, rounding):
        images, mean, rows, columns, mirrors = arrays
        offsets = np.arange(*settings)
        row = rows + offsets[:, None, None]
        column = columns + np.where(mirrors != 0, settings[0] - 1 - offsets[:, None], offsets[:, None])
        batch = np.arange(images.shape[3])
        return [(images[:, row, column, batch].astype(mean.dtype) - mean[:, row, column], 0.0)]


class DropoutTarget(Target):
    """Dropout is exact: the mask is that of the random words, and a kept element is one product."""

    name = "dropout"

    def settings(self, choose):
        return pick(choose, (0.0, 0.1, 0.5, 0.75, 0.999)), choose(0, 3)

    def graph(self, settings, dtype, shapes):
        x, g = tensors("xg", dtype, shapes)
        seed, step = pt.lscalar("seed"), pt.lscalar("step")
        y = InvertedDropout(*settings)(x, seed, step)
        return [x, g, seed, step], [y, pytensor.grad((y * g).sum(), x)]

    def shapes(self, choose, settings):
        return [(choose(0, 5), choose(1, 5), choose(1, 5), choose(1, 40))] * 2

    def arrays(self, choose, settings, shapes, dtype):
        numbers = [np.int64(choose(-(2**63), 2**63 - 1)) for _ in range(2)]
        return [*super().arrays(choose, settings, shapes, dtype), *numbers]

    def expected(self, settings, arrays, results, rounding):
        rate, stream = settings
        x, g, seed, step = arrays
        words = random_words(x.size, *keys(int(seed), stream, int(step))).reshape(x.shape)
        factor = x.dtype.type(1 / (1 - rate))
        small = rounding.smallest * 1000 if rounding.backend == "jax" else 0.0
        return [
            (np.where(words >= round(rate * 2**32), array * factor, 0), small) for array in (x, g)
        ]


TARGETS = (
    ConvolutionTarget, DenseTarget, WinogradTarget, Conv2dTarget, MaxPoolTarget, AveragePoolTarget, LRNTarget,
    BatchNormTarget, CropTarget, DropoutTarget,
)
