"""Read an image, from a file or from memory, as uint8 (256, 256, 3).

Source: Ding et al. 2014's preprocessing squashes each image to 256 x 256 (bilinear); Krizhevsky et al. 2012,
section 2, scales the shorter side to 256 and crops the centre.
"""

import io
import os
import re
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import BinaryIO, cast

import numpy as np
from PIL import Image, ImageFile

from alexnet.data.augment import IMAGE_SIZE
from alexnet.data.batch_file import FilePath, one_line
from alexnet.data.image_formats import FORMATS, HEAD, image_format, is_url, refusal
from alexnet.data.png import refuse_wrong_checksum
from alexnet.data.resize import resize
from alexnet.native.untrusted import InputError

DECODE: dict[str, int] = {                       # a JPEG is decoded at 1/2, 1/4 or 1/8 of its size, but not smaller
    "exact": 4 * IMAGE_SIZE,                     # mean error 0.002 grey levels on photographs of ImageNet
    "fast": IMAGE_SIZE,                          # 0.1 grey levels; large photographs are decoded up to 4 times as fast
}
MOST_PIXELS = 89_478_485                         # Pillow warns above this and refuses twice this number
LONGEST_SIDE = 1 << 14                           # pixels of an image whose shorter side is resized to IMAGE_SIZE
MOST_BYTES = 1 << 28                             # of an image in a tar file
HARMLESS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)            # as stored in warnings.filters
DAMAGE = (                                       # raised by Pillow
    OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError, RuntimeError, struct.error,
    zlib.error,
)
PILLOW_FORMATS = (*(name.upper() for name in FORMATS), "MPO")             # MPO: a JPEG with further images
OPTIONAL = ("WebP", "AVIF")                      # formats that some builds of Pillow lack
SIXTEEN_BITS = ("PNG", "PPM")                    # formats whose mode I holds 16-bit values
DARKEST = 16                                     # grey level that a float image from 0 to 255 must reach
LOADING = threading.Lock()                       # threads may get the same Pillow image, which is decoded once
ORIENTATION = 0x0112                             # EXIF tag
TURNS = {                                        # EXIF 2.32, section 4.6.4: value -> transposition to upright
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

ImageSource = FilePath | io.BufferedIOBase | np.ndarray | Image.Image             # what image_of() accepts


class BadImage(InputError):
    """An image file that cannot be used. The message gives the reason."""


def image_of(source: ImageSource, resize: str = "squash") -> np.ndarray:
    """Return an image from a file (read_image) or from memory (pixels_of): uint8 (256, 256, 3). Raises BadImage."""
    if isinstance(source, str | bytes | os.PathLike | io.BufferedIOBase):
        return read_image(source, resize)
    return pixels_of(source, resize)


def read_image(source: FilePath | io.BufferedIOBase, resize: str = "squash", decode: str = "exact") -> np.ndarray:
    """Read an image file as uint8 (256, 256, 3), RGB, upright according to its EXIF orientation.

    The format is recognised by content, not by file name (alexnet.data.image_formats). Transparent images are
    composited on white, 16-bit grey keeps its upper 8 bits, and Pillow converts CMYK to RGB. Of an animation or of
    several pages, the first is read.

    Args:
        source: path of the file, or an open, seekable binary file, which is read from its start.
        resize: "squash" (to 256 x 256), "crop" (the central square, to 256 x 256) or "shorter" (the shorter side to 256
            pixels, then the central 256 x 256).
        decode: a key of DECODE; "shorter" always decodes at full size.

    Raises:
        BadImage: the file is damaged, empty, of another format or absurdly large, or not a regular file: reading a pipe
            might never end.
    """
    ignore_harmless_warnings()
    try:
        if not isinstance(source, str | bytes | os.PathLike):
            return decoded(source, resize, decode)
        refuse_pipe(source)
        with open(os.fsencode(source), "rb") as file:
            return decoded(file, resize, decode)
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(f"is absurdly large: {one_line(error)}") from error
    except DAMAGE as error:
        raise BadImage(reason(error, source)) from error


def decoded(file: io.BufferedIOBase, resize: str, decode: str) -> np.ndarray:
    """Decode an image from a binary file object; see read_image. Raises BadImage or one of DAMAGE."""
    head = file.read(HEAD)
    file.seek(0)
    if not head:
        raise BadImage("is empty")
    found = image_format(head)
    if found not in FORMATS:
        raise BadImage(refusal(found))
    try:
        image = Image.open(cast(BinaryIO, file), formats=(found,))
    except (KeyError, Image.UnidentifiedImageError) as error:            # KeyError: an old Pillow without this format
        built = f", or Pillow was built without {found}" if found in OPTIONAL else ""
        raise BadImage(f"is damaged: its {found} header is invalid{built}") from error
    with image:
        refuse_bomb(image)
        if found == "PNG":
            refuse_wrong_checksum(cast(BinaryIO, file))
        whole = image.size
        if resize != "shorter":                  # its pixels are exactly torchvision's, which decodes at full size
            image.draft(None, (DECODE[decode], DECODE[decode]))
        pixels = decoded_directly(image, file) if found == "JPEG" and image.size == whole else None
        return resized(rgb(upright(image)) if pixels is None else pixels, resize)


def decoded_directly(image: Image.Image, file: io.BufferedIOBase) -> np.ndarray | None:
    """Return a JPEG decoded by simplejpeg into an array, uint8 (rows, columns, 3), in two thirds of Pillow's time.

    Both use libjpeg-turbo, with equal results. Returns None for Pillow to decode it: simplejpeg is not installed, or
    the image is not RGB, is turned, or is damaged; whether it can be used, Pillow decides.
    """
    simplejpeg = optional_decoder()
    if simplejpeg is None or image.mode != "RGB" or turn_of(image) is not None:
        return None
    file.seek(0)
    try:
        return simplejpeg.decode_jpeg(file.read())
    except ValueError:
        return None


@cache
def optional_decoder() -> ModuleType | None:
    """Return simplejpeg if it is installed."""
    try:
        import simplejpeg  # here, because it is optional
    except ImportError:
        return None
    return simplejpeg


def read_member(file: io.FileIO | io.BufferedReader, offset: int, size: int) -> io.BytesIO:
    """Return the bytes of an image in a tar file, as a file. Raises BadImage."""
    if size > MOST_BYTES:
        raise BadImage(f"is absurdly large: {size:,} bytes")
    content = os.pread(file.fileno(), size, offset)
    if len(content) < size:
        raise BadImage("is cut off: the tar file has become shorter")
    return io.BytesIO(content)


def refuse_bomb(image: Image.Image) -> None:
    """Raise BadImage if an image has more than MOST_PIXELS."""
    if image.width * image.height > MOST_PIXELS:
        raise BadImage(f"is absurdly large: {image.width} x {image.height} pixels")


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


def reason(error: Exception, source: FilePath | io.BufferedIOBase) -> str:
    """Return why an image cannot be used, in a few words without its name."""
    if isinstance(error, FileNotFoundError) and isinstance(source, str | bytes) and is_url(source):
        return "is a URL, not a file; download it first, or: curl -L URL | python -m alexnet predict --weights W -"
    if isinstance(error, IsADirectoryError):
        return "is a folder, not an image"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be opened: {error.strerror}"
    return f"is damaged: {one_line(error)}"


def upright(image: Image.Image) -> Image.Image:
    """Return the image transposed according to its EXIF orientation. Unreadable EXIF data is ignored."""
    image.load()                                 # first: loading a TIFF applies its orientation and removes the tag
    turn = turn_of(image)
    return image if turn is None else image.transpose(turn)


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """Return the transposition to upright that the EXIF orientation requires, or None."""
    try:
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    except DAMAGE:
        return None


def rgb(image: Image.Image) -> Image.Image:
    """Return the image in mode RGB; raises BadImage if its values have no known range, or its colours no formula."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in SIXTEEN_BITS):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "I":
        raise BadImage("has 32-bit whole numbers, whose range is unknown; convert it to 8 bits per channel")
    if image.mode == "F":
        return Image.fromarray(bytes_of(np.asarray(image))).convert("RGB")
    if image.mode == "LAB":
        raise BadImage("has CIELAB colours; convert it to RGB")          # its band A is no alpha
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")        # convert() would copy it


def resized(image: Image.Image | np.ndarray, method: str) -> np.ndarray:
    """Return an RGB image resized to 256 x 256 pixels, bilinear: uint8 (256, 256, 3).

    Source of "shorter": torchvision's Resize(256) and CenterCrop. An even crop of its centre has CenterCrop's pixels.
    """
    width, height = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
    side = min(width, height)
    if method == "shorter":
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        size = [IMAGE_SIZE * n // side for n in image.size]
        x, y = (round((n - IMAGE_SIZE) / 2) for n in size)
        if max(size) > LONGEST_SIDE:             # only the window, because the whole would take gigabytes
            step_x, step_y = (n / m for n, m in zip(image.size, size, strict=True))
            right, bottom = min((x + IMAGE_SIZE) * step_x, width), min((y + IMAGE_SIZE) * step_y, height)
            box = (x * step_x, y * step_y, right, bottom)
            return np.asarray(image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR, box=box))
        window = (x, y, x + IMAGE_SIZE, y + IMAGE_SIZE)
        return np.asarray(image.resize((size[0], size[1]), Image.Resampling.BILINEAR).crop(window))
    left, top = (width - side) / 2, (height - side) / 2
    return resize(image, IMAGE_SIZE, None if method == "squash" else (left, top, left + side, top + side))


def pixels_of(image: np.ndarray | Image.Image, resize: str = "squash") -> np.ndarray:
    """Convert an image in memory as read_image does a file: to uint8 (256, 256, 3), RGB.

    Args:
        image: a Pillow image, or an array: (rows, columns) or (rows, columns, 1), grey; (rows, columns, 3), RGB;
            (rows, columns, 4), RGB with alpha. Its values are uint8, or floats from 0 to 1 or from 0 to 255; see
            bytes_of.

    Raises:
        BadImage: the type, shape, dtype or range of the image is not one of these.
    """
    if isinstance(image, Image.Image):
        return resized(rgb(loaded(image)), resize)
    if not isinstance(image, np.ndarray):
        raise BadImage(f"must be a path, a Pillow image or a NumPy array, got {type(image).__name__}")
    grey_levels = np.ascontiguousarray(bytes_of(channels_last(image)))
    return resized(rgb(Image.fromarray(grey_levels)), resize)


def loaded(image: Image.Image) -> Image.Image:
    """Return a Pillow image with its pixels decoded, upright; raises BadImage."""
    if isinstance(image, ImageFile.ImageFile) and image.format not in PILLOW_FORMATS:
        raise BadImage(f"is an opened {image.format} file, which is not decoded here; pass image.convert('RGB')")
    if not image.width * image.height:
        raise BadImage("has no pixels")
    refuse_bomb(image)
    ignore_harmless_warnings()
    try:
        with LOADING:
            return upright(image)
    except DAMAGE as error:
        raise BadImage(f"is damaged: {one_line(error)}") from error


def channels_last(array: np.ndarray) -> np.ndarray:
    """Return an image array as (rows, columns) or (rows, columns, 3 or 4); raises BadImage."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if not array.size or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        hint = ""
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = "; put the channels last: array.transpose(1, 2, 0)"
        if array.ndim == 4:
            hint = "; pass the images of a batch one by one"
        raise BadImage(f"must have shape (rows, columns), or (rows, columns, 3) for RGB, got {array.shape}{hint}")
    return array


def bytes_of(array: np.ndarray) -> np.ndarray:
    """Return the grey levels of an image array as uint8.

    Floats that reach at most 1 are taken as 0 to 1, floats that reach at least DARKEST as 0 to 255. Other floats are
    ambiguous: a bright image from 0 to 1 with overshoot, or a dark one from 0 to 255.

    Raises:
        BadImage: the dtype is neither uint8 nor float, or the range of the floats is ambiguous.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise BadImage(f"must be uint8, or float from 0 to 1 or 0 to 255, got {array.dtype}; convert grey levels from "
                       "0 to 255 with array.astype(numpy.uint8)")
    least, most = float(array.min()), float(array.max())
    if not (0 <= least <= most <= 255):          # also false for NaN
        raise BadImage(f"has floats from {least:.4g} to {most:.4g}; pass them from 0 to 1 or from 0 to 255, without "
                       "subtracting a mean")
    if 1 < most < DARKEST:
        raise BadImage(f"has floats from {least:.4g} to {most:.4g}, which is neither 0 to 1 nor clearly 0 to 255; "
                       "clip them, or pass uint8")
    if most == 1 and np.isin(array, (0, 1)).all():
        raise BadImage("has only the floats 0 and 1, which may be black and white or two dark levels; pass uint8")
    return np.rint(array * (255.0 if most <= 1 else 1.0)).astype(np.uint8)


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
