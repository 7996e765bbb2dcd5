"""Restarts by the launcher: after kills the run ends as if nothing had happened; some failures are not restarted."""

import os
import random
import re
import signal
import time

import pytest

from alexnet.config import ConfigError
from alexnet.run import checkpoint_format
from multigpu.launch.signals import stop_notice
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

VICTIMS = "worker 0", "worker 1", "loader 0", "loader 1"
KILLS = int(os.environ.get("KILLS", "2"))        # random kills; 20 of 20 were seen to be survived


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """28 images: 7 steps per epoch of two workers with batch size 2."""
    return tiny.make_data(tmp_path_factory.mktemp("data") / "set", train=28, validation=9)


@pytest.fixture
def start(tmp_path, data):
    """Return a function that starts train.py with the tiny network."""
    runs = []

    def start(variables=None, **settings):
        runs.append(tiny_run(tmp_path, data, **settings))
        return runs[-1].start(**variables or {})

    yield start
    clean_up(runs)


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """Return the folder of a run without failures, and its seconds."""
    return undisturbed_run(tmp_path_factory.mktemp("undisturbed"), data)


@pytest.mark.parametrize("number", range(KILLS))
def test_randomly_killed_run_equals_an_undisturbed_one(start, undisturbed, number):
    folder, seconds = undisturbed
    draw = random.Random(f"kill {number}")
    victim = VICTIMS[number % len(VICTIMS)]
    run = start(max_restarts=3)
    time.sleep(draw.uniform(0, 0.9 * seconds))
    before = family(run.launcher.pid)
    pid = kill(run, victim)
    status, said = run.finish(120)
    assert status == 0, said
    assert pid is None or re.search(rf"^restart 1 of 3 from .*{pid}\) was killed by SIGKILL", said, re.MULTILINE), said
    assert_equal_runs(run.folder / "runs" / "run", folder)
    assert_clean(run, before)


def test_restarts_are_logged_and_continue_from_the_newest_checkpoint(start, undisturbed):
    run = start(max_restarts=2)
    wait_for_log(run, "iteration 10 of 24")
    first = kill(run, "worker 1")
    wait_for_log(run, "restart 1 of 2")
    wait_for_log(run, "iteration 18 of 24")
    second = kill(run, "worker 0")
    status, said = run.finish(60)
    assert status == 0, said
    log = (run.folder / "runs" / "run" / "log.txt").read_text()
    for number, pid, rank in ((1, first, 1), (2, second, 0)):
        line = rf"restart {number} of 2 from iteration (\d+): worker {rank} \(pid {pid}\) was killed by SIGKILL"
        for text in (said, log):
            assert re.search(line, text), text
        iteration = re.search(line, log)[1]
        assert f"resuming from {checkpoint_format.snapshot_path(run.folder / 'runs' / 'run', int(iteration))}" in log
    assert_equal_runs(run.folder / "runs" / "run", undisturbed[0])


def test_run_without_checkpoint_restarts_from_its_beginning(start, undisturbed):
    run = start(max_restarts=1, snapshot_iterations="null", snapshot_freq=99)
    wait_for_log(run, "iteration 5 of 24")
    pid = kill(run, "worker 1")
    status, said = run.finish(60)
    assert status == 0
    assert said.endswith(f"restart 1 of 1 from the beginning: worker 1 (pid {pid}) was killed by SIGKILL\n"), said
    assert_equal_runs(run.folder / "runs" / "run", undisturbed[0])
    assert [path.name for path in (run.folder / "runs").iterdir()] == ["run"]


def test_restart_resumes_an_older_checkpoint_again_if_none_was_saved(start, undisturbed):
    """The folder still has later checkpoints, which are not those of this start."""
    kept = start(keep_snapshots="null", n_iterations=12)
    assert kept.finish(60) == (0, "")
    older = checkpoint_format.snapshot_path(kept.folder / "runs" / "run", 5)
    given = {"resume_train": older, "max_restarts": 1, "snapshot_iterations": 99, "snapshot_freq": 99}
    run = start(**given, keep_snapshots="null", n_iterations=24)
    wait_for_log(run, "iteration 9 of 24")
    kill(run, "worker 1")
    status, said = run.finish(60)
    assert status == 0 and "restart 1 of 1 from iteration 5: " in said, said
    assert_equal_runs(run.folder / "runs" / "run", undisturbed[0])


@pytest.mark.parametrize("restarts", [1, 2])
def test_failures_after_the_last_restart_end_the_run(start, restarts):
    run = start(max_restarts=restarts)
    killed = []
    for _ in range(restarts + 1):                # during start-up, before anything is written
        while (pid := members(run).get("worker 1")) is None or pid in killed:
            assert run.launcher.poll() is None, run.error.read_text()
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)
    status, said = run.finish(60)
    *lines, last = said.splitlines()
    count = "1 restart" if restarts == 1 else "2 restarts"
    assert (status, last) == (1, f"failed after {count}: worker 1 (pid {killed[-1]}) was killed by SIGKILL")
    assert lines == [
        f"restart {number} of {restarts} from the beginning: worker 1 (pid {pid}) was killed by SIGKILL"
        for number, pid in enumerate(killed[:-1], 1)
    ]
    assert not (run.folder / "runs").exists()


def test_run_that_dies_after_its_last_checkpoint_is_complete(start, undisturbed):
    run = start(max_restarts=1, variables={"SLOW_SAVE": "0.5"}, snapshot_iterations="null", snapshot_freq=99)
    checkpoint = checkpoint_format.snapshot_path(run.folder / "runs" / "run", 24)
    while not checkpoint.exists():
        assert run.launcher.poll() is None, run.error.read_text()
        time.sleep(0.001)
    pid = kill(run, "worker 1")
    status, said = run.finish(60)
    assert status == 0, said
    line = f"restart 1 of 1 from iteration 24: worker 1 (pid {pid}) was killed by SIGKILL\n"
    assert pid is None or said.endswith(line), said
    assert_equal_runs(run.folder / "runs" / "run", undisturbed[0])


@pytest.mark.parametrize(("settings", "expected", "message"), [
    ({"learning_rate": 1e20}, 1, r"worker [01] \(pid \d+\): the cost became (nan|inf) at iteration .*"),
    ({"batch_size": 99}, 2, r"worker [01] \(pid \d+\): batch size 198 is larger than .*"),
    ({"rule": "easgd"}, 2, r"worker [01] \(pid \d+\): rule=easgd works over MPI, .*"),
])
def test_failure_that_would_recur_is_not_restarted(start, settings, expected, message):
    status, said = start(max_restarts=3, **settings).finish(60)
    assert status == expected
    assert re.fullmatch(f"{message}\n", said), said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_signal_ends_the_run_without_restart(start, number):
    run = start(max_restarts=3, n_iterations="null", n_epochs=10**6)
    wait_for_log(run, "iteration 5 of")
    before = family(run.launcher.pid)
    os.kill(run.launcher.pid, number)
    assert run.finish(60) == (128 + number, f"{stop_notice(number)}\nstopped by {number.name}\n")
    assert_clean(run, before)


def test_worker_that_dies_after_a_stop_signal_is_not_restarted(start):
    run = start(max_restarts=3, n_iterations="null", n_epochs=10**6, variables={"SLOW_SAVE": "3"}, snapshot_freq=10**6,
                snapshot_iterations="null")
    wait_for_log(run, "iteration 5 of")
    os.kill(run.launcher.pid, signal.SIGTERM)
    time.sleep(1)                                # worker 0 is saving
    pid = kill(run, "worker 0")
    assert run.finish(60) == (1, f"{stop_notice(signal.SIGTERM)}\nworker 0 (pid {pid}) was killed by SIGKILL\n")


def test_killed_launcher_ends_a_restarted_run(start):
    run = start(max_restarts=3, n_iterations="null", n_epochs=10**6)
    wait_for_log(run, "iteration 5 of")
    kill(run, "worker 1")
    wait_for_log(run, "restart 1 of 3")
    wait_for_log(run, "resuming from")
    status, said = run.kill(run.launcher.pid)
    assert status == -signal.SIGKILL
    assert said.endswith(f"the launcher (pid {run.launcher.pid}) died; its workers end\n")


def test_hand_started_worker_refuses_restarts(data, tmp_path):
    sentence = "max_restarts must be 0 for a worker started by hand, because only you can start it again, got 2"
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        tiny.settings(data, tmp_path, rank=0, size=2, device="cpu", max_restarts=2)
