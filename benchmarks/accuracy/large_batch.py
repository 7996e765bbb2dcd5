"""The largest batch size at which momentum SGD and LARS keep the accuracy of small batches.

python -m benchmarks.accuracy.large_batch [--quick] [--json FILE] [--data FOLDER] [--batches 32 64 ...] [--seeds 1]
                                          [--epochs 10] [--curves FILE]

A small AlexNet with batch normalisation is trained for the same number of epochs at each batch size, with both rules,
a linear warm-up in a fifth of the epochs and then the polynomial schedule of You et al. 2017 (power 2). Each batch is
computed in micro-batches of 32 images, so batch normalisation has the same statistics at each batch size. The rate is
tuned for each rule and batch size: from an initial value by factors of 2 until both neighbours of the best rate are
worse. Tuning uses the first seed, and the best rate is then trained with all seeds.

The value of a row is the mean top-1 validation error of the seeds with that rate. --data and --curves are as for
`python -m benchmarks.accuracy`.

Source: You et al. 2017, "Large batch training of convolutional networks", section 5.
"""

import pathlib
import statistics
import tempfile

from alexnet.native import compiler
from benchmarks.accuracy import networks
from benchmarks.accuracy.__main__ import add_data_options, errors_of, trained
from benchmarks.accuracy.trainings import BATCH, Curves, made_data, name_of
from benchmarks.harness import report

BATCHES = (32, 64, 128, 256, 512, 1024)
FIRST = {"momentum": 0.01, "lars": 0.5}          # learning rates of the first trial at the smallest batch size
WARM_UP = 0.2                                    # part of the epochs
FACTOR = 2                                       # between neighbouring rates


def settings(rule, batch, rate, epochs):
    """Return the settings of a training that differ from those of the other benchmarks."""
    return {
        "model": name_of(networks.BatchNormalised), "update": rule, "batch_size": batch, "learning_rate": rate,
        "micro_batch_size": BATCH, "lr_policy": "poly", "lr_power": 2, "warmup_epochs": round(WARM_UP * epochs),
    } | ({"lars_trust": 0.02} if rule == "lars" else {})


def tuned(first, error_of):
    """Return the rate with the lowest error, whose neighbours first * FACTOR**n are worse.

    Args:
        error_of: rate -> error; called once for each rate.
    """
    errors = {0: error_of(first)}
    while True:
        best = min(errors, key=errors.__getitem__)
        left = [place for place in (best + 1, best - 1) if place not in errors]
        if not left:
            return first * FACTOR**best
        errors[left[0]] = error_of(first * FACTOR ** left[0])


def rule_rows(rule, data, batches, seeds, epochs, curves):
    """Yield the row of each batch size; the search begins with the tuned rate of the batch size before."""
    rate = FIRST[rule]
    for batch in batches:
        def errors(rate, count, batch=batch):
            name = f"{rule}, batch {batch}, rate {rate:g}"
            return [curve[-1] for curve in errors_of(
                trained(curves, name, count, data, epochs, **settings(rule, batch, rate, epochs)))]

        rate = tuned(rate, lambda rate: errors(rate, 1)[0])
        yield report.row(f"{rule}, batch {batch}", found := errors(rate, seeds), "%", rate=rate,
                         mean=statistics.fmean(found))


def rows(options):
    """Yield all rows."""
    compiler.use_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = made_data(options.data, pathlib.Path(folder), (128, 32) if options.quick else (2000, 400))
        curves = Curves(options.curves)
        for rule in FIRST:
            yield from rule_rows(rule, data, options.batches, options.seeds, options.epochs, curves)


def add_options(parser):
    add_data_options(parser, seeds=1)
    parser.add_argument("--epochs", type=int, default=10, help="epochs of a training (%(default)s)")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES, help="batch sizes: multiples of 32")


def main(arguments=None):
    quick = "one epoch and batch size on 128 synthetic images"
    return report.main(rows, __doc__, quick, {"epochs": 1, "batches": [64]}, add_options, arguments=arguments)


if __name__ == "__main__":
    raise SystemExit(main())
