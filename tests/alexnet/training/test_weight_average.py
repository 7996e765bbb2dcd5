"""The average of the weights against its definition in float64, in networks on each backend, and in runs."""

from functools import partial

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from alexnet import pretrained
from alexnet.backends.cpu.kernels import elemwise
from alexnet.nn import Conv, Dense, Flatten, Parameter, Sequential
from alexnet.run import checkpoint_format
from alexnet.run.checkpoint_format import CheckpointError
from alexnet.run.recorder import read_records
from alexnet.training.network import Network
from alexnet.training.updates import momentum_sgd, update_averages, zeros_like
from tests import tiny
from tests.multigpu.exchange.workers import SmallNetwork, synthetic_batch


def average_of(weights, decay):
    """Return the mean of the weights after each step, with the factors decay**n for those of n steps ago."""
    factors = decay ** np.arange(len(weights) - 1, -1, -1.0)
    return np.tensordot(factors / factors.sum(), np.array(weights, "float64"), 1)


@pytest.mark.parametrize("decay", [0.5, 0.9999])
def test_average_is_the_weighted_mean_of_all_steps(decay, rng):
    """In float64; the average begins far from the weights, which must not matter."""
    parameter, steps, w = Parameter(np.zeros(5), "W", dtype="float64"), pt.lscalar(), pt.dvector()
    average = zeros_like(parameter, "average")
    average.set_value(np.full(5, 100.0))
    pairs = update_averages([average], [parameter], {parameter.variable: w}, steps, decay)
    step, weights = pytensor.function([w, steps], [], updates=pairs, mode="FAST_COMPILE"), []
    for n in range(1, 51):
        weights.append(rng.normal(size=5))
        step(weights[-1], n)
        np.testing.assert_allclose(average.get_value(), average_of(weights, decay), rtol=1e-12, atol=1e-12)


def network_of(backend, decay=0.8):
    model, rule = SmallNetwork(np.random.default_rng(0)), partial(momentum_sgd, momentum=0.9)
    return Network(model, np.zeros((3, 6, 6), "float32"), rule, backend, crop=False, ema_decay=decay)


@pytest.mark.slow
def test_network_averages_and_validates_with_the_average(backend):
    """In one function and as compute and apply; the weights are those of a network without an average."""
    whole, halves, plain = network_of(backend), network_of(backend), network_of(backend, 0.0)
    weights = []
    for step in range(1, 6):
        batch, rate = synthetic_batch(step, 0, 1, 1), np.float32(0.05)
        whole.train(*batch, rate)
        halves.compute(*batch)
        halves.apply(rate)
        plain.train(*batch, rate)
        weights.append({name: np.array(array) for name, array in plain.get_state().items()})
    state = {name: np.array(array) for name, array in whole.get_state().items()}
    names = [parameter.name for parameter in plain.model.parameters]
    for name in names:
        np.testing.assert_array_equal(state[name], weights[-1][name], err_msg=name)
        expected = average_of([each[name] for each in weights], 0.8)
        np.testing.assert_allclose(state[f"{name}.average"], expected, rtol=1e-5, atol=1e-7, err_msg=name)
    for name, array in state.items():
        np.testing.assert_array_equal(halves.get_state()[name], array, err_msg=name)
    plain.set_parameters({name: state[f"{name}.average"] for name in names})
    images, labels = synthetic_batch(9, 0, 1, 1)
    for found, expected in zip(whole.validate(images, labels), plain.validate(images, labels), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(whole.predict(images), plain.predict(images))


@pytest.mark.slow
def test_large_averages_are_updated_in_place(rng):
    """Including those of a dense layer, whose gradient and update are one kernel."""
    model = Sequential(Conv(rng, 3, 64, size=11, stride=32, pool=(3, 2)), Flatten(), Dense(rng, 576, 10))
    model.channels, model.image_size = 3, 227
    network = Network(model, np.zeros((3, 256, 256)), momentum_sgd, crop=False, ema_decay=0.9)
    places = [average.get_value(borrow=True) for average in network.averages]
    images = rng.random((3, 227, 227, 6), "float32")
    network.train(images, np.arange(6, dtype="int32"), np.float32(0.01))
    for parameter, average, array in zip(model.parameters, network.averages, places, strict=True):
        found = average.get_value(borrow=True)
        np.testing.assert_allclose(found, parameter.variable.get_value(), rtol=1e-5, atol=1e-7)      # after one step
        if array.size >= elemwise.SMALL:
            assert np.shares_memory(found, array), average.name


# ---- runs


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Make 24 images: 6 batches of 4."""
    return tiny.make_data(tmp_path_factory.mktemp("data") / "set", validation=8)


CHANGES = {"para_load": "false", "backend": "numpy", "n_epochs": 1}


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """Run an epoch with an average."""
    return tiny.run(data, tmp_path_factory.mktemp("run"), ema_decay=0.5, **CHANGES)


@pytest.mark.slow
def test_weights_of_a_run_are_the_averages(run, data, tmp_path):
    arrays, weights = tiny.final(run), pretrained.load(run)
    assert weights.arrays.keys() == {name for name in arrays if name.endswith((".W", ".b"))}
    for name, array in weights.arrays.items():
        np.testing.assert_array_equal(array, arrays[f"{name}.average"], err_msg=name)
        assert not np.array_equal(array, arrays[name])
    validation = next(record for record in read_records(run) if record["kind"] == "validation")
    start = tiny.run(data, tmp_path, weights=run, learning_rate=1e-30, **CHANGES)
    again = next(record for record in read_records(start) if record["kind"] == "validation")
    assert again["cost"] == pytest.approx(validation["cost"], rel=1e-6)      # the averages, hardly trained


@pytest.mark.slow
@pytest.mark.parametrize(("saved", "now"), [(0.5, 0), (0, 0.5)])
def test_resume_with_and_without_averages_is_refused(run, data, tmp_path, saved, now):
    start = run if saved else tiny.run(data, tmp_path, **CHANGES)
    path = checkpoint_format.latest(start)
    with pytest.raises(CheckpointError) as refusal:
        tiny.run(data, tmp_path, run_name="other", resume_train=path, ema_decay=now, **CHANGES | {"n_epochs": 2})
    assert str(refusal.value) == (
        f"{path} was saved with ema_decay {saved:g}, this run has {now:g}; weights={path} would restart from it"
    )


@pytest.mark.slow
def test_untrained_average_is_the_initial_weights(data, tmp_path):
    folder = tiny.run(data, tmp_path, line=tiny.Line(stop_after=0), ema_decay=0.5, **CHANGES)
    arrays = tiny.final(folder)
    assert arrays["step"] == 0
    np.testing.assert_array_equal(arrays["fc3.W.average"], arrays["fc3.W"])
