"""The launcher: if any process dies, the whole run ends within 5 s and one message names the first cause."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from multigpu.launcher import cores
from tests.multigpu.runs import Run, clean_up, family, lines


@pytest.fixture
def run(tmp_path):
    runs = []

    def prepare(function, **settings):
        values = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        runs.append(Run(tmp_path, [function, tmp_path, *values]))
        return runs[-1]

    yield prepare
    clean_up(runs)


def test_run_that_ends_by_itself_has_status_0_and_says_nothing(run):
    train = run("train", steps=3, devices=["cpu", "cpu"]).start()
    assert train.finish() == (0, "")
    assert train.wait_for("step0") == train.wait_for("step1") == 2
    assert train.wait_for("pids1")["size"] == 2


@pytest.mark.parametrize("devices, given, expected", [
    (["cpu"], {}, max(1, cores())), (["cpu", "cpu"], {}, max(1, cores() // 2)), (["cpu"], {"OMP_NUM_THREADS": "7"}, 7),
])
def test_workers_share_the_cores_and_the_loader_takes_one(run, devices, given, expected):
    train = run("train", steps=1, devices=devices).start(**given)
    assert train.finish() == (0, "")
    assert train.wait_for("pids0")["threads"] == str(expected)
    assert (train.folder / "reads0").read_text() == "0 1\n"


@pytest.mark.parametrize("moment, settings", [
    ("reading", {"reading": 60.0}),
    ("computing", {"computing": 60.0}),
    ("between epochs", {"between": 60.0, "steps": 2}),
])
@pytest.mark.parametrize("victim", ["loader", "worker", "launcher"])
def test_killed_process_ends_the_run_in_time(run, victim, moment, settings):
    train = run("train", **settings).start()
    if moment == "reading":
        train.wait_for_reading(0)
    elif moment == "computing":
        train.wait_for("computing0")
    else:
        train.wait_for("between0")
    pid, worker = train.pid(victim), train.pid("worker")
    status, said = train.kill(pid)
    assert status == (-signal.SIGKILL if victim == "launcher" else 1)
    sentence = {
        "loader": rf"worker 0 \(pid {worker}\): the loader \(pid {pid}\) was killed by SIGKILL",
        "worker": rf"worker 0 \(pid {worker}\) was killed by SIGKILL",
        "launcher": rf"the launcher \(pid {pid}\) died; its workers end",
    }[victim]
    assert len(lines(said)) == 1 and re.fullmatch(sentence, said.strip()), said
    assert not (train.folder / "saved0").exists()


@pytest.mark.parametrize("delay", [0.02, 0.2, 0.5])
def test_launcher_killed_while_its_worker_starts_leaves_nobody(run, delay):
    train = run("train", computing=60.0).start()
    while len(family(train.launcher.pid)) < 3:   # launcher, resource tracker, worker
        time.sleep(0.002)
    time.sleep(delay)
    status, _ = train.kill(train.launcher.pid)
    assert status == -signal.SIGKILL


def test_dead_worker_ends_its_partner_and_is_the_one_named(run):
    train = run("train", devices=["cpu", "cpu"], steps=10**6).start()
    train.wait_for("step0")
    train.wait_for("step1")
    pid = train.pid("worker", 1)
    status, said = train.kill(pid)
    assert (status, lines(said)) == (1, [f"worker 1 (pid {pid}) was killed by SIGKILL"])


def test_partner_that_hears_nothing_is_killed(run):
    train = run("never_stop", devices=["cpu", "cpu"]).start()
    train.wait_for("computing0")
    train.wait_for("computing1")
    pid = next(child.pid for child in family(train.launcher.pid) if b"spawn_main" in command_of(child.pid))
    status, said = train.kill(pid)
    assert status == 1
    assert len(lines(said)) == 1 and f"(pid {pid}) was killed by SIGKILL" in said


def command_of(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize("error, devices", [("config", ["cpu"]), ("data", ["cpu"]), ("data", ["cpu", "cpu"])])
def test_error_of_the_user_is_one_sentence_and_status_2(run, error, devices):
    status, said = run("fail", error=error, devices=devices).start().finish()
    assert status == 2
    assert re.fullmatch(rf"worker {len(devices) - 1} \(pid \d+\): the {error} is wrong\n", said), said


@pytest.mark.parametrize("error, sentence, expected", [
    ("data", r"worker 1 \(pid \d+\): the data is wrong\n", 2),
    ("own", r"worker 0 \(pid \d+\): the own is wrong\n", 2),
    (None, r"worker 0 \(pid \d+\): worker 1 has died\n", 1),
])
def test_who_failed_is_named_not_who_misses_it(run, error, sentence, expected):
    status, said = run("miss_partner", error=error, devices=["cpu", "cpu"]).start().finish()
    assert status == expected
    assert re.fullmatch(sentence, said), said


def test_every_two_workers_share_a_pipe_of_which_nobody_else_holds_an_end(run):
    left = run("leave_partner", devices=["cpu"] * 3).start()
    assert left.finish() == (0, "")
    assert [left.wait_for(f"heard{other}") for other in (1, 2)] == ["from 1 of 3", "from 2 of 3"]
    assert left.wait_for("left1") and left.wait_for("left2")


def test_bug_in_a_worker_shows_its_traceback_once_and_the_sentence_last(run):
    status, said = run("fail", error="bug").start().finish()
    assert status == 1
    assert said.count("Traceback") == said.count("ZeroDivisionError: the bug is wrong") == 1
    assert re.fullmatch(r"worker 0 \(pid \d+\) ended with status 1", lines(said)[-1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("group", [True, False])
def test_signal_lets_every_worker_finish_its_step_and_save(run, number, group):
    train = run("train", computing=0.5, steps=10**6, devices=["cpu", "cpu"]).start()
    for rank in (0, 1):
        train.wait_for(f"computing{rank}")
    members = family(train.launcher.pid)
    if group:                                    # like Ctrl-C; timeout(1) sends SIGTERM to its child twice
        os.killpg(train.launcher.pid, number)
        time.sleep(0.05)
    os.kill(train.launcher.pid, number)
    status, said = train.all_gone(members, seconds=20)
    assert (status, said) == (128 + number, f"stopped by {number.name}\n")
    for rank in (0, 1):
        assert train.wait_for(f"saved{rank}")
        assert train.wait_for(f"step{rank}") == train.wait_for(f"computing{rank}")


def test_signal_while_the_worker_starts_is_heard(run):
    train = run("train", computing=0.2, steps=10**6).start()
    while len(family(train.launcher.pid)) < 3:
        time.sleep(0.002)
    members = family(train.launcher.pid)
    os.killpg(train.launcher.pid, signal.SIGINT)
    status, said = train.all_gone(members, seconds=20)
    assert (status, said) == (130, "stopped by SIGINT\n")
    assert train.wait_for("step0") == 0


def test_sigterm_to_a_worker_stops_the_run(run):
    train = run("train", computing=0.2, steps=10**6, devices=["cpu", "cpu"]).start()
    for rank in (0, 1):
        train.wait_for(f"computing{rank}")
    members = family(train.launcher.pid)
    os.kill(train.pid("worker", 1), signal.SIGTERM)
    assert train.all_gone(members, seconds=20) == (143, "stopped by SIGTERM\n")
    assert train.wait_for("saved0") and train.wait_for("saved1")


def test_second_signal_ends_at_once(run):
    stubborn = run("never_stop", devices=["cpu", "cpu"]).start()
    stubborn.wait_for("computing0")
    members = family(stubborn.launcher.pid)
    os.killpg(stubborn.launcher.pid, signal.SIGINT)
    time.sleep(1.2)
    assert stubborn.launcher.poll() is None
    os.killpg(stubborn.launcher.pid, signal.SIGINT)
    status, said = stubborn.all_gone(members)
    assert (status, said) == (130, "killed by a second SIGINT, without saving\n")
