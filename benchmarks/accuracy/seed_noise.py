"""Whether two groups of learning curves differ by more than their seeds do."""

import math
import statistics
from typing import NamedTuple

from scipy import stats


class Difference(NamedTuple):
    """Difference of two means, its standard error, Welch's t, and the two-sided p value."""

    mean: float
    standard_error: float
    t: float
    p: float


def welch(one, other):
    """Compare the means of two samples of unknown and unequal variances by Welch's t-test. Source: Welch 1947."""
    mean = statistics.fmean(one) - statistics.fmean(other)
    squares = [statistics.variance(sample) / len(sample) for sample in (one, other)]
    error = sum(squares) ** 0.5
    if error == 0:
        return Difference(mean, 0.0, math.copysign(math.inf, mean) if mean else 0.0, 0.0 if mean else 1.0)
    freedom = sum(squares) ** 2 / sum(s**2 / (len(sample) - 1) for s, sample in zip(squares, (one, other), strict=True))
    return Difference(mean, error, mean / error, float(2 * stats.t.sf(abs(mean / error), freedom)))


def holm(p_values):
    """Return the p values of several tests, adjusted so that the smallest may be compared with one level.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, n in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[n]))
        adjusted[n] = largest
    return adjusted


def compared_curves(ours, theirs):
    """Return (Difference, p value after Holm's correction) of each point of two groups of curves.

    Args:
        ours, theirs: one curve per seed, all of the same length.
    """
    points = (zip(*curves, strict=True) for curves in (ours, theirs))
    differences = [welch(one, other) for one, other in zip(*points, strict=True)]
    return list(zip(differences, holm([each.p for each in differences]), strict=True))


def pooled_deviation(groups):
    """Return the standard deviation within groups of at least two values, from all groups together."""
    squares = sum(statistics.variance(group) * (len(group) - 1) for group in groups)
    return (squares / sum(len(group) - 1 for group in groups)) ** 0.5
