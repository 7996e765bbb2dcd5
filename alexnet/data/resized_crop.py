"""Windows of random area and aspect ratio, resized to the input of the network.

The share of a window in the image's area is uniform in [least, 1], and the logarithm of its width / height is uniform
in [log 3/4, log 4/3]. A window that is wider or higher than the image is drawn again, up to ATTEMPTS times.

Source: Szegedy et al. 2014 ("Going deeper with convolutions"), section 6; torchvision's RandomResizedCrop for the
attempts, for the window if none of them fits (the whole of a square image), and for resizing after cropping.
"""

import math
from typing import NamedTuple

import numpy as np

from alexnet.data.augment import IMAGE_SIZE

ASPECT = 4 / 3                                   # largest width / height; the smallest is 1 / ASPECT
ATTEMPTS = 10
TOGETHER = 64                                    # images converted together: a cache line of pixels in a batch file


class ResizedCrop(NamedTuple):
    """The window of each image of a batch, which is resized, and whether it is mirrored left to right."""

    rows: np.ndarray                             # int32 (batch,), first row of the window
    columns: np.ndarray                          # int32 (batch,), first column of the window
    heights: np.ndarray                          # int32 (batch,)
    widths: np.ndarray                           # int32 (batch,)
    mirrors: np.ndarray                          # uint8 (batch,), 1 = mirrored

    def part(self, images: slice) -> "ResizedCrop":
        """Return the windows of these images."""
        return ResizedCrop(*(values[images] for values in self))


def draw_resized_crop(generator: np.random.Generator, batch: int, least: float, per_batch: bool = False) -> ResizedCrop:
    """Draw a window and a fair mirror flag for each image of a batch.

    Args:
        least: smallest share of the window in the image's area.
        per_batch: draw once for the whole batch (upstream's batch_crop_mirror).
    """
    draws = 1 if per_batch else batch
    areas = IMAGE_SIZE**2 * generator.uniform(least, 1.0, (ATTEMPTS, draws))
    ratios = np.exp(generator.uniform(-math.log(ASPECT), math.log(ASPECT), (ATTEMPTS, draws)))
    widths = np.rint(np.sqrt(areas * ratios)).astype(np.int32)
    heights = np.rint(np.sqrt(areas / ratios)).astype(np.int32)
    fits = (widths > 0) & (widths <= IMAGE_SIZE) & (heights > 0) & (heights <= IMAGE_SIZE)
    chosen = fits.argmax(axis=0), np.arange(draws)           # the first attempt that fits
    width = np.where(fits[chosen], widths[chosen], np.int32(IMAGE_SIZE))
    height = np.where(fits[chosen], heights[chosen], np.int32(IMAGE_SIZE))
    rows = generator.integers(0, IMAGE_SIZE - height + 1, dtype=np.int32)
    columns = generator.integers(0, IMAGE_SIZE - width + 1, dtype=np.int32)
    mirrors = generator.integers(0, 2, draws, dtype=np.uint8)
    return ResizedCrop(*(np.resize(drawn, batch) for drawn in (rows, columns, height, width, mirrors)))


def resize_batch(images: np.ndarray, mean: np.ndarray, crop: ResizedCrop, out: np.ndarray) -> None:
    """Write the windows of images - mean, resized bilinearly with antialiasing and mirrored, to out.

    Args:
        images: uint8 (3, row, column, batch).
        mean: float32 (3, row, column).
        out: float32 (3, size, size, batch).
    """
    for first in range(0, images.shape[3], TOGETHER):
        part = slice(first, first + TOGETHER)
        resized = resize_each(images_first(images[..., part]), mean, crop.part(part), out.shape[1])
        for channel, row in np.ndindex(*out.shape[:2]):
            out[channel, row, :, part] = resized[:, channel, row].T


def resize_each(images: np.ndarray, mean: np.ndarray, crop: ResizedCrop, size: int) -> np.ndarray:
    """Return the windows of images - mean: uint8 (image, 3, row, column) -> float32 (image, 3, size, size)."""
    from alexnet.data.resize import resize_channels  # only this needs Pillow, and not every run

    out = np.empty((len(images), images.shape[1], size, size), np.float32)
    for image, pixels, row, column, height, width, mirror in zip(images, out, *crop, strict=True):
        window = np.s_[:, row:row + height, column:column + width]
        resized = resize_channels(image[window] - mean[window], size)
        pixels[...] = resized[..., ::-1] if mirror else resized
    return out


def images_first(images: np.ndarray) -> np.ndarray:
    """Return a copy of images (channel, row, column, image) as (image, channel, row, column).

    Works row by row: the pixels of one image are a batch apart, so copying the images one by one would read each cache
    line many times.
    """
    channels, rows, columns, batch = images.shape
    out = np.empty((batch, channels, rows, columns), images.dtype)
    for channel, row in np.ndindex(channels, rows):
        out[:, channel, row] = np.ascontiguousarray(images[channel, row].T)
    return out
