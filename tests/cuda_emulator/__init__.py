"""A CUDA driver for machines without a GPU, under the real PyCUDA: README.md says what it proves and what it cannot.

    emulator = find()                            # NotBuilt, with the reason, where build.py has not built it
    subprocess.run(..., env=os.environ | emulator.environment(devices=4))
"""

import ctypes
import os
import pkgutil
import sys
from pathlib import Path
from typing import NamedTuple

CACHE = Path(sys.prefix) / "cuda_emulator"       # what build.py has built, for this Python's packages
REASON = CACHE / "not_built.txt"                 # why it could not


class NotBuilt(RuntimeError):
    """The emulator is not there; the message is one sentence that says why."""


class Emulator(NamedTuple):
    """Where the emulated driver lies (a folder with libcuda.so.1), and the folder of PyCUDA and its dependencies."""

    library: Path
    packages: Path

    def environment(self, devices=2, memory_mib=256, peer=True, ipc=True, defer="sync", strict=True):
        """Environment variables of a process that shall find `devices` emulated GPUs, to be added to os.environ.

        memory_mib  memory of each device, shared by all processes that this one starts
        peer        whether devices reach each other's memory: True, False, or the pairs that do, as "0-1,2-3"
        ipc         whether memory can be opened by another process
        defer       when copies are executed: "sync", once something waits for them; 0, at once; or milliseconds
        strict      whether what CUDA leaves undefined, such as freeing memory that another process has open, ends
                    the process that does it; else it writes a line
        """
        return {
            "LD_LIBRARY_PATH": path_before(self.library, "LD_LIBRARY_PATH"),
            "PYTHONPATH": path_before(self.packages, "PYTHONPATH"),
            "JAX_PLATFORMS": "cpu",              # JAX's own GPU code would find the driver, and what it lacks
            "EMUCUDA_MACHINE": os.environ.get("EMUCUDA_MACHINE", str(os.getpid())),
            "EMUCUDA_DEVICES": str(devices),
            "EMUCUDA_MEMORY_MIB": str(memory_mib),
            "EMUCUDA_PEER": peer if isinstance(peer, str) else str(int(peer)),
            "EMUCUDA_IPC": str(int(ipc)),
            "EMUCUDA_DEFER": str(defer),
            "EMUCUDA_STRICT": str(int(strict)),
        }

    def load(self, **settings):
        """Give this process, which has not imported PyCUDA, and those it starts emulated GPUs, for its whole life."""
        os.environ.update(self.environment(**settings))
        ctypes.CDLL(str(self.library / "libcuda.so.1"), ctypes.RTLD_GLOBAL)
        if str(self.packages) not in sys.path:
            sys.path.insert(0, str(self.packages))


def path_before(folder, variable):
    """The list of folders that an environment variable holds, with `folder` as the first of them."""
    others = [each for each in os.environ.get(variable, "").split(os.pathsep) if each not in ("", str(folder))]
    return os.pathsep.join([str(folder), *others])


def find():
    """The Emulator that build.py has built; raises NotBuilt, with the reason, where it has not."""
    try:
        return pkgutil.resolve_name("tests.cuda_emulator.build:built")()
    except (NotBuilt, OSError) as error:
        said = REASON.read_text(encoding="utf-8") if REASON.exists() else ""
        raise NotBuilt(said or str(error)) from error


def pending():
    """How many copies, fills and kernels of this process have been asked for and are not yet executed."""
    return ctypes.CDLL("libcuda.so.1").emucuda_pending()
