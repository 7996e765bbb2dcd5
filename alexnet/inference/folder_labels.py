"""Labels of the images of a folder, for weights with given classes.

A class folder is named by a wnid, by the full name of a class, or by its label: 0, 1 … 999, as in ImageNetV2. A flat
folder holds images with the wnid in each name, such as n01440764_10026.JPEG, or ILSVRC's validation images, whose
labels are in the devkit.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from alexnet.data.batch_file import DataError, name_of
from alexnet.data.ground_truth import synset_table
from alexnet.data.image_listing import ImageList, class_folders, identity, image_names, labelled_images
from alexnet.data.omissions import Omissions, nfc

WNID_IN_NAME = re.compile(r"(?<![0-9A-Za-z])n[0-9]{8}(?![0-9])")


def folder_images(
    path: str | Path, classes: int, class_names: Sequence[str] | None, ground_truth: str | None, synsets: str | None
) -> tuple[ImageList, tuple[str, ...]]:
    """Return the ImageList of a folder with the labels of the weights, and notes for the user; raises DataError."""
    path = Path(path).expanduser()
    label_of = labels_of_names(class_names or ())
    omissions = Omissions()
    flat = image_names(path, omissions)
    folders = [] if flat else [each.name for each in path.iterdir() if each.is_dir() and each.name[0] != "."]
    if folders and all(map(is_number, folders)) and not any(name in label_of for name in folders):
        return numbered_folders(path, classes)
    if class_names is None:
        if flat:
            raise DataError(f"the images of {name_of(path)} are not in class folders, and without class names in "
                            "the weights the label of a synset is unknown; pass --class-names FILE")
        images, folders = class_folders(path)
        if len(folders) != classes:
            raise DataError(f"{name_of(path)} has {len(folders)} class folders, and the weights, which do not name "
                            f"their classes, have {classes}")
        return images, ()
    if flat and ground_truth is None and (wnids := wnids_in(flat)):
        labels = labels_by_wnid(path, flat, wnids, label_of)
        note = f"the images of {name_of(path)} are labelled by the wnid in their names"
        return ImageList(str(path), tuple(flat), labels, omissions.listed()), (note,)
    synset_of = synset_table(path, ground_truth, synsets)
    return labelled_images(path, label_of, "the list of the weights' classes", ground_truth, synset_of), ()


def labels_of_names(class_names: Sequence[str]) -> dict[str, int]:
    """Return the label of each class name, and of its wnid; raises DataError if two classes have the same name."""
    label_of: dict[str, int] = {}
    for label, name in enumerate(class_names):
        for key in {nfc(name), identity(name)}:
            if label_of.setdefault(key, label) != label:
                raise DataError(f"the weights give classes {label_of[key]} and {label} the same name: {key}")
    return label_of


def is_number(name: str) -> bool:
    """Whether the name of a class folder is a whole number."""
    return name.isascii() and name.isdecimal()


def numbered_folders(path: Path, classes: int) -> tuple[ImageList, tuple[str, ...]]:
    """Return the images of class folders named by their labels, in the order of the labels, and a note.

    Raises:
        DataError: a number is no label of the weights, or two folders have the same number.
    """
    images, folders = class_folders(path)
    numbers = np.array([int(name) for name in folders])
    if numbers.max() >= classes:
        start = "; do they start at 1?" if numbers.min() == 1 and numbers.max() == classes else ""
        raise DataError(f"{name_of(path)} has class folder {numbers.max()}, and the labels of the weights are 0 to "
                        f"{classes - 1}{start}")
    for number in numbers:
        same = [name for name in folders if int(name) == number]
        if len(same) > 1:
            raise DataError(f"{name_of(path)} has class folders {same[0]} and {same[1]}, which are the same number")
    images = images._replace(labels=numbers[images.labels].astype(np.int32))
    note = f"the class folders of {name_of(path)} are numbers, {numbers.min()} to {numbers.max()}: taken as labels"
    return images.take(np.argsort(images.labels, kind="stable")), (note,)


def wnids_in(names: Sequence[str]) -> list[str | None]:
    """Return the wnid in each file name, or an empty list if most names have none.

    None stands for a name with no wnid, or with several.
    """
    found = [set(WNID_IN_NAME.findall(name)) for name in names]
    wnids = [each.pop() if len(each) == 1 else None for each in found]
    return wnids if wnids.count(None) <= len(wnids) // 2 else []


def labels_by_wnid(
    path: Path, names: Sequence[str], wnids: Sequence[str | None], label_of: Mapping[str, int]
) -> np.ndarray:
    """Return the label of each image of a flat folder, int32 (images,), from the wnid in its name.

    Raises:
        DataError: a name has no wnid or several, or the weights have no such class.
    """
    for name, wnid in zip(names, wnids, strict=True):
        file = name_of(os.path.join(path, name))
        if wnid is None:
            raise DataError(f"{file} has not one wnid in its name, as the other images of its folder")
        if wnid not in label_of:
            raise DataError(f"{file} is of class {wnid}, which the list of the weights' classes lacks")
    return np.array([label_of[wnid] for wnid in wnids if wnid is not None], np.int32)
