"""Atomic writing: a file or folder appears under its name only when it is complete.

The content is written in a temporary folder next to the target, because several libraries create further files next to
the one that they write. The temporary folder is `.NAME.partial`. The temporary file has the name and the suffix of the
target.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"


@contextmanager
def replacing(path: str | os.PathLike[str], *, fsync: bool = False, unique: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write a file or folder to. When the block succeeds, it is renamed to `path`.

    An existing file is replaced. If the block raises, `path` is unchanged and the temporary files are removed.

    Args:
        path: the target; its folder must exist.
        fsync: write to the disk before and after renaming, so that `path` is complete even after a power failure.
        unique: use a unique temporary name, because several processes may write `path` at the same time. Otherwise
            the next writing of `path` removes what a killed process left; see also remove_partial().

    Raises:
        OSError: the file cannot be written or renamed.
    """
    path = Path(path)
    folder = _temporary_folder(path, unique)
    temporary = folder / path.name
    try:
        yield temporary
        if fsync:
            for written in [*temporary.rglob("*"), temporary]:
                sync(written)
        os.replace(temporary, path)
        if fsync:
            sync(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write(path: str | os.PathLike[str], content: str | bytes, *, fsync: bool = False) -> None:
    """Write bytes, or text in UTF-8, atomically to `path`. Line ends are written unchanged."""
    with replacing(path, fsync=fsync) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def reason(error: OSError) -> str:
    """Return an error of a file as a sentence that begins with the file's name, if it is known."""
    if error.filename is None or error.strerror is None:
        return str(error.strerror or error)
    return f"{error.filename}: {error.strerror}"


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Add the path to an OSError that has none, as errors of writing to an open file."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def sync(path: str | os.PathLike[str]) -> None:
    """Write the content of a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partial(folder: str | os.PathLike[str]) -> None:
    """Remove the temporary files that killed processes left in `folder`."""
    for path in Path(folder).glob(f"*{PARTIAL}"):
        _remove(path)


def _temporary_folder(path: Path, unique: bool) -> Path:
    if unique:
        return Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent))
    folder = path.with_name(f".{path.name}{PARTIAL}")
    _remove(folder)
    folder.mkdir()
    return folder


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
