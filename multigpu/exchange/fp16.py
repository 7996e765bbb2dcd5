"""Conversion between float32 and float16, in C if a compiler is available, otherwise in NumPy.

Converting 61 million floats on one core takes about 15 ms in C and 200 ms in NumPy, which is as long as MPI needs to
send them.
"""

from abc import ABC, abstractmethod
from functools import cache
from pathlib import Path

import numpy as np

from alexnet.native import compiler

LARGEST = np.float16(65504)                      # the largest finite float16
SOURCE = Path(__file__).with_suffix(".c").read_text(encoding="utf-8")


class Fp16Conversions(ABC):
    """Conversions of contiguous arrays of one length.

    Values are rounded to nearest, ties to even. Absolute values of 65520 and above, and infinities, become infinite.
    """

    @abstractmethod
    def to_fp16(self, halves: np.ndarray, values: np.ndarray) -> bool:
        """Set halves <- float16(values); return whether one of them is infinite."""

    @abstractmethod
    def to_fp16_with_feedback(self, halves: np.ndarray, values: np.ndarray, error: np.ndarray) -> bool:
        """Set halves <- float16(values + error), error <- the rounding error; return whether a half is infinite."""

    @abstractmethod
    def from_fp16(self, values: np.ndarray, halves: np.ndarray) -> None:
        """Set values <- float32(halves), exact."""

    @abstractmethod
    def add_fp16(self, total: np.ndarray, halves: np.ndarray) -> None:
        """Set total <- total + halves, in float32."""


class NumpyConversions(Fp16Conversions):
    """Conversions in NumPy."""

    def to_fp16(self, halves: np.ndarray, values: np.ndarray) -> bool:
        with np.errstate(over="ignore"):
            halves[...] = values
        return bool(np.isinf(halves).any())

    def to_fp16_with_feedback(self, halves: np.ndarray, values: np.ndarray, error: np.ndarray) -> bool:
        error += values
        infinite = self.to_fp16(halves, error)
        with np.errstate(invalid="ignore"):
            error -= halves
        return infinite

    def from_fp16(self, values: np.ndarray, halves: np.ndarray) -> None:
        values[...] = halves

    def add_fp16(self, total: np.ndarray, halves: np.ndarray) -> None:
        with np.errstate(invalid="ignore"):
            total += halves


class CompiledConversions(Fp16Conversions):
    """Conversions in C, from fp16.c."""

    def __init__(self) -> None:
        library = compiler.load(SOURCE, "half")
        for name, letters in {"narrow": "aan", "narrow_and_keep": "aaan", "widen": "aan", "add": "aan"}.items():
            getattr(library, name).argtypes = [compiler.ARGUMENTS[letter] for letter in letters]
        self._library = library

    def to_fp16(self, halves: np.ndarray, values: np.ndarray) -> bool:
        return bool(self._library.narrow(halves, values, halves.size))

    def to_fp16_with_feedback(self, halves: np.ndarray, values: np.ndarray, error: np.ndarray) -> bool:
        return bool(self._library.narrow_and_keep(halves, values, error, halves.size))

    def from_fp16(self, values: np.ndarray, halves: np.ndarray) -> None:
        self._library.widen(values, halves, values.size)

    def add_fp16(self, total: np.ndarray, halves: np.ndarray) -> None:
        self._library.add(total, halves, total.size)


@cache
def conversions() -> Fp16Conversions:
    """Return the conversions in C, or in NumPy if C cannot be compiled."""
    try:
        return CompiledConversions()
    except compiler.CompileError:
        return NumpyConversions()
