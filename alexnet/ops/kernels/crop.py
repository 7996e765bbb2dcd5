"""Crop, mirror and mean subtraction on the CPU; the loops are in crop.c."""

from pathlib import Path

import numpy as np
from pytensor.graph.basic import Apply

from alexnet.native import allocator, compiler
from alexnet.ops import CropMirror
from alexnet.ops.kernels.contiguous import contiguous
from alexnet.ops.registry import Run, cpu_kernel

SOURCE = Path(__file__).with_suffix(".c")


@cpu_kernel(CropMirror)
def crop_mirror(op: CropMirror, node: Apply) -> Run:
    loop = compiler.function(SOURCE, "crop_mirror", "aaaaaannnnn", can_fail=True)

    def run(*arrays: np.ndarray) -> tuple[np.ndarray]:
        op.check(*arrays)
        images, *others = map(contiguous, arrays)
        out = allocator.empty((images.shape[0], op.size, op.size, images.shape[3]), np.float32)
        loop(images, *others, out, *images.shape, op.size)
        return (out,)

    return run
