"""The last files of a data set: labels, mean, lists of names, and the manifest that describes it."""

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alexnet.data.augment import IMAGE_SIZE
from alexnet.data.batch_file import DataError, file_sha256
from alexnet.data.image_listing import ImageList, Sources
from alexnet.data.layout import MANIFEST, MANIFEST_FORMAT, Manifest, own_sha256
from alexnet.data.progress import quantity
from alexnet.native import atomic
from preprocess.journal import Record

HALVES = {"train": "train", "validation": "val"}             # and their short names, in file names
FILE_ENTRIES = ("images", "bytes", "sha256", "sums_crc32")
ARRAYS = (
    "labels/train_labels.npy", "labels/val_labels.npy", "misc/img_mean.npy", "misc/train.txt", "misc/val.txt",
    "misc/shuffled_train_filenames.npy",
)


def folder_name(half: str, batch_size: int) -> str:
    """Return upstream's name of the folder of batch files."""
    return f"{HALVES[half]}_hkl_b{batch_size}_b_{batch_size}"


def write_manifest(
    sources: Sources, out: Path, records: Mapping[tuple[str, int], Record], mean: np.ndarray, signature: dict[str, Any]
) -> Manifest:
    """Write labels, mean, lists of names and, last, the manifest; return the manifest."""
    kept = {half: keep(images, records, half)
            for half, images in (("train", sources.train), ("validation", sources.validation))}
    for folder in ("labels", "misc"):
        (out / folder).mkdir(exist_ok=True)
    for half, images in kept.items():
        atomic.write(out / "labels" / f"{HALVES[half]}_labels.npy", npy(images.labels), fsync=True)
        lines = sorted(os.fsencode(f"{name} {label}\n")
                       for name, label in zip(images.names, images.labels.tolist(), strict=True))
        atomic.write(out / "misc" / f"{HALVES[half]}.txt", b"".join(lines), fsync=True)
    names = np.array([os.fsencode(name) for name in kept["train"].names])
    atomic.write(out / "misc" / "shuffled_train_filenames.npy", npy(names), fsync=True)
    atomic.write(out / "misc" / "img_mean.npy", npy(mean.astype(np.float32)), fsync=True)
    manifest = describe(sources, out, records, kept, signature)
    manifest["sha256"] = own_sha256(manifest)
    atomic.write(out / MANIFEST, json.dumps(manifest, indent=1).encode() + b"\n", fsync=True)
    return manifest


def npy(array: np.ndarray) -> bytes:
    """Return an array as the bytes of a .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def keep(images: ImageList, records: Mapping[tuple[str, int], Record], half: str) -> ImageList:
    """Return the images that are in the batches, in order."""
    bad = {name for (h, _), record in records.items() if h == half for name, _ in record["bad"]}
    return images.take([i for i, name in enumerate(images.names) if name not in bad])


def describe(
    sources: Sources, out: Path, records: Mapping[tuple[str, int], Record], kept: Mapping[str, ImageList],
    signature: dict[str, Any],
) -> Manifest:
    """Return the manifest as a dictionary; docs/data_format.md describes its entries."""
    halves = {}
    for half, images in kept.items():
        ordered = [record for (h, _), record in sorted(records.items()) if h == half]
        halves[half] = {
            "folder": folder_name(half, signature["batch_size"]),
            "images": len(images.names),
            "files": [{"name": f"{r['number']:04d}.hkl"} | {k: r[k] for k in FILE_ENTRIES if k in r}
                      for r in ordered if r["images"]],
            "skipped": [[name, reason] for r in ordered for name, reason in r["bad"]],
            "omitted": [omission._asdict() for omission in images.omitted],
        }
    return {
        "format": MANIFEST_FORMAT,
        "layout": f"uint8 (3, {IMAGE_SIZE}, {IMAGE_SIZE}, images): channel, row, column, image",
        "class_names": list(sources.class_names),
        **halves,
        "mean": "sum of all training images as integers, divided by their number, float32",
        "checksums": {name: file_sha256(out / name) for name in ARRAYS},
        "settings": signature,
    }


def counted(manifest: Manifest) -> str:
    """Describe the contents of a data set in one line; raises DataError if the manifest lacks an entry."""
    try:
        train, validation = manifest["train"], manifest["validation"]
        skipped = len(train["skipped"]) + len(validation["skipped"])
        return (
            f"{quantity(train['images'], 'training image')} in {quantity(len(train['files']), 'file')}, "
            f"{quantity(validation['images'], 'validation image')} in {quantity(len(validation['files']), 'file')}, "
            f"{len(manifest['class_names']):,} classes"
            + (f", {quantity(skipped, 'bad image')} skipped" if skipped else "")
        )
    except KeyError as error:
        raise DataError(f"{MANIFEST} lacks its entry {error}; make the data set again in another folder") from error
