"""Slopes of what a long run uses, and the counts of trials and failed checks."""

import csv
import io
from typing import NamedTuple

import numpy as np

SHARE = 0.9                                      # of a run, at its end, in which a slope is measured
AIM = 1.0                                        # percent: the largest slope of a run that keeps nothing


class Line(NamedTuple):
    """A line of the table: trials that ended in the same way, or the slope of a quantity.

    failed: trials with a failed check; a slope beyond AIM, of a quantity that must not grow.
    slowest: seconds of the longest trial.
    mean, slope: of a quantity, see slope().
    """

    task: str
    series: str
    kind: str
    outcome: str = ""
    trials: int = 1
    failed: int = 0
    slowest: float | None = None
    mean: float | None = None
    slope: float | None = None


def slope(times, values, share=SHARE):
    """Return (mean, slope) of a quantity over the last part of a run.

    Args:
        times: of the samples, increasing.
        values: of the quantity.
        share: the part of the time, in (0, 1].

    Returns:
        The mean, and the change that the least-squares line has over this time, in percent of the mean.
    """
    times, values = np.asarray(times, float), np.asarray(values, float)
    chosen = times >= times[-1] - share * (times[-1] - times[0])
    times, values = times[chosen], values[chosen]
    mean = float(values.mean())
    centred = times - times.mean()
    spread = float(centred @ centred)
    if not spread or not mean:
        return mean, 0.0
    return mean, float(100 * (centred @ values) / spread * (times[-1] - times[0]) / mean)


def quantities(samples):
    """Return {name: (times, values)} of samples, dicts with `seconds` and a number or a dict of numbers per name."""
    found = {}

    def add(name, seconds, value):
        if isinstance(value, dict):
            for part, each in value.items():
                add(f"{name} {part}".strip(), seconds, each)
        else:
            times, values = found.setdefault(name, ([], []))
            times.append(seconds)
            values.append(value)

    for each in samples:
        for name, value in each.items():
            if name != "seconds":
                add(name, each["seconds"], value)
    return found


def lines(rows):
    """Return the Lines of rows: trials by task, series, kind and outcome; of a row with samples also its slopes."""
    groups = {}
    for row in rows:
        key = row["task"], row["series"], row.get("kind", ""), row.get("outcome", "")
        groups.setdefault(key, []).append(row)
    found = []
    for key, group in sorted(groups.items()):
        seconds = [row["seconds"] for row in group]
        failed = sum(bool(row["wrong"]) for row in group)
        found.append(Line(*key, len(group), failed, max(seconds)))
        for row in group:
            found += slopes(row)
    return found


def slopes(row):
    """Return the Lines of the quantities that a row has samples of."""
    found = []
    for name, (times, values) in quantities(row.get("samples", ())).items():
        mean, change = slope(times, values)
        failed = abs(change) > AIM and name not in row.get("grows", ())
        found.append(Line(row["task"], row["series"], name, "slope", failed=int(failed), mean=mean, slope=change))
    return found


def united(found, others):
    """Return the Lines of two parts of a campaign: the counts add up; of two slopes of a quantity, the first counts."""
    lines = {line[:4]: line for line in others}
    for line in found:
        other = lines.get(line[:4])
        if other and line.slope is None:
            line = line._replace(trials=line.trials + other.trials, failed=line.failed + other.failed,
                                 slowest=max(line.slowest, other.slowest))
        lines[line[:4]] = line
    return sorted(lines.values())


def from_csv(text):
    """Return the Lines of the text of a CSV file; see as_csv."""
    rows = csv.DictReader(io.StringIO(text))
    return [Line(*(values[name] for name in Line._fields[:4]), int(values["trials"]), int(values["failed"]),
                 *(float(values[name]) if values[name] else None for name in Line._fields[6:])) for values in rows]


def rounded(value):
    """Return a value of a Line as text."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def table(found):
    """Return the Markdown table of Lines, and the failed checks in all."""
    rows = [Line._fields, ["---"] * len(Line._fields), *(map(rounded, line) for line in found)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def as_csv(found):
    """Return the text of a CSV file with Lines."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Line._fields)
    writer.writerows(map(rounded, line) for line in found)
    return text.getvalue()
