"""Progress: count, recent rate and remaining time, as plain lines or as one status line on a terminal."""

import io

import pytest

from alexnet.data import progress
from alexnet.data.progress import Progress, duration, status_line


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock and return its state, {"now": seconds}, which tests advance."""
    times = {"now": 100.0}
    monkeypatch.setattr(progress.time, "monotonic", lambda: times["now"])
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: False, raising=False)
    return times


def test_remaining_time_follows_the_recent_rate(clock, capsys):
    counted = Progress("preprocess", 10_000)
    for seconds, images in ((10, 5000), (5, 100), (5, 100), (3, 0), (20, 4800)):     # 5000 resumed images, then new
        clock["now"] += seconds
        counted.add(images)
    assert capsys.readouterr().out.splitlines() == [
        "preprocess 5,000 of 10,000 images, 500 images/s, 10 s left",
        "preprocess 5,200 of 10,000 images, 20 images/s, 4 min left",
        "preprocess 10,000 of 10,000 images, 233 images/s, 0 s left",                # average of the whole run
    ]


def test_no_progress_prints_no_line(clock, capsys):
    counted = Progress("verify", 5)
    clock["now"] += 60
    counted.add(0)
    counted.add(5)
    counted.add(0)
    assert capsys.readouterr().out == "verify 5 of 5 images, 0 images/s, 0 s left\n"


@pytest.mark.parametrize(("seconds", "text"), [(40, "40 s"), (180, "3 min"), (9000, "2.5 h")])
def test_durations_are_formatted(seconds, text):
    assert duration(seconds) == text


def test_status_line_leaves_out_what_does_not_fit():
    figures = ["12 min left", "cost 2.301", "error 85.0%"]
    for columns in (10, 20, 40, 60, 80, 200):
        line = status_line("training", 0.5, figures, columns)
        assert len(line) < columns
        assert columns < 40 or ("#" in line and "12 min left" in line)
    assert status_line("training", 0.5, figures, 200).endswith("training  50%, 12 min left, cost 2.301, error 85.0%")


def test_error_leaves_no_torn_line(monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(progress.sys, "stderr", stream)
    with pytest.raises(KeyboardInterrupt), Progress("preprocess", 10) as counted:
        counted.add(4)
        counted.line.write("a warning")
        raise KeyboardInterrupt
    shown = stream.getvalue()
    assert "preprocess  40%, 4 of 10 images" in shown and "a warning\n" in shown
    assert shown.endswith("\r\x1b[K")
