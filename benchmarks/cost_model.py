"""Predicts exchange costs for 2 to 1024 workers on other links, by a latency-bandwidth model fitted on this machine.

python -m benchmarks.cost_model [--quick] [--json FILE] [--measured FILE] [--picture FILE] [--faster 20]

benchmarks/links.py contains the formulas, and the constants of the links with their sources.

This machine: latency and bandwidth of each strategy, fitted to the measurements of benchmarks.strategies, 1 kB to
488 MB, for all numbers of ranks. `off by` is the typical factor between measured and fitted seconds, in either
direction (root mean square of logarithms). All ranks share the cores and the memory of the machine, so the bandwidth is
that of sums and copies, not that of a network link.

Theano-MPI: its published seconds of comm per 5,120 images on K80 GPUs. The peer is the model's prediction for PCIe 3.0.
`fitted` is the prediction with latency and bandwidth fitted to these six figures. The model assumes the pattern of a
ring.

Prediction: the speed-up over one worker for 64 and 1024 workers with asa32, and for 64 workers with other strategies.
A step has 128 images of AlexNet or 32 of GoogLeNet, computed at the speed of a K80 and at `--faster` times that speed.
Between hosts, each byte also costs processor time, as fitted on this machine, because GPU arrays pass through host
memory.
"""

import pathlib
import subprocess
import sys
import tempfile
from itertools import groupby

import numpy as np

from alexnet.plots.style import RUNS, new_figure, plain, saved
from benchmarks import report
from benchmarks.links import (
    BETWEEN_HOSTS,
    LINKS,
    LOADS,
    PEERS,
    PUBLISHED,
    Measured,
    exchange_seconds,
    fit,
    predict,
    published,
    turns,
)
from benchmarks.program import CORES, environment

HERE = pathlib.Path(__file__).parent
PCIE = LINKS["PCIe 3.0 x16"]
OTHERS = ("asa16", "copper", "easgd", "gosgd")
OFF = (0.25, 0.5, 1, 2, 4)                       # ticks of measured / fitted
WORKERS = [2**power for power in range(1, 11)]


def measured_here(quick):
    """Run benchmarks.strategies and return its rows.

    Raises:
        CalledProcessError: benchmarks.strategies failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        rows = pathlib.Path(folder, "rows")
        command = [sys.executable, "-m", "benchmarks.strategies", "--json", str(rows), *(["--quick"] if quick else [])]
        subprocess.run(command, check=True, env=environment(), stdout=sys.stderr)
        return report.read(rows)


def as_measured(rows):
    """Return the exchanges in the rows of benchmarks.strategies, sorted by strategy, ranks and bytes."""
    kept = [Measured(row["strategy"], row["ranks"], row["bytes"], row["seconds"]) for row in rows
            if row.get("seconds") and row.get("strategy") in PEERS and row["ranks"] > 1]
    return sorted(kept)


def fits_of(measured):
    """Return {strategy: (list of Measured, Fit)} for the strategies that were measured with at least two sizes."""
    lots = {name: list(each) for name, each in groupby(measured, lambda each: each.strategy)}
    return {name: (each, fit(each, CORES)) for name, each in lots.items() if len({one.bytes for one in each}) > 1}


# ---- rows


def rows(fits, faster):
    yield from fit_rows(fits)
    yield from published_rows()
    yield from prediction_rows(fits, faster)


def fit_rows(fits):
    for name, (each, found) in fits.items():
        yield {"name": f"{name} on this machine", "value": found.link.bandwidth / 1e9, "unit": "GB/s",
               "latency_us": 1e6 * found.link.latency, "off_by": found.deviation, "runs": len(each)}


def published_rows():
    """Yield rows that compare Theano-MPI's published table with the model."""
    found = fit(published())
    for each, ratio in zip(published(), found.ratios, strict=True):
        name = next(name for name, load in LOADS.items() if load.bytes == each.bytes)
        _, comm = PUBLISHED[name][each.workers]
        modelled = comm * exchange_seconds("nccl32", each.workers, each.bytes, PCIE) / each.seconds
        yield {"name": f"{name}, {each.workers} K80 GPUs, comm", "value": comm, "unit": "s", "peer": modelled,
               "ratio": comm / modelled, "peer_is": "PCIe 3.0 x16", "fitted": comm / ratio}
    yield {"name": "fitted to the six", "value": found.link.bandwidth / 1e9, "unit": "GB/s",
           "latency_us": 1e6 * found.link.latency, "off_by": found.deviation}


def prediction_rows(fits, faster):
    for times in (1, faster):
        for name, load in LOADS.items():
            load = load._replace(seconds_per_image=load.seconds_per_image / times)
            for where, link in LINKS.items():
                gains = {how: predict(how, 64, load, link, host_of(how, where, fits)) for how in ("asa32", *OTHERS)}
                far = predict("asa32", 1024, load, link, host_of("asa32", where, fits))
                speed = "a K80's speed" if times == 1 else f"{times} times it"
                yield {"name": f"{name}, {speed}, {where}", "value": gains["asa32"].speedup, "unit": "×",
                       **{how: gains[how].speedup for how in OTHERS}, "asa32_of_1024": far.speedup,
                       "seconds_per_5,120": gains["asa32"].train + gains["asa32"].comm}


def host_of(how, where, fits):
    """Return the processor seconds per byte on a link between hosts; 0 for other links, or if not measured."""
    if where not in BETWEEN_HOSTS:
        return 0.0
    name = how if how in PEERS else "asa32"
    return 1 / fits[name][1].link.bandwidth if name in fits else 0.0


# ---- figure


def draw(fits, faster, path):
    """Draw measured and fitted seconds, their ratios, and the predictions. Return the path."""
    figure = new_figure(13, 9.5)
    (seconds, ratios), (alexnet, googlenet) = figure.subplots(2, 2)
    draw_measured(seconds, ratios, fits)
    for axes, (name, load) in zip((alexnet, googlenet), LOADS.items(), strict=True):
        draw_predictions(axes, name, load, fits, faster)
    figure.legend(*alexnet.get_legend_handles_labels(), loc="outside lower center", frameon=False, ncols=4)
    (picture,) = saved(figure, path, (path.suffix[1:],))
    return picture


def draw_measured(seconds, ratios, fits):
    for (name, (each, found)), colour in zip(fits.items(), np.resize(RUNS, len(fits)), strict=True):
        for workers in sorted({one.workers for one in each}):
            lot = sorted((one for one in each if one.workers == workers), key=lambda one: one.bytes)
            lengths = np.geomspace(lot[0].bytes, lot[-1].bytes, 60)
            model = [turns(workers, CORES) * exchange_seconds(name, workers, n, found.link) for n in lengths]
            looks = {"color": colour, "marker": f"${workers}$", "linestyle": "", "markersize": 6}
            seconds.plot(lengths, model, color=colour, linewidth=0.8, alpha=0.6)
            seconds.plot([one.bytes for one in lot], [one.seconds for one in lot], **looks)
            off = found.ratios[[one.workers == workers for one in each]]
            ratios.plot([one.bytes for one in each if one.workers == workers], off, **looks)
        ratios.plot([], [], color=colour, label=f"{name}: off by {found.deviation:.2f}×")
    for axes in (seconds, ratios):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("bytes")
        plain(axes)
    ratios.axhline(1, color="0.5", linewidth=1)
    ratios.minorticks_off()
    ratios.set_yticks(OFF, [f"{off:g}" for off in OFF])
    ratios.set_ylim(min(OFF[0], ratios.get_ylim()[0]), max(OFF[-1], ratios.get_ylim()[1]))
    seconds.set_title("an exchange on this machine, seconds\n(digits: measured with so many ranks; lines: fitted)")
    ratios.set_title("measured / fitted seconds")
    if fits:
        ratios.legend(frameon=False, fontsize=9)


def draw_predictions(axes, name, load, fits, faster):
    fast = load._replace(seconds_per_image=load.seconds_per_image / faster)
    for (where, link), colour in zip(LINKS.items(), RUNS, strict=False):
        host = host_of("asa32", where, fits)
        for each, line in ((load, "-"), (fast, "--")):
            shares = [100 * predict("asa32", n, each, link, host).speedup / n for n in WORKERS]
            axes.plot(WORKERS, shares, line, color=colour, linewidth=1.5, label=where if line == "-" else None)
    workers, shares = zip(*published_shares(name), strict=True)
    axes.plot(workers, shares, "k*", markersize=9, linestyle="", label="Theano-MPI, K80")
    axes.set_xscale("log", base=2)
    axes.set_xticks(WORKERS, [str(n) for n in WORKERS])
    axes.set_ylim(0, 105)
    axes.set_xlabel("workers")
    axes.set_title(f"{name}, asa32: speed-up, % of the ideal\n(solid: a K80's speed; dashed: {faster} times it)")
    plain(axes)


def published_shares(name):
    """Return a list of (workers, published speed-up in % of the ideal)."""
    alone, _ = PUBLISHED[name][1]
    return [(n, 100 * alone / (train + comm) / n) for n, (train, comm) in PUBLISHED[name].items() if n > 1]


def show(row):
    more = [f"{key.replace('_', ' ')} {value:.4g}" for key, value in row.items()
            if key not in ("name", "value", "unit", "runs") and isinstance(value, float)]
    print(f"{row['name']:54} {row['value']:10.4g} {row['unit']:5} {', '.join(more)}", flush=True)


def main(arguments=None):
    parser = report.parser(__doc__, quick="what benchmarks.strategies --quick measures")
    parser.add_argument("--measured", type=pathlib.Path, metavar="FILE", help="rows of benchmarks.strategies --json")
    parser.add_argument("--picture", type=pathlib.Path, metavar="FILE", help="PNG or SVG; pictures/cost_model.png")
    parser.add_argument("--faster", type=int, default=20, help="than a K80 (%(default)s)")
    options = parser.parse_args(arguments)
    fits = fits_of(as_measured(report.read(options.measured) if options.measured else measured_here(options.quick)))
    found = list(rows(fits, options.faster))
    for row in found:
        show(row)
    report.write(found, options.json)
    if options.picture or not options.quick:
        picture = options.picture or HERE / "pictures" / "cost_model.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        print(f"drew {draw(fits, options.faster, picture)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
