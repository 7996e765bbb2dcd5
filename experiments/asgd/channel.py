"""Messages and arrays between a server and its clients in one process, each with its own virtual clock.

SimulatedChannel replaces multigpu.mpi.channel.Channel: the same methods, the same bits. When a client waits for its
turn, the server serves it at once. Where the server would wait for the client's array, it stores a PendingTransfer; the
client executes it when it sends the array, before any other event.
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


class SimulatedNetwork:
    """State that all SimulatedChannels of a simulation share.

    now:      rank -> seconds on the clock of this rank; rank 0 is the server
    inbox:    rank -> list of (time of sending, message)
    pending:  PendingTransfer of the server, or None
    buffer:   the server's copy of a client's array
    sent:     rank -> bytes of the arrays that this rank has sent
    serve:    () -> None: lets the server process its messages; set once the server exists
    """

    def __init__(self, clients, costs):
        self.size = clients + 1
        self.costs = costs
        self.now = [0.0] * self.size
        self.inbox = [[] for _ in range(self.size)]
        self.pending = None
        self.buffer = None
        self.sent = [0] * self.size
        self.serve = None


class PendingTransfer(NamedTuple):
    """The server's pending operation on a client's array."""

    update: object
    there: bool
    back: bool


class SimulatedChannel:
    """Messages between one rank and the others; see multigpu.mpi.channel.Channel for the methods."""

    def __init__(self, network, rank):
        self._network = network
        self.rank = rank
        self.size = network.size

    def now(self):
        return self._network.now[self.rank]

    def waiting(self):
        return nullcontext()

    def send(self, message, other):
        self._network.inbox[other].append((self.now(), message))

    def take(self):
        """Return the oldest message, or None; the receiver's clock advances at least to the time of sending."""
        if not self._network.inbox[self.rank]:
            return None
        sent, message = self._network.inbox[self.rank].pop(0)
        if type(message) is not Leave:           # the server receives it between others, without waiting
            self._catch_up(sent)
        return message

    def recv(self, kind, step, sender):
        if not self._network.inbox[self.rank]:
            self._network.serve()
        message = self.take()
        if message is None or (type(message), message.step, message.sender) != (kind, step, sender):
            self.refuse(message, f"{kind.__name__} of step {step} from rank {sender}")
        return message

    def refuse(self, message, awaited):
        other = "a rank" if message is None else f"rank {message.sender}"
        sent = "nothing" if message is None else f"{type(message).__name__} of step {message.step}"
        raise desync_error(other, sent, f"rank {self.rank}", awaited)

    def serve_exchange(self, client, length, update, there=True, back=True):
        """Run the server's side of an exchange; it is busy for the cost of the exchange."""
        self._network.pending = PendingTransfer(update, there, back)
        self._network.now[self.rank] += self._network.costs.turn(there, back)

    def exchange_with_server(self, array, server, there=True, back=True):
        """Run a client's side of an exchange and the server's operation on its array; advance the client's clock."""
        pending, self._network.pending = self._network.pending, None
        if pending is None or (pending.there, pending.back) != (there, back):
            raise ValueError(f"the server expects {pending}, but the client transfers there={there}, back={back}")
        buffer = self._buffer(array)
        if there:
            np.copyto(buffer, array)
            self._network.sent[self.rank] += array.nbytes
        pending.update(buffer, slice(0, array.size))
        if back:
            np.copyto(array, buffer)
            self._network.sent[server] += array.nbytes
            self._catch_up(self._network.now[server])
            self._network.now[self.rank] += self._network.costs.copy
        else:
            self._network.now[self.rank] += self._network.costs.transfer

    def _catch_up(self, moment):
        self._network.now[self.rank] = max(self.now(), moment)

    def _buffer(self, array):
        if self._network.buffer is None:
            self._network.buffer = np.empty_like(array)
        return self._network.buffer

    def close(self):
        """Do nothing: no transfer is pending."""


class PrivateDevice(HostDevice):
    """A host device with process-private memory, so that a thousand clients do not need a thousand memory files."""

    def allocate(self, nbytes):
        return PrivateBuffer(np.zeros(nbytes, np.uint8))


class PrivateBuffer:
    """A buffer of PrivateDevice, the counterpart of multigpu.device.host.HostBuffer."""

    def __init__(self, memory):
        self._memory, self.nbytes = memory, memory.nbytes

    def part(self, offset, nbytes):
        return PrivateBuffer(self._memory[offset : offset + nbytes])

    def array(self, shape, dtype):
        flat = self._memory[: int(np.prod(shape)) * np.dtype(dtype).itemsize]
        return flat.view(dtype).reshape(shape)

    def close(self):
        """Do nothing: the memory is freed with its last view."""
