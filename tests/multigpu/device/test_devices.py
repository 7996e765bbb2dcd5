"""Devices: what holds for all of them, then what holds only for the host or only for GPUs.

GPUs are emulated; tests/cuda_emulator/README.md describes what that proves. If there is a real GPU, it is tested, too.
"""

import os
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from multigpu.device import DeviceError, open_device
from multigpu.device.handles import HostHandle
from multigpu.device.host import BLOCK, HostDevice
from tests.mpi import orphans
from tests.multigpu.device.fakes import Process

pytestmark = pytest.mark.slow

KINDS = {                                        # (device names of two processes, whether the devices are emulated)
    "cpu": (("cpu", "cpu"), False),
    "two GPUs": (("cuda0", "cuda1"), True),
    "one GPU": (("cuda0", "cuda0"), True),
}
if find_spec("pycuda"):
    KINDS["real GPU"] = ("cuda0", "cuda0"), False


@pytest.fixture
def start(request):
    """Return a function that starts a Process with emulated GPUs of the given properties; it ends after the test."""
    started = []

    def start(**emulated):
        request.getfixturevalue("cuda_emulator")
        started.append(Process(emulated))
        return started[-1]

    yield start
    for process in reversed(started):
        process.close()


@pytest.fixture(
    scope="module",
    params=[pytest.param(kind, marks=pytest.mark.gpu if kind == "real GPU" else ()) for kind in KINDS],
)
def processes(request):
    """Two processes, each with the name of the device that it opens."""
    names, emulated = KINDS[request.param]
    if request.param == "real GPU":
        skip_without_a_gpu()
    if emulated:
        request.getfixturevalue("cuda_emulator")
    processes = [Process({} if emulated else None) for _ in range(2)]
    yield list(zip(processes, names, strict=True))
    assert [process.close() for process in processes] == [0, 0]


@pytest.fixture
def device(processes):
    """A device that is open in another process."""
    process, name = processes[0]
    device = process.toolbox.open_device(name)
    yield device
    device.close()


@pytest.fixture
def partner(processes, device):
    """The device of a second process; it first closes its handles to buffers of `device`."""
    process, name = processes[1]
    partner = process.toolbox.open_device(name)
    yield partner
    partner.close()


@pytest.fixture
def toolbox(processes):
    """The toolbox of the process in which `device` is open."""
    return processes[0][0].toolbox


def skip_without_a_gpu(on_host=True):
    """Skip the test unless cuda0 exists and, with on_host=False, JAX can compute on it."""
    try:
        open_device("cuda0", on_host).close()
    except DeviceError as error:
        pytest.skip(str(error))


def filled(device, array):
    """Return a buffer of the device with the bytes of an array."""
    array = np.asarray(array)
    buffer = device.allocate(array.nbytes)
    device.upload(buffer, array)
    device.synchronise()
    return buffer


def bytes_of(buffer):
    return buffer.array((buffer.nbytes,), "uint8")


class TestEveryDevice:
    def test_array_returns_uploaded_values(self, device, toolbox):
        values = np.arange(24, dtype="float32").reshape(2, 3, 4)
        buffer = filled(device, values)
        assert buffer.nbytes == 96
        np.testing.assert_array_equal(buffer.array((2, 3, 4), "float32"), values)
        np.testing.assert_array_equal(toolbox.download(device, buffer, (4,), "float32"), values.flat[:4])

    def test_upload_accepts_noncontiguous_arrays(self, device):
        values = np.arange(24, dtype="float32").reshape(4, 6).T[::2]
        np.testing.assert_array_equal(filled(device, values).array((3, 4), "float32"), values)

    def test_staging_memory_is_uploaded_to_the_first_bytes(self, device, toolbox):
        buffer = filled(device, np.full(8, 7, "uint8"))
        for value in (1, 2):
            toolbox.fill_through_staging(device, buffer, np.full((2, 3), value, "uint8"))
            np.testing.assert_array_equal(bytes_of(buffer), [value] * 6 + [7] * 2)

    def test_two_processes_share_the_bytes(self, device, partner):
        buffer = filled(device, np.arange(1000) % 100)
        opened = partner.open(buffer.handle)
        np.testing.assert_array_equal(bytes_of(opened), bytes_of(buffer))
        partner.upload(opened, np.full(500, 3, "uint8"))
        partner.synchronise()
        np.testing.assert_array_equal(bytes_of(buffer), bytes_of(opened))
        assert (bytes_of(buffer)[:500] == 3).all()
        device.upload(buffer, np.full(10, 4, "uint8"))
        device.synchronise()
        assert (bytes_of(opened)[:11] == [4] * 10 + [3]).all()

    def test_parts_share_bytes_between_processes(self, device, partner):
        buffer = filled(device, np.arange(200, dtype="uint8"))
        part = buffer.part(20, 150).part(30, 100)
        np.testing.assert_array_equal(bytes_of(part), range(50, 150))
        for handle in (part.part(10, 5).handle, part.handle.part(10, 5), buffer.handle.part(50, 40).part(10, 5)):
            opened = partner.open(handle)
            assert (handle.offset, opened.nbytes) == (60, 5)
            np.testing.assert_array_equal(bytes_of(opened), range(60, 65))
            np.testing.assert_array_equal(bytes_of(opened.part(1, 2)), [61, 62])
            assert opened.part(1, 2).handle == handle.part(1, 2)
        device.upload(part, np.zeros(100, "uint8"))
        np.testing.assert_array_equal(np.flatnonzero(bytes_of(buffer) == 0), [0, *range(50, 150)])

    def test_part_is_open_as_long_as_the_whole(self, device):
        buffer = filled(device, np.arange(8, dtype="uint8"))
        part = buffer.part(2, 4)
        part.close()
        np.testing.assert_array_equal(bytes_of(part), [2, 3, 4, 5])
        buffer.close()
        with pytest.raises(DeviceError, match="this buffer of 4 bytes is closed"):
            bytes_of(part)

    @pytest.mark.parametrize("offset, nbytes", [(-1, 2), (0, 0), (0, 11), (10, 1)])
    def test_part_outside_the_buffer_is_refused(self, device, offset, nbytes):
        buffer = device.allocate(10)
        for whole in (buffer, buffer.handle):
            with pytest.raises(ValueError, match="not within a buffer of 10"):
                whole.part(offset, nbytes)

    def test_copy_reads_and_writes_another_process(self, device, partner):
        theirs = filled(partner, np.arange(64, dtype="uint8"))
        opened, own = device.open(theirs.handle), device.allocate(64)
        device.copy(own, opened)
        device.synchronise()
        np.testing.assert_array_equal(bytes_of(own), range(64))
        device.copy(opened.part(0, 4), own.part(32, 4))
        device.synchronise()
        np.testing.assert_array_equal(bytes_of(theirs)[:6], [32, 33, 34, 35, 4, 5])
        opened.close()

    def test_copy_within_a_device(self, device):
        source = filled(device, np.arange(8, dtype="uint8"))
        destination = device.allocate(8)
        device.copy(destination, source)
        device.synchronise()
        np.testing.assert_array_equal(bytes_of(destination), range(8))
        with pytest.raises(ValueError, match="cannot copy 8 bytes to a buffer of 9"):
            device.copy(device.allocate(9), source)

    @pytest.mark.parametrize("length", [1, 2, 255, 257, BLOCK - 1, BLOCK, BLOCK + 1, 70_000])
    @pytest.mark.parametrize("n", [1, 2, 3, 4, 16])
    def test_mean_is_bit_exact(self, device, rng, n, length):
        # all magnitudes, including subnormal numbers
        values = rng.normal(size=(n, length)).astype("float32") * np.float32(10) ** rng.integers(-44, 30, (n, length))
        values = values.astype("float32")
        buffers = [filled(device, each) for each in values]
        result, copy = device.allocate(4 * length), device.allocate(4 * length)
        device.mean(result, buffers, also=[copy])
        device.synchronise()
        result, copy = (buffer.array((length,), "float32") for buffer in (result, copy))
        total = values[0]
        for each in values[1:]:
            total = total + each                 # in this order, rounded each time
        np.testing.assert_array_equal(result.view("uint32"), (total / np.float32(n)).view("uint32"))
        np.testing.assert_array_equal(copy, result)
        if n <= 2:                               # the division is the only rounding
            np.testing.assert_array_equal(result, values.astype("float64").mean(0).astype("float32"))
        for buffer in buffers:
            buffer.close()

    @pytest.mark.parametrize("place", [0, 1, 2])
    def test_mean_can_overwrite_its_sources(self, device, rng, place):
        values = rng.normal(size=(3, 1001)).astype("float32")
        expected = ((values[0] + values[1]) + values[2]) / np.float32(3)
        buffers = [filled(device, each) for each in values]
        device.mean(buffers[place], buffers, also=[buffers[place - 1]])
        device.synchronise()
        for which, buffer in enumerate(buffers):
            same = values[which] if which == (place + 1) % 3 else expected
            np.testing.assert_array_equal(buffer.array((1001,), "float32"), same)

    def test_mean_refuses_wrong_numbers_and_sizes(self, device):
        eight, twelve, odd = (device.allocate(nbytes) for nbytes in (8, 12, 6))
        with pytest.raises(ValueError, match="takes 1 to 16 sources, got 0"):
            device.mean(eight, [])
        with pytest.raises(ValueError, match="takes 1 to 16 sources, got 17"):
            device.mean(eight, [eight] * 17)
        with pytest.raises(ValueError, match=r"of float32 of one size, got \[8, 12\] bytes"):
            device.mean(eight, [eight, twelve])
        with pytest.raises(ValueError, match=r"of float32 of one size, got \[6\] bytes"):
            device.mean(odd, [odd])

    def test_unpack_splits_concatenated_arrays(self, device):
        shapes = [(2, 3), (), (4,), (1, 1, 2)]
        buffer = filled(device, np.arange(14, dtype="float32"))
        first, number, last, small = device.unpack(buffer, shapes)
        assert [each.shape for each in (first, number, last, small)] == shapes
        np.testing.assert_array_equal(first, [[0, 1, 2], [3, 4, 5]])
        assert number == 6
        np.testing.assert_array_equal(last, [7, 8, 9, 10])
        np.testing.assert_array_equal(small, [[[11, 12]]])

    def test_nothing_is_pending_after_synchronise(self, device, partner, toolbox):
        theirs = partner.allocate(4096)
        own, opened = device.allocate(4096), device.open(theirs.handle)
        for begin in (
            lambda: device.upload(own, np.zeros(1024, "float32")),
            lambda: device.copy(opened, own),
            lambda: device.mean(own, [own, opened]),
        ):
            begin()
            assert (toolbox.pending() > 0) == toolbox.is_emulated()
            device.synchronise()
            assert toolbox.pending() == 0
        opened.close()

    def test_array_too_large_for_the_buffer_is_refused(self, device):
        buffer = device.allocate(8)
        message = r"float32 \(3,\) does not fit a buffer of 8 bytes"
        for use in (
            lambda: buffer.array((3,), "float32"),
            lambda: device.upload(buffer, np.zeros(3, "float32")),
            lambda: device.staging(buffer, (3,), "float32"),
            lambda: device.unpack(buffer, [(3,)]),
        ):
            with pytest.raises(ValueError, match=message):
                use()

    def test_allocate_refuses_wrong_sizes(self, device):
        with pytest.raises(ValueError, match="at least 1 byte, got 0"):
            device.allocate(0)
        with pytest.raises(DeviceError, match="(cannot allocate [0-9,]* bytes of shared memory|no [0-9,]* bytes left)"):
            device.allocate(1 << 62)

    def test_own_handle_is_refused(self, device):
        with pytest.raises(DeviceError, match="in the process that made it"):
            device.open(device.allocate(8).handle)

    def test_closed_buffer_is_refused(self, device):
        buffer = device.allocate(8)
        buffer.close()
        buffer.close()
        for use in (lambda: bytes_of(buffer), lambda: buffer.handle, lambda: device.copy(buffer, buffer)):
            with pytest.raises(DeviceError, match="this buffer of 8 bytes is closed"):
                use()

    def test_handle_of_a_closed_buffer_is_refused(self, device, partner):
        buffer = device.allocate(8)
        handle = buffer.handle
        buffer.close()
        with pytest.raises(DeviceError, match="owner"):
            partner.open(handle)

    def test_handle_of_another_kind_of_device_is_refused(self, device):
        handle = HostHandle(1, 2, 3, 4) if device.name != "cpu" else ("no", "handle")
        with pytest.raises(DeviceError, match=f"{device.name} cannot open .*, which names no memory of "):
            device.open(handle)

    def test_closing_frees_the_memory(self, toolbox, processes):
        for _ in range(3):
            device = toolbox.open_device(processes[0][1])
            buffer = device.allocate(150 << 20)
            device.upload(buffer, np.zeros(1, "uint8"))
            device.close()
            device.close()
            with pytest.raises(DeviceError, match="is closed"):
                bytes_of(buffer)

    def test_device_can_reach_itself(self, device):
        assert device.can_reach(device.name) is None
        assert "cannot open buffers" in device.can_reach("cpu" if device.name != "cpu" else "cuda0")

    def test_jax_is_not_imported_for_host_backends(self, device, toolbox):
        device.unpack(filled(device, np.zeros(4, "float32")), [(4,)])
        assert not toolbox.has_imported("jax")


def buffers_mapped():
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return sum("memfd:buffer" in line for line in maps)


class TestHost:
    @pytest.fixture
    def device(self):
        with HostDevice() as device:
            yield device

    @pytest.fixture
    def other(self):
        """A process that the test may kill."""
        process = Process()
        yield process
        process.close()

    def test_new_buffer_is_zero_and_array_is_a_view(self, device):
        buffer = device.allocate(24)
        assert not bytes_of(buffer).any()
        buffer.array((2, 3), "float32")[:] = 1.5
        assert (buffer.array((6,), "float32") == 1.5).all()

    def test_staging_memory_is_the_buffer_itself(self, device):
        buffer = device.allocate(24)
        device.staging(buffer, (2, 3), "float32")[:] = 1.5
        assert (buffer.array((6,), "float32") == 1.5).all()

    @pytest.mark.parametrize("on_host", [True, False])
    def test_unpack_copies_only_for_device_backends(self, on_host):
        with open_device("cpu", on_host) as device:
            buffer = device.allocate(12)
            first, second = device.unpack(buffer, [(2,), ()])
            buffer.array((3,), "float32")[:] = 1
            expected = 1 if on_host else 0
            assert (first == expected).all() and second == expected

    def test_view_of_the_buffer_is_not_copied(self, device, monkeypatch):
        buffer = device.allocate(24)
        own = buffer.part(8, 16).array((4,), "float32")
        monkeypatch.delattr(np, "copyto")
        device.upload(buffer.part(8, 16), own)
        device.download(own, buffer.part(8, 16))
        with pytest.raises(AttributeError, match="copyto"):
            device.upload(buffer.part(8, 16), own[::-1])

    def test_mapped_memory_outlives_its_killed_owner(self, device, other):
        before = orphans()
        theirs = filled(other.toolbox.open_device("cpu"), np.ones(1 << 20, "uint8"))
        handle = theirs.handle
        buffer = device.open(handle)
        other.kill()
        assert bytes_of(buffer).sum() == 1 << 20
        assert orphans() <= before
        with pytest.raises(DeviceError, match=f"/proc/{handle.pid}/fd/{handle.fd} cannot be opened.*must be alive"):
            device.open(handle)

    def test_handle_of_another_file_is_refused(self, device, other):
        handle = other.toolbox.open_device("cpu").allocate(100).handle
        with pytest.raises(DeviceError, match=f"is another file now: inode {handle.inode} of 100 bytes, not"):
            device.open(handle._replace(inode=handle.inode + 1))
        for wrong in (handle._replace(fd=0), handle._replace(nbytes=101), handle._replace(offset=1)):
            with pytest.raises(DeviceError, match="is another file now"):
                device.open(wrong)

    def test_closing_frees_memory_and_files(self):
        files, mapped = len(os.listdir("/proc/self/fd")), buffers_mapped()
        with HostDevice() as device:
            view = device.allocate(8).array((8,), "uint8")
            device.allocate(8)
            assert buffers_mapped() == mapped + 2
        assert buffers_mapped() == mapped + 1
        view[:] = 1                              # a view outlives its closed buffer
        del view
        assert buffers_mapped() == mapped
        assert len(os.listdir("/proc/self/fd")) == files

    def test_missing_memfd_is_reported_with_a_remedy(self, device, monkeypatch):
        monkeypatch.delattr(os, "memfd_create")
        with pytest.raises(DeviceError, match="para_load=false"):
            device.allocate(8)


class TestGpus:
    def test_copy_between_two_gpus_of_one_process(self, start):
        toolbox = start().toolbox
        zero, one = (toolbox.open_device(name) for name in ("cuda0", "cuda1"))
        source, destination = filled(zero, np.arange(9, dtype="uint8")), one.allocate(9)
        one.copy(destination, source)
        one.synchronise()
        np.testing.assert_array_equal(bytes_of(destination), range(9))

    def test_download_to_page_locked_memory_is_complete(self, start):
        toolbox = start().toolbox
        device = toolbox.open_device("cuda0")
        buffer = filled(device, np.arange(9, dtype="uint8"))
        np.testing.assert_array_equal(toolbox.download_to_staging(device, buffer, device.allocate(9)), range(9))

    def test_no_context_is_left_current(self, start):
        toolbox = start().toolbox
        device = toolbox.open_device("cuda0")
        buffer = filled(device, np.zeros(4, "float32"))
        device.mean(buffer, [buffer])
        assert not toolbox.has_current_context()

    def test_allocation_beyond_free_memory_is_refused(self, start):
        device = start(memory_mib=8).toolbox.open_device("cuda0")
        device.allocate(6 << 20)
        message = "^cuda0 has no 3,145,728 bytes left: 2,097,152 of its 8,388,608 are free;"
        with pytest.raises(DeviceError, match=message):
            device.allocate(3 << 20)
        device.allocate(1 << 20)

    def test_handle_of_a_killed_owner_is_refused(self, start):
        device, owner = start().toolbox.open_device("cuda0"), start()
        handle = owner.toolbox.open_device("cuda1").allocate(100).handle
        owner.kill()
        message = f"^cuda0 cannot open a buffer of process {owner.pid} on GPU .*must be alive"
        with pytest.raises(DeviceError, match=message):
            device.open(handle)

    def test_gpu_without_peer_access_cannot_be_reached(self, start):
        device = start(devices=4, peer="0-1").toolbox.open_device("cuda0")
        assert device.can_reach("cuda1") is None
        assert "cuda0 has no peer access to cuda2" in device.can_reach("cuda2")
        assert "there is no cuda4 on this machine" in device.can_reach("cuda4")

    def test_missing_ipc_is_reported(self, start):
        device = start(ipc=False).toolbox.open_device("cuda0")
        assert "memory of cuda0 cannot be shared with another process" in device.can_reach("cuda0")
        buffer = filled(device, np.arange(4, dtype="uint8"))
        np.testing.assert_array_equal(bytes_of(buffer), range(4))
        with pytest.raises(DeviceError, match="cannot be shared .*CUDA has no IPC under WSL"):
            assert buffer.handle

    def test_process_without_close_exits_cleanly(self, start, capfd):
        process = start()
        device = process.toolbox.open_device("cuda0")
        device.mean(device.allocate(8), [filled(device, np.zeros(2, "float32"))])
        assert process.close() == 0
        assert capfd.readouterr().err == ""

    def test_opened_buffers_are_closed_first(self, start):
        owner, toolbox = start(), start().toolbox
        theirs, device = owner.toolbox.open_device("cuda0").allocate(8), toolbox.open_device("cuda0")
        own, opened, _ = device.allocate(8), device.open(theirs.handle), device.allocate(8)
        device.copy(own, opened)
        assert toolbox.closing_order(device) == ["IPCMemoryHandle", "DeviceAllocation", "DeviceAllocation"]
        theirs.close()
        assert owner.close() == 0

    def test_missing_gpu_is_refused_with_existing_ones(self, start):
        existing = r"cuda0 \(Emulated device 0\), cuda1 \(Emulated device 1\)"
        with pytest.raises(DeviceError, match=f"^there is no cuda2 on this machine, which has {existing}$"):
            start().toolbox.open_device("cuda2")

    def test_machine_without_a_gpu_is_reported(self, start):
        with pytest.raises(DeviceError, match="^CUDA cannot be used here .*devices=cpu needs none$"):
            start(devices=0).toolbox.open_device("cuda0")


@pytest.fixture(scope="module")
def toolbox_with_jax(cuda_emulator):
    pytest.importorskip("jax", reason="the hand-over to JAX needs jax, which is not installed")
    process = Process({})
    yield process.toolbox
    process.close()


class TestJax:
    """The hand-over to JAX, as far as it can be tested without a GPU: JAX uses the memory itself only on a GPU."""

    def test_unpacked_arrays_are_in_memory_of_jax(self, toolbox_with_jax):
        for shapes in ([(2, 3), (), (5,)], [(12,)]):
            pieces, shared = toolbox_with_jax.split_by_jax(np.arange(12, dtype="float32"), shapes)
            assert [piece.shape for piece in pieces] == shapes
            np.testing.assert_array_equal(np.concatenate([piece.ravel() for piece in pieces]), range(12))
            assert not shared

    def test_jax_array_on_the_host_is_uploaded(self, toolbox_with_jax):
        device = toolbox_with_jax.open_device("cuda0")
        buffer = device.allocate(16)
        toolbox_with_jax.upload_of_jax(device, buffer, np.arange(4, dtype="float32"))
        np.testing.assert_array_equal(buffer.array((4,), "float32"), range(4))

    def test_jax_gets_memory_without_pending_copies(self, toolbox_with_jax):
        device = toolbox_with_jax.open_for_jax()
        buffer = device.allocate(16)
        device.upload(buffer, np.zeros(16, "uint8"))
        assert toolbox_with_jax.pending() > 0
        assert toolbox_with_jax.pending_when_jax_takes(device, buffer) == 0

    def test_jax_without_a_gpu_is_reported(self, toolbox_with_jax):
        device = toolbox_with_jax.open_for_jax()
        with pytest.raises(DeviceError, match=r"JAX finds no GPU \(.*`pip install -e \"\.\[cuda\]\"`"):
            device.allocate(16).array((4,), "float32")

    @pytest.mark.skipif(find_spec("jax_plugins") is not None, reason="JAX may be installed with CUDA here")
    def test_gpu_is_refused_if_jax_has_no_cuda(self, toolbox_with_jax):
        with pytest.raises(DeviceError, match="^backend jax cannot compute on cuda0: JAX is installed without CUDA"):
            toolbox_with_jax.open_device("cuda0", on_host=False)


@pytest.mark.parametrize("name", ["gpu", "cuda", "cuda-1", "cuda0x", "cuda99999", "CPU", ""])
def test_unknown_device_is_refused(name):
    with pytest.raises(DeviceError, match=f"a device is called cpu, or cuda and a number as in cuda0, got '{name}'"):
        open_device(name)


@pytest.mark.parametrize("module, message", [
    ("", r'cuda0 needs PyCUDA, which is not installed .*`pip install -e "\.\[cuda\]"`'),
    ("raise ImportError('libcuda.so.1: cannot open shared object file')",
     "cuda0 needs a CUDA driver, which is not installed .*libcuda.so.1.*install NVIDIA's driver"),
])
def test_missing_pycuda_or_driver_is_reported(monkeypatch, tmp_path, module, message):
    (tmp_path / "pycuda").mkdir()
    (tmp_path / "pycuda" / "__init__.py").touch()
    if module:
        (tmp_path / "pycuda" / "driver.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("pycuda", "pycuda.driver", "multigpu.device.cuda"):
        monkeypatch.setitem(sys.modules, name, None)         # so that monkeypatch restores it
        del sys.modules[name]
    with pytest.raises(DeviceError, match=message):
        open_device("cuda0")


@pytest.mark.gpu
def test_jax_shares_buffers_of_a_real_gpu(rng):
    skip_without_a_gpu(on_host=False)
    jax = pytest.importorskip("jax", reason="the hand-over to JAX needs jax, which is not installed")
    values = rng.normal(size=(3, 5)).astype("float32")
    with open_device("cuda0", on_host=False) as device:
        buffer, other = filled(device, values), device.allocate(60)
        array = buffer.array((3, 5), "float32")
        assert array.unsafe_buffer_pointer() == buffer.pointer
        doubled = jax.jit(lambda x: 2 * x)(array)
        device.upload(other, doubled)
        device.mean(other, [other, buffer])
        first, rest = device.unpack(other, [(5,), (2, 5)])
        np.testing.assert_array_equal(np.concatenate([first[None], rest]), (2 * values + values) / np.float32(2))
        assert not buffer.pointer <= first.unsafe_buffer_pointer() < buffer.pointer + 60
