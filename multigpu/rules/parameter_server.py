"""The parameter server of rule asgd: its centre, versions, updates, and what there is to say of those who come.

    W <- W + c D,  version <- version + 1                            on a push
    c = server_scale / (1 + staleness) ** staleness_power

server_update may take the pushed D for the step of Adagrad or Adadelta instead: multigpu.rules.server_updates.  Their
accumulators lie on the server, are in no checkpoint, and begin at 0 in a run that is resumed.

Each push is a record of the run: Pushed.  A client waits Z seconds between two turns of its own (it computes, copies),
and the server serves a turn in S; K clients together can ask for no more than one turn each in Z + S.  So the server
is busy K S / (Z + S) of the time until that is 1: from (Z + S) / S clients on it is saturated, and they queue.

Source: Paine et al. 2013, section 2.3; Denning and Buzen 1978, asymptotic bounds of a closed queueing network.
"""

from typing import NamedTuple

import numpy as np

from multigpu.rules.server_updates import adadelta, adagrad, by_staleness, plain
from multigpu.rules.turns import Answer, Fetch, Keeper, Leave, Push


class Note(NamedTuple):
    """Client to server, with each message.

    version  of the centre that the updates are counted from
    fetch    whether the centre is wanted back
    waited   seconds between the client's last message and its turn
    """

    version: int
    fetch: bool
    waited: float


class Told(NamedTuple):
    """Server to client, with its turn.

    version  of the centre after the exchange
    weights  whether the client is to send its weights: they are what its updates would make of the centre
    """

    version: int
    weights: bool


class Pushed(NamedTuple):
    """What is recorded of a push.

    iteration  the client's step                   version  of the centre after it
    staleness  versions between the one that the updates were counted from and the one they were added to
    waiting    milliseconds until its turn         serving  milliseconds that its turn took      bytes  moved
    """

    client: int
    iteration: int
    version: int
    staleness: int
    waiting: float
    serving: float
    bytes: int


class ParameterServer(Keeper):
    """The centre, its version, and what there is to say of those who come.

    config   server_update, server_scale, staleness_power and the numbers of Adagrad and Adadelta
    clients  K
    clock    () -> seconds
    """

    def __init__(self, centre, config, clients, clock):
        super().__init__(centre)
        self._update, self._clock = ServerUpdate(config, centre.array().size), clock
        self._scale = 1 / clients if config.server_scale is None else config.server_scale
        self._power, self.version = config.staleness_power, 0
        self.load, self._unsaid = Load(clock()), {}      # unsaid: pushes whose clients have yet to say how they waited

    def answer(self, push):
        note, centre = push.note, self.centre.array()
        self._turn = self._clock()
        if type(push) is Fetch:
            told = Told(self.version, weights=False)
            return Answer(lambda piece, part: np.copyto(piece, centre[part]), there=False, note=told)
        staleness = self.version - note.version
        scale = by_staleness(self._scale, staleness, self._power)
        whole = staleness == 0 and scale == 1 and self._update.plain
        self.version += 1

        def update(piece, part):
            if whole:
                np.copyto(centre[part], piece)
            else:
                self._update(piece, centre, part, scale, note.fetch)

        return Answer(update, back=note.fetch, note=Told(self.version, whole))

    def served(self, message, recorder):
        note, client = message.note, message.sender
        if client in self._unsaid:
            pushed = self._unsaid.pop(client)._replace(waiting=1000 * note.waited)
            self.load.waited(note.waited)
            recorder.push(**pushed._asdict())
        if type(message) is Leave:
            return
        seconds = self._clock() - self._turn
        self.load.served(seconds)
        if type(message) is Push:
            staleness, moved = self.version - 1 - note.version, self.centre.array().nbytes * (1 + note.fetch)
            self.load.staleness.append(staleness)
            self._unsaid[client] = Pushed(client, message.step, self.version, staleness, 0.0, 1000 * seconds, moved)

    def report(self, clients, recorder):
        """Say how busy the server is, and how stale what it gets."""
        if self.load.turns:
            recorder.log(self.load.sentence(clients, self._clock()))


class ServerUpdate:
    """What the settings' server_update makes of a push of `size` numbers, piece by piece.

    plain  whether it is W <- W + c D
    """

    def __init__(self, config, size):
        self.plain, kind = config.server_update == "plain", config.server_update
        self._step, numbers = {
            "plain": (plain, ()),
            "adagrad": (adagrad, (config.adagrad_epsilon,)),
            "adadelta": (adadelta, (config.adadelta_rho, config.adadelta_epsilon)),
        }[kind]
        self._numbers, arrays = numbers, {"plain": 0, "adagrad": 1, "adadelta": 2}[kind]
        self._accumulators = [np.zeros(size, np.float32) for _ in range(arrays)]

    def __call__(self, piece, centre, part, scale, back):
        """Change the centre's slice by a piece of a push; back: the piece becomes that slice of the new centre."""
        accumulators = [array[part] for array in self._accumulators]
        self._step(piece, centre[part], *accumulators, scale, *self._numbers, back=back)


class Load:
    """How busy a server is since `began`, on a clock of seconds."""

    def __init__(self, began):
        self._began, self.turns, self._busy = began, 0, 0.0
        self._waits, self._waited, self.staleness = 0, 0.0, []

    def served(self, seconds):
        """A turn took so long."""
        self.turns, self._busy = self.turns + 1, self._busy + seconds

    def waited(self, seconds):
        """A client has waited so long for its turn."""
        self._waits, self._waited = self._waits + 1, self._waited + seconds

    def share(self, now):
        """Of the time, that the server has served."""
        return self._busy / max(now - self._began, self._busy, 1e-9)

    def saturation(self, clients, now):
        """From how many clients on, alike to these, the server is busy all of the time."""
        cycle = clients * (now - self._began) / self.turns               # seconds from a client's turn to its next
        waiting = self._waited / max(self._waits, 1)
        return max((cycle - waiting) / (self._busy / self.turns), 1.0)

    def sentence(self, clients, now):
        from_on, mean = self.saturation(clients, now), np.mean(self.staleness) if self.staleness else 0.0
        full = "is saturated" if from_on <= clients else "would be saturated"
        return (
            f"the server has served {self.turns} turns in {self.share(now):.0%} of the time, and {full} from about "
            f"{from_on:.0f} clients on; staleness {mean:.1f} on average, {max(self.staleness, default=0)} at most"
        )
