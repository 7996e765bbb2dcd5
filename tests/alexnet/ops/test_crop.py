"""Crop, mirror and mean subtraction against a loop over pixels and against slicing."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from alexnet.ops import CropMirror
from tests import reference

pytestmark = pytest.mark.compatibility


def crop_function(size, mode):
    inputs = [pt.tensor4("images", dtype="uint8"), pt.tensor3("mean"), pt.ivector("rows"), pt.ivector("columns")]
    inputs.append(pt.vector("mirrors", dtype="uint8"))
    return pytensor.function(inputs, CropMirror(size)(*inputs), mode=mode)


def arrays(rng, batch=9, height=8, width=7, size=5):
    return (
        rng.integers(0, 256, (3, height, width, batch)).astype("uint8"),
        rng.uniform(0, 255, (3, height, width)).astype("float32"),
        rng.integers(0, height - size + 1, batch).astype("int32"),
        rng.integers(0, width - size + 1, batch).astype("int32"),
        rng.integers(0, 2, batch).astype("uint8"),
    )


@pytest.mark.parametrize("batch", [1, 9, 67])
def test_crop_matches_a_loop_over_pixels(mode, batch, rng):
    given = arrays(rng, batch)
    result = crop_function(5, mode)(*given)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, reference.crop_mirror(*given, size=5).astype("float32"))


def test_crop_matches_slicing(mode, rng):
    images, mean, rows, columns, _ = arrays(rng)
    mirrored = crop_function(5, mode)(images, mean, rows, columns, np.full(9, 255, "uint8"))
    for b, (row, column) in enumerate(zip(rows, columns, strict=True)):
        expected = (images[..., b] - mean)[:, row : row + 5, column : column + 5][:, :, ::-1]
        np.testing.assert_array_equal(mirrored[..., b], expected)


@pytest.mark.parametrize("batch", [16, 35])
def test_crops_larger_than_the_blocks_of_the_kernel(mode, batch, rng):
    images, mean, rows, columns, mirrors = arrays(rng, batch, height=130, width=83, size=70)
    cropped = crop_function(70, mode)(images, mean, rows, columns, mirrors)
    for b, (row, column, mirror) in enumerate(zip(rows, columns, mirrors, strict=True)):
        window = (images[..., b] - mean)[:, row : row + 70, column : column + 70]
        np.testing.assert_array_equal(cropped[..., b], window[:, :, ::-1] if mirror else window)


def test_whole_image_is_the_largest_crop(mode, rng):
    images, mean, *_ = arrays(rng, height=7)
    nothing = np.zeros(9, "int32")
    whole = crop_function(7, mode)(images, mean, nothing, nothing, nothing.astype("uint8"))
    np.testing.assert_array_equal(whole, images - mean[..., None])


@pytest.mark.parametrize(("row", "column"), [(-1, 0), (4, 0), (0, -1), (0, 3)])
def test_corner_outside_the_image_is_refused(mode, row, column, rng):
    images, mean, rows, columns, mirrors = arrays(rng)
    rows[4], columns[4] = row, column
    with pytest.raises(ValueError, match=rf"of a crop must be in 0\.\.[23], got {row or column}"):
        crop_function(5, mode)(images, mean, rows, columns, mirrors)


def test_arrays_of_another_batch_or_size_are_refused(mode, rng):
    images, mean, rows, columns, mirrors = arrays(rng)
    crop = crop_function(5, mode)
    with pytest.raises(ValueError, match="mirrors must hold 9 values, got 8"):
        crop(images, mean, rows, columns, mirrors[:8])
    with pytest.raises(ValueError, match=r"mean must be of shape \(3, 8, 7\)"):
        crop(images, mean[:, :7], rows, columns, mirrors)


def test_wrong_arguments_are_refused_with_the_value(rng):
    images, mean, rows, columns, mirrors = arrays(rng)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        CropMirror(0)
    with pytest.raises(ValueError, match="crop of 9 pixels needs images at least as large, got 8"):
        CropMirror(9)(images, mean, rows, columns, mirrors)
    with pytest.raises(TypeError, match="images must be uint8, got float32"):
        CropMirror(5)(images.astype("float32"), mean, rows, columns, mirrors)
    with pytest.raises(TypeError, match="rows must be int32, got float64"):
        CropMirror(5)(images, mean, rows.astype("float64"), columns, mirrors)


def test_pixels_have_no_gradient():
    images, mean = pt.tensor4("images", dtype="uint8"), pt.tensor3("mean")
    corner = pt.ivector("corner")
    y = CropMirror(5)(images, mean, corner, corner, pt.cast(corner, "uint8"))
    with pytest.raises(pytensor.gradient.DisconnectedInputError):
        pytensor.grad(y.sum(), mean)
