"""The interfaces of a device and of its buffers, and what all devices share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt

from multigpu.device.handles import Handle, check_range

if TYPE_CHECKING:
    import jax

MAX_SOURCES = 16                                 # buffers that one mean() takes: the parameters of the CUDA kernel

Shape = tuple[int, ...]
Array = TypeVar("Array", "np.ndarray", "jax.Array")


class DeviceError(RuntimeError):
    """A device or a buffer is not available or must not be used; the message is one sentence."""


class Buffer(ABC):
    """Bytes in the memory of a device that another process can open.

    Attributes:
        nbytes: size in bytes.
    """

    def __init__(self, nbytes: int, memory: object | None, whole: Self | None = None):
        self.nbytes = nbytes
        self._memory = memory                    # None for a part, and once closed
        self._whole = whole                      # of a part: the buffer that owns the memory

    @property
    @abstractmethod
    def handle(self) -> Handle:
        """Handle with which another process opens this buffer, as long as it is open here.

        Raises:
            DeviceError: the buffer is closed, or memory of this device cannot be opened by another process.
        """

    @property
    @abstractmethod
    def pointer(self) -> int:
        """Address of the first byte in this process; raises DeviceError if the buffer is closed."""

    @abstractmethod
    def part(self, offset: int, nbytes: int) -> Self:
        """Return `nbytes` bytes from `offset` on as a buffer.

        It is open as long as the whole buffer is; closing it has no effect.
        """

    @abstractmethod
    def array(self, shape: Shape, dtype: npt.DTypeLike) -> np.ndarray:
        """Return the first bytes as an input array of the backend, after all pending copies.

        Without a copy if the backend can use the memory, so do not change the bytes while it computes, nor use the
        array after close().
        """

    @abstractmethod
    def close(self) -> None:
        """Free the memory, or close another process's memory; further calls do nothing."""

    def _open_memory(self) -> Any:
        """Return the memory, of the type that the device uses; raises DeviceError if the buffer is closed."""
        memory = (self._whole or self)._memory
        if memory is None:
            raise DeviceError(f"this buffer of {self.nbytes} bytes is closed; use it before close(), or open it again")
        return memory

    def check_fits(self, shape: Shape, dtype: npt.DTypeLike) -> None:
        """Raise ValueError unless an array of this shape and dtype fits."""
        if prod(shape) * np.dtype(dtype).itemsize > self.nbytes:
            raise ValueError(
                f"an array of {np.dtype(dtype)} {tuple(shape)} does not fit a buffer of {self.nbytes} bytes"
            )

    def check_part(self, offset: int, nbytes: int) -> None:
        """Raise DeviceError if the buffer is closed, ValueError unless it contains these bytes."""
        self._open_memory()
        check_range(offset, nbytes, self.nbytes)


B = TypeVar("B", bound=Buffer)


class Device(ABC, Generic[B]):
    """Memory that can be copied, averaged, and shared with other processes.

    GPU copies are asynchronous: always synchronise before sending a message. Use a device in the thread that opened it.
    As a context manager a device closes itself.

    Attributes:
        name: as in config.devices, "cpu" or "cuda0".
        on_host: whether the backend computes with NumPy arrays.

    Source: Ding et al. 2014, sections 2.2 and 4.3.
    """

    def __init__(self, name: str, on_host: bool = True):
        self.name = name
        self.on_host = on_host
        self._buffers: list[B] = []              # allocated or opened here

    @abstractmethod
    def allocate(self, nbytes: int) -> B:
        """Return a new buffer; raises DeviceError if there is not enough memory."""

    @abstractmethod
    def open(self, handle: Handle) -> B:
        """Open the buffer of another process's handle. Close it before its owner closes the original.

        Raises:
            DeviceError: the buffer no longer exists, or this device cannot access it.
        """

    @abstractmethod
    def staging(self, buffer: B, shape: Shape, dtype: npt.DTypeLike) -> np.ndarray:
        """Return host memory to fill before an upload to this buffer, the same in each call.

        Do not refill it before its last upload has ended.
        """

    @abstractmethod
    def upload(self, buffer: B, array: np.ndarray | jax.Array) -> None:
        """Copy an array into the first bytes of the buffer. Asynchronous on a GPU.

        Do not change the array, or donate a jax.Array, before synchronise().
        """

    @abstractmethod
    def download(self, array: np.ndarray, buffer: B) -> None:
        """Copy the first bytes of the buffer into a contiguous array. All copies are complete on return."""

    @abstractmethod
    def unpack(self, buffer: B, shapes: Sequence[Shape]) -> list[np.ndarray]:
        """Return the concatenated float32 arrays of `shapes` in the buffer, as arrays that the backend may keep."""

    @abstractmethod
    def copy(self, destination: B, source: B) -> None:
        """Copy all bytes between two buffers of the same size. Asynchronous on a GPU."""

    @abstractmethod
    def mean(self, destination: B, sources: Sequence[B], also: Sequence[B] = ()) -> None:
        """Fill `destination`, and the buffers of `also`, with the float32 mean of `sources`. Asynchronous on a GPU.

        Each destination may be one of the sources. The result has the same bits on every device: IEEE 754 rounds each
        sum and the quotient of two float32 correctly, all devices add the sources in the order given and use a true
        division, subnormal numbers are kept, and without a multiplication there is nothing to fuse.

        Args:
            sources: 1 to MAX_SOURCES buffers.
        """

    @abstractmethod
    def synchronise(self) -> None:
        """Wait for all copies and means; only then notify another process."""

    @abstractmethod
    def can_reach(self, name: str) -> str | None:
        """Return None, or a sentence why another process's buffers on the named device cannot be opened here."""

    @abstractmethod
    def close(self) -> None:
        """Close every buffer allocated or opened here, and release the device; further calls do nothing."""

    def _keep(self, buffer: B) -> B:
        self._buffers.append(buffer)
        return buffer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def split(flat: Array, shapes: Sequence[Shape]) -> list[Array]:
    """Split a flat array into consecutive pieces of these shapes."""
    ends = np.cumsum([prod(shape) for shape in shapes]).tolist()
    return [flat[end - prod(shape) : end].reshape(shape) for end, shape in zip(ends, shapes, strict=True)]


def check_new_buffer(nbytes: int) -> None:
    """Raise ValueError unless a buffer can have this size."""
    if nbytes < 1:
        raise ValueError(f"a buffer holds at least 1 byte, got {nbytes}")


def check_copy(destination: Buffer, source: Buffer) -> None:
    """Raise ValueError unless the two buffers have the same size."""
    if destination.nbytes != source.nbytes:
        raise ValueError(f"cannot copy {source.nbytes} bytes to a buffer of {destination.nbytes}")


def check_mean(destination: Buffer, sources: Sequence[Buffer], also: Sequence[Buffer]) -> None:
    """Raise ValueError unless these buffers can be averaged."""
    if not 1 <= len(sources) <= MAX_SOURCES:
        raise ValueError(f"mean() takes 1 to {MAX_SOURCES} sources, got {len(sources)}")
    sizes = {buffer.nbytes for buffer in (destination, *sources, *also)}
    if len(sizes) > 1 or destination.nbytes % 4:
        raise ValueError(f"mean() takes buffers of float32 of one size, got {sorted(sizes)} bytes")
