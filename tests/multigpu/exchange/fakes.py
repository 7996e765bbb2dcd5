"""Fakes for the tests of the exchange: pipes, networks, a communicator, a GPU and NCCL."""

import json
import os
import signal
import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace
from unittest import mock

import numpy as np
import pytensor

from alexnet.run.recorder import WorkerRecorder
from multigpu.device.host import HostDevice

SHAPES = {"W": (7, 5), "b": (5,), "scalar": (), "V": (3, 33, 11)}


class FakeRecorder(WorkerRecorder):
    """A recorder that passes warnings to a callback."""

    def __init__(self, warn=print):
        super().__init__(0)
        self.warn = warn


class CountingPipe:
    """A pipe end that counts messages by type and refuses to send while copies are pending."""

    def __init__(self, pipe, pending, sent):
        self._pipe, self._pending, self._sent = pipe, pending, sent
        self.recv_bytes, self.fileno = pipe.recv_bytes, pipe.fileno

    def send_bytes(self, message):
        kind, pending = json.loads(message)[0], self._pending()
        if pending:
            raise RuntimeError(f"{kind} is sent while {pending} copies are pending")
        self._sent[kind] += 1
        self._pipe.send_bytes(message)


class KillingPipe:
    """A pipe end whose process kills itself instead of sending message number `remaining[0]`."""

    def __init__(self, pipe, remaining):
        self._pipe, self._remaining = pipe, remaining
        self.recv_bytes, self.fileno = pipe.recv_bytes, pipe.fileno

    def send_bytes(self, message):
        if not self._remaining[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        self._remaining[0] -= 1
        self._pipe.send_bytes(message)


class FakeNetwork:
    """A network whose variables contain random values that depend on the step and the rank."""

    computes_on_host, frozen_parameters, weights, running_statistics, averages = True, (), (), (), []
    sums_read = sums_written = None

    def __init__(self):
        self.parameters_and_velocities = [
            pytensor.shared(np.zeros(shape, "float32"), name=name) for name, shape in SHAPES.items()
        ]

    def set(self, step, rank):
        for variable, value in zip(self.parameters_and_velocities, random_arrays(step, rank), strict=True):
            variable.set_value(value, borrow=True)

    def values(self):
        return [np.array(variable.get_value()) for variable in self.parameters_and_velocities]


def random_arrays(step, rank):
    rng = np.random.default_rng((step, rank))
    return [np.array(rng.normal(size=shape), "float32") for shape in SHAPES.values()]


class CountingComm:
    """A communicator that counts the bytes and messages passed to it and can modify what is sent."""

    def __init__(self, comm, change=lambda number, message: message):
        self.comm, self.rank, self.size, self._change = comm, comm.rank, comm.size, change
        self.Irecv, self.bytes, self.messages = comm.Irecv, 0, 0

    def Isend(self, message, rank, tag):
        self.bytes += message.nbytes
        message = self._change(self.messages, message)
        self.messages += 1
        return self.comm.Isend(message, rank, tag)

    def Allreduce(self, place, array):
        self.bytes += array.nbytes
        self.messages += 1
        self.comm.Allreduce(place, self._change(self.messages, array))


class FakeGpu(HostDevice):
    """Host memory with the interface of a GPU: buffers are not host arrays, and copies are recorded."""

    def __init__(self, on_host=True):
        super().__init__(on_host)
        self.name = "cuda0"
        self.copies = []

    def allocate(self, nbytes):
        buffer = super().allocate(nbytes)
        buffer.array((nbytes,), np.uint8)[:] = 0x7F          # 3.4e38: exceeds the range of float16
        return buffer

    def staging(self, buffer, shape, dtype):
        return np.empty(shape, dtype)

    def upload(self, buffer, array):
        self.copies.append("up")
        super().upload(buffer, array)

    def download(self, array, buffer):
        self.copies.append("down")
        super().download(array, buffer)

    def copy_stream(self):
        return nullcontext("stream")


class FakeNccl:
    """A replacement for nccl4py's Communicator, implemented with MPI on host memory."""

    def __init__(self, comm):
        self._comm = comm

    def allreduce(self, source, destination, op, stream):
        total, *others = self._comm.allgather(array_of(source))
        for each in others:
            total = total + each
        array_of(destination)[:] = total

    def destroy(self):
        self._comm = None


def array_of(memory):
    """Return the host array that a __cuda_array_interface__ describes."""
    if isinstance(memory, np.ndarray):
        return memory
    about = memory.__cuda_array_interface__
    host = SimpleNamespace(__array_interface__={key: about[key] for key in ("version", "data", "shape", "typestr")})
    return np.asarray(host)


def fake_nccl(comm):
    """Return a context in which FakeNccl replaces nccl4py."""
    core = ModuleType("nccl.core")
    core.SUM = "sum"
    core.get_unique_id = lambda: SimpleNamespace(as_bytes=b"0" * 128)
    core.UniqueId = SimpleNamespace(from_bytes=bytes)
    core.Communicator = SimpleNamespace(init=lambda size, rank, identifier: FakeNccl(comm))
    nccl = ModuleType("nccl")
    nccl.core = core
    return mock.patch.dict(sys.modules, {"nccl": nccl, "nccl.core": core})
