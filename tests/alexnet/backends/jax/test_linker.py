"""The JAX backend on complete steps: results match the CPU backend; one copy of the state stays on the device."""

import gc
import os
import re
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from alexnet.backends import mode_of
from alexnet.config.schema import ConfigError
from alexnet.data.augment import draw_crop
from alexnet.native import compiler
from alexnet.nn import Conv, Dense, Flatten, Sequential
from alexnet.run import checkpoint_format
from alexnet.training.network import Network
from alexnet.training.updates import momentum_sgd
from tests.tiny import Tiny

jax = pytest.importorskip("jax", reason="the jax backend needs jax, which is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.compatibility]

BATCH, CLASSES = 4, 10


def network_of(backend="jax", model=Tiny, **settings):
    made = model(np.random.default_rng(1), CLASSES)
    return Network(made, np.full((3, 256, 256), 100, "float32"), momentum_sgd, backend=backend, **settings)


def batches(count, batch=BATCH):
    """Yield the arguments of training steps: images, crops and mirrors, labels, learning rate."""
    rng = np.random.default_rng(2)
    for step in range(count):
        images = rng.integers(0, 256, (3, 256, 256, batch)).astype("uint8")
        labels = rng.integers(0, CLASSES, batch).astype("int32")
        yield images, *draw_crop(rng, batch, 227, False), labels, np.float32(0.002 / (1 + step))


def trained(network, count):
    """Return the costs of some steps and the state after them."""
    costs = [float(network.train(*batch)[0]) for batch in batches(count)]
    return {"costs": np.array(costs)} | {name: np.array(array) for name, array in network.get_state().items()}


def lowered(function, arguments):
    """Return JAX's lowering of a call of a compiled PyTensor function."""
    given = iter(arguments)
    storages = [storage[0] for storage in function.vm.inputs]
    return function.vm.jit_fn.lower(*(next(given) if value is None else value for value in storages))


@pytest.fixture(scope="module")
def compiled():
    """Return a network and its initial state; its functions are compiled once for this module."""
    network = network_of()
    return network, {name: np.array(array) for name, array in network.get_state().items()}


@pytest.fixture
def network(compiled):
    """Return the network, reset to its initial state."""
    compiled[0].set_state(compiled[1])
    return compiled[0]


def test_twenty_training_steps_match_cpu():
    results, expected = (trained(network_of(backend, seed=2**40 + 3), 20) for backend in ("jax", "cpu"))
    assert results.keys() == expected.keys() and expected["step"] == 20
    for name, array in expected.items():
        assert results[name].dtype == array.dtype
        np.testing.assert_allclose(results[name], array, rtol=1e-4, atol=1e-5 * np.abs(array).max(), err_msg=name)


class Wide(Sequential):
    """Mostly dense layers, like AlexNet: 4.6 million weights, and activations of a hundredth of that size."""

    channels, image_size = 3, 227

    def __init__(self, rng, classes):
        super().__init__(
            Conv(rng, 3, 4, size=11, stride=64), Flatten(),                              # 4 x 4 x 4
            Dense(rng, 64, 2048), Dense(rng, 2048, 2048), Dense(rng, 2048, classes),
        )


def bytes_of(variables):
    return sum(4 * int(np.prod(variable.type.shape)) for variable in variables)


def test_step_memory_holds_one_copy_of_each_array():
    network, (batch,) = network_of(model=Wide, crop=False), batches(1)
    pixels = np.zeros((3, 227, 227, BATCH), "float32")
    memory = lowered(network.train, (pixels, *batch[4:])).compile().memory_analysis()
    state, gradients = bytes_of(network.parameters_and_velocities), bytes_of(network.parameters)
    scalars = 8 + 2 * 4                                            # step counter; cost and error
    assert memory.alias_size_in_bytes == state + 8
    assert state < memory.output_size_in_bytes <= state + scalars + 1024
    assert memory.temp_size_in_bytes <= 1.1 * gradients


def test_state_exists_once_after_a_step():
    gc.collect()
    before = {id(array) for array in jax.live_arrays()}
    network = network_of(model=Wide)
    for batch in batches(2):
        network.train(*batch)
    gc.collect()
    alive = sum(array.nbytes for array in jax.live_arrays() if id(array) not in before)
    inputs = 3 * 256 * 256 * 4                                     # the mean image
    assert 0 <= alive - bytes_of(network.parameters_and_velocities) - inputs < 2**16


def test_only_updated_variables_are_donated(network):
    data = list(batches(3))
    network.train(*data[0])
    for function, arguments in (("train", data[1]), ("compute", data[1][:-1]), ("apply", data[1][-1:])):
        held = {v: v.get_value(borrow=True) for v in [*network.state.values(), *network.gradients]}
        held = {v: array for v, array in held.items() if isinstance(array, jax.Array)}
        getattr(network, function)(*arguments)
        updated = {
            "train": [*network.parameters_and_velocities, network.step],
            "compute": [*network.gradients, network.step],
            "apply": network.parameters_and_velocities,
        }[function]
        assert {v.name for v, array in held.items() if array.is_deleted()} == {v.name for v in updated if v in held}
    network.validate(*data[2][:-1])
    assert not any(v.get_value(borrow=True).is_deleted() for v in network.state.values())


@contextmanager
def no_conversions():
    """Raise on any conversion of a device array to a host array, even if the device is the CPU."""

    def refusing(function):
        def convert(*arguments, **settings):
            assert not any(isinstance(argument, jax.Array) for argument in arguments), "came to the host"
            return function(*arguments, **settings)

        return convert

    array_type = type(jax.device_put(np.float32(0)))
    with pytest.MonkeyPatch.context() as patch, jax.transfer_guard_device_to_host("disallow"):
        for name in ("array", "asarray", "ascontiguousarray", "copyto", "isnan", "all"):
            patch.setattr(np, name, refusing(getattr(np, name)))
        patch.setattr(array_type, "_value", property(refusing(lambda array: None)))
        patch.setattr(array_type, "__array__", refusing(lambda array: None))
        yield


def steps(network, batch, rate):
    network.train(*batch, rate)
    network.compute(*batch)
    network.apply(rate)
    return network.validate(*batch)[0]


def test_training_step_copies_nothing_to_the_host(network):
    first, second = ([jax.device_put(batch[0]), *batch[1:]] for batch in batches(2))
    steps(network, first[:-1], first[-1])                         # compile the XLA programs with their constants
    with no_conversions():
        cost = steps(network, second[:-1], second[-1])
        for variable in [*network.state.values(), *network.gradients]:
            variable.set_value(variable.get_value(borrow=True), borrow=True)
        for conversion in (float, np.asarray, network.parameters[0].type.filter):
            with pytest.raises(AssertionError, match="came to the host"):
                conversion(cost)


def test_state_stays_on_the_device(network):
    (batch,) = batches(1)
    network.train(*batch)
    state = {name: np.array(array) for name, array in network.get_state().items()}
    network.set_state(state)
    device = mode_of("jax").linker.device
    for name, variable in network.state.items():
        array = variable.get_value(borrow=True)
        assert isinstance(array, jax.Array) and array.devices() == {device}, name
        np.testing.assert_array_equal(array, state[name])
    mean = next(v for v in network.train.vm.jit_fn.inputs if v.name == "mean")
    assert isinstance(mean.container.storage[0], jax.Array)


def test_arrays_of_the_caller_are_not_modified(network):
    """On the CPU, JAX uses the memory of a host array without a copy if its address is a multiple of 64."""
    data, memory = list(batches(2)), np.zeros(294 * 8 * 4 + 64, "uint8")
    weights = memory[-memory.ctypes.data % 64 :][: 294 * 8 * 4].view("float32").reshape(294, 8)
    given = network.parameters[4]
    given.set_value(weights, borrow=True)
    network.train(*data[0])
    given.set_value(weights, borrow=True)
    network.train(*data[1])
    assert not weights.any() and np.asarray(given.get_value()).any()


def test_images_may_be_stored_on_the_device(network, compiled):
    (batch,) = batches(1)
    expected = network.train(*batch)
    network.set_state(compiled[1])
    images = jax.device_put(batch[0])
    np.testing.assert_array_equal(network.train(images, *batch[1:]), expected)
    assert not images.is_deleted()


def test_another_batch_size_is_compiled_once():
    network = network_of()
    for size in (8, 3, 8, 3, 8):
        (batch,) = batches(1, size)
        network.validate(*batch[:-1])
    assert network.validate.vm.jit_fn.jitted._cache_size() == 2


@pytest.mark.parametrize("apart", [False, True], ids=["train", "compute and apply"])
def test_precompiled_functions_are_not_compiled_again(apart, caplog):
    network, (batch,) = network_of(), batches(1)
    network.compile_all((*(("compute", "apply") if apart else ("train",)), "validate"), BATCH)
    with jax.log_compiles():
        if apart:
            network.compute(jax.device_put(batch[0], mode_of("jax").linker.device), *batch[1:-1])
            network.apply(batch[-1])
        else:
            network.train(*batch)
        network.validate(*batch[:-1])
    assert [text for text in caplog.messages if "XLA compilation" in text] == []
    with jax.log_compiles():
        network.validate(*next(batches(1, BATCH + 1))[:-1])
    assert [text for text in caplog.messages if "XLA compilation" in text]


def test_resume_from_a_checkpoint_is_bit_exact(network, tmp_path):
    *data, last = batches(3)
    for batch in data:
        network.train(*batch)
    checkpoint_format.save(tmp_path / "a.safetensors", network.get_state(), {"position": {}})
    network.train(*last)
    other = network_of()
    other.set_state(checkpoint_format.load(tmp_path / "a.safetensors")[0])
    other.train(*last)
    for name, array in other.get_state().items():
        np.testing.assert_array_equal(array, network.get_state()[name], err_msg=name)


@pytest.mark.parametrize(("precision", "xla"), [("float32", "HIGHEST"), ("tf32", "HIGH"), ("bfloat16", "DEFAULT")])
def test_only_products_have_the_requested_precision(precision, xla):
    network, (batch,) = network_of(precision=precision), batches(1)
    text = lowered(network.train, batch).as_text()
    products = re.findall(r"stablehlo\.(?:convolution|dot_general)\b.*", text)
    assert len(products) == 2 * 3 - 1 + 2 * 3                     # conv1 has no input gradient
    operand = "bf16" if precision == "bfloat16" else "f32"
    for product in products:
        if precision != "bfloat16":
            assert product.count(f"{xla}") >= 2, product
        assert re.search(rf": \(tensor<[0-9x]*{operand}>, tensor<[0-9x]*{operand}>\)", product), product
    assert "f64" not in text
    network.train(*batch)
    assert {np.asarray(v.get_value()).dtype.name for v in network.parameters_and_velocities} == {"float32"}


def test_tf32_and_bfloat16_against_float32_on_a_cpu():
    """Most velocities are excluded: in this small network one ReLU that rounding flips changes them by a tenth."""
    results = {precision: trained(network_of(precision=precision), 5) for precision in ("float32", "tf32", "bfloat16")}
    for name, exact in results["float32"].items():
        np.testing.assert_array_equal(results["tf32"][name], exact, err_msg=name)
        if name == "costs" or name.endswith(".W") or name == "fc4.W.velocity":
            distance = np.linalg.norm(results["bfloat16"][name] - exact) / np.linalg.norm(exact)
            assert distance <= (0.02 if "velocity" in name else 2e-3), (name, distance)
    assert not np.array_equal(results["bfloat16"]["fc3.W"], results["float32"]["fc3.W"])


def test_invalid_corners_on_the_device_give_nan(network):
    (batch,) = batches(1)
    rows = np.full(BATCH, 30, "int32")
    with pytest.raises(ValueError, match=r"the row of a crop must be in 0\.\.29, got 30"):
        network.train(batch[0], rows, *batch[2:])
    assert np.isnan(network.train(batch[0], jax.device_put(rows), *batch[2:])[0])


def test_arguments_of_another_type_are_refused(network):
    (batch,) = batches(1)
    with pytest.raises(TypeError, match=r"images must be uint8 of shape \(3, 256, 256, \?\), got float32 of shape"):
        network.train(batch[0].astype("float32"), *batch[1:])
    with pytest.raises(TypeError, match=r"labels must be int32 of shape \(\?\), got int32 of shape \(4, 1\)"):
        network.train(*batch[:4], batch[4][:, None], batch[5])


def test_state_refuses_values_of_another_shape(network):
    (batch,) = batches(1)
    network.train(*batch)
    with pytest.raises(TypeError, match="not compatible"):
        network.parameters[0].set_value(jax.numpy.zeros((3, 11, 11, 5)))


def test_missing_gpu_is_an_error_with_remedy():
    with pytest.raises(ConfigError, match=r'backend jax sees no GPU for device cuda0: pip install -e "\.\[cuda\]"'):
        mode_of("jax", device="cuda0")


def test_device_cpu_restricts_jax_to_the_cpu():
    mode_of("jax")
    assert jax.config.jax_platforms == "cpu"


def test_gpu_is_selected_by_number_without_preallocation(monkeypatch):
    from alexnet.backends.jax.linker import device_of  # here, because jax is optional

    device_of = device_of.__wrapped__
    devices = [SimpleNamespace(local_hardware_id=number) for number in (1, 0)]
    monkeypatch.setattr(jax, "local_devices", lambda backend: devices)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "unset")
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE")
    before = jax.config.jax_compilation_cache_dir
    try:
        assert device_of("cuda1") is devices[0]
        assert Path(jax.config.jax_compilation_cache_dir) == compiler.cache_folder() / "xla"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    with pytest.raises(ConfigError, match="device must be one of cuda1, cuda0, which JAX sees, got cuda2"):
        device_of("cuda2")


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision must be one of float32, tf32, bfloat16, got 'half'"):
        mode_of("jax", "half")


def test_sums_and_products_are_computed_pairwise(rng):
    a, b, c = pt.vectors("abc")
    values = rng.normal(size=(3, 1000)).astype("float32")
    function = pytensor.function([a, b, c], [pt.add(a, b, c), pt.mul(a, b, c), pt.gt(a, 0).sum()], mode=mode_of("jax"))
    total, product, count = function(*values)
    np.testing.assert_array_equal(total, values[0] + values[1] + values[2])
    np.testing.assert_array_equal(product, values[0] * values[1] * values[2])
    assert "concatenate" not in lowered(function, values).as_text()
    assert count.dtype == np.int64 and int(np.asarray(count)) == (values[0] > 0).sum()
