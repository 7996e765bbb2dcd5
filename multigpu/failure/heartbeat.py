"""A rank's connection to the monitor of its MPI job, separate from MPI; multigpu.failure.protocol has its messages.

    with HeartbeatClient(comm) as lifeline:  rank 0 starts the monitor; all ranks connect to it over TCP
        lifeline.settled(heartbeat_timeout, log, elastic)    rank 0, once the settings are known
        lifeline.fail(sentence, status)          from any thread: this rank has failed; the job ends within seconds
        lifeline.lost(sentence)                  same, but an elastic rule ends only this rank
        lifeline.status = status                 exit status that this rank requests for the job
    lifeline.status, lifeline.whole              normal exit: set once all ranks have finished; an error ends the job

For an expected error only the monitor prints its message; an unexpected error also prints its traceback.  MPI carries
the token that authenticates monitor and ranks to each other.  A rank tries the monitor's addresses in order.
"""

import fcntl
import hmac
import os
import secrets
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import NamedTuple

from alexnet.config.schema import ConfigError
from alexnet.data.dataset import DataError
from alexnet.run.checkpoint_format import CheckpointError
from alexnet.training.loop import Diverged
from multigpu.communicator import DesyncError, PeerDied
from multigpu.device import DeviceError
from multigpu.failure.protocol import (
    Detached,
    EndJob,
    Finished,
    Heartbeat,
    JobSettings,
    JsonSocket,
    Nonce,
    PeerLost,
    RankDropped,
    Register,
    Registered,
    Released,
    name_of,
    proof_of,
)
from multigpu.launcher_link import Failed
from multigpu.loader import LoaderDied
from multigpu.mpi.communicator import MPI
from multigpu.mpi.rank_wrapper import is_wrapped, may_go
from multigpu.process import SIGNALS

BEAT = 1.0                                       # seconds
REACH = 2.0                                      # seconds within which an address has to answer
GRACE = 2.0                                      # seconds that MPI_Abort gets to end this process
SIOCGIFADDR = 0x8915                             # linux/sockios.h
STATUS_2 = (CheckpointError, ConfigError, DataError, DeviceError)
STATUS_1 = (Diverged, DesyncError)


class MonitorAddress(NamedTuple):
    """Rank 0 to all: the addresses of its monitor, and the token that authenticates ranks."""

    addresses: list
    token: bytes
    step: int = 0


class HeartbeatClient:
    """The connection of this rank to the monitor; its construction is collective.

    comm: the multigpu.mpi.communicator.MpiCommunicator of this rank.
    """

    def __init__(self, comm):
        self._comm, self._watchman = comm, None
        call = None
        if comm.rank == 0:
            token = secrets.token_bytes(32)
            with socket.create_server(("", 0), backlog=comm.size) as listener:
                call = MonitorAddress([(each, listener.getsockname()[1]) for each in own_addresses()], token)
                self._watchman = start_monitor(listener, comm.size, token)
        call = comm.allgather(call or MonitorAddress([], b""))[0]
        self._line, self.status, self.whole = find_monitor(call, comm), 0, True
        self._sending, self._done = threading.Lock(), threading.Event()
        threading.Thread(target=self._keep, name="lifeline", daemon=True).start()

        comm.on_detach = self._apart

    def settled(self, heartbeat_timeout, log, elastic):
        """Send the settings to the monitor.

        Args:
            heartbeat_timeout: seconds without progress before a rank counts as failed.
            log: the run's log file.
            elastic: whether the rule is elastic.
        """
        self._tell(JobSettings(heartbeat_timeout, str(log), elastic))

    def _apart(self):
        self._tell(Detached())
        if self._comm.rank:
            may_go()

    def fail(self, sentence, status=1, caused_by_peer=False):
        """Report a failure of this rank, from any thread; the monitor then ends the job."""
        self._tell(Failed(sentence, status, caused_by_peer))

    def lost(self, sentence):
        """Report, from any thread, that this rank has lost a process it needs; an elastic rule ends only this rank."""
        self._tell(PeerLost(sentence))

    def close(self):
        """Wait until all ranks have finished; a rank that has left the job does not wait."""
        with self._comm.waiting():
            self._tell(Finished(self.status))
            if self._comm.has_left and is_wrapped():
                self.whole = False
                return
            self._done.wait()
        self._line.close()
        if self._watchman is not None:
            os.waitpid(self._watchman, 0)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is None:
            return self.close()
        with self._comm.waiting():           # from here on no rank depends on this one
            if isinstance(error, LoaderDied):
                self.lost(str(error))
            else:
                self.fail(*verdict_on(error))
            time.sleep(60)                       # the monitor ends this process

    def _keep(self):
        """Send a heartbeat every second until the monitor ends or releases this rank, or the monitor itself dies."""
        self._line.socket.settimeout(BEAT)
        while True:
            self._tell(Heartbeat(*self._comm.pace()))
            messages, ended = self._line.read()
            for message in messages:
                if isinstance(message, Released):
                    self.status, self.whole = message
                    return self._done.set()
                if isinstance(message, RankDropped):
                    self._comm.dropped_ranks.add(message.rank)
                if isinstance(message, EndJob):
                    return self._end(message)
            if ended:
                return self._miss_the_watchman()

    def _tell(self, message):
        with self._sending, suppress(OSError):   # if the monitor is dead, this process is already ending
            self._line.send(message)

    def _miss_the_watchman(self):
        """End the job after the loss of the monitor or of rank 0's machine. The delay lets one rank report it first."""
        time.sleep(min(0.1 * self._comm.rank, 1.0))
        host = self._comm.hosts[0]
        sentence = f"{own_name(self._comm)}: this job's watchman on {host} is gone, or {host} is; the job ends\n"
        os.write(2, sentence.encode())           # not sys.stderr, whose lock the main thread may hold
        self._end(EndJob(1, True))

    def _end(self, order):
        """End this process now, and the job as well if this rank is the one to abort it."""
        try:
            if order.abort and MPI.Query_thread() == MPI.THREAD_MULTIPLE:
                threading.Thread(target=MPI.COMM_WORLD.Abort, args=(order.status,), daemon=True).start()
            time.sleep(GRACE)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)


def verdict_on(error):
    """Return (message, status, whether another rank's end is the cause) of an error; print the traceback of a bug."""
    if isinstance(error, STATUS_2):
        return str(error), 2, False
    if isinstance(error, STATUS_1):
        return str(error), 1, False
    if isinstance(error, PeerDied | MPI.Exception):
        return str(error), 1, True
    text = "".join(traceback.format_exception(error))
    os.write(2, text.encode())
    return f"ended by {type(error).__name__}: {error}", 1, False


def start_monitor(listener, size, token):
    """Start the monitor of `size` ranks in its own session, with signals blocked; return its process id."""
    reader, writer = os.pipe()
    os.write(writer, token)
    os.close(writer)
    kept = {0, 1, 2, reader, listener.fileno()}  # it must inherit no fd of MPI, or mpiexec would not see rank 0 die
    others = [int(fd) for fd in os.listdir("/proc/self/fd") if int(fd) not in kept]
    actions = [(os.POSIX_SPAWN_DUP2, reader, 0), (os.POSIX_SPAWN_DUP2, 2, 1)]
    actions += [(os.POSIX_SPAWN_CLOSE, fd) for fd in others]
    os.set_inheritable(listener.fileno(), True)
    command = [sys.executable, "-m", "multigpu.failure.monitor", str(listener.fileno()), str(size)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        return os.posix_spawn(
            sys.executable, command, environment, file_actions=actions, setsid=True,
            setsigmask=[*SIGNALS, signal.SIGHUP],
        )
    finally:
        os.close(reader)


def own_addresses():
    """Return the IPv4 addresses of this machine, loopback last."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        found = []
        for _, name in socket.if_nameindex():
            with suppress(OSError):              # an interface without an address
                answer = fcntl.ioctl(asking, SIOCGIFADDR, struct.pack("256s", name.encode()))
                found.append(socket.inet_ntoa(answer[20:24]))
    return sorted(found, key=lambda address: address.startswith("127."))


def own_name(comm):
    return name_of(comm.rank, os.getpid(), comm.hosts[comm.rank])


def find_monitor(call, comm):
    """Return the JsonSocket to the monitor, at the first of its addresses that answers.

    If none does, this rank aborts the job, because the monitor would not notice its failure.
    """
    for address in call.addresses:
        with suppress(OSError, ValueError):
            return join(address, call.token, comm)
    addresses = ", ".join(address for address, _ in call.addresses)
    sentence = (
        f"{own_name(comm)} cannot reach the watchman of this job over TCP; "
        f"it listens on {comm.hosts[0]} at {addresses}\n"
    )
    os.write(2, sentence.encode())
    MPI.COMM_WORLD.Abort(1)


def join(address, token, comm):
    """Return the JsonSocket to the monitor at this address; raises OSError or ValueError if it does not answer."""
    line = JsonSocket(socket.create_connection(address, REACH))
    try:
        nonce = await_one(line, Nonce)
        proof = proof_of(token, nonce.text, own_name(comm))
        line.send(Register(comm.rank, os.getpid(), comm.hosts[comm.rank], proof))
        welcome = await_one(line, Registered)
        if not hmac.compare_digest(welcome.proof, proof_of(token, nonce.text, "watchman")):
            raise ValueError(f"at {address} listens another one")
    except (OSError, ValueError):
        line.close()
        raise
    return line


def await_one(line, kind):
    """Return the next message, of this kind, received within REACH seconds; raises ConnectionError, ValueError."""
    until = time.monotonic() + REACH
    while time.monotonic() < until:
        messages, ended = line.read()
        if messages:
            if isinstance(messages[0], kind):
                return messages[0]
            raise ValueError(f"{kind.__name__} was expected, got {type(messages[0]).__name__}")
        if ended:
            break
    raise ConnectionError(f"the connection closed before {kind.__name__}")
