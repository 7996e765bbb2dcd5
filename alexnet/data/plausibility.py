"""Labels and mean images that are valid but implausible: refused if they are certainly wrong, else remarked on."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from alexnet.data import batch_file
from alexnet.data.augment import IMAGE_SIZE
from alexnet.data.batch_file import DataError, name_of

ROWS = 64                                        # every 64th row of the images is compared with the mean image
DIFFERENCE = 30                                  # grey levels between their means that are plausible, and for n images
CLASSES = 1 << 20                                # more are plausible only if there are as many images
PER_IMAGE = 150                                  # this / sqrt(n) more; single photographs vary by 45 (one sigma)


def refuse_implausible_labels(
    path: str | Path, train: np.ndarray, validation: np.ndarray, classes: int | None
) -> None:
    """Raise DataError if the labels of a data set cannot be meant as they are.

    Args:
        classes: number of classes that the user states; None: it follows from the labels.
    """
    name = name_of(path)
    low, high = int(train.min()), int(train.max())
    first, last = int(validation.min()), int(validation.max())
    gapless = len(np.unique(train)) == high - low + 1
    if gapless and {low, first} == {0, 1} and high - last == low - first:
        one = "training" if low else "validation"
        raise DataError(
            f"{name} has training labels {low} to {high} and validation labels {first} to {last}; do the {one} labels "
            f"start at 1? Subtract 1 from them"
        )
    if min(low, first) > 0 and (classes is None or max(high, last) >= classes):
        stated = "" if classes is None else f" but {classes} classes, which count from 0"
        raise DataError(
            f"no image of {name} has label 0: its labels are {min(low, first)} to {max(high, last)}{stated}; do labels "
            f"start at 1? Subtract 1 from the files in {name}/labels, or set classes={max(high, last) + 1}"
        )
    if classes is None and not np.isin(validation, train).any():
        raise DataError(
            f"no validation label of {name} ({first} to {last}) is a training label ({low} to {high}); are they of the "
            "same data set?"
        )
    if classes is None and max(high, last) >= max(CLASSES, len(train)):
        raise DataError(
            f"{name} has label {max(high, last)} and {len(train)} training images; a label is damaged: make the files "
            f"in {name}/labels again, or set classes={max(high, last) + 1}"
        )
    if low == high and (classes is None or classes == 1):
        raise DataError(f"all training images of {name} have label {low}; a classifier needs at least two classes")


def remarks_on_labels(
    train: np.ndarray, validation: np.ndarray, classes: int, class_names: Sequence[str] | None = None
) -> Iterator[str]:
    """Yield remarks on classes that the network cannot learn."""
    trained = np.bincount(train, minlength=classes)
    validated = np.bincount(validation, minlength=classes)
    if len(unseen := np.flatnonzero(trained == 0)):
        yield (
            f"{have(unseen, classes)} no training images, so the network cannot learn "
            f"{'it' if len(unseen) == 1 else 'them'}: {first_of(unseen, class_names)}"
        )
    if len(lost := unseen[validated[unseen] > 0]):
        images = int(validated[lost].sum())
        yield (
            f"{images:,} validation image{'' if images == 1 else 's'} of classes without training images always count "
            f"as errors: {first_of(lost, class_names)}"
        )


def remark_on_validation(
    train: np.ndarray, validation: np.ndarray, classes: int, class_names: Sequence[str] | None = None
) -> str | None:
    """Return a remark if classes with training images have no validation images."""
    unchecked = np.setdiff1d(train, validation)
    if not len(unchecked):
        return None
    return f"{have(unchecked, classes)} no validation images: {first_of(unchecked, class_names)}"


def have(labels: np.ndarray, classes: int) -> str:
    """Return subject and verb of a sentence on these labels of `classes`."""
    return f"{len(labels):,} of {classes:,} classes {'has' if len(labels) == 1 else 'have'}"


def first_of(labels: np.ndarray, class_names: Sequence[str] | None) -> str:
    """Return the name of the first of these labels, and dots for the others."""
    label = int(labels[0])
    shown = class_names[label] if class_names else f"label {label}"
    return shown if len(labels) == 1 else f"{shown}, ..."


def remark_on_mean(file: Path, mean: np.ndarray) -> str | None:
    """Return a remark if a mean image differs from the images of a batch file more than chance explains."""
    if not mean.any():
        return "the mean image is zero everywhere, so nothing is subtracted from the images"
    with batch_file.opened(file, IMAGE_SIZE) as opened:
        images = opened.rows(ROWS)
    found = images.mean(axis=(1, 2, 3))
    expected = mean[:, ROWS // 2::ROWS].mean(axis=(1, 2))
    worst = int(np.argmax(np.abs(found - expected)))
    if abs(found[worst] - expected[worst]) <= DIFFERENCE + PER_IMAGE / np.sqrt(images.shape[3]):
        return None
    return (
        f"channel {worst} of the mean image averages {expected[worst]:.0f}, and of the images in {name_of(file)} "
        f"{found[worst]:.0f} of 255; is it the mean of other images?"
    )
