"""Targets: the files of data sets, and what preprocess reads."""

import io
import json
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import h5py
import numpy as np
import scipy.io
from PIL import Image, features

from alexnet.commands import _options
from alexnet.data import batch_file, layout
from alexnet.data.batch_file import DataError
from alexnet.data.dataset import open_dataset
from alexnet.data.ground_truth import Classes, labels_from, read_synsets
from alexnet.data.image_listing import ImageList, Sources
from alexnet.data.images import BadImage, read_image, read_member
from alexnet.data.omissions import Omissions
from alexnet.data.tar_listing import tar_images
from preprocess import verify
from preprocess.batches import still_there
from preprocess.journal import opened_journal
from preprocess.manifest import counted, write_manifest
from tests import hostile_images
from tests.fuzz import mutation
from tests.fuzz.target import HOLE, Target

SIZE = 4                                         # pixels of the images in small batch files
RESIZES = ("squash", "crop", "shorter")
NAMES = tuple(f"ILSVRC2012_val_{n:08d}.JPEG" for n in (1, 2, 3))
WNIDS = ("n01440764", "n02119789", "n03000000")
SYNSETS = {1: (WNIDS[1], "kit fox"), 2: (WNIDS[0], "tench"), 3: (WNIDS[2], "thing")}


# ---- batch files


def read_batch(path: Path) -> object:
    shape = batch_file.check(path, SIZE)
    images = np.empty((*shape[:3], min(shape[3], 8)), np.uint8)
    batch_file.read_into(path, images, 0, images.shape[3])
    strided = np.empty_like(images, order="F")
    batch_file.read_into(path, strided, 0, images.shape[3])
    assert (images == strided).all()
    with batch_file.opened(path, SIZE) as file:
        return shape, images, file.rows(2), batch_file.file_sha256(path)


def batch_seeds() -> Iterator[bytes]:
    images = np.arange(3 * SIZE * SIZE * 2, dtype=np.uint8).reshape(3, SIZE, SIZE, 2)

    def other(write) -> bytes:
        memory = io.BytesIO()
        with h5py.File(memory, "w") as file:
            write(file)
        return memory.getvalue()

    yield other(lambda file: batch_file.hickle.dump(images, file))
    plain = other(lambda file: file.create_dataset("data", data=images))
    yield plain
    yield plain[:-len(images.tobytes()) // 2]
    yield other(lambda file: file.create_dataset("data", (3, SIZE, SIZE, 10**9), np.uint8))
    yield other(lambda file: file.create_dataset("data_0", data=images, chunks=images.shape, compression="gzip"))
    yield other(lambda file: file.create_group("data"))
    yield other(lambda file: file.update({"other": images, "data": h5py.SoftLink("/other")}))
    yield other(lambda file: file.update({"data": h5py.ExternalLink("other.hkl", "/data")}))
    yield other(lambda file: file.create_dataset("data", images.shape, np.uint8, external=[("raw", 0, images.nbytes)]))
    yield other(lambda file: file.create_dataset("data", data=images.astype(np.float32)))


# ---- arrays


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    memory = io.BytesIO()
    np.lib.format.write_array(memory, array, version, allow_pickle=True)
    return memory.getvalue()


def npy_header(text: str, version: int = 1) -> bytes:
    """Return the start of a .npy file with any text in its header."""
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode()


def header_seeds() -> Iterator[bytes]:
    """Yield .npy files with unusual headers."""
    plain = "{'descr': '<i8', 'fortran_order': False, 'shape': (%s,), }\n"
    for shape in ("5L", "-1", "2**70", "9" * 30, "-" * 3000 + "1", "(" * 150 + ")" * 150, "True", "1.5", "None, 2"):
        yield npy_header(plain % shape) + bytes(40)
    yield npy_header("{'descr': [('a', '<i4'), ('b', 'O')], 'fortran_order': False, 'shape': (5,), }\n") + bytes(60)
    yield npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (5,), }\n") + bytes(60)
    yield npy_header("{'descr': '<U9999999', 'fortran_order': True, 'shape': (0, 5), }\n", 2)
    yield npy(np.array([{}], object))


def read_labels(path: Path) -> object:
    return layout.load_labels(path.parent, "train", [Path("0000.hkl"), Path("0001.hkl")], np.array([3, 2]))


def label_seeds() -> Iterator[bytes]:
    for kind in ("i8", "<i4", ">i2", "u1", "<u8", "f4", "S3"):
        yield npy(np.arange(5).astype(kind))
    yield npy(np.arange(5), (2, 0))
    yield npy(np.arange(5), (3, 0))
    yield npy(np.arange(6).reshape(2, 3).T)
    yield npy(np.array([], np.int64))
    yield from header_seeds()


def prepare_halves(folder: Path) -> None:
    (folder / "labels").mkdir()
    for half, labels in enumerate(([0, 1], [1, 1, 0])):
        np.save(folder / "labels" / f"train_labels_{half}.npy", np.array(labels))


def read_names(path: Path) -> object:
    files = [Path("0000.hkl"), Path("0001.hkl")]
    return layout.load_labels(path.parents[1] / "labels", "train", files, np.array([3, 2]))


def name_seeds() -> Iterator[bytes]:
    names = ["a/1.JPEG", "b/2.JPEG", "b/1.JPEG", "b/3.JPEG", "a/2.JPEG"]
    yield npy(np.array(names))
    yield npy(np.array([name.encode() for name in names]))
    yield npy(np.array([b"\xff/1", b"/", b"", b"\n/2", b"b/c/d"]))
    yield npy(np.array([f"a\nb\x1b{'c' * 2000}/1.JPEG", "b/2.JPEG", f"a\nb\x1b{'c' * 2000}/2.JPEG"]))


def read_mean(path: Path) -> object:
    return _options.mean_of(path, None)


def mean_seeds() -> Iterator[bytes]:
    for kind in ("<f4", "<u4", "<f8"):
        for order in ("False", "True"):
            yield npy_header(f"{{'descr': '{kind}', 'fortran_order': {order}, 'shape': (3, 256, 256), }}\n") + HOLE
    start = npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 256, 256), }\n")
    yield start + np.array([0.5, 0.25], "<f4").tobytes() + HOLE
    yield start + np.array([-1, 300, np.nan], "<f4").tobytes() + HOLE
    yield from header_seeds()


# ---- manifests


def signature() -> dict:
    return {"batch_size": 2, "seed": 1, "resize": "squash", "on_bad_image": "fail", "decode": "exact", "sources": "ab"}


def prepare_data_set(folder: Path) -> None:
    """Write a data set of three images, with a manifest as preprocess writes it."""
    records = {}
    halves = {"train": ("train", 2), "validation": ("val", 1)}
    for half, (short, n) in halves.items():
        path = folder / f"{short}_hkl_b2_b_2" / "0000.hkl"
        path.parent.mkdir()
        images = np.full((3, 256, 256, n), 100, np.uint8)
        batch_file.write(path, images)
        records[half, 0] = {
            "half": half, "number": 0, "images": n, "bytes": path.stat().st_size,
            "sha256": batch_file.file_sha256(path), "sums_crc32": batch_file.sums_crc32(images), "bad": [],
        }
    train = ImageList("train", ("a/1.JPEG", "b/2.JPEG"), np.array([0, 1], np.int32))
    sources = Sources(train, ImageList("val", ("b/3.JPEG",), np.array([1], np.int32)), ("a", "b"))
    write_manifest(sources, folder, records, np.full((3, 256, 256), 100), signature())


def manifest_seeds() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        prepare_data_set(Path(folder))
        content = (Path(folder) / layout.MANIFEST).read_bytes()
    yield content
    manifest = json.loads(content)
    del manifest["sha256"]
    yield json.dumps(manifest).encode()
    yield b"[" * mutation.DEPTH
    yield b'{"format": 1, "x": ' + b"[" * 900 + b"]" * 900 + b"}"
    yield b"null"


def read_manifest(path: Path) -> object:
    folder = path.parent
    listed = counted_or_not(folder)
    checks = verify.checks(folder)
    faults = verify.faults(folder, {check: verify.examine(check) for check in checks})
    assert all(fault.isprintable() for fault in faults), faults
    return open_dataset(folder), checks, faults, listed


def counted_or_not(folder: Path) -> object:
    manifest = layout.read_manifest(folder)
    assert manifest is not None
    fault = layout.fault_of_manifest(folder, manifest)
    return fault or counted(manifest)


def manifest_repaired(data: bytes) -> bytes:
    try:
        manifest = json.loads(data)
        if not isinstance(manifest, dict):
            return data
        return json.dumps(manifest | {"sha256": layout.own_sha256(manifest)}).encode()
    except (ValueError, RecursionError):
        return data


# ---- journal


def read_journal(path: Path) -> object:
    with opened_journal(path, signature()) as journal:
        return [(key, still_there(Path("none"), record)) for key, record in journal.finished.items()]


def journal_seeds() -> Iterator[bytes]:
    record = {"half": "train", "number": 0, "images": 2, "bytes": 100, "sha256": "ab", "sums_crc32": 7, "bad": []}
    lines = [signature(), record, record | {"half": "validation", "bad": [["a.JPEG", "is damaged"]]}]
    yield b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    yield json.dumps(signature() | {"resize": "crop"}).encode() + b"\n"
    yield json.dumps(signature() | {"resize": "a\n\x1b" * 900}).encode() + b"\n"
    yield json.dumps(record).encode() + b"\n" + b'{"half": "tra'
    yield b'5\n"half"\n["half"]\nnull\n'
    yield b'{"half": "train"}\n{"half": [], "number": {}}\n'
    yield b"[" * mutation.DEPTH + b"\n"


# ---- images


def read_picture(path: Path) -> object:
    size = path.stat().st_size
    decode = "fast" if size % 2 else "exact"
    return read_image(path, RESIZES[size % 3], decode)


def image_seeds() -> Iterator[bytes]:
    picture = hostile_images.photograph(20, 12)
    yield hostile_images.encoded(picture)
    yield hostile_images.encoded(picture.convert("CMYK"))
    yield hostile_images.encoded(picture.convert("L"), progressive=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    yield hostile_images.encoded(picture, exif=exif)
    for mode in ("RGB", "L", "LA", "RGBA", "1"):
        yield hostile_images.encoded(picture.convert(mode), "PNG")
    yield hostile_images.encoded(picture.convert("L").convert("I;16"), "PNG")
    yield hostile_images.encoded(picture.quantize(16), "PNG")
    yield hostile_images.encoded(picture.quantize(16), "PNG", transparency=3)
    yield hostile_images.encoded(picture.quantize(16), "GIF")
    for mode in ("RGB", "L", "1"):
        yield hostile_images.encoded(picture.convert(mode), "BMP")
        yield hostile_images.encoded(picture.convert(mode), "PPM")
    for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield hostile_images.encoded(picture, "TIFF", compression=compression)
    yield hostile_images.encoded(picture.convert("F"), "TIFF")
    yield hostile_images.encoded(picture.convert("I"), "TIFF")
    yield hostile_images.encoded(picture.convert("1"), "TIFF", compression="group4")
    for form in ("webp", "avif"):
        if features.check(form):
            yield hostile_images.encoded(picture, form)
            yield hostile_images.encoded(picture.convert("RGBA"), form)
    yield hostile_images.encoded(picture.convert("LAB"), "TIFF")
    yield from (b"", b"\x1f\x8b\x08", b"<!doctype html>", b"text")
    yield hostile_images.bomb(12_000)[:200]


def png_repaired(data: bytes) -> bytes:
    """Return a PNG with the CRC-32 of each chunk corrected."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    changed, at = bytearray(data), 8
    while at + 12 <= len(changed):
        size = int.from_bytes(changed[at : at + 4], "big")
        if at + 12 + size > len(changed):
            break
        changed[at + 8 + size : at + 12 + size] = struct.pack(">I", zlib.crc32(changed[at + 4 : at + 8 + size]))
        at += 12 + size
    return bytes(changed)


# ---- tars


def read_tar(path: Path) -> object:
    omissions = Omissions()
    images = tar_images(path, omissions)
    with path.open("rb") as file:
        contents = [read_member(file, *map(int, extent)).read() for extent in images.extents[:3]]
    return images, omissions.listed(), list(map(str, omissions.listed())), contents


def tar_of(members: Iterable[tuple[str, bytes, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar of (name, content, type)."""
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w", format=form) as archive:
        for name, content, kind in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.type = kind
            archive.addfile(member, io.BytesIO(content))
    return memory.getvalue().rstrip(b"\0") + bytes(2 * tarfile.BLOCKSIZE)      # without the padding to 20 blocks


def tar_seeds() -> Iterator[bytes]:
    plain = tarfile.REGTYPE
    one = tar_of([("n01_1.JPEG", b"one", plain)])
    two = tar_of([("n02_10.JPEG", b"ten", plain), ("n02_9.JPEG", b"nine", plain)])
    yield two
    yield tar_of([("n01.tar", one, plain), ("n02.tar", two, plain)])
    yield tar_of([("n02/10.JPEG", b"ten", plain), ("n01/1.JPEG", b"one", plain), ("n01/1.txt", b"", plain)])
    odd = [
        (f"{'a' * 90}/{'é' * 20}.JPEG", b"x" * 10, plain), ("b/link.JPEG", b"", tarfile.SYMTYPE),
        ("b", b"", tarfile.DIRTYPE), ("b/1.JPEG", b"y", plain), ("b/.hidden.JPEG", b"", plain),
    ]
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        yield tar_of(odd, form)
    backwards = bytearray(two)
    backwards[1148:1160] = b"\xff" * 10 + b"\xfe\0"        # the second member has -512 bytes: it ends where it begins
    yield tar_repaired(bytes(backwards))
    yield b"\x1f\x8b" + bytes(30)


def tar_repaired(data: bytes) -> bytes:
    """Return a tar with the checksum of each header corrected."""
    changed = bytearray(data)
    for at in range(0, len(changed) - 511, 512):
        header = changed[at : at + 512]
        if header[257:262] == b"ustar":
            header[148:156] = b" " * 8
            changed[at + 148 : at + 156] = b"%06o\0 " % sum(header)
    return bytes(changed)


# ---- labels of flat folders


def read_truth(path: Path) -> object:
    label_of = {wnid: label for label, wnid in enumerate(sorted(WNIDS))}
    found = []
    for classes in (Classes(label_of, "the training folder", SYNSETS), Classes({"a": 0, "b": 1}, "the weights", {})):
        omissions = Omissions()
        try:
            found.append((labels_from(path, path.parent, NAMES, classes, omissions), omissions.listed()))
        except DataError as error:
            found.append(str(error))
    if all(isinstance(each, str) for each in found):
        raise DataError(found[0])
    return found


def truth_seeds() -> Iterator[bytes]:
    yield b"3\n1\n2\n"
    yield "3\n1\n2\n".encode("utf-16")
    yield b"\xef\xbb\xbfn01440764\r\nn02119789\r\nn03000000\r\n"
    yield "".join(f"{name} {n}\n" for n, name in enumerate(NAMES)).encode()
    yield b"ImageId,PredictionString\n" + b"".join(b"%s,n01440764 1 2 3 4\n" % name.encode()[:-5] for name in NAMES)
    yield "".join(f"{name}\t{WNIDS[1]}\t0\t0\t62\t62\n" for name in NAMES).encode()
    yield b"a\nb\nb\n"
    yield b"0\n0\n0\n"
    yield "\u0663\n\u00b2\n1\n".encode()
    yield b"1 n02119789 kit fox\n"
    yield b"9" * 5000 + b"\n1\n1\n"


def synset_seeds() -> Iterator[bytes]:
    yield b"1 n02119789 kit fox, Vulpes macrotis\n2 n01440764 tench\n"
    yield b"n02119789 1 kit_fox\nn01440764 2 tench\n"
    yield b"1\n"
    yield "\u0663 n02119789 x\n\u00b2 n1\n".encode()
    yield b"9" * 5000 + b" n02119789 x\n"
    yield b"n01440764 tench\n"
    yield ("a\x1b" * 3000 + " b\n").encode()


def meta_seeds() -> Iterator[bytes]:
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
    rows = np.array([(1, WNIDS[0], "tench"), (2, WNIDS[1], "kit fox")], dtype=kinds).reshape(-1, 1)
    for content in ({"synsets": rows}, {"synsets": np.arange(3)}, {"other": np.eye(2)}, {"synsets": "text"}):
        for compress in (False, True):
            memory = io.BytesIO()
            scipy.io.savemat(memory, content, do_compression=compress)
            yield memory.getvalue()
    memory = io.BytesIO()
    scipy.io.savemat(memory, {"synsets": np.arange(3)}, format="4")
    yield memory.getvalue()


def class_name_seeds() -> Iterator[bytes]:
    yield b"tench\nkit fox\nthing\n"
    yield b'["tench", "kit fox", "thing"]'
    yield b'{"0": ["n01440764", "tench"], "1": "kit fox", "2": "thing"}'
    yield b'{"class_names": ["tench", "kit fox", "thing"]}'
    yield b"[" * mutation.DEPTH
    yield b'{"0": 1e999, "1": null, "2": [[]]}'


HEADERS = "alexnet.data.layout"
TARGETS = {
    "batch_file": Target(
        "0000.hkl", read_batch, (DataError,), batch_seeds, ("alexnet.data.batch_file",), longest=8192,
    ),
    "labels": Target("labels/train_labels.npy", read_labels, (DataError,), label_seeds, (HEADERS,), longest=600),
    "image_names": Target(
        "misc/shuffled_train_filenames.npy", read_names, (DataError,), name_seeds, (HEADERS,), prepare_halves,
        longest=1000,
    ),
    "mean": Target(
        "img_mean.npy", read_mean, (DataError,), mean_seeds, (HEADERS, "alexnet.commands._options:mean_of"),
        hole=3 * 256 * 256 * 4, mutations=100, longest=400,
    ),
    "manifest": Target(
        "manifest.json", read_manifest, (DataError,), manifest_seeds,
        (HEADERS, "alexnet.data.dataset", "preprocess.manifest", "preprocess.verify"),
        prepare_data_set, mutation.json_mutated, manifest_repaired, mutations=100,
    ),
    "journal": Target(
        "misc/journal.jsonl", read_journal, (DataError,), journal_seeds, ("preprocess.journal",),
        structure=mutation.json_lines_mutated, writes=True, longest=2000,
    ),
    "image": Target(
        "image", read_picture, (BadImage,), image_seeds,
        ("alexnet.data.images", "alexnet.data.image_formats", "alexnet.data.png"), repair=png_repaired, mutations=300,
    ),
    "tar": Target(
        "train.tar", read_tar, (DataError,), tar_seeds, ("alexnet.data.tar_listing",), repair=tar_repaired,
        longest=8192,
    ),
    "ground_truth": Target(
        "truth.txt", read_truth, (DataError,), truth_seeds, ("alexnet.data.ground_truth",), longest=1000,
    ),
    "synsets": Target(
        "synsets.txt", read_synsets, (DataError,), synset_seeds, ("alexnet.data.ground_truth",), longest=1000,
    ),
    "meta_mat": Target(
        "meta.mat", read_synsets, (DataError,), meta_seeds,
        ("alexnet.data.ilsvrc_devkit", "alexnet.data.ground_truth"), mutations=300, longest=1500,
    ),
    "class_names": Target(
        "names.txt", lambda path: _options.class_names_of(path, 3), (DataError,), class_name_seeds,
        ("alexnet.commands._options:class_names_of,listed_names",), structure=mutation.json_mutated, longest=1000,
    ),
}
