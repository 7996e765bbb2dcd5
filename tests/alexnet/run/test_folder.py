"""Run folders: two runs never share one, one process at a time writes into one, and the newest is found by time."""

import os

import pytest

from alexnet.config import ConfigError
from alexnet.run import checkpoint_format, folder
from alexnet.run.checkpoint_format import CheckpointError


def test_taken_name_gets_a_number(tmp_path):
    names = [folder.new_folder(tmp_path / "runs" / "noon", exact=False).name for _ in range(3)]
    assert names == ["noon", "noon_2", "noon_3"]


def test_chosen_name_is_used_or_refused(tmp_path):
    run = tmp_path / "mine"
    assert folder.new_folder(run, exact=True) == run
    folder.check_new(run, exact=True)            # it is empty
    (run / "log.txt").touch()
    with pytest.raises(ConfigError, match=f"{run} exists and is not empty; give another name, or resume_train={run}"):
        folder.check_new(run, exact=True)


def test_lock_has_one_holder_whose_process_is_named(tmp_path):
    file = folder.lock(tmp_path)
    with pytest.raises(ConfigError, match=rf"process {os.getpid()} on \S+ is writing into {tmp_path}; wait until it"):
        folder.lock(tmp_path)
    os.close(file)
    os.close(folder.lock(tmp_path))


def run_at(time, path, checkpoint=True):
    """Create a run's folder whose files have a modification time."""
    path.mkdir()
    files = [path / "log.txt", *([checkpoint_format.snapshot_path(path, 7)] if checkpoint else [])]
    for file in files:
        file.touch()
        os.utime(file, (time, time))
    return path


def test_newest_run_is_the_last_saved(tmp_path):
    run_at(100, tmp_path / "zebra")
    apple = run_at(200, tmp_path / "apple")
    run_at(150, tmp_path / "older", checkpoint=False)
    killed = run_at(300, tmp_path / "killed", checkpoint=False)
    (tmp_path / "no run").mkdir()
    assert folder.newest_run(tmp_path) == (apple, [killed])
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        folder.newest_run(tmp_path / "empty")
