"""Long use: slopes, counts, the file of the results and what a killed program leaves."""

import csv
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.endurance import __main__ as program
from experiments.endurance import saves
from experiments.endurance.analysis import as_csv, from_csv, lines, quantities, slope, table, united
from experiments.endurance.journal import NO_PROCESS, Journal, continue_trials
from experiments.endurance.processes import Process, Program, role_of, sample


def result(**changes):
    return {"kind": "SIGTERM", "outcome": "", "seconds": 1.0, "wrong": []} | changes


def row(number, **changes):
    return {"task": "starts", "series": "", "number": number} | result(**changes)


# ---- analysis


def test_slope_is_that_of_the_least_squares_line(rng):
    times = np.sort(rng.uniform(0, 50, 40))
    values = 1000 + 3 * times + rng.normal(0, 20, 40)
    mean, change = slope(times, values, share=1)
    gradient, _ = np.polyfit(times, values, 1)
    np.testing.assert_allclose([mean, change], [values.mean(), 100 * gradient * np.ptp(times) / values.mean()])


def test_slope_leaves_out_the_beginning():
    values = [0] * 10 + [50] * 91
    assert slope(range(101), values) == (50, pytest.approx(0))
    assert slope(range(101), values, share=1)[1] > 1


@pytest.mark.parametrize("values", [[0, 0, 0], [7]])
def test_slope_of_nothing_is_0(values):
    assert slope(range(len(values)), values) == (values[0], 0)


def test_quantities_are_named_by_process():
    samples = [{"seconds": 1, "worker 0": {"memory": 5, "threads": 2}, "files": 3}, {"seconds": 2, "files": 4}]
    assert quantities(samples) == {
        "worker 0 memory": ([1], [5]), "worker 0 threads": ([1], [2]), "files": ([1, 2], [3, 4]),
    }


def test_lines_count_trials_and_failed_checks_by_kind_and_outcome():
    rows = [row(0), row(1, seconds=4.0, wrong=["process 7 is left"]), row(2, seconds=2.0), row(3, kind="Ctrl-C")]
    ctrl_c, sigterm = lines(rows)
    assert sigterm[2:7] == ("SIGTERM", "", 3, 1, 4.0)
    assert ctrl_c[2:7] == ("Ctrl-C", "", 1, 0, 1.0)
    assert "| starts |  | SIGTERM |  | 3 | 1 | 4 |  |  |" in table(lines(rows)).splitlines()
    assert as_csv(lines(rows)).splitlines()[2] == "starts,,SIGTERM,,3,1,4,,"


def test_tables_of_several_machines_add_up():
    samples = [{"seconds": i, "memory": 100 + i} for i in range(50)]
    first = lines([row(0), row(1, seconds=4.0, wrong=["x"]), row(2, samples=samples, kind="Ctrl-C")])
    second = lines([row(3, seconds=9.0), row(4, kind="killed"), row(5, kind="Ctrl-C")])
    found = {line.kind: line for line in united(second, from_csv(as_csv(first)))}
    assert found["SIGTERM"][4:7] == (3, 1, 9.0)
    assert (found["Ctrl-C"].trials, found["killed"].trials) == (2, 1)
    assert found["memory"].slope == pytest.approx(lines([row(0, samples=samples)])[1].slope, rel=1e-5)


def test_growing_quantity_has_failed_unless_it_may_grow():
    samples = [{"seconds": i, "memory": 100 + i, "records": 100 + i, "files": 9} for i in range(50)]
    found = {line.kind: line for line in lines([row(0, samples=samples, grows=["records"])])}
    assert [found[name].failed for name in ("memory", "records", "files", "SIGTERM")] == [1, 0, 0, 0]
    assert found["memory"].slope == found["records"].slope > 30


# ---- the file of the results


def count(journal, number, series="a", first=0, ended=()):
    """Continue to `number` trials; return the trials that were run, after "prepare" if they were prepared.

    ended  the trials in which the process to kill has ended before
    """
    calls = []

    def prepare():
        calls.append("prepare")
        return "shared"

    def trial(shared, number):
        assert shared == "shared"
        calls.append(number)
        return result() | ({"kind": NO_PROCESS} if number in ended else {})

    continue_trials(journal, "starts", series, number, prepare, trial, first=first)
    return calls


def test_trials_continue_after_the_last_complete_line(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    assert count(Journal(path), 2) == ["prepare", 0, 1]
    assert count(Journal(path), 1, "b") == ["prepare", 0]
    with path.open("a", encoding="utf-8") as file:
        file.write('{"task": "starts", "ser')
    assert count(Journal(path), 4) == ["prepare", 2, 3]
    assert count(Journal(path), 4) == []
    assert count(Journal(), 2, first=5) == ["prepare", 5, 6]
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(each["series"], each["number"]) for each in rows] == [("a", 0), ("a", 1), ("b", 0), ("a", 2), ("a", 3)]


def test_trials_without_a_process_do_not_count():
    assert count(Journal(), 3, ended=(0, 2)) == ["prepare", 0, 1, 2, 3, 4]
    assert count(Journal(), 2, first=7, ended=range(100)) == ["prepare", 7, 8, 9, 10]


def test_program_ends_after_its_minutes_and_continues(tmp_path, monkeypatch, capsys):
    fake = SimpleNamespace(SERIES=("",), COUNT=3, prepare=lambda *_: None, trial=lambda *_: result())
    monkeypatch.setitem(program.TASKS, "saves", fake)
    given = ["saves", "--json", str(tmp_path / "rows.jsonl"), "--folder", str(tmp_path)]
    assert program.main([*given, "--minutes", "0"]) == 0
    assert len(Journal(tmp_path / "rows.jsonl").rows("saves")) == 1
    assert program.main([*given, "--count", "2"]) == 0
    assert program.main(["table", "--json", str(tmp_path / "rows.jsonl"), "--csv", str(tmp_path / "results.csv")]) == 0
    assert (tmp_path / "results.csv").read_text(encoding="utf-8").endswith("saves,,SIGTERM,,2,0,1,,\n")
    assert "saves: stopped after 0 minutes" in capsys.readouterr().out


# ---- processes


def test_roles_follow_from_commands_and_parents():
    python, rank = ("python", "-c"), ("python", "-m", "mpi4py", "train.py")
    processes = [
        Process(1, 0, ("python", "train.py")), Process(2, 1, (*python, "from multiprocessing.spawn import spawn_main")),
        Process(3, 2, (*python, "from multiprocessing.spawn import spawn_main")),
        Process(4, 1, (*python, "from multiprocessing.resource_tracker import main")),
        Process(10, 0, ("python", "-m", "multigpu", "restart", "mpiexec", *rank)),
        Process(11, 10, ("/bin/mpiexec", "-n", "2", *rank)), Process(12, 11, ("/bin/hydra_pmi_proxy",)),
        Process(13, 12, rank), Process(14, 13, rank), Process(15, 12, rank),
        Process(16, 15, (*python, "from multiprocessing.spawn import spawn_main")),
        Process(17, 14, ("python", "-m", "multigpu.failure.monitor", "5", "2")),
        Process(18, 10, ("python", "-m", "multigpu", "restart", "mpiexec", *rank)),
    ]
    assert [role_of(each, processes) for each in processes] == [
        "launcher", "worker", "loader", "tracker", "supervisor", "mpiexec", "proxy", "wrapper", "rank", "rank",
        "loader", "monitor", "fork",
    ]


GROWING = """
import sys, threading
print(flush=True)
input()
held, files = bytearray(b"1" * 40_000_000), [open(sys.executable, "rb") for _ in range(2)]
threading.Thread(target=threading.Event().wait, daemon=True).start()
print(flush=True)
input()
"""


def test_sample_counts_descriptors_threads_and_memory():
    """Of another process, because that of the tests has threads and free memory of other tests."""
    with subprocess.Popen([sys.executable, "-c", GROWING], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        before = sample(process.pid)
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.readline()
        after = sample(process.pid)
        process.communicate(b"\n")
    assert (after.descriptors, after.threads) == (before.descriptors + 2, before.threads + 1)
    assert after.memory - before.memory > 0.9 * 40_000_000
    assert sample(0) is None


@pytest.mark.slow
def test_orphan_and_temporary_file_are_reported_and_the_orphan_is_killed(tmp_path):
    code = "import subprocess, tempfile; tempfile.mkstemp('.kept'); print(subprocess.Popen(['sleep', '60']).pid)"
    with Program([sys.executable, "-c", code], tmp_path / "run") as started:
        assert started.end(20) == 0
        pid = int(started.printed.read_text(encoding="utf-8"))
        orphan, file = started.left(seconds=0)
        assert orphan == f"process {pid} is left: sleep 60" and file.endswith(".kept is left in TMPDIR")
    assert started.processes() == []


# ---- saves


@pytest.mark.slow
def test_killed_saves_pass_all_checks(tmp_path):
    rows = program.run("saves", 2, None, Journal(), tmp_path)
    assert [row["wrong"] for row in rows] == [[], []]


@pytest.fixture
def checkpoints(tmp_path):
    for iteration in (1, 2, 3):
        saves.save(tmp_path, iteration)
    return tmp_path


def test_intact_checkpoints_have_no_faults(checkpoints):
    assert saves.faults(checkpoints, complete=3, partial=1) == []


def test_faults_of_checkpoints_are_found(checkpoints):
    newest = checkpoints / "checkpoint_00000003.safetensors"
    newest.unlink()                              # the best one has the same content
    newest.write_bytes((checkpoints / "checkpoint_00000002.safetensors").read_bytes())
    assert saves.faults(checkpoints, 3, 0) == [f"{newest.name} has the values of another iteration"]
    newest.write_bytes(b"half")
    assert str(newest) in saves.faults(checkpoints, 3, 0)[0]
    newest.unlink()
    assert saves.faults(checkpoints, 3, 2) == [
        "2 partial folders", "1 checkpoints",
        "the newest checkpoint is checkpoint_00000002.safetensors, but iteration 3 was saved",
    ]


# ---- the stored results


def test_stored_results_hold_no_failed_check():
    """They are those of `python -m experiments.endurance table`; benchmarks/RESULTS.md shows them."""
    with (program.HERE / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["task"] for row in rows} == {"steps", *program.TASKS}
    assert [row for row in rows if row["failed"] != "0"] == []
