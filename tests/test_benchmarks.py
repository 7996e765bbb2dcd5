"""The benchmarks' own arithmetic and their report; nothing is measured here, and PyTorch is not needed."""

import json
import os
import pathlib
import sys

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import report, results, step
from benchmarks.program import environment, last_line

ROW = {"name": "train step, batch 128, ours", "value": 40.0, "unit": "images/s", "spread": 0.05, "runs": 7,
       "peer": 20.0, "ratio": 2.0, "peer_mode": "eager"}  # fmt: skip


def section(rows=(ROW,), failure=None, module="step"):
    return results.Section(module, ("--quick",), list(rows), 61.0, failure)


def markdown(*sections, by_hand=""):
    facts = {"processor": "a made one"}
    return results.markdown(sections, benchmarks.HEADLINES, facts, "python -m benchmarks", "2026-01-02", by_hand)


# ---- rows


def test_a_row_is_the_median_and_the_spread_of_its_runs():
    row = report.row("a", [3.0, 1.0, 2.0], "s", peer=4.0)
    assert row == {"name": "a", "value": 2.0, "unit": "s", "spread": 1.0, "runs": 3, "peer": 4.0}


def test_rows_are_read_as_they_were_written(tmp_path):
    rows = [ROW, report.not_measured("b", "no such processor")]
    report.write(rows, tmp_path / "rows")
    assert report.read(tmp_path / "rows") == rows
    assert [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()] == rows


def test_a_benchmark_that_wrote_nothing_has_no_rows(tmp_path):
    assert report.read(tmp_path / "rows") == []


# ---- the step's choices


def test_the_best_mode_is_the_one_with_the_smallest_median():
    assert step.fastest({"eager": [1.0, 9.0, 3.0], "compile": [2.0, 2.5, 2.9]}) == "compile"
    assert step.fastest({}) is None


def test_each_kind_of_step_is_held_against_its_own_best_mode(monkeypatch):
    seconds = {"validate": {"ours": [1.0], "eager": [2.0], "compile": [4.0]},
               "train": {"ours": [2.0], "eager": [8.0], "compile": [6.0]}}  # fmt: skip
    memory = {kind: dict.fromkeys(modes, 100.0) for kind, modes in seconds.items()}
    best = {"validate": "eager", "train": "compile"}
    monkeypatch.setattr(step, "measure", lambda *_: (seconds, memory, best))
    plan = step.Plan(("eager", "compile"), 1, 1, 1)
    found = {row["name"]: (row["value"], row["peer_mode"], row["ratio"]) for row in step.rows(16, plan)}
    assert found["train step, batch 16, ours"] == (8.0, "compile", 3.0)
    assert found["validate step, batch 16, ours"] == (16.0, "eager", 2.0)
    assert found["train step, batch 16, eager"] == (2.0, "compile", 0.75)


@pytest.mark.parametrize(("sets", "reason"), [({"avx2"}, "the rows above are these"), (set(), "has no AVX2")])
def test_avx2_is_not_measured_twice_nor_where_it_is_missing(monkeypatch, sets, reason):
    monkeypatch.setattr(step, "instruction_sets", lambda: sets)
    (row,) = step.avx2_rows(128, plan=None)
    assert row["value"] is None
    assert reason in row["note"]


def test_with_avx512_both_sides_are_held_to_avx2(monkeypatch):
    plans = []
    monkeypatch.setattr(step, "instruction_sets", lambda: {"avx2", "avx512f"})
    monkeypatch.setattr(step, "rows", lambda batch, plan, kinds, suffix: plans.append(plan) or [ROW])
    assert list(step.avx2_rows(128, step.Plan((), 7, 2, 2))) == [ROW]
    assert plans[0].variables == {"ALEXNET_TILES": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


# ---- the report


def test_a_table_has_a_column_for_each_key_and_notes_below():
    text = results.table([ROW | {"peak_memory_mib": 1234.5}, report.not_measured("b", "no such processor")])
    assert text.splitlines() == [
        "|  | median | spread | runs | peer | ratio | peer is | peak MiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| train step, batch 128, ours | 40.0 images/s | 5 % | 7 | 20.0 images/s | **2.00** | eager | 1,234 |",
        "",
        "- b: no such processor",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (3.27e-7, "3.27e-07"), (0.1234, "0.123"), (4.056, "4.06"), (31.46, "31.5"), (1847.2, "1,847")],
)
def test_numbers_have_three_significant_digits(value, text):
    assert results.number(value) == text


def test_the_report_has_machine_summary_sections_and_what_was_written_by_hand():
    text = markdown(section(), section([ROW], module="agreement"), by_hand="## Trainings\n\nBy hand.\n")
    wanted = ["# Results", "a made one", "## In short", "| train step, batch 128, ours | 40.0 images/s | **2.00** |",
              "## One full training step", "`python -m benchmarks.step --quick` (1:01 min)", "| 5 % | 7 |",
              "## How near the network's outputs", "## Trainings\n\nBy hand.\n"]  # fmt: skip
    places = [text.index(part) for part in wanted]
    assert places == sorted(places)
    assert text.count("train step, batch 128, ours") == 3                # the summary names it once


def test_a_failure_is_told_at_the_top_and_in_its_section():
    text = markdown(section(failure="it ended with status 1: no memory"))
    assert "**`step` failed**" in text
    assert "**This benchmark failed:** it ended with status 1: no memory" in text
    assert text.count(ROW["name"]) == 2                                  # what it had measured is shown


@pytest.mark.parametrize("module", [benchmark.module for benchmark in benchmarks.BENCHMARKS])
def test_every_benchmark_says_what_it_measures(module):
    title, text = results.description(module)
    assert title
    assert text
    assert "python -m" not in text


# ---- running them all


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """A folder benchmarks/ with one that works, one that fails and one that takes too long."""
    package = tmp_path / "benchmarks"
    package.mkdir()
    row = json.dumps({"name": "a", "value": 1.5, "unit": "s"}) + "\n"
    write = f"import pathlib, sys\npathlib.Path(sys.argv[-1]).write_text({row!r})\n"
    (package / "good.py").write_text(write)
    (package / "bad.py").write_text(write + "raise SystemExit('the disk is full')\n")
    (package / "slow.py").write_text("import time; time.sleep(60)\n")
    monkeypatch.setattr(benchmarks, "HERE", package)
    monkeypatch.setattr(benchmarks, "BENCHMARKS", tuple(benchmarks.Benchmark(name, 1) for name in ("bad", "good")))
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    return package


def test_a_failing_benchmark_is_reported_and_the_others_still_run(scripts, tmp_path, capsys):
    output, rows = tmp_path / "results.md", tmp_path / "rows"
    assert benchmarks.main(["--output", str(output), "--json", str(rows)]) == 1
    text = output.read_text()
    assert "**This benchmark failed:** it ended with status 1: the disk is full" in text
    assert [row["benchmark"] for row in report.read(rows)] == ["bad", "good"]
    assert "[2/2, 0:0" in capsys.readouterr().out


def test_when_all_is_well_the_status_is_0(scripts, tmp_path):
    assert benchmarks.main(["--only", "good", "--output", str(tmp_path / "results.md")]) == 0


def test_a_benchmark_is_ended_when_its_time_is_over(scripts):
    failed = benchmarks.run(benchmarks.Benchmark("slow", 1 / 60), quick=False)
    assert failed.failure.startswith("it was ended after")
    assert failed.seconds < 10


@pytest.mark.parametrize("arguments", [["--quick"], ["--only", "step"], ["--quick", "--only", "step"]])
def test_only_a_whole_run_replaces_the_results(arguments):
    assert benchmarks.options_of(arguments).output is None
    assert benchmarks.options_of([]).output == pathlib.Path(benchmarks.__file__).parent / "RESULTS.md"


def test_all_limits_add_up_to_half_an_hour():
    assert sum(benchmark.minutes for benchmark in benchmarks.BENCHMARKS) <= 30


# ---- programs


def test_programs_see_no_setting_of_openblas(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("OPENBLAS_L2_SIZE", "1024")
    assert not [name for name in environment() if name.startswith("OPENBLAS_")]
    assert environment()["PATH"] == os.environ["PATH"]


def test_a_program_that_dies_says_what_was_wrong(tmp_path, monkeypatch):
    (tmp_path / "dying.py").write_text("raise SystemExit('no such mode')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    program = step.Program("dying")
    with program, pytest.raises(RuntimeError, match="dying ended with status 1: no such mode"):
        program.step("train")


def test_the_last_line_of_an_error_is_the_one_with_words():
    assert last_line("Traceback\nValueError: too small\n\n") == "ValueError: too small"
    assert last_line("") == ""
