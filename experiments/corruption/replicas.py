"""Workers of rule bsp as threads of this process, which run one at a time, and a small network that they train.

The threads use the Synchronizers of the product, its buffers in shared memory and its average. Only the communicator is
replaced: allgather() passes the messages within the process.
"""

import threading
from functools import partial

import numpy as np

from alexnet.nn import LRN, Conv, Dense, Flatten, Sequential, he
from alexnet.run.recorder import WorkerRecorder
from alexnet.training.loop import Diverged, InputLost, Position
from alexnet.training.network import Network
from alexnet.training.updates import momentum_sgd
from multigpu.communicator import Communicator
from multigpu.device.host import HostDevice
from multigpu.exchange.base import Strategy
from multigpu.exchange.flat_buffer import FlatBuffer
from multigpu.exchange.peer import ShardedAverage
from multigpu.loader import sum_of_words
from multigpu.rules.averaging import Bsp
from multigpu.rules.gradients import GradientBsp
from multigpu.rules.groups import ParameterGroup, shapes_of
from multigpu.rules.single import SingleWorker
from multigpu.rules.state_check import require_as_written

STEPS = 8
BATCH, CLASSES, RATE = 8, 3, np.float32(0.003)
SIZE = 3                                         # replicas


class Tiny(Sequential):
    """AlexNet's kinds of layers, for images of 3 x 63 x 63."""

    channels, image_size = 3, 63

    def __init__(self, rng):
        super().__init__(
            Conv(rng, 3, 8, size=7, stride=4, pool=(3, 2), std=0.002), LRN(),                # 8 x 7 x 7
            Conv(rng, 8, 12, size=3, stride=2, pad=1, groups=2, std=he, bias=0.1), Flatten(),         # 12 x 4 x 4
            Dense(rng, 192, 32, std=he),
            Dense(rng, 32, CLASSES, relu=False, std=0.01, bias=0.0),
        )


def make_network(**sums):
    """Return a network with the same initial weights on every call; see Network.sum_state for the arguments."""
    network = Network(Tiny(np.random.default_rng(0)), np.zeros((3, 63, 63), "float32"),
                      partial(momentum_sgd, momentum=0.9), crop=False)
    network.sum_state(**sums)
    return network


def make_images(n, seed):
    """Return random images whose brightness depends on the class, float32 (3, 63, 63, n), and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n, dtype=np.int32)
    images = rng.normal(0, 40, (3, 63, 63, n)) + 15 * (labels - 1)
    return images.astype("float32"), labels


class Ended(Exception):
    """Another thread has ended, so that no message of it will arrive."""


class Exchange:
    """What the communicators of the threads share: the messages, and a lock that the running thread holds."""

    def __init__(self, size):
        self.messages = [None] * size
        self.barrier = threading.Barrier(size)
        self.running = threading.Lock()

    def gather(self, rank, message):
        """Return the messages of all threads."""
        self.messages[rank] = message
        self.wait()
        found = list(self.messages)
        self.wait()
        return found

    def wait(self):
        """Wait for all threads; another one runs in the meantime."""
        self.running.release()
        try:
            self.barrier.wait()
        except threading.BrokenBarrierError:
            raise Ended from None
        finally:
            self.running.acquire()


class ThreadCommunicator(Communicator):
    """Connects threads of this process."""

    over_mpi, on_one_host = False, True

    def __init__(self, exchange, rank, size):
        self._exchange = exchange
        self.rank = self.local_rank = rank
        self.size = self.local_size = size

    def allgather(self, message):
        return self._exchange.gather(self.rank, message)

    def set_pid(self, rank, pid):
        pass

    def detach(self):
        pass


class Averaging(Strategy):
    """The product's average by slices, on buffers of this process.

    Args:
        averaged: called with the step after each average, with the buffers of this rank.
    """

    def __init__(self, flats, comm, averaged):
        super().__init__(flats[comm.rank])
        others = {rank: flat.buffer for rank, flat in enumerate(flats) if rank != comm.rank}
        self._mean = ShardedAverage(self.device, comm, self.flat.buffer, others)
        self._averaged = averaged

    @classmethod
    def connect(cls, context):
        raise NotImplementedError

    def average(self, step):
        self._mean.average(step)
        self._averaged(step, self.flat.array())

    def close(self):
        pass


class Replicas:
    """Workers that train the small network together.

    Args:
        what: "gradients", "weights_and_momentum", or None for a single worker.
        checks: whether the networks compute the sums of their state, and the workers compare those of their images.
    """

    def __init__(self, what, checks):
        self.size = SIZE if what else 1
        self.what = what
        self.checks = checks
        unused = {"gradients": "read", "weights_and_momentum": "written"}
        sums = {unused[what]: 0} if what else {}
        self.networks = [make_network(**(sums if checks else {"read": 0, "written": 0})) for _ in range(self.size)]
        self.initial = {name: np.array(array) for name, array in self.networks[0].get_state().items()}
        self.device = HostDevice()
        variables = [self._variables(network) for network in self.networks]
        self.flats = [FlatBuffer(self.device, shapes_of(each)) for each in variables] if what else []
        self.batches = [make_images(BATCH, (0, step)) for step in range(STEPS * self.size)]
        self.validation = make_images(96, 1)

    def _variables(self, network):
        return network.gradients if self.what == "gradients" else network.parameters_and_velocities

    def train(self, act):
        """Train from the initial state; return the final weights and velocities of rank 0, or raise the first error.

        Args:
            act: called as act(moment, rank, step, array) at every moment at which a bit may flip; array: the images, or
                the exchange buffer after the average.
        """
        exchange = Exchange(self.size)
        results = [None] * self.size
        threads = [
            threading.Thread(target=self._work, args=(rank, exchange, act, results)) for rank in range(self.size)
        ]
        for network in self.networks:
            network.set_state(self.initial)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        errors = [result for result in results if isinstance(result, Exception)]
        for error in sorted(errors, key=lambda error: isinstance(error, Ended)):
            raise error
        return results[0]

    def _work(self, rank, exchange, act, results):
        with exchange.running:
            try:
                results[rank] = self._train_rank(rank, exchange, act)
            except (ArithmeticError, RuntimeError, Ended) as error:      # it is the result
                results[rank] = error
                exchange.barrier.abort()

    def _train_rank(self, rank, exchange, act):
        network = self.networks[rank]
        synchronizer = self._synchronizer(rank, exchange, act)
        synchronizer.begin(Position())
        for step in range(1, STEPS + 1):
            images, labels = self.batches[(step - 1) * self.size + rank]
            images = images.copy()
            words = sum_of_words(images)         # of the loader
            act("before", rank, step, images)
            if self.checks and sum_of_words(images) != words:
                raise InputLost("images have changed in shared memory")
            cost, error = synchronizer.step(images, labels, rate=RATE)
            if not np.isfinite(cost):
                raise Diverged(f"the cost became {cost}")
            act("computed", rank, step, images)
            synchronizer.after_step(step, cost, error, RATE, False, step == STEPS)
        act("ended", rank, STEPS, images)
        if rank > 0:                             # rank 0 saves
            return None
        require_as_written(network, STEPS)
        weights = [np.array(variable.get_value()) for variable in network.parameters_and_velocities]
        if not all(np.isfinite(array).all() for array in weights):       # as a checkpoint does
            raise Diverged("weights are not finite")
        return weights

    def _synchronizer(self, rank, exchange, act):
        network = self.networks[rank]
        if not self.what:
            return SingleWorker(network)
        comm = ThreadCommunicator(exchange, rank, self.size)
        strategy = Averaging(self.flats, comm, lambda step, array: act("averaged", rank, step, array))
        groups = [ParameterGroup(self._variables(network), strategy)]
        if self.what == "gradients":
            return GradientBsp(network, groups, None, comm, WorkerRecorder(rank), compares=self.checks)
        groups[0].pack()
        groups[0].unpack()
        return Bsp(network, groups, comm, WorkerRecorder(rank))

    def error_of(self, weights):
        """Return the top-1 validation error of these weights."""
        network = self.networks[0]
        for variable, array in zip(network.parameters_and_velocities, weights, strict=True):
            variable.set_value(array.copy(), borrow=True)
        return float(network.validate(*self.validation)[1])
