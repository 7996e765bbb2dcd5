"""Shared memory that MPICH leaves in /dev/shm if a rank is killed while MPI is initialised.

MPICH's ranks map a file, /dev/shm/mpich_shm_*, in MPI_Init.  Afterwards each rank unlinks it: see leave_no_files() of
multigpu.mpi.communicator.  Its library UCX creates another one, /dev/shm/ucx_shm_posix_*, which it unlinks at once.  A
rank that is killed before cannot unlink them, so the supervisor does it when the job has ended.
"""

import re
import time
from contextlib import suppress
from pathlib import Path

FOLDER = Path("/dev/shm")
NAMES = "mpich_shm_*", "ucx_shm_posix_*"
PAUSE = 1.0                                      # seconds; a rank maps its file at once, even if it starts just now


def shared_files() -> set[Path]:
    """Return the files of MPICH in shared memory, of all jobs on this machine."""
    return {path for names in NAMES for path in FOLDER.glob(names)}


def remove_left_files(before: set[Path]) -> None:
    """Remove the files of MPICH that no process uses.

    Args:
        before: the files that existed before the job.  They are not its own, and are kept.
    """
    left = unmapped(shared_files() - before)
    if left:
        time.sleep(PAUSE)
        for path in unmapped(left):
            with suppress(OSError):              # of another user, or removed by its own job
                path.unlink()


def unmapped(paths: set[Path]) -> set[Path]:
    """Return the files that no process has mapped, as far as this user can see."""
    mapped: set[str] = set()
    for maps in Path("/proc").glob("[0-9]*/maps") if paths else ():
        with suppress(OSError):                  # a process of another user, or one that has ended
            mapped.update(re.findall(rf"{re.escape(str(FOLDER))}/\S+", maps.read_text("utf-8", "replace")))
    return {path for path in paths if str(path) not in mapped}
