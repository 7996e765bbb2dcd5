"""Training on a GPU gives the CPU backend's results. benchmarks/gpu.sh runs these tests on a CUDA machine.

GPU_TESTS_DEVICE=cpu runs them on JAX's CPU backend instead.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alexnet.data.augment import draw_crop
from alexnet.models import model_class
from alexnet.run import checkpoint_format
from alexnet.training.network import Network
from alexnet.training.updates import momentum_sgd
from multigpu.device import DeviceError, open_device
from tests import tiny, tiny_train

pytestmark = pytest.mark.gpu

DEVICE = os.environ.get("GPU_TESTS_DEVICE", "cuda0")
BATCH = 4


@pytest.fixture(scope="module", autouse=True)
def device():
    """Skip these tests on a machine without the device."""
    try:
        open_device(DEVICE, on_host=False).close()
    except DeviceError as error:
        pytest.skip(str(error))


def costs_and_state(model, backend, steps):
    """Return the costs of some training steps and the state after them."""
    network = Network(
        model_class(model)(np.random.default_rng(1), 10), np.full((3, 256, 256), 110, "float32"), momentum_sgd,
        backend=backend, device=DEVICE if backend == "jax" else "cpu", seed=3,
    )
    rng = np.random.default_rng(2)
    costs = []
    for _ in range(steps):
        images = rng.integers(0, 256, (3, 256, 256, BATCH)).astype("uint8")
        labels = rng.integers(0, 10, BATCH).astype("int32")
        crop = draw_crop(rng, BATCH, network.model.image_size, False)
        costs.append(float(network.train(images, *crop, labels, np.float32(0.001))[0]))
    return np.array(costs), {name: np.array(array) for name, array in network.get_state().items()}


@pytest.mark.parametrize("model", ["tiny", "alexnet", "googlenet"])
def test_training_steps_match_the_cpu_backend(model):
    costs, state = costs_and_state(model, "jax", steps=3)
    expected_costs, expected_state = costs_and_state(model, "cpu", steps=3)
    np.testing.assert_allclose(costs, expected_costs, rtol=1e-3)
    for name, expected in expected_state.items():
        if name.endswith(".W"):
            distance = np.linalg.norm(state[name] - expected) / np.linalg.norm(expected)
            assert distance < 1e-3, name


def trained(folder, data, **settings):
    """Run train.py for the tiny network and return the arrays of its last checkpoint."""
    given = {"data": data, "output": folder, "run_name": "run", "model": "tiny", "dropout_rate": 0, "backend": "jax",
             "rand_crop": "false", "learning_rate": 0.02, "n_epochs": 9, "n_iterations": 10} | settings
    command = [sys.executable, tiny_train.__file__, *(f"{key}={value}" for key, value in given.items())]
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, env=os.environ | {"PYTHONPATH": path}
    )
    assert (done.returncode, done.stderr) == (0, "")
    return checkpoint_format.load(checkpoint_format.latest(folder / "run"))[0]


@pytest.mark.parametrize("exchange_what", ["weights_and_momentum", "gradients"])
def test_two_workers_match_one_of_twice_the_batch(exchange_what, tmp_path):
    data = tiny.make_data(tmp_path / "set", train=28, validation=9)
    one = trained(tmp_path / "one", data, devices=DEVICE, batch_size=4)
    two = trained(
        tmp_path / "two", data, devices=f"{DEVICE},{DEVICE}", batch_size=2, exchange_what=exchange_what
    )
    for name, expected in one.items():
        np.testing.assert_allclose(two[name], expected, rtol=0, atol=1e-4 * max(1e-6, np.abs(expected).max()))
