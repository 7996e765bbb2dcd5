"""Protocol buffers: message classes from a table of fields, and parsing of files with error reporting.

Source: protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Mapping
from pathlib import Path

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from alexnet.pretrained.weights import WeightsError

LARGEST = 2**31 - 1                     # maximum size of a message in bytes, defined by the format
LONGEST_NAME = 60


def message_classes(table: Mapping[str, Mapping[str, str]]) -> dict[str, type[Message]]:
    """Return name -> class of each message in a table. Parsing ignores fields that the table omits.

    Args:
        table: name of the message -> name of the field -> its number, label, type and perhaps its default value, such
            as "7 repeated uint32" or "5 optional uint32 1".
    """
    field_types = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="messages.proto", syntax="proto2")
    for name, fields in table.items():
        message = file.message_type.add(name=name)
        for field, declaration in fields.items():
            number, label, kind, *default = declaration.split()
            added = message.field.add(name=field, number=int(number), default_value=default[0] if default else None)
            added.label = field_types.Label.Value(f"LABEL_{label.upper()}")
            if kind in table:
                added.type = field_types.TYPE_MESSAGE
                added.type_name = kind
            else:
                added.type = field_types.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in table}


def parsed(message: Message, data: bytes, path: str | Path, kind: str) -> Message:
    """Parse the content of a file into `message` and return it.

    Args:
        kind: expected type of the file, for the error message.

    Raises:
        WeightsError: the content is not such a message.
    """
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise WeightsError(f"{path} is damaged, or no {kind}: its messages do not end where they should") from error
    return message


def printable(value: str | bytes) -> str:
    """Format a name from an untrusted file for an error message: one line of printable characters, limited length."""
    name = value.decode(errors="replace") if isinstance(value, bytes) else value
    return "".join(letter if letter.isprintable() else "?" for letter in name[:LONGEST_NAME])


def contents(path: Path) -> bytes:
    """Read a file that contains one message; raises WeightsError."""
    try:
        size = path.stat().st_size
        if not 0 < size <= LARGEST:
            raise WeightsError(f"{path} has {size} bytes; such files have from 1 to {LARGEST}")
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
