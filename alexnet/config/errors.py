"""The error of invalid settings, and the search for a name that the user may have meant."""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """An invalid setting. The message is one sentence with the value and a valid alternative."""


def check_known(name: str, known: Iterable[str], problem: str, otherwise: str | None = None) -> None:
    """Raise ConfigError unless `name` is in `known`.

    Args:
        problem: start of the message, for example "model: there is no network".
        otherwise: end of the message if no known name is similar; None lists all known names.
    """
    names = tuple(known)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
        hint = f"did you mean {close[0]}?" if close else otherwise or f"there are {', '.join(names)}"
        raise ConfigError(f"{problem} {name!r}; {hint}")
