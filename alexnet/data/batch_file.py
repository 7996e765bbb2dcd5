"""Batch files: uint8 images, (channel, row, column, image), written by hickle and read by h5py.

hickle.load executes pickled code from any file, so it is never called. The array of a batch file is its contiguous,
uncompressed HDF5 dataset "data". Any other content is refused before it is read.
"""

import errno
import hashlib
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import h5py
import hickle
import numpy as np

from alexnet.native.atomic import replacing
from alexnet.native.untrusted import InputError

NAMES = ("data", "data_0")                       # hickle 1 and 4 or newer; hickle 2 and 3
BLOCK = 512                                      # 64-bit words that sums_crc32 adds up
# errors of a disk or a network file system, not of the file
OF_THE_DEVICE = {errno.EIO, errno.EREMOTEIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENODEV, errno.ENXIO}

FilePath = str | bytes | os.PathLike             # names of image files may not be UTF-8


class DataError(InputError):
    """Data files that are missing, damaged or inconsistent. The message is one sentence that names them."""


class ReadError(DataError):
    """The disk or the network file system failed while a file was read; the file may be intact."""


class FileChecksum(NamedTuple):
    """What the manifest knows about the content of a batch file."""

    sha256: str                                  # of the file, in hexadecimal
    sums_crc32: int | None                       # of the images; None in sets that have only the sha256


def sums_crc32(images: np.ndarray) -> int:
    """Return a checksum of images, uint8 (3, 256, 256, n), that is computed about as fast as they are read.

    It is the CRC-32 of the sums of every 512 little-endian 64-bit words, modulo 2**64. A flipped bit always changes it.
    SHA-256 and CRC-32 of all bytes take longer than reading them.
    """
    words = np.ascontiguousarray(images).reshape(-1).view("<u8")
    sums = words.reshape(-1, BLOCK).sum(axis=1, dtype="<u8")
    return zlib.crc32(sums)


def file_sha256(path: FilePath) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(path: FilePath, size: int = 256) -> tuple[int, ...]:
    """Return the shape (3, size, size, n) of a batch file, from its header only. Raises DataError."""
    with opened(path, size) as file:
        return file.shape


def read_into(path: FilePath, out: np.ndarray, start: int = 0, stop: int | None = None) -> None:
    """Read images start..stop of a batch file into out, uint8 (3, size, size, stop - start).

    If out is contiguous, h5py reads directly into it.

    Raises:
        DataError: the file is damaged, or the images do not fit into out.
    """
    with opened(path, out.shape[1]) as file:
        file.read_into(out, start, stop)


class BatchFile:
    """A checked batch file, valid within the with block of opened(). shape is (3, size, size, n)."""

    def __init__(self, path: FilePath, dataset: h5py.Dataset):
        self.path = path
        self.dataset = dataset
        self.shape: tuple[int, ...] = dataset.shape

    def read_into(self, out: np.ndarray, start: int = 0, stop: int | None = None) -> None:
        """See the function read_into."""
        dataset = self.dataset
        images = self.shape[3]
        stop = images if stop is None else stop
        wanted = (*self.shape[:3], stop - start)
        if not 0 <= start < stop <= images or out.shape != wanted or out.dtype != dataset.dtype:
            raise DataError(
                f"{name_of(self.path)} holds {images} images; cannot read images {start} to {stop} of it "
                f"into {out.dtype} {out.shape}"
            )
        try:
            if out.flags.c_contiguous:
                dataset.read_direct(out, source_sel=(..., slice(start, stop)))
            else:
                out[...] = dataset[..., start:stop]
        except OSError as error:
            raise kind_of(error)(f"{name_of(self.path)} cannot be read: {one_line(error)}") from error

    def rows(self, step: int) -> np.ndarray:
        """Return every step-th row of all images, from row step // 2. Raises DataError."""
        try:
            return self.dataset[:, step // 2::step]
        except OSError as error:
            raise DataError(f"{name_of(self.path)} cannot be read: {one_line(error)}") from error


def write(path: str | Path, images: np.ndarray) -> None:
    """Write images, uint8 (3, size, size, n), atomically to path.

    The temporary file has a unique name, because the process of a killed run may still be writing the same batch.

    Raises:
        DataError: the file cannot be written, for example because the disk is full.
    """
    try:
        with replacing(path, fsync=True, unique=True) as temporary, h5py.File(temporary, "w") as file:
            hickle.dump(images, file)
    except (OSError, RuntimeError) as error:         # h5py raises either if a file cannot grow
        raise DataError(f"{name_of(path)} cannot be written: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Return the operating system's message for an HDF5 error if it contains an errno, else its own message."""
    number = errno_of(error)
    return os.strerror(number) if number else one_line(error)


def errno_of(error: Exception) -> int | None:
    """Return the errno of an error, which HDF5 writes into its message; None if there is none."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    found = re.search(r"errno = (\d+)", str(error))
    return int(found[1]) if found else None


def kind_of(error: OSError) -> type[DataError]:
    """Return the class of the exception to raise after an error while reading."""
    return ReadError if errno_of(error) in OF_THE_DEVICE else DataError


@contextmanager
def opened(path: FilePath, size: int) -> Iterator[BatchFile]:
    """Open the BatchFile of a path within a with block. Raises DataError."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise DataError(f"{name_of(path)} is not a file")        # opening a pipe would block forever
    try:
        file = h5py.File(os.fsencode(path), "r", locking=False)
    except OSError as error:
        if not os.path.exists(path):             # also if it was removed while HDF5 opened it
            raise DataError(f"{name_of(path)} is missing") from error
        raise kind_of(error)(f"{name_of(path)} is not a readable HDF5 file: {one_line(error)}") from error
    with file:
        yield BatchFile(path, plain_dataset(file, path, size))


def plain_dataset(file: h5py.File, path: FilePath, size: int) -> h5py.Dataset:
    """Return the image dataset of an open file. Raises DataError unless it holds plain uint8 images."""
    try:
        name = next((name for name in NAMES if file.get(name, getlink=True) is not None), None)
        fault = fault_of(file, name, size)
        if fault is None:
            return file[name]
    except (OSError, RuntimeError, LookupError, TypeError, ValueError) as error:  # h5py's errors for a damaged file
        fault = one_line(error)
    raise DataError(
        f"{name_of(path)} {fault}; a batch file holds plain uint8 images of shape (3, {size}, {size}, images)"
    )


def fault_of(file: h5py.File, name: str | None, size: int) -> str | None:
    """Describe the fault of dataset `name` of an open file as the end of a sentence. None if it has no fault."""
    if name is None:
        return "holds no array named 'data'"
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        return f"holds a link to other data as {name!r}"
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        return f"holds a group as {name!r}, so it was written from something other than an array"
    if dataset.is_virtual or dataset.external:
        return "keeps its images in other files"
    if dataset.dtype != "uint8" or dataset.ndim != 4 or dataset.shape[:3] != (3, size, size):
        return f"holds {dataset.dtype} of shape {dataset.shape}"
    if dataset.chunks is not None or dataset.id.get_create_plist().get_nfilters():
        return f"is compressed or chunked ({dataset.compression or 'chunked'})"
    if dataset.shape[3] == 0 or dataset.id.get_storage_size() != dataset.size:
        return f"declares shape {dataset.shape} but stores {dataset.id.get_storage_size()} bytes"
    if dataset.id.get_offset() + dataset.size > os.fstat(file.id.get_vfd_handle()).st_size:
        return f"is cut short: it should hold {dataset.size} bytes of images"
    return None


def name_of(path: FilePath) -> str:
    """Return path as printable text: bytes that are not UTF-8 and control characters become escape sequences."""
    try:
        text = os.fsencode(path).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:                   # a character that no file name has, from a list of names
        text = str(path)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: BaseException) -> str:
    """Return an error's message without line breaks, or its type if the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__
