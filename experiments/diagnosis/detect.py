"""Apply the detector to the records of the runs, and count detections and false alarms."""

import re
from typing import NamedTuple

from alexnet.run.recorder import read_records
from alexnet.training.diagnosis import Detector

CLASSES = 10
OF_TRAINING = {"stalled", "diverging", "dead", "saturated", "unrelated"}          # not of times, nor of the last epochs


class Result(NamedTuple):
    """The causes that were found in a run, and the share of its steps after which the first was found."""

    name: str
    fault: str | None
    error: float | None                          # the last top-1 validation error, if the run was validated
    causes: tuple[str, ...]
    share: float | None
    text: str


def detect(trial, folder, iterations, ended):
    """Return the Result of a run of `iterations` steps, of which a failing one has done a part.

    Args:
        ended: why the run has ended early, if it has diverged: its error message.
    """
    detector = Detector(CLASSES, iterations)
    records = read_records(folder)
    found = [finding for record in records for finding in detector.add(record) if finding.cause in OF_TRAINING]
    errors = [record["top1_error"] for record in records if record["kind"] == "validation"]
    causes = [finding.cause for finding in found]
    first = found[0].iteration / iterations if found else None
    text = found[0].text if found else ""
    if ended:
        done = max((record["iteration"] for record in records if record["kind"] == "train"), default=0)
        causes.append("ended")
        first = min(first or 1, (done + 1) / iterations)
        text = text or re.sub(r"^worker.*?: |, on /.*", "", ended)           # the same on every machine
    return Result(trial.name, trial.fault, errors[-1] if errors else None, tuple(dict.fromkeys(causes)), first, text)


def rates(results, limit=0.1):
    """Return (false alarms, learning runs, detections before `limit` of the run, failing runs)."""
    learning = [result for result in results if result.fault is None]
    failing = [result for result in results if result.fault is not None]
    detected = [result for result in failing if result.share is not None and result.share <= limit]
    return sum(bool(result.causes) for result in learning), len(learning), len(detected), len(failing)
