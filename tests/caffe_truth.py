"""Caffe's networks in float64 and Caffe's files byte by byte, written from their definitions without our code.

Images are BGR (channel, row, column), filters (out, in / groups, row, column), dense weights (out, in).

Source: caffe.berkeleyvision.org/tutorial/layers.html; src/caffe/proto/caffe.proto, whose field numbers are below;
protobuf.dev/programming-guides/encoding.
"""

import struct

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
POOLING = {"pool": 1, "kernel_size": 2, "stride": 3, "pad": 4, "global_pooling": 12}
RELU = {"negative_slope": 1}
DROPOUT = {"dropout_ratio": 1}
TRANSFORMATION = {"scale": 1, "mirror": 2, "crop_size": 3, "mean_file": 4, "mean_value": 5}

# type: (number in V1LayerParameter.LayerType, field of its settings in V1LayerParameter, the same in LayerParameter,
# their fields)
TYPES = {
    "Data": (5, 36, 100, TRANSFORMATION), "Convolution": (4, 10, 106, CONVOLUTION), "ReLU": (18, 30, 123, RELU),
    "Pooling": (17, 19, 121, POOLING), "LRN": (15, 18, 118, LRN), "InnerProduct": (14, 17, 117, INNER_PRODUCT),
    "Dropout": (6, 12, 108, DROPOUT), "SoftmaxWithLoss": (21, 39, 125, {}), "Split": (22, None, None, {}),
    "Accuracy": (1, 27, 102, {}), "Concat": (3, 9, 104, {}),
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
