"""Statistics of a step against NumPy, and their records in a run."""

import io

import numpy as np
import pytest

from alexnet.plots.records import read_run
from alexnet.plots.statistics import PANELS
from alexnet.plots.statistics import statistics as plot_statistics
from alexnet.run.recorder import RunRecorder, read_records
from alexnet.training import statistics
from alexnet.training.network import build_model, build_network
from alexnet.training.statistics import Probe, first_images, relative_change, sample
from tests import tiny

pytestmark = pytest.mark.slow
LAYERS = "conv1", "conv2", "fc3", "fc4"


@pytest.fixture
def network(backend):
    config = tiny.settings("none", "none", backend=backend, use_data_layer="false", dropout_rate=0)
    return build_network(config, build_model(config, 3), np.zeros((3, 256, 256)))


@pytest.fixture
def batch(rng):
    return rng.normal(0, 50, (3, 227, 227, 4)).astype("float32"), np.array([0, 1, 2, 0], "int32")


def test_gradients_and_outputs_match_the_step(network, batch):
    """The norms equal those of the gradients that `compute` writes."""
    before = {name: np.array(array) for name, array in network.get_state().items()}
    found = Probe(network)(*batch)
    for name, array in network.get_state().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    network.compute(*batch)
    gradients = {p.name: np.asarray(g.get_value()) for p, g in
                 zip(network.trainable_parameters, network.gradients, strict=True)}
    for layer in LAYERS:
        norm = np.sqrt(sum(np.sum(gradients[f"{layer}.{name}"].astype(float) ** 2) for name in "Wb"))
        np.testing.assert_allclose(found[f"{layer}.gradient"], norm, rtol=1e-4)
    logits = np.asarray(network.logits(batch[0])).astype(float)
    np.testing.assert_allclose(found["fc4.scale"], np.sqrt(np.mean(logits**2)), rtol=1e-4)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=0)
    np.testing.assert_allclose(found["confidence"], probabilities.max(axis=0).mean(), rtol=1e-4)


def test_dead_units_are_those_without_output_in_recent_batches(network, batch):
    bias = next(variable for variable in network.parameters if variable.name == "conv2.b")
    alive = np.array(bias.get_value())
    probe = Probe(network)
    bias.set_value(np.where(np.arange(6) < 3, np.float32(-1e6), alive))
    assert probe(*batch)["conv2.dead"] >= 0.5
    bias.set_value(np.full(6, 1e3, "float32"))
    assert [probe(*batch)["conv2.dead"] for _ in range(2)] == [0, 0]
    bias.set_value(np.full(6, -1e6, "float32"))
    assert [probe(*batch)["conv2.dead"] for _ in range(5)] == [0, 0, 0, 0, 1]        # of the last five measurements


def test_first_images_of_each_kind_of_input(batch):
    pixels, labels = (first_images(array, 2) for array in batch)
    assert pixels.flags.c_contiguous and labels.tolist() == [0, 1]
    np.testing.assert_array_equal(pixels, batch[0][..., :2])


def test_relative_change_is_that_of_all_arrays_together():
    before, after = [np.array([3.0]), np.array([4.0])], [np.array([3.0]), np.array([4.5])]
    assert relative_change(before, after) == 0.1
    assert relative_change([np.zeros(2)], [np.ones(2)]) == 0


def test_sample_has_rows_of_the_whole_array(network):
    weights = network.trainable_parameters[0]
    np.testing.assert_array_equal(sample(weights), np.asarray(weights.variable.get_value()).reshape(-1, 4))


def test_run_records_statistics_and_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "FIRST", 1)
    data = tiny.make_data(tmp_path / "data")
    settings = {"para_load": "false", "backend": "numpy", "print_freq": 2, "learning_rate": 0.01}
    with_statistics = tiny.run(data, tmp_path, run_name="with", diagnosis="true", **settings)
    without = tiny.run(data, tmp_path, run_name="without", **settings)
    for name, array in tiny.final(without).items():
        np.testing.assert_array_equal(tiny.final(with_statistics)[name], array, err_msg=name)
    records = [record for record in read_records(with_statistics) if record["kind"] == "statistics"]
    assert records and records[0]["iteration"] % 2 == 0
    assert all(0 < records[0][f"{layer}.update"] < 1 for layer in LAYERS)
    assert (with_statistics / "statistics.csv").exists()


def test_picture_shows_the_layers_in_order(tmp_path):
    with RunRecorder(tmp_path, stream=io.StringIO()) as recorder:
        for iteration in (20, 40):
            values = {f"{layer}.{what}": 0.1 for what in PANELS for layer in LAYERS}
            recorder.record("statistics", iteration=iteration, confidence=0.2, **values)
    run = read_run(tmp_path)
    scales = [name for name in run.records["statistics"] if name.endswith(".scale")]
    assert scales == [f"{layer}.scale" for layer in LAYERS]
    assert plot_statistics(run, tmp_path) == [tmp_path / "statistics.png"]
