"""Learning curves of a small AlexNet here and in PyTorch, and the effect of single settings and layers.

python -m benchmarks.accuracy [--quick] [--json FILE] [--data FOLDER] [--seeds 3] [--epochs 4] [--curves FILE]
python -m benchmarks.accuracy --ablations [NAME ...] [--data FOLDER] [--seeds 3] [--epochs 4] [--curves FILE]
python -m benchmarks.accuracy.figure curves FILE docs/pictures/accuracy.png

FOLDER contains class folders, in train and test or val, or is a data set of `python -m preprocess`. Without it, the
images are those of the synthetic set. --curves stores each learning curve, and a second call with the same file
continues with the trainings that are missing. The file must be of the same data and number of epochs.

Both implementations receive the same batches in the same order, the same crops and the same initial weights, from the
training loop of this project. The network has AlexNet's kinds of layers, trained in steps of 32 images by momentum 0.9,
weight decay 0.0005 of weights, rate 0.01, a tenth of it in the last quarter, and dropout 0.5. One thread is used.

The first steps are compared without dropout. A value is the distance of the change of a parameter from its change in
PyTorch, for the parameter where it is largest. Further rows give the distances that faults in PyTorch's settings cause.

Dropout draws different masks in both, so whole curves agree only up to the noise of the seeds. The value of a row is
the median of this project's top-1 validation errors, the peer that of PyTorch. `difference` is that of the means, in
points. p_holm is the p value of Welch's t-test, corrected for the number of epochs. The same test is applied to PyTorch
without momentum, as a check that it detects an error.

With --ablations, each row changes one setting or layer of this project's training. `change` is that of the mean
validation error after the last epoch, in points. Its standard error is computed from the deviation within the seeds of
all rows together.
"""

import itertools
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np

from alexnet.data.dataset import open_dataset
from alexnet.native import compiler
from benchmarks.accuracy import networks
from benchmarks.accuracy.seed_noise import compared_curves, pooled_deviation
from benchmarks.accuracy.trainings import (
    Curves,
    first_batches,
    learning_curve,
    made_data,
    name_of,
    network_of,
    settings_of,
)
from benchmarks.harness import report

STEPS = (1, 10, 50)                              # numbers of steps after which weights are compared
FAULTY_STEPS = 10                                # of PyTorch with a fault
LEVEL = 0.05                                     # of the test
BOUND = 0.02                                     # of the distance; rounding can change a decision of ReLU or pooling
OURS, TORCH, FAULTY, FAULT = "ours", "PyTorch", "PyTorch without momentum", "no momentum"
BASELINE = "baseline"


def model(kind):
    return {"model": name_of(kind)}


RECIPES = {
    "no local response normalisation": model(networks.WithoutLRN),
    "no groups": model(networks.OneGroup),
    "upstream's Nesterov momentum": {"use_nesterov_momentum": True},
    "no momentum": {"use_momentum": False},
    "no momentum, 10 times the rate": {"use_momentum": False, "learning_rate": 0.1},
    "cosine schedule": {"lr_policy": "cosine"},
    "linear schedule": {"lr_policy": "linear"},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "gradients clipped to norm 1": {"clip_norm": 1},
    "LARS, trust 0.2": {"update": "lars", "lars_trust": 0.2},
    "average of the weights, 0.99": {"ema_decay": 0.99},
    "micro-batches of 8": {"micro_batch_size": 8},
}
DIFFERENCES = {
    "ReLU, normalise, pool": model(networks.NormaliseThenPool),
    "normalise, pool, ReLU after conv1": model(networks.NormaliseBeforeReLU),
    "conv2 also normalised within channels": model(networks.WithinChannels),
    "towers normalised separately": model(networks.TowersLRN),
    "Caffe's constants of normalisation": model(networks.CaffeLRN),
    "pooling of 2 x 2 pixels": model(networks.WithoutOverlap),
    "initial biases 1": model(networks.BiasesOne),
    "initial biases 0": model(networks.BiasesZero),
    "one crop per batch": {"batch_crop_mirror": True},
    "no dropout": {"dropout_rate": 0},
}
ABLATIONS = RECIPES | DIFFERENCES


# ---- the first steps, without dropout


def step_rows(data):
    """Yield the rows of the first steps.

    Raises:
        RuntimeError: this project's weights change differently.
    """
    # imports PyTorch, which the ablations do not need
    from benchmarks.accuracy.torch_small import FAULTS, LRN_FAULT, TorchNetwork

    config = settings_of(data, 1, lr_policy="constant", dropout_rate=0)
    opened = open_dataset(data, verify=False)
    found = first_batches(config, opened, max(STEPS))
    batches = list(itertools.islice(itertools.cycle(found), max(STEPS)))         # --quick has fewer

    def changes(framework, steps, **more):
        return weight_changes(network_of(config, opened, framework, **more), batches[:steps], config.learning_rate)

    ours, theirs = (changes(framework, max(STEPS)) for framework in (None, TorchNetwork))
    for n in STEPS:
        value = largest_distance(ours[n], theirs[n])
        yield {"name": f"change of the weights in {counted(n, 'step')}", "value": value, "unit": "relative L2"}
        if n <= FAULTY_STEPS and value > BOUND:
            raise RuntimeError(f"the weights of {counted(n, 'step')} differ from PyTorch's by {value:.1e}")
    for fault in (*FAULTS, LRN_FAULT):
        value = largest_distance(changes(TorchNetwork, FAULTY_STEPS, fault=fault)[FAULTY_STEPS], theirs[FAULTY_STEPS])
        yield {"name": f"{counted(FAULTY_STEPS, 'step')}, PyTorch with a fault: {fault}", "value": value,
               "unit": "relative L2"}


def counted(n, noun):
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def weight_changes(network, batches, rate):
    """Train on the batches. Return {number of steps: change of each parameter, float64 in PyTorch's layout}."""
    start = values_of(network)
    changes = {}
    for n, inputs in enumerate(batches, 1):
        network.train(*inputs, np.float32(rate))
        if n in STEPS:
            changes[n] = [after - before for after, before in zip(values_of(network), start, strict=True)]
    return changes


def values_of(network):
    """Return the parameters of a Network or TorchNetwork, float64 in PyTorch's layout."""
    if hasattr(network, "modules"):
        return network.weights()
    from benchmarks.harness.torch_alexnet import from_c01b  # imports PyTorch, which the ablations do not need

    return [from_c01b(variable.get_value()).double().numpy() for variable in network.parameters]


def largest_distance(arrays, truths):
    """Return the relative L2 distance of the array for which it is largest."""
    pairs = zip(arrays, truths, strict=True)
    return max(float(np.linalg.norm(array - truth) / np.linalg.norm(truth)) for array, truth in pairs)


# ---- whole trainings


def trained(curves, name, seeds, data, epochs, framework=None, fault=None, **changes):
    """Return one curve per seed, and print each on standard error."""
    found = []
    for seed in range(1, seeds + 1):
        began = time.perf_counter()
        config = settings_of(data, epochs, random_seed=seed, **changes)
        more = {"fault": fault} if fault else {}
        curve = curves.get(name, seed, lambda config=config, more=more: learning_curve(config, framework, **more))
        errors = " ".join(f"{100 * error:.1f}" for _, error in curve)
        print(f"{name}, seed {seed}, {time.perf_counter() - began:.0f} s: {errors} %", file=sys.stderr, flush=True)
        found.append(curve)
    return found


def errors_of(curves):
    """Return the top-1 errors of each curve in %."""
    return [[100 * error for _, error in curve] for curve in curves]


def curve_rows(data, seeds, epochs, curves):
    """Yield the rows of the learning curves, then those of the test."""
    from benchmarks.accuracy.torch_small import TorchNetwork  # imports PyTorch, which the ablations do not need

    ours = errors_of(trained(curves, BASELINE, seeds, data, epochs))
    theirs = errors_of(trained(curves, TORCH, seeds, data, epochs, TorchNetwork))
    compared = compared_curves(ours, theirs)
    for epoch, (difference, p) in enumerate(compared):
        one, other = ([curve[epoch] for curve in group] for group in (ours, theirs))
        yield report.row(
            f"validation error, epoch {epoch + 1}", one, "%", peer=statistics.median(other), peer_is="PyTorch",
            peer_spread=report.spread(other), mean=statistics.fmean(one), peer_mean=statistics.fmean(other),
            difference=difference.mean, standard_error=difference.standard_error, t=difference.t, p_holm=p,
        )
    found = smallest_p(OURS, compared)
    yield found
    faulty = errors_of(trained(curves, FAULTY, seeds, data, epochs, TorchNetwork, FAULT))
    yield smallest_p(FAULTY, compared_curves(faulty, theirs))
    if found["value"] < LEVEL:
        raise RuntimeError(f"the learning curves differ: p is {found['value']:.2g} after Holm's correction")


def smallest_p(name, compared):
    """Return the row of the epoch with the smallest p value."""
    difference, p = min(compared, key=lambda each: each[1])
    return {"name": f"smallest p of an epoch, {name} against PyTorch", "value": p, "unit": "",
            "difference": difference.mean, "t": difference.t}


def ablation_rows(names, data, seeds, epochs, curves):
    """Yield the row of the baseline, then one for each changed setting or layer."""
    finals = {}
    for name in (BASELINE, *names):
        changes = ABLATIONS.get(name, {})
        finals[name] = [curve[-1] for curve in errors_of(trained(curves, name, seeds, data, epochs, **changes))]
    deviation = pooled_deviation(finals.values()) if seeds > 1 else None
    for name, errors in finals.items():
        row = report.row(name, errors, "%")
        if name != BASELINE:
            row["change"] = statistics.fmean(errors) - statistics.fmean(finals[BASELINE])
            row["standard_error"] = deviation and deviation * (1 / len(errors) + 1 / len(finals[BASELINE])) ** 0.5
        yield row


def rows(options):
    """Yield all rows."""
    compiler.use_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sizes = (64, 32) if options.quick else (2000, 400)
        data = made_data(options.data, pathlib.Path(folder), sizes)
        curves = Curves(options.curves)
        if options.ablations is not None:
            yield from ablation_rows(options.ablations or ABLATIONS, data, options.seeds, options.epochs, curves)
        else:
            yield from step_rows(data)
            yield from curve_rows(data, options.seeds, options.epochs, curves)


def add_data_options(parser, seeds):
    """Add the options of data and trainings, with this default number of seeds."""
    parser.add_argument("--data", type=pathlib.Path, metavar="FOLDER", help="class folders, or a data set")
    parser.add_argument("--seeds", type=int, default=seeds, help="trainings of each kind (%(default)s)")
    parser.add_argument("--curves", type=pathlib.Path, metavar="FILE", help="store the learning curves")


def add_options(parser):
    add_data_options(parser, seeds=3)
    parser.add_argument("--epochs", type=int, default=4, help="epochs of a training (%(default)s)")
    parser.add_argument("--ablations", nargs="*", choices=ABLATIONS, metavar="NAME", help="changes to measure; all")


def main(arguments=None):
    quick = "two seeds and epochs on 64 synthetic images"
    return report.main(rows, __doc__, quick, {"seeds": 2, "epochs": 2}, add_options, arguments=arguments)


if __name__ == "__main__":
    raise SystemExit(main())
