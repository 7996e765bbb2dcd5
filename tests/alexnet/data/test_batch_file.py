"""Batch files: round trip, and refusal of anything but plain uint8 images without executing its contents."""

import os
import pickle

import h5py
import hickle
import numpy as np
import pytest

from alexnet.data import batch_file
from alexnet.native.atomic import remove_partial
from tests import hostile_batches
from tests.hostile_batches import Payload, images


@pytest.fixture
def batch(tmp_path):
    path = tmp_path / "0000.hkl"
    batch_file.write(path, images(5))
    return path


def test_batch_file_is_compatible_with_hickle(batch, tmp_path):
    hickle.dump(images(5), tmp_path / "other.hkl", mode="w")
    assert batch.read_bytes() == (tmp_path / "other.hkl").read_bytes()
    np.testing.assert_array_equal(hickle.load(batch), images(5))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0000.hkl", "other.hkl"]


def test_header_contains_the_shape(batch):
    assert batch_file.check(batch) == (3, 256, 256, 5)


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (0, 2), (1, 4), (4, 5)])
def test_any_range_is_read_into_any_buffer(batch, start, stop):
    plain = np.empty((3, 256, 256, stop - start), np.uint8)
    batch_file.read_into(batch, plain, start, stop)
    np.testing.assert_array_equal(plain, images(5)[..., start:stop])
    strided = np.empty((3, 256, 256, 11), np.uint8)[..., 1:2 * (stop - start):2]
    batch_file.read_into(batch, strided, start, stop)
    np.testing.assert_array_equal(strided, plain)


@pytest.mark.parametrize(("start", "stop"), [(0, 6), (-1, 2), (3, 3)])
def test_range_outside_the_file_is_refused(batch, start, stop):
    with pytest.raises(batch_file.DataError, match="holds 5 images; cannot read"):
        batch_file.read_into(batch, np.empty((3, 256, 256, max(stop - start, 0)), np.uint8), start, stop)


def test_older_hickle_names_are_read(tmp_path):
    with h5py.File(tmp_path / "old.hkl", "w") as file:
        file["data_0"] = images(2)
        file["type"] = b"hickle"
    assert batch_file.check(tmp_path / "old.hkl") == (3, 256, 256, 2)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(batch_file.DataError, match="0007.hkl is missing"):
        batch_file.check(tmp_path / "0007.hkl")


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.999])
def test_truncated_file_is_refused(batch, share):
    whole = batch.read_bytes()
    batch.write_bytes(whole[:int(len(whole) * share)])
    with pytest.raises(batch_file.DataError, match="0000.hkl is not a readable HDF5 file"):
        batch_file.check(batch)


def test_flipped_header_bit_is_refused_or_harmless(batch, rng):
    header = batch.read_bytes()[:1600]                           # everything except the address of the images
    out, refused = np.empty((3, 256, 256, 5), np.uint8), 0
    with open(batch, "r+b", buffering=0) as file:
        for place in rng.choice(len(header), 100, replace=False).tolist():
            flipped = bytearray(header)
            flipped[place] ^= 1 << int(rng.integers(8))
            os.pwrite(file.fileno(), flipped, 0)
            try:
                batch_file.read_into(batch, out)
            except batch_file.DataError as error:
                refused += 1
                assert "0000.hkl" in str(error) and "\n" not in str(error)
            else:
                np.testing.assert_array_equal(out, images(5))
    assert 5 < refused < 95


def test_flipped_bit_or_exchanged_blocks_change_the_checksum(rng):
    batch = images(2)
    bytes_, expected = batch.reshape(-1), batch_file.sums_crc32(batch)
    for place in rng.integers(batch.size, size=50).tolist():
        bytes_[place] ^= (bit := 1 << int(rng.integers(8)))
        assert batch_file.sums_crc32(batch) != expected
        bytes_[place] ^= bit
    blocks = batch.reshape(-1, 4096)
    blocks[[3, 7]] = blocks[[7, 3]]
    assert batch_file.sums_crc32(batch) != expected


def test_other_than_regular_files_are_refused_immediately(tmp_path):
    (tmp_path / "0000.hkl").mkdir()
    os.mkfifo(tmp_path / "0001.hkl")
    for name in ("0000.hkl", "0001.hkl"):
        with pytest.raises(batch_file.DataError, match=f"{name} is not a file"):
            batch_file.check(tmp_path / name)


def test_partial_files_are_removed(tmp_path):
    batch_file.write(tmp_path / "0000.hkl", images(1))
    (tmp_path / "0001.hkl.4711.partial").write_bytes(b"killed")
    remove_partial(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["0000.hkl"]


def test_concurrent_writers_do_not_share_a_temporary_file(tmp_path, monkeypatch):
    def meanwhile(array, file):
        monkeypatch.undo()
        batch_file.write(tmp_path / "0000.hkl", images(5))
        assert batch_file.check(tmp_path / "0000.hkl") == (3, 256, 256, 5)
        hickle.dump(array, file)

    monkeypatch.setattr(hickle, "dump", meanwhile)
    batch_file.write(tmp_path / "0000.hkl", images(2))
    assert batch_file.check(tmp_path / "0000.hkl") == (3, 256, 256, 2)


def test_error_of_the_disk_is_distinguished_from_a_bad_file(tmp_path):
    """Linux reports EIO when address 0 of a process is read."""
    with pytest.raises(batch_file.ReadError, match="mem is not a readable HDF5 file: .*Input/output error"):
        batch_file.check("/proc/self/mem")
    (tmp_path / "0000.hkl").write_bytes(b"")
    with pytest.raises(batch_file.DataError) as error:
        batch_file.check(tmp_path / "0000.hkl")
    assert error.type is batch_file.DataError


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(batch_file.DataError, match="nowhere/0000.hkl cannot be written: No such file or directory"):
        batch_file.write(tmp_path / "nowhere" / "0000.hkl", images(1))


def test_bytes_that_are_not_hdf5_are_refused(tmp_path):
    (tmp_path / "0000.hkl").write_bytes(b"\x89PNG not at all" * 1000)
    with pytest.raises(batch_file.DataError, match="not a readable HDF5 file"):
        batch_file.check(tmp_path / "0000.hkl")


@pytest.mark.parametrize(("kind", "message"), hostile_batches.KINDS)
def test_only_plain_images_are_accepted(tmp_path, kind, message):
    hostile_batches.make(kind, tmp_path / "0003.hkl", tmp_path)
    with pytest.raises(batch_file.DataError, match=message) as caught:
        batch_file.check(tmp_path / "0003.hkl")
    assert "0003.hkl" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(batch_file.DataError, match=message):
        batch_file.read_into(tmp_path / "0003.hkl", np.empty((3, 256, 256, 2), np.uint8))
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_payload_executes_when_unpickled(tmp_path):
    hostile_batches.make(hostile_batches.payload, tmp_path / "0000.hkl", tmp_path)
    hickle.load(tmp_path / "0000.hkl").close()
    assert (tmp_path / "ran").exists()


def test_payload_beside_good_images_is_not_executed(batch, tmp_path):
    with h5py.File(batch, "a") as file:
        payload = np.void(pickle.dumps(Payload(tmp_path / "ran")))
        del file["data"].attrs["type"]
        file["data"].attrs["type"] = file.attrs["type"] = payload
    out = np.empty((3, 256, 256, 5), np.uint8)
    batch_file.read_into(batch, out)
    np.testing.assert_array_equal(out, images(5))
    assert not (tmp_path / "ran").exists()
