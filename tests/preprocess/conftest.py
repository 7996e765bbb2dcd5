"""A small tree of class folders with images in them."""

import numpy as np
import pytest
from PIL import Image

CLASSES = ("n01440764", "n02119789", "n03000000")


def draw(path, seed):
    """A coarse random picture, as JPEG or PNG by its name."""
    random = np.random.default_rng(seed)
    width, height = random.integers(20, 60, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def tree(tmp_path):
    """20 training and 7 validation images of three classes, as class folders train/ and val/."""
    for i in range(20):
        draw(tmp_path / "train" / CLASSES[i % 3] / f"{i}.{('JPEG', 'png', 'jpg')[i % 3]}", i)
    for i in range(7):
        draw(tmp_path / "val" / CLASSES[i % 3] / f"{i}.JPEG", 100 + i)
    return tmp_path
