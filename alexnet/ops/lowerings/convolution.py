"""Convolution and its two adjoints for XLA, which calls cuDNN and cuBLAS for them on a GPU.

The axes are c01b; XLA chooses the memory layout that its convolutions need. The adjoints are JAX transposes of the
linear map, which XLA recognises as cuDNN's backward calls. A dense layer is a matrix product.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from pytensor.graph.basic import Apply

from alexnet.ops import Convolution, ConvolutionFilterGradient, ConvolutionInputGradient
from alexnet.ops.base import Shape
from alexnet.ops.lowerings.precision import PRECISIONS
from alexnet.ops.registry import jax_lowering

LAYOUT = "CHWN", "IHWO", "CHWN"                  # of x, W and y
AnyConvolution = Convolution | ConvolutionInputGradient | ConvolutionFilterGradient


@jax_lowering(Convolution, with_precision=True)
def convolution(op: Convolution, node: Apply, precision: str) -> Callable[..., Array]:
    def run(x: Array, W: Array) -> Array:
        op.check(x.shape, W.shape)
        if is_dense(op, x.shape, W.shape):
            return images(product(W, x, 0, 0, precision))
        return rounded(lambda x, W: correlate(op, precision, x, W), precision, x, W)

    return run


@jax_lowering(ConvolutionInputGradient, with_precision=True)
def input_gradient(op: ConvolutionInputGradient, node: Apply, precision: str) -> Callable[..., Array]:
    def run(W: Array, g: Array, height: Array, width: Array) -> Array:
        shape = W.shape[0] * op.groups, int(height), int(width), g.shape[3]
        op.check(shape, W.shape, g.shape)
        if is_dense(op, shape, W.shape):
            return images(product(W, g, 1, 0, precision))

        def adjoint(W: Array, g: Array) -> Array:
            if op.stride > 1 and not (is_square(shape) and is_square(W.shape)):
                return transposed(lambda x: correlate(op, precision, x, W, stride=1), shape, spread(op, shape, W, g))
            return transposed(lambda x: correlate(op, precision, x, W), shape, g)

        return rounded(adjoint, precision, W, g)

    return run


@jax_lowering(ConvolutionFilterGradient, with_precision=True)
def filter_gradient(op: ConvolutionFilterGradient, node: Apply, precision: str) -> Callable[..., Array]:
    def run(x: Array, g: Array, filter_height: Array, filter_width: Array) -> Array:
        shape = x.shape[0] // op.groups, int(filter_height), int(filter_width), g.shape[0]
        op.check(x.shape, shape, g.shape)
        if is_dense(op, x.shape, shape):
            return images(product(x, g, 1, 1, precision))

        def adjoint(x: Array, g: Array) -> Array:
            return transposed(lambda W: correlate(op, precision, x, W), shape, g)

        return rounded(adjoint, precision, x, g)

    return run


def correlate(op: AnyConvolution, precision: str, x: Array, W: Array, stride: int | None = None) -> Array:
    """Return x * W, whatever their shapes; stride: another one than that of the Op."""
    return lax.conv_general_dilated(
        x,
        W,
        window_strides=[stride or op.stride] * 2,
        padding=[(op.pad, op.pad)] * 2,
        dimension_numbers=LAYOUT,
        feature_group_count=op.groups,
        precision=PRECISIONS[precision],
    )


def transposed(linear: Callable[[Array], Array], shape: tuple[int, ...], g: Array) -> Array:
    """Apply the adjoint of a linear map of arrays of `shape` to g."""
    return jax.linear_transpose(linear, jax.ShapeDtypeStruct(shape, g.dtype))(g)[0]


def is_square(shape: Shape) -> bool:
    """Return whether images or filters have as many rows as columns."""
    return shape[1] == shape[2]


def spread(op: AnyConvolution, x_shape: tuple[int, ...], W: Array, g: Array) -> Array:
    """Return g with zeros between its pixels, as the gradient of a convolution with stride 1.

    XLA (JAX 0.12) ends the process when it simplifies some adjoints of strided convolutions whose rows and columns
    differ, such as that of 2 x 5 filters with stride 2 and pad 1. The barrier keeps it from undoing this.
    """
    rows, columns = (
        (0, n + 2 * op.pad - size - op.stride * (windows - 1), op.stride - 1)
        for n, size, windows in zip(x_shape[1:3], W.shape[1:3], g.shape[1:3], strict=True)
    )
    return lax.optimization_barrier(lax.pad(g, g.dtype.type(0), [(0, 0, 0), rows, columns, (0, 0, 0)]))


def rounded(function: Callable[..., Array], precision: str, *operands: Array) -> Array:
    """Return function(*operands), with bfloat16 operands if requested; cuDNN sums in float32 and rounds once."""
    if precision != "bfloat16":
        return function(*operands)
    return function(*(operand.astype(jnp.bfloat16) for operand in operands)).astype(jnp.float32)


def is_dense(op: AnyConvolution, x_shape: Shape, W_shape: Shape) -> bool:
    """Return True if images and filters are single pixels."""
    return x_shape[1:3] == W_shape[1:3] == (1, 1) and op.geometry == (1, 0, 1)


def product(a: Array, b: Array, axis_a: int, axis_b: int, precision: str) -> Array:
    """Multiply two matrices, (channel, 1, 1, batch) or (in, 1, 1, out), contracting axis_a of a with axis_b of b."""
    a = a.reshape(a.shape[0], a.shape[3])
    b = b.reshape(b.shape[0], b.shape[3])
    if precision == "bfloat16":
        a = a.astype(jnp.bfloat16)
        b = b.astype(jnp.bfloat16)
    dimensions = ((axis_a,), (axis_b,)), ((), ())
    result = jnp.float32 if precision == "bfloat16" else None
    return lax.dot_general(a, b, dimensions, PRECISIONS[precision], preferred_element_type=result)


def images(matrix: Array) -> Array:
    """Return a matrix as single-pixel images, with its rows as channels."""
    return matrix.reshape(matrix.shape[0], 1, 1, matrix.shape[1])
