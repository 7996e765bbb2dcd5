"""Read an image file as uint8 (256, 256, 3).

Source: Ding et al. 2014's preprocessing squashes each image to 256 x 256 (bilinear); Krizhevsky et al. 2012,
section 2, scales the shorter side to 256 and crops the centre.
"""

import io
import os
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from alexnet.data.augment import IMAGE_SIZE
from alexnet.data.batch_file import FilePath, one_line

DRAFT_SIZE = (4 * IMAGE_SIZE, 4 * IMAGE_SIZE)    # a JPEG may be decoded at this size: error 0.15 grey levels
MOST_PIXELS = 89_478_485                         # Pillow warns above this and refuses twice this number
HARMLESS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)            # as stored in warnings.filters
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, OverflowError, struct.error, zlib.error)    # raised by Pillow
ORIENTATION = 0x0112                             # EXIF tag
TURNS = {                                        # EXIF 2.32, section 4.6.4: value -> transposition to upright
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(ValueError):
    """An image file that cannot be used. The message gives the reason."""


def read_image(path: FilePath, resize: str = "squash") -> np.ndarray:
    """Read an image file as uint8 (256, 256, 3), RGB, upright according to its EXIF orientation.

    JPEG and PNG are recognised by content, not by file name. Transparent images are composited on white, 16-bit grey
    keeps its upper 8 bits, and Pillow converts CMYK to RGB.

    Args:
        resize: "squash" (to 256 x 256) or "crop" (the central square, to 256 x 256).

    Raises:
        BadImage: the file is damaged, empty, of another format or absurdly large, or not a regular file: reading a pipe
            might never end.
    """
    refuse_pipe(path)
    ignore_harmless_warnings()
    try:
        with Image.open(os.fsencode(path), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > MOST_PIXELS:
                raise BadImage(f"is absurdly large: {image.width} x {image.height} pixels")
            image.draft(None, DRAFT_SIZE)
            return np.asarray(resized(rgb(upright(image)), resize))
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(f"is absurdly large: {one_line(error)}") from error
    except DAMAGE as error:
        raise BadImage(reason(error, path)) from error


def ignore_harmless_warnings() -> None:
    """Permanently ignore Pillow's harmless warnings, such as "Corrupt EXIF data".

    The filter stays installed, because removing it again is not safe while several threads read images.
    """
    if HARMLESS not in warnings.filters:
        warnings.filterwarnings("ignore", module=HARMLESS[3].pattern)


def refuse_pipe(path: FilePath) -> None:
    """Raise BadImage for a named pipe, a socket or a device, before it is opened.

    A missing file passes here and fails when it is opened.
    """
    try:
        kind = os.stat(os.fsencode(path)).st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise BadImage("is no file but a pipe or a device")


def reason(error: Exception, path: FilePath) -> str:
    """Return why an image cannot be used, in a few words without its name."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "is empty" if os.path.getsize(path) == 0 else "is neither JPEG nor PNG"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be opened: {error.strerror}"
    return f"is damaged: {one_line(error)}"


def upright(image: Image.Image) -> Image.Image:
    """Return the image transposed according to its EXIF orientation. Unreadable EXIF data is ignored."""
    try:
        orientation = image.getexif().get(ORIENTATION)
    except DAMAGE:
        return image
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def rgb(image: Image.Image) -> Image.Image:
    """Return the image in mode RGB."""
    if image.mode.startswith("I"):               # 16-bit grey
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")        # convert() would copy it


def resized(image: Image.Image, resize: str) -> Image.Image:
    """Return the image resized to 256 x 256 pixels, bilinear."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = None if resize == "squash" else (left, top, left + side, top + side)
    return image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR, box=box)


def pixels_of(array: np.ndarray, resize: str = "squash") -> np.ndarray:
    """Convert an RGB image in memory, uint8 (row, column, 3), as read_image does a file. Raises BadImage."""
    if getattr(array, "dtype", None) != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise BadImage(f"must be uint8 of shape (rows, columns, 3), got {found}")
    return np.asarray(resized(Image.fromarray(np.ascontiguousarray(array)), resize))


def batch_of(images: Sequence[np.ndarray]) -> np.ndarray:
    """Convert a list of images, uint8 (row, column, channel), to network input: (channel, row, column, image)."""
    out = np.empty((3, IMAGE_SIZE, IMAGE_SIZE, len(images)), np.uint8)
    if len(images):
        transpose_into(np.stack(images), out)
    return out


def transpose_into(images: np.ndarray, out: np.ndarray) -> None:
    """Copy images (image, row, column, channel) to out (channel, row, column, image).

    Works row by row, through a contiguous copy of that row of every image. In `images`, the images are a multiple of
    64 KiB apart and map to the same few cache lines, so transposing them directly takes five times as long.
    """
    for row in range(images.shape[1]):
        out[:, row] = np.ascontiguousarray(images[:, row]).transpose(2, 1, 0)


def encoded(pixels: np.ndarray, format: str, size: tuple[int, int] | None = None) -> bytes:
    """Return an image, uint8 (row, column, 3), as the bytes of a file.

    Args:
        format: "PNG" or "JPEG".
        size: (width, height) to which the image is resized; None: unchanged.
    """
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if size is not None:
        image = image.resize(size, Image.Resampling.BOX if image.width % size[0] == 0 else Image.Resampling.BILINEAR)
    file = io.BytesIO()
    image.save(file, format, **({"quality": 85} if format == "JPEG" else {"optimize": True}))
    return file.getvalue()
