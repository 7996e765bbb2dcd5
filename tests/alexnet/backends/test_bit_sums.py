"""BitSums against NumPy, and the sums that a network computes while it updates its state."""

from functools import partial

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from alexnet.backends import mode_of
from alexnet.backends.bit_sums import BitSums
from alexnet.backends.cpu.kernels.elemwise import SMALL
from alexnet.native import compiler
from alexnet.nn import Conv, Dense, Flatten, Sequential
from alexnet.training.network import Network
from alexnet.training.updates import adadelta, momentum_sgd


class Small(Sequential):
    """Layers with and without a C loop for their update: weights of 4,096 elements or more, and biases."""

    channels, image_size = 3, 6

    def __init__(self, rng):
        super().__init__(
            Conv(rng, 3, 160, size=3, std=0.1), Flatten(),                               # 160 x 4 x 4
            Dense(rng, 2560, 20, std=0.1),
            Dense(rng, 20, 3, relu=False, std=0.1, bias=0.0),
        )


def sum_of_bits(array):
    """Return the sum of the bits of a float32 array, in Python's integers."""
    return sum(map(int, np.ravel(array).view(np.uint32))) % 2**32


def network_of(update, backend="cpu"):
    network = Network(Small(np.random.default_rng(0)), np.zeros((3, 6, 6), "float32"), update, backend, crop=False)
    return network


def train(network, separately, rng):
    """Do a step, with the update in a function of its own if `separately`; return (expected sums, found sums)."""
    state = [parameter.variable for parameter in network.trainable_parameters] + network.update_graph[3]
    inputs = rng.normal(size=(3, 6, 6, 4)).astype("float32"), rng.integers(0, 3, 4, dtype=np.int32)
    expected = [[sum_of_bits(variable.get_value()) for variable in state]]
    if separately:
        network.compute(*inputs)
        network.apply(np.float32(0.1))
    else:
        network.train(*inputs, np.float32(0.1))
    expected.append([sum_of_bits(variable.get_value()) for variable in state])
    return expected, [sums.get_value().tolist() for sums in (network.sums_read, network.sums_written)]


@pytest.mark.parametrize("backend", ["cpu", "numpy", pytest.param("jax", marks=pytest.mark.slow)])
def test_bit_sums_match_python(backend, rng):
    x, y = pt.fmatrix("x"), pt.fvector("y")
    arrays = rng.normal(size=(5, 7)).astype("float32"), np.float32([-0.0, np.nan, np.inf])
    found = pytensor.function([x, y], BitSums()(x, y), mode=mode_of(backend))(*arrays)
    assert np.asarray(found).tolist() == [sum_of_bits(array) for array in arrays]


@pytest.mark.skipif(not compiler.compiler_available(), reason="needs a C compiler")
@pytest.mark.parametrize("update", [partial(momentum_sgd, momentum=0.9), adadelta], ids=["momentum", "adadelta"])
@pytest.mark.parametrize("separately", [False, True], ids=["train", "apply"])
def test_an_update_sums_what_it_reads_and_writes(update, separately, rng):
    network = network_of(update)
    network.sum_state()
    try:
        for threads in (1, 2):
            compiler.use_threads(threads)
            for _ in range(2):
                expected, found = train(network, separately, rng)
                assert found == expected
    finally:
        compiler.use_threads(None)
    nodes = (network.apply if separately else network.train).maker.fgraph.toposort()
    sizes = [variable.type.shape for node in nodes if isinstance(node.op, BitSums) for variable in node.inputs]
    assert sizes and max(map(np.prod, sizes)) < SMALL       # the others are summed in the loop of their update


@pytest.mark.skipif(not compiler.compiler_available(), reason="needs a C compiler")
def test_sums_do_not_change_the_update(rng):
    states = []
    for sums in (False, True):
        network = network_of(partial(momentum_sgd, momentum=0.9))
        if sums:
            network.sum_state(read=2)
        for step in range(3):
            random = np.random.default_rng(step)
            images = random.normal(size=(3, 6, 6, 4)).astype("float32")
            network.train(images, random.integers(0, 3, 4, dtype=np.int32), np.float32(0.1))
        states.append(network.get_state())
    for name, array in states[0].items():
        np.testing.assert_array_equal(states[1][name], array, name)

