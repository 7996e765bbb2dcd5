"""The claims of the papers about the rules and strategies, each with a number from the rows.

Errors of two methods are compared at equal virtual time, each with its best settings. A claim about a difference holds
if the difference exceeds the noise: twice the standard deviation of the difference of two means over the seeds.
"""

import numpy as np

from experiments.asgd.claims import Claim, listed, points
from experiments.comparison.clock import LINKS, STRATEGIES, bytes_sent, saturation, visible
from experiments.comparison.methods import METHODS

SHARED, FAST, SLOW = (link.name for link in LINKS)
PLAIN, OVERLAP, ASA16, _, FACTORS, _ = STRATEGIES
SECTION = "comparison"
BSP = ("bsp", "bsp, float16")


class Errors:
    """Looks up the rows with the best settings."""

    def __init__(self, best):
        self.rows = [row for row in best if row["best"]]
        self.published = [row for row in best if row["source"]]
        self.noise = noise([row["errors"] for row in self.rows if len(row["errors"]) > 1])

    def row(self, methods, workers, link, strategy=None):
        """Return the row with the lowest error among these methods, or None."""
        found = [
            row for row in self.rows if row["method"] in methods and (row["workers"], row["link"]) == (workers, link)
            and strategy in (None, row["strategy"])
        ]
        return min(found, key=lambda row: row["error"], default=None)

    def pairs(self, one, other, links=(FAST, SLOW), strategies=(None, None)):
        """Yield (workers, link, row of one, row of the other) where both have been trained."""
        for workers in sorted({row["workers"] for row in self.rows}):
            for link in links:
                rows = [self.row(methods, workers, link, strategy)
                        for methods, strategy in zip((one, other), strategies, strict=True)]
                if all(rows):
                    yield workers, link, *rows


def noise(groups):
    """Return twice the standard deviation of the difference of two means, in points, from errors by seed."""
    if not groups:
        return 0.0
    variance = float(np.mean([np.var(errors, ddof=1) for errors in groups]))
    return points(2 * (2 * variance / len(groups[0])) ** 0.5)


def claims(best, trials):
    """Return the Claims about these rows: those with the best settings, and those of all trials."""
    errors = Errors(best)
    makers = (strategies, elastic, gossip, local, servers, scaling)
    found = [Claim(SECTION, "noise of a difference", errors.noise, "points", None, "two standard deviations")]
    found += [claim for maker in makers for claim in maker(errors, trials)]
    return [claim._replace(value=float(claim.value), shows=None if claim.shows is None else bool(claim.shows))
            for claim in found]


def compared(errors, sentence, better, worse, **how):
    """Yield the Claim that one group of methods has a lower error than another wherever both have been trained."""
    pairs = list(errors.pairs(better, worse, **how))
    if pairs:
        gains = [points(second["error"] - first["error"]) for _, _, first, second in pairs]
        places = ", ".join(f"{workers:,} on {link}" for workers, link, *_ in pairs)
        yield Claim(SECTION, sentence, min(gains), "points at least", min(gains) > errors.noise,
                    f"{places}: {listed(gains, '{:+.1f}')}")


def strategies(errors, trials):
    hidden = [100 * (1 - visible(OVERLAP, n, LINKS[1]) / visible(PLAIN, n, LINKS[1])) for n in (2, 8, 1024)]
    yield Claim(SECTION, "overlap hides most of an exchange at 1 Gbit/s (Zhang et al. 2017)", min(hidden),
                "% at least", min(hidden) > 50, f"2, 8 and 1,024 workers: {listed(hidden)}")
    hidden = [100 * (1 - visible(OVERLAP, n, LINKS[2]) / visible(PLAIN, n, LINKS[2])) for n in (2, 8, 1024)]
    yield Claim(SECTION, "overlap hides most of an exchange at 100 Mbit/s", min(hidden), "% at least",
                min(hidden) > 50, f"2, 8 and 1,024 workers: {listed(hidden)}")
    for other in (PLAIN, ASA16):
        fewer = [n for n in range(2, 1025) if bytes_sent(FACTORS, n) < 0.99 * bytes_sent(other, n)]
        shares = [bytes_sent(FACTORS, n) / bytes_sent(other, n) for n in (2, 8, 32)]
        yield Claim(SECTION, f"factors send less than gradients, {other.name}, for 32 workers (Xie et al. 2016)",
                    max(fewer), "workers at most", max(fewer) >= 32,
                    f"2, 8, 32 workers: {listed(shares, '{:.2f}')} of the bytes")
    pairs = list(errors.pairs(("bsp, float16",), ("bsp",), links=(SHARED,), strategies=("asa16", "plain")))
    if pairs:
        costs = [points(half["error"] - full["error"]) for _, _, half, full in pairs]
        numbers = listed([workers for workers, *_ in pairs], "{}")
        yield Claim(SECTION, "float16 gradients cost no accuracy (Ma et al. 2016)", max(costs), "points at most",
                    max(costs) < errors.noise, f"{numbers} workers: {listed(costs, '{:+.1f}')}")


def elastic(errors, trials):
    yield from compared(errors, "EASGD has a lower error than asgd (Zhang et al. 2015)", ("easgd",), ("asgd",))
    yield from compared(errors, "EASGD has a lower error than bsp with its best strategy (Ma et al. 2016)", ("easgd",),
                        BSP)
    yield from published_gap(errors, "Theano-MPI's alpha = 0.5 is as good as 0.9 / N", "Theano-MPI", "alpha = 0.9 / N",
                             "easgd")
    worst = spread(trials, "easgd", "easgd_tau", FAST, errors)
    if worst:
        workers, low, high, cost = worst
        yield Claim(SECTION, f"EASGD with tau {high:g} is as good as with tau {low:g} (Zhang et al. 2015)", cost,
                    "points", cost < errors.noise, f"{workers} workers, {FAST}, other settings equal")


def spread(trials, method, name, link, errors, workers=8):
    """Return (workers, best interval, a longer one, points that it costs), with the other settings of the best row."""
    best = errors.row((method,), workers, link)
    if best is None:
        return None
    others = {key: value for key, value in best["settings"].items() if key != name}
    longer = [
        row for row in trials if (row["method"], row["workers"], row["link"]) == (method, workers, link)
        and all(abs(row["settings"][key] - value) < 1e-5 for key, value in others.items())
        and row["settings"][name] > best["settings"][name]
    ]
    if not longer:
        return None
    row = min(longer, key=lambda row: row["settings"][name])
    return workers, best["settings"][name], row["settings"][name], points(row["error"] - best["error"])


def published_gap(errors, sentence, source, other, method):
    """Yield the Claim that the published settings of one source are as good as those of another."""
    rows = {part: next((row for row in errors.published if row["method"] == method and part in row["source"]), None)
            for part in (source, other)}
    if all(rows.values()):
        cost = points(rows[source]["error"] - rows[other]["error"])
        shown = "; ".join(f"{points(row['error']):.1f} %" for row in rows.values())
        yield Claim(SECTION, sentence, cost, "points", cost < errors.noise, f"8 workers, 1 Gbit/s: {shown}")


def published_to_best(errors, sentence, method, source, reference, link=FAST):
    """Yield the Claim that published settings are as good as the best of other methods."""
    row = next((row for row in errors.published if row["method"] == method and source in row["source"]), None)
    best = row and errors.row(reference, row["workers"], link)
    if best:
        cost = points(row["error"] - best["error"])
        yield Claim(SECTION, sentence, cost, "points", cost < errors.noise,
                    f"{row['workers']} workers: {points(row['error']):.1f} and {points(best['error']):.1f} %")


def gossip(errors, trials):
    yield from published_to_best(errors, "gosgd_p = 0.01 is as good as the best p (Blot et al. 2016)", "gosgd",
                                 "Theano-MPI", ("gosgd",))
    yield from compared(errors, "gossip has a lower error than EASGD (Blot et al. 2016)", ("gosgd",), ("easgd",))


def local(errors, trials):
    yield from compared(errors, "local SGD has a lower error than bsp with its best strategy", ("local SGD",), BSP)
    yield from compared(errors, "SlowMo has a lower error than local SGD (Wang et al. 2020)", ("slowmo",),
                        ("local SGD",))
    yield from compared(errors, "DiLoCo has a lower error than local SGD (Douillard et al. 2023)", ("DiLoCo",),
                        ("local SGD",))
    yield from published_to_best(errors, "DiLoCo with H = 500 is as good as bsp after as many steps "
                                 "(Douillard et al. 2023)", "DiLoCo", "Douillard", ("bsp",), SHARED)


def servers(errors, trials):
    served = [row for row in trials if row["load"] and not row["source"]]
    if served:
        misses = [points(abs(row["load"] - expected_load(row))) for row in served]
        yield Claim(SECTION, "a server with N clients is busy for N / saturation of the time", max(misses),
                    "points at most", max(misses) < 10,
                    f"{len(served)} trials, {sum(misses) / len(misses):.1f} on average")
    yield from published_gap(errors, "the sum of the updates, c = 1, is as good as c = 1 / N (Dean et al. 2012)",
                             "Dean", "Paine", "asgd")
    yield from compared(errors, "async DiLoCo has a lower error than plain asgd (Liu et al. 2024)", ("async DiLoCo",),
                        ("asgd",))
    yield from compared(errors, "asgd has a lower error than local SGD", ("asgd",), ("local SGD",))


def expected_load(row):
    """Return the share of the time in which the server of a row is busy, by the formula of clock.saturation."""
    (link,) = (link for link in LINKS if link.name == row["link"])
    return min(1.0, row["workers"] / saturation(row["settings"][METHODS[row["method"]].interval], link))


def scaling(errors, trials):
    rates = {}
    for row in errors.rows:
        if row["method"] == "bsp" and row["link"] == FAST and row["strategy"] == "overlap":
            rates[row["workers"]] = row["settings"]["learning_rate"]
    if len(rates) > 1:
        few, many = min(rates), max(rates)
        shown = ", ".join(f"{workers:,}: {rate:g}" for workers, rate in sorted(rates.items()))
        ratio = rates[many] / rates[few]
        yield Claim(SECTION, f"the best rate of bsp grows with N (Goyal et al. 2017), {few} to {many:,} workers", ratio,
                    "times", ratio >= many / few, f"{many / few:g} times the workers; best rates {shown}")
