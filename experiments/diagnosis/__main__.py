"""Train the runs of runs.py, and report what the detector finds in each, and when.

python -m experiments.diagnosis [--out FOLDER] [--epochs 10] [--only TEXT] [--detect]

A run that fails ends after a fifth of its steps. Without --only, the results replace results.csv of this folder.
--detect reads the records of a former call, for other thresholds of the detector, instead of training.
"""

import argparse
import csv
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np

from experiments.asgd.pool import show
from experiments.diagnosis.detect import Result, detect, rates
from experiments.diagnosis.runs import NETWORKS, TRIALS
from preprocess.synthetic import make_synthetic

HERE = pathlib.Path(__file__).parent
TRAIN, VALIDATION = 2048, 256                    # images
DONE = 5                                         # of a failing run, one in DONE steps is done


def make_data(folder):
    """Make the synthetic set, and copies whose labels are shuffled, or those of the previous image."""
    made = folder / "true"
    make_synthetic(made, TRAIN, VALIDATION)
    for name in ("shuffled", "shifted"):
        copy = folder / name
        if copy.exists():
            continue
        copy.mkdir(parents=True)
        for part in made.iterdir():
            if part.name not in ("labels", "manifest.json", "images"):
                (copy / part.name).symlink_to(part.resolve())
        (copy / "labels").mkdir()
        for half in ("train", "val"):
            labels = np.load(made / "labels" / f"{half}_labels.npy")
            changed = np.roll(labels, 1) if name == "shifted" else np.random.default_rng(0).permutation(labels)
            np.save(copy / "labels" / f"{half}_labels.npy", changed)


def steps_of(trial, epochs):
    """Return the number of steps of a whole run."""
    return TRAIN // trial.settings["batch_size"] * epochs


def folder_of(trial, folder):
    """Return the folder of a run."""
    name = "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in trial.name)
    return folder / "runs" / name


def train(trial, folder, epochs):
    """Train in another process, and write the last line of its errors to `ended.json`."""
    place = folder_of(trial, folder)
    shutil.rmtree(place, ignore_errors=True)
    steps = steps_of(trial, epochs)
    settings = trial.settings | {
        "model": f"{NETWORKS}:{trial.settings['model']}", "data": folder / trial.labels, "output": place.parent,
        "run_name": place.name, "n_epochs": epochs, "para_load": "false", "threads": 1, "keep_snapshots": 1,
        "classes": 10, "n_iterations": steps // DONE if trial.fault else "null", "print_freq": max(1, steps // 100),
        "snapshot_freq": epochs,
    }
    command = [sys.executable, "train.py", *(f"{name}={value}" for name, value in settings.items())]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    ended = done.stderr.strip().splitlines()[-1] if done.returncode else None
    (place / "ended.json").write_text(json.dumps(ended))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "data")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--only", default="", metavar="TEXT", help="runs whose names contain it")
    parser.add_argument("--detect", action="store_true")
    options = parser.parse_args()
    make_data(options.out)
    results = []
    for trial in TRIALS:
        if options.only not in trial.name:
            continue
        if not options.detect:
            train(trial, options.out, options.epochs)
        place = folder_of(trial, options.out)
        if (place / "ended.json").exists():
            ended = json.loads((place / "ended.json").read_text())
            results.append(detect(trial, place, steps_of(trial, options.epochs), ended))
            show("; ".join(map(str, results[-1])))
    alarms, learning, detected, failing = rates(results)
    show(f"{alarms} false alarms in {learning} learning runs, {detected} of {failing} failing runs detected early")
    if not options.only:
        with (HERE / "results.csv").open("w", encoding="utf-8", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(Result._fields)
            lines.writerows(result._replace(causes=" ".join(result.causes)) for result in results)


if __name__ == "__main__":
    main()
