"""Several workers through train.py: results equal those of one worker, and a killed process ends the whole run."""

import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from alexnet.run import checkpoint, checkpoint_format
from alexnet.run.recorder import read_records
from alexnet.training.network import build_model, build_network
from multigpu.launch.signals import stop_notice
from tests import tiny, tiny_train
from tests.multigpu.fakes import several_workers
from tests.multigpu.runs import Run, clean_up, family, lines

pytestmark = pytest.mark.slow

TINY, FAKES = Path(tiny_train.__file__), Path(several_workers.__file__)
GONE = 10.0                                      # seconds within which all processes must end
PLAIN = {"dropout_rate": 0, "rand_crop": "false", "learning_rate": 0.02}
GIVEN = {"model": "tiny", "n_epochs": 9, "n_iterations": 20, "print_freq": 1, "keep_snapshots": "null"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """28 images: 7 steps of 4."""
    return tiny.make_data(tmp_path_factory.mktemp("data") / "set", train=28, validation=9)


@pytest.fixture
def runs():
    started = []
    yield started
    clean_up(started)


def arguments_of(**settings):
    return [f"{key}={value}" for key, value in settings.items()]


def start(runs, folder, data, name="stderr", variables=None, **settings):
    """Start train.py with the tiny network; its output goes to a file next to that of its errors."""
    given = GIVEN | {"data": data, "output": folder / "runs"} | settings
    runs.append(Run(folder, arguments_of(**given), TINY, name))
    return runs[-1].start(**variables or {})


def trained(runs, folder, data, **settings):
    """Return the folder of a run after its successful end."""
    folder.mkdir(exist_ok=True)
    assert start(runs, folder, data, run_name="run", **settings).finish(60) == (0, "")
    return folder / "runs" / "run"


def state_of(folder, at=None):
    path = checkpoint_format.snapshot_path(folder, at) if at else checkpoint_format.latest(folder)
    return checkpoint_format.load(path)


def assert_close(folder, other, tolerance, at=None):
    arrays, others = state_of(folder, at)[0], state_of(other, at)[0]
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        scale = max(1e-6, np.abs(others[name]).max())
        np.testing.assert_allclose(array / scale, others[name] / scale, rtol=0, atol=tolerance, err_msg=name)


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
    """One worker with batch size 4, with checkpoints after steps 10 and 20, among others."""
    settings = GIVEN | {"snapshot_iterations": 10, "batch_size": 4} | PLAIN
    return tiny.run(data, tmp_path_factory.mktemp("one"), **settings)


@pytest.mark.compatibility
@pytest.mark.parametrize("what", ["weights_and_momentum", "gradients"])
def test_two_workers_match_one_of_twice_the_batch(runs, data, one, tmp_path, what):
    settings = {"devices": "cpu,cpu", "batch_size": 2, "snapshot_iterations": 10, "exchange_what": what} | PLAIN
    two = trained(runs, tmp_path, data, **settings)
    assert_close(two, one, 1e-5, at=10)
    assert_close(two, one, 1e-5, at=20)
    assert state_of(two)[1]["workers"] == 2
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]
    for theirs, ours in zip(read_records(two), read_records(one), strict=True):
        assert [theirs[field] for field in ("kind", "iteration", "images")] == [
            ours[field] for field in ("kind", "iteration", "images")
        ]
        assert theirs["cost"] == pytest.approx(ours["cost"], rel=1e-4)
        assert theirs["top1_error"] == pytest.approx(ours["top1_error"])


@pytest.mark.parametrize("what", ["weights_and_momentum", "gradients"])
def test_fine_tuning_matches_one_of_twice_the_batch(runs, data, one, tmp_path, what):
    """conv1 and conv2 keep the values of `one`, and only the other layers are exchanged."""
    begun = checkpoint_format.snapshot_path(one, 10)
    tuned = {"weights": begun, "frozen_layers": "conv1,conv2", "layer_rates": "fc4:3", "n_iterations": 6} | PLAIN
    alone = tiny.run(data, tmp_path, batch_size=4, **GIVEN | tuned | {"para_load": "false"})
    pair = {"devices": "cpu,cpu", "batch_size": 2, "exchange_what": what}
    two = trained(runs, tmp_path / "two", data, **tuned | pair)
    assert_close(two, alone, 1e-5)
    before, after = state_of(one, 10)[0], state_of(two)[0]
    for name in ("conv1.W", "conv1.b", "conv2.W", "conv2.b"):
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    assert not np.array_equal(after["fc4.W"], before["fc4.W"])


def test_resume_is_bit_exact_and_keeps_number_of_workers(runs, data, tmp_path):
    random = {"batch_size": 2, "devices": "cpu,cpu", "n_iterations": 12, "snapshot_iterations": 5}
    straight = trained(runs, tmp_path / "straight", data, **random)
    folder = tmp_path / "runs" / "run"
    shutil.copytree(straight, folder)
    for path in checkpoint_format.snapshots(folder):
        if path not in (checkpoint_format.snapshot_path(folder, 5), checkpoint_format.snapshot_path(folder, 7)):
            path.unlink()
    kept = shutil.copytree(folder, tmp_path / "kept")

    within = checkpoint_format.snapshot_path(folder, 5)
    again = start(runs, tmp_path, data, resume_train=within, **random)
    assert again.finish(60) == (0, "")
    assert_close(folder, straight, 0)
    timed = {"seconds", "calc", "sync", "comm", "wait", "at"}
    records = [[{key: record[key] for key in record.keys() - timed} for record in read_records(run)]
               for run in (folder, straight)]
    assert records[0] == records[1]

    config = tiny.settings(data, tmp_path)
    network = build_network(config, build_model(config, 3), np.full((3, 256, 256), 100, "float32"))
    within, border = (checkpoint_format.snapshot_path(kept, at) for at in (5, 7))
    sentence = r"within epoch 1, so workers \* batch_size must stay 2 \* 2, got 3 \* 2; a checkpoint between two epochs"
    with pytest.raises(checkpoint_format.CheckpointError, match=sentence):
        checkpoint.restore(checkpoint.load(within), network, tiny.settings(data, tmp_path, batch_size=2), workers=3)
    checkpoint.restore(checkpoint.load(within), network, tiny.settings(data, tmp_path, batch_size=4), workers=1)
    three = random | {"devices": "cpu,cpu,cpu", "average_every": 3}
    assert start(runs, tmp_path, data, resume_train=border, **three).finish(60) == (0, "")
    arrays, metadata = state_of(kept)
    assert (metadata["position"]["iteration"], metadata["workers"]) == (12, 3)
    assert all(np.isfinite(array).all() for array in arrays.values())


@pytest.mark.parametrize("recipes", [
    {"ema_decay": 0.9, "exchange_what": "weights"},
    {"ema_decay": 0.9, "update": "lars", "clip_norm": 1, "label_smoothing": 0.1, "lr_policy": "cosine",
     "pca_colour": 1, "random_resized_crop": 0.08, "use_data_layer": "false"},
], ids=["weights", "gradients"])
def test_resume_with_recipes_is_bit_exact(runs, data, tmp_path, recipes):
    changes = {"batch_size": 2, "devices": "cpu,cpu", "n_iterations": 12, "snapshot_iterations": 5} | recipes
    straight = trained(runs, tmp_path / "straight", data, **changes)
    fifth = checkpoint_format.snapshot_path(straight, 5)
    again = start(runs, tmp_path, data, resume_train=fifth, run_name="again", **changes)
    assert again.finish(60) == (0, "")
    assert_close(tmp_path / "runs" / "again", straight, 0)


def test_two_gpus_are_bit_identical_to_two_cpus(runs, data, tmp_path, cuda_emulator):
    variables = cuda_emulator.environment(devices=2)
    variables["PYTHONPATH"] = os.pathsep.join([variables["PYTHONPATH"], *filter(None, sys.path)])
    settings = {"backend": "cpu", "batch_size": 2, "n_iterations": 4, "run_name": "run"}
    for name, devices in (("gpus", "cuda0,cuda1"), ("cpus", "cpu,cpu")):
        (tmp_path / name).mkdir()
        run = start(runs, tmp_path / name, data, variables=variables, devices=devices, **settings)
        assert run.finish(60) == (0, "")
    assert_close(tmp_path / "gpus/runs/run", tmp_path / "cpus/runs/run", 0)
    status, said = start(runs, tmp_path, data, variables=variables, devices="cuda0,cuda2", **settings).finish(60)
    assert (status, len(lines(said))) == (2, 1)
    assert "there is no cuda2 on this machine" in said
    assert not (tmp_path / "runs").exists()


def test_hand_started_workers_train_and_stop_together(runs, data, one, tmp_path):
    both = {"batch_size": 2, "size": 2, "device": "cpu", "n_epochs": 10**6, "n_iterations": "null"} | PLAIN
    other = start(runs, tmp_path, data, "stderr1", rank=1, **both)
    first = start(runs, tmp_path, data, "stderr0", rank=0, run_name="run", **both)
    folder = tmp_path / "runs" / "run"
    end = time.monotonic() + 60
    while not (folder / "log.txt").exists() or "iteration 3 of" not in (folder / "log.txt").read_text():
        assert time.monotonic() < end and first.launcher.poll() is None, first.error.read_text()
        time.sleep(0.01)
    os.kill(other.launcher.pid, signal.SIGINT)
    assert other.finish() == (130, f"{stop_notice(signal.SIGINT)}\nstopped by SIGINT\n")
    assert first.finish() == (0, "")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]
    assert state_of(folder)[1]["position"]["iteration"] == read_records(folder)[-1]["iteration"]
    assert "stopped after" in (folder / "log.txt").read_text()
    assert "rank: null" in (folder / "config.yaml").read_text()


def test_different_settings_are_refused_in_both_terminals(runs, data, tmp_path):
    both = {"batch_size": 2, "size": 2, "device": "cpu"}
    other = start(runs, tmp_path, data, "stderr1", rank=1, learning_rate=0.5, **both)
    first = start(runs, tmp_path, data, "stderr0", rank=0, run_name="run", **both)
    for run in (other, first):
        status, said = run.finish(60)
        assert status == 2
        assert len(lines(said)) == 1 and "workers 0 and 1 differ in learning_rate: 0.01 and 0.5" in said


def test_nan_cost_ends_all_workers_with_one_sentence(runs, data, tmp_path):
    settings = {"devices": "cpu,cpu", "batch_size": 2, "learning_rate": 1e20, "run_name": "run"}
    status, said = start(runs, tmp_path, data, **settings).finish(60)
    assert status == 1
    sentence = r"worker [01] \(pid \d+\): the cost became (nan|inf) at iteration \d+, .*; no checkpoint was saved .*\n"
    assert re.fullmatch(sentence, said), said


@pytest.mark.parametrize("restarts", [0, 1])
def test_flipped_bit_ends_all_workers_before_a_checkpoint(runs, data, tmp_path, restarts):
    """A restart from the checkpoint before cures it."""
    settings = {"devices": "cpu,cpu", "batch_size": 2, "exchange_what": "gradients", "snapshot_iterations": 2,
                "run_name": "run", "n_iterations": 6, "max_restarts": restarts}
    flip = {"FLIP": f"1,4,{tmp_path / 'flipped'}"}
    status, said = start(runs, tmp_path, data, variables=flip, **settings).finish(60)
    sentence = (
        r"worker [01] \(pid \d+\): after step 4 weights or velocities of workers 0 and 1 differ: an error of memory or "
        r"processor; resume .*; the last good checkpoint is .*_00000002\.safetensors\n"
    )
    assert status == 1 - restarts
    assert re.fullmatch(r"(restart 1 of 1 from iteration 2: )?" + sentence, said), said
    saved = [checkpoint_format.iteration_of(path) for path in checkpoint_format.snapshots(tmp_path / "runs" / "run")]
    assert saved == ([6, 4, 2] if restarts else [2])


# ---- killed processes

POINTS = [                                       # (point where a worker pauses, its rank, the process that is killed)
    ("starting", 1, "worker 0"),
    ("connecting", 1, "worker 1"),
    ("loading", 1, "worker 0"),
    ("computing", 1, "loader 1"),
    ("before Ready", 0, "worker 1"),
    ("between Ready and Done", 1, "worker 1"),
    ("between Ready and Done", 0, "launcher"),
    ("validating", 1, "worker 1"),
    ("before the sums", 0, "worker 1"),
    ("saving", 0, "worker 0"),
    ("saving", 0, "loader 1"),
    ("closing", 1, "worker 0"),
]


@pytest.mark.parametrize("settings", [
    {}, {"exchange_what": "gradients"}, {"exchange_what": "factors"},
])
def test_lost_images_end_all_workers_after_one_checkpoint(runs, tmp_path, settings):
    data = tiny.make_data(tmp_path / "set", train=28, validation=9)
    run = start(runs, tmp_path, data, run_name="run", devices="cpu,cpu", batch_size=2, n_epochs=10**6,
                n_iterations="null", validation="false", **settings)
    records = tmp_path / "runs" / "run" / "records.jsonl"
    deadline = time.monotonic() + 60
    while not (records.exists() and records.read_text().count("\n") > 5):
        assert time.monotonic() < deadline and run.launcher.poll() is None, run.error.read_text()
        time.sleep(0.05)
    (data / "train_hkl_b8_b_8" / "0001.hkl").unlink()
    status, error = run.finish(60)
    assert status == 2
    assert len(lines(error)) == 1 and "0001.hkl is missing" in error
    folder = tmp_path / "runs" / "run"
    arrays, _ = state_of(folder)
    steps = [record["iteration"] for record in read_records(folder) if record["kind"] == "train"]
    assert checkpoint_format.latest(folder) == checkpoint_format.snapshot_path(folder, steps[-1])
    assert all(np.isfinite(array).all() for array in arrays.values())


def paused(runs, folder, point, pausing, name="stderr", **settings):
    """Start a run of the fakes in which worker `pausing` pauses at the point."""
    given = {"output": folder, "n_epochs": 1 if point in ("closing", "saving") else 3, "warmup_epochs": 0} | settings
    runs.append(Run(folder, arguments_of(**given), FAKES, name))
    return runs[-1].start(PAUSE=f"{point},{pausing}")


def pid_of(run, who):
    return run.launcher.pid if who == "launcher" else run.wait_for(who.replace(" ", ""))


def sentence_of(who, pid, run):
    """Return the expected message about the killed process."""
    kind, _, rank = who.partition(" ")
    if kind == "launcher":
        return rf"the launcher \(pid {pid}\) died; its workers end"
    killed = rf"\(pid {pid}\) was killed by SIGKILL"
    return rf"worker {rank} {killed}" if kind == "worker" else rf"worker {rank} \(pid \d+\): the loader {killed}"


@pytest.mark.parametrize(("point", "rank", "victim"), POINTS)
def test_killed_process_is_named_and_ends_all(runs, tmp_path, point, rank, victim):
    run = paused(runs, tmp_path, point, rank, devices="cpu,cpu")
    run.wait_for("reached")
    time.sleep(0.1)                              # the others reach the point where they wait for it
    pid = pid_of(run, victim)
    sentence = sentence_of(victim, pid, run)
    status, said = run.kill(pid)
    assert status == (-signal.SIGKILL if victim == "launcher" else 1)
    assert re.fullmatch(sentence, said.strip()), said


@pytest.mark.parametrize(
    ("point", "victim"), [("computing", "worker"), ("computing", "launcher"), ("before the sums", "worker")]
)
def test_kill_in_one_terminal_ends_the_other(runs, tmp_path, point, victim):
    both = {"size": 2, "device": "cpu"}
    other = paused(runs, tmp_path, point, 0, "stderr1", rank=1, **both)
    first = paused(runs, tmp_path, point, 0, "stderr0", rank=0, run_name="run", **both)
    first.wait_for("reached")
    members = family(first.launcher.pid)
    began = time.monotonic()
    other.kill(pid_of(other, "launcher" if victim == "launcher" else "worker 1"))
    status, said = first.all_gone(members, GONE)
    assert time.monotonic() - began < GONE
    assert status == 1
    assert re.fullmatch(r"worker 0 \(pid \d+\): worker 1 .*has died.*", said.strip()), said


def test_kill_during_rendezvous_ends_the_other(runs, tmp_path):
    both = {"size": 3, "device": "cpu"}
    first = paused(runs, tmp_path, "", 0, "stderr0", rank=0, run_name="run", **both)
    other = paused(runs, tmp_path, "", 0, "stderr1", rank=1, **both)
    end = time.monotonic() + 20
    while "rank 2 of 3" not in first.printed():
        assert time.monotonic() < end
        time.sleep(0.01)
    members = family(first.launcher.pid)
    other.kill(other.launcher.pid)
    status, said = first.all_gone(members, GONE)
    assert status == 1
    assert re.fullmatch(r"worker 0 \(pid \d+\): worker 1 \(pid \d+\) has died before all workers had connected\n", said)


def test_duplicate_rank_is_refused_in_both_terminals(runs, tmp_path):
    both = {"size": 3, "device": "cpu", "rank": 1}
    twins = [paused(runs, tmp_path, "", 0, f"stderr{twin}", **both) for twin in (1, 2)]
    first = paused(runs, tmp_path, "", 0, "stderr0", run_name="run", **both | {"rank": 0})
    for run in (first, *twins):
        status, said = run.finish()
        assert status == 2
        assert len(lines(said)) == 1 and "rank 1 was started twice" in said
