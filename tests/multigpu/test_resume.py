"""Resuming a run as a user does: its settings, its data, what is refused, and that a refusal changes nothing."""

import os
import re
import shutil
import time

import pytest

from alexnet.config import ConfigError
from alexnet.data.dataset import open_dataset
from alexnet.run import checkpoint_format, folder
from alexnet.run.checkpoint_format import CheckpointError
from multigpu import train, worker
from multigpu.communicator import PipeCommunicator
from tests import tiny

pytestmark = pytest.mark.slow

NAMES = ("cat", "dog", "owl")


def start(*arguments):
    """Run train.py in this process, in the current folder."""
    worker.work(train.settings_of_run(arguments), "cpu", tiny.Line(), PipeCommunicator(0, {}))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with a data set, and a run that n_iterations has stopped within the first epoch."""
    place = tmp_path_factory.mktemp("place")
    tiny.make_data(place / "set", train=24, validation=4)
    given = {"run_name": "run", "n_iterations": 2, "learning_rate": 0.005, "keep_snapshots": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(worker, "open_dataset", open_named(NAMES))
        start("data=set", "model=tiny", "batch_size=4", *(f"{key}={value}" for key, value in given.items()))
    return place


@pytest.fixture
def run(place, tmp_path, monkeypatch):
    """Return a copy of the run, in a new folder that becomes the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(worker, "open_dataset", open_named(NAMES))
    return shutil.copytree(place / "runs" / "run", tmp_path / "runs" / "run")


def open_named(names):
    """Return open_dataset for a data set with class names."""
    return lambda *arguments: open_dataset(*arguments)._replace(class_names=names)


def content(place):
    return {path.name: path.read_bytes() for path in place.iterdir() if path.name != folder.LOCK}


@pytest.mark.parametrize(
    ("changes", "names", "message"),
    [
        ("n_iterations=3 model=caffenet", NAMES, "was saved with model 'tiny', this run has 'caffenet'"),
        ("n_iterations=3 update=adadelta", NAMES, "was saved with update momentum, this run has adadelta"),
        ("n_iterations=3 precision=bfloat16", NAMES, "precision bfloat16 needs backend=jax"),
        ("n_iterations=3", ("cat", "fox", "owl"), "class 1 of .* is 'dog', that of .* is 'fox'; resume with the run's"),
        ("momentum=0.5", NAMES, "n_iterations=2 is reached; set n_iterations=null to continue"),
    ],
)
def test_refused_resume_changes_nothing(run, monkeypatch, changes, names, message):
    before = content(run)
    monkeypatch.setattr(worker, "open_dataset", open_named(names))
    with pytest.raises((CheckpointError, ConfigError), match=message):
        start(f"resume_train={run}", *changes.split())
    assert content(run) == before


def test_settings_come_from_the_checkpoint_and_changes_are_logged(run, monkeypatch):
    (run / "config.yaml").write_text("model: caffenet\nbatch_size: 7\n")
    monkeypatch.chdir(run)                       # the run was started in another folder, with data=set
    start("resume_train=.", "n_iterations=3", "momentum=0.8")
    log = (run / "log.txt").read_text()
    assert "changed settings: n_iterations 2 -> 3, momentum 0.9 -> 0.8" in log
    assert "model: tiny" in (run / "config.yaml").read_text()
    assert checkpoint_format.load(checkpoint_format.latest(run))[1]["config"]["learning_rate"] == 0.005


def test_second_resume_is_refused_while_the_first_runs(run):
    holder = folder.lock(run)
    before = content(run)
    with pytest.raises(ConfigError, match=rf"process {os.getpid()} on \S+ is writing into {re.escape(str(run))}"):
        start(f"resume_train={run}", "n_iterations=3")
    os.close(holder)
    assert content(run) == before


def test_runs_of_one_second_have_folders_of_their_own(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda *_: "noon")
    given = f"data={place / 'set'}", "model=tiny", "batch_size=4", "n_iterations=1", "validation=false"
    both = [train.settings_of_run([*given, f"random_seed={seed}"]) for seed in (1, 2)]
    for config in both:
        worker.work(config, "cpu", tiny.Line(), PipeCommunicator(0, {}))
    seeds = {path.name: re.search("random_seed: (.)", (path / "config.yaml").read_text())[1]
             for path in (tmp_path / "runs").iterdir()}
    assert seeds == {"noon": "1", "noon_2": "2"}


def test_refused_new_run_leaves_no_folder(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="precision bfloat16 needs backend=jax"):
        start(f"data={place / 'set'}", "model=tiny", "batch_size=4", "precision=bfloat16")
    assert list(tmp_path.iterdir()) == []


def test_code_named_by_a_checkpoint_is_not_run_unasked(run):
    path = checkpoint_format.latest(run)
    arrays, metadata = checkpoint_format.load(path)
    checkpoint_format.save(path, arrays, metadata | {"config": metadata["config"] | {"rule": "os:system"}})
    with pytest.raises(ConfigError, match="was saved with rule=os:system; if you trust it, add rule=os:system"):
        start(f"resume_train={run}")
