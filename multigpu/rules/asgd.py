"""Asynchronous SGD: clients train apart, and a parameter server adds up what they have learned, whoever comes.

Client k, at its step s, with weights w, velocities v and updates D; server, with weights W, the centre, and a version:

    s % n_fetch == 0     w <- W + D, remember the version
    each step            v <- mu v - lr (g + eta w),  w <- w + v,  D <- D + v
    s % n_push == 0      push D,  D <- 0;  the server, on arrival:  W <- W + c D,  version <- version + 1

So a fetch before the push applies D again, and no update is lost; with n_fetch = n_push (n_sync) it is the paper's, one
round trip.  c is server_scale, 1/K of K clients if it is not said: with c = 1 the sum of many updates from one W goes
too far.  The server may take D for the step of another rule, and the less the staler it is: server_updates.  The
staleness of a push is the server's version now, less the one that was fetched: K - 1 for K clients alike.

D is the difference of w and of what w would be without it, which is kept: one array more of a client's size, on the
host, and the array that travels.  Where W is still what D is counted from, and c = 1, W + D is w, to the bit: the
server then takes w itself, so one client trains as momentum SGD does without a server, whatever n_sync is.

Source: Paine et al. 2013, sections 2.2 and 2.3; Dean et al. 2012, section 4.1.
"""

from typing import NamedTuple

import numpy as np

from multigpu.exchange.flat import blocks
from multigpu.rules import server
from multigpu.rules.client import Client
from multigpu.rules.parameter_server import Note, ParameterServer
from multigpu.rules.turns import SERVER, Fetch, Push


class Often(NamedTuple):
    """Steps from one fetch to the next, and from one push to the next."""

    fetch: int
    push: int

    def due(self, step):
        """Whether a client (fetches, pushes) after a step."""
        return step % self.fetch == 0, step % self.push == 0

    def next_after(self, step):
        """The first step after this one with something due."""
        return min((step // each + 1) * each for each in self)


def connect(config, network, device, partners, recorder, step=0):
    """The Server at rank 0, an AsgdClient at the others, as multigpu.rules says; all of them call it."""
    return server.connect(
        config, network, device, partners, recorder, step,
        keeper=lambda centre, post: ParameterServer(centre, config, partners.size - 1, post.now),
        client=lambda *parts: AsgdClient(*parts, often(config), step),
    )  # fmt: skip


def often(config):
    """The Often of the settings."""
    return Often(config.n_fetch or config.n_sync, config.n_push or config.n_sync)


class AsgdClient(Client):
    """What the training loop of a client is handed.

    often  Often      step  done before; the rest is Client's
    """

    def __init__(self, network, variables, flat, post, recorder, often, step=0):
        super().__init__(network, variables, flat, post, recorder)
        self._often, self._pushed = often, step  # pushed: the last step whose update the server has
        self._version, self._fetch, self._waited = 0, True, 0.0
        self._apart = np.array(flat.array())     # what the weights would be without the updates not yet pushed

    def note(self):
        return Note(self._version, self._fetch, self._waited)

    def contact(self, step):
        fetch, push = self._often.due(step)
        return self._exchange(step, fetch, push) if fetch or push else False

    def catch_up(self, step):
        self._exchange(step, fetch=True, push=False)
        self._pushed = step

    def leave(self, step):
        """Push what has not been pushed, and say that this step was the last."""
        if self._pushed < step:
            self._exchange(step, fetch=False, push=True)
        super().leave(step)

    def _exchange(self, step, fetch, push):
        """Fetch, push, or both; returns whether all stop."""
        self._fetch, began = fetch, self._post.now()
        turn = self.ask(Push if push else Fetch, step)
        self._waited = self._post.now() - began
        with self.exchanging():
            if push:
                self._push(turn.note, fetch)
                self._pushed = step
            else:
                self._fetch_under_updates()
            if fetch:
                self._flat.unpack(self._variables)
        if fetch or turn.note.weights:
            self._version = turn.note.version
        return turn.stop

    def _push(self, told, fetch):
        """Push the updates, or the weights; the array that travels is what then is counted from."""
        weights, apart = self._flat.array(), self._apart
        if told.weights:
            np.copyto(apart, weights)
        else:
            np.subtract(weights, apart, out=apart)
        self._post.hand_over(apart, SERVER, back=fetch)
        if fetch:
            np.copyto(weights, apart)
        else:
            np.copyto(apart, weights)

    def _fetch_under_updates(self):
        """w <- W + D, with the updates D that have not been pushed."""
        weights, apart = self._flat.array(), self._apart
        np.subtract(weights, apart, out=apart)
        self._post.hand_over(weights, SERVER, there=False)
        for w, d, moved in blocks(weights, apart):
            np.add(w, d, out=moved)
            np.copyto(d, w)
            np.copyto(w, moved)
