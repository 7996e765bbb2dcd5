"""The experiment with flipped bits: its outcomes, its table, and how it continues."""

import json
import sys

import numpy as np
import pytest

from experiments.corruption import __main__ as program
from experiments.corruption import files, memory, messages
from experiments.corruption.outcome import Outcome, flip_array, relative_change


def kinds(outcomes):
    return [outcome.kind for outcome in outcomes]


def test_flip_changes_one_bit_within_its_region(rng):
    array = rng.normal(size=(5, 4)).astype("float32")
    before = array.tobytes()
    flip_array(array, rng, slice(8, 12))
    changed = np.bitwise_xor(np.frombuffer(before, np.uint8), np.frombuffer(array.tobytes(), np.uint8))
    assert np.unpackbits(changed).sum() == 1
    assert np.flatnonzero(changed)[0] in range(8, 12)


def test_relative_change_is_that_of_the_norm():
    assert relative_change([np.float32([3, 4]), np.float32([0])], [np.float32([3, 4.5]), np.float32([0])]) == (
        pytest.approx(0.5 / np.hypot(3, 4.5))
    )


@pytest.mark.parametrize("name", ["checkpoint", "compiled kernel", "records.jsonl of a run"])
def test_flips_in_files_with_a_checksum_are_detected(name, tmp_path):
    assert kinds(files.trials(name, range(6), tmp_path)) == 6 * ["detected"]


def test_flips_in_a_file_are_undone(tmp_path):
    list(files.trials("records.jsonl of a run", range(3), tmp_path))
    assert len(files.read_records(tmp_path)) == 20


def test_checks_detect_flips_in_weights():
    assert kinds(memory.trials("weight, one worker", range(2), checks=True)) == ["detected"] * 2


def test_a_flip_in_a_message_is_silent():
    (found,) = messages.trials("array in a message, gosgd", range(1))
    assert found.kind == "silent" and 0 < found.change < 1


def test_results_are_continued_and_shown(tmp_path, monkeypatch, capsys):
    def trials(seeds):
        calls.append(len(seeds))
        return [Outcome("detected", text="damaged"), Outcome("silent", change=0.5, error=-0.25)]

    calls, path = [], tmp_path / "results.json"
    monkeypatch.setattr(program, "places", lambda folder, checks: {"one": trials, "two": trials})
    for names in (["one"], ["one"], [""]):
        monkeypatch.setattr(sys, "argv", ["corruption", "--flips", "2", "--json", str(path), "--places", *names])
        program.main()
    assert calls == [2, 2]
    assert list(json.loads(path.read_text("utf-8"))) == ["one", "two"]
    assert "| two | 1 | 0 | 1 | 5e-01 | 5e-01 | 25.0 |" in capsys.readouterr().out
