"""Messages and arrays between a server and its clients in one process, on clocks of their own.

Post stands in for multigpu.rules.post.Post: the same verbs, to the same bits.  A client that waits for its turn has the
server serve right there; the server, which would wait for the client's array, leaves word of what is to be done with it
instead, and the client does that when it hands the array over, before anything else happens.
"""

from contextlib import nullcontext
from typing import NamedTuple

import numpy as np

from multigpu.device.host import HostDevice
from multigpu.partners import parted
from multigpu.rules.server import Leave


class Costs(NamedTuple):
    """Seconds on the virtual clock.

    step      of a client, computing and updating
    copy      of a client's array from its device to the host, or back
    transfer  of an array from the client to the server, or back; the server serves nobody else meanwhile
    apply     of the server's update with it
    """

    step: float
    copy: float = 0.0
    transfer: float = 0.0
    apply: float = 0.0

    def turn(self, there=True, back=True):
        """Of the server, for an exchange in which an array comes, goes back, or both."""
        return self.transfer * (there + back) + self.apply * there


class Office:
    """Where all Posts of a simulation meet.

    now   rank -> seconds: how far each of them is; rank 0 is the server
    serve  () -> None: has the server look what has come; set once there is one
    """

    def __init__(self, clients, costs):
        self.size, self.costs = clients + 1, costs
        self.now = [0.0] * self.size
        self.letters = [[] for _ in range(self.size)]            # by receiver
        self.word, self.room, self.serve = None, None, None


class Word(NamedTuple):
    """What the server left to be done with a client's array."""

    update: object
    there: bool
    back: bool


class Post:
    """One rank's messages to and from the others; see multigpu.rules.post.Post for the verbs."""

    def __init__(self, office, rank):
        self._office, self.rank, self.size = office, rank, office.size

    def now(self):
        return self._office.now[self.rank]

    def waiting(self):
        return nullcontext()

    def send(self, message, other):
        self._office.letters[other].append((self.now(), message))

    def take(self):
        """The message that came first, or None; whoever takes it is then at least as far as when it was sent."""
        if not self._office.letters[self.rank]:
            return None
        sent, message = self._office.letters[self.rank].pop(0)
        if type(message) is not Leave:           # which the server hears between others, and does not wait for
            self._catch_up(sent)
        return message

    def hear(self, kind, step, sender):
        if not self._office.letters[self.rank]:
            self._office.serve()
        message = self.take()
        if message is None or (type(message), message.step, message.sender) != (kind, step, sender):
            self.refuse(message, f"{kind.__name__} of step {step} from rank {sender}")
        return message

    def refuse(self, message, awaited):
        raise parted("a rank" if message is None else f"rank {message.sender}", message, f"rank {self.rank}", awaited)

    def take_over(self, client, length, update, there=True, back=True):
        """The server's side of an exchange: it is busy as long as that takes."""
        self._office.word = Word(update, there, back)
        self._office.now[self.rank] += self._office.costs.turn(there, back)

    def hand_over(self, array, server, there=True, back=True):
        """A client's side, and all that is done with its array; it then goes on as soon as it may."""
        word, self._office.word = self._office.word, None
        if word is None or (word.there, word.back) != (there, back):
            raise ValueError(f"the server waits for {word}, and the client hands over there={there}, back={back}")
        room = self._room(array)
        if there:
            np.copyto(room, array)
        word.update(room, slice(0, array.size))
        if back:
            np.copyto(array, room)
            self._catch_up(self._office.now[server])
            self._office.now[self.rank] += self._office.costs.copy
        else:
            self._office.now[self.rank] += self._office.costs.transfer

    def _catch_up(self, moment):
        self._office.now[self.rank] = max(self.now(), moment)

    def _room(self, array):
        if self._office.room is None:
            self._office.room = np.empty_like(array)
        return self._office.room

    def close(self):
        """Nothing is under way."""


class Memory(HostDevice):
    """The host's verbs on memory of this process alone: a thousand clients need no thousand files."""

    def allocate(self, nbytes):
        return Piece(np.zeros(nbytes, np.uint8))


class Piece:
    """A buffer of Memory, as multigpu.device.host.HostBuffer."""

    def __init__(self, memory):
        self._memory, self.nbytes = memory, memory.nbytes

    def part(self, offset, nbytes):
        return Piece(self._memory[offset : offset + nbytes])

    def array(self, shape, dtype):
        flat = self._memory[: int(np.prod(shape)) * np.dtype(dtype).itemsize]
        return flat.view(dtype).reshape(shape)

    def close(self):
        """It is freed with the last view of it."""
