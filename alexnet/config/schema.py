"""Settings: merge config.yaml, a settings file and key=value arguments into one frozen, typed Config.

Values follow YAML 1.2's core schema: 1e-2 is a number, true and false are the only booleans, `on` is a string,
and a duplicate key is an error. An unknown setting or a value of the wrong type raises ConfigError; nothing is guessed.
"""

import difflib
import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

HOME = Path(__file__).resolve().parents[1]
INSTALLED, SOURCE = HOME / "config.yaml", HOME.parent / "config.yaml"
DEFAULTS = INSTALLED if INSTALLED.exists() else SOURCE

PLAIN_TEXT = ("data", "output", "run_name", "resume_train", "weights")

FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"          # YAML 1.2, core schema

# pydantic's wording -> the wording of our messages
WORDS = {
    "a valid boolean": "true or false", "a valid integer": "an integer", "valid tuple": "list",
    "a valid dictionary": "layers and factors, as {fc8: 10}", "valid ": "",
}

ALL_SETTINGS = "`python train.py --help` lists all settings"
USAGE = """\
Usage: python train.py [--config FILE] [key=value ...]

Every setting, with its default:

"""


class ConfigError(ValueError):
    """An invalid setting. The message is one sentence with the value and a valid alternative."""


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2 (core schema). Refuses duplicate keys."""

    yaml_implicit_resolvers: ClassVar[dict] = {}

    def construct_mapping(self, node, deep=False):
        first = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise ConfigError(f"{self.name} line {line}: a setting's name must be a word, got {key!r}")
            if key in first:
                raise ConfigError(f"{self.name} line {line}: {key} is given twice, first in line {first[key]}")
            first[key] = line
        return super().construct_mapping(node, deep)

    def construct_integer(self, node):
        return int(node.value)

    def construct_number(self, node):
        return float(re.sub(r"^([-+]?)\.(inf|nan)", r"\1\2", node.value.lower()))


for tag, pattern, first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", FLOAT, list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
):
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), first)
Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_integer)
Loader.add_constructor("tag:yaml.org,2002:float", Loader.construct_number)


def parse(text, source):
    """Return the value of the YAML `text` (str or bytes). `source` names it in error messages."""
    loader = Loader(text)
    loader.name = source
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
        raise ConfigError(f"{source} is not valid YAML{line}: {what}") from error
    finally:
        loader.dispose()


def as_tuple(value):
    """Convert a list or a command-line string (`20,40`, `20` or `cpu,cpu`) to a tuple."""
    if isinstance(value, list | tuple):
        return tuple(value)
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")]
        return tuple(int(part) if re.fullmatch(r"[-+]?[0-9]+", part) else part for part in parts)
    return value if value is None else (value,)


def as_layers(value):
    """Like as_tuple, but `none` gives the empty tuple."""
    return () if value == "none" else as_tuple(value)


def as_rates(value):
    """Return a mapping unchanged; parse a command-line string such as `fc8:10,conv1:0.1`."""
    if not isinstance(value, str):
        return value
    pairs = [[word.strip() for word in part.split(":")] for part in value.split(",")]
    if not all(len(pair) == 2 and re.fullmatch(FLOAT, pair[1]) for pair in pairs):
        raise ValueError("be layers and factors, as fc8:10,conv1:0.1")
    rates = {name: float(rate) for name, rate in pairs}
    if len(rates) < len(pairs):
        raise ValueError("name each layer once")
    return rates


def as_resume(value):
    return {True: "latest", False: None}[value] if isinstance(value, bool) else value


def plain_name(value):
    if set("/\\\0") & set(value) or value.startswith("."):
        raise ValueError("be a folder's plain name (no slash, no dot first)")
    return value


def listing(kind):
    return Annotated[tuple[kind, ...], BeforeValidator(as_tuple)]


def device_name(value):
    if not re.fullmatch(r"auto|cpu|cuda[0-9]+", value):
        raise ValueError("be auto, cpu, or cuda and a number, as cuda0")
    return value


Text = Annotated[str, Field(min_length=1)]
DeviceName = Annotated[str, AfterValidator(device_name)]
Count = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Amount = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Epsilon = Annotated[float, Field(ge=1e-30, allow_inf_nan=False)]        # much smaller values underflow in float32


class Config(BaseModel):
    """The settings of one run, documented in config.yaml. Frozen, and picklable for the run's processes."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    data: Text | None
    output: Text
    run_name: Annotated[Text, AfterValidator(plain_name)] | None
    model: Text
    classes: Annotated[int, Field(ge=2)] | None
    resume_train: Annotated[Text | None, BeforeValidator(as_resume)]

    weights: Text | None
    new_layers: Annotated[tuple[Text, ...], BeforeValidator(as_layers)]
    layer_rates: Annotated[dict[Text, Amount], BeforeValidator(as_rates)]
    frozen_layers: Annotated[tuple[Text, ...], BeforeValidator(as_layers)]

    devices: Annotated[listing(DeviceName), Field(min_length=1)]
    rank: Annotated[int, Field(ge=0)] | None
    size: Count | None
    device: DeviceName | None
    backend: Literal["auto", "cpu", "jax", "numpy"]
    precision: Literal["float32", "tf32", "bfloat16"]
    threads: Count | None
    isa: Literal["auto", "avx512", "avx2", "neon", "portable"]

    batch_size: Count
    n_epochs: Count
    n_iterations: Count | None

    learning_rate: Amount
    lr_policy: Literal["step", "auto", "poly", "constant"]
    lr_step: listing(Count)
    lr_factor: Annotated[float, Field(gt=0, le=1)]
    lr_adapt_threshold: Share
    lr_power: Amount
    lr_scaling: Literal["none", "linear"]
    warmup_epochs: Annotated[int, Field(ge=0)]
    update: Literal["auto", "sgd", "momentum", "nesterov", "adagrad", "adadelta"]
    use_momentum: bool
    momentum: Share
    use_nesterov_momentum: bool
    adagrad_epsilon: Epsilon
    adadelta_rho: Share
    adadelta_epsilon: Epsilon
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    dropout_rate: Share

    use_data_layer: bool
    rand_crop: bool
    batch_crop_mirror: bool
    shuffle: bool

    para_load: bool
    slots: Annotated[int, Field(ge=2)]

    rule: Text
    sync: Literal["avg", "cdd"]
    exchange: Text
    exchange_what: Literal["auto", "weights_and_momentum", "weights", "gradients"]
    error_feedback: bool
    average_every: Count
    easgd_tau: Count
    easgd_alpha: Annotated[float, Field(ge=0, le=1)]
    gosgd_p: Annotated[float, Field(ge=0, le=1)]
    n_sync: Count
    n_fetch: Count | None
    n_push: Count | None
    server_scale: Amount | None
    server_update: Literal["plain", "adagrad", "adadelta"]
    staleness_power: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    heartbeat_timeout: Amount

    random_seed: Annotated[int, Field(ge=0, lt=2**32)]

    validation: bool
    print_freq: Count
    snapshot_freq: Count
    snapshot_iterations: Count | None
    keep_snapshots: Count | None

    @model_validator(mode="after")
    def check_together(self):
        """Refuse settings that are valid individually but contradict each other."""
        if any(later <= earlier for earlier, later in zip(self.lr_step, self.lr_step[1:], strict=False)):
            raise ValueError(f"lr_step must be rising epochs, got {list(self.lr_step)}")
        if self.warmup_epochs >= self.n_epochs:
            raise ValueError(
                f"warmup_epochs must be less than n_epochs = {self.n_epochs}, got {self.warmup_epochs}"
            )
        if "auto" in self.new_layers and len(self.new_layers) > 1:
            raise ValueError(f"new_layers must be only auto, or name the layers, got {list(self.new_layers)}")
        if both := {*self.layer_rates, *self.new_layers} & {*self.frozen_layers}:
            raise ValueError(
                f"{min(both)} is one of frozen_layers, so it has no learning rate and begins with no new weights: "
                "take it from layer_rates, new_layers or frozen_layers"
            )
        if not (self.weights or self.resume_train) and (self.frozen_layers or self.new_layers != ("auto",)):
            raise ValueError("frozen_layers and new_layers are about trained weights, so they need weights=, got null")
        if "auto" in self.devices and len(self.devices) > 1:
            raise ValueError(f"devices must be only auto, or name each worker's device, got {list(self.devices)}")
        given = {name: value for name in ("rank", "size", "device") if (value := getattr(self, name)) is not None}
        if given and len(given) < 3:
            told = ", ".join(f"{name}={value}" for name, value in given.items())
            raise ValueError(f"a worker started by hand needs rank, size and device together, got only {told}")
        if given and self.rank >= self.size:
            raise ValueError(f"rank must be 0 to {self.size - 1} for size={self.size}, got {self.rank}")
        if self.device == "auto":
            raise ValueError("device must be cpu, or cuda and a number, for a worker started by hand, got auto")
        if self.sync == "cdd" and self.exchange_what not in ("auto", "gradients"):
            raise ValueError(
                f"exchange_what must be auto or gradients with sync=cdd, which adds updates, got {self.exchange_what}"
            )
        if self.adapts and self.sync == "cdd":
            raise ValueError(
                f"sync must be avg with update={self.update}, whose updates by the parts of a batch do not add up to "
                f"that by the whole, got cdd"
            )
        if self.adapts and self.exchange_what not in ("auto", "gradients"):
            raise ValueError(
                f"exchange_what must be auto or gradients with update={self.update}, because the mean of the workers' "
                f"accumulators is not that of one worker, got {self.exchange_what}"
            )
        if (self.exchange_what == "gradients" or self.sync == "cdd" or self.adapts) and self.average_every > 1:
            raise ValueError(
                f"average_every must be 1 when gradients are exchanged, because each is used only in its step, "
                f"got {self.average_every}"
            )
        if self.lr_scaling == "linear" and (self.rule != "bsp" or self.sync == "cdd"):
            way = "sync=cdd" if self.rule == "bsp" else f"rule={self.rule}"
            raise ValueError(f"lr_scaling must be none with {way}, which does not average a step's updates, got linear")
        if self.server_update != "plain" and self.server_scale is None:
            raise ValueError(
                f"server_scale must be given with server_update={self.server_update}, whose steps it is the rate of: "
                "0.01, say"
            )
        if self.lr_policy == "auto" and self.rule != "bsp":
            raise ValueError(f"lr_policy must not be auto with rule={self.rule}, whose workers wait for no validation")
        if self.use_nesterov_momentum and not self.use_momentum:
            raise ValueError("use_nesterov_momentum is true but use_momentum is false: set both or neither")
        switched = "nesterov" if self.use_nesterov_momentum else "auto" if self.use_momentum else "sgd"
        if "auto" not in (self.update, switched) and self.update != switched:
            switch = "use_momentum=false" if switched == "sgd" else "use_nesterov_momentum=true"
            raise ValueError(f"update is {self.update}, but {switch} means {switched}: set one of the two")
        if self.lr_policy == "auto" and not self.validation:
            raise ValueError("lr_policy auto follows the validation error, so validation must be true, got false")
        return self

    @property
    def adapts(self):
        """Whether the update rule is not linear in the gradients, so that rule bsp must exchange gradients."""
        return self.update in ("adagrad", "adadelta")


def load_config(arguments, path=None):
    """Return the Config of the command line `arguments` (without the program's name).

    Later layers override earlier ones: config.yaml, its first_run section if data is null, the settings file (`path` or
    --config FILE), key=value arguments. --help prints every setting and raises SystemExit(0).

    Raises:
        ConfigError: a setting is unknown, repeated, of the wrong type or contradicts another.
    """
    if {"--help", "-h"} & set(arguments):
        print(USAGE + DEFAULTS.read_text(encoding="utf-8"))
        raise SystemExit(0)
    pairs, path = split_arguments(arguments, path)
    defaults = read_settings(DEFAULTS)
    first_run = defaults.pop("first_run")
    given = [(f"{path}: ", read_settings(path))] if path else []
    given.append(("", read_pairs(pairs)))
    data = [values["data"] for _, values in given if "data" in values]
    layers = [("", defaults), *([] if data and data[-1] else [("", first_run)]), *given]
    return settle(layers)


def split_arguments(arguments, path):
    """Separate key=value arguments from --config FILE. Returns (pairs of text, path or None)."""
    pairs, rest = [], iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name == "--config":
            if not (value := value or next(rest, "")):
                raise ConfigError("--config needs a file, got none")
            if path:
                raise ConfigError(f"--config is given twice, {path} and {value}: one settings file would be right")
            path = Path(value)
        elif not equals or name.startswith("-"):
            hint = f", perhaps {name.lstrip('-')}={value or '...'}" if name.lstrip("-") in Config.model_fields else ""
            raise ConfigError(f"an argument must be key=value{hint}, got {argument!r}")
        else:
            pairs.append((name, value))
    return pairs, path


def read_settings(path):
    """Return the settings in the YAML file `path` as a mapping."""
    try:
        settings = parse(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(f"the settings file {path} cannot be read: {error.strerror}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} must hold lines of `key: value`, got {settings!r}")
    allowed = {*Config.model_fields, "first_run"} if path == DEFAULTS else Config.model_fields
    for key in settings:
        check_known(key, allowed, f"{path}: there is no setting", ALL_SETTINGS)
    return settings


def read_pairs(pairs):
    """Parse the (key, text) pairs of the command line. Returns a mapping of settings."""
    settings = {}
    for key, text in pairs:
        check_known(key, Config.model_fields, "there is no setting", ALL_SETTINGS)
        if key in settings:
            raise ConfigError(f"{key} is given twice, the second time as {text!r}: once would be right")
        if not text:
            raise ConfigError(f"{key}= has no value, {key}=null would say none")
        # paths and names are not parsed as YAML: a folder may be called 42 or [old]
        as_it_stands = key in PLAIN_TEXT and text not in ("null", "true", "false")
        settings[key] = text if as_it_stands else parse(text, f"{key}={text}")
    return settings


def check_known(name, known, problem, otherwise=None):
    """Raise ConfigError unless `name` is in `known`.

    Args:
        problem: start of the message, for example "model: there is no network".
        otherwise: end of the message if no known name is similar; None lists all known names.
    """
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        hint = f"did you mean {close[0]}?" if close else otherwise or f"there are {', '.join(known)}"
        raise ConfigError(f"{problem} {name!r}; {hint}")


def settle(layers):
    """Merge layers [(source, settings)] into a Config; later layers override earlier ones.

    An error message names the source of the refused value.
    """
    values, sources = {}, {}
    for source, settings in layers:
        values |= settings
        sources |= dict.fromkeys(settings, source)
    try:
        return Config(**values)
    except ValidationError as error:
        raise ConfigError(sentence(error.errors()[0], values, sources)) from None


def sentence(error, values, sources):
    """Format a pydantic error as one sentence with the value and a valid alternative."""
    if not error["loc"]:
        return str(error["ctx"]["error"])
    key = error["loc"][0]
    if error["type"] == "missing":
        return f"{DEFAULTS} has no default of {key}"
    wanted = re.sub(r"^(Value error, |\w+ should )| after validation.*", "", error["msg"])
    for theirs, ours in WORDS.items():
        wanted = wanted.replace(theirs, ours)
    nullable = type(None) in getattr(Config.model_fields[key].annotation, "__args__", ())
    return f"{sources[key]}{key} must {wanted}{' or null' if nullable else ''}, got {shown(values[key])}"


def shown(value):
    return f"the text {value!r}" if isinstance(value, str) else as_yaml(value)


def as_yaml(value):
    """Return `value` as one line of YAML, formatted as in config.yaml."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def dump(config):
    """Return all settings as the text of a YAML file that --config accepts."""
    return "".join(f"{key}: {as_yaml(value)}\n" for key, value in config.model_dump(mode="json").items())
