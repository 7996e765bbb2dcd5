"""Event files: a reader written here, from the description of the format, finds values and restart marks."""

import io
import struct

from alexnet.run.event_file import masked_crc
from alexnet.run.recorder import RunRecorder


def records_of(path):
    """Yield the Events of a file as bytes, after a check of their lengths and checksums."""
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        crc_of_length, event, crc = data[8:12], data[12:12 + length], data[12 + length:16 + length]
        assert struct.unpack("<II", crc_of_length + crc) == (masked_crc(data[:8]), masked_crc(event))
        yield event
        data = data[16 + length:]


def fields_of(message):
    """Yield (field, value) of a protobuf message: numbers, and bytes."""
    place = 0

    def varint():
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while place < len(message):
        field, kind = divmod(varint(), 8)
        if kind == 0:
            yield field, varint()
            continue
        length = {1: 8, 5: 4}.get(kind) or varint()
        content = message[place:place + length]
        place += length
        yield field, struct.unpack({1: "<d", 5: "<f"}[kind], content)[0] if kind in (1, 5) else content


def events_of(path):
    """Return (step, {tag: value}) of the events with scalars, and the steps of the restarts."""
    scalars, restarts = [], []
    for event in (dict(fields_of(data)) for data in records_of(path)):
        if 5 in event:
            values = (dict(fields_of(value)) for _, value in fields_of(event[5]))
            scalars.append((event[2], {value[1].decode(): value[2] for value in values}))
        if event.get(7) == b"\x08\x01":          # status: START
            restarts.append(event[2])
    return scalars, restarts


def record(recorder, first, last):
    for iteration in range(first, last + 1):
        with recorder.time("calc"):
            pass
        recorder.train_iteration(
            iteration=iteration, epoch=iteration / 4, cost=iteration, error=0.5, learning_rate=0.25, images=8
        )
        if iteration % 4 == 0:
            recorder.epoch(
                epoch=iteration // 4, iteration=iteration, cost=1.5, top1_error=0.25, top5_error=0.125,
                learning_rate=0.25, images=10,
            )


def test_crc_matches_the_published_value():
    crc = 0xE3069283                             # RFC 3720's CRC-32C of "123456789"
    assert masked_crc(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_event_file_has_means_and_validations(tmp_path):
    with RunRecorder(tmp_path, 3, stream=io.StringIO()) as recorder:
        record(recorder, 1, 4)
    (path,) = tmp_path.glob("events.out.tfevents.*")
    first, second = events_of(path)[0]
    assert (first[0], first[1]["train/cost"], first[1]["train/learning_rate"]) == (3, 2, 0.25)
    assert second[0] == 4
    assert {tag: second[1][tag] for tag in ("train/cost", "validation/cost", "validation/top1_error")} == {
        "train/cost": 3, "validation/cost": 1.5, "validation/top1_error": 0.25,
    }
    assert "seconds_per_iteration/wait" in second[1]


def test_resumed_run_drops_later_events(tmp_path):
    for first, last in ((1, 6), (5, 8)):
        with RunRecorder(tmp_path, 2, stream=io.StringIO()) as recorder:
            recorder.truncate(first - 1, 1)
            record(recorder, first, last)
    before, after = sorted(tmp_path.glob("events.out.tfevents.*"))
    assert events_of(before)[1] == [1]
    scalars, restarts = events_of(after)
    assert restarts == [5]
    assert [step for step, _ in scalars] == [6, 8, 8]
