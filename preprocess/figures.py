"""Made pictures of ten classes that differ in shape and texture, never in colour.

Every picture has its own two colours, either of them the figure's, with a mean near grey whatever the class;
its own size, turn, position, light and noise.  A class reads the same in a mirror.  Each is a function of the
plane: (x, y, random) -> the distance in pixels to the figure's edge, positive inside, more or less.

The contrast is strong and the textures are fine because AlexNet's first weights are small: the larger the
differences between classes that random filters see, the sooner it leaves the plateau it starts on.
"""

import math

import numpy as np

MIDDLE = (108, 148)                              # grey levels, mean of a picture in each channel
CONTRAST = (70, 110)                             # grey levels between either colour and halfway, in each channel
NOISE = 5                                        # grey levels, standard deviation
LIGHT = 12                                       # grey levels, largest change from the middle to an edge
TURN = 0.15                                      # radians, largest turn to either side


def turned(x, y, random):
    """The plane turned by a small random angle."""
    angle = random.uniform(-TURN, TURN)
    cosine, sine = math.cos(angle), math.sin(angle)
    return cosine * x - sine * y, sine * x + cosine * y


def tiled(x, y, random):
    """The plane as a lattice of cells, 51 to 85 pixels wide: x, y from each cell's centre, and a radius that fits."""
    cell = 256 / int(random.integers(3, 6))
    x, y = ((v + random.uniform(0, cell)) % cell - cell / 2 for v in (x, y))
    return *turned(x, y, random), cell * random.uniform(0.28, 0.4)


def wave(x, y, random):
    """A turned plane, with a period of 11 to 22 pixels."""
    return *turned(x, y, random), random.uniform(11, 22)


def centred(x, y, random):
    """Distance and angle from a centre near the middle."""
    x, y = (v - random.uniform(-60, 60) for v in (x, y))
    return np.hypot(x, y) + 1e-3, np.arctan2(y, x)


def swing(phase, period):
    """Pixels to the edge of a stripe, from the phase of a sine of that period."""
    return np.sin(phase) * period / 6


def discs(x, y, random):
    x, y, radius = tiled(x, y, random)
    return radius - np.hypot(x, y)


def rings(x, y, random):
    distance, _ = centred(x, y, random)
    period = random.uniform(11, 22)
    return swing(distance * 2 * math.pi / period + random.uniform(0, 2 * math.pi), period)


def triangles(x, y, random):
    x, y, radius = tiled(x, y, random)
    return np.minimum(0.5 * radius + y, 0.55 * radius - (0.866 * np.abs(x) + 0.5 * y))


def crosses(x, y, random):
    x, y, radius = tiled(x, y, random)
    x, y = np.abs(x), np.abs(y)
    arm = 0.3 * radius
    return np.maximum(np.minimum(arm - x, radius - y), np.minimum(arm - y, radius - x))


def rays(x, y, random):
    distance, angle = centred(x, y, random)
    number = int(random.integers(10, 17))
    return swing(number * angle + random.uniform(0, 2 * math.pi), 6 * distance / number)


def horizontal_stripes(x, y, random):
    _, y, period = wave(x, y, random)
    return swing(y * 2 * math.pi / period + random.uniform(0, 2 * math.pi), period)


def vertical_stripes(x, y, random):
    return horizontal_stripes(y, x, random)


def diagonal_stripes(x, y, random):
    side = int(random.choice([-1, 1]))
    return horizontal_stripes((x - side * y) / math.sqrt(2), (side * x + y) / math.sqrt(2), random)


def checkerboard(x, y, random):
    x, y, period = wave(x, y, random)
    start = random.uniform(0, 2 * math.pi)
    return swing(x * 2 * math.pi / period + start, period) * np.sin(y * 2 * math.pi / period + start)


def dots(x, y, random):
    x, y, period = wave(x, y, random)
    cell = 0.8 * period
    x, y = ((v + random.uniform(0, cell)) % cell - cell / 2 for v in (x, y))
    return 0.25 * cell - np.hypot(x, y)


FIGURES = (
    discs, rings, triangles, crosses, rays,
    horizontal_stripes, vertical_stripes, diagonal_stripes, checkerboard, dots,
)


def draw(figure, width, height, random):
    """A picture of a figure, such as those of FIGURES, uint8 (height, width, 3); random is a numpy Generator."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = x - width / 2, y - height / 2
    inside = np.clip(figure(x, y, random) + 0.5, 0, 1)[..., np.newaxis]
    middle = random.uniform(*MIDDLE, 3).astype(np.float32)
    contrast = (random.choice([-2, 2]) * random.uniform(*CONTRAST, 3)).astype(np.float32)
    picture = random.standard_normal((height, width, 3), np.float32) * NOISE
    picture += middle + contrast * (inside - inside.mean())
    angle, light = random.uniform(0, 2 * math.pi), random.uniform(-2, 2) * LIGHT / max(width, height)
    picture += (light * math.cos(angle) * x + light * math.sin(angle) * y)[..., np.newaxis]
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)
