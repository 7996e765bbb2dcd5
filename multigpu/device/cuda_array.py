"""GPU memory as an array that other libraries can use."""

from typing import Any

import numpy as np
import numpy.typing as npt

from multigpu.device.base import Buffer, Shape


class CudaArray:
    """The first bytes of a GPU buffer as an array, for JAX, MPI and NCCL.

    It describes the memory and does not keep it allocated. The caller has synchronised the device.
    """

    def __init__(self, buffer: Buffer, shape: Shape, dtype: npt.DTypeLike = np.float32):
        self.__cuda_array_interface__: dict[str, Any] = {
            "version": 3,
            "data": (buffer.pointer, False),
            "shape": tuple(shape),
            "typestr": np.dtype(dtype).str,
            "strides": None,
            "stream": None,                      # no work is pending
        }
