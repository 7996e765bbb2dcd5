"""Mutations of inputs: of bytes, and of the structure of a format, so that they pass its first checks."""

import io
import json
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Mutation = Callable[[bytes, Random], bytes]

NUMBERS = (0, 1, 2, 3, 7, 8, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 2**31 - 1, 2**31, 2**32 - 1,
           2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
TEXTS = ("", "\n", "\0", "\x1b[31m", "\u202e", "\ud800", "é", "A" * 3000, "../x", "/", "%s", "{}", "-1", "1e999", "nan")
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0.5, float("nan"), float("inf"), 10**30, 10**400, [], {}, [[]], [[], {}], {"a": 1}, *TEXTS,
    *NUMBERS,
)
DEPTH = 20_000                                   # of brackets: more than any recursion limit


# ---- bytes


def mutated(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """Return an input with one to four changes of its bytes; `others` are inputs from which pieces are copied."""
    for _ in range(random.choice((1, 1, 2, 4))):
        data = random.choice(CHANGES)(data, random, others)
    return data


def flip_bit(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    if not data:
        return data
    at = random.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]


def set_bytes(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    at = random.randrange(len(data) + 1)
    new = bytes(random.choice((0, 0xFF, random.randrange(256))) for _ in range(random.choice((1, 1, 2, 8))))
    return data[:at] + new + data[at + len(new) :]


def set_number(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    size = random.choice((1, 2, 4, 8))
    new = (random.choice(NUMBERS) % 256**size).to_bytes(size, random.choice(("little", "big")))
    at = random.randrange(len(data) + 1)
    return data[:at] + new + data[at + size :]


def delete(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    at = random.randrange(len(data) + 1)
    return data[:at] + data[at + random.choice((1, 2, 8, 64)) :]


def truncate(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def duplicate(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    at, size = random.randrange(len(data) + 1), random.choice((1, 4, 16, 64))
    return data[:at] + data[at : at + size] * random.choice((2, 3, 20)) + data[at + size :]


def insert_text(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    at = random.randrange(len(data) + 1)
    text = random.choice((*TEXTS, *map(str, NUMBERS), "[" * DEPTH, "{" * 300, *'"[],: #', "&a *a"))
    return data[:at] + text.encode("utf-8", "surrogatepass") + data[at:]


def copy_piece(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    source = random.choice(others) if others else data
    first, at, size = random.randrange(len(source) + 1), random.randrange(len(data) + 1), random.choice((4, 32, 512))
    return data[:at] + source[first : first + size] + data[at + random.choice((0, size)) :]


def change_line(data: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    lines = data.splitlines(keepends=True)
    if not lines:
        return data
    at, other = random.randrange(len(lines)), random.randrange(len(lines))
    new = random.choice(([], [lines[at]] * 2, [lines[other], lines[at]], [lines[other]]))
    return b"".join([*lines[:at], *new, *lines[at + 1 :]])


CHANGES = (
    flip_bit, flip_bit, set_bytes, set_number, set_number, delete, truncate, duplicate, insert_text, copy_piece,
    change_line,
)


def bytes_mutated(data: bytes, random: Random) -> bytes:
    """Return an input with changed bytes."""
    return mutated(data, random, ())


# ---- JSON


def json_value_mutated(value: Any, random: Random) -> Any:
    """Return a JSON value in which one value, key or item is replaced, removed or duplicated."""
    if random.random() < 0.25 or not isinstance(value, list | dict) or not value:
        return random.choice(VALUES)
    if isinstance(value, list):
        at = random.randrange(len(value))
        new = random.choice(([], [value[at]] * 2, *[[json_value_mutated(value[at], random)]] * 4))
        return [*value[:at], *new, *value[at + 1 :]]
    key = random.choice(list(value))
    changed = dict(value)
    kind = random.randrange(8)
    if kind == 0:
        del changed[key]
    elif kind == 1:
        changed[random.choice(TEXTS)] = changed.pop(key)
    else:
        changed[key] = json_value_mutated(value[key], random)
    return changed


def json_mutated(data: bytes, random: Random) -> bytes:
    """Return JSON with a changed value; other bytes unchanged."""
    try:
        return json.dumps(json_value_mutated(json.loads(data), random)).encode()
    except (ValueError, RecursionError):
        return data


def json_lines_mutated(data: bytes, random: Random) -> bytes:
    """Return lines of JSON of which one has a changed value."""
    lines = data.splitlines(keepends=True)
    if not lines:
        return data
    at = random.randrange(len(lines))
    lines[at] = json_mutated(lines[at], random).rstrip(b"\n") + b"\n"
    return b"".join(lines)


# ---- protocol buffers


def varint(number: int) -> bytes:
    """Return a number as a varint."""
    digits = bytearray()
    number %= 2**64
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*digits, number))


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return (number, place after it). Raises ValueError."""
    number = shift = 0
    for place in range(at, min(at + 10, len(data))):
        number |= (data[place] & 0x7F) << shift
        shift += 7
        if data[place] < 0x80:
            return number, place + 1
    raise ValueError("no varint")


def fields_of(data: bytes) -> list[tuple[int, int, Any]]:
    """Return (number, wire type, value) of each field of a message. Raises ValueError."""
    fields, at = [], 0
    while at < len(data):
        key, at = read_varint(data, at)
        kind = key & 7
        value: Any
        if kind == 0:
            value, at = read_varint(data, at)
        elif kind == 2:
            size, at = read_varint(data, at)
            value, at = data[at : at + size], at + size
            if at > len(data):
                raise ValueError("a field is cut off")
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = data[at : at + size], at + size
            if at > len(data):
                raise ValueError("a field is cut off")
        else:
            raise ValueError("no wire type")
        fields.append((key >> 3, kind, value))
    return fields


def message_of(fields: Sequence[tuple[int, int, Any]]) -> bytes:
    """Return a message; the inverse of fields_of."""
    pieces = []
    for number, kind, value in fields:
        pieces.append(varint(number << 3 | kind))
        if kind == 0:
            pieces.append(varint(value))
        else:
            pieces.append(varint(len(value)) + value if kind == 2 else value)
    return b"".join(pieces)


def message_mutated(data: bytes, random: Random) -> bytes:
    """Return a message of protocol buffers in which one field, perhaps of an inner message, is changed."""
    try:
        fields = fields_of(data)
    except ValueError:
        return bytes_mutated(data, random)
    if not fields:
        return data
    at = random.randrange(len(fields))
    number, kind, value = fields[at]
    choice = random.randrange(10)
    if choice == 0:
        new = []
    elif choice == 1:
        new = [fields[at]] * 2
    elif choice == 2:
        new = [fields[random.randrange(len(fields))], fields[at]]
    elif choice == 3:
        new = [(random.choice((number + 1, number - 1, random.randrange(1, 40))), kind, value)]
    elif kind == 0:
        new = [(number, kind, random.choice((*NUMBERS, value + 1, value - 1)))]
    elif kind == 2:
        new = [(number, kind, message_mutated(value, random))]
    else:
        new = [(number, kind, bytes(random.randrange(256) for _ in value))]
    return message_of([*fields[:at], *new, *fields[at + 1 :]])


# ---- zip


def zip_parts(data: bytes) -> list[tuple[zipfile.ZipInfo, bytes]]:
    """Return (entry, content as it is stored) of a zip, whatever its checksums. Raises ValueError."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = []
            for info in archive.infolist():
                name, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
                first = info.header_offset + 30 + name + extra
                parts.append((info, data[first : first + info.compress_size]))
            return parts
    except (zipfile.BadZipFile, struct.error, OverflowError, NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError("no zip") from error


def plain_content(info: zipfile.ZipInfo, stored: bytes) -> bytes:
    """Return the content of an entry. Raises ValueError."""
    if info.compress_type != zipfile.ZIP_DEFLATED:
        return stored
    try:
        return zlib.decompressobj(-15).decompress(stored, 1 << 20)
    except zlib.error as error:
        raise ValueError("no deflated data") from error


def zip_repaired(data: bytes) -> bytes:
    """Return a zip with the CRC-32 of each entry corrected, in both of its headers."""
    try:
        parts = zip_parts(data)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            at = archive.start_dir
        changed = bytearray(data)
        for info, stored in parts:
            crc = struct.pack("<I", zlib.crc32(plain_content(info, stored)))
            changed[info.header_offset + 14 : info.header_offset + 18] = crc
            changed[at + 16 : at + 20] = crc
            name, extra, comment = struct.unpack_from("<HHH", data, at + 28)
            at += 46 + name + extra + comment
        return bytes(changed)
    except (ValueError, struct.error, zipfile.BadZipFile, OverflowError, NotImplementedError):
        return data


def zip_of(parts: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """Return a zip of (name, content), the same bytes at any time."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", method) as archive:
        for name, content in parts:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            archive.writestr(info, content)
    return memory.getvalue()


def zip_mutation(inner: Mutation) -> Mutation:
    """Return a mutation of the content or name of one entry of a zip."""

    def zip_mutated(data: bytes, random: Random) -> bytes:
        try:
            parts = [(info.filename, plain_content(info, stored)) for info, stored in zip_parts(data)]
            if not parts:
                return data
            at = random.randrange(len(parts))
            name, content = parts[at]
            choice = random.randrange(12)
            if choice == 0:
                parts.pop(at)
            elif choice == 1:
                other = parts[random.randrange(len(parts))][0]
                parts[at] = random.choice((f"{name}x", name[1:], f"a/{name}", other.partition("/")[2])), content
            else:
                parts[at] = name, inner(content, random)
            method = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
            return zip_of(dict(parts).items(), method)         # names once, because zipfile warns
        except ValueError:
            return data

    return zip_mutated


# ---- pickles


def opcodes_of(data: bytes) -> tuple[list[bytes], bytes]:
    """Return the opcodes of a pickle with their arguments, and the bytes after them. Raises ValueError."""
    file = io.BytesIO(data)
    places = []
    try:
        for _, _, place in pickletools.genops(file):
            places.append(place or 0)
    except (ValueError, struct.error, UnicodeError, OverflowError):
        places.append(len(data))
    places = places or [0]
    end = file.tell()
    return [data[a:b] for a, b in zip(places, [*places[1:], end], strict=True)], data[end:]


OPCODES = tuple(each.code.encode("latin-1") for each in pickletools.opcodes if each.arg is None)


def pickle_mutated(data: bytes, random: Random) -> bytes:
    """Return a pickle of which one opcode is removed, duplicated, moved, replaced or has another argument."""
    opcodes, rest = opcodes_of(data)
    at = random.randrange(len(opcodes))
    choice = random.randrange(6)
    if choice == 0:
        opcodes.pop(at)
    elif choice == 1:
        opcodes.insert(at, random.choice(opcodes))
    elif choice == 2:
        opcodes.insert(at, random.choice(OPCODES))
    elif choice == 3:
        opcodes[at] = random.choice(OPCODES)
    elif choice == 4:
        opcodes[at] = opcodes[at][:1] + bytes_mutated(opcodes[at][1:], random)
    else:
        opcodes[at] = b"\x8a\x08" + (random.choice(NUMBERS) % 2**64).to_bytes(8, "little")
    return b"".join(opcodes) + rest
