"""Compares a data set with its manifest; reports each damaged, missing, swapped or unknown file in one sentence."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from alexnet.data import batch_file
from alexnet.data.batch_file import DataError, file_sha256, name_of
from alexnet.data.layout import MANIFEST, fault_of_manifest, read_manifest
from preprocess.manifest import HALVES


class Check(NamedTuple):
    """A file to compare with the manifest."""

    path: Path
    sha256: str
    images: int                                  # in a batch file; 0 for the small files


class Finding(NamedTuple):
    """Result of one file: its checksum if it could be read, and the error, None if there is none."""

    sha256: str | None
    fault: str | None


def checks(out: str | Path) -> list[Check]:
    """Return the Checks listed in the manifest of a data set.  Raises DataError if there is no readable manifest."""
    manifest = read_manifest(out)
    if manifest is None:
        raise DataError(f"{name_of(out)} has no {MANIFEST}, so there is nothing to compare its files with")
    try:
        batches = [
            Check(Path(out, manifest[half]["folder"], file["name"]), str(file["sha256"]), int(file["images"]))
            for half in HALVES for file in manifest[half]["files"]
        ]
        small = [Check(Path(out, name), str(sha256), 0) for name, sha256 in manifest["checksums"].items()]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{name_of(out)}/{MANIFEST} lacks an entry: {error!r}") from error
    outside = [check.path for check in batches + small if not is_inside(check.path, Path(out))]
    if outside:
        raise DataError(f"{name_of(out)}/{MANIFEST} is damaged: it lists {name_of(outside[0])}, outside the data set")
    return batches + small


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path is inside a folder, without links: a manifest may list other files of the machine."""
    return path.is_relative_to(folder) and ".." not in path.relative_to(folder).parts


def examine(check: Check) -> Finding:
    """Return the Finding of one file."""
    name = name_of(check.path)
    try:
        if check.path.exists() and not check.path.is_file():
            return Finding(None, f"{name} is not a file")        # reading a pipe would block forever
        found = file_sha256(check.path)
        if found != check.sha256:
            return Finding(found, f"{name} is damaged or of another set: its checksum differs from the manifest's")
        if check.images and batch_file.check(check.path)[3] != check.images:
            return Finding(found, f"{name} does not hold {check.images} images")
    except FileNotFoundError:
        return Finding(None, f"{name} is missing")
    except (OSError, ValueError) as error:           # includes DataError, and names that no file can have
        return Finding(None, f"{name} cannot be read: {error}")
    return Finding(found, None)


def faults(out: str | Path, findings: Mapping[Check, Finding]) -> list[str]:
    """Return all errors of the data set in folder out as sorted sentences; findings is {Check: Finding}."""
    batches = [check for check in findings if check.images]
    if len(batches) > 1 and not any(findings[check].sha256 == check.sha256 for check in batches):
        return [f"{name_of(out)}/{MANIFEST} describes another set: not one of its {len(batches):,} batch files is here"]
    place = {check.sha256: check for check in findings}
    messages = [f"{name_of(path)} is not in the manifest" for path in unknown_files(out, findings)]
    manifest = read_manifest(out)
    if manifest and (damage := fault_of_manifest(out, manifest)):
        messages.append(damage)
    for check, (sha256, fault) in findings.items():
        other = place.get(sha256) if sha256 else None
        if other is not None and other.sha256 != check.sha256:
            fault = f"{name_of(check.path)} has the content of {name_of(other.path)}"
        messages += [fault] if fault else []
    return sorted(messages)


def unknown_files(out: str | Path, findings: Iterable[Check]) -> list[Path]:
    """Return batch files and label arrays in the set's folders that its manifest does not list."""
    known = {check.path for check in findings}
    return [path for glob in ("*_hkl*/*.hkl", "labels/*.npy") for path in Path(out).glob(glob) if path not in known]
