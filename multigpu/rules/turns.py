"""What a server and its clients say to each other, and what a rule makes of it.

    client                                   server
    Push, or Fetch (step, records, laps, note)  takes what has been recorded since the client last came
                               <-----------  Turn(step, stop, note)
    array, piece by piece      <---------->  the Keeper changes piece and centre; the piece goes back
    Leave(step, ..., note, stop)  -------->  the client has taken its last step; stop: because it was asked to
                               <-----------  Farewell(step): all have left, and the centre is saved

Where the rule does without a client that is late, leaves or dies (multigpu.rules.Rule.lone), each begins when it can:

    Join(step, hello)          ----------->  as multigpu.partners.greet, but nobody waits for another
                               <-----------  Joined(step, position, moved, stop): where all stand; moved: fetch W
    Leave(stop) of a client that alone was asked to:  Farewell(alone) comes at once, and the others go on

What an exchange does to a client's array and to the centre, the server's own, is the rule's: its Keeper, and the note
that its clients send along.  A piece fits the last-level cache, and the server has no second array of a client's size.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

SERVER = 0                                       # its rank


class Push(NamedTuple):
    """Client to server: my array is to be exchanged after this step; what I have recorded since my last message.

    note  the rule's own
    """

    step: int
    sender: int
    records: list
    laps: list
    note: Any = None


class Fetch(NamedTuple):
    """Client to server: I want the centre, and send nothing now; else as Push."""

    step: int
    sender: int
    records: list
    laps: list
    note: Any = None


class Turn(NamedTuple):
    """Server to client: send your array now; and whether all stop."""

    step: int
    sender: int
    stop: bool
    note: Any = None


class Leave(NamedTuple):
    """Client to server: this step was my last."""

    step: int
    sender: int
    records: list
    laps: list
    stop: bool
    note: Any = None


class Farewell(NamedTuple):
    """Server to client: all is done and saved; or, alone: you have left, the others go on."""

    step: int
    sender: int
    alone: bool = False


class Join(NamedTuple):
    """Client to server: here I am; hello: multigpu.partners.Hello."""

    step: int
    sender: int
    hello: Any


class Joined(NamedTuple):
    """Server to client: begin at this Position, with the centre if it has moved; and whether all stop."""

    step: int
    sender: int
    position: Any
    moved: bool
    stop: bool


ORDER = (Fetch, Push, Leave)                     # what a client may say after a step


class Answer(NamedTuple):
    """What the server does with a client that has come.

    update  (piece of the client's array, slice: which piece) -> None, changes the piece, and the centre there
    there   whether the client's array comes                 back  whether it goes back
    note    to the client
    """

    update: Callable
    there: bool = True
    back: bool = True
    note: Any = None


class Keeper:
    """Who keeps the centre, by the equations of a rule; the server hands it who has come.

    centre  multigpu.exchange.flat.Flat
    """

    def __init__(self, centre):
        self.centre = centre

    def answer(self, push):
        """The Answer to a Push, or a Fetch."""
        raise NotImplementedError

    def served(self, message, recorder):
        """What this message asked for is done; recorder: where the rule records what it wants to."""

    def report(self, clients, recorder):
        """An epoch has ended, or all; so many clients there were."""


def stage(message):
    """Where a client stands: what it may say after a step, in this order, each once."""
    return message.step, ORDER.index(type(message))
