"""A small synthetic data set, learnable in minutes: JPEGs in ILSVRC's layout, preprocessed like ILSVRC.

    OUT/images/train/n90000001/n90000001_1.JPEG ...         ten classes of figures.py
    OUT/images/val/ILSVRC2012_val_00000001.JPEG ...         flat
    OUT/images/ILSVRC2012_devkit_t12/data/                  ground truth and synset table
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from alexnet.data.batch_file import DataError, name_of, one_line
from alexnet.data.ground_truth import GROUND_TRUTHS
from alexnet.data.image_listing import ImageList, find_images
from alexnet.data.layout import Manifest
from alexnet.data.progress import Progress
from alexnet.native import atomic
from alexnet.native.cores import cores
from alexnet.native.untrusted import parse_json
from preprocess.batches import Settings, make_batches
from preprocess.figures import FIGURES, draw
from preprocess.workers import results

TRAIN = 2000                                     # images
VALIDATION = 400
BATCH = 200                                      # images in a batch file: the same number of each class
CHUNK = 40                                       # images drawn in one job
SIDES = (240, 300)                               # minimum and maximum of width and height, in pixels


class Picture(NamedTuple):
    """An image to draw."""

    path: Path
    label: int
    seed: tuple[int, ...]


def wnid(label: int) -> str:
    """Return the synset id of a synthetic class; no WordNet id begins with n9."""
    return f"n9{label + 1:07d}"


def devkit_id(label: int) -> int:
    """Return the class id in the ground truth; as in ILSVRC, its order differs from that of the sorted folders."""
    return len(FIGURES) - label


def draw_chunk(pictures: Sequence[Picture]) -> int:
    """Draw and save pictures; return their number."""
    for path, label, seed in pictures:
        random = np.random.default_rng(seed)
        width, height = random.integers(*SIDES, 2, endpoint=True)
        with atomic.replacing(path) as temporary:
            Image.fromarray(draw(FIGURES[label], width, height, random)).save(temporary, "JPEG", quality=90)
    return len(pictures)


def draw_images(folder: Path, train: int, validation: int, seed: int, workers: int) -> None:
    """Make the images, their ground truth and the synset table.  Raises DataError if another set exists."""
    devkit = folder / "ILSVRC2012_devkit_t12" / "data"
    for place in (devkit, folder / "val", *(folder / "train" / wnid(label) for label in range(len(FIGURES)))):
        place.mkdir(parents=True, exist_ok=True)
    refuse_other_set(folder / "synthetic.json", {"train": train, "validation": validation, "seed": seed})
    pictures = []
    for i in range(train):
        name = wnid(i % len(FIGURES))
        pictures.append(Picture(folder / "train" / name / f"{name}_{i}.JPEG", i % len(FIGURES), (seed, 0, i)))
    labels = np.random.default_rng(seed).permutation(np.arange(validation) % len(FIGURES)).tolist()
    for i, label in enumerate(labels):
        pictures.append(Picture(folder / "val" / f"ILSVRC2012_val_{i + 1:08d}.JPEG", label, (seed, 1, i)))
    draw_pictures([picture for picture in pictures if not picture.path.exists()], workers)
    truth = "".join(f"{devkit_id(label)}\n" for label in labels)
    atomic.write(devkit / GROUND_TRUTHS[0], truth, fsync=True)
    table = sorted((devkit_id(label), wnid(label), figure.__name__) for label, figure in enumerate(FIGURES))
    synsets = "".join(f"{number} {synset} {name.replace('_', ' ')}\n" for number, synset, name in table)
    atomic.write(devkit / "synsets.txt", synsets, fsync=True)


def draw_pictures(pictures: Sequence[Picture], workers: int) -> None:
    """Draw and save pictures in parallel."""
    if not pictures:
        return
    chunks = [pictures[i:i + CHUNK] for i in range(0, len(pictures), CHUNK)]
    with Progress("draw", len(pictures)) as progress:
        for _, drawn in results(draw_chunk, chunks, workers):
            progress.add(drawn)


def in_turns(images: ImageList, seed: int) -> ImageList:
    """Reorder images so that the classes alternate; the seed determines the order within each class.

    Every ten consecutive images then contain all ten classes.  Small batches with varying class frequencies would make
    the biases of the last layer fluctuate, and would keep a short run on its initial plateau.
    """
    random = np.random.default_rng(seed)
    ranks = np.empty(len(images.labels))
    for label in range(len(FIGURES)):
        places = np.flatnonzero(images.labels == label)
        ranks[places] = random.permutation(len(places))
    return images.take(np.lexsort((random.permutation(len(ranks)), ranks)))


def refuse_other_set(file: Path, settings: dict[str, Any]) -> None:
    """Raise DataError if this folder's images were made with other settings; record those of a new folder."""
    if not file.exists():
        atomic.write(file, json.dumps(settings) + "\n", fsync=True)
        return
    try:
        before = parse_json(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{name_of(file)} is not readable JSON: {one_line(error)}; use another folder") from error
    if before != settings:
        raise DataError(f"{name_of(file.parent)} holds a synthetic set of {before}, not {settings}; use another folder")


def make_synthetic(
    out: str | Path, train: int = TRAIN, validation: int = VALIDATION, seed: int = 1, batch_size: int = BATCH,
    workers: int | None = None,
) -> Manifest:
    """Draw the set and preprocess it into folder out; return the manifest.  Raises DataError.

    The same numbers of images and the same seed give the same bytes.  If the set is already complete, nothing is done.
    """
    out = Path(out)
    workers = workers or cores()
    if min(train, validation) < len(FIGURES):
        raise DataError(f"a synthetic set needs at least {len(FIGURES)} images in each half, got {train}, {validation}")
    draw_images(out / "images", train, validation, seed, workers)
    sources = find_images(out / "images" / "train", out / "images" / "val", seed)
    sources = sources._replace(train=in_turns(sources.train, seed))
    return make_batches(sources, out, Settings(batch_size=batch_size, seed=seed), workers)
