"""Valid but implausible data: certain mistakes are refused with a question, others are remarked on."""

import numpy as np
import pytest

from alexnet.data import batch_file
from alexnet.data.batch_file import DataError
from alexnet.data.layout import load_mean
from alexnet.data.plausibility import refuse_implausible_labels, remark_on_mean, remark_on_validation, remarks_on_labels


def labels(*values):
    return np.array(values, np.int32)


@pytest.mark.parametrize(("train", "validation", "classes", "message"), [
    ((1, 2, 3), (1, 2, 3), None, "no image of SET has label 0: its labels are 1 to 3; do labels start at 1"),
    ((1, 2, 3), (1, 2, 3), 3, "labels are 1 to 3 but 3 classes, which count from 0; do labels start at 1"),
    ((0, 1, 2), (1, 2, 3), None, "training labels 0 to 2 and validation labels 1 to 3; do the validation labels"),
    ((1, 2, 3), (0, 1, 2), 9, "do the training labels start at 1"),
    ((0, 1, 2), (7, 9), None, r"no validation label of SET \(7 to 9\) is a training label \(0 to 2\)"),
    ((0, 1, 2**30), (0, 1), None, "SET has label 1073741824 and 3 training images; a label is damaged"),
    ((0, 0, 0), (0,), None, "all training images of SET have label 0; a classifier needs at least two classes"),
])
def test_certainly_wrong_labels_are_refused(train, validation, classes, message):
    with pytest.raises(DataError, match=message):
        refuse_implausible_labels("SET", labels(*train), labels(*validation), classes)


@pytest.mark.parametrize(("train", "validation", "classes"), [
    ((0, 1, 7, 9), (0, 9), None), ((1, 2, 3), (1, 2), 4), ((1, 4, 5), (0, 4), 7), ((0, 0), (0,), 10),
    ((0, 1), (1, 0), 2), ((0, 2**20 - 1), (0,), None),
])
def test_possible_labels_are_accepted(train, validation, classes):
    refuse_implausible_labels("SET", labels(*train), labels(*validation), classes)


def test_classes_without_images_are_remarked_on():
    assert list(remarks_on_labels(labels(0, 1, 7, 9), labels(0, 8, 8, 9), 10)) == [
        "6 of 10 classes have no training images, so the network cannot learn them: label 2, ...",
        "2 validation images of classes without training images always count as errors: label 8"]
    assert not list(remarks_on_labels(labels(0, 1, 1), labels(1), 2))
    remark = remark_on_validation(labels(0, 1), labels(1), 2, ("cat", "dog"))
    assert remark == "1 of 2 classes has no validation images: cat"
    assert remark_on_validation(labels(0, 1, 1), labels(1, 0), 2) is None


def test_mean_image_of_other_images_is_remarked_on(tmp_path):
    file = tmp_path / "0000.hkl"
    images = np.random.default_rng(0).integers(60, 180, (3, 256, 256, 16), dtype=np.uint8)
    images[2] //= 4
    batch_file.write(file, images)
    assert remark_on_mean(file, images.mean(axis=3, dtype=np.float32)) is None
    assert remark_on_mean(file, images[::-1].mean(axis=3, dtype=np.float32)) == (
        f"channel 0 of the mean image averages 29, and of the images in {file} 119 of 255; is it the mean of other "
        "images?")
    assert "zero everywhere" in remark_on_mean(file, np.zeros((3, 256, 256), np.float32))


def test_mean_image_in_0_to_1_is_refused(tmp_path):
    np.save(tmp_path / "img_mean.npy", np.linspace(0.1, 0.9, 3 * 2**16, dtype=np.float32).reshape(3, 256, 256))
    with pytest.raises(DataError, match="holds values 0.1 to 0.9, .* images divided by 255"):
        load_mean(tmp_path / "img_mean.npy")
