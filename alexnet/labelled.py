"""Labelled images to evaluate trained weights on: one half of a data set, or a folder of image files.

Each kind has batches(batch_size), which threads read ahead of the network, n images in all, and for the reader a name
and notes; mean and resize say how its images were made, where that is known.
"""

import os
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alexnet.ahead import in_order
from alexnet.augment import IMAGE_SIZE
from alexnet.cores import cores
from alexnet.data import BatchReader, Request, open_dataset
from alexnet.folders import MANIFEST
from alexnet.hkl import DataError, name_of
from alexnet.images import BadImage, batch_of, read_image
from alexnet.sources import class_folders, identity, image_names, labelled_images, synset_table

CORES = cores()
LIMIT_SEED = 1                                   # which images of a folder a limit keeps


class Batch(NamedTuple):
    """images uint8 (3, 256, 256, batch); labels int32 (batch,); bad: (name, why) of files that were passed over."""

    images: np.ndarray
    labels: np.ndarray
    bad: tuple[tuple[str, str], ...] = ()


class DatasetHalf:
    """The validation or training half of a data set of batch files, in their order.

    classes, class_names  of the weights; data whose labels mean something else are refused with DataError
    limit                 keeps that many images, the first ones
    resize                that the weights want; a note says where the data's is another
    """

    def __init__(self, path, classes, class_names=None, half="validation", limit=None, resize=None):
        data = open_dataset(path, classes)
        refuse_other_classes(path, data.class_names, classes, class_names)
        whole = getattr(data, half)
        self.half, self.split = half, whole._replace(labels=whole.labels[:limit])
        self.n, self.mean, self.resize = self.split.n, data.mean, data.resize
        self.name = f"{'training' if half == 'train' else half} images of {name_of(path)}"
        self.notes = tuple(notes_on(path, data, classes, resize or data.resize))

    def batches(self, batch_size):
        """The Batches, the last one smaller; each is read while the one before is computed.  Raises DataError."""
        reader = BatchReader(self.mean, None)

        def read(planned):
            segments, labels = planned
            images = np.empty((3, IMAGE_SIZE, IMAGE_SIZE, len(labels)), np.uint8)
            reader.read(Request(segments), images)
            return Batch(images, labels)

        return in_order(read, self.split.plan(batch_size, keep_last=True))


class ImageFolder:
    """A folder of image files with labels, resized as trained weights want it.

    Class folders, whose names are wnids of the weights' class names or whole class names, or ILSVRC's flat validation
    folder with its ground truth and synset table.

    classes, class_names  of the weights; a class that they lack is refused with DataError.  Without names the class
                          folders are counted in sorted order, and there must be as many as the weights have classes
    on_bad_image          "fail": the first file that is no image, or a damaged one, ends it with BadImage; "skip": its
                          name and what is wrong with it come with the Batch
    limit                 keeps that many images, drawn by a fixed seed: the first ones would be of one class
    """

    half, mean, notes = None, None, ()

    def __init__(self, path, classes, class_names=None, resize="squash", ground_truth=None, synsets=None,
                 on_bad_image="fail", limit=None):  # fmt: skip
        images = folder_images(path, classes, class_names, ground_truth, synsets)
        if limit is not None:
            chosen = np.random.RandomState(LIMIT_SEED).permutation(len(images.names))[:limit]
            images = images.take(np.sort(chosen))
        self.images, self.resize, self.on_bad_image = images, resize, on_bad_image
        self.n, self.name = len(images.names), f"images of the folder {name_of(path)}"

    def batches(self, batch_size):
        """The Batches of batch_size good images, the last one smaller, decoded by a thread for each core."""
        with closing(in_order(self.read, range(self.n), CORES, ahead=batch_size + CORES)) as read:
            good, labels, bad = [], [], []
            for place, pixels in enumerate(read):
                if isinstance(pixels, BadImage):
                    bad.append(self.passed_over(place, pixels))
                else:
                    good.append(pixels)
                    labels.append(self.images.labels[place])
                if len(good) == batch_size or place == self.n - 1:
                    yield Batch(batch_of(good), np.array(labels, np.int32), tuple(bad))
                    good, labels, bad = [], [], []

    def read(self, place):
        """The pixels of an image, or the BadImage that it is."""
        try:
            return read_image(os.path.join(self.images.root, self.images.names[place]), self.resize)
        except BadImage as error:
            return error

    def passed_over(self, place, error):
        """(name, why) of a bad image; raises it where it is not to be passed over."""
        name = name_of(self.images.names[place])
        if self.on_bad_image == "fail":
            path = os.path.join(name_of(self.images.root), name)
            raise BadImage(f"{path} {error}; --on-bad-image skip leaves such images out")
        return name, str(error)


def is_dataset(path):
    """Whether a folder is a data set of batch files rather than one of images; raises DataError."""
    path = Path(path).expanduser()
    if not path.is_dir():
        raise DataError(f"{name_of(path)} is not a folder; expected a data set, or a folder of images")
    return (path / MANIFEST).exists() or any(path.glob("*_hkl*"))


def folder_images(path, classes, class_names, ground_truth, synsets):
    """The Images of a folder with labels as the weights count them; raises DataError."""
    path = Path(path).expanduser()
    if class_names is None:
        if image_names(path):
            raise DataError(f"the images of {name_of(path)} lie in no class folders, and weights without class names "
                            "do not tell which label a synset has")  # fmt: skip
        images, folders = class_folders(path)
        if len(folders) != classes:
            raise DataError(f"{name_of(path)} has {len(folders)} class folders, and the weights, which do not name "
                            f"their classes, have {classes}")  # fmt: skip
        return images
    label_of = {}
    for label, name in enumerate(class_names):
        for key in {name, identity(name)}:
            if label_of.setdefault(key, label) != label:
                raise DataError(f"the weights name class {label_of[key]} and class {label} alike: {key}")
    synset_of = synset_table(path, ground_truth, synsets)
    return labelled_images(path, label_of, "the list of the weights' classes", ground_truth, synset_of)


def refuse_other_classes(path, theirs, classes, ours):
    """Raise DataError unless the class names of a data set, `theirs`, are those of the weights, `ours`, in order.

    What is compared is the wnid where there is one.  Either may be None: nobody said.
    """
    if theirs is None:
        return
    if len(theirs) != classes:
        raise DataError(f"{name_of(path)} has {len(theirs)} classes and the weights {classes}; they must be the same")
    for label, (its, our) in enumerate(zip(theirs, ours or theirs, strict=True)):
        if identity(its) != identity(our):
            raise DataError(f"class {label} is {its} in {name_of(path)} and {our} in the weights; the classes must be "
                            "the same in the same order")  # fmt: skip


def notes_on(path, data, classes, resize):
    """What of a Dataset does not quite fit weights of so many classes, for images resized so, in sentences."""
    if data.resize != resize:
        yield f"the images of {name_of(path)} were resized by {data.resize}, the weights expect {resize}"
    last = int(max(data.train.labels.max(), data.validation.labels.max()))
    if data.class_names is None and last < classes - 1:
        yield f"{name_of(path)} does not name its classes; its labels end at {last}, the weights' at {classes - 1}"
