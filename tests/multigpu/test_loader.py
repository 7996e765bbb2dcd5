"""The loader: it returns the same images as serial reading, reads during computation, and ends with its worker."""

import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from alexnet.data import batch_file
from alexnet.data.dataset import DataError, ReadError, Request, Segment, centre_crop, crop_stream, draw_crop
from multigpu.launch.process import describe_exit
from multigpu.loader import CopyFinished, LoaderDied, ParallelBatches, SerialBatches, sum_of_words
from tests.multigpu.device.fakes import Process
from tests.multigpu.fakes import workers
from tests.multigpu.fakes.loaders import LoaderToolbox
from tests.multigpu.fakes.workers import FAILING, SHAPE, UNREADABLE, Reader, ZeroReader, expected, request

pytestmark = pytest.mark.slow

WORKERS = Path(workers.__file__)


@pytest.fixture(scope="module")
def shared():
    """A loader without reading delay, shared by the tests that leave it usable."""
    with ParallelBatches((), SHAPE, "uint8", make_reader=Reader) as batches:
        yield batches


@pytest.fixture
def slow():
    """A loader whose reader takes a minute."""
    with ParallelBatches((60.0,), SHAPE, "uint8", make_reader=Reader) as batches:
        yield batches


def log_of_reads(path, count):
    """Return the first image numbers of the requests read so far, after `count` requests or two seconds."""
    for _ in range(200):
        reads = [int(line.split()[0]) for line in path.read_text().splitlines()] if path.exists() else []
        if len(reads) >= count:
            break
        time.sleep(0.01)
    return reads


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("slots", [2, 3])
def test_loader_yields_the_images_of_serial_reading(slots, dtype):
    requests = [request(start) for start in range(7)] + [request(7, images=5)]
    with SerialBatches((), SHAPE, dtype, make_reader=Reader) as batches:
        serial = [images.copy() for images in batches.read(requests)]
    with ParallelBatches((), SHAPE, dtype, slots, make_reader=Reader) as batches:
        parallel = []
        for images in batches.read(requests):
            time.sleep(0.01)                     # gives the loader time to overwrite a wrong slot
            parallel.append(images.copy())
    assert len(parallel) == len(serial) == 8
    for one, other, asked in zip(parallel, serial, requests, strict=True):
        np.testing.assert_array_equal(one, expected(asked, dtype))
        np.testing.assert_array_equal(other, one)


@pytest.mark.compatibility
@pytest.mark.parametrize("cropped", [False, True])
def test_loader_reads_batch_files_like_serial_reading(tmp_path, rng, cropped):
    files = [tmp_path / "0000.hkl", tmp_path / "0001.hkl"]
    stored = [rng.integers(0, 256, (3, 256, 256, 4), dtype=np.uint8) for _ in files]
    for path, images in zip(files, stored, strict=True):
        batch_file.write(path, images)
    mean = rng.uniform(100, 150, (3, 256, 256)).astype("float32")
    first, second = files
    pieces = [(Segment(first, 0, 3),), (Segment(first, 3, 4), Segment(second, 0, 2)), (Segment(second, 2, 4),)]
    crops = [draw_crop(crop_stream(1, 0, 0), 3, 227), draw_crop(crop_stream(1, 0, 1), 3, 227), centre_crop(2, 227)]
    requests = [Request(piece, crop if cropped else None) for piece, crop in zip(pieces, crops, strict=True)]
    shape, dtype = ((3, 227, 227, 3), "float32") if cropped else ((3, 256, 256, 3), "uint8")
    with SerialBatches((mean, 227), shape, dtype) as serial, ParallelBatches((mean, 227), shape, dtype) as parallel:
        serial = [images.copy() for images in serial.read(requests)]
        parallel = [images.copy() for images in parallel.read(requests)]
    for one, other in zip(parallel, serial, strict=True):
        np.testing.assert_array_equal(one, other)
    if not cropped:
        np.testing.assert_array_equal(np.concatenate(parallel, axis=3), np.concatenate(stored, axis=3))


@pytest.mark.parametrize("slots", [2, 3])
def test_free_slots_are_filled_during_the_computation(tmp_path, slots):
    with ParallelBatches((0.0, tmp_path / "log"), SHAPE, "uint8", slots, make_reader=Reader) as batches:
        images = batches.read(map(request, itertools.count()))
        next(images)
        assert log_of_reads(tmp_path / "log", slots) == list(range(slots))
        next(images)
        assert log_of_reads(tmp_path / "log", slots + 1) == list(range(slots + 1))


def test_chained_epochs_are_prefetched_without_a_gap(tmp_path):
    training, validation = (request(start) for start in (0, 1)), (request(start) for start in (50, 51))
    with ParallelBatches((0.0, tmp_path / "log"), SHAPE, "uint8", make_reader=Reader) as batches:
        images = batches.read(itertools.chain(training, validation))
        next(images)
        next(images)                             # the last of training; the loader reads the first of validation
        assert log_of_reads(tmp_path / "log", 3) == [0, 1, 50]


def test_images_are_not_sent_through_the_pipe():
    shape = (3, 256, 256, 8)                     # 1.5 MB
    with ParallelBatches((), shape, "uint8", make_reader=ZeroReader) as batches:
        list(batches.read([request(0)]))
        before = written_by(batches.loader_pid)
        assert len([None for _ in batches.read(map(request, range(10)))]) == 10
        assert written_by(batches.loader_pid) - before < 10_000


def written_by(pid):
    """Return the number of bytes that a process has written to files, pipes and sockets."""
    lines = Path(f"/proc/{pid}/io").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("wchar")))


def test_reading_overlaps_computation():
    seconds, n = 0.1, 10
    with ParallelBatches((seconds,), SHAPE, "uint8", make_reader=Reader) as batches:
        list(batches.read([request(0)]))         # wait until the loader has started
        batches.waited, began = 0.0, time.perf_counter()
        for _ in batches.read(map(request, range(n))):
            time.sleep(seconds)
        elapsed = time.perf_counter() - began
    assert elapsed <= 1.25 * n * seconds
    assert seconds <= batches.waited <= 0.5 * elapsed


def test_serial_reading_counts_as_waiting():
    with SerialBatches((0.05,), SHAPE, "uint8", make_reader=Reader) as batches:
        list(batches.read(map(request, range(4))))
    assert 0.2 <= batches.waited < 1


def test_reading_can_be_abandoned_and_restarted(shared):
    for _ in shared.read(map(request, itertools.count(100))):
        break
    for start, images in enumerate(shared.read(map(request, range(5)))):
        np.testing.assert_array_equal(images, expected(request(start)))


def test_second_open_reading_is_refused(shared):
    images = shared.read(map(request, range(5)))
    next(images)
    with pytest.raises(ValueError, match="another reading of these batches is still open"):
        next(shared.read([request(0)]))
    images.close()
    assert len(list(shared.read([request(0)]))) == 1


def test_empty_reading_yields_nothing(shared):
    assert list(shared.read([])) == []


@pytest.mark.parametrize("kind", [SerialBatches, ParallelBatches])
def test_unreadable_file_raises_data_error(kind):
    with kind((), SHAPE, "uint8", make_reader=Reader) as batches:
        images = batches.read([request(0), request(UNREADABLE), request(2)])
        next(images)
        with pytest.raises(DataError, match=f"^none.hkl has no image {UNREADABLE}$") as unreadable:
            next(images)
        assert next(batches.read([request(3)]))[0, 0, 0, 0] == 3
        with pytest.raises(ReadError, match=f"^the disk of none.hkl has failed at image {FAILING}$"):
            next(batches.read([request(FAILING)]))
        assert unreadable.type is DataError


@pytest.mark.parametrize("kind", [SerialBatches, ParallelBatches])
@pytest.mark.parametrize("images", [0, 9])
def test_request_larger_than_the_buffer_is_refused(kind, images):
    with (
        kind((), SHAPE, "uint8", make_reader=Reader) as batches,
        pytest.raises(ValueError, match=f"request of {images} images does not fit an input buffer of 8"),
    ):
        next(batches.read([request(0, images)]))


@pytest.mark.parametrize("kind", [SerialBatches, ParallelBatches])
def test_closed_batches_refuse_reading(kind):
    batches = kind((), SHAPE, "uint8", make_reader=Reader)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="these batches are closed"):
        next(batches.read([request(0)]))


def test_ring_of_one_is_refused():
    with pytest.raises(ValueError, match="at least 2 input buffers .* got 1"):
        ParallelBatches((), SHAPE, "uint8", slots=1, make_reader=Reader)


def test_killed_loader_raises_loader_died(slow):
    images = slow.read([request(0)])
    threading.Timer(1.0, os.kill, (slow.loader_pid, signal.SIGKILL)).start()
    began = time.perf_counter()
    with pytest.raises(LoaderDied, match=rf"^the loader \(pid {slow.loader_pid}\) was killed by SIGKILL$"):
        next(images)
    assert time.perf_counter() - began < 3


def test_on_death_is_called_during_a_computation():
    deaths = []
    with ParallelBatches((), SHAPE, "uint8", make_reader=Reader, on_death=deaths.append) as batches:
        next(batches.read([request(0)]))
        os.kill(batches.loader_pid, signal.SIGKILL)
        for _ in range(300):                     # the computation
            time.sleep(0.01 if not deaths else 0)
        assert deaths == [f"the loader (pid {batches.loader_pid}) was killed by SIGKILL"]
    assert len(deaths) == 1


def test_loader_that_dies_at_startup_raises():
    """A child cannot import this main module, so the arguments, which exceed the pipe's capacity, stay unread."""
    program = """
import numpy as np
from multigpu.loader import ParallelBatches
with ParallelBatches((np.zeros(10**6),), (3, 4, 4, 2), "uint8", make_reader=np.copy) as batches:
    next(batches.read(["no request"]))
"""
    done = subprocess.run([sys.executable, "-"], input=program, capture_output=True, text=True, timeout=20,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.stderr.splitlines()[-1].startswith("multigpu.loader.LoaderDied: the loader (pid ")


def test_on_death_is_not_called_after_close():
    deaths = []
    with ParallelBatches((), SHAPE, "uint8", make_reader=Reader, on_death=deaths.append) as batches:
        next(batches.read([request(0)]))
    time.sleep(0.2)
    assert deaths == []


def test_failing_reader_factory_raises_loader_died(capfd):
    with (
        ParallelBatches(("no number", None, None), SHAPE, "uint8", make_reader=Reader) as batches,
        pytest.raises(LoaderDied, match="ended with status 1"),
    ):
        next(batches.read([request(0)]))
    assert "TypeError" in capfd.readouterr().err


def test_close_kills_and_reaps_a_reading_loader(slow):
    slow._request_next(0, iter([request(0)]))
    time.sleep(1.0)
    began = time.perf_counter()
    slow.close()
    assert time.perf_counter() - began < 5
    assert not Path(f"/proc/{slow.loader_pid}").exists()


def test_idle_loader_exits_normally_on_close():
    batches = ParallelBatches((), SHAPE, "uint8", make_reader=Reader)
    next(batches.read([request(0)]))
    process = batches._process
    batches.close()
    assert process.exitcode == 0


def test_garbage_collected_loader_ends(tmp_path):
    batches = ParallelBatches((), SHAPE, "uint8", make_reader=Reader)
    next(batches.read([request(0)]))
    pid = batches.loader_pid
    del batches
    gc.collect()
    assert not Path(f"/proc/{pid}").exists()


def test_failed_program_leaves_no_loader(tmp_path):
    program = subprocess.run([sys.executable, WORKERS, "abandon", tmp_path], capture_output=True, timeout=20,
                             env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert program.returncode == 1
    assert is_gone(json.loads((tmp_path / "pids0").read_text())["loader"])


def test_loader_ignores_signals_of_the_group(shared):
    list(shared.read([request(0)]))
    os.kill(shared.loader_pid, signal.SIGINT)
    os.kill(shared.loader_pid, signal.SIGTERM)
    time.sleep(0.2)
    assert len(list(shared.read(map(request, range(3))))) == 3


@pytest.mark.parametrize("exitcode, description", [
    (3, "ended with status 3"), (-9, "was killed by SIGKILL"), (-40, "was killed by signal 40"),
])
def test_exit_code_is_described(exitcode, description):
    assert describe_exit(exitcode) == description


def test_default_reader_is_the_batch_reader(tmp_path):
    asked = Request((Segment(tmp_path / "missing.hkl", 0, 2),))
    with (
        ParallelBatches((np.zeros((3, 256, 256)), 227), (3, 256, 256, 2), "uint8") as batches,
        pytest.raises(DataError, match="missing.hkl is missing"),
    ):
        next(batches.read([asked]))


@pytest.fixture(scope="module", params=["cpu", "cuda0"])
def on_device(request):
    """Return a function that loads on a named device, in a process with emulated GPUs."""
    request.getfixturevalue("cuda_emulator")
    process = Process({}, LoaderToolbox)
    yield process.toolbox, request.param
    assert process.close() == 0


@pytest.mark.parametrize("slots", [2, 3])
def test_images_are_read_into_the_ring_of_the_device(on_device, slots):
    toolbox, name = on_device
    images, warned = toolbox.read(name, range(7), slots)
    assert [each.shape[3] for each in images] == [5, 8, 5, 8, 5, 8, 5]
    for start, each in enumerate(images):
        np.testing.assert_array_equal(each, expected(request(start, each.shape[3])))
    assert warned == []


def test_copy_finished_follows_all_copies(on_device):
    toolbox, name = on_device
    seen, exitcode = toolbox.watch(name, range(6))
    for number, (answer, pending, jax_is_imported, images) in enumerate(seen):
        words = sum_of_words(expected(request(number))) if name == "cpu" else None
        assert (answer, pending, jax_is_imported) == (CopyFinished(number % 2, words), 0, False)
        np.testing.assert_array_equal(images, expected(request(number)))
    assert exitcode == 0


def test_ring_is_usable_after_a_refused_request(on_device):
    toolbox, name = on_device
    error, (images,) = toolbox.read_unreadable(name, [0, 1, UNREADABLE, 2])
    assert error == f"none.hkl has no image {UNREADABLE}"
    np.testing.assert_array_equal(images, expected(request(3)))


@pytest.mark.parametrize("name", ["cpu", "cuda0"])
def test_loader_reports_slots_that_it_cannot_open(cuda_emulator, name, capfd):
    process = Process({}, LoaderToolbox)
    assert process.toolbox.load_into_closed_buffer(name) == 1
    process.close()
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("the loader cannot continue: ") and "its owner" in line


def test_without_ipc_the_ring_is_in_host_memory(cuda_emulator):
    process = Process({"ipc": False}, LoaderToolbox)
    images, (warning,) = process.toolbox.read("cuda0", range(4))
    for start, each in enumerate(images):
        np.testing.assert_array_equal(each, expected(request(start, each.shape[3])))
    assert "memory of cuda0 cannot be shared with another process" in warning
    assert warning.endswith("images are loaded into the host's memory, which is slower")
    process.close()
