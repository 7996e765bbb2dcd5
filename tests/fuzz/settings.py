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

from tests import pytensor_flags  # sets flags of PyTensor, so before it

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

REFUSALS = ConfigError, DataError, DeviceError, CheckpointError
FAILURES = (
    Warning, ArithmeticError, AssertionError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError,
)
NUMBERS = ["0", "-1", "1", "2", "3", "0.5", "1e-30", "1e30", "1e300", ".nan", ".inf", "null", "true", "a", "[]", "{}"]
INTEGERS = ["0", "-1", "1", "2", "3", "100000", "9223372036854775808", "1e3", "null", "false", "a", "[1, 2]"]
BOOLEANS = ["true", "false", "1", "null", "yes"]
WRONG = ["null", "3", "none", "[a, b]", "{a: 1}"]
# Setting -> values: those that many runs use first. RUN and WEIGHTS stand for the folder of a run.
VALUES = {
    "classes": ["3", "2", "1000", *INTEGERS], "resume_train": ["RUN", "latest", "nowhere", "false"],
    "run_name": ["run", "..", "a/b", ".a", "1", "null"],
    "weights": ["WEIGHTS", "nowhere", "null"],
    "new_layers": ["auto", "none", "fc2", "fc1,fc2", "fc9", "auto,fc1", "[]"],
    "layer_rates": ["{}", "fc1:2", "fc2:10,conv1:0.1", "fc9:1", "conv1:0", "fc1", "3", "fc1:1e300"],
    "frozen_layers": ["[]", "conv1", "conv1,fc1", "conv1,bn1,fc1,fc2", "fc9", "fc1", "null"],
    "devices": ["auto", "cpu", "cpu,cpu", "cuda0", "gpu", "[]"], "rank": ["null", "0", "1", "-1"],
    "size": ["null", "1", "2", "0"], "device": ["null", "cpu", "auto", "gpu"],
    "backend": ["auto", "cpu", "numpy", "gpu", "null"], "precision": ["float32", "tf32", "bfloat16", "float64"],
    "threads": ["null", "1", "2", "0", "-1", "a", "1.5"], "isa": ["auto", "portable", "avx2", "sse", "null"],
    "batch_size": ["4", "1", "8", "24", "25", *INTEGERS], "micro_batch_size": ["null", "1", "2", "3", "4", *INTEGERS],
    "n_epochs": ["2", *INTEGERS], "n_iterations": ["2", "1", "3", "7", "0", "-1", "a"],
    "learning_rate": ["0.01", "1e-30", *NUMBERS],
    "lr_policy": ["step", "auto", "poly", "linear", "cosine", "constant", "steps", *WRONG],
    "lr_step": ["[1]", "1,2", "2,1", "[]", "0", "-1", "1000000", "a", "null", "1.5"],
    "lr_scaling": ["none", "linear", "x"],
    "update": [
        "auto", "sgd", "momentum", "nesterov", "adagrad", "adadelta", "lars", "adam", "nowhere:x", "os:sep", *WRONG,
    ],
    "random_resized_crop": ["null", "0.08", "1", *NUMBERS], "rule": [*RULES, "bps", "os:sep", "nowhere:Rule", *WRONG],
    "model": ["each_layer", "each_lair", "nowhere:Model", "os:sep", *WRONG], "para_load": ["false", "1", "null"],
    "exchange": ["auto", "peer", "ar", "asa16", "copper", "nccl32", "pear", "os:sep", *WRONG],
    "exchange_what": ["auto", "weights_and_momentum", "weights", "gradients", "factors", "grads", *WRONG],
    "sync": ["avg", "cdd", "sum", *WRONG], "running_statistics": ["average", "local", "global", *WRONG],
    "slowmo_buffers": ["reset", "maintain", "average", "keep", *WRONG],
    "server_update": ["plain", "adagrad", "adadelta", "nesterov", "delayed_nesterov", "sum", *WRONG],
    "slots": ["2", "3", "1", "0", "a"], "max_restarts": ["0", "1", "-1", "a"],
    "unknown_setting": ["1"], "batchsize": ["3"],
}
# They name places outside the case.
FIXED = {"data", "output", "first_run"}


@MODELS.register("each_layer")
class EachLayer(Model):
    """A network with each kind of layer, whose functions compile in a second."""

    image_size = 20

    def table(self, rng, classes, dropout_rate):
        return (
            Conv(rng, 3, 4, size=5, stride=3, pool=(2, 2)), BatchNorm(4), LRN(), Flatten(),                # 4 x 3 x 3
            Dense(rng, 36, 8), Dropout(dropout_rate), Dense(rng, 8, classes, relu=False, std=0.01, bias=0.0),
        )


def values_of() -> dict[str, list[str]]:
    """Return for each setting the values that a case may give it."""
    defaults = read_settings(DEFAULTS)
    fields = dict.fromkeys(name for kind in sections() for name in kind.model_fields)
    values = dict(VALUES)
    for name in [*defaults, *fields]:
        kind = type(defaults.get(name))
        others = BOOLEANS if kind is bool else INTEGERS if kind is int else NUMBERS
        values.setdefault(name, others)
    return {name: values[name] for name in sorted(values.keys() - FIXED)}


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


def search(cases: Cases, number: int, seed: int, end: float = float("inf")) -> str | None:
    """Run cases until the time `end`; return the description of one that fails, reduced, or None."""
    values = values_of()
    names = st.sampled_from(sorted(values))
    pairs = names.flatmap(lambda name: st.tuples(st.just(name), st.sampled_from(values[name])))

    @drawn(number, seed)
    @given(st.lists(pairs, min_size=1, max_size=5, unique_by=lambda pair: pair[0]))
    def check(changes):
        if time.monotonic() < end:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    cases.check(dict(changes))
            except FAILURES as error:
                error.add_note(f"settings: {' '.join('='.join(change) for change in changes)}")
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
    print(f"PyTensor's flags: {pytensor_flags.FLAGS}")
    with tempfile.TemporaryDirectory(prefix="settings-") as folder:
        cases = Cases(Path(folder))
        failure = search(cases, given_arguments.cases, given_arguments.seed, end)
    print(f"{sum(cases.outcomes.values())} cases: {dict(cases.outcomes.most_common())}")
    if failure:
        print(failure)
    return int(failure is not None)


if __name__ == "__main__":
    sys.exit(main())
