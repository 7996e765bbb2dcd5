"""Pooling windows of size x size pixels, `stride` pixels apart. Pixels after the last full window are ignored."""

from itertools import product

from alexnet.ops.base import ShapedOp, whole_number, windows_along


class WindowOp(ShapedOp):
    """An Op on the windows of an image. Subclasses that pad the image set `pad` in __init__."""

    __props__ = ("size", "stride")
    pad = 0

    def __init__(self, size, stride):
        self.size = whole_number("pooling size", size, least=1)
        self.stride = whole_number("pooling stride", stride, least=1)

    def pooled(self, height, width):
        """Return the numbers of rows and columns of windows on height x width pixels; None if unknown."""
        return [windows_along(n, self.size, self.stride, self.pad) for n in (height, width)]

    def views(self, x, rows, columns):
        """Yield for each pixel of a window, row by row, the view of the padded x with that pixel of every window."""
        for i, j in product(range(self.size), repeat=2):
            row_slice = slice(i, i + self.stride * (rows - 1) + 1, self.stride)
            yield x[:, row_slice, j : j + self.stride * (columns - 1) + 1 : self.stride]

    def check(self, shape):
        """Raise ValueError if a known height or width is below the window size. The gradient Ops override this."""
        for n in shape[1:3]:
            if n is not None and n + 2 * self.pad < self.size:
                pixels = f"{n + 2 * self.pad} padded" if self.pad else n
                raise ValueError(f"{self}: windows of size {self.size} need at least as many pixels, got {pixels}")
