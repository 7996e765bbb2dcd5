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
            record = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n"):
            break
        records.append(record)
        whole += len(line)
    return records, whole


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
