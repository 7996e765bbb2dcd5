"""Lowerings for Sum, Add and Mul that replace those of PyTensor.

A Sum accumulates in the dtype of its output; PyTensor casts to float64. Sums and products of more than two arrays are
computed pairwise; PyTensor 3.0 stacks the arrays in memory first.
"""

import operator
from collections.abc import Callable
from functools import reduce

import jax.numpy as jnp
import pytensor.scalar as ps
from jax import Array
from pytensor.graph.basic import Apply
from pytensor.tensor.math import Sum

from alexnet.ops.registry import jax_lowering


@jax_lowering(Sum)
def sum_in_own_dtype(op: Sum, node: Apply) -> Callable[..., Array]:
    dtype = node.outputs[0].type.dtype
    return lambda x: jnp.sum(x, axis=op.axis, dtype=dtype)


@jax_lowering(ps.Add)
def add(op: ps.Add, node: Apply) -> Callable[..., Array]:
    return lambda *terms: reduce(operator.add, terms)


@jax_lowering(ps.Mul)
def multiply(op: ps.Mul, node: Apply) -> Callable[..., Array]:
    return lambda *factors: reduce(operator.mul, factors)
