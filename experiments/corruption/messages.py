"""Flips in the arrays that the rules easgd, asgd and gosgd send, between the memory of the sender and the receiver.

The clients and the updates of the parameter server are the product's, in one process, in turns; a channel of this
module passes the arrays. MPI is not involved: it adds no checksum to a message.
"""

import time
from contextlib import nullcontext
from functools import partial
from typing import ClassVar

import numpy as np

from alexnet.config import load_config
from alexnet.run.recorder import WorkerRecorder
from alexnet.training.loop import Diverged
from experiments.corruption.outcome import Outcome, flip_array, relative_change, same_bits
from experiments.corruption.replicas import BATCH, RATE, STEPS, make_images, make_network
from multigpu.device.host import HostDevice
from multigpu.exchange.flat_buffer import FlatBuffer
from multigpu.rules.asgd import AsgdClient, schedule_of
from multigpu.rules.easgd import ElasticClient, ElasticPolicy
from multigpu.rules.gosgd import halved, merged
from multigpu.rules.groups import shapes_of
from multigpu.rules.parameter_server.center import ParameterServer
from multigpu.rules.parameter_server.protocol import SERVER, Fetch, Grant, Push

CLIENTS = 2
EVERY = 2                                        # steps between two exchanges


class LocalChannel:
    """The channel of a client to a server in this process; `send_array` may change an array in transit."""

    waiting = staticmethod(nullcontext)
    now = staticmethod(time.perf_counter)

    def __init__(self, rank, policy, send_array):
        self.rank = rank
        self._policy = policy
        self._send_array = send_array

    def send(self, message, other):
        """Send a request to the server."""
        if isinstance(message, Push | Fetch):
            self._plan = self._policy.answer(message)

    def recv(self, kind, step, sender):
        """Return the server's answer."""
        return Grant(step, SERVER, False, self._plan.note)

    def exchange_with_server(self, array, server, there=True, back=True):
        """Send an array to the server, and receive it as the server has changed it."""
        piece = array.copy()
        if there:
            self._send_array(piece)
        self._plan.update(piece, slice(0, piece.size))
        if back:
            self._send_array(piece)
            array[:] = piece


class Training:
    """Clients that train the small network in turns. run() returns the weights of the job.

    Args:
        rule: "easgd", "asgd" or "gosgd".
    """

    sends: ClassVar[dict[str, int]] = {"easgd": 2 * CLIENTS * STEPS // EVERY, "asgd": 2 * CLIENTS * STEPS // EVERY,
                                       "gosgd": CLIENTS * STEPS // EVERY}

    def __init__(self, rule):
        self.rule = rule
        self.networks = [make_network(read=0, written=0) for _ in range(CLIENTS)]
        self.initial = {name: np.array(array) for name, array in self.networks[0].get_state().items()}
        self.batches = [make_images(BATCH, (0, n)) for n in range(CLIENTS * STEPS)]
        self.validation = make_images(96, 1)

    def weights_of(self, network):
        """Return the variables that are exchanged."""
        return [parameter.variable for parameter in network.trainable_parameters]

    def run(self, send_array):
        """Train from the initial state; `send_array` is called with each array that is sent."""
        for network in self.networks:
            network.set_state(self.initial)
        with HostDevice() as device:
            flats = [FlatBuffer(device, shapes_of(self.weights_of(self.networks[0]))) for _ in range(CLIENTS + 1)]
            step = {"gosgd": self._gossip}.get(self.rule, self._with_server)(flats, send_array)
            for number in range(1, STEPS + 1):
                for client, network in enumerate(self.networks):
                    cost, _ = network.train(*self.batches[CLIENTS * (number - 1) + client], RATE)
                    if not np.isfinite(cost):
                        raise Diverged(f"the cost became {cost}")
                    step(client, number)
            final = flats[-1].array() if self.rule != "gosgd" else self._mean(flats)
            if not np.isfinite(final).all():
                raise Diverged("weights are not finite")
            return [array.copy() for array in flats[-1].arrays(flats[-1].buffer)]

    def _with_server(self, flats, send_array):
        """Return the function that exchanges a client with the server after a step."""
        flats[-1].pack(self.weights_of(self.networks[0]))
        settings = {"easgd": ["easgd_tau=2", "easgd_alpha=0.3"], "asgd": ["n_sync=2"]}[self.rule]
        config = load_config(["data=none", f"rule={self.rule}", *settings])
        if self.rule == "easgd":
            policy = ElasticPolicy(flats[-1], 0.3)
            client = partial(ElasticClient, tau=EVERY)
        else:
            policy = ParameterServer(flats[-1], config, CLIENTS, time.perf_counter)
            client = partial(AsgdClient, schedule=schedule_of(config))
        clients = [
            client(network, self.weights_of(network), flats[rank], LocalChannel(rank + 1, policy, send_array),
                   WorkerRecorder(rank + 1))
            for rank, network in enumerate(self.networks)
        ]
        return lambda rank, step: clients[rank].after_step(step, 0.0, 0.0, RATE, False, False)

    def _gossip(self, flats, send_array):
        """Return the function that pushes the weights of a worker to the other after a step."""
        self.shares = [1 / CLIENTS] * CLIENTS

        def push(rank, step):
            if step % EVERY:
                return
            other = (rank + 1) % CLIENTS
            for each in (rank, other):
                flats[each].pack(self.weights_of(self.networks[each]))
            pushed = flats[rank].array().copy()
            self.shares[rank], share = halved(self.shares[rank])
            send_array(pushed)
            self.shares[other] = merged(flats[other].array(), self.shares[other], pushed, share)
            flats[other].unpack(self.weights_of(self.networks[other]))

        return push

    def _mean(self, flats):
        """Set the last buffer to the consensus of the workers, and return it."""
        total = np.zeros(flats[0].size)
        for rank, network in enumerate(self.networks):
            flats[rank].pack(self.weights_of(network))
            total += self.shares[rank] * flats[rank].array()
        flats[-1].array()[:] = total
        return flats[-1].array()

    def error_of(self, weights):
        """Return the top-1 validation error of these weights."""
        network = self.networks[0]
        for variable, array in zip(self.weights_of(network), weights, strict=True):
            variable.set_value(array.copy(), borrow=True)
        return float(network.validate(*self.validation)[1])


PLACES = {f"array in a message, {rule}": rule for rule in ("easgd", "asgd", "gosgd")}


def trials(name, seeds):
    """Yield the Outcome of a flip in a message for each seed."""
    training = Training(PLACES[name])
    reference = training.run(lambda array: None)
    error = training.error_of(reference)
    for seed in seeds:
        rng = np.random.default_rng((seed, 7))
        chosen = int(rng.integers(training.sends[training.rule]))
        yield trial(training, chosen, reference, error, rng)


def trial(training, chosen, reference, error, rng):
    """Return the Outcome of a flip in the array that is sent as number `chosen`."""
    sent = iter(range(10_000))

    def act(array):
        if next(sent) == chosen:
            flip_array(array, rng)

    where = f"array {chosen}"
    try:
        found = training.run(act)
    except Diverged as message:
        return Outcome("detected", where, str(message))
    if same_bits(found, reference):
        return Outcome("harmless", where)
    return Outcome("silent", where, "", relative_change(found, reference), training.error_of(found) - error)
