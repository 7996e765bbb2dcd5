"""The benchmark of the rules on two hosts: its rows, its figure, and a real job with a server; nothing is measured."""

import pytest

from benchmarks.mpi import rules, rules_figure
from multigpu.rules import RULES
from tests import tiny
from tests.mpi import Job, needs_mpi

pytestmark = pytest.mark.mpi


def job(*curve, step=0.5):
    return rules.Measured([*curve], dict.fromkeys(rules.TIMES, 0.25) | {"seconds": step})


def test_row_has_the_medians_and_the_first_error_below_the_target():
    jobs = [job((10, 4e6, 0.5), (20, 8e6, 0.2), (seconds, 12e6, error)) for seconds, error in ((30, 0.3), (32, 0.1))]
    row = rules.row_of("easgd", jobs)
    assert (row["value"], row["step"], row["calc"], row["link_MB"]) == (31, 0.5, 0.25, 12)
    assert (row["error"], row["lowest"], row["seconds_to"], row["MB_to"]) == pytest.approx((0.2, 0.15, 20, 8))


def test_target_that_a_job_misses_is_left_out():
    assert "seconds_to" not in rules.row_of("easgd", [job((10, 4e6, 0.1)), job((10, 4e6, 0.5))])


def test_only_rules_with_a_server_have_one():
    for servers, given in rules.CONFIGURATIONS.values():
        assert servers == RULES[given["rule"]].has_server


def test_figure_has_a_panel_per_link_and_one_of_bytes():
    links = [{"link": name, "curves": {"easgd": [[[1, 2, 0.5], [2, 4, 0.4]]], "asgd": []}} for name in ("a", "b")]
    panels = rules_figure.figure(links).axes
    assert [axes.get_title() for axes in panels] == ["a", "b", "bytes"]
    assert [[line.get_label() for line in axes.lines] for axes in panels] == [["easgd"]] * 3
    assert rules_figure.looks().keys() == rules.CONFIGURATIONS.keys()


@needs_mpi
@pytest.mark.slow
def test_job_with_a_server_records_time_and_bytes(tmp_path, monkeypatch):
    data = tiny.make_data(tmp_path / "set", train=16, validation=8)
    monkeypatch.setattr(rules, "COMMON", rules.COMMON | {"batch_size": 4, "n_epochs": 2})
    curve, times = rules.measure({"rule": "asgd", "n_sync": 1}, 1, data)
    (first, before, _), (second, after, _) = curve
    assert 0 < first < second
    assert 0 <= before <= after
    assert 0 < times["calc"] < times["seconds"] < second


@needs_mpi
def test_aborted_ranks_of_a_benchmark_leave_no_files(tmp_path):
    program = "from benchmarks.harness.mpi import open_communicator; open_communicator().mpi.Abort(3)"
    status, _ = Job(tmp_path, 2, "-c", program).finish()             # which checks /dev/shm
    assert status != 0
