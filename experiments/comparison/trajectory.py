"""Trains the perceptron with a method, and measures its test error at given times.

A synchronous rule has the same trajectory on every link: synchronous() returns its errors by step, and points_of()
places them on the clock. asynchronous() simulates the events on one link.
"""

from typing import NamedTuple

import numpy as np

from alexnet.config import load_config
from experiments.asgd.channel import PrivateDevice
from experiments.asgd.peers import Bsp, Gossip, LocalSteps, ring_arrays, show
from experiments.asgd.task import error_on_test
from experiments.asgd.trials import Rate, opened
from experiments.comparison.clock import ARRAY, bsp_step, bytes_sent, round_seconds
from experiments.comparison.methods import METHODS
from multigpu.exchange.flat_buffer import FlatBuffer
from multigpu.rules.groups import shapes_of, weights_and_velocities
from multigpu.rules.slowmo import SlowmoSettings

UNTRAINED = 0.9                                  # error of the initial weights: chance among ten classes


class Point(NamedTuple):
    """The test error at a time.

    sent:  bytes that a worker has sent on average, of AlexNet
    """

    seconds: float
    sent: float
    error: float


def bytes_of(task):
    """Return the bytes of the perceptron's array that a server and its clients exchange, with its padding."""
    return FlatBuffer(PrivateDevice(), shapes_of(weights_and_velocities(task.network)[0])).array().nbytes


def begin(task):
    task.network.set_state(task.begin)
    for function in (task.network.train, task.network.compute):
        function.trust_input = True              # their inputs have the right types; this saves a third of a step


# ---- synchronous rules


def interval_of(trial):
    """Return after how many steps all workers exchange."""
    return dict(trial.settings).get("slowmo_steps", 1)


def steps_at(seconds, trial, strategy, link):
    """Return the number of steps that have ended, and have been exchanged, after `seconds`."""
    every = interval_of(trial)
    if trial.rule == "bsp":
        return int(seconds / bsp_step(strategy, trial.clients, link) + 1e-9)
    return every * int(seconds / round_seconds(every, trial.clients, link) + 1e-9)


def synchronous(trial, task, wanted):
    """Return the test errors after the wanted numbers of steps: {steps: error}.

    Args:
        trial: its name is that of a method with a synchronous rule.
    """
    begin(task)
    if trial.rule == "bsp":
        workers = Bsp(task, trial, half=any(each.half for each in METHODS[trial.name].strategies))
    else:
        given = [f"{name}={value}" for name, value in (("rule", trial.rule), *trial.settings)]
        workers = LocalSteps(task, trial, load_config(given).section(SlowmoSettings))
    errors = {0: UNTRAINED}
    with np.errstate(all="ignore"):              # a rate that is too high diverges
        while workers.steps < max(wanted):
            workers.step()
            if workers.steps in wanted:
                show(task.network, workers.consensus())
                errors[workers.steps] = error_on_test(task)
    return errors


def points_of(errors, times, trial, strategy, link):
    """Return the Points of a synchronous rule at the given times."""
    points = []
    for seconds in times:
        steps = steps_at(seconds, trial, strategy, link)
        one = bytes_sent(strategy, trial.clients) if trial.rule == "bsp" else ring_arrays(trial.clients) * ARRAY
        points.append(Point(seconds, one * steps / interval_of(trial), errors[steps]))
    return points


# ---- asynchronous rules


def asynchronous(trial, task, times):
    """Return (Points at the given times, share of the time in which the server is busy)."""
    begin(task)
    with np.errstate(all="ignore"):
        return (served if METHODS[trial.name].has_server else gossiped)(trial, task, times)


def served(trial, task, times):
    """Simulate a rule with a server. A point has the center variable of the last contact that was served in time."""
    simulation, take_step = opened(trial, task, Rate(trial.rate))
    weights, sent, contacts = centre_of(simulation, task), 0.0, 0
    points, waiting, scale = [], list(times), ARRAY / bytes_of(task)

    def add_point():
        show(task.network, weights)
        points.append(Point(waiting.pop(0), scale * sent, error_on_test(task)))

    for interval in simulation.run(take_step, trial.seconds):
        while waiting and interval.served > waiting[0]:
            add_point()
        if not waiting:
            break
        weights, sent = centre_of(simulation, task), sum(simulation.bytes_sent()[1:]) / trial.clients
        contacts += 1
    while waiting:
        add_point()
    return points, min(1.0, contacts * trial.costs.turn() / trial.seconds)


def centre_of(simulation, task):
    with simulation.center():
        return [np.array(variable.get_value(borrow=True)) for variable in task.network.parameters]


def gossiped(trial, task, times):
    """Simulate rule gosgd. A point has the consensus."""
    workers, points, waiting = Gossip(task, trial), [], list(times)

    def add_point():
        show(task.network, workers.consensus())
        points.append(Point(waiting.pop(0), ARRAY * workers.pushes / trial.clients, error_on_test(task)))

    for now, _ in workers.run(dict(trial.settings)["gosgd_p"]):
        while now > waiting[0]:
            add_point()
    while waiting:
        add_point()
    return points, 0.0
