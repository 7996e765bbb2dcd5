"""The runs that calibrate the diagnosis, and the rates that their stored results show."""

import argparse
import csv

import numpy as np
import pytest

from alexnet.config import load_config
from alexnet.models import model_class
from experiments.diagnosis import __main__ as program
from experiments.diagnosis import overhead
from experiments.diagnosis.detect import Result, detect, rates
from experiments.diagnosis.runs import NETWORKS, TRIALS, Trial
from tests.alexnet.training.test_diagnosis import guessing, learning


def test_runs_have_valid_settings_and_distinct_folders(tmp_path):
    assert len(TRIALS) >= 40
    assert len({program.folder_of(trial, tmp_path) for trial in TRIALS}) == len(TRIALS)
    for trial in TRIALS:
        config = load_config([f"{name}={value}" for name, value in trial.settings.items()])
        model_class(f"{NETWORKS}:{config.model}")
        assert program.steps_of(trial, 10) * config.batch_size == 10 * program.TRAIN


def test_rates_count_alarms_and_early_detections():
    results = [
        Result("a", None, 0.1, (), None, ""), Result("b", None, 0.1, ("dead",), 0.5, ""),
        Result("c", "labels", 0.9, ("stalled",), 0.1, ""), Result("d", "labels", 0.9, ("stalled",), 0.2, ""),
        Result("e", "labels", 0.9, (), None, ""),
    ]
    assert rates(results) == (1, 2, 1, 3)


def test_detection_is_the_first_cause_or_the_end_of_a_run(monkeypatch):
    def detected(records, ended=None):
        monkeypatch.setattr("experiments.diagnosis.detect.read_records", lambda folder: records)
        return detect(Trial("name", "fault", {}), None, 2000, ended)

    assert detected(learning())[3:] == ((), None, "")
    stalled = detected(guessing(120))
    assert (stalled.causes, stalled.share) == (("stalled",), 0.05)
    ended = detected(guessing(9), "the cost became nan")
    assert (ended.causes, ended.share, ended.text) == (("ended",), 0.005, "the cost became nan")


def test_stored_results_hold_the_stated_rates():
    with (program.HERE / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [trial.name for trial in TRIALS]
    results = [
        Result(row["name"], row["fault"] or None, float(row["error"] or "nan"), tuple(row["causes"].split()),
               float(row["share"]) if row["share"] else None, row["text"])
        for row in rows
    ]
    alarms, learning_runs, detected, failing = rates(results)
    assert alarms <= 1 and detected >= 0.9 * failing
    assert all(result.error < 0.5 for result in results if result.fault is None), learning_runs


def test_overhead_is_measured_in_alternating_windows(tmp_path):
    options = argparse.Namespace(model=f"{NETWORKS}:Healthy", batch=2, pairs=3, steps=20, threads=1)
    times, measurements = overhead.measured(options, tmp_path)
    assert times.shape == (3, 2, 2)
    assert (times > 0).all()
    assert 0 <= measurements <= 3


def test_ratio_of_totals_has_an_error(rng):
    times = rng.uniform(1, 2, (50, 2)) * [1.1, 1]
    found, error = overhead.ratio(times, rng)
    assert found == pytest.approx(times[:, 0].sum() / times[:, 1].sum())
    assert error == pytest.approx(np.hypot(0.194, 0.194) / np.sqrt(50) * found, rel=0.3)
