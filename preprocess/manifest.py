"""The last files of a data set: labels, mean, lists of names, and the manifest that describes it; its check."""

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alexnet import hkl
from alexnet.augment import IMAGE_SIZE
from alexnet.folders import MANIFEST, MANIFEST_FORMAT, read_manifest
from alexnet.hkl import DataError, name_of

HALVES = {"train": "train", "validation": "val"}             # and their short names, in files
ARRAYS = (
    "labels/train_labels.npy", "labels/val_labels.npy", "misc/img_mean.npy", "misc/train.txt", "misc/val.txt",
    "misc/shuffled_train_filenames.npy",
)


def folder_name(half, batch_size):
    """Upstream's name of the folder of batch files."""
    return f"{HALVES[half]}_hkl_b{batch_size}_b_{batch_size}"


def file_sha256(path):
    """sha256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(sources, out, records, mean, signature):
    """Write labels, mean, lists of names and, last, the manifest, which is returned."""
    kept = {half: keep(images, records, half)
            for half, images in (("train", sources.train), ("validation", sources.validation))}
    for folder in ("labels", "misc"):
        (out / folder).mkdir(exist_ok=True)
    for half, images in kept.items():
        np.save(out / "labels" / f"{HALVES[half]}_labels.npy", images.labels)
        lines = sorted(os.fsencode(f"{name} {label}\n")
                       for name, label in zip(images.names, images.labels.tolist(), strict=True))
        (out / "misc" / f"{HALVES[half]}.txt").write_bytes(b"".join(lines))
    np.save(out / "misc" / "shuffled_train_filenames.npy", np.array([os.fsencode(n) for n in kept["train"].names]))
    np.save(out / "misc" / "img_mean.npy", mean.astype(np.float32))
    manifest = describe(sources, out, records, kept, signature)
    write_whole(out / MANIFEST, json.dumps(manifest, indent=1).encode() + b"\n")
    return manifest


def keep(images, records, half):
    """The images that made it into the batches, in order."""
    bad = {name for (h, _), record in records.items() if h == half for name, _ in record["bad"]}
    return images.take([i for i, name in enumerate(images.names) if name not in bad])


def describe(sources, out, records, kept, signature):
    """The manifest as a dictionary; docs/data_format.md says what each entry means."""
    halves = {}
    for half, images in kept.items():
        ordered = [record for (h, _), record in sorted(records.items()) if h == half]
        halves[half] = {
            "folder": folder_name(half, signature["batch_size"]),
            "images": len(images.names),
            "files": [{"name": f"{r['number']:04d}.hkl"} | {k: r[k] for k in ("images", "bytes", "sha256")}
                      for r in ordered if r["images"]],
            "skipped": [[name, why] for r in ordered for name, why in r["bad"]],
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


def write_whole(path, data):
    """Write bytes so that path is whole or not there at all."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def counted(manifest):
    """One line on what a data set holds."""
    train, validation = manifest["train"], manifest["validation"]
    skipped = len(train["skipped"]) + len(validation["skipped"])
    return (
        f"{train['images']:,} training images in {len(train['files']):,} files, "
        f"{validation['images']:,} validation images in {len(validation['files']):,} files, "
        f"{len(manifest['class_names']):,} classes" + (f", {skipped:,} bad images left out" if skipped else "")
    )


class Check(NamedTuple):
    """One file to compare with the manifest."""

    path: Path
    sha256: str
    images: int                                  # in a batch file; 0 for the small files


def checks(out):
    """The Checks of a data set, from its manifest.  Raises DataError where there is none."""
    manifest = read_manifest(out)
    if manifest is None:
        raise DataError(f"{name_of(out)} has no {MANIFEST}, so there is nothing to compare its files with")
    try:
        batches = [
            Check(Path(out) / manifest[half]["folder"] / file["name"], file["sha256"], file["images"])
            for half in HALVES for file in manifest[half]["files"]
        ]
        return batches + [Check(Path(out) / name, sha256, 0) for name, sha256 in manifest["checksums"].items()]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{name_of(out)}/{MANIFEST} lacks an entry: {error!r}") from error


def fault(check):
    """What is wrong with a file, in one sentence; None when it is the one the manifest describes."""
    try:
        if file_sha256(check.path) != check.sha256:
            return f"{name_of(check.path)} is damaged: its checksum differs from the manifest's"
        if check.images and hkl.check(check.path)[3] != check.images:
            return f"{name_of(check.path)} does not hold {check.images} images"
    except FileNotFoundError:
        return f"{name_of(check.path)} is missing"
    except (OSError, DataError) as error:
        return f"{name_of(check.path)} cannot be read: {error}"
    return None
