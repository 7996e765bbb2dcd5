"""The runs, by what is wrong with them. All train on synthetic images of ten classes."""

from typing import NamedTuple

NETWORKS = "experiments.diagnosis.networks"
BASE = {"model": "Healthy", "batch_size": 16, "learning_rate": 0.0005, "lr_policy": "constant"}


class Trial(NamedTuple):
    """A run: its name, what is wrong with it (None: nothing), its settings, and its labels."""

    name: str
    fault: str | None
    settings: dict
    labels: str = "true"


def variants(fault, changes, labels="true"):
    """Yield the trials of a fault, for (name, settings) pairs."""
    for name, settings in changes:
        yield Trial(f"{fault or 'learns'}: {name}", fault, BASE | settings, labels)


LEARNING = [
    *((f"seed {seed}", {"random_seed": seed}) for seed in (1, 2, 3)),
    ("rate 0.0003", {"learning_rate": 0.0003}),
    ("rate 0.0002", {"learning_rate": 0.0002}),
    ("rate 0.001, without dropout", {"learning_rate": 0.001, "dropout_rate": 0}),
    ("nesterov", {"update": "nesterov"}),
    ("no momentum", {"update": "sgd", "learning_rate": 0.003}),
    ("adagrad", {"update": "adagrad", "learning_rate": 0.002}),
    ("adadelta", {"update": "adadelta", "learning_rate": 1}),
    ("lars", {"update": "lars", "learning_rate": 2}),
    ("without dropout", {"dropout_rate": 0}),
    ("batch of 4", {"batch_size": 4, "learning_rate": 0.0002}),
    ("batch of 64", {"batch_size": 64, "learning_rate": 0.001}),
    ("micro-batches", {"batch_size": 64, "micro_batch_size": 16, "learning_rate": 0.001}),
    ("cosine after a warm-up", {"lr_policy": "cosine", "warmup_epochs": 2}),
    ("smoothed labels", {"label_smoothing": 0.1}),
    ("clipping", {"clip_norm": 1}),
    ("batch normalisation", {"model": "Normalised", "learning_rate": 0.01}),
    ("deep", {"model": "Deep", "learning_rate": 0.0003}),
    ("Krizhevsky's initial values", {"model": "Krizhevsky", "learning_rate": 0.002}),
    ("Krizhevsky's initial values, seed 2", {"model": "Krizhevsky", "learning_rate": 0.002, "random_seed": 2}),
]
TRIALS = [
    *variants(None, LEARNING),
    *variants("initial values", [
        ("too small", {"model": "TooSmall"}),
        ("too small, seed 2", {"model": "TooSmall", "random_seed": 2}),
        ("too small, sgd", {"model": "TooSmall", "update": "sgd"}),
        ("deep, too small", {"model": "DeepTooSmall"}),
        ("deep, too small, seed 2", {"model": "DeepTooSmall", "random_seed": 2}),
        ("saturated", {"model": "TooLarge", "learning_rate": 1e-5}),
    ]),
    *variants("rate too small", [
        ("1e-7", {"learning_rate": 1e-7}),
        ("1e-6", {"learning_rate": 1e-6}),
        ("1e-6, sgd", {"learning_rate": 1e-6, "update": "sgd"}),
        ("1e-6, Krizhevsky's initial values", {"learning_rate": 1e-6, "model": "Krizhevsky"}),
        ("1e-6, batch normalisation", {"learning_rate": 1e-6, "model": "Normalised"}),
    ]),
    *variants("diverges", [
        (f"rate {rate:g}, {model}", {"learning_rate": rate, "model": model})
        for rate, model in ((0.02, "Healthy"), (0.05, "Healthy"), (0.2, "Healthy"), (0.05, "Deep"), (5, "Normalised"),
                            (0.05, "Krizhevsky"))
    ]),
    *variants("dead layer", [
        ("bias", {"model": "Dead"}),
        ("bias, seed 2", {"model": "Dead", "random_seed": 2}),
        ("bias of a dense layer", {"model": "DeadDense"}),
        ("bias of a dense layer, adagrad", {"model": "DeadDense", "update": "adagrad"}),
        ("rate 0.01", {"learning_rate": 0.01}),
    ]),
    *variants("labels", [
        ("shuffled", {}), ("shuffled, seed 2", {"random_seed": 2}), ("shuffled, adagrad", {"update": "adagrad"}),
        ("shuffled, batch normalisation", {"model": "Normalised"}),
        ("shuffled, rate 0.0002", {"learning_rate": 0.0002}),
    ], labels="shuffled"),
    *variants("labels", [
        ("of the next image", {}), ("of the next image, seed 2", {"random_seed": 2}),
        ("of the next image, batch of 64", {"batch_size": 64, "learning_rate": 0.002}),
    ], labels="shifted"),
]
