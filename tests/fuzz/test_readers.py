"""No input makes a reader of foreign files crash: seeds, stored inputs and mutations of them, without atheris.

The rules are those of tests/fuzz/target.py. `make fuzz` searches for more inputs.
"""

import warnings
from pathlib import Path
from random import Random

import pytest

from tests.fuzz import mutation
from tests.fuzz.target import HOLE, Runner
from tests.fuzz.targets import TARGETS, prepared

pytestmark = pytest.mark.compatibility           # modules such as zipfile differ between versions of Python

CORPUS = Path(__file__).parent / "corpus"


@pytest.fixture(autouse=True)
def program():
    with prepared(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def stored(name):
    """Return the stored inputs of a target: those that once were a finding."""
    return [path.read_bytes() for path in sorted(CORPUS.glob(f"{name}/*"))]


def mutations(target, inputs):
    """Yield mutated inputs, the same ones in each run."""
    random = Random(0)
    for _ in range(target.mutations):
        data = random.choice(inputs)
        hole = target.hole and data.endswith(HOLE)
        data = data.removesuffix(HOLE) if hole else data
        if target.structure and random.random() < 0.5:
            data = target.structure(data, random)
        else:
            data = mutation.mutated(data, random, inputs)
        if random.random() < 0.8:
            data = target.repair(data)
        data = data[: 4 * target.longest]
        yield data + HOLE if hole else data


@pytest.mark.parametrize("name", TARGETS)
def test_reader_accepts_or_refuses_every_input(name, tmp_path):
    target = TARGETS[name]
    runner = Runner(target, tmp_path)
    runner.warm_up()
    inputs = [*target.seeds(), *stored(name)]
    accepted = sum(map(runner.run, inputs))
    assert accepted
    for data in mutations(target, inputs):
        runner.run(data)
    runner.close()


def test_stored_inputs_belong_to_targets():
    assert {path.name for path in CORPUS.iterdir()} <= TARGETS.keys()
    assert all(path.stat().st_size < 8192 for path in CORPUS.glob("*/*"))
