"""Crops of random size: windows as torchvision draws them, pixels as Pillow resizes them."""

import math
import random

import numpy as np
import pytest
from PIL import Image

from alexnet.data.augment import resized_crop_stream
from alexnet.data.resized_crop import ResizedCrop, draw_resized_crop, resize_batch

WINDOWS = ResizedCrop(                           # enlarged, reduced, whole, a column more than the output
    *np.array([[5, 0, 0, 30], [100, 0, 0, 3], [60, 250, 256, 40], [45, 200, 256, 33]], np.int32),
    np.array([1, 0, 1, 0], np.uint8),
)


def torchvision_window(draw, least):
    """Return (row, column, height, width) as RandomResizedCrop.get_params for an image of 256 x 256 pixels."""
    for _ in range(10):
        area = 256 * 256 * draw.uniform(least, 1)
        ratio = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= 256 and 0 < height <= 256:
            return draw.randint(0, 256 - height), draw.randint(0, 256 - width), height, width
    return 0, 0, 256, 256


def largest_difference(ours, theirs):
    """Return the Kolmogorov-Smirnov statistic: the largest difference of two empirical distribution functions."""
    places = np.concatenate([ours, theirs])
    shares = [np.searchsorted(np.sort(values), places, side="right") / len(values) for values in (ours, theirs)]
    return np.abs(shares[0] - shares[1]).max()


@pytest.mark.parametrize("least", [0.08, 0.9])   # 0.9: many attempts fail
def test_windows_are_distributed_as_torchvisions(least):
    n = 10_000
    crop = draw_resized_crop(resized_crop_stream(2, 0, 0), n, least)
    draw = random.Random(3)
    rows, columns, heights, widths = np.array([torchvision_window(draw, least) for _ in range(n)]).T
    bound = 1.95 * math.sqrt(2 / n)              # of the statistic, with probability 0.999
    assert largest_difference(crop.heights * crop.widths, heights * widths) < bound
    assert largest_difference(crop.widths / crop.heights, widths / heights) < bound
    assert largest_difference(crop.rows / (257 - crop.heights), rows / (257 - heights)) < bound
    assert largest_difference(crop.columns / (257 - crop.widths), columns / (257 - widths)) < bound
    assert 0.48 < crop.mirrors.mean() < 0.52
    for first, length in ((crop.rows, crop.heights), (crop.columns, crop.widths)):
        assert first.min() >= 0 and length.min() > 0 and (first + length).max() <= 256
        assert first.dtype == length.dtype == np.int32


def test_window_is_the_whole_image_if_no_attempt_fits():
    crop = draw_resized_crop(resized_crop_stream(2, 0, 0), 500, 1.0)
    whole = (crop.heights == 256) & (crop.widths == 256)
    assert whole.mean() > 0.9 and not crop.rows[whole].any() and not crop.columns[whole].any()


def test_per_batch_window_is_equal_for_all_images():
    crop = draw_resized_crop(resized_crop_stream(0, 0, 0), 9, 0.08, per_batch=True)
    assert all(len(values) == 9 and len(set(values.tolist())) == 1 for values in crop)


def resized(images, mean, crop, size):
    out = np.empty((3, size, size, images.shape[3]), np.float32)
    resize_batch(images, mean, crop, out)
    return out


def test_pixels_match_pillow_on_bytes(rng, monkeypatch):
    monkeypatch.setattr("alexnet.data.resized_crop.TOGETHER", 3)
    images = rng.integers(0, 256, (3, 256, 256, 4), dtype=np.uint8)
    out = resized(images, np.full((3, 256, 256), 100, np.float32), WINDOWS, 32)
    for b, (row, column, height, width, mirror) in enumerate(zip(*WINDOWS, strict=True)):
        window = Image.fromarray(images[..., b].transpose(1, 2, 0)).crop((column, row, column + width, row + height))
        pixels = np.asarray(window.resize((32, 32), Image.Resampling.BILINEAR), float).transpose(2, 0, 1)
        expected = pixels[:, :, ::-1] - 100 if mirror else pixels - 100
        assert np.abs(out[..., b] - expected).max() < 1.1        # Pillow rounds bytes after rows and after columns


def triangle_weights(length, size):
    """Return the matrix (size, length) of bilinear resizing with antialiasing: triangles, wider if it reduces."""
    scale = length / size
    centers = (np.arange(size)[:, np.newaxis] + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(length) + 0.5 - centers) / max(scale, 1))
    return weights / weights.sum(axis=1, keepdims=True)


def test_pixels_are_unrounded_windows_minus_mean(rng):
    images = rng.integers(0, 256, (3, 256, 256, 4), dtype=np.uint8)
    mean = rng.uniform(90, 130, (3, 256, 256)).astype(np.float32)
    out = resized(images, mean, WINDOWS, 32)
    for b, (row, column, height, width, mirror) in enumerate(zip(*WINDOWS, strict=True)):
        window = np.s_[:, row:row + height, column:column + width]
        pixels = images[..., b][window] - mean.astype(float)[window]
        expected = triangle_weights(height, 32) @ pixels @ triangle_weights(width, 32).T
        np.testing.assert_allclose(out[..., b], expected[..., ::-1] if mirror else expected, atol=1e-3)
