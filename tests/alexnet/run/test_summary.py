"""The last lines of a run: result, best epoch, and the command that continues."""

import pytest

from alexnet.run.summary import last_lines
from alexnet.training.loop import Position
from tests import tiny

ERRORS = ({"epoch": 1, "top1_error": 0.5}, {"epoch": 2, "top1_error": 0.0725}, {"epoch": 3, "top1_error": 0.1})


@pytest.mark.parametrize(
    ("position", "validations", "expected"),
    [
        (Position(3, 0, 375), ERRORS[:2], ["finished 3 epochs (375 iterations): top-1 error 7.25% (best: epoch 2)"]),
        (Position(3, 0, 375), ERRORS, [
            "finished 3 epochs (375 iterations): top-1 error 10.00% after epoch 3 (best: 7.25% after epoch 2)"]),
        (Position(0, 1, 1), (), [
            "stopped after 1 iteration, in epoch 1 of 3", "continue with: train.py resume_train='a run'"]),
        (Position(0, 9, 9), (), [
            "stopped after 9 iterations, because of n_iterations=9",
            "continue with: train.py resume_train='a run' n_iterations=null"]),
    ],
)
def test_end_of_a_run_is_described(tmp_path, monkeypatch, position, validations, expected):
    monkeypatch.chdir(tmp_path)
    config = tiny.settings("data", tmp_path, n_epochs=3, n_iterations=9 if position.iteration == 9 else "null")
    run = tmp_path / "a run"
    run.mkdir()
    (run / "checkpoint_00000375.safetensors").touch()
    lines = last_lines(config, run.relative_to(tmp_path), position, validations, "train.py")
    assert lines[: len(expected)] == expected
    assert lines[len(expected)] == "saved in a run: checkpoint_00000375.safetensors"
    finished = ["next: python -m alexnet predict --weights 'a run' IMAGE"]
    assert lines[len(expected) + 1 :] == (finished if position.epoch == 3 else [])
