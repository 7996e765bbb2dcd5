"""One image file -> uint8 (256, 256, 3).

Source: Ding et al. 2014's preprocessing squashes each image to 256 x 256 (bilinear); Krizhevsky et al. 2012,
section 2, scales the shorter side to 256 and takes the centre.
"""

import os
import struct
import warnings
import zlib

import numpy as np
from PIL import Image

from alexnet.augment import IMAGE_SIZE
from alexnet.hkl import one_line

RESIZES = ("squash", "crop")
DRAFT_SIZE = (4 * IMAGE_SIZE, 4 * IMAGE_SIZE)    # a JPEG may be decoded at this size: 0.15 grey levels off
BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)    # more than 89 million pixels
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, OverflowError, struct.error, zlib.error)    # Pillow's
ORIENTATION = 0x0112                             # EXIF tag
TURNS = {                                        # EXIF 2.32, section 4.6.4: value -> what puts the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(ValueError):
    """An image file that cannot be used; the message says why."""


def read_image(path, resize="squash"):
    """An image file as uint8 (256, 256, 3), upright by its EXIF orientation, RGB.

    resize: "squash" (to 256 x 256) or "crop" (the central square, to 256 x 256).  JPEG and PNG are told by
    their content, whatever the name.  What is transparent lies on white; 16-bit grey keeps its upper 8 bits;
    CMYK becomes RGB as Pillow does it.  Raises BadImage for damaged, empty, foreign or absurdly large files.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")          # "Corrupt EXIF data" and its like: harmless
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(os.fsencode(path), formats=("JPEG", "PNG")) as image:
                image.draft(None, DRAFT_SIZE)
                return np.asarray(resized(rgb(upright(image)), resize))
        except BOMB as error:
            raise BadImage(f"is absurdly large: {one_line(error)}") from error
        except DAMAGE as error:
            raise BadImage(reason(error, path)) from error


def reason(error, path):
    """Why an image cannot be used, in a few words without its name."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "is empty" if os.path.getsize(path) == 0 else "is neither JPEG nor PNG"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be opened: {error.strerror}"
    return f"is damaged: {one_line(error)}"


def upright(image):
    """The image turned as its EXIF orientation says; unreadable EXIF data says nothing."""
    try:
        orientation = image.getexif().get(ORIENTATION)
    except DAMAGE:
        return image
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def rgb(image):
    """The image in mode RGB."""
    if image.mode.startswith("I"):               # 16 bits of grey
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")        # which would copy it


def resized(image, resize):
    """The image at 256 x 256 pixels, bilinear."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = None if resize == "squash" else (left, top, left + side, top + side)
    return image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR, box=box)


def turn(images, out):
    """Copy images (image, row, column, channel) to out (channel, row, column, image).

    Row by row through a copy of that row of every image: where they lie the images are a multiple of 64 KiB apart,
    the same few lines of the cache for all of them, and turning them takes five times as long.
    """
    for row in range(images.shape[1]):
        out[:, row] = np.ascontiguousarray(images[:, row]).transpose(2, 1, 0)
