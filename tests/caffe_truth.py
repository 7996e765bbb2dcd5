"""Caffe's networks in float64 and Caffe's files byte by byte, written from their definitions without our code.

Images are BGR (channel, row, column), filters (out, in / groups, row, column), dense weights (out, in).

Source: caffe.berkeleyvision.org/tutorial/layers.html; src/caffe/proto/caffe.proto, whose field numbers are below;
protobuf.dev/programming-guides/encoding.
"""

import struct
from typing import NamedTuple

import numpy as np

SHAPES = {
    "conv1": (96, 3, 11, 11), "conv2": (256, 48, 5, 5), "conv3": (384, 256, 3, 3), "conv4": (384, 192, 3, 3),
    "conv5": (256, 192, 3, 3), "fc6": (4096, 9216), "fc7": (4096, 4096), "fc8": (1000, 4096),
}
ORDERS = {"caffenet": ("pool", "norm"), "bvlc_alexnet": ("norm", "pool")}
NET_NAMES = {"caffenet": b"CaffeNet", "bvlc_alexnet": b"AlexNet"}


def random_blobs(rng):
    """Return layer -> (weights, bias), float32, large enough that normalisation and every bias affect the outputs."""
    blobs = {}
    for name, shape in SHAPES.items():
        weights = rng.standard_normal(shape, dtype=np.float32)
        weights *= np.float32((0.02 if name == "fc8" else 1.5) / np.sqrt(np.prod(shape[1:])))
        blobs[name] = weights, rng.standard_normal(shape[0], dtype=np.float32)
    return blobs


# ---- the network


def outputs(blobs, image, model):
    """Return the inputs of the softmax, float64 (classes,), for a mean-subtracted BGR image."""
    x = image.astype(np.float64)
    for name, stride, pad, groups in (
        ("conv1", 4, 0, 1), ("conv2", 1, 2, 2), ("conv3", 1, 1, 1), ("conv4", 1, 1, 2), ("conv5", 1, 1, 2),
    ):
        x = np.maximum(convolution(x, *blobs[name], stride, pad, groups), 0)
        if name in ("conv1", "conv2"):
            for step in ORDERS[model]:
                x = max_pool(x) if step == "pool" else normalised(x)
        elif name == "conv5":
            x = max_pool(x)
    x = x.reshape(-1)
    for name in ("fc6", "fc7"):
        x = np.maximum(blobs[name][0].astype(np.float64) @ x + blobs[name][1], 0)
    return blobs["fc8"][0].astype(np.float64) @ x + blobs["fc8"][1]


def convolution(x, weights, bias, stride, pad, groups):
    size = weights.shape[-1]
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    parts = zip(np.split(windows, groups), np.split(weights.astype(np.float64), groups), strict=True)
    sums = [np.tensordot(part, filters, ((0, 3, 4), (1, 2, 3))) for part, filters in parts]
    return np.concatenate(sums, axis=2).transpose(2, 0, 1) + bias[:, None, None]


def max_pool(x, size=3, stride=2):
    """Caffe's max pooling: the number of windows is rounded up, and the last windows are cut at the border."""
    rows, columns = (-(-(n - size) // stride) + 1 for n in x.shape[1:])
    y = np.empty((len(x), rows, columns))
    for r in range(rows):
        for c in range(columns):
            y[:, r, c] = x[:, r * stride : r * stride + size, c * stride : c * stride + size].max(axis=(1, 2))
    return y


def normalised(x, n=5, alpha=1e-4, beta=0.75, k=1.0):
    squares = np.pad(x * x, ((n // 2, n // 2), (0, 0), (0, 0)))
    energy = sum(squares[j : j + len(x)] for j in range(n))
    return x / (k + alpha / n * energy) ** beta


# ---- networks given by their layers, as in a prototxt


class LayerSpec(NamedTuple):
    """A layer of a prototxt, with the shape of its weights if it has any."""

    kind: str
    name: str
    bottom: tuple
    top: tuple
    settings: dict
    shape: tuple | None = None


class Prototxt:
    """Layers in order; each method adds one and returns the name of its output. `channels` has those of each blob."""

    def __init__(self, name):
        self.name, self.layers, self.channels = name, [], {"data": 3}

    def add(self, kind, name, bottom, top=None, shape=None, channels=None, **settings):
        bottom = (bottom,) if isinstance(bottom, str) else bottom
        self.layers.append(LayerSpec(kind, name, bottom, (top or name,), settings, shape))
        self.channels[top or name] = channels or sum(self.channels[blob] for blob in bottom)
        return top or name

    def conv(self, name, bottom, filters, size, **settings):
        shape = (filters, self.channels[bottom], size, size)
        self.add("Convolution", name, bottom, None, shape, filters, num_output=filters, kernel_size=size, **settings)
        return self.add("ReLU", f"relu_{name}", name, name)

    def dense(self, name, bottom, inputs, outputs, relu=True):
        self.add("InnerProduct", name, bottom, None, (outputs, inputs), outputs, num_output=outputs)
        return self.add("ReLU", f"relu_{name}", name, name) if relu else name

    def max_pool(self, name, bottom, size=3, stride=2, **settings):
        return self.add("Pooling", name, bottom, kernel_size=size, stride=stride, pool=0, **settings)

    def average_pool(self, name, bottom, size, stride):
        return self.add("Pooling", name, bottom, kernel_size=size, stride=stride, pool=1)

    def norm(self, name, bottom):
        return self.add("LRN", name, bottom, local_size=5, alpha=1e-4, beta=0.75)


def googlenet(classes=1000):
    """Return models/bvlc_googlenet/train_val.prototxt."""
    net = Prototxt("GoogleNet")
    at = net.conv("conv1/7x7_s2", "data", 64, 7, stride=2, pad=3)
    at = net.norm("pool1/norm1", net.max_pool("pool1/3x3_s2", at))
    at = net.conv("conv2/3x3", net.conv("conv2/3x3_reduce", at, 64, 1), 192, 3, pad=1)
    at = net.max_pool("pool2/3x3_s2", net.norm("conv2/norm2", at))
    for name, one, reduce3, three, reduce5, five, projection in (
        ("3a", 64, 96, 128, 16, 32, 32), ("3b", 128, 128, 192, 32, 96, 64), ("4a", 192, 96, 208, 16, 48, 64),
        ("4b", 160, 112, 224, 24, 64, 64), ("4c", 128, 128, 256, 24, 64, 64), ("4d", 112, 144, 288, 32, 64, 64),
        ("4e", 256, 160, 320, 32, 128, 128), ("5a", 256, 160, 320, 32, 128, 128), ("5b", 384, 192, 384, 48, 128, 128),
    ):
        block = f"inception_{name}/{{}}".format
        branches = (
            net.conv(block("1x1"), at, one, 1),
            net.conv(block("3x3"), net.conv(block("3x3_reduce"), at, reduce3, 1), three, 3, pad=1),
            net.conv(block("5x5"), net.conv(block("5x5_reduce"), at, reduce5, 1), five, 5, pad=2),
            net.conv(block("pool_proj"), net.max_pool(block("pool"), at, stride=1, pad=1), projection, 1),
        )
        at = net.add("Concat", block("output"), branches)
        if name in ("4a", "4d"):
            loss = f"loss{1 if name == '4a' else 2}/{{}}".format
            side = net.conv(loss("conv"), net.average_pool(loss("ave_pool"), at, 5, 3), 128, 1)
            side = net.add("Dropout", loss("drop_fc"), net.dense(loss("fc"), side, 2048, 1024), loss("fc"))
            net.dense(loss("classifier"), side, 1024, classes, relu=False)
        if name in ("3b", "4e"):
            at = net.max_pool(f"pool{3 if name == '3b' else 4}/3x3_s2", at)
    at = net.average_pool("pool5/7x7_s1", at, 7, 1)
    net.dense("loss3/classifier", net.add("Dropout", "pool5/drop_7x7_s1", at, at), 1024, classes, relu=False)
    return net


def vgg16():
    """Return the prototxt of VGG_ILSVRC_16_layers."""
    net, at = Prototxt("VGG_ILSVRC_16_layers"), "data"
    for group, (filters, count) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], 1):
        for number in range(1, count + 1):
            at = net.conv(f"conv{group}_{number}", at, filters, 3, pad=1)
        at = net.max_pool(f"pool{group}", at, 2, 2)
    at = net.dense("fc7", net.dense("fc6", at, 25088, 4096), 4096, 4096)
    net.dense("fc8", at, 4096, 1000, relu=False)
    return net


def squeezenet(pad=0):
    """Return SqueezeNet 1.0; DeepScale's prototxt pads the input of conv10 by one pixel."""
    net = Prototxt("SqueezeNet")
    at = net.max_pool("pool1", net.conv("conv1", "data", 96, 7, stride=2))
    for number, (squeeze, expand) in enumerate(
        [(16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256)], 2
    ):
        at = net.conv(f"fire{number}/squeeze1x1", at, squeeze, 1)
        one, three = (net.conv(f"fire{number}/expand{n}x{n}", at, expand, n, pad=n // 2) for n in (1, 3))
        at = net.add("Concat", f"fire{number}/concat", (one, three))
        if number in (4, 8):
            at = net.max_pool(f"pool{number}", at)
    at = net.conv("conv10", net.add("Dropout", "drop9", at, at), 1000, 1, pad=pad)
    net.add("Pooling", "pool10", at, pool=1, global_pooling=1)
    return net


def random_blobs_of(net, rng):
    """Return layer -> (weights, bias), float32, such that values neither vanish nor grow."""
    blobs = {}
    for each in net.layers:
        if each.shape:
            weights = rng.standard_normal(each.shape, dtype=np.float32)
            weights *= np.float32((2 / np.prod(each.shape[1:])) ** 0.5)
            blobs[each.name] = weights, rng.standard_normal(each.shape[0], dtype=np.float32)
    return blobs


def results(net, blobs, image):
    """Return blob -> its value in float64 for a mean-subtracted BGR image."""
    values = {"data": image.astype(np.float64)}
    for kind, name, bottom, (top,), settings, _ in net.layers:
        x = values[bottom[0]]
        if kind == "Convolution":
            x = convolution(x, *blobs[name], settings.get("stride", 1), settings.get("pad", 0), 1)
        elif kind == "InnerProduct":
            x = blobs[name][0].astype(np.float64) @ x.reshape(-1) + blobs[name][1]
        elif kind == "Pooling":
            x = pooled(x, **settings)
        elif kind == "Concat":
            x = np.concatenate([values[blob] for blob in bottom])
        elif kind != "Dropout":
            x = np.maximum(x, 0) if kind == "ReLU" else normalised(x)
        values[top] = x
    return values


def pooled(x, pool, kernel_size=0, stride=1, pad=0, global_pooling=0):
    """Caffe's pooling (pooling_layer.cpp): a window starts in the image or in the padding before it, and is cut."""
    if global_pooling:
        return x.mean(axis=(1, 2))
    rows, columns = (-(-(n + 2 * pad - kernel_size) // stride) + 1 for n in x.shape[1:])
    rows, columns = (
        count - (pad > 0 and (count - 1) * stride >= n + pad)
        for count, n in zip((rows, columns), x.shape[1:], strict=True)
    )
    y = np.empty((len(x), rows, columns))
    for r, c in np.ndindex(rows, columns):
        top, left = r * stride - pad, c * stride - pad
        window = x[:, max(top, 0) : top + kernel_size, max(left, 0) : left + kernel_size]
        area = np.prod([min(first + kernel_size, n + pad) - first
                        for first, n in zip((top, left), x.shape[1:], strict=True)])
        y[:, r, c] = window.sum(axis=(1, 2)) / area if pool else window.max(axis=(1, 2))
    return y


def file_of(net, blobs, v1=True, data=None, named=True):
    """Return the pieces of the file of a Prototxt as a training snapshot contains them, with Split layers.

    blobs  layer -> (weights, bias), or the bytes of two BlobProto; layers without an entry are left out
    data   settings of the data layer
    named  whether the file has the name of the network
    """
    pieces = [field(1, net.name.encode())] if named else []
    pieces.append(layer("Data", b"data", [], [b"data", b"label"], (), v1, **(data or {})))
    now = {}                                     # blob -> its name, or the outputs of its Split that are not taken yet
    for at, each in enumerate(net.layers):
        bottom = [now[name].pop(0) if now.get(name) else name.encode() for name in each.bottom]
        own = [one if isinstance(one, bytes) else blob(one, not v1) for one in blobs.get(each.name, ())]
        (top,) = each.top
        pieces.append(layer(each.kind, each.name.encode(), bottom, [top.encode()], own, v1, **each.settings))
        in_place = any(top in other.bottom and top in other.top for other in net.layers[at + 1 :])
        uses = 0 if in_place else sum(other.bottom.count(top) for other in net.layers[at + 1 :])
        now[top] = [f"{top}_split_{n}".encode() for n in range(uses)] if uses > 1 else []
        if uses > 1:
            pieces.append(layer("Split", f"{top}_split".encode(), [top.encode()], now[top][:], (), v1))
    last = net.layers[-1].top[0].encode()
    return [*pieces, layer("SoftmaxWithLoss", b"loss", [last, b"label"], [b"loss"], (), v1)]


# ---- the file


def varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number, value):
    """Encode one field: bytes (also a message), an integer, or a float, with the wire type of its Python type."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value % 2**64)


def fields(numbers, **values):
    """Encode the fields of a message, given by name; a list encodes a repeated field."""
    pairs = ((numbers[name], each) for name, value in values.items() for each in np.atleast_1d(np.array(value, object)))
    return b"".join(field(number, each) for number, each in pairs)


CONVOLUTION = {"num_output": 1, "bias_term": 2, "pad": 3, "kernel_size": 4, "group": 5, "stride": 6, "pad_h": 9,
               "pad_w": 10, "stride_h": 13, "stride_w": 14, "dilation": 18}
INNER_PRODUCT = {"num_output": 1, "axis": 5, "transpose": 6}
LRN = {"local_size": 1, "alpha": 2, "beta": 3, "norm_region": 4, "k": 5}
POOLING = {"pool": 1, "kernel_size": 2, "stride": 3, "pad": 4, "global_pooling": 12, "round_mode": 13}
RELU = {"negative_slope": 1}
DROPOUT = {"dropout_ratio": 1}
TRANSFORMATION = {"scale": 1, "mirror": 2, "crop_size": 3, "mean_file": 4, "mean_value": 5}

# type: (number in V1LayerParameter.LayerType, field of its settings in V1LayerParameter, the same in LayerParameter,
# their fields)
TYPES = {
    "Data": (5, 36, 100, TRANSFORMATION), "Convolution": (4, 10, 106, CONVOLUTION), "ReLU": (18, 30, 123, RELU),
    "Pooling": (17, 19, 121, POOLING), "LRN": (15, 18, 118, LRN), "InnerProduct": (14, 17, 117, INNER_PRODUCT),
    "Dropout": (6, 12, 108, DROPOUT), "SoftmaxWithLoss": (21, 39, 125, {}), "Split": (22, None, None, {}),
    "BatchNorm": (None, None, 139, {}),
    "Accuracy": (1, 27, 102, {}), "Concat": (3, 9, 104, {"concat_dim": 1, "axis": 2}), "Sigmoid": (19, 38, 124, {}),
}


def blob(array, shaped=False, dims=None, data=None):
    """Encode a BlobProto: with its four lengths, as in older files, or with the shape message of newer files."""
    dims = array.shape if dims is None else dims
    data = np.ascontiguousarray(array, "<f4").tobytes() if data is None else data
    if shaped:
        lengths = field(7, field(1, b"".join(varint(n % 2**64) for n in dims)))
    else:
        lengths = b"".join(field(1 + i, n) for i, n in enumerate((1,) * (4 - len(dims)) + tuple(dims)))
    return lengths + field(5, data)


def layer(kind, name, bottom, top, blobs=(), v1=True, **settings):
    """Encode a layer of NetParameter: `layers` (V1LayerParameter), or `layer` (LayerParameter)."""
    number, v1_settings, later_settings, numbers = TYPES[kind]
    parameters = fields(numbers, **settings)
    if v1:
        head = field(4, name) + field(5, number) + b"".join(field(2, each) for each in bottom)
        body = head + b"".join(field(3, each) for each in top) + b"".join(field(6, each) for each in blobs)
        return field(2, body + (field(v1_settings, parameters) if parameters else b""))
    head = field(1, name) + field(2, kind.encode()) + b"".join(field(3, each) for each in bottom)
    body = head + b"".join(field(4, each) for each in top) + b"".join(field(7, each) for each in blobs)
    return field(100, body + (field(later_settings, parameters) if parameters else b""))


def caffemodel(model, blobs, v1=True, changed=None, data=None):
    """Return the pieces of a file as a Caffe training snapshot contains them: its name, then its layers, in order.

    blobs    layer -> (weights, bias), or the bytes of two BlobProto; the last layer may have any name
    changed  name of a layer -> wrong settings that replace its own
    data     settings of the data layer
    """
    changed, names = changed or {}, list(blobs)
    pieces = [field(1, NET_NAMES[model])]

    def add(kind, name, bottom, top, **settings):
        own = [each if isinstance(each, bytes) else blob(each, not v1) for each in blobs.get(name, ())]
        settings |= changed.get(name, {})
        pieces.append(layer(kind, name.encode(), bottom, top, own, v1, **settings))

    add("Data", "data", [], [b"data", b"label"], mirror=1, crop_size=227, **(data or {}))
    at = b"data"
    for name, filters, size, given in (
        ("conv1", 96, 11, {"stride": 4}), ("conv2", 256, 5, {"pad": 2, "group": 2}), ("conv3", 384, 3, {"pad": 1}),
        ("conv4", 384, 3, {"pad": 1, "group": 2}), ("conv5", 256, 3, {"pad": 1, "group": 2}),
    ):
        own, number = name.encode(), name[-1]
        add("Convolution", name, [at], [own], num_output=filters, kernel_size=size, **given)
        add("ReLU", f"relu{number}", [own], [own])
        at = own
        for step in ORDERS[model] if name in ("conv1", "conv2") else ("pool",) if name == "conv5" else ():
            above = f"{step}{number}"
            if step == "pool":
                add("Pooling", above, [at], [above.encode()], pool=0, kernel_size=3, stride=2)
            else:
                add("LRN", above, [at], [above.encode()], local_size=5, alpha=1e-4, beta=0.75)
            at = above.encode()
    for name in names[5:]:
        own = name.encode()
        add("InnerProduct", name, [at], [own], num_output=1000)
        at = own
        if name != names[-1]:
            add("ReLU", name.replace("fc", "relu"), [own], [own])
            add("Dropout", name.replace("fc", "drop"), [own], [own], dropout_ratio=0.5)
    add("SoftmaxWithLoss", "loss", [at, b"label"], [b"loss"])
    return pieces
