"""The benchmark of training over MPI: its rows, its jobs, and a real job of two ranks."""

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks.mpi import scaling
from tests.mpi import needs_mpi

pytestmark = [pytest.mark.slow, pytest.mark.mpi]


def speed(seconds, comm, sync):
    return {"seconds": seconds, "comm": comm, "sync": sync}


def test_row_splits_the_median_step():
    job = scaling.Job("alexnet", 4, "asa32", 32, 3)
    records = [speed(10, 2, 1), speed(12, 3, 1.5), speed(30, 4, 20)]
    row = scaling.row_of(job, records, one_rank=24)
    assert row["name"] == "alexnet, batch 32, 4 ranks, asa32"
    assert (row["value"], row["train"], row["comm"], row["sync"], row["times_as_fast"]) == (12, 7.5, 3, 1.5, 2)


def test_single_rank_is_measured_once():
    todo = list(scaling.jobs(["alexnet", "googlenet"], [4, 1, 2], 32, 3))
    assert len(todo) == 2 * (1 + 2 * len(scaling.STRATEGIES))
    assert [(job.model, job.ranks, job.strategy) for job in todo[:3]] == [
        ("alexnet", 1, "auto"), ("alexnet", 2, "ar"), ("alexnet", 2, "asa32"),
    ]


def test_failed_and_late_jobs_are_rows_with_reasons(monkeypatch):
    def fail(job, data, seconds):
        raise RuntimeError("the job exited with status 2: no such strategy")

    monkeypatch.setattr(scaling, "measure", fail)
    monkeypatch.setattr(scaling, "make_data", lambda folder: folder)
    todo = list(scaling.jobs(["alexnet"], [1], 32, 3))
    first, *published = scaling.measured_rows(todo, minutes=1)
    assert (first["value"], first["note"]) == (None, "the job exited with status 2: no such strategy")
    assert next(scaling.measured_rows(todo, minutes=-1))["note"] == "not started within -1 minutes"
    (eight,) = [row for row in published if row["name"] == "Theano-MPI: AlexNet, 8 K80 GPUs"]
    assert (eight["train"], eight["comm"], round(eight["times_as_fast"], 2)) == (2.63, 0.61, 6.33)


@needs_mpi
@pytest.mark.mpi
def test_job_of_two_ranks_records_each_step(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "PROGRAM", "tests.benchmarks.tiny_scaling")
    monkeypatch.setattr(scaling, "IMAGES", 16)
    data = scaling.make_data(tmp_path / "set")
    records = scaling.measure(scaling.Job("tiny", 2, "peer", 4, 2), data, seconds=120)
    assert [(record["iteration"], record["workers"], record["images"]) for record in records] == [(2, 2, 8), (3, 2, 8)]
    row = scaling.row_of(scaling.Job("tiny", 2, "peer", 4, 2), records, None)
    assert 0 < row["comm"] < row["value"]
    assert 0 < row["train"] < row["value"]


def test_job_is_killed_at_its_time_limit(tmp_path, monkeypatch):
    command = tmp_path / "mpiexec"
    command.write_text("#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 0.1; done\n")            # ignores SIGTERM
    command.chmod(0o755)
    monkeypatch.setattr(scaling, "mpiexec", lambda: str(command))
    monkeypatch.setattr(scaling, "GRACE", 0.2)
    with pytest.raises(RuntimeError, match="not finished within 0 s"):
        scaling.measure(scaling.Job("tiny", 1, "peer", 4, 2), tmp_path, seconds=0.3)


def test_error_of_the_first_rank_is_reported():
    errors = "a warning\nrank 1: model: there is no network 'x'\nrank 0: follows\nAbort(2) on node 0\n"
    assert scaling.first_error(errors) == "rank 1: model: there is no network 'x'"
    assert scaling.first_error("mpiexec: not so\n\n") == "mpiexec: not so"


def test_mpi_benchmarks_are_sections_of_the_results():
    assert {"mpi.strategies", "mpi.scaling", "mpi.server"} <= {each.module for each in benchmarks.BENCHMARKS}
