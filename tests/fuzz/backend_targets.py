"""As op_targets, for PyTensor's own Ops with kernels in backends/cpu, fused updates, and the C code outside the Ops."""

from typing import NamedTuple

import numpy as np
import pytensor
import pytensor.tensor as pt
from PIL import Image

from alexnet.backends.cpu.kernels import fused_update
from alexnet.data.resize import resize
from alexnet.nn import Parameter
from alexnet.ops import ConvolutionFilterGradient
from alexnet.training.updates import adadelta, adagrad, momentum_sgd, nesterov, sgd
from multigpu.exchange import fp16
from multigpu.rules.parameter_server import updates
from tests.fuzz.cases import BATCHES, LAYOUTS, laid_out, pick, values
from tests.fuzz.op_targets import Target, largest


class Formula(NamedTuple):
    """An elementwise formula of x, y (of the same shape), row (one per row), column (one per column) and s (scalar).

    graph     from symbolic variables to the result
    numpy     from arrays to the result
    roundings largest number of operations on the way of an input to the result
    """

    graph: object
    numpy: object
    roundings: int


def same(function, roundings):
    """Return the Formula of a function that is defined for symbolic variables and for arrays."""
    return Formula(function, function, roundings)


# Polynomials: the bound is the number of roundings times the formula of the absolute values with + instead of -.
POLYNOMIALS = {
    "sum": same(lambda x, y, row, column, s: x + y + row, 2),
    "product": same(lambda x, y, row, column, s: (x + column) * row + s * x, 3),
    "momentum": same(lambda x, y, row, column, s: x + (y * s + (row + x * column) * s), 5),
    "weighted": same(lambda x, y, row, column, s: x * y + row * column + s, 3),
}
# Selections and functions of one number: exact, or with the relative error of test_function_matches_numpy, 1e-6.
EXACT = {
    "relu": Formula(lambda x, *_: pt.maximum(x, 0), lambda x, *_: np.maximum(x, 0), 0),
    "switch": Formula(lambda x, y, *_: pt.switch(pt.gt(x, y), x, -y), lambda x, y, *_: np.where(x > y, x, -y), 0),
    "clip": Formula(lambda x, y, *_: pt.clip(x, -0.5, 0.5), lambda x, y, *_: np.clip(x, -0.5, 0.5), 0),
    "compare": Formula(
        lambda x, y, row, *_: pt.le(x, row) | pt.eq(x, y), lambda x, y, row, *_: (x <= row) | (x == y), 0
    ),
}
FUNCTIONS = {
    "exp": (pt.exp, np.exp), "tanh": (pt.tanh, np.tanh), "sigmoid": (pt.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
    "softplus": (pt.softplus, lambda x: np.logaddexp(0, x)), "expm1": (pt.expm1, np.expm1),
    "log1p": (lambda x: pt.log1p(abs(x)), lambda x: np.log1p(np.abs(x))),
    "sqrt": (lambda x: pt.sqrt(abs(x)), lambda x: np.sqrt(np.abs(x))),
    "square": (pt.sqr, np.square),
}


class ElementwiseTarget(Target):
    """Formulas on matrices with rows, columns and scalars."""

    name = "elementwise"
    backends = "numpy", "cpu", "jax"
    dtypes = ("float32",)
    kinds = "normal", "whole", "zeros", "mixed"

    def settings(self, choose):
        return (pick(choose, [*POLYNOMIALS, *EXACT, *FUNCTIONS]),)

    def graph(self, settings, dtype, shapes):
        x, y = (pt.matrix(name, dtype=dtype) for name in "xy")
        row, column = pt.tensor("row", dtype=dtype, shape=(None, 1)), pt.tensor("column", dtype=dtype, shape=(1, None))
        inputs = [x, y, row, column, pt.scalar("s", dtype=dtype)]
        (name,) = settings
        if name in FUNCTIONS:
            return inputs, [FUNCTIONS[name][0](x)]
        return inputs, [(POLYNOMIALS | EXACT)[name].graph(*inputs)]

    def shapes(self, choose, settings):
        rows, columns = choose(0, 40), pick(choose, (0, 1, 2, 7, 8, 9, 63, 64, 65, 129))
        return [(rows, columns), (rows, columns), (rows, 1), (1, columns), ()]

    def expected(self, settings, arrays, results, rounding):
        (name,) = settings
        if name in EXACT:
            with np.errstate(under="ignore"):
                truth = EXACT[name].numpy(*arrays)
            if rounding.backend == "jax":        # XLA compares subnormal numbers as zero
                tiny = np.finfo(arrays[0].dtype).tiny
                arrays = [np.where(np.abs(array) < tiny, np.zeros((), array.dtype), array) for array in arrays]
                truth = EXACT[name].numpy(*arrays)
            return [(truth, 2 * rounding.smallest if rounding.backend == "jax" else 0.0)]
        exact = [array.astype(np.float64) for array in arrays]
        if name in FUNCTIONS:
            with np.errstate(over="ignore"):
                truth = FUNCTIONS[name][1](exact[0])
            near_zero = 2 * (rounding.smallest if rounding.backend != "jax" else np.sqrt(rounding.smallest))
            return [(truth, 1e-6 * np.abs(truth) + near_zero)]
        formula = POLYNOMIALS[name]
        magnitude = formula.numpy(*map(np.abs, exact))
        return [(formula.numpy(*exact), rounding.of_sum(formula.roundings, magnitude, largest(*arrays) ** 2))]


class SumTarget(Target):
    """Sums over the last axes. Bound: the kernel and NumPy add in float64 and round once; XLA adds floats."""

    name = "sum"
    backends = "numpy", "cpu", "jax"
    dtypes = ("float32",)

    def settings(self, choose):
        return (choose(0, 3),)

    def graph(self, settings, dtype, shapes):
        x = pt.tensor4("x", dtype=dtype)
        return [x], [x.sum(axis=tuple(range(*settings, 4)), keepdims=False)]

    def shapes(self, choose, settings):
        return [(choose(0, 5), choose(1, 9), choose(1, 70), choose(0, 70))]

    def expected(self, settings, arrays, results, rounding):
        axes = tuple(range(*settings, 4))
        x = arrays[0].astype(np.float64)
        terms = max(x.size // max(results[0].size, 1), 1) if rounding.backend == "jax" else 1
        magnitude = np.abs(x).sum(axes)
        double = 2.0**-53 * x.size * magnitude
        truth = x.sum(axes)
        size = magnitude if rounding.backend == "jax" else np.abs(truth)
        return [(truth, rounding.of_sum(terms, size) + double)]


class DotTarget(Target):
    """Matrix products, with transposed views. Bound: float sums of products."""

    name = "dot"
    backends = "numpy", "cpu", "jax"

    def settings(self, choose):
        return (pick(choose, ("matrices", "vector", "transposed")),)

    def graph(self, settings, dtype, shapes):
        x, y = pt.matrix("x", dtype=dtype), pt.matrix("y", dtype=dtype)
        if settings == ("vector",):
            return [x, y], [pt.dot(x[0], y), pt.dot(y.T, x[0])]
        return [x, y], [pt.dot(y.T, x.T).T if settings == ("transposed",) else pt.dot(x, y)]

    def shapes(self, choose, settings):
        terms = choose(0, 90)
        return [(choose(1, 40), terms), (terms, choose(0, 40))]

    def expected(self, settings, arrays, results, rounding):
        x, y = (array.astype(np.float64) for array in arrays)
        x = x[0] if settings == ("vector",) else x
        pair = x @ y, rounding.of_sum(len(y) + 1, np.abs(x) @ np.abs(y), largest(x, y))
        return [pair] * len(results)


class JoinTarget(Target):
    """Concatenation is exact."""

    name = "join"
    backends = "numpy", "cpu", "jax"

    def settings(self, choose):
        return (choose(0, 3),)

    def graph(self, settings, dtype, shapes):
        inputs = [pt.tensor4(name, dtype=dtype) for name in "xyz"]
        return inputs, [pt.concatenate(inputs, axis=settings[0])]

    def shapes(self, choose, settings):
        shape = [choose(1, 6), choose(1, 6), choose(1, 20), choose(1, 20)]
        lengths = choose(0, 6), choose(1, 6), choose(1, 6)
        return [(*shape[: settings[0]], n, *shape[settings[0] + 1 :]) for n in lengths]

    def expected(self, settings, arrays, results, rounding):
        return [(np.concatenate(arrays, axis=settings[0]), rounding.smallest if rounding.backend == "jax" else 0.0)]


RULES = {"sgd": sgd, "momentum": momentum_sgd, "nesterov": nesterov, "adagrad": adagrad, "adadelta": adadelta}


class UpdateTarget(Target):
    """The update of a dense layer, fused with its gradient: bit-identical to the update that is not fused."""

    name = "update"
    backends = ("cpu",)
    dtypes = ("float32",)

    def settings(self, choose):
        return pick(choose, list(RULES)), choose(64, 90), pick(choose, (64, 65, 77, 130))

    def graph(self, settings, dtype, shapes):
        raise NotImplementedError("compiled() makes two functions")

    def compiled(self, settings, dtype, mode, shapes):
        """Return a function of x, g, weights, a state and the rate that returns what both updates have made of them."""
        rule, *shape = settings
        fuse = fused_update.fuse
        steps = []
        for replacement in (fuse, lambda fgraph: None):
            fused_update.fuse = replacement
            try:
                steps.append(self.step(RULES[rule], shape, mode))
            finally:
                fused_update.fuse = fuse

        def run(x, g, weights, state, rate):
            results = []
            for step, variables in steps:
                variables[0].set_value(weights)
                for variable in variables[1:]:
                    variable.set_value(state)
                step(x, g, rate)
                results += [variable.get_value() for variable in variables]
            return results

        return run

    def step(self, rule, shape, mode):
        """Return a compiled update, and the variables that it changes."""
        x, g = pt.tensor("x", shape=(shape[0], None)), pt.tensor("g", shape=(shape[1], None))
        parameter, rate = Parameter(np.zeros(shape, "float32"), "W"), pt.scalar("rate")
        images = (array.dimshuffle(0, "x", "x", 1) for array in (x, g))
        gradient = ConvolutionFilterGradient()(*images, 1, 1)[:, 0, 0, :]
        pairs, state = rule([parameter], [gradient], rate)
        return pytensor.function([x, g, rate], [], updates=pairs, mode=mode), [parameter.variable, *state]

    def shapes(self, choose, settings):
        _, inputs, outputs = settings
        batch = pick(choose, (*BATCHES, 300))
        return [(inputs, batch), (outputs, batch), (inputs, outputs), (inputs, outputs), ()]

    def arrays(self, choose, settings, shapes, dtype):
        *others, state, rate = super().arrays(choose, settings, shapes, dtype)
        return [*others, np.abs(state), np.abs(rate)]            # sums of squares are not negative

    def expected(self, settings, arrays, results, rounding):
        separate = results[len(results) // 2 :]
        return [(array, 0.0) for array in [*separate, *separate]]


class DirectTarget(Target):
    """A function of NumPy arrays, without a graph, that is computed in C. Its callers pass arrays of equal lengths."""

    refuses_shapes = False
    backends = ("cpu",)
    dtypes = ("float32",)

    def graph(self, settings, dtype, shapes):
        raise NotImplementedError("there is no graph")


class ResizeTarget(DirectTarget):
    """Resizing of images, to the bit as Pillow's."""

    name = "resize"

    def settings(self, choose):
        return (bool(choose(0, 1)),)

    def compiled(self, settings, dtype, mode, shapes):
        return lambda image, size, box: [resize(image, int(size), tuple(box) if settings[0] else None)]

    def shapes(self, choose, settings):
        return [(pick(choose, (choose(1, 60), choose(1, 700))), pick(choose, (choose(1, 60), choose(1, 700))), 3)]

    def arrays(self, choose, settings, shapes, dtype):
        rng = np.random.default_rng(choose(0, 2**32 - 1))
        height, width, _ = shapes[0]
        image = rng.integers(0, 256, shapes[0]).astype("uint8")
        left, right = np.sort(rng.integers(0, 4 * width + 1, 2)) / 4
        top, bottom = np.sort(rng.integers(0, 4 * height + 1, 2)) / 4
        box = np.array((left, top, max(right, left + 0.25), max(bottom, top + 0.25)))
        box[2:] = np.minimum(box[2:], (width, height))
        box[:2] = np.minimum(box[:2], box[2:] - 0.25)
        return [laid_out(image, pick(choose, LAYOUTS)), np.array(256), box]

    def expected(self, settings, arrays, results, rounding):
        image, size, box = arrays
        arguments = {"box": tuple(box)} if settings[0] else {}
        pillow = Image.fromarray(np.ascontiguousarray(image))
        return [(np.asarray(pillow.resize((int(size),) * 2, Image.Resampling.BILINEAR, **arguments)), 0.0)]


class Float16Target(DirectTarget):
    """Conversions between float32 and float16, to the bit as NumPy's."""

    name = "float16"

    def settings(self, choose):
        return ()

    def compiled(self, settings, dtype, mode, shapes):
        def run(x, error):
            convert = fp16.CompiledConversions()
            half, kept, wide, total = np.empty(x.shape, "f2"), error.copy(), np.empty_like(x), x.copy()
            infinite = convert.to_fp16_with_feedback(half, x, kept)
            convert.from_fp16(wide, half)
            convert.add_fp16(total, half)
            plain = np.empty(x.shape, "f2")
            also = convert.to_fp16(plain, x)
            return [half, kept, wide, total, plain, np.array([infinite, also])]

        return run

    def shapes(self, choose, settings):
        return [(choose(0, 70),)] * 2

    def arrays(self, choose, settings, shapes, dtype):
        rng = np.random.default_rng(choose(0, 2**32 - 1))
        x, error = (values(rng, shape, pick(choose, self.kinds), dtype) for shape in shapes)
        scale = 10.0 ** choose(-8, 5)
        return [(x * scale).astype(dtype), error]

    def expected(self, settings, arrays, results, rounding):
        x, error = arrays
        with np.errstate(over="ignore", invalid="ignore"):
            sums = x + error
            half, plain = sums.astype("f2"), x.astype("f2")
            wide = half.astype("f4")
            infinite = np.array([np.isinf(half).any(), np.isinf(plain).any()])
            return [(each, 0.0) for each in (half, sums - wide, wide, x + wide, plain, infinite)]


SERVER_UPDATES = {                               # constants, and the number of accumulators
    "plain": ((), 0), "adagrad": ((1e-10,), 1), "adadelta": ((0.95, 1e-6), 2), "nesterov": ((0.9,), 1),
    "delayed_nesterov": ((0.9, 4, 0.1), 2),
}


class ServerUpdateTarget(DirectTarget):
    """Updates of a parameter server: bit-identical to NumPy's."""

    name = "server_update"
    kinds = "normal", "whole", "zeros", "mixed", "spread"

    def settings(self, choose):
        name = pick(choose, list(SERVER_UPDATES))
        return name, bool(choose(0, 1)), bool(choose(0, 1))

    def compiled(self, settings, dtype, mode, shapes):
        return lambda *arrays: self.updated(settings, arrays)

    def updated(self, settings, arrays):
        """Return the arrays after an update."""
        name, last, back = settings
        constants, accumulators = SERVER_UPDATES[name]
        copies = [array.copy() for array in arrays[: 2 + accumulators]]
        arguments = {"last": last} if name == "delayed_nesterov" else {}
        getattr(updates, name)(*copies, 0.3, *constants, **arguments, back=back)
        return copies if back else copies[1:]

    def shapes(self, choose, settings):
        return [(choose(0, 90),)] * 4

    def arrays(self, choose, settings, shapes, dtype):
        rng = np.random.default_rng(choose(0, 2**32 - 1))
        push, center, *others = (values(rng, shape, pick(choose, self.kinds), dtype) for shape in shapes)
        return [push, center, *map(np.abs, others)]

    def expected(self, settings, arrays, results, rounding):
        compiled = updates.compiled
        updates.compiled = lambda name, *arrays: None
        try:
            return [(array, 0.0) for array in self.updated(settings, arrays)]
        finally:
            updates.compiled = compiled


TARGETS = (
    ElementwiseTarget, SumTarget, DotTarget, JoinTarget, UpdateTarget, ResizeTarget, Float16Target, ServerUpdateTarget,
)
