"""The synthetic set: deterministic for a seed, correct labels in ILSVRC's layout, and no information in colour."""

import hashlib

import numpy as np
import pytest

from alexnet.data.batch_file import DataError
from alexnet.data.dataset import open_dataset
from preprocess.command import main
from preprocess.figures import FIGURES, draw
from preprocess.synthetic import make_synthetic


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("made")
    make_synthetic(out, train=30, validation=10, batch_size=16, workers=2)
    return out


def contents(folder):
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*")) if p.is_file()}


def test_layout_is_that_of_ilsvrc(made):
    images = made / "images"
    assert len(list(images.glob("train/n900000*/n900000*_*.JPEG"))) == 30
    assert sorted(p.name for p in images.glob("val/*"))[-1] == "ILSVRC2012_val_00000010.JPEG"
    truth = (images / "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt").read_text().split()
    assert sorted(map(int, truth)) == list(range(1, 11))


def test_data_set_has_ten_equal_classes(made):
    dataset = open_dataset(made)
    assert dataset.classes == 10 and dataset.class_names[5] == "n90000006 horizontal stripes"
    assert np.bincount(dataset.train.labels).tolist() == [3] * 10
    assert np.bincount(dataset.validation.labels).tolist() == [1] * 10


def test_label_is_the_drawn_class(made):
    lines = [line.rsplit(maxsplit=1) for line in (made / "misc" / "train.txt").read_text().splitlines()]
    assert len(lines) == 30 and all(int(name[1:9]) - 90000001 == int(label) for name, label in lines)
    drawn = np.random.default_rng(1).permutation(np.arange(10))             # drawn before the devkit's table
    np.testing.assert_array_equal(open_dataset(made).validation.labels, drawn)


def test_every_ten_training_images_contain_all_classes(made):
    labels = open_dataset(made).train.labels.reshape(-1, 10)
    assert (np.sort(labels) == np.arange(10)).all()
    assert (labels[0] != labels[1]).any() and (labels[0] != np.arange(10)).any()


def test_bytes_depend_only_on_the_seed(made, tmp_path):
    make_synthetic(tmp_path / "again", train=30, validation=10, batch_size=16, workers=1)
    assert contents(tmp_path / "again") == contents(made)
    random = [np.random.default_rng(seed) for seed in (1, 1, 2)]
    first, same, other = (draw(FIGURES[3], 240, 250, r) for r in random)
    assert (first == same).all() and (first != other).any() and first.shape == (250, 240, 3)


def test_second_run_does_nothing_or_is_refused(made, capsys):
    make_synthetic(made, train=30, validation=10, batch_size=16, workers=1)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(DataError, match="holds a synthetic set of .*'seed': 1.*, not .*'seed': 2"):
        make_synthetic(made, train=30, validation=10, seed=2, batch_size=16)
    assert main(["synthetic", str(made), "--train", "5"]) == 2


def test_mean_colour_is_independent_of_the_class():
    colours = np.array([[draw(figure, 240, 240, np.random.default_rng([label, i])).mean(axis=(0, 1))
                         for i in range(24)] for label, figure in enumerate(FIGURES)])
    known, asked = colours[:, :16], colours[:, 16:]
    centres, spread = known.mean(axis=1), known.std(axis=(0, 1))
    distance = (((asked[:, :, None] - centres) / spread) ** 2).sum(axis=3)
    error = (distance.argmin(axis=2) != np.arange(10)[:, None]).mean()
    assert error > 0.7


@pytest.mark.parametrize("label", range(10), ids=[figure.__name__ for figure in FIGURES])
def test_figure_covers_part_of_the_picture(label):
    y, x = np.mgrid[:256, :256].astype(np.float32) - 128
    for seed in range(5):
        inside = (FIGURES[label](x, y, np.random.default_rng(seed)) > 0).mean()
        assert 0.05 < inside < 0.7
