"""Crop, mirror and mean subtraction: a gather with one crop position per image."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from pytensor.graph.basic import Apply
from pytensor.graph.fg import FunctionGraph

from alexnet.ops import CropMirror
from alexnet.ops.registry import jax_lowering


@jax_lowering(CropMirror)
def crop_mirror(op: CropMirror, node: Apply) -> Callable[..., Array]:
    def run(images: Array, mean: Array, rows: Array, columns: Array, mirrors: Array) -> Array:
        op.check_shapes(images, mean, rows, columns, mirrors)
        shape = op.size, op.size, images.shape[3]
        row = rows + lax.broadcasted_iota(jnp.int32, shape, 0)
        offset = lax.broadcasted_iota(jnp.int32, shape, 1)
        column = columns + jnp.where(mirrors != 0, op.size - 1 - offset, offset)
        pixels = images.at[:, row, column, lax.broadcasted_iota(jnp.int32, shape, 2)].get(mode="clip")
        cropped = pixels.astype(mean.dtype) - mean.at[:, row, column].get(mode="clip")
        inside = (rows >= 0) & (rows <= images.shape[1] - op.size) & (columns >= 0)
        inside &= columns <= images.shape[2] - op.size
        return jnp.where(inside, cropped, mean.dtype.type(jnp.nan))  # cannot raise here: the cost becomes NaN

    return run


def checks_on_host(fgraph: FunctionGraph) -> Iterator[Callable[[Sequence[Array | np.ndarray]], None]]:
    """Yield functions of the input values that raise ValueError for corners outside the images (NumPy arrays only)."""
    positions = {variable: position for position, variable in enumerate(fgraph.inputs)}
    for node in fgraph.apply_nodes:
        if isinstance(node.op, CropMirror):
            images, _, rows, columns, _ = node.inputs
            if {images, rows, columns} <= positions.keys():
                yield partial(check_corners, node.op, [positions[variable] for variable in (images, rows, columns)])


def check_corners(op: CropMirror, positions: Sequence[int], values: Sequence[Array | np.ndarray]) -> None:
    """Check the corners if both are NumPy arrays. positions are those of images, rows and columns among the values."""
    images, rows, columns = (values[position] for position in positions)
    if isinstance(rows, np.ndarray) and isinstance(columns, np.ndarray):
        op.check_corners(images.shape, rows, columns)
