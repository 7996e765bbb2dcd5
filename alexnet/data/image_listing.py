"""Lists images and their labels, from class folders or from ILSVRC's flat validation folder.

A label is the index of the image's class folder among the sorted names in the training folder, as in upstream and
Caffe. ILSVRC's ground truth numbers the classes differently; the devkit's table maps its numbers to class folders.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from alexnet.data.batch_file import DataError, name_of, one_line

ENDINGS = (".jpeg", ".jpg", ".png")              # upper or lower case
GROUND_TRUTHS = ("ILSVRC2012_validation_ground_truth.txt", "ILSVRC2014_clsloc_validation_ground_truth.txt")
TABLES = ("meta.mat", "meta_clsloc.mat", "synsets.txt", "map_clsloc.txt")
PLACES = (".", "..", "data", "../data", "devkit/data", "../devkit/data",
          "ILSVRC2012_devkit_t12/data", "../ILSVRC2012_devkit_t12/data")
NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})\.")
WNID = re.compile(r"(n[0-9]{8})\b *(.*)", re.DOTALL)        # a synset's WordNet number and words

Synsets = Mapping[int, tuple[str, str]]                     # ILSVRC id -> (wnid, words)


class ImageList(NamedTuple):
    """The images of one half: names relative to root, in the order of the batches, and their labels."""

    root: str
    names: tuple[str, ...]
    labels: np.ndarray                           # int32, one per name

    def take(self, places: Iterable[int]) -> Self:
        """Return the images at these indices, in that order."""
        chosen = np.array([*places], np.int64)
        return self._replace(names=tuple(self.names[i] for i in chosen), labels=self.labels[chosen])


class Sources(NamedTuple):
    """The input of preprocess."""

    train: ImageList
    validation: ImageList
    class_names: tuple[str, ...]

    def digest(self) -> str:
        """Return a sha256 of all names and labels in order, which identifies the list of images."""
        found = hashlib.sha256()
        for half, images in (("train", self.train), ("validation", self.validation)):
            for name, label in zip(images.names, images.labels.tolist(), strict=True):
                found.update(os.fsencode(f"{half} {label} {name}\n"))
        return found.hexdigest()


def find_images(
    train_dir: str | Path, val_dir: str | Path, seed: int = 1, limit: int | None = None,
    ground_truth: str | Path | None = None, synsets: str | Path | None = None,
) -> Sources:
    """Return the Sources: training images shuffled once by seed as in upstream, validation images in sorted order.

    Args:
        limit: number of images to keep of each half, chosen by seed; None keeps all.

    Raises:
        DataError: a folder, the ground truth or the synset table is missing or invalid.
    """
    train, classes = class_folders(train_dir)
    synset_of = synset_table(val_dir, ground_truth, synsets)
    label_of = {name_of(name): label for label, name in enumerate(classes)}
    validation = labelled_images(val_dir, label_of, "the training folder", ground_truth, synset_of)
    words = dict(synset_of.values())
    train = train.take(np.random.RandomState(seed).permutation(len(train.names))[:limit])
    if limit:
        chosen = np.random.RandomState(seed).permutation(len(validation.names))[:limit]
        validation = validation.take(np.sort(chosen))
    return Sources(train, validation, tuple(f"{name_of(c)} {words.get(c, '')}".strip() for c in classes))


def labelled_images(
    folder: str | Path, label_of: Mapping[str, int], known: str, ground_truth: str | Path | None, synset_of: Synsets
) -> ImageList:
    """Return the ImageList of class folders, or of ILSVRC's flat folder, in sorted order.

    Args:
        label_of: name of a class folder, or wnid -> label; must contain every class of the folder.
        known: what label_of describes, for error messages: "the training folder".
        synset_of: {ILSVRC id: (wnid, words)}, for a flat folder.
    """
    if image_names(folder):
        return flat_folder(folder, label_of, known, ground_truth, synset_of)
    images, names = class_folders(folder)
    return images._replace(labels=translated(images.labels, names, label_of, folder, known))


def synset_table(
    folder: str | Path, ground_truth: str | Path | None = None, synsets: str | Path | None = None
) -> Synsets:
    """Return {ILSVRC id: (wnid, words)} from the given file or the devkit's next to a folder or file; else empty."""
    table = find_beside(synsets, TABLES, folder, ground_truth)
    return read_synsets(table) if table else {}


def entries(folder: str | Path) -> list[tuple[str, bool]]:
    """Return (name, is a folder) of the entries of a folder, sorted by bytes, without hidden entries."""
    try:
        with os.scandir(folder) as found:
            listed = [(e.name, e.is_dir()) for e in found if not e.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{name_of(folder)} cannot be listed: {error.strerror}") from error
    return sorted(listed, key=lambda entry: os.fsencode(entry[0]))


def image_names(folder: str | Path) -> list[str]:
    """Return the names of the JPEG and PNG files in a folder, sorted."""
    return [name for name, is_folder in entries(folder) if not is_folder and name.lower().endswith(ENDINGS)]


def class_folders(root: str | Path) -> tuple[ImageList, list[str]]:
    """Return the ImageList of a tree root/class/image, in sorted order, and the sorted names of its classes."""
    classes = [name for name, is_folder in entries(root) if is_folder]
    names: list[str] = []
    labels: list[int] = []
    for label, folder in enumerate(classes):
        inside = image_names(os.path.join(root, folder))
        if not inside:
            raise DataError(f"class folder {name_of(os.path.join(root, folder))} holds no JPEG or PNG file")
        names += [f"{folder}/{name}" for name in inside]
        labels += [label] * len(inside)
    if not names:
        raise DataError(f"{name_of(root)} holds no class folders with JPEG or PNG files in them")
    return ImageList(str(root), tuple(names), np.array(labels, np.int32)), classes


def translated(
    labels: np.ndarray, names: Sequence[str], label_of: Mapping[str, int], root: str | Path, known: str
) -> np.ndarray:
    """Map labels, which are indices into `names`, to the labels of label_of (name -> label)."""
    unknown = sorted(name_of(name) for name in names if name_of(name) not in label_of)
    if unknown:
        raise DataError(f"{name_of(root)} has class folder {unknown[0]}, which {known} lacks")
    return np.array([label_of[name_of(name)] for name in names], np.int32)[labels]


def flat_folder(
    root: str | Path, label_of: Mapping[str, int], known: str, ground_truth: str | Path | None, synset_of: Synsets
) -> ImageList:
    """Return ILSVRC's validation images, with labels from the ground-truth file and {id: (wnid, words)}."""
    names = image_names(root)
    truth = find_beside(ground_truth, GROUND_TRUTHS, root)
    if truth is None:
        raise DataError(
            f"{name_of(root)} holds images without class folders and {GROUND_TRUTHS[0]} is not near it; "
            "pass --ground-truth FILE"
        )
    if not synset_of:
        raise DataError(
            f"the devkit's synset table (meta.mat) is not near {name_of(root)}; pass --synsets FILE"
        )
    ids = read_ground_truth(truth)
    if len(ids) != len(names):
        raise DataError(f"{name_of(truth)} holds {len(ids)} labels for {len(names)} images in {name_of(root)}")
    labels = []
    for line, name in enumerate(names, start=1):
        numbered = NUMBERED.match(name)
        if numbered and int(numbered[1]) != line:
            raise DataError(f"{name_of(os.path.join(root, name))} is image {line} of its folder; one is missing")
        wnid = synset_of.get(ids[line - 1], ("unknown", ""))[0]
        if wnid not in label_of:
            raise DataError(
                f"line {line} of {name_of(truth)} is {ids[line - 1]}, synset {wnid}, "
                f"which is no class of {known}"
            )
        labels.append(label_of[wnid])
    return ImageList(str(root), tuple(names), np.array(labels, np.int32))


def find_beside(
    given: str | Path | None, names: Sequence[str], folder: str | Path, neighbour: str | Path | None = None
) -> Path | None:
    """Return the given file, or the first of `names` found near a folder (or next to a file); None if none is found."""
    if given is not None:
        if not Path(given).is_file():
            raise DataError(f"{name_of(given)} is not a file")
        return Path(given)
    around = [Path(folder) / place for place in PLACES] + ([Path(neighbour).parent] if neighbour else [])
    return next((place / name for place in around for name in names if (place / name).is_file()), None)


def read_ground_truth(path: Path) -> list[int]:
    """Return the class ids of ILSVRC's ground-truth file, one integer per line."""
    try:
        return [int(line) for line in path.read_text("utf-8").split()]
    except (OSError, ValueError) as error:
        raise DataError(f"{name_of(path)} is not one class id per line: {one_line(error)}") from error


def read_synsets(path: Path) -> Synsets:
    """Return {ILSVRC id: (wnid, words)} from the devkit's meta.mat, or from text lines "id wnid words".

    The id may be the second field, as in map_clsloc.txt. A table without ids is refused, because its order differs.
    """
    try:
        if path.suffix == ".mat":
            from alexnet.data.ilsvrc_devkit import read_meta  # scipy imports in 0.1 s and is rarely needed

            return read_meta(path)
        fields = [line.split(maxsplit=2) for line in path.read_text("utf-8").splitlines() if line.strip()]
        pairs = [(f[:2] if f[0].isdigit() else f[1::-1], f[2] if len(f) > 2 else "") for f in fields]
        return {int(number): (wnid, words) for (number, wnid), words in pairs}
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"{name_of(path)} is neither the devkit's meta.mat nor lines of id, wnid and words: {one_line(error)}"
        ) from error


def identity(class_name: str) -> str:
    """Return the part of a class name that identifies the class: the wnid at its start, else the whole name."""
    found = WNID.match(class_name)
    return found[1] if found else class_name
