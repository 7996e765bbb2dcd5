"""The style of the plots, and writing them to files."""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alexnet.native.atomic import replacing

PNG = ("png",)
FORMATS = ("png", "svg", "pdf")
DATES = {"svg": "Date", "pdf": "CreationDate"}                 # metadata that would differ in every file
# distinguishable with red-green colour blindness; Okabe and Ito 2008
RUNS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#404040")
SECTIONS = {"calc": "#2f6fa8", "sync": "#6d4c9f", "comm": "#e0a030", "wait": "#c8452f", "other": "#8a949e"}
LONGEST_NAME = 34                                # maximum characters of a name in a legend


def styles() -> Iterator[tuple[str, str]]:
    """Yield (colour, line style) for successive runs, without end."""
    while True:
        yield from ((colour, line) for line, colour in product(("-", "--", ":", "-."), RUNS))


def new_figure(width: float, height: float) -> Figure:
    """Return a Figure of this size in inches."""
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def finish(axes: Axes, over: str = "epochs", bottom: float = 0) -> None:
    """Apply the common style of curves: ticks, light grid, no top and right spines.

    Args:
        over: "epochs", "hours" or "minutes".
    """
    if over == "epochs":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
    axes.set_xlabel("epoch" if over == "epochs" else f"{over} of training and validation")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=bottom)
    plain(axes)


def plain(axes: Axes) -> None:
    """Apply the common style of all plots: light grid, no top and right spines."""
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def shortened(name: str) -> str:
    """Shorten a name for a legend. The end is kept, because it distinguishes dates and attempts."""
    return name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME:]}"


def literal(text: str) -> str:
    """Escape dollar signs, because matplotlib renders text between two of them as a formula."""
    return text.replace("$", r"\$")


def saved(figure: Figure, path: str | Path, formats: Sequence[str] = PNG) -> list[Path]:
    """Write a figure atomically to `path` with the suffix of each format; returns the paths."""
    pictures = [Path(path).with_suffix(f".{ending}") for ending in formats]
    for picture, ending in zip(pictures, formats, strict=True):
        with replacing(picture) as temporary:
            figure.savefig(temporary, format=ending, metadata={DATES[ending]: None} if ending in DATES else None)
    return pictures
