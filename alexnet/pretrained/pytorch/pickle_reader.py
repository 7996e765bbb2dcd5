"""Interpret the pickle of a state dict without Python's unpickler: nothing is imported, called or constructed.

A state dict is dictionaries, lists, tuples, numbers and strings, and three kinds of objects: an OrderedDict, a storage
(a persistent ID) and a tensor (a call of torch._utils._rebuild_tensor_v2 with a storage). The interpreter handles the
opcodes for these. A pickle names functions and classes; here a name is only compared with a table. Any other name or
opcode ends the reading.

Source: Python's pickletools, which lists and decodes the opcodes; torch/serialization.py; torch/_utils.py.
"""

import io
import struct
from collections.abc import Callable, Mapping
from pickletools import genops
from typing import Any, NamedTuple, TypeAlias

from alexnet.pretrained.weights import WeightsError

MOST_AXES = 64                          # of a tensor, as in PyTorch
MAX_BYTES = 1 << 22                     # of a pickle without the tensors' values: 200 times that of VGG-16
STORAGES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool",
}
PARAMETER = ("torch.nn.parameter", "Parameter")
WHOLE_MODELS = ("torchvision", "torch.nn", "__main__", "__torch__", "timm")
IGNORED = ("PROTO", "FRAME")
CONSTANTS: Mapping[str, Callable[[], object]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_DICT": dict, "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
LITERALS = (
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING",
    "BINSTRING",
)


class GlobalName(NamedTuple):
    """A function or class that the pickle names. It is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:100]


class Storage(NamedTuple):
    """The values of one or several tensors, stored elsewhere in the file."""

    key: str
    dtype: str
    size: int                           # number of values


class PickledTensor(NamedTuple):
    """A tensor as the pickle describes it: a window of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]            # in values


Arguments: TypeAlias = tuple[Any, ...]


class UnsafePickle(WeightsError):
    """The pickle contains something else than a state dict."""


def read_pickle(file: io.BytesIO) -> Any:
    """Return the object of the pickle at the position of `file`, which is then after it.

    Raises:
        UnsafePickle: the pickle names something else than tensors; nothing was run.
        ValueError: the pickle is malformed.
    """
    machine = Machine()
    try:
        for opcode, argument, _ in genops(file):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.do(opcode.name, argument)
    except UnsafePickle:
        raise
    except (LookupError, TypeError, AttributeError, OverflowError, struct.error) as error:
        raise ValueError(f"its pickle is malformed: {error}") from error
    raise ValueError("its pickle does not end")


class Machine:
    """The stack of a pickle, its marks and its memo.

    Source: PEP 3154; pickletools.
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []            # stacks below a mark
        self.memo: dict[int, Any] = {}

    def do(self, name: str, argument: Any) -> None:
        """Do one opcode; raises UnsafePickle for an opcode that a state dict does not need."""
        if name in LITERALS:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name]())
        elif name in IGNORED:
            return
        elif name in OPCODES:
            OPCODES[name](self, argument)
        else:
            raise UnsafePickle(f"has a pickle with the opcode {name}, which no state dict needs; nothing was run")

    def mark(self, _: object) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        """Pop the values since the last mark."""
        values, self.stack = self.stack, self.marked.pop()
        return values

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def memoize(self, _: object) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def tuple_of(self, length: int) -> None:
        """Replace the last values by a tuple of them."""
        if len(self.stack) < length:
            raise ValueError("its pickle makes a tuple of values that it lacks")
        self.stack[-length:] = [tuple(self.stack[-length:])]

    def marked_tuple(self, _: object) -> None:
        values = tuple(self.since_mark())
        self.stack.append(values)

    def append(self, _: object) -> None:
        value = self.stack.pop()
        as_list(self.stack[-1]).append(value)

    def appends(self, _: object) -> None:
        values = self.since_mark()
        as_list(self.stack[-1]).extend(values)

    def set_item(self, _: object) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        as_dict(self.stack[-1])[as_key(key)] = value

    def set_items(self, _: object) -> None:
        values = self.since_mark()
        as_dict(self.stack[-1]).update(pairs(values))

    def global_name(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(allowed(GlobalName(module, name)))

    def stack_global(self, _: object) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(allowed(GlobalName(as_text(module), as_text(name))))

    def reduce(self, _: object) -> None:
        """A call: of one of the functions that make dictionaries and tensors."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, GlobalName) or not isinstance(arguments, tuple):
            raise UnsafePickle("has a pickle that calls something else than a function; nothing was run")
        if function not in FUNCTIONS:
            raise UnsafePickle(f"has a pickle that calls {function}; nothing was run")
        self.stack.append(FUNCTIONS[function](arguments))

    def new_object(self, _: object) -> None:
        """A parameter, as PyTorch wrote it in 2017: Parameter.__new__(Parameter, tensor)."""
        arguments, name = self.stack.pop(), self.stack.pop()
        if not isinstance(name, GlobalName) or name != PARAMETER:
            what = name if isinstance(name, GlobalName) else "something else than a class"
            raise UnsafePickle(f"has a pickle that constructs {what}; nothing was run")
        self.stack.append(parameter(arguments))

    def build(self, _: object) -> None:
        """Set the attributes of an object. They are ignored: the versions of modules, and requires_grad."""
        state, target = self.stack.pop(), self.stack[-1]
        if not (type(state) is dict and type(target) is dict or isinstance(target, PickledTensor)):
            raise ValueError("its pickle sets the state of something else than a dictionary")

    def persistent_id(self, _: object) -> None:
        """A storage: ("storage", its class, its key, its device, number of values, None in old files)."""
        identity = self.stack.pop()
        if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
            raise ValueError("a persistent ID of its pickle is not that of a storage")
        _, kind, key, _, size, *view = identity
        if not isinstance(kind, GlobalName) or kind.name not in STORAGES or any(view):
            raise ValueError("a storage of its pickle is not one of numbers")
        self.stack.append(Storage(str(as_key(key)), STORAGES[kind.name], natural(size)))


OPCODES: Mapping[str, Callable[[Machine, Any], None]] = {
    "MARK": Machine.mark, "BINPUT": Machine.put, "LONG_BINPUT": Machine.put, "MEMOIZE": Machine.memoize,
    "BINGET": Machine.get, "LONG_BINGET": Machine.get, "TUPLE": Machine.marked_tuple,
    "TUPLE1": lambda machine, _: machine.tuple_of(1), "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3), "APPEND": Machine.append, "APPENDS": Machine.appends,
    "SETITEM": Machine.set_item, "SETITEMS": Machine.set_items, "GLOBAL": Machine.global_name,
    "STACK_GLOBAL": Machine.stack_global, "REDUCE": Machine.reduce, "BUILD": Machine.build,
    "BINPERSID": Machine.persistent_id, "NEWOBJ": Machine.new_object,
}


# ---- the functions that a state dict may name


def ordered_dict(arguments: Arguments) -> dict[str | int, Any]:
    """collections.OrderedDict(), or of a list of pairs, as Python 2 pickles it."""
    if not arguments:
        return {}
    (items,) = arguments
    made = {as_key(key): value for key, value in as_list(items)}
    items.clear()                       # a hostile pickle may call this with the same long list many times
    return made


def tensor(arguments: Arguments) -> PickledTensor:
    """torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)."""
    storage, offset, shape, strides, *_ = arguments
    if not isinstance(storage, Storage) or len(shape) != len(strides):
        raise ValueError("a tensor of its pickle has no storage, or another number of strides than of axes")
    if len(shape) > MOST_AXES:
        raise ValueError(f"a tensor of its pickle has {len(shape)} axes")
    return PickledTensor(storage, natural(offset), tuple(map(natural, shape)), tuple(map(natural, strides)))


def parameter(arguments: Arguments) -> PickledTensor:
    """torch._utils._rebuild_parameter(tensor, requires_grad, hooks)."""
    if not isinstance(arguments[0], PickledTensor):
        raise ValueError("a parameter of its pickle has no tensor")
    return arguments[0]


FUNCTIONS: Mapping[GlobalName, Callable[[Arguments], object]] = {
    GlobalName("collections", "OrderedDict"): ordered_dict,
    GlobalName("torch._utils", "_rebuild_tensor"): tensor,
    GlobalName("torch._utils", "_rebuild_tensor_v2"): tensor,
    GlobalName("torch._utils", "_rebuild_parameter"): parameter,
}


def allowed(name: GlobalName) -> GlobalName:
    """Return the name of a function or class that a state dict may name; raises UnsafePickle for any other."""
    if name in FUNCTIONS or name == PARAMETER or (name.module in ("torch", "torch.cuda") and name.name in STORAGES):
        return name
    if name.module.startswith(WHOLE_MODELS):
        raise UnsafePickle(
            f"holds a whole model (class {name}), which only its program can load: in that program, save "
            "model.state_dict() with torch.save or safetensors"
        )
    raise UnsafePickle(
        f"has a pickle that names {name}, which can run code; only tensors are read, and nothing was run; "
        "if it is a whole model, save model.state_dict() instead"
    )


# ---- checks of types


def as_list(value: Any) -> list[Any]:
    """Return a value that must be a list."""
    if type(value) is not list:
        raise ValueError("its pickle appends to something else than a list")
    return value


def as_dict(value: Any) -> dict[str | int, Any]:
    """Return a value that must be a dictionary."""
    if type(value) is not dict:
        raise ValueError("its pickle sets an item of something else than a dictionary")
    return value


def as_text(value: Any) -> str:
    """Return a value that must be a string; that of others may be exponentially longer than the pickle."""
    if not isinstance(value, str):
        raise ValueError("a name in its pickle is no text")
    return value


def as_key(value: Any) -> str | int:
    """Return a value that must be a string or an integer."""
    if not isinstance(value, str | int):
        raise ValueError("a key of a dictionary of its pickle is neither a text nor a number")
    return value


def pairs(values: list[Any]) -> dict[str | int, Any]:
    """Return alternating keys and values as a dictionary."""
    if len(values) % 2:
        raise ValueError("its pickle sets a key without a value")
    return {as_key(key): value for key, value in zip(values[::2], values[1::2], strict=True)}


def natural(value: Any) -> int:
    """Return a value that must be an integer of at least 0, and below 2**63."""
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError("a size of a tensor of its pickle is not a number of at least 0")
    return value
