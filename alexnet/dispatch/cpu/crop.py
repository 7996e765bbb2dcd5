"""Crop, mirror and mean subtraction on the CPU: the loop is in crop.c."""

import numpy as np

from alexnet.dispatch.cpu import build, pool
from alexnet.dispatch.cpu.registry import kernel
from alexnet.ops import CropMirror


@kernel.register(CropMirror)
def crop_mirror(op, node):
    loop = build.function("crop", "crop_mirror", "aaaaaannnnn", can_fail=True)

    def run(*arrays):
        op.check(*arrays)
        images, *others = map(np.ascontiguousarray, arrays)
        out = pool.empty((images.shape[0], op.size, op.size, images.shape[3]), np.float32)
        loop(images, *others, out, *images.shape, op.size)
        return (out,)

    return run
