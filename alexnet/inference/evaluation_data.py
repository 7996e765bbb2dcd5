"""Labelled images for evaluating trained weights: the training or validation half of a data set, or an image folder.

Threads prefetch the images.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from copy import copy
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from alexnet.data.augment import IMAGE_SIZE
from alexnet.data.batch_file import DataError, name_of
from alexnet.data.dataset import BatchReader, Dataset, Request, Segment, Split, open_dataset
from alexnet.data.image_formats import is_url
from alexnet.data.image_listing import ImageList, identity
from alexnet.data.images import BadImage, batch_of, read_image
from alexnet.data.layout import MANIFEST
from alexnet.data.omissions import sentence
from alexnet.data.prefetch import in_order
from alexnet.inference.folder_labels import folder_images
from alexnet.native.cores import cores

CORES = cores()
LIMIT_SEED = 1                                   # selects the images of a folder that a limit keeps


class LabelledBatch(NamedTuple):
    """A batch of labelled images."""

    images: np.ndarray                           # uint8 (3, 256, 256, batch)
    labels: np.ndarray                           # int32 (batch,)
    bad: tuple[tuple[str, str], ...] = ()        # (name, reason) of each skipped file


class LabelledImages(ABC):
    """Labelled images in batches."""

    n: int                                       # images
    name: str                                    # description for the user
    notes: tuple[str, ...] = ()                  # remarks for the user
    half: str | None = None                      # of a data set: "train" or "validation"
    mean: np.ndarray | None = None               # float32 (3, 256, 256); None if unknown
    resize: str                                  # how the images were resized to 256 x 256 pixels

    @abstractmethod
    def batches(self, batch_size: int) -> Generator[LabelledBatch, None, None]:
        """Yield batches of batch_size good images; the last may be smaller.

        Raises:
            DataError, BadImage: an image cannot be read.
        """

    @abstractmethod
    def sample(self, images: int) -> Self:
        """Return a sample of about `images` images from all classes. The same call returns the same images."""


class DatasetHalf(LabelledImages):
    """The validation or training half of a data set of batch files, in file order.

    Args:
        classes, class_names: number and names of the classes of the weights.
        limit: use only the first `limit` images.
        resize: resize method of the weights. If the data set was resized differently, a note is added.

    Raises:
        DataError: the data set cannot be read, or its classes differ from those of the weights.
    """

    def __init__(
        self, path: str | Path, classes: int, class_names: Sequence[str] | None = None, half: str = "validation",
        limit: int | None = None, resize: str | None = None,
    ):
        data = open_dataset(path, classes)
        refuse_other_classes(path, data.class_names, classes, class_names)
        whole: Split = getattr(data, half)
        self.split = whole._replace(labels=whole.labels[:limit])
        self.n = self.split.n
        self.half = half
        self.mean = data.mean
        self.resize = data.resize
        self.name = f"{'training' if half == 'train' else half} images of {name_of(path)}"
        self.notes = tuple(notes_on(path, data, classes, resize or data.resize))
        self.every = 1

    def batches(self, batch_size: int) -> Generator[LabelledBatch, None, None]:
        """See LabelledImages. Each batch is prefetched during the previous one."""
        reader = BatchReader(None, None)

        def read(planned: tuple[tuple[Segment, ...], np.ndarray]) -> LabelledBatch:
            segments, labels = planned
            images = np.empty((3, IMAGE_SIZE, IMAGE_SIZE, len(labels)), np.uint8)
            reader.read(Request(segments), images)
            return LabelledBatch(images, labels)

        return in_order(read, self.split.plan(batch_size, keep_last=True)[::self.every])

    def sample(self, images: int) -> Self:
        """See LabelledImages. Keeps every k-th batch, because the images of a class may be next to each other."""
        found = copy(self)
        found.every = -(-self.n // images)
        return found


class ImageFolder(LabelledImages):
    """A folder of labelled image files, resized with the method of the weights.

    The folder contains class folders, named by the wnids, the full class names or the labels (0, 1 …) of the weights.
    Or it is a flat folder of images with the wnid in each name, such as n01440764_10026.JPEG, or ILSVRC's flat
    validation folder, used with its ground truth and synset table.

    Args:
        classes, class_names: number and names of the classes of the weights. Without names, class folders that are not
            numbers are numbered in sorted order, and their number must equal `classes`.
        on_bad_image: "fail": raise BadImage at the first damaged or non-image file. "skip": report its name and the
            reason in the batch.
        limit: use only a random sample of `limit` images with a fixed seed; the first images would share one class.

    Raises:
        DataError: the folder cannot be read, or has a class that the weights do not have.
    """

    def __init__(
        self, path: str | Path, classes: int, class_names: Sequence[str] | None = None, resize: str = "squash",
        ground_truth: str | None = None, synsets: str | None = None, on_bad_image: str = "fail",
        limit: int | None = None,
    ):
        images, self.notes = folder_images(path, classes, class_names, ground_truth, synsets)
        self.images = images if limit is None else sample_of(images, limit)
        self.resize = resize
        self.on_bad_image = on_bad_image
        self.n = len(self.images.names)
        self.name = f"images of the folder {name_of(path)}"
        if remark := sentence(images.root, images.omitted):
            self.notes += (remark,)

    def batches(self, batch_size: int) -> Generator[LabelledBatch, None, None]:
        """See LabelledImages. One thread per core decodes the images."""
        with closing(in_order(self.read, range(self.n), CORES, ahead=batch_size + CORES)) as read:
            good: list[np.ndarray] = []
            labels: list[int] = []
            bad: list[tuple[str, str]] = []
            for place, pixels in enumerate(read):
                if isinstance(pixels, BadImage):
                    bad.append(self.skipped(place, pixels))
                else:
                    good.append(pixels)
                    labels.append(self.images.labels[place])
                if len(good) == batch_size or place == self.n - 1:
                    yield LabelledBatch(batch_of(good), np.array(labels, np.int32), tuple(bad))
                    good, labels, bad = [], [], []

    def sample(self, images: int) -> Self:
        """See LabelledImages."""
        found = copy(self)
        found.images = sample_of(self.images, images)
        found.n = len(found.images.names)
        return found

    def resized(self, resize: str) -> Self:
        """Return the same images, resized by another method."""
        found = copy(self)
        found.resize = resize
        return found

    def read(self, place: int) -> np.ndarray | BadImage:
        """Return the pixels of an image, or a BadImage with the reason why it is unusable."""
        try:
            return read_image(os.path.join(self.images.root, self.images.names[place]), self.resize)
        except BadImage as error:
            return error

    def skipped(self, place: int, error: BadImage) -> tuple[str, str]:
        """Return (name, reason) of a bad image; raises BadImage if on_bad_image is "fail"."""
        name = name_of(self.images.names[place])
        if self.on_bad_image == "fail":
            path = os.path.join(name_of(self.images.root), name)
            raise BadImage(f"{path} {error}; --on-bad-image skip leaves such images out")
        return name, str(error)


def sample_of(images: ImageList, limit: int) -> ImageList:
    """Return a random sample of at most `limit` images, with a fixed seed, in the order of the list."""
    chosen = np.random.RandomState(LIMIT_SEED).permutation(len(images.names))[:limit]
    return images.take(np.sort(chosen))


def is_dataset(path: str | Path) -> bool:
    """Whether a folder is a data set of batch files instead of an image folder; raises DataError."""
    folder = Path(path).expanduser()
    if is_url(os.fsencode(path)):
        raise DataError(f"{name_of(path)} is a URL, not a folder; download its files first")
    if not folder.is_dir():
        raise DataError(f"{name_of(folder)} is not a folder; expected a data set, or a folder of images")
    return (folder / MANIFEST).exists() or any(folder.glob("*_hkl*"))


def refuse_other_classes(
    path: str | Path, theirs: Sequence[str] | None, classes: int, ours: Sequence[str] | None
) -> None:
    """Raise DataError unless the data set and the weights have the same classes in the same order.

    Names are compared by wnid if they have one.

    Args:
        theirs: class names of the data set, or None if unknown.
        classes: number of classes of the weights.
        ours: class names of the weights, or None if unknown.
    """
    if theirs is None:
        return
    if len(theirs) != classes:
        raise DataError(f"{name_of(path)} has {len(theirs)} classes and the weights {classes}; they must be the same")
    for label, (its, our) in enumerate(zip(theirs, ours or theirs, strict=True)):
        if identity(its) != identity(our):
            raise DataError(f"class {label} is {its} in {name_of(path)} and {our} in the weights; the classes must be "
                            "the same in the same order")


def notes_on(path: str | Path, data: Dataset, classes: int, resize: str) -> Iterator[str]:
    """Yield notes on small mismatches between a Dataset and weights with `classes` classes and this resize method."""
    if data.resize != resize:
        yield f"the images of {name_of(path)} were resized by {data.resize}, the weights expect {resize}"
    labels = data.train.labels, data.validation.labels
    last = int(max(half.max() for half in labels))
    if data.class_names is None and min(half.min() for half in labels) > 0:
        yield f"no image of {name_of(path)} has label 0; do its labels start at 1?"
    if data.class_names is None and last < classes - 1:
        yield f"{name_of(path)} does not name its classes; its labels end at {last}, the weights' at {classes - 1}"
