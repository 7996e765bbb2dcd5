"""Messages between the ranks and the monitor of an MPI job: lines of JSON over TCP.

    monitor                             rank
    Nonce(text)               ------->
                              <-------  Register(rank, pid, host, proof)     proof: it knows the token, sent by MPI
    Registered(proof)         ------->                                       so does the monitor
                              <-------  JobSettings(heartbeat_timeout, log, elastic)     from rank 0
                              <-------  Heartbeat(steps, waiting, begun)     every second
                              <-------  Detached()                           only a server waits for this rank
                              <-------  Failed(message, status, caused_by_peer)   see multigpu.launcher_link
                              <-------  PeerLost(message)                    it has lost a process that it needs
                              <-------  Finished(status)                     it has completed its work
    RankDropped(rank)         ------->                                       to rank 0: continue without that rank
    EndJob(status, abort)     ------->                                       a rank has failed
    Released(status, whole)   ------->                                       all ranks have completed their work

multigpu.failure.monitor describes how the monitor reacts.
"""

import hmac
import json
from typing import NamedTuple

from multigpu.launcher_link import Failed


class Nonce(NamedTuple):
    """Monitor to a new connection: challenge for the proof that the rank belongs to this job."""

    text: str


class Register(NamedTuple):
    """Rank to monitor: identity of the rank and proof that it belongs to this job."""

    rank: int
    pid: int
    host: str
    proof: str


class Registered(NamedTuple):
    """Monitor to rank: proof that it is the monitor of this job."""

    proof: str


class JobSettings(NamedTuple):
    """Rank 0 to monitor: the setting heartbeat_timeout, in seconds, and the log file of the run.

    elastic: whether the rule is elastic, that is, the others continue if a Detached rank is lost.
    """

    heartbeat_timeout: float
    log: str
    elastic: bool = False


class Heartbeat(NamedTuple):
    """Progress of a rank. steps rises with progress; waiting: for other ranks; begun: its first step is complete."""

    steps: int
    waiting: bool
    begun: bool


class Detached(NamedTuple):
    """From here on only a server waits for this rank, and the server can continue without it."""


class PeerLost(NamedTuple):
    """The rank cannot continue, although the run itself is intact; for example, its loader has died."""

    message: str


class Finished(NamedTuple):
    """The rank has completed its work; status is the exit status that it requests for the job."""

    status: int


class RankDropped(NamedTuple):
    """Monitor to rank 0: this rank has been dropped and reported; the others continue."""

    rank: int


class EndJob(NamedTuple):
    """The job ends with this status; abort: this rank ends the job, the others only themselves."""

    status: int
    abort: bool


class Released(NamedTuple):
    """All ranks have completed their work and end with this status; whole: no rank is missing."""

    status: int
    whole: bool


KINDS = {
    kind.__name__: kind
    for kind in (
        Nonce, Register, Registered, JobSettings, Heartbeat, Detached, Failed, PeerLost, Finished, RankDropped, EndJob,
        Released,
    )
}


def name_of(rank, pid, host):
    """Return a rank's name in messages."""
    return f"rank {rank} (pid {pid} on {host})"


def proof_of(token, text, who):
    """Return the HMAC that answers a Nonce's text; it requires the token."""
    return hmac.new(token, f"{who} {text}".encode(), "sha256").hexdigest()


class JsonSocket:
    """Messages over a socket, one line of JSON each."""

    def __init__(self, connection):
        self.socket, self._rest = connection, b""

    def send(self, message):
        """Send a message; raises OSError if the other end is closed."""
        self.socket.sendall(json.dumps([type(message).__name__, *message]).encode() + b"\n")

    def read(self):
        """Return (messages, whether the connection has ended); raises ValueError for a malformed message."""
        try:
            data = self.socket.recv(1 << 16)
        except (BlockingIOError, TimeoutError):
            return [], False
        except OSError:
            return [], True
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > 1 << 16:
            raise ValueError(f"a line of more than {1 << 16} bytes is no message")
        try:
            return [KINDS[name](*fields) for name, *fields in map(json.loads, lines)], not data
        except (KeyError, TypeError) as error:
            raise ValueError(f"no message of this job: {error}") from error

    def close(self):
        self.socket.close()
