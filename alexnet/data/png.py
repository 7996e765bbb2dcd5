"""The checksums of a PNG file. Pillow ignores those of the pixels, so that a flipped bit passes as a wrong image.

Source: PNG specification, third edition, section 5.3: a chunk is its length, its type, its data, and the CRC-32 of type
and data.
"""

import struct
import zlib
from typing import IO

SIGNATURE = 8                                    # bytes before the first chunk
PIECE = 2**20                                    # bytes read at a time: a damaged length may be 4 GiB


def refuse_wrong_checksum(file: IO[bytes]) -> None:
    """Compare every chunk of an open PNG file with its checksum. The position in the file is kept.

    Raises:
        ValueError: a checksum differs, or the file ends before its last chunk.
    """
    position = file.tell()
    file.seek(SIGNATURE)
    while read_chunk(file) != b"IEND":
        pass
    file.seek(position)


def read_chunk(file: IO[bytes]) -> bytes:
    """Read the chunk at the position of an open PNG file and return its type. Raises ValueError."""
    header = exactly(file, 8)
    length, kind = struct.unpack(">I4s", header)
    found = zlib.crc32(kind)
    while length:
        piece = exactly(file, min(length, PIECE))
        found = zlib.crc32(piece, found)
        length -= len(piece)
    if exactly(file, 4) != struct.pack(">I", found):
        raise ValueError(f"the checksum of its chunk {kind.decode('ascii', 'backslashreplace')} is wrong")
    return kind


def exactly(file: IO[bytes], size: int) -> bytes:
    """Return the next `size` bytes. Raises ValueError if the file has fewer."""
    found = file.read(size)
    if len(found) < size:
        raise ValueError("the file is truncated")
    return found
