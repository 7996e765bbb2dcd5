"""Plots: data, labels and filter pixels match the files of a run."""

import io
import json
import re
from itertools import accumulate
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from alexnet.plots import drawing as plots
from alexnet.plots import records, style
from alexnet.plots.mosaic import mosaic
from alexnet.run import checkpoint_format
from alexnet.run.recorder import RunRecorder
from alexnet.training.timing import TIMES, Lap

pytestmark = pytest.mark.slow


class Clock:
    """A clock that only tests advance."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def record(folder, iterations=40, per_epoch=8, cost=lambda iteration: 2.3 * 0.95**iteration, validated=True):
    """Record a synthetic run: each iteration takes 0.5 s calc, 0.2 s wait, 0.1 s other; the rate drops half-way."""
    clock = Clock()
    with RunRecorder(folder, stream=io.StringIO(), clock=clock) as recorder:
        for iteration in range(1, iterations + 1):
            rate = 0.01 if iteration <= iterations / 2 else 0.001
            for section, seconds in (("wait", 0.2), ("calc", 0.5)):
                with recorder.time(section):
                    clock.now += seconds
            clock.now += 0.1
            recorder.train_iteration(
                iteration=iteration, epoch=iteration / per_epoch, cost=cost(iteration), error=0.9 * 0.97**iteration,
                learning_rate=rate, images=8,
            )
            if validated and iteration % per_epoch == 0:
                clock.now += 3
                recorder.epoch(
                    epoch=iteration // per_epoch, iteration=iteration, cost=cost(iteration), top1_error=0.5,
                    top5_error=0.125, learning_rate=rate, images=50,
                )


def size_of(path):
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return image.size


@pytest.fixture
def drawn(monkeypatch):
    """Return the list of saved figures."""
    figures, savefig = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (figures.append(figure), savefig(figure, *a, **k)))
    return figures


def test_learning_curves_show_the_records(tmp_path, drawn):
    folder = tmp_path / "some run"
    record(folder)
    (path,) = plots.learning_curves(folder)
    assert path == folder / "learning_curves.png"
    assert min(size_of(path)) > 500
    (figure,) = drawn
    cost, error = figure.axes
    assert cost.get_ylabel() == "cost (nats per image)"
    assert error.get_ylabel() == "error (% of images)"
    assert error.get_xlabel() == "epoch"
    assert figure.get_suptitle() == "some run, epoch 5: top-1 error 50.00%"
    lines = {line.get_label(): line.get_xydata() for line in (*cost.lines, *error.lines)}
    np.testing.assert_allclose(lines["training"][:, 1], [2.3 * 0.95**i for i in range(1, 41)])
    np.testing.assert_array_equal(lines["validation"][:, 0], [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(lines["validation, top-1"][:, 1], [50] * 5)
    np.testing.assert_array_equal(lines["validation, top-5"][:, 1], [12.5] * 5)


def test_learning_rate_drops_are_marked(tmp_path, drawn):
    record(tmp_path)
    plots.learning_curves(tmp_path)
    cost, error = drawn[0].axes
    for axes in (cost, error):
        assert [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"] == [20 / 8]
    assert [text.get_text().strip() for text in cost.texts] == ["rate 0.001"]


def test_long_training_curve_is_averaged(tmp_path, drawn):
    record(tmp_path, iterations=901, cost=float)
    plots.learning_curves(tmp_path)
    points = drawn[0].axes[0].lines[0].get_xydata()
    assert len(points) == 226                               # intervals of four, and the last one
    np.testing.assert_allclose(points[0], [(1 + 2 + 3 + 4) / 4 / 8, 2.5])
    np.testing.assert_allclose(points[-1], [901 / 8, 901])


def test_curves_without_validation_and_with_nan_are_drawn(tmp_path):
    record(tmp_path, validated=False, cost=lambda iteration: float("nan") if iteration > 3 else 2.0)
    assert min(size_of(*plots.learning_curves(tmp_path))) > 0


def test_run_without_steps_is_drawn_empty(tmp_path):
    record(tmp_path, iterations=0)
    assert min(size_of(*plots.learning_curves(tmp_path))) > 0


def test_folder_without_records_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no run's folder: it has no records.jsonl"):
        plots.learning_curves(tmp_path)


def test_filters_are_tiles_scaled_separately(tmp_path):
    weights = np.random.default_rng(0).normal(size=(3, 11, 11, 96)).astype("float32") * np.logspace(-3, 3, 96)
    weights[..., 95] = 0
    grid = mosaic(weights)
    assert grid.shape == (8 * 12 - 1, 12 * 12 - 1, 3)
    tile = grid[12 : 12 + 11, 24 : 24 + 11]                 # second row, third column: filter 14
    expected = 0.5 + 0.5 * np.moveaxis(weights[..., 14], 0, -1) / np.abs(weights[..., 14]).max()
    np.testing.assert_allclose(tile, expected)
    assert (grid[11] == 1).all()
    assert (grid[-11:, -11:] == 0.5).all()
    width, height = size_of(*plots.filters(weights, tmp_path / "filters.png"))
    assert width > 500
    assert height > 500


def test_filters_are_sorted_by_their_change(tmp_path, drawn):
    initial = np.random.default_rng(0).normal(size=(3, 5, 5, 6)).astype("float32")
    weights = initial.copy()
    weights[:, 2, 2, 4] += 0.5
    plots.filters(weights, tmp_path / "filters.png", initial=initial)
    change, now = drawn[0].axes
    assert (change.get_title(), now.get_title()) == ("change since initialisation", "now")
    expected = np.full((5, 5, 3), 0.5)
    expected[2, 2] = 1
    np.testing.assert_allclose(np.asarray(change.images[0].get_array())[:5, :5], expected, atol=1e-6)
    np.testing.assert_allclose(now.images[0].get_array(), mosaic(weights[..., [4, 0, 1, 2, 3, 5]]))


@pytest.mark.parametrize(("classes", "errors"), [(19, ["top-1"]), (20, ["top-1", "top-5"])])
def test_few_classes_have_no_top5(tmp_path, drawn, classes, errors):
    for name in ("a", "b"):
        record(tmp_path / name)
        checkpoint_format.save(checkpoint_format.snapshot_path(tmp_path / name, 3), {}, {"classes": classes})
    plots.learning_curves(tmp_path / "a")
    plots.comparison(records.read_runs([tmp_path / "a", tmp_path / "b"]), tmp_path)
    single, compared = drawn
    lines = {line.get_label(): line.get_ydata() for line in single.axes[1].lines}
    assert [name for name in ("top-1", "top-5") if f"validation, {name}" in lines] == errors
    np.testing.assert_allclose(lines["chance"], 100 - 100 / classes)
    assert [axes.get_title().split()[0] for axes in compared.axes[1:]] == errors


def test_filters_without_three_channels_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must have 3 input channels .*, got weights of shape \(4, 2, 2, 5\)"):
        plots.filters(np.zeros((4, 2, 2, 5)), tmp_path / "filters.png")


def test_run_is_drawn_from_records_and_newest_checkpoint(tmp_path):
    record(tmp_path)
    assert plots.draw([tmp_path]) == [tmp_path / "learning_curves.png", tmp_path / "times.png"]
    weights = {"conv1.W": np.ones((3, 5, 5, 6), dtype="float32")}
    checkpoint_format.save(checkpoint_format.snapshot_path(tmp_path, 3), weights, {})
    assert plots.draw([tmp_path])[-1] == tmp_path / "filters.png"
    assert not list(tmp_path.glob(".*"))         # no partial files remain


# ---- time


def test_hours_include_validations_and_earlier_runs(tmp_path):
    for first in (0, 8):
        clock = Clock()
        with RunRecorder(tmp_path, stream=io.StringIO(), clock=clock) as recorder:
            recorder.truncate(first)
            for iteration in range(first + 1, first + 9):
                recorder.restart()
                with recorder.time("calc"):
                    clock.now += 450
                recorder.train_iteration(
                    iteration=iteration, epoch=iteration / 8, cost=1, error=0, learning_rate=0.1, images=8
                )
            clock.now += 1800
            recorder.epoch(
                epoch=first // 8 + 1, iteration=first + 8, cost=1.0, top1_error=0.5, top5_error=0.1,
                learning_rate=0.1, images=8,
            )
    run = records.read_run(tmp_path)
    seconds = [json.loads(line)["seconds"] for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    hours = [total / 3600 for total in accumulate(seconds)]
    np.testing.assert_allclose(run.train["hours"], hours[:8] + hours[9:17])
    np.testing.assert_allclose(run.validation["hours"], [1.5, 3.0])


def test_curves_over_hours_are_a_separate_picture(tmp_path, drawn):
    record(tmp_path)
    (path,) = plots.learning_curves(tmp_path, over="hours")
    assert path == tmp_path / "learning_curves_over_hours.png"
    _, error = drawn[0].axes
    assert error.get_xlabel() == "minutes of training and validation"            # of a run below two hours
    np.testing.assert_allclose(error.lines[0].get_xdata()[-1], (40 * 0.8 + 4 * 3) / 60)
    np.testing.assert_allclose(error.lines[1].get_xdata()[-1], (40 * 0.8 + 5 * 3) / 60)


def heights(axes):
    """Return {label: (left edges, heights)} of each bar group."""
    return {
        group.get_label().split()[0]: np.array([(bar.get_x(), bar.get_height()) for bar in group]).T
        for group in axes.containers
    }


@pytest.mark.parametrize("iterations, stretches", [(1, 1), (40, 40), (250, 84)])
def test_times_are_stacked_per_20_iterations(tmp_path, drawn, iterations, stretches):
    record(tmp_path, iterations)
    plots.times_over_run(records.read_run(tmp_path), tmp_path)
    (axes,) = drawn[0].axes
    stacks = heights(axes)
    assert list(stacks) == ["calc", "sync", "comm", "wait", "other"]
    for section, seconds in (("calc", 10), ("sync", 0), ("comm", 0), ("wait", 4), ("other", 2)):
        np.testing.assert_allclose(stacks[section][1], [seconds] * stretches, atol=1e-9)
    assert stacks["calc"][0][0] == 0
    last = axes.containers[0][-1]
    assert last.get_x() + last.get_width() == iterations / 8
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == [
        "calc 62.5%", "sync 0.0%", "comm 0.0%", "wait 25.0%", "other 12.5%",
    ]


def laps(folder, workers, rate, n=2, exchanging=0.25, **settings):
    """Record a synthetic run of `workers` at `rate` images/s, with a fraction `exchanging` of comm and sync time."""
    seconds = 5120 / rate
    with RunRecorder(folder, stream=io.StringIO()) as recorder:
        for lap in range(1, n + 1):
            recorder.laps([
                Lap(lap, lap / 2, 5120, seconds, (1 - exchanging) * seconds, 0.2 * exchanging * seconds,
                    0.8 * exchanging * seconds, 0.0)
            ] * workers)
    if settings:
        (folder / "config.yaml").write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))


def test_run_with_laps_shows_time_per_5120_images(tmp_path, drawn):
    record(tmp_path)
    laps(tmp_path, 4, rate=512)
    plots.times_over_run(records.read_run(tmp_path), tmp_path)
    iterations, images = drawn[0].axes
    assert (iterations.get_ylabel(), images.get_ylabel()) == (
        "seconds per 20 iterations", "seconds per 5,120 images",
    )
    stacks = heights(images)
    for section, seconds in (("calc", 7.5), ("sync", 0.5), ("comm", 2.0), ("wait", 0), ("other", 0)):
        np.testing.assert_allclose(stacks[section], [[0, 0.5], [seconds] * 2], atol=1e-9)
    assert images.get_title() == "10.0 s, 512 images/s, 25% comm and sync"


def test_laps_do_not_count_as_hours(tmp_path):
    record(tmp_path, iterations=8, validated=False)
    before = records.read_run(tmp_path)
    laps(tmp_path, 2, rate=1)
    with RunRecorder(tmp_path, stream=io.StringIO()) as recorder:
        recorder.train_iteration(iteration=9, epoch=2, cost=1, error=0, learning_rate=0.1, images=8)
    after = records.read_run(tmp_path)
    np.testing.assert_array_equal(after.train["hours"][:8], before.train["hours"])
    assert after.train["hours"][8] == before.train["hours"][7]
    assert after.workers == 2


# ---- several runs


def apart(folder, steps, seconds):
    """Record a synthetic run of asynchronous workers; all steps of one worker are recorded before those of the next."""
    clock = Clock()
    with RunRecorder(folder, stream=io.StringIO(), clock=clock) as recorder:
        for worker, (n, each) in enumerate(zip(steps, seconds, strict=True)):
            for step in range(1, n + 1):
                recorder.train_iteration(
                    iteration=step, epoch=step / 4, cost=10 * step + worker, error=0.5, worker=worker,
                    learning_rate=0.1 if step <= n / 2 else 0.01, images=8,
                    times=dict.fromkeys(TIMES, 0.0) | {"seconds": each, "calc": each},
                )
        with recorder.time("calc"):
            clock.now += 18000
            recorder.epoch(
                epoch=1, iteration=4, cost=1.0, top1_error=0.5, top5_error=0.1, learning_rate=0.1, images=8
            )


def test_curves_average_over_asynchronous_workers(tmp_path, drawn):
    apart(tmp_path, (8, 8), (900, 1800))
    run = records.read_run(tmp_path)
    np.testing.assert_allclose(run.train["hours"], [*np.arange(1, 9) / 4, *np.arange(1, 9) / 2])
    np.testing.assert_allclose(run.validation["hours"], [4])              # validation is asynchronous
    assert run.workers == 2
    plots.learning_curves(run)
    plots.learning_curves(run, over="hours")
    cost = drawn[0].axes[0]
    np.testing.assert_allclose(cost.lines[0].get_xydata(), [[k / 4, 10 * k + 0.5] for k in range(1, 9)])
    assert [text.get_text().strip() for text in cost.texts] == ["rate 0.01"]
    assert (np.diff(drawn[1].axes[0].lines[0].get_xdata()) > 0).all()


def test_legend_names_what_differs_between_runs(tmp_path, drawn):
    rules = {
        "a": {"rule": "bsp", "sync": "avg", "exchange": "ar"}, "b": {"rule": "bsp", "sync": "cdd", "exchange": "asa16"},
        "easgd": {"rule": "easgd", "sync": "avg", "exchange": "auto"}, "d": {"rule": "gosgd"},
    }
    for name, settings in rules.items():
        record(tmp_path / name, validated=False)
        (tmp_path / name / "config.yaml").write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))
    plots.comparison(records.read_runs([tmp_path / name for name in rules]), tmp_path)
    assert [text.get_text().split(":")[0] for text in drawn[0].legends[0].get_texts()] == [
        "a (bsp avg, ar)", "b (bsp cdd, asa16)", "easgd", "d (gosgd)",
    ]


def test_speedup_is_relative_to_one_worker(tmp_path, drawn):
    bsp = {"model": "alexnet", "rule": "bsp", "sync": "avg"}
    laps(tmp_path / "1", 1, rate=100, exchanging=0, **bsp)
    laps(tmp_path / "2", 2, rate=180, exchanging=0.1, exchange="asa32", **bsp)
    laps(tmp_path / "4", 4, rate=300, exchanging=0.25, exchange="asa32", **bsp)
    laps(tmp_path / "4 slow", 4, rate=250, exchanging=0.5, exchange="asa32", **bsp)
    laps(tmp_path / "4 other", 4, rate=360, exchanging=0.05, exchange="asa16", **bsp)
    folders = [tmp_path / name for name in ("4 other", "4", "1", "2", "4 slow")]
    assert tmp_path / "compared" / "4 other+4+1+2+4 slow" / "speedup.png" in plots.draw(folders)
    figure = drawn[-1]
    gain, cost = figure.axes
    lines = {line.get_label(): line.get_xydata() for line in gain.lines}
    assert list(lines) == ["ideal", "alexnet, bsp avg, asa16", "alexnet, bsp avg, asa32"]
    np.testing.assert_allclose(lines["ideal"], [[1, 1], [4, 4]])
    np.testing.assert_allclose(lines["alexnet, bsp avg, asa32"], [[1, 1], [2, 1.8], [4, 3]])
    np.testing.assert_allclose(lines["alexnet, bsp avg, asa16"], [[1, 1], [4, 3.6]])
    np.testing.assert_allclose(cost.lines[1].get_xydata(), [[1, 0], [2, 10], [4, 25]], atol=1e-9)


def test_speedup_without_single_worker_is_relative_to_fewest(tmp_path, drawn):
    for n, rate in ((2, 100), (32, 800)):
        laps(tmp_path / str(n), n, rate)
    plots.speedup(records.read_runs([tmp_path / "2", tmp_path / "32"]), tmp_path)
    (figure,) = drawn
    _, line = figure.axes[0].lines
    assert line.get_label() == "runs (relative to 2 workers)"
    np.testing.assert_allclose(line.get_xydata(), [[2, 2], [32, 16]])
    assert figure.axes[0].get_yscale() == figure.axes[0].get_xscale() == "log"


def test_speedup_does_not_compare_different_models(tmp_path, drawn):
    for model, rate in (("alexnet", 100), ("googlenet", 30)):
        for n in (1, 2):
            laps(tmp_path / f"{model}{n}", n, n * rate, model=model, rule="bsp")
    plots.speedup(records.read_runs(sorted(tmp_path.iterdir())), tmp_path)
    for line in drawn[0].axes[0].lines:
        np.testing.assert_allclose(line.get_xydata(), [[1, 1], [2, 2]])


def test_equal_worker_counts_have_no_speedup(tmp_path):
    laps(tmp_path / "a", 2, 100)
    laps(tmp_path / "b", 2, 200)
    record(tmp_path / "c", iterations=3)
    assert plots.speedup(records.read_runs([tmp_path / "a", tmp_path / "b", tmp_path / "c"]), tmp_path) == []


def test_folder_of_older_recorder_is_drawn(tmp_path):
    record(tmp_path)
    path = tmp_path / "records.jsonl"
    text = re.sub(r', "crc32": "\w+"', "", path.read_text()).replace('"worker": null, ', "")
    path.write_text(text)
    (tmp_path / "speed.csv").unlink()
    (tmp_path / "config.yaml").write_text("a_setting_that_is_no_more: 3\n")
    run = records.read_run(tmp_path)
    assert (run.workers, run.settings, len(run.train["worker"])) == (0, {"a_setting_that_is_no_more": 3}, 40)
    assert plots.draw([tmp_path]) == [tmp_path / "learning_curves.png", tmp_path / "times.png"]


@pytest.fixture
def three_runs(tmp_path):
    """Record three runs: two of the same name, and one without validation."""
    record(tmp_path / "a" / "run")
    record(tmp_path / "b" / "run", cost=lambda iteration: 3.0)
    record(tmp_path / "c_$x$", validated=False)
    return [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "c_$x$"]


def test_several_runs_share_one_figure(three_runs, tmp_path, drawn):
    weights = {"conv1.W": np.ones((3, 5, 5, 6), dtype="float32")}
    checkpoint_format.save(checkpoint_format.snapshot_path(three_runs[1], 3), weights, {})
    pictures = plots.draw([*three_runs, three_runs[0]])                  # one run is given twice
    place = tmp_path / "compared" / "run+run+c_$x$"
    assert pictures == [place / f"{name}.png" for name in ("learning_curves", "times", "filters")]
    curves, times, filters = drawn
    assert [axes.get_title() for axes in curves.axes] == [
        "cost (nats per image)", "top-1 error (% of images)", "top-5 error (% of images)",
    ]
    named = {text.get_text(): line for text, line in zip(
        curves.legends[0].get_texts(), curves.legends[0].get_lines(), strict=True
    )}
    assert list(named) == [
        "a/run: top-1 50.00%, top-5 12.50%, epoch 5",
        "b/run: top-1 50.00%, top-5 12.50%, epoch 5",
        r"c_\$x\$: not validated yet",
    ]
    assert len({line.get_color() for line in named.values()}) == 3
    training_of_b, validation_of_b = curves.axes[0].lines[2:4]
    np.testing.assert_array_equal(training_of_b.get_ydata(), [3.0] * 40)
    np.testing.assert_array_equal(validation_of_b.get_xydata(), [[epoch, 3.0] for epoch in (1, 2, 3, 4, 5)])
    np.testing.assert_array_equal(curves.axes[2].lines[1].get_ydata(), [12.5] * 5)
    calc, wait = (times.axes[0].containers[index] for index in (0, 3))
    np.testing.assert_allclose([bar.get_width() for bar in calc], [10] * 3)
    np.testing.assert_allclose([bar.get_x() for bar in wait], [10] * 3)
    assert [text.get_text().strip() for text in times.axes[0].texts] == ["16.0 s, 10.0 images/s"] * 3
    assert [axes.get_title() for axes in filters.axes] == ["b/run"]


def test_styles_of_many_runs_are_distinct():
    looks = [look for look, _ in zip(style.styles(), range(28), strict=False)]
    assert len(set(looks)) == 28


def test_runs_of_equal_names_are_named_by_folder(tmp_path):
    places = [tmp_path / name for name in ("a/x/run", "b/x/run", "b/other", "y/run")]
    assert records.distinct_names(places) == ["a/x/run", "b/x/run", "other", "y/run"]


def test_pictures_are_written_to_the_given_folder_in_all_formats(three_runs, tmp_path):
    pictures = plots.draw(three_runs[:2], tmp_path / "new" / "folder", style.FORMATS, "hours")
    names = [f"{name}.{ending}" for name in ("learning_curves_over_hours", "times") for ending in ("png", "svg", "pdf")]
    assert pictures == [tmp_path / "new" / "folder" / name for name in names]
    assert sorted(pictures) == sorted((tmp_path / "new" / "folder").iterdir())
    size_of(pictures[0])
    assert ElementTree.parse(pictures[1]).getroot().tag.endswith("svg")
    assert pictures[2].read_bytes().startswith(b"%PDF")


def test_runs_without_steps_have_no_times(tmp_path):
    for name in ("a", "b"):
        record(tmp_path / name, iterations=0)
    assert plots.draw([tmp_path / "a"]) == [tmp_path / "a" / "learning_curves.png"]
    assert plots.draw([tmp_path / "a", tmp_path / "b"]) == [
        tmp_path / "compared" / "a+b" / "learning_curves.png"
    ]


@pytest.mark.parametrize("line", ["{", "[]", "3", "{}"])
def test_damaged_record_is_refused_with_its_line(tmp_path, line):
    record(tmp_path, iterations=2)
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"line 3 of .*records\.jsonl is not a record of a run"):
        plots.learning_curves(tmp_path)


def test_plot_of_pushes_matches_the_records(tmp_path, drawn):
    record(tmp_path)
    with RunRecorder(tmp_path, stream=io.StringIO()) as recorder:
        for version, (client, staleness, waiting) in enumerate([(1, 0, 2.0), (2, 1, 4.0), (1, 1, 6.0), (2, 4, 8.0)], 1):
            recorder.record(
                "push", client=client, iteration=version, version=version, staleness=staleness, waiting=waiting,
                serving=1.0, bytes=8,
            )
    assert tmp_path / "pushes.png" in plots.draw([tmp_path])
    stale, waits = next(figure for figure in drawn if "staleness" in figure.axes[0].get_title()).axes
    assert [bar.get_height() for bar in stale.patches] == [1, 2, 0, 0, 1]
    assert stale.get_title() == "staleness of 4 pushes of 2 clients"
    (waited, _, _), (served, _, _) = (container.lines for container in waits.containers)
    assert waited.get_ydata().tolist() == [4, 6] and served.get_ydata().tolist() == [1, 1]


def test_unknown_kinds_of_records_are_read_and_not_drawn(tmp_path):
    record(tmp_path, iterations=2)
    with RunRecorder(tmp_path, stream=io.StringIO()) as recorder:
        recorder.record("gossip", iteration=1, peer=3)
        recorder.record("gossip", iteration=2, peer=None)
    run = records.read_run(tmp_path)
    np.testing.assert_array_equal(run.records["gossip"]["peer"], [3, np.nan])
    assert len(run.train["cost"]) == 2
    assert plots.draw([tmp_path]) == [tmp_path / "learning_curves.png", tmp_path / "times.png"]
