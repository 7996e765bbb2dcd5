"""Messages between processes as JSON text. Decoding checks everything and runs no code of the sender.

A message is a NamedTuple or a dataclass. Its text is an array of the name of its class and its fields in their order:

    Ready(7, 2.5, 0.75, False)      ["Ready",7,2.5,0.75,false]

`Decoder(kinds)` is a function from bytes to a message: it returns an instance of one of these classes, or raises
MessageError. It compares the name, the number of fields, and the type of each field with the annotations of the class.
A pickle could call any function, so messages from another machine, or over a socket, are never pickled.

    annotation                              JSON
    bool, int of 64 bits, str, None         the same
    float                                   a number; NaN, Infinity and -Infinity are numbers
    bytes, Path                             text: hexadecimal digits, the path
    list[X], tuple[X, ...], frozenset[X]    an array
    tuple[X, Y], NamedTuple, dataclass      an array with one element for each field
    dict[str, X]                            an object
    X | Y                                   the first of the two that fits
    Any                                     any of these values of JSON, unchanged
"""

import dataclasses
import json
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

M = TypeVar("M")

Check = Callable[[Any], Any]                     # JSON value -> value of a field; raises MessageError

MAX_MESSAGE = 1 << 16                            # bytes of a message that announces nothing larger
FIRST, LAST = -(1 << 63), (1 << 64) - 1          # of the integers of 64 bits, with or without a sign
SHOWN = 40                                       # characters of a value in an error message


class MessageError(ValueError):
    """The bytes are not a message of the protocol. The error is one sentence."""


class UnknownMessage(MessageError):
    """The bytes are a message of another class than expected.

    Attributes:
        name: of the class.
        step: its first field if that is an integer, as in all messages between workers; else None.
    """

    def __init__(self, text: str, name: str, step: int | None):
        super().__init__(text)
        self.name = name
        self.step = step

    @property
    def sent(self) -> str:
        """What was sent, as "Done of step 3"."""
        return self.name if self.step is None else f"{self.name} of step {self.step}"


def encode(message: object, limit: int = MAX_MESSAGE) -> bytes:
    """Return the text of a message, a NamedTuple or a dataclass.

    Raises:
        ValueError: it has more than `limit` bytes.
        TypeError: a field has a value that JSON cannot represent.
    """
    data = ENCODER.encode([type(message).__name__, *fields_of(message)]).encode()
    if len(data) > limit:
        raise ValueError(
            f"a message has at most {limit} bytes, got {type(message).__name__} with {len(data)}; an exchange strategy "
            "moves arrays"
        )
    return data


def fields_of(message: Any) -> Iterable[Any]:
    """Return the values of the fields of a message."""
    return message if isinstance(message, tuple) else vars(message).values()


def as_json(value: Any) -> Any:
    """Return a value that JSON lacks as one that it has; raises TypeError for values that no message contains."""
    match value:
        case bytes():
            return value.hex()
        case Path():
            return str(value)
        case frozenset():
            return sorted(value)
    if hasattr(value, "dtype") and getattr(value, "shape", None) == ():      # a NumPy scalar
        return value.item()
    if dataclasses.is_dataclass(value):
        return list(fields_of(value))
    raise TypeError(f"a message cannot contain a {type(value).__name__}: {shown(value)}")


ENCODER = json.JSONEncoder(separators=(",", ":"), default=as_json, check_circular=False)
PARSER = json.JSONDecoder()


class Decoder(Generic[M]):
    """Decodes messages of these classes, and no others.

    Args:
        kinds: the classes.
        limit: largest number of bytes of a message.
        fields: {class: {name of a field: type}} instead of annotations.

    Attributes:
        awaited: the names of the classes, for error messages.
    """

    def __init__(
        self, kinds: Sequence[type[M]], limit: int = MAX_MESSAGE,
        fields: Mapping[type, Mapping[str, Any]] | None = None,
    ) -> None:
        self.limit = limit
        self.awaited = " or ".join(kind.__name__ for kind in kinds)
        self._kinds = {kind.__name__: record_check(kind, (fields or {}).get(kind, {})) for kind in kinds}

    def __call__(self, data: bytes | bytearray) -> M:
        """Return the message; raises MessageError. It depends on nothing but the bytes."""
        if len(data) > self.limit:
            raise MessageError(f"a message has at most {self.limit} bytes, got {len(data)}")
        try:
            text = data.decode()
            content, end = PARSER.raw_decode(text)
        except (ValueError, RecursionError) as error:
            raise MessageError(f"a message must be JSON in UTF-8, got {shown(bytes(data[:SHOWN]))}") from error
        if type(content) is not list or not content or type(content[0]) is not str or end != len(text):
            raise MessageError(f"a message must be one array that begins with a name, got {shown(text[:SHOWN])}")
        name, *values = content
        if name not in self._kinds:
            step = values[0] if values and type(values[0]) is int and FIRST <= values[0] <= LAST else None
            raise UnknownMessage(f"a message must be {self.awaited}, got {shown(name)}", name[:SHOWN], step)
        message: M = self._kinds[name](values)
        return message


@cache
def decoder(kind: type[M], limit: int = MAX_MESSAGE) -> Decoder[M]:
    """Return the Decoder of one class."""
    return Decoder([kind], limit)


def record_check(kind: type, given: Mapping[str, Any]) -> Check:
    """Return the check of a NamedTuple or dataclass. Raises TypeError if an annotation is none of those listed.

    Args:
        given: types of fields instead of their annotations.
    """
    hints = {**get_type_hints(kind), **given}
    names = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else [*hints]
    checks = [value_check(hints[name]) for name in names]
    plain = [hints[name] for name in names]
    integers = [n for n, each in enumerate(plain) if each is int]

    def check(values: Any) -> Any:
        if type(values) is not list or len(values) != len(checks):
            raise MessageError(f"{kind.__name__} must be an array of {', '.join(names) or 'no fields'}, got "
                               f"{shown(values)}")
        if [*map(type, values)] == plain and all(FIRST <= values[n] <= LAST for n in integers):
            return kind(*values)                 # numbers and text only: the usual case in a step
        checked: list[Any] = []
        try:
            for each, value in zip(checks, values, strict=True):
                checked.append(each(value))
        except MessageError as error:
            raise MessageError(f"{names[len(checked)]} of {kind.__name__}: {error}") from None
        return kind(*checked)

    return check


def value_check(kind: Any) -> Check:
    """Return the check of a field with this annotation."""
    if kind in SCALARS:
        return SCALARS[kind]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (types.UnionType, Union):
        kinds = [value_check(each) for each in arguments if each is not type(None)]
        return union_check(kinds, nullable=len(kinds) < len(arguments))
    if origin is dict and arguments[0] is str:
        return dict_check(value_check(arguments[1]))
    if origin is tuple and arguments[-1:] != (...,):
        return tuple_check([value_check(each) for each in arguments])
    if origin in (list, tuple, frozenset):
        return array_check(origin, value_check(arguments[0]))
    if isinstance(kind, type) and (hasattr(kind, "_fields") or dataclasses.is_dataclass(kind)):
        return record_check(kind, {})
    raise TypeError(f"a message cannot have a field of type {kind}; multigpu.messages lists the types")


def scalar_check(kind: type, name: str) -> Check:
    """Return the check of values of one type of JSON; `name` describes it in error messages."""
    def check(value: Any) -> Any:
        if type(value) is kind:
            return value
        raise MessageError(f"it must be {name}, got {shown(value)}")

    return check


def int_check(value: Any) -> int:
    """Return an integer of 64 bits."""
    if type(value) is int and FIRST <= value <= LAST:
        return value
    raise MessageError(f"it must be an integer of 64 bits, got {shown(value)}")


def float_check(value: Any) -> float:
    """Return a number as a float."""
    if type(value) is float:
        return value
    if type(value) is int and FIRST <= value <= LAST:
        return float(value)
    raise MessageError(f"it must be a number, got {shown(value)}")


def bytes_check(value: Any) -> bytes:
    """Return bytes from hexadecimal digits."""
    try:
        return bytes.fromhex(value)
    except (TypeError, ValueError):
        raise MessageError(f"it must be hexadecimal digits, got {shown(value)}") from None


def path_check(value: Any) -> Path:
    """Return a path from text."""
    if type(value) is str and "\0" not in value:
        return Path(value)
    raise MessageError(f"it must be a path, got {shown(value)}")


def union_check(checks: list[Check], nullable: bool) -> Check:
    """Return the check of a value that one of these checks accepts, or that is null if `nullable`."""
    def check(value: Any) -> Any:
        if value is None and nullable:
            return None
        for each in checks[:-1]:
            try:
                return each(value)
            except MessageError:
                continue
        return checks[-1](value)

    return check


def dict_check(item: Check) -> Check:
    """Return the check of an object whose values are checked by `item`."""
    def check(value: Any) -> Any:
        if type(value) is not dict:
            raise MessageError(f"it must be an object, got {shown(value)}")
        return {name: item(each) for name, each in value.items()}

    return check


def tuple_check(items: list[Check]) -> Check:
    """Return the check of an array with an element for each of `items`."""
    def check(value: Any) -> Any:
        if type(value) is not list or len(value) != len(items):
            raise MessageError(f"it must be an array of {len(items)} elements, got {shown(value)}")
        return tuple(item(each) for item, each in zip(items, value, strict=True))

    return check


def array_check(kind: Callable[[list[Any]], Any], item: Check) -> Check:
    """Return the check of an array whose elements are checked by `item`."""
    def check(value: Any) -> Any:
        if type(value) is not list:
            raise MessageError(f"it must be an array, got {shown(value)}")
        return kind([item(each) for each in value])

    return check


def shown(value: object) -> str:
    """Return the beginning of a value's representation, on one line."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


SCALARS: dict[Any, Check] = {
    bool: scalar_check(bool, "true or false"),
    int: int_check,
    float: float_check,
    str: scalar_check(str, "text"),
    bytes: bytes_check,
    Path: path_check,
    Any: lambda value: value,
    type(None): scalar_check(type(None), "null"),
}
