"""The settings of a run: typed, frozen, and picklable for the processes of the run.

Config holds what belongs to no rule, strategy or update rule. These declare their own settings in a Section, which
`config.section(kind)` returns. All settings share one namespace, and config.yaml documents them with their defaults.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from alexnet.config.fields import (
    Amount,
    Count,
    Counts,
    DeviceName,
    DeviceNames,
    FolderName,
    Fraction,
    LayerNames,
    LayerRates,
    NotNegative,
    Resume,
    Share,
    Text,
)
from alexnet.config.registry import ConfigError
from alexnet.config.yaml_text import as_yaml, sealed

HOME = Path(__file__).resolve().parents[1]
INSTALLED, SOURCE = HOME / "config.yaml", HOME.parent / "config.yaml"
DEFAULTS = INSTALLED if INSTALLED.exists() else SOURCE

# pydantic's wording -> the wording of our messages
WORDS = {
    "a valid boolean": "true or false", "a valid integer": "an integer", "valid tuple": "list",
    "a valid dictionary": "layers and factors, as {fc8: 10}", "valid ": "",
}


class Section(BaseModel):
    """Settings that one part of the program declares, reads and validates, such as a rule or a strategy.

    A field without a default has its default in config.yaml. A subclass is known once its module has been imported.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    @model_validator(mode="after")
    def check_values(self) -> Self:
        """Refuse values that contradict each other."""
        self.check()
        return self

    def check(self) -> None:
        """Raise ValueError if values contradict each other."""
        return None


S = TypeVar("S", bound=Section)


class Config(Section):
    """The settings of one run, documented in config.yaml."""

    data: Text | None
    output: Text
    run_name: FolderName | None
    model: Text
    classes: Annotated[int, Field(ge=2)] | None
    resume_train: Resume

    weights: Text | None
    new_layers: LayerNames
    layer_rates: LayerRates
    frozen_layers: LayerNames

    devices: DeviceNames
    rank: Annotated[int, Field(ge=0)] | None
    size: Count | None
    device: DeviceName | None
    backend: Literal["auto", "cpu", "jax", "numpy"]
    precision: Literal["float32", "tf32", "bfloat16"]
    threads: Annotated[int, Field(gt=0, le=1024)] | None      # OpenMP ends the process if it cannot start them
    isa: Literal["auto", "avx512", "avx2", "neon", "portable"]

    batch_size: Count
    micro_batch_size: Count | None
    n_epochs: Count
    n_iterations: Count | None

    learning_rate: Amount
    lr_policy: Literal["step", "auto", "poly", "linear", "cosine", "constant"]
    lr_step: Counts
    lr_factor: Annotated[Fraction, Field(gt=0)]
    lr_adapt_threshold: Share
    lr_power: Amount
    lr_scaling: Literal["none", "linear"]
    warmup_epochs: Annotated[int, Field(ge=0)]
    dropout_rate: Share

    use_data_layer: bool
    rand_crop: bool
    batch_crop_mirror: bool
    random_resized_crop: Annotated[Fraction, Field(gt=0)] | None
    pca_colour: NotNegative
    shuffle: bool

    para_load: bool
    slots: Annotated[int, Field(ge=2)]
    verify_data: bool

    rule: Text
    heartbeat_timeout: Amount

    random_seed: Annotated[int, Field(ge=0, lt=2**32)]

    validation: bool
    print_freq: Count
    diagnosis: bool
    snapshot_freq: Count
    snapshot_iterations: Count | None
    keep_snapshots: Count | None
    max_restarts: Annotated[int, Field(ge=0)]

    _others: dict[str, Any] = PrivateAttr(default_factory=dict)    # values of the settings of sections, not validated
    _given: frozenset[str] = PrivateAttr(frozenset())              # names of the settings that the user gave
    _notes: tuple[str, ...] = PrivateAttr(())                      # messages about the settings, for the log of the run
    _is_restart: bool = PrivateAttr(False)                         # see the property

    def section(self, kind: type[S]) -> S:
        """Return the settings of a section.

        Raises:
            ConfigError: a value has the wrong type, or values contradict each other.
        """
        return build(kind, self._values_of(kind))

    def _values_of(self, kind: type[Section]) -> dict[str, Any]:
        """Return the values of the settings of a section, not validated."""
        return {name: self._others[name] for name in kind.model_fields if name in self._others}

    @property
    def given(self) -> frozenset[str]:
        """Names of the settings that the user gave, as arguments or in a settings file."""
        return self._given

    @property
    def notes(self) -> tuple[str, ...]:
        """Messages for the log of the run, such as the folders that resume_train=latest has passed over."""
        return self._notes

    @property
    def images_at_once(self) -> int:
        """Images that a worker computes together: those of a micro-batch."""
        return self.micro_batch_size or self.batch_size

    @property
    def micro_batches(self) -> int:
        """Micro-batches in a step of a worker."""
        return self.batch_size // self.images_at_once

    def with_notes(self, *notes: str) -> Self:
        """Return the same settings with more notes."""
        config = self.model_copy()
        config._notes = (*self._notes, *notes)
        return config

    @property
    def is_restart(self) -> bool:
        """Whether a failed run starts again, in its folder, which exists."""
        return self._is_restart

    def as_restart(self, **changes: str) -> Self:
        """Return the settings of a restart, with these changes."""
        config = self.model_copy(update=changes)
        config._is_restart = True
        return config

    def as_dict(self) -> dict[str, Any]:
        """Return all settings by name, as values of JSON."""
        values = self.model_dump(mode="json") | self._others
        for kind in sections():
            values |= self.section(kind).model_dump(mode="json")
        return values

    def as_message(self) -> dict[str, Any]:
        """Return the settings and what is known about them as values of JSON, for another process: from_message()."""
        return {
            "values": self.model_dump(mode="json"), "others": self._others, "given": sorted(self._given),
            "notes": list(self._notes), "is_restart": self._is_restart,
        }

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> "Config":
        """Return the Config of as_message(), checked again; no module that a setting names is imported.

        Raises:
            ConfigError: the message is incomplete, or a value has the wrong type or contradicts another one.
        """
        types = {"values": dict, "others": dict, "given": list, "notes": list, "is_restart": bool}
        if {name: type(value) for name, value in message.items()} != types:
            raise ConfigError(f"a message with settings must hold {', '.join(types)}, got {', '.join(message)}")
        config = build(Config, message["values"])
        config._others.update(message["others"])
        config._given = frozenset(map(str, message["given"]))
        config._notes = tuple(map(str, message["notes"]))
        config._is_restart = message["is_restart"]
        return config

    def check(self) -> None:
        if self.batch_size % self.images_at_once:
            raise ValueError(
                f"micro_batch_size must divide batch_size = {self.batch_size}, got {self.micro_batch_size}"
            )
        self.check_schedule()
        self.check_augmentation()
        self.check_layers()
        self.check_devices()

    def check_schedule(self) -> None:
        """Refuse a contradictory learning rate schedule."""
        if any(later <= earlier for earlier, later in zip(self.lr_step, self.lr_step[1:], strict=False)):
            raise ValueError(f"lr_step must be rising epochs, got {list(self.lr_step)}")
        if self.warmup_epochs >= self.n_epochs:
            raise ValueError(f"warmup_epochs must be less than n_epochs = {self.n_epochs}, got {self.warmup_epochs}")
        if self.lr_policy == "auto" and not self.validation:
            raise ValueError("lr_policy auto follows the validation error, so validation must be true, got false")

    def check_augmentation(self) -> None:
        """Refuse resized crops that cannot be applied."""
        if self.random_resized_crop is None:
            return
        if self.use_data_layer:
            raise ValueError(
                f"use_data_layer must be false with random_resized_crop={self.random_resized_crop:g}, because the "
                "loader resizes the crops, got true"
            )
        if not self.rand_crop:
            raise ValueError(
                f"rand_crop must be true with random_resized_crop={self.random_resized_crop:g}, or "
                "random_resized_crop null for center crops, got false"
            )

    def check_layers(self) -> None:
        """Refuse contradictory settings of trained weights."""
        if "auto" in self.new_layers and len(self.new_layers) > 1:
            raise ValueError(f"new_layers must be only auto, or name the layers, got {list(self.new_layers)}")
        if both := {*self.layer_rates, *self.new_layers} & {*self.frozen_layers}:
            raise ValueError(
                f"{min(both)} is one of frozen_layers, so it has no learning rate and begins with no new weights: "
                "take it from layer_rates, new_layers or frozen_layers"
            )
        if not (self.weights or self.resume_train) and (self.frozen_layers or self.new_layers != ("auto",)):
            raise ValueError("frozen_layers and new_layers are about trained weights, so they need weights=, got null")

    def check_devices(self) -> None:
        """Refuse contradictory devices and ranks."""
        if "auto" in self.devices and len(self.devices) > 1:
            raise ValueError(f"devices must be only auto, or name each worker's device, got {list(self.devices)}")
        given = {"rank": self.rank, "size": self.size, "device": self.device}
        given = {name: value for name, value in given.items() if value is not None}
        if 0 < len(given) < 3:
            listed = ", ".join(f"{name}={value}" for name, value in given.items())
            raise ValueError(f"a worker started by hand needs rank, size and device together, got only {listed}")
        if given and self.max_restarts:
            raise ValueError(
                f"max_restarts must be 0 for a worker started by hand, because only you can start it again, got "
                f"{self.max_restarts}"
            )
        if self.rank is not None and self.size is not None and self.rank >= self.size:
            raise ValueError(f"rank must be 0 to {self.size - 1} for size={self.size}, got {self.rank}")
        if self.device == "auto":
            raise ValueError("device must be cpu, or cuda and a number, for a worker started by hand, got auto")


def sections() -> Iterator[type[Section]]:
    """Yield every Section that imported modules declare, without Config."""
    for kind in Section.__subclasses__():
        if kind is not Config:
            yield kind


def build_config(values: Mapping[str, Any], sources: Mapping[str, str], given: Iterable[str]) -> Config:
    """Return the Config of all settings, sections included.

    Args:
        sources: where the value of a setting comes from, as the start of an error message.
        given: names of the settings that the user gave.

    Raises:
        ConfigError: a value has the wrong type or contradicts another one.
    """
    config = build(Config, {name: values[name] for name in Config.model_fields if name in values}, sources)
    config._others.update((name, value) for name, value in values.items() if name not in Config.model_fields)
    config._given = frozenset(given)
    check_sections(config, sources)
    return config


def check_sections(config: Config, sources: Mapping[str, str] | None = None) -> None:
    """Check the settings of every section that imported modules declare; see build_config."""
    for kind in sections():
        build(kind, config._values_of(kind), sources)


def build(kind: type[S], values: Mapping[str, Any], sources: Mapping[str, str] | None = None) -> S:
    """Return a section with these values.

    Raises:
        ConfigError: as for build_config.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        raise ConfigError(message(kind, error.errors()[0], values, sources or {})) from None


def message(kind: type[Section], error: Any, values: Mapping[str, Any], sources: Mapping[str, str]) -> str:
    """Format a pydantic error as one sentence with the value and a valid alternative."""
    if not error["loc"]:
        return str(error["ctx"]["error"]) if "ctx" in error else f"there is no setting {error['input']!r}"
    name = error["loc"][0]
    if error["type"] == "missing":
        return f"{DEFAULTS} has no default of {name}"
    if error["type"] == "extra_forbidden":
        return f"there is no setting {name!r}"
    wanted = re.sub(r"^(Value error, |\w+ should )| after validation.*", "", error["msg"])
    for theirs, ours in WORDS.items():
        wanted = wanted.replace(theirs, ours)
    nullable = type(None) in getattr(kind.model_fields[name].annotation, "__args__", ())
    value = values[name]
    shown = f"the text {value!r}" if isinstance(value, str) else as_yaml(value)
    return f"{sources.get(name, '')}{name} must {wanted}{' or null' if nullable else ''}, got {shown}"


def dump(config: Config) -> str:
    """Return all settings as the text of a YAML file that --config accepts, with a checksum in its last line."""
    return sealed("".join(f"{name}: {as_yaml(value)}\n" for name, value in config.as_dict().items()))


def backend_of(setting: str, device: str) -> str:
    """Return the backend that the setting selects on a device. auto selects jax on cuda devices, else cpu."""
    if setting != "auto":
        return setting
    return "cpu" if device == "cpu" else "jax"
