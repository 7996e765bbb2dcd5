"""Checkpoints load back bit for bit; anything else is refused with a one-sentence error."""

import os
import pickle
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

from alexnet.native import atomic
from alexnet.run import checkpoint_format
from alexnet.run.checkpoint_format import CheckpointError, load, save

pytestmark = pytest.mark.slow

EXPECTED = {"W": ((2, 3), "float32"), "b": ((3,), "float32"), "step": ((), "int64")}


@pytest.fixture
def arrays(rng):
    return {
        "W": rng.standard_normal((2, 3), dtype="float32"),
        "b": rng.standard_normal(3, dtype="float32"),
        "step": np.array(7),
    }


@pytest.fixture
def path(tmp_path, arrays):
    """Return the path of a valid checkpoint."""
    path = tmp_path / "checkpoint_00000007.safetensors"
    save(path, arrays, {"model": "alexnet", "workers": 1})
    return path


def refusal(function, *arguments):
    with pytest.raises(CheckpointError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_arrays_are_restored_bit_for_bit(tmp_path):
    arrays = {
        "float": np.array([0.1, -0.0, np.nan, np.inf, 1e-45], dtype="float32"),
        "double": np.array([[0.1]]),
        "scalar": np.int64(-3),
        "flag": np.array([True, False]),
        "bytes": np.arange(256, dtype="uint8"),
        "empty": np.zeros((0, 3), dtype="float32"),
        "transposed": np.arange(6, dtype="float32").reshape(2, 3).T,
        "strided": np.arange(10, dtype="int32")[::3],
        "foreign order": np.arange(3, dtype=">f4"),
    }
    save(tmp_path / "file", arrays, {})
    loaded, _ = load(tmp_path / "file")
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        assert loaded[name].shape == array.shape
        assert loaded[name].dtype == array.dtype.newbyteorder("=")
        assert loaded[name].tobytes() == np.ascontiguousarray(array, loaded[name].dtype).tobytes()


def test_loaded_arrays_can_be_written_to(path):
    loaded, _ = load(path)
    loaded["W"][0, 0] = 5
    assert loaded["W"][0, 0] == 5


def test_metadata_is_restored(tmp_path):
    metadata = {"rate": 0.1 + 0.2, "errors": [0.5, float("inf")], "name": "größe\n\x00\"'", "nested": {"a": None}}
    save(tmp_path / "file", {}, metadata)
    assert load(tmp_path / "file") == ({}, metadata)
    save(tmp_path / "file", {}, {"error": np.float32(0.1), "epoch": np.int64(3)})
    assert load(tmp_path / "file")[1] == {"error": float(np.float32(0.1)), "epoch": 3}
    with pytest.raises(TypeError, match="must be representable in JSON"):
        save(tmp_path / "file", {}, {"path": tmp_path})


def test_saving_leaves_one_file(path, arrays):
    save(path, arrays, {"again": True})
    assert list(path.parent.iterdir()) == [path]
    assert load(path)[1] == {"again": True}


# ---- refused files


def test_empty_file_is_refused(path):
    path.write_bytes(b"")
    assert f"{path} is no checkpoint, or damaged" in refusal(load, path)


def test_truncated_file_is_refused_wherever_it_ends(path):
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert str(path) in refusal(load, path)


def test_every_flipped_bit_is_refused_or_changes_nothing(path):
    whole = path.read_bytes()
    arrays, metadata = load(path)
    unnoticed = 0
    for at in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[at // 8] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            found, stored = load(path)
        except CheckpointError as error:
            assert str(path) in str(error)
        else:
            unnoticed += 1
            assert stored == metadata
            assert found.keys() == arrays.keys()
            assert all(found[name].tobytes() == arrays[name].tobytes() for name in arrays)
    assert unnoticed < 8                            # whitespace of the header changed to other whitespace


def test_trailing_bytes_are_refused(path):
    path.write_bytes(path.read_bytes() + b"\0")
    assert str(path) in refusal(load, path)


@pytest.mark.parametrize("content", [b"PK\x03\x04" * 100, b"not a checkpoint", b"\x80" * 64, b"\xff" * 4096])
def test_other_file_formats_are_refused(path, content):
    path.write_bytes(content)
    assert "no checkpoint, or damaged" in refusal(load, path)


def test_pickle_is_refused_and_not_executed(path, tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    path.write_bytes(pickle.dumps(Payload()))
    assert "no checkpoint, or damaged" in refusal(load, path)
    assert not (tmp_path / "ran").exists()


def test_foreign_safetensors_file_is_refused(path, arrays):
    save_file(arrays, path, {"format": "np"})
    assert refusal(load, path) == f"{path} is a safetensors file, but no checkpoint of a run: it has no record"


def test_missing_file_and_folder_are_refused(tmp_path):
    assert refusal(load, tmp_path / "nothing") == f"there is no checkpoint {tmp_path / 'nothing'}"
    assert str(tmp_path) in refusal(load, tmp_path)


def test_newer_version_is_refused(path, arrays, monkeypatch):
    monkeypatch.setattr(checkpoint_format, "VERSION", 2)
    save(path, arrays, {})
    monkeypatch.undo()
    assert refusal(load, path) == f"{path} has format version 2, this program reads up to 1: use a newer one"


def test_matching_arrays_are_accepted(path):
    checkpoint_format.check_arrays(load(path)[0], EXPECTED, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": None}, "X has no array b, which this network needs"),
        ({"c": np.zeros(1)}, "X has an array c, which this network does not know"),
        ({"W": np.zeros((3, 2), dtype="float32")}, "X: W must have shape (2, 3), got (3, 2)"),
        ({"b": np.zeros(3)}, "X: b must be float32, got float64"),
    ],
)
def test_mismatched_arrays_are_refused(arrays, change, message):
    arrays = {name: array for name, array in (arrays | change).items() if array is not None}
    assert refusal(checkpoint_format.check_arrays, arrays, EXPECTED, "X") == message


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"model": "vgg"}, "X was saved with model 'alexnet', this run has 'vgg'"),
        ({"workers": 2}, "X was saved with workers 1, this run has 2"),
        ({"classes": 10}, "X was saved with classes None, this run has 10"),
    ],
)
def test_other_metadata_is_refused(path, expected, message):
    metadata = load(path)[1]
    checkpoint_format.check_metadata(metadata, {"model": "alexnet", "workers": 1}, "X")
    assert refusal(checkpoint_format.check_metadata, metadata, expected, "X") == message


# ---- full disks, kills, folders


def test_write_error_keeps_the_previous_file(path, arrays, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "sync", full)
    assert refusal(save, path, arrays, {"new": True}).endswith("No space left on device")
    assert load(path)[1] == {"model": "alexnet", "workers": 1}
    assert list(path.parent.iterdir()) == [path]


def test_saving_into_missing_folder_is_refused(tmp_path):
    assert "cannot be written" in refusal(save, tmp_path / "missing" / "file", {}, {})


def test_file_is_synced_before_rename_and_folder_after(path, arrays, monkeypatch):
    order = []
    monkeypatch.setattr(atomic, "sync", lambda at: order.append(("sync", at)))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(("replace", b)), replace(a, b)))
    save(path, arrays, {})
    partial = path.parent / f".{path.name}.partial" / path.name
    assert order == [("sync", partial), ("replace", path), ("sync", path.parent)]


SAVE_FOR_EVER = """
import itertools, sys
import numpy as np
from alexnet.run.checkpoint_format import save
array = np.zeros(1_000_000, dtype="float32")
for count in itertools.count(1):
    array[:] = count
    save(sys.argv[1], {"array": array}, {"count": count})
    if count == 2:
        print("ready", flush=True)
"""


def test_kill_while_saving_leaves_a_complete_file(tmp_path):
    path = tmp_path / "checkpoint_00000001.safetensors"
    for _ in range(10):
        command = [sys.executable, "-c", SAVE_FOR_EVER, path]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"ready\n"
            time.sleep(random.uniform(0, 0.03))
            process.send_signal(signal.SIGKILL)
        arrays, metadata = load(path)
        assert metadata["count"] >= 2
        assert (arrays["array"] == metadata["count"]).all()
        checkpoint_format.prune(tmp_path, 1)
        assert list(tmp_path.iterdir()) == [path]


def test_latest_is_the_newest_loadable_checkpoint(tmp_path):
    assert checkpoint_format.latest(tmp_path) is None
    assert checkpoint_format.latest(tmp_path / "missing") is None
    paths = [checkpoint_format.snapshot_path(tmp_path, iteration) for iteration in (9, 99_999_999, 100_000_000)]
    for path in paths:
        save(path, {}, {})
    (tmp_path / "checkpoint_last.safetensors").write_bytes(b"")
    assert checkpoint_format.latest(tmp_path) == paths[2]
    paths[2].write_bytes(b"")
    with pytest.warns(UserWarning, match="passed over: .*checkpoint_100000000.safetensors is no checkpoint"):
        assert checkpoint_format.latest(tmp_path) == paths[1]


def test_folder_with_only_damaged_checkpoints_is_refused(path):
    path.write_bytes(b"")
    with pytest.warns(UserWarning, match="passed over"):
        assert refusal(checkpoint_format.latest, path.parent) == f"none of the 1 checkpoints in {path.parent} loads"


def test_prune_keeps_newest_and_removes_partial_files(tmp_path):
    for iteration in (1, 20, 3):
        save(checkpoint_format.snapshot_path(tmp_path, iteration), {}, {})
    for name in ("checkpoint_00000021.safetensors", checkpoint_format.BEST):
        partial = tmp_path / f".{name}.partial"
        partial.mkdir()
        (partial / ".tmpTiu0qd").write_bytes(b"half")
    (tmp_path / "log.txt").write_text("kept")
    checkpoint_format.prune(tmp_path, None)
    assert [path.name[11:19] for path in checkpoint_format.snapshots(tmp_path)] == ["00000020", "00000003", "00000001"]
    checkpoint_format.prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint_00000003.safetensors",
        "checkpoint_00000020.safetensors",
        "log.txt",
    ]


def test_checkpoint_permissions_follow_the_umask(tmp_path):
    other = tmp_path / "other"
    other.touch()
    checkpoint_format.save(tmp_path / "checkpoint_00000001.safetensors", {"W": np.zeros(3, "float32")}, {})
    assert (tmp_path / "checkpoint_00000001.safetensors").stat().st_mode == other.stat().st_mode


# ---- the best checkpoint


def save_with_error(folder, iteration, error, keep):
    """Save a checkpoint as a run does after a validation; return its path."""
    path = checkpoint_format.snapshot_path(folder, iteration)
    save(path, {"W": np.full(3, iteration, "float32")}, {"validation_error": error})
    checkpoint_format.keep_best(path, error)
    checkpoint_format.prune(folder, keep, path)
    return path


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_best_checkpoint_survives_pruning(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "Operation not permitted")))
    best = tmp_path / checkpoint_format.BEST
    for iteration, error in ((1, 0.5), (2, 0.25), (3, 0.25), (4, 0.75)):
        path = save_with_error(tmp_path, iteration, error, keep=1)
        assert path.samefile(best) == (links and iteration < 3)                # no second copy is written
    assert checkpoint_format.snapshots(tmp_path) == [path]
    assert load(best)[0]["W"][0] == 2


def test_checkpoints_of_an_abandoned_branch_are_removed(tmp_path):
    """After a resume from iteration 2 of 4, iteration 4 is not the newest any more, and must not displace 3."""
    for iteration in (1, 2, 4):
        save(checkpoint_format.snapshot_path(tmp_path, iteration), {}, {})
    path = save_with_error(tmp_path, 3, 0.5, keep=2)
    assert checkpoint_format.snapshots(tmp_path) == [path, checkpoint_format.snapshot_path(tmp_path, 2)]
