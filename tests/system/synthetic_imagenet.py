"""Synthetic ImageNet: a tree with ImageNet's counts, file names and special files, made of small images.

    FOLDER/train/n01440764/n01440764_10026.JPEG ...      1,281,167 in 1000 classes of 732 to 1300
    FOLDER/val/ILSVRC2012_val_00000001.JPEG ...          50,000, flat
    FOLDER/ILSVRC2012_devkit_t12/data/                   ground truth and meta.mat, with a different class order

Every image is a hard link to one of about 3,000 files. It is black except for a square in its corner. The square's
colour encodes the label in three digits, so the class of each image can be recovered from its pixels. Batch files store
each pixel of all images contiguously, so they are nearly all zeros.

The special files have the same names as in ImageNet: 22 CMYK images and one PNG in the training set, one CMYK image in
the validation set. One image in a hundred is grey.
"""

import os
import random
from typing import NamedTuple

import numpy as np
import scipy.io
from PIL import Image

from alexnet.data.ground_truth import GROUND_TRUTHS
from alexnet.pretrained import imagenet_names

TRAIN, VALIDATION = 1_281_167, 50_000
LARGEST, SMALLEST, SMALLER = 1300, 732, 105      # maximum and minimum images per class; classes below the maximum
NUMBERS = 30_000                                 # numbers in file names are smaller than this
CMYK = (
    "n01739381_1309 n02077923_14822 n02447366_23489 n02492035_15739 n02747177_10752 n03018349_4028 n03062245_4620 "
    "n03347037_9675 n03467068_12171 n03529860_11437 n03544143_17228 n03633091_5218 n03710637_5125 n03961711_5286 "
    "n04033995_2932 n04258138_17003 n04264628_27969 n04336792_7448 n04371774_5854 n04596742_4225 n07583066_647 "
    "n13037406_4650"
)
PNG = "n02105855_2933"
CMYK_VALIDATION = 19877                          # the number of the image
GREY = 100                                       # one image in this many is grey
SIZES = ((256, 256), (192, 256), (320, 240))     # width and height in pixels; most images have the first
OTHER = 10                                       # one image in this many has another size
SQUARE = 8                                       # pixels: one block of a JPEG
INSIDE = 2                                       # row and column inside the square, also after resizing to 256 x 256
LEVELS = range(20, 220, 22)                      # pixel values of the digits 0 to 9
GREY_LEVEL = 240


class Tree(NamedTuple):
    """Paths of the images, and their expected counts and labels."""

    train: str
    validation: str
    counts: np.ndarray                           # images per class
    validation_labels: np.ndarray                # int, in the order of the file names


def class_counts(images):
    """Return the images per class: 1000 integers with the sum `images`, distributed approximately as in ImageNet."""
    missing = np.zeros(1000, int)
    missing[:SMALLER] = (LARGEST - SMALLEST) * (1 - np.arange(SMALLER) / SMALLER) ** 2.24
    missing[1:SMALLER] += np.diff(np.arange(SMALLER) * (1000 * LARGEST - TRAIN - missing.sum()) // (SMALLER - 1))
    counts = np.random.default_rng(0).permutation(LARGEST - missing)
    if images == TRAIN:
        return counts
    if images < 1000:
        raise ValueError(f"a synthetic ImageNet needs at least 1000 images, one for each class, got {images}")
    return 1 + np.diff(np.cumsum(np.append(0, counts)) * (images - 1000) // TRAIN)


def special_images():
    """Return {file name without suffix: "CMYK" or "PNG"} of the training images that are not RGB or grey JPEGs."""
    return dict.fromkeys(CMYK.split(), "CMYK") | {PNG: "PNG"}


def wnids():
    """Return the WordNet ids in label order."""
    return [name.split()[0] for name in imagenet_names()]


def colour(label):
    """Return the colour of the square, which encodes the digits of the label."""
    return tuple(LEVELS[digit] for digit in (label // 100, label // 10 % 10, label % 10))


def label_of(pixels):
    """Decode pixels of squares, uint8 (3, images), into labels: -1 for grey, -2 if the colour encodes no label."""
    digits = np.rint((pixels.astype(float) - LEVELS[0]) / LEVELS.step).astype(int)
    labels = np.where(((digits >= 0) & (digits <= 9)).all(axis=0), np.array([100, 10, 1]) @ digits, -2)
    return np.where((np.abs(pixels.astype(int) - GREY_LEVEL) < LEVELS.step // 2).all(axis=0), -1, labels)


def picture(size, mode, value):
    """Return a black image with a coloured square in its corner, in mode RGB, L or CMYK."""
    image = Image.new(mode, size, (0, 0, 0, 255) if mode == "CMYK" else 0)
    ink = (*(255 - v for v in value), 0) if mode == "CMYK" else value
    image.paste(ink, (0, 0, SQUARE, SQUARE))
    return image


JPEG = {"format": "JPEG", "quality": 95, "subsampling": 0}           # so that a square's colour stays within its block


class Pictures:
    """The files in a folder that the images link to. Each file is created on first use."""

    def __init__(self, folder):
        self.folder, self.made = folder, set()
        os.makedirs(folder)

    def path(self, label, place, kind=None):
        """Return the path of the file for an image.

        Args:
            label: the class.
            place: index of the image; determines its size, and whether it is grey.
            kind: "CMYK", "PNG" or None for an ordinary image.
        """
        grey = kind is None and place % GREY == GREY - 1
        size = 0 if place % OTHER else place // OTHER % len(SIZES)
        name = f"grey_{size}" if grey else f"{label}_{kind or size}"
        path = os.path.join(self.folder, name)
        if name not in self.made:
            self.made.add(name)
            mode = "L" if grey else "CMYK" if kind == "CMYK" else "RGB"
            image = picture(SIZES[size], mode, GREY_LEVEL if grey else colour(label))
            image.save(path, **({"format": "PNG"} if kind == "PNG" else JPEG))
        return path


def numbers_of(label, images, special):
    """Return the numbers in the file names of a class: those of special files first, then random ones."""
    drawn = random.Random(label).sample(range(NUMBERS), images)
    return special + [number for number in drawn if number not in special][:images - len(special)]


def make_tree(folder, images=TRAIN, validation=VALIDATION):
    """Create the tree in a folder that does not contain one yet; return the Tree."""
    pictures = Pictures(os.path.join(folder, "pictures"))
    tree = Tree(
        os.path.join(folder, "train"), os.path.join(folder, "val"),
        class_counts(images), np.random.default_rng(2).permutation(np.arange(validation) % 1000),
    )
    kinds = special_images()
    special = {}
    for name in kinds:
        special.setdefault(name.split("_")[0], []).append(int(name.split("_")[1]))
    for label, wnid in enumerate(wnids()):
        inside = os.path.join(tree.train, wnid)
        os.makedirs(inside)
        for place, number in enumerate(numbers_of(label, int(tree.counts[label]), special.get(wnid, []))):
            name = f"{wnid}_{number}"
            os.link(pictures.path(label, place, kinds.get(name)), os.path.join(inside, f"{name}.JPEG"))
    os.makedirs(tree.validation)
    for place, label in enumerate(tree.validation_labels.tolist()):
        kind = "CMYK" if place + 1 == CMYK_VALIDATION else None
        path = os.path.join(tree.validation, f"ILSVRC2012_val_{place + 1:08d}.JPEG")
        os.link(pictures.path(label, place, kind), path)
    write_devkit(os.path.join(folder, "ILSVRC2012_devkit_t12", "data"), tree.validation_labels)
    return tree


def devkit_id(label):
    """Return the ILSVRC2012_ID of a class; these ids are not in the order of the sorted WordNet ids."""
    return 1 + (label * 7 + 3) % 1000


def write_devkit(folder, labels):
    """Write the ground truth and meta.mat. As in ILSVRC, the synset table also contains a class without images."""
    os.makedirs(folder)
    with open(os.path.join(folder, GROUND_TRUTHS[0]), "w", encoding="utf-8") as file:
        file.writelines(f"{devkit_id(label)}\n" for label in labels.tolist())
    rows = [(devkit_id(label), *name.split(maxsplit=1)) for label, name in enumerate(imagenet_names())]
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
    table = np.array([*sorted(rows), (1001, "n00001740", "entity")], dtype=kinds).reshape(-1, 1)
    scipy.io.savemat(os.path.join(folder, "meta.mat"), {"synsets": table})
