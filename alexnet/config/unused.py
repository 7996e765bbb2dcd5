"""Refusal of settings that the chosen implementation does not read."""

from collections.abc import Mapping
from functools import cache
from typing import Any, Protocol

from alexnet.config.load import read_settings
from alexnet.config.registry import ConfigError
from alexnet.config.schema import DEFAULTS, Config, Section
from alexnet.config.yaml_text import as_yaml


class HasSettings(Protocol):
    """An implementation that declares its settings, such as a rule or a strategy."""

    def sections(self) -> tuple[type[Section], ...]:
        """Return the sections that it reads, and no other implementation does."""


def check_unused_settings(
    config: Config, setting: str, name: str, chosen: HasSettings, implementations: Mapping[str, HasSettings]
) -> None:
    """Raise ConfigError if the user gave a setting that only another implementation reads, unless it is the default.

    A resumed run may have such settings: those of the rule under which it started. Values of the chosen implementation
    are checked too.

    Args:
        setting: the setting that names an implementation.
        name: its value.
        chosen: the implementation of that name.
        implementations: all implementations by name.
    """
    if config.given <= Config.model_fields.keys():
        return                                   # without an import of all implementations
    read = chosen.sections()
    for kind in read:
        config.section(kind)                     # refuses invalid values, even if nothing reads them in this job
    defaults = default_settings()
    for other, implementation in sorted(implementations.items()):    # not in the order of the imports
        for kind in implementation.sections():
            if kind in read:
                continue
            for field, value in config.section(kind).model_dump(mode="json").items():
                default = defaults.get(field, kind.model_fields[field].default)
                if value != default and field in config.given:
                    raise ConfigError(
                        f"{field} is a setting of {setting}={other}, so with {setting}={name} it must stay "
                        f"{as_yaml(default)}, got {as_yaml(value)}"
                    )


@cache
def default_settings() -> dict[str, Any]:
    """Return the values in config.yaml; do not change them."""
    return read_settings(DEFAULTS)
