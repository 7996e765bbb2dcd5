"""Finds the best settings of a method for a number of workers and a link: the lowest test error at the end.

From its start, each setting in turn moves to a neighbouring value as long as the error decreases: first the interval,
at last the learning rate, then the interval again. Trajectories of synchronous rules are trained once for all links
and strategies.
"""

from experiments.asgd.task import task as task_of
from experiments.comparison.clock import STRATEGIES
from experiments.comparison.methods import METHODS, PUBLISHED, RATES, axes_of, trial_of
from experiments.comparison.trajectory import asynchronous, points_of, steps_at, synchronous

PUBLISHED_RATES = RATES[1:5]


def climb(axes, evaluate):
    """Return the values with the lowest evaluate(values), as a dict by setting.

    Args:
        evaluate: ({setting: value}) -> a number; called again with the same values.
    """
    indices = {axis.name: axis.start for axis in axes}

    def at(indices):
        return evaluate({axis.name: axis.values[indices[axis.name]] for axis in axes})

    for axis in (*axes, axes[0]):
        for direction in (1, -1):
            moved = indices | {axis.name: indices[axis.name] + direction}
            while 0 <= moved[axis.name] < len(axis.values) and at(moved) < at(indices):
                indices = moved
                moved = indices | {axis.name: indices[axis.name] + direction}
    return {axis.name: axis.values[indices[axis.name]] for axis in axes}


class Trainer:
    """Trains trials of a method with a number of workers, each once, and collects their rows."""

    def __init__(self, name, workers, sizes, compiled=True):
        self._name, self._method, self._workers, self._sizes = name, METHODS[name], workers, sizes
        self._task = task_of(sizes.train, sizes.test, compiled)
        self._times = sizes.times(workers)
        self._links = [link for link in sizes.links if workers <= link.most]
        self._errors, self.rows = {}, {}

    def row(self, link, strategy, values):
        """Return the row of a trial."""
        key = link.name, strategy and strategy.name, tuple(values.items())
        if key not in self.rows:
            points, load = self._trained(link, strategy, values)
            self.rows[key] = {
                "method": self._name, "strategy": key[1] or "", "link": link.name, "workers": self._workers,
                "settings": dict(values), "error": points[-1].error, "errors": [points[-1].error],
                "sent": points[-1].sent, "seconds": points[-1].seconds, "load": load, "best": False, "source": "",
                "curve": [[round(point.seconds, 1), round(point.sent), point.error] for point in points],
            }
        return self.rows[key]

    def _trained(self, link, strategy, values):
        trial = trial_of(self._name, self._workers, link, values, self._sizes)
        if not self._method.synchronous:
            return asynchronous(trial, self._task, self._times)
        key = tuple(values.items())
        if key not in self._errors:
            wanted = {
                steps_at(seconds, trial, each, other) for seconds in self._times for other in self._links
                for each in self._method.strategies or (None,)
            }
            self._errors[key] = synchronous(trial, self._task, wanted)
        return points_of(self._errors[key], self._times, trial, strategy, link), 0.0


def best_rows(name, workers, sizes, compiled=True):
    """Return the rows of all trials of a method, those with the best settings of each link and strategy marked."""
    trainer, method = Trainer(name, workers, sizes, compiled), METHODS[name]
    for link in sizes.links:
        if not is_tried(method, workers, link, sizes):
            continue
        for strategy in method.strategies or (None,):
            def error(values, link=link, strategy=strategy):
                return trainer.row(link, strategy, values)["error"]

            found = climb(axes_of(name, workers, link, dict(sizes.steps)[workers]), error)
            trainer.row(link, strategy, found)["best"] = True
    rows = list(trainer.rows.values())
    return replicated([row for row in rows if row["best"]], sizes, compiled) + [row for row in rows if not row["best"]]


def replicated(rows, sizes, compiled=True):
    """Train rows of one method and number of workers again with further seeds; return them with the mean error.

    The search takes the lowest of several noisy errors, which is too low on average; further seeds are not selected.
    """
    if not rows or rows[0]["workers"] > sizes.replicated:
        return rows
    for seed in range(sizes.seed + 1, sizes.seed + sizes.seeds):
        trainer = Trainer(rows[0]["method"], rows[0]["workers"], sizes._replace(seed=seed), compiled)
        for row in rows:
            link = next(link for link in sizes.links if link.name == row["link"])
            strategy = next((each for each in STRATEGIES if each.name == row["strategy"]), None)
            row["errors"].append(trainer.row(link, strategy, row["settings"])["error"])
    return [row | {"error": sum(row["errors"]) / len(row["errors"])} for row in rows]


def is_tried(method, workers, link, sizes):
    """Return whether a method is trained. In shared memory the asynchronous ones are, with the most workers only."""
    few = link.shared is not None and workers < link.most and not method.synchronous
    return workers <= min(method.most, link.most) and not few and not is_saturated(method, workers, link, sizes)


def is_saturated(method, workers, link, sizes):
    """Return whether the server cannot serve each client twice during a trial."""
    return method.has_server and 2 * workers * link.costs().turn() > sizes.seconds(workers)


def published_rows(name, sizes, compiled=True):
    """Return the rows of the published settings of a method, on the second link, each at its best rate."""
    trainer, rows = Trainer(name, sizes.published, sizes, compiled), []
    for method, source, values in PUBLISHED:
        if method == name:
            of_rates = [trainer.row(sizes.links[1], None, values | {"learning_rate": rate}) for rate in PUBLISHED_RATES]
            rows.append(min(of_rates, key=lambda row: row["error"]) | {"source": source})
    return replicated(rows, sizes, compiled)
