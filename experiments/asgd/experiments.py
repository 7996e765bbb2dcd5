"""The trials: experiments 1 to 3 of Paine et al. 2013 at small scale, and two further ones.

The unit of time is one step. It is called a second because a step took one second on the paper's GPUs (10.7 days for 90
epochs of 10,009 steps). The paper does not state the cost of an exchange, only that n_sync = 100 left "significantly
fewer" steps than 900. SLOW assumes 19.5 seconds, mostly for copies: a sixth of the time at n_sync 100.

The experiments are scaled down, because a perceptron needs fewer steps than AlexNet to learn and to average out the
noise of its gradients:

    curves  n_sync 600, as in the paper; a trial ends when the rate has fallen twice and the error stops improving again
    cold    4,000 steps per client instead of 84,000 in 24 hours; n_sync 200, which the paper does not state
    warm    6,000 steps after 6,000 steps of one client; n_sync 10 to 90 instead of 100 to 900, and exchanges at a
            tenth of the cost (TENTH), so that they take the same share of the time
"""

from itertools import product
from typing import NamedTuple

from experiments.asgd import Costs
from experiments.asgd.trials import Trial

SLOW = Costs(step=1.0, copy=8.0, transfer=1.5, apply=0.5)
TENTH = Costs(1.0, *(seconds / 10 for seconds in SLOW[1:]))
# AlexNet on 8 K80 with Theano-MPI: 0.51 s per step and 0.12 s per exchange; see benchmarks/mpi/scaling.py
FAST = Costs(step=1.0, copy=0.02, transfer=0.11, apply=0.03)
LARGE = Costs(step=1.0, copy=0.05, transfer=0.08, apply=0.04)
RATE = 0.02
SERVERS = {
    "plain": (),
    "Adagrad": (("server_update", "adagrad"), ("server_scale", 0.003)),
    "staleness-scaled": (("server_scale", 1.0), ("staleness_power", 1.0)),
}


class Sizes(NamedTuple):
    """Sizes of the experiments: numbers of clients, values of n_sync, seconds on the virtual clock, epochs.

    train, test:  numbers of images
    seed:         selects the random numbers of the clients' batches and step times
    seeds:        number of seeds for experiments 1 and 2, whose results vary most with the seed
    """

    epochs: tuple[int, int] = (30, 20)           # for one client, and for each of eight
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
)


def trials(sizes):
    """Return the Trials of each experiment, those with the most clients (the longest) first."""
    made = [*curves(sizes), *cold(sizes), *warm(sizes), *rules(sizes), *large(sizes)]
    made = [trial._replace(seed=trial.seed + sizes.seeds * sizes.seed) for trial in made]
    made.sort(key=lambda trial: -trial.clients)
    return {name: [trial for trial in made if trial.experiment == name] for name in EXPERIMENTS}


def curves(sizes):
    """Yield the trials of experiment 1: train and test error over epochs, for eight clients and for one."""
    for seed, (clients, epochs) in product(range(sizes.seeds), zip((1, 8), sizes.epochs, strict=True)):
        yield Trial("curves", clients, sizes.n_sync, costs=SLOW, epochs=epochs, seed=seed)


def cold(sizes):
    """Yield the trials of experiment 2: a cold start."""
    for seed, clients in product(range(sizes.seeds), sizes.cold):
        yield Trial("cold", clients, sizes.cold_n_sync, rate=RATE, costs=SLOW, seconds=sizes.cold_seconds, seed=seed)


def warm(sizes):
    """Yield the trials of experiment 3: n_sync by number of clients, from a warm start."""
    for n_sync in sizes.n_syncs:
        for clients in sizes.warm:
            yield Trial("warm", clients, n_sync, rate=RATE, costs=TENTH, seconds=sizes.warm_seconds,
                        warm=sizes.warm_start)


def rules(sizes):
    """Yield a trial for each rule and rate, on a fast link, and on a slow link with fewer exchanges."""
    for (link, costs, every), rate in product((("fast", FAST, 10), ("slow", SLOW, 100)), sizes.rates):
        for name, rule, settings in (
            ("A-SGD", "asgd", ()),
            ("A-SGD, c = 1", "asgd", (("server_scale", 1.0),)),
            ("EASGD", "easgd", (("easgd_alpha", 0.1),)),
            ("GOSGD", "gosgd", (("gosgd_p", 1 / every),)),
            ("BSP", "bsp", ()),
        ):
            name = f"{name}, {link}"
            yield Trial("rules", sizes.workers, every, rule, name, rate, sizes.rules_seconds, costs, settings)


def large(sizes):
    """Yield trials with many clients and three servers; the slowest client is half as fast as the fastest."""
    for clients in sizes.large:
        for name, settings in SERVERS.items():
            yield Trial("large", clients, 50, name=name, costs=LARGE, seconds=sizes.large_seconds, settings=settings,
                        spread=2.0)


EXPERIMENTS = ("curves", "cold", "warm", "rules", "large")
