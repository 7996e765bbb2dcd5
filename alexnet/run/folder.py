"""The folder of a run: its creation, the lock on it, and the newest run of several.

A new folder is created by one system call, so two runs never share one. The run that writes into a folder holds an
flock(2) on the file `.lock` in it, which names the process. The kernel releases the lock when the process ends.
"""

import fcntl
import os
import socket
import stat
import warnings
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Self

from alexnet.config import Config, ConfigError
from alexnet.run.checkpoint_format import CheckpointError, snapshots

LOCK = ".lock"
# settings of one start of a run, which a resumed run does not take from its checkpoint
OF_ONE_START = ("output", "run_name", "resume_train", "rank", "size", "device")


class RunFolder:
    """The folder that rank 0 of a run writes into. A context manager, which holds the lock on the folder.

    Args:
        config: the settings; run_name is set.

    Attributes:
        path: the folder; a new run may get another one from create().
        resumed: whether the folder already belongs to this run.
    """

    def __init__(self, config: Config):
        self.path = Path(config.output, config.run_name or "")
        self.resumed = resumes_in_place(config) or config.is_restart
        self._exact = is_exact(config)
        self._lock: int | None = None

    def __enter__(self) -> Self:
        if self.resumed:                         # before its newest checkpoint is read
            self._lock = lock(self.path)
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def create(self) -> Path:
        """Create and lock the folder of a new run; do nothing for a resumed run. Return its path.

        Raises:
            ConfigError: the folder cannot be created, or is that of another run.
        """
        if not self.resumed:
            self.path = new_folder(self.path, self._exact)
            self._lock = lock(self.path)
            check_new(self.path, exact=True)     # another run may have been faster
        return self.path


def resumes_in_place(config: Config) -> bool:
    """Return whether the run continues in the folder of its checkpoint."""
    if not config.resume_train:
        return False
    return folder_of(Path(config.resume_train)).resolve() == Path(config.output, config.run_name or "").resolve()


def folder_of(place: Path) -> Path:
    """Return the run's folder of a folder or a checkpoint file."""
    return place.parent if place.is_file() else place


def is_exact(config: Config) -> bool:
    """Return whether a new run must have exactly the folder run_name, because the user has chosen the name."""
    return "run_name" in config.given


def check_new(folder: Path, exact: bool) -> None:
    """Raise ConfigError if a new run cannot have this folder.

    Args:
        exact: refuse a folder that is not empty.
    """
    try:
        if exact and folder.exists() and any(path.name != LOCK for path in folder.iterdir()):
            raise ConfigError(
                f"run_name: the folder {folder} exists and is not empty; give another name, or resume_train={folder}"
            )
        check_owner(folder)
        parent = next(each for each in (folder, *folder.parents) if each.exists())
    except OSError as error:
        raise ConfigError(f"output: the folder {folder} cannot be created: {error.strerror}") from error
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(f"output: the folder {folder} cannot be created: there is no permission to write to {parent}")


def check_owner(folder: Path) -> None:
    """Raise ConfigError for a folder that another user has prepared where all users may create files, as in /tmp."""
    if not folder.exists():
        return
    above, owner = folder.absolute().parent.stat(), folder.stat().st_uid
    if above.st_mode & stat.S_ISVTX and above.st_mode & stat.S_IWOTH and owner != os.getuid():
        raise ConfigError(
            f"run_name: the folder {folder} belongs to user {owner}, who could change the run; give another name"
        )


def new_folder(folder: Path, exact: bool) -> Path:
    """Create a folder and return its path.

    Args:
        exact: use `folder` even if it exists, as an empty folder. Otherwise _2, _3 ... is appended if it exists.

    Raises:
        ConfigError: the folder cannot be created.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if exact:
            folder.mkdir(exist_ok=True)
            check_owner(folder)
            return folder
        for number in count(1):
            path = folder if number == 1 else folder.with_name(f"{folder.name}_{number}")
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return path
    except OSError as error:
        raise ConfigError(f"output: the folder {folder} cannot be created: {error.strerror}") from error
    raise AssertionError


def lock(folder: Path) -> int:
    """Lock a run's folder; return the open file, which holds the lock until it is closed or the process ends.

    Raises:
        ConfigError: another process holds the lock, or the folder cannot be written.
    """
    try:
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ConfigError(f"output: nothing can be written into {folder}: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(file, 1000).decode(errors="replace").strip() or "another process"
        os.close(file)
        raise ConfigError(
            f"{holder} is writing into {folder}; wait until it ends, or stop it first"
        ) from error
    except OSError as error:                     # some network file systems have no locks
        warnings.warn(
            f"{folder} cannot be locked ({error.strerror}); do not resume this run twice at the same time",
            stacklevel=2,
        )
        return file
    with suppress(OSError):                      # on a full disk, the lock holds without the name
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return file


def newest_run(output: Path) -> tuple[Path, list[Path]]:
    """Return the run in `output` with the newest checkpoint by time, and newer run folders without a checkpoint.

    Raises:
        CheckpointError: no run has a checkpoint.
    """
    folders = [path for path in output.iterdir() if path.is_dir()]
    saved = {path: max(map(modified, found)) for path in folders if (found := snapshots(path))}
    if not saved:
        raise CheckpointError(f"resume_train: there is no checkpoint in {output}")
    newest = max(saved, key=saved.__getitem__)
    logs = {path: path / "log.txt" for path in folders if path not in saved}
    return newest, sorted(path for path, log in logs.items() if modified(log) > saved[newest])


def modified(path: Path) -> int:
    """Return the time of the last change of a file, in nanoseconds; 0 if it does not exist."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
