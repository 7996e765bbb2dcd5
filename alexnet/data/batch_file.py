"""Batch files: uint8 images, (channel, row, column, image), written by hickle and read by h5py.

hickle.load executes pickled code from any file, so it is never called. The array of a batch file is its contiguous,
uncompressed HDF5 dataset "data". Any other content is refused before it is read.
"""

import os
import re
from contextlib import contextmanager
from pathlib import Path

import h5py
import hickle

NAMES = ("data", "data_0")                       # hickle 1 and 4 or newer; hickle 2 and 3
PARTIAL = ".partial"                             # suffix of a file that is being written


class DataError(ValueError):
    """Data files that are missing, damaged or inconsistent. The message is one sentence that names them."""


def check(path, size=256):
    """Return the shape (3, size, size, n) of a batch file, from its header only. Raises DataError."""
    with opened(path, size) as file:
        return file.shape


def read_into(path, out, start=0, stop=None):
    """Read images start..stop of a batch file into out, uint8 (3, size, size, stop - start).

    If out is contiguous, h5py reads directly into it.

    Raises:
        DataError: the file is damaged, or the images do not fit into out.
    """
    with opened(path, out.shape[1]) as file:
        file.read_into(out, start, stop)


class BatchFile:
    """A checked batch file, valid within the with block of opened(). shape is (3, size, size, n)."""

    def __init__(self, path, dataset):
        self.path, self.dataset, self.shape = path, dataset, dataset.shape

    def read_into(self, out, start=0, stop=None):
        """See the function read_into."""
        images, dataset = self.shape[3], self.dataset
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
            raise DataError(f"{name_of(self.path)} cannot be read: {one_line(error)}") from error


def write(path, images):
    """Write images, uint8 (3, size, size, n), atomically to path.

    The data is first written to a partial file with the process id in its name, because the process of a killed run may
    still be writing the same batch. remove_partial() deletes partial files that were left behind.

    Raises:
        DataError: the file cannot be written, for example because the disk is full.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with h5py.File(partial, "w") as file:
            hickle.dump(images, file)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:         # h5py raises either if a file cannot grow
        partial.unlink(missing_ok=True)
        raise DataError(f"{name_of(path)} cannot be written: {reason(error)}") from error


def remove_partial(folder):
    """Delete the partial files of killed runs."""
    for file in Path(folder).glob("*" + PARTIAL):
        file.unlink(missing_ok=True)


def reason(error):
    """Return the operating system's message for an HDF5 error if it contains an errno, else its own message."""
    number = error.errno if isinstance(error, OSError) and error.errno else None
    found = re.search(r"errno = (\d+)", str(error))
    number = int(found[1]) if found and not number else number
    return os.strerror(number) if number else one_line(error)


@contextmanager
def opened(path, size):
    """Open the BatchFile of a path within a with block. Raises DataError."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise DataError(f"{name_of(path)} is not a file")        # opening a pipe would block forever
    try:
        file = h5py.File(os.fsencode(path), "r", locking=False)
    except FileNotFoundError as error:
        raise DataError(f"{name_of(path)} is missing") from error
    except OSError as error:
        raise DataError(f"{name_of(path)} is not a readable HDF5 file: {one_line(error)}") from error
    with file:
        yield BatchFile(path, plain_dataset(file, path, size))


def plain_dataset(file, path, size):
    """Return the image dataset of an open file. Raises DataError unless it holds plain uint8 images."""
    try:
        name = next((name for name in NAMES if file.get(name, getlink=True) is not None), None)
        fault = fault_of(file, name, size)
        if fault is None:
            return file[name]
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:     # h5py's errors for a damaged file
        fault = one_line(error)
    raise DataError(
        f"{name_of(path)} {fault}; a batch file holds plain uint8 images of shape (3, {size}, {size}, images)"
    )


def fault_of(file, name, size):
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
    if dataset.id.get_offset() + dataset.size > os.path.getsize(file.filename):
        return f"is cut short: it should hold {dataset.size} bytes of images"
    return None


def name_of(path):
    """Return path as printable text: bytes that are not UTF-8 and control characters become escape sequences."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error):
    """Return an error's message without line breaks, or its type if the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__
