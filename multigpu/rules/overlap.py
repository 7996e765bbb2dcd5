"""The exchange of factors and of the first gradients, during the rest of the backward pass, for rule bsp.

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
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from multigpu.communicator import Ready, StateDigest

if TYPE_CHECKING:
    from multigpu.communicator import Communicator
    from multigpu.exchange import Strategy
    from multigpu.rules.groups import ParameterGroup

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Exchanged(NamedTuple):
    """Result of an exchange: its duration in seconds, and the arrays of each worker that were gathered."""

    seconds: float
    gathered: list[list[np.ndarray]]


class EarlyExchange:
    """Exchanges what compute_overlapped reports: gathers factors, and averages the first group of gradients.

    Args:
        factors: gathers the factors; None if there are none.
        gradients: the first group of gradients; None if there are none.
        step: number of steps done before.
        in_background: whether to exchange in another thread, as soon as the arrays are computed; otherwise wait_ready()
            and finish() do it.

    Attributes:
        state: of this worker, which its next Ready carries.
    """

    def __init__(
        self, factors: Strategy | None, gradients: ParameterGroup | None, comm: Communicator, step: int,
        in_background: bool,
    ):
        self._factors = factors
        self._gradients = gradients
        self._comm = comm
        self._step = step
        self.state: StateDigest | None = None
        self._call = in_thread if in_background else Deferred
        self._ready: Call[list[Ready]] | None = None
        self._exchanged: Call[Exchanged] | None = None

    def start(self, values: Sequence[Any]) -> None:
        """Start the exchange of the next step.

        Args:
            values: cost, error, factors and gradients, arrays of the backend that may still be computed.
        """
        self._step += 1
        step = self._step
        ready = self._ready = self._call(lambda: self._pack(step, *values))
        self._exchanged = self._call(lambda: self._exchange(step, ready.result()))

    def wait_ready(self) -> list[Ready]:
        """Return the messages of all workers; this worker's own only, if its cost is not finite.

        Raises:
            PeerDied, DesyncError
        """
        assert self._ready is not None, "the exchange has not been started"
        return self._ready.result()

    def finish(self) -> Exchanged:
        """Wait for the end of the exchange and set the gradients. Raises what the methods of a Strategy raise."""
        assert self._exchanged is not None, "the exchange has not been started"
        result = self._exchanged.result()
        if self._gradients is not None:
            self._gradients.unpack()
        return result

    def close(self) -> None:
        """Close the buffers. Collective."""
        if self._factors is not None:
            self._factors.close()
        if self._gradients is not None:
            self._gradients.strategy.close()

    def _pack(self, step: int, cost: Any, error: Any, *arrays: Any) -> list[Ready]:
        ready = Ready(step, float(cost), float(error), False, self.state)
        if not math.isfinite(ready.cost):        # the training loop raises Diverged
            return [ready]
        n_factors = 0
        if self._factors is not None:
            n_factors = self._factors.flat.n_arrays
            self._factors.flat.pack_arrays(arrays[:n_factors])
            self._factors.device.synchronise()
        if self._gradients is not None:
            self._gradients.strategy.flat.pack_arrays(arrays[n_factors:])
            self._gradients.strategy.device.synchronise()
        return self._comm.allgather(ready)

    def _exchange(self, step: int, all_ready: list[Ready]) -> Exchanged:
        if any(not math.isfinite(message.cost) for message in all_ready):
            return Exchanged(0.0, [])
        began = time.perf_counter()
        gathered = self._factors.gather(step) if self._factors is not None else []
        if self._gradients is not None:
            self._gradients.strategy.average(step)
        return Exchanged(time.perf_counter() - began, gathered)


class Call(Protocol[T_co]):
    """A call whose result is waited for; its exceptions are raised then."""

    def result(self) -> T_co: ...


class Deferred(Generic[T]):
    """A call that is made when its result is waited for, once."""

    def __init__(self, function: Callable[[], T]):
        self.result = cache(function)


def in_thread(function: Callable[[], T]) -> Call[T]:
    """Call a function in a new thread, which does not keep the process alive."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:           # raised again by result()
            future.set_exception(error)

    threading.Thread(target=run, name="exchange", daemon=True).start()
    return future
