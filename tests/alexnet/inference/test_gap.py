"""--expect names the cause of a gap: labels are the answers of a network whose images are prepared in another way."""

import json
from math import sqrt

import numpy as np
import pytest

from alexnet import pretrained
from alexnet.__main__ import main
from alexnet.data.images import batch_of, pixels_of
from alexnet.inference.evaluate import scores_of
from alexnet.inference.evaluation_data import DatasetHalf
from alexnet.inference.gap import SAMPLE, Choice, Effect, Explanation, effect_of
from tests.alexnet.inference.test_evaluate import CLASSES, WNIDS, make_weights
from tests.hostile_images import encoded, photograph
from tests.tiny import make_data

IMAGES = 24


def mean_image():
    """Return a mean image whose channels and pixels differ clearly."""
    noise = np.random.default_rng(1).uniform(-40, 40, (3, 256, 256))
    return (np.array([170, 110, 50])[:, np.newaxis, np.newaxis] + noise).astype(np.float32)


@pytest.fixture(scope="module")
def weights():
    return make_weights(mean=mean_image())


@pytest.fixture(scope="module")
def network(weights):
    return pretrained.build(weights)


def answers(weights, network, pixels, cause):
    """Return the most probable class of images, uint8 (3, 256, 256, n), if they are prepared as in `cause`."""
    if cause == "colours: images BGR, mean as it is":
        pixels = np.ascontiguousarray(pixels[::-1])
    if cause == "mean: its channels in the reverse order":
        network = pretrained.build(weights._replace(mean=weights.mean[::-1].copy()))
    crops = 10 if cause == "crops: 10 instead of 1" else 1
    return scores_of(network, pixels, crops).argmax(axis=0)


@pytest.mark.slow
@pytest.mark.parametrize(("cause", "cure"), [
    ("resize: crop instead of squash", "try --resize crop"),
    ("crops: 10 instead of 1", "try --crops 10"),
    ("mean: its channels in the reverse order", "pass the mean image with --mean FILE --mean-order bgr"),
    ("colours: images BGR, mean as it is", "the weights seem to take BGR images"),
])
def test_cause_of_a_gap_is_found(tmp_path, weights, network, cause, cure, capsys):
    pictures = [photograph(420, 200, seed=seed) for seed in range(IMAGES)]
    resize = "crop" if cause.startswith("resize") else "squash"
    labels = answers(weights, network, batch_of([pixels_of(each, resize) for each in pictures]), cause)
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        (tmp_path / "val" / WNIDS[label]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "val" / WNIDS[label] / f"{number}.png").write_bytes(encoded(picture, "PNG"))
    pretrained.save(weights, tmp_path / "w.safetensors")
    found = tmp_path / "found.json"
    assert main(["evaluate", "--weights", str(tmp_path / "w.safetensors"), "--data", str(tmp_path / "val"),
                 "--expect", "99", "--json", str(found)]) == 0
    printed = capsys.readouterr().out
    assert f"\nlikeliest cause: {cause}; {cure}" in printed
    expect = json.loads(found.read_text())["expect"]
    assert (expect["likeliest"], expect["expected"], expect["sampled"]) == (cause, 99, IMAGES)
    assert expect["accuracy"] == expect["found"]            # cropped outside the graph, the images are the same
    (effect,) = [each for each in expect["choices"] if each["name"] == cause]
    assert effect["accuracy"] == 100
    assert f"  100.00 %  {effect['change']:+6.2f} ± {effect['standard_error']:5.2f}   {cause}\n" in printed


@pytest.mark.slow
def test_data_set_is_sampled_over_its_whole_length(tmp_path, capsys):
    """Images of a class may be next to each other, so the first images are no sample."""
    data = make_data(tmp_path / "data", train=4, validation=200, per_file=50, classes=CLASSES)
    labelled = DatasetHalf(data, CLASSES)
    batches = [batch.labels for batch in labelled.sample(50).batches(5)]
    assert sum(map(len, batches)) == 50 < SAMPLE
    np.testing.assert_array_equal(batches[-1], labelled.split.labels[180:185])


def explanation(expected, found, *effects, images=10_000):
    return Explanation(expected, found, images, 500, found, effects)


def effect(name, change, error=1.0):
    return Effect(Choice(name, "", np.zeros(3), "squash", 1), 50 + change, change, error)


@pytest.mark.parametrize(("expected", "effects", "likeliest"), [
    (54, [effect("a", 1.9), effect("b", 4.3), effect("c", -4)], "b"),
    (46, [effect("a", 1.9), effect("b", 4.3), effect("c", -4)], "c"),
    (54, [effect("closes less than half", 1.9)], None),
    (54, [effect("overshoots", 20)], None),
    (54, [effect("closes it within two standard errors", 20, 9)], "closes it within two standard errors"),
    (50.2, [effect("a", 0.2)], None),                       # too small to need a cause
])
def test_likeliest_cause_closes_the_gap(expected, effects, likeliest):
    found = explanation(expected, 50, *effects)
    assert (found.likeliest and found.likeliest.choice.name) == likeliest


@pytest.mark.parametrize(("found", "lines"), [
    (explanation(50.2, 50), ["the gap needs no cause"]),
    (explanation(60, 50), ["none of these choices closes the gap: compare the order of the classes"]),
    (explanation(54, 50, effect("a", 4)), ["likeliest cause: a; "]),
    (explanation(51, 49, effect("a", 1.5), images=100), [
        "if the expected accuracy is that of other images, 100 images are too few to decide: their standard ",
        "likeliest cause: a; ", "this is uncertain: its change is less than 2 standard errors",
    ]),
])
def test_conclusion_states_how_sure_it_is(found, lines):
    concluded = list(found.conclusion())
    assert len(concluded) == len(lines)
    assert all(line.startswith(start) for line, start in zip(concluded, lines, strict=True))


def test_standard_error_is_that_of_paired_proportions(rng):
    before, after = rng.random((2, 4000)) < [[0.5], [0.6]]
    found = effect_of(Choice("a", "", np.zeros(3), "squash", 1), before, after)
    difference = after.astype(float) - before
    assert found.change == pytest.approx(100 * difference.mean())
    assert found.error == pytest.approx(100 * difference.std() / sqrt(4000))
