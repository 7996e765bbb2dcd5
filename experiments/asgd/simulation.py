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
from experiments.asgd.channel import PrivateDevice, SimulatedChannel, SimulatedNetwork
from multigpu.exchange.flat_buffer import FlatBuffer
from multigpu.rules.asgd import AsgdClient, schedule_of
from multigpu.rules.easgd import EasgdSettings, ElasticClient, ElasticPolicy
from multigpu.rules.groups import shapes_of, weights_and_velocities
from multigpu.rules.parameter_server.center import ParameterServer
from multigpu.rules.parameter_server.server import SERVER, Server

STEP_TIME_STREAM = 4                             # index of the random stream: alexnet.data.augment has 1 and 2, gosgd 3
COUNTER_DISTANCE = 1 << 40                       # distance between the clients' counters of random layers


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


class Interval(NamedTuple):
    """The steps of a client from one contact to the next, and the contact.

    first, last:      steps, counted from 1
    begun, ended:     time in seconds at which they began and ended
    arrived, served:  time in seconds of the arrival at the server and of the end of service
    results:          return value of take_step for each step
    """

    client: int
    first: int
    last: int
    begun: float
    ended: float
    arrived: float
    served: float
    results: list

    def times(self):
        """Return the time at which each step ended."""
        steps = self.last - self.first + 1
        return self.begun + (self.ended - self.begun) * np.arange(1, steps + 1) / steps


class Plan(NamedTuple):
    """A future Interval; leaves: it is the client's last."""

    last: int
    begun: float
    ended: float
    leaves: bool


class ClientState:
    """One client's copy of the shared network's arrays; they are in the network between load() and store()."""

    def __init__(self, variables):
        self._variables = variables
        self.arrays = [np.array(variable.get_value(borrow=True)) for variable in variables]

    def load(self):
        for variable, array in zip(self._variables, self.arrays, strict=True):
            variable.container.storage[0] = array

    def store(self):
        self.arrays = [variable.container.storage[0] for variable in self._variables]


class PushLog(WorkerRecorder):
    """The server's recorder: keeps pushes as dicts (with the fields of PushRecord), and the text of its reports."""

    def __init__(self):
        super().__init__(SERVER)
        self.pushes = []
        self.reports = []

    def record(self, kind, **values):
        self.pushes.append(values)

    def log(self, message, screen=True):
        self.reports.append(message)


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
        jitter: in [0, 1): the duration of a interval of steps varies randomly by up to this fraction in either
            direction, seeded by config.random_seed.

    Raises:
        ValueError: the rule has no server, paces is not one positive value per client, or jitter is out of range.
    """

    def __init__(self, config, network, clients, costs, paces=None, jitter=0.0):
        if config.rule not in RULES:
            raise ValueError(f"the simulation supports the rules {' and '.join(RULES)}, got {config.rule}")
        self.paces = [1.0] * clients if paces is None else [float(pace) for pace in paces]
        if len(self.paces) != clients or min(self.paces) <= 0 or not 0 <= jitter < 1:
            raise ValueError(
                f"{clients} clients need {clients} paces above 0 and a jitter in [0, 1), got {paces} and {jitter}"
            )
        self._config = config
        self.network = network
        self._costs = costs
        self._jitter = jitter
        self._rule = RULES[config.rule]
        self._channels = SimulatedNetwork(clients, costs)
        self._variables = [*network.parameters_and_velocities, network.step]
        begin, self.log = ClientState(self._variables), PushLog()
        self._server = self._open_server()
        self._channels.serve = self._server.serve
        self._clients, self._states = {}, {}
        for client in range(1, clients + 1):
            begin.load()
            self._clients[client], self._states[client] = self._open_client(client)
        self._done, self._intervals = dict.fromkeys(self._clients, 0), dict.fromkeys(self._clients, 0)
        self._shown = ClientState(self._variables)

    def _open_server(self):
        weights, _ = weights_and_velocities(self.network)
        shapes, channel, device = shapes_of(weights), SimulatedChannel(self._channels, SERVER), PrivateDevice()
        self._policy = self._rule.policy(self._config, FlatBuffer(device, shapes), channel, self._channels.size - 1)
        return Server(self.network, weights, FlatBuffer(device, shapes), self._policy, channel, self.log)

    def _open_client(self, client):
        weights, velocities = weights_and_velocities(self.network)
        for velocity in velocities:
            velocity.container.storage[0] = np.array(velocity.get_value(borrow=True))
        self.network.step.set_value(self.network.step.get_value() + COUNTER_DISTANCE * (client - 1))
        flat, channel = FlatBuffer(PrivateDevice(), shapes_of(weights)), SimulatedChannel(self._channels, client)
        parts = self.network, weights, flat, channel, WorkerRecorder(client)
        made, state = self._rule.client(self._config, *parts), ClientState(self._variables)
        state.store()                             # keep the arrays themselves: the weights are in the FlatBuffer
        return made, state

    # ---- event queue

    def run(self, take_step, seconds=np.inf, steps=None, order=None):
        """Yield each Interval, in the order of the contacts, until all clients have left.

        Args:
            take_step: (exchange, client, step) -> a value for the Interval; it calls exchange.step(*inputs, rate=rate).
            seconds: no step ends later than this time. Either seconds or steps is required.
            steps: number of steps of each client.
            order: clients in the order of contacts to replay, instead of the clock's order; see order_of().

        Raises:
            ValueError: neither seconds nor steps is given, or the order names an unknown client.
        """
        if steps is None and not np.isfinite(seconds):
            raise ValueError("a simulation needs an end: give seconds or steps")
        if order is not None and self._config.rule == "asgd" and len(set(schedule_of(self._config))) > 1:
            raise ValueError("replaying an order requires n_fetch equal to n_push: an order contains only pushes")
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
                raise ValueError(f"the order contains client {client}, but the clients are {sorted(plans)}")
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
        done, begun = self._done[client], self._channels.now[client]
        pace = self._costs.step * self.paces[client - 1] * self._drawn(client)
        fit = np.inf if not np.isfinite(seconds) else done + max(0, int((seconds - begun) / pace + 1e-9))
        end = min(fit, np.inf if steps is None else steps)
        last = int(min(self._rule.next_after(self._config, done), end))
        return Plan(last, begun, begun + (last - done) * pace, last == end)

    def _drawn(self, client):
        """Return the random factor on the duration of the client's next interval."""
        if not self._jitter:
            return 1.0
        self._intervals[client] += 1
        draw = random_stream(self._config.random_seed, STEP_TIME_STREAM, client, self._intervals[client])
        return 1 + self._jitter * draw.uniform(-1, 1)

    def _advance(self, client, plan, take_step):
        """Run the client through its plan and its contact with the server."""
        exchange, state, arrived = self._clients[client], self._states[client], self._arrival(plan)
        first, results = self._done[client] + 1, []
        state.load()
        self._channels.now[client] = arrived
        for step in range(first, plan.last + 1):
            results.append(take_step(exchange, client, step))
            exchange.after_step(step, 0.0, 0.0, None, False, False)
        if plan.leaves:
            exchange.leave(plan.last)
            self._server.serve()
        state.store()
        self._done[client] = plan.last
        return Interval(client, first, plan.last, plan.begun, plan.ended, arrived, self._channels.now[SERVER], results)

    # ---- results

    def center(self):
        """Return a context in which the network holds the current center variable."""
        self._shown.load()
        return self._server.consensus()

    def arrays(self, client):
        """Return a client's current weights and velocities, without a copy."""
        return self._states[client].arrays[:-1]

    def bytes_sent(self):
        """Return the bytes of the arrays that each rank has sent so far; rank 0 is the server."""
        return list(self._channels.sent)

    def report(self):
        """Return the server's report on its load and on the staleness of the pushes; empty if a turn costs 0."""
        if not self._costs.turn():
            return ""
        self._policy.report(self._channels.size - 1, self.log)
        return self.log.reports[-1] if self.log.reports else ""


def order_of(pushes):
    """Return the clients in the order of their pushes, from the server's records (one dict per push)."""
    return [push["client"] for push in sorted(pushes, key=lambda push: push["version"])]
