"""float16 on the wire: from float32 and back, in C where there is a compiler, else by NumPy.

    narrow(to, values)                 to <- float16 of the values, to nearest, ties to even
    narrow_and_keep(to, values, lost)  to <- float16 of values + lost;  lost <- what that took away
    widen(to, halves)                  to <- float32 of the halves, exact
    add(to, halves)                    to <- to + halves, in float32

The first two return whether an infinity came of it, as it does from 65520 on, or of an infinity.  All arrays are
contiguous, of one length.  For 61 million floats one processor's C
takes about 15 ms to narrow them and NumPy 200, as much as MPI needs to send them.
"""

from functools import cache
from pathlib import Path

import numpy as np

from alexnet.dispatch.cpu import build

LARGEST = np.float16(65504)                      # of the finite ones
SOURCE = Path(__file__).with_suffix(".c").read_text(encoding="utf-8")


class Plain:
    """NumPy's conversions."""

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
    """The functions of half.c."""

    def __init__(self):
        library = build.load(SOURCE, "half")
        for name, letters in {"narrow": "aan", "narrow_and_keep": "aaan", "widen": "aan", "add": "aan"}.items():
            function = getattr(library, name)
            function.argtypes = [build.ARGUMENTS[letter] for letter in letters]
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
    """Compiled() where C can be compiled, else Plain()."""
    try:
        return Compiled()
    except build.CompileError:
        return Plain()
