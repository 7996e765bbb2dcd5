"""Batch files: what is written is read back; what is not plain uint8 images is refused, and nothing of it runs."""

import os
import pickle

import h5py
import hickle
import numpy as np
import pytest

from alexnet import hkl


def images(n, size=256, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (3, size, size, n), dtype=np.uint8)


@pytest.fixture
def batch(tmp_path):
    path = tmp_path / "0000.hkl"
    hkl.write(path, images(5))
    return path


def test_a_batch_is_what_hickle_writes_and_reads(batch, tmp_path):
    hickle.dump(images(5), tmp_path / "other.hkl", mode="w")
    assert batch.read_bytes() == (tmp_path / "other.hkl").read_bytes()
    np.testing.assert_array_equal(hickle.load(batch), images(5))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0000.hkl", "other.hkl"]


def test_the_header_tells_the_shape(batch):
    assert hkl.check(batch) == (3, 256, 256, 5)


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (0, 2), (1, 4), (4, 5)])
def test_any_part_is_read_into_any_buffer(batch, start, stop):
    plain = np.empty((3, 256, 256, stop - start), np.uint8)
    hkl.read_into(batch, plain, start, stop)
    np.testing.assert_array_equal(plain, images(5)[..., start:stop])
    strided = np.empty((3, 256, 256, 11), np.uint8)[..., 1:2 * (stop - start):2]
    hkl.read_into(batch, strided, start, stop)
    np.testing.assert_array_equal(strided, plain)


@pytest.mark.parametrize(("start", "stop"), [(0, 6), (-1, 2), (3, 3)])
def test_a_part_outside_the_file_is_refused(batch, start, stop):
    with pytest.raises(hkl.DataError, match="holds 5 images; cannot read"):
        hkl.read_into(batch, np.empty((3, 256, 256, max(stop - start, 0)), np.uint8), start, stop)


def test_older_hickle_names_are_read(tmp_path):
    with h5py.File(tmp_path / "old.hkl", "w") as file:
        file["data_0"] = images(2)
        file["type"] = b"hickle"
    assert hkl.check(tmp_path / "old.hkl") == (3, 256, 256, 2)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(hkl.DataError, match="0007.hkl is missing"):
        hkl.check(tmp_path / "0007.hkl")


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.999])
def test_a_truncated_file_is_refused(batch, share):
    whole = batch.read_bytes()
    batch.write_bytes(whole[:int(len(whole) * share)])
    with pytest.raises(hkl.DataError, match="0000.hkl is not a readable HDF5 file"):
        hkl.check(batch)


def test_a_flipped_bit_in_the_header_is_refused_or_changes_nothing_that_is_read(batch, rng):
    header = batch.read_bytes()[:1600]                           # all that there is but the address of the images
    out, refused = np.empty((3, 256, 256, 5), np.uint8), 0
    with open(batch, "r+b", buffering=0) as file:
        for place in rng.choice(len(header), 100, replace=False).tolist():
            flipped = bytearray(header)
            flipped[place] ^= 1 << int(rng.integers(8))
            os.pwrite(file.fileno(), flipped, 0)
            try:
                hkl.read_into(batch, out)
            except hkl.DataError as error:
                refused += 1
                assert "0000.hkl" in str(error) and "\n" not in str(error)
            else:
                np.testing.assert_array_equal(out, images(5))
    assert 5 < refused < 95


def test_what_is_no_file_is_refused_at_once(tmp_path):
    (tmp_path / "0000.hkl").mkdir()
    os.mkfifo(tmp_path / "0001.hkl")
    for name in ("0000.hkl", "0001.hkl"):
        with pytest.raises(hkl.DataError, match=f"{name} is not a file"):
            hkl.check(tmp_path / name)


def test_half_written_files_are_no_batches_and_are_taken_away(tmp_path):
    hkl.write(tmp_path / "0000.hkl", images(1))
    (tmp_path / "0001.hkl.4711.partial").write_bytes(b"killed")
    hkl.remove_partial(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["0000.hkl"]


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(hkl.DataError, match="nowhere/0000.hkl cannot be written: No such file or directory"):
        hkl.write(tmp_path / "nowhere" / "0000.hkl", images(1))


def test_bytes_that_are_not_hdf5_are_refused(tmp_path):
    (tmp_path / "0000.hkl").write_bytes(b"\x89PNG not at all" * 1000)
    with pytest.raises(hkl.DataError, match="not a readable HDF5 file"):
        hkl.check(tmp_path / "0000.hkl")


def nothing(file, folder):
    file["other"] = 1


def wrong_shape(file, folder):
    file["data"] = images(2).transpose(3, 0, 1, 2)


def wrong_size(file, folder):
    file["data"] = images(2, size=227)


def wrong_type(file, folder):
    file["data"] = images(2).astype(np.float32)


def no_images(file, folder):
    file["data"] = images(0)


def group(file, folder):
    file.create_group("data")["0"] = images(2)


def external_storage(file, folder):
    (folder / "raw").write_bytes(images(2).tobytes())
    shape = (3, 256, 256, 2)
    file.create_dataset("data", shape, np.uint8, external=[(str(folder / "raw"), 0, images(2).nbytes)])


def external_link(file, folder):
    hkl.write(folder / "elsewhere.hkl", images(2))
    file["data"] = h5py.ExternalLink(str(folder / "elsewhere.hkl"), "/data")


def soft_link(file, folder):
    file["other"] = images(2)
    file["data"] = h5py.SoftLink("/other")


def virtual(file, folder):
    hkl.write(folder / "elsewhere.hkl", images(2))
    layout = h5py.VirtualLayout((3, 256, 256, 2), np.uint8)
    layout[:] = h5py.VirtualSource(str(folder / "elsewhere.hkl"), "data", (3, 256, 256, 2))
    file.create_virtual_dataset("data", layout)


def shape_bomb(file, folder):
    file.create_dataset("data", (3, 256, 256, 10**9), np.uint8, chunks=(3, 256, 256, 1))


def plain_bomb(file, folder):
    file.create_dataset("data", (3, 256, 256, 10**9), np.uint8)


def compressed(file, folder):
    file.create_dataset("data", data=images(2), compression="gzip")


@pytest.mark.parametrize(("make", "sentence"), [
    (nothing, "holds no array named 'data'"),
    (wrong_shape, r"holds uint8 of shape \(2, 3, 256, 256\)"),
    (wrong_size, r"holds uint8 of shape \(3, 227, 227, 2\)"),
    (wrong_type, "holds float32"),
    (no_images, "declares shape"),
    (group, "holds a group"),
    (external_storage, "keeps its images in other files"),
    (external_link, "holds a link"),
    (soft_link, "holds a link"),
    (virtual, "keeps its images in other files"),
    (shape_bomb, "is compressed or chunked"),
    (plain_bomb, "stores 0 bytes"),
    (compressed, "gzip"),
])
def test_all_but_plain_images_are_refused_in_one_sentence(tmp_path, make, sentence):
    with h5py.File(tmp_path / "0003.hkl", "w") as file:
        make(file, tmp_path)
    with pytest.raises(hkl.DataError, match=sentence) as caught:
        hkl.check(tmp_path / "0003.hkl")
    assert "0003.hkl" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(hkl.DataError, match=sentence):
        hkl.read_into(tmp_path / "0003.hkl", np.empty((3, 256, 256, 2), np.uint8))


class Payload:
    """Unpickling it makes the file `path`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::hickle.lookup.SerializedWarning")
def test_a_pickled_payload_is_refused_and_does_not_run(tmp_path):
    hickle.dump(Payload(tmp_path / "ran"), tmp_path / "0000.hkl", mode="w")
    with pytest.raises(hkl.DataError, match="holds"):
        hkl.check(tmp_path / "0000.hkl")
    assert not (tmp_path / "ran").exists()
    hickle.load(tmp_path / "0000.hkl").close()
    assert (tmp_path / "ran").exists(), "the payload is a live one: hickle.load runs it"


def test_a_payload_beside_good_images_does_not_run(batch, tmp_path):
    with h5py.File(batch, "a") as file:
        payload = np.void(pickle.dumps(Payload(tmp_path / "ran")))
        del file["data"].attrs["type"]
        file["data"].attrs["type"] = file.attrs["type"] = payload
    out = np.empty((3, 256, 256, 5), np.uint8)
    hkl.read_into(batch, out)
    np.testing.assert_array_equal(out, images(5))
    assert not (tmp_path / "ran").exists()
