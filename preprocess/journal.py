"""The record of a run in progress: its settings, the last ones counting, and a JSON line per finished batch file.

It lets a run that was killed go on where it stopped, keeps two runs out of one folder, and is gone once the
manifest is written.
"""

import fcntl
import json
from contextlib import contextmanager

from alexnet.hkl import DataError, name_of

JOURNAL = "misc/journal.jsonl"


@contextmanager
def opened_journal(path, settings):
    """The Journal at path, locked within a with block.

    Raises DataError when another run holds it, or when the earlier run had other settings; but one that failed at a
    bad image may go on with on_bad_image "skip", for what it finished holds none.
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
        file.truncate(whole)                                 # a kill can leave half a line
        journal = Journal(path, file, [record for record in records if "half" in record])
        before = next((record for record in reversed(records) if "half" not in record), None)
        if before is not None:
            forgiven = {"on_bad_image": settings.get("on_bad_image")} if before.get("on_bad_image") == "fail" else {}
            refuse_difference(folder, before | forgiven, settings)
        if before != settings:
            journal.append(settings)
        yield journal


class Journal:
    """misc/journal.jsonl: `finished` is {(half, number): record} of the run it goes on from."""

    def __init__(self, path, file, records):
        self.path, self.file = path, file
        self.finished = {(record["half"], record["number"]): record for record in records}

    def append(self, record):
        """Add one line; it outlives this process when this returns."""
        self.file.write(json.dumps(record).encode() + b"\n")
        self.file.flush()

    def remove(self):
        """The run is complete: nothing is left to go on from."""
        self.path.unlink()


def whole_lines(text):
    """The records of the whole lines at the start of a journal, and how many bytes they take."""
    records, whole = [], 0
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


def refuse_difference(folder, before, now):
    """Raise DataError when two runs into one folder differ in a setting, naming the first."""
    for name in now:
        if before.get(name) != now[name]:
            what = "the list of images" if name == "sources" else name.replace("_", "-")
            values = "" if name == "sources" else f": {before.get(name)} before, {now[name]} now"
            raise DataError(
                f"{name_of(folder)} was begun with another setting of {what}{values}; "
                "use the same, or another folder"
            )
