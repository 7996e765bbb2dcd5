"""`python -m multigpu devices`: lists the devices, what each can do, and why a device is not used."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from multigpu.device import ipc, report
from multigpu.device.host import HostDevice

pytestmark = pytest.mark.slow


def run(emulator, **settings):
    """Return what the command prints with emulated GPUs."""
    folders = os.pathsep.join([os.environ.get("PYTHONPATH", ""), *sys.path])
    environment = os.environ | emulator.environment(**settings)
    environment["PYTHONPATH"] += os.pathsep + folders
    command = [sys.executable, "-m", "multigpu", "devices"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


@pytest.fixture
def no_pycuda(monkeypatch):
    monkeypatch.delitem(sys.modules, "multigpu.device.cuda", raising=False)
    monkeypatch.setitem(sys.modules, "pycuda", None)


def test_missing_pycuda_is_reported_with_a_remedy(no_pycuda, monkeypatch):
    monkeypatch.setattr(report, "describe_backend", lambda setting, device: "cpu")
    table, rest = report.report().split("\n\n")
    header, cpu = table.splitlines()
    assert header.split() == ["device", "name", "memory", "free", "compute", "IPC"]
    assert cpu.startswith("cpu ") and cpu.endswith(" yes")
    assert f"{report.cores()} cores " in cpu and cpu.count(" GiB ") == 2
    why, automatic = rest.splitlines()
    assert why.startswith("There is no GPU to use: cuda0 needs PyCUDA") and 'pip install -e ".[cuda]"' in why
    assert automatic == "devices=auto computes on the cpu, backend cpu."


def test_gpus_are_listed_with_memory_ipc_and_peer_access(cuda_emulator):
    table, peers, rest = run(cuda_emulator, devices=3, peer="0-1", memory_mib=512).split("\n\n")
    gpus = [" ".join(line.split()) for line in table.splitlines()[2:]]
    assert gpus == [f"cuda{n} Emulated device {n} 0.5 GiB 0.5 GiB 9.0 yes" for n in range(3)]
    assert [line.split() for line in peers.splitlines()] == [
        ["peer", "access", "cuda0", "cuda1", "cuda2"],
        ["cuda0", "itself", "yes", "no"],
        ["cuda1", "yes", "itself", "no"],
        ["cuda2", "no", "no", "itself"],
    ]
    assert rest.startswith("devices=auto computes on ")


def test_gpu_without_ipc_is_reported(cuda_emulator):
    table, rest = run(cuda_emulator, devices=1, ipc=False).split("\n\n")
    assert table.splitlines()[2].endswith(" no")
    assert rest.startswith("memory of cuda0 cannot be shared with another process")


def test_driver_without_a_gpu_is_reported(cuda_emulator):
    text = run(cuda_emulator, devices=0)
    assert "There is no GPU to use: CUDA cannot be used here (cuInit failed: no CUDA-capable device" in text


@pytest.mark.parametrize("obstacle, gpus, sentence", [
    (None, ["cuda0", "cuda1"], "devices=auto computes on cuda0, backend jax."),
    (None, ["cuda1"], "devices=auto computes on the cpu, backend cpu"),        # cuda0 cannot be opened
    (None, [], "devices=auto computes on the cpu, backend cpu"),
    ("JAX is not installed", ["cuda0"], "; JAX is not installed."),
    ("JAX is not installed", [], "devices=auto computes on the cpu, backend cpu"),
])
def test_auto_selects_the_first_gpu_that_jax_supports(monkeypatch, obstacle, gpus, sentence):
    monkeypatch.setattr(report, "why_no_jax", lambda: obstacle)
    text = report.automatic([SimpleNamespace(name=name) for name in gpus])
    assert text.startswith("devices=auto computes on ") and sentence in text
    assert ("JAX" in text) == bool(obstacle and gpus)


@pytest.mark.parametrize("packages, why", [
    (["jax", "jax_plugins/xla_cuda13"], None),
    (["jax", "jax_plugins/metal"], "JAX is installed without CUDA"),
    (["jax"], "JAX is installed without CUDA"),
    ([], "JAX is not installed"),
])
def test_jax_support_is_detected_without_import(monkeypatch, tmp_path, packages, why):
    for package in packages:
        (tmp_path / package).mkdir(parents=True)
        (tmp_path / package / "__init__.py").write_text("raise AssertionError")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setitem(sys.modules, "jax", None)
    del sys.modules["jax"]
    text = report.why_no_jax()
    assert text is None if why is None else text.startswith(why)


class FakeUnsharedDevice(HostDevice):
    """A device whose memory is freed before another process opens it."""

    def allocate(self, nbytes):
        buffer = super().allocate(nbytes)
        handle = buffer.handle
        buffer.close()
        return SimpleNamespace(handle=handle, close=buffer.close)


def test_ipc_is_tested_by_another_process():
    with HostDevice() as device:
        assert ipc.why_no_ipc(device) is None
    with FakeUnsharedDevice() as device:
        assert "its owner must be alive" in ipc.why_no_ipc(device)


def test_death_of_the_ipc_test_process_is_reported(monkeypatch, capfd):
    monkeypatch.setattr(ipc, "try_to_open", int)         # int() fails on a pipe
    with HostDevice() as device:
        assert ipc.why_no_ipc(device) == "the process that was to open memory of cpu died"
    assert "TypeError" in capfd.readouterr().err
