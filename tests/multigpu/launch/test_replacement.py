"""Replacement of killed workers during the training: the run ends as if nothing had happened, without a restart."""

import os
import random
import re
import signal
import time

import pytest

from tests import tiny
from tests.multigpu.launch.tiny_runs import (
    assert_clean,
    assert_equal_runs,
    kill,
    members,
    tiny_run,
    undisturbed_run,
    wait_for_log,
)
from tests.multigpu.runs import clean_up, family

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("KILLS", "1"))        # random kills; 50 of 50 were seen to be survived
COUNTS = 3, 2                                    # workers


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """48 images: 12 or 8 steps per epoch of two or three workers with batch size 2."""
    return tiny.make_data(tmp_path_factory.mktemp("data") / "set", train=48, validation=9)


def settings_of(workers):
    return {
        "exchange_what": "gradients", "devices": ",".join(["cpu"] * workers), "n_epochs": 3, "n_iterations": 22,
        "snapshot_iterations": 9, "keep_snapshots": "null",
    }


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """Return {number of workers: (the folder of a run without failures, its seconds)}."""
    folder = tmp_path_factory.mktemp("undisturbed")
    folders = {workers: folder / str(workers) for workers in COUNTS}
    for path in folders.values():
        path.mkdir()
    return {workers: undisturbed_run(path, data, **settings_of(workers)) for workers, path in folders.items()}


@pytest.fixture
def start(tmp_path, data):
    """Return a function that starts train.py with the tiny network, and replaces killed workers."""
    runs = []

    def start(workers=2, variables=None, **settings):
        runs.append(tiny_run(tmp_path, data, **settings_of(workers) | {"max_restarts": 4} | settings))
        return runs[-1].start(**variables or {})

    yield start
    clean_up(runs)


@pytest.mark.parametrize("number", range(KILLS))
def test_randomly_killed_run_equals_an_undisturbed_one(start, undisturbed, number):
    workers = COUNTS[number % 2]
    folder, seconds = undisturbed[workers]
    draw = random.Random(f"replacement {number}")
    run = start(workers)
    time.sleep(draw.uniform(0, seconds))
    before = family(run.launcher.pid)
    pid = kill(run, f"worker {draw.randrange(workers)}")
    status, said = run.finish(120)
    assert status == 0, said
    assert pid is None or re.match(rf"restart 1 of 4(, of worker . only| from .*): .*{pid}\) was killed", said), said
    assert_equal_runs(run.folder / "runs" / "run", folder)
    assert_clean(run, before)


def test_only_the_killed_worker_is_replaced(start, undisturbed):
    run = start(2)
    wait_for_log(run, "iteration 13 of")
    before = members(run)
    pid = kill(run, "worker 0")
    wait_for_log(run, "iteration 20 of")
    kept = members(run).values()
    assert before["worker 1"] in kept and pid not in kept
    status, said = run.finish(60)
    assert (status, said) == (0, f"restart 1 of 4, of worker 0 only: worker 0 (pid {pid}) was killed by SIGKILL\n")
    log = (run.folder / "runs" / "run" / "log.txt").read_text()
    assert said.strip() in log and "a worker was replaced; continuing after iteration 1" in log
    assert_equal_runs(run.folder / "runs" / "run", undisturbed[2][0])


def test_second_kill_before_the_replacement_works(start, undisturbed):
    run = start(3)
    wait_for_log(run, "iteration 10 of")
    before = set(members(run).values())
    kill(run, "worker 1")
    while not (new := set(members(run).values()) - before):
        time.sleep(0.01)
    os.kill(new.pop(), signal.SIGKILL)           # the replacement, while it starts
    wait_for_log(run, "restart 2 of 4, of worker 1 only")
    kill(run, "worker 0")                        # one of the two that hold the state
    status, said = run.finish(60)
    assert status == 0, said
    assert said.count(" only: ") == 3, said
    assert_equal_runs(run.folder / "runs" / "run", undisturbed[3][0])


def test_run_restarts_if_no_worker_holds_the_state(start, undisturbed):
    run = start(2)
    wait_for_log(run, "iteration 10 of")
    pids = [members(run)[f"worker {rank}"] for rank in (0, 1)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    status, said = run.finish(60)
    assert status == 0, said
    assert re.search(r"^restart \d of 4 from iteration 9: worker", said, re.MULTILINE), said
    assert_equal_runs(run.folder / "runs" / "run", undisturbed[2][0])


def test_replacement_of_rank_0_saves_the_checkpoint_that_it_did_not(start, undisturbed):
    run = start(2, variables={"SLOW_SAVE": "1"})
    wait_for_log(run, "iteration 18 of")
    time.sleep(0.3)
    kill(run, "worker 0")                        # while it saves
    status, said = run.finish(60)
    assert status == 0 and " only: " in said, said
    saved = [sorted(path.name for path in folder.glob("*.safetensors")) for folder in
             (run.folder / "runs" / "run", undisturbed[2][0])]
    assert saved[0] == saved[1]
    assert_equal_runs(run.folder / "runs" / "run", undisturbed[2][0])


def test_killed_launcher_ends_a_run_that_waits_for_a_replacement(start):
    run = start(2)
    wait_for_log(run, "iteration 5 of")
    kill(run, "worker 1")
    wait_for_log(run, "restart 1 of 4")
    status, said = run.kill(run.launcher.pid)
    assert status == -signal.SIGKILL
    assert f"the launcher (pid {run.launcher.pid}) died; its workers end\n" in said     # Python's may follow


def test_run_ends_after_the_last_replacement(start):
    run = start(2, max_restarts=1, n_iterations="null", n_epochs=10**6)
    wait_for_log(run, "iteration 5 of")
    kill(run, "worker 1")
    wait_for_log(run, "a worker was replaced")
    pid = kill(run, "worker 0")
    status, said = run.finish(60)
    assert status == 1
    assert f"\nfailed after 1 restart: worker 0 (pid {pid}) was killed by SIGKILL" in said, said


def test_stop_signal_during_a_replacement_saves(start):
    run = start(2, n_iterations="null", n_epochs=10**6)
    wait_for_log(run, "iteration 5 of")
    kill(run, "worker 1")
    wait_for_log(run, "restart 1 of 4")
    os.kill(run.launcher.pid, signal.SIGTERM)
    status, said = run.finish(60)
    assert status == 128 + signal.SIGTERM and said.endswith("stopped by SIGTERM\n"), said
    assert tiny.final(run.folder / "runs" / "run")
