"""Lowerings for Sum, Add and Mul that replace those of PyTensor.

A Sum accumulates in the dtype of its output; PyTensor casts to float64. Sums and products of more than two arrays are
computed pairwise; PyTensor 3.0 stacks the arrays in memory first.
"""

import operator
from functools import reduce

import jax.numpy as jnp
import pytensor.scalar as ps
from pytensor.link.jax.dispatch import jax_funcify
from pytensor.tensor.math import Sum


@jax_funcify.register(Sum)
def sum_in_own_dtype(op, node, **kwargs):
    dtype = node.outputs[0].type.dtype
    return lambda x: jnp.sum(x, axis=op.axis, dtype=dtype)


@jax_funcify.register(ps.Add)
def add(op, **kwargs):
    return lambda *terms: reduce(operator.add, terms)


@jax_funcify.register(ps.Mul)
def multiply(op, **kwargs):
    return lambda *factors: reduce(operator.mul, factors)
