"""report.html: what the page holds, from runs of the tiny network and from made predictions."""

import gc
import io
import platform
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure

from alexnet.__main__ import main
from alexnet.data.dataset import open_dataset
from alexnet.plots.report import history, run_report
from alexnet.plots.report.history import History
from alexnet.plots.report.predictions import SAMPLE, WORST, Predictions
from alexnet.plots.report.run_report import RunReport, write_report
from alexnet.run.recorder import RunRecorder, WorkerRecorder, read_records
from alexnet.training.loop import Position
from tests import tiny

EMPTY = {"meta", "img", "br"}                    # HTML elements without an end


class Page(HTMLParser):
    """The elements and headings of a page; raises AssertionError if elements are not nested correctly."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.open, self.text = [], [], {}
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)

    def with_class(self, name):
        return [attributes for _, attributes in self.elements if name in (attributes.get("class") or "").split()]


def assert_needs_no_network(page):
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        assert attributes.get("src", "data:").startswith("data:")
        assert "href" not in attributes
    assert "url(" not in "".join(page.text["style"]) and "@import" not in "".join(page.text["style"])


@pytest.mark.slow
def test_report_of_a_run_matches_its_records(tmp_path):
    folder = tiny.run(tiny.make_data(tmp_path / "data"), tmp_path / "runs")
    page = Page(folder / "report.html")
    assert_needs_no_network(page)
    assert page.text["h2"] == [
        "Learning curves", "Where the time goes", "Filters of the first layer", "Validation images", "Worst mistakes",
        "Confusion matrix", "Commands to paste", "Settings",
    ]
    error = [record["top1_error"] for record in read_records(folder) if record["kind"] == "validation"][-1]
    assert page.text["h1"] == [f"tiny on data, epoch 2: top-1 error {error:.2%}"]
    stored = history.load(folder)
    confusion = stored.validated.confusion
    assert confusion.sum() == 10
    np.testing.assert_allclose(1 - np.trace(confusion) / 10, error)
    shown = [*stored.validated.sample, *stored.validated.worst]
    assert len(page.with_class("card")) == len(shown)
    assert len(page.with_class("right")) == sum(example.right for example in shown)
    assert "top-5" not in "".join(page.text["span"])                     # 3 classes
    for path in (attributes["d"] for tag, attributes in page.elements if tag == "path"):
        assert "nan" not in path and "inf" not in path
    before = (folder / "report.html").read_text(encoding="utf-8")
    (folder / "report.html").unlink()
    assert main(["report", str(folder)]) == 0
    unwritten = re.compile(r"written [-0-9 :]+")
    assert unwritten.sub("", (folder / "report.html").read_text(encoding="utf-8")) == unwritten.sub("", before)


@pytest.mark.slow
def test_resumed_run_keeps_its_initial_filters(tmp_path):
    data = tiny.make_data(tmp_path / "data")
    folder = tiny.run(data, tmp_path / "runs", n_epochs=1)
    initial = history.load(folder).initial
    tiny.run(data, tmp_path / "runs", resume_train=folder, n_epochs=2)
    filters = history.load(folder).filters
    assert list(filters) == [0, 1, 2]
    np.testing.assert_array_equal(filters[0], initial)
    assert (filters[2] != filters[1]).any()


def recorded(folder):
    """Make the folder of a run with one step and one validation."""
    with RunRecorder(folder, stream=io.StringIO()) as recorder:
        recorder.train_iteration(iteration=1, epoch=1, cost=1, error=0, learning_rate=0.1, images=2)
        recorder.epoch(
            epoch=1, iteration=1, cost=1, top1_error=0.5, top5_error=0.1, learning_rate=0.1, images=4
        )
    return folder


def predicted(classes, n=40, seed=0):
    """Return Predictions of random logits, in batches of 8, with the logits and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n).astype("int32")
    logits = rng.normal(size=(classes, n)).astype("float32")
    predictions = Predictions(classes, n, np.zeros((3, 256, 256), "float32"))
    for first in range(0, n, 8):
        part = slice(first, first + 8)
        images = np.broadcast_to(np.arange(first, min(first + 8, n), dtype="uint8"), (3, 256, 256, len(labels[part])))
        predictions.add(images, labels[part], logits[:, part])
    return predictions, labels, logits


def test_worst_mistakes_are_those_of_all_batches():
    predictions, labels, logits = predicted(4)
    probabilities = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(axis=0)
    of_label = probabilities[labels, np.arange(40)]
    wrong = np.flatnonzero(logits.argmax(axis=0) != labels)
    expected = wrong[np.argsort(of_label[wrong])][:WORST]
    assert [example.label for example in predictions.worst] == labels[expected].tolist()
    np.testing.assert_allclose([np.exp(-example.cost) for example in predictions.worst], of_label[expected], rtol=1e-5)
    assert len(predictions.sample) == SAMPLE
    for example in predictions.sample:
        assert [p for _, p in example.guesses] == sorted((p for _, p in example.guesses), reverse=True)


def test_float_images_are_shown_with_their_mean():
    mean = np.full((3, 256, 256), 100, "float32")
    sums = {}
    for name, images in (("graph", np.full((3, 256, 256, 1), 130, "uint8")),
                         ("loader", np.full((3, 227, 227, 1), 30, "float32"))):
        predictions = Predictions(2, 1, mean)
        predictions.add(images, np.zeros(1, "int32"), np.zeros((2, 1), "float32"))
        sums[name] = predictions.sample[0].jpeg
    assert sums["graph"] == sums["loader"]


def test_class_names_are_escaped(tmp_path):
    predictions, _, _ = predicted(3)
    names = ["<script>alert(1)</script>", "n01440764 tench, Tinca tinca", 'a "quoted" & name']
    stored = History(3, names)
    stored.add_predictions(predictions, 1, 1, 40)
    page = Page(write_report(recorded(tmp_path / "run"), stored))
    assert_needs_no_network(page)
    texts = "".join(text for texts in page.text.values() for text in texts)
    assert names[0] in texts and "tench" in texts and "Tinca" not in texts


def test_many_classes_are_listed_by_mistake_and_have_top5(tmp_path):
    predictions, labels, logits = predicted(40)
    stored = History(40)
    stored.add_predictions(predictions, 1, 1, 80)
    (tmp_path / "run").mkdir()
    history.save(stored, tmp_path / "run")
    page = Page(write_report(recorded(tmp_path / "run")))
    assert page.with_class("confusion") == []
    assert "top-5 error" in page.text["span"]
    assert any("the share of worker 0" in text for text in page.text["p"])      # 40 of 80 images


def test_failed_report_is_a_warning(tmp_path, monkeypatch):
    data = open_dataset(tiny.make_data(tmp_path / "data"))
    warnings = []
    recorder = WorkerRecorder(0)
    monkeypatch.setattr(recorder, "warn", warnings.append)
    (tmp_path / "run").mkdir()
    report = RunReport(tmp_path / "run", {}, data, recorder, Position(), tiny.settings("none", "none"))
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    report.epoch_ended(Position(1, 0, 6))
    assert len(warnings) == 1 and "report.html was not written" in warnings[0]


def test_report_that_takes_long_is_not_written_after_every_epoch(tmp_path, monkeypatch):
    """It takes a second here, so at a share of 2 % the next one is due 50 seconds later, or at the end of the run."""
    data = open_dataset(tiny.make_data(tmp_path / "data"))
    (tmp_path / "run").mkdir()
    now, written, stored = [0.0], [], []

    def take_a_second(folder, found):
        now[0] += 1
        written.append(now[0])

    monkeypatch.setattr(run_report, "write_report", take_a_second)
    monkeypatch.setattr(history, "save", lambda found, folder: stored.append(now[0]))
    recorder = WorkerRecorder(0, clock=lambda: now[0])
    report = RunReport(tmp_path / "run", {}, data, recorder, Position(), tiny.settings("none", "none"))
    monkeypatch.setattr(report, "draw", lambda position: None)
    for epoch, seconds in ((1, 0), (2, 40), (3, 12), (4, 12)):
        now[0] += seconds
        report.epoch_ended(Position(epoch, 0, 6 * epoch))
    assert written == [1, 54]
    report.run_ended(Position(4, 0, 24))
    report.run_ended(Position(4, 0, 24))
    assert written == [1, 54, 67] and len(stored) == 6


def test_drawing_leaves_no_figure_in_memory(tmp_path):
    """A figure and its canvas refer to each other; each drawing of a long run would add some MB until a collection."""
    data = open_dataset(tiny.make_data(tmp_path / "data"))
    folder = recorded(tmp_path / "run")
    report = RunReport(folder, {}, data, WorkerRecorder(0), Position(), tiny.settings("none", "none"))
    gc.collect()
    gc.disable()
    try:
        report.draw(Position(1, 0, 6))
        left = [each for each in gc.get_objects() if issubclass(type(each), Figure)]     # each may be a dead proxy
    finally:
        gc.enable()
    assert (folder / "learning_curves.png").exists() and left == []


FREED = """
from pathlib import Path
from alexnet.plots.report.run_report import return_memory
blocks = [b"1" * 50_000 for _ in range(2000)]
last = blocks.pop()
del blocks
before = int(Path("/proc/self/statm").read_text().split()[1])
return_memory()
print(4096 * (before - int(Path("/proc/self/statm").read_text().split()[1])))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_returns_to_the_system():
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 80_000_000
