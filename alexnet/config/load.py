"""Merge config.yaml, a settings file and key=value arguments into a Config.

An unknown setting or a value of the wrong type raises ConfigError; nothing is guessed.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from alexnet.config.registry import ConfigError, import_attribute
from alexnet.config.schema import DEFAULTS, Config, build_config, sections
from alexnet.config.yaml_text import as_yaml, is_intact, parse

PLAIN_TEXT = ("data", "output", "run_name", "resume_train", "weights")
EXTENSIBLE = ("model", "update", "exchange", "rule")       # a value may be module:attribute
USAGE = """\
Usage: {} [--config FILE] [key=value ...]

Every setting, with its default:

"""


def load_config(
    arguments: Iterable[str], stored: Mapping[str, Any] | None = None, place: str | Path = ""
) -> Config:
    """Return the Config of the command line `arguments` (without the program's name).

    Later layers override earlier ones: config.yaml, its first_run section if data is null, the settings of a resumed
    run, the settings file given by --config FILE, key=value arguments. --help prints every setting and raises
    SystemExit(0).

    Args:
        stored: the settings of a resumed run; None for a new run.
        place: where they are stored, for error messages.

    Raises:
        ConfigError: a setting is unknown, repeated, of the wrong type or contradicts another.
    """
    arguments = tuple(arguments)
    if {"--help", "-h"} & set(arguments):
        from alexnet.native.packages import TRAIN  # only help and an error need it

        print(USAGE.format(TRAIN) + DEFAULTS.read_text(encoding="utf-8") + settings_of_extensions())
        raise SystemExit(0)
    pairs, path = split_arguments(arguments)
    defaults = read_settings(DEFAULTS)
    first_run = defaults.pop("first_run")
    layers = [(f"{path}: ", read_settings(path))] if path else []
    layers.append(("", read_pairs(pairs)))
    given = {name for _, settings in layers for name in settings}
    if stored is not None:
        check_extensions(stored, given, place)
        layers.insert(0, (f"{place}: ", dict(stored)))
    data = [settings["data"] for _, settings in layers if "data" in settings]
    if not (data and data[-1]):
        layers.insert(0, ("", first_run))
    return merge([("", defaults), *layers], defaults, given)


def merge(layers: Iterable[tuple[str, dict[str, Any]]], defaults: dict[str, Any], given: Iterable[str]) -> Config:
    """Return the Config of layers (source, settings); later layers override earlier ones.

    Raises:
        ConfigError: a setting is unknown or invalid; the message names its source.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, settings in layers:
        values |= settings
        sources |= dict.fromkeys(settings, source)
    import_extensions(values)
    known = known_settings(defaults)
    for name in values:
        if name not in known:
            from alexnet.config.synonyms import similar_setting  # only an error needs it
            from alexnet.native.packages import TRAIN  # likewise

            similar = similar_setting(name, known)
            hint = f"did you mean {similar}?" if similar else f"`{TRAIN} --help` lists all settings"
            raise ConfigError(f"{sources[name]}there is no setting {name!r}; {hint}")
    return build_config(values, sources, given)


def check_extensions(stored: Mapping[str, Any], given: Iterable[str], place: str | Path) -> None:
    """Raise ConfigError if stored settings name code outside the package that the user does not name again.

    Importing and calling it would run whatever a checkpoint names.
    """
    for setting in EXTENSIBLE:
        value = stored.get(setting)
        if isinstance(value, str) and ":" in value and setting not in given:
            raise ConfigError(f"{place} was saved with {setting}={value}; if you trust it, add {setting}={value}")


def import_extensions(values: dict[str, Any]) -> None:
    """Import the modules that settings name as module:attribute, so that their sections are known."""
    for setting in EXTENSIBLE:
        value = values.get(setting)
        if isinstance(value, str) and ":" in value:
            import_attribute(value, setting)


def known_settings(defaults: dict[str, Any]) -> list[str]:
    """Return the names of all settings: those of config.yaml, and those of extensions."""
    return list(dict.fromkeys([*defaults, *(name for kind in sections() for name in kind.model_fields)]))


def settings_of_extensions() -> str:
    """Return the settings that imported extensions declare beyond config.yaml, as lines of YAML."""
    defaults = read_settings(DEFAULTS)
    return "".join(
        f"{name}: {as_yaml(field.default)}\n"
        for kind in sections() for name, field in kind.model_fields.items() if name not in defaults
    )


def split_arguments(arguments: Iterable[str]) -> tuple[list[tuple[str, str]], Path | None]:
    """Separate key=value arguments from --config FILE. Returns (pairs of text, path or None)."""
    pairs: list[tuple[str, str]] = []
    path: Path | None = None
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name == "--config":
            if not (value := value or next(rest, "")):
                raise ConfigError("--config needs a file, got none")
            if path:
                raise ConfigError(f"--config is given twice, {path} and {value}; give one settings file")
            path = Path(value)
        elif not equals or name.startswith("-"):
            hint = key_value(name, value or next(rest, ""))
            raise ConfigError(f"an argument must be key=value{hint}, got {argument!r}")
        else:
            pairs.append((name, value))
    return pairs, path


def key_value(name: str, value: str) -> str:
    """Return the end of a sentence that suggests key=value for an option such as --lr 0.1, or an empty string.

    Args:
        value: the text after the option, which may be another argument.
    """
    from alexnet.config.synonyms import OURS, similar_setting  # only an error needs it

    setting = similar_setting(name, read_settings(DEFAULTS))
    if setting is None or (not name.startswith("-") and name not in (setting, *OURS)):
        return ""
    return f", perhaps {setting}={'...' if not value or '=' in value or value.startswith('-') else value}"


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings in the YAML file `path`. If a run has written it, and it has changed, print a note.

    Raises:
        ConfigError: the file cannot be read, or is not a mapping.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"the settings file {path} cannot be read: {error.strerror}") from error
    settings = parse(data, str(path))
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} must hold lines of `key: value`, got {settings!r}")
    if not is_intact(data):
        from alexnet.native.console import note  # only a changed file needs it

        note(f"{path} has changed since a run wrote it; if you edited it, delete its last line, which is a checksum")
    return settings


def read_pairs(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Parse the (key, text) pairs of the command line. Returns a mapping of settings."""
    settings: dict[str, Any] = {}
    for key, text in pairs:
        if key in settings:
            raise ConfigError(f"{key} is given twice, the second time as {text!r}; give it once")
        if not text:
            raise ConfigError(f"{key}= has no value; {key}=null means none")
        # paths and names are not parsed as YAML: a folder may be called 42 or [old]
        as_it_stands = key in PLAIN_TEXT and text not in ("null", "true", "false")
        settings[key] = text if as_it_stands else parse(text, f"{key}={text}")
    return settings
