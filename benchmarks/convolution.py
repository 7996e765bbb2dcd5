"""Isolated timing of the convolution kernels, for tuning; benchmarks.kernels times them within a training step.

python -m benchmarks.convolution [--quick] [--json FILE] [--batch 128 16] [--runs 7] [--layers conv1 fc6 ...]

For each layer, the table shows the forward pass and both gradients in GFLOP/s of the direct sum, on random arrays in
memory. The peer is PyTorch in the faster of its two layouts, with alternating runs. The caches are not flushed between
runs.
"""

import statistics
from typing import NamedTuple

import numpy as np

from alexnet.backends.cpu import allocator
from alexnet.backends.cpu.kernels import convolution
from alexnet.native import compiler
from benchmarks import ceilings, report

try:
    import torch

    from benchmarks.torch_layers import LAYOUTS, layer_passes
except ImportError:
    torch = None


class Layer(NamedTuple):
    """A convolution of square images with square filters; a dense layer is a 1x1 convolution."""

    channels: int
    image: int
    outputs: int
    size: int = 1
    stride: int = 1
    pad: int = 0
    groups: int = 1

    @property
    def out(self):
        return (self.image + 2 * self.pad - self.size) // self.stride + 1

    @property
    def operations(self):
        """Operations of one pass over one image; a multiply-add counts as two."""
        return 2 * self.channels // self.groups * self.size**2 * self.outputs * self.out**2


LAYERS = {
    "conv1": Layer(3, 227, 96, 11, 4),
    "conv2": Layer(96, 27, 256, 5, 1, 2, 2),
    "conv3": Layer(256, 13, 384, 3, 1, 1),
    "conv4": Layer(384, 13, 384, 3, 1, 1, 2),
    "conv5": Layer(384, 13, 256, 3, 1, 1, 2),
    "fc6": Layer(9216, 1, 4096),
    "fc7": Layer(4096, 1, 4096),
    "fc8": Layer(4096, 1, 1000),
}
PASSES = ("forward", "input gradient", "filter gradient")


def our_passes(layer, batch, rng):
    """Return a function for each pass that runs it with this project's kernels."""
    geometry = layer.stride, layer.pad, layer.groups
    x_shape = layer.channels, layer.image, layer.image, batch
    w_shape = layer.channels // layer.groups, layer.size, layer.size, layer.outputs
    g_shape = layer.outputs, layer.out, layer.out, batch
    x, w, g, dx, dw, out = (allocator.empty(s, np.float32) for s in (x_shape, w_shape, g_shape) * 2)
    for array in (x, w, g):
        rng.standard_normal(dtype=np.float32, out=array)
    return {
        "forward": lambda: convolution.forward(x, w, *geometry, out),
        "input gradient": lambda: convolution.input_gradient(w, g, *geometry, dx),
        "filter gradient": lambda: convolution.filter_gradient(x, g, *geometry, dw),
    }


def contenders(name, batch):
    """Return the implementations, ours first, then PyTorch in each layout; each is a dict from pass to function."""
    programs = [our_passes(LAYERS[name], batch, np.random.default_rng(0))]
    if torch is not None:
        torch.set_num_threads(compiler.threads())
        for layout in LAYOUTS:
            passes = layer_passes(name, batch, layout)
            programs.append({which: passes.get(f"{name} {which}") for which in PASSES})
    return programs


def rows(name, batch, runs):
    """Yield a row for each pass of a layer."""
    programs = contenders(name, batch)
    for which in PASSES:
        calls = [program[which] for program in programs]
        if None in calls or (name, which) == ("conv1", "input gradient"):
            continue                             # training does not need the gradient of the images
        for call in calls:
            call()
        times = zip(*([ceilings.seconds(call) for call in calls] for _ in range(runs)), strict=True)
        operations = LAYERS[name].operations * batch / 1e9
        ours, *peers = ([operations / seconds for seconds in each] for each in times)
        row = report.row(f"{name} {which}, batch {batch}", ours, "GFLOP/s")
        if peers:
            peer = max(map(statistics.median, peers))
            row |= {"peer": peer, "ratio": row["value"] / peer}
        yield row


def show(row, peak):
    peer = f"{row['peer']:8.1f} {row['ratio']:6.2f}" if "peer" in row else ""
    print(f"{row['name']:36} {row['value']:8.1f} {row['value'] / peak:8.0%} {row['spread']:8.0%} {peer}", flush=True)


def main():
    parser = report.parser(__doc__, quick="batch 16, three runs")
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 16])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    options = parser.parse_args()
    batches, runs = ([16], 3) if options.quick else (options.batch, options.runs)
    peak = report.row("multiply-add peak", [rate / 1e9 for rate in ceilings.multiply_add_rates(runs)], "GFLOP/s")
    found = [peak]
    print(f"{compiler.threads()} threads")
    print(f"{'GFLOP/s':36} {'ours':>8} {'of peak':>8} {'spread':>8} {'PyTorch':>8} {'ratio':>6}")
    show(peak, peak["value"])
    for batch in batches:
        for name in options.layers:
            for row in rows(name, batch, runs):
                found.append(row)
                show(row, peak["value"])
    report.write(found, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
