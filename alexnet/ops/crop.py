"""Cropping, mirroring and mean subtraction: convert stored images to network input.

Source: Krizhevsky et al. 2012, section 4.1 (random crops and mirrors), section 2 (mean image subtracted).
"""

from collections.abc import Sequence

import numpy as np
from pytensor.gradient import DisconnectedType
from pytensor.graph.basic import Apply, Variable
from pytensor.tensor import TensorLike

from alexnet.ops.base import Inputs, Shape, ShapedOp, float_tensor, integer_tensor, whole_number


class CropMirror(ShapedOp):
    """Subtract the mean, then crop each image to size x size pixels and optionally mirror it left to right.

    Args:
        images: uint8 (channel, row, column, batch).
        mean: float (channel, row, column), subtracted before cropping.
        rows, columns: int32 (batch,), the top left corner of each crop.
        mirrors: uint8 (batch,), nonzero to mirror the image.

    Returns:
        (channel, size, size, batch) of the dtype of mean.

    Raises:
        ValueError: a crop extends beyond its image.
    """

    __props__ = ("size",)

    def __init__(self, size: int) -> None:
        self.size = whole_number("crop size", size, least=1)

    def make_node(
        self, images: TensorLike, mean: TensorLike, rows: TensorLike, columns: TensorLike, mirrors: TensorLike
    ) -> Apply:
        images = integer_tensor(self, "images", images, "uint8", 4)
        mean = float_tensor(self, "mean", mean, ndim=3)
        rows = integer_tensor(self, "rows", rows, "int32", 1)
        columns = integer_tensor(self, "columns", columns, "int32", 1)
        mirrors = integer_tensor(self, "mirrors", mirrors, "uint8", 1)
        for n in images.type.shape[1:3]:
            if n is not None and n < self.size:
                raise ValueError(f"{self}: a crop of {self.size} pixels needs images at least as large, got {n}")
        return self.apply([images, mean, rows, columns, mirrors], [mean.type.dtype])

    def shapes(self, inputs: Inputs, input_shapes: Sequence[Shape]) -> list[Shape]:
        channels, _, _, batch = input_shapes[0]
        return [(channels, self.size, self.size, batch)]

    def check(
        self, images: np.ndarray, mean: np.ndarray, rows: np.ndarray, columns: np.ndarray, mirrors: np.ndarray
    ) -> None:
        """Raise ValueError if the shape of an array does not match the images, or a crop extends beyond them."""
        self.check_shapes(images, mean, rows, columns, mirrors)
        self.check_corners(images.shape, rows, columns)

    def check_shapes(
        self, images: np.ndarray, mean: np.ndarray, rows: np.ndarray, columns: np.ndarray, mirrors: np.ndarray
    ) -> None:
        """Raise ValueError if the shape of an array, of NumPy or of JAX, does not match the images."""
        if mean.shape != images.shape[:3]:
            raise ValueError(f"{self}: the mean must be of shape {images.shape[:3]} as the images, got {mean.shape}")
        for name, values in (("rows", rows), ("columns", columns), ("mirrors", mirrors)):
            if values.shape != images.shape[3:]:
                raise ValueError(f"{self}: {name} must hold {images.shape[3]} values, got {values.shape[0]}")

    def check_corners(self, image_shape: tuple[int, ...], rows: np.ndarray, columns: np.ndarray) -> None:
        """Raise ValueError if a crop extends beyond its image."""
        for name, corner, n in (("row", rows, image_shape[1]), ("column", columns, image_shape[2])):
            if corner.size and not 0 <= corner.min() <= corner.max() <= n - self.size:
                worst = corner.min() if corner.min() < 0 else corner.max()
                raise ValueError(f"{self}: the {name} of a crop must be in 0..{n - self.size}, got {worst}")

    def reference(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        images, mean, rows, columns, mirrors = inputs
        self.check(*inputs)
        out = np.empty((images.shape[0], self.size, self.size, images.shape[3]), mean.dtype)
        for b, (row, column, mirror) in enumerate(zip(rows, columns, mirrors, strict=True)):
            box = np.s_[:, row : row + self.size, column : column + self.size]
            pixels = images[..., b][box] - mean[box]
            out[..., b] = pixels[:, :, ::-1] if mirror else pixels
        return (out,)

    def connection_pattern(self, node: Apply) -> list[list[bool]]:
        return [[False]] * 5

    def pullback(self, inputs: Inputs, outputs: Inputs, cotangents: Inputs) -> list[Variable]:
        return [DisconnectedType()() for _ in inputs]
