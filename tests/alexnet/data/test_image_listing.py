"""Labels: the index of the class folder in sorted order, for every layout of the validation labels."""

import os

import numpy as np
import pytest
import scipy.io

from alexnet.data.batch_file import DataError
from alexnet.data.dataset import open_dataset
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


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_everything_left_out_is_counted_with_its_first_name(tree):
    first, second, _ = sorted(CLASSES)
    train = tree / "train"
    touch(train / ".DS_Store", train / "readme.txt", train / "stray.jpg", train / first / ".b.jpg",
          train / first / "old" / "b.jpg", train / first / "old" / "c" / "d.png", train / second / "boxes.txt",
          train / first / "c.heic", train / second / "d.HEIC", train / second / "empty" / "notes.txt")
    assert [str(omission) for omission in found(tree).train.omitted] == [
        "2 beside the class folders (readme.txt, ...)", "2 hidden (.DS_Store, ...)",
        f"2 in subfolders ({first}/old/b.jpg, ...)", f"1 of other types ({second}/boxes.txt)",
        f"2 of type .heic ({first}/c.heic, ...)"]


def test_dangling_class_folder_is_refused(tree):
    (tree / "train" / "n00000001").symlink_to("gone")
    with pytest.raises(DataError, match="n00000001 is a link to gone, which does not exist; without this class"):
        found(tree)


def test_class_without_readable_images_says_what_it_holds(tree):
    touch(tree / "train" / "n00000001" / "a.heic", tree / "train" / "n00000001" / "cats" / "b.jpg")
    with pytest.raises(DataError, match=r"holds no image, but 1 in subfolders \(cats/b.jpg\); "
                                        r"1 of type .heic \(a.heic\); images must be in .*train/CLASS"):
        found(tree)


def test_tiny_imagenet_is_read(tmp_path):
    for wnid in CLASSES:
        touch(tmp_path / "train" / wnid / "images" / f"{wnid}_0.JPEG", tmp_path / "train" / wnid / f"{wnid}_boxes.txt")
    touch(tmp_path / "val" / "images" / "val_0.JPEG", tmp_path / "val" / "images" / "val_1.JPEG")
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(
        f"val_{i}.JPEG\t{wnid}\t0\t32\t44\t62\n" for i, wnid in enumerate(CLASSES[:2])))
    sources = found(tmp_path)
    assert sources.validation.labels.tolist() == [1, 0]
    assert sorted(sources.train.names)[0] == "n01440764/images/n01440764_0.JPEG"
    assert [str(omission) for omission in sources.train.omitted] == [
        "3 of other types (n01440764/n01440764_boxes.txt, ...)"]


def test_accents_are_compared_in_composed_form(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    touch(tmp_path / "train" / composed / "1.jpg", tmp_path / "train" / "tea" / "1.jpg",
          tmp_path / "val" / decomposed / "1.jpg")
    assert found(tmp_path).validation.labels.tolist() == [0]
    touch(tmp_path / "train" / decomposed / "1.jpg")
    with pytest.raises(DataError, match="two class folders .*, which differ only in how accents are encoded"):
        found(tmp_path)


FLAT = [f"ILSVRC2012_val_{i + 1:08d}" for i in range(4)]
WNIDS = [CLASSES[number - 1] for number in TRUTH]
IN_ORDER = [sorted(CLASSES).index(wnid) for wnid in WNIDS]


@pytest.mark.parametrize("content", [
    "\ufeff" + "\r\n".join(map(str, TRUTH)),
    "\n".join(map(str, TRUTH)).encode("utf-16"),
    "\n".join(WNIDS),
    "".join(f"{name}.JPEG {label}\n" for name, label in reversed(list(zip(FLAT, IN_ORDER, strict=True)))),
    "ImageId,PredictionString\n" + "".join(f"{n},{w} 85 1 499 272 \n" for n, w in zip(FLAT, WNIDS, strict=True)),
], ids=["byte order mark", "UTF-16", "wnids", "Caffe's val.txt", "Kaggle's LOC_val_solution.csv"])
def test_other_ground_truths_are_read(tree, content):
    truth = tree / "truth.txt"
    truth.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert found(tree, ground_truth=truth).validation.labels.tolist() == IN_ORDER


@pytest.mark.parametrize(("content", "message"), [
    ("n01440764 tench, Tinca tinca\nn02119789 kit fox\n", "line 2 is 'n02119789 kit fox'.*table of synsets"),
    ("0\n1\n2\n1\n", "line 1 of .* is 0, but ILSVRC's class ids count from 1"),
    ("".join(f"{name}.JPEG {label + 1}\n" for name, label in zip(FLAT, IN_ORDER, strict=True)),
     "labels 1 to 3 for the 3 classes of the training folder; do they start at 1"),
    ("".join(f"{name}.JPEG 1\n" for name in FLAT[1:]), "has no line for image ILSVRC2012_val_00000001.JPEG"),
    (f"{FLAT[0]}.JPEG 1\n{FLAT[0]}.JPEG 2\n", "lines 1 and 2 of .* give ILSVRC2012_val_00000001.JPEG two labels"),
    ("", "is empty"),
])
def test_unsuitable_ground_truth_is_described(tree, content, message):
    (tree / "truth.txt").write_text(content)
    with pytest.raises(DataError, match=message):
        found(tree, ground_truth=tree / "truth.txt")


def test_unused_lines_of_the_ground_truth_are_counted(tree):
    (tree / "truth.txt").write_text("".join(f"{name}.JPEG 1\n" for name in [*FLAT, "more", "others"]))
    (omission,) = found(tree, ground_truth=tree / "truth.txt").validation.omitted
    assert str(omission) == "2 lines of the ground truth without an image (more.JPEG, ...)"


@pytest.mark.parametrize(("names", "message"), [
    (("train/a/1.jpg", "train/b/1.jpg", "valid/a/2.jpg"),
     r"holds class folders of images; convert it first: python -m preprocess folders \S+/train \S+/valid OUT$"),
    (("a/1.jpg", "b/images/1.jpg"), r"class folders .*: python -m preprocess folders \S+ VAL_DIR OUT$"),
    (("1.jpg", "2.jpg"), r"holds images, but .* python -m preprocess folders TRAIN_DIR VAL_DIR OUT$"),
])
def test_image_folder_is_no_data_set(tmp_path, names, message):
    touch(*(tmp_path / name for name in names))
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path)


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
    (empty_class, "class folder .*n04000000 holds no image"),
    (unknown_class, "has class folder n05000000, which the training folder lacks"),
    (too_few_labels, "holds 3 labels for 4 images"),
    (image_lost_and_one_added, "is image 2 of its folder; one is missing"),
    (id_without_class, "line 4 of .* is 9, synset unknown, which is no class"),
    (words_for_labels, "is no ground truth: line 1 is 'fox', but each line must be a class id, a wnid"),
    (table_without_ids, "nor lines of id, wnid and words: the line of n01440764 has no id"),
    (broken_table, "is neither the devkit's meta.mat"),
    (no_table, "is not near .*; pass --synsets FILE"),
])
def test_invalid_input_is_refused_in_one_sentence(tree, damage, message):
    damage(tree)
    with pytest.raises(DataError, match=message) as caught:
        found(tree)
    assert "\n" not in str(caught.value)
