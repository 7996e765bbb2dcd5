"""Devices in separate processes that a test controls: it opens, fills, copies and closes buffers in each of them.

A GPU needs a separate process, because a process loads the emulator for its whole life. Every test about two processes
also needs separate processes.
"""

import importlib
import itertools
import os
import sys
from unittest import mock

import numpy as np

from multigpu.device import DeviceError, jax_bridge, open_device
from multigpu.launch.process import CONTEXT, end, environment
from tests import cuda_emulator

LEFT_THERE = {"HostDevice", "HostBuffer", "CudaDevice", "CudaBuffer"}
REFUSALS = (DeviceError, ValueError, AttributeError)


class Process:
    """A process that executes the operations of its toolbox on request, in order.

    emulated  keywords of Emulator.environment, if the process should find GPUs
    toolbox   creates the initial operations
    """

    def __init__(self, emulated=None, toolbox=None):
        self._pipe, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=serve, args=(theirs, emulated, toolbox or Toolbox))
        with environment(EMUCUDA_MACHINE=str(os.getpid())):     # all processes of these tests share the GPUs
            self._process.start()
        theirs.close()
        self.pid = self._process.pid
        self.toolbox = Proxy(self.ask, 0)

    def ask(self, *question):
        """Return the attribute of a remote object, or the result of calling it; raise what the call raises."""
        self._pipe.send(question)
        kind, answer = self._pipe.recv()
        if kind == "raised":
            raise answer
        return Proxy(self.ask, answer) if kind == "object" else answer

    def kill(self):
        self._process.kill()
        self._process.join()

    def close(self):
        """End the process without closing its buffers; return its exit status."""
        self._pipe.close()
        end(self._process, 20)
        return self._process.exitcode


class Proxy:
    """A proxy of object `number` in another process; attribute reads and calls are executed there."""

    def __init__(self, ask, number):
        self._ask, self._number = ask, number

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        answer = self._ask("get", self._number, name)
        if answer != "callable":
            return answer
        return lambda *given, **named: self._ask("call", self._number, name, pack(given), pack(named))


class Named(int):
    """The number that represents a remote object in a message."""


def pack(given):
    """Replace each Proxy in the arguments by its number."""
    if isinstance(given, Proxy):
        return Named(given._number)
    if isinstance(given, dict):
        return {name: pack(each) for name, each in given.items()}
    return type(given)(map(pack, given)) if type(given) in (list, tuple) else given


def unpack(given, objects):
    if isinstance(given, Named):
        return objects[given]
    if isinstance(given, dict):
        return {name: unpack(each, objects) for name, each in given.items()}
    return type(given)(unpack(each, objects) for each in given) if type(given) in (list, tuple) else given


class Toolbox:
    """The initial operations of a Process."""

    def open_device(self, name, on_host=True):
        return open_device(name, on_host)

    def open_for_jax(self):
        """Open a GPU in the mode that JAX uses, even if JAX has no GPU."""
        return importlib.import_module("multigpu.device.cuda").CudaDevice(0, on_host=False)

    def fill_through_staging(self, device, buffer, array):
        """Write to the staging memory and upload it; every call of staging() returns the same memory."""
        device.staging(buffer, array.shape, array.dtype)[...] = array
        device.upload(buffer, device.staging(buffer, array.shape, array.dtype))

    def download(self, device, buffer, shape, dtype):
        array = np.empty(shape, dtype)
        device.download(array, buffer)
        return array

    def download_to_staging(self, device, buffer, other):
        """Download the bytes of `buffer` into the page-locked memory of `other`; the GPU may write there late."""
        array = device.staging(other, (buffer.nbytes,), np.uint8)
        device.download(array, buffer)
        return array

    def closing_order(self, device):
        """Close a CudaDevice; return the types of the memory that it releases, in order."""
        order, release = [], device.release
        device.release = lambda memory: (order.append(type(memory).__name__), release(memory))
        device.close()
        return order

    def has_current_context(self):
        cuda = importlib.import_module("pycuda.driver")
        try:
            return bool(cuda.Context.get_device())
        except cuda.LogicError:
            return False

    def upload_of_jax(self, device, buffer, array):
        """Upload a jax.Array of these values that is stored on the host."""
        device.upload(buffer, importlib.import_module("jax").numpy.asarray(array))

    def split_by_jax(self, array, shapes):
        """Split a jax.Array as CudaDevice.unpack() does on a GPU; return the pieces, and whether any is its memory."""
        jax = importlib.import_module("jax")
        flat = jax.numpy.asarray(array)
        pieces = jax_bridge.jax_split(flat, shapes)
        memory = range(flat.unsafe_buffer_pointer(), flat.unsafe_buffer_pointer() + flat.nbytes)
        return [np.asarray(each) for each in pieces], any(each.unsafe_buffer_pointer() in memory for each in pieces)

    def pending_when_jax_takes(self, device, buffer):
        """Return the number of pending copies when the buffer's memory is passed to JAX, which is mocked."""
        cuda = importlib.import_module("multigpu.device.cuda")
        device._jax_device = None
        with mock.patch.object(cuda, "jax_array", lambda *_: self.pending()):
            return buffer.array((1,), "uint8")

    def has_imported(self, module):
        return module in sys.modules

    def is_emulated(self):
        return "EMUCUDA_DEVICES" in os.environ

    def pending(self):
        """Return the number of copies and kernels of this process not executed yet; 0 without the emulator."""
        return cuda_emulator.pending() if self.is_emulated() else 0


def serve(pipe, emulated, toolbox):
    """Main function of a Process: answer requests until the pipe is closed."""
    if emulated is not None:
        cuda_emulator.find().load(**emulated)
    objects, numbers = {0: toolbox()}, itertools.count(1)
    while True:
        try:
            kind, number, name, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            found = getattr(objects[number], name)
            if kind == "call":
                given, named = unpack(arguments, objects)
                found = found(*given, **named)
            answer = "value", "callable" if callable(found) else found
        except REFUSALS as error:
            answer = "raised", error
        if type(answer[1]).__name__ in LEFT_THERE:
            number = next(numbers)
            objects[number] = answer[1]
            answer = "object", number
        pipe.send(answer)
