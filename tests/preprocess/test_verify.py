"""verify reports every kind of damage in every file, in one fault with the file name, and nothing else."""

import json
import shutil

import numpy as np
import pytest

from alexnet.data.batch_file import DataError
from alexnet.data.dataset import BatchReader, Request, open_dataset
from alexnet.data.image_listing import find_images
from alexnet.data.layout import own_sha256
from preprocess.batches import Settings, make_batches
from preprocess.command import main
from preprocess.verify import checks, examine, faults

DAMAGED = "is damaged or of another set: its checksum differs from the manifest's"
BATCHES = [f"train_hkl_b6_b_6/000{number}.hkl" for number in range(4)] + ["val_hkl_b6_b_6/0000.hkl"]
SMALL = ["labels/train_labels.npy", "labels/val_labels.npy", "misc/img_mean.npy", "misc/train.txt", "misc/val.txt",
         "misc/shuffled_train_filenames.npy"]


def made(tree, out, **settings):
    """Preprocess the tree into a folder, in batches of 6 images."""
    settings = Settings(batch_size=6, **settings)
    make_batches(find_images(tree / "train", tree / "val", settings.seed), out, settings, 1)
    return out


@pytest.fixture(scope="module")
def good(evergreen, tmp_path_factory):
    return made(evergreen, tmp_path_factory.mktemp("good") / "out")


@pytest.fixture
def finished(good, tmp_path):
    """Return a copy of a complete data set that tests may modify."""
    return shutil.copytree(good, tmp_path / "out")


def found_faults(out):
    """Return the faults that verify reports, without starting worker processes."""
    return faults(out, {check: examine(check) for check in checks(out)})


def flip(file, place, bit=4):
    data = bytearray(file.read_bytes())
    data[place] ^= bit
    file.write_bytes(data)


def change_manifest(folder, change):
    """Change the manifest of a data set, and its own checksum with it."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    change(manifest)
    manifest["sha256"] = own_sha256(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def exchange(one, other):
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def test_intact_folder_has_no_faults(finished, capsys):
    assert main(["verify", str(finished), "--workers", "1"]) == 0
    assert "all 12 files match the manifest" in capsys.readouterr().out
    assert found_faults(finished) == []


def test_damaged_files_are_named_with_status_1(finished, capsys):
    flip(finished / BATCHES[1], 100_000)
    (finished / BATCHES[4]).unlink()
    (finished / "misc" / "val.txt").write_text("")
    with pytest.raises(DataError, match="0000.hkl is missing"):
        open_dataset(finished)
    assert main(["verify", str(finished), "--workers", "1"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"{finished / 'misc' / 'val.txt'} {DAMAGED}", f"{finished / BATCHES[1]} {DAMAGED}",
        f"{finished / BATCHES[4]} is missing"]


@pytest.mark.parametrize("name", [*BATCHES, *SMALL])
def test_flipped_bit_is_found_in_any_file(finished, name, rng):
    size = (finished / name).stat().st_size
    for place in (0, int(rng.integers(1, size - 1)), size - 1):
        flip(finished / name, place, bit := 1 << int(rng.integers(8)))
        assert found_faults(finished) == [f"{finished / name} {DAMAGED}"]
        flip(finished / name, place, bit)
    assert found_faults(finished) == []


def read_all(dataset):
    """Read all training images in batches of 4, which span files."""
    reader = BatchReader(None, None)
    for segments, labels in dataset.train.plan(4):
        reader.read(Request(segments), np.empty((3, 256, 256, len(labels)), np.uint8))


@pytest.mark.parametrize("sums", [True, False])              # False: a set whose manifest has only the sha256
def test_flipped_image_bit_is_found_by_reading(finished, sums):
    if not sums:
        change_manifest(finished, lambda manifest: [file.pop("sums_crc32") for file in manifest["train"]["files"]])
    read_all(open_dataset(finished))
    flip(finished / BATCHES[1], -100_000)
    with pytest.raises(DataError, match="0001.hkl is damaged: its content differs from the checksum in manifest.json"):
        read_all(open_dataset(finished))
    read_all(open_dataset(finished, verify=False))


@pytest.mark.parametrize("text", [b"n02119789", b'"squash"', b"sum of all"])
def test_flipped_bit_in_the_manifest_is_found(finished, text, capsys):
    manifest = finished / "manifest.json"
    flip(manifest, manifest.read_bytes().index(text) + 3, 1)
    assert main(["verify", str(finished), "--workers", "1"]) == 1
    assert capsys.readouterr().err == f"{manifest} is damaged: it differs from its own checksum\n"
    with pytest.raises(DataError, match="manifest.json is damaged"):
        open_dataset(finished)


def test_manifest_that_is_not_json_has_status_2(finished, capsys):
    manifest = finished / "manifest.json"
    manifest.write_bytes(b"{" + manifest.read_bytes())
    assert main(["verify", str(finished)]) == 2
    assert "manifest.json is not readable JSON" in capsys.readouterr().err


def test_manifest_without_own_checksum_is_accepted(finished):
    manifest = json.loads((finished / "manifest.json").read_bytes())
    del manifest["sha256"]
    (finished / "manifest.json").write_text(json.dumps(manifest))
    assert found_faults(finished) == []


@pytest.mark.parametrize("name", [*BATCHES, *SMALL])
def test_missing_file_is_named(finished, name):
    (finished / name).unlink()
    assert found_faults(finished) == [f"{finished / name} is missing"]


def test_labels_of_another_set_are_found(evergreen, finished, tmp_path):
    other = made(evergreen, tmp_path / "other", seed=2)
    shutil.copy(other / SMALL[0], finished / SMALL[0])
    assert found_faults(finished) == [f"{finished / SMALL[0]} {DAMAGED}"]
    with pytest.raises(DataError, match="train_labels.npy is not the file the manifest describes"):
        open_dataset(finished)


@pytest.mark.parametrize(("one", "other"), [(SMALL[0], SMALL[1]), (BATCHES[0], BATCHES[2]), (SMALL[3], SMALL[4])])
def test_exchanged_files_are_recognised(finished, one, other):
    one, other = finished / one, finished / other
    exchange(one, other)
    expected = [f"{one} has the content of {other}", f"{other} has the content of {one}"]
    assert found_faults(finished) == sorted(expected)


def test_manifest_of_another_set_is_recognised(evergreen, finished, tmp_path):
    other = made(evergreen, tmp_path / "other", resize="crop")
    shutil.copy(other / "manifest.json", finished / "manifest.json")
    assert found_faults(finished) == [
        f"{finished}/manifest.json describes another set: not one of its 6 batch files is here"]


def test_unlisted_files_are_named(finished):
    for name in ("train_hkl_b6_b_6/0004.hkl", "labels/train_labels_0.npy", "val_hkl_b256_b_256/0000.hkl"):
        (finished / name).parent.mkdir(exist_ok=True)
        shutil.copy(finished / BATCHES[0], finished / name)
    assert [fault.removeprefix(f"{finished}/") for fault in found_faults(finished)] == [
        "labels/train_labels_0.npy is not in the manifest", "train_hkl_b6_b_6/0004.hkl is not in the manifest",
        "val_hkl_b256_b_256/0000.hkl is not in the manifest"]


def test_wrong_image_counts_are_found(finished):
    manifest = json.loads((finished / "manifest.json").read_bytes())
    manifest["train"]["files"][1]["images"] = 5
    (finished / "manifest.json").write_text(json.dumps(manifest))
    assert found_faults(finished) == [f"{finished}/manifest.json is damaged: it differs from its own checksum",
                              f"{finished / BATCHES[1]} does not hold 5 images"]


def test_labels_match_the_images(finished):
    label_of = dict(line.rsplit(maxsplit=1) for line in (finished / "misc" / "train.txt").read_text().splitlines())
    names = np.load(finished / "misc" / "shuffled_train_filenames.npy").astype(str)
    assert [int(label_of[name]) for name in names] == np.load(finished / SMALL[0]).tolist()


def test_folder_without_manifest_is_refused(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 2
    assert "has no manifest.json, so there is nothing to compare" in capsys.readouterr().err
