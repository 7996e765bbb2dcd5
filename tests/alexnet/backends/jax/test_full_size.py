"""Full-size AlexNet on JAX: outputs and gradients match the CPU backend, and memory holds one copy of each array."""

import numpy as np
import pytest

from alexnet.data.augment import centre_crop
from alexnet.models.alexnet import AlexNet
from alexnet.training.network import Network
from alexnet.training.updates import momentum_sgd

pytestmark = pytest.mark.slow

pytest.importorskip("jax", reason="the jax backend needs jax, which is not installed")

MIB = 2**20


def test_step_holds_parameters_velocities_and_gradients_once():
    network = Network(AlexNet(np.random.default_rng(0)), np.zeros((3, 256, 256)), momentum_sgd, backend="jax")
    batch = np.zeros((3, 256, 256, 1), "uint8"), *centre_crop(1, 227), np.zeros(1, "int32"), np.float32(0.01)
    given = iter(batch)
    values = (next(given) if storage[0] is None else storage[0] for storage in network.train.vm.inputs)
    memory = network.train.vm.jit_fn.lower(*values).compile().memory_analysis()
    gradients = 4 * 60_965_224
    assert memory.alias_size_in_bytes == 2 * gradients + 8                          # and the step counter
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 1024          # cost and error
    assert memory.temp_size_in_bytes < gradients + 8 * MIB                          # one image has 3 MiB of activations
