"""Event queue of the simulation: the client that reaches the server first runs up to that contact and is served.

A client's state depends only on its own steps and on the server's answers.  A client can therefore run from one
contact to the next without interruption, in the order in which the contacts arrive.  No other ordering matters, and
no threads are needed.
"""

import heapq
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from alexnet.data.augment import random_stream
from alexnet.run.recorder import WorkerRecorder
from multigpu.exchange.flat_buffer import FlatBuffer
from multigpu.rules.asgd import AsgdClient, schedule_of
from multigpu.rules.bsp import shapes_of, weights_and_velocities
from multigpu.rules.easgd import EasgdSettings, ElasticClient, ElasticPolicy
from multigpu.rules.parameter_server.center import ParameterServer
from multigpu.rules.parameter_server.server import SERVER, Server
from multigpu.virtual.post import Memory, Office, Post

PACE = 4                                         # index of the random stream: alexnet.data.augment has 1 and 2, gosgd 3
APART = 1 << 40                                  # distance between the clients' counters of random layers


class Rule(NamedTuple):
    """The parts of a rule that a Simulation needs.

    policy:      (config, center, channel, clients) -> CenterPolicy
    client:      (config, constructor arguments of a client) -> client
    next_after:  (config, step) -> the first step after this one that ends with a contact
    """

    policy: Callable
    client: Callable
    next_after: Callable


RULES = {
    "asgd": Rule(
        lambda config, center, channel, clients: ParameterServer(center, config, clients, channel.now),
        lambda config, *parts: AsgdClient(*parts, schedule_of(config)),
        lambda config, step: schedule_of(config).next_after(step),
    ),
    "easgd": Rule(
        lambda config, center, channel, clients: ElasticPolicy(center, config.section(EasgdSettings).easgd_alpha),
        lambda config, *parts: ElasticClient(*parts, config.section(EasgdSettings).easgd_tau),
        lambda config, step: next_multiple(step, config.section(EasgdSettings).easgd_tau),
    ),
}


def next_multiple(step, every):
    """Return the first multiple of `every` after `step`."""
    return (step // every + 1) * every


class Stretch(NamedTuple):
    """The steps of a client from one contact to the next, and the contact.

    first, last:      steps, counted from 1
    begun, ended:     time in seconds at which they began and ended
    arrived, served:  time in seconds of the arrival at the server and of the end of service
    told:             return value of take_step for each step
    """

    client: int
    first: int
    last: int
    begun: float
    ended: float
    arrived: float
    served: float
    told: list

    def times(self):
        """Return the time at which each step ended."""
        steps = self.last - self.first + 1
        return self.begun + (self.ended - self.begun) * np.arange(1, steps + 1) / steps


class Plan(NamedTuple):
    """A future Stretch; leaves: it is the client's last."""

    last: int
    begun: float
    ended: float
    leaves: bool


class Seat:
    """One user's copy of the shared network's arrays; they are in the network between take() and leave()."""

    def __init__(self, variables):
        self._variables, self.arrays = variables, [np.array(v.get_value(borrow=True)) for v in variables]

    def take(self):
        for variable, array in zip(self._variables, self.arrays, strict=True):
            variable.container.storage[0] = array

    def leave(self):
        self.arrays = [variable.container.storage[0] for variable in self._variables]


class PushLog(WorkerRecorder):
    """The server's recorder: keeps pushes as dicts (with the fields of PushRecord), and the text of its reports."""

    def __init__(self):
        super().__init__(SERVER)
        self.pushes, self.said = [], []

    def record(self, kind, **values):
        self.pushes.append(values)

    def log(self, message, screen=True):
        self.said.append(message)


class Simulation:
    """A server and `clients` clients of config.rule (asgd, easgd), which start from the weights in the network.

    Each client has its own weights, velocities and counter of random layers; the server has the center variable.

    Args:
        config: the settings.
        network: alexnet.training.network.Network, or an object with its parameters_and_velocities, learning, step
            and train.
        clients: number of clients.
        costs: Costs.
        paces: duration of each client's steps as a multiple of costs.step; None: 1 for all.
        jitter: in [0, 1): the duration of a stretch of steps varies randomly by up to this fraction in either
            direction, seeded by config.random_seed.

    Raises:
        ValueError: the rule has no server, paces is not one positive value per client, or jitter is out of range.
    """

    def __init__(self, config, network, clients, costs, paces=None, jitter=0.0):
        if config.rule not in RULES:
            raise ValueError(f"virtual time is for the rules with a server, {' and '.join(RULES)}, got {config.rule}")
        self.paces = [1.0] * clients if paces is None else [float(pace) for pace in paces]
        if len(self.paces) != clients or min(self.paces) <= 0 or not 0 <= jitter < 1:
            raise ValueError(
                f"{clients} clients need as many paces above 0 and a jitter in [0, 1), got {paces} and {jitter}"
            )
        self._config, self.network, self._costs, self._jitter = config, network, costs, jitter
        self._rule, self._office = RULES[config.rule], Office(clients, costs)
        self._variables = [*network.parameters_and_velocities, network.step]
        begin, self.log = Seat(self._variables), PushLog()
        self._server = self._open_server()
        self._office.serve = self._server.serve
        self._clients, self._seats = {}, {}
        for client in range(1, clients + 1):
            begin.take()
            self._clients[client], self._seats[client] = self._open_client(client)
        self._done, self._stretches = dict.fromkeys(self._clients, 0), dict.fromkeys(self._clients, 0)
        self._shown = Seat(self._variables)

    def _open_server(self):
        weights, _ = weights_and_velocities(self.network)
        shapes, channel, device = shapes_of(weights), Post(self._office, SERVER), Memory()
        self._policy = self._rule.policy(self._config, FlatBuffer(device, shapes), channel, self._office.size - 1)
        return Server(self.network, weights, FlatBuffer(device, shapes), self._policy, channel, self.log)

    def _open_client(self, client):
        weights, velocities = weights_and_velocities(self.network)
        for velocity in velocities:
            velocity.container.storage[0] = np.array(velocity.get_value(borrow=True))
        self.network.step.set_value(self.network.step.get_value() + APART * (client - 1))
        flat, channel = FlatBuffer(Memory(), shapes_of(weights)), Post(self._office, client)
        parts = self.network, weights, flat, channel, WorkerRecorder(client)
        made, seat = self._rule.client(self._config, *parts), Seat(self._variables)
        seat.leave()                             # keep the arrays themselves: the weights are in the FlatBuffer
        return made, seat

    # ---- event queue

    def run(self, take_step, seconds=np.inf, steps=None, order=None):
        """Yield each Stretch, in the order of the contacts, until all clients have left.

        Args:
            take_step: (exchange, client, step) -> a value for the Stretch; it calls exchange.step(*inputs, rate=rate).
            seconds: no step ends later than this time. Either seconds or steps is required.
            steps: number of steps of each client.
            order: clients in the order of contacts to replay, instead of the clock's order; see order_of().

        Raises:
            ValueError: neither seconds nor steps is given, or the order names an unknown client.
        """
        if steps is None and not np.isfinite(seconds):
            raise ValueError("a simulation needs an end: seconds or steps")
        if order is not None and self._config.rule == "asgd" and len(set(schedule_of(self._config))) > 1:
            raise ValueError("an order can be replayed where n_fetch is n_push, because it tells the pushes alone")
        plans = {client: self._plan(client, seconds, steps) for client in self._clients}
        for client in self._sequence(plans, order):
            plan = plans.pop(client)
            yield self._advance(client, plan, take_step)
            if not plan.leaves:
                plans[client] = self._plan(client, seconds, steps)

    def _sequence(self, plans, order):
        """Yield the clients by arrival, or in the given order; the caller updates plans between the items."""
        for client in order or ():
            if client not in plans:
                raise ValueError(f"the order names client {client}, who is not here; here are {sorted(plans)}")
            yield client
        queue = [(self._arrival(plan), client) for client, plan in plans.items()]
        heapq.heapify(queue)
        while queue:
            _, client = heapq.heappop(queue)
            yield client
            if client in plans:
                heapq.heappush(queue, (self._arrival(plans[client]), client))

    def _arrival(self, plan):
        return plan.ended + self._costs.copy

    def _plan(self, client, seconds, steps):
        """Return the Plan that starts at the client's current state."""
        done, begun = self._done[client], self._office.now[client]
        pace = self._costs.step * self.paces[client - 1] * self._drawn(client)
        fit = np.inf if not np.isfinite(seconds) else done + max(0, int((seconds - begun) / pace + 1e-9))
        end = min(fit, np.inf if steps is None else steps)
        last = int(min(self._rule.next_after(self._config, done), end))
        return Plan(last, begun, begun + (last - done) * pace, last == end)

    def _drawn(self, client):
        """Return the random factor on the duration of the client's next stretch."""
        if not self._jitter:
            return 1.0
        self._stretches[client] += 1
        draw = random_stream(self._config.random_seed, PACE, client, self._stretches[client])
        return 1 + self._jitter * draw.uniform(-1, 1)

    def _advance(self, client, plan, take_step):
        """Run the client through its plan and its contact with the server."""
        exchange, seat, arrived = self._clients[client], self._seats[client], self._arrival(plan)
        first, told = self._done[client] + 1, []
        seat.take()
        self._office.now[client] = arrived
        for step in range(first, plan.last + 1):
            told.append(take_step(exchange, client, step))
            exchange.after_step(step, 0.0, 0.0, None, False, False)
        if plan.leaves:
            exchange.leave(plan.last)
            self._server.serve()
        seat.leave()
        self._done[client] = plan.last
        return Stretch(client, first, plan.last, plan.begun, plan.ended, arrived, self._office.now[SERVER], told)

    # ---- results

    def center(self):
        """Return a context in which the network holds the current center variable."""
        self._shown.take()
        return self._server.consensus()

    def arrays(self, client):
        """Return a client's current weights and velocities, without a copy."""
        return self._seats[client].arrays[:-1]

    def report(self):
        """Return the server's report on its load and on the staleness of the pushes; empty if a turn costs 0."""
        if not self._costs.turn():
            return ""
        self._policy.report(self._office.size - 1, self.log)
        return self.log.said[-1] if self.log.said else ""


def order_of(pushes):
    """Return the clients in the order of their pushes, from the server's records (one dict per push)."""
    return [push["client"] for push in sorted(pushes, key=lambda push: push["version"])]
