"""Journal of an unfinished run: its settings (the last entry is valid), and a JSON line per finished batch file.

It lets a killed run be continued, prevents two runs from using one folder, and is removed once the manifest is
written.
"""

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from alexnet.data.batch_file import DataError, name_of
from alexnet.native.untrusted import parse_json

JOURNAL = "misc/journal.jsonl"

# Of a batch file: half, number, images, bytes, sha256, sums_crc32, bad.
Record = dict[str, Any]


@contextmanager
def opened_journal(path: Path, settings: dict[str, Any]) -> Iterator["Journal"]:
    """Open the Journal at path, locked within a with block.

    Raises DataError if another run has locked it, or if the earlier run had other settings.  A run that failed at a bad
    image may continue with on_bad_image "skip", because the files that it has finished contain no bad image.
    """
    folder = path.parents[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"another run of preprocess is writing into {name_of(folder)}") from error
        file.seek(0)
        records, whole = whole_lines(file.read())
        for record in records:
            if not is_record(record):
                raise DataError(f"{name_of(path)} is damaged: {record!r} is no line of a journal; use another folder")
        file.truncate(whole)                                 # an interrupted write can leave a partial line
        journal = Journal(path, file, [record for record in records if "half" in record])
        before = next((record for record in reversed(records) if "half" not in record), None)
        if before is not None:
            forgiven = {"on_bad_image": settings.get("on_bad_image")} if before.get("on_bad_image") == "fail" else {}
            refuse_difference(folder, before | forgiven, settings)
        if before != settings:
            journal.append(settings)
        yield journal


class Journal:
    """misc/journal.jsonl: `finished` is {(half, number): record} of the run that is continued."""

    def __init__(self, path: Path, file: BinaryIO, records: Sequence[Record]):
        self.path = path
        self.file = file
        self.finished = {(record["half"], record["number"]): record for record in records}

    def append(self, record: Record) -> None:
        """Append one line; on return it survives the end of this process."""
        self.file.write(json.dumps(record).encode() + b"\n")
        self.file.flush()

    def remove(self) -> None:
        """Delete the journal, because the run is complete."""
        self.path.unlink()


def whole_lines(text: bytes) -> tuple[list[Record], int]:
    """Return the records of the complete lines at the start of a journal, and their number of bytes."""
    records = []
    whole = 0
    for line in text.splitlines(keepends=True):
        try:
            record = parse_json(line)
        except ValueError:
            break
        if not line.endswith(b"\n"):
            break
        records.append(record)
        whole += len(line)
    return records, whole


def is_record(value: object) -> bool:
    """Return whether a line is the settings of a run, or the record of a batch file with fields of the right types."""
    if not isinstance(value, dict):
        return False
    if "half" not in value:
        return True
    numbers = [value.get(name, 0) for name in ("number", "images", "bytes")]
    bad = value.get("bad", [])
    return (
        isinstance(value["half"], str) and "number" in value and isinstance(value.get("sha256", ""), str)
        and all(type(each) is int and 0 <= each < 1 << 63 for each in numbers)
        and type(value.get("sums_crc32", 0)) is int
        and isinstance(bad, list) and all(is_pair_of_texts(each) for each in bad)
    )


def is_pair_of_texts(value: object) -> bool:
    """Return whether a value of JSON is a list of two texts, such as the name of a bad image and what is wrong."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(each, str) for each in value)


def refuse_difference(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise DataError, which names the setting, at the first difference between two runs into one folder."""
    for name in now:
        if before.get(name) != now[name]:
            what = "the list of images" if name == "sources" else name.replace("_", "-")
            values = "" if name == "sources" else f": {before.get(name)} before, {now[name]} now"
            raise DataError(
                f"{name_of(folder)} was begun with another setting of {what}{values}; "
                "use the same, or another folder"
            )
