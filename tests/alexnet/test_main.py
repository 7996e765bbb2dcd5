"""python -m alexnet: the commands and their list, the paper's table, plots of a run."""

import io
import time

import pytest

from alexnet.__main__ import main
from alexnet.run.recorder import RunRecorder


def test_summary_totals_match_the_paper(capsys):
    assert main(["summary"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[-1] == ["total", "60,965,224", "724,406,816"]
    (conv2,) = [line for line in lines if line[0] == "conv2"]
    assert conv2 == ["conv2", "256", "×", "27", "×", "27", "307,456", "223,948,800"]


def test_summary_of_another_number_of_classes(capsys):
    assert main(["summary", "--classes", "10"]) == 0
    assert f"{60_965_224 - 990 * 4097:,}" in capsys.readouterr().out


def test_plot_draws_run(tmp_path, capsys):
    with RunRecorder(tmp_path, stream=io.StringIO()) as recorder:
        with recorder.time("calc"):
            time.sleep(0.001)
        recorder.train_iteration(iteration=1, epoch=0.5, cost=2.0, error=0.9, learning_rate=0.01, images=8)
    assert main(["plot", str(tmp_path)]) == 0
    pictures = [f"{tmp_path / name}.{ending}" for name in ("learning_curves", "times") for ending in ("png", "svg")]
    assert capsys.readouterr().out == "".join(f"drew {picture}\n" for picture in pictures)
    assert main(["plot", str(tmp_path), "--format", "svg", "--to", str(tmp_path / "to"), "--over", "hours"]) == 0
    assert {path.name for path in (tmp_path / "to").iterdir()} == {"learning_curves_over_hours.svg", "times.svg"}


def test_unknown_formats_are_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["plot", "run", "--format", "png,gif"])
    assert ended.value.code == 2
    assert "must be png, svg, pdf, or several of them, got 'gif'" in capsys.readouterr().err


def test_plot_refuses_other_folders(tmp_path, capsys):
    assert main(["plot", str(tmp_path)]) == 2
    expected = f"alexnet plot: {tmp_path} is no run's folder: it has no records.jsonl\n"
    assert capsys.readouterr().err == expected


def test_plot_skips_what_is_no_run(tmp_path, capsys):
    for name in ("a", "b"):
        RunRecorder(tmp_path / name, stream=io.StringIO()).close()
    (tmp_path / "notes.txt").touch()
    for _ in range(2):                           # the second time, the pictures of the first are skipped, too
        assert main(["plot", *map(str, sorted(tmp_path.iterdir())), "--format", "png"]) == 0
        out, err = capsys.readouterr()
        assert out == f"drew {tmp_path / 'compared' / 'a+b' / 'learning_curves.png'}\n"
    left_out = f"{tmp_path / 'compared'}, {tmp_path / 'notes.txt'}"
    assert err == f"skipped, because they are no folders of runs: {left_out}\n"
    assert main(["plot", str(tmp_path / "a"), str(tmp_path / "tpyo")]) == 2
    assert "there is no run folder" in capsys.readouterr().err


def test_train_passes_all_arguments_on(monkeypatch):
    received = []
    monkeypatch.setattr("multigpu.train.main", lambda arguments: received.append(arguments) or 3)
    assert main(["train", "--help", "data=x", "n_epochs=1"]) == 3
    monkeypatch.setattr("sys.argv", ["alexnet", "train", "rule=bsp"])
    assert main() == 3
    assert received == [["--help", "data=x", "n_epochs=1"], ["rule=bsp"]]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("sumary", "there is no command 'sumary'; did you mean summary?"),
        ("data=x", "settings belong to the command train: alexnet train data=x ..."),
    ],
)
def test_unknown_command_is_refused_with_a_suggestion(command, message, capsys):
    assert main([command]) == 2
    assert capsys.readouterr().err == f"alexnet: {message}\n"


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_lists_every_command(arguments, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["alexnet"])
    with pytest.raises(SystemExit, match="0"):
        main(arguments)
    lines = capsys.readouterr().out.split("--help:")[1].strip().splitlines()
    listed = {line.split()[0]: line for line in lines}
    others = ["diagnose", "evaluate", "export", "lr-find", "plot", "predict", "report", "summary"]
    assert list(listed) == ["train", *others]
    assert listed["plot"].endswith("of one or several runs.")
