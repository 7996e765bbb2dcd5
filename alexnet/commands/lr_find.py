"""Find a learning rate by short trainings: a sweep of rising rates, then trials at constant rates.

    python -m alexnet lr-find data=batches model=googlenet batch_size=64
    python -m alexnet lr-find --config configs/caffenet.yaml data=batches --to found

The arguments are settings as of train. A sweep trains from the initial weights, or from weights=, while the rate rises
exponentially, until the cost diverges. Up to six trials then train at constant rates below that. The proposal is a
little below the best trial: its rate, or the mean of those with the same cost up to 2 %, divided by 1.6. Sweep and
trials have 100 steps, or --steps. If no trial of 100 steps lowers the cost, others have 300 steps, then 900. One worker
is tested, and no weights are saved. FOLDER receives lr_find.png and lr_find.csv. Exit status 1: no rate has lowered the
cost.
"""

import argparse
import csv
import io
import math
import shlex
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

import numpy as np

from alexnet.commands._options import positive
from alexnet.config import Config, ConfigError, backend_of, load_config
from alexnet.data.batch_file import name_of
from alexnet.data.dataset import Dataset, open_dataset
from alexnet.data.progress import Progress
from alexnet.models import Model, model_class
from alexnet.native import atomic
from alexnet.native.console import note
from alexnet.native.packages import TRAIN
from alexnet.plots.rate_range import rate_range
from alexnet.pretrained.initialization import Start, find_start
from alexnet.training.network import Network, build_model, build_network, use_kernel_settings
from alexnet.training.rate_range import (
    CostCurve,
    RangeTest,
    best_of,
    chance_cost,
    cost_without_learning,
    edge_of,
    first_rate,
    is_plateau,
    next_rate,
    problem_of_sweep,
    problem_of_trials,
    propose,
    rising_rates,
)
from alexnet.training.update_settings import UpdateSettings, nonlinear_setting
from alexnet.training.updates import find_update_rule

NAME = "lr_find"                                 # of the files
LENGTHS = (100, 300, 900)                        # steps of trials; the next if none lowers the cost
FEWEST = 20                                      # steps


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the training")
    parser.add_argument("--config", action="append", default=[], metavar="FILE", help="settings file, as of train")
    parser.add_argument("--steps", type=steps, metavar="N", help="of the sweep and of each trial (100, and more on "
                        "a plateau)")
    parser.add_argument("--first", type=rate, default=1e-7, metavar="RATE", help="of the sweep (%(default)s)")
    parser.add_argument("--last", type=rate, default=100.0, metavar="RATE", help="of the sweep, unless the cost "
                        "diverges before (%(default)s)")
    parser.add_argument("--no-trials", action="store_true", help="propose a fixed fraction of the rate at which the "
                        "cost diverges: fewer steps, and less reliable")
    parser.add_argument("--to", type=Path, default=Path(NAME), metavar="FOLDER", help="of figure and CSV (%(default)s)")


def steps(text: str) -> int:
    """Parse a command-line argument as a number of steps that is large enough."""
    number = positive(text)
    if number < FEWEST:
        raise argparse.ArgumentTypeError(f"must be at least {FEWEST} steps, got {text!r}")
    return number


def rate(text: str) -> float:
    """Parse a command-line argument as a learning rate."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 1e-30 < value < 1e30:
        raise argparse.ArgumentTypeError(f"must be a learning rate above 0, got {text!r}")
    return value


def run(options: argparse.Namespace) -> int:
    """Run the command and return its exit status; raises ConfigError, DataError, ValueError, OSError."""
    config = options.with_data(config_of(options))
    data = open_dataset(config.data, config.classes, config.verify_data)
    data.train.plan(config.batch_size)           # raises if a batch is larger than the set
    options.to.mkdir(parents=True, exist_ok=True)
    test = RangeTest(config, network_of_settings(config, data), data.train)
    lengths = (options.steps,) if options.steps else LENGTHS
    sweep = trained(test, "sweep", rising_rates(options.first, options.last, lengths[0]))
    trials: list[CostCurve] = []
    before = math.inf
    problem = problem_of_sweep(sweep)
    if not problem:
        print(text_of_sweep(sweep), flush=True)
    if not (problem or options.no_trials):
        weights = [layer.weight for layer in test.network.model.auxiliaries]
        before = cost_without_learning(sweep, chance_cost(data.train.labels, weights))
        trials = trials_of(test, sweep, lengths, before)
        problem = problem_of_trials(sweep, trials, before)
    proposal = None if problem else propose(sweep, trials, before)
    if math.isfinite(sweep.costs[0]):
        write(options.to, sweep, trials, before, proposal)
    if proposal is None:
        print(f"no proposal: {problem}", file=sys.stderr)
        return 1
    print(text_of_proposal(config, proposal))
    print(command_line(options, proposal))
    return 0


def config_of(options: argparse.Namespace) -> Config:
    """Return the settings of the training; raises ConfigError for those that do not apply."""
    config = load_config([*file_options(options), *options.settings])
    if config.resume_train:
        raise ConfigError(
            f"lr-find starts a training, so resume_train must be null, got {config.resume_train}; weights= starts with "
            "the weights of a run"
        )
    if options.first >= options.last:
        raise ConfigError(f"--first must be less than --last = {options.last:g}, got {options.first:g}")
    find_update_rule(config)                     # raises before anything slow
    model_class(config.model)
    return config


def file_options(options: argparse.Namespace) -> list[str]:
    """Return the options that name settings files, as words of a command line."""
    return [word for file in options.config for word in ("--config", file)]


def network_of_settings(config: Config, data: Dataset) -> Network:
    """Return the compiled network of the settings with its initial weights."""
    use_kernel_settings(config)
    model = build_model(config, data.classes)
    start = find_start(config, data, model)
    for text in (*data.remarks, *start.warnings):
        note(text)
    network = on_device(config, model, start)
    position = start.begin(network, config, 1)
    network.start_averages()
    if description := start.describe(position):
        note(description)
    if len(config.devices) > 1:
        note(f"one worker is tested, of {len(config.devices)}")
    names = ("train", "accumulate") if config.micro_batches > 1 else ("train",)
    network.compile_all(names, config.images_at_once)
    return network


def on_device(config: Config, model: Model, start: Start) -> Network:
    """Return the network on the first device of the settings; auto: cuda0 if it can be used, else cpu."""
    device = config.device or config.devices[0]
    if device == "auto":
        device = "cpu"
        if backend_of(config.backend, "cuda0") == "jax":
            with suppress(ConfigError):          # no GPU, or no JAX
                return build_network(config, model, start.mean, device="cuda0", scale=start.scale)
    return build_network(config, model, start.mean, device=device, scale=start.scale)


def trained(test: RangeTest, label: str, rates: np.ndarray) -> CostCurve:
    """Return the CostCurve of a run with these rates, and show its progress."""
    with closing(Progress(label, len(rates) * test.config.batch_size, sys.stderr)) as progress:
        return test.run(rates, progress.add)


def trials_of(test: RangeTest, sweep: CostCurve, lengths: Sequence[int], before: float) -> list[CostCurve]:
    """Run trials until one lowers the cost; return those of the last length.

    Args:
        lengths: steps of a trial; the next length is for a cost that stays on its initial plateau.
        before: the cost that they must undercut.
    """
    first, trials = first_rate(sweep), list[CostCurve]()
    for length in lengths:
        if trials:
            print(f"no trial has lowered the cost, so the next ones have {length} steps", flush=True)
            first, trials = best_of(trials, before).rates[0], []
        while (constant := next_rate(first, trials, before)) is not None:
            trials.append(trained(test, f"trial at {constant:g}", np.full(length, constant)))
            print(text_of_trial(trials[-1]), flush=True)
        if not is_plateau(sweep, trials, before):
            break
    return trials


def text_of_sweep(sweep: CostCurve) -> str:
    """Return the result of the sweep as text."""
    last = f"rates {sweep.rates[0]:.2g} to {sweep.rates[-1]:.2g}"
    end = f"it diverged after {last}" if sweep.diverged else f"it did not diverge at {last}"
    return (
        f"sweep of {len(sweep.costs)} steps: cost {sweep.initial:.4g} at first, at least {sweep.lowest:.4g}; "
        f"{end}; edge {edge_of(sweep):.2g}"
    )


def text_of_trial(trial: CostCurve) -> str:
    """Return the result of a trial as text."""
    n = len(trial.costs)
    return f"trial at {trial.rates[0]:g}: " + (
        f"diverged after {n} steps" if trial.diverged else f"cost {trial.final:.4g} after {n} steps"
    )


def text_of_proposal(config: Config, proposal: float) -> str:
    """Return the proposal as text, and how it changes with the batch size."""
    rule = config.section(UpdateSettings).rule
    return (
        f"proposal: learning_rate={proposal:g} for update={rule} batch_size={config.batch_size}\n"
        f"another batch size: {scaling_of(config)}"
    )


def scaling_of(config: Config) -> str:
    """Return how the rate of the update rule changes with the batch size; see docs/recipes.md for the sources."""
    if config.section(UpdateSettings).rule == "lars":
        return "keep the rate, then tune it, with a warm-up (update=lars sets the length of each step itself)"
    if nonlinear_setting(config):
        return f"k times the batch, at most sqrt(k) times the rate ({nonlinear_setting(config)} is not linear)"
    return "k times the batch, k times the rate, with a warm-up (docs/large_batch.md); N workers: lr_scaling=linear"


def command_line(options: argparse.Namespace, proposal: float) -> str:
    """Return the command that trains with the settings of these options and the proposed rate."""
    others = [each for each in options.settings if not each.startswith("learning_rate=")]
    return f"{TRAIN} {shlex.join([*file_options(options), *others, f'learning_rate={proposal:g}'])}"


def write(
    folder: Path, sweep: CostCurve, trials: Sequence[CostCurve], before: float, proposal: float | None
) -> None:
    """Write figure and CSV, and print their names.

    Args:
        before: the cost that trials must undercut.
        proposal: the proposed rate, or None if there is none.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("run", "step", "learning_rate", "cost", "smoothed_cost"))
    for number, curve in enumerate((sweep, *trials)):
        label = f"trial {number}" if number else "sweep"
        columns = (curve.rates.tolist(), curve.costs.tolist(), curve.smoothed.tolist())
        table.writerows((label, step, *row) for step, row in enumerate(zip(*columns, strict=True), 1))
    atomic.write(folder / f"{NAME}.csv", text.getvalue())
    for file in (folder / f"{NAME}.csv", *rate_range(sweep, trials, before, proposal, folder / NAME)):
        print(f"wrote {name_of(file)}")
