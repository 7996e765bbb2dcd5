"""The loader: a process beside each worker that fills its input buffers during the computation.

The worker owns a ring of input buffers on its device and exports their handles once.  After that the processes
exchange only small messages:

    worker                                    loader
    Reading(make_reader)         ---------->  creates its reader, once
    CalcFinished(slot, request)  ---------->  reads the images of the request, copies them into the slot, synchronises
    computes on another slot     <----------  CopyFinished(slot), or Refused(slot, sentence)

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
from collections import deque
from math import prod
from multiprocessing import util
from typing import Any, NamedTuple

import numpy as np

from alexnet.data.dataset import BatchReader, DataError
from multigpu.device import DeviceError, open_device
from multigpu.process import CONTEXT, end, end_with_parent, how_it_ended, start, take_signals

GRACE = 1.0                                      # seconds that a loader gets to finish its reading on close


class Reading(NamedTuple):
    """Worker to loader, first message: make_reader() returns a reader whose .read(request, out) may raise DataError.

    It contains the mean image, which is larger than a pipe's buffer.  It is therefore not sent at start-up, where the
    death of the loader would not be noticed.
    """

    make_reader: Any


class CalcFinished(NamedTuple):
    """Worker to loader: the computation on this slot has finished; fill the slot with this request."""

    slot: int
    request: Any


class CopyFinished(NamedTuple):
    """Loader to worker: the images of the request are in this slot."""

    slot: int


class Refused(NamedTuple):
    """Loader to worker: the request cannot be read, with the reason; the slot is free again."""

    slot: int
    sentence: str


class Ring(NamedTuple):
    """Description of the input buffers for the loader: each has shape (channel, row, column, batch) and this dtype."""

    handles: tuple
    shape: tuple[int, int, int, int]
    dtype: np.dtype


class LoaderDied(RuntimeError):
    """The loader process has exited; the message gives its exit status or signal."""


def load_batches(pipe, device_name, ring):
    """Entry point of the loader process; returns when the worker closes its end of the pipe.

    Args:
        pipe: Connection to the worker, for the messages above.
        device_name: the device that holds the ring's buffers.
        ring: the worker's input buffers.
    """
    take_signals(signal.SIG_IGN)                 # a SIGTERM to the process group is handled by the worker
    end_with_parent()
    try:
        with open_device(device_name) as device:
            slots = [device.open(handle) for handle in ring.handles]
            fill_slots(pipe, device, slots, ring, pipe.recv().make_reader())
    except DeviceError as error:
        sys.exit(f"the loader cannot continue: {error}")
    except (EOFError, ConnectionError):
        return


def fill_slots(pipe, device, slots, ring, reader):
    """Fill slots on request until the worker closes the pipe, which raises EOFError or ConnectionError."""
    while True:
        slot, request = pipe.recv()
        images = device.staging(slots[slot], batch_shape(ring.shape, request), ring.dtype)
        try:
            reader.read(request, images)
            device.upload(slots[slot], images)
            answer = CopyFinished(slot)
        except DataError as error:
            answer = Refused(slot, str(error))
        device.synchronise()                     # before the message, because copies to a GPU are asynchronous
        pipe.send(answer)


def batch_shape(shape, request):
    """Return the shape of a request's images in an input buffer of `shape`.

    The last batch of an epoch may be smaller than the buffer.
    """
    images = sum(segment.stop - segment.start for segment in request.segments)
    if not 1 <= images <= shape[3]:
        raise ValueError(f"a request of {images} images does not fit an input buffer of {shape[3]}")
    return (*shape[:3], images)


class Batches:
    """Base class of both loading modes: closing, and the check that only one reading is open."""

    def __init__(self, shape, dtype):
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.waited = 0.0                        # total seconds that the worker has waited for images
        self._open, self._reading = True, False

    def read(self, requests):
        """Yield the images of each request, (channel, row, column, batch), as a view that is valid until the next one.

        `requests` is any iterable.  The generator consumes it a few requests ahead of the images, one per slot.  No
        request is in flight between two readings.  To avoid a gap, chain the iterables (for example of training and
        validation) into one reading; the first batch of the second is then loaded during the last batch of the first.
        A reading may be abandoned early.

        Raises:
            DataError: a request cannot be read.
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

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


class SerialBatches(Batches):
    """Batches read in the worker, sequentially (`para_load: false`): the same bytes, without overlap."""

    loader_pid = None

    def __init__(self, reader_arguments, shape, dtype, *, make_reader=BatchReader):
        super().__init__(shape, dtype)
        self._reader = make_reader(*reader_arguments)
        self._memory = np.empty(prod(self.shape), self.dtype)

    def _images(self, requests):
        for request in requests:
            shape = batch_shape(self.shape, request)
            images = self._memory[:prod(shape)].reshape(shape)
            began = time.perf_counter()
            try:
                self._reader.read(request, images)
            finally:
                self.waited += time.perf_counter() - began
            yield images

    def close(self):
        """Refuse further reading."""
        self._open = False


class ParallelBatches(Batches):
    """Batches that a loader process reads into a ring of input buffers, ahead of the computation.

    The generator yields arrays of the device, as returned by its buffers' array().  Create the object before any slow
    work, so that the loader starts in parallel.  The thread that creates it must outlive it.  A read raises LoaderDied
    if the loader has exited.

    Args:
        reader_arguments: arguments of make_reader, a top-level function or class that is called in the loader.
        shape, dtype: of one full input buffer: (channel, row, column, batch).
        slots: input buffers in the ring, at least 2; slots - 1 requests are in flight during a computation.
        device: holds the ring, and stays open when the batches are closed. None: the ring is in shared memory.
        on_death: called with one message, from a thread, as soon as the loader dies, even during a computation.
    """

    def __init__(self, reader_arguments, shape, dtype, slots=2, *, make_reader=BatchReader, device=None, on_death=None):
        super().__init__(shape, dtype)
        if slots < 2:
            raise ValueError(f"the ring needs at least 2 input buffers to load while it computes, got {slots}")
        device = device_of_ring(device)
        self._slots = [device.allocate(prod(self.shape) * self.dtype.itemsize) for _ in range(slots)]
        self._in_flight = deque()                # (slot, shape) of the requests sent and not yet answered
        self._pipe, theirs = CONTEXT.Pipe()
        ring = Ring(tuple(buffer.handle for buffer in self._slots), self.shape, self.dtype)
        self._untold = Reading(functools.partial(make_reader, *reader_arguments))
        arguments = theirs, device.name, ring
        self._process = CONTEXT.Process(target=load_batches, args=arguments, name="loader", daemon=True)
        start(self._process, threads=1)
        theirs.close()                           # otherwise the loader's death would not cause an EOF here
        self.loader_pid = self._process.pid
        self._closing = threading.Event()
        self._end = util.Finalize(self, end_loader, (self._pipe, self._process, self._closing), exitpriority=1)
        if on_death is not None:
            watch = threading.Thread(target=tell_of_death, args=(self.loader_pid, self._closing, on_death), daemon=True)
            watch.start()

    def _images(self, requests):
        while self._in_flight:                   # of a reading that was abandoned early
            self._answer()
        for slot in range(len(self._slots)):
            self._ask(slot, requests)
        while self._in_flight:
            slot, shape = self._in_flight[0]
            answer = self._answer()
            if isinstance(answer, Refused):
                raise DataError(answer.sentence)
            yield self._slots[slot].array(shape, self.dtype)
            # the caller asks for the next images after it has read the cost of these, so the GPU has finished with them
            self._ask(slot, requests)

    def _ask(self, slot, requests):
        """Pass the free slot to the loader with the next request, if there is one."""
        request = next(requests, None)
        if self._untold:
            self._talk(self._pipe.send, self._untold)
            self._untold = None
        if request is not None:
            shape = batch_shape(self.shape, request)
            self._talk(self._pipe.send, CalcFinished(slot, request))
            self._in_flight.append((slot, shape))

    def _answer(self):
        """Wait for the loader's answer to the oldest request in flight."""
        began = time.perf_counter()
        answer = self._talk(self._pipe.recv)
        self.waited += time.perf_counter() - began
        self._in_flight.popleft()
        return answer

    def _talk(self, call, *message):
        """Send or receive; raise LoaderDied with the exit status if the loader has exited."""
        try:
            return call(*message)
        except (EOFError, ConnectionError) as error:
            end(self._process, GRACE)            # the EOF arrives shortly before the process exits
            raise LoaderDied(obituary(self.loader_pid, self._process.exitcode)) from error

    def close(self):
        """End the loader within GRACE seconds, then free the input buffers; the loader has closed them by then."""
        self._open = False
        self._end()
        for buffer in self._slots:
            buffer.close()


def device_of_ring(device):
    """Return the device for the ring: this one, or the host if the loader cannot open buffers on this device."""
    obstacle = device and device.can_reach(device.name)
    if obstacle:
        warnings.warn(f"{obstacle}; images are loaded into the host's memory, which is slower", stacklevel=3)
    return open_device("cpu") if device is None or obstacle else device


def end_loader(pipe, process, closing):
    """Close the pipe, which ends an idle loader, and kill a loader that is still reading; it is reaped on return."""
    closing.set()
    pipe.close()
    end(process, GRACE)


def tell_of_death(pid, closing, on_death):
    """Wait for the loader's exit without reaping it, and call on_death unless the loader was meant to end."""
    try:
        end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:                    # already reaped by a reading or by close(), which report it
        return
    if not closing.is_set():
        on_death(obituary(pid, end.si_status if end.si_code == os.CLD_EXITED else -end.si_status))


def obituary(pid, exitcode):
    return f"the loader (pid {pid}) {how_it_ended(exitcode)}"
