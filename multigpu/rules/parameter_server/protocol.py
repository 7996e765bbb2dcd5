"""Messages between the parameter server and its clients, and the policy that defines a rule.

    client                                   server
    Push or Fetch(step, records, laps, note)  -->  records the steps since the last message of the client
                               <-----------  Grant(step, stop, note)
    array, piece by piece      <---------->  the CenterPolicy updates piece and center variable; piece is returned
    Leave(step, ..., note, stop)  -------->  the client has done its last step; stop: because it was requested to
                               <-----------  LeaveAck(step): all clients have left, and the center variable is saved

With an elastic rule, each client starts when it is ready:

    Join(step, info)          ----------->  the checks of multigpu.communicator.verify_consistency, for one client
                               <-----------  Joined(step, position, moved, stop): position of the job; moved: fetch W
    Leave(stop), if only this client was requested to stop: an immediate LeaveAck; the other clients continue

The rule's CenterPolicy, and the note that its clients send, determine what an exchange does to the client's array and
to the center variable. A piece fits into the last-level cache, and the server needs no second array of a client's size.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from struct import Struct
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from alexnet.training.base import Record, Recorder
from alexnet.training.loop import Position
from alexnet.training.timing import TIMES, Lap
from multigpu.communicator import DesyncError, WorkerInfo
from multigpu.exchange.flat_buffer import FlatBuffer
from multigpu.messages import Decoder

SERVER = 0                                       # rank of the server

MAX_BYTES = 1 << 26                              # of a message: the records of 300,000 steps
NUMBERS = ("iteration", "epoch", "images", "cost", "error", "learning_rate")           # of a Record, in this order
ROW = Struct(f"<{len(NUMBERS) + len(TIMES)}d")   # of a Record: NUMBERS, then its TIMES

Note: TypeAlias = Any                            # data of a rule; each rule defines its own type, see message_decoder()


def pack_records(records: Iterable[Record]) -> bytes:
    """Return the records of steps, as WorkerRecorder keeps them, as float64: they are in every exchange."""
    return b"".join(
        ROW.pack(*[record[name] for name in NUMBERS], *[record["times"][name] for name in TIMES]) for record in records
    )


def unpack_records(message: "Request") -> list[Record]:
    """Return the records of a message. Raises DesyncError if they are not whole."""
    if len(message.records) % ROW.size:
        raise DesyncError(
            f"rank {message.sender} sends records of {len(message.records)} bytes, which must be a multiple of "
            f"{ROW.size}: it does not belong to this run; restart all from one checkpoint"
        )
    records = []
    for iteration, epoch, images, cost, error, learning_rate, *times in ROW.iter_unpack(message.records):
        records.append({
            "iteration": int(iteration), "epoch": epoch, "images": int(images), "cost": cost, "error": error,
            "learning_rate": learning_rate, "times": dict(zip(TIMES, times, strict=True)),
        })
    return records


class Push(NamedTuple):
    """Client to server: request to exchange the client's array after this step.

    records: of the steps since the last message, see pack_records().
    """

    step: int
    sender: int
    records: bytes
    laps: list[Lap]
    note: Note = None


class Fetch(NamedTuple):
    """Client to server: request for the center variable without a push; fields as in Push."""

    step: int
    sender: int
    records: bytes
    laps: list[Lap]
    note: Note = None


class Grant(NamedTuple):
    """Server to client: the transfer can start. stop: whether all workers stop."""

    step: int
    sender: int
    stop: bool
    note: Note = None


class Leave(NamedTuple):
    """Client to server: this step was the last."""

    step: int
    sender: int
    records: bytes
    laps: list[Lap]
    stop: bool
    note: Note = None


class LeaveAck(NamedTuple):
    """Server to client: all clients are done and the result is saved, or only this client leaves."""

    step: int
    sender: int
    alone: bool = False


class Join(NamedTuple):
    """Client to server: request to join."""

    step: int
    sender: int
    info: WorkerInfo


class Joined(NamedTuple):
    """Server to client: the Position to start at, whether to fetch the center variable, and whether all stop."""

    step: int
    sender: int
    position: Position
    moved: bool
    stop: bool


def message_decoder(client_note: Any = None, server_note: Any = None) -> Decoder[Any]:
    """Return the Decoder of the messages above.

    Args:
        client_note, server_note: the types of a rule's notes; None: it has none.
    """
    from_client = {"note": type(None) if client_note is None else client_note}
    from_server = {"note": type(None) if server_note is None else server_note}
    fields = {Push: from_client, Fetch: from_client, Leave: from_client, Grant: from_server}
    return Decoder([Push, Fetch, Grant, Leave, LeaveAck, Join, Joined], MAX_BYTES, fields)


Request: TypeAlias = Push | Fetch | Leave
ORDER = (Fetch, Push, Leave)                     # order of a client's messages after a step


class TransferPlan(NamedTuple):
    """How the server processes the request of a client.

    update  changes a piece of the client's array, and that slice of the center variable
    there   whether the client sends its array
    back    whether the server sends it back
    note    data of the rule for the client
    """

    update: Callable[[np.ndarray, slice], None]
    there: bool = True
    back: bool = True
    note: Note = None


class CenterPolicy(ABC):
    """Updates the center variable by the equations of a rule. The server calls it for each request."""

    def __init__(self, center: FlatBuffer):
        self.center = center

    @abstractmethod
    def answer(self, push: Push | Fetch) -> TransferPlan:
        """Return how to process a Push or a Fetch."""

    def completed(self, message: Request, recorder: Recorder) -> None:
        """Note that the request of this message is complete; a rule can write records."""
        return None

    def report(self, clients: int, recorder: Recorder) -> None:
        """Log a summary at the end of an epoch and of the training, with the number of clients."""
        return None


def stage(message: Request) -> tuple[int, int]:
    """Return the progress of a client as a sortable key. Messages of a step follow ORDER, each at most once."""
    return message.step, ORDER.index(type(message))
