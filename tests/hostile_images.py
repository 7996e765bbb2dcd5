"""Unusual images: those that a program must accept, and those that it must refuse."""

import gzip
import io
import os
import struct
import zlib

import numpy as np
from PIL import Image


def photograph(width=300, height=200, seed=0):
    """Return a smooth colour image, which JPEG changes little."""
    coarse = np.random.default_rng(seed).integers(30, 226, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(picture, form="JPEG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def rotated():
    """Return a JPEG whose EXIF orientation rotates it by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(photograph(), exif=exif)


def bomb(side=30_000):
    """Return a PNG of 30,000 x 30,000 pixels in 4 kB."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(30_001 * 100), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


# kind -> file contents, for images that are accepted
GOOD = {
    "CMYK": lambda: encoded(photograph().convert("CMYK")),
    "PNG named JPEG": lambda: encoded(photograph(), "PNG"),
    "grey": lambda: encoded(photograph().convert("L")),
    "grey with alpha": lambda: encoded(photograph().convert("LA"), "PNG"),
    "palette": lambda: encoded(photograph().quantize(16), "PNG"),
    "16-bit": lambda: encoded(Image.fromarray(np.arange(2**16, dtype=np.uint16).reshape(256, 256)), "PNG"),
    "EXIF-rotated": rotated,
    "1 x 1": lambda: encoded(Image.new("RGB", (1, 1), (10, 200, 30))),
    "1 x 20,000": lambda: encoded(Image.new("RGB", (1, 20_000), (10, 200, 30))),
}
# kind -> (file contents, pattern of the expected message), for those that are refused
BAD = {
    "bomb": (bomb, "is absurdly large"),
    "smaller bomb": (lambda: bomb(12_000), "is absurdly large: 12000 x 12000 pixels"),
    "truncated": (lambda: encoded(photograph())[:2000], "is damaged: .*truncated"),
    "empty": (lambda: b"", "is empty"),
    "gzip": (lambda: gzip.compress(encoded(photograph())), "is gzip, not a JPEG, PNG, "),
    "not an image": (lambda: b"import os; os._exit(99)\n", "is no JPEG, PNG, .* image"),
}


def place_all(folder):
    """Write every kind of image to a folder as NAME.JPEG; return path -> None or the expected message's pattern.

    In addition to GOOD and BAD, the folder contains a dangling link, a pipe without a writer, and a file name that is
    not UTF-8.
    """
    reasons = {}
    for kind, make in GOOD.items():
        reasons[os.path.join(folder, f"{kind}.JPEG")] = None
        with open(os.path.join(folder, f"{kind}.JPEG"), "wb") as file:
            file.write(make())
    for kind, (make, reason) in BAD.items():
        reasons[os.path.join(folder, f"{kind}.JPEG")] = reason
        with open(os.path.join(folder, f"{kind}.JPEG"), "wb") as file:
            file.write(make())
    name = os.path.join(os.fsdecode(folder), os.fsdecode(b"caf\xe9.JPEG"))
    reasons[name] = None
    with open(name, "wb") as file:
        file.write(encoded(photograph()))
    os.mkfifo(os.path.join(folder, "pipe.JPEG"))
    reasons[os.path.join(folder, "pipe.JPEG")] = "is no file but a pipe or a device"
    os.symlink("nowhere", os.path.join(folder, "unreadable.JPEG"))
    reasons[os.path.join(folder, "unreadable.JPEG")] = "cannot be opened: No such file"
    return reasons
