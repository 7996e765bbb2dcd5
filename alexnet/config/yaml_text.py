"""YAML 1.2's core schema: 1e-2 is a number, true and false are the only booleans, `on` is a string.

A duplicate key, an alias (*name) and a tag of another type are errors.
"""

import re
from typing import Any, ClassVar

import yaml

from alexnet.config.registry import ConfigError
from alexnet.native.untrusted import checksum

SEAL = "# CRC-32 of the lines above is "
TAGS = ("null", "bool", "int", "float", "str", "seq", "map")
DEEPEST = 10                                     # nested nodes; settings have three
FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2 (core schema). Refuses duplicate keys."""

    yaml_implicit_resolvers: ClassVar[dict] = {}
    yaml_constructors: ClassVar[dict] = {
        tag: function for tag, function in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in TAGS
    }
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Return the next node.

        Raises:
            ConfigError: an alias, with which 1 kB can describe more than the memory, or nodes nested too deeply.
        """
        event = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"{self.name} line {line}: write the value of *{event.anchor} out; aliases are not read")
        if self.depth == DEEPEST:
            raise ConfigError(f"{self.name} line {line}: values are nested more than {DEEPEST} deep")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Return the mapping of a node; raise ConfigError for a duplicate key or a key that is no string."""
        first: dict[str, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise ConfigError(f"{self.name} line {line}: a setting's name must be a word, got {key!r}")
            if key in first:
                raise ConfigError(f"{self.name} line {line}: {key} is given twice, first in line {first[key]}")
            first[key] = line
        return super().construct_mapping(node, deep)

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        return int(self.construct_scalar(node))

    def construct_number(self, node: yaml.ScalarNode) -> float:
        return float(re.sub(r"^([-+]?)\.(inf|nan)", r"\1\2", self.construct_scalar(node).lower()))


for tag, pattern, first_letters in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", FLOAT, list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
):
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), first_letters)
Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_integer)
Loader.add_constructor("tag:yaml.org,2002:float", Loader.construct_number)


def parse(text: str | bytes, source: str) -> Any:
    """Return the value of the YAML `text`.

    Args:
        source: what the text is, for error messages.

    Raises:
        ConfigError: the text is not valid YAML.
    """
    try:
        loader = Loader(text)                    # it decodes the first bytes
        loader.name = source
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
        raise ConfigError(f"{source} is not valid YAML{line}: {problem}") from error
    except ConfigError:
        raise
    except (ValueError, KeyError, TypeError) as error:           # a value that its tag forbids, or one of 5000 digits
        raise ConfigError(f"{source} is not valid YAML: {error}") from error


def as_yaml(value: object) -> str:
    """Return `value` as one line of YAML, formatted as in config.yaml."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def sealed(text: str) -> str:
    """Return lines of YAML and a comment with their checksum."""
    return f"{text}{SEAL}{checksum(text.encode())}\n"


def is_intact(data: bytes) -> bool:
    """Return whether a file of YAML has the checksum in its last line, or none."""
    above, seal, rest = data.rpartition(SEAL.encode())
    return not seal or rest[:8] == checksum(above).encode()
