"""Bilinear resizing as Pillow's.

Bytes are resized in C (resize.c), to the bit as by Pillow and three times as fast; floats, or without a compiler, by
Pillow.
"""

from functools import cache
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from alexnet.native import compiler

Box = tuple[float, float, float, float]          # left, top, right, bottom, in pixels

WIDEST = 1 << 16                                 # pixels; the kernel needs 48 bytes of memory for each of a row
PILLOW_13 = int(PIL.__version__.partition(".")[0]) >= 13


def resize(image: Image.Image | np.ndarray, size: int, box: Box | None = None) -> np.ndarray:
    """Return an RGB image resized to size x size pixels, uint8 (size, size, 3), bilinear with antialiasing.

    Args:
        image: of Pillow, or uint8 (rows, columns, 3).
        box: the part of the image to use; None: all.
    """
    width, height = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
    if width > WIDEST or not compiler.compiler_available():
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
    out = np.empty((size, size, 3), np.uint8)
    kernel()(
        np.ascontiguousarray(image), out, height, width, size, columns_first(width, height, size),
        *(box or (0, 0, width, height)),
    )
    return out


def resize_channels(image: np.ndarray, size: int) -> np.ndarray:
    """Return float32 (channel, row, column) resized to (channel, size, size) by Pillow, bilinear with antialiasing."""
    channels = (Image.fromarray(channel).resize((size, size), Image.Resampling.BILINEAR) for channel in image)
    return np.stack([np.asarray(channel) for channel in channels])


@cache
def kernel() -> compiler.Function:
    """Return the C function; not at import, because few of the processes that import this resize images."""
    return compiler.function(Path(__file__).with_suffix(".c"), "resize", "aannnndddd", can_fail=True)


def columns_first(width: int, height: int, size: int) -> bool:
    """Return whether the installed Pillow resizes the columns of an image before its rows.

    Source: results of Pillow 13.0 for squares of 256 pixels; older versions never do. test_resize.py compares with the
    installed version.
    """
    return PILLOW_13 and width != size and height > max(size, 2 * width - size)
