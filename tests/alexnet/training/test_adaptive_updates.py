"""Adagrad and Adadelta against the papers' equations in float64 and PyTorch, and resuming from a checkpoint."""

import math
from functools import partial

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from alexnet.nn import Parameter
from alexnet.run import checkpoint_format
from alexnet.run.checkpoint_format import CheckpointError
from alexnet.training.updates import adadelta, adagrad, bind_update_rule
from tests import tiny

pytestmark = pytest.mark.slow

STEPS, DECAY = 50, 0.01
RULES = {"adagrad": partial(adagrad, epsilon=1e-10), "adadelta": partial(adadelta, rho=0.95, epsilon=1e-6)}
RATES = {"adagrad": 0.1, "adadelta": 1.0}


def rate_of(update, step):
    """Return the learning rate, which drops half-way."""
    return RATES[update] * (1 if step < STEPS // 2 else 0.1)


def trained(update, start, gradients, lr_mult=1.0, decay_mult=1.0, dtype="float64"):
    """Run the rule's graph; return the weights after each step, the Parameter and the rule's state."""
    parameter = Parameter(start, "W", lr_mult, decay_mult, dtype)
    g, rate = pt.vector("g", dtype=dtype), pt.scalar("rate", dtype=dtype)
    pairs, kept = RULES[update]([parameter], [g], rate, weight_decay=DECAY)
    step, weights = pytensor.function([g, rate], [], updates=pairs, mode="FAST_COMPILE"), []
    for n, gradient in enumerate(gradients):
        step(gradient, np.asarray(rate_of(update, n), dtype))
        weights.append(parameter.variable.get_value())
    return weights, parameter, kept


def duchi(w, g, rate, state):
    """One step of one weight by equation 1 of Duchi et al. 2011 with diagonal G and delta 1e-10."""
    state["G"] = state.get("G", 0.0) + g * g
    return w - rate * g / (math.sqrt(state["G"]) + 1e-10)


def zeiler(w, g, rate, state):
    """One step of one weight by algorithm 1 of Zeiler 2012, rho 0.95, epsilon 1e-6; the rate multiplies delta x."""
    state["E[g2]"] = 0.95 * state.get("E[g2]", 0.0) + (1 - 0.95) * g * g
    rms_x, rms_g = math.sqrt(state.get("E[dx2]", 0.0) + 1e-6), math.sqrt(state["E[g2]"] + 1e-6)
    dx = -rms_x / rms_g * g
    state["E[dx2]"] = 0.95 * state.get("E[dx2]", 0.0) + (1 - 0.95) * dx * dx
    return w + rate * dx


def made_gradients(rng):
    """Return gradients of very different magnitudes; some are zero in some steps, and those of one weight always."""
    gradients = rng.normal(size=(STEPS, 6)) * [1e-6, 1e-3, 1, 1e3, 1, 0]
    return gradients * (rng.random((STEPS, 6)) < 0.8)


@pytest.mark.parametrize(("lr_mult", "decay_mult"), [(1.0, 1.0), (2.0, 0.0)], ids=["weight", "bias"])
@pytest.mark.parametrize(("update", "paper"), [("adagrad", duchi), ("adadelta", zeiler)])
def test_fifty_steps_match_the_papers_equations(update, paper, lr_mult, decay_mult, rng):
    start, gradients = rng.normal(size=6), made_gradients(rng)
    weights, _, kept = trained(update, start, gradients, lr_mult, decay_mult)
    for place, w in enumerate(start):
        state = {}
        for n, gradient in enumerate(gradients[:, place]):
            w = paper(w, gradient + DECAY * decay_mult * w, lr_mult * rate_of(update, n), state)
            assert weights[n][place] == pytest.approx(w, rel=1e-12, abs=1e-12)
        assert [array.get_value()[place] for array in kept] == pytest.approx(
            list(state.values()), rel=1e-12, abs=0
        )


@pytest.mark.parametrize("update", RULES)
def test_fifty_steps_match_pytorch(update, rng):
    torch = pytest.importorskip("torch", reason="the peer is PyTorch, which is not installed")
    start, gradients = rng.normal(size=6), made_gradients(rng)
    w = torch.tensor(start, requires_grad=True)
    optimizer = {
        "adagrad": partial(torch.optim.Adagrad, eps=1e-10),
        "adadelta": partial(torch.optim.Adadelta, rho=0.95, eps=1e-6),
    }[update]([w], lr=1.0, weight_decay=DECAY)
    weights = trained(update, start, gradients)[0]
    for n, gradient in enumerate(gradients):
        optimizer.param_groups[0]["lr"], w.grad = rate_of(update, n), torch.tensor(gradient)
        optimizer.step()
        np.testing.assert_allclose(weights[n], w.detach().numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("update", RULES)
def test_weight_without_gradient_is_unchanged(update):
    weights, parameter, kept = trained(
        update, np.array([0.5, 2.0]), np.zeros((3, 2), "float32"), decay_mult=0.0, dtype="float32"
    )
    assert weights[-1].tolist() == [0.5, 2.0]
    assert {array.dtype for array in (parameter.variable, *kept)} == {"float32"}


def test_accumulators_are_named_and_ordered_by_kind():
    parameters = [Parameter(np.ones(3), "W"), Parameter(np.ones(2), "b")]
    gradients, names = [p.variable for p in parameters], {}
    for update, rule in RULES.items():
        names[update] = [each.name for each in rule(parameters, gradients, pt.scalar())[1]]
    assert names["adagrad"] == ["W.squares", "b.squares"]
    assert names["adadelta"] == [
        "W.squared_gradient",
        "b.squared_gradient",
        "W.squared_step",
        "b.squared_step",
    ]


@pytest.mark.parametrize(
    ("changes", "name", "constants"),
    [
        ({}, "momentum_sgd", {"momentum": 0.9}),
        ({"use_nesterov_momentum": "true"}, "nesterov", {"momentum": 0.9}),
        ({"use_momentum": "false"}, "sgd", {}),
        ({"update": "sgd"}, "sgd", {}),
        ({"update": "momentum", "momentum": 0.5}, "momentum_sgd", {"momentum": 0.5}),
        ({"update": "nesterov", "use_nesterov_momentum": "true"}, "nesterov", {"momentum": 0.9}),
        ({"update": "adagrad", "adagrad_epsilon": 0.5}, "adagrad", {"epsilon": 0.5}),
        ({"update": "adadelta", "adadelta_rho": 0.5}, "adadelta", {"rho": 0.5, "epsilon": 1e-6}),
    ],
)
def test_settings_select_the_rule_and_its_constants(changes, name, constants):
    rule = bind_update_rule(tiny.settings("none", "none", weight_decay=0.25, **changes))
    innermost = rule.func
    assert (innermost.__name__, rule.keywords) == (name, constants | {"weight_decay": 0.25})


# ---- runs


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Make 24 images: 6 batches of 4."""
    return tiny.make_data(tmp_path_factory.mktemp("data") / "set", validation=4)


def arrays_of(folder, iteration):
    return checkpoint_format.load(checkpoint_format.snapshot_path(folder, iteration))[0]


@pytest.mark.parametrize("update", RULES)
def test_resume_is_bit_exact_and_refuses_another_update(data, tmp_path, update):
    changes = {
        "update": update, "learning_rate": RATES[update] / 10, "n_iterations": 6, "para_load": "false",
        "backend": "numpy",
    }
    straight = tiny.run(
        data, tmp_path, snapshot_iterations=3, run_name="straight", keep_snapshots="null", **changes
    )
    third = checkpoint_format.snapshot_path(straight, 3)
    resumed = tiny.run(data, tmp_path, run_name="resumed", resume_train=third, **changes)
    expected, found = arrays_of(straight, 6), arrays_of(resumed, 6)
    kinds = {"adagrad": ["squares"], "adadelta": ["squared_gradient", "squared_step"]}[update]
    names = {name for name in expected if name.rpartition(".")[2] in kinds}
    assert len(names) == 8 * len(kinds) and all(expected[name].any() for name in names)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    for other in {"adagrad", "adadelta", "sgd", "auto"} - {update}:
        with pytest.raises(CheckpointError) as refusal:
            tiny.run(data, tmp_path, resume_train=third, **changes | {"update": other})
        assert str(refusal.value) == (
            f"{third} was saved with update {update}, this run has {'momentum' if other == 'auto' else other}; "
            f"weights={third} would restart from it"
        )
