"""The compared methods: a rule with its settings, and the values of the settings that are tried.

    bsp            gradients are averaged after each step
    bsp, float16   the same, with gradients and mean rounded to float16 (exchange=asa16)
    local SGD      rule slowmo with slowmo_alpha=1 slowmo_beta=0, which is rule bsp with average_every
    slowmo         Wang et al. 2020
    DiLoCo         rule slowmo with slowmo_nesterov=true, Douillard et al. 2023
    easgd          Zhang et al. 2015
    asgd           Paine et al. 2013
    async DiLoCo   rule asgd with server_update=delayed_nesterov, Liu et al. 2024
    gosgd          Blot et al. 2016

Each setting has an Axis: the values that are tried, and where the search starts.
"""

from collections.abc import Callable
from typing import NamedTuple

from experiments.asgd.trials import Trial
from experiments.comparison.clock import JITTER, LINKS, STEP, STRATEGIES, saturation

RATES = tuple(0.005 * 2**k for k in range(9))
INTERVALS = (1, 4, 16, 64, 256)                  # steps between two exchanges of a worker


class Axis(NamedTuple):
    """A setting, its values in ascending order, and the index of the value with which the search starts."""

    name: str
    values: tuple
    start: int


class Method(NamedTuple):
    """A rule with the settings that all its trials share.

    axes:        (workers, link) -> the Axes of its settings, without the learning rate
    interval:    the setting that decides how often workers exchange
    rate:        workers -> learning rate with which the search starts
    strategies:  of rule bsp; the methods of other rules move whole arrays of weights, in float32
    most:        largest number of workers that is tried
    """

    rule: str
    settings: dict
    axes: Callable
    interval: str = ""
    rate: Callable = lambda workers: 0.02
    strategies: tuple = ()
    most: int = 1024

    @property
    def synchronous(self):
        return self.rule in ("bsp", "slowmo")

    @property
    def has_server(self):
        return self.rule in ("asgd", "easgd")


def nearest(values, wanted):
    """Return the index of the first value that is at least `wanted`, or the last index."""
    return next((index for index, value in enumerate(values) if value >= wanted), len(values) - 1)


def server_interval(name, workers, link):
    """Start with the shortest interval at which the server is not saturated."""
    start = next((k for k, interval in enumerate(INTERVALS) if saturation(interval, link) >= workers), -1)
    return Axis(name, INTERVALS, start % len(INTERVALS))


def local_steps(link):
    """Start with as many local steps as take four times the exchange of an array, at least 4."""
    return Axis("slowmo_steps", INTERVALS, nearest(INTERVALS, max(4, 4 * link.array / STEP)))


def fractions(name, values, workers):
    """Return the Axis of a setting that is a multiple of 1 / N, at most 1."""
    values = tuple(dict.fromkeys(min(1.0, round(value / workers, 6)) for value in values))
    return Axis(name, values, min(1, len(values) - 1))


def bsp_rate(workers):
    return RATES[nearest(RATES, min(0.16, max(0.02, workers * 0.005)))]


LOCAL = {"slowmo_alpha": 1.0, "slowmo_beta": 0.0, "slowmo_buffers": "maintain"}
DILOCO = {"slowmo_nesterov": "true", "slowmo_beta": 0.9, "slowmo_buffers": "maintain"}
METHODS = {
    "bsp": Method("bsp", {}, lambda workers, link: (), rate=bsp_rate,
                  strategies=tuple(each for each in STRATEGIES if not each.half)),
    "bsp, float16": Method("bsp", {}, lambda workers, link: (), rate=bsp_rate,
                           strategies=tuple(each for each in STRATEGIES if each.half)),
    "local SGD": Method("slowmo", LOCAL, lambda workers, link: (local_steps(link),), "slowmo_steps", bsp_rate),
    "slowmo": Method("slowmo", {}, lambda workers, link: (
        local_steps(link), Axis("slowmo_beta", (0.3, 0.6, 0.8), 1)), "slowmo_steps", most=32),
    "DiLoCo": Method("slowmo", DILOCO, lambda workers, link: (
        local_steps(link), Axis("slowmo_alpha", (0.2, 0.4, 0.7, 1.0, 1.4), 2)), "slowmo_steps", most=128),
    "easgd": Method("easgd", {}, lambda workers, link: (
        server_interval("easgd_tau", workers, link), fractions("easgd_alpha", (0.3, 0.9, 2.7, 8), workers)),
        "easgd_tau"),
    "asgd": Method("asgd", {}, lambda workers, link: (
        server_interval("n_sync", workers, link), fractions("server_scale", (0.5, 1, 2, 4), workers)), "n_sync"),
    "async DiLoCo": Method("asgd", {"server_update": "delayed_nesterov"}, lambda workers, link: (
        server_interval("n_sync", workers, link), Axis("server_scale", (0.03, 0.1, 0.3, 0.7), 2)), "n_sync"),
    "gosgd": Method("gosgd", {}, lambda workers, link: (
        Axis("gosgd_p", (1 / 256, 1 / 64, 1 / 16, 1 / 4, 1.0), 3 if link.array < STEP else 2),), "gosgd_p",
        most=128),
}

# settings of the papers and of Theano-MPI, each at the RATES from 0.01 to 0.08
PUBLISHED = (
    ("easgd", "Theano-MPI", {"easgd_tau": 10, "easgd_alpha": 0.5}),
    ("easgd", "Zhang et al. 2015, alpha = 0.9 / N", {"easgd_tau": 10, "easgd_alpha": 0.1125}),
    ("gosgd", "Theano-MPI", {"gosgd_p": 0.01}),
    ("asgd", "Paine et al. 2013, c = 1 / N", {"n_sync": 100, "server_scale": 0.125}),
    ("asgd", "Dean et al. 2012, c = 1", {"n_sync": 10, "server_scale": 1.0}),
    ("slowmo", "Wang et al. 2020", {"slowmo_steps": 12, "slowmo_beta": 0.6}),
    ("DiLoCo", "Douillard et al. 2023", {"slowmo_steps": 500, "slowmo_alpha": 0.7}),
)


def axes_of(name, workers, link, steps):
    """Return all Axes of a method, the learning rate last. A worker exchanges at least four times in `steps` steps."""
    method = METHODS[name]
    axes = []
    for axis in method.axes(workers, link):
        if axis.values is INTERVALS:
            values = tuple(value for value in axis.values if 4 * value <= steps)
            axis = Axis(axis.name, values, min(axis.start, len(values) - 1))
        axes.append(axis)
    return [*axes, Axis("learning_rate", RATES, RATES.index(method.rate(workers)))]


def trial_of(name, workers, link, values, sizes):
    """Return the Trial of a method with these values of its settings."""
    method, settings = METHODS[name], METHODS[name].settings | values
    rate = settings.pop("learning_rate")
    n_sync = settings.pop("n_sync", None) or settings.pop("easgd_tau", 1)
    return Trial("comparison", workers, n_sync, method.rule, name, rate, sizes.seconds(workers), link.costs(),
                 tuple(settings.items()), jitter=JITTER, seed=sizes.seed)


class Sizes(NamedTuple):
    """How much is trained.

    steps:        number of workers -> steps of a worker that never waits
    checkpoints:  number of times at which the test error is measured
    train, test:  numbers of images
    published:    number of workers of the published settings
    seeds:        trainings with the best settings, for up to `replicated` workers
    """

    steps: tuple = ((2, 5000), (8, 2400), (32, 900), (128, 320), (1024, 80))
    checkpoints: int = 8
    train: int = 32_000
    test: int = 4_000
    published: int = 8
    links: tuple = LINKS
    seed: int = 0
    seeds: int = 3
    replicated: int = 32

    def workers(self):
        return [workers for workers, _ in self.steps]

    def seconds(self, workers):
        """Return the duration of the trials on the virtual clock."""
        return STEP * dict(self.steps)[workers]

    def times(self, workers):
        """Return the times at which the test error is measured."""
        return [self.seconds(workers) * k / self.checkpoints for k in range(1, self.checkpoints + 1)]
