"""Protocol buffers: create message classes from a .proto text, and parse files with error reporting.

Source: protobuf.dev/programming-guides/encoding.
"""

import re

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from alexnet.pretrained.weights import WeightsError

LARGEST = 2**31 - 1                     # maximum size of a message in bytes, defined by the format
LONGEST_NAME = 60
MESSAGE = re.compile(r"message (\w+) \{(.*?)\}", re.DOTALL)
FIELD = re.compile(r"(optional|repeated) (\w+) (\w+) = (\d+)(?: \[default = (\S+)\])?;")


def messages(text):
    """Return name -> class of each message in a text with the syntax of a .proto file.

    Parsing ignores fields that the text omits. Enums are declared as int32, which has the same wire format.
    """
    file = descriptor_pb2.FileDescriptorProto(name="messages.proto", syntax="proto2")
    for name, body in MESSAGE.findall(text):
        message = file.message_type.add(name=name)
        for label, kind, field, number, default in FIELD.findall(body):
            added = message.field.add(name=field, number=int(number), label=value_of("LABEL", label))
            if default:
                added.default_value = default
            if hasattr(descriptor_pb2.FieldDescriptorProto, f"TYPE_{kind.upper()}"):
                added.type = value_of("TYPE", kind)
            else:
                added.type, added.type_name = value_of("TYPE", "message"), kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = (pool.FindMessageTypeByName(message.name) for message in file.message_type)
    return {descriptor.name: message_factory.GetMessageClass(descriptor) for descriptor in found}


def value_of(enum, name):
    return getattr(descriptor_pb2.FieldDescriptorProto, f"{enum}_{name.upper()}")


def parsed(message, data, path, kind):
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


def printable(value):
    """Format a name from an untrusted file for an error message: one line of printable characters, limited length."""
    name = value.decode(errors="replace") if isinstance(value, bytes) else value
    return "".join(letter if letter.isprintable() else "?" for letter in name[:LONGEST_NAME])


def contents(path):
    """Read a file that contains one message; raises WeightsError."""
    try:
        size = path.stat().st_size
        if not 0 < size <= LARGEST:
            raise WeightsError(f"{path} has {size} bytes; such files have from 1 to {LARGEST}")
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
