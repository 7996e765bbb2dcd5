"""The event queue: whoever comes to the server first is run up to there, served, and comes again.

A client's state depends on its own steps and on what the server told it.  So it can be run from one contact to the next
at once, in the order in which the contacts arrive; nothing else of the order matters, and nothing needs a thread.
"""

import heapq
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from alexnet.augment import random_stream
from alexnet.recorder import Silent
from multigpu.exchange.flat import Flat
from multigpu.rules.asgd import AsgdClient, often
from multigpu.rules.bsp import shapes_of, weights_and_velocities
from multigpu.rules.easgd import Elastic, ElasticClient
from multigpu.rules.parameter_server import ParameterServer
from multigpu.rules.server import SERVER, Server
from multigpu.virtual.post import Memory, Office, Post

PACE = 4                                         # which random stream: alexnet.augment has 1 and 2, gosgd 3
APART = 1 << 40                                  # between the clients' counters of random layers


class Rule(NamedTuple):
    """What of a rule a Simulation needs.

    keeper      (config, centre, post, clients) -> Keeper        client  (config, parts of a Client) -> Client
    next_after  (config, step) -> the first step after this one that ends with a contact
    """

    keeper: Callable
    client: Callable
    next_after: Callable


RULES = {
    "asgd": Rule(
        lambda config, centre, post, clients: ParameterServer(centre, config, clients, post.now),
        lambda config, *parts: AsgdClient(*parts, often(config)),
        lambda config, step: often(config).next_after(step),
    ),
    "easgd": Rule(
        lambda config, centre, post, clients: Elastic(centre, config.alpha),
        lambda config, *parts: ElasticClient(*parts, config.tau),
        lambda config, step: (step // config.tau + 1) * config.tau,
    ),
}


class Stretch(NamedTuple):
    """The steps of a client from one contact to the next, and the contact.

    first, last      steps, counted from 1               begun, ended  seconds when they did
    arrived, served  seconds at the server: come, and done with     told    of each step, what take_step returned
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
        """When each step ended."""
        steps = self.last - self.first + 1
        return self.begun + (self.ended - self.begun) * np.arange(1, steps + 1) / steps


class Plan(NamedTuple):
    """A Stretch that is to come; leaves: it is the client's last."""

    last: int
    begun: float
    ended: float
    leaves: bool


class Seat:
    """What of a network that all share is one user's own: its arrays lie in the network between take() and leave()."""

    def __init__(self, variables):
        self._variables, self.arrays = variables, [np.array(v.get_value(borrow=True)) for v in variables]

    def take(self):
        for variable, array in zip(self._variables, self.arrays, strict=True):
            variable.container.storage[0] = array

    def leave(self):
        self.arrays = [variable.container.storage[0] for variable in self._variables]


class PushLog(Silent):
    """The server's recorder: pushes as dicts (multigpu.rules.parameter_server.Pushed), and the sentences of reports."""

    def __init__(self):
        super().__init__(SERVER)
        self.pushes, self.said = [], []

    def push(self, **record):
        self.pushes.append(record)

    def log(self, message, screen=True):
        self.said.append(message)


class Simulation:
    """A server and `clients` clients of config.rule (asgd, easgd), which begin with what the network holds.

    network  alexnet.compile.Network, or what has its parameters_and_velocities, learning, step and train
    costs    Costs
    paces    by client: how many times as long as costs.step its steps take; None: all alike
    jitter   in [0, 1): a stretch of steps takes up to this share longer or less, drawn from config.random_seed

    Each client has weights, velocities and a counter of the random layers of its own; the server has the centre.
    Raises ValueError for a rule that has no server, and for paces that are not one of each client.
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
        shapes, post, device = shapes_of(weights), Post(self._office, SERVER), Memory()
        self._keeper = self._rule.keeper(self._config, Flat(device, shapes), post, self._office.size - 1)
        return Server(self.network, weights, Flat(device, shapes), self._keeper, post, self.log)

    def _open_client(self, client):
        weights, velocities = weights_and_velocities(self.network)
        for velocity in velocities:
            velocity.container.storage[0] = np.array(velocity.get_value(borrow=True))
        self.network.step.set_value(self.network.step.get_value() + APART * (client - 1))
        parts = self.network, weights, Flat(Memory(), shapes_of(weights)), Post(self._office, client), Silent(client)
        made, seat = self._rule.client(self._config, *parts), Seat(self._variables)
        seat.leave()                             # the arrays themselves: the weights lie in the Flat
        return made, seat

    # ---- the queue

    def run(self, take_step, seconds=np.inf, steps=None, order=None):
        """Yield each Stretch, in the order of the contacts, until all have left.

        take_step  (exchange, client, step) -> what is told of the step: has exchange.step(*inputs, rate=rate) compute
        seconds    no step ends later         steps  of each client; one of the two has to be given
        order      clients in the order in which they came to a server elsewhere, instead of the clock's: order_of()
        Raises ValueError where nothing ends the run, or the order names who is not there.
        """
        if steps is None and not np.isfinite(seconds):
            raise ValueError("a simulation needs an end: seconds or steps")
        if order is not None and self._config.rule == "asgd" and len(set(often(self._config))) > 1:
            raise ValueError("an order can be replayed where n_fetch is n_push, because it tells the pushes alone")
        plans = {client: self._plan(client, seconds, steps) for client in self._clients}
        for client in self._sequence(plans, order):
            plan = plans.pop(client)
            yield self._advance(client, plan, take_step)
            if not plan.leaves:
                plans[client] = self._plan(client, seconds, steps)

    def _sequence(self, plans, order):
        """The clients by arrival, or in the given order; plans changes meanwhile."""
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
        """The Plan from where the client is now."""
        done, begun = self._done[client], self._office.now[client]
        pace = self._costs.step * self.paces[client - 1] * self._drawn(client)
        fit = np.inf if not np.isfinite(seconds) else done + max(0, int((seconds - begun) / pace + 1e-9))
        end = min(fit, np.inf if steps is None else steps)
        last = int(min(self._rule.next_after(self._config, done), end))
        return Plan(last, begun, begun + (last - done) * pace, last == end)

    def _drawn(self, client):
        """How much longer than it should the client's next stretch takes."""
        if not self._jitter:
            return 1.0
        self._stretches[client] += 1
        draw = random_stream(self._config.random_seed, PACE, client, self._stretches[client])
        return 1 + self._jitter * draw.uniform(-1, 1)

    def _advance(self, client, plan, take_step):
        """Run the client through its plan, and have it served."""
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

    # ---- what is to be seen

    def centre(self):
        """A context in which the network holds the centre as it is now."""
        self._shown.take()
        return self._server.consensus()

    def arrays(self, client):
        """A client's weights and velocities as they are now, the arrays themselves."""
        return self._seats[client].arrays[:-1]

    def report(self):
        """What the server says of its load and of the staleness of what it gets: a sentence; none if turns cost 0."""
        if not self._costs.turn():
            return ""
        self._keeper.report(self._office.size - 1, self.log)
        return self.log.said[-1] if self.log.said else ""


def order_of(pushes):
    """The clients in the order in which a server took their pushes: of its records, a dict of each."""
    return [push["client"] for push in sorted(pushes, key=lambda push: push["version"])]
