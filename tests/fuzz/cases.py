"""Random arrays for tests of Ops: shapes, values and memory layouts, and the rounding of a backend.

`choose(low, high)` returns an integer of this range: it is drawn by hypothesis, which makes it small when a case fails,
or by random.Random, where few different shapes are wanted because each is compiled.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Choose = Callable[[int, int], int]

KINDS = "normal", "whole", "zeros", "spread", "mixed", "subnormal"
LAYOUTS = "C", "Fortran", "batch first", "reversed", "strided", "offset"
# numbers of images: small, or near the length of a vector of the kernels
BATCHES = 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 33, 65


class Rounding(NamedTuple):
    """How a backend rounds.

    unit      largest relative error of one operation: 2**-24 for float32
    smallest  largest absolute error of an operation whose result, or operand, is near zero. XLA on a CPU replaces
              subnormal numbers by zero.
    backend   name of the backend
    """

    unit: float
    smallest: float
    backend: str

    @classmethod
    def of(cls, backend: str, dtype: str) -> "Rounding":
        """Return the rounding of a backend for a dtype."""
        limits = np.finfo(dtype)
        smallest = limits.tiny if backend == "jax" else limits.smallest_subnormal
        # the expected values of float64 are computed in float64, too
        unit = float(limits.eps) / 2 * (2 if dtype == "float64" else 1)
        return cls(unit, float(smallest), backend)

    def of_sum(self, terms: int, magnitude: np.ndarray, factors: float = 1.0) -> np.ndarray:
        """Return the bound of a sum of products, in any order of summation.

        Each product is rounded once and takes part in at most terms - 1 additions, so the error is at most
        gamma(terms) = terms * unit / (1 - terms * unit) times the sum of the magnitudes of the products.
        Source: Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 3.1.

        Args:
            terms: number of products, plus further roundings of the result.
            magnitude: sum of the absolute values of the products.
            factors: sum of the largest absolute values of the factors; a factor near zero may be taken as zero.
        """
        return 1.01 * terms * self.unit * magnitude + terms * self.smallest * (1 + factors)


def pick(choose: Choose, options):
    """Return one of the options."""
    return options[choose(0, len(options) - 1)]


def values(rng: np.random.Generator, shape: tuple[int, ...], kind: str, dtype: str) -> np.ndarray:
    """Return random numbers of a kind, in C order.

    normal     normally distributed
    whole      -2 to 2, with many ties
    zeros      zeros of both signs
    spread     normal, times powers of ten from 1e-12 to 1e3
    mixed      0, 1, large and small numbers, and subnormal ones
    subnormal  multiples of the smallest positive number
    """
    limits = np.finfo(dtype)
    if kind == "whole":
        array = rng.integers(-2, 3, shape)
    elif kind == "zeros":
        array = np.copysign(0.0, rng.normal(size=shape))
    elif kind == "spread":
        array = rng.normal(size=shape) * 10.0 ** rng.integers(-12, 4, shape)
    elif kind == "mixed":
        special = [0.0, -0.0, 1.0, -1.0, 1000.0, -1e-3, 1e-30, float(limits.tiny), -float(limits.smallest_subnormal)]
        array = np.where(rng.random(shape) < 0.5, rng.normal(size=shape), rng.choice(special, shape))
    elif kind == "subnormal":
        array = rng.integers(-9, 10, shape) * float(limits.smallest_subnormal)
    else:
        array = rng.normal(size=shape)
    return np.asarray(array).astype(dtype)


def laid_out(array: np.ndarray, layout: str) -> np.ndarray:
    """Return an array with the same elements in another memory layout."""
    if array.ndim == 0:
        return array
    if layout == "Fortran":
        return np.asfortranarray(array)
    if layout == "batch first" and array.ndim == 4:                 # c01b images as a view of NCHW ones
        return np.ascontiguousarray(array.transpose(3, 0, 1, 2)).transpose(1, 2, 3, 0)
    if layout == "reversed":
        backwards = (slice(None, None, -1),) * array.ndim
        return np.ascontiguousarray(array[backwards])[backwards]
    if layout == "strided":
        every_second = (slice(None, None, 2),) * array.ndim
        wide = np.full([2 * n for n in array.shape], np.array(-1).astype(array.dtype))
        wide[every_second] = array
        return wide[every_second]
    if layout == "offset":                                          # aligned to one element only
        flat = np.empty(array.size + 1, array.dtype)
        flat[1:] = array.ravel()
        return flat[1:].reshape(array.shape)
    return np.ascontiguousarray(array)
