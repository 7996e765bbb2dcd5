"""The emulated GPUs promise no more than CUDA: copies complete late, handles and contexts are checked.

Each test runs a program of tests/cuda_emulator/programs.py with the real PyCUDA in a separate process.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda_emulator import NotBuilt, build, find

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 60
N = 1024                                         # number of floats in the programs' buffers
ILLEGAL = "an illegal memory access was encountered"


class Program:
    """A running program that exchanges lines with the test; leaving the context kills it."""

    def __init__(self, emulator, name, *arguments, **settings):
        command = [sys.executable, "-m", "tests.cuda_emulator.programs", name, *map(str, arguments)]
        pipe = subprocess.PIPE
        environment = os.environ | emulator.environment(**settings)
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )

    def request(self, *lines):
        """Send each line and read its answer; return the last answer."""
        for line in lines:
            self.process.stdin.write(json.dumps(line) + "\n")
            self.process.stdin.flush()
            answer = self.receive()
        return answer

    def receive(self):
        """Read the next line of the program."""
        line = self.process.stdout.readline()
        assert line, self.process.communicate(timeout=SECONDS)[1]
        return json.loads(line)

    def end(self):
        """Ask the program to end; return its standard error."""
        assert self.request("end") == "ended"
        return self.ended()

    def ended(self, status=0):
        """Wait for the end with this status; return the standard error."""
        errors = self.process.communicate(timeout=SECONDS)[1]
        assert self.process.returncode == status, errors
        return errors

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.communicate(timeout=SECONDS)


@pytest.fixture
def start(cuda_emulator):
    """Return a function that starts a program: start(name, *arguments, **settings of the emulator)."""
    return lambda name, *arguments, **settings: Program(cuda_emulator, name, *arguments, **settings)


@pytest.fixture
def result_of(start):
    """Return a function that runs a program, checks its standard error, and returns its result."""

    def run(name, *arguments, says="", **settings):
        with start(name, *arguments, **settings) as program:
            result = program.receive()
            assert says in (errors := program.ended())
            assert says or not errors
            return result

    return run


# ---- late execution ----


def test_asynchronous_work_is_visible_after_synchronise(result_of):
    result = result_of("late")
    assert result["seen"] == dict.fromkeys(result["seen"], [result["new"], 1, 2.0, 0]) and len(result["seen"]) == 9


def test_calls_are_synchronous_without_delay(result_of):
    result = result_of("late", defer=0)
    assert result["seen"] == dict.fromkeys(result["seen"], [2.0, 0, 2.0, 0])


def test_copies_to_the_host_are_synchronous(result_of):
    assert result_of("prompt") == {"uploaded": [2.0, 0], "downloaded": [2.0, 0]}


def test_only_page_locked_memory_is_read_asynchronously(result_of):
    assert result_of("taken_over") == {
        "taken": [2.0, 3.0, 3.0],
        "registered": [0, 712, 0, 713],          # registered twice, unregistered twice
        "to the host": [0, 3.0, 3.0],
    }


def test_wait_completes_only_its_own_work(result_of):
    assert result_of("streams") == {
        "one of three streams": 2,
        "default stream": 1,
        "context": 0,
        "blocking stream": 0,
        "event": 1,
        "event of another stream": 1,
        "queries": [[False, 1], [False, 0], [False, 0], [True, 0]],
        "query of an idle stream": True,
    }


@pytest.mark.parametrize("defer", ["sync", 0, 2])
def test_streams_respect_events_of_other_streams(result_of, defer):
    left, result, expected = result_of("chain", defer=defer)
    assert (left, result) == (0, expected)


def test_synchronise_waits_for_one_device_and_its_peer_copies(result_of):
    assert result_of("contexts_apart") == {"result": 0, "left": [1, 3, 0], "copied": 3.0}


def test_delayed_copies_complete_without_a_wait(result_of):
    result = result_of("after_milliseconds", defer=50)
    assert (result["pending"], result["values"]) == ([1, 0, 0], [2.0, 2.0])
    assert result["waited"] > 0.045


# ---- kernels ----


def test_mean_kernel_is_bit_exact_and_checks_its_launch(result_of):
    result = result_of("kernels", says="kernel mean: device 0 has not enabled peer access to device 1")
    assert (result["equal"], result["result"]) == ([True, True, True], 0)
    assert result["refused"] == {
        "beyond the end": ILLEGAL,
        "no source": ILLEGAL,
        "another GPU's": ILLEGAL,
        "too many threads": "invalid argument",
        "too few parameters": "too many resources requested for launch",
        "no kernel of that name": "named symbol not found",
        "a kernel that C has not": "operation not supported",
        "no PTX": "a PTX JIT compilation failed - ",
        "machine code": "no kernel image is available for execution on the device - ",
        "another GPU's, enabled": "no error",
    }


# ---- devices and contexts ----


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_number_of_devices_is_configurable(result_of, count):
    assert result_of("devices", devices=count, memory_mib=64) == {
        "count": count,
        "beyond": "invalid device ordinal",
        "addresses": count,
        "same": True,
        "peers": [[int(a != b) for a in range(count)] for b in range(count)],
        "memory": 64,
    }


@pytest.mark.parametrize(
    ("peer", "expected"),
    [(False, [[0] * 4] * 4), ("0-1,2-3", [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])],
)
def test_peer_access_is_configurable(result_of, peer, expected):
    assert result_of("devices", devices=4, peer=peer)["peers"] == expected


def test_invalid_emulator_settings_are_refused(start):
    for settings, expected in (
        ({"devices": 0}, "no CUDA-capable device is detected"),
        ({"devices": 17}, "EMUCUDA_DEVICES must be a number from 0 to 16, got '17'"),
        ({"defer": "later"}, "EMUCUDA_DEFER must be a number from 0 to 60000, got 'later'"),
        ({"peer": "0-0"}, "EMUCUDA_PEER must be 0, 1 or pairs of devices such as 0-1,2-3, got '0-0'"),
    ):
        with start("devices", **settings) as program:
            assert expected in program.ended(status=1)


def test_calls_without_the_current_context_fail(result_of):
    assert result_of("contexts") == {
        "before init": 3,
        "none": 201,
        "current": 0,
        "in another thread": 201,
        "one primary context": True,
        "released once": 0,
        "stream of another": 400,
        "in a fork": 3,
        "released": 709,
        "destroyed": [0, 709],
        "left of ended contexts": 0,
    }


# ---- memory ----


def test_pointers_outside_allocations_are_refused(result_of):
    names = ["beyond the end", "before the start", "freed", "null", "host memory", "fill beyond the end"]
    wrong = dict.fromkeys(names, "invalid argument")
    freed = {"freed twice": 1, "freed in the middle": 1, "page-locked freed twice": [0, 1]}
    assert result_of("stray") == wrong | {"within": "no error"} | freed


def test_device_memory_used_as_host_memory_faults(start):
    with start("touch") as program:
        program.ended(status=-signal.SIGSEGV)


def test_new_memory_is_uninitialised(result_of):
    assert result_of("new_memory") == {"small": True, "ends": [0xA5, 0xA5]}


def test_processes_share_the_memory_of_a_device(start):
    with start("exhaust", 5, memory_mib=8) as some:
        assert some.receive() == {"pieces": 5, "error": "no error", "free": 3}
        with start("exhaust", 99, memory_mib=8) as rest:
            assert rest.receive() == {"pieces": 3, "error": "out of memory", "free": 0}
            some.process.kill()
            some.process.wait()
        with start("exhaust", 99, memory_mib=8) as all_of_it:
            assert all_of_it.receive()["pieces"] == 8


# ---- other processes ----


def test_handle_opens_the_allocation_in_another_process(start):
    with start("exporter") as exporter, start("importer") as importer:
        said = exporter.receive()
        assert said["handle"] == said["same"]    # for a pointer into the allocation and for its start
        assert importer.request(["open", said["handle"]]) == "no error"
        assert importer.request("look") == [1.0, 2.0 * N, True, 8 * N]
        assert importer.request("used") == 8 * N    # open in two processes, allocated once
        assert importer.request(["open", said["handle"]], "same") == 1      # again: the same pointer
        assert importer.request("close", "close") == 0
        assert (importer.end(), exporter.end()) == ("", "")


def test_unsynchronised_transfer_is_not_visible_to_others(start):
    with start("exporter") as exporter, start("importer") as importer:
        importer.request(["open", exporter.receive()["handle"]])
        assert importer.request(["write", 5.0, False]) == 1 and exporter.request("read") == 2.0 * N
        assert importer.request(["write", 6.0, True]) == 0 and exporter.request("read") == 6.0
        importer.end()


def test_invalid_handles_are_refused(start):
    with start("exporter") as exporter, start("importer") as importer:
        handle = exporter.receive()["handle"]
        assert exporter.request("own") == "invalid device context"
        assert importer.request(["open", "00" * 64]) == "invalid argument"
        exporter.request("free")
        assert importer.request(["open", handle]) == "invalid resource handle"
        exporter.end()
        assert importer.request(["open", handle]) == "invalid resource handle"
        importer.end()


def test_mapping_outlives_its_process(start):
    with start("exporter") as exporter, start("importer") as importer:
        importer.request(["open", exporter.receive()["handle"]])
        exporter.process.kill()
        exporter.process.wait()
        assert importer.request("look")[:2] == [1.0, 2.0 * N]
        importer.end()


def test_opened_memory_cannot_be_freed_or_exported(start):
    with start("exporter") as exporter, start("importer") as importer:
        importer.request(["open", exporter.receive()["handle"]])
        assert (importer.request("free"), importer.request("export")) == (1, "invalid argument")
        importer.end()


@pytest.mark.parametrize("strict", [True, False])
def test_freeing_memory_opened_elsewhere_is_detected(start, strict):
    with start("exporter", strict=strict) as exporter, start("importer") as importer:
        importer.request(["open", exporter.receive()["handle"]])
        if strict:
            exporter.process.stdin.write('"free"\n')
            exporter.process.stdin.flush()
            errors = exporter.ended(status=-signal.SIGABRT)
        else:
            exporter.request("free")
            errors = exporter.end()
        assert f"bytes of device 0 that process {importer.process.pid} still has open" in errors


def test_memory_of_another_device_needs_peer_access(start):
    for peer, opened in (True, "no error"), (False, "peer access is not supported between these two devices"):
        with start("exporter", 0, peer=peer) as exporter, start("importer", 1, peer=peer) as importer:
            assert importer.request(["open", exporter.receive()["handle"]]) == opened
            if peer:
                assert importer.request("look")[:2] == [1.0, 2.0 * N]
                assert importer.request("mean") == "no error"
            importer.end()


def test_handles_need_ipc(start):
    with start("exporter", ipc=False) as exporter:
        assert "cuIpcGetMemHandle failed: operation not supported" in exporter.ended(status=1)


def test_function_that_is_not_emulated_is_named(result_of, monkeypatch):
    assert result_of("not_emulated") == "operation not supported"
    monkeypatch.setenv("EMUCUDA_VERBOSE", "1")
    assert result_of("not_emulated", says="emucuda: cuCtxGetLimit is not emulated") == "operation not supported"


# ---- loading and building the emulator ----


def test_child_processes_have_devices(cuda_emulator):
    count = "import pycuda.driver as cuda; cuda.init(); print(cuda.Device.count(), flush=True)"
    program = f"""
import subprocess, sys
from tests.cuda_emulator import find, pending
find().load(devices=3)
{count}
print(pending(), flush=True)
subprocess.run([sys.executable, "-c", {count!r}], check=True)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert (done.stdout.split(), done.stderr) == (["3", "0", "3"], "")


def test_failed_build_has_one_reason_for_builder_and_tests(tmp_path, monkeypatch, capsys):
    for module in ("tests.cuda_emulator.build.", "tests.cuda_emulator."):
        monkeypatch.setattr(f"{module}REASON", tmp_path / "why.txt")
        monkeypatch.setattr(f"{module}CACHE", tmp_path)
    (tmp_path / "headers").mkdir()
    (tmp_path / "headers/cuda.h").write_text("#define CUDA_VERSION 13000\n", encoding="utf-8")
    monkeypatch.setattr(build, "toolkit_headers", lambda: tmp_path / "headers")
    monkeypatch.setenv("CC", "no-such-compiler")
    build.main()
    sentence = "the CUDA emulator cannot be built: no compiler was found"
    assert capsys.readouterr().out.startswith(sentence)
    with pytest.raises(NotBuilt, match=sentence):
        find()


def test_concurrent_builds_share_the_first_result(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "CACHE", tmp_path)
    with build.made(tmp_path / "it") as (first, _), build.made(tmp_path / "it") as (second, _):
        (first / "of").write_text("first", encoding="utf-8")
        (second / "of").write_text("second", encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["it"]
    assert (tmp_path / "it/of").read_text(encoding="utf-8") == "second"      # the inner block ends first
