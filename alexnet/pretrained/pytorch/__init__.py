"""Weights of PyTorch: torchvision's AlexNet, VGG-16 and ResNet-50, as .pth or safetensors. PyTorch is not imported.

A state dict has the names of the modules and their parameters. Filters are (out, in, row, column), dense weights are
(out, in), and the input features of the first dense layer are in the order channel, row, column, as here. The network
takes RGB images as torchvision prepares them. A state dict does not state this, so `origin` records the assumption.

Source: torchvision/models/alexnet.py, vgg.py and resnet.py; torchvision/transforms/_presets.py (ImageClassification).
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from alexnet.pretrained.known import known_network
from alexnet.pretrained.layout import from_out_in, rgb
from alexnet.pretrained.preprocessing import preprocessing_of
from alexnet.pretrained.pytorch.files import Tensors, clean, tensors_of
from alexnet.pretrained.weights import MAX_CLASSES, Weights, WeightsError, checked, shapes

NAMES = {                               # our parameters -> PyTorch's
    "W": "weight", "b": "bias",
    "gamma": "weight", "beta": "bias", "mean": "running_mean", "variance": "running_var",
}
COUNTER = ".num_batches_tracked"        # end of the name of a counter that PyTorch adds to batch normalisation
FEATURES_OF_VGG16 = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


def layers_of_resnet50() -> Iterator[str]:
    """Yield torchvision's names of the layers of ResNet-50, in our order: the shortcut last in its block."""
    yield from ("conv1", "bn1")
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            inner = [f"{kind}{n}" for n in (1, 2, 3) for kind in ("conv", "bn")]
            inner += ["downsample.0", "downsample.1"] if block == 0 else []
            yield from (f"layer{stage}.{block}.{layer}" for layer in inner)
    yield "fc"


LAYOUTS: Mapping[str, tuple[str, Sequence[str]]] = {   # description -> model, names of its layers with weights in order
    "torchvision's AlexNet": (
        "torchvision_alexnet",
        [*(f"features.{n}" for n in (0, 3, 6, 8, 10)), *(f"classifier.{n}" for n in (1, 4, 6))],
    ),
    "torchvision's VGG-16": (
        "vgg16", [*(f"features.{n}" for n in FEATURES_OF_VGG16), *(f"classifier.{n}" for n in (0, 3, 6))],
    ),
    "timm's VGG-16": (
        "vgg16", [*(f"features.{n}" for n in FEATURES_OF_VGG16), "pre_logits.fc1", "pre_logits.fc2", "head.fc"],
    ),
    "torchvision's ResNet-50": ("torchvision_resnet50", [*layers_of_resnet50()]),
}
PUBLISHED = {                           # start of the SHA-256, which the names of torchvision's files contain
    "7be5be79": "alexnet-owt-7be5be79.pth", "4df8aa71": "alexnet-owt-4df8aa71.pth", "397923af": "vgg16-397923af.pth",
    "0676ba61": "resnet50-0676ba61.pth", "11ad3fa6": "resnet50-11ad3fa6.pth", "19c8e357": "resnet50-19c8e357.pth",
}


def load(path: Path, preprocessing: str | None = None) -> Weights:
    """Load the Weights of a state dict in a .pth or safetensors file. The conversion is exact.

    Args:
        preprocessing: a name of alexnet.pretrained.preprocessing; None for torchvision's.

    Raises:
        WeightsError: the file is damaged, contains more than tensors, or is of another network.
    """
    tensors = {name: each for name, each in tensors_of(path).items() if not name.endswith(COUNTER)}
    layout = layout_of(tensors, path)
    model, layers = LAYOUTS[layout]
    stated = preprocessing_of(preprocessing or "torchvision", path, model)
    assumed = "as stated" if preprocessing else "assumed"
    arrays = arrays_of(tensors, model, layers, path)
    if stated.bgr:
        first = next(iter(arrays))
        arrays[first] = rgb(arrays[first])
    return checked(Weights(
        model=model,
        arrays=arrays,
        mean=stated.mean,
        resize=stated.resize,
        origin=f"{layout} of {path.name}, {publication(path)}; {stated.summary}, {assumed}",
        scale=stated.scale,
    ), path)


def publication(path: Path) -> str:
    """Describe whether a file is one of those that torchvision published."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    found = PUBLISHED.get(digest[:8])
    return f"the published {found}" if found else f"none of the files that torchvision published (sha256 {digest[:8]}…)"


def layout_of(tensors: Tensors, path: Path) -> str:
    """Return the name in LAYOUTS of the network whose layers the tensors have; raises WeightsError."""
    for layout, (model, layers) in LAYOUTS.items():
        if tensors.keys() == set(names_in(layers, shapes(model, 1))):
            return layout
    readable = f"networks from PyTorch that are read: {', '.join(LAYOUTS)}"
    name = network_of(tensors)
    if name:
        raise WeightsError(f"{path} holds {name}, which is not supported; {readable}")
    names = clean(", ".join(sorted(tensors)[:3]))
    raise WeightsError(
        f"{path} holds an unknown network ({len(tensors)} tensors: {names} …); {readable}"
    )


def network_of(tensors: Tensors) -> str | None:
    """Return the name of an unsupported network from its tensors, or None if it is unknown."""
    main = {name: each.shape for name, each in tensors.items() if not name.startswith(("aux", "AuxLogits"))}
    filters = [shape[0] for shape in main.values() if len(shape) == 4]
    dense = sum(len(shape) == 2 for shape in main.values())
    return known_network(filters, dense, any(name.endswith("running_mean") for name in main))


def arrays_of(tensors: Tensors, model: str, layers: Sequence[str], path: Path) -> dict[str, np.ndarray]:
    """Return name -> array of the parameters of a model; every shape is checked before values are read."""
    classes = tensors[f"{layers[-1]}.bias"].shape
    if len(classes) != 1 or not 1 <= classes[0] <= MAX_CLASSES:
        raise WeightsError(f"{path}: {layers[-1]}.bias must hold one value for each of 1 to {MAX_CLASSES} classes, "
                           f"got shape {classes}")
    wanted = shapes(model, classes[0])
    plan = list(zip(wanted.items(), names_in(layers, wanted), strict=True))
    for (_, shape), name in plan:
        check(tensors, name, shape, path)
    return {
        parameter: from_out_in(tensors[name].read().reshape(torch_shape(shape))) for (parameter, shape), name in plan
    }


def names_in(layers: Sequence[str], parameters: Iterable[str]) -> Iterator[str]:
    """Yield PyTorch's name of each of our parameters, from PyTorch's names of their layers in order."""
    ours = [parameter.rpartition(".")[::2] for parameter in parameters]
    theirs = dict(zip(dict.fromkeys(layer for layer, _ in ours), layers, strict=True))
    for layer, letter in ours:
        yield f"{theirs[layer]}.{NAMES[letter]}"


def torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return PyTorch's shape of a parameter from ours: the last axis first."""
    return (shape[-1], *shape[:-1])


def check(tensors: Tensors, name: str, shape: tuple[int, ...], path: Path) -> None:
    """Raise WeightsError unless a tensor is float32 of the shape that PyTorch has for ours."""
    found, wanted = tensors[name], torch_shape(shape)
    # timm has dense layers as convolutions, (out, channel, row, column)
    as_dense = len(wanted) == 2 and len(found.shape) == 4 and found.shape[0] == wanted[0]
    flat = (found.shape[0], int(np.prod(found.shape[1:], dtype=object))) if as_dense else found.shape
    if flat != wanted:
        raise WeightsError(f"{path}: {name} must have shape {wanted}, got {str(found.shape)[:80]}")
    if found.dtype != "float32":
        raise WeightsError(f"{path}: {name} must be float32, got {found.dtype}; save the network after .float()")
