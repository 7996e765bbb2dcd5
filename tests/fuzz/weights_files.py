"""Targets: files of weights in every format, checkpoints, and the mean image of Caffe.

The networks in the files have the layers of the real ones and a few hundred weights.
"""

import hashlib
import io
import json
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, helper, numpy_helper

from alexnet import pretrained
from alexnet.commands import _options
from alexnet.config import Config, ConfigError, load_config
from alexnet.data.batch_file import DataError
from alexnet.data.dataset import Dataset, Split
from alexnet.models import MODELS, Model
from alexnet.native.untrusted import checksum
from alexnet.nn import LRN, Conv, Dense, Dropout, Flatten
from alexnet.nn.containers import Auxiliary, Sequential
from alexnet.nn.fire import Fire
from alexnet.pretrained import caffe, pytorch
from alexnet.pretrained.detect import detect_format
from alexnet.pretrained.onnx import export
from alexnet.pretrained.pytorch.files import clean, tensors_of
from alexnet.pretrained.pytorch.pickle_reader import PickledTensor, read_pickle
from alexnet.pretrained.weights import Weights, WeightsError, shapes
from alexnet.run import checkpoint, checkpoint_format
from alexnet.run.checkpoint_format import CheckpointError
from alexnet.training.loop import Position
from tests import caffe_truth, pth_files
from tests.fuzz import mutation
from tests.fuzz.data_files import header_seeds, npy
from tests.fuzz.target import HOLE, Target

CLASSES = 3
TORCH_LAYERS = ("features.0", "classifier.1", "classifier.4")
MEAN_IMAGE = 3 * 256 * 256


# ---- small networks


class SmallNetwork(Model):
    """A chain of AlexNet's kinds of layers."""

    image_size = 32

    def table(self, rng, classes, dropout_rate):
        return (
            Conv(rng, 3, 2, size=4, stride=4, pool=(2, 2)), LRN(k=1.0, alpha=1e-4 / 5), Flatten(),
            Dense(rng, 32, 4), Dropout(dropout_rate), Dense(rng, 4, classes, relu=False),
        )


class SmallTorchNetwork(SmallNetwork):
    """Without normalisation."""

    def table(self, rng, classes, dropout_rate):
        return (
            Conv(rng, 3, 2, size=4, stride=4, pool=(2, 2)), Flatten(), Dense(rng, 32, 4),
            Dense(rng, 4, classes, relu=False),
        )


class SmallBranches(Model):
    """Branches and an auxiliary classifier, as in GoogLeNet."""

    image_size = 32

    def table(self, rng, classes, dropout_rate):
        names = ("side.conv", "side.flatten", "side.fc")
        tower = Sequential(Conv(rng, 2, 1, size=1), Flatten(), Dense(rng, 64, classes, relu=False), names=names)
        return (
            Conv(rng, 3, 2, size=4, stride=4), Auxiliary("side", tower, 0.3), Fire(rng, "fire2", 2, 1, 1), Flatten(),
            Dense(rng, 128, classes, relu=False),
        )


class SmallAlexNet(Model):
    """Layers and groups of theano_alexnet's network."""

    image_size = 227

    def table(self, rng, classes, dropout_rate):
        return (
            Conv(rng, 3, 2, size=2, stride=4), LRN(), Conv(rng, 2, 2, size=1, groups=2), LRN(),
            Conv(rng, 2, 2, size=1), Conv(rng, 2, 2, size=1, groups=2), Conv(rng, 2, 2, size=1, groups=2), Flatten(),
            Dense(rng, 2, 2), Dense(rng, 2, 2), Dense(rng, 2, classes, relu=False),
        )


class LongFire(Fire):
    """A Fire module that counts as eight."""

    depth = 8


class SmallSqueezeNet(Model):
    """The first and the last layers of SqueezeNet."""

    image_size = 227

    def table(self, rng, classes, dropout_rate):
        fire = LongFire(rng, "fire2", 2, 1, 1)
        return Conv(rng, 3, 2, size=3, stride=2), fire, Conv(rng, 2, classes, size=1), Flatten()


@contextmanager
def small_networks() -> Iterator[None]:
    """Add the small networks to those of the program, within a with block."""
    networks = {
        "small": SmallNetwork, "small_torch": SmallTorchNetwork, "small_branches": SmallBranches,
        "alexnet": SmallAlexNet, "squeezenet": SmallSqueezeNet,
    }
    layouts = {"a small network": ("small_torch", TORCH_LAYERS)}
    with ExitStack() as stack:
        len(MODELS)                              # imports all models
        stack.enter_context(patch.dict(MODELS._implementations, networks))
        stack.enter_context(patch.dict(pytorch.LAYOUTS, layouts))
        yield


def random_arrays(model: str) -> dict[str, np.ndarray]:
    """Return random weights of a small network."""
    with small_networks():
        rng = np.random.default_rng(0)
        return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes(model, CLASSES).items()}


def out_first(array: np.ndarray) -> np.ndarray:
    """Convert filters and dense weights from our layout to that of other programs."""
    return np.ascontiguousarray(np.moveaxis(array, -1, 0))


@cache
def temporary() -> Path:
    """Return a folder in which seeds are made."""
    folder = tempfile.TemporaryDirectory()
    KEPT.append(folder)
    return Path(folder.name)


KEPT: list = []


# ---- our formats


@cache
def small_arrays() -> dict[str, np.ndarray]:
    return random_arrays("small")


@cache
def of_a_run() -> tuple[Config, Dataset]:
    """Return settings and a data set to which a checkpoint is compared."""
    config = load_config(["data=batches", "model=small", "batch_size=4"])
    split = Split((), np.array([8]), np.zeros(8, np.int32))
    return config, Dataset(Path("batches"), split, split, np.zeros((3, 256, 256), np.float32), ("a", "b", "c"), CLASSES)


class SmallState:
    """A network with the arrays of the small one."""

    rule_state: tuple = ()

    def __init__(self) -> None:
        self.state = dict(small_arrays())

    def get_state(self) -> dict[str, np.ndarray]:
        return self.state

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        self.state = state


def outcome(function: Callable[[], object]) -> object:
    """Return the result of a function, or the message of its error."""
    try:
        return function()
    except (CheckpointError, ConfigError, WeightsError) as error:
        return str(error)


def read_checkpoint(path: Path) -> object:
    newest = outcome(lambda: checkpoint_format.latest(path.parent))
    listed = checkpoint_format.has_record(path), checkpoint_format.error_of(path), newest
    snapshot = checkpoint.load(path)
    config, data = of_a_run()
    compared = []
    for compare in (
        lambda: checkpoint.check_data(snapshot.metadata, data, path),
        lambda: checkpoint.changed_settings(snapshot.metadata, config),
        lambda: checkpoint.check_frozen(snapshot.metadata, config, path),
        lambda: checkpoint.check_update(snapshot.metadata, config, path),
        lambda: checkpoint.check_average(snapshot.metadata, config, path),
        lambda: checkpoint.check_order(snapshot.metadata, Position(1, 1, 5, ()), config, 1, path),
        lambda: checkpoint.restore(snapshot, SmallState(), config),
        lambda: snapshot.mean,
        lambda: load_config(["data=batches"], snapshot.metadata.get("config", {}), path).as_dict(),
    ):
        compared.append(outcome(compare))
    position = checkpoint.position_of(snapshot.metadata, path)
    return listed, snapshot.arrays, snapshot.metadata, snapshot.scale, position, compared


def read_native(path: Path) -> object:
    return pretrained.load(path), outcome(lambda: detect_format(path.parent))


def checkpoint_seeds() -> Iterator[bytes]:
    arrays = random_arrays("small")
    metadata = {
        "position": {"epoch": 1, "batch": 0, "iteration": 5, "errors": [0.5]}, "validation_error": 0.25,
        "model": "small", "config": {
            "model": "small", "frozen_layers": [], "batch_size": 4, "random_seed": 23455, "shuffle": True,
            "learning_rate": 0.02, "update": "auto", "ema_decay": 0.0,
        }, "workers": 1,
        "rule_state": [], "classes": CLASSES, "class_names": None, "resize": "squash", "scale": [1, 1, 1],
        "train_images": 8, "data_mean_crc32": "0" * 8, "versions": {"python": "3.12"},
    }
    yield b""
    few = dict(list(arrays.items())[:2])
    for values, extra in ((few, {}), (arrays, {}), ({}, {"model": "os:system"}), (few, {"class_names": ["a\n"] * 3})):
        path = temporary() / "checkpoint.safetensors"
        checkpoint_format.save(path, values, metadata | extra)
        yield path.read_bytes()
    for values, extra in (
        (arrays | {"other": arrays["fc3.b"]}, {}), (arrays, {"origin": 5}), (arrays, {"class_names": ["a"]}),
        (arrays | {"fc3.W": arrays["fc3.W"][1:]}, {}), (arrays | {"fc2.b": arrays["fc2.b"].astype(np.float64)}, {}),
        (few, {"config": metadata["config"] | {"model": "os:system"}}),
    ):
        checkpoint_format.save(path, values, metadata | extra)
        yield path.read_bytes()
    averages = {f"{name}.average": array for name, array in arrays.items()}
    checkpoint_format.save(path, arrays | averages, metadata | {"origin": "made up", "class_names": ["a", "b", "c"]})
    yield path.read_bytes()
    yield safetensors_of({"a": ("F32", [2, 1], bytes(8)), "b": ("BF16", [2], bytes(4))}, {})
    yield safetensors_of({"a\n": ("F8_E4M3", [2], bytes(2)), "b": ("I64", [0], b"")}, {"record": "[" * mutation.DEPTH})


def safetensors_of(tensors: dict[str, tuple[str, list[int], bytes]], metadata: dict[str, str]) -> bytes:
    """Return a safetensors file: name -> (dtype, shape, content)."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    values = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(values), len(values) + len(content)]}
        values += content
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + values


def safetensors_parts(data: bytes) -> tuple[dict, bytes]:
    """Return (header, values). Raises ValueError."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if not isinstance(header, dict):
        raise ValueError("no header")
    return header, data[8 + size :]


def safetensors_joined(header: dict, values: bytes) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + values


def checkpoint_repaired(data: bytes) -> bytes:
    """Return a checkpoint with the checksums of its arrays and of its record corrected."""
    try:
        header, values = safetensors_parts(data)
        metadata = header["__metadata__"]
        record = json.loads(metadata["record"])
        for name, entry in record["arrays"].items():
            if isinstance(header.get(name), dict):
                first, last = header[name]["data_offsets"]
                entry[2] = checksum(values[first:last])
        metadata["record"] = json.dumps(record)
        metadata["record_crc32"] = checksum(metadata["record"].encode())
        return safetensors_joined(header, values)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return data


def checkpoint_mutated(data: bytes, random) -> bytes:
    """Return a safetensors file with a changed header, record or values."""
    try:
        header, values = safetensors_parts(data)
        choice = random.randrange(8)
        if choice == 0:
            return safetensors_joined(header, mutation.bytes_mutated(values, random))
        if choice < 3 or "record" not in header.get("__metadata__", {}):
            return safetensors_joined(mutation.json_value_mutated(header, random), values)
        metadata = header["__metadata__"]
        record = json.loads(metadata["record"])
        part = "metadata" if choice < 7 else "arrays"
        record[part] = mutation.json_value_mutated(record[part], random)
        metadata["record"] = json.dumps(record)
        metadata["record_crc32"] = checksum(metadata["record"].encode())
        return safetensors_joined(header, values)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return mutation.bytes_mutated(data, random)


# ---- PyTorch


def read_torch(path: Path) -> object:
    found = []
    for name, tensor in tensors_of(path).items():
        if np.prod(tensor.shape, dtype=object) < 1 << 16:
            try:
                found.append((name, tensor.dtype, tensor.read()))
            except (WeightsError, CheckpointError) as error:
                found.append((name, str(error)))
    return found, pretrained.load(path)


def torch_arrays() -> dict[str, np.ndarray]:
    arrays = random_arrays("small_torch").values()
    names = [f"{layer}.{kind}" for layer in TORCH_LAYERS for kind in ("weight", "bias")]
    return {name: out_first(array) for name, array in zip(names, arrays, strict=True)}


def safetensors_seeds() -> Iterator[bytes]:
    arrays = torch_arrays()
    yield safetensors_of({name: ("F32", [*array.shape], array.tobytes()) for name, array in arrays.items()}, {})
    yield safetensors_of({name: ("F16", [*array.shape], array.tobytes()[::2]) for name, array in arrays.items()}, {})
    yield safetensors_of({"a\n\x1b": ("F32", [2], bytes(8))}, {"format": "pt"})
    yield safetensors_of({"a": ("F8_E5M2", [2], bytes(2)), "b": ("U64", [1], bytes(8))}, {})


def pth_seeds() -> Iterator[bytes]:
    arrays = torch_arrays()
    path = temporary() / "net.pth"
    yield b""
    few = dict(list(arrays.items())[:1])
    wrapped = pth_files.pickled(b"}X\x05\0\0\0model" + pth_files.state_pickle(few)[2:-1] + b"s")
    for values, options in (
        (arrays, {}), (few, {}), (few, {"compression": 8}), (few, {"extra": ("constants.pkl",)}),
        (few, {"pickle": wrapped}),
        (few, {"pickle": pth_files.pickled(pth_files.name_of("os", "system") + b"X\x02\0\0\0ls\x85R")}),
        ({}, {"pickle": pth_files.named_shapes({"a": (3, 3), "b": (1 << 40, 1 << 40)})}),
        (few, {"pickle": b"\x80\x02" + b"]" + b"]a" * 5 + b"."}),
        ({}, {"pickle": pth_files.pickled(pth_files.dict_of({"a": pth_files.number(1)}))}),
        ({}, {"pickle": pth_files.named_shapes({f"features.{n}.weight": (64, 3, 3, 3) for n in range(8)} | {
            f"classifier.{n}.weight": (10, 10) for n in range(3)})}),
        ({**arrays, "classifier.1.weight": np.ones((4, 33), "float32")}, {}),
        ({**arrays, "classifier.4.bias": np.ones((3, 1), "float32")}, {}),
        (few, {"pickle": b"\x80\x02" + b"](" * 900 + b"."}),
    ):
        yield pth_files.save_zip(path, values, **options).read_bytes()


def old_pth_seeds() -> Iterator[bytes]:
    arrays = torch_arrays()
    path = temporary() / "old.pth"
    yield b""
    few = dict(list(arrays.items())[:1])
    yield pth_files.save_old(path, arrays).read_bytes()
    yield pth_files.save_old(path, few).read_bytes()
    yield pth_files.save_old(path, few, pth_files.pickled(b"]")).read_bytes()
    yield pth_files.save_old(path, few, machine=b"\x80\x02}X\x0d\0\0\0little_endian\x89s.").read_bytes()
    ones = np.ones(2, "float32")
    parameter = pth_files.name_of("torch.nn.parameter", "Parameter") + pth_files.tensor("0", ones) + b"\x85\x81"
    yield pth_files.save_old(path, {"a": ones}, pth_files.pickled(pth_files.dict_of({"a": parameter}))).read_bytes()


def old_pth_mutated(data: bytes, random) -> bytes:
    """Return a file of the older format in which one of its five pickles is changed."""
    pieces, rest = [], data
    for _ in range(5):
        opcodes, rest = mutation.opcodes_of(rest)
        pieces.append(b"".join(opcodes))
    at = random.choice((2, 3, 3, 3, 3, 4, random.randrange(5)))
    pieces[at] = mutation.pickle_mutated(pieces[at], random) if pieces[at] else b"."
    return b"".join(pieces) + rest


def read_one_pickle(path: Path) -> object:
    try:
        found = read_pickle(io.BytesIO(path.read_bytes()))
    except ValueError as error:                  # tensors_of() adds the name of the file, as here
        raise WeightsError(clean(error)) from error
    values = found.values() if isinstance(found, dict) else [found]        # those that are nested may be very large
    return [value if isinstance(value, PickledTensor) else type(value) for value in values]


def pickle_seeds() -> Iterator[bytes]:
    few = {"a": np.ones(2, "float32")}
    yield pth_files.state_pickle(few)
    yield b"\x80\x04\x95\x10\0\0\0\0\0\0\0}\x94\x8c\x01a\x94K\x01s."
    yield pth_files.pickled(b"(K\x01I2\nL3L\nN\x88\x89G?\xf0\0\0\0\0\0\0J\1\0\0\0M\1\0U\1at")
    axes = pth_files.tuple_of(*[pth_files.number(1)] * 65)
    kind = pth_files.name_of("torch", "FloatStorage")
    storage = pth_files.tuple_of(pth_files.text("storage"), kind, b"K\0K\0K\1") + b"Q"
    yield pth_files.pickled(pth_files.name_of("torch._utils", "_rebuild_tensor") + pth_files.tuple_of(
        storage, b"K\0", axes, axes) + b"R")
    yield pth_files.pickled(pth_files.name_of("torch._utils", "_rebuild_parameter") + b"N\x85R")
    yield b"\x80\x02K\1"
    yield pth_files.pickled(pth_files.name_of("builtins", "eval") + b"X\x011\x85R")
    yield pth_files.pickled(b"X\5\0\0\0torchX\x0c\0\0\0FloatStorage\x93")
    yield b"\x80\x02" + b"(" * 900 + b"t" * 900 + b"."
    # tuples whose text has 2**40 characters, as a name, as the key of a storage, and as a class
    doubled = b")q\0" + b"h\0h\0\x86q\0" * 40
    yield b"\x80\x02" + doubled + b"h\0\x93."
    yield b"\x80\x02" + doubled + b"(X\7\0\0\0storage" + pth_files.name_of("torch", "FloatStorage") + b"h\0NK\1tQ."
    yield b"\x80\x02" + doubled + b")\x81."
    items = b"]q\0(" + b"".join(b"J" + struct.pack("<i", n) + b"N\x86" for n in range(300)) + b"e"
    yield b"\x80\x02(" + items + pth_files.name_of("collections", "OrderedDict") + b"q\1" + b"h\1h\0\x85R" * 300 + b"t."


# ---- theano_alexnet


def upstream_parts(epoch: int = 65) -> list[tuple[str, bytes]]:
    path = temporary() / f"upstream_{epoch}"
    if not path.exists():
        with small_networks():
            weights = Weights("alexnet", random_arrays("alexnet"), class_names=("a", "b", "c"))
            pretrained.upstream.save(weights, path, epoch)
    return [(file.name, file.read_bytes()) for file in sorted(path.iterdir())]


def upstream_seeds() -> Iterator[bytes]:
    parts = upstream_parts()
    yield mutation.zip_of(parts)
    yield mutation.zip_of(parts, 8)
    without = [(f"folder/{name}", content) for name, content in parts if name != "weights.json"]
    yield mutation.zip_of(without)
    yield mutation.zip_of([*without, ("img_mean.npy", npy(np.ones(3)))])
    yield mutation.zip_of([("a/W_0_65.npy", b""), ("b/W_0_65.npy", b"")])
    yield mutation.zip_of([("a\n\x1b" * 300 + ".zip", b"")])
    yield mutation.zip_of([("weights.json", b"[" * mutation.DEPTH), ("W_0_65.npy", b"")])
    for header in header_seeds():
        yield mutation.zip_of((dict(without) | {"folder/b_7_65.npy": header}).items())


def npy_or_json_mutated(data: bytes, random) -> bytes:
    return mutation.json_mutated(data, random) if data.startswith(b"{") else mutation.bytes_mutated(data, random)


def upstream_repaired(data: bytes) -> bytes:
    """Return a zip with the SHA-256 in weights.json and the checksums of the entries corrected."""
    try:
        parts = {info.filename: mutation.plain_content(info, stored) for info, stored in mutation.zip_parts(data)}
        listing = json.loads(parts["weights.json"])
        listing["sha256"] = {
            name: hashlib.sha256(parts[name]).hexdigest() if name in parts else value
            for name, value in listing["sha256"].items()
        }
        parts["weights.json"] = json.dumps(listing).encode()
        return mutation.zip_of(parts.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return mutation.zip_repaired(data)


def prepare_upstream(folder: Path) -> None:
    """Write theano_alexnet's files without the one that is fuzzed."""
    for name, content in upstream_parts():
        if name != "weights.json":
            (folder / name).write_bytes(content)


def read_upstream(path: Path) -> object:
    try:
        other = pretrained.load(path.parent, epoch=7)
    except WeightsError as error:
        other = str(error)
    return pretrained.load(path.parent), pretrained.load(path.parent, unflipped=True, epoch=65), other


def bias_seeds() -> Iterator[bytes]:
    yield npy(np.ones(CLASSES, np.float32))
    yield npy(np.ones(CLASSES, ">f4"))
    yield npy(np.asfortranarray(np.ones((CLASSES, 1), np.float32)))
    yield npy(np.ones(CLASSES, np.float32), (3, 0))
    yield from header_seeds()


# ---- Caffe


def read_caffe(path: Path) -> object:
    return caffe.load(path)


def caffe_seeds() -> Iterator[bytes]:
    arrays = random_arrays("small")
    blobs = {layer: (out_first(arrays[f"{layer}.W"]), arrays[f"{layer}.b"]) for layer in ("conv1", "fc2", "fc3")}
    net = caffe_truth.Prototxt("small")
    at = net.conv("conv1", "data", 2, 4, stride=4)
    at = net.norm("norm1", net.max_pool("pool1", at, 2, 2))
    at = net.add("Dropout", "drop2", net.dense("fc2", at, 32, 4), "fc2")
    net.dense("fc3", at, 4, CLASSES, relu=False)
    for v1 in (True, False):
        yield b"".join(caffe_truth.file_of(net, blobs, v1))
        data = {"mean_value": [104.0, 117.0, 123.0], "crop_size": 32}
        yield b"".join(caffe_truth.file_of(net, blobs, v1, data=data))
    pieces = []
    for kind, name in (("Convolution", "conv1"), ("InnerProduct", "fc2"), ("InnerProduct", "fc3")):
        own = [caffe_truth.blob(each, True) for each in blobs[name]]
        pieces.append(caffe_truth.layer(kind, name.encode(), [], [], own, False))
    yield b"".join(pieces)
    yield b"".join([caffe_truth.field(1, b"CaffeNet"), *pieces])
    arrays = random_arrays("small_branches")
    blobs = {layer.replace(".", "/"): (out_first(arrays[f"{layer}.W"]), arrays[f"{layer}.b"]) for layer in (
        "conv1", "side.conv", "side.fc", "fire2.squeeze1x1", "fire2.expand1x1", "fire2.expand3x3", "fc3")}
    net = caffe_truth.Prototxt("branches")
    at = net.conv("conv1", "data", 2, 4, stride=4)
    net.dense("side/fc", net.conv("side/conv", at, 1, 1), 64, CLASSES, relu=False)
    at = net.conv("fire2/squeeze1x1", at, 1, 1)
    branches = [net.conv(f"fire2/expand{n}x{n}", at, 1, n, pad=n // 2) for n in (1, 3)]
    net.dense("fc3", net.add("Concat", "fire2/concat", branches), 128, CLASSES, relu=False)
    yield b"".join(caffe_truth.file_of(net, blobs))
    yield b'name: "CaffeNet"\nlayers {}\n'
    yield b"\x0a\x01a" + caffe_truth.field(2, caffe_truth.field(4, b"\xff\n\x1b" * 500) + caffe_truth.field(5, 4))


def read_mean_proto(path: Path) -> object:
    return _options.mean_of(path, None), _options.mean_of(path, "rgb")


def mean_proto_seeds() -> Iterator[bytes]:
    yield b""
    lengths = b"".join(caffe_truth.field(1 + i, n) for i, n in enumerate((1, 3, 256, 256)))
    shape = caffe_truth.field(7, caffe_truth.field(1, b"".join(map(caffe_truth.varint, (3, 256, 256)))))
    for start in (lengths, shape):
        yield start + b"\x2a" + caffe_truth.varint(4 * MEAN_IMAGE) + HOLE
    yield shape + b"\x42" + caffe_truth.varint(4 * MEAN_IMAGE) + HOLE
    yield caffe_truth.blob(np.ones((2, 2), np.float32), True)
    yield caffe_truth.blob(np.ones((2, 2), np.float32), False, dims=(2**40, 2**40))


# ---- SqueezeNet as .npz


def npz_seeds() -> Iterator[bytes]:
    parts = []
    for name, array in random_arrays("squeezenet").items():
        layer, letter = name.rsplit(".", 1)
        kind = "weight" if letter == "W" else "bias"
        parts.append((f"{layer.replace('.', '/')}.{kind}.npy", npy(out_first(array) if letter == "W" else array)))
    yield mutation.zip_of(parts)
    yield mutation.zip_of([(name.replace("conv10", "conv_final"), content) for name, content in parts], 8)
    yield mutation.zip_of(parts[2:])
    yield mutation.zip_of([*parts, ("x\n\x1b.weight.npy", b"")])


# ---- ONNX


def read_onnx(path: Path) -> object:
    stated = "torchvision" if path.stat().st_size % 2 else None
    return pretrained.load(path, preprocessing=stated)


def onnx_seeds() -> Iterator[bytes]:
    arrays = random_arrays("small")
    pairs = {layer: (out_first(arrays[f"{layer}.W"]), arrays[f"{layer}.b"]) for layer in ("conv1", "fc2", "fc3")}
    nodes, at = [], "data"
    for kind, name, attributes in (
        ("Conv", "conv1", {"kernel_shape": [4, 4], "strides": [4, 4], "pads": [0] * 4}), ("Relu", "relu1", {}),
        ("MaxPool", "pool1", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("LRN", "norm1", {"size": 5, "alpha": 1e-4, "beta": 0.75, "bias": 1.0}), ("Flatten", "flat", {"axis": 1}),
        ("Gemm", "fc2", {"transB": 1}), ("Relu", "relu2", {}), ("Dropout", "drop2", {}), ("Gemm", "fc3", {"transB": 1}),
        ("Softmax", "prob", {}),
    ):
        inputs = [at, *(f"{name}_{letter}" for letter in "wb" if name in pairs)]
        nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        at = name
    for tensor, producer in (
        (numpy_helper.from_array, "onnx-caffe2"), (numpy_helper.from_array, "pytorch"), (as_floats, "onnx-caffe2"),
        (as_external, "pytorch"),
    ):
        tensors = [tensor(each, f"{name}_{letter}")
                   for name, pair in pairs.items() for letter, each in zip("wb", pair, strict=True)]
        images = helper.make_tensor_value_info("data", TensorProto.FLOAT, [1, 3, 32, 32])
        output = helper.make_tensor_value_info(at, TensorProto.FLOAT, [1, CLASSES])
        model = helper.make_model(helper.make_graph(nodes, "net", [images], [output], tensors), producer_name=producer)
        content = model.SerializeToString()
        yield content
        model.doc_string = "x" * (1 - len(content) % 2)        # the other preprocessing of read_onnx
        yield model.SerializeToString()
    del nodes[3]
    shape = numpy_helper.from_array(np.array([2, 3, 4, 4]), "conv1_w_shape")
    nodes.insert(0, helper.make_node("ConstantOfShape", ["conv1_w_shape"], ["conv1_w"]))
    yield helper.make_model(helper.make_graph(nodes, "n\n\x1b", [images], [output], [shape])).SerializeToString()


def as_floats(array: np.ndarray, name: str) -> TensorProto:
    return helper.make_tensor(name, TensorProto.FLOAT, array.shape, array.ravel())


def as_external(array: np.ndarray, name: str) -> TensorProto:
    """Return a tensor whose values are in the file `values`."""
    tensor = TensorProto(name=name, dims=array.shape, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "values"), ("offset", "8"), ("length", str(array.nbytes))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def prepare_values(folder: Path) -> None:
    (folder / "values").write_bytes(bytes(1024))


def own_onnx_seeds() -> Iterator[bytes]:
    with small_networks():
        weights = Weights("small", random_arrays("small"), None, ("a", "b", "c"), "crop", "made up")
        for scale in ((1.0, 1.0, 1.0), (0.5, 0.25, 2.0)):
            yield without_mean(export.model_proto(weights._replace(scale=scale), np.zeros((3, 2, 2), np.float32)))


def without_mean(model: ModelProto) -> bytes:
    """Return an export without the tensor of its mean image, which would take 786 kB."""
    kept = [tensor for tensor in model.graph.initializer if tensor.name != export.MEAN]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return own_onnx_repaired(model.SerializeToString())


def own_onnx_repaired(data: bytes) -> bytes:
    """Return an export with the checksums of its tensors and of its metadata corrected."""
    model = ModelProto()
    try:
        model.ParseFromString(data)
        sums = {tensor.name: checksum(tensor.raw_data) for tensor in model.graph.initializer}
        metadata = {prop.key: prop.value for prop in model.metadata_props if prop.key != "metadata_crc32"}
        metadata["crc32"] = json.dumps(sums)
        helper.set_model_props(model, metadata | {"metadata_crc32": export.checksum_of(metadata)})
        return model.SerializeToString()
    except (DecodeError, ValueError, TypeError):
        return data


WEIGHTS = (WeightsError,)
PICKLES = ("alexnet.pretrained.pytorch", "alexnet.pretrained.pytorch.files", "alexnet.pretrained.pytorch.pickle_reader")
DETECT = "alexnet.pretrained.detect"
CAFFE = (
    "alexnet.pretrained.caffe.caffemodel", "alexnet.pretrained.caffe.mean:read_mean",
    "alexnet.pretrained.caffe.messages", "alexnet.pretrained.protobuf",
)
ARRAYS = ("alexnet.pretrained.npy_files",)
TARGETS = {
    "checkpoint": Target(
        "checkpoint_00000005.safetensors", read_checkpoint, (CheckpointError,), checkpoint_seeds,
        ("alexnet.run.checkpoint_format", "alexnet.run.checkpoint", "alexnet.config.load"),
        structure=checkpoint_mutated,
        repair=checkpoint_repaired,
    ),
    "native": Target(
        "net.safetensors", read_native, WEIGHTS, checkpoint_seeds,
        ("alexnet.pretrained.native", "alexnet.pretrained.weights", DETECT),
        structure=checkpoint_mutated, repair=checkpoint_repaired,
    ),
    "safetensors": Target(
        "net.safetensors", read_torch, WEIGHTS, safetensors_seeds, (*PICKLES[:2], "alexnet.run.checkpoint_format"),
        structure=checkpoint_mutated,
    ),
    "pth": Target(
        "net.pth", read_torch, WEIGHTS, pth_seeds, (*PICKLES, DETECT),
        structure=mutation.zip_mutation(mutation.pickle_mutated), repair=mutation.zip_repaired,
    ),
    "old_pth": Target("net.pth", read_torch, WEIGHTS, old_pth_seeds, PICKLES, structure=old_pth_mutated),
    "pickle": Target(
        "data.pkl", read_one_pickle, WEIGHTS, pickle_seeds, PICKLES[2:], structure=mutation.pickle_mutated,
        longest=2000,
    ),
    "upstream_zip": Target(
        "net.zip", read_native, WEIGHTS, upstream_seeds,
        ("alexnet.pretrained.upstream", *ARRAYS, DETECT, "alexnet.pretrained.weights"),
        structure=mutation.zip_mutation(npy_or_json_mutated), repair=upstream_repaired, longest=8192,
    ),
    "upstream_array": Target(
        "b_7_65.npy", read_upstream, WEIGHTS, bias_seeds, ("alexnet.pretrained.upstream", *ARRAYS), prepare_upstream,
        longest=600,
    ),
    "npz": Target(
        "net.npz", read_native, WEIGHTS, npz_seeds, ("alexnet.pretrained.caffe.npz", *ARRAYS, DETECT),
        structure=mutation.zip_mutation(mutation.bytes_mutated), repair=mutation.zip_repaired,
    ),
    "caffemodel": Target(
        "net.caffemodel", read_caffe, WEIGHTS, caffe_seeds, (*CAFFE, "alexnet.pretrained.graph"),
        structure=mutation.message_mutated,
    ),
    "binaryproto": Target(
        "net_mean.binaryproto", read_mean_proto, (WeightsError, DataError), mean_proto_seeds,
        ("alexnet.commands._options:mean_of", *CAFFE[1:]),
        structure=mutation.message_mutated, hole=4 * MEAN_IMAGE, mutations=100, longest=256,
    ),
    "onnx": Target(
        "net.onnx", read_onnx, WEIGHTS, onnx_seeds,
        ("alexnet.pretrained.onnx.foreign", "alexnet.pretrained.onnx.tensors"), prepare_values,
        mutation.message_mutated,
    ),
    "own_onnx": Target(
        "net.onnx", read_onnx, WEIGHTS, own_onnx_seeds, ("alexnet.pretrained.onnx.export",),
        structure=mutation.message_mutated, repair=own_onnx_repaired,
    ),
}
