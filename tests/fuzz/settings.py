"""Random settings: python -m tests.fuzz.settings --cases 2000

Each case changes a few settings of a small run in this process. The run either does its steps or is refused with an
exception that multigpu.worker.work documents. ConfigError comes before anything is compiled or written. Exits with
status 1 if a case ends otherwise.
"""

import argparse
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from tests import environment  # sets variables that PyTensor reads, so before it

# isort: split
from hypothesis import given
from hypothesis import strategies as st

from alexnet.config import DEFAULTS, ConfigError, read_settings
from alexnet.config.schema import sections
from alexnet.data.dataset import DataError
from alexnet.models import MODELS, Model
from alexnet.native import compiler
from alexnet.nn import LRN, BatchNorm, Conv, Dense, Dropout, Flatten
from alexnet.run.checkpoint_format import CheckpointError
from alexnet.training.loop import Diverged
from alexnet.training.network import Network
from multigpu import worker
from multigpu.communicator import PipeCommunicator
from multigpu.device import DeviceError
from multigpu.rules import RULES
from multigpu.train import load_settings
from tests import tiny
from tests.fuzz.drawing import drawn

CHUNK = 20                                       # cases between which the time is checked
REFUSALS = ConfigError, DataError, DeviceError, CheckpointError
FAILURES = (
    Warning, ArithmeticError, AssertionError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError,
)
# Values of a setting: those that are valid in some runs, "|", and others. RUN and WEIGHTS: the folder of a run.
NUMBERS = "0.5 0.1 0.9 1e-30 1e30 | 0 -1 1 1e300 .nan .inf null true a [] {}"
INTEGERS = "1 2 3 7 | 0 -1 100000 9223372036854775808 1e3 null false a [1,2]"
BOOLEANS = "true false | 1 null yes"
WRONG = "null 3 none [a,b] {a:1}"
VALUES = {
    "classes": f"3 1000 null | 2 {INTEGERS}", "resume_train": "RUN false | latest nowhere",
    "run_name": "run 1 a=b | .. a/b .a null", "weights": "WEIGHTS null | nowhere",
    "new_layers": "auto none fc2 fc1,fc2 [] | fc9 auto,fc1",
    "layer_rates": "{} fc1:2 fc2:10,conv1:0.1 fc1:1e-30 fc1:1e30 | fc9:1 conv1:0 fc1 3 fc1:1e300",
    "frozen_layers": "[] conv1 conv1,fc1 fc1 | conv1,bn1,fc1,fc2 fc9 null",
    "devices": "auto cpu cpu,cpu cuda0 | gpu []", "rank": "null 0 1 | -1", "size": "null 1 2 | 0",
    "device": "null cpu | auto gpu", "backend": "auto cpu numpy | gpu null",
    "precision": "float32 | tf32 bfloat16 float64",
    "threads": "null 1 2 | 0 -1 a 1.5 100000 9223372036854775808",
    "isa": "auto portable avx2 | sse null", "batch_size": f"4 1 2 3 8 24 | 25 {INTEGERS}",
    "micro_batch_size": f"null 1 2 4 | 3 {INTEGERS}", "n_iterations": "2 1 3 7 null | 0 -1 a 9223372036854775808",
    "learning_rate": f"0.01 1e-30 1e30 | {NUMBERS}",
    "lr_policy": f"step auto poly linear cosine constant | steps {WRONG}",
    "lr_step": "[1] 1,2 [] 1000000 | 2,1 0 -1 a null 1.5", "lr_factor": f"1 {NUMBERS}",
    "lr_scaling": "none linear | x", "label_smoothing": f"0 {NUMBERS}", "ema_decay": f"0 {NUMBERS}",
    "dropout_rate": f"0 {NUMBERS}", "weight_decay": f"0 {NUMBERS}", "clip_norm": f"null {NUMBERS}",
    "update": f"auto sgd momentum nesterov adagrad adadelta lars | adam nowhere:x os:sep {WRONG}",
    "random_resized_crop": f"null 0.08 1 {NUMBERS}", "pca_colour": f"0 {NUMBERS}",
    "rule": f"{' '.join(RULES)} | bps os:sep nowhere:Rule {WRONG}",
    "model": f"each_layer tests.fuzz.settings:EachLayer | each_lair nowhere:Model os:sep {WRONG}",
    "para_load": "false | 1 null", "exchange": f"auto peer | ar asa16 copper nccl32 pear os:sep {WRONG}",
    "exchange_what": f"auto weights_and_momentum weights gradients factors | grads {WRONG}",
    "sync": f"avg cdd | sum {WRONG}", "running_statistics": f"average local | global {WRONG}",
    "slowmo_buffers": f"reset maintain average | keep {WRONG}",
    "server_update": f"plain adagrad adadelta nesterov delayed_nesterov | sum {WRONG}",
    "snapshot_iterations": f"null {INTEGERS}", "keep_snapshots": f"null {INTEGERS}", "max_restarts": f"0 {INTEGERS}",
    "warmup_epochs": f"0 {INTEGERS}", "random_seed": "0 7 4294967295 | -1 4294967296 1.5 null a",
    "unknown_setting": "| 1", "batchsize": "| 3",
}
FIXED = {"data", "output", "first_run"}          # they name places outside the case


@MODELS.register("each_layer")
class EachLayer(Model):
    """A network with each kind of layer, whose functions compile in a second."""

    image_size = 20

    def table(self, rng, classes, dropout_rate):
        return (
            Conv(rng, 3, 4, size=5, stride=3, pool=(2, 2)), BatchNorm(4), LRN(), Flatten(),                # 4 x 3 x 3
            Dense(rng, 36, 8), Dropout(dropout_rate), Dense(rng, 8, classes, relu=False, std=0.01, bias=0.0),
        )


def values_of() -> dict[str, tuple[list[str], list[str]]]:
    """Return for each setting the values that are valid in some runs, and others."""
    defaults = read_settings(DEFAULTS)
    names = {*defaults, *VALUES, *(name for kind in sections() for name in kind.model_fields)}
    by_type = {bool: BOOLEANS, int: INTEGERS}
    texts = {name: VALUES.get(name, by_type.get(type(defaults.get(name)), NUMBERS)) for name in sorted(names - FIXED)}
    return {name: (valid.split(), others.replace("|", " ").split()) for name, (valid, _, others) in (
        (name, text.partition("|")) for name, text in texts.items()
    )}


def change(name: str, valid: list[str], others: list[str]) -> st.SearchStrategy[tuple[str, str]]:
    """Return a strategy of (setting, value): seven of eight values are from `valid`."""
    values = st.sampled_from(valid) if valid else st.nothing()
    either = st.integers(0, 7).flatmap(lambda n: st.sampled_from(others) if n == 7 or not valid else values)
    return st.tuples(st.just(name), either)


class Cases:
    """A data set, and runs on it with random settings.

    outcomes   number of cases by outcome: the class of the exception, or "trained"
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = tiny.make_data(folder / "data")
        self.outcomes: Counter[str] = Counter()
        self.compiled = 0
        (folder / "reference").mkdir()
        with redirect_stdout(StringIO()):
            train(self.arguments({}, folder / "reference"))

    def arguments(self, changes: dict[str, str], output: Path) -> list[str]:
        """Return the command line of a case."""
        run = self.folder / "reference" / "run"
        given = {
            "data": str(self.data), "output": str(output), "run_name": "run", "model": "each_layer", "batch_size": "4",
            "n_epochs": "2", "n_iterations": "2", "para_load": "false",
        }
        if changes.get("resume_train") == "RUN":
            shutil.copytree(run, output / "run")
            changes = changes | {"resume_train": str(output / "run"), "n_iterations": "4"}
            del given["run_name"]
        if changes.get("weights") == "WEIGHTS":
            changes = changes | {"weights": str(run)}
        return [f"{name}={value}" for name, value in (given | changes).items()]

    def check(self, changes: dict[str, str]) -> None:
        """Run one case. Raises what is not a documented refusal."""
        output = self.folder / "case"
        before: dict[Path, bytes] = {}
        try:
            with counted_compilations() as compilations, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                try:
                    output.mkdir()
                    arguments = self.arguments(changes, output)
                    before = files_in(output)
                    train(arguments)
                    outcome = "trained"
                except REFUSALS as error:
                    outcome = type(error).__name__
                    self.check_refusal(error, before, files_in(output), len(compilations))
                except Diverged:
                    outcome = "Diverged"
            self.outcomes[outcome] += 1
        finally:
            shutil.rmtree(output, ignore_errors=True)
            compiler.use_isa("auto")
            compiler.use_threads(None)

    def check_refusal(
        self, error: Exception, before: dict[Path, bytes], after: dict[Path, bytes], compilations: int
    ) -> None:
        """Raise AssertionError if a refusal has no useful message, or came after a compilation or a written file."""
        message = str(error)
        assert message and "\n" not in message, f"the message is not one sentence: {message}"
        assert not compilations, f"refused after {compilations} functions were compiled: {message}"
        changed = sorted(path.name for path in before.keys() | after.keys() if before.get(path) != after.get(path))
        assert not changed, f"refused after {changed} were written: {message}"


def train(arguments: list[str]) -> None:
    """Train in this process."""
    worker.work(load_settings(arguments), "cpu", tiny.Line(), PipeCommunicator(0, {}))


def files_in(folder: Path) -> dict[Path, bytes]:
    """Return the contents of all files in a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def counted_compilations() -> Iterator[list[str]]:
    """Return a list to which each compilation of a network's functions is added."""
    compile_function, compilations = Network.compile, []

    def counted(self, *arguments, **options):
        compilations.append("")
        return compile_function(self, *arguments, **options)

    Network.compile = counted
    try:
        yield compilations
    finally:
        Network.compile = compile_function


def search(cases: Cases, number: int, seed: int) -> str | None:
    """Run a number of cases; return the description of one that fails, reduced, or None."""
    values = values_of()
    changes_of_one = st.sampled_from(sorted(values)).flatmap(lambda name: change(name, *values[name]))

    @drawn(number, seed)
    @given(st.lists(changes_of_one, min_size=1, max_size=5, unique_by=lambda pair: pair[0]))
    def check(changes):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                cases.check(dict(changes))
        except FAILURES as error:
            error.add_note(f"settings: {' '.join('='.join(pair) for pair in changes)}")
            raise

    try:
        check()
    except FAILURES as error:
        return "".join(traceback.format_exception(error))
    return None


def main(arguments: list[str] | None = None) -> int:
    """Run the cases; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.settings", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="time limit")
    parser.add_argument("--seed", type=int, default=0)
    given_arguments = parser.parse_args(arguments)
    end = time.monotonic() + given_arguments.seconds
    print(f"PyTensor's flags: {environment.FLAGS}")
    with tempfile.TemporaryDirectory(prefix="settings-") as folder:
        cases = Cases(Path(folder))
        failure = None
        for chunk in range(-(-given_arguments.cases // CHUNK)):
            if time.monotonic() < end and not failure:
                failure = search(cases, CHUNK, given_arguments.seed * 100_003 + chunk)
    print(f"{sum(cases.outcomes.values())} cases: {dict(cases.outcomes.most_common())}")
    if failure:
        print(failure)
    return int(failure is not None)


if __name__ == "__main__":
    sys.exit(main())
