"""Crop, mirror and mean subtraction of whole batches in NumPy, and the random streams for them.

Every stream is counter based: a pure function of seed, rank and iteration or epoch. A checkpoint therefore stores
only these numbers.

Source: Ding et al. 2014, section 2.1 and footnote 2; Krizhevsky et al. 2012, section 4.1.
"""

from typing import NamedTuple

import numpy as np

IMAGE_SIZE = 256                                 # pixels, rows and columns of a stored image
# How images become IMAGE_SIZE x IMAGE_SIZE: the whole image; its central square; or the shorter side to IMAGE_SIZE and
# then the central square.
RESIZES = ("squash", "crop", "shorter")
Scale = tuple[float, float, float]               # RGB: factor of each channel after the mean is subtracted
LARGEST = float(np.finfo(np.float32).max)        # a larger integer of JSON cannot be converted
UNSCALED: Scale = (1.0, 1.0, 1.0)
CROPS = 1                                        # stream numbers: the second word of the key; others use 3 to 5
FILES = 2
COLOURS = 6
RESIZED_CROPS = 7


class Crop(NamedTuple):
    """The crop window of each image of a batch, and whether the window is mirrored left to right."""

    rows: np.ndarray                             # int32 (batch,), first row of the window
    columns: np.ndarray                          # int32 (batch,), first column of the window
    mirrors: np.ndarray                          # uint8 (batch,), 1 = mirrored

    def part(self, images: slice) -> "Crop":
        """Return the windows of these images."""
        return Crop(*(values[images] for values in self))


def scale_of(found: object) -> Scale:
    """Return a Scale from the metadata of a file.

    Raises:
        ValueError: it is not three positive numbers; the message lacks the name of the file.
    """
    factors = found if isinstance(found, list | tuple) else ()
    numbers = [float(np.float32(factor)) for factor in factors if isinstance(factor, int | float) and factor <= LARGEST]
    if not len(numbers) == len(factors) == 3 or not all(0 < factor < np.inf for factor in numbers):
        raise ValueError(f"scale {found!r}; it must be one positive number for each of 3 channels")
    red, green, blue = numbers
    return red, green, blue


def random_stream(seed: int, which: int, *position: int) -> np.random.Generator:
    """Return a NumPy Generator at counter `position` (two integers) of stream `which` of `seed`."""
    return np.random.Generator(np.random.Philox(key=[seed, which], counter=[0, 0, *position]))


def crop_stream(seed: int, rank: int, iteration: int) -> np.random.Generator:
    """Return the Generator for the crops of worker `rank` at `iteration`, counted from the start of the run."""
    return random_stream(seed, CROPS, rank, iteration)


def colour_stream(seed: int, rank: int, iteration: int) -> np.random.Generator:
    """Return the Generator for the colour offsets of worker `rank` at `iteration`, as crop_stream() for the crops."""
    return random_stream(seed, COLOURS, rank, iteration)


def resized_crop_stream(seed: int, rank: int, iteration: int) -> np.random.Generator:
    """Return the Generator for the resized crops of worker `rank` at `iteration`, as crop_stream() for the crops."""
    return random_stream(seed, RESIZED_CROPS, rank, iteration)


def draw_crop(generator: np.random.Generator, batch: int, image_size: int, per_batch: bool = False) -> Crop:
    """Draw a uniformly random window of image_size pixels and a fair mirror flag for each image of a batch.

    Args:
        per_batch: draw once for the whole batch (upstream's batch_crop_mirror).
    """
    draws = 1 if per_batch else batch
    rows = generator.integers(0, IMAGE_SIZE - image_size + 1, draws, dtype=np.int32)
    columns = generator.integers(0, IMAGE_SIZE - image_size + 1, draws, dtype=np.int32)
    mirrors = generator.integers(0, 2, draws, dtype=np.uint8)
    return Crop(*(np.resize(drawn, batch) for drawn in (rows, columns, mirrors)))


def centre_crop(batch: int, image_size: int) -> Crop:
    """Return the centre window of every image, not mirrored, as used in validation."""
    corner = np.full(batch, (IMAGE_SIZE - image_size) // 2, np.int32)
    return Crop(corner, corner.copy(), np.zeros(batch, np.uint8))


def ten_crops(batch: int, image_size: int) -> list[Crop]:
    """Return ten Crops of every image: its four corners and its centre, then their mirror images.

    Source: Krizhevsky et al. 2012, section 4.1.
    """
    last = IMAGE_SIZE - image_size
    corners = ((0, 0), (0, last), (last, 0), (last, last), (last // 2, last // 2))
    return [
        Crop(np.full(batch, row, np.int32), np.full(batch, column, np.int32), np.full(batch, mirror, np.uint8))
        for mirror in (0, 1)
        for row, column in corners
    ]


def file_order(seed: int, epoch: int, n_files: int, shuffle: bool = True) -> np.ndarray:
    """Return the order in which an epoch reads its batch files: a permutation of range(n_files)."""
    if not shuffle:
        return np.arange(n_files)
    return random_stream(seed, FILES, 0, epoch).permutation(n_files)


def crop_batch(images: np.ndarray, mean: np.ndarray, crop: Crop, out: np.ndarray) -> None:
    """Write the cropped and mirrored windows of images - mean to out: the same pixels as upstream, in float32.

        out[:, i, j, b] = images[:, r + i, c + j, b] - mean[:, r + i, c + j]

    (r, c) is the first corner of b's window; j counts from the right if b is mirrored.

    Args:
        images: uint8 (3, row, column, batch).
        mean: float32 (3, row, column).
        out: float32 (3, size, size, batch).
    """
    size = out.shape[1]
    if all((drawn == drawn[0]).all() for drawn in crop):
        window = np.s_[:, crop.rows[0]:crop.rows[0] + size, crop.columns[0]:crop.columns[0] + size]
        mirror = np.s_[:, :, ::-1] if crop.mirrors[0] else np.s_[:]
        np.subtract(images[window][mirror], mean[window][mirror][..., np.newaxis], out=out)
    else:
        crop_each(images, mean, crop, out)


def crop_each(images: np.ndarray, mean: np.ndarray, crop: Crop, out: np.ndarray) -> None:
    """crop_batch for windows that differ between images.

    Processes one row of all images at a time, because the batch is the innermost axis in memory.
    """
    channels, size, _, batch = out.shape
    steps = np.arange(size)[:, np.newaxis]
    columns = crop.columns + np.where(crop.mirrors, size - 1 - steps, steps)
    pixels = images.reshape(channels, -1)
    means = mean.reshape(channels, -1)
    for row in range(size):
        places = (crop.rows + row) * mean.shape[2] + columns
        indices = places * batch + np.arange(batch)
        for channel in range(channels):
            np.subtract(pixels[channel].take(indices), means[channel].take(places), out=out[channel, row])
