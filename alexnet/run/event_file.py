"""TensorBoard event files: scalars of a run, written without TensorBoard, protobuf or TensorFlow.

    record         length (uint64), masked CRC of the length (uint32), Event, masked CRC of the Event (uint32)
    masked CRC     ((crc >> 15) | (crc << 17)) + 0xa282ead8, crc = CRC-32C of Castagnoli
    Event          protobuf message: wall_time (1, double), step (2, int64), file_version (3, string),
                   summary (5, Summary), session_log (7, SessionLog)
    Summary        value (1, repeated): tag (1, string), simple_value (2, float)
    SessionLog     status (1): 1 is START, which makes TensorBoard drop the events of later steps of earlier files

The writer needs 100 lines. A library would add a dependency and 0.3 s to the start of each run.

Source: TensorFlow's core/util/event.proto, core/framework/summary.proto and core/lib/io/record_writer.h.
"""

import functools
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

POLYNOMIAL = 0x82F63B78                 # of CRC-32C, reflected
MASK = 0xA282EAD8
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5     # protobuf's wire types


class EventFile:
    """An event file in the folder of a run, created by the first event.

    Args:
        folder: folder of the run. TensorBoard joins all event files in it.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._file: BinaryIO | None = None
        self._first_step = 0

    def resume_after(self, step: int) -> None:
        """Continue in a new file; TensorBoard drops the events after `step` of the earlier files."""
        self.close()
        self._first_step = step + 1

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write an event: tag -> value at a step."""
        if self._file is None:
            name = f"events.out.tfevents.{int(time.time()):010d}.{self._first_step:08d}"     # TensorBoard sorts names
            self._file = (self._folder / name).open("ab")
            self._write(string(3, "brain.Event:2"))
            self._write(integer(2, self._first_step) + message(7, integer(1, 1)))
        values = (message(1, string(1, tag) + single(2, value)) for tag, value in scalars.items())
        self._write(integer(2, step) + message(5, b"".join(values)))

    def close(self) -> None:
        """Close the file. A later event creates a new one."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, content: bytes) -> None:
        assert self._file is not None
        self._file.write(record(double(1, time.time()) + content))
        self._file.flush()


def record(data: bytes) -> bytes:
    """Return a record of an event file."""
    length = struct.pack("<Q", len(data))
    return b"".join((length, struct.pack("<I", masked_crc(length)), data, struct.pack("<I", masked_crc(data))))


def masked_crc(data: bytes) -> int:
    """Return the masked CRC-32C of some bytes."""
    table = crc_table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + MASK) & 0xFFFFFFFF


@functools.cache
def crc_table() -> list[int]:
    """Return the CRC-32C of each byte."""
    table = list(range(256))
    for _ in range(8):
        table = [crc >> 1 ^ (POLYNOMIAL if crc & 1 else 0) for crc in table]
    return table


def varint(value: int) -> bytes:
    """Return a non-negative integer as a protobuf varint."""
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*digits, value))


def integer(field: int, value: int) -> bytes:
    """Return a protobuf field that holds a non-negative integer."""
    return varint(field << 3 | VARINT) + varint(value)


def double(field: int, value: float) -> bytes:
    """Return a protobuf field that holds a double."""
    return varint(field << 3 | FIXED64) + struct.pack("<d", value)


def single(field: int, value: float) -> bytes:
    """Return a protobuf field that holds a float."""
    return varint(field << 3 | FIXED32) + struct.pack("<f", value)


def message(field: int, content: bytes) -> bytes:
    """Return a protobuf field that holds a message."""
    return varint(field << 3 | BYTES) + varint(len(content)) + content


def string(field: int, text: str) -> bytes:
    """Return a protobuf field that holds a text."""
    return message(field, text.encode())
