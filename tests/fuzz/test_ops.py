"""A few random cases of each Op on each backend: see ops.py, which runs any number of them."""

import pytest

from alexnet.native import compiler
from tests.fuzz.ops import TARGETS, Search

CASES = {"numpy": 10, "cpu": 25, "jax": 3}       # Numba compiles for seconds; `python -m tests.fuzz.ops` includes it


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_outputs_and_gradients_match_the_formula(name, backend):
    if backend not in TARGETS[name].backends:
        pytest.skip(f"the {backend} backend does not compute it")
    search = Search(TARGETS[name], backend, graphs=3)
    search.search(CASES[backend], seed=0)
    assert search.failures == []
    assert search.cases >= CASES[backend]


@pytest.mark.skipif(not compiler.compiler_available(), reason="needs a C compiler")
def test_a_wrong_result_is_found(monkeypatch):
    target = TARGETS["dropout"]
    expected = target.expected

    def wrong(*arguments):
        return [(value + 1e-3, bound) for value, bound in expected(*arguments)]

    monkeypatch.setattr(target, "expected", wrong)
    search = Search(target, "cpu")
    search.search(50, seed=0)
    assert len(search.failures) == 1
    assert "output 0 of dropout on cpu" in search.failures[0] and "(1, 1, 1, 1)" in search.failures[0]       # reduced
