"""Batch files on disk: find, check, plan and read them.

A data set is a folder with upstream's names:

    train_hkl_b256_b_256/0000.hkl ...   uint8 (3, 256, 256, images): channel, row, column, image
    val_hkl_b256_b_256/0000.hkl ...     same; the last file may hold fewer images
    labels/train_labels.npy             integers, one per image, in the order of the files; also val_labels.npy
    misc/img_mean.npy                   mean training image (3, 256, 256)
    manifest.json                       counts, checksums and class names, if preprocess created the folder

Upstream's files split for several GPUs (0000_0.hkl, 0000_1.hkl) are read as consecutive pieces of one batch. Labels
split in the same way (train_labels_0.npy ...) are joined.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from alexnet.data import batch_file, layout, plausibility
from alexnet.data.augment import IMAGE_SIZE, RESIZES, Crop, centre_crop, crop_batch, crop_stream, draw_crop, file_order
from alexnet.data.batch_file import BatchFile, DataError, FileChecksum, ReadError, file_sha256, name_of, sums_crc32
from alexnet.data.image_listing import conversion_hint
from alexnet.data.layout import Manifest
from alexnet.data.resized_crop import ResizedCrop, resize_batch

__all__ = [
    "BatchReader", "Crop", "DataError", "Dataset", "ReadError", "Request", "Segment", "Split",
    "centre_crop", "crop_stream", "draw_crop", "file_order", "open_dataset",
]


class Segment(NamedTuple):
    """Images start..stop of one batch file."""

    path: Path
    start: int
    stop: int
    checksum: FileChecksum | None = None         # of the file; None if it is unknown or not to be verified


class Request(NamedTuple):
    """A batch to read: pieces of files in order, and the augmentation that the loader applies."""

    segments: tuple[Segment, ...]
    crop: Crop | ResizedCrop | None = None
    colour_offsets: np.ndarray | None = None     # float32 (3, batch), grey levels; only with a crop


class Split(NamedTuple):
    """The images of one half of a data set, train or validation, as seen by worker `rank` of `size`."""

    files: tuple[Path, ...]
    counts: np.ndarray                           # int64 (files,), images per file
    labels: np.ndarray                           # int32 (n,), in the order of the files
    rank: int = 0
    size: int = 1
    checksums: tuple[FileChecksum, ...] = ()     # of the files; empty if they are unknown or not to be verified

    @property
    def n(self) -> int:
        """Number of images of all workers together."""
        return len(self.labels)

    def shard(self, rank: int, size: int) -> Self:
        """Return the part of worker `rank` of `size`: the rank-th slice of every batch of size * batch_size images.

        In each step, `size` workers of batch size B see the same images as one worker of batch size size * B.
        """
        return self._replace(rank=rank, size=size)

    def dropped(self, batch_size: int) -> int:
        """Return the number of images that an epoch of whole batches leaves out."""
        return self.n % (batch_size * self.size)

    def plan(
        self, batch_size: int, order: Sequence[int] | np.ndarray | None = None, keep_last: bool = False, parts: int = 1
    ) -> list[tuple[tuple[Segment, ...], np.ndarray]]:
        """Return the batches of an epoch: a list of (segments, labels int32 (batch,)).

        Args:
            order: permutation of the files (file_order). A batch may span several files.
            keep_last: True keeps the smaller last batch (validation), False drops it (training).
            parts: consecutive micro-batches into which each batch is divided; the list contains these instead.

        Raises:
            DataError: the training set is smaller than one batch.
        """
        step = batch_size * self.size
        if not keep_last and self.n < step:
            raise DataError(f"batch size {step} is larger than the set of {self.n} images")
        order = np.arange(len(self.files)) if order is None else np.asarray(order)
        ends = np.cumsum(self.counts)
        labels = np.concatenate([self.labels[ends[i] - self.counts[i]:ends[i]] for i in order])
        batches = []
        for begin in range(0, self.n if keep_last else self.n - self.n % step, step):
            images = min(step, self.n - begin)
            first = begin + images * self.rank // self.size
            last = begin + images * (self.rank + 1) // self.size
            bounds = [first + (last - first) * part // parts for part in range(parts + 1)]
            batches += [
                (self.segments(order, start, stop), labels[start:stop])
                for start, stop in pairwise(bounds) if start < stop
            ]
        return batches

    def segments(self, order: np.ndarray, first: int, last: int) -> tuple[Segment, ...]:
        """Return images first..last, counted through the files in `order`, as pieces of files."""
        ends = np.cumsum(self.counts[order])
        pieces = []
        place = int(np.searchsorted(ends, first, side="right"))
        while first < last:
            begin = int(ends[place] - self.counts[order[place]])
            stop = min(last, int(ends[place]))
            checksum = self.checksums[order[place]] if self.checksums else None
            pieces.append(Segment(self.files[order[place]], first - begin, stop - begin, checksum))
            first = stop
            place += 1
        return tuple(pieces)


class Dataset(NamedTuple):
    """A checked data set: the location of its images, and their properties."""

    path: Path
    train: Split
    validation: Split
    mean: np.ndarray                             # float32 (3, 256, 256), mean training image
    class_names: tuple[str, ...] | None
    classes: int
    resize: str = "squash"                       # how images were resized; see alexnet.data.augment.RESIZES
    remarks: tuple[str, ...] = ()                # on labels or a mean image that are implausible


def open_dataset(path: str | Path, classes: int | None = None, verify: bool = True) -> Dataset:
    """Open a folder created by preprocess or upstream's scripts, after every inexpensive check.

    Args:
        classes: number of classes that the labels must fit. Default: the number of class names in the manifest; if it
            has none, the largest label + 1.
        verify: True compares each batch file with the manifest's checksum when it is read.

    Raises:
        DataError: a file is missing, damaged or inconsistent.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise DataError(f"{name_of(path)} is not a folder; expected one that preprocess made")
    manifest = layout.read_manifest(path)
    if manifest and (fault := layout.fault_of_manifest(path, manifest)):
        raise DataError(fault)
    if manifest is None and not any(path.glob("*_hkl*")) and (hint := conversion_hint(path)):
        raise DataError(hint)
    train = open_split(path, manifest, "train", verify)
    validation = open_split(path, manifest, "validation", verify)
    mean = layout.load_mean(path / "misc" / "img_mean.npy", checksum(manifest, "misc/img_mean.npy"))
    names = tuple(manifest.get("class_names", ())) if manifest else ()
    if not names:                                # preprocess counts labels from 0
        plausibility.refuse_implausible_labels(path, train.labels, validation.labels, classes)
    largest = int(max(train.labels.max(), validation.labels.max()))
    classes = classes or len(names) or largest + 1
    if largest >= classes:
        raise DataError(f"{name_of(path)} has label {largest}; {classes} classes count to {classes - 1}")
    data = Dataset(path, train, validation, mean, names or None, classes, resize_of(path, manifest))
    return data._replace(remarks=tuple(remarks_on(data, manifest)))


def remarks_on(data: Dataset, manifest: Manifest | None) -> Iterator[str]:
    """Yield remarks on labels and, without a manifest, on a mean image that are implausible."""
    names = data.class_names if data.class_names and len(data.class_names) == data.classes else None
    yield from plausibility.remarks_on_labels(data.train.labels, data.validation.labels, data.classes, names)
    if manifest is None and (remark := plausibility.remark_on_mean(data.train.files[0], data.mean)):
        yield remark


def resize_of(path: Path, manifest: Manifest | None) -> str:
    """Return how images were resized, from the manifest. Without one: "squash", upstream's method."""
    settings = (manifest or {}).get("settings")
    resize = settings.get("resize") if isinstance(settings, dict) else "squash"
    if resize not in RESIZES:
        raise DataError(f"the manifest of {name_of(path)} has resize {resize!r}; must be {' or '.join(RESIZES)}")
    return resize


def open_split(path: Path, manifest: Manifest | None, half: str, verify: bool) -> Split:
    """Return the checked Split of half "train" or "validation"."""
    short = {"train": "train", "validation": "val"}[half]
    checksums: tuple[FileChecksum, ...] = ()
    if manifest:
        files, counts, checksums = layout.listed_files(path, manifest, half)
    else:
        files, counts = layout.found_files(path, short)
    sha256 = checksum(manifest, f"labels/{short}_labels.npy")
    labels = layout.load_labels(path / "labels", short, files, counts, sha256)
    return Split(files, counts, labels, checksums=checksums if verify else ())


def checksum(manifest: Manifest | None, name: str) -> str | None:
    """Return the manifest's sha256 of a small file, or None without a manifest."""
    if manifest is None:
        return None
    try:
        return manifest["checksums"][name]
    except (KeyError, TypeError) as error:
        raise DataError(f"the manifest has no checksum of {name}; run preprocess again") from error


class BatchReader:
    """Reads requests into buffers, in the worker or in its loader process.

    The most recently read file stays in memory, so that many small batches read a file of 256 images only once. Files
    are verified when they are read.

    Args:
        mean: float32 (3, 256, 256), for requests with a crop; None if there are none.
        image_size: size of the crop window in pixels, for requests with a crop; None if there are none.
    """

    def __init__(self, mean: np.ndarray | None, image_size: int | None):
        self.mean = None if mean is None else np.asarray(mean, np.float32)
        self.image_size = image_size
        self.path: Path | None = None            # of the images in self.file
        self.file = self.scratch = np.empty((0, 0, 0, 0), np.uint8)
        self.sums: dict[Path, int] = {}          # sums_crc32 of files that were verified by their sha256

    def read(self, request: Request, out: np.ndarray) -> None:
        """Fill out: uint8 (3, 256, 256, batch), or with a crop float32 (3, image_size, image_size, batch).

        Raises:
            DataError: a file cannot be read or does not match the request.
        """
        if request.crop is None:
            self.gather(request.segments, out)
            return
        if self.mean is None or out.shape[1:3] != (self.image_size, self.image_size) or out.dtype != np.float32:
            raise ValueError(f"a crop is float32 of {self.image_size} pixels, got {out.dtype} {out.shape}")
        self.scratch = fitting(self.scratch, (*self.mean.shape, out.shape[3]))
        self.gather(request.segments, self.scratch)
        if isinstance(request.crop, ResizedCrop):
            resize_batch(self.scratch, self.mean, request.crop, out)
        else:
            crop_batch(self.scratch, self.mean, request.crop, out)
        if request.colour_offsets is not None:
            out += request.colour_offsets[:, np.newaxis, np.newaxis]

    def gather(self, segments: Iterable[Segment], out: np.ndarray) -> None:
        """Fill out, uint8 (3, 256, 256, batch), with consecutive pieces of files."""
        place = 0
        for path, start, stop, checksum in segments:
            if path != self.path:
                with batch_file.opened(path, IMAGE_SIZE) as file:
                    if out.shape == file.shape and (start, stop) == (0, file.shape[3]):
                        file.read_into(out)
                        self.verify(path, checksum, out)
                        return
                    self.keep(file, path, checksum)
            images = self.file.shape[3]
            if not 0 <= start < stop <= images or place + stop - start > out.shape[3]:
                raise DataError(f"{name_of(path)} holds {images} images, not those from {start} to {stop}")
            out[..., place:place + stop - start] = self.file[..., start:stop]
            place += stop - start
        if place != out.shape[3]:
            raise ValueError(f"the request holds {place} images, the buffer {out.shape[3]}")

    def keep(self, file: BatchFile, path: Path, checksum: FileChecksum | None) -> None:
        """Read a whole open batch file into memory."""
        self.path = None
        self.file = fitting(self.file, file.shape)
        file.read_into(self.file)
        self.verify(path, checksum, self.file)
        self.path = path

    def verify(self, path: Path, checksum: FileChecksum | None, images: np.ndarray) -> None:
        """Compare the images of a whole file with its checksum, if there is one. Raises DataError.

        If the manifest has only the slow sha256, it is compared at the first reading of the file.
        """
        if checksum is None:
            return
        found = sums_crc32(images)
        expected = checksum.sums_crc32 if checksum.sums_crc32 is not None else self.sums.get(path)
        if expected is None and file_sha256(path) == checksum.sha256:
            self.sums[path] = expected = found
        if found != expected:
            raise DataError(
                f"{name_of(path)} is damaged: its content differs from the checksum in {layout.MANIFEST}; make the "
                "data set again (training with verify_data=false reads it as it is)"
            )


def fitting(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return array if it has this shape, else a new one. Reuse avoids page faults, which cost more than reading."""
    return array if array.shape == shape else np.empty(shape, array.dtype)
