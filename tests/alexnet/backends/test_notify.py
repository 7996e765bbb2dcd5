"""Notify: its receiver gets the values before the rest of the graph is computed, and the results do not change."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op

from alexnet.backends import mode_of
from alexnet.backends.notify import Notify


class Traced(Op):
    """(x) -> 2 x; appends its name to a list when it is computed."""

    __props__ = ("name",)

    def __init__(self, name, calls):
        self.name = name
        self.calls = calls

    def make_node(self, x):
        return Apply(self, [x], [x.type()])

    def perform(self, node, inputs, outputs):
        self.calls.append(self.name)
        outputs[0][0] = 2 * inputs[0]


def test_nodes_that_notify_does_not_need_come_last():
    x = pt.fvector("x")
    calls = []
    rest = x
    for n in range(5):
        rest = Traced(f"rest {n}", calls)(rest)
    needed = Traced("needed 2", calls)(Traced("needed 1", calls)(x))
    notify = Notify(1)
    notify.receive = lambda values: calls.append(f"notified {values[0].tolist()}")
    function = pytensor.function([x], [rest, notify(needed)], mode=mode_of("cpu"))
    rest_value, value = function(np.float32([1, 2]))
    assert calls[:3] == ["needed 1", "needed 2", "notified [4.0, 8.0]"]
    assert sorted(calls[3:]) == [f"rest {n}" for n in range(5)]
    assert value.tolist() == [4, 8]
    assert rest_value.tolist() == [32, 64]


def test_a_reader_of_an_overwritten_value_is_computed_before():
    """The update of w works in place, so the node that reads the old w comes first although Notify needs the new w."""
    w = pytensor.shared(np.ones(1 << 12, np.float32), "w", shape=(1 << 12,), borrow=True)
    notify = Notify(1)
    received = []
    notify.receive = lambda values: received.append(float(values[0][0]))
    old = (w * np.float32(3)).sum()
    function = pytensor.function([], old, updates=[(w, notify(w + np.float32(1)))], mode=mode_of("cpu"))
    assert [float(function()) for _ in range(2)] == [3 * (1 << 12), 6 * (1 << 12)]
    assert received == [2, 3]
    assert w.get_value()[0] == 3


@pytest.mark.parametrize("backend", ["cpu", "numpy", pytest.param("jax", marks=pytest.mark.slow)])
def test_results_equal_those_without_notify(backend):
    """With a value that both parts need, an updated variable that only one part reads, and one that both read."""
    rng = np.random.default_rng(0)
    results = []
    for notifies in (False, True):
        x = pt.fmatrix("x")
        w = pytensor.shared(rng.standard_normal((4, 3)).astype("f4") if not results else results[0][0], "w")
        start = w.get_value()
        counter = pytensor.shared(np.int64(2), "counter")
        hidden = pt.tanh(x @ w) * counter.astype("float32")
        first, second = hidden.sum(axis=0), (pt.exp(hidden) / counter.astype("float32")).sum(axis=1)
        received = []
        if notifies:
            notify = Notify(2)
            notify.receive = lambda values, received=received: received.extend(np.array(value) for value in values)
            first, cost = notify(first, hidden.sum())
        else:
            cost = hidden.sum()
        function = pytensor.function(
            [x], [cost, second], updates=[(w, w + first), (counter, counter + 1)], mode=mode_of(backend)
        )
        images = np.linspace(-1, 1, 8, dtype="f4").reshape(2, 4)
        found = [[np.array(value) for value in function(images)] for _ in range(3)]
        results.append((start, found, np.array(w.get_value()), int(counter.get_value())))
        if notifies:
            assert len(received) == 6
            np.testing.assert_array_equal(received[1], found[0][0])
    for one, other in zip(results[0][1], results[1][1], strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_allclose(results[0][2], results[1][2], rtol=1e-6)
    assert results[0][3] == results[1][3] == 5
