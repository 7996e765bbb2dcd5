"""Rendezvous of workers that were started by hand, each by its own train.py.

    python train.py rank=0 size=2 device=cuda0 ...        in one terminal
    python train.py rank=1 size=2 device=cuda1 ...        in another, in any order

Rank 0 listens at a Unix socket in the folder `output`.  The other ranks connect and identify themselves:

    another rank                        rank 0
    Arrival(rank, size, ...)  ------->
                              <-------  Welcome(run_name) once all have arrived, then a pipe to each other rank;
                                        or Rejected(sentence), to all: the arrived workers do not match

The connection to rank 0 remains open as the pipe to it.  Rank 0 accepts only processes of the same user.
"""

import os
import socket
import stat
import struct
import time
from multiprocessing import connection, reduction
from pathlib import Path
from typing import NamedTuple

from alexnet.config.schema import ConfigError
from multigpu.communicator import PeerDied
from multigpu.process import pipes_between

NAME = ".meeting"                                # name of the socket, in the folder `output`
LONGEST = 107                                    # maximum bytes of a socket's path, linux/un.h
PATIENCE = 0.2                                   # seconds between two checks for a stop request or a listening rank 0
SPEECH = 2.0                                     # seconds within which a new connection must send its Arrival


class Arrival(NamedTuple):
    """Another rank to rank 0: identifies the worker that has connected."""

    rank: int
    size: int
    device: str
    pid: int


class Welcome(NamedTuple):
    """Rank 0 to another rank: all workers have arrived; run_name is the name of the run's folder."""

    run_name: str


class Rejected(NamedTuple):
    """Rank 0 to all: they cannot train together, with the reason."""

    sentence: str


class Stopped(RuntimeError):
    """A stop was requested while this worker waited for the others."""


def rendezvous(config, place, stop_requested):
    """Wait for the other workers and connect to them.

    Args:
        config: the settings.
        place: multigpu.launcher.Placement of this worker.
        stop_requested: () -> bool, whether to stop waiting.

    Returns:
        (the settings, with rank 0's run_name; {rank: Connection} to each other worker).

    Raises:
        Stopped: a stop was requested.
        ConfigError: the arrived workers do not match.
        PeerDied: one of them has exited.
    """
    if place.size == 1:
        return config, {}
    me, path = Arrival(*place, os.getpid()), rendezvous_path(config.output)
    if place.rank == 0:
        return config, gather(me, path, config.run_name, stop_requested)
    run_name, pipes = come(me, path, stop_requested)
    return config.model_copy(update={"run_name": run_name}), pipes


def rendezvous_path(output):
    """Return the path of the socket; raises ConfigError if it is too long or its folder cannot be created."""
    path = Path(output, NAME)
    if len(os.fsencode(path)) > LONGEST:
        raise ConfigError(
            f"output: workers started by hand meet at {path}, which is longer than the {LONGEST} bytes "
            "that a socket's path can have; give a shorter folder, or one relative to the current"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output: the folder {path.parent} cannot be made: {error.strerror}") from error
    return path


# ---- rank 0


def gather(me, path, run_name, stop_requested):
    """Rank 0: listen until all workers have arrived, then connect them; return its pipes."""
    pipes = {}
    with listening(path, me, stop_requested) as listener:
        try:
            await_all(listener, me, path, pipes, stop_requested)
        finally:
            path.unlink(missing_ok=True)         # late workers wait for the next rendezvous
    introduce(pipes, run_name)
    say(f"all {me.size} workers are there; worker 0 prints and saves")
    return pipes


def listening(path, me, stop_requested):
    """Return the listening socket.

    A socket left over by a killed run is replaced.  If another rank 0 is listening, this one sends its Arrival and is
    rejected.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            if line := connected(path):
                line.send(me)                    # it rejects this one, because there is a rank 0 already
                hear(line, 0, stop_requested)
                raise PeerDied("another worker 0 has died while this one talked to it; start this one again")
            path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen()
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"output: workers started by hand cannot meet at {path}: {error.strerror}; give another folder"
        ) from error
    except BaseException:
        listener.close()
        raise
    return listener


def await_all(listener, me, path, pipes, stop_requested):
    """Fill pipes, {rank: Connection}, with all expected workers."""
    there, told = {0: me}, None
    while missing := [rank for rank in range(me.size) if rank not in there]:
        if missing != told:
            ranks = " and ".join(map(str, missing))
            command = f"train.py rank={missing[0]} size={me.size} device=..."
            say(f"waiting for rank {ranks} of {me.size} at {path} ({command} with the same other settings)")
            told = missing
        ready = connection.wait([listener, *pipes.values()], PATIENCE)
        if stop_requested():
            raise Stopped
        for rank, pipe in pipes.items():
            if pipe in ready:                    # workers send nothing before their Welcome: it is an EOF
                raise PeerDied(f"worker {rank} (pid {there[rank].pid}) has died before the others were there")
        if listener in ready and (newcomer := accept(listener)):
            pipe, arrival = newcomer
            if sentence := obstacle(arrival, there):
                refuse([*pipes.values(), pipe], sentence)
            pipes[arrival.rank], there[arrival.rank] = pipe, arrival


def accept(listener):
    """Return (Connection, Arrival) of a new connection; None if it belongs to another user or sends no Arrival."""
    line, _ = listener.accept()
    if not of_this_user(line):
        line.close()
        return None
    pipe = connection.Connection(line.detach())
    try:
        if pipe.poll(SPEECH):
            return pipe, pipe.recv()
    except (EOFError, ConnectionError):          # it has closed the connection
        pass
    pipe.close()
    return None


def obstacle(arrival, there):
    """Return why a new worker cannot train with the arrived workers `there`, {rank: Arrival}; None if it can."""
    me, twin = there[0], there.get(arrival.rank)
    if arrival.size != me.size:
        return (
            f"rank 0 was started with size={me.size} and rank {arrival.rank} with size={arrival.size}: "
            "give all workers the same size"
        )
    if twin:
        return (
            f"rank {arrival.rank} was started twice, as processes {twin.pid} and {arrival.pid}: "
            f"give each worker its own rank, 0 to {me.size - 1}, and each run its own output"
        )
    for rank, other in there.items():
        if other.device == arrival.device != "cpu":
            return (
                f"rank {rank} and rank {arrival.rank} were both started with device={arrival.device}: give each its "
                f"own, or start both by devices={arrival.device},{arrival.device} if they are to share it"
            )
    return None


def refuse(pipes, sentence):
    """Send Rejected to all arrived workers and raise ConfigError, as each of them does."""
    for pipe in pipes:
        try:
            pipe.send(Rejected(sentence))
        except ConnectionError:                  # it has already exited
            continue
    raise ConfigError(sentence)


def introduce(pipes, run_name):
    """Welcome the other workers, and give every two of them a pipe."""
    ends = pipes_between(pipes)
    for rank, pipe in pipes.items():
        try:
            pipe.send(Welcome(run_name))
            for _, end in sorted(ends[rank].items()):
                reduction.send_handle(pipe, end.fileno(), None)
                end.close()
        except (OSError, RuntimeError, EOFError) as error:
            raise PeerDied(f"worker {rank} has died while the workers met") from error


# ---- the others


def come(me, path, stop_requested):
    """Other ranks: wait until rank 0 listens, then until all have arrived; return the run's name and the pipes."""
    line = connected(path)
    if line is None:
        say(f"waiting for rank 0 of {me.size} at {path} (train.py rank=0 size={me.size} device=...)")
    while line is None:
        time.sleep(PATIENCE)
        if stop_requested():
            raise Stopped
        line = connected(path)
    try:
        line.send(me)
    except ConnectionError as error:
        raise PeerDied("worker 0 has died while the workers met") from error
    say(f"worker 0 is there; waiting until all {me.size} workers are")
    welcome = hear(line, 0, stop_requested)
    pipes = {0: line}
    try:
        for rank in range(1, me.size):
            if rank != me.rank:
                pipes[rank] = connection.Connection(reduction.recv_handle(line))
    except (OSError, RuntimeError, EOFError) as error:
        raise PeerDied("worker 0 has died while the workers met") from error
    say(f"all {me.size} workers are there; worker 0 prints and saves")
    return welcome.run_name, pipes


def connected(path):
    """Return a Connection to the rank 0 that listens at path; None if no process listens there."""
    line = socket.socket(socket.AF_UNIX)
    try:
        line.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        line.close()
        return None
    except OSError as error:
        line.close()
        raise ConfigError(f"output: the workers cannot meet at {path}: {error.strerror}") from error
    if not of_this_user(line):
        line.close()
        raise ConfigError(f"output: at {path} another user's run listens; give a folder of your own")
    return connection.Connection(line.detach())


def hear(line, rank, stop_requested):
    """Wait for rank 0's answer; raises ConfigError if it is Rejected, Stopped, PeerDied."""
    try:
        while not line.poll(PATIENCE):
            if stop_requested():
                raise Stopped
        answer = line.recv()
    except (EOFError, ConnectionError) as error:
        raise PeerDied(f"worker {rank} has died, or was stopped, before all workers were there") from error
    if isinstance(answer, Rejected):
        raise ConfigError(answer.sentence)
    return answer


# ---- both


def of_this_user(line):
    """Return whether the process at the other end belongs to the user of this one."""
    _, user, _ = struct.unpack("3i", line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return user == os.getuid()


def say(line):
    print(line, flush=True)
