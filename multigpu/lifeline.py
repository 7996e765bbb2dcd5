"""A rank's line to the watchman of its MPI job, beside MPI: multigpu.lines has what is said on it.

    with Lifeline(partners) as lifeline:         rank 0 starts the watchman; all come to it, over TCP
        lifeline.settled(time_out, log)          rank 0, once the settings are known
        lifeline.fail(sentence, status)          from any thread: this rank cannot go on; the job ends within seconds
        lifeline.lost(sentence)                  so, too; where the rule can do without this rank it alone is ended
        lifeline.status = status                 what the job is to end with, for all that this rank knows
    lifeline.status, lifeline.whole              left well: once all ranks have; left by an error: the job ends

An error that says all in its sentence is told by the watchman alone; another one shows its traceback, too.
The token that watchman and ranks prove to know travels by MPI; addresses are tried until one leads to the watchman.
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

from alexnet.checkpoint import CheckpointError
from alexnet.config import ConfigError
from alexnet.data import DataError
from alexnet.training import Diverged
from multigpu.control import Failed
from multigpu.device import DeviceError
from multigpu.lines import (
    Apart,
    Beat,
    Bye,
    Dropped,
    End,
    Here,
    Line,
    Lost,
    Nonce,
    Released,
    Settled,
    Welcome,
    name_of,
    proof_of,
)
from multigpu.loader import LoaderDied
from multigpu.mpi import MPI
from multigpu.partners import OutOfStep, PartnerDied
from multigpu.process import SIGNALS
from multigpu.stand_in import has_stand_in, may_go

BEAT = 1.0                                       # seconds
REACH = 2.0                                      # seconds in which an address has to answer
GRACE = 2.0                                      # seconds that MPI_Abort gets to end this process
SIOCGIFADDR = 0x8915                             # linux/sockios.h
STATUS_2 = (CheckpointError, ConfigError, DataError, DeviceError)
STATUS_1 = (Diverged, OutOfStep)


class Call(NamedTuple):
    """Rank 0 to all: where its watchman listens, and what proves that one is of this job."""

    addresses: list
    token: bytes
    step: int = 0


class Lifeline:
    """The line of this rank, an multigpu.mpi.MpiPartners; all ranks make it together."""

    def __init__(self, partners):
        self._partners, self._watchman = partners, None
        call = None
        if partners.rank == 0:
            token = secrets.token_bytes(32)
            with socket.create_server(("", 0), backlog=partners.size) as listener:
                call = Call([(each, listener.getsockname()[1]) for each in own_addresses()], token)
                self._watchman = start_watchman(listener, partners.size, token)
        call = partners.meet(call or Call([], b""))[0]
        self._line, self.status, self.whole = find_watchman(call, partners), 0, True
        self._sending, self._done = threading.Lock(), threading.Event()
        threading.Thread(target=self._keep, name="lifeline", daemon=True).start()

        partners.on_apart = self._apart

    def settled(self, time_out, log, lone):
        """Tell the watchman after how many seconds without progress a rank has failed, the run's log file, and whether
        its rule can do without a rank."""
        self._tell(Settled(time_out, str(log), lone))

    def _apart(self):
        self._tell(Apart())
        if self._partners.rank:
            may_go()

    def fail(self, sentence, status=1, follows=False):
        """Say, from any thread, that this rank cannot go on; the watchman then ends the job."""
        self._tell(Failed(sentence, status, follows))

    def lost(self, sentence):
        """Say, from any thread, that this rank has lost what it needs; at the least it alone is then ended."""
        self._tell(Lost(sentence))

    def close(self):
        """Wait until all ranks have done their part; one that has left them does not wait."""
        with self._partners.waiting():
            self._tell(Bye(self.status))
            if self._partners.left and has_stand_in():
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
        with self._partners.waiting():           # nobody is missed any more
            if isinstance(error, LoaderDied):
                self.lost(str(error))
            else:
                self.fail(*verdict_on(error))
            time.sleep(60)                       # the watchman ends this process

    def _keep(self):
        """Say every second how this rank goes on, until the watchman says what ends it, or is gone."""
        self._line.socket.settimeout(BEAT)
        while True:
            self._tell(Beat(*self._partners.pace()))
            messages, ended = self._line.read()
            for message in messages:
                if isinstance(message, Released):
                    self.status, self.whole = message
                    return self._done.set()
                if isinstance(message, Dropped):
                    self._partners.gone.add(message.rank)
                if isinstance(message, End):
                    return self._end(message)
            if ended:
                return self._miss_the_watchman()

    def _tell(self, message):
        with self._sending, suppress(OSError):   # without a watchman this process is ending already
            self._line.send(message)

    def _miss_the_watchman(self):
        """End the job, as nobody else does: the watchman is gone, or rank 0's machine.  One rank is to say so."""
        time.sleep(min(0.1 * self._partners.rank, 1.0))
        host = self._partners.hosts[0]
        sentence = f"{own_name(self._partners)}: this job's watchman on {host} is gone, or {host} is; the job ends\n"
        os.write(2, sentence.encode())           # not sys.stderr, whose lock the main thread may hold
        self._end(End(1, True))

    def _end(self, order):
        """End this process, now, and with it the job, if it is this rank's turn."""
        try:
            if order.abort and MPI.Query_thread() == MPI.THREAD_MULTIPLE:
                threading.Thread(target=MPI.COMM_WORLD.Abort, args=(order.status,), daemon=True).start()
            time.sleep(GRACE)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)


def verdict_on(error):
    """(sentence, status, whether it follows from the end of another rank) of an error; a bug shows its traceback."""
    if isinstance(error, STATUS_2):
        return str(error), 2, False
    if isinstance(error, STATUS_1):
        return str(error), 1, False
    if isinstance(error, PartnerDied | MPI.Exception):
        return str(error), 1, True
    text = "".join(traceback.format_exception(error))
    os.write(2, text.encode())
    return f"ended by {type(error).__name__}: {error}", 1, False


def start_watchman(listener, size, token):
    """The process id of the watchman of `size` ranks; it is in a session of its own, and signals do not reach it."""
    reader, writer = os.pipe()
    os.write(writer, token)
    os.close(writer)
    kept = {0, 1, 2, reader, listener.fileno()}  # of MPI's own it must hold none, else mpiexec would not see rank 0 die
    others = [int(fd) for fd in os.listdir("/proc/self/fd") if int(fd) not in kept]
    actions = [(os.POSIX_SPAWN_DUP2, reader, 0), (os.POSIX_SPAWN_DUP2, 2, 1)]
    actions += [(os.POSIX_SPAWN_CLOSE, fd) for fd in others]
    os.set_inheritable(listener.fileno(), True)
    command = [sys.executable, "-m", "multigpu.watchman", str(listener.fileno()), str(size)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        return os.posix_spawn(
            sys.executable, command, environment, file_actions=actions, setsid=True,
            setsigmask=[*SIGNALS, signal.SIGHUP],
        )  # fmt: skip
    finally:
        os.close(reader)


def own_addresses():
    """The IPv4 addresses of this machine, its own loopback last."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        found = []
        for _, name in socket.if_nameindex():
            with suppress(OSError):              # an interface without an address
                answer = fcntl.ioctl(asking, SIOCGIFADDR, struct.pack("256s", name.encode()))
                found.append(socket.inet_ntoa(answer[20:24]))
    return sorted(found, key=lambda address: address.startswith("127."))


def own_name(partners):
    return name_of(partners.rank, os.getpid(), partners.hosts[partners.rank])


def find_watchman(call, partners):
    """The Line to the watchman, at the first of its addresses where it answers.

    Where none does this rank ends, and with it the job: nobody would hear how it fares.
    """
    for address in call.addresses:
        with suppress(OSError, ValueError):
            return join(address, call.token, partners)
    addresses = ", ".join(address for address, _ in call.addresses)
    sentence = (
        f"{own_name(partners)} cannot reach the watchman of this job over TCP; "
        f"it listens on {partners.hosts[0]} at {addresses}\n"
    )
    os.write(2, sentence.encode())
    MPI.COMM_WORLD.Abort(1)


def join(address, token, partners):
    """The Line to the watchman at this address; raises OSError or ValueError where it is not there."""
    line = Line(socket.create_connection(address, REACH))
    try:
        nonce = await_one(line, Nonce)
        proof = proof_of(token, nonce.text, own_name(partners))
        line.send(Here(partners.rank, os.getpid(), partners.hosts[partners.rank], proof))
        welcome = await_one(line, Welcome)
        if not hmac.compare_digest(welcome.proof, proof_of(token, nonce.text, "watchman")):
            raise ValueError(f"at {address} listens another one")
    except (OSError, ValueError):
        line.close()
        raise
    return line


def await_one(line, kind):
    """The one message, of this kind, that comes within REACH seconds; raises ConnectionError, ValueError."""
    until = time.monotonic() + REACH
    while time.monotonic() < until:
        messages, ended = line.read()
        if messages:
            if isinstance(messages[0], kind):
                return messages[0]
            raise ValueError(f"{kind.__name__} is waited for, not {type(messages[0]).__name__}")
        if ended:
            break
    raise ConnectionError(f"nobody says {kind.__name__}")
