"""Read and write .npy files in a folder or a zip archive.

Archives are read without unpacking, and pickles are refused. The header of a file is checked before its values are
decoded, and at most the expected number of bytes is read, so a file cannot exhaust the memory.

Source: NEP 1 (.npy); APPNOTE.TXT (zip).
"""

import hashlib
import io
import math
import posixpath
import struct
import warnings
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from re import Pattern
from typing import Literal

import numpy as np

from alexnet.data.batch_file import one_line
from alexnet.data.layout import BAD_HEADER
from alexnet.pretrained.weights import WeightsError, whole

HEADER = 1 << 16                                 # maximum size of a .npy header, in bytes
WIDEST = 8                                       # maximum bytes per value, so float64 is reported from the header
READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
DAMAGE = (                                       # raised by zipfile; RuntimeError includes NotImplementedError
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, RuntimeError, LookupError,
    OverflowError,
)
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@contextmanager
def opened(path: Path, pattern: Pattern[str]) -> Iterator["Files"]:
    """Open the folder or zip `path` as Files. In a zip, `pattern` selects the folder; raises WeightsError."""
    if path.is_dir():
        yield Folder(path)
        return
    with zip_at(path) as archive:
        yield Archive(path, archive, pattern)


def zip_at(path: Path) -> zipfile.ZipFile:
    """Open a zip; raises WeightsError."""
    try:
        return zipfile.ZipFile(path)
    except DAMAGE as error:
        raise WeightsError(f"{path} is a damaged zip: {one_line(error)}") from error


def is_npz(path: Path) -> bool:
    """Whether a zip holds arrays LAYER.weight; False for a damaged zip."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".weight.npy") for name in archive.namelist())
    except DAMAGE:
        return False


class Files(ABC):
    """Access to files by name, some of which are arrays.

    path    path of the folder or zip
    names   names of the files directly in the folder
    packed  whether it is a zip
    sums    name -> expected SHA-256; files without an entry are not verified
    """

    packed = False
    names: set[str]

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sums: dict[str, str] = {}

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""

    @abstractmethod
    def content(self, name: str, limit: int) -> bytes:
        """Return the first `limit` + 1 bytes of a file; raises WeightsError."""

    @abstractmethod
    def title(self, published: str) -> str:
        """Return the name without its folder, and for a zip whether its SHA-1 is `published`."""

    def read(self, name: str, limit: int) -> bytes:
        """Return the content of a file of at most `limit` bytes; raises WeightsError."""
        content = self.content(name, limit)
        if len(content) > limit:
            raise WeightsError(f"{self.path}: {name} is longer than {limit} bytes, which is all it can need")
        if name in self.sums and hashlib.sha256(content).hexdigest() != self.sums[name]:
            raise WeightsError(f"{self.path}: {name} is not as it was exported: its SHA-256 differs")
        return content

    def array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Read a float32 array of the given shape from a .npy file; raises WeightsError."""
        content = self.read(name, math.prod(shape) * WIDEST + HEADER)
        held, order, dtype, start = self.header(name, content)
        if held != shape or dtype != np.float32:
            raise WeightsError(f"{self.path}: {name} must hold float32 {shape}, holds {dtype} {held}")
        return self.values(name, content, held, order, dtype, start)

    def small(self, name: str, largest: int) -> np.ndarray:
        """Read an array of any shape and numeric type, with at most `largest` values; raises WeightsError."""
        content = self.read(name, largest * WIDEST + HEADER)
        held, order, dtype, start = self.header(name, content)
        if math.prod(held) > largest or dtype.kind not in "fiu":
            raise WeightsError(f"{self.path}: {name} must hold at most {largest} numbers, holds {dtype} {held}")
        return self.values(name, content, held, order, dtype, start)

    def header(self, name: str, content: bytes) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype, int]:
        """Return (shape, memory order, dtype, offset of the values) of the content of a .npy file."""
        file = io.BytesIO(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)      # NumPy on Python 2 wrote 3L instead of 3
                version = np.lib.format.read_magic(file)
                if version not in READERS:
                    raise WeightsError(f"{self.path}: {name} is a .npy of version {version}; 1.0 and 2.0 are read")
                shape, fortran, dtype = READERS[version](file)
        except WeightsError:
            raise
        except BAD_HEADER as error:
            raise WeightsError(f"{self.path}: {name} is not a readable .npy array: {one_line(error)}") from error
        return shape, "F" if fortran else "C", dtype, file.tell()

    def values(
        self, name: str, content: bytes, shape: tuple[int, ...], order: Literal["C", "F"], dtype: np.dtype,
        start: int,
    ) -> np.ndarray:
        """Return the values of the content of a .npy file; see header. Raises WeightsError."""
        held, expected = len(content) - start, math.prod(shape) * dtype.itemsize
        if held != expected:
            raise WeightsError(f"{self.path}: {name} is damaged: it holds {held} bytes of values, not {expected}")
        return np.frombuffer(content, dtype, offset=start).reshape(shape, order=order)


class Folder(Files):
    """The files of a folder."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.names = {file.name for file in path.iterdir() if file.is_file()}

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def content(self, name: str, limit: int) -> bytes:
        try:
            with (self.path / name).open("rb") as file:
                return file.read(limit + 1)
        except FileNotFoundError as error:
            raise WeightsError(f"{self.path} has no {name}") from error
        except OSError as error:
            raise WeightsError(f"{self.path}: {name} cannot be read: {error.strerror}") from error

    def title(self, published: str) -> str:
        return self.path.name


class Archive(Files):
    """The files of a folder in a zip: the only folder with file names that match `pattern`."""

    packed = True

    def __init__(self, path: Path, archive: zipfile.ZipFile, pattern: Pattern[str]) -> None:
        super().__init__(path)
        self.archive = archive
        # is_dir() of Python 3.11 raises IndexError for an empty name
        listed = [info for info in archive.infolist() if not info.filename.endswith("/")]
        self.members = {info.filename: info for info in listed}
        self.folder = self.one_folder(pattern)
        inside = (name for name in self.members if posixpath.dirname(name) == self.folder)
        self.names = {posixpath.basename(name) for name in inside}
        if len(listed) != len(self.members):
            raise WeightsError(f"{path} is a zip that holds two files of one name")

    def one_folder(self, pattern: Pattern[str]) -> str:
        """Return the only folder with file names that match `pattern`; raises WeightsError."""
        folders = {posixpath.dirname(n) for n in self.members if pattern.fullmatch(posixpath.basename(n))}
        if len(folders) > 1:
            raise WeightsError(f"{self.path} holds arrays in {len(folders)} folders, {min(folders)!r} and others")
        if folders:
            return folders.pop()
        packed = [name for name in self.members if name.endswith(".zip")]
        hint = f"; it holds {packed[0]}, so unpack that" if packed else ""
        raise WeightsError(f"{self.path} is a zip without theano_alexnet's arrays W_0_65.npy …{hint}")

    def member(self, name: str) -> zipfile.ZipInfo | None:
        """Return the entry of a file, by its path relative to the folder."""
        return self.members.get(posixpath.normpath(posixpath.join(self.folder, name)))

    def has(self, name: str) -> bool:
        return self.member(name) is not None

    def content(self, name: str, limit: int) -> bytes:
        info = self.member(name)
        if info is None:
            raise WeightsError(f"{self.path} has no {name}")
        if info.flag_bits & 1 or info.compress_type not in METHODS:
            raise WeightsError(f"{self.path}: {name} is encrypted, or compressed in a way that is not read")
        try:
            with self.archive.open(info) as file:
                return file.read(limit + 1)      # zipfile verifies the CRC-32 at the end of the file
        except DAMAGE as error:
            raise WeightsError(f"{self.path}: {name} is damaged: {one_line(error)}") from error

    def title(self, published: str) -> str:
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha1").hexdigest()
        return f"{self.path.name} ({'the' if digest == published else 'not the'} published file: SHA-1 {digest})"


# ---- writing


def npy(array: np.ndarray) -> bytes:
    """Return an array as the content of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


@contextmanager
def writing(path: Path) -> Iterator["NewFiles"]:
    """Yield a NewFolder, or a NewArchive if `path` ends in .zip. It is renamed to `path` when the block succeeds.

    Raises:
        WeightsError: writing fails, or `path` exists and cannot be replaced.
    """
    with whole(path) as partial:
        if path.suffix == ".zip":
            with zipfile.ZipFile(partial, "w") as archive:
                yield NewArchive(archive)
        else:
            partial.mkdir()
            yield NewFolder(partial)


class NewFiles(ABC):
    """A folder or archive to which files are added; `sums` are their SHA-256."""

    def __init__(self) -> None:
        self.sums: dict[str, str] = {}

    def add(self, name: str, content: bytes) -> None:
        """Write a file."""
        self.sums[name] = hashlib.sha256(content).hexdigest()
        self.write(name, content)

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Write a file without a checksum."""


class NewFolder(NewFiles):
    """A new folder."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def write(self, name: str, content: bytes) -> None:
        (self.path / name).write_bytes(content)


class NewArchive(NewFiles):
    """A new zip archive, uncompressed because weights hardly compress. The same content gives the same bytes."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        super().__init__()
        self.archive = archive

    def write(self, name: str, content: bytes) -> None:
        info = zipfile.ZipInfo(name)
        info.external_attr = 0o644 << 16         # permissions of the unpacked file: rw-r--r--
        self.archive.writestr(info, content)
