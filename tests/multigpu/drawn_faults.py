"""Ranks killed, raising and silent at drawn moments: does the job end, name them, and does its run go on?

    python -m tests.multigpu.drawn_faults [--of 5] [--rules bsp,easgd] [--kinds killed,raising,silent] [--seed 0]

For each rule and each kind of fault one run of the tiny network on three ranks, which saves every few steps.  So often
as --of says: a rank, servers too, and a moment within SPAN seconds of the first checkpoint are drawn from the seed, the
rank gets its fault, and the run is started again from its newest checkpoint; the last time it goes on to its end.  Of
rule asgd it is the server always: a client's fault ends nothing, tests/multigpu/test_membership.py.

    killed   SIGKILL
    raising  an exception in the rank's main thread, wherever that is
    silent   SIGSTOP

What has to hold each time: the job is over within GONE seconds, silent ranks' within time_out and GONE; its status is
not 0; one sentence on standard error names this rank, its process, and how it failed; the newest checkpoint loads, and
no process and no shared memory is left; the restart goes on from that checkpoint, to the next one or with status 0 to
its end.  A line tells each fault, a table all.  Status 1 if anything did not hold.  Shared memory is a machine's:
what other programs leave there meanwhile counts, too.
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

from alexnet import checkpoint, snapshots
from tests import tiny
from tests.mpi import Job
from tests.multigpu import drawn_doubles

SCRIPT = Path(drawn_doubles.__file__)
RANKS = 3
SPAN = 4.0                                       # seconds after the first checkpoint, in which a fault comes
TIME_OUT = 5                                     # seconds, of ranks that fall silent
GONE = 10.0                                      # seconds in which a job has to end
LONGEST = 300.0                                  # seconds that a start, or an end, is waited for
MORE = 10                                        # steps from the last checkpoint to the run's end
RULES = {"bsp": {}, "easgd": {"tau": 2}, "gosgd": {"p": 0.5}, "asgd": {"n_sync": 2}}
COMMON = {"model": "tiny", "batch_size": 2, "learning_rate": 0.001, "n_epochs": 10**6, "snapshot_iterations": 3,
          "time_out": TIME_OUT}  # fmt: skip


class Kind(NamedTuple):
    """A fault: the signal that does it, and what is to be said of the rank."""

    signal: int
    said: str


KINDS = {
    "killed": Kind(signal.SIGKILL, " has died: it was killed, or has crashed"),
    "raising": Kind(drawn_doubles.RAISE, ": ended by RuntimeError: this moment was drawn"),
    "silent": Kind(signal.SIGSTOP, f" has been silent for {TIME_OUT} s (time_out)"),
}


class Strike(NamedTuple):
    """A fault and what came of it; seconds from the signal to the job's end, wrong: sentences of what did not hold."""

    rule: str
    kind: str
    rank: int
    after: float
    seconds: float
    named: bool
    went_on: bool
    wrong: list


def strikes(folder, data, rule, kind, of, draw):
    """The Strikes of one run, struck `of` times at moments from draw, a random.Random; fewer if it does not go on."""
    run, common = folder / "run", COMMON | RULES[rule] | {"data": data, "output": folder, "rule": rule}
    job = start(folder, common | {"run_name": "run"})
    try:
        await_checkpoint(job, run, 0)
        for left in reversed(range(of)):
            rank, after = draw.randrange(1 if rule == "asgd" else RANKS), draw.uniform(0, SPAN)
            time.sleep(after)
            seconds, named, wrong = strike(job, KINDS[kind], rank, json.loads((folder / f"rank{rank}").read_text()))
            stood = at(run)
            end = {} if left else {"n_iterations": stood + MORE}
            try:
                checkpoint.load(checkpoint.snapshot_path(run, stood))
                job = start(folder, common | {"resume_train": run} | end)
                went_on = goes_on(job, run, stood, **end)
            except (AssertionError, checkpoint.CheckpointError) as error:
                went_on, wrong = False, [*wrong, f"no restart: {error}"]
            yield Strike(rule, kind, rank, after, seconds, named, went_on, wrong)
            if not went_on:
                return
    finally:
        job.kill()


def start(folder, settings):
    """The job, started; ranks note their process ids anew."""
    for rank in range(RANKS):
        (folder / f"rank{rank}").unlink(missing_ok=True)
    return Job(folder, RANKS, SCRIPT, *(f"{key}={value}" for key, value in settings.items()))


def at(run):
    """The iteration of the newest checkpoint of a run's folder, 0 without one."""
    newest = snapshots.newest(run)
    return int(checkpoint.NAME.fullmatch(newest.name)[1]) if newest else 0


def await_checkpoint(job, run, stood):
    """Wait for a checkpoint of a later iteration than this one."""
    job.wait_for(lambda: at(run) > stood, LONGEST)


def strike(job, kind, rank, pid):
    """Have a rank fail; returns the seconds until the job was over, whether the rank was named, and what was wrong."""
    began, wrong = time.monotonic(), []
    os.kill(pid, kind.signal)
    try:
        status, said = job.finish(LONGEST)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        status, said, wrong = None, job.error.read_text(errors="replace"), [str(error)]
    seconds = time.monotonic() - began
    limit = GONE + TIME_OUT * (kind.signal == signal.SIGSTOP)
    found = [line for line in said.splitlines() if line.startswith(("rank ", "all ranks "))]
    named = len(found) == 1 and bool(re.match(rf"rank {rank} \(pid {pid} on [^)]+\){re.escape(kind.said)}", found[0]))
    wrong += [f"status {status}"] * (status == 0) + [f"named {found}, said {said!r}"] * (not named)
    wrong += [f"over after {seconds:.1f} s"] * (seconds > limit)
    return seconds, named, wrong


def goes_on(job, run, stood, n_iterations=None):
    """Whether a restart goes on from this iteration: to n_iterations and status 0, or (None) to another checkpoint."""
    if n_iterations is None:
        await_checkpoint(job, run, stood)
    else:
        assert job.finish(LONGEST) == (0, "") and at(run) == n_iterations, job.error.read_text()
    starts = re.findall(r"going on from .*, after (\d+) iterations", (run / "log.txt").read_text())
    return starts[-1:] == [str(stood)]


def table(found):
    """Rows of a table, in Markdown: what came of each rule and kind."""
    head = ("rule", "kind", "faults", "named", "slowest end", "restarts that went on", "wrong")
    rows = [f"| {' | '.join(head)} |", "|---|---" + "|---:" * 5 + "|"]
    for rule, kind in dict.fromkeys((each.rule, each.kind) for each in found):
        mine = [each for each in found if (each.rule, each.kind) == (rule, kind)]
        counts = [sum(each.named for each in mine), f"{max(each.seconds for each in mine):.1f} s",
                  sum(each.went_on for each in mine), sum(bool(each.wrong) for each in mine)]  # fmt: skip
        rows.append(f"| {' | '.join(map(str, (rule, kind, len(mine), *counts)))} |")
    return "\n".join(rows)


def parsed(arguments):
    parser = argparse.ArgumentParser(prog="python -m tests.multigpu.drawn_faults", description=__doc__.splitlines()[0])
    parser.add_argument("--of", type=int, default=5, help="faults of each rule and kind")
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--seed", default="0")
    return parser.parse_args(arguments)


def told(each):
    """The line of a Strike."""
    return (
        f"{each.rule}, rank {each.rank} {each.kind} after {each.after:.2f} s: over in {each.seconds:.1f} s, went on: "
        f"{each.went_on}, load {os.getloadavg()[0]:.1f}; {each.wrong or 'all holds'}"
    )


def main(arguments=None):
    given, found = parsed(arguments), []
    with tempfile.TemporaryDirectory() as place:
        data = tiny.make_data(Path(place, "data"), train=28, validation=9)
        for rule, kind in itertools.product(given.rules.split(","), given.kinds.split(",")):
            folder = Path(place, f"{rule}_{kind}")
            folder.mkdir()
            draw = random.Random(f"{given.seed} {rule} {kind}")
            for each in strikes(folder, data, rule, kind, given.of, draw):
                found.append(each)
                print(told(each), flush=True)
    print(table(found))
    return int(any(each.wrong or not each.went_on for each in found))


if __name__ == "__main__":
    sys.exit(main())
