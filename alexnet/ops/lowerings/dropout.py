"""Dropout with a mask computed from the element index in uint32; bit-identical to the NumPy reference."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax
from pytensor.graph.basic import Apply

from alexnet.ops import InvertedDropout
from alexnet.ops.registry import jax_lowering

GOLDEN = 0x9E3779B9


@jax_lowering(InvertedDropout)
def dropout(op: InvertedDropout, node: Apply) -> Callable[..., Array]:
    def run(x: Array, seed: Array, step: Array) -> Array:
        key, second_key = keys(seed, op.stream, step)
        index = lax.iota(jnp.uint32, x.size).reshape(x.shape)
        keep = mix(mix(index ^ key) + second_key) >= jnp.uint32(op.threshold)
        return jnp.where(keep, x * x.dtype.type(1 / (1 - op.rate)), 0)

    return run


def keys(seed: Array, stream: int, step: Array) -> tuple[Array, Array]:
    """Return the two keys of alexnet.ops.inverted_dropout as uint32 scalars.

    Without jax_enable_x64 the numbers are int32 scalars, whose upper word is their sign.
    """
    key = jnp.uint32(0)
    for number in map(jnp.asarray, (seed, stream, step)):
        for word in (number, number >> min(32, 8 * number.dtype.itemsize - 1)):
            key = mix((key + jnp.uint32(GOLDEN)) ^ word.astype(jnp.uint32))
    return key, mix(key + jnp.uint32(GOLDEN))


def mix(words: Array) -> Array:
    """The hash alexnet.ops.inverted_dropout.mix, with the same 32-bit wraparound."""
    words = (words ^ words >> 16) * jnp.uint32(0x7FEB352D)
    words = (words ^ words >> 15) * jnp.uint32(0x846CA68B)
    return words ^ words >> 16
