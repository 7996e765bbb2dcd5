"""The exchange of the first gradients during the rest of the backward pass, for rule bsp.

    main thread      compute: forward, backward of the last layers | backward of the first layers | rest of the exchange
    exchange thread                                                | pack, Ready, average         |

The threads never use the communicator or the device at the same time: the main thread waits for the exchange thread
before it uses them. Workers average only after all of them have sent Ready, so a worker that cannot do a step still
ends the job before it.

Source: Zhang et al. 2017, "Poseidon", section 3.1 (wait-free backpropagation).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from multigpu.communicator import Ready

if TYPE_CHECKING:
    from multigpu.communicator import Communicator
    from multigpu.exchange import Strategy

T = TypeVar("T")


class OverlappedExchange:
    """Averages one group of gradients in another thread.

    Args:
        strategy: averages the group.
        step: number of steps done before.
    """

    def __init__(self, strategy: Strategy, comm: Communicator, step: int):
        self._strategy = strategy
        self._comm = comm
        self._step = step
        self._ready: Future[list[Ready]] | None = None
        self._seconds: Future[float] | None = None

    def start(self, values: Sequence[Any]) -> None:
        """Start to exchange the gradients of the next step.

        Args:
            values: cost, error and gradients, arrays of the backend that may still be computed.
        """
        self._step += 1
        step = self._step
        ready = self._ready = in_thread(lambda: self._pack(step, *values))
        self._seconds = in_thread(lambda: self._average(step, ready.result()))

    def wait_ready(self) -> list[Ready]:
        """Return the messages of all workers; this worker's own only, if its cost is not finite.

        Raises:
            PeerDied, DesyncError
        """
        assert self._ready is not None, "the exchange has not been started"
        return self._ready.result()

    def wait_averaged(self) -> float:
        """Wait for the average, and return how long it took in seconds. Raises what Strategy.average raises."""
        assert self._seconds is not None, "the exchange has not been started"
        return self._seconds.result()

    def _pack(self, step: int, cost: Any, error: Any, *gradients: Any) -> list[Ready]:
        ready = Ready(step, float(cost), float(error), False)
        if not math.isfinite(ready.cost):        # the training loop raises Diverged
            return [ready]
        self._strategy.flat.pack_arrays(gradients)
        self._strategy.device.synchronise()
        return self._comm.allgather(ready)

    def _average(self, step: int, all_ready: list[Ready]) -> float:
        if any(not math.isfinite(message.cost) for message in all_ready):
            return 0.0
        began = time.perf_counter()
        self._strategy.average(step)
        return time.perf_counter() - began


def in_thread(function: Callable[[], T]) -> Future[T]:
    """Call a function in a new thread, which does not keep the process alive."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:           # raised again by result()
            future.set_exception(error)

    threading.Thread(target=run, name="exchange", daemon=True).start()
    return future
