"""The devkit's synset table in MATLAB format, meta.mat. A separate module because only this needs scipy.

Source: MathWorks, MAT-File Format, version 5, chapter 1.
"""

import io
import math
import struct
import zlib
from pathlib import Path

import scipy.io
from scipy.io.matlab import MatReadError

HEADER = 128                                     # bytes
MATRIX, COMPRESSED = 14, 15                      # types of elements
LARGEST = 1 << 26                                # bytes after decompression; the devkit's table has 0.2 MB
DEEPEST = 4                                      # elements in each other; the devkit's table: in its rows, 2
DAMAGE = (                                       # raised by scipy, besides the exceptions of read_meta
    zlib.error, struct.error, MatReadError, MemoryError, NameError, ArithmeticError, AttributeError, EOFError,
    RecursionError,
)


def read_meta(path: str | Path) -> dict[int, tuple[str, str]]:
    """Return {ILSVRC id: (wnid, words)} of a meta.mat.

    Raises:
        OSError, ValueError, KeyError, IndexError or TypeError: the file is not meta.mat.
    """
    content = Path(path).read_bytes()
    order = {b"IM": "<", b"MI": ">"}.get(content[HEADER - 2 : HEADER])
    if not content.startswith(b"MATLAB 5.0 MAT-file") or order is None:
        raise ValueError("it is no MAT-file of version 5")
    try:
        plain = b"".join(checked_elements(content[HEADER:], order, DEEPEST))
        rows = scipy.io.loadmat(io.BytesIO(content[:HEADER] + plain), squeeze_me=True)["synsets"]
        return {int(row[0]): (str(row[1]), str(row[2])) for row in rows}
    except DAMAGE as error:
        raise ValueError(f"it is damaged: {error}") from error


def checked_elements(data: bytes, order: str, depth: int) -> list[bytes]:
    """Return the elements of a MAT-file, not compressed.

    Raises:
        ValueError: an array has more values than its element has bytes. scipy would take memory for them.
    """
    elements = []
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        if kind >> 16:                           # a small element: size, type and up to 4 bytes of values in 8 bytes
            elements.append(data[at : at + 8])
            at += 8
            continue
        if size > len(data) - at - 8:
            raise ValueError("an element is cut off")
        content = data[at + 8 : at + 8 + size]
        at += 8 + size if kind == COMPRESSED else 8 + size + -size % 8
        if kind == COMPRESSED:
            unpacker = zlib.decompressobj()
            content = unpacker.decompress(content, LARGEST)
            if not unpacker.eof:
                raise ValueError(f"an element has more than {LARGEST} bytes, or is cut off")
            elements += checked_elements(content, order, depth)
            continue
        if kind == MATRIX:
            if not depth:
                raise ValueError("its elements are nested too deeply")
            parts = checked_elements(content, order, depth - 1)
            content = b"".join(parts)
            if len(parts) > 1 and number_of_values(parts[1], order) > size:
                raise ValueError("an array has more values than bytes")
        elements.append(struct.pack(f"{order}II", kind, len(content)) + content + bytes(-len(content) % 8))
    return elements


def number_of_values(dimensions: bytes, order: str) -> int:
    """Return the number of values of an array from its second element: its dimensions, int32."""
    small = struct.unpack_from(f"{order}I", dimensions)[0] >> 16
    values = dimensions[4 : 4 + small] if small else dimensions[8:]
    lengths = [length for (length,) in struct.iter_unpack(f"{order}i", values[: len(values) // 4 * 4])]
    if min(lengths, default=0) < 0:
        raise ValueError("an array has a negative length")
    return math.prod(lengths)
