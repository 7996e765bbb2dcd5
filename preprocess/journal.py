"""The record of a run in progress: its settings, then one JSON line per finished batch file.

It lets a run that was killed go on where it stopped, keeps two runs out of one folder, and is gone once the
manifest is written.
"""

import fcntl
import json

from alexnet.hkl import DataError, name_of

NAME = "journal.jsonl"


class Journal:
    """misc/journal.jsonl, locked while open: `finished` is {(half, number): record} of an earlier run.

    Raises DataError when another run holds it, or when the earlier run had other settings.
    """

    def __init__(self, folder, settings):
        self.path = folder / "misc" / NAME
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(self.path, "a+b")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.file.close()
            raise DataError(f"another run of preprocess is writing into {name_of(folder)}") from error
        self.finished = {}
        self.file.seek(0)
        records, whole = whole_lines(self.file.read())
        self.file.truncate(whole)                            # a kill can leave half a line
        if records:
            refuse_difference(folder, records[0], settings)
            self.finished = {(r["half"], r["number"]): r for r in records[1:]}
        else:
            self.append(settings)

    def append(self, record):
        """Add one line; it is on its way to the disk when this returns."""
        self.file.write(json.dumps(record).encode() + b"\n")
        self.file.flush()

    def remove(self):
        """The run is complete: nothing is left to go on from."""
        self.path.unlink()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()


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
