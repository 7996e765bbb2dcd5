"""Crop, mirror and mean subtraction: a gather with one crop position per image."""

from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import lax
from pytensor.link.jax.dispatch import jax_funcify

from alexnet.ops import CropMirror


@jax_funcify.register(CropMirror)
def crop_mirror(op, **kwargs):
    def run(images, mean, rows, columns, mirrors):
        op.check_shapes(images, mean, rows, columns, mirrors)
        shape = op.size, op.size, images.shape[3]
        row = rows + lax.broadcasted_iota(jnp.int32, shape, 0)
        place = lax.broadcasted_iota(jnp.int32, shape, 1)
        column = columns + jnp.where(mirrors != 0, op.size - 1 - place, place)
        pixels = images.at[:, row, column, lax.broadcasted_iota(jnp.int32, shape, 2)].get(mode="clip")
        cropped = pixels.astype(mean.dtype) - mean.at[:, row, column].get(mode="clip")
        inside = (rows >= 0) & (rows <= images.shape[1] - op.size) & (columns >= 0)
        inside &= columns <= images.shape[2] - op.size
        return jnp.where(inside, cropped, mean.dtype.type(jnp.nan))  # cannot raise here: the cost becomes NaN

    return run


def checks_on_host(fgraph):
    """Yield functions of the input values that raise ValueError for corners outside the images (NumPy arrays only)."""
    places = {variable: place for place, variable in enumerate(fgraph.inputs)}
    for node in fgraph.apply_nodes:
        images, _, rows, columns, _ = node.inputs if isinstance(node.op, CropMirror) else [None] * 5
        if {images, rows, columns} <= places.keys():
            yield partial(check_corners, node.op, [places[variable] for variable in (images, rows, columns)])


def check_corners(op, places, values):
    images, *corners = (values[place] for place in places)
    if all(isinstance(corner, np.ndarray) for corner in corners):
        op.check_corners(images.shape, *corners)
