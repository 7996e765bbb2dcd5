"""Compiled functions: compute plus apply equals train, updates are in place, invalid arguments are refused."""

import importlib.util

import numpy as np
import pytest

from alexnet.backends import mode_of
from alexnet.backends.cpu.kernels import elemwise
from alexnet.config import ConfigError, backend_of, load_config
from alexnet.data.augment import centre_crop
from alexnet.native import compiler
from alexnet.nn import Conv, Dense, Flatten, Sequential
from alexnet.training.network import Network, apply_layer_settings, build_model, build_network
from alexnet.training.updates import adadelta, adagrad, bind_update_rule, momentum_sgd, nesterov, sgd
from tests.tiny import Tiny

pytestmark = [pytest.mark.slow, pytest.mark.compatibility]

BATCH, CLASSES = 6, 10
RULES = {"sgd": sgd, "momentum": momentum_sgd, "nesterov": nesterov, "adagrad": adagrad, "adadelta": adadelta}


def network_of(backend, rule=momentum_sgd, **settings):
    model = Tiny(np.random.default_rng(1), CLASSES)
    return Network(model, np.full((3, 256, 256), 100, "float32"), rule, backend=backend, **settings)


def batches(count):
    """Yield the arguments of a step, without the learning rate."""
    rng = np.random.default_rng(2)
    for _ in range(count):
        images = rng.integers(0, 256, (3, 256, 256, BATCH)).astype("uint8")
        yield images, *centre_crop(BATCH, 227), rng.integers(0, CLASSES, BATCH).astype("int32")


def rates(count):
    return [np.float32(0.01 / (1 + n)) for n in range(count)]


def assert_same_state(network, other):
    state, expected = network.get_state(), other.get_state()
    assert state.keys() == expected.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_state_bytes_do_not_wait_for_weights(rule):
    waited = []
    network = network_of("cpu", rule, wait=lambda: waited.append(True))
    size = network.state_bytes
    assert waited == []
    assert size == sum(array.nbytes for array in network.get_state().values())
    assert waited


@pytest.mark.parametrize("crop", [True, False])
def test_scale_multiplies_each_channel(crop):
    scale = (0.5, 2.0, 4.0)                      # powers of two: exact
    scaled, plain = network_of("cpu", crop=crop, scale=scale), network_of("cpu", crop=crop)
    plain.set_parameters({"conv1.W": plain.get_state()["conv1.W"] * np.reshape(np.float32(scale), (3, 1, 1, 1))})
    images = next(batches(1))[:4] if crop else (np.random.default_rng(3).random((3, 227, 227, BATCH), "float32"),)
    np.testing.assert_allclose(scaled.logits(*images), plain.logits(*images), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("backend", "rule"),
    [(backend, rule) for backend in ("numpy", "cpu") for rule in RULES] + [("jax", "momentum"), ("jax", "adadelta")],
    indirect=["backend"],                        # XLA takes 10 s for each rule: one with each number of accumulators
)
def test_compute_and_apply_equal_train_bit_exactly(backend, rule):
    whole, halves = (network_of(backend, RULES[rule]) for _ in range(2))
    before = halves.get_state()["fc3.W"].copy()
    for batch, rate in zip(batches(3), rates(3), strict=True):
        expected = whole.train(*batch, rate)
        np.testing.assert_array_equal(halves.compute(*batch), expected)
        assert halves.apply(rate) == []
    assert halves.get_state()["step"] == 3
    assert not np.array_equal(halves.get_state()["fc3.W"], before)
    assert_same_state(halves, whole)


def test_gradients_have_parameter_shapes(backend):
    network = network_of(backend, sgd)
    network.compute(*next(batches(1)))
    before = {name: np.array(array) for name, array in network.get_state().items()}
    for parameter, gradient in zip(network.parameters, network.gradients, strict=True):
        value = np.asarray(gradient.get_value())
        assert (value.shape, value.dtype) == (parameter.type.shape, np.float32) and value.any()
        gradient.set_value(np.full_like(value, 2))
    network.apply(np.float32(0.5))
    after = network.get_state()
    np.testing.assert_allclose(after["fc3.b"], before["fc3.b"] - 2, rtol=1e-6)            # lr_mult 2, no decay
    np.testing.assert_allclose(after["fc3.W"], before["fc3.W"] * (1 - 0.5 * 0.0005) - 1, rtol=1e-5)


@pytest.mark.skipif(not compiler.compiler_available(), reason="needs a C compiler")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("apart", [False, True], ids=["train", "compute and apply"])
def test_large_arrays_are_updated_in_place(rule, apart):
    """On the CPU backend, so that an exchange can use shared memory; small arrays may move."""
    rng = np.random.default_rng(3)
    model = Sequential(Conv(rng, 3, 64, size=11, stride=32, pool=(3, 2)), Flatten(), Dense(rng, 576, CLASSES))
    model.channels, model.image_size = 3, 227
    network = Network(model, np.zeros((3, 256, 256)), RULES[rule])
    places = {v: v.get_value(borrow=True) for v in network.parameters_and_velocities}
    before = {v: array.copy() for v, array in places.items()}
    (batch,), rate = batches(1), np.float32(0.01)
    if apart:
        network.compute(*batch)
        network.apply(rate)
    else:
        network.train(*batch, rate)
    assert network.computes_on_host
    for variable, array in places.items():
        assert not np.array_equal(variable.get_value(borrow=True), before[variable]), variable.name
        if array.size >= elemwise.SMALL:
            assert np.shares_memory(variable.get_value(borrow=True), array), variable.name


def test_parameters_precede_velocities_in_model_order():
    network = network_of("cpu")
    names = [v.name for v in network.parameters_and_velocities]
    parameters = ["conv1.W", "conv1.b", "conv2.W", "conv2.b", "fc3.W", "fc3.b", "fc4.W", "fc4.b"]
    assert names == [*parameters, *(f"{name}.velocity" for name in parameters)]
    assert list(network.state) == [*names, "step"]


def paced(backend, **settings):
    """Return the network with layer learning rates and frozen layers applied."""
    network = network_of(backend)
    pairs = [f"{key}={value}" for key, value in settings.items()]
    apply_layer_settings(network.model, load_config(["data=x", "weights=x", *pairs]))
    return network


def gradients_in(function):
    """Count the filter gradients and input gradients of convolutions and dense layers in a compiled function."""
    names = [str(node.op) for node in function.maker.fgraph.toposort()]
    return [sum(f"Convolution{kind}Gradient" in name for name in names) for kind in ("Filter", "Input")]


def test_layer_rates_and_frozen_layers_are_applied(backend):
    """Matches float64 NumPy on the gradients of a fully trainable network, for train and for compute and apply."""
    rates = {"conv1": 0, "conv2": 0.25, "fc3": 1, "fc4": 10}
    network, whole = paced(backend, layer_rates="conv2:0.25,fc4:10", frozen_layers="conv1"), network_of(backend)
    expected = {name: np.array(array, "float64") for name, array in network.get_state().items() if name != "step"}
    assert not {name for name in expected if name.startswith("conv1") and "velocity" in name}
    for batch, apart in zip(batches(2), (False, True), strict=True):
        whole.compute(*batch)
        for v, gradient in zip(whole.parameters, whole.gradients, strict=True):
            factor = rates[v.name.split(".")[0]]
            if factor:
                w, decay = expected[v.name], 0.0005 if v.name.endswith("W") else 0
                rate = 0.01 * factor * (1 if decay else 2)
                velocity = 0.9 * expected[f"{v.name}.velocity"] - rate * (np.asarray(gradient.get_value()) + decay * w)
                expected[v.name], expected[f"{v.name}.velocity"] = w + velocity, velocity
        if apart:
            network.compute(*batch)
            network.apply(np.float32(0.01))
        else:
            network.train(*batch, np.float32(0.01))
        state = network.get_state()
        for name, array in expected.items():
            np.testing.assert_allclose(state[name], array, rtol=1e-4, atol=1e-7, err_msg=name)
        for v in network.frozen_parameters:
            np.testing.assert_array_equal(state[v.name], expected[v.name], err_msg=v.name)
        whole.set_parameters({v.name: np.array(state[v.name]) for v in whole.parameters})


def test_backward_pass_ends_at_the_lowest_trainable_layer(backend):
    assert gradients_in(network_of(backend).train) == [4, 3]
    assert gradients_in(paced(backend, frozen_layers="conv1,conv2").train) == [2, 1]
    assert gradients_in(paced(backend, frozen_layers="conv2,fc4").train) == [2, 3]  # gradients pass through both


def test_compile_all_compiles_the_given_functions():
    assert {"train", "compute", "apply", "validate"} & vars(network := network_of("cpu")).keys() == set()
    network.compile_all(("compute", "apply", "validate"))
    assert {"train", "compute", "apply", "validate"} & vars(network).keys() == {"compute", "apply", "validate"}


@pytest.mark.parametrize(
    ("setting", "device", "expected"),
    [("auto", "cpu", "cpu"), ("auto", "cuda1", "jax"), ("cpu", "cuda0", "cpu"), ("jax", "cpu", "jax")],
)
def test_auto_selects_jax_on_a_gpu_and_cpu_elsewhere(setting, device, expected):
    assert backend_of(setting, device) == expected


def test_network_follows_the_settings():
    config = load_config(["data=x", "model=tiny", "backend=numpy", "use_data_layer=false", "learning_rate=0.1"])
    network = build_network(config, build_model(config, CLASSES), np.zeros((3, 256, 256)), rank=2)
    assert network.computes_on_host and not network.crop
    assert network.seed == config.random_seed + 2 * 1_000_003
    assert bind_update_rule(config).func is momentum_sgd


def test_precision_needs_the_jax_backend():
    with pytest.raises(ConfigError, match="precision bfloat16 needs backend=jax; backend cpu computes in float32 only"):
        network_of("cpu", precision="bfloat16")


def test_missing_jax_is_reported_with_a_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="backend jax needs jax, which is not installed: pip install"):
        mode_of("jax")
