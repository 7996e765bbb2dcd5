"""The detector on made-up records: each cause is found, and a run that learns has none."""

import math

import pytest

from alexnet import __main__ as program
from alexnet.training.diagnosis import Detector
from tests import tiny

CLASSES, ITERATIONS = 10, 2000
GUESSING = math.log(CLASSES)
HEALTHY = {"gradient": 1.0, "update": 1e-3, "dead": 0.1, "scale": 1.0}


def train(iteration, cost, error=0.9):
    return {"kind": "train", "iteration": iteration, "cost": cost, "top1_error": error, "learning_rate": 0.01}


def statistics(iteration, confidence=0.2, **of_fc8):
    layers = {"conv1": HEALTHY, "fc8": HEALTHY | of_fc8}
    values = {f"{layer}.{name}": value for layer, own in layers.items() for name, value in own.items()}
    return {"kind": "statistics", "iteration": iteration, "confidence": confidence, **values}


def speed(**seconds):
    times = {"seconds": 10.0, "wait": 0.1, "sync": 0.1, "comm": 0.1, "workers": 2} | seconds
    return {"kind": "speed", "iteration": 1, **times}


def validation(iteration, cost, error):
    return {"kind": "validation", "iteration": iteration, "cost": cost, "top1_error": error}


def guessing(n, cost=GUESSING):
    return [train(iteration, cost) for iteration in range(1, n + 1)]


def found(records):
    detector = Detector(CLASSES, ITERATIONS)
    return [finding for record in records for finding in detector.add(record)]


def learning():
    """A plateau of 4 % of the run, then a falling cost, with a validation after each tenth of the run."""
    records = []
    for iteration in range(1, ITERATIONS + 1):
        cost = GUESSING * min(1.0, math.exp((80 - iteration) / 400))
        records.append(train(iteration, cost, cost / GUESSING * 0.9))
        if iteration % 20 == 0:
            records.append(statistics(iteration))
        if iteration % 200 == 0:
            records += [validation(iteration, cost + 0.1, cost / GUESSING * 0.9), speed()]
    return records


def test_learning_run_has_no_finding():
    assert found(learning()) == []


@pytest.mark.parametrize(("records", "cause", "words"), [
    ([*guessing(70), statistics(70), *guessing(120)[70:]], "stalled", "labels"),
    ([*guessing(70), statistics(70, update=1e-7) | {"conv1.update": 1e-7}, *guessing(120)[70:]], "stalled", "raise"),
    ([*guessing(70), statistics(70) | {"conv1.gradient": 1e-9}, *guessing(120)[70:]], "stalled", "arrives at conv1"),
    (guessing(120), "stalled", "learning_rate=0.01"),
    (guessing(60, 2 * GUESSING), "diverging", "clip_norm"),
    ([*guessing(20), statistics(20, update=0.6), statistics(40, update=0.6)], "diverging", "weights of fc8"),
    ([*guessing(20), statistics(20, dead=0.97), statistics(40, dead=0.97)], "dead", "97% of the units of fc8"),
    ([*guessing(20), statistics(20, confidence=0.99), statistics(40, confidence=0.99)], "saturated", "99%"),
    ([speed(wait=4.0), speed(wait=5.0)], "loader", "50%"),
    ([speed(comm=4.0, sync=2.0), speed(comm=4.0, sync=2.0)], "exchange", "60%"),
    ([*guessing(20, 1.0), *(validation(20, 1.0, 0.5), *(
        record for n, cost in enumerate((1.3, 1.4, 1.5)) for record in
        (*(train(21 + n, 0.9 - n / 10, 0.3) for _ in range(20)), validation(21 + n, cost, 0.5))
    ))], "overfitting", "from 1.000 to 1.500"),
    ([*(train(n, 1.0, 0.3) for n in range(20)), validation(20, 5.0, 0.9), validation(40, 5.0, 0.9)],
     "unrelated", "90%"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_cause_is_found_once(records, cause, words):
    findings = found([*records, *records])
    assert [finding.cause for finding in findings] == [cause]
    assert words in findings[0].text


@pytest.mark.parametrize("records", [
    [statistics(20, dead=0.97), statistics(40), statistics(60, dead=0.97)],          # not twice in a row
    [speed(wait=4.0), speed(), speed(wait=4.0)],
    [speed(comm=9.0, workers=1), speed(comm=9.0, workers=1)],
    [{"kind": "push", "iteration": 1}],
    [train(1, None), *guessing(20)],
])
def test_single_measurement_is_no_finding(records):
    assert found(records) == []


@pytest.mark.slow
def test_run_warns_of_a_rate_that_is_too_small(tmp_path, capsys):
    data = tiny.make_data(tmp_path / "data")
    settings = {"n_epochs": 20, "learning_rate": 1e-9, "diagnosis": "true", "para_load": "false", "backend": "numpy"}
    folder = tiny.run(data, tmp_path, n_iterations=100, **settings)
    resumed = tiny.run(data, tmp_path, resume_train=folder, n_iterations=110, **settings)
    sentence = "the cost is still that of guessing, 1.099, after 100 iterations, and a step changes the median"
    assert (folder / "log.txt").read_text().count(f"warning: {sentence}") == 1
    capsys.readouterr()
    assert program.main(["diagnose", str(resumed)]) == 0
    assert capsys.readouterr().out.startswith(f"{resumed}, iteration 100: {sentence}")
