"""Labels: the index of the class folder in sorted order, for every layout of the validation labels."""

import os

import numpy as np
import pytest
import scipy.io

from alexnet.data.batch_file import DataError
from alexnet.data.image_listing import find_images

CLASSES = ("n02119789", "n01440764", "n03000000")            # ILSVRC ids 1, 2, 3: not sorted
WORDS = ("kit fox, Vulpes macrotis", "tench, Tinca tinca", "thing")
TRUTH = (3, 1, 2, 1)


@pytest.fixture
def tree(tmp_path):
    """Return a tree with class folders for training, and ILSVRC's flat folder and devkit for validation."""
    for number, wnid in enumerate(CLASSES):
        (tmp_path / "train" / wnid).mkdir(parents=True)
        for i in range(3 + number):
            (tmp_path / "train" / wnid / f"{wnid}_{i}.JPEG").touch()
    (tmp_path / "val").mkdir()
    for i in range(4):
        (tmp_path / "val" / f"ILSVRC2012_val_{i + 1:08d}.JPEG").touch()
    devkit = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    devkit.mkdir(parents=True)
    lines = "\n".join(map(str, TRUTH))
    (devkit / "ILSVRC2012_validation_ground_truth.txt").write_text(lines + "\n")
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O")]
    rows = [(i + 1, wnid, words, "gloss") for i, (wnid, words) in enumerate(zip(CLASSES, WORDS, strict=True))]
    synsets = np.array(rows, dtype=kinds).reshape(-1, 1)
    scipy.io.savemat(devkit / "meta.mat", {"synsets": synsets})
    return tmp_path


def devkit(tree):
    return tree / "ILSVRC2012_devkit_t12" / "data"


def found(tree, **options):
    return find_images(tree / "train", tree / "val", **options)


def labels_of(images):
    return dict(zip(images.names, images.labels.tolist(), strict=True))


def test_label_is_the_index_among_sorted_folders(tree):
    sources = found(tree)
    assert len(sources.train.names) == 12
    for name, label in labels_of(sources.train).items():
        assert sorted(CLASSES)[label] == name.split("/")[0]
    assert sources.class_names == (
        "n01440764 tench, Tinca tinca", "n02119789 kit fox, Vulpes macrotis", "n03000000 thing")


def test_ground_truth_is_translated_by_the_devkit(tree):
    assert list(labels_of(found(tree).validation).values()) == [2, 1, 0, 1]


@pytest.mark.parametrize("line", ["{id} {wnid} {words}", "{wnid} {id} {words}"])
def test_text_synset_table_is_accepted(tree, line):
    (devkit(tree) / "meta.mat").unlink()
    rows = [line.format(id=i + 1, wnid=w, words=t) for i, (w, t) in enumerate(zip(CLASSES, WORDS, strict=True))]
    (tree / "table.txt").write_text("\n".join(rows))
    sources = found(tree, synsets=str(tree / "table.txt"))
    assert sources.validation.labels.tolist() == [2, 1, 0, 1] and "kit fox" in sources.class_names[1]


def test_files_in_other_places_are_accepted(tree):
    (devkit(tree)).rename(tree / "elsewhere")
    truth = tree / "elsewhere" / "ILSVRC2012_validation_ground_truth.txt"
    with pytest.raises(DataError, match="pass --ground-truth FILE"):
        found(tree)
    assert found(tree, ground_truth=truth).validation.labels.tolist() == [2, 1, 0, 1]
    with pytest.raises(DataError, match="nowhere.mat is not a file"):
        found(tree, ground_truth=truth, synsets=tree / "nowhere.mat")


def test_validation_may_have_class_folders(tree):
    for i, wnid in enumerate(CLASSES[:2]):
        (tree / "folders" / wnid).mkdir(parents=True)
        (tree / "folders" / wnid / f"{i}.png").touch()
    sources = find_images(tree / "train", tree / "folders")
    assert labels_of(sources.validation) == {"n01440764/1.png": 0, "n02119789/0.png": 1}


def test_only_image_file_endings_are_listed(tree):
    for name in ("a.jpg", "b.JPG", "c.Jpeg", "d.PNG", "e.txt", ".f.jpg", "g"):
        (tree / "train" / CLASSES[0] / name).touch()
    inside = [n.split("/")[1] for n in found(tree).train.names if n.startswith(CLASSES[0])]
    assert sorted(n for n in inside if not n.startswith("n")) == ["a.jpg", "b.JPG", "c.Jpeg", "d.PNG"]


def test_training_images_are_shuffled_as_upstream(tree):
    names = np.asarray(sorted(found(tree).train.names))
    np.random.RandomState(7).shuffle(names)
    assert list(found(tree, seed=7).train.names) == list(names)
    assert list(found(tree, seed=8).train.names) != list(names)


def test_validation_keeps_its_order(tree):
    assert list(found(tree, seed=3).validation.names) == sorted(found(tree).validation.names)


def test_limit_samples_all_classes(tree):
    whole, part = found(tree), found(tree, limit=3)
    assert part.train.names == whole.train.names[:3] and len(part.validation.names) == 3
    assert labels_of(part.validation).items() <= labels_of(whole.validation).items()
    assert part.digest() != whole.digest() == found(tree, limit=100).digest()


def test_names_that_are_not_utf8_are_kept(tree):
    folder = os.fsencode(tree / "train" / CLASSES[0])
    with open(folder + b"/caf\xe9.jpg", "wb"):
        pass
    assert f"{CLASSES[0]}/" + os.fsdecode(b"caf\xe9.jpg") in found(tree).train.names
    assert len(found(tree).digest()) == 64


def missing_train(tree):
    (tree / "train").rename(tree / "other")


def no_classes(tree):
    missing_train(tree)
    (tree / "train").mkdir()


def empty_class(tree):
    (tree / "train" / "n04000000").mkdir()


def unknown_class(tree):
    (tree / "val").rename(tree / "flat")
    (tree / "val" / "n05000000").mkdir(parents=True)
    (tree / "val" / "n05000000" / "x.jpg").touch()


def too_few_labels(tree):
    (devkit(tree) / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n3\n")


def image_lost_and_one_added(tree):
    (tree / "val" / "ILSVRC2012_val_00000002.JPEG").rename(tree / "val" / "ILSVRC2012_val_00000005.JPEG")


def id_without_class(tree):
    (devkit(tree) / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n3\n9\n")


def words_for_labels(tree):
    (devkit(tree) / "ILSVRC2012_validation_ground_truth.txt").write_text("fox\n" * 4)


def table_without_ids(tree):
    (devkit(tree) / "meta.mat").unlink()
    (devkit(tree) / "synsets.txt").write_text("n01440764 tench, Tinca tinca\nn02119789 kit fox\n")


def broken_table(tree):
    (devkit(tree) / "meta.mat").write_bytes(b"MATLAB" * 50)


def no_table(tree):
    (devkit(tree) / "meta.mat").unlink()


@pytest.mark.parametrize(("damage", "message"), [
    (missing_train, "train cannot be listed: No such file"),
    (no_classes, "holds no class folders"),
    (empty_class, "class folder .*n04000000 holds no JPEG or PNG file"),
    (unknown_class, "has class folder n05000000, which the training folder lacks"),
    (too_few_labels, "holds 3 labels for 4 images"),
    (image_lost_and_one_added, "is image 2 of its folder; one is missing"),
    (id_without_class, "line 4 of .* is 9, synset unknown, which is no class"),
    (words_for_labels, "is not one class id per line"),
    (table_without_ids, "is neither the devkit's meta.mat nor lines of id, wnid and words"),
    (broken_table, "is neither the devkit's meta.mat"),
    (no_table, "is not near .*; pass --synsets FILE"),
])
def test_invalid_input_is_refused_in_one_sentence(tree, damage, message):
    damage(tree)
    with pytest.raises(DataError, match=message) as caught:
        found(tree)
    assert "\n" not in str(caught.value)
