"""The parts of report.html, each a function that returns HTML."""

import base64
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from alexnet.config import DEFAULTS, read_settings
from alexnet.plots.mosaic import by_change, mosaic
from alexnet.plots.records import RecordedRun, rate_drops, smoothed, title_of, with_other
from alexnet.plots.report.chart import Curve, Mark, chart
from alexnet.plots.report.history import History, Validated
from alexnet.plots.report.predictions import Example
from alexnet.training.timing import SECTIONS

POINTS = 120                            # maximum points of a training curve
LARGEST_MATRIX = 30                     # classes; more are shown as a list of the most frequent mistakes
MOST_FREQUENT = 20                      # mistakes in that list
MEANINGS = {
    "calc": "computing the steps", "sync": "waiting for the device and for other workers", "comm": "the exchange",
    "wait": "waiting for the loader", "other": "the rest",
}


class Subject:
    """A run with what the sections show of it.

    Args:
        folder: as the user calls it.
    """

    def __init__(self, run: RecordedRun, folder: Path, stored: History):
        self.run = run
        self.folder = folder
        self.stored = stored

    @cached_property
    def title(self) -> str:
        """The network, the data and the last result."""
        return title_of(self.run)

    def name(self, label: int) -> str:
        """Return the short name of a class: "tench" for "n01440764 tench, Tinca tinca"."""
        if self.stored.class_names is None:
            return f"class {label}"
        full = self.stored.class_names[label]
        return re.sub(r"^n\d{8}\s+(?=\S)", "", full).partition(",")[0]


def sections(subject: Subject) -> Iterator[str]:
    """Yield the parts of the page that this run has, in order."""
    yield figures(subject)
    yield section("Learning curves", curves(subject))
    if np.nansum(subject.run.train["seconds"]) > 0:
        yield section("Where the time goes", times(subject))
    if subject.stored.filters:
        yield section("Filters of the first layer", filters(subject))
    if validated := subject.stored.validated:
        yield section("Validation images", share(validated) + cards(subject, validated.sample))
        if validated.worst:
            text = "<p>The wrong answers with the lowest probability of the right class.</p>"
            yield section("Worst mistakes", text + cards(subject, validated.worst))
        yield section("Confusion matrix", share(validated) + confusion(subject, validated))
    else:
        yield section("Validation images", "<p>They are shown after the first epoch with a validation.</p>")
    yield section("Commands to paste", commands(subject))
    yield section("Settings", settings(subject.run.settings))


def section(heading: str, content: str) -> str:
    """Return a section with its heading."""
    return f"<section>\n<h2>{escape(heading)}</h2>\n{content}\n</section>"


# ---- results


def figures(subject: Subject) -> str:
    """Return the tiles with the results so far."""
    run = subject.run
    train, validation = run.train, run.validation
    tiles = []
    if validation["epoch"].size:
        errors = validation["top1_error"]
        best = int(np.nanargmin(errors)) if np.isfinite(errors).any() else 0
        tiles += [
            (f"{errors[-1]:.2%}", f"top-1 error after epoch {validation['epoch'][-1]:.0f}"),
            (f"{errors[best]:.2%}", f"lowest, after epoch {validation['epoch'][best]:.0f}"),
        ]
        if subject.run.shows_top5:
            tiles.append((f"{validation['top5_error'][-1]:.2%}", "top-5 error"))
        tiles.append((f"{validation['cost'][-1]:.4f}", "validation cost, nats per image"))
    if train["seconds"].size and np.nansum(train["seconds"]) > 0:
        tiles += [
            (f"{np.nansum(train['images']) / np.nansum(train['seconds']):,.1f}", "images per second in training"),
            (duration(max(train["hours"].max(), validation["hours"].max(initial=0))), "training and validation"),
        ]
    if train["iteration"].size:
        tiles.append((f"{train['iteration'].max():,.0f}", f"iterations, {train['epoch'].max():.3g} epochs"))
    return '<div class="tiles">' + "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(text)}</span></div>' for value, text in tiles
    ) + "</div>"


def duration(hours: float) -> str:
    """Return a time as text, in seconds below two minutes and in minutes below two hours."""
    if hours < 2 / 60:
        return f"{3600 * hours:.0f} s"
    return f"{60 * hours:.1f} min" if hours < 2 else f"{hours:.1f} h"


def curves(subject: Subject) -> str:
    """Return the learning curves: cost, and errors."""
    train, validation = subject.run.train, subject.run.validation
    epochs = validation["epoch"]
    marks = [Mark(place, f"rate {rate:g}") for place, rate in rate_drops(train, "epoch")]
    dots = epochs.size <= 30
    training = [Curve("training", "training", *smoothed(train, "epoch", field, scale, POINTS))
                for field, scale in (("cost", 1), ("top1_error", 100))] if train["epoch"].size else []
    cost = [*training[:1], Curve("validation", "top1", epochs, validation["cost"], dots)]
    errors = [*training[1:], Curve("validation, top-1", "top1", epochs, 100 * validation["top1_error"], dots)]
    if subject.run.shows_top5:
        errors.append(Curve("validation, top-5", "top5", epochs, 100 * validation["top5_error"], dots))
    if subject.run.classes and train["epoch"].size:
        chance = 100 * (1 - 1 / subject.run.classes)
        errors.append(Curve("chance", "chance", np.array([0, train["epoch"].max()]), np.array([chance, chance])))
    return f"""<div class="charts">
{chart("cost (nats per image)", "epoch", cost, marks)}
{chart("error (% of images)", "epoch", errors, marks, top=100)}
</div>"""


def times(subject: Subject) -> str:
    """Return the bar and the table of the time split."""
    train = with_other(subject.run.train)
    total = np.nansum(train["seconds"])
    shares = {name: float(np.nansum(train[name]) / total) for name in (*SECTIONS, "other")}
    bar = "".join(
        f'<div class="{name}" style="width:{100 * part:.2f}%" title="{name} {part:.1%}"></div>'
        for name, part in shares.items() if part > 0
    )
    per20 = 20 * np.nanmean(train["seconds"])
    rows = "".join(
        f'<tr><td><span class="swatch {name}"></span>{name}</td><td>{part:.1%}</td><td>{part * per20:.2f} s</td>'
        f"<td>{MEANINGS[name]}</td></tr>" for name, part in shares.items()
    )
    return (
        f'<div class="split" role="img" aria-label="share of each part of the time">{bar}</div>\n'
        '<div class="wide"><table><tr><th>part</th><th>share</th><th>per 20 iterations</th><th></th></tr>'
        f"{rows}<tr><td>all</td><td>100 %</td><td>{per20:.2f} s</td><td></td></tr></table></div>"
    )


# ---- filters


def filters(subject: Subject) -> str:
    """Return the filters from initialisation to now, and their change, in the order of their change."""
    stored = subject.stored.filters
    first, *later = sorted(stored)
    now = stored[max(stored)]
    order = by_change(now, stored[first])
    _, rows, columns, n = now.shape
    text = f"<p>{n} filters of {rows} x {columns} pixels. Grey is 0, and each filter has its own range."
    if not later:
        return text + "</p>" + strip({moment(first): now})
    changes = {moment(each, later[-1]): (stored[each] - stored[first])[..., order] for each in later}
    weights = {moment(each, later[-1]): stored[each][..., order] for each in (first, *later)}
    return (
        f"{text} The most changed filters come first. The initial noise dominates the filters until many steps have "
        "been trained. The change shows what the network has learned.</p>\n"
        f"<h3>Change since {moment(first)}</h3>\n{strip(changes)}\n<h3>Filters</h3>\n{strip(weights)}"
    )


def strip(panels: Mapping[str, np.ndarray]) -> str:
    """Return images of filters with their names."""
    images = "\n".join(
        f"<figure><figcaption>{escape(name)}</figcaption>{picture(mosaic(each))}</figure>"
        for name, each in panels.items()
    )
    return f'<div class="filters">\n{images}\n</div>'


def moment(epochs: float, last: float | None = None) -> str:
    """Return the description of a number of completed epochs."""
    name = "initialisation" if epochs == 0 else f"epoch {epochs:.3g}"
    return f"{name} (now)" if epochs == last and epochs else name


def picture(grid: np.ndarray) -> str:
    """Return an image element for an RGB image (row, column, 3) in [0, 1]."""
    from alexnet.data.images import encoded  # Pillow; a report of a run without filters does not need it

    png = base64.b64encode(encoded(np.rint(255 * grid).astype(np.uint8), "PNG")).decode()
    rows, columns = grid.shape[:2]
    return f'<img alt="filters" width="{columns}" height="{rows}" src="data:image/png;base64,{png}">'


# ---- predictions


def share(validated: Validated) -> str:
    """Return a sentence about the images that were predicted."""
    text = f"Predictions of {validated.images:,} validation images after epoch {validated.epoch}"
    if validated.images < validated.total:
        text += f": the share of worker 0. The errors above are of all {validated.total:,} images"
    return f'<p class="quiet">{text}.</p>\n'


def cards(subject: Subject, examples: list[Example]) -> str:
    """Return images with their guesses."""
    return '<div class="cards">\n' + "\n".join(card(subject, example) for example in examples) + "\n</div>"


def card(subject: Subject, example: Example) -> str:
    """Return an image with its label and its guesses. A right answer is green, a wrong one red and dashed."""
    label = subject.name(example.label)
    verdict = f"✓ right: {label}" if example.right else f"✗ wrong, it is {label}"
    rows = "".join(
        f'<li{" class=label" if guess == example.label else ""}><i style="width:{100 * probability:.1f}%"></i>'
        f"<span>{escape(subject.name(guess))}</span><span>{probability:.1%}</span></li>"
        for guess, probability in example.guesses
    )
    return (
        f'<div class="card {"right" if example.right else "wrong"}">'
        f'<img alt="{escape(label, quote=True)}" src="data:image/jpeg;base64,{example.jpeg}">'
        f'<div><div class="verdict">{escape(verdict)}</div><ol>{rows}</ol></div></div>'
    )


def confusion(subject: Subject, validated: Validated) -> str:
    """Return the confusion matrix, or the most frequent mistakes if there are many classes."""
    matrix = validated.confusion
    if len(matrix) <= LARGEST_MATRIX:
        return matrix_table(subject, matrix)
    off = matrix - np.diag(np.diag(matrix))
    frequent = [divmod(int(i), len(matrix)) for i in np.argsort(-off, axis=None, kind="stable")[:MOST_FREQUENT]]
    rows = "".join(
        f"<tr><td>{escape(subject.name(label))}</td><td>{escape(subject.name(guess))}</td>"
        f"<td>{off[label, guess]:,} of {matrix[label].sum():,}</td></tr>" for label, guess in frequent
        if off[label, guess]
    )
    return (
        f"<p>{len(matrix):,} classes; the most frequent mistakes are listed. The whole matrix: "
        f"<code>{escape(evaluate(subject))} --confusion confusion.csv</code></p>"
        f'<div class="wide"><table><tr><th>class</th><th>taken for</th><th>images</th></tr>{rows}</table></div>'
    )


def matrix_table(subject: Subject, matrix: np.ndarray) -> str:
    """Return the confusion matrix as a table."""
    names = [escape(subject.name(label)) for label in range(len(matrix))]
    head = "".join(f"<th><span>{name}</span></th>" for name in names)
    rows = "".join(
        f"<tr><th>{names[label]}</th>" + "".join(cell(label, guess, matrix) for guess in range(len(matrix))) + "</tr>\n"
        for label in range(len(matrix))
    )
    return (
        "<p>Rows: the class. Columns: the most probable class. The right answers are on the diagonal.</p>\n"
        f'<div class="wide"><table class="confusion"><thead><tr><th></th>{head}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>"
    )


def cell(label: int, guess: int, matrix: np.ndarray) -> str:
    """Return a cell of the confusion matrix, darker for a larger share of the row."""
    n = int(matrix[label, guess])
    part = n / max(1, int(matrix[label].sum()))
    hue = "31,138,76" if label == guess else "192,52,29"
    colour = ";color:#fff" if part > 0.6 else ""
    right = ' class="diagonal"' if label == guess else ""
    return f'<td{right} style="background:rgba({hue},{part:.2f}){colour}">{n or ""}</td>'


# ---- commands and settings


def commands(subject: Subject) -> str:
    """Return the commands that continue from this run."""
    folder = shlex.quote(str(subject.folder))
    parent = shlex.quote(str(subject.folder.parent))
    lines = [
        ("classify images", f"python -m alexnet predict --weights {folder} IMAGE.jpg"),
        ("errors over all validation images, by class", f"{evaluate(subject)} --per-class"),
        ("draw the curves for print", f"python -m alexnet plot {folder} --format pdf"),
        ("draw this report again", f"python -m alexnet report {folder}"),
        ("resume the run", f"python train.py resume_train={folder}"),
        ("export to ONNX", f"python -m alexnet export --weights {folder} --to model.onnx"),
        ("live curves (pip install tensorboard)", f"tensorboard --logdir {parent}"),
    ]
    return "<pre>" + "\n".join(f"# {escape(what)}\n{escape(command)}" for what, command in lines) + "</pre>"


def evaluate(subject: Subject) -> str:
    """Return the command that evaluates the run on its data."""
    data = shlex.quote(str(subject.run.settings.get("data") or "OUT"))
    return f"python -m alexnet evaluate --weights {shlex.quote(str(subject.folder))} --data {data}"


def settings(values: Mapping[str, Any]) -> str:
    """Return the table of the settings that differ from the defaults, and of all settings."""
    if not values:
        return "<p>The run's config.yaml cannot be read.</p>"
    defaults = read_settings(DEFAULTS)
    changed = [name for name in values if name in defaults and values[name] != aslist(defaults[name], values[name])]
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{shown(values[name])}</td><td>{shown(defaults[name])}</td></tr>"
                   for name in changed)
    every = "".join(f"<tr><td>{escape(name)}</td><td>{shown(value)}</td></tr>" for name, value in values.items())
    return (
        f'<div class="wide"><table class="settings"><tr><th>setting</th><th>value</th><th>default</th></tr>{rows}'
        f"</table></div>\n<details><summary>All {len(values)} settings</summary>"
        f'<div class="wide"><table class="settings">{every}</table></div></details>'
    )


def aslist(default: Any, value: Any) -> Any:
    """Return a default as a list if the value is one: config.yaml of a run stores lists."""
    return [default] if isinstance(value, list) and not isinstance(default, list) else default


def shown(value: Any) -> str:
    """Return the value of a setting as HTML."""
    return f"<code>{escape(value if isinstance(value, str) else json.dumps(value, default=str))}</code>"
