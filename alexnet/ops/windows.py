"""Pooling windows of size x size pixels, `stride` pixels apart. Pixels after the last full window are ignored."""

from collections.abc import Iterator
from itertools import product

import numpy as np

from alexnet.ops.base import Length, Shape, ShapedOp, whole_number, windows_along


class WindowOp(ShapedOp):
    """An Op on the windows of an image. Subclasses that pad the image set `pad` in __init__."""

    __props__: tuple[str, ...] = ("size", "stride")
    pad = 0

    def __init__(self, size: int, stride: int) -> None:
        self.size = whole_number("pooling size", size, least=1)
        self.stride = whole_number("pooling stride", stride, least=1)

    def pooled(self, height: Length, width: Length) -> tuple[Length, Length]:
        """Return (out_height, out_width), the numbers of windows on height x width pixels; None if unknown."""
        return (
            windows_along(height, self.size, self.stride, self.pad),
            windows_along(width, self.size, self.stride, self.pad),
        )

    def views(self, x: np.ndarray, out_height: int, out_width: int) -> Iterator[np.ndarray]:
        """Yield for each pixel of a window, row by row, the view of the padded x with that pixel of every window."""
        for i, j in product(range(self.size), repeat=2):
            row_slice = slice(i, i + self.stride * (out_height - 1) + 1, self.stride)
            yield x[:, row_slice, j : j + self.stride * (out_width - 1) + 1 : self.stride]

    def check(self, x_shape: Shape) -> None:
        """Raise ValueError if a known height or width is below the window size."""
        for n in x_shape[1:3]:
            if n is not None and n + 2 * self.pad < self.size:
                pixels = f"{n + 2 * self.pad} padded" if self.pad else n
                raise ValueError(f"{self}: windows of size {self.size} need at least as many pixels, got {pixels}")
