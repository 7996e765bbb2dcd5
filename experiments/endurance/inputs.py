"""The inputs of the trials: a data set of random images, and a tree of JPEGs."""

import numpy as np
from PIL import Image

from alexnet.data import batch_file
from alexnet.data.augment import IMAGE_SIZE

CLASSES = 3
PER_FILE = 8                                     # images in a batch file


def make_data(folder, train, validation, seed=0):
    """Write a data set in upstream's layout: random images whose brightness depends on the class."""
    rng = np.random.default_rng(seed)
    for part in ("labels", "misc"):
        (folder / part).mkdir(parents=True)
    for half, n in (("train", train), ("val", validation)):
        labels = rng.integers(0, CLASSES, n)
        place = folder / f"{half}_hkl_b{PER_FILE}_b_{PER_FILE}"
        place.mkdir()
        for number, first in enumerate(range(0, n, PER_FILE)):
            own = labels[first:first + PER_FILE]
            noise = rng.integers(0, 100, (3, IMAGE_SIZE, IMAGE_SIZE, len(own)), dtype=np.uint8)
            batch_file.write(place / f"{number:04d}.hkl", noise + 50 * own.astype(np.uint8))
        np.save(folder / "labels" / f"{half}_labels.npy", labels)
    np.save(folder / "misc" / "img_mean.npy", np.full((3, IMAGE_SIZE, IMAGE_SIZE), 100, "float32"))
    return folder


def make_images(folder, train, validation, seed=0):
    """Write small random JPEGs into class folders below train/ and val/."""
    rng = np.random.default_rng(seed)
    for half, n in (("train", train), ("val", validation)):
        for i in range(n):
            place = folder / half / f"n0000000{i % CLASSES}"
            place.mkdir(parents=True, exist_ok=True)
            height, width = rng.integers(20, 60, 2)
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{i}.JPEG")
    return folder
