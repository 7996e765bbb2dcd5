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

    def tell(self, *lines):
        """Send each line and read its answer; return the last answer."""
        for line in lines:
            self.process.stdin.write(json.dumps(line) + "\n")
            self.process.stdin.flush()
            answer = self.hear()
        return answer

    def hear(self):
        """Read the next line of the program."""
        line = self.process.stdout.readline()
        assert line, self.process.communicate(timeout=SECONDS)[1]
        return json.loads(line)

    def end(self):
        """Ask the program to end; return its standard error."""
        assert self.tell("end") == "ended"
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
            result = program.hear()
            assert says in (errors := program.ended())
            assert says or not errors
            return result

    return run


# ---- late execution ----


def test_what_may_end_late_is_seen_only_after_a_synchronise(result_of):
    result = result_of("late")
    assert result["seen"] == dict.fromkeys(result["seen"], [result["new"], 1, 2.0, 0]) and len(result["seen"]) == 9


def test_without_delay_everything_has_ended_when_its_call_returns(result_of):
    result = result_of("late", defer=0)
    assert result["seen"] == dict.fromkeys(result["seen"], [2.0, 0, 2.0, 0])


def test_copies_of_page_locked_memory_and_to_the_host_have_ended_when_they_return(result_of):
    assert result_of("prompt") == {"uploaded": [2.0, 0], "downloaded": [2.0, 0]}


def test_pageable_memory_is_taken_over_and_page_locked_memory_is_read_late(result_of):
    assert result_of("taken_over") == {
        "taken": [2.0, 3.0, 3.0],
        "registered": [0, 712, 0, 713],          # registered twice, unregistered twice
        "to the host": [0, 3.0, 3.0],
    }


def test_a_wait_ends_what_it_waits_for_and_no_more(result_of):
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
def test_streams_that_wait_for_each_others_events_are_executed_in_that_order(result_of, defer):
    left, result, expected = result_of("chain", defer=defer)
    assert (left, result) == (0, expected)


def test_one_device_is_waited_for_without_the_other_unless_a_peer_copy_needs_both(result_of):
    assert result_of("contexts_apart") == {"result": 0, "left": [1, 3, 0], "copied": 3.0}


def test_with_a_delay_copies_end_by_themselves_and_a_wait_takes_its_time(result_of):
    result = result_of("after_milliseconds", defer=50)
    assert (result["pending"], result["values"]) == ([1, 0, 0], [2.0, 2.0])
    assert result["waited"] > 0.045


# ---- kernels ----


def test_the_mean_kernel_gives_the_bits_of_its_formula_and_wrong_launches_are_refused(result_of):
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
def test_there_are_as_many_devices_as_asked_for_and_all_reach_each_other(result_of, count):
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
def test_devices_reach_each_other_as_asked_for(result_of, peer, expected):
    assert result_of("devices", devices=4, peer=peer)["peers"] == expected


def test_no_device_and_wrong_settings_are_refused(start):
    for settings, expected in (
        ({"devices": 0}, "no CUDA-capable device is detected"),
        ({"devices": 17}, "EMUCUDA_DEVICES must be a number from 0 to 16, got '17'"),
        ({"defer": "later"}, "EMUCUDA_DEFER must be a number from 0 to 60000, got 'later'"),
        ({"peer": "0-0"}, "EMUCUDA_PEER must be 0, 1 or pairs of devices such as 0-1,2-3, got '0-0'"),
    ):
        with start("devices", **settings) as program:
            assert expected in program.ended(status=1)


def test_calls_without_the_right_context_fail(result_of):
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


def test_pointers_and_sizes_that_no_allocation_holds_are_refused(result_of):
    names = ["beyond the end", "before the start", "freed", "null", "host memory", "fill beyond the end"]
    wrong = dict.fromkeys(names, "invalid argument")
    freed = {"freed twice": 1, "freed in the middle": 1, "page-locked freed twice": [0, 1]}
    assert result_of("stray") == wrong | {"within": "no error"} | freed


def test_device_memory_taken_for_host_memory_faults(start):
    with start("touch") as program:
        program.ended(status=-signal.SIGSEGV)


def test_new_memory_is_not_zero(result_of):
    assert result_of("new_memory") == {"small": True, "ends": [0xA5, 0xA5]}


def test_memory_is_exhausted_by_all_processes_of_a_device_together_and_comes_back(start):
    with start("exhaust", 5, memory_mib=8) as some:
        assert some.hear() == {"pieces": 5, "error": "no error", "free": 3}
        with start("exhaust", 99, memory_mib=8) as rest:
            assert rest.hear() == {"pieces": 3, "error": "out of memory", "free": 0}
            some.process.kill()
            some.process.wait()
        with start("exhaust", 99, memory_mib=8) as all_of_it:
            assert all_of_it.hear()["pieces"] == 8


# ---- other processes ----


def test_a_handle_names_the_whole_allocation_and_opens_it_in_another_process(start):
    with start("exporter") as exporter, start("importer") as importer:
        said = exporter.hear()
        assert said["handle"] == said["same"]    # for a pointer into the allocation and for its start
        assert importer.tell(["open", said["handle"]]) == "no error"
        assert importer.tell("look") == [1.0, 2.0 * N, True, 8 * N]
        assert importer.tell("used") == 8 * N    # open in two processes, allocated once
        assert importer.tell(["open", said["handle"]], "same") == 1      # again: the same pointer
        assert importer.tell("close", "close") == 0
        assert (importer.end(), exporter.end()) == ("", "")


def test_a_one_way_transfer_that_is_not_synchronised_does_not_arrive(start):
    with start("exporter") as exporter, start("importer") as importer:
        importer.tell(["open", exporter.hear()["handle"]])
        assert importer.tell(["write", 5.0, False]) == 1 and exporter.tell("read") == 2.0 * N
        assert importer.tell(["write", 6.0, True]) == 0 and exporter.tell("read") == 6.0
        importer.end()


def test_handles_that_are_ones_own_or_garbage_or_stale_or_of_the_dead_are_refused(start):
    with start("exporter") as exporter, start("importer") as importer:
        handle = exporter.hear()["handle"]
        assert exporter.tell("own") == "invalid device context"
        assert importer.tell(["open", "00" * 64]) == "invalid argument"
        exporter.tell("free")
        assert importer.tell(["open", handle]) == "invalid resource handle"
        exporter.end()
        assert importer.tell(["open", handle]) == "invalid resource handle"
        importer.end()


def test_a_mapping_outlives_the_process_that_it_is_of(start):
    with start("exporter") as exporter, start("importer") as importer:
        importer.tell(["open", exporter.hear()["handle"]])
        exporter.process.kill()
        exporter.process.wait()
        assert importer.tell("look")[:2] == [1.0, 2.0 * N]
        importer.end()


def test_memory_of_another_process_is_neither_freed_nor_exported(start):
    with start("exporter") as exporter, start("importer") as importer:
        importer.tell(["open", exporter.hear()["handle"]])
        assert (importer.tell("free"), importer.tell("export")) == (1, "invalid argument")
        importer.end()


@pytest.mark.parametrize("strict", [True, False])
def test_freeing_memory_that_another_process_has_open_is_noticed(start, strict):
    with start("exporter", strict=strict) as exporter, start("importer") as importer:
        importer.tell(["open", exporter.hear()["handle"]])
        if strict:
            exporter.process.stdin.write('"free"\n')
            exporter.process.stdin.flush()
            errors = exporter.ended(status=-signal.SIGABRT)
        else:
            exporter.tell("free")
            errors = exporter.end()
        assert f"bytes of device 0 that process {importer.process.pid} still has open" in errors


def test_memory_of_another_device_is_opened_and_read_only_with_peer_access(start):
    for peer, opened in (True, "no error"), (False, "peer access is not supported between these two devices"):
        with start("exporter", 0, peer=peer) as exporter, start("importer", 1, peer=peer) as importer:
            assert importer.tell(["open", exporter.hear()["handle"]]) == opened
            if peer:
                assert importer.tell("look")[:2] == [1.0, 2.0 * N]
                assert importer.tell("mean") == "no error"
            importer.end()


def test_without_ipc_there_are_no_handles(start):
    with start("exporter", ipc=False) as exporter:
        assert "cuIpcGetMemHandle failed: operation not supported" in exporter.ended(status=1)


def test_what_is_not_emulated_says_its_name_where_asked(result_of, monkeypatch):
    assert result_of("not_emulated") == "operation not supported"
    monkeypatch.setenv("EMUCUDA_VERBOSE", "1")
    assert result_of("not_emulated", says="emucuda: cuCtxGetLimit is not emulated") == "operation not supported"


# ---- loading and building the emulator ----


def test_a_process_that_loads_it_has_devices_and_so_has_its_child(cuda_emulator):
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


def test_where_it_cannot_be_built_one_sentence_says_why_to_builder_and_tests(tmp_path, monkeypatch, capsys):
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


def test_two_who_build_at_once_both_get_the_first_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "CACHE", tmp_path)
    with build.made(tmp_path / "it") as (first, _), build.made(tmp_path / "it") as (second, _):
        (first / "of").write_text("first", encoding="utf-8")
        (second / "of").write_text("second", encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["it"]
    assert (tmp_path / "it/of").read_text(encoding="utf-8") == "second"      # the inner block ends first
