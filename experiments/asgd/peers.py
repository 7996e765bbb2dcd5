"""The rules without a server, on a virtual clock, simulated from their equations.

bsp     Each worker computes a gradient, waits for the slowest worker, and applies the mean. A ring averages: each of N
        workers sends and receives 2 (N - 1) / N arrays (multigpu.rules.bsp, exchange_what=gradients).
slowmo  Each worker takes slowmo_steps steps, then a ring averages the weights, and all apply the outer update
        (multigpu.rules.slowmo, whose functions are used).
gosgd   After a step, a worker may push its weights and half of its share to another worker. The receiver merges them
        before its first step that begins after their arrival. A worker sends one push at a time, and receives one at a
        time. receiver, halved and merged come from multigpu.rules.gosgd.

The learning rate is that of the trial.
"""

import heapq
from collections import defaultdict
from operator import itemgetter

import numpy as np

from experiments.asgd.task import Batches, errors_on_test
from multigpu.rules.gosgd import halved, merged, receiver
from multigpu.rules.groups import weights_and_velocities
from multigpu.rules.slowmo import nesterov_step, slow_momentum_step


def paces_of(trial, number):
    """Return the random stream of a worker's step times."""
    return np.random.default_rng([5, trial.seed, number])


def pace(trial, stream):
    """Return the duration of the next step relative to the nominal one, drawn at random."""
    return 1 + trial.jitter * stream.uniform(-1, 1)


class Worker:
    """A simulated worker with its weights, velocities, batches and learning rate.

    All workers share one network; a worker's arrays are in the network while it takes a step.
    """

    def __init__(self, task, trial, number):
        self._variables = sum(weights_and_velocities(task.network), [])
        self._network, self._rate = task.network, np.float32(trial.rate)
        self.arrays = [np.array(variable.get_value(borrow=True)) for variable in self._variables]
        self._batches, self._chance = Batches(task, trial.seed, number), paces_of(trial, number)
        self._weights, self._trial, self.share = len(self.arrays) // 2, trial, 1 / trial.clients

    def weights(self):
        return self.arrays[: self._weights]

    def velocities(self):
        return self.arrays[self._weights :]

    def step(self):
        """Take a step and return the error of the minibatch."""
        self.show()
        error = float(self._network.train(*self._batches.next(), self._rate)[1])
        self.arrays = [variable.container.storage[0] for variable in self._variables]
        return error

    def show(self):
        for variable, array in zip(self._variables, self.arrays, strict=True):
            variable.container.storage[0] = array

    def pace(self):
        return pace(self._trial, self._chance)


def workers_of(task, trial):
    return [Worker(task, trial, number) for number in range(1, trial.clients + 1)]


def run(trial, task):
    """Return (times, errors, further fields of the row)."""
    times, errors, consensus = {"bsp": bsp, "gosgd": gosgd}[trial.rule](trial, task)
    show(task.network, consensus)
    center, ten = errors_on_test(task)
    return np.array(times), np.array(errors), {"tests": [{"seconds": trial.seconds, "test": center, "ten_crops": ten}]}


def show(network, weights):
    """Copy weights into the network."""
    for variable, array in zip(weights_and_velocities(network)[0], weights, strict=True):
        np.copyto(variable.container.storage[0], array)


def mean_of(arrays):
    """Return the mean of arrays, float32, summed in their order."""
    return sum(arrays[1:], np.array(arrays[0])) / np.float32(len(arrays))


def ring_arrays(workers):
    """Return how many arrays each worker sends to average one."""
    return 2 * (workers - 1) / workers


# ---- bsp


class Bsp:
    """The workers of rule bsp, whose common weights and velocities are those in the network.

    Args:
        half: round each gradient and the mean to float16, as exchange=asa16 does.
    """

    def __init__(self, task, trial, half=False):
        self._network, self._rate = task.network, np.float32(trial.rate)
        self._batches = [Batches(task, trial.seed, number) for number in range(1, trial.clients + 1)]
        self._half = half
        self.steps = 0

    def step(self):
        """Take a step of all workers and return the errors of their minibatches."""
        variables, gradients, errors = self._network.gradients, [], []
        for batches in self._batches:
            errors.append(float(self._network.compute(*batches.next())[1]))
            gradients.append([self._rounded(variable.get_value(borrow=True)) for variable in variables])
        for variable, arrays in zip(variables, zip(*gradients, strict=True), strict=True):
            variable.set_value(self._rounded(mean_of(arrays)), borrow=True)
        self._network.apply(self._rate)
        self.steps += 1
        return errors

    def _rounded(self, array):
        return array.astype(np.float16).astype(np.float32) if self._half else np.array(array)

    def consensus(self):
        return [variable.get_value(borrow=True) for variable in weights_and_velocities(self._network)[0]]


def bsp(trial, task):
    """Return (times, errors, final weights)."""
    n, now, times, errors = trial.clients, 0.0, [], []
    workers, streams = Bsp(task, trial), [paces_of(trial, number) for number in range(1, n + 1)]
    ring = ring_arrays(n) * trial.costs.transfer + (2 * trial.costs.copy if n > 1 else 0)
    while (ended := now + trial.costs.step * max(pace(trial, stream) for stream in streams)) <= trial.seconds:
        errors += workers.step()
        times += [ended] * n
        now = ended + ring
    return times, errors, workers.consensus()


# ---- slowmo


class LocalSteps:
    """The workers of rule slowmo.

    Args:
        settings: multigpu.rules.slowmo.SlowmoSettings.
    """

    def __init__(self, task, trial, settings):
        self._workers, self._settings, self._rate = workers_of(task, trial), settings, trial.rate
        self._slow = [np.array(array) for array in self._workers[0].weights()]
        self._momentum = [np.zeros_like(array) for array in self._slow]
        self.steps = 0

    def step(self):
        """Take a step of all workers and return the errors of their minibatches."""
        errors = [worker.step() for worker in self._workers]
        self.steps += 1
        if self.steps % self._settings.slowmo_steps == 0:
            self._outer_step()
        return errors

    def _outer_step(self):
        alpha, beta = self._settings.slowmo_alpha, self._settings.slowmo_beta
        all_weights = zip(*(worker.weights() for worker in self._workers), strict=True)
        for arrays, slow, momentum in zip(all_weights, self._slow, self._momentum, strict=True):
            mean = mean_of(arrays)
            flat = mean.reshape(-1), slow.reshape(-1), momentum.reshape(-1)
            if self._settings.slowmo_nesterov:
                nesterov_step(*flat, alpha, beta)
            else:
                slow_momentum_step(*flat, alpha, beta, self._rate)
            for array in arrays:
                np.copyto(array, mean)
        if self._settings.slowmo_buffers == "reset":
            for worker in self._workers:
                for velocity in worker.velocities():
                    velocity.fill(0)

    def consensus(self):
        """Return the slow weights, which are those of the last outer step."""
        return self._slow


# ---- gosgd


class Gossip:
    """The workers of rule gosgd.

    Attributes:
        pushes: number of pushes so far.
    """

    def __init__(self, task, trial):
        self._trial, self._workers = trial, workers_of(task, trial)
        self._coming = defaultdict(list)                   # receiver -> (arrival, share, arrays) of each push
        self._sent = [0.0] * trial.clients                 # time at which a worker's last push has been sent
        self._received = [0.0] * trial.clients             # and at which the last push to it has been received
        self.pushes = 0

    def run(self, p):
        """Yield (time, error of the minibatch) of each step, in chronological order."""
        trial, workers = self._trial, self._workers
        queue = [(trial.costs.step * worker.pace(), number, 1) for number, worker in enumerate(workers)]
        heapq.heapify(queue)
        while queue[0][0] <= trial.seconds:
            now, number, step = heapq.heappop(queue)
            worker = workers[number]
            merge(worker, self._coming[number], now - trial.costs.step)
            yield now, worker.step()
            begun = now
            if (other := receiver(trial.seed, number, len(workers), step, p)) is not None:
                begun = max(now, self._sent[number]) + trial.costs.copy
                self._push(number, other, begun)
            heapq.heappush(queue, (begun + trial.costs.step * worker.pace(), number, step + 1))

    def _push(self, number, other, begun):
        worker = self._workers[number]
        worker.share, pushed = halved(worker.share)
        arrival = max(begun, self._received[other]) + self._trial.costs.transfer
        self._sent[number] = self._received[other] = arrival
        self._coming[other].append((arrival, pushed, [np.array(array) for array in worker.weights()]))
        self.pushes += 1

    def consensus(self):
        """Return the sum of a w over all workers and all pushes that have not been merged."""
        terms = [(worker.share, worker.weights()) for worker in self._workers]
        terms += [push[1:] for coming in self._coming.values() for push in coming]
        shares = [share for share, _ in terms]
        return [sum(share * array for share, array in zip(shares, arrays, strict=True))
                for arrays in zip(*(weights for _, weights in terms), strict=True)]


def gosgd(trial, task):
    """Return (times, errors, final consensus)."""
    workers = Gossip(task, trial)
    steps = list(workers.run(dict(trial.settings)["gosgd_p"]))
    return *zip(*steps, strict=True), workers.consensus()


def merge(worker, coming, by):
    """Merge the pushes that have arrived by the time `by`, in order of arrival."""
    coming.sort(key=itemgetter(0))
    while coming and coming[0][0] <= by:
        _, pushed_share, copies = coming.pop(0)
        for array, pushed in zip(worker.weights(), copies, strict=True):
            share = merged(array.ravel(), worker.share, pushed.ravel(), pushed_share)
        worker.share = share
