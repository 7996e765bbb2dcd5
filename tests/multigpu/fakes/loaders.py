"""A loader and its worker on emulated GPUs, controlled by a test through tests.multigpu.device.fakes.Process."""

import sys
import warnings
from math import prod

import numpy as np

from alexnet.data.dataset import DataError
from multigpu.device import open_device
from multigpu.launch.process import CONTEXT, end, start
from multigpu.loader import CalcFinished, ParallelBatches, ReaderFactory, Ring, load_batches
from tests import cuda_emulator
from tests.multigpu.fakes.workers import SHAPE, Reader, request

NBYTES = prod(SHAPE)


class CountingPipe:
    """The loader's end of the pipe; it adds the number of pending copies to each answer."""

    def __init__(self, pipe):
        self._pipe = pipe
        self.recv = pipe.recv

    def send(self, answer):
        self._pipe.send((answer, cuda_emulator.pending(), "jax" in sys.modules))


def load_counting(pipe, *arguments):
    """Main function of a loader process with a CountingPipe."""
    load_batches(CountingPipe(pipe), *arguments)


class LoaderToolbox:
    """The operations that the processes of these tests offer."""

    def read(self, name, starts, slots=2):
        """Read requests through a ring on the device; return the images and the warnings."""
        requests = [request(start, 8 if start % 2 else 5) for start in starts]
        with warnings.catch_warnings(record=True) as warned, open_device(name) as device:
            warnings.simplefilter("always")
            with ParallelBatches((), SHAPE, "uint8", slots, make_reader=Reader, device=device) as batches:
                images = [np.array(each) for each in batches.read(requests)]
            device.allocate(1)                   # fails if the device is closed
        return images, [str(warning.message) for warning in warned]

    def read_unreadable(self, name, starts):
        """Return the error message of an unreadable request, and the images of the next read."""
        with (
            open_device(name) as device,
            ParallelBatches((), SHAPE, "uint8", make_reader=Reader, device=device) as batches,
        ):
            try:
                list(batches.read(map(request, starts)))
            except DataError as error:
                return str(error), [np.array(each) for each in batches.read([request(3)])]

    def watch(self, name, starts):
        """Fill the slots of a ring in turn; return the loader's answer, what was pending, and the images of each."""
        with open_device(name) as device:
            slots = [device.allocate(NBYTES) for _ in range(2)]
            ring = Ring(tuple(slot.handle for slot in slots), SHAPE, np.dtype("uint8"))
            pipe, pipe_of_loader = CONTEXT.Pipe()
            loader = CONTEXT.Process(target=load_counting, args=(pipe_of_loader, name, ring))
            start(loader, 1)
            pipe_of_loader.close()
            pipe.send(ReaderFactory(Reader))
            seen = []
            for number, first in enumerate(starts):
                pipe.send(CalcFinished(number % 2, request(first)))
                seen.append((*pipe.recv(), np.array(slots[number % 2].array(SHAPE, "uint8"))))
            pipe.close()
            end(loader, 20)
            return seen, loader.exitcode

    def load_into_closed_buffer(self, name):
        """Return the exit status of a loader whose slot has been closed."""
        with open_device(name) as device:
            slot = device.allocate(NBYTES)
            ring = Ring((slot.handle,), SHAPE, np.dtype("uint8"))
            slot.close()
            _, pipe_of_loader = CONTEXT.Pipe()
            loader = CONTEXT.Process(target=load_batches, args=(pipe_of_loader, name, ring))
            loader.start()
            end(loader, 20)
            return loader.exitcode
