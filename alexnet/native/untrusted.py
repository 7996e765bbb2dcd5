"""What the readers of untrusted files share: errors whose messages may contain text of such files, JSON, CRC-32."""

import json
import re
import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

LONGEST = 1200                                   # characters of a message; most have less than 300
ADDRESS = re.compile(r" at 0x[0-9a-f]+")         # of an object, in the messages of libraries
LINE_BREAK = re.compile(r"\s*\n\s*")            # in the messages of libraries


class InputError(ValueError):
    """A file or a setting that cannot be used. Its message becomes one line of printable text of bounded length."""

    def __init__(self, message: object) -> None:
        super().__init__(printable(message))


def printable(text: object, longest: int = LONGEST) -> str:
    """Return text as one line of printable characters; line breaks become spaces, other characters escape sequences.

    If it is too long, its middle is left out.
    """
    text = LINE_BREAK.sub(" ", ADDRESS.sub("", shortened(str(text), 2 * longest)))
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shortened(text, longest)


def shortened(text: str, longest: int) -> str:
    """Return text without its middle if it is too long."""
    if len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[: longest - end - 3]} … {text[-end:]}"


def parse_json(text: str | bytes) -> Any:
    """Return the value of JSON text; raises ValueError also for text that is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def checksum(data: "bytes | np.ndarray") -> str:
    """Return the CRC-32 of bytes as eight hexadecimal digits."""
    return f"{zlib.crc32(data):08x}"
