"""The claims of Paine et al. 2013, each with a number computed from the rows of the trials, and its verdict."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

NOISE = 0.002                                    # standard deviation of a mean error over 48,000 images
LIKE = 0.83                                      # rank correlation of nine values: significant at 1 %, two-sided


class Claim(NamedTuple):
    """A claim and the number measured for it.

    shows: whether the rows reproduce the claim; None for a number that the paper does not report.
    more: supplementary figures, as text.
    """

    experiment: str
    sentence: str
    value: float
    unit: str
    shows: bool | None
    more: str = ""

    def row(self):
        """Return the claim as a row, for --json."""
        return {"name": self.sentence, "value": self.value, "unit": self.unit, "shows": self.shows, "note": self.more}


def claims(rows):
    """Return the Claims about the experiments that have rows."""
    makers = {"curves": curves, "cold": cold, "warm": warm, "rules": rules, "large": large}
    made = [claim for name, maker in makers.items() if rows.get(name) for claim in maker(rows[name])]
    return [claim._replace(value=float(claim.value), shows=None if claim.shows is None else bool(claim.shows))
            for claim in made]


def points(share):
    return 100 * share


def listed(values, form="{:.1f}"):
    return ", ".join(form.format(value) for value in values)


# ---- experiment 1


def curves(rows):
    pairs = [sorted(group, key=lambda row: row["clients"]) for group in by(rows, "seed").values()]
    best = [[min(row["tests"], key=lambda test: test["test"]) for row in pair] for pair in pairs]
    behind = [points(together["test"] - alone["test"]) for alone, together in best]
    clients, seeds = pairs[0][1]["clients"], "by seed" if len(pairs) > 1 else "one seed"
    errors = listed([points(each["test"]) for both in best for each in both])
    yield Claim("1", f"{clients} clients' best test error is within 1 point of one client's", np.mean(behind), "points",
                np.mean(behind) <= 1, f"one client's and theirs, {seeds}: {errors} %")
    alone = [one["seconds"] for one, _ in best]
    near, there = ([first(together["tests"], one["test"] + margin) for (_, together), (one, _) in
                    zip(pairs, best, strict=True)] for margin in (0.01, 0))
    sooner, itself = (np.divide(alone, times) for times in (near, there))
    yield Claim("1", "they are within 1 point of that sooner than one client is there", np.median(sooner), "×",
                np.median(sooner) > 1, f"{seeds}: {listed(sooner, '{:.2f}')}; to that error itself "
                f"{listed(itself, '{:.2f}')}; the paper has 3.2")
    gains = [points(together["test"] - together["ten_crops"]) for _, together in best]
    yield Claim("1", "averaging 10 crops lowers the test error", np.mean(gains), "points", min(gains) > 0,
                f"{seeds}: {listed(gains)}; the paper has 2 to 3")


def by(rows, *names):
    """Group the rows by the values of the named fields: {values: list of rows}."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def first(tests, level):
    """Return the seconds until the test error is at most `level`, or infinity."""
    return next((test["seconds"] for test in tests if test["test"] <= level), np.inf)


# ---- experiment 2


def cold(rows):
    clients, early, slopes = means_of(rows)
    numbers = listed(clients, "{}")
    slower = early[-1] > early[0] and all(after > before - points(NOISE) for before, after in pairwise(early))
    yield Claim("2", "more clients are slower early", early[-1] - early[0], "points", slower,
                f"error in the first quarter, {numbers} clients: {listed(early)} %")
    yield Claim("2", "the most clients are steepest late", slopes[-1], "points / 1,000 s", min(slopes) == slopes[-1],
                f"after the first quarter, {numbers} clients: {listed(slopes, '{:.2f}')}")


def means_of(rows):
    """Return (numbers of clients, error in % in the first quarter, slopes after it), as means over the seeds."""
    groups = sorted(by(rows, "clients").items())
    early = [points(np.mean([row["early"] for row in group])) for _, group in groups]
    slopes = [np.mean([row["slope"] for row in group]) for _, group in groups]
    return [clients for (clients,), _ in groups], early, slopes


# ---- experiment 3


def warm(rows):
    ends = {(row["n_sync"], row["clients"]): row["end"] for row in rows}
    n_syncs, clients = sorted({n for n, _ in ends}), sorted({k for _, k in ends})
    least, most = clients[0], clients[-1]
    lower = [n for n in n_syncs if all(ends[n, b] < ends[n, a] for a, b in pairwise(clients))]
    ordered = f"at n_sync {listed(lower, '{}') or 'none'} of {listed(n_syncs, '{}')}"
    yield Claim("3", "for every n_sync more clients end lower", len(lower), f"of {len(n_syncs)}",
                len(lower) == len(n_syncs), ordered)
    gained = [points(ends[n, least] - ends[n, most]) for n in n_syncs]
    yield Claim("3", f"for every n_sync {most} clients end lower than {least}", min(gained), "points",
                min(gained) > 0, f"at least; {listed(gained)} at n_sync {listed(n_syncs, '{}')}")
    together = sorted((row for row in rows if row["clients"] == most), key=lambda row: row["n_sync"])
    jagged, teeth = ([points(row[what]) for row in together] for what in ("jagged", "teeth"))
    like = rank_correlation(n_syncs, teeth)
    yield Claim("3", "larger n_sync is more jagged", like, "rank correlation", like >= LIKE,
                f"of {most} clients each one's error falls at an exchange by {listed(teeth, '{:.2f}')} points")
    yield Claim("3", "and so is the curve that is drawn", jagged[-1] - jagged[0], "points", jagged[-1] > jagged[0],
                f"it leaves a smooth one by {listed(jagged, '{:.2f}')} points beyond chance")
    yield from figure4(together)


def figure4(rows):
    small, large = (pick(rows, key=lambda row: row["n_sync"]) for pick in (min, max))
    gain, fewer = points(large["end"] - small["end"]), 100 * (1 - small["minibatches"] / large["minibatches"])
    sentence = f"n_sync {small['n_sync']} ends below n_sync {large['n_sync']} on fewer minibatches"
    yield Claim("3, figure 4", sentence, gain, "points", gain > 0 and fewer > 0,
                f"on {fewer:.0f} % fewer minibatches; the paper has 4 points")


def rank_correlation(x, y):
    """Return Spearman's rank correlation; all values must differ."""
    ranks = [np.argsort(np.argsort(values)) for values in (x, y)]
    return float(np.corrcoef(*ranks)[0, 1])


# ---- further experiments


def rules(rows):
    for row in sorted(best_rates(rows), key=lambda row: (row["name"].split(", ")[-1], row["end"])):
        yield Claim("rules", row["name"], points(row["end"]), "%", None,
                    f"training error at the end, {row['minibatches']:,} minibatches, rate {row['rate']:g}; test "
                    f"{last_test(row):.1%}")


def best_rates(rows):
    """Return for each name the row with the lowest final error, so that each rule is compared at its best rate."""
    best = {}
    for row in sorted(rows, key=lambda row: row["end"]):
        best.setdefault(row["name"], row)
    return [best[name] for name in dict.fromkeys(row["name"] for row in rows)]


def large(rows):
    for row in sorted(rows, key=lambda row: (row["clients"], row["name"])):
        from_on = saturation(row)
        full = "saturated" if from_on <= row["clients"] else "not saturated"
        state = f"the server is {full}, it is from about {from_on:,.0f} on"
        yield Claim("large", f"{row['clients']:,} clients, {row['name']}", points(row["end"]), "%", None,
                    f"training error at the end; test {last_test(row):.1%}; {state}")


def last_test(row):
    return row["tests"][-1]["test"]


def turn(row):
    """Return the server's seconds for one exchange."""
    return 2 * row["costs"]["transfer"] + row["costs"]["apply"]


def load(row):
    """Return the fraction of the time in which the server is busy."""
    return min(1.0, row["pushes"] * turn(row) / row["seconds"])


def saturation(row):
    """Return the number of clients at which the server is saturated, as in parameter_server.center.ServerLoad."""
    return (row["clients"] * row["seconds"] / row["pushes"] - row["waiting"]) / turn(row)


# ---- the table


def table(found):
    """Return the table of claims: verdict, claim, number and supplementary figures, one line for each."""
    verdicts = {True: "shows", False: "DOES NOT SHOW", None: ""}
    lines = [
        f"{each.experiment:12} {verdicts[each.shows]:14} {each.sentence}: {each.value:.4g} {each.unit} ({each.more})"
        for each in found
    ]
    shown, of = sum(claim.shows is True for claim in found), sum(claim.shows is not None for claim in found)
    return "\n".join([*lines, f"{shown} of {of} claims show"])
