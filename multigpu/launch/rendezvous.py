"""Rendezvous of workers that were started by hand, each by its own train.py.

    python train.py rank=0 size=2 device=cuda0 ...        in one terminal
    python train.py rank=1 size=2 device=cuda1 ...        in another, in any order

Rank 0 listens at a Unix socket in the folder `output`.  The other ranks connect and send an Arrival.  Once all have
arrived, rank 0 sends each a Welcome and a pipe to each other rank; if they do not match, it sends all of them Rejected.
The connection to rank 0 remains open as the pipe to it.  Each side accepts only a process of the same user.
"""

import os
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing import connection, reduction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple, TypeAlias

from alexnet.config.schema import Config, ConfigError
from alexnet.native.packages import TRAIN
from multigpu.communicator import PeerDied
from multigpu.launch import clock
from multigpu.launch.process import pipes_between
from multigpu.messages import MAX_MESSAGE, Decoder, MessageError, encode

SOCKET_NAME = ".rendezvous"                      # in the folder `output`
MAX_PATH = 107                                   # maximum bytes of a socket's path, linux/un.h
POLL_INTERVAL = 0.2                              # seconds between two checks for a stop request or a listening rank 0
ARRIVAL_TIMEOUT = 2.0                            # seconds within which a new connection must send its Arrival

Pipes = dict[int, Connection]                    # {rank: Connection} to the other workers
Stop = Callable[[], bool]                        # returns whether to stop waiting for them


class Placement(NamedTuple):
    """The rank of a worker, the number of workers, and the device of the worker."""

    rank: int
    size: int
    device: str


class Arrival(NamedTuple):
    """Another rank to rank 0: identifies the worker that has connected."""

    rank: int
    size: int
    device: str
    pid: int


class Welcome(NamedTuple):
    """Rank 0 to another rank: all workers have arrived; run_name is the name of the run's folder."""

    run_name: str | None


class Rejected(NamedTuple):
    """Rank 0 to all: they cannot train together, and the reason."""

    reason: str


Answer: TypeAlias = Welcome | Rejected

ARRIVALS = Decoder([Arrival])
ANSWERS: Decoder[Answer] = Decoder([Welcome, Rejected])


class Stopped(RuntimeError):
    """A stop was requested while this worker waited for the others."""


def rendezvous(config: Config, placement: Placement, stop_requested: Stop) -> tuple[Config, Pipes]:
    """Wait for the other workers and connect to them.

    Args:
        config: the settings.
        placement: Placement of this worker.
        stop_requested: whether to stop waiting.

    Returns:
        (the settings, with rank 0's run_name; {rank: Connection} to each other worker).

    Raises:
        Stopped: a stop was requested.
        ConfigError: the arrived workers do not match.
        PeerDied: one of them has exited.
    """
    if placement.size == 1:
        return config, {}
    path = socket_path(config.output)
    own = Arrival(*placement, os.getpid())
    if own.rank == 0:
        pipes = accept_all(path, own, config.run_name, stop_requested)
    else:
        run_name, pipes = join(path, own, stop_requested)
        config = config.model_copy(update={"run_name": run_name})
    print(f"all {own.size} workers have connected; worker 0 prints and saves", flush=True)
    return config, pipes


def socket_path(output: str) -> Path:
    """Return the path of the socket; raises ConfigError if it is too long or its folder cannot be created."""
    path = Path(output, SOCKET_NAME)
    if len(os.fsencode(path)) > MAX_PATH:
        raise ConfigError(
            f"output: workers started by hand connect through the socket {path}, which is longer than the {MAX_PATH} "
            "bytes that a socket's path can have; give a shorter folder, or one relative to the current"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output: cannot create the folder {path.parent}: {error.strerror}") from error
    return path


# ---- rank 0


def accept_all(path: Path, own: Arrival, run_name: str | None, stop_requested: Stop) -> Pipes:
    """Rank 0: listen until all workers have arrived, then connect them; return {rank: Connection} to each."""
    with listen(path, own, stop_requested) as listener:
        try:
            pipes = await_arrivals(listener, path, own, stop_requested)
        finally:
            path.unlink(missing_ok=True)         # late workers wait for the next rendezvous
    connect_pairs(pipes, run_name)
    return pipes


def listen(path: Path, own: Arrival, stop_requested: Stop) -> socket.socket:
    """Return a listening socket at path.

    A socket left over by a killed run is replaced.  If another rank 0 is listening, this one sends its Arrival and is
    rejected.
    """
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            if pipe := connect(path):
                pipe.send_bytes(encode(own))
                receive_answer(pipe, stop_requested)
                raise PeerDied("another worker 0 has died while this one connected to it; start this one again")
            path.unlink(missing_ok=True)
        return bound(path)
    except OSError as error:
        raise ConfigError(f"output: cannot create the socket {path}: {error.strerror}; give another folder") from error


def bound(path: Path) -> socket.socket:
    """Return a listening socket at a path that does not exist, with access for this user only. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        os.fchmod(listener.fileno(), 0o600)      # the mode of the file that bind() creates
        listener.bind(os.fspath(path))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def await_arrivals(listener: socket.socket, path: Path, own: Arrival, stop_requested: Stop) -> Pipes:
    """Return {rank: Connection} to all other workers as soon as they have arrived."""
    arrived = {0: own}
    pipes: Pipes = {}
    logged = None
    while missing := [rank for rank in range(own.size) if rank not in arrived]:
        if missing != logged:
            ranks = " and ".join(map(str, missing))
            command = f"{TRAIN} rank={missing[0]} size={own.size} device=... with the same other settings"
            print(f"waiting for rank {ranks} of {own.size} at {path} ({command})", flush=True)
            logged = missing
        ready = connection.wait([listener, *pipes.values()], POLL_INTERVAL)
        if stop_requested():
            raise Stopped
        for rank, pipe in pipes.items():
            if pipe in ready:                    # workers send nothing before their Welcome: it is an EOF
                raise PeerDied(f"worker {rank} (pid {arrived[rank].pid}) has died before all workers had connected")
        if listener in ready and (accepted := accept(listener)):
            pipe, arrival = accepted
            if reason := mismatch(arrival, arrived):
                reject([*pipes.values(), pipe], reason)
            arrived[arrival.rank] = arrival
            pipes[arrival.rank] = pipe
    return pipes


def accept(listener: socket.socket) -> tuple[Connection, Arrival] | None:
    """Return a new connection and its Arrival; None if it belongs to another user or sends no Arrival."""
    accepted, _ = listener.accept()
    if not is_same_user(accepted):
        accepted.close()
        return None
    pipe = Connection(accepted.detach())
    with suppress(EOFError, OSError, MessageError):      # it has closed the connection, or sends something else
        if clock.poll(pipe, ARRIVAL_TIMEOUT):
            return pipe, ARRIVALS(pipe.recv_bytes(MAX_MESSAGE))
    pipe.close()
    return None


def mismatch(arrival: Arrival, arrived: dict[int, Arrival]) -> str | None:
    """Return why a new worker cannot train with the arrived workers {rank: Arrival}; None if it can."""
    size = arrived[0].size
    if arrival.size != size:
        return (
            f"rank 0 was started with size={size} and rank {arrival.rank} with size={arrival.size}: "
            "give all workers the same size"
        )
    if twin := arrived.get(arrival.rank):
        return (
            f"rank {arrival.rank} was started twice, as processes {twin.pid} and {arrival.pid}: "
            f"give each worker its own rank, 0 to {size - 1}, and each run its own output"
        )
    for rank, other in arrived.items():
        if other.device == arrival.device != "cpu":
            return (
                f"rank {rank} and rank {arrival.rank} were both started with device={arrival.device}: give each its "
                f"own, or start both by devices={arrival.device},{arrival.device} if they are to share it"
            )
    return None


def reject(pipes: Iterable[Connection], reason: str) -> None:
    """Send Rejected to all arrived workers and raise ConfigError, as each of them does."""
    for pipe in pipes:
        with suppress(ConnectionError):          # it has already exited
            pipe.send_bytes(encode(Rejected(reason)))
    raise ConfigError(reason)


def connect_pairs(pipes: Pipes, run_name: str | None) -> None:
    """Welcome the other workers, and give every two of them a pipe."""
    ends = pipes_between(pipes)
    for rank, pipe in pipes.items():
        try:
            pipe.send_bytes(encode(Welcome(run_name)))
            for _, end in sorted(ends[rank].items()):
                reduction.send_handle(pipe, end.fileno(), None)
                end.close()
        except (OSError, RuntimeError, EOFError) as error:
            raise PeerDied(f"worker {rank} has died while the workers connected") from error


# ---- the other ranks


def join(path: Path, own: Arrival, stop_requested: Stop) -> tuple[str | None, Pipes]:
    """Other ranks: wait until rank 0 listens, then until all have arrived; return (run_name, {rank: Connection})."""
    pipe = connect(path)
    if pipe is None:
        print(f"waiting for rank 0 of {own.size} at {path} ({TRAIN} rank=0 size={own.size} device=...)", flush=True)
    while pipe is None:
        time.sleep(POLL_INTERVAL)
        if stop_requested():
            raise Stopped
        pipe = connect(path)
    try:
        pipe.send_bytes(encode(own))
    except ConnectionError as error:
        raise PeerDied("worker 0 has died while the workers connected") from error
    print(f"connected to worker 0; waiting for all {own.size} workers", flush=True)
    welcome = receive_answer(pipe, stop_requested)
    pipes = {0: pipe}
    try:
        for rank in range(1, own.size):
            if rank != own.rank:
                pipes[rank] = Connection(reduction.recv_handle(pipe))
    except (OSError, RuntimeError, EOFError) as error:
        raise PeerDied("worker 0 has died while the workers connected") from error
    return welcome.run_name, pipes


def connect(path: Path) -> Connection | None:
    """Return a Connection to the rank 0 that listens at path; None if no process listens there."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as error:
            raise ConfigError(f"output: cannot connect to the socket {path}: {error.strerror}") from error
        if not is_same_user(client):
            raise ConfigError(f"output: a run of another user listens at {path}; give a folder of your own")
        return Connection(client.detach())


def receive_answer(pipe: Connection, stop_requested: Stop) -> Welcome:
    """Wait for rank 0's Welcome; raises ConfigError if it sends Rejected, Stopped, PeerDied."""
    try:
        while not pipe.poll(POLL_INTERVAL):
            if stop_requested():
                raise Stopped
        answer = ANSWERS(pipe.recv_bytes(MAX_MESSAGE))
    except (EOFError, OSError) as error:
        raise PeerDied("worker 0 has died, or was stopped, before all workers had connected") from error
    except MessageError as error:
        raise ConfigError(f"output: what listens at {SOCKET_NAME} is no worker: {error}; use another folder") from error
    if isinstance(answer, Rejected):
        raise ConfigError(answer.reason)
    return answer


def is_same_user(connected: socket.socket) -> bool:
    """Return whether the process at the other end belongs to the user of this one."""
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return user == os.getuid()
