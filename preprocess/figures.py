"""Synthetic pictures of ten classes that differ in shape and texture, but not in colour.

Every picture has two random colours, either of which can be the figure's; their mean is near grey in every class.
Size, rotation, position, lighting and noise are random, too.  A mirrored picture belongs to the same class.  Each
figure is a function of the plane: (x, y, random) -> approximate distance in pixels to the figure's edge, positive
inside.

The contrast is strong and the textures are fine because AlexNet's initial weights are small: the more the responses
of random filters differ between classes, the sooner training leaves its initial plateau.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.random import Generator

MIDDLE = (108, 148)                              # grey levels, mean of a picture in each channel
CONTRAST = (70, 110)                             # grey levels between either colour and their mean, in each channel
NOISE = 5                                        # grey levels, standard deviation
LIGHT = 12                                       # grey levels, largest change from the middle to an edge
TURN = 0.15                                      # radians, largest rotation in either direction

Figure = Callable[[np.ndarray, np.ndarray, Generator], np.ndarray]


def turned(x: np.ndarray, y: np.ndarray, random: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rotate the plane by a small random angle."""
    angle = random.uniform(-TURN, TURN)
    cosine = math.cos(angle)
    sine = math.sin(angle)
    return cosine * x - sine * y, sine * x + cosine * y


def tiled(x: np.ndarray, y: np.ndarray, random: Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """Divide the plane into cells of 51 to 85 pixels; return x, y from each cell's centre and a fitting radius."""
    cell = 256 / int(random.integers(3, 6))
    x, y = ((v + random.uniform(0, cell)) % cell - cell / 2 for v in (x, y))
    return *turned(x, y, random), cell * random.uniform(0.28, 0.4)


def wave(x: np.ndarray, y: np.ndarray, random: Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """Rotate the plane; return x, y and a random period of 11 to 22 pixels."""
    return *turned(x, y, random), random.uniform(11, 22)


def centred(x: np.ndarray, y: np.ndarray, random: Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance and angle from a random centre near the middle."""
    x, y = (v - random.uniform(-60, 60) for v in (x, y))
    return np.hypot(x, y) + 1e-3, np.arctan2(y, x)


def swing(phase: np.ndarray, period: float | np.ndarray) -> np.ndarray:
    """Return the distance in pixels to the edge of a stripe, from the phase of a sine of that period."""
    return np.sin(phase) * period / 6


def discs(x: np.ndarray, y: np.ndarray, random: Generator) -> np.ndarray:
    x, y, radius = tiled(x, y, random)
    return radius - np.hypot(x, y)


def rings(x: np.ndarray, y: np.ndarray, random: Generator) -> np.ndarray:
    distance, _ = centred(x, y, random)
    period = random.uniform(11, 22)
    return swing(distance * 2 * math.pi / period + random.uniform(0, 2 * math.pi), period)


def triangles(x: np.ndarray, y: np.ndarray, random: Generator) -> np.ndarray:
    x, y, radius = tiled(x, y, random)
    return np.minimum(0.5 * radius + y, 0.55 * radius - (0.866 * np.abs(x) + 0.5 * y))


def crosses(x: np.ndarray, y: np.ndarray, random: Generator) -> np.ndarray:
    x, y, radius = tiled(x, y, random)
    x, y = np.abs(x), np.abs(y)
    arm = 0.3 * radius
    return np.maximum(np.minimum(arm - x, radius - y), np.minimum(arm - y, radius - x))


def rays(x: np.ndarray, y: np.ndarray, random: Generator) -> np.ndarray:
    distance, angle = centred(x, y, random)
    number = int(random.integers(10, 17))
    return swing(number * angle + random.uniform(0, 2 * math.pi), 6 * distance / number)


def horizontal_stripes(x: np.ndarray, y: np.ndarray, random: Generator) -> np.ndarray:
    _, y, period = wave(x, y, random)
    return swing(y * 2 * math.pi / period + random.uniform(0, 2 * math.pi), period)


def vertical_stripes(x: np.ndarray, y: np.ndarray, random: Generator) -> np.ndarray:
    return horizontal_stripes(y, x, random)


def diagonal_stripes(x: np.ndarray, y: np.ndarray, random: Generator) -> np.ndarray:
    side = int(random.choice([-1, 1]))
    return horizontal_stripes((x - side * y) / math.sqrt(2), (side * x + y) / math.sqrt(2), random)


def checkerboard(x: np.ndarray, y: np.ndarray, random: Generator) -> np.ndarray:
    x, y, period = wave(x, y, random)
    start = random.uniform(0, 2 * math.pi)
    return swing(x * 2 * math.pi / period + start, period) * np.sin(y * 2 * math.pi / period + start)


def dots(x: np.ndarray, y: np.ndarray, random: Generator) -> np.ndarray:
    x, y, period = wave(x, y, random)
    cell = 0.8 * period
    x, y = ((v + random.uniform(0, cell)) % cell - cell / 2 for v in (x, y))
    return 0.25 * cell - np.hypot(x, y)


FIGURES = (
    discs, rings, triangles, crosses, rays,
    horizontal_stripes, vertical_stripes, diagonal_stripes, checkerboard, dots,
)


def draw(figure: Figure, width: int, height: int, random: Generator) -> np.ndarray:
    """Draw a figure, such as those of FIGURES: uint8 (height, width, 3)."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = x - width / 2, y - height / 2
    inside = np.clip(figure(x, y, random) + 0.5, 0, 1)[..., np.newaxis]
    middle = random.uniform(*MIDDLE, 3).astype(np.float32)
    contrast = (random.choice([-2, 2]) * random.uniform(*CONTRAST, 3)).astype(np.float32)
    picture = random.standard_normal((height, width, 3), np.float32) * NOISE
    picture += middle + contrast * (inside - inside.mean())
    angle = random.uniform(0, 2 * math.pi)
    light = random.uniform(-2, 2) * LIGHT / max(width, height)
    picture += (light * math.cos(angle) * x + light * math.sin(angle) * y)[..., np.newaxis]
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)
