"""PyTorch's files: state dicts of each format load alike, outputs equal PyTorch's, and a pickle runs nothing."""

import importlib.util
import pickle
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from alexnet import pretrained
from alexnet.data.augment import centre_crop
from alexnet.models import MODELS, Model
from alexnet.nn import Conv, Dense, Flatten
from alexnet.pretrained import WeightsError
from tests import pth_files
from tests.small_alexnet import same_bits

LAYERS = [*(f"features.{n}" for n in (0, 3, 6, 8, 10)), *(f"classifier.{n}" for n in (1, 4, 6))]
SHAPES = ((4, 3, 11, 11), (6, 4, 5, 5), (8, 6, 3, 3), (6, 8, 3, 3), (4, 6, 3, 3), (12, 144), (12, 12), (10, 12))


class Narrow(Model):
    """torchvision's AlexNet with few channels."""

    image_size = 224

    def table(self, rng, classes, dropout_rate):
        return (
            Conv(rng, 3, 4, size=11, stride=4, pad=2, pool=(3, 2)),
            Conv(rng, 4, 6, size=5, pad=2, pool=(3, 2)),
            Conv(rng, 6, 8, size=3, pad=1),
            Conv(rng, 8, 6, size=3, pad=1),
            Conv(rng, 6, 4, size=3, pad=1, pool=(3, 2)), Flatten(),
            Dense(rng, 144, 12), Dense(rng, 12, 12), Dense(rng, 12, classes, relu=False),
        )


@pytest.fixture(autouse=True)
def narrow(request, monkeypatch):
    """Replace torchvision_alexnet by the narrow network, unless the test is marked slow."""
    if "slow" not in request.keywords:
        monkeypatch.setitem(MODELS, "torchvision_alexnet", Narrow)


@pytest.fixture
def state(rng):
    """Return name -> array of a state dict."""
    arrays = {}
    for layer, shape in zip(LAYERS, SHAPES, strict=True):
        arrays[f"{layer}.weight"] = rng.standard_normal(shape).astype("float32")
        arrays[f"{layer}.bias"] = rng.standard_normal(shape[0]).astype("float32")
    return arrays


def refused(path, sentence, **choices):
    with pytest.raises(WeightsError, match=sentence) as caught:
        pretrained.load(path, **choices)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_state_dicts_load_with_torchvisions_preprocessing(tmp_path, state, kind):
    path = tmp_path / "alexnet.weights"
    {"zip": pth_files.save_zip, "old": pth_files.save_old, "safetensors": lambda path, arrays: save_file(arrays, path)}[
        kind](path, state)
    weights = pretrained.load(path)
    assert pretrained.format_of(path) == "pytorch" and weights.model == "torchvision_alexnet"
    for name, ours in zip(state, weights.arrays.values(), strict=True):
        theirs = np.moveaxis(state[name], 0, -1)                 # the axis of outputs last
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
    pixel = np.float32([[10], [100], [200]])
    ours = np.float32(weights.scale)[:, None] * (pixel - weights.mean[:, :1, 0])
    theirs = (pixel / 255 - np.float32([[0.485], [0.456], [0.406]])) / np.float32([[0.229], [0.224], [0.225]])
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert weights.resize == "shorter" and str(tmp_path) not in weights.origin
    assert weights.origin.startswith("torchvision's AlexNet of alexnet.weights, none of the files that torchvision pub")
    assert "torchvision's preprocessing" in weights.origin and weights.origin.endswith(", assumed")


def test_stated_preprocessing_of_caffe_reverses_the_channels(tmp_path, state):
    path = pth_files.save_zip(tmp_path / "net.pth", state)
    rgb, bgr = pretrained.load(path), pretrained.load(path, preprocessing="caffe")
    np.testing.assert_array_equal(bgr.arrays["conv1.W"], rgb.arrays["conv1.W"][::-1])
    assert bgr.scale == (1, 1, 1) and "BGR" in bgr.origin and bgr.origin.endswith("as stated")


def test_training_checkpoint_of_parallel_modules_is_read(tmp_path, state):
    tensors = {f"module.{name}": pth_files.tensor(str(n), each) for n, (name, each) in enumerate(state.items())}
    optimizer = {"lr": b"G?\xb9\x99\x99\x99\x99\x99\x9a", "params": b"](K\x01K\x02e", "nesterov": b"\x89", "max": b"N"}
    everything = pth_files.dict_of({
        "epoch": pth_files.number(90), "arch": pth_files.text("alexnet"), "state_dict": pth_files.dict_of(tensors),
        "optimizer": pth_files.dict_of(optimizer, b"}"),
    }, b"}")
    path = pth_files.save_zip(tmp_path / "checkpoint.pth.tar", state, pth_files.pickled(everything))
    pth_files.save_zip(tmp_path / "net.pth", state)
    assert same_bits(pretrained.load(path).arrays, pretrained.load(tmp_path / "net.pth").arrays)


def test_views_and_permuted_tensors_are_read(tmp_path, state):
    """As torch.save writes a network in channels_last, and tensors that share a storage."""
    both = np.concatenate([state["features.0.bias"], state["features.3.bias"]])
    tensors, arrays = {}, {}
    for key, (name, array) in enumerate(state.items()):
        arrays[name] = np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if array.ndim == 4 else array
        seen = arrays[name].transpose(0, 3, 1, 2) if array.ndim == 4 else array
        tensors[name] = pth_files.tensor(str(key), seen)
    arrays["features.3.bias"] = both
    key = str(list(state).index("features.3.bias"))
    for name, offset in (("features.0.bias", 0), ("features.3.bias", 4)):
        tensors[name] = pth_files.tensor(key, state[name], both.size, offset)
    pth_files.save_zip(tmp_path / "views.pth", arrays, pth_files.pickled(pth_files.dict_of(tensors)))
    pth_files.save_zip(tmp_path / "net.pth", state)
    assert same_bits(pretrained.load(tmp_path / "views.pth").arrays, pretrained.load(tmp_path / "net.pth").arrays)


class Payload:
    """Unpickled by Python, it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def payloads(ran):
    """Return name -> opcodes that create the file `ran` if Python unpickles them."""
    by_python = {f"protocol {n}": pickle.dumps(Payload(ran), n)[2 if n else 0:-1] for n in (0, 2, 4)}
    path, call = pth_files.text(str(ran)) + b"X\x01\0\0\0w", pth_files.name_of("builtins", "open")
    stack_global = pth_files.text("builtins") + pth_files.text("open") + b"\x93"
    return by_python | {
        "inst": b"(" + path + b"ibuiltins\nopen\n", "obj": b"(" + call + path + b"o",
        "stack_global": stack_global + b"(" + path + b"tR",
        "memo": call + b"q\x050h\x05(" + path + b"tR",
        "newobj": pth_files.name_of("pathlib", "Path") + b"(" + pth_files.text(str(ran)) + b"t\x81",
        "build": pth_files.ORDERED_DICT + pth_files.dict_of({"__class__": call}, b"}") + b"b",
        "in a tensor": pth_files.name_of("torch._utils", "_rebuild_tensor_v2") + b"(" + call + b"(" + path + b"tRtR",
        "in a persistent id": b"(" + call + b"(" + path + b"tRtQ",
        "in pairs": pth_files.name_of("collections", "OrderedDict") + b"(](" + call + b"(" + path + b"tRetR",
        "disguised": pth_files.name_of("torch", "FloatStorage.__init__.__globals__") + b"(tR",
        "control characters": pth_files.text("\x1b[2J\n") + pth_files.text("\ud800") + b"\x93",
        "torch": pth_files.name_of("torch.hub", "load") + b"(" + path + b"tR",
    }


@pytest.mark.parametrize("save", [pth_files.save_zip, pth_files.save_old])
@pytest.mark.parametrize("what", payloads(""))
def test_a_payload_is_refused_and_runs_nothing(tmp_path, state, save, what):
    ran = tmp_path / "ran"
    opcodes = payloads(ran)[what]
    tensors = {name: pth_files.tensor(str(key), array) for key, (name, array) in enumerate(state.items())}
    hidden = pth_files.pickled(pth_files.dict_of(tensors | {"zzz": opcodes}))
    if what.startswith(("protocol", "inst", "stack_global")):      # it is a payload
        pickle.loads(pth_files.pickled(opcodes)).close()
        assert ran.exists()
        ran.unlink()
    refused(save(tmp_path / "net.pth", state, hidden), r"has a pickle (that|with)|is damaged|no tensor")
    assert not ran.exists()


def test_a_payload_in_the_head_of_an_older_file_is_refused(tmp_path, state):
    ran = tmp_path / "ran"
    payload = pickle.dumps(Payload(ran), 2)
    path = pth_files.save_old(tmp_path / "net.pth", state, machine=payload)
    refused(path, "has a pickle that names .*open, which can run code; only tensors are read, and nothing was run")
    path.write_bytes(payload)
    refused(path, "is a pickle that torch.save did not write, which is never read because it can run code")
    assert not ran.exists()


def test_a_whole_model_is_refused_with_the_cure(tmp_path, state):
    whole = pth_files.pickled(pth_files.name_of("torchvision.models.alexnet", "AlexNet") + b")\x81}b")
    path = pth_files.save_zip(tmp_path / "net.pth", state, whole)
    refused(path, r"whole model \(class torchvision.models.alexnet.AlexNet\).* save model.state_dict\(\)")
    pth_files.save_zip(path, state, extra=["constants.pkl"])
    refused(path, "is a TorchScript program")


NETWORKS = {                                     # some shapes of torchvision's state dicts, in order
    "VGG-19": {f"features.{n}.weight": (64, 64, 3, 3) for n in range(16)}
    | {f"classifier.{n}.weight": (9, 9) for n in (0, 3, 6)},
    "VGG-16 with batch normalisation": {f"features.{n}.weight": (64, 64, 3, 3) for n in range(13)}
    | {f"classifier.{n}.weight": (9, 9) for n in (0, 3, 6)} | {"features.1.running_mean": (64,)},
    "ResNet-50": {f"layer{n}.conv1.weight": (64, 64, 1, 1) for n in range(53)}
    | {"fc.weight": (1000, 2048), "bn1.running_mean": (64,)},
    "GoogLeNet": {f"inception{n}.conv.weight": (64, 64, 1, 1) for n in range(57)}
    | {"fc.weight": (1000, 1024), "conv1.bn.running_mean": (64,), "aux1.fc1.weight": (9, 9)},
}


@pytest.mark.parametrize("network", NETWORKS)
def test_known_networks_are_named(tmp_path, network):
    path = pth_files.save_zip(tmp_path / "net.pth", {}, pth_files.named_shapes(NETWORKS[network]))
    refused(path, f"holds {network}.*, which is not supported; networks from PyTorch that are read: torchvision")


def test_unknown_networks_list_some_names(tmp_path):
    pickled = pth_files.named_shapes({"a.weight": (1, 1), "b.weight": (1, 1)})
    path = pth_files.save_zip(tmp_path / "net.pth", {}, pickled)
    refused(path, r"holds an unknown network \(2 tensors: a.weight, b.weight")


@pytest.mark.parametrize(("change", "sentence"), [
    ({"shape": (1 << 40, 3, 11, 11)}, r"features.0.weight must have shape \(4, 3, 11, 11\)"),
    ({"size": 1 << 50}, "bytes, its pickle needs|ends before storage"), ({"offset": 1}, "larger than its storage"),
    ({"strides": (1 << 62, 1, 1, 1)}, "larger than its storage"), ({"offset": -1}, "not a number of at least 0"),
])
@pytest.mark.parametrize("save", [pth_files.save_zip, pth_files.save_old])
def test_sizes_are_checked_before_values_are_read(tmp_path, state, save, change, sentence):
    tensors = {name: pth_files.tensor(str(key), array) for key, (name, array) in enumerate(state.items())}
    tensors["features.0.weight"] = pth_files.tensor("0", state["features.0.weight"], **change)
    refused(save(tmp_path / "net.pth", state, pth_files.pickled(pth_files.dict_of(tensors))), sentence)


@pytest.mark.parametrize(("pickled", "sentence"), [
    (b"", "is damaged"), (b"\x80\x02", "is damaged"), (b"\x80\x02.", "is damaged"), (b"K\x01.", "no state dict"),
    (b"X\xff\xff\xff\xffa", "is damaged"), (b"h\x05.", "is damaged"), (b"}(K\x01u.", "is damaged"),
    (b"}(" + b"(" * 1000 + b"t" * 1000 + b"K\x01u.", "is damaged"), (b"})K\x01s.", "is damaged"),
    (b"N" * (1 << 22) + b".", "at most 4194304 are read"), (b"}X\x01\0\0\0aNs.", "its entry 'a' is no tensor"),
])
def test_malformed_pickles_are_refused(tmp_path, state, pickled, sentence):
    refused(pth_files.save_zip(tmp_path / "net.pth", state, pickled), sentence)


def test_compressed_and_half_precision_files_are_refused(tmp_path, state):
    path = pth_files.save_zip(tmp_path / "net.pth", state, compression=zipfile.ZIP_DEFLATED)
    refused(path, "is compressed, which torch.save never does")
    path = pth_files.save_zip(path, {name: array.astype("float16") for name, array in state.items()})
    refused(path, "must be float32, got float16; save the network after .float")


def test_flipped_bits_never_give_other_weights(tmp_path, state):
    path = pth_files.save_zip(tmp_path / "net.pth", state)
    content, rng, expected = bytearray(path.read_bytes()), np.random.default_rng(0), pretrained.load(path)
    for place in [*rng.integers(0, 3000, 70), *rng.integers(0, len(content), 30), *range(-900, 0, 19)]:
        bit = 1 << rng.integers(8)
        content[place] ^= bit
        path.write_bytes(content)
        try:
            assert same_bits(pretrained.load(path).arrays, expected.arrays), place
        except WeightsError as error:
            assert "\n" not in str(error)
        content[place] ^= bit


# ---- against PyTorch


def networks(torch):
    """Return model -> torchvision's network as a plain module with its names, with random weights."""
    nn = torch.nn

    class Net(nn.Module):
        def __init__(self, size, features, classifier):
            super().__init__()
            self.features, self.classifier = nn.Sequential(*features), nn.Sequential(*classifier)
            self.avgpool = nn.AdaptiveAvgPool2d((size, size))
            for layer in self.modules():         # logits of the order of 1, which depend on the image
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

        def forward(self, x):
            return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))

    def convs(plan, channels=3):
        for filters in plan:
            yield nn.Conv2d(channels, filters, 3, padding=1) if filters else nn.MaxPool2d(2, 2)
            yield from [nn.ReLU()] if filters else []
            channels = filters or channels

    def dense(inputs, first):
        for n, outputs in ((inputs, 4096), (4096, 4096)):
            yield from ((nn.Dropout(), nn.Linear(n, outputs), nn.ReLU()) if first else
                        (nn.Linear(n, outputs), nn.ReLU(), nn.Dropout()))
        yield nn.Linear(4096, 1000)

    pool = nn.MaxPool2d(3, 2)
    alexnet = [nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), pool, nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), pool,
               *convs([384, 256, 256], 192), pool]
    vgg16 = convs([64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0])
    return {"torchvision_alexnet": Net(6, alexnet, dense(9216, True)), "vgg16": Net(7, vgg16, dense(25088, False))}


def resnet50(torch):
    """Return ResNet-50 with torchvision's names of modules, and random running statistics."""
    from torch import nn

    class Block(nn.Module):
        def __init__(self, channels, width, stride):
            super().__init__()
            outputs = 4 * width
            self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
            self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
            self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
            if channels != outputs:
                projection = nn.Conv2d(channels, outputs, 1, stride, bias=False)
                self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

        def forward(self, x):
            y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
            return (self.bn3(self.conv3(y)) + (self.downsample(x) if hasattr(self, "downsample") else x)).relu()

    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
            plan = (3, 64, 64), (4, 256, 128), (6, 512, 256), (3, 1024, 512)
            for stage, (blocks, channels, width) in enumerate(plan):
                strides = [2 if stage else 1] + [1] * (blocks - 1)
                inputs = [channels] + [4 * width] * (blocks - 1)
                layers = (Block(each, width, stride) for each, stride in zip(inputs, strides, strict=True))
                setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
            self.fc = nn.Linear(2048, 1000)
            for layer in self.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    nn.init.uniform_(layer.running_mean, -0.2, 0.2)
                    nn.init.uniform_(layer.running_var, 0.5, 2)

        def forward(self, x):
            x = nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
            for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
                x = stage(x)
            return self.fc(x.mean((2, 3)))

    return ResNet()


def saved(torch, network, folder, kind):
    """Save a network in a format of PyTorch; return the path and the preprocessing to state."""
    path, image = folder / f"net.{kind}", torch.zeros(1, 3, 224, 224)
    if kind in ("pth", "old"):
        torch.save(network.state_dict(), path, _use_new_zipfile_serialization=kind == "pth")
    elif kind == "safetensors":
        save_file({name: each.numpy() for name, each in network.state_dict().items()}, path)
    else:
        torch.onnx.export(network, (image,), path, dynamo=kind == "dynamo")
        return path, "torchvision"
    return path, None


@pytest.mark.slow
@pytest.mark.parametrize("model", ["torchvision_alexnet", "vgg16", "torchvision_resnet50"])
@pytest.mark.filterwarnings("ignore")            # of the exporters
def test_logits_equal_pytorchs(tmp_path, rng, model):
    torch = pytest.importorskip("torch", reason="PyTorch is the truth here")
    torch.manual_seed(1)
    residual = model == "torchvision_resnet50"
    network = (resnet50(torch) if residual else networks(torch)[model]).eval()
    images = rng.integers(0, 256, (3, 256, 256, 2), dtype=np.uint8)
    mean, std = (torch.tensor(each).reshape(1, 3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    crops = torch.from_numpy(images[:, 16:240, 16:240].transpose(3, 0, 1, 2).astype("float32"))
    with torch.no_grad():
        theirs = network((crops / 255 - mean) / std).numpy().T
    arrays = None
    for kind in ("pth", "old", "safetensors", "script", "dynamo"):
        if kind == "script" and (residual or not importlib.util.find_spec("onnxscript")):
            break                                # only chains are read from ONNX
        path, stated = saved(torch, network, tmp_path, kind)
        weights = pretrained.load(path, preprocessing=stated)
        for file in tmp_path.iterdir():          # up to 553 MB, which pytest would keep for three runs
            file.unlink()
        assert weights.model == model and (arrays is None or same_bits(weights.arrays, arrays)), kind
        arrays = weights.arrays
    ours = pretrained.build(weights).logits(images, *centre_crop(2, 224))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * max(1, abs(theirs).max()))


@pytest.mark.slow
def test_torchvision_alexnet_has_61100840_parameters():
    assert sum(each.size for each in MODELS["torchvision_alexnet"](None).parameters) == 61_100_840
