"""The folder of a data set: its batch files, and the arrays that belong to them.

All inexpensive checks run here, before training starts: existence, headers, sizes, labels, and the checksums of the
small files. `python -m preprocess verify` checks the checksums of the batch files.
"""

import hashlib
import json
import os
import re
import sys
import tokenize
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alexnet.data import batch_file
from alexnet.data.augment import IMAGE_SIZE
from alexnet.data.batch_file import DataError, FileChecksum, file_sha256, name_of, one_line
from alexnet.native.untrusted import parse_json

MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
# raised by NumPy for the header of a .npy file; SystemError by Python's tokenizer for a zero byte
BAD_HEADER = (
    ValueError, TypeError, OverflowError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError, EOFError,
    KeyError, SystemError,
)
BATCH_NAME = re.compile(r"(\d+)(?:_([01]+))?\.hkl")

# types of the entries of a manifest
ENTRIES = {"class_names": list, "checksums": dict, "settings": dict, "train": dict, "validation": dict}
OF_A_HALF = {"folder": str, "images": int, "files": list, "skipped": list}

Manifest = dict[str, Any]                        # docs/data_format.md describes its entries


def read_manifest(path: str | Path) -> Manifest | None:
    """Return the manifest of a data set as a dictionary, or None if there is none, as in upstream's folders."""
    file = Path(path) / MANIFEST
    try:
        manifest = parse_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{name_of(file)} is not readable JSON: {one_line(error)}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST_FORMAT:
        raise DataError(f"{name_of(file)} is no manifest of format {MANIFEST_FORMAT}; run preprocess again")
    if entry := entry_of_wrong_type(manifest):
        raise DataError(f"{name_of(file)} is damaged: its entry {entry} has the wrong type; run preprocess again")
    return manifest


def entry_of_wrong_type(manifest: Manifest) -> str | None:
    """Return the name of the first entry of a manifest that has another type than preprocess writes; None if none."""
    halves = [manifest[half] for half in ("train", "validation") if isinstance(manifest.get(half), dict)]
    kinds: list[tuple[Manifest, str, type]] = [(manifest, name, kind) for name, kind in ENTRIES.items()]
    kinds += [(half, name, kind) for half in halves for name, kind in OF_A_HALF.items()]
    for entries, name, kind in kinds:
        if name in entries and not isinstance(entries[name], kind):
            return name
    texts = [manifest.get("class_names", ()), manifest.get("checksums", {}).values()]
    if not all(isinstance(text, str) for each in texts for text in each):
        return "class_names or checksums"
    skipped = [pair for half in halves for pair in half.get("skipped", ())]
    if not all(isinstance(pair, list) and len(pair) == 2 and {*map(type, pair)} == {str} for pair in skipped):
        return "skipped"
    return None


def own_sha256(manifest: Manifest) -> str:
    """Return the sha256 of a manifest without its sha256 entry, in hexadecimal."""
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def fault_of_manifest(path: str | Path, manifest: Manifest) -> str | None:
    """Return a sentence if the manifest of the data set at path differs from its own checksum, else None."""
    if "sha256" in manifest and manifest["sha256"] != own_sha256(manifest):
        return f"{name_of(path)}/{MANIFEST} is damaged: it differs from its own checksum"
    return None


def listed_files(
    path: Path, manifest: Manifest, half: str
) -> tuple[tuple[Path, ...], np.ndarray, tuple[FileChecksum, ...]]:
    """Return the files (paths), image counts and checksums that the manifest lists for half "train" or "validation".

    The header of each file is checked.
    """
    try:
        folder = manifest[half]["folder"]
        entries = [(str(e["name"]), int(e["images"]), int(e["bytes"])) for e in manifest[half]["files"]]
        checksums = tuple(FileChecksum(str(e["sha256"]), e.get("sums_crc32")) for e in manifest[half]["files"])
        inside = folder.isprintable() and not {"/", "\\"} & set(folder)
        inside = inside and all(BATCH_NAME.fullmatch(name) for name, _, _ in entries)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise DataError(f"{name_of(path / MANIFEST)} does not list its {half} files: {error!r}") from error
    if not inside or not entries:
        raise DataError(f"{name_of(path / MANIFEST)} must list {half} files such as 0000.hkl in one folder")
    files = tuple(path / folder / name for name, _, _ in entries)
    for file, (_, images, size) in zip(files, entries, strict=True):
        held = batch_file.check(file, IMAGE_SIZE)[3]
        if held != images or file.stat().st_size != size:
            raise DataError(
                f"{name_of(file)} holds {held} images in {file.stat().st_size} bytes, "
                f"but the manifest lists {images} in {size}"
            )
    return files, np.array([images for _, images, _ in entries], np.int64), checksums


def found_files(path: Path, prefix: str) -> tuple[tuple[Path, ...], np.ndarray]:
    """Return the files and image counts of the only folder prefix_hkl* in upstream's layout, with checked headers.

    If upstream wrote both whole batches and halves, the folder of whole batches is used.
    """
    folders = {f: batches_in(f) for f in sorted(path.glob(f"{prefix}_hkl*")) if f.is_dir()}
    folders = {f: batches for f, batches in folders.items() if batches}
    whole = [f for f, batches in folders.items() if not any(suffix for _, suffix in batches)]
    choice = whole or list(folders)
    if len(choice) != 1:
        names = ", ".join(name_of(f.name) for f in choice) or "none"
        raise DataError(
            f"{name_of(path)} must hold one folder {prefix}_hkl* of files such as 0000.hkl, found {names}"
        )
    batches = folders[choice[0]]
    refuse_gaps(choice[0], batches)
    files = tuple(batches[key] for key in sorted(batches))
    return files, np.array([batch_file.check(file, IMAGE_SIZE)[3] for file in files], np.int64)


def batches_in(folder: Path) -> dict[tuple[int, str], Path]:
    """Return {(number, reversed suffix): path} of the batch files in a folder.

    Upstream numbers the pieces of a batch in reversed binary: _00, _10, _01, _11.
    """
    found = {}
    for file in folder.glob("*.hkl"):
        match = BATCH_NAME.fullmatch(file.name)
        if match is None:
            raise DataError(f"{name_of(file)} has no batch file's name: 0000.hkl, or 0000_0.hkl for halves")
        found[int(match[1]), (match[2] or "")[::-1]] = file
    return found


def refuse_gaps(folder: Path, batches: Iterable[tuple[int, str]]) -> None:
    """Raise DataError if a file is missing in the sequence, because labels would shift to other images."""
    suffixes = sorted({suffix for _, suffix in batches})
    for number in range(max(number for number, _ in batches) + 1):
        for suffix in suffixes:
            if (number, suffix) not in batches:
                name = f"{number:04d}" + (f"_{suffix[::-1]}" if suffix else "") + ".hkl"
                raise DataError(f"{name_of(folder / name)} is missing")


def load_array(file: Path, sha256: str | None = None) -> np.ndarray:
    """Return the array of a .npy file; pickled arrays are refused. If sha256 is given, the file must match it.

    The file is memory-mapped before it is copied, so a file that declares more data than it holds is refused without
    allocating memory.
    """
    if not file.is_file():
        raise DataError(f"{name_of(file)} is {'not a file' if file.exists() else 'missing'}")
    try:
        if sha256 is not None and file_sha256(file) != sha256:
            raise DataError(f"{name_of(file)} is not the file the manifest describes: its checksum differs")
        return np.array(np.lib.format.open_memmap(file, mode="r"))
    except DataError:
        raise
    except (OSError, *BAD_HEADER) as error:
        raise DataError(f"{name_of(file)} is not a readable .npy array of plain values: {one_line(error)}") from error


def load_mean(file: Path, sha256: str | None = None) -> np.ndarray:
    """Return the mean image, float32 (3, 256, 256), grey levels 0 to 255."""
    mean = load_array(file, sha256)
    if mean.shape != (3, IMAGE_SIZE, IMAGE_SIZE) or mean.dtype.kind not in "fiu":
        raise DataError(
            f"{name_of(file)} holds {mean.dtype} {mean.shape}; "
            f"a mean image is float (3, {IMAGE_SIZE}, {IMAGE_SIZE})"
        )
    if not ((mean >= 0) & (mean <= 255)).all():
        raise DataError(f"{name_of(file)} holds values outside 0 to 255, so it is not a mean image")
    if 0 < mean.max() <= 1:
        raise DataError(
            f"{name_of(file)} holds values {mean.min():.3g} to {mean.max():.3g}, but a mean image has grey levels 0 to "
            "255; is it the mean of images divided by 255? Multiply it by 255"
        )
    return mean.astype(np.float32)


def load_labels(
    folder: Path, half: str, files: Sequence[Path], counts: np.ndarray, sha256: str | None = None
) -> np.ndarray:
    """Return int32 labels of half "train" or "val", one per image, joined from halves if necessary."""
    file = folder / f"{half}_labels.npy"
    halves = [folder / f"{half}_labels_{i}.npy" for i in (0, 1)]
    if sha256 is None and all(h.exists() for h in halves):
        joined = join_halves(halves, files, counts)
        if not file.exists():
            refuse_mixed_classes(folder.parent / "misc", half, halves[0], joined)
            return joined
        labels = checked_labels(file, load_array(file), counts)
        if (labels != joined).any():
            raise DataError(f"{name_of(file)} and its halves {half}_labels_0.npy, _1.npy do not agree")
        return labels
    return checked_labels(file, load_array(file, sha256), counts)


def checked_labels(file: Path, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return labels as int32, after checking their dtype, number and range."""
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"{name_of(file)} holds {labels.dtype} {labels.shape}, not one integer per image")
    if len(labels) != counts.sum():
        raise DataError(f"{name_of(file)} holds {len(labels)} labels for {counts.sum()} images")
    if labels.min() < 0 or labels.max() > np.iinfo(np.int32).max:
        raise DataError(f"{name_of(file)} holds labels {labels.min()} to {labels.max()}; they count from 0")
    return labels.astype(np.int32)


def join_halves(halves: Sequence[Path], files: Sequence[Path], counts: np.ndarray) -> np.ndarray:
    """Return the labels of whole batches from the labels of their first and second halves."""
    if any("_" in file.name for file in files):
        sizes = [counts[0::2], counts[1::2]]     # each batch is stored as two files
    else:
        sizes = [counts // 2, counts - counts // 2]
    parts = [
        np.split(checked_labels(file, load_array(file), size), np.cumsum(size)[:-1])
        for file, size in zip(halves, sizes, strict=True)
    ]
    return np.concatenate([piece for pair in zip(*parts, strict=True) for piece in pair])


def has_invalid_characters(texts: np.ndarray) -> bool:
    """Return whether an array (n,) of texts has numbers that are no characters, on which Python's functions fail."""
    if texts.dtype.kind != "U" or not texts.dtype.itemsize:
        return False
    return bool((texts.view(f"{texts.dtype.str[0]}u4") > sys.maxunicode).any())


def refuse_mixed_classes(misc: Path, half: str, file: Path, labels: np.ndarray) -> None:
    """Raise DataError if upstream's list of shuffled names has images of one class under two labels.

    This detects exchanged halves. Without the list, and for validation, no check is possible.
    """
    names_file = misc / "shuffled_train_filenames.npy"
    if half != "train" or not names_file.exists():
        return
    names = load_array(names_file)
    if names.ndim != 1 or names.dtype.kind not in "SU":
        raise DataError(f"{name_of(names_file)} holds {names.dtype} {names.shape}, not one name per image")
    if has_invalid_characters(names):
        raise DataError(f"{name_of(names_file)} is damaged: it holds numbers that are no characters")
    label_of: dict[str, int] = {}
    for name, label in zip(names[:len(labels)].tolist(), labels.tolist(), strict=False):
        folder = Path(os.fsdecode(name)).parent.name
        if label_of.setdefault(folder, label) != label:
            raise DataError(
                f"{name_of(file)} and its other half give class folder {name_of(folder)} "
                f"the labels {label_of[folder]} and {label}; are the halves mixed up?"
            )
