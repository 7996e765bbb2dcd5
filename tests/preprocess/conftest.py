"""Fixtures: a small tree of class folders with images."""

import numpy as np
import pytest
from PIL import Image

CLASSES = ("n01440764", "n02119789", "n03000000")


def draw(path, seed):
    """Save a small random image, as JPEG or PNG depending on the file name."""
    random = np.random.default_rng(seed)
    width, height = random.integers(20, 60, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


def plant(folder):
    """Write 20 training and 7 validation images of three classes into class folders below train/ and val/."""
    for i in range(20):
        draw(folder / "train" / CLASSES[i % 3] / f"{i}.{('JPEG', 'png', 'jpg')[i % 3]}", i)
    for i in range(7):
        draw(folder / "val" / CLASSES[i % 3] / f"{i}.JPEG", 100 + i)
    return folder


@pytest.fixture
def tree(tmp_path):
    """Return a tree of plant() that tests may modify."""
    return plant(tmp_path)


@pytest.fixture(scope="session")
def evergreen(tmp_path_factory):
    """Return a tree of plant() that tests must not modify."""
    return plant(tmp_path_factory.mktemp("evergreen"))
