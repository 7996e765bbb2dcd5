"""theano_alexnet's format: files of an independent script give PyTorch's outputs; our exports load back bit for bit."""

import io
import json
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import convolve

from alexnet import pretrained
from alexnet.pretrained import WeightsError, upstream
from tests import reference
from tests.small_alexnet import narrow, same_bits, weights_of_narrow

__all__ = ["narrow"]

NAMES = [
    "W_0", "b_0", "W0_1", "b0_1", "W1_1", "b1_1", "W_2", "b_2", "W0_3", "b0_3", "W1_3", "b1_3",
    "W0_4", "b0_4", "W1_4", "b1_4", "W_5", "b_5", "W_6", "b_6", "W_7", "b_7",
]


# ---- the format, against an independent implementation


def write_by_independent_script(torch, folder):
    """Build a PyTorch network and write theano_alexnet's files; return images and the network's logits.

    The script uses only the description of the format. Filters are flipped for a true convolution and stored as (in,
    row, column, out), in two halves along out. Dense weights are (in, out). At test time, the outputs of fc6 and fc7
    are multiplied by 0.5.
    """
    functional, generator = torch.nn.functional, torch.Generator().manual_seed(1)
    table = [  # out, in / groups, size, groups
        (96, 3, 11, 1), (256, 48, 5, 2), (384, 256, 3, 1), (384, 192, 3, 2), (256, 192, 3, 2),
        (4096, 9216, 0, 1), (4096, 4096, 0, 1), (1000, 4096, 0, 1),
    ]
    layers = []
    for index, (out, inputs, size, groups) in enumerate(table):
        shape = (out, inputs, size, size) if size else (out, inputs)
        weights = torch.randn(shape, generator=generator)
        weights *= (2 / (inputs * max(size, 1) ** 2)) ** 0.5
        biases = 0.1 * torch.randn(out, generator=generator)
        layers.append((weights, biases))
        for half in range(groups):
            part = weights[half * out // groups : (half + 1) * out // groups]
            stored = part.flip(2, 3).permute(1, 2, 3, 0) if size else part.T
            label = str(half) if groups == 2 else ""
            np.save(folder / f"W{label}_{index}_65.npy", stored.contiguous().numpy())
            np.save(folder / f"b{label}_{index}_65.npy", biases[half * out // groups :][: out // groups].numpy())
    images = torch.randint(0, 256, (3, 3, 256, 256), generator=generator, dtype=torch.uint8)
    mean = 90 + 60 * torch.rand((3, 256, 256), generator=generator)
    np.save(folder / "img_mean.npy", mean.numpy())

    x = (images - mean)[:, :, 14 : 14 + 227, 14 : 14 + 227]
    for index, (weights, biases) in enumerate(layers):
        if index < 5:
            pad, groups = (0, 2, 1, 1, 1)[index], table[index][3]
            x = functional.relu(functional.conv2d(x, weights, biases, 4 if index == 0 else 1, pad, groups=groups))
            if index in (0, 1, 4):
                x = functional.max_pool2d(x, 3, 2)
            if index in (0, 1):                  # PyTorch divides alpha by 5
                x = functional.local_response_norm(x, 5, alpha=5e-4, beta=0.75, k=2.0)
        else:
            x = x.flatten(1) @ weights.T + biases
            if index < 7:
                x = 0.5 * functional.relu(x)
    return images.numpy().transpose(1, 2, 3, 0), x.numpy().T


def logits(weights, images):
    middle, no = np.full(images.shape[3], 14, "int32"), np.zeros(images.shape[3], "uint8")
    return pretrained.build(weights).logits(images, middle, middle, no)


@pytest.fixture
def large(tmp_path):
    """Yield a folder that is deleted after the test, because pytest would keep its 244 MB for three runs."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        yield Path(folder)


def test_files_of_independent_script_give_pytorch_outputs(large):
    torch = pytest.importorskip("torch", reason="PyTorch is the truth here")
    images, expected = write_by_independent_script(torch, large)
    weights = pretrained.load(large)
    found = logits(weights, images)
    assert expected.std() > 0.1                  # the outputs are not constant
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    for name, files in upstream.files_of(1000, 65).items():  # our files equal the script's
        for (file, _), ours in zip(files, upstream.theirs(name, weights.arrays[name]), strict=True):
            np.testing.assert_array_equal(ours, np.load(large / file))


def test_filters_are_flipped(rng):
    x, theirs = rng.normal(size=(3, 9, 8)), rng.normal(size=(3, 5, 4, 2))
    expected = [sum(convolve(x[c], theirs[c, ..., o], mode="valid") for c in range(3)) for o in range(2)]
    ours = upstream.ours("conv1.W", [theirs])
    np.testing.assert_allclose(reference.convolution(x[..., None], ours, 1, 0, 1)[..., 0], expected, rtol=1e-12)


def test_halves_are_joined_along_output_channels(rng):
    x, halves = rng.normal(size=(4, 6, 6)), rng.normal(size=(2, 2, 3, 3, 5))
    expected = [
        sum(convolve(x[2 * half + c], halves[half, c, ..., o], mode="valid") for c in range(2))
        for half in range(2) for o in range(5)
    ]
    ours = upstream.ours("conv2.W", list(halves))
    np.testing.assert_allclose(reference.convolution(x[..., None], ours, 1, 0, 2)[..., 0], expected, rtol=1e-12)


def test_dense_weights_after_dropout_are_halved(rng):
    hidden, theirs = rng.normal(size=6).astype("float32"), rng.normal(size=(6, 4)).astype("float32")
    for name in ("fc7.W", "fc8.W"):
        np.testing.assert_array_equal(hidden @ upstream.ours(name, [theirs]), (hidden * np.float32(0.5)) @ theirs)
    np.testing.assert_array_equal(upstream.ours("fc6.W", [theirs]), theirs)


# ---- round trip


@pytest.fixture
def exported(narrow, tmp_path):
    """Return the folder of an export of narrow weights, without weights.json, which upstream does not write."""
    upstream.save(weights_of_narrow(), tmp_path / "set")
    (tmp_path / "set" / "weights.json").unlink()
    return tmp_path / "set"


def zipped(folder, prefix="", **extra):
    """Zip the files of a folder and `extra` files; return the path of the zip, next to the folder."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + file.relative_to(folder).as_posix())
        for name, content in extra.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("name", ["set", "set.zip"])
def test_round_trip_is_bit_exact(narrow, tmp_path, name):
    weights = weights_of_narrow(class_names=tuple(f"class {i}" for i in range(10)), resize="crop")
    edges = [0.0, -0.0, 1e-45, -1e-45, 1.2e-38, 3 * 2.0**-149, 2.0**127 - 2.0**103]
    for array in weights.arrays.values():        # denormals, signed zeros, the largest value allowed
        array.flat[: len(edges)] = edges[: array.size]
    pretrained.save(weights, tmp_path / name)
    loaded = pretrained.load(tmp_path / name)
    assert same_bits(loaded.arrays, weights.arrays)
    assert loaded.mean.tobytes() == weights.mean.tobytes()
    assert (loaded.class_names, loaded.resize) == (weights.class_names, "crop")
    assert pretrained.format_of(tmp_path / name) == "upstream"


def test_export_has_theano_alexnet_names_and_shapes(narrow, tmp_path):
    upstream.save(weights_of_narrow(mean=False), tmp_path / "set")
    files = {file.name for file in (tmp_path / "set").iterdir()}
    assert files == {f"{name}_65.npy" for name in NAMES} | {"weights.json"}
    shapes = {name: np.load(tmp_path / "set" / f"{name}_65.npy").shape for name in ("W_0", "W0_1", "b1_3", "W_5")}
    assert shapes == {"W_0": (3, 11, 11, 4), "W0_1": (2, 5, 5, 3), "b1_3": (3,), "W_5": (144, 12)}


def test_the_same_weights_make_the_same_zip(narrow, tmp_path):
    for name in ("one.zip", "two.zip"):
        upstream.save(weights_of_narrow(), tmp_path / name)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_values_that_overflow_when_doubled_are_refused(narrow, tmp_path):
    weights = weights_of_narrow()
    weights.arrays["fc8.W"][0, 0] = 2.0**127
    with pytest.raises(WeightsError, match=r"fc8\.W holds values of 2\*\*127 or more"):
        upstream.save(weights, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_other_models_are_not_written(narrow, tmp_path):
    with pytest.raises(WeightsError, match=r"network is alexnet, these weights are caffenet's"):
        upstream.save(weights_of_narrow()._replace(model="caffenet"), tmp_path / "set")


def test_correlation_filters_are_kept(exported):
    turned, plain = pretrained.load(exported), pretrained.load(exported, unflipped=True)
    assert "unflipped" in plain.origin
    assert "unflipped" not in turned.origin
    for name, array in plain.arrays.items():
        expected = turned.arrays[name][:, ::-1, ::-1] if array.ndim == 4 else turned.arrays[name]
        np.testing.assert_array_equal(array, expected)


# ---- contents of the folder or zip


def copy_of_epoch(folder, epoch):
    for name in NAMES:
        np.save(folder / f"{name}_{epoch}.npy", np.load(folder / f"{name}_65.npy") / 2)


@pytest.mark.parametrize("packed", [False, True])
def test_newest_or_selected_epoch_is_read(exported, packed):
    copy_of_epoch(exported, 7)
    copy_of_epoch(exported, 100)
    for name in ("mom_0_65", "mom_15_100", "lr_100", "val_record"):      # written by upstream's training
        np.save(exported / f"{name}.npy", np.zeros(3))
    path = zipped(exported) if packed else exported
    newest, older = pretrained.load(path), pretrained.load(path, epoch=65)
    assert "epoch 100 in" in newest.origin
    assert "the newest of epochs 7, 65, 100" in newest.origin
    assert "epoch 65 in" in older.origin
    np.testing.assert_array_equal(2 * newest.arrays["conv4.W"], older.arrays["conv4.W"])
    with pytest.raises(WeightsError, match="has no epoch 8, but epochs 7, 65, 100"):
        pretrained.load(path, epoch=8)


def test_arrays_in_a_subfolder_are_read(exported, tmp_path):
    expected = pretrained.load(exported).arrays
    outer = tmp_path / "outer"
    shutil.copytree(exported, outer / "parameters_releasing")
    (outer / "__MACOSX").mkdir()
    assert same_bits(pretrained.load(outer).arrays, expected)
    path = zipped(outer, **{"readme.md": "65 epochs", "__MACOSX/parameters_releasing/._W_0_65.npy": b"\0"})
    assert same_bits(pretrained.load(path).arrays, expected)


def test_an_npz_of_their_names_is_read(exported):
    arrays = {file.stem: np.load(file) for file in exported.iterdir()}
    np.savez(exported.with_suffix(".npz"), **arrays)
    assert same_bits(pretrained.load(exported.with_suffix(".npz")).arrays, pretrained.load(exported).arrays)


def test_published_zip_is_identified_by_sha1(exported, monkeypatch):
    path = zipped(exported)
    origin = pretrained.load(path).origin
    assert "not the published file: SHA-1 " in origin
    monkeypatch.setattr(upstream, "PUBLISHED_SHA1", origin.split("SHA-1 ")[1][:40])
    assert "(the published file: SHA-1 " in pretrained.load(path).origin


@pytest.mark.parametrize("place", ["img_mean.npy", "misc/img_mean.npy", "../img_mean.npy", "../misc/img_mean.npy"])
@pytest.mark.parametrize("packed", [False, True])
def test_mean_image_is_found_in_folder_and_parent(exported, place, packed):
    mean = np.load(exported / "img_mean.npy").astype("float64")
    (exported / "img_mean.npy").unlink()
    assert pretrained.load(exported).mean is None
    target = exported / place
    target.parent.mkdir(exist_ok=True)
    np.save(target, mean)
    weights = pretrained.load(zipped(exported) if packed else exported)
    np.testing.assert_array_equal(weights.mean, mean.astype("float32"))
    assert "mean image" in weights.origin


def test_python_2_and_fortran_order_files_are_read(exported):
    expected = pretrained.load(exported).arrays
    array = np.load(exported / "W_0_65.npy")
    header = b"{'descr': '<f4', 'fortran_order': True, 'shape': (3L, 11L, 11L, 4L), }".ljust(117) + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + array.tobytes("F")
    (exported / "W_0_65.npy").write_bytes(content)
    assert same_bits(pretrained.load(exported).arrays, expected)


# ---- refused files


def npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


class Ignites:
    """Writes a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def declaring(shape, dtype="<f4"):
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


BROKEN = {  # case: (file name, new content or None to remove it, expected error)
    "a half is missing": ("W1_1_65.npy", None, r"has no W1_1_65\.npy, and so no whole epoch 65$"),
    "the halves' biases": ("b0_3_65.npy", None, "has no b0_3_65.npy.*early versions of theano_alexnet did not save"),
    "a layer is missing": ("W_2_65.npy", None, r"has no W_2_65\.npy"),
    "the last biases": ("b_7_65.npy", None, r"has no b_7_65\.npy"),
    "one too many": ("W_8_65.npy", npy(np.zeros(3)), r"a W_8_65\.npy, which theano_alexnet's network does not know"),
    "a whole beside halves": ("W_1_65.npy", npy(np.zeros(3)), r"has a W_1_65\.npy"),
    "halves of two shapes": (
        "W1_4_65.npy", npy(np.zeros((3, 3, 3, 3), "f4")),
        r"W1_4_65\.npy must hold float32 \(3, 3, 3, 2\), holds float32 \(3, 3, 3, 3\)",
    ),
    "doubles": ("b_5_65.npy", npy(np.zeros(12)), r"must hold float32 \(12,\), holds float64"),
    "bytes in another order": ("b_5_65.npy", npy(np.zeros(12, ">f4")), r"must hold float32 \(12,\), holds >f4"),
    "not finite": ("b_5_65.npy", npy(np.full(12, np.nan, "f4")), r"fc6\.b holds values that are not finite"),
    "empty": ("b_5_65.npy", b"", "b_5_65.npy is not a readable .npy array"),
    "no array": ("b_5_65.npy", b"PK\x03\x04" * 40, "b_5_65.npy is not a readable .npy array"),
    "truncated": ("b_5_65.npy", npy(np.zeros(12, "f4"))[:-5], "damaged: it holds 43 bytes of values, not 48"),
    "longer": ("b_5_65.npy", npy(np.zeros(12, "f4")) + b"1", "damaged: it holds 49 bytes of values, not 48"),
    "very long": ("b_5_65.npy", bytes(1 << 20), "is longer than 65632 bytes, which is all it can need"),
    "4 TB": ("b_5_65.npy", declaring((10**12,)), r"must hold float32 \(12,\), holds float32 \(1000000000000,\)"),
    "4 TB of classes": ("b_7_65.npy", declaring((10**12,)), "must hold at most 100000 numbers"),
    "header in header": ("b_5_65.npy", declaring("(" * 5000), "b_5_65.npy is not a readable .npy array"),
    "version 3": ("b_5_65.npy", b"\x93NUMPY\x03\x00" + bytes(60), "version .3, 0.; 1.0 and 2.0 are read"),
    "mean of another shape": ("img_mean.npy", npy(np.zeros((256, 256, 3))), r"mean image is float \(3, 256, 256\)"),
    "no grey levels": ("img_mean.npy", npy(np.full((3, 256, 256), -1)), "holds values outside 0 to 255"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_set_is_refused_in_a_sentence(exported, what, packed):
    name, content, sentence = BROKEN[what]
    (exported / name).unlink(missing_ok=True)
    if content is not None:
        (exported / name).write_bytes(content)
    with pytest.raises(WeightsError, match=sentence) as caught:
        pretrained.load(zipped(exported) if packed else exported)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["W_0_65.npy", "b_7_65.npy", "img_mean.npy"])
@pytest.mark.parametrize("packed", [False, True])
def test_object_array_is_refused_without_unpickling(exported, tmp_path, name, packed):
    trap = np.array([Ignites(tmp_path / "burnt")], dtype=object)
    (exported / name).write_bytes(npy(trap, allow_pickle=True))
    with pytest.raises(WeightsError, match="holds object"):
        pretrained.load(zipped(exported) if packed else exported)
    assert not (tmp_path / "burnt").exists()


def test_a_folder_in_place_of_an_array_is_refused(exported):
    (exported / "b_5_65.npy").unlink()
    (exported / "b_5_65.npy").mkdir()
    with pytest.raises(WeightsError, match=r"has no b_5_65\.npy"):
        pretrained.load(exported)


def refused(path, sentence):
    with pytest.raises(WeightsError, match=sentence) as caught:
        pretrained.load(path)
    assert "\n" not in str(caught.value)


def test_zip_bomb_is_not_decompressed(exported):
    (exported / "W_5_65.npy").write_bytes(declaring((144, 12)) + bytes(50_000_000))
    path = zipped(exported)
    assert path.stat().st_size < 1_000_000
    refused(path, "W_5_65.npy is longer than 79360 bytes")


def test_zip_paths_outside_are_not_followed(exported, tmp_path):
    mean = (exported / "img_mean.npy").read_bytes()
    (exported / "img_mean.npy").unlink()
    path = zipped(exported, prefix="../../etc/", **{"/etc/img_mean.npy": mean})
    assert pretrained.load(path).mean is None
    assert {each.name for each in tmp_path.iterdir()} == {"set", "set.zip"}


def test_zips_of_other_things_are_refused(exported, tmp_path):
    inner = zipped(exported).read_bytes()
    for file in exported.iterdir():
        file.unlink()
    refused(zipped(exported), "is a zip without theano_alexnet's arrays")
    refused(zipped(exported, **{"parameters_releasing.zip": inner}), "it holds parameters_releasing.zip, so unpack")
    torch = {"alexnet/data.pkl": b"\x80\x02}.", "alexnet/data/0": bytes(9)}
    refused(zipped(exported, **torch), "is compressed, which torch.save never does")
    twice = {"a/W_0_65.npy": b"", "b/W_0_65.npy": b""}
    refused(zipped(exported, **twice), "holds arrays in 2 folders, 'a' and others")
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("W_0_65.npy", b"1")
        archive.writestr("W_0_65.npy", b"2")
    refused(tmp_path / "two.zip", "holds two files of one name")


def test_damaged_zip_is_refused(exported):
    path = zipped(exported)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for length in rng.integers(2, len(whole), 20):
        path.write_bytes(whole[:length])
        refused(path, "is a damaged zip")
    for place in rng.integers(4, len(whole), 60):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            loaded = pretrained.load(path)       # the change is in unused metadata, such as a date
        except WeightsError as error:
            assert "\n" not in str(error)
        else:
            assert same_bits(loaded.arrays, pretrained.load(exported).arrays)


def test_encrypted_zip_is_refused(exported):
    path = zipped(exported)
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(b"b_7_65.npy"))
    content[entry + 8] |= 1                      # APPNOTE.TXT 4.3.12: general purpose flags, then the method
    path.write_bytes(content)
    refused(path, "b_7_65.npy is encrypted, or compressed in a way that is not read")


# ---- weights.json


def test_changed_exported_file_is_refused(narrow, tmp_path):
    folder = tmp_path / "set"
    upstream.save(weights_of_narrow(), folder)
    content = bytearray((folder / "W_5_65.npy").read_bytes())
    content[-1] ^= 1
    (folder / "W_5_65.npy").write_bytes(content)
    refused(folder, "W_5_65.npy is not as it was exported: its SHA-256 differs")
    (folder / "img_mean.npy").unlink()
    refused(folder, "has no img_mean.npy, which its weights.json lists")


@pytest.mark.parametrize("spoil, sentence", [
    (lambda listing: "[" * 100_000, "has a weights.json that is not as export writes it"),
    (lambda listing: "[]", "has a weights.json that is not as export writes it"),
    (lambda listing: json.dumps({"model": "alexnet", "sha256": 3}), "weights.json that is not as export writes it"),
    (lambda listing: json.dumps(listing | {"model": ["caffenet"]}), "weights.json of a network ..caffenet.."),
    (lambda listing: json.dumps(listing | {"class_names": 3}), "the class names must be a list of texts"),
    (lambda listing: json.dumps(listing | {"class_names": ["a", "b"]}), "names 2 classes, its network has 10"),
    (lambda listing: json.dumps(listing | {"resize": {}}), "has resize {}; there are squash, crop"),
])
def test_a_hostile_listing_is_refused(narrow, tmp_path, spoil, sentence):
    upstream.save(weights_of_narrow(), tmp_path / "set")
    file = tmp_path / "set" / "weights.json"
    file.write_text(spoil(json.loads(file.read_text())))
    refused(tmp_path / "set", sentence)


# ---- writing


@pytest.mark.parametrize("name", ["set", "set.zip"])
def test_a_full_disk_leaves_nothing_behind(narrow, tmp_path, monkeypatch, name):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("alexnet.native.atomic.sync", full)
    with pytest.raises(WeightsError, match="cannot be written: No space left on device"):
        upstream.save(weights_of_narrow(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_only_an_empty_folder_is_replaced(narrow, tmp_path):
    (tmp_path / "empty").mkdir()
    upstream.save(weights_of_narrow(), tmp_path / "empty")
    with pytest.raises(WeightsError, match="cannot be written: Directory not empty"):
        upstream.save(weights_of_narrow(), tmp_path / "empty")
    assert {each.name for each in tmp_path.iterdir()} == {"empty"}
