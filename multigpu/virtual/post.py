"""Messages and arrays between a server and its clients in one process, each with its own virtual clock.

Post replaces multigpu.mpi.channel.Channel: the same methods, the same bits. When a client waits for its turn, the
server serves it at once. Where the server would wait for the client's array, it stores a callback; the client runs it
when it sends the array, before any other event.
"""

from contextlib import nullcontext
from typing import NamedTuple

import numpy as np

from multigpu.communicator import desync_error
from multigpu.device.host import HostDevice
from multigpu.rules.parameter_server.server import Leave


class Costs(NamedTuple):
    """Seconds on the virtual clock.

    step:      a client's computation and update
    copy:      a client's array from its device to the host, or back
    transfer:  an array from the client to the server, or back; the server serves no other client during it
    apply:     the server's update with the array
    """

    step: float
    copy: float = 0.0
    transfer: float = 0.0
    apply: float = 0.0

    def turn(self, there=True, back=True):
        """Return the server's time for an exchange in which an array comes, goes back, or both."""
        return self.transfer * (there + back) + self.apply * there


class Office:
    """State that all Posts of a simulation share.

    now:    rank -> seconds on the clock of this rank; rank 0 is the server
    serve:  () -> None: lets the server process its messages; set once the server exists
    """

    def __init__(self, clients, costs):
        self.size, self.costs = clients + 1, costs
        self.now = [0.0] * self.size
        self.letters = [[] for _ in range(self.size)]            # by receiver
        self.word, self.room, self.serve = None, None, None


class Word(NamedTuple):
    """The server's pending operation on a client's array."""

    update: object
    there: bool
    back: bool


class Post:
    """Messages between one rank and the others; see multigpu.mpi.channel.Channel for the methods."""

    def __init__(self, office, rank):
        self._office, self.rank, self.size = office, rank, office.size

    def now(self):
        return self._office.now[self.rank]

    def waiting(self):
        return nullcontext()

    def send(self, message, other):
        self._office.letters[other].append((self.now(), message))

    def take(self):
        """Return the oldest message, or None; the receiver's clock advances at least to the time of sending."""
        if not self._office.letters[self.rank]:
            return None
        sent, message = self._office.letters[self.rank].pop(0)
        if type(message) is not Leave:           # the server receives it between others, without waiting
            self._catch_up(sent)
        return message

    def recv(self, kind, step, sender):
        if not self._office.letters[self.rank]:
            self._office.serve()
        message = self.take()
        if message is None or (type(message), message.step, message.sender) != (kind, step, sender):
            self.refuse(message, f"{kind.__name__} of step {step} from rank {sender}")
        return message

    def refuse(self, message, awaited):
        other = "a rank" if message is None else f"rank {message.sender}"
        raise desync_error(other, message, f"rank {self.rank}", awaited)

    def serve_exchange(self, client, length, update, there=True, back=True):
        """Run the server's side of an exchange; it is busy for the cost of the exchange."""
        self._office.word = Word(update, there, back)
        self._office.now[self.rank] += self._office.costs.turn(there, back)

    def exchange_with_server(self, array, server, there=True, back=True):
        """Run a client's side of an exchange and the server's operation on its array; advance the client's clock."""
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
        """Do nothing: no transfer is pending."""


class Memory(HostDevice):
    """A host device with process-private memory, so that a thousand clients do not need a thousand memory files."""

    def allocate(self, nbytes):
        return Piece(np.zeros(nbytes, np.uint8))


class Piece:
    """A buffer of Memory, the counterpart of multigpu.device.host.HostBuffer."""

    def __init__(self, memory):
        self._memory, self.nbytes = memory, memory.nbytes

    def part(self, offset, nbytes):
        return Piece(self._memory[offset : offset + nbytes])

    def array(self, shape, dtype):
        flat = self._memory[: int(np.prod(shape)) * np.dtype(dtype).itemsize]
        return flat.view(dtype).reshape(shape)

    def close(self):
        """Do nothing: the memory is freed with its last view."""
