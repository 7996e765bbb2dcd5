"""Files of torch.save, made without PyTorch: the opcodes of their pickles by hand, in the zip format and the older one.

Source: Python's pickletools; torch/serialization.py.
"""

import struct
import zipfile

import numpy as np

MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
VERSION = b"\x80\x02M\xe9\x03."
MACHINE = b"\x80\x02}X\x0d\0\0\0little_endian\x88s."
STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage"}


def text(value):
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value):
    encoded = value.to_bytes(9, "little", signed=True)
    return b"\x8a\x09" + encoded


def tuple_of(*values):
    return b"(" + b"".join(values) + b"t"


def name_of(module, name):
    return f"c{module}\n{name}\n".encode()


ORDERED_DICT = name_of("collections", "OrderedDict") + b")R"


def dict_of(items, start=ORDERED_DICT):
    """Return the opcodes of a dictionary: key -> opcodes of the value."""
    return start + b"(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def tensor(key, array, size=None, offset=0, shape=None, strides=None):
    """Return the opcodes of a tensor whose values are storage `key`."""
    shape = array.shape if shape is None else shape
    strides = [stride // array.itemsize for stride in array.strides] if strides is None else strides
    size = array.size if size is None else size
    kind = name_of("torch", STORAGES[array.dtype.name])
    storage = tuple_of(text("storage"), kind, text(key), text("cpu"), number(size))
    arguments = tuple_of(
        storage + b"Q", number(offset), tuple_of(*map(number, shape)), tuple_of(*map(number, strides)), b"\x89",
        ORDERED_DICT,
    )
    return name_of("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def pickled(opcodes):
    return b"\x80\x02" + opcodes + b"."


def state_pickle(arrays):
    """Return the pickle of a state dict, with _metadata as its attribute, as torch.save writes it."""
    tensors = {name: tensor(str(key), array) for key, (name, array) in enumerate(arrays.items())}
    state = dict_of({"_metadata": dict_of({"": dict_of({"version": number(1)}, b"}")})}, b"}") + b"b"
    return pickled(dict_of(tensors) + state)


def save_zip(path, arrays, pickle=None, compression=zipfile.ZIP_STORED, extra=()):
    """Write a file in the zip format; `pickle` replaces its pickle."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("net/data.pkl", state_pickle(arrays) if pickle is None else pickle)
        archive.writestr("net/byteorder", "little")
        for key, array in enumerate(arrays.values()):
            archive.writestr(f"net/data/{key}", array.tobytes())
        archive.writestr("net/version", "3\n")
        for name in extra:
            archive.writestr(f"net/{name}", "")
    return path


def save_old(path, arrays, pickle=None, machine=MACHINE):
    """Write a file in the older format; `pickle` replaces its pickle."""
    keys = pickled(b"](" + b"".join(text(str(key)) for key in range(len(arrays))) + b"e")
    values = b"".join(struct.pack("<q", array.size) + array.tobytes() for array in arrays.values())
    path.write_bytes(MAGIC + VERSION + machine + (state_pickle(arrays) if pickle is None else pickle) + keys + values)
    return path


def named_shapes(shapes):
    """Return the pickle of a state dict of these shapes, whose values the file lacks."""
    made = {name: tensor("0", np.empty(0, "float32"), 1 << 40, shape=shape, strides=[0] * len(shape))
            for name, shape in shapes.items()}
    return pickled(dict_of(made))
