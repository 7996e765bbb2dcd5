"""The figures of experiments.asgd: figures 1 to 4 of Paine et al. 2013, and those of the further experiments."""

from itertools import groupby

import numpy as np
from matplotlib import colormaps

from alexnet.plots.style import RUNS, finish, new_figure, plain, saved
from experiments.asgd.claims import best_rates, load, means_of, saturation

TIME = "time (1,000 s on the virtual clock)"
ERROR = "training error (%)"
SCALED = "n_sync is a tenth of the paper's"


def draw(rows, folder):
    """Draw the figures of the experiments that have rows. Return the paths."""
    figures = {
        "figure1": ("curves", figure1), "figure2": ("cold", figure2), "figure3": ("warm", figure3),
        "figure4": ("warm", figure4), "rules": ("rules", rules_figure), "large": ("large", large_figure),
        "server": ("large", server_figure),
    }
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {name: made(rows[experiment]) for name, (experiment, made) in figures.items() if rows.get(experiment)}
    return [path for name, figure in wanted.items() for path in saved(figure, folder / name)]


def ramp(n):
    """Return n colours from dark to light that colour-blind readers can also distinguish."""
    return [colormaps["viridis"](place) for place in np.linspace(0, 0.88, n)]


def many(n, what="client"):
    return f"{n:,} {what}{'s' if n > 1 else ''}"


def of_first_seed(rows):
    """Return the rows of the first seed, sorted by number of clients."""
    return sorted((row for row in rows if row["seed"] == rows[0]["seed"]), key=lambda row: row["clients"])


def plot_curve(axes, row, **looks):
    curve = row["curve"]
    axes.plot(np.array(curve["seconds"]) / 1000, 100 * np.array(curve["error"]), **{"linewidth": 1.2} | looks)


def over_time(axes):
    plain(axes)
    axes.set_xlim(left=0)


# ---- figures of the paper


def figure1(rows):
    """Draw train and test error over epochs, for all clients and for a single client."""
    figure = new_figure(8, 5.2)
    axes = figure.subplots()
    for row in of_first_seed(rows):
        epochs = [test["epoch"] for test in row["tests"]]
        colours = ("0.75", "0.45", "0.45") if row["clients"] == 1 else (RUNS[0], RUNS[1], RUNS[2])
        kinds = (("train", "training", "-"), ("test", "test", "-"), ("ten_crops", "test, 10 crops", "--"))
        for (field, name, line), colour in zip(kinds, colours, strict=True):
            errors = [100 * test[field] for test in row["tests"]]
            axes.plot(epochs, errors, line, color=colour, label=f"{many(row['clients'])}: {name}", linewidth=1.6)
        lowest = min(row["tests"], key=lambda test: test["test"])
        axes.plot(lowest["epoch"], 100 * lowest["test"], "o", color=colours[1], markersize=5)
        place, text = (lowest["epoch"], 100 * lowest["test"]), f"{lowest['test']:.1%} at {lowest['seconds']:,.0f} s"
        above = 7 if row["clients"] == 1 else -14
        axes.annotate(text, place, xytext=(0, above), textcoords="offset points", fontsize=9, ha="right")
    finish(axes, "epochs", bottom=None)
    axes.set_xlabel("epochs of each client")
    axes.set_ylabel("error (% of images)")
    axes.set_title(f"Train and test error, n_sync = {rows[0]['n_sync']} (the paper's figure 1)")
    axes.legend(frameon=False, fontsize=9, ncols=2)
    return figure


def figure2(rows):
    """Draw training error from a cold start, one line per number of clients, with early error and late slope."""
    figure = new_figure(12, 5)
    parts = figure.subfigures(1, 2, width_ratios=(3, 1))
    axes, (early, late) = parts[0].subplots(), parts[1].subplots(2, 1, sharex=True)
    clients, means, slopes = means_of(rows)
    colours = dict(zip(clients, ramp(len(clients)), strict=True))
    for row in rows:
        early.plot(row["clients"], 100 * row["early"], "o", color=colours[row["clients"]], markersize=4, alpha=0.6)
        late.plot(row["clients"], row["slope"], "o", color=colours[row["clients"]], markersize=4, alpha=0.6)
    early.plot(clients, means, color="0.4", linewidth=1)
    late.plot(clients, slopes, color="0.4", linewidth=1)
    for row in of_first_seed(rows):
        plot_curve(axes, row, color=colours[row["clients"]], label=many(row["clients"]), linewidth=1.0)
    over_time(axes)
    axes.set_xlim(0, rows[0]["seconds"] / 1000)
    axes.set_title(f"Training error, cold start, n_sync = {rows[0]['n_sync']} (the paper's figure 2)")
    axes.set_xlabel(TIME)
    axes.set_ylabel(f"{ERROR}, mean over 400 minibatches")
    axes.legend(frameon=False)
    early.set_title("mean error in the first quarter (%)", fontsize=10)
    late.set_title("slope after it (points / 1,000 s)", fontsize=10)
    late.set_xlabel("clients")
    for panel in (early, late):
        panel.set_xscale("log", base=2)
        panel.set_xticks(clients, list(map(str, clients)))
        panel.minorticks_off()
        plain(panel)
    return figure


def figure3(rows):
    """Draw training error from a warm start: one panel per n_sync, one line per number of clients."""
    n_syncs = sorted({row["n_sync"] for row in rows})
    columns = min(3, len(n_syncs))
    figure = new_figure(4.2 * columns, 3.1 * -(-len(n_syncs) // columns) + 0.4)
    panels = figure.subplots(-(-len(n_syncs) // columns), columns, sharex=True, sharey=True, squeeze=False)
    clients = sorted({row["clients"] for row in rows})
    for axes, n_sync in zip(panels.flat, n_syncs, strict=False):
        for row in (row for row in rows if row["n_sync"] == n_sync):
            plot_curve(axes, row, color=RUNS[clients.index(row["clients"])], label=many(row["clients"]), linewidth=1.0)
        over_time(axes)
        axes.set_title(f"n_sync = {n_sync}", fontsize=10)
    for axes in panels[-1]:
        axes.set_xlabel(TIME, fontsize=9)
    for axes in panels[:, 0]:
        axes.set_ylabel(ERROR, fontsize=9)
    figure.suptitle(f"Training error, warm start, mean over 400 minibatches (the paper's figure 3); {SCALED}")
    handles = panels[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", frameon=False, ncols=len(clients))
    return figure


def figure4(rows):
    """Draw training error from a warm start for the largest number of clients: one line per n_sync."""
    most = max(row["clients"] for row in rows)
    rows = sorted((row for row in rows if row["clients"] == most), key=lambda row: row["n_sync"])
    figure = new_figure(10.5, 5.4)
    axes = figure.subplots()
    for row, colour in zip(rows, ramp(len(rows)), strict=True):
        label = f"{row['n_sync']}: {row['minibatches']:,} minibatches"
        plot_curve(axes, row, color=colour, label=label, linewidth=1.0)
    over_time(axes)
    axes.set_xlabel(TIME)
    axes.set_ylabel(f"{ERROR}, mean over 400 minibatches")
    axes.set_title(f"Training error, warm start, {many(most)} (the paper's figure 4); {SCALED}", fontsize=11)
    axes.legend(frameon=False, title="n_sync", fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


# ---- further figures


def rules_figure(rows):
    """Draw the error of the rules at equal time, each at its best rate: one panel per link."""
    rows = best_rates(rows)
    links = sorted({row["name"].split(", ")[-1] for row in rows})
    names = list(dict.fromkeys(row["name"].rsplit(", ", 1)[0] for row in rows))
    figure = new_figure(11, 4.8)
    panels = figure.subplots(1, len(links), sharey=True, squeeze=False)[0]
    for axes, link in zip(panels, links, strict=True):
        for row in rows:
            name, where = row["name"].rsplit(", ", 1)
            if where == link:
                label = f"{name}, rate {row['rate']:g}"
                plot_curve(axes, row, color=RUNS[names.index(name)], label=label, linewidth=1.3)
        costs = next(row["costs"] for row in rows if row["name"].endswith(link))
        one = 2 * costs["copy"] + 2 * costs["transfer"] + costs["apply"]
        axes.set_title(f"{link} link: an exchange with a server costs {one:.2g} steps", fontsize=10)
        over_time(axes)
        axes.set_xlabel(TIME)
        axes.legend(frameon=False, fontsize=9)
    panels[0].set_ylabel(f"{ERROR}, mean over 400 minibatches")
    figure.suptitle(f"Error at equal time, {many(rows[0]['clients'], 'worker')}, cold start")
    return figure


def large_figure(rows):
    """Draw the error with many clients: one panel per number of clients, one line per server."""
    by_clients = sorted(rows, key=lambda row: row["clients"])
    groups = [list(group) for _, group in groupby(by_clients, lambda row: row["clients"])]
    names = sorted({row["name"] for row in rows}, key=lambda name: name != "plain")
    figure = new_figure(3.4 * len(groups) + 0.6, 4.4)
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axes, group in zip(panels, groups, strict=True):
        for row in sorted(group, key=lambda row: names.index(row["name"])):
            plot_curve(axes, row, color=RUNS[names.index(row["name"])], label=row["name"], linewidth=1.3)
        over_time(axes)
        axes.set_title(f"{many(group[0]['clients'])}, load {load(group[0]):.0%}", fontsize=10)
        axes.set_xlabel(TIME, fontsize=9)
    panels[0].set_ylabel(f"{ERROR}, mean over 400 minibatches")
    panels[0].legend(frameon=False, title="server")
    figure.suptitle(f"Many clients of unequal speed, n_sync = {rows[0]['n_sync']}, cold start")
    return figure


def server_figure(rows):
    """Draw the staleness of the pushes and the load of the server, by number of clients."""
    groups = sorted((row for row in rows if row["name"] == "plain"), key=lambda row: row["clients"])
    figure = new_figure(11, 4.4)
    stale, busy = figure.subplots(1, 2)
    for row, colour in zip(groups, ramp(len(groups)), strict=True):
        staleness = np.array([int(each) for each in row["staleness"]]) / (row["clients"] - 1)
        pushes = np.array(list(row["staleness"].values()))
        counts, edges = np.histogram(staleness, bins=np.linspace(0, 2.4, 49), weights=pushes)
        stale.stairs(100 * counts / pushes.sum(), edges, color=colour, label=many(row["clients"]), linewidth=1.3)
    stale.set_title("Staleness of the pushes")
    stale.set_xlabel("staleness / (clients - 1)")
    stale.set_ylabel("pushes (%)")
    stale.legend(frameon=False)
    clients = [row["clients"] for row in groups]
    busy.plot(clients, [100 * load(row) for row in groups], "o-", color=RUNS[0],
              label="time that the server serves (%)")
    busy.plot(clients, [row["waiting"] for row in groups], "s--", color=RUNS[1], label="wait for a turn (s)")
    from_on = saturation([row for row in groups if load(row) < 0.9 or row is groups[0]][-1])
    busy.axvline(from_on, color="0.6", linestyle=":", label=f"saturated from about {from_on:,.0f} clients on")
    busy.set_xscale("log", base=2)
    busy.set_xticks(clients, [f"{n:,}" for n in clients])
    busy.minorticks_off()
    busy.set_title("The server's load")
    busy.set_xlabel("clients")
    busy.legend(frameon=False)
    for axes in (stale, busy):
        plain(axes)
        axes.set_ylim(bottom=0)
    return figure
