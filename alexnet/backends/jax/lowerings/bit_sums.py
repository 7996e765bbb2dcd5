"""Lowering for BitSums; XLA computes the sums of an update together with it where it can."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from pytensor.graph.basic import Apply

from alexnet.backends.bit_sums import BitSums
from alexnet.ops.registry import jax_lowering


@jax_lowering(BitSums)
def bit_sums(op: BitSums, node: Apply) -> Callable[..., Array]:
    return lambda *arrays: jnp.stack([
        jax.lax.bitcast_convert_type(array, jnp.uint32).sum(dtype=jnp.uint32) for array in arrays
    ])
