"""The command lr-find: files, printed command line, exit status, refusals; every backend and kind of update rule."""

import csv

import pytest

from alexnet.__main__ import main
from alexnet.commands import lr_find as command_module
from alexnet.config import load_config
from alexnet.training.update_settings import MomentumSettings
from tests import tiny

FILES = ["lr_find.csv", "lr_find.png"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("data") / "set", train=48)


def lr_find(data, to, *arguments):
    return main(["lr-find", f"data={data}", "model=tiny", "batch_size=8", "threads=1", "--to", str(to), *arguments])


@pytest.mark.slow
def test_command_proposes_rate_and_writes_files(data, tmp_path, capsys):
    assert lr_find(data, tmp_path, "learning_rate=3", "--steps", "30", "momentum=0.8") == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    command = lines[-1].split()
    assert command[:2] == ["python", "train.py"]
    config = load_config(command[2:])
    assert f"proposal: learning_rate={config.learning_rate:g} for update=momentum batch_size=8" in lines
    assert 0 < config.learning_rate < 3
    assert config.section(MomentumSettings).momentum == 0.8
    with (tmp_path / "lr_find.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["run"] for row in rows} >= {"sweep", "trial 1", "trial 2", "trial 3"}
    assert float(rows[0]["learning_rate"]) == pytest.approx(1e-7)


@pytest.mark.parametrize("arguments", [
    ["backend=numpy", "update=adagrad"], ["update=adadelta", "use_data_layer=false", "ema_decay=0.9"],
    ["update=lars", "clip_norm=1", "micro_batch_size=4"],
    pytest.param(["backend=jax", "micro_batch_size=4"], marks=pytest.mark.slow),
], ids=" ".join)
def test_command_works_with(arguments, data, tmp_path, capsys):
    assert lr_find(data, tmp_path, *arguments, "--steps", "20", "--no-trials") == 0
    assert "proposal: learning_rate=" in capsys.readouterr().out


def test_command_starts_from_weights_with_frozen_layers(data, tmp_path, capsys):
    weights = tiny.run(data, tmp_path, batch_size=8, n_epochs=1)
    before = sorted(weights.iterdir())
    assert lr_find(data, tmp_path / "to", f"weights={weights}", "frozen_layers=conv1", "--steps", "20",
                   "--no-trials") == 0
    assert "conv1 does not change" in capsys.readouterr().err
    assert sorted(weights.iterdir()) == before


@pytest.mark.slow
def test_trials_on_plateau_become_longer(data, tmp_path, capsys, monkeypatch):
    results = iter([True, False])
    monkeypatch.setattr(command_module, "LENGTHS", (20, 60, 1000))
    monkeypatch.setattr(command_module, "is_plateau", lambda *_: next(results))
    assert lr_find(data, tmp_path, "momentum=0.8") == 0
    before, found, after = capsys.readouterr().out.partition("no trial has lowered the cost, so the next ones have 60 ")
    assert found
    assert "after 20 steps" in before
    assert "so the next ones have 1000 steps" not in after
    with (tmp_path / "lr_find.csv").open(encoding="utf-8", newline="") as file:
        assert [row["run"] for row in csv.DictReader(file)].count("trial 1") == 60


@pytest.mark.slow
def test_rates_too_low_to_learn_are_reported(data, tmp_path, capsys):
    assert lr_find(data, tmp_path, "--steps", "20", "--first", "1e-12", "--last", "1e-10") == 1
    assert "no proposal: no rate lowers the cost below" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["resume_train=latest"], "so resume_train must be null, got latest"),
    (["lr=3"], "there is no setting 'lr'; did you mean learning_rate?"),
    (["batch_size=49"], "batch size 49 is larger than the set of 48 images"),
    (["--first", "1", "--last", "0.1"], "--first must be less than --last = 0.1, got 1"),
])
def test_bad_input_is_refused_in_one_sentence(arguments, sentence, data, tmp_path, capsys):
    given = [f"data={data}", "model=tiny", "--to", str(tmp_path / "to"), *arguments]
    assert main(["lr-find", *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("alexnet lr-find: ")
    assert sentence in line
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("option", [["--steps", "3"], ["--first", "-1"]])
def test_bad_options_are_refused(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["lr-find", *option])
    assert f"got '{option[1]}'" in capsys.readouterr().err
