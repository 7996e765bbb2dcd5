"""Train the runs of runs.py and report what the detector finds in each, and when.

python -m experiments.diagnosis [--out FOLDER] [--epochs 10] [--only TEXT] [--detect]

A run that fails ends after a fifth of its steps. --detect reads the records of a former call instead of training.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys

import numpy as np

from experiments.asgd.pool import show
from experiments.diagnosis.runs import NETWORKS, TRIALS
from preprocess.synthetic import make_synthetic

HERE = pathlib.Path(__file__).parent
TRAIN, VALIDATION = 2048, 256
FAILING = 5                                      # of a failing run, one in FAILING steps is done


def make_data(folder):
    """Make the synthetic set, and copies with other labels. The labels of the images in a copy are not theirs."""
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


def train(trial, folder, epochs):
    """Train in a separate process; a run that diverges ends with an error, which is a detection, too."""
    run_name = trial.name.replace(": ", "_").replace(" ", "_").replace(",", "").replace("'", "")
    shutil.rmtree(folder / "runs" / run_name, ignore_errors=True)
    steps = TRAIN // trial.settings["batch_size"] * epochs
    settings = trial.settings | {
        "model": f"{NETWORKS}:{trial.settings['model']}", "data": folder / trial.labels, "output": folder / "runs",
        "run_name": run_name, "n_epochs": epochs, "para_load": "false", "threads": 1, "keep_snapshots": 1,
        "classes": 10, "n_iterations": steps // FAILING if trial.fault else "null", "print_freq": max(1, steps // 100),
        "snapshot_freq": epochs,
    }
    command = [sys.executable, "train.py", *(f"{name}={value}" for name, value in settings.items())]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    return folder / "runs" / run_name, done


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=HERE)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    make_data(options.out)
    for trial in TRIALS:
        if options.only in trial.name:
            _, done = train(trial, options.out, options.epochs)
            lines = [line for line in done.stdout.splitlines() if line.startswith("epoch ")]
            show(f"{trial.name}: status {done.returncode}, {lines[-1] if lines else done.stderr.strip()[-150:]}")


if __name__ == "__main__":
    main()
