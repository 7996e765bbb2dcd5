"""The last lines of a run: the result, where it is stored, and the next commands."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from alexnet.config import Config
from alexnet.data.progress import quantity
from alexnet.run.checkpoint_format import BEST, snapshots
from alexnet.training.base import Record
from alexnet.training.loop import Position


def last_lines(
    config: Config, folder: Path, position: Position, validations: Sequence[Record], start: str
) -> list[str]:
    """Return the lines that end the log of a run.

    Args:
        position: the final position.
        validations: the validation records of the whole run.
        start: the beginning of the command that resumes the run.
    """
    done = quantity(position.iteration, "iteration")
    result = f": {errors(validations)}" if validations else ""
    place = shlex.quote(str(folder))
    if position.epoch >= config.n_epochs:
        lines = [f"finished {quantity(position.epoch, 'epoch')} ({done}){result}"]
    elif config.n_iterations is not None and position.iteration >= config.n_iterations:
        lines = [
            f"stopped after {done}, because of n_iterations={config.n_iterations}{result}",
            f"continue with: {start} resume_train={place} n_iterations=null",
        ]
    else:
        lines = [
            f"stopped after {done}, in epoch {position.epoch + 1} of {config.n_epochs}{result}",
            f"continue with: {start} resume_train={place}",
        ]
    best = (folder / BEST).exists()
    names = [path.name for path in snapshots(folder)[:1]] + [f"{BEST} (lowest validation error)"] * best
    lines.append(f"saved in {folder}: {', '.join(names)}")
    if position.epoch >= config.n_epochs:
        weights = shlex.quote(str(folder / BEST)) if best else place
        lines.append(f"next: python -m alexnet predict --weights {weights} IMAGE")
    return lines


def errors(validations: Sequence[Record]) -> str:
    """Describe the last and the lowest top-1 validation error."""
    last = validations[-1]
    best = min(validations, key=lambda record: record["top1_error"])
    text = f"top-1 error {last['top1_error']:.2%}"
    if best["top1_error"] < last["top1_error"]:
        return f"{text} after epoch {last['epoch']} (best: {best['top1_error']:.2%} after epoch {best['epoch']})"
    return f"{text} (best: epoch {best['epoch']})"
