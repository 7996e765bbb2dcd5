"""Images in tar files, read in place: ILSVRC's originals need not be unpacked into 1.3 million files.

ILSVRC2012_img_train.tar is a tar of a tar for each class, n01440764.tar; ILSVRC2012_img_val.tar holds images only.
Neither is compressed, so every image is a range of bytes of the outer file. A tar of class folders is read, too.
"""

import io
import os
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alexnet.data.batch_file import DataError, name_of, one_line
from alexnet.data.image_formats import SUFFIXES
from alexnet.data.omissions import Omissions, nfc

INNER = ".tar"
MOST_HEADER = 1 << 20                            # bytes of a long name or of pax records
DAMAGE = (                                       # raised by tarfile
    tarfile.TarError, OSError, ValueError, IndexError, KeyError, TypeError, OverflowError, EOFError, RecursionError,
    struct.error,
)


class Member(NamedTuple):
    """An image in a tar file."""

    folder: str                                  # its class; empty: none
    name: str                                    # as in a tree of class folders: folder/file, or file
    offset: int                                  # in bytes, from the start of the outer file
    size: int


class HeaderReader(io.BufferedReader):
    """A tar file whose headers are read: a false length of a long name or of pax records allocates no memory."""

    def read(self, size: int | None = -1) -> bytes:
        """Read up to `size` bytes; raises tarfile.ReadError if they are more than MOST_HEADER."""
        if size is None or not 0 <= size <= MOST_HEADER:
            raise tarfile.ReadError(f"it has a header of {size} bytes")
        return super().read(size)


class TarImages(NamedTuple):
    """The images of a tar file, sorted by class and name as those of a tree of class folders would be."""

    classes: list[str]                           # empty: the images have no class folders
    names: tuple[str, ...]
    labels: np.ndarray                           # int32, indices into classes; zeros if there are none
    extents: np.ndarray                          # int64 (images, 2): offset and size


def is_tar(path: str | Path) -> bool:
    """Return whether a path is a file with the name of a tar, compressed or not."""
    name = os.path.basename(os.fspath(path)).lower()
    return Path(path).is_file() and (INNER in name or name.endswith(".tgz"))


def tar_images(path: str | Path, omissions: Omissions) -> TarImages:
    """List the images of a tar file.

    Args:
        omissions: receives everything that is no image.

    Raises:
        DataError: the file is compressed, damaged, or holds no images, some without class folders beside others, or a
            class without images, which would shift the labels of others.
    """
    last = {member.name: member for member in found(path, omissions)}    # as when unpacked, a later member replaces
    members = sorted(last.values(), key=lambda member: os.fsencode(member.name))
    if not members:
        raise DataError(f"{name_of(path)} holds no images"
                        + "".join(f"; it holds {omission}" for omission in omissions.listed()))
    spelling: dict[str, str] = {}
    for member in members:
        if spelling.setdefault(nfc(member.folder), member.folder) != member.folder:
            raise DataError(f"{name_of(path)} has two class folders {nfc(member.folder)}, which differ only in how "
                            "accents are encoded; merge them")
    classes = [spelling[key] for key in sorted(spelling, key=os.fsencode)]
    if "" in classes and len(classes) > 1:
        loose = next(member.name for member in members if not member.folder)
        raise DataError(f"{name_of(path)} holds class folders and images beside them, such as {name_of(loose)}")
    label_of = {folder: label for label, folder in enumerate(classes)}
    members.sort(key=lambda member: label_of[member.folder])
    return TarImages(
        [folder for folder in classes if folder],
        tuple(member.name for member in members),
        np.array([label_of[member.folder] for member in members], np.int32),
        np.array([(member.offset, member.size) for member in members], np.int64),
    )


def found(path: str | Path, omissions: Omissions) -> Iterator[Member]:
    """Yield the images of a tar file and of the tars in it, in their order. Raises DataError."""
    folders: set[str] = set()
    used: set[str] = set()                       # folders that hold something
    try:
        for member in tar_members(path, 0, os.path.getsize(path)):
            used.add(os.path.dirname(member.name))
            if member.isdir():
                folders.add(member.name)
            elif member.name.lower().endswith(INNER):
                yield from of_class(path, member, omissions)
            else:
                yield from image(member, "/".join(Path(member.name).parts[-2:]), omissions)
    except DataError:
        raise
    except DAMAGE as error:
        hint = "; decompress it first: gunzip" if compressed(path) else ""
        raise DataError(f"{name_of(path)} is damaged, or no tar file: {one_line(error)}{hint}") from error
    if empty := sorted(folders - used):
        raise DataError(f"class folder {name_of(empty[0])} of {name_of(path)} holds no image")


def of_class(path: str | Path, archive: tarfile.TarInfo, omissions: Omissions) -> Iterator[Member]:
    """Yield the images of the tar of one class. Raises DataError if there are none."""
    folder = Path(archive.name).stem
    empty = True
    for member in tar_members(path, archive.offset_data, archive.offset_data + archive.size):
        for each in image(member, f"{folder}/{os.path.basename(member.name)}", omissions):
            empty = False
            yield each
    if empty:
        raise DataError(f"{name_of(archive.name)} in {name_of(path)} holds no image")


def tar_members(path: str | Path, start: int, end: int) -> Iterator[tarfile.TarInfo]:
    """Yield the members of the tar in the bytes from start to end of a file; their offsets count from its start.

    Raises:
        tarfile.ReadError: a member is cut off, or has a negative size, with which tarfile may read a header again, or
            a header of more than MOST_HEADER bytes.
    """
    with HeaderReader(open(path, "rb", buffering=0)) as file:
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if member.size < 0:
                    raise tarfile.ReadError(f"{member.name} has a size of {member.size} bytes")
                if member.offset_data + member.size > end:
                    raise tarfile.ReadError(f"{member.name} is cut off")
                yield member


def image(member: tarfile.TarInfo, name: str, omissions: Omissions) -> Iterator[Member]:
    """Yield a member of the given name if it is an image, or count it among the omissions."""
    base = os.path.basename(name)
    if member.isdir():
        return
    if base.startswith("."):
        omissions.add("hidden", name)
    elif not member.isreg() or member.issparse():
        omissions.add("links or special files", name)
    elif not base.lower().endswith(SUFFIXES):
        omissions.add("of other types", name)
    else:
        yield Member(os.path.dirname(name), name, member.offset_data, member.size)


def compressed(path: str | Path) -> bool:
    """Return whether a file begins like gzip, bzip2, xz or zstd."""
    with open(path, "rb") as file:
        return file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
