"""The host device: shared memory that needs no name and outlives nobody."""

import os
import signal

import numpy as np
import pytest

from multigpu.device import DeviceError
from multigpu.device.host import HostDevice, HostHandle
from multigpu.process import CONTEXT
from tests.multigpu import process_doubles as doubles


@pytest.fixture
def device():
    with HostDevice() as device:
        yield device


@pytest.fixture
def partner():
    """Starts one process of the doubles; returns it and the pipe to it."""
    started = []

    def start(target, *arguments):
        pipe, theirs = CONTEXT.Pipe()
        process = CONTEXT.Process(target=target, args=(theirs, *arguments))
        process.start()
        theirs.close()
        started.append((process, pipe))
        return process, pipe

    yield start
    for process, pipe in started:
        pipe.close()
        process.kill()
        process.join()


def buffers_mapped():
    with open("/proc/self/maps") as maps:
        return sum("memfd:buffer" in line for line in maps)


def test_new_buffer_is_zero_and_keeps_what_is_written(device):
    buffer = device.allocate(24)
    assert buffer.nbytes == 24
    assert not buffer.array((24,), "uint8").any()
    buffer.array((2, 3), "float32")[:] = 1.5
    assert (buffer.array((6,), "float32") == 1.5).all()


def test_two_processes_see_the_same_bytes(device, partner):
    buffer = device.allocate(1000)
    values = buffer.array((1000,), "uint8")
    values[:] = np.arange(1000) % 100
    _, pipe = partner(doubles.double_values, buffer.handle)
    assert pipe.recv() == "done"
    np.testing.assert_array_equal(values, np.arange(1000) % 100 * 2)
    values[:] = 3
    pipe.send("sum")
    assert pipe.recv() == 3000


def test_part_of_a_buffer_is_opened_at_its_offset(device, partner):
    buffer = device.allocate(100)
    buffer.array((100,), "uint8")[:] = 1
    _, pipe = partner(doubles.double_values, buffer.handle.part(50, 40).part(10, 5))
    assert pipe.recv() == "done"
    np.testing.assert_array_equal(np.flatnonzero(buffer.array((100,), "uint8") == 2), range(60, 65))


def test_memory_outlives_a_killed_owner_only_in_whoever_maps_it(device, partner):
    before = set(os.listdir("/dev/shm"))
    process, pipe = partner(doubles.export_values, 1 << 20)
    handle = pipe.recv()
    buffer = device.open(handle)
    assert set(os.listdir("/dev/shm")) == before
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert buffer.array((1 << 20,), "uint8").sum() == 1 << 20
    assert set(os.listdir("/dev/shm")) == before
    with pytest.raises(DeviceError, match=f"/proc/{handle.pid}/fd/{handle.fd} cannot be opened.*must be alive"):
        device.open(handle)


def test_handle_of_another_file_is_refused(device, partner):
    _, pipe = partner(doubles.export_values, 100)
    handle = pipe.recv()
    for wrong in (handle._replace(inode=handle.inode + 1), handle._replace(nbytes=101), handle._replace(offset=1)):
        with pytest.raises(DeviceError, match=f"is another file now: inode {handle.inode} of 100 bytes, not"):
            device.open(wrong)
    with pytest.raises(DeviceError, match="is another file now"):
        device.open(handle._replace(fd=0))


def test_own_handle_is_refused_as_on_a_gpu(device):
    with pytest.raises(DeviceError, match="in the process that made it"):
        device.open(device.allocate(8).handle)


@pytest.mark.parametrize("offset, nbytes", [(-1, 2), (0, 0), (0, 11), (10, 1)])
def test_part_outside_the_buffer_is_refused(offset, nbytes):
    with pytest.raises(ValueError, match="not within a buffer of 10"):
        HostHandle(1, 2, 3, 10).part(offset, nbytes)


def test_closed_buffer_is_refused(device):
    buffer = device.allocate(8)
    buffer.close()
    buffer.close()
    for use in (lambda: buffer.array((8,), "uint8"), lambda: buffer.handle, lambda: device.copy(buffer, buffer)):
        with pytest.raises(DeviceError, match="this buffer of 8 bytes is closed"):
            use()


def test_closing_frees_memory_and_files():
    files, mapped = len(os.listdir("/proc/self/fd")), buffers_mapped()
    with HostDevice() as device:
        view = device.allocate(8).array((8,), "uint8")
        device.allocate(8)
        assert buffers_mapped() == mapped + 2
    assert buffers_mapped() == mapped + 1
    view[:] = 1                                  # a view that is still held does not dangle
    del view
    assert buffers_mapped() == mapped
    assert len(os.listdir("/proc/self/fd")) == files


def test_copy_needs_buffers_of_one_size(device):
    source, destination = device.allocate(8), device.allocate(8)
    source.array((8,), "uint8")[:] = range(8)
    device.copy(destination, source)
    device.synchronise()
    np.testing.assert_array_equal(destination.array((8,), "uint8"), range(8))
    with pytest.raises(ValueError, match="cannot copy 8 bytes to a buffer of 9"):
        device.copy(device.allocate(9), source)


def test_array_larger_than_the_buffer_is_refused(device):
    with pytest.raises(ValueError, match=r"float32 \(3,\) does not fit a buffer of 8 bytes"):
        device.allocate(8).array((3,), "float32")


def test_missing_memory_is_told_at_once(device):
    with pytest.raises(ValueError, match="at least 1 byte, got 0"):
        device.allocate(0)
    with pytest.raises(DeviceError, match="bytes of shared memory are to be had"):
        device.allocate(1 << 62)


def test_without_memfd_the_way_out_is_named(device, monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(DeviceError, match="para_load=false"):
        device.allocate(8)
