"""The figures of the comparison: error over time, over bytes, by number of workers, and over the exchange interval."""

from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter

from alexnet.plots.style import RUNS, new_figure, plain, saved
from experiments.comparison.clock import LINKS, STRATEGIES, bsp_step
from experiments.comparison.methods import METHODS

NETWORKS = tuple(link.name for link in LINKS if link.shared is None)
COLOURS = dict(zip((name for name in METHODS if name != "bsp, float16"), (*RUNS, "#b0a000"), strict=True))
LINES = {
    "local SGD": "--", "slowmo": "--", "DiLoCo": "--", "easgd": ":", "asgd": ":", "async DiLoCo": ":", "gosgd": "-.",
}


def draw(best, trials, folder):
    """Draw the figures. Return the paths."""
    best = [row for row in best if row["best"]]
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"time": over_time(best), "bytes": over_bytes(best), "workers": by_workers(best),
               "interval": by_interval(trials), "steps": step_times()}
    return [path for name, figure in figures.items() if figure for path in saved(figure, folder / name)]


def lowest(rows):
    """Return {method: row with the lowest error}; bsp has several strategies."""
    found = {}
    for row in sorted(rows, key=lambda row: row["error"]):
        found.setdefault(row["method"].removesuffix(", float16"), row)
    return {name: found[name] for name in COLOURS if name in found}


def of(rows, workers, link):
    return [row for row in rows if (row["workers"], row["link"]) == (workers, link)]


def look(name):
    return {"color": COLOURS[name], "linestyle": LINES.get(name, "-"), "linewidth": 1.6}


def panels_of(best):
    """Return (figure, {(workers, link): axes}): a row per network, a column per number of workers."""
    numbers = sorted({row["workers"] for row in best if row["link"] in NETWORKS})
    links = [link for link in NETWORKS if any(row["link"] == link for row in best)]
    if not numbers:
        return None, {}
    figure = new_figure(3.2 * len(numbers) + 0.8, 3.3 * len(links) + 0.9)
    panels = figure.subplots(len(links), len(numbers), sharey=True, squeeze=False)
    places = {(n, link): panels[row][column] for row, link in enumerate(links) for column, n in enumerate(numbers)}
    for (n, link), axes in places.items():
        plain(axes)
        axes.set_title(f"{n:,} workers, {link}", fontsize=10)
    for row in panels:
        row[0].set_ylabel("test error (%)")
    return figure, places


def add_legend(figure, places):
    """Add one legend for all panels below them."""
    handles = {}
    for axes in places.values():
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    names = [name for name in COLOURS if name in handles]
    figure.legend([handles[name] for name in names], names, loc="outside lower center", frameon=False, ncols=8)


def draw_curves(best, points_of, label, title, **style):
    """Draw a curve for each method, and a panel for each number of workers and link.

    Args:
        points_of: (row) -> [(x, error in percent)].
        label: of the x axis.

    Returns:
        (figure or None, {(workers, link): axes}).
    """
    figure, places = panels_of(best)
    for (workers, link), axes in places.items():
        for name, row in lowest(of(best, workers, link)).items():
            if points := points_of(row):
                axes.plot(*zip(*points, strict=True), label=name, **style, **look(name))
        axes.set_xlabel(label, fontsize=9)
    if figure:
        figure.suptitle(title)
        add_legend(figure, places)
    return figure, places


def over_time(best):
    """Draw the error over virtual time, each method with its best settings, bsp with its best strategy."""
    def points(row):
        return [(seconds / 60, 100 * error) for seconds, _, error in row["curve"]]

    title = "Error over virtual time, each method with its best settings, bsp with its best strategy"
    figure, places = draw_curves(best, points, "minutes on AlexNet's clock", title)
    for axes in places.values():
        axes.set_xlim(left=0)
    return figure


def over_bytes(best):
    """Draw the error over the bytes that a worker has sent."""
    def points(row):
        return [(sent / 1e9, 100 * error) for _, sent, error in row["curve"] if sent]

    title = "Error over bytes sent, the same trainings"
    figure, places = draw_curves(best, points, "GB sent by a worker", title, marker="o", markersize=3)
    for axes in places.values():
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    return figure


def by_workers(best):
    """Draw the error at the end by number of workers, a panel per network."""
    links = [link for link in NETWORKS if any(row["link"] == link for row in best)]
    if not links:
        return None
    figure = new_figure(5.2 * len(links), 4.6)
    places = dict(zip(links, figure.subplots(1, len(links), sharey=True, squeeze=False)[0], strict=True))
    for link, axes in places.items():
        numbers = sorted({row["workers"] for row in best if row["link"] == link})
        found = {workers: lowest(of(best, workers, link)) for workers in numbers}
        for name in COLOURS:
            points = [(n, 100 * found[n][name]["error"]) for n in numbers if name in found[n]]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, marker="o", markersize=4, **look(name))
        axes.set_xscale("log", base=2)
        axes.set_xticks(numbers, [f"{n:,}" for n in numbers])
        axes.minorticks_off()
        axes.set_xlabel("workers (training time falls from left to right)")
        axes.set_title(link, fontsize=10)
        plain(axes)
    places[links[0]].set_ylabel("test error at the end (%)")
    figure.suptitle("Error at the end of the virtual time, each method with its best settings")
    add_legend(figure, places)
    return figure


def by_interval(trials):
    """Draw the error at the end over the steps between two exchanges: the best trial for each interval."""
    figure, places = panels_of([row for row in trials if METHODS[row["method"]].interval])
    for (workers, link), axes in places.items():
        for name in COLOURS:
            interval, lows = METHODS[name].interval, {}
            for row in of(trials, workers, link):
                if row["method"] == name and interval and not row["source"]:
                    value = row["settings"][interval]
                    steps = 1 / value if interval == "gosgd_p" else value
                    lows[steps] = min(lows.get(steps, 1.0), row["error"])
            if lows:
                steps, errors = zip(*sorted(lows.items()), strict=True)
                axes.plot(steps, [100 * error for error in errors], label=name, marker="o", markersize=4, **look(name))
        axes.set_xscale("log", base=4)
        axes.xaxis.set_major_locator(FixedLocator([1, 4, 16, 64, 256]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_xlim(0.8, 320)
        axes.set_xlabel("steps between two exchanges", fontsize=9)
    if figure:
        figure.suptitle("Error at the end over tau, n_sync, H or 1 / p, the best of the trials with each value")
        add_legend(figure, places)
    return figure


def step_times():
    """Draw the duration of a step of bsp with each strategy, a panel per network."""
    numbers = [2**k for k in range(11)]
    links = [link for link in LINKS if link.shared is None]
    figure = new_figure(5.2 * len(links), 4.4)
    for link, axes in zip(links, figure.subplots(1, len(links), squeeze=False)[0], strict=True):
        for strategy, colour in zip(STRATEGIES, RUNS, strict=False):
            axes.plot(numbers, [bsp_step(strategy, n, link) for n in numbers], color=colour, label=strategy.name,
                      linestyle="--" if strategy.factors else "-", linewidth=1.6)
        axes.set_xscale("log", base=2)
        axes.set_xticks(numbers[::2], [f"{n:,}" for n in numbers[::2]])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("workers")
        axes.set_ylabel("seconds per step")
        axes.set_title(link.name, fontsize=10)
        plain(axes)
    figure.axes[0].legend(frameon=False, fontsize=9)
    figure.suptitle("A step of bsp: AlexNet, batch 128 on one Zen 4 core")
    return figure
