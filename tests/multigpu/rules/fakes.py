"""A complete training run without a real network, for the tests of the rules; ranks of an MpiTeam run these tasks.

ToyNetwork does not learn from its images. The test chooses what each rank does and how fast. Some tasks give each rank
its own initial weights. connect() of a rule would reject different weights, so the tasks set them after connecting.
"""

import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytensor

from alexnet.data.dataset import Dataset, Split
from alexnet.run.recorder import WorkerRecorder
from alexnet.training.loop import Run
from multigpu.device import open_device
from multigpu.rules import RULES, role_of, rule_of
from tests import mpi
from tests.tiny import settings

BATCH, STEPS = 4, 5                              # images per step, and steps per epoch, of each worker
RATE = np.float32(0.1)


class ToyNetwork:
    """A fake network: weights W and velocities V of `length` numbers, and a small b; W <- W - pull, V <- V + 1.

    delay  seconds per step      pull  amount subtracted per step
    """

    frozen_parameters, computes_on_host, sums_read, sums_written = (), True, None, None

    class model:
        """The attributes of a model that the training loop reads."""

        image_size = 4

    def __init__(self, length=10, delay=0.0, pull=0.0):
        self.parameters_and_velocities = [
            pytensor.shared(np.zeros(shape, "float32"), name=name)
            for name, shape in {"W": (length,), "b": (3,), "W.V": (length,), "b.V": (3,)}.items()
        ]
        self.weights = self.parameters_and_velocities[:2]
        self.rule_state = []
        self.averages = []
        self.step = pytensor.shared(np.int64(0), name="step")
        self.delay, self.pull, self.steps = delay, pull, 0
        self.validated, self.marks, self.mark = [], [], lambda: None

    def set(self, weights, velocity=0):
        """Set the values in place."""
        for variable, value in zip(self.parameters_and_velocities, [weights, weights, velocity, velocity], strict=True):
            variable.get_value(borrow=True)[...] = value

    def values(self):
        """Return copies of W, b and their velocities."""
        return [np.array(variable.get_value()) for variable in self.parameters_and_velocities]

    def train(self, *inputs_and_rate):
        time.sleep(self.delay)
        self.steps += 1
        w, b, v, _ = (variable.get_value(borrow=True) for variable in self.parameters_and_velocities)
        w -= np.float32(self.pull)
        b -= np.float32(self.pull)
        v += np.float32(1)
        return np.float32(self.steps), np.float32(0.5)

    def validate(self, *inputs):
        """Use the first number of W as the cost; store it together with mark()."""
        time.sleep(self.delay)
        self.marks.append(self.mark())
        self.validated.append(float(self.parameters_and_velocities[0].get_value(borrow=True)[0]))
        return self.validated[-1], 0.5, 0.25, None


class TrainableToyNetwork(ToyNetwork):
    """Momentum SGD of W and b towards 0, with noise that depends only on the seed and the step."""

    def __init__(self, length=10, seed=0, momentum=0.9, noise=0.1, delay=0.0):
        super().__init__(length, delay)
        self.seed, self.momentum, self.noise = seed, np.float32(momentum), np.float32(noise)

    def train(self, *inputs_and_rate):
        result = super().train(*inputs_and_rate)
        variables = [variable.get_value(borrow=True) for variable in self.parameters_and_velocities]
        draw = np.random.default_rng([self.seed, self.steps])
        for w, v in zip(variables[:2], variables[2:], strict=True):
            v -= np.float32(1)                   # undo the update of ToyNetwork
            v *= self.momentum
            v -= RATE * (w + self.noise * draw.standard_normal(w.shape, "float32"))
            w += v
        return result


class ZeroReader:
    """A reader of all-zero batches."""

    def read(self, requests):
        for request in requests:
            yield np.zeros((3, 4, 4, sum(segment.stop - segment.start for segment in request.segments)), "float32")


class RecordingRecorder(WorkerRecorder):
    """A recorder that stores everything it receives."""

    def __init__(self, rank=0):
        super().__init__(rank)
        self.trained, self.validations, self.recorded_laps, self.warnings = [], [], [], []
        self.pushed, self.logged = [], []

    def train_iteration(self, **record):
        self.trained.append(record)
        super().train_iteration(**{name: record[name] for name in record.keys() - {"times", "worker"}})

    def epoch(self, **record):
        self.validations.append(record)
        super().epoch(**record)

    def laps(self, laps):
        self.recorded_laps.append(laps)

    def record(self, kind, **values):
        self.pushed.append(values)

    def log(self, message, screen=True):
        self.logged.append(message)

    def warn(self, sentence):
        self.warnings.append(sentence)


def training(
    network, exchange, recorder, worker, workers, config, saved=None, stop_after=None, shares=(0, 1), steps=STEPS
):
    """Return the Run of one worker on a data set with `steps` batches per epoch for training and for validation.

    saved       list that receives (position, values of the network) at each save; None: this rank does not save
    stop_after  number of the stop_requested() call that first returns True; None: never
    """
    n = steps * BATCH * workers
    labels = np.zeros(n, "int32")
    split = Split((Path("none"),), np.array([n]), labels)
    data = Dataset(Path("none"), split.shard(worker, workers), split.shard(*shares), None, None, 1)
    asked = iter(range(1_000_000))
    return Run(
        config, network, data, ZeroReader(), exchange, recorder,
        save=lambda position: None if saved is None else saved.append((position, network.values())),
        stop_requested=lambda: stop_after is not None and next(asked) >= stop_after,
        rank=worker,
    )


def train_rank(network, exchange, recorder, comm, config, stops, begin, steps):
    """Run the whole training of a rank without a server; return a dict of what it observed.

    stops  {rank: number of the stop_requested() call that first returns True}, or None
    begin  Position at which the training begins
    """
    saved, stop_after = [], (stops or {}).get(comm.rank)
    part = comm.rank, comm.size
    run = training(network, exchange, recorder, *part, config, saved, stop_after, shares=part, steps=steps)
    position = exchange.run(run, begin)
    return {
        "position": position, "saved": saved, "steps": network.steps, "validated": network.validated,
        "validations": recorder.validations,
    }


@contextmanager
def joined(rule, comm, network, recorder, on_host=True, **changes):
    """Yield (settings, Synchronizer of this rank); on_host: whether the backend computes on the host or on a GPU."""
    config = toy_settings(rule=rule, **changes)
    with (
        open_device("cpu", on_host) as device,
        RULES.find(rule)().connect(config, network, device, comm, recorder) as synchronizer,
    ):
        yield config, synchronizer


def toy_settings(**changes):
    """Return the Config of such a run."""
    given = {"batch_size": BATCH, "use_data_layer": "false", "rand_crop": "false", "shuffle": "false"}
    return settings("none", "none", **(given | changes))


class Ranks:
    """A minimal communicator for the validation of settings: a rank of an MPI job."""

    over_mpi = on_one_host = True

    def __init__(self, rank, size):
        self.rank, self.size = rank, size


def part_at(config, rank, size):
    """Return the Role of a rank in a job of `size` ranks."""
    ranks = Ranks(rank, size)
    return role_of(rule_of(config, ranks), config, ranks)


def train_py(ranks, output, **settings):
    """Run train.py with the tiny network as an MPI job, check its exit status, and return its standard output."""
    given = {"output": output, "model": "tiny", "batch_size": 4, "para_load": "false"} | settings
    arguments = [f"{name}={value}" for name, value in given.items()]
    job, root = mpi.command(ranks, "-m", "tests.tiny_train", *arguments), Path(mpi.__file__).parents[1]
    done = subprocess.run(
        job, env=mpi.environment(), capture_output=True, text=True, timeout=240, check=False, cwd=root
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
