"""Flips in files: a bit of a file changes, and the program reads it."""

import contextlib
import io
import pathlib
import shutil

import h5py
import numpy as np

from alexnet import pretrained
from alexnet.config import ConfigError, dump, load_config
from alexnet.config.load import read_settings
from alexnet.data.dataset import BatchReader, DataError, Request, Segment, open_dataset
from alexnet.models import model_class
from alexnet.native import compiler
from alexnet.run import checkpoint_format
from alexnet.run.checkpoint_format import CheckpointError
from alexnet.run.recorder import RunRecorder, read_records
from experiments.corruption.outcome import Outcome, flip_file, same_bits
from preprocess.synthetic import make_synthetic

ERRORS = (DataError, CheckpointError, ConfigError, pretrained.WeightsError, ValueError, OSError)
MODEL = "squeezenet"                             # of the exported weights, 5 MB


def flips(seeds, path, regions, read):
    """Yield the Outcome of a flip in a file for each seed; the file is as before at the end.

    Args:
        regions: {name: slice of the bytes}; the flips are distributed equally over them.
        read: reads the file; returns arrays and other values. Errors and warnings count as detections.
    """
    before = read()
    copy = path.with_suffix(".copy")
    shutil.copyfile(path, copy)
    names = list(regions)
    for seed in seeds:
        name = names[seed % len(names)]
        flip_file(path, np.random.default_rng((seed, len(names))), regions[name])
        try:
            after = read()
        except ERRORS as error:
            yield Outcome("detected", name, str(error))
        else:
            same = same_bits(after[0], before[0]) and after[1:] == before[1:]
            yield Outcome("harmless" if same else "silent", name)
        shutil.copyfile(copy, path)
    copy.unlink()


def arrays_and_rest(arrays, metadata):
    """Return what flips() compares, for named arrays."""
    return [arrays[name] for name in sorted(arrays)], sorted(arrays), metadata


def safetensors_regions(path):
    """Return the regions of a safetensors file."""
    end = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    return {"length of the header": slice(0, 8), "header and record": slice(8, end), "arrays": slice(end, None)}


def checkpoint(folder, seeds):
    """A checkpoint of a run."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(40, 30)).astype("float32") for name in ("conv1.W", "conv1.W.velocity", "fc8.W")}
    path = folder / "checkpoint_00000010.safetensors"
    position = {"epoch": 1, "batch": 0, "iteration": 10, "errors": [0.5]}
    metadata = {"position": position, "model": "alexnet", "scale": [1]}
    checkpoint_format.save(path, arrays, metadata)
    yield from flips(seeds, path, safetensors_regions(path), lambda: arrays_and_rest(*checkpoint_format.load(path)))


def export(folder, seeds, suffix):
    """An exported file of weights."""
    model = model_class(MODEL)(np.random.default_rng(0), classes=3)
    arrays = {parameter.name: parameter.variable.get_value() for parameter in model.parameters}
    weights = pretrained.Weights(MODEL, arrays, np.full((3, 256, 256), 110, "float32"), origin="flips")
    path = folder / f"weights{suffix}"
    pretrained.save(weights, path)

    def read():
        found = pretrained.load(path)
        mean = [] if found.mean is None else [found.mean]
        named, names, _ = arrays_and_rest(found.arrays, None)
        return named + mean, names, found.model, found.class_names, found.scale, found.resize

    regions = safetensors_regions(path) if suffix == ".safetensors" else {"all": slice(None)}
    yield from flips(seeds, path, regions, read)


def data_set(folder, manifest):
    """Return a small data set in a folder, made by the first call; without `manifest`, as those of theano_alexnet."""
    made, plain = folder / "set", folder / "plain"
    if not plain.exists():
        with contextlib.redirect_stdout(io.StringIO()):
            make_synthetic(made, 32, 16, batch_size=16, workers=1)
        shutil.copytree(made, plain)
        (plain / "manifest.json").unlink()
    return made if manifest else plain


def read_set(path):
    """Read all of a data set as a training does."""
    data = open_dataset(path)
    reader = BatchReader(data.mean, 227)
    images = []
    for split in (data.train, data.validation):
        checksums = split.checksums or [None] * len(split.files)
        for file, count, checksum in zip(split.files, split.counts, checksums, strict=True):
            images.append(np.empty((3, 256, 256, count), np.uint8))
            reader.read(Request((Segment(file, 0, int(count), checksum),)), images[-1])
    labels = [data.train.labels, data.validation.labels]
    if data.remarks:
        raise DataError("; ".join(data.remarks))
    return [*images, *labels, data.mean], data.class_names, data.classes, data.resize


def batch_regions(path):
    """Return the regions of a batch file."""
    with h5py.File(path) as file:
        images = file["data"].id
        first, size = images.get_offset(), images.get_storage_size()
    return {"HDF5 header": slice(0, first), "images": slice(first, first + size)}


def in_data_set(folder, seeds, name, manifest=True):
    """A file of a data set."""
    path = data_set(folder, manifest)
    file = next(path.glob(name))
    regions = batch_regions(file) if file.suffix == ".hkl" else {"all": slice(None)}
    yield from flips(seeds, file, regions, lambda: read_set(path))


def kernel(folder, seeds):
    """A compiled kernel in the cache; one that is damaged is compiled again."""
    path = folder / "kernel.so"
    path.write_bytes(np.random.default_rng(0).bytes(20_000))
    compiler.seal(path)

    def read():
        if not compiler.is_whole(path):
            raise DataError("the kernel is compiled again")
        return [], path.read_bytes()

    yield from flips(seeds, path, {"library": slice(0, -4), "CRC-32": slice(-4, None)}, read)


def settings(folder, seeds):
    """config.yaml of a run."""
    path = folder / "config.yaml"
    path.write_text(dump(load_config(["data=set", "run_name=run"])), encoding="utf-8")

    def read():
        with contextlib.redirect_stderr(io.StringIO()) as printed:
            found = read_settings(path)
        if printed.getvalue():
            raise ConfigError(printed.getvalue().rstrip())
        return [], found

    yield from flips(seeds, path, {"all": slice(None)}, read)


def records(folder, seeds):
    """records.jsonl of a run."""
    with contextlib.redirect_stdout(io.StringIO()), RunRecorder(folder, 1000, 20) as recorder:
        for step in range(1, 21):
            recorder.train_iteration(
                iteration=step, epoch=step / 20, cost=1 / step, error=0.5, learning_rate=0.01, images=16
            )
    path = folder / "records.jsonl"
    yield from flips(seeds, path, {"all": slice(None)}, lambda: ([], read_records(folder)))


PLACES = {
    "checkpoint": checkpoint,
    "exported weights, safetensors": lambda folder, seeds: export(folder, seeds, ".safetensors"),
    "exported weights, ONNX": lambda folder, seeds: export(folder, seeds, ".onnx"),
    "batch file": lambda folder, seeds: in_data_set(folder, seeds, "train_hkl*/0000.hkl"),
    "labels": lambda folder, seeds: in_data_set(folder, seeds, "labels/train_labels.npy"),
    "mean image": lambda folder, seeds: in_data_set(folder, seeds, "misc/img_mean.npy"),
    "manifest": lambda folder, seeds: in_data_set(folder, seeds, "manifest.json"),
    "batch file, without manifest": lambda folder, seeds: in_data_set(folder, seeds, "train_hkl*/0000.hkl", False),
    "labels, without manifest": lambda folder, seeds: in_data_set(folder, seeds, "labels/train_labels.npy", False),
    "mean image, without manifest": lambda folder, seeds: in_data_set(folder, seeds, "misc/img_mean.npy", False),
    "compiled kernel": kernel,
    "config.yaml of a run": settings,
    "records.jsonl of a run": records,
}


def trials(name, seeds, folder):
    """Yield the Outcome of a flip in the file `name` for each seed; the files are made in a folder."""
    place = pathlib.Path(folder)
    yield from PLACES[name](place, seeds)
