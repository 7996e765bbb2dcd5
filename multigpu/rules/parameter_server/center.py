"""Center policy of rule asgd: the center variable, its version, its updates, and the log of the pushes.

    W <- W + c D,  version <- version + 1                            on a push
    c = server_scale / (1 + staleness) ** staleness_power

With server_update, the pushed D can be treated as the step of Adagrad or Adadelta (updates.py). Their accumulators are
stored on the server and not in checkpoints; a resumed run starts with zeros.

Each push is written as a PushRecord. A client computes and copies for Z seconds between two of its requests, and the
server processes a request in S seconds. K clients therefore send at most K requests in Z + S seconds, and the server
is busy for a share K S / (Z + S) of the time. At (Z + S) / S clients this share reaches 1: the server is saturated,
and requests queue.

Source: Paine et al. 2013, section 2.3; Denning and Buzen 1978, asymptotic bounds of a closed queueing network.
"""

from typing import Literal, NamedTuple, Self

import numpy as np
from pydantic import model_validator

from alexnet.config import Section
from alexnet.config.fields import Amount, Count, NotNegative
from alexnet.training.updates import AdadeltaSettings, AdagradSettings
from multigpu.rules.parameter_server.protocol import CenterPolicy, Fetch, Leave, Push, TransferPlan
from multigpu.rules.parameter_server.updates import adadelta, adagrad, by_staleness, plain


class AsgdSettings(Section):
    """When a client exchanges, and how the server applies a push."""

    n_sync: Count
    n_fetch: Count | None
    n_push: Count | None
    server_scale: Amount | None
    server_update: Literal["plain", "adagrad", "adadelta"]
    staleness_power: NotNegative

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse settings that contradict each other."""
        if self.server_update != "plain" and self.server_scale is None:
            raise ValueError(
                f"server_scale must be given with server_update={self.server_update}, whose steps it is the rate of: "
                "0.01, say"
            )
        return self


class PushMeta(NamedTuple):
    """Client to server, with each message.

    version  of the center variable from which the updates are counted
    fetch    whether the client fetches the center variable
    waited   seconds between the client's previous request and its grant
    """

    version: int
    fetch: bool
    waited: float


class GrantMeta(NamedTuple):
    """Server to client, with each grant.

    version  of the center variable after the exchange
    weights  whether the client sends its weights, because they equal the center variable after its updates
    """

    version: int
    weights: bool


class PushRecord(NamedTuple):
    """Record of a push.

    iteration  the client's step
    version    of the center variable after the push
    staleness  versions between the one from which the updates were counted and the one to which they were added
    waiting    milliseconds until the grant
    serving    milliseconds to process the request
    bytes      transferred
    """

    client: int
    iteration: int
    version: int
    staleness: int
    waiting: float
    serving: float
    bytes: int


class ParameterServer(CenterPolicy):
    """CenterPolicy of rule asgd, with a version of the center variable and statistics of the load.

    config   server_update, server_scale, staleness_power and the parameters of Adagrad and Adadelta
    clients  K
    clock    () -> seconds
    """

    def __init__(self, center, config, clients, clock):
        super().__init__(center)
        self._update, self._clock = ServerUpdate(config, center.array().size), clock
        settings = config.section(AsgdSettings)
        self._scale = 1 / clients if settings.server_scale is None else settings.server_scale
        self._power = settings.staleness_power
        self.version = 0
        self.load = ServerLoad(clock())
        self._unsaid = {}                        # {client: PushRecord} without the waiting time, which follows later

    def answer(self, push):
        note, center = push.note, self.center.array()
        self._turn = self._clock()
        if type(push) is Fetch:
            told = GrantMeta(self.version, weights=False)
            return TransferPlan(lambda piece, part: np.copyto(piece, center[part]), there=False, note=told)
        staleness = self.version - note.version
        scale = by_staleness(self._scale, staleness, self._power)
        whole = staleness == 0 and scale == 1 and self._update.plain
        self.version += 1

        def update(piece, part):
            if whole:
                np.copyto(center[part], piece)
            else:
                self._update(piece, center, part, scale, note.fetch)

        return TransferPlan(update, back=note.fetch, note=GrantMeta(self.version, whole))

    def served(self, message, recorder):
        note, client = message.note, message.sender
        if client in self._unsaid:
            pushed = self._unsaid.pop(client)._replace(waiting=1000 * note.waited)
            self.load.waited(note.waited)
            recorder.record("push", **pushed._asdict())
        if type(message) is Leave:
            return
        seconds = self._clock() - self._turn
        self.load.served(seconds)
        if type(message) is Push:
            staleness, moved = self.version - 1 - note.version, self.center.array().nbytes * (1 + note.fetch)
            self.load.staleness.append(staleness)
            self._unsaid[client] = PushRecord(client, message.step, self.version, staleness, 0.0, 1000 * seconds, moved)

    def report(self, clients, recorder):
        """Log the load of the server and the staleness of the pushes."""
        if self.load.turns:
            recorder.log(self.load.sentence(clients, self._clock()))


class ServerUpdate:
    """Applies server_update to a push of `size` values, piece by piece.

    plain  whether the update is W <- W + c D
    """

    def __init__(self, config, size):
        update = config.section(AsgdSettings).server_update
        self.plain = update == "plain"
        self._step, settings, n_accumulators = {
            "plain": (plain, None, 0),
            "adagrad": (adagrad, AdagradSettings, 1),
            "adadelta": (adadelta, AdadeltaSettings, 2),
        }[update]
        self._constants = tuple(config.section(settings).model_dump().values()) if settings else ()
        self._accumulators = [np.zeros(size, np.float32) for _ in range(n_accumulators)]

    def __call__(self, piece, center, part, scale, back):
        """Update a slice of the center variable with a piece of a push.

        If back is true, the piece is overwritten with that slice of the new center variable.
        """
        accumulators = [array[part] for array in self._accumulators]
        self._step(piece, center[part], *accumulators, scale, *self._constants, back=back)


class ServerLoad:
    """Statistics of the server's load since `began`, in seconds of a clock."""

    def __init__(self, began):
        self._began, self.turns, self._busy = began, 0, 0.0
        self._waits, self._waited, self.staleness = 0, 0.0, []

    def served(self, seconds):
        """Add a request that took `seconds` to process."""
        self.turns, self._busy = self.turns + 1, self._busy + seconds

    def waited(self, seconds):
        """Add a client's wait of `seconds` for its grant."""
        self._waits, self._waited = self._waits + 1, self._waited + seconds

    def share(self, now):
        """Return the share of time during which the server was busy."""
        return self._busy / max(now - self._began, self._busy, 1e-9)

    def saturation(self, clients, now):
        """Return the number of clients with the same behaviour at which the server is always busy."""
        cycle = clients * (now - self._began) / self.turns               # seconds between two grants of a client
        waiting = self._waited / max(self._waits, 1)
        return max((cycle - waiting) / (self._busy / self.turns), 1.0)

    def sentence(self, clients, now):
        from_on, mean = self.saturation(clients, now), np.mean(self.staleness) if self.staleness else 0.0
        full = "is saturated" if from_on <= clients else "would be saturated"
        return (
            f"the server has served {self.turns} turns in {self.share(now):.0%} of the time, and {full} from about "
            f"{from_on:.0f} clients on; staleness {mean:.1f} on average, {max(self.staleness, default=0)} at most"
        )
