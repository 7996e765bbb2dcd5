"""Time of each layer and pass in a training step, compared with PyTorch and with the machine's ceilings.

python -m benchmarks.kernels [--quick] [--json FILE] [--model alexnet] [--batch 128] [--runs 5]
                             [--layers conv1 fc6 ...] [--isolated | --modes]

Our rows come from the compiled training step on random images in memory. Each node is timed within the step, so the
parts add up to the step, and `share` is the fraction of it. PyTorch's passes run one by one on random values, each in
the faster of its two layouts. After each PyTorch layer, our step and the ceiling loops run once, so that all are
measured under the same conditions. If one of our nodes corresponds to two PyTorch passes, it is compared with their
sum. The networks differ in order: ours pools before bias and ReLU, which gives the same result, so its bias and ReLU
process a quarter of the values. The PyTorch totals include all its passes. Networks other than AlexNet are compared
with the ceilings only.

The ceiling is the time of a pass at the machine's peak rate. It is bound either by multiply-adds (operations of the
direct sum divided by the rate of a loop on registers) or by memory (bytes of all arrays read and written, each counted
once, divided by the rate of a large copy), whichever takes longer. `of ceiling` is the ceiling divided by our time. It
can exceed 100 %, because Winograd convolutions need fewer operations than the direct sum, and because small arrays stay
in the caches. The rate is in GFLOP/s of the direct sum, or in GB/s.

With --isolated, for tuning, only the convolution kernels run, each on random arrays in memory, in turn with PyTorch's
pass in the faster of its layouts. The caches are not flushed between runs.

With --modes, conv2d() runs in plain PyTensor functions (benchmarks/harness/modes.py).
"""

import statistics
from typing import NamedTuple

import numpy as np

from alexnet.data.dataset import centre_crop
from alexnet.models import model_class
from alexnet.native import allocator, compiler
from alexnet.ops.kernels import convolution
from alexnet.training.network import Network
from alexnet.training.updates import momentum_sgd
from benchmarks.harness import ceilings, modes, nodes, report

try:
    import torch

    from benchmarks.harness.torch_layers import LAYOUTS, layer_passes
except ImportError:
    torch = None

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
CLASSES = 1000
FUSED = {"filter gradient update": ("filter gradient", "update")}            # our node: PyTorch passes
MULTIPLY_ADDS = ("forward", "input gradient", "filter gradient", *FUSED)     # passes that are sums of products
BETWEEN = "between the nodes"
STEP = "the whole step"


class Ceilings(NamedTuple):
    """Median operations and bytes per second."""

    operations: float
    nbytes: float


# ---- ours


class Step:
    """A training step of a network whose nodes are timed."""

    def __init__(self, model, batch):
        rng = np.random.default_rng(0)
        self.network = Network(model_class(model)(rng), np.full((3, 256, 256), 110, "float32"), momentum_sgd)
        images = rng.integers(0, 256, (3, 256, 256, batch), dtype=np.uint8)
        labels = rng.integers(0, CLASSES, batch).astype("int32")
        self.inputs = images, *centre_crop(batch, self.network.model.image_size), labels, np.float32(1e-4)
        self.network.train(*self.inputs)
        self.network.train(*self.inputs)                 # all memory is allocated after this
        self.nodes, self.seconds = nodes.watch(self.network.train), []

    def run(self):
        self.seconds.append(report.seconds(lambda: self.network.train(*self.inputs)))

    def layers(self):
        """Return the names of the layers with weights, in order."""
        return list(self.network.model.weight_layers)

    def dense(self):
        """Return the names of the dense layers."""
        layers = self.network.model.weight_layers.items()
        return {name for name, parameters in layers if len(parameters[0].shape) == 2}

    def operations(self):
        """Return {name of a pass: operations of its direct sum for one image}."""
        model = self.network.model
        summary = model.describe((model.channels, model.image_size, model.image_size))
        return {f"{row.name} {which}": 2 * row.macs for row in summary if row.macs for which in MULTIPLY_ADDS}


# ---- PyTorch


def torch_seconds(layer, batch, runs):
    """Return {pass: list of seconds} in the layout that is faster in a first run, after a warm-up run."""
    both = [layer_passes(layer, batch, layout) for layout in LAYOUTS]
    for run in (run for passes in both for run in passes.values()):
        run()
    faster = {name: min((passes[name] for passes in both), key=report.seconds) for name in both[0]}
    return {name: [report.seconds(run) for _ in range(runs)] for name, run in faster.items()}


def peer_of(name, peers):
    """Return PyTorch's median seconds for one of our passes, summed over fused passes; None if there are none."""
    layer, _, which = name.partition(" ")
    parts = [peers.get(f"{layer} {part}") for part in FUSED.get(which, (which,))]
    return sum(map(statistics.median, parts)) if None not in parts else None


# ---- comparison


def measure(model, batch, runs, layers):
    """Run our step and both ceiling loops after each PyTorch layer, or `runs` times if there is none to compare with.

    Returns:
        (Step, {pass: PyTorch's seconds}, (multiply-add rates, copy rates)).
    """
    step, peers, rates = Step(model, batch), {}, ([], [])
    for layer in layers if model == "alexnet" else range(runs):
        if torch is not None and model == "alexnet":
            peers |= torch_seconds(layer, batch, runs)
        step.run()
        for found, loop in zip(rates, (ceilings.multiply_add_rates, ceilings.copy_rates), strict=True):
            found += loop(runs=1)
    return step, peers, rates


def step_rows(model, batch, runs, layers):
    """Yield the ceilings, a row for each pass, then the sums."""
    step, peers, rates = measure(model, batch, runs, layers)
    limits = Ceilings(*map(statistics.median, rates))
    yield report.row("ceiling: multiply-adds on registers", [rate / 1e9 for rate in rates[0]], "GFLOP/s")
    yield report.row("ceiling: copying, read and written", [rate / 1e9 for rate in rates[1]], "GB/s")
    operations, whole = step.operations(), statistics.median(step.seconds)
    groups = nodes.by_name(step.nodes)
    between = [whole - sum(call) for whole, call in
               zip(step.seconds, zip(*(times for times, _ in groups.values()), strict=True), strict=True)]
    found = [
        pass_row(name, times, whole, peer_of(name, peers),
                 batch * operations.get(name, 0), 0 if name == nodes.REST else nbytes, limits)
        for name, (times, nbytes) in sorted(groups.items(), key=lambda group: place(group[0], step.layers()))
    ]
    found.append(pass_row(BETWEEN, between, whole, None, 0, 0, limits))
    yield from found
    all_of_torch = sum(map(statistics.median, peers.values())) if set(layers) == set(LAYERS) else 0
    yield from sums(found, step.seconds, 1e3 * all_of_torch, step.dense())


def place(name, layers):
    """Return the sort key of a pass, which groups the table by layer."""
    layer = name.partition(" ")[0]
    return layers.index(layer) if layer in layers else len(layers)


def pass_row(name, times, whole, peer, operations, nbytes, limits):
    """Return the row of one pass; peer is in seconds or None, operations and nbytes may be 0."""
    seconds = statistics.median(times)
    made = report.row(name, [1e3 * value for value in times], "ms", share=seconds / whole)
    if peer:
        made = report.compared(made, 1e3 * peer, faster=True)
    ceiling = max(operations / limits.operations, nbytes / limits.nbytes)
    if ceiling:
        counted = operations / limits.operations == ceiling
        rate = f"{operations / seconds / 1e9:.0f} GFLOP/s" if counted else f"{nbytes / seconds / 1e9:.1f} GB/s"
        made |= {"ceiling_ms": 1e3 * ceiling, "bound_by": "multiply-adds" if counted else "memory",
                 "of_ceiling": ceiling / seconds, "rate": rate}
    return made


def sums(found, steps, torch_ms, dense):
    """Yield the rows of convolutions, dense layers, the remaining passes and the step.

    Args:
        torch_ms: sum of all PyTorch passes in milliseconds; 0 if not all of them were measured.
        dense: names of the dense layers.
    """
    parts = {"all convolutions": [], "all dense layers": [], "all else": []}
    for row in found:
        layer, _, which = row["name"].partition(" ")
        kind = "all dense layers" if layer in dense else "all convolutions"
        parts[kind if which in MULTIPLY_ADDS else "all else"].append(row)
    *products, rest = (sum_row(name, rows) for name, rows in parts.items())
    whole = report.row(STEP, [1e3 * value for value in steps], "ms", share=1.0)
    if torch_ms:
        for row, peer in ((rest, torch_ms - sum(row["peer"] for row in products)), (whole, torch_ms)):
            row |= {"peer": peer, "ratio": peer / row["value"]}
    yield from (*products, rest, whole)


def sum_row(name, parts):
    """Return the row with the sums of the rows' medians. A column missing in any row is omitted."""
    made = {"name": name, "value": sum(row["value"] for row in parts), "unit": "ms"}
    made |= {key: sum(row[key] for row in parts)
             for key in ("share", "peer", "ceiling_ms") if all(key in row for row in parts)}
    if "peer" in made:
        made["ratio"] = made["peer"] / made["value"]
    if "ceiling_ms" in made:
        made["of_ceiling"] = made["ceiling_ms"] / made["value"]
    return made


# ---- the convolution kernels in isolation

SHAPES = {                                       # input channels, side, filters, filter side, stride, pad, groups
    "conv1": (3, 227, 96, 11, 4, 0, 1),
    "conv2": (96, 27, 256, 5, 1, 2, 2),
    "conv3": (256, 13, 384, 3, 1, 1, 1),
    "conv4": (384, 13, 384, 3, 1, 1, 2),
    "conv5": (384, 13, 256, 3, 1, 1, 2),
    "fc6": (9216, 1, 4096, 1, 1, 0, 1),
    "fc7": (4096, 1, 4096, 1, 1, 0, 1),
    "fc8": (4096, 1, 1000, 1, 1, 0, 1),
}


def our_passes(layer, batch):
    """Return (operations of a pass, {name of a pass: function that runs it})."""
    channels, side, filters, size, stride, pad, groups = SHAPES[layer]
    geometry = stride, pad, groups
    out_side = (side + 2 * pad - size) // stride + 1
    x_shape, y_shape = (channels, side, side, batch), (filters, out_side, out_side, batch)
    w_shape = channels // groups, size, size, filters
    x, w, g, dx, dw, y = (allocator.empty(shape, np.float32) for shape in (x_shape, w_shape, y_shape) * 2)
    rng = np.random.default_rng(0)
    for array in (x, w, g):
        rng.standard_normal(dtype=np.float32, out=array)
    passes = {
        f"{layer} forward": lambda: convolution.forward(x, w, *geometry, y),
        f"{layer} input gradient": lambda: convolution.input_gradient(w, g, *geometry, dx),
        f"{layer} filter gradient": lambda: convolution.filter_gradient(x, g, *geometry, dw),
    }
    if layer == "conv1":
        del passes["conv1 input gradient"]       # training does not need the gradient of the images
    return 2 * channels // groups * size**2 * filters * out_side**2 * batch, passes


def isolated_rows(batch, runs, layers):
    """Yield the peak rate, then a row for each pass of each layer, in GFLOP/s."""
    peak = report.row("ceiling: multiply-adds on registers", [rate / 1e9 for rate in ceilings.multiply_add_rates(runs)],
                      "GFLOP/s")
    yield peak
    for layer in layers:
        operations, ours = our_passes(layer, batch)
        theirs = [layer_passes(layer, batch, layout) for layout in LAYOUTS] if torch else []
        for name, run in ours.items():
            calls = [run, *(passes[name] for passes in theirs)]
            for call in calls:
                call()
            times = zip(*([report.seconds(call) for call in calls] for _ in range(runs)), strict=True)
            rates, *peers = ([operations / seconds / 1e9 for seconds in each] for each in times)
            row = report.row(f"{name}, batch {batch}", rates, "GFLOP/s")
            row["of_ceiling"] = row["value"] / peak["value"]
            yield report.compared(row, max(map(statistics.median, peers)), "PyTorch") if peers else row


# ---- main program


def rows(options):
    if torch:
        torch.set_num_threads(compiler.threads())
    if options.modes:
        yield from modes.rows(options.batch, options.runs)
        return
    if options.isolated:
        yield from isolated_rows(options.batch, options.runs, options.layers)
    else:
        yield from step_rows(options.model, options.batch, options.runs, options.layers)


def add_options(parser):
    parser.add_argument("--model", default="alexnet", metavar="NAME", help="a name of alexnet.models (%(default)s)")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--runs", type=int, default=5, help="of each PyTorch pass (%(default)s)")
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=LAYERS, help="layers to run in PyTorch")
    parser.add_argument("--isolated", action="store_true", help="time the convolution kernels outside a step")
    parser.add_argument("--modes", action="store_true", help="time conv2d() in the modes of PyTensor")


if __name__ == "__main__":
    quick = {"batch": 8, "runs": 2}
    raise SystemExit(report.main(rows, __doc__, "batch 8, 2 runs", quick, add_options))
