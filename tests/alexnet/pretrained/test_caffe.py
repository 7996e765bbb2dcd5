"""Caffe files written byte by byte by tests/caffe_truth.py load and give Caffe's outputs; other files are refused."""

import hashlib

import numpy as np
import pytest

from alexnet import pretrained
from alexnet.data.augment import centre_crop
from alexnet.models import MODELS, Model
from alexnet.nn import LRN, Conv, Dense, Dropout, Flatten, MaxPool
from alexnet.pretrained import WeightsError, build
from alexnet.pretrained.caffe import caffemodel, messages
from alexnet.pretrained.protobuf import parsed
from tests import caffe_truth
from tests.caffe_truth import blob, field, fields, layer

pytestmark = pytest.mark.slow

IMAGENET_MEAN = (104.0069879317889, 116.66876761696767, 122.6789143406786)                  # BGR
TOLERANCE = 1e-5                                 # relative to the largest output; float32 against float64


@pytest.fixture(scope="module")
def blobs():
    return caffe_truth.random_blobs(np.random.default_rng(0))


@pytest.fixture
def image(rng):
    return rng.integers(0, 256, (3, 256, 256, 1), dtype=np.uint8)


def ours(weights, image):
    """Return our network's logits for the centre crop of an image, RGB (3, 256, 256, 1) uint8."""
    return build(weights).logits(image, *centre_crop(1, 227))[:, 0]


def theirs(blobs, image, mean, model):
    """Return the outputs of the float64 reference; mean is BGR."""
    return caffe_truth.outputs(blobs, (image[::-1, ..., 0] - mean)[:, 14:241, 14:241], model)


def test_caffenet_gives_caffe_outputs(tmp_path, blobs, image, rng):
    path, mean = tmp_path / "some.caffemodel", rng.uniform(90, 130, (3, 256, 256)).astype("float32")
    path.write_bytes(b"".join(caffe_truth.caffemodel("caffenet", blobs)))
    (tmp_path / "imagenet_mean.binaryproto").write_bytes(blob(mean[None]))
    weights = pretrained.load(path)
    path.unlink()                                # 244 MB, which pytest would keep for three runs
    assert weights.model == "caffenet" and weights.resize == "squash"
    assert weights.class_names == pretrained.imagenet_names()
    assert "none of the files that Caffe published" in weights.origin and "imagenet_mean" in weights.origin
    truth = theirs(blobs, image, mean, "caffenet")
    np.testing.assert_allclose(ours(weights, image), truth, rtol=0, atol=TOLERANCE * abs(truth).max())


def test_fine_tuned_bvlc_alexnet_gives_caffe_outputs(tmp_path, blobs, image):
    path, mean = tmp_path / "some.caffemodel", (104.0, 117.0, 123.5)
    tuned = {name: pair for name, pair in blobs.items() if name != "fc8"}
    tuned["fc8_flickr"] = tuple(array[:20] for array in blobs["fc8"])
    data = {"mean_value": list(mean)}
    path.write_bytes(b"".join(caffe_truth.caffemodel("bvlc_alexnet", tuned, v1=False, data=data)))
    weights = pretrained.load(path)
    path.unlink()
    assert (weights.model, weights.classes, weights.class_names) == ("bvlc_alexnet", 20, None)
    truth = theirs(blobs | {"fc8": tuned["fc8_flickr"]}, image, np.reshape(mean, (3, 1, 1)), "bvlc_alexnet")
    np.testing.assert_allclose(ours(weights, image), truth, rtol=0, atol=TOLERANCE * abs(truth).max())


def logits_of(weights, image):
    """Return our network's logits for the centre crop of an RGB image (3, 256, 256, 1)."""
    return build(weights).logits(image, *centre_crop(1, MODELS[weights.model].image_size))[:, 0]


def truth_of(net, blobs, image, mean, output, size):
    """Return the value of a blob in the float64 reference; mean is BGR."""
    first = (256 - size) // 2
    pixels = (image[::-1, ..., 0] - np.reshape(mean, (3, 1, 1)))[:, first : first + size, first : first + size]
    return caffe_truth.results(net, blobs, pixels)[output]


@pytest.mark.parametrize("v1", [True, False])
def test_bvlc_googlenet_gives_caffe_outputs(tmp_path, image, v1):
    net = caffe_truth.googlenet(classes=50)
    blobs = caffe_truth.random_blobs_of(net, np.random.default_rng(0))
    path, mean = tmp_path / "some.caffemodel", [104.0, 117.0, 123.0]
    path.write_bytes(b"".join(caffe_truth.file_of(net, blobs, v1, {"mean_value": mean, "crop_size": 224})))
    weights = pretrained.load(path)
    path.unlink()
    assert (weights.model, weights.classes, weights.resize) == ("bvlc_googlenet", 50, "squash")
    truth = truth_of(net, blobs, image, mean, "loss3/classifier", 224)
    np.testing.assert_allclose(logits_of(weights, image), truth, rtol=0, atol=TOLERANCE * abs(truth).max())
    for tower, loss in (("aux_4a", "loss1"), ("aux_4d", "loss2")):
        for ours, its in (("conv", "conv"), ("fc", "fc"), ("classifier", "classifier")):
            W, b = weights.arrays[f"{tower}.{ours}.W"], weights.arrays[f"{tower}.{ours}.b"]
            its_W, its_b = blobs[f"{loss}/{its}"]
            np.testing.assert_array_equal(np.moveaxis(W, -1, 0), its_W)
            np.testing.assert_array_equal(b, its_b)


@pytest.mark.parametrize(("pad", "model"), [(0, "squeezenet"), (1, "deepscale_squeezenet")])
def test_squeezenet_gives_caffe_outputs(tmp_path, image, pad, model):
    net = caffe_truth.squeezenet(pad)
    blobs = caffe_truth.random_blobs_of(net, np.random.default_rng(0))
    path = tmp_path / "some.caffemodel"
    path.write_bytes(b"".join(caffe_truth.file_of(net, blobs, v1=False)))
    weights = pretrained.load(path)
    assert weights.model == model and weights.class_names == pretrained.imagenet_names()
    truth = truth_of(net, blobs, image, (104, 117, 123), "pool10", 227)
    np.testing.assert_allclose(logits_of(weights, image), truth, rtol=0, atol=TOLERANCE * abs(truth).max())


def test_a_file_without_auxiliary_classifiers_loads(write):
    net = caffe_truth.googlenet(classes=3)
    net.layers[:] = [each for each in net.layers if not each.name.startswith(("loss1", "loss2", "relu_loss"))]
    blobs = caffe_truth.random_blobs_of(net, np.random.default_rng(0))
    weights = pretrained.load(write(caffe_truth.file_of(net, blobs)))
    assert weights.model == "bvlc_googlenet" and not any(name.startswith("aux") for name in weights.arrays)


def shapes_only(net):
    """Return {layer: (weight blob that has only a shape, bias blob)}."""
    layers = [each for each in net.layers if each.shape]
    return {each.name: (blob(None, dims=each.shape, data=b""), blob(np.zeros(each.shape[0]))) for each in layers}


def net_of(pieces):
    return parsed(messages.MESSAGES["NetParameter"](), b"".join(pieces), "", "")


@pytest.mark.parametrize("named", [True, False])
def test_vgg16_is_recognised_with_and_without_name_and_settings(tmp_path, named):
    net = caffe_truth.vgg16()
    thin = shapes_only(net)
    whole = caffe_truth.file_of(net, thin, named=named)
    only_weights = [field(2, field(4, name.encode()) + b"".join(field(6, each) for each in pair))
                    for name, pair in thin.items()]
    for pieces in (whole, [*whole[:named], *only_weights]):
        found = net_of(pieces)
        assert caffemodel.identified(found, caffemodel.network_of(found, ""), "") == "vgg16"
    mean, origin = caffemodel.mean_of(found, tmp_path / "some.caffemodel", "vgg16")
    assert tuple(mean[:, 3, 5]) == tuple(np.float32((123.68, 116.779, 103.939))) and "the authors' mean" in origin


def test_differences_inside_branches_are_refused(write):
    net = caffe_truth.googlenet()
    pieces = caffe_truth.file_of(net, shapes_only(net))
    assert "its weights must have a shape" in refusal(write(pieces))                   # recognised
    swapped, padded, aside = caffe_truth.googlenet(), caffe_truth.googlenet(), caffe_truth.googlenet()
    for at, each in enumerate(net.layers):
        if each.name == "inception_4b/output":
            swapped.layers[at] = each._replace(bottom=each.bottom[1::-1] + each.bottom[2:])
        if each.name == "inception_4b/pool":
            padded.layers[at] = each._replace(settings=each.settings | {"kernel_size": 5, "pad": 2})
        if each.name == "loss1/ave_pool":
            aside.layers[at] = each._replace(bottom=("inception_4a/3x3_reduce",))
    for changed, expected in (
        (swapped, "inception_4b.1x1 has outputs 112, bvlc_googlenet's 160"),
        (padded, "has kernel_shape 5, bvlc_googlenet's 3"),
        (aside, "its side branch with inception_4a/3x3_reduce differs"),
    ):
        assert expected in refusal(write(caffe_truth.file_of(changed, shapes_only(net))))


def test_well_known_networks_are_named(write):
    """ResNet-50 by its layers; SqueezeNet 1.1, whose layers are ours with other numbers."""
    resnet = caffe_truth.Prototxt("ResNet-50")
    resnet.conv("conv1", "data", 64, 7, stride=2, pad=3)
    for n in range(52):
        resnet.conv(f"res{n}", "conv1", 64, 1)
    resnet.add("BatchNorm", "bn_conv1", "conv1", "conv1")
    resnet.dense("fc1000", "conv1", 64, 1000, relu=False)
    sentence = refusal(write(caffe_truth.file_of(resnet, shapes_only(resnet), v1=False)))
    assert "is ResNet-50, which is not supported: its layer bn_conv1 is of type 'BatchNorm'" in sentence
    smaller = caffe_truth.squeezenet()
    smaller.layers[0] = smaller.layers[0]._replace(shape=(64, 3, 3, 3), settings={"kernel_size": 3, "stride": 2})
    sentence = refusal(write(caffe_truth.file_of(smaller, shapes_only(smaller))))
    assert "is SqueezeNet 1.1, which is not supported: " in sentence


# ---- a small network of the same layer types


@MODELS.register("tiny_ceil")
class TinyCeil(Model):
    """tests/tiny.py's network with Caffe's pooling, whose last windows are incomplete."""

    image_size = 227

    def table(self, rng, classes, dropout_rate):
        return (
            Conv(rng, 3, 4, size=11, stride=8, pool=MaxPool(3, 2, ceil=True)), LRN(),    # 4 x 14 x 14
            Conv(rng, 4, 6, size=3, stride=2, pad=1, groups=2), Flatten(),               # 6 x 7 x 7
            Dense(rng, 294, 8), Dropout(dropout_rate),
            Dense(rng, 8, classes, relu=False),
        )


def tiny_arrays(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"conv1": (4, 3, 11, 11), "conv2": (6, 2, 3, 3), "fc3": (8, 294), "fc4": (10, 8)}
    return {name: (rng.random(s, "f4"), rng.random(s[0], "f4")) for name, s in shapes.items()}


def tiny_pieces(arrays=None, as_blob=blob):
    """Return the parts of a .caffemodel of TinyCeil, to be concatenated."""
    made = {name: [as_blob(each) for each in pair] for name, pair in (arrays or tiny_arrays()).items()}
    return [
        field(1, b"Tiny"),
        layer("Data", b"data", [], [b"data", b"label"]),
        layer("Split", b"s", [b"label"], [b"label_0", b"label_1"]),
        layer("Convolution", b"conv1", [b"data"], [b"c1"], made["conv1"], kernel_size=11, stride_h=8, stride_w=8),
        layer("ReLU", b"r1", [b"c1"], [b"c1"]),
        layer("Pooling", b"p1", [b"c1"], [b"p1"], kernel_size=3, stride=2),
        layer("LRN", b"n1", [b"p1"], [b"n1"], local_size=5, alpha=5e-4, k=2.0),
        layer("Convolution", b"conv2", [b"n1"], [b"c2"], made["conv2"], kernel_size=3, stride=2, pad=1, group=2),
        layer("ReLU", b"r2", [b"c2"], [b"c2"]),
        layer("InnerProduct", b"fc3", [b"c2"], [b"f3"], made["fc3"]),
        layer("ReLU", b"r3", [b"f3"], [b"f3"]),
        layer("Dropout", b"d3", [b"f3"], [b"d3"]),
        layer("InnerProduct", b"fc4", [b"d3"], [b"f4"], made["fc4"]),
        layer("Split", b"s4", [b"f4"], [b"f4_0", b"f4_1"]),
        layer("SoftmaxWithLoss", b"loss", [b"f4_0", b"label_0"], [b"loss"]),
        layer("Accuracy", b"accuracy", [b"f4_1", b"label_1"], [b"accuracy"]),
    ]


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a .caffemodel, given as bytes or list of bytes, and returns its path."""

    def written(content):
        path = tmp_path / "some.caffemodel"
        path.write_bytes(content if isinstance(content, bytes) else b"".join(content))
        return path

    return written


def refusal(path):
    """Load a file that must be refused; return the error message."""
    with pytest.raises(WeightsError) as raised:
        caffemodel.load(path)
    sentence = str(raised.value)
    assert sentence.startswith(str(path.parent)) and "\n" not in sentence and len(sentence) < 500
    return sentence


def as_doubles(array):
    return blob(array, data=b"").replace(field(5, b""), field(8, array.astype("<f8").tobytes()))


def in_two_pieces(array):
    """Packed values may be split into several fields."""
    data = array.tobytes()
    return blob(array, data=data[:8]) + field(5, data[8:])


def with_gradients(array):
    return blob(array) + field(6, array.tobytes())


@pytest.mark.parametrize("as_blob", [blob, as_doubles, in_two_pieces, with_gradients])
def test_arrays_are_converted_exactly(write, as_blob):
    arrays = tiny_arrays()
    weights = caffemodel.load(write(tiny_pieces(arrays, as_blob)))
    assert weights.model == "tiny_ceil"
    assert list(weights.arrays) == [parameter.name for parameter in TinyCeil(None).parameters]
    for name, (W, b) in arrays.items():
        got = weights.arrays[f"{name}.W"]
        assert (weights.arrays[f"{name}.b"] == b).all()
        for place in np.ndindex(W.shape):
            o, *inner = place
            if name == "conv1":
                inner[0] = 2 - inner[0]          # B, G, R
            assert got[(*inner, o)] == W[place]


@pytest.mark.parametrize("files, expected", [
    ((), "no *mean*.binaryproto in its folder"),
    (("a_mean.binaryproto", "mean_b.binaryproto"), "2 *mean*.binaryproto in its folder"),
])
def test_published_means_are_used_without_one_mean_file(write, files, expected):
    path = write(tiny_pieces())
    for name in files:
        (path.parent / name).write_bytes(b"")
    weights = caffemodel.load(path)
    assert expected in weights.origin
    for channel, value in zip(weights.mean, reversed(IMAGENET_MEAN), strict=True):
        assert (channel == np.float32(value)).all()


@pytest.mark.parametrize("content", [
    b"", b"\x0f\x0f", blob(np.ones((1, 3, 4, 4))), blob(np.full((3, 256, 256), np.nan)), blob(np.ones((3, 256, 255))),
])
def test_a_mean_file_that_is_none_is_refused(write, content):
    path = write(tiny_pieces())
    (path.parent / "mean.binaryproto").write_bytes(content)
    assert "mean" in refusal(path)


def test_a_file_of_layers_without_a_name_loads(write):
    assert pretrained.load(write(tiny_pieces()[1:])).model == "tiny_ceil"


@pytest.mark.parametrize("values, expected", [([100.0], (100, 100, 100)), ([90.0, 100.0, 110.0], (110, 100, 90))])
def test_mean_values_of_the_file_are_used(write, values, expected):
    pieces = tiny_pieces()
    pieces[1] = layer("Data", b"data", [], [b"data", b"label"], mean_value=values)
    assert tuple(caffemodel.load(write(pieces)).mean[:, 7, 9]) == expected


def test_published_file_is_identified_by_sha1(write, monkeypatch):
    content = b"".join(tiny_pieces())
    assert "none of the files that Caffe published" in caffemodel.load(write(content)).origin
    monkeypatch.setitem(caffemodel.PUBLISHED, hashlib.sha1(content).hexdigest(), "bvlc_tiny.caffemodel")
    assert "the published bvlc_tiny.caffemodel" in caffemodel.load(write(content)).origin


def test_truncation_is_refused_wherever_it_is(write):
    pieces = tiny_pieces()
    needed, content = len(b"".join(pieces[:13])), b"".join(pieces)
    ends = np.cumsum([len(piece) for piece in pieces])
    for cut in {*range(0, needed, 211), *range(200), *ends[:12], needed - 1}:
        refusal(write(content[:cut]))
    caffemodel.load(write(content[:needed]))          # the rest is only used for training


def test_damaged_caffemodels_raise_only_weights_errors(write):
    content, rng = bytearray(b"".join(tiny_pieces())), np.random.default_rng(1)
    for place in [*range(120), *rng.integers(0, len(content), 120)]:
        before, content[place] = content[place], rng.integers(0, 256)
        try:
            caffemodel.load(write(bytes(content)))
        except WeightsError as error:
            assert "\n" not in str(error)
        content[place] = before


def test_values_that_are_not_finite_are_refused(write):
    for value in (np.nan, np.inf):
        arrays = tiny_arrays()
        arrays["fc3"][0][2, 5] = value
        assert "fc3.W holds values that are not finite" in refusal(write(tiny_pieces(arrays)))


@pytest.mark.parametrize("dims, data", [
    ((4, 3, 11, 11), b"\0" * (4 * 4 * 3 * 121 - 4)),
    ((4, 3, 11, 11), b"\0" * (4 * 4 * 3 * 121 - 1)),
    ((4, 3, 11, 11), b""),
    ((2**40, 3, 11, 11), b"\0\0\0\0"),
    ((2**32, 2**32, 11, 11), b""),
    ((-4, -3, 11, 11), b"\0" * (4 * 4 * 3 * 121)),
    ((0, 0, 11, 11), b""),
])
@pytest.mark.parametrize("shaped", [False, True])
def test_blob_shape_mismatch_is_refused(write, dims, data, shaped):
    pieces = tiny_pieces()
    made = [blob(None, shaped, dims, data), blob(np.ones(4))]
    pieces[3] = layer("Convolution", b"conv1", [b"data"], [b"c1"], made, kernel_size=11, stride=8)
    assert "conv1" in refusal(write(pieces)) or "another network" in refusal(write(pieces))


def test_a_blob_of_a_million_lengths_is_refused(write):
    pieces = tiny_pieces()
    made = [blob(None, True, (1,) * 1_000_000, b"\0\0\0\0"), blob(np.ones(4))]
    pieces[3] = layer("Convolution", b"conv1", [b"data"], [b"c1"], made, kernel_size=11, stride=8)
    assert "of 1000000 lengths" in refusal(write(pieces))


def test_unpacked_values_are_refused_as_missing(write):
    pieces = tiny_pieces(as_blob=lambda a: blob(a, data=b"") + b"".join(field(5, float(v)) for v in a.flat[:5]))
    assert "0 values" in refusal(write(pieces))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_layer_without_bias_is_refused(write, count):
    pieces = tiny_pieces()
    made = [blob(np.ones((6, 2, 3, 3))), blob(np.ones(6)), blob(np.ones(6))][:count]
    pieces[7] = layer("Convolution", b"conv2", [b"n1"], [b"c2"], made, kernel_size=3)
    assert f"conv2 must have two blobs, weights and bias, got {count}" in refusal(write(pieces))


@pytest.mark.parametrize("content, expected", [
    (b"", "0 bytes"),
    (b'name: "CaffeNet"\nlayer {\n  name: "data"\n}\n' * 30, "prototxt"),
    (np.random.default_rng(0).bytes(5000), "damaged, or no .caffemodel"),
    (field(1, 450000) + field(2, b"snapshot.caffemodel") + field(3, blob(np.ones((2, 2)))), "damaged, or no"),
    (field(1, b"Nothing"), "it has no layer with weights"),
    (b"\x0b" * 100_000, "damaged, or no .caffemodel"),
    (field(2, b"\x0b" * 100_000), "damaged, or no .caffemodel"),
    (field(2, field(1, field(1, b"conv1"))), "upgrade_net_proto_binary"),
    (b"\x89HDF\r\n\x1a\n" + bytes(500), "damaged, or no .caffemodel"),
])
def test_what_is_no_caffemodel_is_refused(write, content, expected):
    assert expected in refusal(write(content))


def test_file_over_two_gigabytes_is_refused_unread(tmp_path):
    path = tmp_path / "some.caffemodel"
    with path.open("wb") as file:
        file.truncate(2**31)                     # sparse: takes no disk
    assert "2147483648 bytes" in refusal(path)


# ---- detecting the network: AlexNet's files with empty weight blobs


@pytest.fixture(scope="module")
def thin(blobs):
    """Return {layer: (weight blob that has only a shape, bias blob)}."""
    return {name: (blob(None, dims=W.shape, data=b""), blob(b)) for name, (W, b) in blobs.items()}


MISMATCHES = {
    ("conv1", "stride", 2): "conv1 has strides 2, caffenet's 4",
    ("conv1", "kernel_size", 7): "kernel_size 7, and filters of size 11",
    ("conv1", "dilation", 2): "dilated by [2]",
    ("conv2", "pad", 1): "conv2 has pads 1, caffenet's 2",
    ("conv2", "pad_h", 1): "conv2 has pads (1, 0), caffenet's 2",
    ("conv2", "group", 1): "conv2 has group 1, caffenet's 2",
    ("pool1", "pool", 1): "where caffenet has MaxPool (conv1), it has AveragePool",
    ("pool1", "pool", 2): "pool1 must be max or average pooling, got pool 2",
    ("pool1", "kernel_size", 2): "has kernel_shape 2, caffenet's 3",
    ("pool1", "stride", 3): "has strides 3, caffenet's 2",
    ("norm1", "local_size", 3): "lrn1 has size 3, caffenet's 5",
    ("norm1", "alpha", 2e-4): "lrn1 has alpha 0.0002, caffenet's 0.0001",
    ("norm2", "beta", 0.5): "lrn2 has beta 0.5, caffenet's 0.75",
    ("norm2", "k", 2.0): "lrn2 has bias 2, caffenet's 1",
    ("norm2", "norm_region", 1): "norm2 must normalise across channels",
    ("relu3", "negative_slope", 0.1): "where caffenet has Relu (conv3), it has LeakyRelu",
    ("fc7", "transpose", 1): "fc7 must be of axis 1 and not transposed",
}


@pytest.mark.parametrize("v1", [True, False])
@pytest.mark.parametrize("change", MISMATCHES, ids=lambda change: f"{change[0]}.{change[1]}")
def test_each_different_constant_is_refused(write, thin, change, v1):
    name, setting, value = change
    pieces = caffe_truth.caffemodel("caffenet", thin, v1, changed={name: {setting: value}})
    assert MISMATCHES[change] in refusal(write(pieces))


@pytest.mark.parametrize("data, expected", [
    ({"scale": 1 / 256}, "images multiplied by 0.00390625"), ({"crop_size": 224}, "crops of 224 pixels"),
    ({"mean_value": [1.0, 2.0]}, "for each of 3 channels, got 2"), ({"mean_value": [-1.0]}, "outside 0 to 255"),
])
def test_other_preprocessing_is_refused(write, data, expected):
    pieces = tiny_pieces()
    pieces[1] = layer("Data", b"data", [], [b"data", b"label"], **data)
    assert expected in refusal(write(pieces))


def test_a_network_of_other_layers_is_refused(write, thin):
    pieces = caffe_truth.caffemodel("caffenet", thin)
    evil = layer("Sigmoid", b"in\nception" * 100, [b"conv1"], [b"x"])
    assert "in?ceptionin?ception" in refusal(write([*pieces[:9], evil, *pieces[9:]]))
    assert "is of type 'Sigmoid'" in refusal(write([*pieces[:9], evil, *pieces[9:]]))
    both = layer("Concat", b"both", [b"conv1", b"conv1"], [b"norm1"])
    assert "both must concatenate the outputs of several layers" in refusal(write([*pieces[:5], both, *pieces[6:]]))
    assert "it has 1 side branches, caffenet 0" in refusal(write([*pieces[:3], pieces[2], *pieces[3:]]))
    for missing, expected in ((3, "has Relu (conv1), it has MaxPool"), (4, "norm1 takes pool1, which no layer"),
                              (18, "has Relu (fc6), it has Gemm")):
        assert expected in refusal(write(pieces[:missing] + pieces[missing + 1 :]))


def test_order_of_pooling_and_normalisation_identifies_model(write, thin):
    for model in ("caffenet", "bvlc_alexnet"):           # recognised, then refused because the weights are missing
        pieces = caffe_truth.caffemodel(model, thin)
        assert "conv1: its weights must have a shape" in refusal(write(pieces))
        net = parsed(messages.MESSAGES["NetParameter"](), b"".join(pieces), "", "")
        assert caffemodel.identified(net, caffemodel.network_of(net, ""), "") == model


def test_files_with_only_weights_need_a_known_name(write, thin):
    def pieces(name):
        return [field(1, name), *(field(100, fields({"name": 1, "blobs": 7}, name=layer.encode(), blobs=list(pair)))
                                  for layer, pair in thin.items())]

    for name in (b"CaffeNet", b"AlexNet"):
        assert "conv1: its weights must have a shape" in refusal(write(pieces(name)))
    assert "the order of pooling and normalisation" in refusal(write(pieces(b"mine")))
    assert "another network than caffenet" in refusal(write(pieces(b"CaffeNet")[:-2]))
