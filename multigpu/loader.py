"""The loader: a process beside each worker that fills its input buffers during the computation.

The worker owns a ring of input buffers on its device and exports their handles once.  After that the processes
exchange only small messages:

    worker                                    loader
    ReaderFactory(make_reader)   ---------->  creates its reader, once
    CalcFinished(slot, request)  ---------->  reads the images of the request, copies them into the slot, synchronises
    computes on another slot     <----------  CopyFinished(slot), or Refused(slot, reason, kind)

On the host, images are read directly into the slot.  No image data is copied or pickled between processes, and
neither process polls.  The death of the other process is seen as an EOF.

Source: Ding et al. 2014, section 2.1 and figure 1; the message names are upstream's.
"""

import functools
import os
import signal
import sys
import threading
import time
import warnings
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from math import prod
from multiprocessing import util
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol, Self

import numpy as np
import numpy.typing as npt

from alexnet.data.dataset import BatchReader, DataError, ReadError, Request
from alexnet.native.console import protect
from alexnet.training.base import Batches
from alexnet.training.loop import InputLost, StoppedWhileWaiting
from multigpu.device import DeviceError, open_device
from multigpu.launch.clock import RunningClock
from multigpu.launch.process import CONTEXT, describe_exit, end, end_with_parent, set_signal_handlers, start

if TYPE_CHECKING:
    from multigpu.device.base import Buffer, Device

STALLED = 30.0                                   # seconds of waiting for the loader until it is reported
PATIENCE = 5.0                                   # seconds of waiting from which on a stop request is obeyed
POLL = 0.5                                       # seconds between two looks at these
CLOSE_TIMEOUT = 1.0                              # seconds that a loader gets to finish its reading on close

Shape = tuple[int, int, int, int]                # (channel, row, column, batch)


class Reader(Protocol):
    """Reads batches, for example alexnet.data.dataset.BatchReader."""

    def read(self, request: Request, out: np.ndarray) -> None:
        """Write the images of the request to out, (channel, row, column, batch); raises DataError."""


class ReaderFactory(NamedTuple):
    """Worker to loader, first message: the function that creates the Reader.

    It contains the mean image, which is larger than a pipe's buffer.  It is therefore not sent at start-up, where the
    death of the loader would not be noticed.
    """

    make_reader: Callable[[], Reader]


class CalcFinished(NamedTuple):
    """Worker to loader: the computation on this slot has finished; fill the slot with this request."""

    slot: int
    request: Request


class CopyFinished(NamedTuple):
    """Loader to worker: the images of the request are in this slot.

    words: sum_of_words() of the images; None if the slot is on a GPU.
    """

    slot: int
    words: int | None = None


class Refused(NamedTuple):
    """Loader to worker: the request cannot be read, and the reason; the slot is free again.

    kind: the class of the exception to raise.
    """

    slot: int
    reason: str
    kind: type[DataError]


class Ring(NamedTuple):
    """Description of the input buffers for the loader: each has shape (channel, row, column, batch) and this dtype."""

    handles: tuple[Any, ...]                     # see multigpu.device.handles
    shape: Shape
    dtype: np.dtype


class InFlight(NamedTuple):
    """A request that the loader has not answered: its slot, the shape of its images, and the request."""

    slot: int
    shape: Shape
    request: Request


class LoaderDied(InputLost):
    """The loader process has exited; the message gives its exit status or signal."""


def load_batches(pipe: Connection, device_name: str, ring: Ring) -> None:
    """Entry point of the loader process; returns when the worker closes its end of the pipe.

    Args:
        pipe: Connection to the worker, for the messages above.
        device_name: the device that holds the ring's buffers.
        ring: the worker's input buffers.
    """
    protect()
    set_signal_handlers(signal.SIG_IGN)          # a SIGTERM to the process group is handled by the worker
    end_with_parent()
    try:
        with open_device(device_name) as device:
            slots = [device.open(handle) for handle in ring.handles]
            fill_slots(pipe, device, slots, ring, pipe.recv().make_reader())
    except DeviceError as error:
        sys.exit(f"the loader cannot continue: {error}")
    except (EOFError, ConnectionError):
        return


def fill_slots(
    pipe: Connection, device: "Device", slots: Sequence["Buffer"], ring: Ring, reader: Reader
) -> NoReturn:
    """Fill slots on request until the worker closes the pipe, which raises EOFError or ConnectionError."""
    while True:
        slot, request = pipe.recv()
        images = device.staging(slots[slot], batch_shape(ring.shape, request), ring.dtype)
        try:
            reader.read(request, images)
            device.upload(slots[slot], images)
            answer: CopyFinished | Refused = CopyFinished(slot, sum_of_words(images) if device.name == "cpu" else None)
        except DataError as error:
            answer = Refused(slot, str(error), ReadError if isinstance(error, ReadError) else DataError)
        device.synchronise()                     # before the message, because copies to a GPU are asynchronous
        pipe.send(answer)


def sum_of_words(images: np.ndarray) -> int:
    """Return the sum of the bytes of a C-contiguous array as 64-bit words, modulo 2**64. A flipped bit changes it.

    The worker compares it before it uses the images: 0.13 ms for 16 images of 256 x 256 pixels.
    """
    data = images.reshape(-1).view(np.uint8)
    whole = data.size - data.size % 8
    return (int(data[:whole].view(np.uint64).sum(dtype=np.uint64)) + int(data[whole:].sum())) % 2**64


def batch_shape(shape: Shape, request: Request) -> Shape:
    """Return the shape of a request's images in an input buffer of `shape`.

    The last batch of an epoch may be smaller than the buffer.
    """
    images = sum(segment.stop - segment.start for segment in request.segments)
    if not 1 <= images <= shape[3]:
        raise ValueError(f"a request of {images} images does not fit an input buffer of {shape[3]}")
    channels, rows, columns, _ = shape
    return channels, rows, columns, images


class WorkerBatches(Batches):
    """The batches of a worker, read in one of two ways.

    Args:
        shape: of one full input buffer: (channel, row, column, batch).
        dtype: of the images.

    Attributes:
        waited: total seconds that the worker has waited for images.
        loader_pid: process id of the loader; None without one.
    """

    loader_pid: int | None = None

    def __init__(self, shape: Shape, dtype: npt.DTypeLike) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.waited = 0.0
        self._open = True
        self._reading = False

    def read(self, requests: Iterable[Request]) -> Generator[np.ndarray, None, None]:
        """Yield the images of each request, (channel, row, column, batch), as a view that is valid until the next one.

        The generator consumes `requests` a few requests ahead of the images, one per slot.  No request is in flight
        between two readings.  To avoid a gap, chain the iterables (for example of training and validation) into one
        reading; the first batch of the second is then loaded during the last batch of the first.  A reading may be
        abandoned early.

        Raises:
            DataError: a request cannot be read.
            LoaderDied: the loader has exited.
            InputLost: images have changed in shared memory.
            StoppedWhileWaiting: a stop was requested, and the images do not arrive.
            ValueError: another reading is open, or the batches are closed.
        """
        if not self._open:
            raise ValueError("these batches are closed; read before close()")
        if self._reading:
            raise ValueError("another reading of these batches is still open; finish or close() that generator first")
        self._reading = True
        try:
            yield from self._images(iter(requests))
        finally:
            self._reading = False

    @abstractmethod
    def _images(self, requests: Iterator[Request]) -> Iterator[np.ndarray]:
        """Yield the images of each request."""

    def close(self) -> None:
        """Refuse further reading and release all resources.  Further calls do nothing."""
        self._open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class SerialBatches(WorkerBatches):
    """Batches read in the worker, sequentially (`para_load: false`): the same bytes, without overlap.

    Args:
        reader_arguments: arguments of make_reader, which returns a Reader.
        shape, dtype: see WorkerBatches.
    """

    def __init__(
        self, reader_arguments: Sequence[Any], shape: Shape, dtype: npt.DTypeLike, *,
        make_reader: Callable[..., Reader] = BatchReader,
    ) -> None:
        super().__init__(shape, dtype)
        self._reader = make_reader(*reader_arguments)
        self._memory = np.empty(prod(self.shape), self.dtype)

    def _images(self, requests: Iterator[Request]) -> Iterator[np.ndarray]:
        for request in requests:
            shape = batch_shape(self.shape, request)
            images = self._memory[:prod(shape)].reshape(shape)
            began = time.perf_counter()
            try:
                self._reader.read(request, images)
            finally:
                self.waited += time.perf_counter() - began
            yield images


class ParallelBatches(WorkerBatches):
    """Batches that a loader process reads into a ring of input buffers, ahead of the computation.

    The generator yields arrays of the device, as returned by its buffers' array().  Create the object before any slow
    work, so that the loader starts in parallel.  The thread that creates it must outlive it.  close() ends the loader
    within CLOSE_TIMEOUT seconds.

    Args:
        reader_arguments: arguments of make_reader, a top-level function or class that is called in the loader.
        shape, dtype: see WorkerBatches.
        slots: input buffers in the ring, at least 2; slots - 1 requests are in flight during a computation.
        device: holds the ring, and stays open when the batches are closed. None: the ring is in shared memory.
        on_death: called with one message, from a thread, as soon as the loader dies, even during a computation.
        on_stall: called with a message when the loader has not read a file for STALLED seconds, and again after twice
            that time, and so on.
        stopping: returns whether a stop was requested; a reading then raises StoppedWhileWaiting after PATIENCE.
    """

    def __init__(
        self, reader_arguments: Sequence[Any], shape: Shape, dtype: npt.DTypeLike, slots: int = 2,
        *, make_reader: Callable[..., Reader] = BatchReader, device: "Device | None" = None,
        on_death: Callable[[str], None] | None = None, on_stall: Callable[[str], None] = warnings.warn,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(shape, dtype)
        self._on_stall = on_stall
        self._stopping = stopping
        if slots < 2:
            raise ValueError(f"the ring needs at least 2 input buffers to load while it computes, got {slots}")
        device = device_of_ring(device)
        self._slots = [device.allocate(prod(self.shape) * self.dtype.itemsize) for _ in range(slots)]
        self._in_flight: deque[InFlight] = deque()       # the unanswered requests
        self._factory: ReaderFactory | None = ReaderFactory(functools.partial(make_reader, *reader_arguments))
        self._pipe, pipe_of_loader = CONTEXT.Pipe()
        ring = Ring(tuple(buffer.handle for buffer in self._slots), self.shape, self.dtype)
        arguments = pipe_of_loader, device.name, ring
        self._process = CONTEXT.Process(target=load_batches, args=arguments, name="loader", daemon=True)
        start(self._process, threads=1)
        pipe_of_loader.close()                   # otherwise the loader's death would not cause an EOF here
        self.loader_pid = self._process.pid
        self._closing = threading.Event()
        self._end = util.Finalize(self, end_loader, (self._pipe, self._process, self._closing), exitpriority=1)
        if on_death is not None:
            watched = self.loader_pid, self._closing, on_death
            threading.Thread(target=watch_loader, args=watched, name="loader watch", daemon=True).start()

    def _images(self, requests: Iterator[Request]) -> Iterator[np.ndarray]:
        while self._in_flight:                   # of a reading that was abandoned early
            self._receive_answer()
        for slot in range(len(self._slots)):
            self._request_next(slot, requests)
        while self._in_flight:
            slot, shape, request = self._in_flight[0]
            answer = self._receive_answer()
            if isinstance(answer, Refused):
                raise answer.kind(answer.reason)
            images = self._slots[slot].array(shape, self.dtype)
            if answer.words is not None and sum_of_words(images) != answer.words:
                raise InputLost(
                    f"images of {request.segments[0].path} have changed in shared memory after the loader has read "
                    "them: an error of memory; resume, on another machine if it recurs"
                )
            yield images
            # the caller asks for the next images after it has read the cost of these, so the GPU has finished with them
            self._request_next(slot, requests)

    def _request_next(self, slot: int, requests: Iterator[Request]) -> None:
        """Pass the free slot to the loader with the next request, if there is one."""
        request = next(requests, None)
        if self._factory is not None:
            self._send(self._factory)
            self._factory = None
        if request is not None:
            shape = batch_shape(self.shape, request)
            self._send(CalcFinished(slot, request))
            self._in_flight.append(InFlight(slot, shape, request))

    def _receive_answer(self) -> CopyFinished | Refused:
        """Wait for the loader's answer to the oldest request in flight."""
        began = time.perf_counter()
        try:
            self._wait()
            answer = self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise self._exit_error() from error
        self.waited += time.perf_counter() - began
        self._in_flight.popleft()
        return answer

    def _wait(self) -> None:
        """Wait until the loader has sent an answer; report a loader that does not, and obey a stop request."""
        clock = RunningClock()
        report = STALLED
        while not self._pipe.poll(POLL):
            waited = clock.now()
            if waited >= PATIENCE and self._stopping():
                raise StoppedWhileWaiting
            if waited >= report:
                path = self._in_flight[0].request.segments[0].path
                self._on_stall(
                    f"waiting for {path} for {report:.0f} s: the loader (pid {self.loader_pid}) has not read it; it "
                    "may be suspended, or the disk or network file system does not answer"
                )
                report *= 2

    def _send(self, message: ReaderFactory | CalcFinished) -> None:
        # a view of the pickled bytes, as Connection.send has, could be freed after its buffer, which prints an error
        data = bytes(ForkingPickler.dumps(message))
        try:
            self._pipe.send_bytes(data)
        except ConnectionError as error:
            raise self._exit_error() from error

    def _exit_error(self) -> LoaderDied:
        """Return the error for a loader that has closed its end of the pipe, with its exit status."""
        end(self._process, CLOSE_TIMEOUT)        # the EOF arrives shortly before the process exits
        return LoaderDied(exit_message(self._process.pid, self._process.exitcode))

    def close(self) -> None:
        super().close()
        self._end()
        for buffer in self._slots:               # the loader has ended, so it has closed them
            buffer.close()


def device_of_ring(device: "Device | None") -> "Device":
    """Return the device for the ring: this one, or the host if the loader cannot open buffers on this device."""
    if device is None:
        return open_device("cpu")
    if reason := device.can_reach(device.name):
        warnings.warn(f"{reason}; images are loaded into the host's memory, which is slower", stacklevel=3)
        return open_device("cpu")
    return device


def end_loader(pipe: Connection, process: BaseProcess, closing: threading.Event) -> None:
    """Close the pipe, which ends an idle loader, and kill a loader that is still reading; it is reaped on return."""
    closing.set()
    pipe.close()
    end(process, CLOSE_TIMEOUT)


def watch_loader(pid: int, closing: threading.Event, on_death: Callable[[str], None]) -> None:
    """Wait for the loader's exit without reaping it, and call on_death unless the loader was meant to end."""
    try:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:                    # already reaped by a reading or by close(), which report it
        return
    if ended is not None and not closing.is_set():
        on_death(exit_message(pid, ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status))


def exit_message(pid: int | None, exitcode: int | None) -> str:
    """Return the message for a loader that has exited."""
    return f"the loader (pid {pid}) {describe_exit(exitcode)}"
