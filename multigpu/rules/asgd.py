"""Asynchronous SGD: clients train independently, and a parameter server adds up their updates as they arrive.

Client k, at its step s, has weights w, velocities v and updates D. The server has weights W, the center variable, and a
version:

    s % n_fetch == 0     w <- W + D, remember the version
    each step            v <- mu v - lr (g + eta w),  w <- w + v,  D <- D + v
    s % n_push == 0      push D,  D <- 0;  the server, on arrival:  W <- W + c D,  version <- version + 1

A fetch before the push applies D again, so no update is lost. With n_fetch = n_push (n_sync) this is the algorithm of
the paper, with one round trip. c is server_scale; the default is 1/K for K clients, because c = 1 overshoots when many
updates start from the same W. The server can also treat -D as the gradient of another rule, and can scale D down with
its staleness: parameter_server/updates.py. The staleness of a push is the current version of the server minus the
fetched version: K - 1 for K identical clients.

D is the difference between w and the weights without these updates. The client stores the latter: one additional array
of its size on the host, which is also the array that is sent. If W is still the value from which D is counted, and
c = 1, then W + D equals w bit by bit. The server then takes w itself, so training with one client is identical to
momentum SGD without a server, for any n_sync.

Source: Paine et al. 2013, sections 2.2 and 2.3; Dean et al. 2012, section 4.1.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from alexnet.config import Config
from alexnet.training.base import Recorder, Synchronizer
from multigpu.exchange.flat_buffer import FlatBuffer, blocks
from multigpu.rules.base import RULES, Rule
from multigpu.rules.parameter_server import server
from multigpu.rules.parameter_server.center import AsgdSettings, GrantMeta, ParameterServer, PushMeta
from multigpu.rules.parameter_server.client import Client
from multigpu.rules.parameter_server.protocol import SERVER, Fetch, Push

if TYPE_CHECKING:
    from alexnet.training.network import Network, SharedVariable
    from multigpu.communicator import Communicator
    from multigpu.device import Device
    from multigpu.mpi.channel import Channel  # importing it initialises MPI


class Schedule(NamedTuple):
    """Number of steps between two fetches, and between two pushes."""

    fetch: int
    push: int

    def due(self, step: int) -> tuple[bool, bool]:
        """Return whether a client (fetches, pushes) after a step."""
        return step % self.fetch == 0, step % self.push == 0

    def next_after(self, step: int) -> int:
        """Return the first later step with a fetch or a push."""
        return min((step // each + 1) * each for each in self)


@RULES.register("asgd")
class AsgdRule(Rule):
    """Clients train independently, and a parameter server adds up their updates."""

    settings = (AsgdSettings,)
    has_server = True
    elastic = True

    def connect(
        self, config: Config, network: Network, device: Device, comm: Communicator, recorder: Recorder, step: int = 0
    ) -> Synchronizer:
        update = config.section(AsgdSettings).server_update
        if step and comm.rank == SERVER and update != "plain":
            recorder.warn(f"the accumulators of server_update={update} are in no checkpoint: they start at 0 again")
        return server.connect(
            self, config, network, device, comm, recorder, step,
            policy=lambda center, channel: ParameterServer(center, config, comm.size - 1, channel.now),
            client=partial(AsgdClient, schedule=schedule_of(config), step=step),
            client_note=PushMeta, server_note=GrantMeta,
        )


def schedule_of(config: Config) -> Schedule:
    """Return the Schedule of the settings."""
    settings = config.section(AsgdSettings)
    return Schedule(settings.n_fetch or settings.n_sync, settings.n_push or settings.n_sync)


class AsgdClient(Client):
    """The Synchronizer of a client of rule asgd; see Client for the other arguments.

    Args:
        step: number of steps done before.
    """

    def __init__(
        self, network: Network, variables: list[SharedVariable], flat: FlatBuffer, channel: Channel,
        recorder: Recorder, schedule: Schedule, step: int = 0,
    ):
        super().__init__(network, variables, flat, channel, recorder)
        self._schedule = schedule
        self._pushed = step                      # the last step whose update was pushed
        self._version = 0
        self._fetch = True
        self._waited = 0.0
        self._base = np.array(flat.array())      # the weights without the pending updates

    def note(self) -> PushMeta:
        return PushMeta(self._version, self._fetch, self._waited)

    def contact(self, step: int) -> bool:
        fetch, push = self._schedule.due(step)
        return self._exchange(step, fetch, push) if fetch or push else False

    def catch_up(self, step: int) -> None:
        self._exchange(step, fetch=True, push=False)
        self._pushed = step

    def leave(self, step: int) -> None:
        """Push the remaining updates, then notify the server that this step was the last."""
        if self._pushed < step:
            self._exchange(step, fetch=False, push=True)
        super().leave(step)

    def _exchange(self, step: int, fetch: bool, push: bool) -> bool:
        """Fetch, push, or both; returns whether all workers stop."""
        self._fetch = fetch
        began = self._channel.now()
        grant = self.ask(Push if push else Fetch, step)
        self._waited = self._channel.now() - began
        with self.exchanging():
            if push:
                self._push(grant.note.weights, fetch)
                self._pushed = step
            else:
                self._fetch_under_updates()
            if fetch:
                self._flat.unpack(self._variables)
        if fetch or grant.note.weights:
            self._version = grant.note.version
        return grant.stop

    def _push(self, send_weights: bool, fetch: bool) -> None:
        """Push the updates or the weights. New updates are counted from the fetched or current weights."""
        weights = self._flat.array()
        base = self._base
        if send_weights:
            np.copyto(base, weights)
        else:
            np.subtract(weights, base, out=base)
        self._channel.exchange_with_server(base, SERVER, back=fetch)
        if fetch:
            np.copyto(weights, base)
        else:
            np.copyto(base, weights)

    def _fetch_under_updates(self) -> None:
        """w <- W + D, with the updates D that have not been pushed."""
        weights = self._flat.array()
        updates = self._base
        np.subtract(weights, updates, out=updates)
        self._channel.exchange_with_server(weights, SERVER, there=False)
        for w, d, moved in blocks(weights, updates):
            np.add(w, d, out=moved)
            np.copyto(d, w)
            np.copyto(w, moved)
