"""The recorder: times add up, also over laps; all files agree; the records of a resumed run are continuous."""

import csv
import io
import json

import pytest

from alexnet.data import progress
from alexnet.native.untrusted import InputError
from alexnet.run.recorder import FIELDS, Plan, RunRecorder, WorkerRecorder, read_records
from alexnet.training.timing import TIMES, Lap, Stopwatch


class Clock:
    """A clock that only tests advance."""

    seconds = 100.0

    def __call__(self):
        return self.seconds


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock():
    return Clock()


def iterate(recorder, clock, iteration, cost=2.0, seconds=(0.5, 0.125), epoch=None):
    """Record one iteration of 8 images with calc and wait times, by default of an epoch of four iterations."""
    for section, spent in zip(("calc", "wait"), seconds, strict=True):
        with recorder.time(section):
            clock.seconds += spent
    recorder.train_iteration(
        iteration=iteration, epoch=epoch or iteration / 4, cost=cost, error=0.25, learning_rate=0.01, images=8
    )


def validate(recorder, epoch, iteration):
    recorder.epoch(
        epoch=epoch, iteration=iteration, cost=1.5, top1_error=0.5, top5_error=0.125, learning_rate=0.01, images=50
    )


def table(folder, kind):
    with (folder / f"{kind}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def of_kind(folder, kind):
    return [record for record in read_records(folder) if record["kind"] == kind]


def test_iteration_time_includes_time_outside_of_sections(tmp_path, clock):
    with RunRecorder(tmp_path, stream=io.StringIO(), clock=clock) as recorder:
        clock.seconds += 1000                       # compile time belongs to no iteration
        iterate(recorder, clock, 1)
        clock.seconds += 0.25                       # time outside of all sections
        recorder.add("comm", 0.0625)
        iterate(recorder, clock, 2)
    first, second = read_records(tmp_path)
    assert (first["seconds"], first["calc"], first["wait"], first["comm"]) == (0.625, 0.5, 0.125, 0)
    assert (second["seconds"], second["calc"], second["wait"], second["comm"]) == (0.875, 0.5, 0.125, 0.0625)


def test_validation_and_pauses_do_not_count_as_iteration_time(tmp_path, clock):
    with RunRecorder(tmp_path, stream=io.StringIO(), clock=clock) as recorder:
        iterate(recorder, clock, 1)
        with recorder.time("wait"):
            clock.seconds += 3
        validate(recorder, 1, 1)
        clock.seconds += 50
        iterate(recorder, clock, 2)
        with recorder.paused(), recorder.time("wait"):
            clock.seconds += 40
        iterate(recorder, clock, 3)
    assert [record["seconds"] for record in of_kind(tmp_path, "train")] == [0.625, 0.625, 0.625]
    assert [record["wait"] for record in of_kind(tmp_path, "train")] == [0.125, 0.125, 0.125]
    assert [record["seconds"] for record in of_kind(tmp_path, "validation")] == [3]


def test_section_that_raises_is_timed(tmp_path, clock):
    with RunRecorder(tmp_path, stream=io.StringIO(), clock=clock) as recorder:
        with pytest.raises(KeyError), recorder.time("calc"):
            clock.seconds += 2
            raise KeyError
        iterate(recorder, clock, 1)
    assert read_records(tmp_path)[0]["calc"] == 2.5


def test_worker_recorder_prints_only_warnings(tmp_path, clock, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stream = io.StringIO()
    with WorkerRecorder(3, stream) as recorder:
        iterate(recorder, clock, 1)
        validate(recorder, 1, 1)
        with recorder.paused():
            recorder.truncate(0, epochs=0)
        recorder.log("a word")
        recorder.warn("no compiler")
    assert stream.getvalue() == "worker 3: warning: no compiler\n"
    assert list(tmp_path.iterdir()) == []


def test_unknown_section_is_refused(tmp_path):
    message = "a section of an iteration must be one of calc, sync, comm, wait, hidden, got 'lunch'"
    with RunRecorder(tmp_path, stream=io.StringIO()) as recorder, pytest.raises(ValueError, match=message):
        recorder.add("lunch", 1)


def test_json_lines_and_csv_agree(tmp_path, clock):
    with RunRecorder(tmp_path, stream=io.StringIO(), clock=clock) as recorder:
        iterate(recorder, clock, 1, cost=0.1)
        iterate(recorder, clock, 2, cost=0.3)
        validate(recorder, 1, 2)
        recorder.laps([Lap(2, 1.0, 5120, 3.5, 2.0, 0.25, 0.5, 0.1)])
        recorder.record("push", client=3, iteration=2, version=7, staleness=2, waiting=0.5, serving=1.5, bytes=8192)
    push = ("client", "iteration", "version", "staleness", "waiting", "serving", "bytes", "at")
    for kind, fields in (FIELDS | {"push": push}).items():
        records = of_kind(tmp_path, kind)
        assert records
        assert all(set(record) == {"kind", *fields} for record in records)
        expected = [{field: "" if record[field] is None else str(record[field]) for field in fields}
                    for record in records]
        assert table(tmp_path, kind) == expected


@pytest.mark.parametrize("cost", [float("nan"), float("inf"), -float("inf")])
def test_nonfinite_cost_becomes_null(tmp_path, clock, cost):
    with RunRecorder(tmp_path, stream=io.StringIO(), clock=clock) as recorder:
        iterate(recorder, clock, 1, cost=cost)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    line = (tmp_path / "records.jsonl").read_text()
    assert json.loads(line, parse_constant=refuse)["cost"] is None
    assert table(tmp_path, "train")[0]["cost"] == ""


def test_records_are_flushed_immediately(tmp_path, clock):
    with RunRecorder(tmp_path, print_freq=1, stream=io.StringIO(), clock=clock) as recorder:
        iterate(recorder, clock, 1)
        assert len(read_records(tmp_path)) == len(table(tmp_path, "train")) == 1
        assert "iteration 1" in (tmp_path / "log.txt").read_text()


def test_plain_stream_gets_a_line_every_print_freq(tmp_path, clock):
    stream = io.StringIO()
    with RunRecorder(tmp_path, print_freq=2, total_iterations=100, stream=stream, clock=clock) as recorder:
        for iteration in range(1, 6):
            iterate(recorder, clock, iteration, cost=iteration)
        validate(recorder, 1, 5)
    figures = "error 25.0%, 12.8 images/s, 20.0% wait for the loader"
    times = "time per 20 iterations: 12.50 s (calc 10.00, sync 0.00, comm 0.00, wait 2.50)"
    validation = "validation cost 1.5000, top-1 error 50.00%, top-5 error 12.50% (50 images in 0.0 s)"
    assert stream.getvalue().splitlines() == [
        f"iteration 2 of 100, epoch 0.50: cost 1.500, {figures}; {times}, 61 s left",
        f"iteration 4 of 100, epoch 1.00: cost 3.500, {figures}; {times}, 60 s left",
        f"epoch 1: {validation}; learning rate 0.01",
    ]
    logged = (tmp_path / "log.txt").read_text().splitlines()
    assert [line[20:] for line in logged] == stream.getvalue().splitlines()


def test_terminal_gets_a_status_line_and_lines_are_logged(tmp_path, clock, monkeypatch):
    stream = Terminal()
    monkeypatch.setenv("COLUMNS", "80")
    with RunRecorder(tmp_path, print_freq=2, total_iterations=4, stream=stream, clock=clock) as recorder:
        for iteration in range(1, 5):
            iterate(recorder, clock, iteration)
        recorder.log("a word in between")
    shown = stream.getvalue()
    assert "] epoch 1 training 100%, 0 s left, cost 2.000, error 25.0%" in shown
    assert "a word in between\n" in shown
    assert "time per 20 iterations" not in shown
    assert "time per 20 iterations" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_status_line_shows_phases_and_time_left_with_validation(tmp_path, clock, monkeypatch, columns):
    """20 steps of 0.625 s in two epochs. A validation takes a third of 30 steps, until it is measured: 4 s."""
    stream = Terminal()
    monkeypatch.setenv("COLUMNS", str(columns))
    plan = Plan(n_epochs=2, steps_of_epoch=10, validation_batches=30)
    monkeypatch.setattr(progress, "REDRAW", 0)
    with RunRecorder(tmp_path, total_iterations=20, stream=stream, clock=clock, plan=plan) as recorder:
        for iteration in range(1, 11):
            iterate(recorder, clock, iteration, epoch=iteration / 10)
        recorder.phase("validation", 0.5)
        clock.seconds += 4
        validate(recorder, 1, 10)
        recorder.phase("saving")
        iterate(recorder, clock, 11, epoch=1.1)
    drawn = [line.removeprefix("\x1b[K") for line in stream.getvalue().replace("\n", "\r").split("\r")]
    phases = ["epoch 1/2 training  90%, 19 s left", "epoch 1/2 validation  50%, 16 s left",
              "epoch 1/2 saving, 10 s left", "epoch 2/2 training  10%, 10 s left"]
    for phase in phases:
        line = next(line for line in drawn if phase in line)
        assert len(line) < columns
        assert ("[" in line) is not ("saving" in line)
    assert drawn[-1] == ""                       # nothing is left on the line


def test_resumed_run_truncates_records_to_its_checkpoint(tmp_path, clock):
    with RunRecorder(tmp_path, stream=io.StringIO(), clock=clock) as recorder:
        for iteration in range(1, 7):
            iterate(recorder, clock, iteration, cost=iteration)
            if iteration % 2 == 0:
                validate(recorder, iteration // 2, iteration)
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write('{"kind": "train", "iteration": 7, "epo')             # killed here
    with RunRecorder(tmp_path, stream=io.StringIO(), clock=clock) as recorder:
        recorder.truncate(4, epochs=1)                                    # saved before the second validation
        validate(recorder, 2, 4)
        iterate(recorder, clock, 5, cost=50)
    train, validation = of_kind(tmp_path, "train"), of_kind(tmp_path, "validation")
    assert [(record["iteration"], record["cost"]) for record in train] == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 50)]
    assert [record["epoch"] for record in validation] == [1, 2]
    assert [row["iteration"] for row in table(tmp_path, "train")] == ["1", "2", "3", "4", "5"]
    assert [row["epoch"] for row in table(tmp_path, "validation")] == ["1", "2"]


def test_truncation_without_epochs_keeps_validation_at_iteration(tmp_path, clock):
    with RunRecorder(tmp_path, stream=io.StringIO(), clock=clock) as recorder:
        for iteration in (1, 2, 3, 4):
            iterate(recorder, clock, iteration)
        validate(recorder, 1, 2)
        validate(recorder, 2, 4)
        recorder.truncate(2)
    assert [record["iteration"] for record in read_records(tmp_path)] == [1, 2, 2]


def test_truncating_new_folder_changes_nothing(tmp_path, clock):
    with RunRecorder(tmp_path, stream=io.StringIO(), clock=clock) as recorder:
        recorder.truncate(0)
        iterate(recorder, clock, 1)
    assert len(table(tmp_path, "train")) == 1
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["log.txt", "records.jsonl", "speed.csv", "train.csv", "validation.csv"]


def test_rule_defines_its_own_kind_of_record(tmp_path, clock):
    for first in (1, 3):
        with RunRecorder(tmp_path, stream=io.StringIO(), clock=clock) as recorder:
            recorder.truncate(first - 1)
            recorder.record("gossip", peer=7, iteration=first)
            recorder.record("gossip", iteration=first + 1, peer=8)               # fields in another order
            recorder.truncate(first)
    assert [(record["iteration"], record["peer"]) for record in of_kind(tmp_path, "gossip")] == [(1, 7), (3, 7)]
    rows = table(tmp_path, "gossip")
    assert [(row["peer"], row["iteration"]) for row in rows] == [("7", "1"), ("7", "3")]
    assert list(rows[0]) == ["peer", "iteration", "at"]


@pytest.mark.parametrize("values, message", [
    ({"peer": 1}, "a record of kind gossip must have an iteration, got peer"),
    ({"iteration": 2, "rank": 1}, "a record of kind gossip must have the fields iteration, peer, at"),
])
def test_record_with_other_fields_is_refused(tmp_path, clock, values, message):
    with RunRecorder(tmp_path, stream=io.StringIO(), clock=clock) as recorder:
        recorder.record("gossip", iteration=1, peer=2)
        with pytest.raises(ValueError, match=message):
            recorder.record("gossip", **values)
    assert len(read_records(tmp_path)) == len(table(tmp_path, "gossip")) == 1


# ---- laps


def step(watch, clock, iteration, images=1024, seconds=(4.0, 0.5, 1.0, 0.25)):
    """Record a step of `images` images over all workers: the given section times, and 0.25 s outside of sections."""
    for section, spent in zip(("calc", "sync", "comm", "wait"), seconds, strict=True):
        with watch.time(section):
            clock.seconds += spent
    clock.seconds += 0.25
    watch.train_iteration(
        iteration=iteration, epoch=iteration / 8, cost=1.0, error=0.5, learning_rate=0.01, images=images
    )


@pytest.mark.parametrize("make", [
    lambda folder, clock: RunRecorder(folder, stream=io.StringIO(), clock=clock),
    lambda _, clock: WorkerRecorder(1, clock=clock),
])
def test_lap_ends_after_5120_images_of_all_workers(tmp_path, clock, make):
    with make(tmp_path, clock) as recorder:
        taken = []
        for iteration in range(1, 12):
            step(recorder, clock, iteration, images=1100)
            taken.append(recorder.take_lap())
            assert recorder.take_lap() is None                            # a lap is returned only once
    assert [number for number, lap in enumerate(taken, 1) if lap] == [5, 10]
    assert taken[4] == Lap(5, 5 / 8, 5500, seconds=30.0, calc=20.0, sync=2.5, comm=5.0, wait=1.25)
    assert taken[9] == taken[4]._replace(iteration=10, epoch=10 / 8)      # surplus images do not count for the next lap


@pytest.mark.parametrize("make", [
    lambda folder, clock: RunRecorder(folder, stream=io.StringIO(), clock=clock),
    lambda _, clock: WorkerRecorder(1, clock=clock),
])
def test_validation_and_saving_do_not_count_as_lap_time(tmp_path, clock, make):
    with make(tmp_path, clock) as recorder:
        for iteration in (1, 2, 3):
            step(recorder, clock, iteration, images=2000)
            with recorder.paused(), recorder.time("wait"):
                clock.seconds += 70
            if iteration == 2:
                with recorder.time("wait"):
                    clock.seconds += 30
                validate(recorder, 1, 2)
                clock.seconds += 500
        lap = recorder.take_lap()
    assert (lap.seconds, lap.wait) == (18.0, 0.75)


def test_lap_record_is_the_mean_over_workers(tmp_path, clock):
    stream = io.StringIO()
    with RunRecorder(tmp_path, stream=stream, clock=clock) as recorder:
        recorder.laps([
            Lap(8, 2.0, 10240, seconds=16.0, calc=12.0, sync=0.4, comm=3.0, wait=0.6),
            Lap(8, 2.0, 10240, seconds=18.0, calc=15.0, sync=0.2, comm=2.0, wait=0.8),
        ])
        recorder.laps([Lap(9, 2.0, 5120, 5.0, 4.0, 0.5, 0.25, 0.125)])        # from only one worker
        recorder.laps([])                                                       # from none
    first, second = read_records(tmp_path)
    assert {field: first[field] for field in ("iteration", "epoch", "images", "workers")} == {
        "iteration": 8, "epoch": 2.0, "images": 10240, "workers": 2,
    }
    assert [first[field] for field in ("seconds", "calc", "sync", "comm", "wait", "slowest")] == pytest.approx(
        [8.5, 6.75, 0.15, 1.25, 0.35, 9.0]
    )
    assert (second["workers"], second["seconds"], second["slowest"]) == (1, 5.0, 5.0)
    assert stream.getvalue().splitlines() == [
        "5,120 images in 8.50 s: calc 6.75, sync 0.15, comm 1.25, wait 0.35 (2 workers)",
        "5,120 images in 5.00 s: calc 4.00, sync 0.50, comm 0.25, wait 0.12 (1 worker)",
    ]
    assert [row["slowest"] for row in table(tmp_path, "speed")] == ["9.0", "5.0"]


def test_resumed_run_truncates_laps_and_starts_a_new_one(tmp_path, clock):
    for first in (1, 5):
        with RunRecorder(tmp_path, stream=io.StringIO(), clock=clock) as recorder:
            recorder.truncate(first - 1, 0)
            for iteration in range(first, first + 8):
                step(recorder, clock, iteration, images=2000)
                if lap := recorder.take_lap():
                    recorder.laps([lap])
    assert [record["iteration"] for record in of_kind(tmp_path, "speed")] == [3, 7, 10]
    assert [row["iteration"] for row in table(tmp_path, "speed")] == ["3", "7", "10"]


def test_step_of_asynchronous_worker_keeps_its_own_times(tmp_path, clock):
    kept = []
    watch = WorkerRecorder(3, clock=clock)
    watch.keep = kept.append
    step(watch, clock, 7)
    with RunRecorder(tmp_path, stream=io.StringIO(), clock=clock) as recorder:
        with recorder.time("comm"):
            clock.seconds += 8
        recorder.train_iteration(**kept[0], worker=2)
        assert (recorder.elapsed(), recorder.take_lap()) == (8, None)
        step(recorder, clock, 8)
    other, own = read_records(tmp_path)
    assert (other["worker"], other["iteration"], other["seconds"], other["calc"]) == (2, 7, 6.0, 4.0)
    assert (own["worker"], own["seconds"], own["comm"]) == (None, 14.0, 9.0)


def test_run_of_older_recorder_can_be_resumed(tmp_path, clock):
    """Its records have no worker and no checksums, and it has no table of the speed."""
    with RunRecorder(tmp_path, stream=io.StringIO(), clock=clock) as recorder:
        iterate(recorder, clock, 1)
    (tmp_path / "speed.csv").unlink()
    path = tmp_path / "records.jsonl"
    (record,) = read_records(tmp_path)
    del record["worker"]
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")
    assert read_records(tmp_path) == [record]
    with RunRecorder(tmp_path, stream=io.StringIO(), clock=clock) as recorder:
        recorder.truncate(1)
        iterate(recorder, clock, 2)
    assert [row["worker"] for row in table(tmp_path, "train")] == ["", ""]
    assert path.read_text("utf-8").count("crc32") == 2
    assert read_records(tmp_path)[0] == record


def test_steps_without_images_never_end_a_lap(clock):
    watch = Stopwatch(clock)
    assert watch.end_iteration(1, 0.5, 0) == dict.fromkeys(TIMES, 0.0)
    assert watch.take_lap() is None


@pytest.mark.parametrize("bit", range(8))
def test_every_flipped_bit_of_records_is_refused(bit, tmp_path):
    with RunRecorder(tmp_path, stream=io.StringIO()) as recorder:
        for iteration in (1, 2, 3):
            recorder.train_iteration(iteration=iteration, epoch=0.5, cost=2.0, error=0.9, learning_rate=0.01, images=8)
    path = tmp_path / "records.jsonl"
    data, records = path.read_bytes(), read_records(tmp_path)
    assert b"crc32" not in repr(records).encode()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1:])
        try:
            found = read_records(tmp_path)
        except InputError:
            continue
        assert found == records, place
