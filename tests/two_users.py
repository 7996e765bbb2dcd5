"""Processes of two users on one machine, for tests as root: each imports this project and then drops its privileges.

From then on it imports nothing: the user may have no access to this Python.

    with User(12345) as user:
        user.call(compile_and_load, folder, tmpdir)     # a function of this module; raises what the function raises
"""

import ctypes
import multiprocessing
import os
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

from alexnet.config import ConfigError
from alexnet.native import compiler
from alexnet.run import folder
from multigpu.device import DeviceError
from multigpu.device.host import HostDevice
from multigpu.launch import rendezvous
from multigpu.launch.rendezvous import Arrival

PR_SET_DUMPABLE = 4                              # linux/prctl.h
SOURCE = "int answer(void) { return 42; }"
KEPT = []                                        # objects of this process that outlive a call


class User:
    """A process of a user. It has no privileges and no groups."""

    def __init__(self, number):
        self.number = number

    def __enter__(self):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, self.number))
        self._process.start()
        theirs.close()
        return self

    def __exit__(self, *error):
        self._pipe.close()
        self._process.join()

    def call(self, function, *arguments):
        self._pipe.send((function, arguments))
        result = self._pipe.recv()
        if isinstance(result, BaseException):
            raise result
        return result


def serve(pipe, number):
    """Entry point of the process: call functions until the pipe is closed."""
    os.setgroups([])
    os.setgid(number)
    os.setuid(number)
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1)  # as a process that this user has started
    os.umask(0o022)
    with suppress(EOFError):
        while True:
            function, arguments = pipe.recv()
            try:
                pipe.send(function(*arguments))
            except (OSError, ConfigError, DeviceError) as error:
                pipe.send(error)


# ---- what the user who trains does


def allocate(nbytes):
    """Return the handle of a new buffer in shared memory."""
    KEPT.append(device := HostDevice())
    return device.allocate(nbytes).handle


def listen(output):
    """Listen as rank 0; return the mode of the socket."""
    path = rendezvous.socket_path(str(output))
    KEPT.append(rendezvous.listen(path, Arrival(0, 2, "cpu", os.getpid()), lambda: False))
    return path.stat().st_mode & 0o777


def accept():
    """Return the Arrival of the connection that waits at the last listening socket, or None."""
    accepted = rendezvous.accept(KEPT[-1])
    return accepted and accepted[1]


def compile_and_load(cache, tmpdir):
    """Compile SOURCE with this cache; return (its answer, the folder of the library, its mode, the warnings)."""
    os.environ["ALEXNET_CACHE"], tempfile.tempdir = str(cache), str(tmpdir)
    for function in (compiler._load, compiler.warn_of_fallback, compiler.temporary_folder):
        function.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        library = compiler.load(SOURCE, "answer")
    used = Path(library._name).parent
    return library.answer(), used, used.stat().st_mode & 0o777, [str(each.message) for each in caught]


def create_run(output):
    """Create the folder of a new run; return its path."""
    return folder.new_folder(output / "run", exact=True)


# ---- what another user does


def attach(handle):
    """Map a buffer of another process and change it."""
    with HostDevice() as device:
        device.open(handle).array((1,), "uint8")[:] = 1


def connect(output):
    """Connect to the rank 0 that listens in a folder; return whether one does."""
    pipe = rendezvous.connect(rendezvous.socket_path(str(output)))
    if pipe:
        pipe.close()
    return pipe is not None


def listen_for_all(output):
    """Listen as rank 0 at a socket to which all users may connect."""
    listen(output)
    rendezvous.socket_path(str(output)).chmod(0o777)


def plant(place):
    """Place a library that returns 13 in a new folder, under the name that compile_and_load() looks for."""
    place.mkdir(exist_ok=True)
    os.environ["ALEXNET_CACHE"] = str(place)
    name = compiler._compiled(SOURCE, "answer", "auto", place).name
    evil = compiler._compiled(SOURCE.replace("42", "13"), "evil", "auto", place)
    evil.replace(place / name)
    place.chmod(0o777)


def prepare_run(output, target=None):
    """Create an empty folder for the run of another user, or a link to one."""
    place = target or output / "run"
    place.mkdir()
    place.chmod(0o777)
    if target:
        link(target, output / "run")


def link(target, path):
    path.symlink_to(target)


def write(path):
    path.write_text("")


def listed(place):
    return sorted(os.listdir(place))
