"""The rules without a server, bsp and gosgd, on a virtual clock, simulated from their equations.

bsp     Each worker takes a step and waits for the slowest worker. A ring averages the weights: each of N workers sends
        and receives 2 (N - 1) / N arrays (multigpu.rules.bsp, `avg`). The learning rate is that of the trial.
gosgd   After a step, a worker may push its weights and half of its share to another worker. The receiver merges them
        before its first step that begins after their arrival. receiver, halved and merged come from
        multigpu.rules.gosgd.
"""

import heapq
from collections import defaultdict
from operator import itemgetter

import numpy as np

from experiments.asgd.task import Batches, errors_on_test
from multigpu.rules.bsp import weights_and_velocities
from multigpu.rules.gosgd import halved, merged, receiver


class Worker:
    """A simulated worker with its weights, velocities, batches and learning rate.

    All workers share one network; a worker's arrays are in the network while it takes a step.
    """

    def __init__(self, task, trial, number):
        self._variables = sum(weights_and_velocities(task.network), [])
        self._network, self._rate = task.network, np.float32(trial.rate)
        self.arrays = [np.array(variable.get_value(borrow=True)) for variable in self._variables]
        self._batches, self._chance = Batches(task, trial.seed, number), np.random.default_rng([5, trial.seed, number])
        self._weights, self.jitter, self.share = len(self.arrays) // 2, trial.jitter, 1 / trial.clients

    def weights(self):
        return self.arrays[: self._weights]

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
        """Return the duration of the next step relative to the nominal one, drawn at random."""
        return 1 + self.jitter * self._chance.uniform(-1, 1)


def run(trial, task):
    """Return (times, errors, further fields of the row)."""
    workers = [Worker(task, trial, number) for number in range(1, trial.clients + 1)]
    times, errors, consensus = {"bsp": bsp, "gosgd": gosgd}[trial.rule](trial, workers)
    for place, array in zip(workers[0].weights(), consensus, strict=True):
        np.copyto(place, array)
    workers[0].show()
    center, ten = errors_on_test(task)
    return np.array(times), np.array(errors), {"tests": [{"seconds": trial.seconds, "test": center, "ten_crops": ten}]}


def bsp(trial, workers):
    """Return (times, errors, final weights)."""
    n, now, times, errors = len(workers), 0.0, [], []
    ring = 2 * (n - 1) / n * trial.costs.transfer + (2 * trial.costs.copy if n > 1 else 0)
    while (ended := now + trial.costs.step * max(worker.pace() for worker in workers)) <= trial.seconds:
        errors += [worker.step() for worker in workers]
        times += [ended] * n
        for arrays in zip(*(worker.weights() for worker in workers), strict=True):
            mean = sum(arrays[1:], np.array(arrays[0])) / np.float32(n)
            for array in arrays:
                np.copyto(array, mean)
        now = ended + ring
    return times, errors, workers[0].weights()


def gosgd(trial, workers):
    """Return (times, errors, final consensus, the sum of a_i w_i)."""
    p, times, errors, coming = dict(trial.settings)["gosgd_p"], [], [], defaultdict(list)
    queue = [(trial.costs.step * worker.pace(), number, 1) for number, worker in enumerate(workers)]
    heapq.heapify(queue)
    while queue[0][0] <= trial.seconds:
        now, number, step = heapq.heappop(queue)
        worker = workers[number]
        merge(worker, coming[number], now - trial.costs.step)
        errors.append(worker.step())
        times.append(now)
        begun = now
        if (other := receiver(trial.seed, number, len(workers), step, p)) is not None:
            worker.share, pushed = halved(worker.share)
            begun += trial.costs.copy
            copies = [np.array(array) for array in worker.weights()]
            coming[other].append((begun + trial.costs.transfer, pushed, copies))
        heapq.heappush(queue, (begun + trial.costs.step * worker.pace(), number, step + 1))
    for number, worker in enumerate(workers):
        merge(worker, coming[number], np.inf)
    return times, errors, [sum(worker.share * array for worker, array in zip(workers, arrays, strict=True))
                           for arrays in zip(*(worker.weights() for worker in workers), strict=True)]


def merge(worker, coming, by):
    """Merge the pushes that have arrived by the time `by`, in order of arrival."""
    coming.sort(key=itemgetter(0))
    while coming and coming[0][0] <= by:
        _, pushed_share, copies = coming.pop(0)
        for array, pushed in zip(worker.weights(), copies, strict=True):
            share = merged(array.ravel(), worker.share, pushed.ravel(), pushed_share)
        worker.share = share
