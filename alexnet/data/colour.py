"""PCA colour augmentation: shifts of the RGB values of an image along the principal components of the training pixels.

    [R, G, B] <- [R, G, B] + P (l * a),  a ~ N(0, deviation)

l are the eigenvalues and the columns of P the eigenvectors of the covariance of RGB values over the pixels of the
training images. The three numbers a are drawn once for each image and use.

An eigenvalue is a variance, so the size of the shift depends on the unit of the values, which the paper does not state.
Here the values are from 0 to 1. The shift is then converted to grey levels.

Source: Krizhevsky et al. 2012, section 4.1. The unit is that of fb.resnet.torch (datasets/transforms.lua, Lighting);
MXNet's LightingAug has the same shifts in grey levels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alexnet.data import batch_file
from alexnet.data.augment import IMAGE_SIZE

FILES = 32                                       # most batch files in the sample
ROWS = 16                                        # every 16th row of their images is in the sample
CHUNK = 1 << 20                                  # pixels that are converted to float64 together
GREY_LEVELS = 255.0                              # of the value 1


class PrincipalColours(NamedTuple):
    """The principal components of RGB values from 0 to 1, largest variance first."""

    variances: np.ndarray                        # float64 (3,), the eigenvalues of the covariance
    vectors: np.ndarray                          # float64 (3, 3), a unit vector in each column

    def deviations(self, deviation: float) -> np.ndarray:
        """Return the standard deviations of the shifts along the components, in grey levels."""
        return GREY_LEVELS * deviation * self.variances


def colours_of(files: Sequence[Path]) -> PrincipalColours:
    """Return the principal components of a sample of batch files.

    Raises:
        DataError: a file cannot be read.
    """
    return principal_components(colour_covariance(sample(files)) / GREY_LEVELS**2)


def sample(files: Sequence[Path]) -> list[Path]:
    """Return at most FILES of the files, evenly spaced, with the first and the last."""
    n = min(len(files), FILES)
    return [files[place] for place in np.linspace(0, len(files) - 1, n).round().astype(int)]


def colour_covariance(files: Sequence[Path]) -> np.ndarray:
    """Return the covariance of RGB values in every ROWS-th row of the images, float64 (3, 3), in grey levels squared.

    The sums are whole numbers less than 2**53, so they are exact, and equal on every worker and machine.
    """
    n = 0
    sums = np.zeros(3)
    products = np.zeros((3, 3))
    for path in files:
        with batch_file.opened(path, IMAGE_SIZE) as file:
            pixels = file.rows(ROWS).reshape(3, -1)
        n += pixels.shape[1]
        for first in range(0, pixels.shape[1], CHUNK):
            values = pixels[:, first:first + CHUNK].astype(np.float64)
            sums += values.sum(axis=1)
            products += values @ values.T
    return (products - np.outer(sums, sums) / n) / n


def principal_components(covariance: np.ndarray) -> PrincipalColours:
    """Return the eigenvalues and eigenvectors of a covariance, largest first.

    The largest entry of each vector is positive: LAPACK leaves the sign open, and the random shifts depend on it.
    """
    variances, vectors = np.linalg.eigh(covariance)
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(3)]
    return PrincipalColours(variances[::-1], (vectors * np.sign(largest))[:, ::-1])


def draw_colour_offsets(
    generator: np.random.Generator, batch: int, colours: PrincipalColours, deviation: float
) -> np.ndarray:
    """Draw the shift of each image of a batch: float32 (3, batch), in grey levels.

    Args:
        deviation: standard deviation of the factors of the eigenvalues; Krizhevsky et al. 2012: 0.1.
    """
    factors = generator.normal(0.0, deviation, (3, batch))
    return (GREY_LEVELS * colours.vectors @ (colours.variances[:, np.newaxis] * factors)).astype(np.float32)
