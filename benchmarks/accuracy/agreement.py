"""Error of the network's outputs and gradients relative to PyTorch in float64, with equal weights and decisions.

python -m benchmarks.accuracy.agreement [--quick] [--json FILE] [--batch 8] [--seed 0] [--backend jax]
                                        [--device cuda0] [--precision float32 | tf32 | bfloat16]

The network has full size, without dropout. Rounding can decide which of two nearly equal values is the maximum of a
window, or whether a unit is above zero. Such a decision changes a gradient discontinuously (by 1e-4 to 1e-2), in any
implementation. Each implementation is therefore compared with a float64 PyTorch network whose ReLU and pooling use the
decisions of that implementation. The table shows this project's float32, PyTorch's float32, and the number of
decisions that differ in float64.
"""

from typing import NamedTuple

import numpy as np
import pytensor
import pytensor.tensor as pt
import torch
from pytensor.graph.traversal import toposort
from torch import nn
from torch.nn.functional import cross_entropy as torch_cross_entropy

from alexnet import ops
from alexnet.backends import mode_of
from alexnet.models.alexnet import AlexNet
from alexnet.training import objectives
from benchmarks.harness import report
from benchmarks.harness.torch_alexnet import from_c01b, load_weights, torch_alexnet

BOUNDS = {"float32": 1e-5, "tf32": 2e-3, "bfloat16": 1e-2}             # relative L2
BOUND = BOUNDS["float32"]


class Result(NamedTuple):
    """Results of an implementation: arrays by name, and the decisions of each ReLU and pooling layer, in order."""

    arrays: dict
    decisions: list         # torch tensors: bool, above zero; or int64, the largest pixel of each window


def ours(images, labels, seed, mode):
    """Return the parameters by name, and the Result of this project's network.

    Args:
        images: float32 (channel, row, column, batch).
        labels: int32 (batch,).
        seed: of the weights.
        mode: PyTensor mode that compiles the function.
    """
    model = AlexNet(np.random.default_rng(seed), dropout_rate=0)
    x = pt.tensor("x", shape=(3, 227, 227, None), dtype="float32")
    y = pt.ivector("y")
    logits = model(x)
    cost = objectives.cross_entropy(logits, y)
    variables = [parameter.variable for parameter in model.parameters]
    sums = [node.outputs[0] for node in toposort([logits]) if isinstance(node.op, ops.Convolution)]
    outputs = [logits, cost, *pytensor.grad(cost, variables)]
    function = pytensor.function([x, y], [*outputs, *sums], mode=mode)
    results = list(map(np.asarray, function(images, labels)))
    names = ["logits", "cost", *(f"gradient of {v.name}" for v in variables)]
    arrays = {name: in_torchs_layout(array) for name, array in zip(names, results, strict=False)}
    parameters = {v.name: np.array(v.get_value()) for v in variables}
    biases = [value for name, value in parameters.items() if name.endswith(".b")]
    return parameters, Result(arrays, decisions_of(results[len(outputs) :], biases))


def in_torchs_layout(array):
    return from_c01b(np.atleast_1d(array)).numpy() if array.ndim else array


def decisions_of(sums, biases):
    """Return the decisions of ReLU and pooling, computed from the outputs of the convolutions, which are c01b.

    This project's network pools these outputs before it adds the bias.
    """
    decisions = []
    layers = zip(sums, biases, strict=True)
    for module in torch_alexnet():
        if isinstance(module, nn.Conv2d | nn.Linear):
            y, b = next(layers)
            y = torch.from_numpy(y.transpose(3, 0, 1, 2).copy())
            above_zero = y + torch.from_numpy(b)[:, None, None] > 0
        elif isinstance(module, nn.ReLU):
            decisions.append(above_zero if y.shape[2] > 1 else above_zero[:, :, 0, 0])
        elif isinstance(module, nn.MaxPool2d):
            decisions.append(largest(module, y))
    return decisions


def largest(pooling, y):
    return nn.functional.max_pool2d(y, pooling.kernel_size, pooling.stride, return_indices=True)[1]


def theirs(parameters, images, labels, dtype, decisions=None):
    """Return the Result of PyTorch in `dtype` and in PyTorch's layout.

    ReLU and pooling use the given decisions. Without any, they use the network's own.
    """
    network = torch_alexnet(dropout_rate=0)
    load_weights(network, parameters)
    network = network.to(dtype)
    taken = []
    x = torch.from_numpy(images.transpose(3, 0, 1, 2).copy()).to(dtype)
    for module in network:
        if isinstance(module, nn.ReLU | nn.MaxPool2d):
            own = x > 0 if isinstance(module, nn.ReLU) else largest(module, x)
            decision = own if decisions is None else decisions[len(taken)]
            taken.append(own)
            x = x * decision if isinstance(module, nn.ReLU) else picked(x, decision)
        else:
            x = module(x)
    cost = torch_cross_entropy(x, torch.from_numpy(labels).long())
    cost.backward()
    names = ["logits", "cost", *(f"gradient of {name}" for name in parameters)]
    arrays = [x.detach(), cost.detach(), *(p.grad for p in network.parameters())]
    return Result({name: array.double().numpy() for name, array in zip(names, arrays, strict=True)}, taken)


def picked(x, index):
    """Return the pixels of x (batch, channel, row, column) at the index of each window."""
    return x.flatten(2).gather(2, index.flatten(2)).view(index.shape)


def distance(array, truth):
    """Return the relative L2 distance."""
    return float(np.linalg.norm(array - truth) / np.linalg.norm(truth))


def distances(batch, seed, backend, precision="float32", device="cpu"):
    """Yield the row of each array, then the row of the number of different decisions."""
    rng = np.random.default_rng(seed)
    images = (rng.random((3, 227, 227, batch), dtype=np.float32) - 0.5) * 255
    labels = rng.integers(0, 1000, batch).astype("int32")
    parameters, result = ours(images, labels, seed, mode_of(backend, precision, device))
    peer = theirs(parameters, images, labels, torch.float32)
    truths = [theirs(parameters, images, labels, torch.float64, r.decisions) for r in (result, peer)]
    for name in result.arrays:
        value, other = (distance(r.arrays[name], t.arrays[name]) for r, t in zip((result, peer), truths, strict=True))
        yield {"name": name, "value": value, "unit": "relative L2", "peer": other}
    flipped, other = (differing(r.decisions, t.decisions) for r, t in zip((result, peer), truths, strict=True))
    yield {"name": "decisions otherwise in float64", "value": flipped, "unit": "", "peer": other}


def differing(decisions, others):
    """Return the number of different decisions: units above zero, and positions of positive window maxima."""
    count = 0
    for n, (decision, other) in enumerate(zip(decisions, others, strict=True)):
        differs = decision != other
        if decision.dtype != torch.bool:
            differs &= picked(decisions[n - 1], decision)
        count += int(differs.sum())
    return count


def rows(options):
    """Yield all rows.

    Raises:
        RuntimeError: an array exceeds the bound of the precision.
    """
    batch = 2 if options.quick else options.batch
    found = list(distances(batch, options.seed, options.backend, options.precision, options.device))
    yield from found
    bound = BOUNDS[options.precision]
    worst = max((row for row in found if row["unit"]), key=lambda row: row["value"])
    if worst["value"] > bound:
        raise RuntimeError(f"{worst['name']} differs from float64 by {worst['value']:.2e}, more than {bound}")


def add_options(parser):
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--device", default="cpu", help="of backend jax")
    parser.add_argument("--precision", default="float32", choices=BOUNDS, help="of backend jax")


if __name__ == "__main__":
    raise SystemExit(report.main(rows, __doc__, "batch 2", add_options=add_options))
