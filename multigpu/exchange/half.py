"""float16 on the wire: from float32 and back, in C where there is a compiler, else by NumPy.

    narrow(to, values)                 to <- float16 of the values, to nearest, ties to even
    narrow_and_keep(to, values, lost)  to <- float16 of values + lost;  lost <- what that took away
    widen(to, halves)                  to <- float32 of the halves, exact
    add(to, halves)                    to <- to + halves, in float32
    infinity(halves)                   where the first infinity is, None without one

All arrays are contiguous, of one length; float16 is from 65520 on infinity.  For 61 million floats one processor's C
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
        with np.errstate(over="ignore"):         # infinity() is asked afterwards
            to[...] = values

    @classmethod
    def narrow_and_keep(cls, to, values, lost):
        lost += values
        cls.narrow(to, lost)
        with np.errstate(invalid="ignore"):
            lost -= to

    @staticmethod
    def widen(to, halves):
        to[...] = halves

    @staticmethod
    def add(to, halves):
        with np.errstate(invalid="ignore"):
            to += halves

    @staticmethod
    def infinity(halves):
        found = np.isinf(halves)
        return int(found.argmax()) if found.any() else None


class Compiled:
    """The functions of half.c."""

    def __init__(self):
        names = {"narrow": "aan", "narrow_and_keep": "aaan", "widen": "aan", "add": "aan"}
        self._functions = {name: build.Function(SOURCE, "half", name, letters) for name, letters in names.items()}
        self._infinity = build.load(SOURCE, "half").infinity
        self._infinity.argtypes = [build.ARGUMENTS[letter] for letter in "an"]
        self._infinity.restype = build.ARGUMENTS["n"]

    def narrow(self, to, values):
        self._functions["narrow"](to, values, to.size)

    def narrow_and_keep(self, to, values, lost):
        self._functions["narrow_and_keep"](to, values, lost, to.size)

    def widen(self, to, halves):
        self._functions["widen"](to, halves, to.size)

    def add(self, to, halves):
        self._functions["add"](to, halves, to.size)

    def infinity(self, halves):
        place = self._infinity(halves, halves.size)
        return None if place < 0 else place


@cache
def conversions():
    """Compiled() where C can be compiled, else Plain()."""
    return Compiled() if build.compiler_available() else Plain()
