"""The trials of benchmarks.asgd: experiments 1 to 3 of Paine et al. 2013 at small scale, and two beyond it.

A step is the unit of time, called a second, as it took one on the paper's GPUs (10.7 days, 90 epochs of 10,009 steps).
What the paper does not say is what an exchange cost there, but that n_sync = 100 left "significantly fewer" steps than
900.  By SLOW it costs 19.5 seconds, most of them for copies: a sixth of the time at n_sync 100.

Scaled down, because a perceptron learns, and forgets the noise of its gradients, in fewer steps than AlexNet does:

    curves  n_sync 600 as in the paper; the time is what it takes until the rate has fallen twice
    cold    4,000 steps of a client instead of 84,000 in 24 hours, n_sync 200, which the paper does not tell
    warm    6,000 steps after 6,000 of one client; n_sync 10 to 90 instead of 100 to 900, and exchanges that cost a
            tenth (TENTH), so that they take the same share of the time
"""

from itertools import product
from typing import NamedTuple

from benchmarks.asgd_trials import Trial
from multigpu.virtual import Costs

SLOW = Costs(step=1.0, copy=8.0, transfer=1.5, apply=0.5)
TENTH = Costs(1.0, *(seconds / 10 for seconds in SLOW[1:]))
# AlexNet on 8 K80 by Theano-MPI: 0.51 s a step and 0.12 s an exchange; benchmarks/links.py has the figures
FAST = Costs(step=1.0, copy=0.02, transfer=0.11, apply=0.03)
LARGE = Costs(step=1.0, copy=0.05, transfer=0.08, apply=0.04)
RATE = 0.02
SERVERS = {
    "plain": (),
    "Adagrad": (("server_update", "adagrad"), ("server_scale", 0.003)),
    "staleness-scaled": (("server_scale", 1.0), ("staleness_power", 1.0)),
}


class Sizes(NamedTuple):
    """How large the experiments are: numbers of clients, values of n_sync, seconds on the virtual clock, epochs.

    train, test  images
    seed, seeds  of the clients' batches and paces; how many of experiments 1 and 2, whose numbers depend on them most
    """

    epochs: tuple[int, int] = (30, 20)           # of one client, and of each of eight
    n_sync: int = 600
    cold: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    cold_n_sync: int = 200
    cold_seconds: float = 4_000
    n_syncs: tuple[int, ...] = tuple(range(10, 100, 10))
    warm: tuple[int, ...] = (1, 2, 4, 8)
    warm_start: float = 6_000
    warm_seconds: float = 6_000
    workers: int = 8
    rates: tuple[float, ...] = (0.005, 0.02, 0.04)
    rules_seconds: float = 3_000
    large: tuple[int, ...] = (32, 128, 512, 1024)
    large_seconds: float = 1_000
    train: int = 32_000
    test: int = 4_000
    seed: int = 0
    seeds: int = 3


QUICK = Sizes(
    (3, 2), 600, (1, 8), 200, 2_000, (10, 90), (1, 8), 2_000, 2_000, 8, (0.02,), 500, (32, 128), 300,
    train=8_000, test=1_000, seeds=1,
)  # fmt: skip


def trials(sizes):
    """Experiment -> its Trials; the longest come first within each."""
    made = [*curves(sizes), *cold(sizes), *warm(sizes), *rules(sizes), *large(sizes)]
    made = [trial._replace(seed=trial.seed + sizes.seeds * sizes.seed) for trial in made]
    made.sort(key=lambda trial: -trial.clients)
    return {name: [trial for trial in made if trial.experiment == name] for name in EXPERIMENTS}


def curves(sizes):
    """Experiment 1: train and test error over epochs, of eight clients, and of one on one GPU."""
    for seed, (clients, epochs) in product(range(sizes.seeds), zip((1, 8), sizes.epochs, strict=True)):
        yield Trial("curves", clients, sizes.n_sync, costs=SLOW, epochs=epochs, seed=seed)


def cold(sizes):
    """Experiment 2: a cold start."""
    for seed, clients in product(range(sizes.seeds), sizes.cold):
        yield Trial("cold", clients, sizes.cold_n_sync, rate=RATE, costs=SLOW, seconds=sizes.cold_seconds, seed=seed)


def warm(sizes):
    """Experiment 3: n_sync and clients from a warm start."""
    for n_sync in sizes.n_syncs:
        for clients in sizes.warm:
            yield Trial("warm", clients, n_sync, rate=RATE, costs=TENTH, seconds=sizes.warm_seconds,
                        warm=sizes.warm_start)  # fmt: skip


def rules(sizes):
    """Some workers by each rule and at each rate, over a fast link and a slow one, where they exchange less."""
    for (link, costs, every), rate in product((("fast", FAST, 10), ("slow", SLOW, 100)), sizes.rates):
        for name, rule, settings in (
            ("A-SGD", "asgd", ()), ("A-SGD, c = 1", "asgd", (("server_scale", 1.0),)),
            ("EASGD", "easgd", (("alpha", 0.1),)), ("GOSGD", "gosgd", (("p", 1 / every),)), ("BSP", "bsp", ()),
        ):  # fmt: skip
            name = f"{name}, {link}"
            yield Trial("rules", sizes.workers, every, rule, name, rate, sizes.rules_seconds, costs, settings)


def large(sizes):
    """Many clients, the slowest half as fast as the fastest, and three servers."""
    for clients in sizes.large:
        for name, settings in SERVERS.items():
            yield Trial("large", clients, 50, name=name, costs=LARGE, seconds=sizes.large_seconds, settings=settings,
                        spread=2.0)  # fmt: skip


EXPERIMENTS = ("curves", "cold", "warm", "rules", "large")
