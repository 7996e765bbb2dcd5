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
import tokenize
import warnings
import zipfile
import zlib
from contextlib import contextmanager

import numpy as np

from alexnet.data.batch_file import one_line
from alexnet.native.atomic import sync
from alexnet.pretrained.weights import TORCHVISION, WeightsError, whole

HEADER = 1 << 16                                 # maximum size of a .npy header, in bytes
WIDEST = 8                                       # maximum bytes per value, so float64 is reported from the header
READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
BAD_HEADER = (ValueError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError, EOFError)
DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, RuntimeError)
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@contextmanager
def opened(path, pattern):
    """Open the folder or zip `path` as Files. In a zip, `pattern` selects the folder; raises WeightsError."""
    if path.is_dir():
        yield Folder(path)
        return
    try:
        archive = zipfile.ZipFile(path)
    except DAMAGE as error:
        raise WeightsError(f"{path} is a damaged zip: {one_line(error)}") from error
    with archive:
        yield Archive(path, archive, pattern)


class Files:
    """Access to files by name, some of which are arrays.

    path    path of the folder or zip
    names   names of the files directly in the folder
    packed  whether it is a zip
    sums    name -> expected SHA-256; files without an entry are not verified
    """

    packed = False

    def __init__(self, path):
        self.path, self.sums = path, {}

    def read(self, name, limit):
        """Return the content of a file of at most `limit` bytes; raises WeightsError."""
        content = self.content(name, limit)
        if len(content) > limit:
            raise WeightsError(f"{self.path}: {name} is longer than {limit} bytes, which is all it can need")
        if name in self.sums and hashlib.sha256(content).hexdigest() != self.sums[name]:
            raise WeightsError(f"{self.path}: {name} is not as it was exported: its SHA-256 differs")
        return content

    def array(self, name, shape):
        """Read a float32 array of the given shape from a .npy file; raises WeightsError."""
        content = self.read(name, math.prod(shape) * WIDEST + HEADER)
        held, order, dtype, start = self.header(name, content)
        if held != shape or dtype != np.float32:
            raise WeightsError(f"{self.path}: {name} must hold float32 {shape}, holds {dtype} {held}")
        return self.values(name, content, held, order, dtype, start)

    def small(self, name, largest):
        """Read an array of any shape and numeric type, with at most `largest` values; raises WeightsError."""
        content = self.read(name, largest * WIDEST + HEADER)
        held, order, dtype, start = self.header(name, content)
        if math.prod(held) > largest or dtype.kind not in "fiu":
            raise WeightsError(f"{self.path}: {name} must hold at most {largest} numbers, holds {dtype} {held}")
        return self.values(name, content, held, order, dtype, start)

    def header(self, name, content):
        """Return (shape, memory order, dtype, offset of the values) of the content of a .npy file."""
        file = io.BytesIO(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)      # NumPy on Python 2 wrote 3L instead of 3
                shape, fortran, dtype = READERS[np.lib.format.read_magic(file)](file)
        except KeyError as error:
            raise WeightsError(f"{self.path}: {name} is a .npy of version {error}; 1.0 and 2.0 are read") from error
        except BAD_HEADER as error:
            raise WeightsError(f"{self.path}: {name} is not a readable .npy array: {one_line(error)}") from error
        return shape, "F" if fortran else "C", dtype, file.tell()

    def values(self, name, content, shape, order, dtype, start):
        held, expected = len(content) - start, math.prod(shape) * dtype.itemsize
        if held != expected:
            raise WeightsError(f"{self.path}: {name} is damaged: it holds {held} bytes of values, not {expected}")
        return np.frombuffer(content, dtype, offset=start).reshape(shape, order=order)


class Folder(Files):
    """The files of a folder."""

    def __init__(self, path):
        super().__init__(path)
        self.names = {file.name for file in path.iterdir() if file.is_file()}

    def has(self, name):
        return (self.path / name).is_file()

    def content(self, name, limit):
        try:
            with (self.path / name).open("rb") as file:
                return file.read(limit + 1)
        except FileNotFoundError as error:
            raise WeightsError(f"{self.path} has no {name}") from error
        except OSError as error:
            raise WeightsError(f"{self.path}: {name} cannot be read: {error.strerror}") from error

    def title(self, published):
        return str(self.path)


class Archive(Files):
    """The files of a folder in a zip: the only folder with file names that match `pattern`."""

    packed = True

    def __init__(self, path, archive, pattern):
        super().__init__(path)
        self.archive = archive
        listed = [info for info in archive.infolist() if not info.is_dir()]
        self.members = {info.filename: info for info in listed}
        self.folder = self.one_folder(pattern)
        inside = (name for name in self.members if posixpath.dirname(name) == self.folder)
        self.names = {posixpath.basename(name) for name in inside}
        if len(listed) != len(self.members):
            raise WeightsError(f"{path} is a zip that holds two files of one name")

    def one_folder(self, pattern):
        folders = {posixpath.dirname(n) for n in self.members if pattern.fullmatch(posixpath.basename(n))}
        if len(folders) > 1:
            raise WeightsError(f"{self.path} holds arrays in {len(folders)} folders, {min(folders)!r} and others")
        if folders:
            return folders.pop()
        if any(posixpath.basename(name) == "data.pkl" for name in self.members):
            raise WeightsError(f"{self.path} is a PyTorch file, a pickle, which is never read; {TORCHVISION} anyway")
        packed = [name for name in self.members if name.endswith(".zip")]
        hint = f"; it holds {packed[0]}, so unpack that" if packed else ""
        raise WeightsError(f"{self.path} is a zip without theano_alexnet's arrays W_0_65.npy …{hint}")

    def member(self, name):
        return self.members.get(posixpath.normpath(posixpath.join(self.folder, name)))

    def has(self, name):
        return self.member(name) is not None

    def content(self, name, limit):
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

    def title(self, published):
        """Return the path, and whether the SHA-1 of the file is `published`."""
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha1").hexdigest()
        return f"{self.path} ({'the' if digest == published else 'not the'} published file: SHA-1 {digest})"


# ---- writing


def npy(array):
    """Return an array as the content of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


@contextmanager
def writing(path):
    """Yield a NewFolder, or a NewArchive if `path` ends in .zip. It is renamed to `path` when the block succeeds.

    Raises:
        WeightsError: writing fails, or `path` exists and cannot be replaced.
    """
    kind = NewArchive if path.suffix == ".zip" else NewFolder
    with whole(path) as partial, kind(partial) as target:
        yield target


class NewFolder:
    """A new folder; `sums` are the SHA-256 of the files added to it."""

    def __init__(self, path):
        self.path, self.sums = path, {}

    def __enter__(self):
        self.path.mkdir()
        return self

    def __exit__(self, *_):
        """Do nothing: add() closes and syncs each file."""

    def add(self, name, content):
        self.sums[name] = hashlib.sha256(content).hexdigest()
        (self.path / name).write_bytes(content)
        sync(self.path / name)


class NewArchive:
    """A new zip archive, uncompressed because weights hardly compress. The same content gives the same bytes."""

    def __init__(self, path):
        self.path, self.sums = path, {}

    def __enter__(self):
        self.archive = zipfile.ZipFile(self.path, "w")
        return self

    def __exit__(self, *_):
        self.archive.close()

    def add(self, name, content):
        self.sums[name] = hashlib.sha256(content).hexdigest()
        info = zipfile.ZipInfo(name)
        info.external_attr = 0o644 << 16         # permissions of the unpacked file: rw-r--r--
        self.archive.writestr(info, content)
