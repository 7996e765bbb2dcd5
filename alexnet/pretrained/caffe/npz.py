"""Load a .npz of a Caffe network: arrays LAYER.weight (out, in, row, column) and LAYER.bias by Caffe's names of layers.

The names identify SqueezeNet 1.0: conv1, fire2/squeeze1x1, fire2/expand1x1, fire2/expand3x3 … conv10, which may be
named conv_final. A network with these names takes BGR images, as Caffe does.
"""

import re
from pathlib import Path

import numpy as np

from alexnet.pretrained.caffe.mean import mean_beside
from alexnet.pretrained.graph import AnotherNetwork, chain_of, weight_steps
from alexnet.pretrained.layout import converted
from alexnet.pretrained.npy_files import Archive, Files, zip_at
from alexnet.pretrained.protobuf import printable
from alexnet.pretrained.weights import MAX_CLASSES, Weights, checked, shapes

MODEL = "squeezenet"
WEIGHT, BIAS = ".weight.npy", ".bias.npy"
ANY_NAME = re.compile("")
OTHER_NAMES = {"conv_final": "conv10"}           # name of a layer in a file -> Caffe's name


class WholeArchive(Archive):
    """The files of a zip, with their folders as a part of their names."""

    def one_folder(self, pattern: re.Pattern[str]) -> str:
        return ""


def load(path: Path) -> Weights:
    """Load the Weights of a .npz; raises WeightsError."""
    with zip_at(path) as archive:
        files = WholeArchive(path, archive, ANY_NAME)
        layers = layers_of(files)
        classes = files.small(f"{layers['conv10']}{BIAS}", MAX_CLASSES).size
        wanted = shapes(MODEL, classes)
        pairs = (pair_of(files, layer, wanted[f"{name}.W"]) for name, layer in layers.items())
        arrays = converted(chain_of(MODEL), pairs, bgr=True)
    mean, mean_origin = mean_beside(path, MODEL)
    return checked(Weights(
        model=MODEL,
        arrays=arrays,
        mean=mean,
        origin=f"{MODEL} of {path.name}, whose layers have Caffe's names, so it takes BGR images, with {mean_origin}",
    ), path)


def layers_of(files: WholeArchive) -> dict[str, str]:
    """Return our name -> name in the file of each layer, in the order of the model; raises AnotherNetwork."""
    names = {name.rsplit(".", 2)[0] for name in files.members if name.endswith((WEIGHT, BIAS))}
    found = {OTHER_NAMES.get(name, name).replace("/", "."): name for name in names}
    wanted = [name for name, _ in weight_steps(chain_of(MODEL))]
    if missing := [name for name in wanted if name not in found]:
        raise AnotherNetwork(files.path, f"it has no layer {missing[0]}", models=MODEL)
    if extra := found.keys() - set(wanted):
        raise AnotherNetwork(files.path, f"it has a layer {printable(found[min(extra)])}", models=MODEL)
    return {name: found[name] for name in wanted}


def pair_of(files: Files, layer: str, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return (weights, bias) of a layer whose filters have our shape (in, row, column, out); raises WeightsError."""
    *inner, outputs = shape
    return files.array(f"{layer}{WEIGHT}", (outputs, *inner)), files.array(f"{layer}{BIAS}", (outputs,))
