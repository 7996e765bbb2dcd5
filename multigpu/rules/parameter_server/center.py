"""Center policy of rule asgd: the center variable, its version, its updates, and the log of the pushes.

    W <- W + c D,  version <- version + 1                            on a push
    c = server_scale / (1 + staleness) ** staleness_power

With server_update, the negative of a pushed D can be treated as the gradient of Adagrad, Adadelta, Nesterov momentum or
delayed Nesterov momentum (updates.py). Their accumulators are stored on the server and not in checkpoints; a resumed
run starts with zeros, and with the first push of a period.

Each push is written as a PushRecord. A client computes and copies for Z seconds between two of its requests, and the
server processes a request in S seconds. K clients therefore send at most K requests in Z + S seconds, and the server
is busy for a share K S / (Z + S) of the time. At (Z + S) / S clients this share reaches 1: the server is saturated,
and requests queue.

Source: Paine et al. 2013, section 2.3; Liu et al. 2024, algorithm 3; Denning and Buzen 1978, asymptotic bounds of a
closed queueing network.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from alexnet.config import Config, Section
from alexnet.config.fields import Amount, Count, NotNegative, Share
from alexnet.config.unused import default_settings
from alexnet.config.yaml_text import as_yaml
from alexnet.training.base import Recorder
from alexnet.training.update_settings import AdadeltaSettings, AdagradSettings
from multigpu.exchange.flat_buffer import FlatBuffer
from multigpu.rules.parameter_server.protocol import CenterPolicy, Fetch, Leave, Push, Request, TransferPlan
from multigpu.rules.parameter_server.updates import adadelta, adagrad, by_staleness, delayed_nesterov, nesterov, plain

# A usual server_scale of each server_update that needs one. With that of nesterov, the sum of all changes by a push is
# that of plain; the 0.07 in the code of Liu et al. 2024 diverges in experiments/asgd, with 8 or 32 momentum clients.
# That of delayed_nesterov is one of the learning rates in their table 5 (0.03, 0.1, 0.3, 0.7).
USUAL_SCALES = {
    "adagrad": "0.01", "adadelta": "0.01", "nesterov": "(1 - server_momentum) / clients", "delayed_nesterov": "0.3",
}
# the settings of the momentum, and the values of server_update that read them
MOMENTUM_SETTINGS = {
    "server_momentum": ("nesterov", "delayed_nesterov"),
    "server_momentum_period": ("delayed_nesterov",),
    "server_momentum_activation": ("delayed_nesterov",),
}


class AsgdSettings(Section):
    """When a client exchanges, and how the server applies a push."""

    n_sync: Count
    n_fetch: Count | None
    n_push: Count | None
    server_scale: Amount | None
    server_update: Literal["plain", "adagrad", "adadelta", "nesterov", "delayed_nesterov"]
    server_momentum: Share
    server_momentum_period: Count | None
    server_momentum_activation: NotNegative
    staleness_power: NotNegative

    def check(self) -> None:
        if self.server_update != "plain" and self.server_scale is None:
            raise ValueError(
                f"server_scale must be given with server_update={self.server_update}, because it is the learning "
                f"rate of that update; {USUAL_SCALES[self.server_update]} is a usual value"
            )
        for name, updates in MOMENTUM_SETTINGS.items():
            value, default = getattr(self, name), default_settings()[name]
            if self.server_update not in updates and value != default:
                raise ValueError(
                    f"{name} is a setting of server_update={' and '.join(updates)}, so with "
                    f"server_update={self.server_update} it must stay {as_yaml(default)}, got {as_yaml(value)}"
                )
        if self.server_momentum_activation > 1 / (self.server_momentum_period or math.inf):
            raise ValueError(
                "server_momentum_activation must be at most 1 / server_momentum_period, which must be given with it, "
                f"got {self.server_momentum_activation} and {as_yaml(self.server_momentum_period)}"
            )


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

    Args:
        center: the buffer of the center variable.
        config: the settings of rule asgd, and the constants of Adagrad and Adadelta.
        clients: K.
        clock: returns the time in seconds.
    """

    def __init__(self, center: FlatBuffer, config: Config, clients: int, clock: Callable[[], float]):
        super().__init__(center)
        self._update = ServerUpdate(config, center.array().size, clients)
        self._clock = clock
        self._began = clock()                    # of the request that is processed
        settings = config.section(AsgdSettings)
        self._scale = 1 / clients if settings.server_scale is None else settings.server_scale
        self._power = settings.staleness_power
        self.version = 0
        self.load = ServerLoad(clock())
        # the last push of each client, without the time that it waits, which its next message reports
        self._incomplete: dict[int, PushRecord] = {}

    def answer(self, push: Push | Fetch) -> TransferPlan:
        note = push.note
        center = self.center.array()
        self._began = self._clock()
        if type(push) is Fetch:
            grant = GrantMeta(self.version, weights=False)
            return TransferPlan(lambda piece, part: np.copyto(piece, center[part]), there=False, note=grant)
        staleness = self.version - note.version
        scale = by_staleness(self._scale, staleness, self._power)
        sends_weights = staleness == 0 and scale == 1 and self._update.plain
        self.version += 1
        version = self.version

        def update(piece: np.ndarray, part: slice) -> None:
            if sends_weights:
                np.copyto(center[part], piece)
            else:
                self._update(piece, center, part, scale, version, note.fetch)

        return TransferPlan(update, back=note.fetch, note=GrantMeta(self.version, sends_weights))

    def completed(self, message: Request, recorder: Recorder) -> None:
        note = message.note
        client = message.sender
        if client in self._incomplete:
            pushed = self._incomplete.pop(client)._replace(waiting=1000 * note.waited)
            self.load.add_wait(note.waited)
            recorder.record("push", **pushed._asdict())
        if type(message) is Leave:
            return
        seconds = self._clock() - self._began
        self.load.add_request(seconds)
        if type(message) is Push:
            staleness = self.version - 1 - note.version
            nbytes = self.center.array().nbytes * (1 + note.fetch)
            self.load.staleness.append(staleness)
            self._incomplete[client] = PushRecord(
                client, message.step, self.version, staleness, 0.0, 1000 * seconds, nbytes
            )

    def report(self, clients: int, recorder: Recorder) -> None:
        """Log the load of the server and the staleness of the pushes."""
        if self.load.requests:
            recorder.log(self.load.summary(clients, self._clock()))


class ServerUpdate:
    """Applies server_update to the pushes of `clients` clients, each of `size` values, piece by piece.

    Attributes:
        plain: whether the update is W <- W + c D.
    """

    def __init__(self, config: Config, size: int, clients: int):
        def constants(section: type[Section]) -> tuple[float, ...]:
            return tuple(config.section(section).model_dump().values())

        settings = config.section(AsgdSettings)
        momentum, period = settings.server_momentum, settings.server_momentum_period or clients
        updates: dict[str, tuple[Callable[..., None], tuple[float, ...], int]] = {
            "plain": (plain, (), 0),
            "adagrad": (adagrad, constants(AdagradSettings), 1),
            "adadelta": (adadelta, constants(AdadeltaSettings), 2),
            "nesterov": (nesterov, (momentum,), 1),
            "delayed_nesterov": (delayed_nesterov, (momentum, period, settings.server_momentum_activation), 2),
        }
        self.plain = settings.server_update == "plain"
        self._step, self._constants, n_accumulators = updates[settings.server_update]
        self._period = period if settings.server_update == "delayed_nesterov" else None
        self._accumulators = [np.zeros(size, np.float32) for _ in range(n_accumulators)]

    def __call__(
        self, piece: np.ndarray, center: np.ndarray, part: slice, scale: float, version: int, back: bool
    ) -> None:
        """Update a slice of the center variable with a piece of a push.

        If back is true, the piece is overwritten with that slice of the new center variable.

        Args:
            version: of the center variable after the push, which is the number of pushes so far.
        """
        arrays = [center[part], *(array[part] for array in self._accumulators)]
        last = () if self._period is None else (version % self._period == 0,)
        self._step(piece, *arrays, scale, *self._constants, *last, back=back)


class ServerLoad:
    """Statistics of the server's load since `began`, in seconds of a clock."""

    def __init__(self, began: float):
        self._began = began
        self.requests = 0
        self._busy = 0.0
        self._waits = 0
        self._waited = 0.0
        self.staleness: list[int] = []

    def add_request(self, seconds: float) -> None:
        """Add a request that took `seconds` to process."""
        self.requests += 1
        self._busy += seconds

    def add_wait(self, seconds: float) -> None:
        """Add a client's wait of `seconds` for its grant."""
        self._waits += 1
        self._waited += seconds

    def share(self, now: float) -> float:
        """Return the share of time during which the server was busy."""
        return self._busy / max(now - self._began, self._busy, 1e-9)

    def saturation(self, clients: int, now: float) -> float:
        """Return the number of clients with the same behaviour at which the server is always busy."""
        cycle = clients * (now - self._began) / self.requests            # seconds between two grants of a client
        waiting = self._waited / max(self._waits, 1)
        return max((cycle - waiting) / (self._busy / self.requests), 1.0)

    def summary(self, clients: int, now: float) -> str:
        """Describe the load in one sentence."""
        limit = self.saturation(clients, now)
        mean = np.mean(self.staleness) if self.staleness else 0.0
        saturated = "is saturated" if limit <= clients else "would be saturated"
        return (
            f"the server has processed {self.requests} requests in {self.share(now):.0%} of the time and {saturated} "
            f"from about {limit:.0f} clients on; staleness {mean:.1f} on average, "
            f"{max(self.staleness, default=0)} at most"
        )
