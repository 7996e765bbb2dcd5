"""Filters of the first layer as an image: a grid of RGB tiles."""

import math

import numpy as np


def mosaic(weights: np.ndarray) -> np.ndarray:
    """Arrange filters (3, row, column, n) in an RGB image (row, column, 3) in [0, 1], row by row, with white seams.

    Grey is 0, and each filter is scaled to its largest absolute weight.

    Raises:
        ValueError: the filters do not have 3 input channels.
    """
    channels, rows, columns, n = weights.shape
    if channels != 3:
        raise ValueError(f"filters must have 3 input channels to be drawn, got weights of shape {weights.shape}")
    width = math.ceil(math.sqrt(1.5 * n))
    height = math.ceil(n / width)
    largest = np.abs(weights).max(axis=(0, 1, 2))
    tiles = 0.5 + 0.5 * weights / np.where(largest > 0, largest, 1)
    grid = np.ones((height * (rows + 1) - 1, width * (columns + 1) - 1, 3))
    for index in range(n):
        top, left = index // width * (rows + 1), index % width * (columns + 1)
        grid[top : top + rows, left : left + columns] = tiles[..., index].transpose(1, 2, 0)
    return grid


def by_change(weights: np.ndarray, initial: np.ndarray) -> np.ndarray:
    """Return the indices of the filters (channel, row, column, n), the one that training has changed most first."""
    return np.argsort(-np.square(weights - initial).sum(axis=(0, 1, 2)), kind="stable")
