"""Batch files: uint8 images, (channel, row, column, image), written by hickle and read by h5py.

hickle.load runs pickled code out of any file, so it is never called.  The array of a batch file is its
HDF5 dataset "data", plain and contiguous; everything that is not exactly that is refused before reading.
"""

import os
import re
from contextlib import contextmanager
from pathlib import Path

import h5py
import hickle

NAMES = ("data", "data_0")                       # hickle 1 and 4 on; hickle 2 and 3
PARTIAL = ".partial"                             # ends the name of a file that is being written


class DataError(ValueError):
    """Data files that are missing, damaged, or do not fit together; one sentence names them."""


def check(path, size=256):
    """Shape (3, size, size, n) of a batch file, from its header alone; raises DataError."""
    with opened(path, size) as file:
        return file.shape


def read_into(path, out, start=0, stop=None):
    """Read images start..stop of a batch file into out, uint8 (3, size, size, stop - start).

    A whole file goes straight from the disk into a contiguous out.  Raises DataError.
    """
    with opened(path, out.shape[1]) as file:
        file.read_into(out, start, stop)


class BatchFile:
    """A checked batch file, open within the with block of opened(); shape is (3, size, size, n)."""

    def __init__(self, path, dataset):
        self.path, self.dataset, self.shape = path, dataset, dataset.shape

    def read_into(self, out, start=0, stop=None):
        """As the function read_into."""
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
    """Write images, uint8 (3, size, size, n), so that path is whole or not there at all.

    Until then the bytes lie in a file of this process's own, for a killed run's process may still be at the same one;
    remove_partial() takes away what was left.  Raises DataError, of a full disk for one.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with h5py.File(partial, "w") as file:
            hickle.dump(images, file)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:         # h5py raises either when a file cannot grow
        partial.unlink(missing_ok=True)
        raise DataError(f"{name_of(path)} cannot be written: {reason(error)}") from error


def remove_partial(folder):
    """Delete the half-written files of runs that were killed."""
    for file in Path(folder).glob("*" + PARTIAL):
        file.unlink(missing_ok=True)


def reason(error):
    """The system's own words for what went wrong, out of HDF5's long ones, where there are any."""
    number = error.errno if isinstance(error, OSError) and error.errno else None
    found = re.search(r"errno = (\d+)", str(error))
    number = int(found[1]) if found and not number else number
    return os.strerror(number) if number else one_line(error)


@contextmanager
def opened(path, size):
    """The BatchFile of a path, open within a with block; raises DataError."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise DataError(f"{name_of(path)} is not a file")        # a pipe would be waited for, for ever
    try:
        file = h5py.File(os.fsencode(path), "r", locking=False)
    except FileNotFoundError as error:
        raise DataError(f"{name_of(path)} is missing") from error
    except OSError as error:
        raise DataError(f"{name_of(path)} is not a readable HDF5 file: {one_line(error)}") from error
    with file:
        yield BatchFile(path, plain_dataset(file, path, size))


def plain_dataset(file, path, size):
    """The image dataset of an open file; raises DataError for all but plain uint8 images."""
    try:
        name = next((name for name in NAMES if file.get(name, getlink=True) is not None), None)
        fault = fault_of(file, name, size)
        if fault is None:
            return file[name]
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:     # what h5py raises on damage
        fault = one_line(error)
    raise DataError(
        f"{name_of(path)} {fault}; a batch file holds plain uint8 images of shape (3, {size}, {size}, images)"
    )


def fault_of(file, name, size):
    """What is wrong with dataset `name` of an open file, as the end of a sentence; None when it is plain."""
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
    """path as text that any terminal can show: what is not UTF-8, or steers a terminal, as an escape sequence."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error):
    """The message of an error without its line breaks; its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
