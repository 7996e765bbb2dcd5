"""An Op defined outside the package brings its own C kernel and JAX lowering: the same results on every backend."""

from collections.abc import Callable

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op

from alexnet.backends import cpu_kernel, jax_lowering, mode_of
from alexnet.backends.cpu.linker import CpuKernel
from alexnet.native import compiler

C_SOURCE = """
void scaled_square(const float *x, float *y, long n, float scale)
{
    for (long i = 0; i < n; i++)
        y[i] = scale * x[i] * x[i];
}
"""


class ScaledSquare(Op):
    """Compute scale * x ** 2."""

    __props__ = ("scale",)

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def make_node(self, x) -> Apply:
        x = pt.as_tensor_variable(x)
        return Apply(self, [x], [x.type()])

    def perform(self, node, inputs, outputs) -> None:
        outputs[0][0] = np.float32(self.scale) * inputs[0] * inputs[0]

    def pullback(self, inputs, outputs, cotangents):
        return [2 * np.float32(self.scale) * inputs[0] * cotangents[0]]


class Quadruple(Op):
    """Compute 4 * x; its kernel is in a C file, and refuses float32 vectors."""

    __props__ = ()

    def make_node(self, x) -> Apply:
        x = pt.as_tensor_variable(x)
        return Apply(self, [x], [x.type()])

    def perform(self, node, inputs, outputs) -> None:
        outputs[0][0] = 4 * inputs[0]


@cpu_kernel(ScaledSquare)
def scaled_square(op: ScaledSquare, node: Apply) -> Callable:
    loop = compiler.function(C_SOURCE, "scaled_square", "aanf", name="scaled_square")

    def run(x: np.ndarray) -> tuple[np.ndarray]:
        y = np.empty(x.shape, np.float32)
        loop(np.ascontiguousarray(x), y, x.size, op.scale)
        return (y,)

    return run


@jax_lowering(ScaledSquare)
def scaled_square_on_jax(op: ScaledSquare, node: Apply) -> Callable:
    import jax.numpy as jnp

    return lambda x: jnp.float32(op.scale) * x * x


def test_value_and_gradient_on_every_backend(backend, rng):
    x, g = pt.matrix("x"), pt.matrix("g")
    y = ScaledSquare(3.0)(x)
    run = pytensor.function([x, g], [y, pytensor.grad((y * g).sum(), x)], mode=mode_of(backend))
    x, g = rng.normal(size=(2, 30, 40)).astype("float32")
    y, dx = run(x.T[::2].T, g[:, ::2])                             # the kernel also gets a strided array
    np.testing.assert_allclose(y, 3 * x[:, ::2].astype("float64") ** 2, rtol=1e-6)
    np.testing.assert_allclose(dx, 6 * x[:, ::2].astype("float64") * g[:, ::2], rtol=1e-6)
    uses_kernel = any(isinstance(node.op, CpuKernel) for node in run.maker.fgraph.apply_nodes)
    assert uses_kernel == (backend == "cpu")


@pytest.mark.skipif(not compiler.compiler_available(), reason="needs a C compiler")
def test_kernel_from_a_c_file_with_a_header(tmp_path):
    (tmp_path / "factor.h").write_text("#define FACTOR 4\n")
    path = tmp_path / "quadruple.c"
    path.write_text(
        '#include "factor.h"\nvoid quadruple(const float *x, float *y, long n) { while (n--) y[n] = FACTOR * x[n]; }'
    )

    @cpu_kernel(Quadruple)
    def quadruple(op: Quadruple, node: Apply) -> Callable | None:
        if node.inputs[0].type.ndim == 1:
            return None
        loop = compiler.function(path, "quadruple", "aan")

        def run(x: np.ndarray) -> tuple[np.ndarray]:
            y = np.empty_like(x)
            loop(x, y, x.size)
            return (y,)

        return run

    vector, matrix = pt.vector("vector"), pt.matrix("matrix")
    outputs = [Quadruple()(vector), Quadruple()(matrix)]
    run = pytensor.function([vector, matrix], outputs, mode=mode_of("cpu"))
    kernels = [node for node in run.maker.fgraph.apply_nodes if isinstance(node.op, CpuKernel)]
    assert [node.inputs[0].name for node in kernels] == ["matrix"]            # NumPy computes the vector
    for result in run(np.ones(2, "float32"), np.ones((2, 2), "float32")):
        np.testing.assert_array_equal(result, 4)


def test_lowering_registered_after_first_use_of_jax():
    pytest.importorskip("jax", reason="the jax backend needs jax, which is not installed")
    mode = mode_of("jax")
    x = pt.vector("x")
    pytensor.function([x], 2 * x, mode=mode)

    @jax_lowering(Quadruple, with_precision=True)
    def quadruple(op: Quadruple, node: Apply, precision: str) -> Callable:
        assert precision == "float32"
        return lambda x: 4 * x

    np.testing.assert_array_equal(pytensor.function([x], Quadruple()(x), mode=mode)(np.ones(3, "float32")), 4)


def test_source_text_needs_a_name():
    with pytest.raises(TypeError, match="C source text needs a name"):
        compiler.function(C_SOURCE, "scaled_square", "aanf")
