"""The launcher: if any process dies, the whole run ends within 5 s and one message names the first cause."""

import json
import os
import re
import signal
import time
from multiprocessing import connection
from pathlib import Path

import pytest

from alexnet.native.cores import cores
from multigpu.launch import signals as launch_signals
from multigpu.launch.process import FORWARDED, SIGNAL_DEBOUNCE
from multigpu.launch.signals import Signals, stop_notice
from tests.multigpu.runs import Run, clean_up, family, lines

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path):
    runs = []

    def prepare(function, **settings):
        values = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        runs.append(Run(tmp_path, [function, tmp_path, *values]))
        return runs[-1]

    yield prepare
    clean_up(runs)


def test_normal_run_has_status_0_and_no_message(run):
    train = run("train", steps=3, devices=["cpu", "cpu"]).start()
    assert train.finish() == (0, "")
    assert train.wait_for("step0") == train.wait_for("step1") == 2
    assert train.wait_for("pids1")["size"] == 2


@pytest.mark.parametrize("devices, given, expected", [
    (["cpu"], {}, max(1, cores())), (["cpu", "cpu"], {}, max(1, cores() // 2)), (["cpu"], {"OMP_NUM_THREADS": "7"}, 7),
])
def test_workers_share_the_cores(run, devices, given, expected):
    train = run("train", steps=1, devices=devices).start(**given)
    assert train.finish() == (0, "")
    assert train.wait_for("pids0")["threads"] == str(expected)
    assert (train.folder / "reads0").read_text() == "0 1\n"


@pytest.mark.parametrize("victim, moment, settings", [
    ("loader", "reading", {"reading": 60.0}),
    ("loader", "between epochs", {"between": 60.0, "steps": 2}),
    ("worker", "computing", {"computing": 60.0}),
    ("launcher", "reading", {"reading": 60.0}),
    ("launcher", "computing", {"computing": 60.0}),
])
def test_killed_process_ends_the_run(run, victim, moment, settings):
    train = run("train", **settings).start()
    if moment == "reading":
        train.wait_for_reading(0)
    elif moment == "computing":
        train.wait_for("computing0")
    else:
        train.wait_for("between0")
    pid, worker = train.pid(victim), train.pid("worker")
    status, error = train.kill(pid)
    assert status == (-signal.SIGKILL if victim == "launcher" else 1)
    message = {
        "loader": rf"worker 0 \(pid {worker}\): the loader \(pid {pid}\) was killed by SIGKILL",
        "worker": rf"worker 0 \(pid {worker}\) was killed by SIGKILL",
        "launcher": rf"the launcher \(pid {pid}\) died; its workers end",
    }[victim]
    assert len(lines(error)) == 1 and re.fullmatch(message, error.strip()), error
    assert not (train.folder / "saved0").exists()


@pytest.mark.parametrize("delay", [0.02, 0.2, 0.5])
def test_killed_launcher_leaves_no_starting_worker(run, delay):
    train = run("train", computing=60.0).start()
    while len(family(train.launcher.pid)) < 3:   # launcher, resource tracker, worker
        time.sleep(0.002)
    time.sleep(delay)
    status, _ = train.kill(train.launcher.pid)
    assert status == -signal.SIGKILL


def test_message_names_the_worker_that_died_first(run):
    train = run("train", devices=["cpu", "cpu"], steps=10**6).start()
    train.wait_for("step0")
    train.wait_for("step1")
    pid = train.pid("worker", 1)
    status, error = train.kill(pid)
    assert (status, lines(error)) == (1, [f"worker 1 (pid {pid}) was killed by SIGKILL"])


def test_worker_that_ignores_the_stop_is_killed(run):
    train = run("never_stop", devices=["cpu", "cpu"]).start()
    train.wait_for("computing0")
    train.wait_for("computing1")
    pid = next(child.pid for child in family(train.launcher.pid) if b"spawn_main" in command_of(child.pid))
    status, error = train.kill(pid)
    assert status == 1
    assert len(lines(error)) == 1 and f"(pid {pid}) was killed by SIGKILL" in error


def command_of(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize("kind, devices", [("config", ["cpu"]), ("data", ["cpu"]), ("data", ["cpu", "cpu"])])
def test_expected_error_is_one_message_and_status_2(run, kind, devices):
    status, error = run("fail", error=kind, devices=devices).start().finish()
    assert status == 2
    assert re.fullmatch(rf"worker {len(devices) - 1} \(pid \d+\): the {kind} is wrong\n", error), error


def test_error_of_the_disk_is_restarted(run):
    status, error = run("fail", error="read", max_restarts=1).start().finish()
    failure = r"worker 0 \(pid \d+\): the read is wrong\n"
    assert status == 2
    assert re.fullmatch(f"restart 1 of 1 from the beginning: {failure}failed after 1 restart: {failure}", error), error


@pytest.mark.parametrize("kind, message, expected", [
    ("data", r"worker 1 \(pid \d+\): the data is wrong\n", 2),
    ("own", r"worker 0 \(pid \d+\): the own is wrong\n", 2),
    (None, r"worker 0 \(pid \d+\): worker 1 has died\n", 1),
])
def test_message_names_the_cause_not_its_consequence(run, kind, message, expected):
    status, error = run("report_peer", error=kind, devices=["cpu", "cpu"]).start().finish()
    assert status == expected
    assert re.fullmatch(message, error), error


def test_only_two_workers_hold_the_ends_of_a_pipe(run):
    left = run("exit_first", devices=["cpu"] * 3).start()
    assert left.finish() == (0, "")
    assert [left.wait_for(f"received{other}") for other in (1, 2)] == ["from 1 of 3", "from 2 of 3"]
    assert left.wait_for("exited1") and left.wait_for("exited2")


def test_bug_in_a_worker_prints_one_traceback(run):
    status, error = run("fail", error="bug").start().finish()
    assert status == 1
    assert error.count("Traceback") == error.count("ZeroDivisionError: the bug is wrong") == 1
    assert re.fullmatch(r"worker 0 \(pid \d+\) ended with status 1", lines(error)[-1])


@pytest.mark.parametrize("number, group", [
    (signal.SIGINT, True),                       # Ctrl-C
    (signal.SIGTERM, True),                      # timeout(1) sends SIGTERM to its child twice
    (signal.SIGTERM, False),
    (signal.SIGHUP, True),                       # the terminal is closed
])
def test_signal_stops_all_workers_after_the_same_step(run, number, group, default_sighup):
    train = run("train", computing=0.5, steps=10**6, devices=["cpu", "cpu"]).start()
    for rank in (0, 1):
        train.wait_for(f"computing{rank}")
    members = family(train.launcher.pid)
    if group:
        os.killpg(train.launcher.pid, number)
        time.sleep(0.05)
    os.kill(train.launcher.pid, number)
    status, error = train.all_gone(members, seconds=20)
    assert (status, error) == (128 + number, f"{stop_notice(number)}\nstopped by {number.name}\n")
    for rank in (0, 1):
        assert train.wait_for(f"saved{rank}")
        assert train.wait_for(f"step{rank}") == train.wait_for(f"computing{rank}")


def test_signal_during_startup_stops_the_run(run):
    train = run("train", computing=0.2, steps=10**6).start()
    while len(family(train.launcher.pid)) < 3:
        time.sleep(0.002)
    members = family(train.launcher.pid)
    os.killpg(train.launcher.pid, signal.SIGINT)
    status, error = train.all_gone(members, seconds=20)
    assert (status, error) == (130, f"{stop_notice(signal.SIGINT)}\nstopped by SIGINT\n")
    assert train.wait_for("step0") == 0


def test_sigterm_to_a_worker_stops_the_run(run):
    train = run("train", computing=0.2, steps=10**6, devices=["cpu", "cpu"]).start()
    for rank in (0, 1):
        train.wait_for(f"computing{rank}")
    members = family(train.launcher.pid)
    os.kill(train.pid("worker", 1), signal.SIGTERM)
    assert train.all_gone(members, seconds=20) == (143, f"{stop_notice(signal.SIGTERM)}\nstopped by SIGTERM\n")
    assert train.wait_for("saved0") and train.wait_for("saved1")


def test_second_signal_ends_at_once(run):
    stubborn = run("never_stop", devices=["cpu", "cpu"]).start()
    stubborn.wait_for("computing0")
    members = family(stubborn.launcher.pid)
    os.killpg(stubborn.launcher.pid, signal.SIGINT)
    time.sleep(1.2)
    assert stubborn.launcher.poll() is None
    os.killpg(stubborn.launcher.pid, signal.SIGINT)
    status, error = stubborn.all_gone(members)
    assert (status, error) == (130, f"{stop_notice(signal.SIGINT)}\nkilled by a second SIGINT, without saving\n")


@pytest.mark.parametrize("parent, counted", [("timeout", 1), ("bash", 2)])
def test_two_signals_of_timeout_are_one_request(parent, counted, monkeypatch):
    """They may be seconds apart on a loaded machine."""
    monkeypatch.setattr(launch_signals, "name_of_parent", lambda: parent)
    assert requests_of(signal.SIGTERM, signal.SIGTERM) == [signal.SIGTERM] * counted


def test_late_forwarded_signal_is_no_second_request():
    assert requests_of(FORWARDED, FORWARDED) == [signal.SIGTERM]
    assert requests_of(signal.SIGTERM, FORWARDED) == [signal.SIGTERM]


def requests_of(*numbers):
    """Send signals to this process, each after SIGNAL_DEBOUNCE; return those that count as requests."""
    requests = []
    with Signals() as signals:
        for number in numbers:
            os.kill(os.getpid(), number)
            assert connection.wait([signals.reader], 10)
            if request := signals.receive():
                requests.append(request)
                signals.handled()
            time.sleep(SIGNAL_DEBOUNCE + 0.1)
    return requests


def test_ignored_sighup_stays_ignored(run):
    train = run("train", steps=30, computing=0.02)
    train.command = ["nohup", *train.command]
    train.start()
    train.wait_for("step0")
    os.killpg(train.launcher.pid, signal.SIGHUP)
    status, error = train.finish()
    assert (status, error.replace("nohup: ignoring input\n", "")) == (0, "")
    assert train.wait_for("step0") == 29
