"""A whole training without a network, for the tests of the rules: ranks of an MpiTeam do these tasks.

Toy learns nothing of its images.  What each rank does, and how fast, is the test's: a rank's weights begin at its own
number where a task says so, which a rule's connect() would refuse, so they are set afterwards.
"""

import subprocess
import time
from pathlib import Path

import numpy as np
import pytensor

from alexnet.data import Dataset, Split
from alexnet.recorder import Silent
from alexnet.training import Run
from multigpu.rules import part_of, rule_of
from tests import mpi
from tests.tiny import settings

BATCH, STEPS = 4, 5                              # images of a step, and steps of an epoch, of each worker
RATE = np.float32(0.1)


class Toy:
    """A network's double: weights W and velocities V of `length` numbers, and a small b; W <- W - pull, V <- V + 1.

    dawdle  seconds that a step takes      pull  what a step takes away
    """

    frozen, computes_on_host = (), True

    class model:
        """What the loop asks for."""

        image_size = 4

    def __init__(self, length=10, dawdle=0.0, pull=0.0):
        self.parameters_and_velocities = [
            pytensor.shared(np.zeros(shape, "float32"), name=name)
            for name, shape in {"W": (length,), "b": (3,), "W.V": (length,), "b.V": (3,)}.items()
        ]
        self.learning = self.parameters_and_velocities[:2]
        self.step = pytensor.shared(np.int64(0), name="step")
        self.dawdle, self.pull, self.steps = dawdle, pull, 0
        self.validated, self.marks, self.mark = [], [], lambda: None

    def set(self, weights, velocity=0):
        """Change the numbers where they lie."""
        for variable, value in zip(self.parameters_and_velocities, [weights, weights, velocity, velocity], strict=True):
            variable.get_value(borrow=True)[...] = value

    def values(self):
        """Copies of W, b, and their velocities."""
        return [np.array(variable.get_value()) for variable in self.parameters_and_velocities]

    def train(self, *inputs_and_rate):
        time.sleep(self.dawdle)
        self.steps += 1
        w, b, v, _ = (variable.get_value(borrow=True) for variable in self.parameters_and_velocities)
        w -= np.float32(self.pull)
        b -= np.float32(self.pull)
        v += np.float32(1)
        return np.float32(self.steps), np.float32(0.5)

    def validate(self, *inputs):
        """The cost is W's first number, which is kept, with the mark of that moment."""
        time.sleep(self.dawdle)
        self.marks.append(self.mark())
        self.validated.append(float(self.parameters_and_velocities[0].get_value(borrow=True)[0]))
        return self.validated[-1], 0.5, 0.25


class Learner(Toy):
    """Momentum SGD towards 0 of W and b, with a noise that only the seed and the step decide."""

    def __init__(self, length=10, seed=0, momentum=0.9, noise=0.1, dawdle=0.0):
        super().__init__(length, dawdle)
        self.seed, self.momentum, self.noise = seed, np.float32(momentum), np.float32(noise)

    def train(self, *inputs_and_rate):
        told = super().train(*inputs_and_rate)
        variables = [variable.get_value(borrow=True) for variable in self.parameters_and_velocities]
        draw = np.random.default_rng([self.seed, self.steps])
        for w, v in zip(variables[:2], variables[2:], strict=True):
            v -= np.float32(1)                   # Toy's
            v *= self.momentum
            v -= RATE * (w + self.noise * draw.standard_normal(w.shape, "float32"))
            w += v
        return told


class Zeros:
    """Batches of nothing."""

    def read(self, requests):
        for request in requests:
            yield np.zeros((3, 4, 4, sum(segment.stop - segment.start for segment in request.segments)), "float32")


class Told(Silent):
    """A recorder that keeps what it is told."""

    def __init__(self, rank=0):
        super().__init__(rank)
        self.trained, self.validations, self.lapped, self.warnings = [], [], [], []
        self.pushed, self.logged = [], []

    def train_iteration(self, **record):
        self.trained.append(record)
        super().train_iteration(**{name: record[name] for name in record.keys() - {"times", "worker"}})

    def epoch(self, **record):
        self.validations.append(record)
        super().epoch(**record)

    def laps(self, laps):
        self.lapped.append(laps)

    def push(self, **record):
        self.pushed.append(record)

    def log(self, message, screen=True):
        self.logged.append(message)

    def warn(self, sentence):
        self.warnings.append(sentence)


def training(
    network, exchange, recorder, worker, workers, config, saved=None, stop_after=None, shares=(0, 1), steps=STEPS
):
    """A Run of a worker on a set of so many steps an epoch, and as many batches to validate on.

    saved       a list that gets (position, what the network held) of each save; None: this rank does not save
    stop_after  the question on which stop_requested() begins to say yes; None: never
    """
    n = steps * BATCH * workers
    labels = np.zeros(n, "int32")
    split = Split((Path("none"),), np.array([n]), labels)
    data = Dataset(Path("none"), split.shard(worker, workers), split.shard(*shares), None, None, 1)
    asked = iter(range(1_000_000))
    return Run(
        config, network, data, Zeros(), exchange, recorder,
        save=lambda position: None if saved is None else saved.append((position, network.values())),
        stop_requested=lambda: stop_after is not None and next(asked) >= stop_after,
        rank=worker,
    )  # fmt: skip


def toy_settings(**changes):
    """The Config of such a run."""
    given = {"batch_size": BATCH, "use_data_layer": "false", "rand_crop": "false", "shuffle": "false"}
    return settings("none", "none", **(given | changes))


class Ranks:
    """What settings are held against: a rank of an MPI job."""

    over_mpi = on_one_host = True

    def __init__(self, rank, size):
        self.rank, self.size = rank, size


def part_at(config, rank, size):
    """The Part of a rank of so many."""
    ranks = Ranks(rank, size)
    return part_of(rule_of(config, ranks), config, ranks)


def train_py(ranks, output, **settings):
    """What a job of train.py of the tiny network says; it ends well."""
    given = {"output": output, "model": "tiny", "batch_size": 4, "para_load": "false"} | settings
    arguments = [f"{name}={value}" for name, value in given.items()]
    job, house = mpi.command(ranks, "-m", "tests.tiny_train", *arguments), Path(mpi.__file__).parents[1]
    done = subprocess.run(
        job, env=mpi.environment(), capture_output=True, text=True, timeout=240, check=False, cwd=house
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
