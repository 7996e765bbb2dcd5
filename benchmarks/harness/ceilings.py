"""Peak rates of this machine with the kernels' number of threads: multiply-adds and copied bytes per second."""

import ctypes
import pathlib

import numpy as np

from alexnet.native import allocator, compiler
from alexnet.ops.kernels import convolution
from benchmarks.harness import report

TILES = compiler.expanded(pathlib.Path(convolution.__file__).with_name("tiles.h"))
MULTIPLY_ADDS = TILES + """
/* Independent multiply-adds on registers, at least two per cycle of latency: an upper bound for any kernel. */
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
COPY = """
/* Each thread copies its share with memcpy, which uses the fastest stores for arrays larger than the caches. */
#include <string.h>
#include <omp.h>

void copy(char *to, const char *from, long bytes)
{
    #pragma omp parallel
    {
        const long n = omp_get_num_threads(), i = omp_get_thread_num();
        const long first = bytes / n * i, last = i == n - 1 ? bytes : bytes / n * (i + 1);
        memcpy(to + first, from + first, last - first);
    }
}
"""
COPIED = 1 << 28                                 # bytes, larger than the caches


def multiply_add_rates(runs):
    """Return operations per second for each run of the register loop.

    A multiply-add counts as two operations. A run takes about a tenth of a second.
    """
    library = compiler.load(MULTIPLY_ADDS, "peak")
    library.multiply_adds_per_step.restype = ctypes.c_long
    sink = (ctypes.c_float * (16 * 1024))()
    steps = 20_000_000
    operations = 2 * library.multiply_adds_per_step() * steps
    return [operations / report.seconds(lambda: library.multiply_add(ctypes.c_long(steps), sink)) for _ in range(runs)]


def copy_rates(runs):
    """Return bytes per second, read plus written, for each run of a copy that is larger than the caches."""
    copy = compiler.load(COPY, "copy").copy
    source, target = (allocator.empty((COPIED,), np.uint8) for _ in range(2))
    source.fill(1)
    arguments = (ctypes.c_void_p(target.ctypes.data), ctypes.c_void_p(source.ctypes.data), ctypes.c_long(COPIED))
    copy(*arguments)
    return [2 * COPIED / report.seconds(lambda: copy(*arguments)) for _ in range(runs)]
