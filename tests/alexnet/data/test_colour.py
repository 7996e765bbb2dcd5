"""PCA colour augmentation: components of a known covariance, and shifts by eigenvalues, not by their roots."""

import numpy as np
import pytest

from alexnet.data import batch_file, colour
from alexnet.data.augment import colour_stream, crop_stream
from alexnet.data.colour import PrincipalColours, draw_colour_offsets, principal_components

IMAGENET = np.array([0.2175, 0.0188, 0.0045])    # eigenvalues of RGB values from 0 to 1, of fb.resnet.torch
MXNET = 55.46, 4.794, 1.148                      # those of MXNet, for grey levels


@pytest.fixture(scope="module")
def vectors():
    """Return an orthogonal matrix whose columns have a positive largest entry."""
    found, _ = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))
    return found * np.sign(found[np.abs(found).argmax(axis=0), range(3)])


def test_components_of_a_known_covariance(vectors):
    variances, found = principal_components(vectors @ np.diag(IMAGENET) @ vectors.T)
    np.testing.assert_allclose(variances, IMAGENET, rtol=1e-12)
    np.testing.assert_allclose(found, vectors, atol=1e-12)


def test_covariance_matches_numpy(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(colour, "CHUNK", 5000)
    arrays = [rng.integers(0, 256, (3, 256, 256, n), dtype=np.uint8) for n in (2, 1)]
    paths = [tmp_path / f"{number:04d}.hkl" for number in range(2)]
    for path, array in zip(paths, arrays, strict=True):
        array[1] = array[0] // 2 + array[1] // 4             # correlated channels
        batch_file.write(path, array)
    pixels = np.concatenate([array[:, 8::16].reshape(3, -1) for array in arrays], axis=1)
    expected = np.cov(pixels.astype(float), bias=True)
    np.testing.assert_allclose(colour.colour_covariance(paths), expected, rtol=1e-12)
    variances, vectors = colour.colours_of(paths)
    np.testing.assert_allclose(vectors @ np.diag(variances) @ vectors.T, expected / 255**2, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("files", "expected"), [(1, [0]), (3, [0, 1, 2]), (311, list(range(0, 311, 10)))])
def test_sample_is_evenly_spaced(files, expected):
    assert colour.sample(range(files)) == expected


def test_offsets_match_the_formula(vectors):
    offsets = draw_colour_offsets(colour_stream(1, 0, 5), 7, PrincipalColours(IMAGENET, vectors), 0.1)
    assert offsets.dtype == np.float32
    factors = colour_stream(1, 0, 5).normal(0, 0.1, (3, 7))
    for image, shift in enumerate(offsets.T):
        expected = 255 * sum(vectors[:, i] * factors[i, image] * IMAGENET[i] for i in range(3))
        np.testing.assert_allclose(shift, expected, rtol=1e-6)


def test_shifts_have_the_size_of_common_code(vectors):
    colours = PrincipalColours(IMAGENET, vectors)
    offsets = draw_colour_offsets(colour_stream(0, 0, 0), 100_000, colours, 0.1)
    along = vectors.T @ offsets.astype(float)
    np.testing.assert_allclose(along.std(axis=1), np.multiply(MXNET, 0.1), rtol=0.01)
    np.testing.assert_allclose(colours.deviations(0.1), np.multiply(MXNET, 0.1), rtol=1e-3)
    assert np.abs(np.corrcoef(along) - np.eye(3)).max() < 0.01 and np.abs(along.mean(axis=1)).max() < 0.1


def test_streams_of_colours_and_crops_differ():
    streams = [colour_stream(1, 0, 0), colour_stream(1, 1, 0), colour_stream(1, 0, 1), crop_stream(1, 0, 0)]
    assert len({int(stream.integers(2**60)) for stream in streams}) == 4
