"""Curves as SVG, drawn without a library, so that the report is small, sharp and quick to write."""

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT = 480, 250
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 12, 34        # margins around the axes


class Curve(NamedTuple):
    """A curve. Points that are not finite are left out."""

    name: str                           # in the legend
    style: str                          # CSS class
    x: np.ndarray
    y: np.ndarray
    markers: bool = False


class Mark(NamedTuple):
    """A vertical line with a text, such as a drop of the learning rate."""

    x: float
    text: str


class Frame(NamedTuple):
    """Conversion of values to coordinates: x from 0 to `right`, y from 0 to `top`."""

    right: float
    top: float

    def x(self, value: float) -> float:
        """Return the horizontal coordinate of a value."""
        return LEFT + (WIDTH - LEFT - RIGHT) * value / self.right

    def y(self, value: float) -> float:
        """Return the vertical coordinate of a value."""
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(value, self.top) / self.top


def chart(
    title: str, x_label: str, lines: Sequence[Curve], marks: Sequence[Mark] = (), top: float | None = None
) -> str:
    """Return a figure with a legend and axes that begin at 0.

    Args:
        top: upper limit of the vertical axis; None: the largest value.
    """
    lines = [finite(line) for line in lines]
    shown = [line for line in lines if line.x.size]
    right = max((float(line.x.max()) for line in shown), default=1.0) or 1.0
    highest = top or max((float(line.y.max()) for line in shown), default=1.0) or 1.0
    frame = Frame(right, highest * (1.0 if top else 1.04))
    parts = [*grid(frame, x_label), *marked(frame, marks)]
    for line in shown:
        parts += curve(frame, line)
    names = "".join(f'<span class="key {line.style}">{escape(line.name)}</span>' for line in lines)
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><div class="legend">{names}</div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )


def finite(line: Curve) -> Curve:
    """Return a Curve without the points that are not finite."""
    kept = np.isfinite(line.x) & np.isfinite(line.y)
    return line._replace(x=line.x[kept], y=line.y[kept])


def grid(frame: Frame, x_label: str) -> Iterator[str]:
    """Yield the grid lines with their numbers, and the label of the horizontal axis."""
    for value in ticks(frame.top):
        y = frame.y(value)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
    for value in ticks(frame.right):
        x = frame.x(value)
        yield f'<path class="grid" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
        yield f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{value:g}</text>'
    yield f'<text x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_label)}</text>'


def marked(frame: Frame, marks: Sequence[Mark]) -> Iterator[str]:
    """Yield the vertical lines of the Marks. The text is left of a line in the right half."""
    for mark in marks:
        x = frame.x(mark.x)
        right = mark.x > frame.right / 2
        place = f'x="{x - 4:.1f}" text-anchor="end"' if right else f'x="{x + 4:.1f}"'
        yield f'<path class="drop" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
        yield f'<text {place} y="{TOP + 10}">{escape(mark.text)}</text>'


def curve(frame: Frame, line: Curve) -> Iterator[str]:
    """Yield the path of a Curve and its markers."""
    points = [(frame.x(x), frame.y(y)) for x, y in zip(line.x.tolist(), line.y.tolist(), strict=True)]
    yield f'<path class="curve {line.style}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in points)}"/>'
    if line.markers:
        for x, y in points:
            yield f'<circle class="{line.style}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'


def ticks(top: float) -> list[float]:
    """Return about five round numbers from 0 to `top`."""
    step = 10 ** math.floor(math.log10(top / 5))
    for factor in (2, 5, 10):
        if top / step > 6:
            step = factor * 10 ** math.floor(math.log10(top / 5))
    return [round(i * step, 10) for i in range(int(top / step + 1e-9) + 1)]
