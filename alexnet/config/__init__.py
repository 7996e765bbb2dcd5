"""Settings: what they are (schema, fields), where they come from (load, yaml_text), and named choices (registry)."""

from alexnet.config.load import load_config, read_settings
from alexnet.config.registry import ConfigError, Registry, check_known
from alexnet.config.schema import DEFAULTS, Config, Section, backend_of, check_sections, dump

__all__ = [
    "DEFAULTS", "Config", "ConfigError", "Registry", "Section", "backend_of", "check_known", "check_sections", "dump",
    "load_config", "read_settings",
]
