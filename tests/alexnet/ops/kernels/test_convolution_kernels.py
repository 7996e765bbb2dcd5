"""Direct and Winograd convolution kernels against plain float64 sums, on shapes that are no multiples of the tiles."""

import platform
import re
import subprocess
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest

from alexnet.native import compiler
from alexnet.ops.kernels import convolution

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not compiler.compiler_available(), reason="needs a C compiler")]


class Layer(NamedTuple):
    """Geometry of a convolution."""

    channels: int
    height: int
    width: int
    outputs: int
    rows: int
    columns: int
    stride: int
    pad: int
    groups: int
    batch: int

    @property
    def shapes(self):
        """Shapes of images, filters and outputs."""
        rows = (self.height + 2 * self.pad - self.rows) // self.stride + 1
        columns = (self.width + 2 * self.pad - self.columns) // self.stride + 1
        return (
            (self.channels, self.height, self.width, self.batch),
            (self.channels // self.groups, self.rows, self.columns, self.outputs),
            (self.outputs, rows, columns, self.batch),
        )


LAYERS = [
    Layer(1, 1, 1, 1, 1, 1, 1, 0, 1, 1),
    Layer(3, 1, 1, 7, 1, 1, 1, 0, 1, 3),                       # a small dense layer
    Layer(515, 1, 1, 203, 1, 1, 1, 0, 1, 17),                  # dense, several passes, remainders in every dimension
    Layer(70, 1, 1, 1001, 1, 1, 1, 0, 1, 33),
    Layer(600, 1, 1, 130, 1, 1, 1, 0, 1, 600),                 # dense, more positions than one task processes
    Layer(3, 23, 23, 10, 11, 11, 4, 0, 1, 17),                 # AlexNet's first layer, reduced
    Layer(6, 7, 5, 22, 5, 5, 1, 2, 2, 16),
    Layer(9, 6, 9, 15, 3, 2, 2, 3, 3, 33),
    Layer(5, 4, 7, 13, 4, 7, 1, 0, 1, 3),                      # filters as large as the images
    Layer(4, 3, 3, 5, 1, 1, 1, 3, 1, 5),                       # padding larger than the filter
    Layer(4, 8, 7, 6, 1, 3, 3, 1, 2, 18),                      # a stride larger than the filter
    Layer(20, 14, 13, 30, 1, 1, 2, 0, 1, 17),                  # ResNet's strided layers, reduced
    Layer(8, 15, 14, 12, 3, 3, 2, 1, 2, 34),
    Layer(40, 13, 13, 20, 3, 3, 2, 1, 1, 2),                   # of few images
    Layer(5, 2, 9, 6, 2, 2, 4, 1, 1, 3),                       # phases without pixels, and without taps
    Layer(130, 4, 4, 20, 3, 3, 1, 1, 1, 9),                    # several passes
    Layer(260, 5, 5, 50, 3, 3, 1, 1, 2, 20),
    Layer(2, 9, 300, 3, 3, 3, 1, 1, 1, 3),                     # many positions
    Layer(2, 3, 3, 400, 2, 2, 1, 1, 1, 2),                     # more channels than one task processes
    Layer(5, 70, 30, 20, 3, 2, 1, 1, 1, 9),                    # a small filter gradient of many terms, in splits
    Layer(6, 140, 9, 10, 3, 3, 2, 1, 2, 17),
    Layer(4, 60, 60, 20, 1, 1, 1, 0, 1, 5),
    Layer(600, 1, 1, 700, 1, 1, 1, 0, 1, 1),                   # dense, of few images
    Layer(515, 1, 1, 203, 1, 1, 1, 0, 1, 6),
    Layer(20, 13, 13, 40, 3, 3, 1, 1, 2, 2),                   # few images: vectors of pixels
    Layer(3, 47, 51, 10, 11, 11, 4, 0, 1, 1),
    Layer(30, 13, 13, 64, 3, 3, 1, 1, 1, 1),                   # few images: vectors of output channels, two passes
    Layer(44, 13, 13, 120, 3, 3, 1, 1, 2, 2),                  # with a remainder of channels
    Layer(3, 47, 51, 62, 11, 11, 4, 0, 1, 1),
    *(Layer(3, 3, width, 32, 3, 3, 1, 1, 1, 1) for width in range(1, 15)),
]
WINOGRAD_LAYERS = [
    Layer(1, 3, 3, 1, 3, 3, 1, 0, 1, 1),                       # one output
    Layer(1, 5, 5, 4, 5, 5, 1, 0, 1, 9),
    Layer(4, 13, 13, 10, 3, 3, 1, 1, 2, 17),                   # AlexNet's third layer, reduced
    Layer(20, 9, 11, 26, 3, 3, 1, 0, 1, 33),
    Layer(6, 12, 7, 22, 5, 5, 1, 2, 2, 16),                    # AlexNet's second layer, reduced
    Layer(3, 8, 9, 50, 5, 5, 1, 4, 1, 3),
    Layer(3, 39, 39, 10, 11, 11, 4, 0, 1, 18),                 # AlexNet's first, reduced: 3x3 on the stride's phases
    Layer(2, 15, 17, 5, 5, 5, 2, 1, 1, 5),                     # phases of 3x3, 3x2, 2x3 and 2x2 taps
    Layer(2, 40, 8, 18, 9, 9, 2, 3, 1, 4),                     # phases of 5x5 and fewer
    Layer(300, 5, 6, 20, 3, 3, 1, 1, 1, 40),
    Layer(2, 90, 60, 3, 3, 3, 1, 2, 1, 35),                    # many positions
    Layer(5, 13, 13, 10, 3, 3, 1, 1, 1, 1),                    # several tiles in a block
    Layer(4, 27, 27, 6, 5, 5, 1, 2, 2, 2),
    Layer(3, 14, 11, 35, 3, 3, 1, 1, 1, 7),
    Layer(2, 57, 30, 5, 5, 5, 2, 1, 1, 3),
]


def patches(layer, x):
    """Yield (i, j, padded x, index) for each filter tap; padded[index] is its input, (c, out row, out column, b)."""
    padded = np.pad(x, ((0, 0), (layer.pad,) * 2, (layer.pad,) * 2, (0, 0)))
    rows, columns = layer.shapes[2][1:3]
    for i, j in product(range(layer.rows), range(layer.columns)):
        row_slice = slice(i, i + layer.stride * (rows - 1) + 1, layer.stride)
        column_slice = slice(j, j + layer.stride * (columns - 1) + 1, layer.stride)
        yield i, j, padded, (slice(None), row_slice, column_slice)


def group_slices(layer):
    """Yield each group's slices of the input channels and of the output channels."""
    c, o = layer.channels // layer.groups, layer.outputs // layer.groups
    for n in range(layer.groups):
        yield slice(n * c, (n + 1) * c), slice(n * o, (n + 1) * o)


def forward_truth(layer, x, w):
    out = np.zeros(layer.shapes[2])
    for inputs, outputs in group_slices(layer):
        for i, j, padded, window in patches(layer, x):
            out[outputs] += np.einsum("cyxb,co->oyxb", padded[window][inputs], w[:, i, j, outputs])
    return out


def input_gradient_truth(layer, w, g):
    for_padding = np.zeros(layer.shapes[0])
    taps = list(patches(layer, for_padding))
    total = np.zeros_like(taps[0][2])
    for inputs, outputs in group_slices(layer):
        for i, j, _, window in taps:
            total[window][inputs] += np.einsum("oyxb,co->cyxb", g[outputs], w[:, i, j, outputs])
    return total[:, layer.pad : layer.pad + layer.height, layer.pad : layer.pad + layer.width]


def filter_gradient_truth(layer, x, g):
    dw = np.zeros(layer.shapes[1])
    for inputs, outputs in group_slices(layer):
        for i, j, padded, window in patches(layer, x):
            dw[:, i, j, outputs] = np.einsum("cyxb,oyxb->co", padded[window][inputs], g[outputs])
    return dw


def random_arrays(layer, seed=0):
    """Return x, w and g: normally distributed float32 numbers."""
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(shape, dtype=np.float32) for shape in layer.shapes]


def run(name, layer, x, w, g, winograd=False):
    """Return the result of a kernel. The output starts as NaN, so that elements that are not written show."""
    inputs, shape = {
        "forward": ((x, w), layer.shapes[2]),
        "input_gradient": ((w, g), layer.shapes[0]),
        "filter_gradient": ((x, g), layer.shapes[1]),
    }[name]
    out = np.full(shape, np.nan, x.dtype)
    getattr(convolution, name)(*inputs, layer.stride, layer.pad, layer.groups, out, winograd)
    return out


def truth(name, layer, x, w, g):
    """Return the same result computed in float64 by plain sums."""
    x, w, g = (array.astype(np.float64) for array in (x, w, g))
    if name == "forward":
        return forward_truth(layer, x, w)
    if name == "input_gradient":
        return input_gradient_truth(layer, w, g)
    return filter_gradient_truth(layer, x, g)


KERNELS = ["forward", "input_gradient", "filter_gradient"]


def relative_error(result, expected):
    return np.linalg.norm(result - expected) / max(np.linalg.norm(expected), 1e-30)


NEEDS = {"auto": [], "avx512": ["avx512f", "avx512vl", "avx512dq"], "avx2": ["avx2", "fma"], "portable": []}


@pytest.fixture(params=NEEDS)
def isa(request):
    """Run the test with each instruction set that this processor supports."""
    if not processor_has(*NEEDS[request.param]):
        pytest.skip(f"this processor does not have {', '.join(NEEDS[request.param])}")
    compiler.use_isa(request.param)
    yield request.param
    compiler.use_isa("auto")


def processor_has(*flags):
    """Return whether /proc/cpuinfo lists all flags."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            words = set(next((line for line in lines if line.startswith("flags")), "").split())
    except FileNotFoundError:
        words = set()
    return words.issuperset(flags)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: "-".join(map(str, layer)))
def test_kernel_equals_plain_sum(isa, kernel, layer):
    arrays = random_arrays(layer)
    assert relative_error(run(kernel, layer, *arrays), truth(kernel, layer, *arrays)) < 1e-6


# Input gradients are tested only for stride 1.
WINOGRAD_PASSES = [
    pytest.param(kernel, layer, id="-".join(map(str, (kernel, *layer))))
    for kernel, layer in product(KERNELS, WINOGRAD_LAYERS)
    if kernel != "input_gradient" or layer.stride == 1
]


@pytest.mark.parametrize(("kernel", "layer"), WINOGRAD_PASSES)
def test_winograd_equals_plain_sum(isa, kernel, layer):
    arrays = random_arrays(layer)
    bound = 6e-6 if layer.rows / layer.stride > 3 else 2.5e-6          # eight points round more than six
    assert relative_error(run(kernel, layer, *arrays, winograd=True), truth(kernel, layer, *arrays)) < bound


@pytest.mark.parametrize("kernel", KERNELS)
def test_winograd_equals_plain_sum_for_pads_groups_batches(kernel):
    for size, pad, groups, batch in product((3, 5), (0, 1, 2), (1, 3), (1, 15, 16, 17, 33)):
        layer = Layer(2 * groups, 6, 9, 5 * groups, size, size, 1, pad, groups, batch)
        arrays = random_arrays(layer)
        assert relative_error(run(kernel, layer, *arrays, winograd=True), truth(kernel, layer, *arrays)) < 6e-6, layer


def sizes(channels, image, outputs, size, stride, pad, groups, batch=32):
    return convolution.Sizes(channels, image, image, batch, outputs, size, size, stride, pad, groups)


@pytest.mark.parametrize(
    ("layer", "pays"),
    [
        (sizes(3, 227, 96, 11, 4, 0, 1), (True, False, True)),
        (sizes(96, 27, 256, 5, 1, 2, 2), (True, True, True)),
        (sizes(256, 13, 384, 3, 1, 1, 1), (True, True, True)),
        (sizes(9216, 1, 4096, 1, 1, 0, 1), (False, False, False)),
        (sizes(64, 56, 64, 7, 1, 3, 1), (False, False, False)),                   # unsupported filter size
        (sizes(64, 3, 64, 3, 1, 0, 1), (False, False, False)),                    # one output in a tile of 16 outputs
        (sizes(3, 56, 64, 3, 1, 1, 1), (False, False, False)),                    # too few channels
        (sizes(64, 56, 64, 3, 1, 3, 1), (True, False, True)),                     # padding larger than the filter
        (sizes(64, 56, 64, 3, 1, 1, 1, batch=1), (True, True, False)),            # 196 tiles of one image
        (sizes(256, 13, 384, 3, 1, 1, 1, batch=4), (True, True, False)),
        (sizes(256, 13, 384, 3, 1, 1, 1, batch=1), (False, False, False)),        # 16 tiles
        (sizes(512, 7, 512, 3, 1, 1, 1, batch=2), (False, False, False)),         # filters take longer
    ],
)
def test_winograd_is_chosen_where_it_pays(layer, pays, monkeypatch):
    """With blocks of AVX-512."""
    monkeypatch.setattr(convolution, "block_size", lambda: 32)
    assert tuple(convolution.winograd_pays(kernel, layer) for kernel in KERNELS) == pays


def test_choice_of_winograd_agrees_in_numba():
    """The function that Numba compiles is the same."""
    numba = pytest.importorskip("numba")
    arguments = 13, 13, 256, 384, 3, 1, 4, 32, 2
    assert numba.njit(convolution.gain_of)(*arguments) == pytest.approx(convolution.gain_of(*arguments))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("layer", LAYERS[1::2], ids=lambda layer: "-".join(map(str, layer)))
def test_float64_kernel_equals_plain_sum(kernel, layer):
    arrays = [array.astype(np.float64) for array in random_arrays(layer)]
    assert relative_error(run(kernel, layer, *arrays), truth(kernel, layer, *arrays)) < 1e-14


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_equals_plain_sum_for_strides_pads_groups_batches(kernel):
    for stride, pad, groups, batch in product((1, 2, 3, 4), (0, 1, 2, 3), (1, 2, 3), (1, 3, 16, 17, 33)):
        layer = Layer(2 * groups, 5, 6, 5 * groups, 3, 2, stride, pad, groups, batch)
        arrays = random_arrays(layer)
        assert relative_error(run(kernel, layer, *arrays), truth(kernel, layer, *arrays)) < 1e-6, layer


@pytest.fixture
def set_threads():
    """Return compiler.use_threads and reset it after the test."""
    yield compiler.use_threads
    compiler.use_threads(None)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: "-".join(map(str, layer)))
def test_number_of_threads_changes_no_bit(set_threads, kernel, layer):
    arrays = random_arrays(layer)
    results = []
    for threads in (1, 2, 3, 7):
        set_threads(threads)
        results.append(run(kernel, layer, *arrays).tobytes())
    assert len(set(results)) == 1


@pytest.mark.parametrize(("kernel", "layer"), WINOGRAD_PASSES)
def test_number_of_threads_changes_no_bit_of_winograd(set_threads, kernel, layer):
    arrays = random_arrays(layer)
    results = []
    for threads in (1, 2, 3, 7):
        set_threads(threads)
        results.append(run(kernel, layer, *arrays, winograd=True).tobytes())
    assert len(set(results)) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kernel", KERNELS)
def test_winograd_propagates_nan_and_infinity(kernel, bad):
    layer = Layer(5, 6, 5, 7, 3, 3, 1, 1, 1, 19)
    for name, position in [("x", (1, 2, 3, 18)), ("w", (4, 1, 0, 6)), ("g", (6, 2, 1, 18))]:
        arrays = dict(zip("xwg", random_arrays(layer), strict=True))
        arrays[name][position] = bad
        result, expected = run(kernel, layer, *arrays.values(), winograd=True), truth(kernel, layer, *arrays.values())
        assert not np.isfinite(result[~np.isfinite(expected)]).any(), name
        if kernel != "filter_gradient" and name != "w":
            assert np.isfinite(result[..., :18]).all(), "other images must not change"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_propagates_nan_and_infinity_exactly(isa, kernel, bad):
    layer = Layer(5, 5, 6, 7, 3, 3, 1, 0, 1, 19)
    for name, position in [("x", (1, 2, 3, 18)), ("w", (4, 1, 0, 6)), ("g", (6, 2, 1, 18))]:
        arrays = dict(zip("xwg", random_arrays(layer), strict=True))
        arrays[name][position] = bad
        result, expected = run(kernel, layer, *arrays.values()), truth(kernel, layer, *arrays.values())
        bad_result, bad_expected = ~np.isfinite(result), ~np.isfinite(expected)
        if (kernel, name) == ("input_gradient", "w"):          # its sums also include zeros around g
            assert bad_result[4].all() and not np.delete(bad_result, 4, axis=0).any()
            assert bad_result[bad_expected].all()
        else:
            np.testing.assert_array_equal(bad_result, bad_expected, err_msg=name)


@pytest.mark.parametrize("kernel", KERNELS)
def test_infinite_filter_or_gradient_makes_nan_of_padding(kernel):
    layer = Layer(2, 3, 3, 2, 3, 3, 1, 1, 1, 2)
    x, w, g = random_arrays(layer)
    w[0, 0, 0, 0] = g[0, 0, 0, 0] = np.inf
    assert np.isnan(run(kernel, layer, x, w, g)).any()


def test_wrong_shapes_and_types_are_rejected():
    layer = Layer(4, 5, 5, 6, 3, 3, 1, 1, 2, 3)
    x, w, g = random_arrays(layer)
    with pytest.raises(ValueError, match="float64"):
        convolution.forward(x.astype(np.float64), w, 1, 1, 2, g)
    with pytest.raises(ValueError, match="contiguous"):
        convolution.forward(x.swapaxes(1, 2), w, 1, 1, 2, g)
    with pytest.raises(ValueError, match="groups"):
        convolution.forward(x, w, 1, 1, 1, g)
    with pytest.raises(ValueError, match="make outputs"):
        convolution.filter_gradient(x, g, 2, 1, 2, w)
    with pytest.raises(ValueError, match="stride >= 1"):
        convolution.input_gradient(w, g, 0, 1, 2, x)


def inner_loops(assembly, function):
    """Return each sequence of instructions of a function between two labels or jumps."""
    body = re.search(rf"^{function}[\w.]*:.*?\.cfi_endproc", assembly, re.DOTALL | re.MULTILINE)
    return re.split(r"^\.L\w+:.*$|^\s+j\w+\s.*$", body.group(), flags=re.MULTILINE) if body else []


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64 assembly")
@pytest.mark.parametrize("setting", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize(
    ("source", "function"),
    [
        ("convolution", "large_tile"),
        ("convolution", "small_tile"),
        ("convolution", "tile_in_place"),
        ("filter_gradient", "add_tile"),
        ("winograd", "multiply_tile"),
        ("winograd_filter_gradient", "multiply_tile"),
    ],
)
def test_inner_loop_keeps_its_sums_in_registers(setting, source, function):
    path = convolution.FOLDER / f"{source}.c"
    no_merging = "-fno-ipa-icf"                  # of equal functions
    flags = ["-O3", "-std=gnu11", "-fPIC", no_merging, *compiler.ISA_FLAGS[setting]]
    command = [*compiler.compiler(), *flags, "-S", "-o", "-", str(path)]
    assembly = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    products = r"vfmadd\w+ps|mulps"
    loop = max(inner_loops(assembly, function), key=lambda lines: len(re.findall(products, lines)))
    assert len(re.findall(products, loop)) >= 8
    spilled = [line for line in loop.splitlines() if re.search(r"\(%r[sb]p", line) and re.search(r"%[xyz]mm", line)]
    assert not spilled
