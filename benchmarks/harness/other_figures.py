"""Six figures that are not among the ten of the synthetic data set, as classes for fine-tuning.

Each is a function of the plane, like the figures in preprocess/figures.py, and is drawn by the same code.
"""

import math
import os
import pathlib

import numpy as np
from PIL import Image

from preprocess.figures import centred, draw, swing, tiled, wave

SIDES = (240, 300)                               # pixels: minimum and maximum of width and height


def squares(x, y, random):
    x, y, radius = tiled(x, y, random)
    return 0.8 * radius - np.maximum(np.abs(x), np.abs(y))


def flowers(x, y, random):
    x, y, radius = tiled(x, y, random)
    return radius * (0.65 + 0.35 * np.cos(5 * np.arctan2(y, x))) - np.hypot(x, y)


def crescents(x, y, random):
    x, y, radius = tiled(x, y, random)
    bite = random.choice([-1, 1]) * 0.5 * radius
    return np.minimum(radius - np.hypot(x, y), np.hypot(x - bite, y) - 0.8 * radius)


def spirals(x, y, random):
    distance, angle = centred(x, y, random)
    period, arms = random.uniform(11, 22), random.choice([-2, 2])
    return swing(distance * 2 * math.pi / period + arms * angle, period)


def zigzags(x, y, random):
    x, y, period = wave(x, y, random)
    bent = y + 2 * period * np.abs(x / (2 * period) % 2 - 1)
    return swing(bent * 2 * math.pi / period, period)


def bricks(x, y, random):
    x, y, height = wave(x, y, random)
    course, across = np.floor(y / height), y % height
    along = (x + height * course) % (2 * height)
    return np.minimum(np.minimum(across, height - across), np.minimum(along, 2 * height - along)) - 0.15 * height


OTHERS = (squares, flowers, crescents, spirals, zigzags, bricks)


def draw_folders(folder, images, seed):
    """Write one class folder per figure, named after it, with `images` JPEGs each; return the parent folder."""
    for label, figure in enumerate(OTHERS):
        inside = pathlib.Path(folder, figure.__name__)
        inside.mkdir(parents=True)
        for i in range(images):
            random = np.random.default_rng((seed, label, i))
            width, height = random.integers(*SIDES, 2, endpoint=True)
            Image.fromarray(draw(figure, width, height, random)).save(os.fspath(inside / f"{i:04d}.JPEG"), quality=90)
    return folder
