"""Evaluation: counts match an independent recount, crops match separate predictions, mismatched data is refused."""

import csv
import json
import re
import threading
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from alexnet import pretrained
from alexnet.__main__ import main
from alexnet.commands import evaluate as command
from alexnet.data import batch_file
from alexnet.data.augment import centre_crop
from alexnet.data.dataset import DataError
from alexnet.data.image_listing import find_images
from alexnet.inference.evaluate import Counts, evaluate, place_of_label, scores_of
from alexnet.inference.evaluation_data import DatasetHalf, ImageFolder
from alexnet.native import compiler
from alexnet.pretrained import Weights
from alexnet.run.recorder import read_records
from preprocess.command import main as preprocess
from tests.hostile_images import encoded, photograph, place_all
from tests.tiny import Tiny, make_data, run

pytestmark = pytest.mark.slow

CLASSES = 10
NAMES = tuple(f"n9000000{label} thing {label}, object {label}" for label in range(CLASSES))
WNIDS = [name.split()[0] for name in NAMES]


def make_weights(seed=0, **changes):
    """Return weights of the tiny network whose predictions differ from image to image."""
    model = Tiny(np.random.default_rng(seed), CLASSES)
    arrays = {parameter.name: parameter.variable.get_value() for parameter in model.parameters}
    arrays["fc3.W"] *= 40
    arrays["fc4.W"] *= 400
    mean = np.random.default_rng(1).uniform(90, 130, (3, 256, 256)).astype(np.float32)
    return Weights("tiny", arrays, mean, NAMES)._replace(**changes)


@pytest.fixture(scope="module")
def weights():
    return make_weights()


@pytest.fixture(scope="module")
def network(weights):
    compiler.use_threads(None)
    return pretrained.build(weights)


@pytest.fixture
def saved(tmp_path):
    """Return a function that saves the weights, with changes given as keywords, and returns the path."""

    def save(**changes):
        path = tmp_path / f"weights{len(list(tmp_path.glob('weights*')))}.safetensors"
        pretrained.save(make_weights(**changes), path)
        return str(path)

    return save


def evaluated(*arguments):
    return main(["evaluate", *map(str, arguments)])


# ---- the counts


def recount(weights, folder):
    """Return label, classes by descending probability, and cost of each validation image, by PyTorch in float64."""
    torch = pytest.importorskip("torch")
    W = {name: torch.from_numpy(array.astype(np.float64)) for name, array in weights.arrays.items()}

    def conv(x, name, **geometry):
        return torch.conv2d(x, W[f"{name}.W"].permute(3, 0, 1, 2), W[f"{name}.b"], **geometry)

    def logits(x):
        x = torch.max_pool2d(torch.relu(conv(x, "conv1", stride=8)), 3, 2)
        x = torch.nn.functional.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2.0)
        x = torch.relu(conv(x, "conv2", stride=2, padding=1, groups=2)).flatten(1)
        return torch.relu(x @ W["fc3.W"] + W["fc3.b"]) @ W["fc4.W"] + W["fc4.b"]

    found = []
    for file in sorted(folder.glob("val_hkl*/*.hkl")):
        with h5py.File(file) as opened:
            images = np.moveaxis(opened["data"][:, 14:241, 14:241], 3, 0)
        for first in range(0, len(images), 50):
            pixels = images[first : first + 50].astype(np.float64) - weights.mean[:, 14:241, 14:241]
            found.append(logits(torch.from_numpy(np.ascontiguousarray(pixels))))
    found, labels = torch.cat(found), np.load(folder / "labels" / "val_labels.npy")
    costs = torch.nn.functional.cross_entropy(found, torch.from_numpy(labels), reduction="none")
    return labels, torch.argsort(found, dim=1, descending=True).numpy(), costs.numpy()


def thousand(folder):
    """Make a data set of 1000 validation images, each one of 40 coarse patterns, in files of 300."""
    make_data(folder, train=4, validation=4, classes=CLASSES)
    rng = np.random.default_rng(3)
    patterns = rng.integers(0, 256, (3, 8, 8, 40), dtype=np.uint8).repeat(32, axis=1).repeat(32, axis=2)
    for number, images in enumerate((300, 300, 300, 100)):
        path = folder / "val_hkl_b8_b_8" / f"{number:04d}.hkl"
        batch_file.write(path, np.take(patterns, rng.integers(0, 40, images), axis=3))
    np.save(folder / "labels" / "val_labels.npy", rng.integers(0, CLASSES, 1000))
    return folder


def test_counts_match_an_independent_count(tmp_path, saved, capsys):
    """11 batches of 96 images, the last of 40, from 4 files of 300 images, the last of 100."""
    data = thousand(tmp_path / "data")
    found, matrix = tmp_path / "found.json", tmp_path / "confusion.csv"
    assert evaluated("--weights", saved(), "--data", data, "--batch-size", 96, "--json", found,
                     "--confusion", matrix, "--per-class") == 0
    labels, order, costs = recount(make_weights(), data)
    right = {k: int((order[:, :k] == labels[:, np.newaxis]).any(axis=1).sum()) for k in (1, 5)}
    assert 50 < right[1] < 200 < right[5] < 800 and len(set(order[:, 0])) > 4        # predictions depend on the images
    results = json.loads(found.read_text())
    assert results["images"] == 1000
    for k in (1, 5):
        assert results[f"top{k}"] == {"right": right[k], "accuracy": right[k] / 1000, "error": (1000 - right[k]) / 1000}
    assert results["cost"] == pytest.approx(costs.mean(), rel=1e-5)
    for label, each in enumerate(results["per_class"]):
        own = labels == label
        assert (each["name"], each["images"]) == (NAMES[label], own.sum())
        assert each["top1"]["right"] == (order[own, 0] == label).sum()
        assert each["cost"] == pytest.approx(costs[own].mean(), rel=1e-5)
    header, *rows = csv.reader(matrix.read_text().splitlines())
    assert (header, [row[0] for row in rows]) == (["label", *NAMES], list(NAMES))
    for label, row in enumerate(rows):
        np.testing.assert_array_equal(np.array(row[1:], int), np.bincount(order[labels == label, 0], minlength=CLASSES))
    screen = capsys.readouterr().out
    assert f"{right[1]} of 1,000 right" in screen and f"{right[5]} of 1,000 right" in screen


def test_evaluate_matches_the_validation_of_the_run(tmp_path):
    """The last checkpoint of a run on its own data; 10 images in batches of 4 in the run and of 3 here."""
    data = make_data(tmp_path / "data")
    folder, found = run(data, tmp_path / "out", n_epochs=1), tmp_path / "found.json"
    (own,) = [record for record in read_records(folder) if record["kind"] == "validation"]
    assert evaluated("--weights", folder, "--data", data, "--batch-size", 3, "--json", found) == 0
    results = json.loads(found.read_text())
    assert results["cost"] == pytest.approx(own["cost"], rel=1e-5)
    assert results["top1"]["error"] == pytest.approx(own["top1_error"])
    assert results["top5"]["error"] == pytest.approx(own["top5_error"])


def test_ties_rank_the_lower_class_first(rng):
    scores = rng.integers(0, 4, (7, 200)).astype(float)         # many ties
    labels = rng.integers(0, 7, 200)
    expected = [sorted(range(7), key=lambda c: (-column[c], c)).index(label)
                for column, label in zip(scores.T, labels, strict=True)]
    np.testing.assert_array_equal(place_of_label(scores, labels), expected)


def test_huge_scores_have_exact_costs():
    counts = Counts(3)
    counts.add(np.array([[1e5, -1e5], [0.0, 0.0], [1e5, -1e5]]), np.array([1, 1]))
    np.testing.assert_allclose(counts.cost, [0, 1e5 + np.log(2), 0], rtol=1e-12)


def test_classes_without_images_have_no_accuracy():
    counts = Counts(2)
    counts.add(np.zeros((2, 1)), np.array([1]))
    empty, full = counts.per_class()
    assert empty == {"images": 0, "top1": {"right": 0, "accuracy": None, "error": None},
                     "top5": {"right": 0, "accuracy": None, "error": None}, "cost": None}
    assert (full["top1"]["right"], full["cost"]) == (0, np.log(2))


# ---- crops


@pytest.mark.parametrize("batch", [1, 30, 65])                  # ten, four or one view per pass
def test_ten_crops_average_ten_predictions(weights, network, rng, batch):
    separate = pretrained.build(weights, crop=False)            # takes images that are already cropped
    images = rng.integers(0, 256, (3, 256, 256, batch), dtype=np.uint8)
    pixels = images - weights.mean[..., np.newaxis]
    total = np.zeros((CLASSES, batch))
    for row, column in ((0, 0), (0, 29), (29, 0), (29, 29), (14, 14)):
        view = pixels[:, row : row + 227, column : column + 227]
        for each in (view, view[:, :, ::-1]):
            total += separate.predict(np.ascontiguousarray(each))
    np.testing.assert_allclose(np.exp(scores_of(network, images, crops=10)), total / 10, rtol=2e-5)


def test_one_crop_is_the_centre(network, rng):
    images = rng.integers(0, 256, (3, 256, 256, 2), dtype=np.uint8)
    np.testing.assert_array_equal(scores_of(network, images), network.logits(images, *centre_crop(2, 227)))


def test_other_numbers_of_crops_are_refused(network):
    with pytest.raises(ValueError, match="crops must be 1 or 10, got 5"):
        scores_of(network, np.zeros((3, 256, 256, 1), np.uint8), crops=5)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("crops", [1, 10])
def test_nonfinite_outputs_are_refused(wrong, crops):
    def logits(images, *crop):
        return np.full((3, images.shape[3]), wrong, np.float32)

    with pytest.raises(ValueError, match="outputs are not finite"):
        scores_of(SimpleNamespace(model=Tiny, logits=logits), np.zeros((3, 256, 256, 2), np.uint8), crops)


# ---- folders of images


@pytest.fixture
def tree(tmp_path):
    """Return class folders of JPEG and PNG photographs: all classes for training, some for validation."""
    for part, number in (("train", 10), ("val", 13)):
        for i in range(number):
            path = tmp_path / part / WNIDS[i % (10 if part == "train" else 4)] / f"{i}.{('JPEG', 'png')[i % 2]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(photograph(90 + i, 70, seed=i), "PNG" if i % 2 else "JPEG"))
    return tmp_path


def flat(tree):
    """Add ILSVRC's layout of the validation images: a flat folder, and ground truth in ids of the devkit's table."""
    images = find_images(tree / "train", tree / "val").validation
    devkit = tree / "devkit"
    devkit.mkdir()
    (tree / "flat").mkdir()
    ids = {wnid: number for number, wnid in enumerate(reversed(WNIDS), start=1)}
    (devkit / "table.txt").write_text("".join(f"{number} {wnid} thing\n" for wnid, number in ids.items()))
    (devkit / "truth.txt").write_text("".join(f"{ids[name.split('/')[0]]}\n" for name in images.names))
    for number, name in enumerate(images.names, start=1):
        content = (tree / "val" / name).read_bytes()
        (tree / "flat" / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(content)
    return tree / "flat", ["--ground-truth", devkit / "truth.txt", "--synsets", devkit / "table.txt"]


def made_of(tree, *options):
    """Preprocess the class folders of a tree into a data set; return its folder."""
    folders = [str(tree / part) for part in ("train", "val", "data")]
    assert preprocess(["imagenet", *folders, "--workers", "1", *options]) == 0
    return tree / "data"


@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_image_folder_and_its_data_set_agree(tree, saved, resize):
    path, results = saved(resize=resize), {}
    made_of(tree, "--resize", resize, "--batch-size", "4")
    folder, options = flat(tree)
    runs = {"set": (tree / "data", []), "folders": (tree / "val", []), "flat": (folder, options)}
    for name, (data, more) in runs.items():
        assert evaluated("--weights", path, "--data", data, "--batch-size", 5, "--json", tree / "results", *more) == 0
        found = json.loads((tree / "results").read_text())
        results[name] = {key: found[key] for key in ("images", "top1", "top5", "cost", "resize")}
    assert results["set"]["images"] == 13
    assert results["set"] == results["folders"] == results["flat"]
    pixels = [np.concatenate([batch.images for batch in labelled.batches(5)], axis=3)
              for labelled in (DatasetHalf(tree / "data", CLASSES), ImageFolder(tree / "val", CLASSES, NAMES, resize))]
    np.testing.assert_array_equal(*pixels)


def test_folders_may_have_full_class_names(tmp_path):
    names = ("n90000000 thing", "cat", "n90000002 other")
    for folder in ("n90000002 other", "cat", "n90000000"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").write_bytes(b"")
    images = ImageFolder(tmp_path, 3, names).images
    assert dict(zip(images.names, images.labels.tolist(), strict=True)) == {
        "cat/1.jpg": 1, "n90000000/1.jpg": 0, "n90000002 other/1.jpg": 2}


def test_ambiguous_class_names_are_refused(tree):
    with pytest.raises(DataError, match="the weights give classes 0 and 2 the same name: crane"):
        ImageFolder(tree / "train", 3, ("crane", "cat", "crane"))


def test_folders_without_class_names_are_counted(tree):
    assert ImageFolder(tree / "train", CLASSES).images.labels.tolist() == list(range(10))
    with pytest.raises(DataError, match="has 4 class folders, and the weights, which do not name .* have 10"):
        ImageFolder(tree / "val", CLASSES)


def numbered(folder, numbers):
    """Make class folders with these names, each with one file named after it."""
    for number in numbers:
        (folder / number).mkdir(parents=True)
        (folder / number / f"of_{number}.jpg").write_bytes(b"")
    return folder


@pytest.mark.parametrize("names", [None, tuple(f"n900000{label:02} thing" for label in range(12))])
def test_numbered_folders_are_labels_in_numeric_order(tmp_path, names):
    labelled = ImageFolder(numbered(tmp_path, map(str, range(12))), 12, names)
    assert labelled.images.names == tuple(f"{label}/of_{label}.jpg" for label in range(12))
    assert labelled.images.labels.tolist() == list(range(12))
    assert labelled.notes == (f"the class folders of {tmp_path} are numbers, 0 to 11: taken as labels",)


def test_class_names_that_are_numbers_come_first(tmp_path):
    labelled = ImageFolder(numbered(tmp_path, ["7", "10"]), 3, ("10", "7", "8"))
    assert dict(zip(labelled.images.names, labelled.images.labels.tolist(), strict=True)) == {
        "10/of_10.jpg": 0, "7/of_7.jpg": 1}


@pytest.mark.parametrize(("folders", "reason"), [
    (["1", "2", "3"], "has class folder 3, and the labels of the weights are 0 to 2; do they start at 1?"),
    (["0", "5"], "has class folder 5, and the labels of the weights are 0 to 2$"),
    (["1", "01"], "has class folders 01 and 1, which are the same number"),
])
def test_numbered_folders_that_are_no_labels_are_refused(tmp_path, folders, reason):
    with pytest.raises(DataError, match=reason):
        ImageFolder(numbered(tmp_path, folders), 3)


def files(folder, *names):
    """Make a folder with empty files of these names."""
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def test_flat_folder_is_labelled_by_the_wnid_in_each_name(tmp_path):
    folder = files(tmp_path / "flat", f"{WNIDS[4]}_10026.JPEG", f"ILSVRC2012_val_00000001_{WNIDS[2]}.JPEG",
                   f"{WNIDS[0]}_cat.png", f"{WNIDS[4]}_7_{WNIDS[4]}.jpg")
    labelled = ImageFolder(folder, CLASSES, NAMES)
    assert dict(zip(labelled.images.names, labelled.images.labels.tolist(), strict=True)) == {
        f"{WNIDS[4]}_10026.JPEG": 4, f"ILSVRC2012_val_00000001_{WNIDS[2]}.JPEG": 2, f"{WNIDS[0]}_cat.png": 0,
        f"{WNIDS[4]}_7_{WNIDS[4]}.jpg": 4}
    assert labelled.notes == (f"the images of {folder} are labelled by the wnid in their names",)


@pytest.mark.parametrize(("names", "reason"), [
    ([f"{WNIDS[0]}_1.jpg", f"{WNIDS[1]}_1.jpg", "cat.jpg"], "cat.jpg has not one wnid in its name, as the other"),
    (["n91234567_1.jpg"], "n91234567_1.jpg is of class n91234567, which the list of the weights' classes lacks"),
])
def test_flat_folder_with_an_unknown_class_is_refused(tmp_path, names, reason):
    with pytest.raises(DataError, match=reason):
        ImageFolder(files(tmp_path / "flat", *names), CLASSES, NAMES)


def test_limit_samples_many_classes(tree, network):
    images = ImageFolder(tree / "train", CLASSES, NAMES, limit=5)
    assert images.n == 5 and len({name.split("/")[0] for name in images.images.names}) > 2
    assert evaluate(network, images, Counts(CLASSES), batch_size=2).n == 5


# ---- broken images


@pytest.fixture
def hostile(tmp_path):
    """Return a class folder with every kind of image, and the expected error of each."""
    folder = tmp_path / "hostile" / WNIDS[3]
    folder.mkdir(parents=True)
    reasons = place_all(folder)
    return folder.parent, {path.removeprefix(f"{folder.parent}/"): reason for path, reason in reasons.items()}


def test_broken_images_are_listed_and_skipped(hostile, saved, tmp_path, capsys):
    folder, reasons = hostile
    found = tmp_path / "found.json"
    assert evaluated("--weights", saved(), "--data", folder, "--on-bad-image", "skip", "--batch-size", 3,
                     "--json", found) == 0
    results = json.loads(found.read_text())
    bad = {name: reason for name, reason in reasons.items() if reason}
    assert results["images"] == len(reasons) - len(bad)
    assert sorted(each["image"] for each in results["skipped"]) == sorted(bad)
    for each in results["skipped"]:
        assert re.match(bad[each["image"]].split(":")[0], each["reason"]) and "\n" not in each["reason"]
    assert f"{len(bad)} bad images are left out: " in capsys.readouterr().out


def test_broken_image_ends_the_evaluation(hostile, saved, capsys):
    folder, reasons = hostile
    for name, reason in reasons.items():
        if reason is None:
            (folder / name).unlink()
    assert evaluated("--weights", saved(), "--data", folder) == 2
    first = sorted(name for name, reason in reasons.items() if reason)[0]
    error = capsys.readouterr().err
    assert error.startswith(f"alexnet evaluate: {folder}/{first} {reasons[first].split(':')[0]}")
    assert error.endswith("; --on-bad-image skip leaves such images out\n") and error.count("\n") == 1
    assert evaluated("--weights", saved(), "--data", folder, "--on-bad-image", "skip") == 2
    assert f"none of the {len(reasons) - 10} images of the folder" in capsys.readouterr().err


# ---- what does not fit


@pytest.fixture
def data(tmp_path):
    return make_data(tmp_path / "data", train=4, validation=6, per_file=4, classes=CLASSES)


def named(tree, names):
    """Return a data set whose manifest contains the class names."""
    for part in ("train", "val"):
        for name in names:
            (tree / part / name).mkdir(parents=True)
            (tree / part / name / "1.png").write_bytes(encoded(photograph(20, 20), "PNG"))
    return made_of(tree)


def test_other_class_order_is_refused(tmp_path, saved, capsys):
    out = named(tmp_path / "other", [*WNIDS[:4], *(f"n9100000{i}" for i in range(6))])
    assert evaluated("--weights", saved(), "--data", out) == 2
    error = capsys.readouterr().err
    assert f"class 4 is n91000000 in {out} and {NAMES[4]} in the weights; the classes must be the same" in error


def test_data_with_fewer_classes_is_refused(tmp_path, saved, capsys):
    out = named(tmp_path / "other", WNIDS[:3])
    assert evaluated("--weights", saved(class_names=None), "--data", out) == 2
    assert "has 3 classes and the weights 10; they must be the same" in capsys.readouterr().err


def test_other_resize_is_noted(tmp_path, saved, capsys):
    out = named(tmp_path / "other", WNIDS)
    assert evaluated("--weights", saved(resize="crop"), "--data", out) == 0
    assert f"note: the images of {out} were resized by squash, the weights expect crop\n" in capsys.readouterr().err


def test_weights_without_mean_use_that_of_the_data(data, saved, tmp_path, capsys):
    found = [tmp_path / "own.json", tmp_path / "given.json"]
    mean = data / "misc" / "img_mean.npy"
    assert evaluated("--weights", saved(mean=None), "--data", data, "--json", found[0]) == 0
    assert f"note: the weights come without a mean image; that of {data} is subtracted\n" in capsys.readouterr().err
    assert evaluated("--weights", saved(), "--mean", mean, "--data", data, "--json", found[1]) == 0
    own, given = (json.loads(file.read_text()) for file in found)
    assert own["cost"] == given["cost"]


def test_missing_classes_are_noted(tmp_path, saved, capsys):
    data = make_data(tmp_path / "few", train=4, validation=4, classes=3)
    assert evaluated("--weights", saved(), "--data", data) == 0
    assert "does not name its classes; its labels end at 2, the weights' at 9\n" in capsys.readouterr().err


@pytest.mark.parametrize(("half", "expected"), [("validation", 6), ("train", 4)])
def test_each_half_is_evaluated(data, network, half, expected):
    assert evaluate(network, DatasetHalf(data, CLASSES, half=half), Counts(CLASSES), batch_size=4).n == expected
    assert evaluate(network, DatasetHalf(data, CLASSES, half=half, limit=3), Counts(CLASSES), batch_size=2).n == 3


@pytest.mark.parametrize(("arguments", "reason"), [
    (["--data", "{data}/nowhere"], "nowhere is not a folder; expected a data set, or a folder of images"),
    (["--data", "{data}", "--on-bad-image", "skip"], "--on-bad-image is for a folder of images, and "),
    (["--data", "{data}", "--resize", "crop"], "--resize is for a folder of images, and "),
    (["--data", "https://example.org/val"], "https://example.org/val is a URL, not a folder; download"),
    (["--data", "{data}", "--synsets", "x"], "--synsets is for a folder of images, and "),
    (["--data", "{tree}/val", "--half", "train"], "--half train is for a data set of batch files, and "),
    (["--data", "{tree}/other"], "has class folder n91000000, which the list of the weights' classes lacks"),
    (["--data", "{tree}"], "class folder .*data holds no image"),
    (["--data", "{tree}/val/n90000000"], "ILSVRC2012_validation_ground_truth.txt is not near it"),
    (["--data", "{data}", "--json", "{data}/nowhere/a.json"], "a.json cannot be written: there is no folder "),
    (["--data", "{data}", "--confusion", "{data}"], "is a folder; pass the name of a file"),
    (["--data", "{data}", "--threads", "0"], "the number of threads must be at least 1, got 0"),
    (["--data", "{data}", "--weights", "{data}/x"], "there are no weights"),
])
def test_invalid_input_is_refused_in_one_sentence(data, tree, saved, arguments, reason, capsys):
    (tree / "other" / "n91000000").mkdir(parents=True)
    (tree / "other" / "n91000000" / "1.png").touch()
    given = [argument.format(data=data, tree=tree) for argument in arguments]
    assert evaluated("--weights", saved(), *given) == 2
    error = capsys.readouterr().err
    assert re.search(reason, error.splitlines()[-1])


def test_flat_folder_needs_class_names(tree):
    folder, _ = flat(tree)
    with pytest.raises(DataError, match="are not in class folders, and without class names in the weights the label"):
        ImageFolder(folder, CLASSES)


@pytest.mark.parametrize("option", [
    ["--expect", "0.574"], ["--expect", "x"], ["--limit", "0"], ["--batch-size", "-1"], ["--crops", "5"],
    ["--limit", "x"],
])
def test_meaningless_option_values_are_refused(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        evaluated("--weights", "w", "--data", "d", *option)
    assert f"argument {option[0]}" in capsys.readouterr().err


# ---- interruption


def test_ctrl_c_ends_threads_and_writes_no_file(tree, saved, tmp_path, monkeypatch, capsys):
    def interrupted(self, images):
        raise KeyboardInterrupt

    monkeypatch.setattr(command.Progress, "add", interrupted)
    found, before = tmp_path / "found.json", threading.active_count()
    for data in (tree / "val", make_data(tmp_path / "data", classes=CLASSES)):
        assert evaluated("--weights", saved(), "--data", data, "--batch-size", 2, "--json", found) == 130
        assert capsys.readouterr().err.endswith("alexnet evaluate: interrupted\n")
        assert threading.active_count() == before
    assert not list(tmp_path.glob("found*"))


def test_batch_file_damaged_during_evaluation_is_refused(data, network):
    half, before = DatasetHalf(data, CLASSES), threading.active_count()
    hkl_file = sorted(data.glob("val_hkl*/*.hkl"))[1]
    hkl_file.write_bytes(hkl_file.read_bytes()[:1000])
    with pytest.raises(batch_file.DataError, match="0001.hkl is not a readable HDF5 file"):
        evaluate(network, half, Counts(CLASSES), batch_size=4)
    assert threading.active_count() == before

