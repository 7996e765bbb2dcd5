"""Detection of bits of the state that have changed in memory, or differ between workers that must hold the same state.

The update of each step sums the bits of the weights and velocities that it reads, or of those that it writes, in the
loop that computes them (Network.sum_state). They are compared

    in one worker        what an update reads, and what a checkpoint saves, is what the update before has written
    between workers      the sums of workers that hold the same state are equal: a digest of what they have written,
                         or have read after an exchange, travels with the message of a step, before its exchange

So a flipped bit of weights or velocities, and an update by a damaged gradient in one of several workers, end the run
within one exchange, and before a checkpoint is saved.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from multigpu.communicator import StateDamaged, StateDigest

if TYPE_CHECKING:
    from alexnet.training.network import Network, SharedVariable

CURE = "an error of memory or processor; resume from the checkpoint before it, on another machine if it recurs"


class StateCheck:
    """The sums of the updates of one worker. It finds nothing if the network does not compute them."""

    def __init__(self, network: Network):
        self._network = network
        self._written: np.ndarray | None = None

    def begin(self) -> None:
        """Sum the bits of the state, which has been set since the last update. It takes a pass over the state."""
        if self._network.sums_written is not None:
            self._written = self._network.current_sums()
            self._network.sums_written.set_value(self._written)

    def require_intact(self, step: int) -> None:
        """Compare what the update of this step has read with what the one before has written, if both are known.

        Raises:
            StateDamaged: they differ.
        """
        if self._network.sums_read is None or self._network.sums_written is None:
            return
        before, self._written = self._written, np.array(self._network.sums_written.get_value(borrow=True))
        if before is not None and not np.array_equal(self._network.sums_read.get_value(borrow=True), before):
            raise StateDamaged(f"weights or velocities have changed in memory before step {step}: {CURE}")

    def read(self, step: int) -> StateDigest | None:
        """Return the digest of the state after this step, which the update of the next step has read."""
        return digest_of(self._network.sums_read, step)

    def written(self, step: int) -> StateDigest | None:
        """Return the digest of the state that the update of this step has written."""
        return digest_of(self._network.sums_written, step)


def require_as_written(network: Network, step: int) -> None:
    """Compare the state with what the update of this step has written, if that is known; call it before saving.

    Raises:
        StateDamaged: they differ.
    """
    written = network.sums_written
    if written is not None and not np.array_equal(network.current_sums(), written.get_value(borrow=True)):
        raise StateDamaged(f"weights or velocities have changed in memory after step {step}: {CURE}")


def digest_of(sums: SharedVariable | None, step: int) -> StateDigest | None:
    """Return the digest of the state after a step from its sums; None if there are none."""
    return None if sums is None else StateDigest(step, zlib.crc32(np.ascontiguousarray(sums.get_value(borrow=True))))


def check_states(states: Sequence[StateDigest | None]) -> None:
    """Compare the states of workers that must hold the same state.

    Args:
        states: of each worker; None: unknown.

    Raises:
        StateDamaged: they differ.
    """
    known = {rank: state for rank, state in enumerate(states) if state is not None}
    counts = Counter(state.digest for state in known.values())
    if len(counts) < 2:
        return
    (common, number), *_ = counts.most_common()
    majority = 2 * number > len(known)
    differing = [rank for rank, state in known.items() if not (majority and state.digest == common)]
    workers = f"worker{'s' * (len(differing) > 1)} {' and '.join(map(str, differing))}"
    others = f" differ from those of the {number} others" if majority else " differ"
    step = next(iter(known.values())).step
    raise StateDamaged(f"after step {step} weights or velocities of {workers}{others}: {CURE}")
