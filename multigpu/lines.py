"""What ranks and the watchman of an MPI job say to each other: lines of JSON over TCP.

    watchman                            rank
    Nonce(text)               ------->
                              <-------  Here(rank, pid, host, proof)      that both know the token, which went by MPI
    Welcome(proof)            ------->
                              <-------  Settled(time_out, log, lone)      rank 0
                              <-------  Beat(steps, waiting, begun)       every second
                              <-------  Apart()                           nobody but a server waits for this rank
                              <-------  Failed(sentence, status, follows) it cannot go on; multigpu.control
                              <-------  Lost(sentence)                    it has lost what it cannot go on without
                              <-------  Bye(status)                       it has done its part
    Dropped(rank)             ------->                                    to rank 0: go on without that one
    End(status, abort)        ------->                                    a rank has failed
    Released(status, whole)   ------->                                    all have done their part

multigpu.watchman says what it makes of them.
"""

import hmac
import json
from typing import NamedTuple

from multigpu.control import Failed


class Nonce(NamedTuple):
    """Watchman to one who has come: what to prove that one belongs to the job with."""

    text: str


class Here(NamedTuple):
    """Who has come."""

    rank: int
    pid: int
    host: str
    proof: str


class Welcome(NamedTuple):
    """It is the watchman of this job, indeed."""

    proof: str


class Settled(NamedTuple):
    """Rank 0: the settings' time_out, in seconds, and the log file of the run.

    lone  whether a rank that is Apart may be missed: the others go on
    """

    time_out: float
    log: str
    lone: bool = False


class Beat(NamedTuple):
    """Steps rises while the rank goes on; waiting: for other ranks; begun: it has done its first step."""

    steps: int
    waiting: bool
    begun: bool


class Apart(NamedTuple):
    """From here on nobody waits for this rank, but for a server that can do without."""


class Lost(NamedTuple):
    """The rank cannot go on, though nothing is wrong with the run: its loader has died, say."""

    sentence: str


class Bye(NamedTuple):
    """The rank has done its part; status: what the job is to end with, as far as it is this rank's to say."""

    status: int


class Dropped(NamedTuple):
    """Watchman to rank 0: this one is gone, and has been reported; the others go on."""

    rank: int


class End(NamedTuple):
    """The job ends with this status; abort: this rank ends it, the others only themselves."""

    status: int
    abort: bool


class Released(NamedTuple):
    """All ranks have done their part, and end with this status; whole: no rank is missing."""

    status: int
    whole: bool


KINDS = {
    kind.__name__: kind
    for kind in (Nonce, Here, Welcome, Settled, Beat, Apart, Failed, Lost, Bye, Dropped, End, Released)
}


def name_of(rank, pid, host):
    """How sentences name a rank."""
    return f"rank {rank} (pid {pid} on {host})"


def proof_of(token, text, who):
    """What only one who knows the token can answer to a Nonce's text."""
    return hmac.new(token, f"{who} {text}".encode(), "sha256").hexdigest()


class Line:
    """Messages over a socket, a line of JSON each."""

    def __init__(self, connection):
        self.socket, self._rest = connection, b""

    def send(self, message):
        """Raises OSError where nobody is there."""
        self.socket.sendall(json.dumps([type(message).__name__, *message]).encode() + b"\n")

    def read(self):
        """(the messages that have come, whether nothing more will come); raises ValueError for what is none."""
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
