"""Outputs and gradients of the full-size AlexNet equal PyTorch's, on the CPU backend and on JAX."""

import numpy as np
import pytest

from alexnet.backends import mode_of

torch = pytest.importorskip("torch", reason="benchmarks/accuracy/agreement.py needs torch")
agreement = pytest.importorskip("benchmarks.accuracy.agreement")
BOUND, BOUNDS, differing, distance = agreement.BOUND, agreement.BOUNDS, agreement.differing, agreement.distance
ours, theirs = agreement.ours, agreement.theirs


def test_outputs_and_gradients_equal_pytorchs():
    *arrays, decisions = agreement.distances(batch=2, seed=1, backend="cpu")
    assert all(row["value"] <= BOUND for row in arrays), arrays
    assert decisions["value"] <= 5


def test_jax_outputs_and_gradients_equal_the_cpu_backends():
    """If rounding decides near ties differently, compare with float64 that follows the JAX backend's decisions."""
    pytest.importorskip("jax")
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


def test_bfloat16_is_within_a_hundredth_of_float64():
    pytest.importorskip("jax")
    rng = np.random.default_rng(2)
    images = (rng.random((3, 227, 227, 1), dtype=np.float32) - 0.5) * 255
    labels = rng.integers(0, 1000, 1).astype("int32")
    parameters, result = ours(images, labels, 2, mode_of("jax", "bfloat16"))
    truth = theirs(parameters, images, labels, torch.float64, result.decisions)
    distances = {name: distance(array, truth.arrays[name]) for name, array in result.arrays.items()}
    assert max(distances.values()) <= BOUNDS["bfloat16"], distances
    assert distances["gradient of conv1.W"] > 10 * BOUND
