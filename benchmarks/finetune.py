"""Fine-tuning on new classes compared with training from scratch: iterations to a given validation error.

python -m benchmarks.finetune [--quick] [--json FILE] [--error 0.1] [--seeds 2]

AlexNet has full size. Its weights come from a first run: three epochs of train.py on the synthetic set of ten classes.
The new classes are six other figures, with 200 training and 50 validation images each. Both methods are tried with
several settings, all with constant learning rates. The top-1 error is measured every 20 iterations of 16 images. A
trial ends when the error is at most --error in two consecutive validations, or at its limit: 400 iterations,
or the iterations of the best trial of the same method so far. The best setting of each method is then repeated with
other seeds. `ratio` is the number of iterations from scratch divided by that of the row.

The last row compares a training step of 16 images with frozen convolutions, which needs no gradients for them, with a
step in which all layers are trainable. The two alternate; `ratio` is the time of the full step divided by that of the
row.
"""

import contextlib
import pathlib
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np

from alexnet.config import load_config
from alexnet.data.dataset import centre_crop, open_dataset
from alexnet.data.image_listing import find_images
from alexnet.native.cores import cores
from alexnet.pretrained.initialization import find_start
from alexnet.run.recorder import WorkerRecorder
from alexnet.training.loop import Position, Run, read, train_step, training_batches, validate
from alexnet.training.network import build_model, build_network
from benchmarks.harness import report
from benchmarks.harness.other_figures import OTHERS, draw_folders
from benchmarks.harness.program import TOP, run
from multigpu.loader import SerialBatches
from multigpu.rules.single import SingleWorker
from preprocess.batches import Settings, make_batches
from preprocess.synthetic import in_turns, make_synthetic

TRAIN_PY = TOP / "train.py"
BATCH = 16
CONVOLUTIONS = "conv1,conv2,conv3,conv4,conv5"
FIRST_RUN = {"n_epochs", "learning_rate", "lr_step", "lr_factor"}       # its settings, from config.yaml
SCRATCH, FINETUNED = "from scratch", "fine-tuned"
SETTINGS = {                                             # trials of each method; 0.002: config.yaml, first_run
    SCRATCH: ({"learning_rate": 0.002}, {"learning_rate": 0.001}),
    FINETUNED: (
        {"learning_rate": 0.001},
        {"learning_rate": 0.001, "layer_rates": "fc8:5"},
        {"learning_rate": 0.0005, "layer_rates": "fc8:10"},
    ),
}


class Plan(NamedTuple):
    """Amount of work.

    weights: iterations of the first run (None: three epochs)
    limit:   maximum number of iterations of a trial
    every:   number of iterations between validations
    """

    first: tuple[int, int] = (2000, 400)                 # images of the first run, training and validation
    train: int = 200                                     # images of each new class
    validation: int = 50
    weights: int | None = None
    limit: int = 400
    every: int = 20


QUICK = Plan(first=(80, 20), train=16, validation=4, weights=4, limit=4, every=2)


# ---- the data


def made_sets(folder, plan):
    """Create the data sets of the first run and of the new classes. Return their folders."""
    make_synthetic(folder / "before", *plan.first)
    draw_folders(folder / "train", plan.train, 0)
    draw_folders(folder / "val", plan.validation, 1)
    sources = find_images(folder / "train", folder / "val")
    sources = sources._replace(train=in_turns(sources.train, 1))
    make_batches(sources, folder / "after", Settings(batch_size=BATCH), cores())
    return folder / "before", folder / "after"


# ---- trainings


def pretrain(data, plan):
    """Run train.py on a data set without validation. Return the run's folder."""
    given = settings_of(data) | load_config([]).model_dump(include=FIRST_RUN) | {
        "run_name": "weights", "n_iterations": plan.weights or "null", "validation": False,
    }
    given["lr_policy"], given["lr_step"] = "step", ",".join(map(str, given["lr_step"]))
    command = [sys.executable, TRAIN_PY, *(f"{key}={value}" for key, value in given.items())]
    run(command)
    return data.parent / "runs" / "weights"


def settings_of(data, **settings):
    return {"data": data, "output": data.parent / "runs", "batch_size": BATCH, "lr_policy": "constant"} | settings


class LastError(WorkerRecorder):
    """A recorder that stores the last validation error."""

    error = 1.0

    def epoch(self, **record):
        self.error = record["top1_error"]


def iterations_to(error, data, plan, **settings):
    """Train until the validation error is at most `error` in two consecutive validations, or until the limit.

    Returns:
        (iterations, or None if the error was not reached; {iteration: error} of all validations).
    """
    config = load_config([f"{key}={value}" for key, value in settings_of(data, **settings).items()])
    data = open_dataset(config.data)
    model = build_model(config, data.classes)
    start = find_start(config, data, model)
    data = data._replace(mean=start.mean)
    network = build_network(config, model, data.mean)
    network.compile_all()
    start.begin(network, config, 1)
    del start
    batches = SerialBatches((data.mean, network.model.image_size), (*data.mean.shape, BATCH), np.uint8)
    recorder, errors = LastError(1), {}
    training = Run(config, network, data, batches, SingleWorker(network), recorder, None, lambda: False)
    for position in steps(training, plan.limit):
        if position.iteration % plan.every == 0:
            validate(training, position)
            errors[position.iteration] = recorder.error
            if reached(errors, error):
                break
    return reached(errors, error), errors


def reached(errors, error):
    """Return the iteration of the first of two consecutive validations with at most `error`, or None."""
    for (iteration, one), other in zip(errors.items(), list(errors.values())[1:], strict=False):
        if max(one, other) <= error:
            return iteration
    return None


def steps(run, limit):
    """Train for up to `limit` steps. Yield the Position after each."""
    position = Position()
    while position.iteration < limit:
        batches, n = training_batches(run, position)
        for batch, images in one_by_one(run, batches):
            position, _ = train_step(run, position, n, batch, images)
            yield position
            if position.iteration == limit:
                return
        position = position._replace(epoch=position.epoch + 1, batch=0)


def one_by_one(run, batches):
    """Yield batches and their images, each read separately, so that a validation can read in between."""
    for batch in batches:
        with contextlib.closing(read(run, [batch])) as pairs:
            pair = next(pairs)
        yield pair


# ---- rows


def method_rows(error, seeds, plan, folder):
    """Yield the rows of both methods as they are measured."""
    before, after = made_sets(folder, plan)
    weights = pretrain(before, plan)
    best = {}
    for way in SETTINGS:
        more = {"weights": weights} if way == FINETUNED else {}
        trials = []
        for settings in SETTINGS[way]:
            limit = min([plan.limit, *(taken for taken, _ in trials)])       # stop once it cannot be the best
            taken, _ = timed_trial(way, error, after, plan._replace(limit=limit), settings, more)
            if taken is not None:
                trials.append((taken, settings))
        best[way] = best_of(way, trials, error, after, plan, seeds, more)
    for way, (counts, settings) in best.items():
        yield row_of(f"iterations to {error:.0%} top-1 error, {way}", counts, best[SCRATCH][0], settings, plan)


def row_of(name, counts, scratch, settings, plan):
    """Return the row of one method's iterations, with those from scratch as peer."""
    if not counts:
        return report.not_measured(name, f"not in {plan.limit} iterations")
    row = report.row(name, counts, "iterations", settings=shown(settings))
    return report.compared(row, scratch, faster=True) if scratch else row


def step_rows(runs=7):
    """Yield the row of a step with frozen convolutions, with a full step as peer."""
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 256, (3, 256, 256, BATCH), dtype=np.uint8), *centre_crop(BATCH, 227)
    labels, rate = rng.integers(0, len(OTHERS), BATCH).astype("int32"), np.float32(1e-4)
    seconds = {}
    for frozen in (CONVOLUTIONS, "[]"):
        config = load_config(["data=none", "weights=none", f"frozen_layers={frozen}"])
        seconds[frozen] = build_network(config, build_model(config, len(OTHERS)), np.full((3, 256, 256), 110)), []
    for _ in range(runs + 1):                            # the first compiles
        for network, times in seconds.values():
            times.append(report.seconds(lambda network=network: network.train(*inputs, labels, rate)))
    (_, frozen), (_, whole) = seconds.values()
    row = report.row(f"train step, batch {BATCH}, convolutions frozen", frozen[1:], "s")
    yield report.compared(row, whole[1:], faster=True)


def timed_trial(way, error, data, plan, settings, more):
    """Call iterations_to and print the result."""
    began = time.perf_counter()
    taken, errors = iterations_to(error, data, plan, **settings, **more)
    curve = " ".join(f"{100 * value:.0f}" for value in errors.values())
    print(f"{way}, {shown(settings)}: {taken or 'not'} in {max(errors, default=0)} iterations, "
          f"{time.perf_counter() - began:.0f} s; error in %: {curve}", flush=True)
    return taken, errors


def best_of(way, trials, error, data, plan, seeds, more):
    """Repeat the trial with the fewest iterations with other seeds. Return (iterations per seed, settings)."""
    if not trials:
        return [], {}
    taken, settings = min(trials, key=lambda trial: trial[0])
    counts = [taken]
    for seed in range(1, seeds):
        again, _ = timed_trial(way, error, data, plan, settings | {"random_seed": seed}, more)
        counts.append(again or plan.limit)               # a lower bound
    return counts, settings


def shown(settings):
    return " ".join(f"{key}={value}" for key, value in settings.items())


def rows(options):
    with tempfile.TemporaryDirectory() as folder:
        plan = QUICK if options.quick else Plan()
        yield from method_rows(options.error, options.seeds, plan, pathlib.Path(folder))
        yield from step_rows()


def add_options(parser):
    parser.add_argument("--error", type=float, default=0.1, help="top-1 error to reach, as a fraction (%(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="runs of the best setting of each method (%(default)s)")


if __name__ == "__main__":
    quick = "a few iterations on a few images, which reach no error"
    raise SystemExit(report.main(rows, __doc__, quick, add_options=add_options))
