"""Synthetic ImageNet: file names and special cases, and the program that kills preprocess and compares all bytes."""

import json

import numpy as np
import pytest
from PIL import Image

from alexnet.data.image_listing import find_images
from alexnet.data.images import read_image
from tests.system import imagenet
from tests.system import synthetic_imagenet as synthetic

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return synthetic.make_tree(str(tmp_path_factory.mktemp("synthetic") / "tree"), 1100, 40)


def test_class_counts_equal_imagenets():
    counts = synthetic.class_counts(synthetic.TRAIN)
    assert (len(counts), counts.sum(), counts.min(), counts.max(), (counts == 1300).sum()) == (
        1000, 1_281_167, 732, 1300, 895)
    few = synthetic.class_counts(1100)
    assert (few.sum(), few.min()) == (1100, 1)
    with pytest.raises(ValueError, match="at least 1000 images, one for each class, got 999"):
        synthetic.class_counts(999)


def test_colours_encode_labels():
    pixels = np.array([synthetic.colour(label) for label in range(1000)], np.uint8).T
    for off in (-9, 0, 9):
        np.testing.assert_array_equal(synthetic.label_of((pixels.astype(int) + off).astype(np.uint8)), np.arange(1000))
    strange = np.array([[240, 0, 255], [240, 0, 20], [238, 0, 20]], np.uint8)
    assert synthetic.label_of(strange).tolist() == [-1, -2, -2]


def test_listing_finds_all_images_and_labels(tree):
    sources = find_images(tree.train, tree.validation)
    assert len(sources.train.names) == 1100 and sources.class_names[0] == "n01440764 tench, Tinca tinca"
    np.testing.assert_array_equal(np.bincount(sources.train.labels), tree.counts)
    np.testing.assert_array_equal(sources.validation.labels, tree.validation_labels)
    assert synthetic.devkit_id(0) != 1 and len({synthetic.devkit_id(label) for label in range(1000)}) == 1000


def test_special_images_are_read_in_their_colours(tree):
    assert len(synthetic.special_images()) == 23
    for name, kind in synthetic.special_images().items():
        wnid = name.split("_")[0]
        path = f"{tree.train}/{wnid}/{name}.JPEG"
        with Image.open(path) as image:
            assert (image.mode, image.format) == (("CMYK", "JPEG") if kind == "CMYK" else ("RGB", "PNG"))
        pixels = read_image(path)
        expected = synthetic.colour(synthetic.wnids().index(wnid))
        assert np.abs(pixels[synthetic.INSIDE, synthetic.INSIDE].astype(int) - expected).max() <= 3
        assert not pixels[imagenet.FAR, imagenet.FAR].any()     # white if the fourth channel were dropped


def test_killed_and_restarted_runs_give_identical_bytes(tmp_path):
    arguments = ["--images", "1000", "--batch-size", "100", "--kills", "3", "--workers", "2"]
    arguments += ["--folder", str(tmp_path / "folder"), "--json", str(tmp_path / "rows")]
    assert imagenet.main(arguments) == 0
    rows = {row["name"]: row for row in map(json.loads, (tmp_path / "rows").read_text().splitlines())}
    for name in ("train: images under their label", "val: images under their label",
                 "CMYK images and the PNG in their colours", "identical files, uninterrupted and killed",
                 "found of a flipped bit, a missing file, other labels"):
        assert rows[name]["value"] == rows[name]["peer"]
    assert rows["kills"]["value"] >= 2
    assert rows["peak memory of its largest worker"]["value"] < 200


def test_a_failed_check_is_one_line_and_status_1(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(imagenet, "supports_sparse_files", lambda folder: False)
    monkeypatch.setattr(imagenet, "IMAGE_BYTES", 10**15)
    assert imagenet.main(["--images", "1000", "--folder", str(tmp_path / "folder")]) == 1
    assert "supports no sparse files" in capsys.readouterr().err
