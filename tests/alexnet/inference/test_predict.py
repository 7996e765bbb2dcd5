"""Prediction: the two-line Python API, the command's output, and the error for every kind of broken image."""

import io
import json
import os
import re
import sys
import threading
from itertools import count

import numpy as np
import pytest

from alexnet import pretrained
from alexnet.__main__ import main
from alexnet.data.images import BadImage, batch_of, read_image
from alexnet.inference.predict import Guess, Predictor
from alexnet.pretrained import Weights
from tests.hostile_images import encoded, photograph, place_all
from tests.tiny import Tiny

CLASSES = 7
NAMES = tuple(f"n9000000{label} thing {label}, object {label}" for label in range(CLASSES))


@pytest.fixture(scope="module")
def weights():
    """Return weights of the tiny network whose predictions differ from image to image."""
    model = Tiny(np.random.default_rng(2), CLASSES)
    arrays = {parameter.name: parameter.variable.get_value() for parameter in model.parameters}
    arrays["fc3.W"] *= 40
    arrays["fc4.W"] *= 100
    return Weights("tiny", arrays, np.full((3, 256, 256), 110, np.float32), NAMES, "crop")


@pytest.fixture(scope="module")
def network(weights):
    return pretrained.build(weights)


@pytest.fixture(scope="module")
def predictor(weights, network):
    return Predictor(weights, network=network)


@pytest.fixture(scope="module")
def path(weights, tmp_path_factory):
    """Return the path of a file of the weights."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    pretrained.save(weights, path)
    return str(path)


@pytest.fixture
def photographs(tmp_path):
    """Return the paths of five photographs."""
    paths = [tmp_path / f"{number}.jpg" for number in range(5)]
    for number, each in enumerate(paths):
        each.write_bytes(encoded(photograph(200 + 40 * number, 180, seed=number)))
    return list(map(str, paths))


def predicted(*arguments):
    return main(["predict", *map(str, arguments)])


# ---- the Python API


def expected(network, path, top):
    """Return the expected Guesses for one image, predicted separately with the network's softmax."""
    probabilities = network.predict(batch_of([read_image(path, "crop")]), *([[14]] * 2), [0])[:, 0]
    order = sorted(range(CLASSES), key=lambda label: -probabilities[label])[:top]
    return [(label, *NAMES[label].split(maxsplit=1), probabilities[label]) for label in order]


def test_predictor_returns_the_most_probable_classes(path, network, photographs):
    guesses = Predictor(path)(photographs[0], top=3)
    for guess, (label, wnid, words, probability) in zip(guesses, expected(network, photographs[0], 3), strict=True):
        assert guess == Guess(pytest.approx(probability, rel=1e-5), label, wnid, words)


def test_pixels_and_file_are_predicted_identically(predictor, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(photograph(), "PNG"))
    expected = predictor(tmp_path / "a.png")
    with (tmp_path / "a.png").open("rb") as file:
        for image in (bytes(tmp_path / "a.png"), np.asarray(photograph()), photograph(), file):
            assert predictor(image) == expected


def test_many_images_are_predicted_as_single_ones(predictor, photographs):
    alone = [predictor(each) for each in photographs]
    assert len(set(alone)) == 5
    for batch_size in (2, 5, 64):
        together = list(predictor.each(iter(photographs), batch_size=batch_size))
        assert [image for image, _ in together] == photographs
        for (_, guesses), own in zip(together, alone, strict=True):
            assert [guess[1:] for guess in guesses] == [guess[1:] for guess in own]
            np.testing.assert_allclose([guess[0] for guess in guesses], [guess[0] for guess in own], rtol=1e-5)


def test_endless_images_are_predicted_incrementally(predictor, photographs):
    taken, before = [], threading.active_count()

    def endless():
        for number in count():
            taken.append(number)
            yield photographs[number % 5]

    answers = predictor.each(endless(), batch_size=2)
    first = [next(answers) for _ in range(4)]
    answers.close()
    assert [image for image, _ in first] == photographs[:4]
    assert len(taken) < 20 and threading.active_count() == before


def test_probabilities_sum_to_one(predictor, photographs):
    for crops in (1, 10):
        guesses = Predictor(predictor.weights, crops, predictor.network)(photographs[0], top=1000)
        assert len(guesses) == CLASSES
        assert sum(guess.probability for guess in guesses) == pytest.approx(1)
        assert sorted(guesses, reverse=True) == list(guesses)


@pytest.mark.parametrize(("names", "expected"), [
    (None, (None, "class 0")), (("cat", *"bcdefg"), (None, "cat")), (("n90000000", *"bcdefg"), ("n90000000", "")),
])
def test_classes_without_names_are_numbered(weights, network, names, expected):
    assert Predictor(weights._replace(class_names=names), network=network).names[0] == expected


def test_unusable_image_is_named(predictor, tmp_path):
    with pytest.raises(BadImage, match=rf"^{tmp_path}/nowhere.jpg cannot be opened: No such file or directory$"):
        predictor(tmp_path / "nowhere.jpg")
    with pytest.raises(BadImage, match=r"^an image must have shape \(rows, columns\), .* got \(2, 2, 2\)$"):
        predictor(np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        predictor(np.zeros((2, 2, 3), np.uint8), top=0)


# ---- the command


def test_command_and_predictor_agree(path, predictor, photographs, capsys):
    assert predicted("--weights", path, *photographs, "--top", 2, "--batch-size", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[::3] == photographs
    for place, each in enumerate(photographs):
        for line, guess in zip(lines[3 * place + 1 : 3 * place + 3], predictor(each, 2), strict=True):
            assert line.split() == [f"{100 * guess.probability:.1f}", "%", guess.wnid, *guess.words.split()]


def test_json_has_one_object_per_line(path, predictor, photographs, capsys):
    assert predicted("--weights", path, *photographs, "nowhere.jpg", "--json") == 1
    *found, bad = map(json.loads, capsys.readouterr().out.splitlines())
    assert bad == {"image": "nowhere.jpg", "error": "cannot be opened: No such file or directory"}
    for line, image in zip(found, photographs, strict=True):
        own = predictor(image)
        assert line["image"] == image
        assert [each["label"] for each in line["top"]] == [guess.label for guess in own]
        assert line["top"][0] == own[0]._asdict() | {"probability": pytest.approx(own[0].probability)}


class Stdin:
    """Standard input that returns the given bytes a few at a time."""

    def __init__(self, data):
        self.buffer = io.BytesIO(data)
        self.buffer.read1 = lambda: self.buffer.read(7)


@pytest.mark.parametrize(("options", "separator"), [(["-"], b"\n"), (["--stdin"], b"\n"), (["-", "-0"], b"\0")])
@pytest.mark.parametrize("ended", [True, False])
def test_names_are_read_from_stdin(path, photographs, tmp_path, monkeypatch, capsys, options, separator, ended):
    strange = os.path.join(os.fsencode(tmp_path), b"caf\xe9\n.jpg" if separator == b"\0" else b"caf\xe9 .jpg")
    with open(strange, "wb") as file:
        file.write(encoded(photograph()))
    listed = separator.join([*map(os.fsencode, photographs), b"", strange]) + separator * ended
    monkeypatch.setattr(sys, "stdin", Stdin(listed))
    assert predicted("--weights", path, *options, "--top", 1) == 0
    names = capsys.readouterr().out.splitlines()[::2]
    assert names[:5] == photographs
    assert names[5].endswith(r"caf\xe9\n.jpg" if separator == b"\0" else r"caf\xe9 .jpg")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_image_is_read_from_stdin(path, predictor, monkeypatch, capsys, form):
    content = encoded(photograph(), form)
    monkeypatch.setattr(sys, "stdin", Stdin(content))
    assert predicted("--weights", path, "-", "--top", 1, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    own = predictor(io.BytesIO(content), 1)[0]
    assert (found["image"], found["top"][0]["label"]) == ("-", own.label)


def test_folders_are_predicted_recursively_in_sorted_order(path, tmp_path, capsys):
    names = ["b.jpg", "a/z.PNG", "a/b/c.webp", "a.d/1.gif", "a.d/10.bmp", "a.d/2.tif"]
    others = ["a/notes.txt", ".hidden.jpg", ".cache/x.jpg"]
    folder = tmp_path / "folder"
    for name in names + others:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(photograph(seed=len(name))))
    (folder / "a" / "loop").symlink_to(folder)
    assert predicted("--weights", path, folder, "--top", 1, "--batch-size", 2) == 0
    printed = capsys.readouterr()
    order = ["a/b/c.webp", "a/z.PNG", "a.d/1.gif", "a.d/10.bmp", "a.d/2.tif", "b.jpg"]
    assert printed.out.splitlines()[::2] == [f"{folder}/{name}" for name in order]
    left_out = f"note: 1 file that is not named as an image is left out of {folder}; the first: {folder}/a/notes.txt\n"
    assert left_out in printed.err


@pytest.mark.parametrize(("image", "reason"), [
    ("{tmp_path}", "is a folder, not an image"),
    ("https://example.org/a.jpg", "is a URL, not a file; download it first"),
])
def test_what_is_no_image_file_gets_a_hint(path, tmp_path, image, reason, capsys):
    name = image.format(tmp_path=tmp_path)
    assert predicted("--weights", path, name) == 1
    assert f"{name} {reason}" in capsys.readouterr().err.splitlines()[-1]


def test_resize_and_class_names_are_replaced(path, weights, network, photographs, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("".join(f"my {label}\n" for label in range(CLASSES)))
    own = Predictor(weights._replace(resize="squash"), network=network)(photographs[0], 1)[0]
    assert predicted("--weights", path, "--resize", "squash", "--class-names", names, photographs[0], "--json") == 0
    printed = capsys.readouterr()
    (found, *_) = json.loads(printed.out)["top"]
    assert (found["words"], found["probability"]) == (f"my {own.label}", pytest.approx(own.probability))
    assert ("note: input: RGB, grey levels 0 to 255, minus the mean values R 110.0, G 110.0, B 110.0; whole images "
            "squashed to 256 x 256\n") in printed.err


def test_every_kind_of_image_is_predicted_or_refused(path, tmp_path, capsys):
    """One call with the 16 kinds of image and some more; a broken image does not affect the others."""
    reasons = place_all(tmp_path)
    assert predicted("--weights", path, *reasons, "--top", 1, "--batch-size", 4) == 1
    printed = capsys.readouterr()
    predicted_names, errors = printed.out.splitlines()[::2], printed.err.splitlines()[2:]
    printable = {name: os.fsencode(name).decode("utf-8", "backslashreplace") for name in reasons}
    assert predicted_names == [printable[name] for name, reason in reasons.items() if reason is None]
    bad = {name: reason for name, reason in reasons.items() if reason}
    assert len(errors) == len(bad)
    for error, (name, reason) in zip(errors, bad.items(), strict=True):
        assert re.match(re.escape(name) + f" {reason.split(':')[0]}", error)


@pytest.mark.parametrize(("arguments", "reason"), [
    ([], "no images given; name some, or pass - to read their names from standard input"),
    (["a.jpg", "--weights", "nowhere"], "there are no weights nowhere"),
    (["a.jpg", "--weights", "http://x/y"], "--weights http://x/y is a URL; download the file and pass its path"),
    (["a.jpg", "--mean-order", "bgr"], "--mean-order bgr describes the file of --mean, which is not given"),
    (["a.jpg", "--threads", "0"], "the number of threads must be at least 1, got 0"),
    (["a.jpg", "--precision", "tf32"], "precision tf32 needs backend=jax"),
])
def test_invalid_options_are_refused(path, arguments, reason, capsys):
    assert predicted("--weights", path, *arguments) == 2
    error = capsys.readouterr().err
    assert re.match(f"alexnet predict: {reason}", error.splitlines()[-1])


def test_closed_output_ends_the_command(path, photographs, monkeypatch):
    """`predict … | head -1` closes the pipe early."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        assert predicted("--weights", path, *photographs) == 1
        monkeypatch.undo()


def test_ctrl_c_ends_threads(path, photographs, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    before = threading.active_count()
    monkeypatch.setattr("alexnet.commands.predict.text_of", interrupted)
    assert predicted("--weights", path, *photographs * 20, "--batch-size", 2) == 130
    assert capsys.readouterr().err.endswith("alexnet predict: interrupted\n")
    assert threading.active_count() == before
