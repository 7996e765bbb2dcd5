"""Restart of a failed run: in its folder, from its newest checkpoint, or from its beginning if there is none.

    max_restarts=3      restart 1 of 3 from iteration 120: worker 1 (pid 4711) was killed by SIGKILL
                        restart 2 of 3, of worker 0 only: worker 0 (pid 4710) was killed by SIGKILL

A restart can cure the death of a process (a signal, no memory, a lost machine), an error of the disk or the network
file system while data are read, and a bit that has flipped in memory. It cannot cure invalid settings or data, a cost
that is not finite, a full disk, or an exception in the program; a stop by a signal is no failure.

A restart is a resumed run: bit-exact on the CPU, without duplicated records. If the other workers hold the state of the
training, only the killed worker is started again: see multigpu.rules.recovery.
"""

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from alexnet.config.schema import Config
from alexnet.native.console import say
from alexnet.run.checkpoint_format import iteration_of, newest, snapshots
from alexnet.run.folder import modified


@dataclass
class Restarts:
    """The restarts of a run, of all workers or of one."""

    limit: int
    used: int = 0

    @property
    def left(self) -> int:
        return self.limit - self.used


def restarted(config: Config, folder: Path | None) -> Config:
    """Return the settings with which a failed run starts again.

    Args:
        config: the settings of the start that has failed.
        folder: of the run; None if the start has failed before it opened its log.
    """
    if folder is None:
        return config
    changes = {"run_name": folder.name}
    if saved := newest_of_run(config, folder):
        changes["resume_train"] = str(saved)
    return config.as_restart(**changes)


def newest_of_run(config: Config, folder: Path) -> Path | None:
    """Return what a restart resumes: the folder, or one of its checkpoint files; None if the start has saved nothing.

    A run that has resumed an older checkpoint of its folder leaves the later ones until it saves. They do not count,
    and are older than the settings, which each start writes.
    """
    if not (config.resume_train and Path(config.resume_train).is_file()):
        return folder if newest(folder) else None
    started = modified(folder / "config.yaml")
    return max((path for path in snapshots(folder) if modified(path) >= started), key=modified, default=None)


def log_restart(config: Config, number: int, reason: str, rank: int | None = None) -> None:
    """Write the line about a restart to standard error and to the log of the run, if it exists.

    Args:
        config: the settings of the restart.
        number: of the restart, from 1.
        reason: the failure.
        rank: of the only worker that is started again; None: all are.
    """
    place = f" from {start_of(config)}" if rank is None else f", of worker {rank} only"
    line = f"restart {number} of {config.max_restarts}{place}: {reason}"
    say(line)
    log = Path(config.output, config.run_name or "", "log.txt")
    if config.is_restart and log.is_file():
        with suppress(OSError), log.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")


def start_of(config: Config) -> str:
    """Return where a restart begins, in words."""
    if not config.resume_train:
        return "the beginning"
    place = Path(config.resume_train)
    path = newest(place) if place.is_dir() else place
    iteration = None if path is None else iteration_of(path)
    return str(path) if iteration is None else f"iteration {iteration}"


def after_restarts(number: int, message: str) -> str:
    """Return the message about the last failure of a run that has been restarted `number` times."""
    return f"failed after {number} {'restart' if number == 1 else 'restarts'}: {message}" if number else message
