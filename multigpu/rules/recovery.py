"""Recovery of workers in lockstep from the death of some of them: the state moves to the replacements.

The state of the training is the same on all workers between two steps. When a worker dies, the others return to the
state after their last complete step. A survivor may have completed a step that another has not, because the dead worker
answered only one of them. All workers therefore continue with the state of the worker that has done the most steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from alexnet.training.base import Record
from alexnet.training.loop import Position
from multigpu.communicator import BufferHandle
from multigpu.device import DeviceError
from multigpu.device.host import HostDevice
from multigpu.exchange.flat_buffer import FlatBuffer
from multigpu.exchange.peer import first_obstacle

if TYPE_CHECKING:
    from alexnet.training.network import Network, SharedVariable
    from multigpu.communicator import Communicator
    from multigpu.device.handles import Handle


class LastStep(NamedTuple):
    """The last complete step of the sender.

    position: of its state; None for a replacement, which has none.
    stepped: after its last step; before `position` if a validation has followed.
    random: step counter of the random layers.
    record: of its last step; None on rank 0, which has written it.
    """

    position: Position | None
    stepped: Position
    random: int
    record: Record | None
    step: int = 0


class Recovery:
    """What a worker needs to return to its last complete step, and to give its state to others.

    Args:
        network: of this worker.
        comm: connects the workers; its recover() has been called before share().

    Attributes:
        position: of the state in the network.
        record: of the last step, with which rank 0 can record it.
    """

    def __init__(self, network: Network, comm: Communicator):
        self._network = network
        self._comm = comm
        self._changed = [network.step, *network.running_statistics]      # by a step, before its gradients are averaged
        self._before: list[np.ndarray] | None = None
        self._stepped = Position()
        self.position: Position | None = None
        self.record: Record | None = None

    def begin_step(self) -> None:
        """Remember what the next step changes before it is complete."""
        self._before = [np.array(variable.get_value(borrow=True)) for variable in self._changed]

    def advance(self, position: Position) -> None:
        """Store the Position of the state in the network, after a complete step or a validation."""
        self._before = None
        if self.position is None or position.iteration > self.position.iteration:
            self._stepped = position
        self.position = position

    def keep(self, record: Record) -> None:
        """Store the record of the last step; see Recorder.keep."""
        self.record = record

    def share(self) -> bool:
        """Continue with the state of the worker that has done the most steps. Collective.

        All workers get the same position. It precedes the last validation if rank 0, which records it, is new.

        Returns:
            Whether this worker has received the state.

        Raises:
            PeerDied: another worker has died; call it again after recover().
        """
        if self._before is not None:
            for variable, value in zip(self._changed, self._before, strict=True):
                variable.set_value(value)
            self._before = None
        random = int(self._network.step.get_value())
        with HostDevice() as device:
            flat = FlatBuffer(device, [np.shape(variable.get_value(borrow=True)) for variable in self._arrays])
            rank = self._comm.rank
            packed = self.position is not None and (rank == 0 or self._comm.size == 2)       # the probable source
            if packed:                           # while the new worker starts
                flat.pack(self._arrays)
            found = self._comm.allgather(LastStep(self.position, self._stepped, random, self.record))
            iterations = [-1 if each.position is None else each.position.iteration for each in found]
            source = iterations.index(max(iterations))
            first = found[0].position
            position = first if first is not None and iterations[0] == iterations[source] else found[source].stepped
            if rank == source and not packed:
                flat.pack(self._arrays)
            handle = self._comm.allgather(BufferHandle(0, flat.buffer.handle))[source].handle
            receives = iterations[rank] < iterations[source]
            obstacle = self._receive(flat, handle, found[source], position) if receives else None
            if obstacle := first_obstacle(self._comm, 0, obstacle):
                raise DeviceError(obstacle)
        self.position = position
        return receives

    @property
    def _arrays(self) -> list[SharedVariable]:
        """The float32 variables of the state."""
        return [variable for variable in self._network.state.values() if variable is not self._network.step]

    def _receive(self, flat: FlatBuffer, handle: Handle, last: LastStep, position: Position) -> str | None:
        """Take the state from the buffer of the worker with this last step; return None, or why it cannot be opened.

        From then on this worker holds the state at `position`, even if the other dies.
        """
        try:
            buffer = flat.device.open(handle)
        except DeviceError as error:             # if the other has died, the next message raises PeerDied
            return str(error)
        for variable, array in zip(self._arrays, flat.arrays(buffer), strict=True):
            variable.set_value(array.copy(), borrow=True)
        self._network.step.set_value(np.int64(last.random))
        self.record = last.record
        self._stepped = self.position = position
        return None
