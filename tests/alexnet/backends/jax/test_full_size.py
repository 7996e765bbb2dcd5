"""Full-size AlexNet on JAX: outputs and gradients match the CPU backend, and memory holds one copy of each array."""

import numpy as np
import pytest

from alexnet.backends import mode_of
from alexnet.data.augment import centre_crop
from alexnet.models import AlexNet
from alexnet.training.network import Network
from alexnet.training.updates import momentum_sgd

pytest.importorskip("jax", reason="the jax backend needs jax, which is not installed")

MIB = 2**20


def test_outputs_and_gradients_match_cpu():
    """If rounding decides near ties differently, compare with float64 that follows the JAX backend's decisions."""
    torch = pytest.importorskip("torch", reason="benchmarks/agreement.py needs torch")
    from benchmarks.agreement import BOUND, differing, distance, ours, theirs

    rng = np.random.default_rng(1)
    images = (rng.random((3, 227, 227, 2), dtype=np.float32) - 0.5) * 255
    labels = rng.integers(0, 1000, 2).astype("int32")
    (parameters, result), (_, expected) = (ours(images, labels, 1, mode_of(backend)) for backend in ("jax", "cpu"))
    flipped = differing(result.decisions, expected.decisions)
    if flipped:
        expected = theirs(parameters, images, labels, torch.float64, result.decisions)
    assert flipped <= 5
    assert result.arrays.keys() == expected.arrays.keys()
    for name, array in result.arrays.items():
        assert distance(array, expected.arrays[name]) <= BOUND, name


def test_bfloat16_is_within_one_percent_of_float64():
    torch = pytest.importorskip("torch", reason="benchmarks/agreement.py needs torch")
    from benchmarks.agreement import BOUND, BOUNDS, distance, ours, theirs

    rng = np.random.default_rng(2)
    images = (rng.random((3, 227, 227, 1), dtype=np.float32) - 0.5) * 255
    labels = rng.integers(0, 1000, 1).astype("int32")
    parameters, result = ours(images, labels, 2, mode_of("jax", "bfloat16"))
    truth = theirs(parameters, images, labels, torch.float64, result.decisions)
    distances = {name: distance(array, truth.arrays[name]) for name, array in result.arrays.items()}
    assert max(distances.values()) <= BOUNDS["bfloat16"], distances
    assert distances["gradient of conv1.W"] > 10 * BOUND


def test_step_memory_holds_one_copy_of_each_array():
    network = Network(AlexNet(np.random.default_rng(0)), np.zeros((3, 256, 256)), momentum_sgd, backend="jax")
    batch = np.zeros((3, 256, 256, 1), "uint8"), *centre_crop(1, 227), np.zeros(1, "int32"), np.float32(0.01)
    given = iter(batch)
    values = (next(given) if storage[0] is None else storage[0] for storage in network.train.vm.inputs)
    memory = network.train.vm.jit_fn.lower(*values).compile().memory_analysis()
    gradients = 4 * 60_965_224
    assert memory.alias_size_in_bytes == 2 * gradients + 8                          # and the step counter
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes < 1024          # cost and error
    assert memory.temp_size_in_bytes < gradients + 8 * MIB                          # one image has 3 MiB of activations
