"""Hostile data passed to the commands: one line of error, its exit status, no delay, and no code execution."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alexnet.data.dataset import DataError, open_dataset
from preprocess.command import main as preprocess
from tests import hostile_batches, tiny
from tests.hostile_batches import Payload

pytestmark = pytest.mark.slow

TOP = Path(__file__).parent.parent
BATCH = "train_hkl_b3_b_3/0001.hkl"


@pytest.fixture
def data(tmp_path):
    return tiny.make_data(tmp_path / "set", train=6, validation=3, per_file=3)


def describe(folder):
    """Write a manifest that matches all files in a folder, as an attacker would."""
    def half(name):
        files = [{"name": f.name, "images": 3, "bytes": f.stat().st_size, "sha256": sha256(f)}
                 for f in sorted((folder / name).glob("*.hkl"))]
        return {"folder": name, "images": 3 * len(files), "files": files, "skipped": []}

    def sha256(file):
        return hashlib.sha256(file.read_bytes()).hexdigest()

    small = ("labels/train_labels.npy", "labels/val_labels.npy", "misc/img_mean.npy")
    manifest = {"format": 1, "train": half("train_hkl_b3_b_3"), "validation": half("val_hkl_b3_b_3"),
                "checksums": {name: sha256(folder / name) for name in small}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(("kind", "message"), hostile_batches.KINDS)
def test_hostile_batch_file_is_refused_despite_its_manifest(data, tmp_path, kind, message, capsys):
    hostile_batches.make(kind, data / BATCH, tmp_path)
    describe(data)
    with pytest.raises(DataError, match=message):
        open_dataset(data)
    assert preprocess(["verify", str(data), "--workers", "1"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{data / BATCH} cannot be read: ") and "a batch file holds plain uint8 images" in line
    assert not (tmp_path / "ran").exists()


def test_damaged_batch_file_is_trained_on_only_if_asked(data, tmp_path):
    describe(data)
    damaged = bytearray((data / BATCH).read_bytes())
    damaged[-200_000] ^= 64
    (data / BATCH).write_bytes(damaged)
    with pytest.raises(DataError, match="0001.hkl is damaged: its content differs from the checksum"):
        tiny.run(data, tmp_path, batch_size=2, n_epochs=1, run_name="refused")
    tiny.run(data, tmp_path, batch_size=2, n_epochs=1, run_name="trained", verify_data=False)


def batch_payload(data, folder):
    hostile_batches.make(hostile_batches.payload, data / BATCH, folder)


def batch_elsewhere(data, folder):
    hostile_batches.make(hostile_batches.virtual, data / BATCH, folder)


def label_payload(data, folder):
    labels = np.array([Payload(folder / "ran")] * 6, object)
    np.save(data / "labels" / "train_labels.npy", labels, allow_pickle=True)


def mean_pipe(data, folder):
    (data / "misc" / "img_mean.npy").unlink()
    os.mkfifo(data / "misc" / "img_mean.npy")


@pytest.mark.parametrize(("damage", "message"), [
    (batch_payload, "0001.hkl holds "),
    (batch_elsewhere, "0001.hkl keeps its images in other files"),
    (label_payload, "train_labels.npy is not a readable .npy array of plain values"),
    (mean_pipe, "img_mean.npy is not a file"),
])
def test_training_on_hostile_data_ends_with_status_2(data, tmp_path, damage, message):
    damage(data, tmp_path)
    command = [sys.executable, str(TOP / "train.py"), f"data={data}", "batch_size=2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert message in done.stderr and "compiling" not in done.stdout
    assert not (tmp_path / "ran").exists()
