"""Images that change in shared memory between the loader and the worker, without processes."""

import threading
from collections import deque
from contextlib import suppress

import numpy as np
import pytest

from alexnet.data.dataset import Request, Segment
from multigpu.device.host import HostDevice
from multigpu.launch.process import CONTEXT
from multigpu.loader import InputLost, ParallelBatches, Ring, WorkerBatches, fill_slots, sum_of_words

SHAPE = (3, 5, 7, 2)


class Counting:
    """A reader whose images count the requests."""

    def read(self, request, out):
        out[...] = request.segments[0].start


class FlippingDevice(HostDevice):
    """Flips a bit of a buffer when the loader has filled slots `after` times."""

    def __init__(self, after):
        super().__init__()
        self.left = after

    def synchronise(self):
        self.left -= 1
        if self.left == 0:
            self.flipped.array(SHAPE, np.uint8)[2, 4, 6, 1] ^= 64


class LocalBatches(ParallelBatches):
    """ParallelBatches with a thread in place of the loader process."""

    def __init__(self, device):
        WorkerBatches.__init__(self, SHAPE, "uint8")
        self._slots = [device.allocate(np.prod(SHAPE)) for _ in range(2)]
        device.flipped = self._slots[0]
        self._in_flight, self._factory = deque(), None
        self._pipe, other = CONTEXT.Pipe()
        ring = Ring((), SHAPE, np.dtype(np.uint8))
        self.thread = threading.Thread(target=self._load, args=(other, device, ring))
        self.thread.start()

    def _load(self, pipe, device, ring):
        with pipe, suppress(EOFError, ConnectionError):
            fill_slots(pipe, device, self._slots, ring, Counting())

    def close(self):
        self._pipe.close()
        self.thread.join()


def numbers_of(after):
    """Return the numbers in the images of four requests, until an error, and the error."""
    found, error = [], None
    with HostDevice(), FlippingDevice(after) as device, LocalBatches(device) as batches:
        try:
            for images in batches.read(Request((Segment(f"{n}.hkl", n, n + 2),)) for n in range(4)):
                found.append(int(images[0, 0, 0, 0]))
        except InputLost as lost:
            error = str(lost)
        del images
    return found, error


def test_images_that_change_in_shared_memory_are_refused():
    assert numbers_of(after=0) == ([0, 1, 2, 3], None)
    found, error = numbers_of(after=3)           # the third request is the second in slot 0
    assert found == [0, 1]
    assert error.startswith("images of 2.hkl have changed in shared memory after the loader has read them")


@pytest.mark.parametrize("size", [1, 8, 13, 4096])
def test_every_bit_changes_the_sum_of_words(size, rng):
    images = rng.integers(0, 256, size, dtype=np.uint8)
    total = sum_of_words(images)
    for byte in {0, size // 2, size - 1}:
        for bit in range(8):
            images[byte] ^= 1 << bit
            assert sum_of_words(images) != total
            images[byte] ^= 1 << bit
