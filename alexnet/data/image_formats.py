"""The image formats that are read, recognised by the first bytes of a file.

A format is read if Pillow decodes it in this process with a widely used, fuzzed library, and if its size is known
before its pixels are decoded:

    JPEG (with MPO), PNG, WebP, GIF, BMP, TIFF, PPM, AVIF          of an animation, or of several pages, the first

Not read: EPS and WMF, which Pillow passes to another program (Ghostscript) or to Windows; JPEG 2000, whose decoder has
a long list of memory errors; formats without a signature (TGA); formats of other fields (FITS, GRIB, DICOM), and those
that Pillow cannot decode (HEIC, JPEG XL, SVG, PDF).
"""

import re

FORMATS = ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
LISTED = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
SUFFIXES = (
    ".jpeg", ".jpg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
    ".avif",
)
HEAD = 512                                       # bytes that identify a format
URL = re.compile(rb"[a-z][a-z0-9+.-]*://", re.IGNORECASE)

# format -> pattern of the first bytes. BMP and PPM are matched with part of their header, because a list of file names
# may start with their two letters.
SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WebP": rb"RIFF....WEBPVP8[ LX]",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "PPM": rb"P[1-6]\s+(#[^\n]*\n\s*)*\d+\s",
    "AVIF": rb"\0\0..ftyp(?=(.{4})*?avi[fs])",
}
OTHERS = {
    "HEIC": rb"\0\0..ftyp(hei|hev|mif1|msf1)",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "PostScript": rb"%!PS|\xc5\xd0\xd3\xc6",
    "PDF": rb"%PDF-",
    "SVG": rb"\s*<svg|\s*<\?xml",
    "Photoshop": rb"8BPS",
    "Windows icon": rb"\0\0[\1\2]\0",
    "HTML": rb"(?i:\s*<(!doctype html|html))",
    "gzip": rb"\x1f\x8b",
    "zip": rb"PK\x03\x04",
    "a pointer of Git LFS": rb"version https://git-lfs",
}
PATTERNS = {name: re.compile(pattern, re.DOTALL) for name, pattern in (SIGNATURES | OTHERS).items()}


def image_format(head: bytes) -> str | None:
    """Return the format of a file from its first HEAD bytes: a name in SIGNATURES or OTHERS, or None."""
    return next((name for name, pattern in PATTERNS.items() if pattern.match(head)), None)


def refusal(found: str | None) -> str:
    """Return why a file of a format that is not read, or of no known format, cannot be used."""
    if found is None:
        return f"is no {LISTED} image"
    return f"is {found}, not a {LISTED} image"


def is_url(name: str | bytes) -> bool:
    """Whether a name is a URL instead of a path."""
    return URL.match(name.encode(errors="replace") if isinstance(name, str) else name) is not None
