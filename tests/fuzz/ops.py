"""Random tests of every Op on every backend: python -m tests.fuzz.ops --cases 100000

Each case is a random setting of an Op with random shapes, values and memory layouts. Outputs and gradients are compared
with the formula in float64 within a bound (op_targets.py). Hypothesis draws the cases from a seed, so a run with the
same arguments and sources makes the same cases, and reduces a case that fails to a small one. Prints for each Op and
backend the cases, the largest error relative to the bound, and the failures; exits with status 1 if a case fails.
"""

import argparse
import json
import random
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests import environment  # sets variables that PyTensor reads, so before it

# isort: split
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pytensor.compile.mode import Mode

from alexnet.backends import mode_of
from alexnet.native import allocator, compiler
from tests.fuzz import backend_targets, op_targets
from tests.fuzz.cases import LAYOUTS, Choose, Rounding, laid_out, pick
from tests.fuzz.drawing import drawn
from tests.fuzz.op_targets import BACKENDS, Target

FAILURES = AssertionError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError, MemoryError
CHUNK = 100                                      # cases of one run of hypothesis, between which the time is checked
MANY = 10**9
FEW = {"jax": 40, "numba": 3}                    # largest numbers of graphs; JAX compiles each shape


TARGETS: dict[str, Target] = {kind.name: kind() for kind in (*op_targets.TARGETS, *backend_targets.TARGETS)}


@cache
def mode(backend: str):
    """Return the PyTensor mode of a backend; numba is PyTensor's default."""
    return Mode("numba", "fast_run") if backend == "numba" else mode_of(backend)


@dataclass
class Search:
    """The cases of one target on one backend."""

    target: Target
    backend: str
    graphs: int = MANY                           # largest number of different settings, and for JAX of shapes
    seed: int = 0                                # selects the settings if their number is limited
    cases: int = 0
    largest: float = 0.0
    failures: list[str] = field(default_factory=list)
    functions: dict[tuple, Callable] = field(default_factory=dict)

    def run(self, choose: Choose) -> None:
        """Make and check one case. Raises AssertionError."""
        target = self.target
        fixed = choose
        graphs = min(FEW.get(self.backend, MANY), self.graphs)
        if graphs < MANY:
            fixed = random.Random(self.seed * MANY + choose(0, graphs - 1)).randint
        dtype = target.dtypes[fixed(0, len(target.dtypes) - 1)]
        settings = target.settings(fixed)
        shapes = target.shapes(fixed if self.backend == "jax" else choose, settings)
        arrays = target.arrays(choose, settings, shapes, dtype)
        if self.backend == "numba":              # compiles each combination of layouts
            arrays = [laid_out(array, pick(fixed, LAYOUTS)) for array in arrays]
        before = [array.copy() for array in arrays]
        function = self.function(settings, dtype, shapes)
        results = [np.asarray(result) for result in function(*arrays)]
        expected = target.expected(settings, arrays, results, Rounding.of(self.backend, dtype))
        self.cases += 1
        where = f"{target.name} on {self.backend}: {settings}, {dtype}, {[array.shape for array in arrays]}"
        for n, (result, (value, bound)) in enumerate(zip(results, expected, strict=True)):
            self.compare(result, np.asarray(value), bound, f"output {n} of {where}")
        for array, old in zip(arrays, before, strict=True):
            assert np.array_equal(array, old, equal_nan=array.dtype.kind == "f"), f"an input was changed: {where}"
        if self.backend != "jax" and target.refuses_shapes and choose(0, 4) == 4:
            compute_or_refuse(function, arrays, choose)

    def function(self, settings: tuple, dtype: str, shapes: list[tuple[int, ...]]) -> Callable:
        """Return the compiled function for some settings. Only JAX, which compiles each shape, needs static shapes."""
        if self.backend != "jax":
            shapes = [(None,) * len(shape) for shape in shapes]
        key = settings, dtype, tuple(shapes)
        if key not in self.functions:
            self.functions[key] = self.target.compiled(settings, dtype, mode(self.backend), shapes)
        return self.functions[key]

    def compare(self, result: np.ndarray, expected: np.ndarray, bound: np.ndarray | float, where: str) -> None:
        """Raise AssertionError if an element is not within its bound. NaN and infinities must be equal."""
        assert result.shape == expected.shape, f"{where}: shape {result.shape}, expected {expected.shape}"
        result = result.astype(np.float64)
        expected = expected.astype(np.float64)
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(result[~finite], expected[~finite], err_msg=where)
        error = np.where(finite, np.inf, 0.0)
        np.subtract(result, expected, where=finite & np.isfinite(result), out=error)
        error = np.abs(error)
        bound = np.broadcast_to(bound, error.shape)
        ratio = np.divide(error, bound, where=bound > 0, out=np.where(error > 0, np.inf, 0.0))
        worst = float(ratio.max(initial=0))
        if worst > 1:
            at = np.unravel_index(ratio.argmax(), ratio.shape)
            raise AssertionError(
                f"{where}: at {tuple(map(int, at))} got {result[at]:.9g}, expected {expected[at]:.9g} +- "
                f"{bound[at]:.3g}"
            )
        self.largest = max(self.largest, worst)

    def search(self, cases: int, seed: int, seconds: float = float("inf")) -> None:
        """Run this number of cases, or fewer if the time has passed."""
        end = time.monotonic() + seconds
        wanted = self.cases + cases
        for chunk in range(-(-cases // CHUNK)):
            if time.monotonic() >= end or self.cases >= wanted:
                return
            self.search_chunk(min(CHUNK, wanted - self.cases), seed * 100_003 + chunk)

    def search_chunk(self, cases: int, seed: int) -> None:
        """Run a chunk of cases with one seed."""

        @drawn(cases, seed)
        @given(st.data())
        def check(data):
            self.run(lambda low, high: data.draw(st.integers(low, high)))

        try:
            check()
        except FAILURES as error:
            self.failures.append("".join(traceback.format_exception_only(error)).strip())


def compute_or_refuse(function: Callable, arrays: list[np.ndarray], choose: Choose) -> None:
    """Change one length of one input. The function may refuse it, but must not read beyond an array (sanitizers.py)."""
    n, axis = pick(choose, [(n, axis) for n, array in enumerate(arrays) for axis in range(array.ndim)])
    changed = list(arrays)
    if choose(0, 1) and arrays[n].shape[axis]:
        changed[n] = np.take(arrays[n], range(arrays[n].shape[axis] - 1), axis)
    else:
        changed[n] = np.pad(arrays[n], [(0, int(each == axis)) for each in range(arrays[n].ndim)])
    with suppress(ValueError, TypeError, IndexError):
        function(*changed)


def searches(names: list[str], backends: list[str], graphs: int = MANY, seed: int = 0) -> list[Search]:
    """Return a Search for each target and backend."""
    return [
        Search(TARGETS[name], backend, graphs, seed)
        for name in names for backend in TARGETS[name].backends
        if backend in backends and not (backend == "cpu" and not compiler.compiler_available())
    ]


def share(search: Search, cases: int, all_searches: list[Search]) -> int:
    """Return the number of cases of a search. JAX and Numba, which compile, get a quarter of the others' cases."""
    weights = [0.25 if each.backend in FEW else 1.0 for each in all_searches]
    weight = 0.25 if search.backend in FEW else 1.0
    return max(1, round(cases * weight / sum(weights)))


def main(arguments: list[str] | None = None) -> int:
    """Run the cases; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.ops", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000, help="cases of all Ops and backends together")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="time limit")
    parser.add_argument("--op", action="append", choices=sorted(TARGETS), help="only this one; may be repeated")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="threads of the C kernels")
    parser.add_argument("--graphs", type=int, default=MANY, help="different settings per Op, which are compiled")
    parser.add_argument("--plain-memory", action="store_true", help="allocate with malloc, which sanitizers observe")
    parser.add_argument("--json", type=Path, help="file for the results")
    given = parser.parse_args(arguments)
    if given.threads:
        compiler.use_threads(given.threads)
    if given.plain_memory:
        allocator.SMALL = 1 << 62
    chosen = searches(given.op or sorted(TARGETS), given.backend or list(BACKENDS), given.graphs, given.seed)
    start, rows = time.monotonic(), []
    print(f"PyTensor's flags: {environment.FLAGS}")
    print(f"{'Op':16}{'backend':10}{'cases':>8}{'error / bound':>16}{'failures':>10}{'seconds':>9}")
    for n, search in enumerate(chosen):
        began = time.monotonic()
        left = given.seconds - (began - start)
        search.search(share(search, given.cases, chosen), given.seed, left / (len(chosen) - n))
        search.functions.clear()
        row = {
            "op": search.target.name, "backend": search.backend, "cases": search.cases, "largest_error": search.largest,
            "failures": search.failures, "seconds": round(time.monotonic() - began, 1),
        }
        rows.append(row)
        print(
            f"{row['op']:16}{row['backend']:10}{row['cases']:8}{row['largest_error']:16.3f}"
            f"{len(search.failures):10}{row['seconds']:9}", flush=True,
        )
        for failure in search.failures:
            print(f"    {failure[:800]}")
    print(f"{sum(row['cases'] for row in rows)} cases, {sum(len(row['failures']) for row in rows)} failures")
    if given.json:
        given.json.write_text(json.dumps({"seed": given.seed, "results": rows}, indent=1) + "\n", encoding="utf-8")
    return int(any(row["failures"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
