"""How fast the convolution kernels are on AlexNet's layers, beside the machine's peak and PyTorch.

python -m benchmarks.kernels [--quick] [--json FILE] [--batch 128 16] [--runs 7] [--layers conv1 fc6]

For each layer the forward pass, the gradient of the input and that of the filters, in GFLOP/s: the median of the
runs, with (largest - smallest) / median as the spread.  The peer is PyTorch, if it is installed, in the faster of
its two layouts (NCHW and channels_last), run in turn with ours.  The first row is the peak: a loop of multiply-adds
on registers alone, on as many threads.  Data are random and in memory; caches are as the run before left them.
"""

import ctypes
import statistics
import time
from typing import NamedTuple

import numpy as np

from alexnet.dispatch.cpu import build, convolution, pool
from benchmarks import report

try:
    import torch
except ImportError:
    torch = None


class Layer(NamedTuple):
    """A convolution over square images with square filters; a dense layer is one of 1x1."""

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
    def flop_per_image(self):
        """Of one pass; a multiply-add is two."""
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
PASSES = ("forward", "input_gradient", "filter_gradient")

PEAK_SOURCE = """
/* Independent multiply-adds on registers, two for each cycle of latency and more: the most a kernel could do. */
#include "tiles.h"

enum { CHAINS = 12 };

long multiply_adds_per_step(void) { return CHAINS * LANES * (long)omp_get_max_threads(); }

void multiply_add(long steps, float *sink)
{
    #pragma omp parallel
    {
        vector sum[CHAINS], x = (vector){ 0 } + 0.5f, y = (vector){ 0 } + 0.25f;
        UNROLL
        for (int i = 0; i < CHAINS; i++)
            sum[i] = (vector){ 0 } + (float)i;
        for (long step = 0; step < steps; step++) {
            __asm__ volatile("" : "+m"(*sink));
            UNROLL
            for (int i = 0; i < CHAINS; i++)
                sum[i] = sum[i] * x + y;
        }
        UNROLL
        for (int i = 1; i < CHAINS; i++)
            sum[0] += sum[i];
        sink[16 * omp_get_thread_num()] = sum[0][0];
    }
}
"""


def peak(runs):
    """GFLOP/s of each run of the register loop, about a tenth of a second long."""
    library = build.load(PEAK_SOURCE, "peak")
    library.multiply_adds_per_step.restype = ctypes.c_long
    sink = (ctypes.c_float * (16 * 1024))()
    steps = 20_000_000
    flop = 2 * library.multiply_adds_per_step() * steps
    return [
        flop / seconds(lambda: library.multiply_add(ctypes.c_long(steps), sink)) / 1e9 for _ in range(runs)
    ]


def seconds(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def our_passes(layer, batch, rng):
    """Pass -> function that runs it."""
    geometry = layer.stride, layer.pad, layer.groups
    x_shape = layer.channels, layer.image, layer.image, batch
    w_shape = layer.channels // layer.groups, layer.size, layer.size, layer.outputs
    g_shape = layer.outputs, layer.out, layer.out, batch
    x, w, g, dx, dw, out = (pool.empty(s, np.float32) for s in (x_shape, w_shape, g_shape) * 2)
    for array in (x, w, g):
        rng.standard_normal(dtype=np.float32, out=array)
    return {
        "forward": lambda: convolution.forward(x, w, *geometry, out),
        "input_gradient": lambda: convolution.input_gradient(w, g, *geometry, dx),
        "filter_gradient": lambda: convolution.filter_gradient(x, g, *geometry, dw),
    }


def torch_passes(layer, batch, memory_format):
    """The same by PyTorch, convolutions in one of its layouts, dense layers as matrix products."""
    if layer.image == 1:
        x, w = torch.randn(batch, layer.channels), torch.randn(layer.outputs, layer.channels)
        g = torch.randn(batch, layer.outputs)
        return {
            "forward": lambda: torch.nn.functional.linear(x, w),
            "input_gradient": lambda: g @ w,
            "filter_gradient": lambda: g.T @ x,
        }
    geometry = [layer.stride] * 2, [layer.pad] * 2, [1, 1]
    x = torch.randn(batch, layer.channels, layer.image, layer.image)
    w = torch.randn(layer.outputs, layer.channels // layer.groups, layer.size, layer.size)
    g = torch.randn(batch, layer.outputs, layer.out, layer.out)
    x, w, g = (array.contiguous(memory_format=memory_format) for array in (x, w, g))

    def backward(*wanted):
        torch.ops.aten.convolution_backward(
            g, x, w, None, *geometry, False, [0, 0], layer.groups, [*wanted, False]
        )

    return {
        "forward": lambda: torch.conv2d(x, w, None, *geometry, layer.groups),
        "input_gradient": lambda: backward(True, False),
        "filter_gradient": lambda: backward(False, True),
    }


def contenders(layer, batch):
    """Ours, then PyTorch's layouts: each a dict pass -> function."""
    passes = [our_passes(layer, batch, np.random.default_rng(0))]
    if torch is not None:
        torch.set_num_threads(build.threads())
        formats = (
            [torch.contiguous_format, torch.channels_last] if layer.image > 1 else [torch.contiguous_format]
        )
        passes += [torch_passes(layer, batch, memory_format) for memory_format in formats]
    return passes


def measure(name, layer, batch, runs):
    """Yield a row for each pass."""
    programs = contenders(layer, batch)
    for which in PASSES:
        if name == "conv1" and which == "input_gradient":
            continue  # nobody asks for the gradient of the images
        for program in programs:
            program[which]()
        times = [[seconds(program[which]) for program in programs] for _ in range(runs)]
        speeds = [
            [layer.flop_per_image * batch / t / 1e9 for t in column] for column in zip(*times, strict=True)
        ]
        yield row(f"{name} {which}, batch {batch}", speeds[0], speeds[1:])


def row(name, speeds, peers=()):
    value = statistics.median(speeds)
    peer = max(map(statistics.median, peers), default=None)
    return {
        "name": name,
        "value": value,
        "unit": "GFLOP/s",
        "spread": (max(speeds) - min(speeds)) / value,
        "peer": peer,
        "ratio": peer and value / peer,
    }


def show(result, peak_speed):
    peer = f"{result['peer']:8.1f} {result['ratio']:6.2f}" if result["peer"] else f"{'-':>8} {'-':>6}"
    share = 100 * result["value"] / peak_speed
    print(
        f"{result['name']:34} {result['value']:8.1f} {share:7.0f} % {100 * result['spread']:6.0f} % {peer}",
        flush=True,
    )


def main():
    parser = report.parser(__doc__, quick="batch 16, three runs")
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 16])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    options = parser.parse_args()
    batches, runs = ([16], 3) if options.quick else (options.batch, options.runs)
    results = [row("multiply-add peak", peak(runs))]
    peak_speed = results[0]["value"]
    print(
        f"{build.threads()} threads\n{'GFLOP/s':34} {'ours':>8} {'of peak':>9} {'spread':>8} "
        f"{'PyTorch':>8} {'ratio':>6}"
    )
    show(results[0], peak_speed)
    for batch in batches:
        for name in options.layers:
            for result in measure(name, LAYERS[name], batch, runs):
                results.append(result)
                show(result, peak_speed)
    report.write(results, options.json)


if __name__ == "__main__":
    main()
