"""Asynchronous point-to-point messages between ranks; waiting ranks sleep instead of spinning.

A message is a NamedTuple of a specific type, with its step and its sender. An unexpected message ends the run. Arrays
are sent separately over the same communicator; a message announces the array, and its receiver then receives the array.

MPI transfers a message only while both ends call MPI. A blocking call spins, which occupies a core that other ranks
need for computation. A rank that has to wait for long therefore alternates between polling and sleeping.

Importing this module initialises MPI, so rules import Channel by name.
"""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NoReturn, TypeVar

import numpy as np

from multigpu.communicator import DesyncError, PeerDied, desync_error
from multigpu.launch.clock import TimeLimit
from multigpu.messages import Decoder, MessageError, UnknownMessage, encode
from multigpu.mpi.communicator import MPI, MpiCommunicator

T = TypeVar("T")
M = TypeVar("M")

SHORTEST, LONGEST = 1e-4, 1e-3                   # seconds of sleep between two polls
BRIEF, SPIN = 1e-6, 0.2                          # seconds: sleep during a transfer, yields the core; for how long
LATE = 10.0                                      # seconds in which JobMonitor detects a death that MPI has reported
PIECE = 1 << 20                                  # floats, 4 MB: smaller pieces need too many handovers on busy cores


class Channel:
    """Sends and receives messages of this rank, and counts them.

    Args:
        comm: connects the ranks.
        decode: of the rule's messages; its limit is that of their bytes.

    Attributes:
        dropped_ranks: ranks from which no further messages arrive.
        sent, received: number of messages, per receiver and in total.
    """

    TALK, ARRAY = 1, 2                           # tags of messages, and of the arrays that they announce

    def __init__(self, comm: MpiCommunicator, decode: Decoder[Any]):
        self._decode = decode
        self.rank = comm.rank
        self.size = comm.size
        self.waiting = comm.waiting
        self.dropped_ranks = comm.dropped_ranks
        self.sent = [0] * self.size
        self.received = 0
        self._comm = comm
        self._mpi = comm.mpi
        self._pending: list[tuple[MPI.Request, int]] = []        # messages that are being sent, with the receiver
        self._abandoned: list[object] = []       # what MPI may still read, though its receiver has died

    def send(self, message: Any, other: int) -> None:
        """Send a message without waiting for its arrival."""
        self._all_are_sent()
        data = encode(message, self._decode.limit)
        self._pending.append((self._mpi.Isend([data, MPI.BYTE], other, self.TALK), other))
        self.sent[other] += 1

    def take(self) -> Any:
        """Return the first message that has arrived, or None if there is none."""
        status = MPI.Status()
        envelope = self._mpi.improbe(MPI.ANY_SOURCE, self.TALK, status)
        if envelope is None:
            return None
        size = status.Get_count(MPI.BYTE)
        if size > self._decode.limit:
            raise self._foreign(status.source, f"a message of {size} bytes, more than {self._decode.limit}")
        data = bytearray(size)
        try:
            self._finish([envelope.Irecv([data, MPI.BYTE])], status.source, data)
        except PeerDied:
            return None
        try:
            message = self._decode(data)
        except UnknownMessage as error:
            receiver = f"rank {self.rank}"
            raise desync_error(f"rank {status.source}", error.sent, receiver, self._decode.awaited) from None
        except MessageError as error:
            raise self._foreign(status.source, f"what this rule does not expect: {error}") from error
        if message.sender != status.source:
            raise DesyncError(
                f"rank {status.source} sends {type(message).__name__} in the name of rank {message.sender}: "
                "one of them does not belong to this run; restart all from one checkpoint"
            )
        self.received += 1
        return message

    def recv(self, kind: type[M], step: int, sender: int) -> M:
        """Wait for the only message that is valid now; raises DesyncError for any other message."""
        message = self.until(self.take)
        if (type(message), message.step, message.sender) != (kind, step, sender):
            self.refuse(message, f"{kind.__name__} of step {step} from rank {sender}")
        return message

    def refuse(self, message: Any, awaited: str) -> NoReturn:
        """Raise DesyncError for a message that this rank does not expect."""
        sent = f"{type(message).__name__} of step {message.step}"
        raise desync_error(f"rank {message.sender}", sent, f"rank {self.rank}", awaited)

    def _foreign(self, source: int, sent: str) -> DesyncError:
        """Return the error for bytes that are no message of this rule."""
        return DesyncError(
            f"rank {source} sends {sent}; it does not belong to this run: restart all from one checkpoint"
        )

    def until(self, look: Callable[[], T]) -> T:
        """Call look() repeatedly until it returns a true value; returns that value."""
        with self.waiting():
            pause = SHORTEST
            while not (found := look()):
                time.sleep(pause)
                pause = min(2 * pause, LONGEST)
            return found

    def add_up(self, array: np.ndarray) -> None:
        """Replace a float32 array by its sum over all ranks. Collective."""
        with self.waiting():
            self._mpi.Allreduce(MPI.IN_PLACE, array)

    def now(self) -> float:
        """Return the time in seconds since an arbitrary origin."""
        return time.perf_counter()

    def exchange_with_server(self, array: np.ndarray, server: int, there: bool = True, back: bool = True) -> None:
        """Client side of an exchange: send each piece to the server and receive it back in place.

        Args:
            there, back: whether pieces are sent, and whether they are received.
        """
        pieces = [array[part] for part in parts(array.size)]
        for outgoing, incoming in staggered(pieces if there else [], pieces if back else []):
            self._swap(outgoing, incoming, server)

    def serve_exchange(
        self, client: int, length: int, update: Callable[[np.ndarray, slice], None], there: bool = True,
        back: bool = True,
    ) -> None:
        """Server side of an exchange of `length` float32 values.

        Each piece is received, changed by update(piece, slice), and sent back.

        Args:
            there, back: whether pieces are received from the client, and whether they are sent back.
        """
        current, following = np.empty((2, min(PIECE, length)), np.float32)
        slices = parts(length)
        if there:
            self._swap(None, current[: size_of(slices[0])], client)
        for part, next_part in zip(slices, [*slices[1:], None], strict=True):
            piece = current[: size_of(part)]
            update(piece, part)
            incoming = following[: size_of(next_part)] if there and next_part else None
            self._swap(piece if back else None, incoming, client)
            current, following = following, current

    def _swap(self, outgoing: np.ndarray | None, incoming: np.ndarray | None, other: int) -> None:
        """Send one array and receive another concurrently; None for no array."""
        requests = [] if incoming is None else [self._mpi.Irecv(incoming, other, self.ARRAY)]
        if outgoing is not None:
            requests.append(self._mpi.Isend(outgoing, other, self.ARRAY))
        self._finish(requests, other, (outgoing, incoming))

    def _finish(self, requests: list[MPI.Request], other: int, memory: object) -> None:
        """Wait for transfers to or from another rank; raises PeerDied if the rank has been dropped.

        A blocking call would wait for a dead rank forever. `memory` refers to the arrays, to keep them allocated.
        """
        began = time.monotonic()
        failure: Exception | None = None
        limit: TimeLimit | None = None
        while True:
            try:
                if failure is None and MPI.Request.Testall(requests):
                    return
            except MPI.Exception as error:       # MPI detects the death before JobMonitor
                failure = error
                limit = TimeLimit(LATE)
            if other in self.dropped_ranks:
                self._abandoned.append((requests, memory))       # MPI may still read this memory
                raise PeerDied(f"rank {other} is gone")
            if failure and limit and not limit.left():
                raise failure
            time.sleep(BRIEF if time.monotonic() - began < SPIN else SHORTEST)

    def leave(self) -> None:
        """Mark this rank as having left; the others continue."""
        self._comm.has_left = True

    def close(self) -> None:
        """Wait until all messages have been sent."""
        self.until(self._all_are_sent)

    def _all_are_sent(self) -> bool:
        """Return whether all messages to live ranks have been sent."""
        self._pending = [(request, other) for request, other in self._pending if not self._is_sent(request, other)]
        return not self._pending

    def _is_sent(self, request: MPI.Request, other: int) -> bool:
        if other in self.dropped_ranks:
            self._abandoned.append(request)
            return True
        try:
            return request.Test()
        except MPI.Exception:                    # the rank is dead; JobMonitor reports it
            return True


def parts(length: int) -> list[slice]:
    """Return the slices of an array, in the order of their exchange."""
    return [slice(begin, min(begin + PIECE, length)) for begin in range(0, length, PIECE)]


def size_of(part: slice) -> int:
    """Return the number of elements of a slice."""
    return part.stop - part.start


def staggered(
    outgoing: list[np.ndarray], incoming: list[np.ndarray]
) -> list[tuple[np.ndarray | None, np.ndarray | None]]:
    """Return pairs (piece to send, piece to receive): each piece is received while the next is sent.

    None stands for no piece. If one of the lists is empty, each piece of the other list is transferred separately.
    """
    if not (outgoing and incoming):
        return [(piece, None) for piece in outgoing] + [(None, piece) for piece in incoming]
    return [(outgoing[0], None), *((after, before) for before, after in pairwise(outgoing)), (None, incoming[-1])]
