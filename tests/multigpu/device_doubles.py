"""Devices in processes of their own, driven from a test: it opens, fills, copies and closes in each as it likes.

A GPU needs that, because the emulator is for the whole life of a process, and so does every fact about two processes.
"""

import importlib
import itertools
import os
import sys
from unittest import mock

import numpy as np

from multigpu.device import DeviceError, open_device
from multigpu.process import CONTEXT, end, environment
from tests import cuda_emulator

LEFT_THERE = {"HostDevice", "HostBuffer", "CudaDevice", "CudaBuffer"}
REFUSALS = (DeviceError, ValueError, AttributeError)


class Process:
    """A process that does what its toolbox is asked to, one thing after the other.

    emulated  keywords of Emulator.environment, where the process is to find GPUs
    toolbox   makes what it can do at first
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
        """What the attribute of an object there is, or what calling it returns or raises."""
        self._pipe.send(question)
        kind, answer = self._pipe.recv()
        if kind == "raised":
            raise answer
        return Proxy(self.ask, answer) if kind == "object" else answer

    def kill(self):
        self._process.kill()
        self._process.join()

    def close(self):
        """End the process, which closes nothing by itself; returns its exit status."""
        self._pipe.close()
        end(self._process, 20)
        return self._process.exitcode


class Proxy:
    """Stands for object `number` of another process; its methods and attributes are asked for there."""

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
    """The number of an object, on its way to where it lives."""


def pack(given):
    """Arguments with a number for each Proxy."""
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
    """What a Process can do at first."""

    def open_device(self, name, on_host=True):
        return open_device(name, on_host)

    def open_for_jax(self):
        """A GPU as it would be for JAX, were there one for it."""
        return importlib.import_module("multigpu.device.cuda").CudaDevice(0, on_host=False)

    def fill_through_staging(self, device, buffer, array):
        """Upload what was written into the staging memory, the same whenever it is asked for."""
        device.staging(buffer, array.shape, array.dtype)[...] = array
        device.upload(buffer, device.staging(buffer, array.shape, array.dtype))

    def download(self, device, buffer, shape, dtype):
        array = np.empty(shape, dtype)
        device.download(array, buffer)
        return array

    def download_to_staging(self, device, buffer, other):
        """Download the bytes of `buffer` into the page-locked memory of `other`, to which the GPU may write late."""
        array = device.staging(other, (buffer.nbytes,), np.uint8)
        device.download(array, buffer)
        return array

    def closing_order(self, device):
        """Close a CudaDevice; returns the types of what it lets go of, in order."""
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
        """Upload a jax.Array of these values that lies on the host."""
        device.upload(buffer, importlib.import_module("jax").numpy.asarray(array))

    def split_by_jax(self, array, shapes):
        """What CudaDevice.unpack() does on a GPU: the pieces of a jax.Array, and whether one is its memory."""
        cuda, jax = map(importlib.import_module, ("multigpu.device.cuda", "jax"))
        flat = jax.numpy.asarray(array)
        pieces = cuda.jax_split(flat, shapes)
        memory = range(flat.unsafe_buffer_pointer(), flat.unsafe_buffer_pointer() + flat.nbytes)
        return [np.asarray(each) for each in pieces], any(each.unsafe_buffer_pointer() in memory for each in pieces)

    def pending_when_jax_takes(self, device, buffer):
        """How many copies are pending when the buffer's memory is handed to JAX, which is not there."""
        cuda = importlib.import_module("multigpu.device.cuda")
        device._jax_device = None
        with mock.patch.object(cuda, "jax_array", lambda *_: self.pending()):
            return buffer.array((1,), "uint8")

    def has_imported(self, module):
        return module in sys.modules

    def is_emulated(self):
        return "EMUCUDA_DEVICES" in os.environ

    def pending(self):
        """Copies and kernels of this process that are not yet executed, as far as one can know."""
        return cuda_emulator.pending() if self.is_emulated() else 0


def serve(pipe, emulated, toolbox):
    """Entry point of a Process: answers questions until the pipe is closed."""
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
