"""CUDA driver emulator for machines without a GPU, used with the real PyCUDA. README.md lists what it can check.

    emulator = find()                            # raises NotBuilt with the reason if build.py has not built it
    subprocess.run(..., env=os.environ | emulator.environment(devices=4))
"""

import ctypes
import os
import pkgutil
import sys
from pathlib import Path
from typing import NamedTuple

CACHE = Path(sys.prefix) / "cuda_emulator"       # what build.py builds, for this Python's packages
REASON = CACHE / "not_built.txt"                 # why the build failed


class NotBuilt(RuntimeError):
    """The emulator has not been built; the message gives the reason in one sentence."""


class Emulator(NamedTuple):
    """Folder of the emulated driver (libcuda.so.1), and folder of PyCUDA and its dependencies."""

    library: Path
    packages: Path

    def environment(self, devices=2, memory_mib=256, peer=True, ipc=True, defer="sync", strict=True):
        """Return the environment variables, to be added to os.environ, of a process with `devices` emulated GPUs.

        Args:
            devices: number of emulated GPUs.
            memory_mib: memory of each device in MiB, shared by all processes that this one starts.
            peer: whether devices have peer access: True, False, or the pairs that do, such as "0-1,2-3".
            ipc: whether other processes can open memory.
            defer: when operations are executed: "sync", when something waits for them; 0, immediately; else the
                delay in milliseconds.
            strict: whether undefined behaviour, such as freeing memory that another process has open, aborts the
                process. If False, it prints a line.
        """
        return {
            "LD_LIBRARY_PATH": path_before(self.library, "LD_LIBRARY_PATH"),
            "PYTHONPATH": path_before(self.packages, "PYTHONPATH"),
            "JAX_PLATFORMS": "cpu",              # JAX's GPU code would load the driver and fail on missing functions
            "EMUCUDA_MACHINE": os.environ.get("EMUCUDA_MACHINE", str(os.getpid())),
            "EMUCUDA_DEVICES": str(devices),
            "EMUCUDA_MEMORY_MIB": str(memory_mib),
            "EMUCUDA_PEER": peer if isinstance(peer, str) else str(int(peer)),
            "EMUCUDA_IPC": str(int(ipc)),
            "EMUCUDA_DEFER": str(defer),
            "EMUCUDA_STRICT": str(int(strict)),
        }

    def load(self, **settings):
        """Set up emulated GPUs in this process and its children. PyCUDA must not be imported yet; cannot be undone."""
        os.environ.update(self.environment(**settings))
        ctypes.CDLL(str(self.library / "libcuda.so.1"), ctypes.RTLD_GLOBAL)
        if str(self.packages) not in sys.path:
            sys.path.insert(0, str(self.packages))


def path_before(folder, variable):
    """Return the folder list of an environment variable with `folder` moved or added to the front."""
    others = [each for each in os.environ.get(variable, "").split(os.pathsep) if each not in ("", str(folder))]
    return os.pathsep.join([str(folder), *others])


def find():
    """Return the Emulator that build.py has built; raise NotBuilt with the reason if there is none."""
    try:
        return pkgutil.resolve_name("tests.cuda_emulator.build:built")()
    except (NotBuilt, OSError) as error:
        reason = REASON.read_text(encoding="utf-8") if REASON.exists() else ""
        raise NotBuilt(reason or str(error)) from error


def pending():
    """Return the number of queued copies, fills and kernels of this process that have not been executed yet."""
    return ctypes.CDLL("libcuda.so.1").emucuda_pending()
