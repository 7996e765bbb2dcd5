"""Conversion between float32 and float16, in C if a compiler is available, otherwise in NumPy.

    narrow(to, values)                 to <- float16(values), rounded to nearest, ties to even
    narrow_and_keep(to, values, lost)  to <- float16(values + lost);  lost <- the rounding error
    widen(to, halves)                  to <- float32(halves), exact
    add(to, halves)                    to <- to + halves, in float32

The first two return whether the result contains an infinity: absolute values of 65520 and above, and infinities,
become infinite. All arrays are contiguous and have the same length. Converting 61 million floats on one core takes
about 15 ms in C and 200 ms in NumPy, which is as long as MPI needs to send them.
"""

from functools import cache
from pathlib import Path

import numpy as np

from alexnet.native import compiler

LARGEST = np.float16(65504)                      # the largest finite float16
SOURCE = Path(__file__).with_suffix(".c").read_text(encoding="utf-8")


class Plain:
    """Conversions in NumPy."""

    @staticmethod
    def narrow(to, values):
        with np.errstate(over="ignore"):
            to[...] = values
        return bool(np.isinf(to).any())

    @classmethod
    def narrow_and_keep(cls, to, values, lost):
        lost += values
        infinite = cls.narrow(to, lost)
        with np.errstate(invalid="ignore"):
            lost -= to
        return infinite

    @staticmethod
    def widen(to, halves):
        to[...] = halves

    @staticmethod
    def add(to, halves):
        with np.errstate(invalid="ignore"):
            to += halves


class Compiled:
    """Conversions in C, from fp16.c."""

    def __init__(self):
        library = compiler.load(SOURCE, "half")
        for name, letters in {"narrow": "aan", "narrow_and_keep": "aaan", "widen": "aan", "add": "aan"}.items():
            function = getattr(library, name)
            function.argtypes = [compiler.ARGUMENTS[letter] for letter in letters]
            setattr(self, f"_{name}", function)

    def narrow(self, to, values):
        return bool(self._narrow(to, values, to.size))

    def narrow_and_keep(self, to, values, lost):
        return bool(self._narrow_and_keep(to, values, lost, to.size))

    def widen(self, to, halves):
        self._widen(to, halves, to.size)

    def add(self, to, halves):
        self._add(to, halves, to.size)


@cache
def conversions():
    """Return Compiled() if C can be compiled, otherwise Plain()."""
    try:
        return Compiled()
    except compiler.CompileError:
        return Plain()
