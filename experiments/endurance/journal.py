"""The file of the results: one JSON object per line and trial. A second call continues after the last complete line."""

import json

NO_PROCESS = "none"                              # kind of a trial in which the process to kill had ended before


class Journal:
    """Appends rows to a file and finds the rows of earlier calls.

    Args:
        path: the file; a line that a killed call has not completed is removed. None: the rows are only in memory.
    """

    def __init__(self, path=None):
        self.path = path
        self.all = []
        if path is not None and path.exists():
            text = path.read_bytes()
            complete = text[:text.rfind(b"\n") + 1]
            if complete != text:
                path.write_bytes(complete)
            self.all = [json.loads(line) for line in complete.splitlines()]

    def append(self, row):
        """Add a row; on return it survives the end of this process."""
        self.all.append(row)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def rows(self, task, series=None):
        """Return the rows of a task, or of one series of its trials, in order."""
        return [row for row in self.all if row["task"] == task and series in (None, row["series"])]


def continue_trials(journal, task, series, count, prepare, trial, show=lambda row: None, first=0):
    """Run the trials of a series that the journal lacks; each becomes a row.

    Args:
        count: number of trials in the end. Those that found no process to kill do not count, but the series ends after
            2 `count` trials.
        prepare: () -> what all trials of the series share; called only if a trial is missing.
        trial: (what prepare returned, number of the trial) -> dict of its results.
        show: called with each new row.
        first: number of the first trial in the journal.
    """
    rows = journal.rows(task, series)
    done = sum(row["kind"] != NO_PROCESS for row in rows)
    if done >= count:
        return
    shared = prepare()
    for number in range(first + len(rows), first + 2 * count):
        row = {"task": task, "series": series, "number": number, **trial(shared, number)}
        journal.append(row)
        show(row)
        done += row["kind"] != NO_PROCESS
        if done == count:
            break
