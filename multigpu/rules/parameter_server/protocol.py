"""Messages between the parameter server and its clients, and the policy that defines a rule.

    client                                   server
    Push or Fetch(step, records, laps, note)  -->  records the steps since the last message of the client
                               <-----------  Grant(step, stop, note)
    array, piece by piece      <---------->  the CenterPolicy updates piece and center variable; piece is returned
    Leave(step, ..., note, stop)  -------->  the client has done its last step; stop: because it was requested to
                               <-----------  LeaveAck(step): all clients have left, and the center variable is saved

With an elastic rule (multigpu.rules.Rule.elastic), each client starts when it is ready:

    Join(step, info)          ----------->  the checks of multigpu.communicator.verify_consistency, for one client
                               <-----------  Joined(step, position, moved, stop): position of the job; moved: fetch W
    Leave(stop), if only this client was requested to stop: an immediate LeaveAck; the other clients continue

The rule's CenterPolicy, and the note that its clients send, determine what an exchange does to the client's array and
to the center variable. A piece fits into the last-level cache, and the server needs no second array of a client's size.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

SERVER = 0                                       # rank of the server


class Push(NamedTuple):
    """Client to server: request to exchange the client's array after this step, with records since the last message.

    note  data of the rule
    """

    step: int
    sender: int
    records: list
    laps: list
    note: Any = None


class Fetch(NamedTuple):
    """Client to server: request for the center variable without a push; fields as in Push."""

    step: int
    sender: int
    records: list
    laps: list
    note: Any = None


class Grant(NamedTuple):
    """Server to client: the transfer can start. stop: whether all workers stop."""

    step: int
    sender: int
    stop: bool
    note: Any = None


class Leave(NamedTuple):
    """Client to server: this step was the last."""

    step: int
    sender: int
    records: list
    laps: list
    stop: bool
    note: Any = None


class LeaveAck(NamedTuple):
    """Server to client: all clients are done and the result is saved, or only this client leaves."""

    step: int
    sender: int
    alone: bool = False


class Join(NamedTuple):
    """Client to server: request to join; info is a multigpu.communicator.WorkerInfo."""

    step: int
    sender: int
    info: Any


class Joined(NamedTuple):
    """Server to client: the Position to start at, whether to fetch the center variable, and whether all stop."""

    step: int
    sender: int
    position: Any
    moved: bool
    stop: bool


ORDER = (Fetch, Push, Leave)                     # order of a client's messages after a step


class TransferPlan(NamedTuple):
    """How the server processes the request of a client.

    update  (piece of the client's array, its slice) -> None, changes the piece and that slice of the center variable
    there   whether the client sends its array
    back    whether the server sends it back
    note    data of the rule for the client
    """

    update: Callable
    there: bool = True
    back: bool = True
    note: Any = None


class CenterPolicy:
    """Updates the center variable by the equations of a rule. The server calls it for each request.

    center  the center variable, a multigpu.exchange.flat_buffer.FlatBuffer
    """

    def __init__(self, center):
        self.center = center

    def answer(self, push):
        """Return the TransferPlan for a Push or a Fetch."""
        raise NotImplementedError

    def served(self, message, recorder):
        """Called after the request of this message is complete; the rule can write records to recorder."""

    def report(self, clients, recorder):
        """Called at the end of an epoch and of the training, with the number of clients."""


def stage(message):
    """Return the progress of a client as a sortable key. Messages of a step follow ORDER, each at most once."""
    return message.step, ORDER.index(type(message))
