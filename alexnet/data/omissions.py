"""What a listing of images leaves out, counted by reason with the first name of each."""

import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

from alexnet.data.batch_file import name_of


class Omission(NamedTuple):
    """Files or folders that a listing leaves out for one reason."""

    reason: str                                  # completes "3 ..."
    n: int
    first: str                                   # printable name, relative to the listed folder

    def __str__(self) -> str:
        return f"{self.n:,} {self.reason} ({self.first}{', ...' if self.n > 1 else ''})"


class Omissions:
    """Counts what a listing leaves out."""

    def __init__(self) -> None:
        self.of: dict[str, Omission] = {}        # by reason

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """Count entries left out for a reason; name is the first of them."""
        before = self.of.get(reason, Omission(reason, 0, name_of(name)))
        self.of[reason] = before._replace(n=before.n + count)

    def listed(self) -> tuple[Omission, ...]:
        """Return what has been counted, by reason."""
        return tuple(self.of[reason] for reason in sorted(self.of))


def sentence(root: str, omissions: Iterable[Omission]) -> str | None:
    """Return a remark on what a listing of folder root leaves out; None if that is nothing."""
    found = "; ".join(map(str, omissions))
    return f"left out of {name_of(root)}: {found}" if found else None


def nfc(name: str) -> str:
    """Return a printable name in Unicode's composed form, in which equal-looking names are equal."""
    return unicodedata.normalize("NFC", name_of(name))
