"""Data sets on disk: reading plans, batches and crops match a slow reference; inconsistent data sets are refused."""

import hashlib
import json
import os
import pickle

import numpy as np
import pytest

from alexnet.data import batch_file, layout
from alexnet.data.augment import centre_crop, crop_stream, draw_crop, random_stream
from alexnet.data.batch_file import DataError
from alexnet.data.dataset import BatchReader, Request, Segment, Split, file_order, open_dataset
from alexnet.ops.crop import CropMirror

COUNTS = {"train_hkl_b4_b_4": (4, 4, 3), "val_hkl_b4_b_4": (4, 1)}


def images(n, seed):
    return np.random.default_rng(seed).integers(0, 256, (3, 256, 256, n), dtype=np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder in upstream's layout: 11 training images in 3 files, 5 validation images in 2."""
    root = tmp_path_factory.mktemp("data")
    for name, counts in COUNTS.items():
        (root / name).mkdir()
        for number, n in enumerate(counts):
            batch_file.write(root / name / f"{number:04d}.hkl", images(n, [number, len(name)]))
    save(root / "labels" / "train_labels.npy", np.arange(11) % 7)
    save(root / "labels" / "val_labels.npy", np.arange(5))
    save(root / "misc" / "img_mean.npy", np.random.default_rng(3).uniform(90, 130, (3, 256, 256)))
    return root


@pytest.fixture
def folder(made, tmp_path):
    """Return a copy of the folder that tests may modify; its batch files are hard links."""
    for name in COUNTS:
        (tmp_path / name).mkdir()
        for file in (made / name).iterdir():
            (tmp_path / name / file.name).hardlink_to(file)
    for name in ("labels/train_labels.npy", "labels/val_labels.npy", "misc/img_mean.npy"):
        save(tmp_path / name, np.load(made / name))
    return tmp_path


def all_images(split, order=None):
    order = range(len(split.files)) if order is None else order
    out = [np.empty((3, 256, 256, split.counts[i]), np.uint8) for i in order]
    for i, array in zip(order, out, strict=True):
        batch_file.read_into(split.files[i], array)
    return np.concatenate(out, axis=3)


def all_labels(split, order=None):
    order = range(len(split.files)) if order is None else order
    pieces = np.split(split.labels, np.cumsum(split.counts)[:-1])
    return np.concatenate([pieces[i] for i in order])


def read_plan(plan, reader):
    for segments, labels in plan:
        out = np.empty((3, 256, 256, len(labels)), np.uint8)
        reader.read(Request(segments), out)
        yield out, labels


# ---- planning and reading


@pytest.mark.parametrize("order", [None, (2, 0, 1)])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 11])
@pytest.mark.parametrize("keep_last", [True, False])
def test_batches_cover_all_files_in_order(made, order, batch_size, keep_last):
    split = open_dataset(made).train
    expected, labels = all_images(split, order), all_labels(split, order)
    plan = split.plan(batch_size, order, keep_last)
    kept = 11 if keep_last else 11 - 11 % batch_size
    assert sum(len(part) for _, part in plan) == kept == 11 - (0 if keep_last else split.dropped(batch_size))
    for number, (batch, part) in enumerate(read_plan(plan, BatchReader(np.zeros((3, 256, 256)), 227))):
        place = slice(number * batch_size, min((number + 1) * batch_size, 11))
        np.testing.assert_array_equal(batch, expected[..., place])
        np.testing.assert_array_equal(part, labels[place])
        assert part.dtype == np.int32


@pytest.mark.parametrize("size", [2, 3])
def test_shards_of_a_step_form_one_larger_batch(made, size):
    split = open_dataset(made).train
    whole = split.plan(2 * size)
    shards = [split.shard(rank, size).plan(2) for rank in range(size)]
    reader = BatchReader(np.zeros((3, 256, 256)), 227)
    assert {len(shard) for shard in shards} == {len(whole)}
    for (batch, labels), *parts in zip(*(read_plan(p, reader) for p in (whole, *shards)), strict=True):
        np.testing.assert_array_equal(np.concatenate([images for images, _ in parts], axis=3), batch)
        np.testing.assert_array_equal(np.concatenate([part for _, part in parts]), labels)


@pytest.mark.parametrize(("batch_size", "size"), [(1, 2), (3, 2), (2, 3), (9, 4)])
def test_each_validation_image_goes_to_one_worker(made, batch_size, size):
    split = open_dataset(made).validation
    plans = [split.shard(rank, size).plan(batch_size, keep_last=True) for rank in range(size)]
    seen = sorted(label for plan in plans for _, labels in plan for label in labels.tolist())
    assert seen == [0, 1, 2, 3, 4]
    assert all(len(labels) for plan in plans for _, labels in plan)


def test_batch_larger_than_the_set_is_refused(made):
    with pytest.raises(DataError, match="batch size 12 is larger than the set of 11 images"):
        open_dataset(made).train.plan(12)
    with pytest.raises(DataError, match="batch size 12"):
        open_dataset(made).train.shard(0, 2).plan(6)


@pytest.fixture
def opened_and_read(monkeypatch):
    """Record the names of opened batch files, and (name, array) of each read, in order."""
    opened, read, open_file, read_into = [], [], batch_file.opened, batch_file.BatchFile.read_into
    monkeypatch.setattr(batch_file, "opened", lambda path, size: opened.append(path.name) or open_file(path, size))
    monkeypatch.setattr(
        batch_file.BatchFile,
        "read_into",
        lambda file, out, *rest: read.append((file.path.name, out)) or read_into(file, out, *rest),
    )
    return opened, read


def test_file_is_read_once_for_many_batches(made, opened_and_read):
    split, (opened, read) = open_dataset(made).train, opened_and_read
    opened.clear()
    list(read_plan(split.plan(3, keep_last=True), BatchReader(np.zeros((3, 256, 256)), 227)))
    assert opened == [name for name, _ in read] == ["0000.hkl", "0001.hkl", "0002.hkl"]


def test_whole_file_is_read_directly_into_the_buffer(made, opened_and_read):
    split, (opened, read) = open_dataset(made).train, opened_and_read
    opened.clear()
    out = np.empty((3, 256, 256, 4), np.uint8)
    BatchReader(np.zeros((3, 256, 256)), 227).read(Request((Segment(split.files[1], 0, 4),)), out)
    assert len(opened) == len(read) == 1 and read[0][1] is out
    np.testing.assert_array_equal(out, all_images(split)[..., 4:8])


def test_mismatched_request_is_refused(made):
    split, reader = open_dataset(made).train, BatchReader(np.zeros((3, 256, 256)), 227)
    out = np.empty((3, 256, 256, 3), np.uint8)
    with pytest.raises(DataError, match="holds 3 images, not those from 1 to 4"):
        reader.read(Request((Segment(split.files[2], 1, 4),)), out)
    with pytest.raises(ValueError, match="the request holds 2 images, the buffer 3"):
        reader.read(Request((Segment(split.files[2], 0, 2),)), out)
    with pytest.raises(ValueError, match="a crop is float32 of 227 pixels"):
        reader.read(Request((Segment(split.files[2], 0, 3),), centre_crop(3, 227)), out)


# ---- crops


@pytest.mark.parametrize("mirror", [None, 0, 1])                  # None: a random crop and mirror per image
@pytest.mark.parametrize("size", [1, 227, 256])
def test_cropped_batch_is_window_minus_mean(made, size, mirror):
    dataset = open_dataset(made)
    segments, labels = dataset.train.plan(5)[1]
    crop = draw_crop(crop_stream(1, 0, 7), 5, size, per_batch=mirror is not None)
    if mirror is not None:
        crop = crop._replace(mirrors=np.full(5, mirror, np.uint8))
    out = np.empty((3, size, size, 5), np.float32)
    BatchReader(dataset.mean, size).read(Request(segments, crop), out)
    pictures = all_images(dataset.train)[..., 5:10]
    for b, (row, column, mirror) in enumerate(zip(*crop, strict=True)):
        expected = np.float32(pictures[..., b]) - dataset.mean
        expected = expected[:, row:row + size, column:column + size]
        np.testing.assert_array_equal(out[..., b], expected[:, :, ::-1] if mirror else expected)


def test_loader_and_graph_crop_identically(made):
    dataset = open_dataset(made)
    segments, labels = dataset.train.plan(7)[0]
    crop = draw_crop(crop_stream(5, 0, 0), 7, 227)
    assert set(crop.mirrors) == {0, 1}
    loaded = np.empty((3, 227, 227, 7), np.float32)
    BatchReader(dataset.mean, 227).read(Request(segments, crop), loaded)
    (graph,) = CropMirror(227).reference(all_images(dataset.train)[..., :7], dataset.mean, *crop)
    np.testing.assert_array_equal(loaded, graph)


def test_centre_crop_is_the_middle_window():
    crop = centre_crop(3, 227)
    assert crop.rows.tolist() == crop.columns.tolist() == [14, 14, 14] and not crop.mirrors.any()
    assert [a.dtype for a in crop] == [np.int32, np.int32, np.uint8]


def test_random_crops_are_uniform():
    crop = draw_crop(crop_stream(0, 0, 0), 30_000, 227)
    assert [a.dtype for a in crop] == [np.int32, np.int32, np.uint8]
    for corner in (crop.rows, crop.columns):
        counts = np.bincount(corner, minlength=30)
        assert len(counts) == 30 and counts.min() > 850 and counts.max() < 1150
    assert 0.48 < crop.mirrors.mean() < 0.52
    assert abs(np.corrcoef(crop.rows, crop.columns)[0, 1]) < 0.03


def test_streams_are_functions_of_their_counters():
    def drawn(*numbers):
        return tuple(draw_crop(crop_stream(*numbers), 8, 227).rows)

    streams = [(seed, rank, iteration) for seed in (0, 1) for rank in (0, 1) for iteration in (0, 1, 2**40)]
    assert len({drawn(*numbers) for numbers in streams}) == len(streams)
    assert drawn(1, 1, 3) == drawn(1, 1, 3)
    assert random_stream(0, 1, 0, 0).integers(2**60) != random_stream(0, 2, 0, 0).integers(2**60)


def test_file_order_changes_each_epoch():
    orders = [tuple(file_order(1, epoch, 20, shuffle=True)) for epoch in range(5)]
    assert len(set(orders)) == 5 and all(sorted(order) == list(range(20)) for order in orders)
    assert tuple(file_order(1, 3, 20, shuffle=True)) == orders[3]
    assert file_order(1, 3, 20, shuffle=False).tolist() == list(range(20))


def test_per_batch_crop_is_equal_for_all_images():
    crop = draw_crop(crop_stream(0, 0, 0), 9, 227, per_batch=True)
    assert all(len(a) == 9 and len(set(a.tolist())) == 1 for a in crop)


# ---- opening


def test_upstream_folder_can_be_opened(made):
    dataset = open_dataset(made)
    assert (dataset.train.n, dataset.validation.n, dataset.classes) == (11, 5, 7)
    assert [f.name for f in dataset.train.files] == ["0000.hkl", "0001.hkl", "0002.hkl"]
    assert dataset.mean.dtype == np.float32 and dataset.class_names is None
    np.testing.assert_array_equal(dataset.mean, np.load(made / "misc/img_mean.npy").astype(np.float32))
    assert open_dataset(made, classes=1000).classes == 1000


def split_in_halves(folder):
    """Split training and validation data of `folder` into upstream's files and labels for two GPUs; batches of 4."""
    for name in COUNTS:
        whole = folder / name
        halves = folder / name.replace("b_4", "b_2")
        halves.mkdir()
        short = name.partition("_")[0]
        labels = np.load(folder / "labels" / f"{short}_labels.npy")
        batches = sorted(whole.iterdir())[:COUNTS[name].count(4)]
        for file in batches:
            array = np.empty((3, 256, 256, 4), np.uint8)
            batch_file.read_into(file, array)
            for half in (0, 1):
                batch_file.write(halves / f"{file.stem}_{half}.hkl", array[..., 2 * half:2 * half + 2].copy())
        labels = labels[:4 * len(batches)].reshape(-1, 2, 2)
        for half in (0, 1):
            save(folder / "labels" / f"{short}_labels_{half}.npy", labels[:, half].ravel())
        save(folder / "labels" / f"{short}_labels.npy", labels.ravel())
    return folder


def test_files_split_for_two_gpus_are_joined(folder):
    whole = open_dataset(folder).train
    first = all_images(whole)[..., :8]
    split_in_halves(folder)
    for name in COUNTS:
        for file in (folder / name).iterdir():
            file.unlink()
    split = open_dataset(folder).train
    assert [f.name for f in split.files] == ["0000_0.hkl", "0000_1.hkl", "0001_0.hkl", "0001_1.hkl"]
    np.testing.assert_array_equal(all_images(split), first)
    assert {s.path.name[-5] for segments, _ in split.shard(1, 2).plan(2) for s in segments} == {"1"}
    labels = split.labels
    (folder / "labels" / "train_labels.npy").unlink()
    np.testing.assert_array_equal(open_dataset(folder).train.labels, labels)


def test_four_pieces_are_in_upstream_order(folder):
    for number, suffix in enumerate(("00", "10", "01", "11")):
        batch_file.write(folder / f"0000_{suffix}.hkl", images(1, number))
    found = layout.batches_in(folder)
    assert [found[key].stem[-2:] for key in sorted(found)] == ["00", "10", "01", "11"]


def test_halves_that_contradict_whole_labels_are_refused(folder):
    split_in_halves(folder)
    for half, other in ((0, 1), (1, 0)):
        save(folder / "labels" / f"x{half}.npy", np.load(folder / "labels" / f"train_labels_{other}.npy"))
    for half in (0, 1):
        (folder / "labels" / f"x{half}.npy").rename(folder / "labels" / f"train_labels_{half}.npy")
    for name in ("train_hkl_b4_b_4/0002.hkl", "val_hkl_b4_b_4/0001.hkl"):
        (folder / name).unlink()
    with pytest.raises(DataError, match="train_labels.npy and its halves .* do not agree"):
        open_dataset(folder)
    names = [f"/data/n0{label}/{i}.JPEG" for i, label in enumerate(np.load(folder / "labels/train_labels.npy"))]
    save(folder / "misc" / "shuffled_train_filenames.npy", np.array([*names, "/data/n00/x.JPEG"], "S"))
    (folder / "labels" / "train_labels.npy").unlink()
    with pytest.raises(DataError, match="are the halves mixed up"):
        open_dataset(folder)


def test_whole_batches_are_preferred_to_halves(folder):
    split_in_halves(folder)
    for name in ("train_hkl_b4_b_4/0002.hkl", "val_hkl_b4_b_4/0001.hkl"):
        (folder / name).unlink()
    assert open_dataset(folder).train.files[0].name == "0000.hkl"


def remove(name):
    return lambda folder: (folder / name).unlink()


def write(name, array):
    def damage(folder):
        (folder / name).unlink(missing_ok=True)
        save(folder / name, array)
    return damage


class Payload:
    """Creates the file `path` when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def objects(folder):
    payloads = np.array([Payload(folder / "ran")] * 11, object)
    np.save(folder / "labels" / "train_labels.npy", payloads, allow_pickle=True)


def pickled(folder):
    (folder / "labels" / "train_labels.npy").write_bytes(pickle.dumps(Payload(folder / "ran")))


def archive(folder):
    np.savez(folder / "labels" / "several.npz", np.arange(11))
    (folder / "labels" / "several.npz").rename(folder / "labels" / "train_labels.npy")


def header(fields):
    """Return a function that overwrites the training labels with a .npy file of this header and 40 bytes of data."""
    def damage(folder):
        text = f"{fields:<117}\n".encode()
        magic = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little")
        (folder / "labels" / "train_labels.npy").write_bytes(magic + text + bytes(40))
    return damage


def bomb(images):
    return header(f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({images},), }}")


def cut(folder):
    file = folder / "labels" / "train_labels.npy"
    file.write_bytes(file.read_bytes()[:-1])


def exchanged(folder):
    one, other = (folder / "labels" / f"{half}_labels.npy" for half in ("train", "val"))
    one.rename(folder / "labels" / "third.npy")
    other.rename(one)
    (folder / "labels" / "third.npy").rename(other)


def empty_folder(folder):
    for file in (folder / "train_hkl_b4_b_4").iterdir():
        file.unlink()


def foreign_name(folder):
    (folder / "train_hkl_b4_b_4" / "0002.hkl").rename(folder / "train_hkl_b4_b_4" / "last.hkl")


def truncated_batch(folder):
    file = folder / "val_hkl_b4_b_4" / "0001.hkl"
    whole = file.read_bytes()
    file.unlink()
    file.write_bytes(whole[:-1])


def second_folder(folder):
    (folder / "train_hkl_b8").mkdir()
    batch_file.write(folder / "train_hkl_b8" / "0000.hkl", images(1, 0))


@pytest.mark.parametrize(("damage", "message"), [
    (empty_folder, r"must hold one folder train_hkl\* of files such as 0000.hkl, found none"),
    (second_folder, "found train_hkl_b4_b_4, train_hkl_b8"),
    (foreign_name, "last.hkl has no batch file's name"),
    (remove("train_hkl_b4_b_4/0001.hkl"), "0001.hkl is missing"),
    (truncated_batch, "0001.hkl is not a readable HDF5 file"),
    (remove("labels/val_labels.npy"), "val_labels.npy is missing"),
    (write("labels/train_labels.npy", np.zeros(10, int)), "holds 10 labels for 11 images"),
    (write("labels/train_labels.npy", np.zeros(12, int)), "holds 12 labels for 11 images"),
    (write("labels/val_labels.npy", np.arange(5) - 1), "holds labels -1 to 3; they count from 0"),
    (write("labels/val_labels.npy", np.arange(5.0)), r"holds float64 \(5,\), not one integer per image"),
    (write("labels/val_labels.npy", np.arange(5) * 1000), "has label 4000; 1000 classes count to 999"),
    (write("labels/val_labels.npy", np.arange(5) > 2), r"holds bool \(5,\), not one integer per image"),
    (write("labels/val_labels.npy", np.arange(5) + 2**33), "holds labels 8589934592 to 8589934596"),
    (write("labels/val_labels.npy", np.eye(5, dtype=int)), r"holds int64 \(5, 5\), not one integer per image"),
    (exchanged, "train_labels.npy holds 5 labels for 11 images"),
    (objects, "train_labels.npy is not a readable .npy array of plain values"),
    (pickled, "train_labels.npy is not a readable .npy array"),
    (archive, "train_labels.npy is not a readable .npy array"),
    (cut, "train_labels.npy is not a readable .npy array"),
    (bomb(10**15), "train_labels.npy is not a readable .npy array"),
    (bomb(2**70), "train_labels.npy is not a readable .npy array"),
    (header("(" * 100), "train_labels.npy is not a readable .npy array"),
    (header("__import__('os').mkdir('ran')"), "train_labels.npy is not a readable .npy array"),
    (write("misc/img_mean.npy", np.zeros((256, 256, 3))), "a mean image is float"),
    (write("misc/img_mean.npy", np.full((3, 256, 256), np.nan)), "outside 0 to 255"),
])
def test_invalid_input_is_refused_in_one_sentence(folder, damage, message, monkeypatch):
    open_dataset(folder, classes=1000)
    monkeypatch.chdir(folder)
    damage(folder)
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(folder, classes=1000)
    assert "\n" not in str(caught.value) and not (folder / "ran").exists()


def test_payloads_execute_when_unpickled(folder):
    objects(folder)
    with np.load(folder / "labels" / "train_labels.npy", allow_pickle=True)[0]:
        assert (folder / "ran").exists()


def test_invalid_list_of_names_is_refused(folder):
    split_in_halves(folder)
    for name in ("train_hkl_b4_b_4/0002.hkl", "val_hkl_b4_b_4/0001.hkl", "labels/train_labels.npy"):
        (folder / name).unlink()
    save(folder / "misc" / "shuffled_train_filenames.npy", np.arange(8))
    with pytest.raises(DataError, match=r"shuffled_train_filenames.npy holds int64 \(8,\), not one name per image"):
        open_dataset(folder)


def test_pipe_instead_of_array_is_refused_immediately(folder):
    (folder / "labels" / "train_labels.npy").unlink()
    os.mkfifo(folder / "labels" / "train_labels.npy")
    with pytest.raises(DataError, match="train_labels.npy is not a file"):
        open_dataset(folder)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere is not a folder"):
        open_dataset(tmp_path / "nowhere")


def manifest_of(folder):
    """Return a manifest that describes `folder`."""
    def half(name):
        return {"folder": name, "files": [
            {"name": f.name, "images": batch_file.check(f)[3], "bytes": f.stat().st_size,
             "sha256": batch_file.file_sha256(f)} for f in sorted((folder / name).iterdir())]}

    small = ("labels/train_labels.npy", "labels/val_labels.npy", "misc/img_mean.npy")
    return {
        "format": 1, "class_names": [f"n{i}" for i in range(7)],
        "train": half("train_hkl_b4_b_4"), "validation": half("val_hkl_b4_b_4"),
        "checksums": {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in small},
    }


def test_manifest_lists_files_and_classes(folder):
    (folder / "manifest.json").write_text(json.dumps(manifest_of(folder)))
    dataset = open_dataset(folder)
    assert dataset.class_names == tuple(f"n{i}" for i in range(7)) and dataset.classes == 7
    assert dataset.train.counts.tolist() == [4, 4, 3] and dataset.validation.counts.tolist() == [4, 1]


def lose(manifest):
    del manifest["validation"]["files"]


def count(manifest):
    manifest["train"]["files"][1]["images"] = 3


def grow(manifest):
    manifest["train"]["files"][1]["bytes"] += 1


def climb(manifest):
    manifest["train"]["folder"] = "../train_hkl_b4_b_4"


def forget(manifest):
    del manifest["checksums"]["misc/img_mean.npy"]


def alter(manifest):
    manifest["checksums"]["labels/val_labels.npy"] = "0" * 64


def age(manifest):
    manifest["format"] = 2


def none_at_all(manifest):
    manifest["train"]["files"] = []


@pytest.mark.parametrize(("damage", "message"), [
    (lose, "does not list its validation files"),
    (count, "0001.hkl holds 4 images in .* bytes, but the manifest lists 3"),
    (grow, "but the manifest lists 4 in"),
    (climb, "must list train files such as 0000.hkl in one folder"),
    (none_at_all, "must list train files"),
    (forget, "has no checksum of misc/img_mean.npy"),
    (alter, "val_labels.npy is not the file the manifest describes"),
    (age, "is no manifest of format 1"),
])
def test_invalid_manifest_is_refused(folder, damage, message):
    manifest = manifest_of(folder)
    damage(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=message):
        open_dataset(folder)


def test_manifest_that_is_not_json_is_refused(folder):
    (folder / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="manifest.json is not readable JSON"):
        open_dataset(folder)


def test_split_of_one_file_needs_no_folder():
    split = Split(("a",), np.array([3]), np.array([5, 6, 7], np.int32))
    assert [(s, labels.tolist()) for s, labels in split.plan(2)] == [((Segment("a", 0, 2),), [5, 6])]
