"""Invalid and malicious batch files: for each kind a function (open file, folder) and the expected error message."""

import warnings

import h5py
import hickle
import numpy as np

from alexnet.data import batch_file


def images(n, size=256, seed=0):
    """Return random images, uint8 (3, size, size, n)."""
    return np.random.default_rng(seed).integers(0, 256, (3, size, size, n), dtype=np.uint8)


class Payload:
    """An object whose unpickling creates the file `path`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


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
    batch_file.write(folder / "elsewhere.hkl", images(2))
    file["data"] = h5py.ExternalLink(str(folder / "elsewhere.hkl"), "/data")


def soft_link(file, folder):
    file["other"] = images(2)
    file["data"] = h5py.SoftLink("/other")


def virtual(file, folder):
    batch_file.write(folder / "elsewhere.hkl", images(2))
    layout = h5py.VirtualLayout((3, 256, 256, 2), np.uint8)
    layout[:] = h5py.VirtualSource(str(folder / "elsewhere.hkl"), "data", (3, 256, 256, 2))
    file.create_virtual_dataset("data", layout)


def shape_bomb(file, folder):
    file.create_dataset("data", (3, 256, 256, 10**9), np.uint8, chunks=(3, 256, 256, 1))


def plain_bomb(file, folder):
    file.create_dataset("data", (3, 256, 256, 10**9), np.uint8)


def compressed(file, folder):
    file.create_dataset("data", data=images(2), compression="gzip")


def payload(file, folder):
    hickle.dump(Payload(folder / "ran"), file)


KINDS = (
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
    (payload, "holds"),
)


def make(kind, path, folder):
    """Write a hostile batch file to path; auxiliary files, and files that its code would create, are in folder."""
    with warnings.catch_warnings(), h5py.File(path, "w") as file:
        warnings.simplefilter("ignore")                      # hickle warns about objects that it pickles
        kind(file, folder)
