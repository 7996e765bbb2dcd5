"""Inject faults at random moments: check that the job ends, reports the failed rank, and that the run can resume.

    python -m tests.system.random_faults [--of 5] [--rules bsp,easgd] [--kinds killed,raising,silent] [--seed 0]

For each rule and each kind of fault, the program runs the tiny network on three ranks with frequent checkpoints. It
injects as many faults as --of specifies. For each fault it draws from the seed a rank (servers included) and a moment
within SPAN seconds after the first checkpoint. It injects the fault, then restarts the run from its newest checkpoint.
After the last fault the run continues to its end. With rule asgd the fault always hits the server, because a client's
fault does not end the job (see tests/multigpu/failure/test_membership.py).

    killed   SIGKILL
    raising  an exception in the rank's main thread, at whatever code it executes
    silent   SIGSTOP

Checks after each fault:

- The job ends within GONE seconds; for silent ranks, within heartbeat_timeout + GONE. Its exit status is not 0.
- One line on standard error names the rank, its process, and how it failed.
- The newest checkpoint loads. No process and no shared memory remains.
- The restart continues from that checkpoint: to the next checkpoint, or to its end with status 0.

The program prints one line per fault and a table at the end. It exits with status 1 if any check failed. The shared
memory check covers the whole machine, so files that other programs leave there during the run count as failures.
"""

import argparse
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from alexnet.run import checkpoint_format
from tests import tiny
from tests.mpi import Job
from tests.system import raising_ranks

SCRIPT = Path(raising_ranks.__file__)
RANKS = 3
SPAN = 4.0                                       # seconds after the first checkpoint within which a fault is injected
TIME_OUT = 5                                     # seconds until a silent rank is reported
GONE = 10.0                                      # seconds within which a job must end
LONGEST = 300.0                                  # timeout in seconds for a start or an end
MORE = 10                                        # steps from the last checkpoint to the end of the run
RULES = {
    "bsp": {}, "easgd": {"easgd_tau": 2}, "gosgd": {"gosgd_p": 0.5}, "noloco": {"noloco_steps": 2},
    "asgd": {"n_sync": 2},
}
COMMON = {"model": "tiny", "batch_size": 2, "learning_rate": 0.001, "n_epochs": 10**6, "snapshot_iterations": 3,
          "heartbeat_timeout": TIME_OUT}


class Fault(NamedTuple):
    """A kind of fault: the signal that causes it, and the message expected about the rank."""

    signal: int
    message: str


KINDS = {
    "killed": Fault(signal.SIGKILL, " has died: it was killed, or has crashed"),
    "raising": Fault(raising_ranks.RAISE, ": ended by RuntimeError: this moment was drawn"),
    "silent": Fault(signal.SIGSTOP, f" has been silent for {TIME_OUT} s (heartbeat_timeout)"),
}


class Outcome(NamedTuple):
    """A fault and its outcome. seconds: from the signal to the end of the job; wrong: descriptions of failed checks."""

    rule: str
    kind: str
    rank: int
    after: float
    seconds: float
    reported: bool
    resumed: bool
    wrong: list


def outcomes(folder, data, rule, kind, of, draw):
    """Yield the Outcomes of one run.

    The run gets `of` faults at moments from draw, a random.Random; fewer if it does not resume.
    """
    run, common = folder / "run", COMMON | RULES[rule] | {"data": data, "output": folder, "rule": rule}
    job = start(folder, common | {"run_name": "run"})
    try:
        await_checkpoint(job, run, 0)
        for left in reversed(range(of)):
            rank, after = draw.randrange(1 if rule == "asgd" else RANKS), draw.uniform(0, SPAN)
            time.sleep(after)
            seconds, reported, wrong = inject(job, KINDS[kind], rank, json.loads((folder / f"rank{rank}").read_text()))
            iteration = at(run)
            end = {} if left else {"n_iterations": iteration + MORE}
            try:
                checkpoint_format.load(checkpoint_format.snapshot_path(run, iteration))
                job = start(folder, common | {"resume_train": run} | end)
                resumed = resumes(job, run, iteration, **end)
            except (AssertionError, checkpoint_format.CheckpointError) as error:
                resumed, wrong = False, [*wrong, f"no restart: {error}"]
            yield Outcome(rule, kind, rank, after, seconds, reported, resumed, wrong)
            if not resumed:
                return
    finally:
        job.kill()


def start(folder, settings):
    """Start the job and return it; its ranks write their process ids again."""
    for rank in range(RANKS):
        (folder / f"rank{rank}").unlink(missing_ok=True)
    return Job(folder, RANKS, SCRIPT, *(f"{key}={value}" for key, value in settings.items()))


def at(run):
    """Return the iteration of the newest checkpoint in the folder of a run, or 0 without one."""
    newest = checkpoint_format.newest(run)
    return int(checkpoint_format.NAME.fullmatch(newest.name)[1]) if newest else 0


def await_checkpoint(job, run, iteration):
    """Wait for a checkpoint of an iteration later than `iteration`."""
    job.wait_for(lambda: at(run) > iteration, LONGEST)


def inject(job, kind, rank, pid):
    """Inject a fault; return the seconds until the job ended, whether the rank was reported, and the failed checks."""
    began, wrong = time.monotonic(), []
    os.kill(pid, kind.signal)
    try:
        status, errors = job.finish(LONGEST)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        status, errors, wrong = None, job.error.read_text(errors="replace"), [str(error)]
    seconds = time.monotonic() - began
    limit = GONE + TIME_OUT * (kind.signal == signal.SIGSTOP)
    found = [text for text in errors.splitlines() if text.startswith(("rank ", "all ranks "))]
    expected = rf"rank {rank} \(pid {pid} on [^)]+\){re.escape(kind.message)}"
    reported = len(found) == 1 and bool(re.match(expected, found[0]))
    wrong += [f"status {status}"] * (status == 0) + [f"reported {found}, standard error: {errors!r}"] * (not reported)
    wrong += [f"ended after {seconds:.1f} s"] * (seconds > limit)
    return seconds, reported, wrong


def resumes(job, run, iteration, n_iterations=None):
    """Return whether a restart resumes from iteration `iteration`.

    It must reach n_iterations and exit with status 0; with n_iterations=None, it must write another checkpoint.
    """
    if n_iterations is None:
        await_checkpoint(job, run, iteration)
    else:
        assert job.finish(LONGEST) == (0, "") and at(run) == n_iterations, job.error.read_text()
    starts = re.findall(r"resuming from .*, after (\d+) iterations", (run / "log.txt").read_text())
    return starts[-1:] == [str(iteration)]


def table(found):
    """Return the Markdown rows of a table with the results of each rule and kind."""
    head = ("rule", "kind", "faults", "reported", "slowest end", "resumed", "failed checks")
    rows = [f"| {' | '.join(head)} |", "|---|---" + "|---:" * 5 + "|"]
    for rule, kind in dict.fromkeys((each.rule, each.kind) for each in found):
        mine = [each for each in found if (each.rule, each.kind) == (rule, kind)]
        counts = [sum(each.reported for each in mine), f"{max(each.seconds for each in mine):.1f} s",
                  sum(each.resumed for each in mine), sum(bool(each.wrong) for each in mine)]
        rows.append(f"| {' | '.join(map(str, (rule, kind, len(mine), *counts)))} |")
    return "\n".join(rows)


def parse(arguments):
    parser = argparse.ArgumentParser(prog="python -m tests.system.random_faults", description=__doc__.splitlines()[0])
    parser.add_argument("--of", type=int, default=5, help="faults of each rule and kind")
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--seed", default="0")
    return parser.parse_args(arguments)


def line(each):
    """Return the line that reports an Outcome."""
    return (
        f"{each.rule}, rank {each.rank} {each.kind} after {each.after:.2f} s: ended within {each.seconds:.1f} s, "
        f"resumed: {each.resumed}, load {os.getloadavg()[0]:.1f}; {each.wrong or 'all checks passed'}"
    )


def main(arguments=None):
    given, found = parse(arguments), []
    with tempfile.TemporaryDirectory() as place:
        data = tiny.make_data(Path(place, "data"), train=28, validation=9)
        for rule, kind in itertools.product(given.rules.split(","), given.kinds.split(",")):
            folder = Path(place, f"{rule}_{kind}")
            folder.mkdir()
            draw = random.Random(f"{given.seed} {rule} {kind}")
            for each in outcomes(folder, data, rule, kind, given.of, draw):
                found.append(each)
                print(line(each), flush=True)
    print(table(found))
    return int(any(each.wrong or not each.resumed for each in found))


if __name__ == "__main__":
    sys.exit(main())
