"""Resizing in C: the pixels of the installed Pillow, to the bit."""

import numpy as np
import pytest
from PIL import Image

from alexnet.data.resize import resize
from alexnet.native import compiler

SIZES = [
    (1, 1), (2, 3), (255, 256), (256, 256), (256, 500), (500, 256), (257, 258), (257, 259), (300, 344), (300, 345),
    (250, 300), (100, 200), (500, 375), (375, 500), (31, 2000), (2000, 31), (1200, 900),
    (70_000, 2),                                 # wider than the kernel takes
]


@pytest.mark.parametrize("with_box", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_are_those_of_pillow(size, with_box, rng):
    width, height = size
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    side = min(size)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side) if with_box else None
    expected = np.asarray(image.resize((256, 256), Image.Resampling.BILINEAR, box=box))
    np.testing.assert_array_equal(resize(image, 256, box), expected)


def test_without_a_compiler_pillow_resizes(monkeypatch, rng):
    image = Image.fromarray(rng.integers(0, 256, (300, 200, 3), dtype=np.uint8))
    expected = resize(image, 256)
    monkeypatch.setattr(compiler, "compiler_available", lambda: False)
    np.testing.assert_array_equal(resize(image, 256), expected)
