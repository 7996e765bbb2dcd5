"""Convolution and its two adjoints for XLA, which calls cuDNN and cuBLAS for them on a GPU.

The axes are c01b; XLA chooses the memory layout that its convolutions need. The adjoints are JAX transposes of the
linear map, which XLA recognises as cuDNN's backward calls. A dense layer is a matrix product.
"""

import jax
import jax.numpy as jnp
from jax import lax
from pytensor.link.jax.dispatch import jax_funcify

from alexnet.ops import Convolution, ConvolutionFilterGradient, ConvolutionInputGradient

PRECISIONS = {                                   # setting: how XLA multiplies float32
    "float32": lax.Precision.HIGHEST,            # full float32, on every device
    "tf32": lax.Precision.HIGH,                  # on a GPU with TF32: 10-bit mantissa; elsewhere full float32
    "bfloat16": lax.Precision.DEFAULT,           # unused: the operands are bfloat16
}
LAYOUT = "CHWN", "IHWO", "CHWN"


@jax_funcify.register(Convolution)
def convolution(op, precision="float32", **kwargs):
    def run(x, W):
        op.check(x.shape, W.shape)
        if is_dense(op, x.shape, W.shape):
            return images(product(W, x, 0, 0, precision))
        return rounded(lambda x, W: correlate(op, precision, x, W), precision, x, W)

    return run


@jax_funcify.register(ConvolutionInputGradient)
def input_gradient(op, precision="float32", **kwargs):
    def run(W, g, height, width):
        shape = W.shape[0] * op.groups, int(height), int(width), g.shape[3]
        op.check(shape, W.shape, g.shape)
        if is_dense(op, shape, W.shape):
            return images(product(W, g, 1, 0, precision))

        def adjoint(W, g):
            return transposed(lambda x: correlate(op, precision, x, W), shape, g)

        return rounded(adjoint, precision, W, g)

    return run


@jax_funcify.register(ConvolutionFilterGradient)
def filter_gradient(op, precision="float32", **kwargs):
    def run(x, g, size_r, size_c):
        shape = x.shape[0] // op.groups, int(size_r), int(size_c), g.shape[0]
        op.check(x.shape, shape, g.shape)
        if is_dense(op, x.shape, shape):
            return images(product(x, g, 1, 1, precision))

        def adjoint(x, g):
            return transposed(lambda W: correlate(op, precision, x, W), shape, g)

        return rounded(adjoint, precision, x, g)

    return run


def correlate(op, precision, x, W):
    return lax.conv_general_dilated(
        x,
        W,
        window_strides=(op.stride, op.stride),
        padding=[(op.pad, op.pad)] * 2,
        dimension_numbers=LAYOUT,
        feature_group_count=op.groups,
        precision=PRECISIONS[precision],
    )


def transposed(linear, shape, g):
    """Apply the adjoint of a linear map of arrays of `shape` to g."""
    return jax.linear_transpose(linear, jax.ShapeDtypeStruct(shape, g.dtype))(g)[0]


def rounded(function, precision, *operands):
    """Return function(*operands), with bfloat16 operands if requested; cuDNN sums in float32 and rounds once."""
    if precision != "bfloat16":
        return function(*operands)
    return function(*(operand.astype(jnp.bfloat16) for operand in operands)).astype(jnp.float32)


def is_dense(op, x_shape, W_shape):
    """Whether images and filters are single pixels."""
    return x_shape[1:3] == W_shape[1:3] == (1, 1) and op.geometry == (1, 0, 1)


def product(a, b, axis_a, axis_b, precision):
    """Multiply two matrices, (channel, 1, 1, batch) or (in, 1, 1, out), contracting axis_a of a with axis_b of b."""
    a, b = (array.reshape(array.shape[0], array.shape[3]) for array in (a, b))
    if precision == "bfloat16":
        a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    dimensions = ((axis_a,), (axis_b,)), ((), ())
    result = jnp.float32 if precision == "bfloat16" else None
    return lax.dot_general(a, b, dimensions, PRECISIONS[precision], preferred_element_type=result)


def images(matrix):
    """Return a matrix as single-pixel images, with its rows as channels."""
    return matrix.reshape(matrix.shape[0], 1, 1, matrix.shape[1])
