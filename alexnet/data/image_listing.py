"""Lists images and their labels, from class folders or from ILSVRC's flat validation folder, or from tars of either.

A label is the index of the image's class folder among the sorted names in the training folder, as in upstream and
Caffe. ILSVRC's ground truth numbers the classes differently; the devkit's table maps its numbers to class folders.

Everything that a listing leaves out is counted: ImageList.omitted. Names of classes are compared in Unicode's composed
form (NFC), because macOS writes accents in decomposed form.
"""

import hashlib
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from alexnet.data.batch_file import DataError, name_of
from alexnet.data.ground_truth import GROUND_TRUTHS, WNID, Classes, Synsets, find_beside, labels_from, synset_table
from alexnet.data.image_formats import SUFFIXES
from alexnet.data.omissions import Omission, Omissions, nfc
from alexnet.data.tar_listing import is_tar, tar_images

OTHER_IMAGES = (".heic", ".heif", ".jp2", ".jxl", ".tga", ".svg", ".pdf", ".npy")
DEEPER = "images"                                # Tiny ImageNet's folder inside each class folder
TRAIN_NAMES = ("train", "training", "Train")     # of folders of class folders
VALIDATION_NAMES = ("val", "valid", "validation", "test", "Val", "Validation", "Test")


class ImageList(NamedTuple):
    """The images of one half: names relative to root, in the order of the batches, and their labels."""

    root: str                                    # a folder, or a tar file
    names: tuple[str, ...]
    labels: np.ndarray                           # int32, one per name
    omitted: tuple[Omission, ...] = ()           # what was left out
    extents: np.ndarray | None = None            # in a tar file: int64 (images, 2), offset and size of each

    def take(self, places: Iterable[int]) -> Self:
        """Return the images at these indices, in that order."""
        chosen = np.array([*places], np.int64)
        extents = None if self.extents is None else self.extents[chosen]
        return self._replace(names=tuple(self.names[i] for i in chosen), labels=self.labels[chosen], extents=extents)


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
        train_dir, val_dir: folders, or tar files of them such as ILSVRC's originals.
        limit: number of images to keep of each half, chosen by seed; None keeps all.

    Raises:
        DataError: a folder, the ground truth or the synset table is missing or invalid.
    """
    train, classes = class_folders(train_dir)
    synset_of = synset_table(val_dir, ground_truth, synsets)
    label_of = {nfc(name): label for label, name in enumerate(classes)}
    validation = labelled_images(val_dir, label_of, "the training folder", ground_truth, synset_of)
    words = dict(synset_of.values())
    train = train.take(np.random.RandomState(seed).permutation(len(train.names))[:limit])
    if limit:
        chosen = np.random.RandomState(seed).permutation(len(validation.names))[:limit]
        validation = validation.take(np.sort(chosen))
    return Sources(train, validation, tuple(f"{nfc(c)} {words.get(c, '')}".strip() for c in classes))


def labelled_images(
    folder: str | Path, label_of: Mapping[str, int], known: str, ground_truth: str | Path | None, synset_of: Synsets
) -> ImageList:
    """Return the ImageList of class folders, or of a flat folder with its ground truth, in sorted order.

    Images beside class folders are left out. The folder may be a tar file.

    Args:
        label_of: name of a class folder, or wnid -> label, in composed form; must contain every class of the folder.
        known: what label_of describes, for error messages: "the training folder".
        synset_of: {ILSVRC id: (wnid, words)}, for a flat folder.
    """
    if is_tar(folder):
        return labelled_tar(folder, Classes(label_of, known, synset_of), ground_truth)
    folders = [entry.name for entry in entries(folder) if entry.is_folder and not entry.is_hidden]
    if folders == [DEEPER] and DEEPER not in label_of and not image_names(folder):
        folder = Path(folder, DEEPER)            # Tiny ImageNet's val/images
        folders = []
    if image_names(folder) and not any(nfc(name) in label_of for name in folders):
        return flat_folder(folder, Classes(label_of, known, synset_of), ground_truth)
    images, names = class_folders(folder)
    return images._replace(labels=translated(images.labels, names, label_of, folder, known))


class Entry(NamedTuple):
    """An entry of a folder."""

    name: str
    is_folder: bool
    is_dangling: bool                            # a link to a place that does not exist

    @property
    def is_hidden(self) -> bool:
        """Whether the name begins with a dot."""
        return self.name.startswith(".")

    @property
    def is_image(self) -> bool:
        """Whether this is to be read as an image; a dangling link is, so that it is reported by name."""
        return not self.is_folder and not self.is_hidden and self.name.lower().endswith(SUFFIXES)


def entries(folder: str | Path) -> list[Entry]:
    """Return the entries of a folder, sorted by bytes."""
    try:
        with os.scandir(folder) as found:
            listed = [Entry(e.name, e.is_dir(), e.is_symlink() and not os.path.exists(e.path)) for e in found]
    except OSError as error:
        raise DataError(f"{name_of(folder)} cannot be listed: {error.strerror}") from error
    return sorted(listed, key=lambda entry: os.fsencode(entry.name))


def image_names(folder: str | Path, omissions: Omissions | None = None, prefix: str = "") -> list[str]:
    """Return the names of the images in a folder, sorted.

    Args:
        omissions: receives the other entries.
        prefix: of each returned name.
    """
    listed = entries(folder)
    if omissions is not None:
        leave_out(folder, prefix, [entry for entry in listed if not entry.is_image], omissions)
    return [prefix + entry.name for entry in listed if entry.is_image]


def leave_out(folder: str | Path, prefix: str, others: Iterable[Entry], omissions: Omissions) -> None:
    """Count the entries of a folder that are no images; of subfolders, the images in them."""
    for entry in others:
        if entry.is_hidden:
            omissions.add("hidden", prefix + entry.name)
        elif entry.is_folder:
            inside = [os.path.relpath(path, folder) for path in images_below(os.path.join(folder, entry.name))]
            if inside:
                omissions.add("in subfolders", prefix + inside[0], len(inside))
        else:
            ending = os.path.splitext(entry.name)[1].lower()
            kind = f"of type {ending}" if ending in OTHER_IMAGES else "of other types"
            omissions.add(kind, prefix + entry.name)


def images_below(folder: str | Path) -> Iterator[str]:
    """Yield the paths of the images in a folder and, recursively, its subfolders."""
    def fail(error: OSError) -> None:
        raise DataError(f"{name_of(error.filename)} cannot be listed: {error.strerror}") from error

    for place, folders, names in os.walk(folder, onerror=fail):
        folders.sort()
        yield from (os.path.join(place, name) for name in sorted(names) if Entry(name, False, False).is_image)


def class_folders(root: str | Path) -> tuple[ImageList, list[str]]:
    """Return the ImageList of a tree root/class/image, in sorted order, and the sorted names of its classes.

    The root may be a tar file, of such a tree or of a tar for each class.
    """
    omissions = Omissions()
    if is_tar(root):
        images = tar_images(root, omissions)
        if not images.classes:
            raise DataError(f"{name_of(root)} holds images without class folders, such as {name_of(images.names[0])}")
        listed = ImageList(str(root), images.names, images.labels, omissions.listed(), images.extents)
        return listed, images.classes
    classes = class_names_of(root, omissions)
    names: list[str] = []
    labels: list[int] = []
    for label, folder in enumerate(classes):
        inside = images_of_class(root, folder, omissions)
        names += inside
        labels += [label] * len(inside)
    if not names:
        raise DataError(f"{name_of(root)} holds no class folders with images in them"
                        + "".join(f"; it holds {omission}" for omission in omissions.listed()))
    return ImageList(str(root), tuple(names), np.array(labels, np.int32), omissions.listed()), classes


def class_names_of(root: str | Path, omissions: Omissions) -> list[str]:
    """Return the sorted names of the class folders in root. Raises DataError if the list is incomplete or ambiguous."""
    classes: dict[str, str] = {}                 # composed form -> name
    for name, is_folder, is_dangling in entries(root):
        if is_dangling:
            raise DataError(
                f"{name_of(os.path.join(root, name))} is a link to {name_of(os.readlink(os.path.join(root, name)))}, "
                "which does not exist; without this class the labels of others would shift: repair or remove the link"
            )
        if name.startswith("."):
            omissions.add("hidden", name)
        elif not is_folder:
            omissions.add("beside the class folders", name)
        elif classes.setdefault(nfc(name), name) != name:
            raise DataError(
                f"{name_of(root)} has two class folders {nfc(name)}, which differ only in how accents are encoded; "
                "merge them"
            )
    return [classes[key] for key in sorted(classes, key=lambda key: os.fsencode(classes[key]))]


def images_of_class(root: str | Path, folder: str, omissions: Omissions) -> list[str]:
    """Return the names of the images of a class, relative to root. Raises DataError if there are none.

    Tiny ImageNet's class/images/*.JPEG are read, too.
    """
    path = os.path.join(root, folder)
    listed = entries(path)
    folders = [entry.name for entry in listed if entry.is_folder and not entry.is_hidden]
    if DEEPER in folders and not any(entry.is_image for entry in listed):
        leave_out(path, f"{folder}/", [entry for entry in listed if entry.name != DEEPER], omissions)
        names = image_names(os.path.join(path, DEEPER), omissions, f"{folder}/{DEEPER}/")
    else:
        names = image_names(path, omissions, f"{folder}/")
    if names:
        return names
    inside = Omissions()
    image_names(path, inside)
    held = "; ".join(map(str, inside.listed()))
    raise DataError(
        f"class folder {name_of(path)} holds no image" + (f", but {held}" if held else "")
        + (f"; images must be in {name_of(root)}/CLASS" if folders else "")
    )


def translated(
    labels: np.ndarray, names: Sequence[str], label_of: Mapping[str, int], root: str | Path, known: str
) -> np.ndarray:
    """Map labels, which are indices into `names`, to the labels of label_of (name -> label)."""
    unknown = sorted(nfc(name) for name in names if nfc(name) not in label_of)
    if unknown:
        raise DataError(f"{name_of(root)} has class folder {unknown[0]}, which {known} lacks")
    return np.array([label_of[nfc(name)] for name in names], np.int32)[labels]


def flat_folder(root: str | Path, classes: Classes, ground_truth: str | Path | None) -> ImageList:
    """Return the images of a folder without class folders, with labels from a ground-truth file."""
    omissions = Omissions()
    names = image_names(root, omissions)
    labels = flat_labels(root, names, classes, ground_truth, omissions)
    return ImageList(str(root), tuple(names), labels, omissions.listed())


def labelled_tar(path: str | Path, classes: Classes, ground_truth: str | Path | None) -> ImageList:
    """Return the images of a tar file: of class folders, or flat with a ground truth."""
    omissions = Omissions()
    images = tar_images(path, omissions)
    if images.classes:
        labels = translated(images.labels, images.classes, classes.label_of, path, classes.known)
    else:
        labels = flat_labels(path, images.names, classes, ground_truth, omissions)
    return ImageList(str(path), images.names, labels, omissions.listed(), images.extents)


def flat_labels(
    root: str | Path, names: Sequence[str], classes: Classes, ground_truth: str | Path | None, omissions: Omissions
) -> np.ndarray:
    """Return the label of each image of a flat folder, or tar file, from a ground-truth file; int32."""
    truth = find_beside(ground_truth, GROUND_TRUTHS, root)
    if truth is None:
        raise DataError(
            f"{name_of(root)} holds images without class folders and {GROUND_TRUTHS[0]} is not near it; "
            "pass --ground-truth FILE"
        )
    return np.array(labels_from(truth, root, names, classes, omissions), np.int32)


def identity(class_name: str) -> str:
    """Return the part of a class name that identifies the class: the wnid at its start, else the whole name.

    The name is in composed form.
    """
    found = WNID.match(class_name)
    return found[1] if found else nfc(class_name)


def conversion_hint(path: str | Path) -> str | None:
    """Return what a folder of images holds and the command that makes a data set of it; None if it holds no images."""
    halves = [next((Path(path, name) for name in names if Path(path, name).is_dir()), None)
              for names in (TRAIN_NAMES, VALIDATION_NAMES)]
    train, validation = halves
    if train is None and holds_class_folders(path):
        train = Path(path)
    if train is not None and holds_class_folders(train):
        held = "class folders of images"
    elif image_names(path):
        held = "images, but they must be in a folder for each class, separately for training and validation"
    else:
        return None
    given = [shlex.quote(name_of(half)) if half else name
             for half, name in ((train, "TRAIN_DIR"), (validation, "VAL_DIR"))]
    return f"{name_of(path)} holds {held}; convert it first: python -m preprocess folders {' '.join(given)} OUT"


def holds_class_folders(root: str | Path) -> bool:
    """Return whether a folder has a subfolder with images in it, perhaps one level deeper."""
    folders = [entry.name for entry in entries(root) if entry.is_folder and not entry.is_hidden]
    for folder in (os.path.join(root, name) for name in folders):
        if image_names(folder) or (Path(folder, DEEPER).is_dir() and image_names(Path(folder, DEEPER))):
            return True
    return False
