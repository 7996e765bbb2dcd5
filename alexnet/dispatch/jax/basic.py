"""PyTensor's own Ops, where its lowering is not what a training step needs.

Sums stay in their own dtype, where PyTensor would lead on in float64; arrays are added and multiplied one after the
other, where it would stack more than two in a new array; and what it asserts of shapes is looked at while XLA's
program is made, when shapes are plain integers, instead of being left out with a warning.
"""

import operator
import warnings
from functools import reduce

import jax
import jax.numpy as jnp
import pytensor.scalar as ps
from pytensor.link.jax.dispatch import jax_funcify
from pytensor.raise_op import CheckAndRaise
from pytensor.tensor.basic import ScalarFromTensor
from pytensor.tensor.math import Sum


@jax_funcify.register(Sum)
def add_up(op, node, **kwargs):
    dtype = node.outputs[0].type.dtype
    return lambda x: jnp.sum(x, axis=op.axis, dtype=dtype)


@jax_funcify.register(ps.Add)
def add(op, **kwargs):
    return lambda *terms: reduce(operator.add, terms)


@jax_funcify.register(ps.Mul)
def multiply(op, **kwargs):
    return lambda *factors: reduce(operator.mul, factors)


@jax_funcify.register(ps.EQ)
def equal(op, **kwargs):
    return operator.eq


@jax_funcify.register(ScalarFromTensor)
def scalar_from_tensor(op, **kwargs):
    return lambda x: x


@jax_funcify.register(CheckAndRaise)
def check_and_raise(op, **kwargs):
    def run(x, *conditions):
        if any(isinstance(condition, jax.Array) for condition in conditions):
            warnings.warn(f"not checked on a device: {op.msg}", RuntimeWarning, stacklevel=2)
        elif not all(conditions):
            raise op.exc_type(op.msg)
        return x

    return run
