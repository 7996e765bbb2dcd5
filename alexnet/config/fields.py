"""Types of settings, and the conversion of text from the command line to them."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from alexnet.config.yaml_text import FLOAT


def as_tuple(value: Any) -> Any:
    """Convert a list or a command-line string (`20,40`, `20` or `cpu,cpu`) to a tuple."""
    if isinstance(value, list | tuple):
        return tuple(value)
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")]
        return tuple(int(part) if re.fullmatch(r"[-+]?[0-9]+", part) else part for part in parts)
    return value if value is None else (value,)


def as_devices(value: Any) -> Any:
    """Like as_tuple, but numbers remain text: the message about devices=1 suggests cuda1."""
    values = as_tuple(value)
    return tuple(str(each) if type(each) is int else each for each in values) if values else values


def as_layers(value: Any) -> Any:
    """Like as_tuple, but `none` gives the empty tuple."""
    return () if value == "none" else as_tuple(value)


def as_rates(value: Any) -> Any:
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


def as_resume(value: Any) -> Any:
    """Convert resume_train=true and false to `latest` and None."""
    return {True: "latest", False: None}[value] if isinstance(value, bool) else value


def check_plain_name(value: str) -> str:
    """Raise ValueError unless `value` is the name of a folder without a path."""
    if set("/\\\0") & set(value) or value.startswith("."):
        raise ValueError("be a folder's plain name (no slash, no dot first)")
    return value


def check_device_name(value: str) -> str:
    """Raise ValueError unless `value` names a device."""
    if not re.fullmatch(r"auto|cpu|cuda[0-9]+", value):
        from alexnet.config.synonyms import similar_device  # only an error needs it

        similar = similar_device(value)
        raise ValueError(f"be auto, cpu, or cuda and a number, as {similar or 'cuda0'}")
    return value


Text = Annotated[str, Field(min_length=1)]
FolderName = Annotated[Text, AfterValidator(check_plain_name)]
DeviceName = Annotated[str, AfterValidator(check_device_name)]
Count = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Epsilon = Annotated[float, Field(ge=1e-30, allow_inf_nan=False)]        # much smaller values underflow in float32
Counts = Annotated[tuple[Count, ...], BeforeValidator(as_tuple)]
DeviceNames = Annotated[tuple[DeviceName, ...], BeforeValidator(as_devices), Field(min_length=1)]
LayerNames = Annotated[tuple[Text, ...], BeforeValidator(as_layers)]
LayerRates = Annotated[dict[Text, Amount], BeforeValidator(as_rates)]
Resume = Annotated[Text | None, BeforeValidator(as_resume)]
