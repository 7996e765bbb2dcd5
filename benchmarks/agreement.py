"""How near the network's outputs and gradients are to PyTorch in float64, with the same weights.

python -m benchmarks.agreement [--quick] [--json FILE] [--batch 8] [--seeds 0 1 2 3 4]

Dropout off, full size, random images and labels.  For every array the relative L2 distance to PyTorch's float64, of
ours (float32) and, as the peer, of PyTorch's own float32 in the same run; medians over the seeds of weights and
images, and the largest.  The ratio is the peer's distance to ours.  Rounding can flip which of two nearly equal
values is the maximum of a window, and then a whole gradient moves, in any implementation: that is what a large
maximum beside a small median shows.  The exit status is 1 if a median exceeds the larger of 1e-5 and PyTorch's.
"""

import statistics

import numpy as np
import pytensor
import pytensor.tensor as pt
import torch
from torch.nn.functional import cross_entropy as torch_cross_entropy

from alexnet import objectives
from alexnet.dispatch import mode_of
from alexnet.models import AlexNet
from benchmarks import report
from benchmarks.torch_alexnet import from_c01b, load_weights, torch_alexnet


def ours(images, labels, seed, engine):
    """Name -> array: the parameters; and the logits, cost and gradients."""
    model = AlexNet(np.random.default_rng(seed), dropout_rate=0)
    x = pt.tensor("x", shape=(3, 227, 227, None), dtype="float32")
    y = pt.ivector("y")
    logits = model(x)
    cost = objectives.cross_entropy(logits, y)
    variables = [parameter.variable for parameter in model.parameters]
    function = pytensor.function([x, y], [logits, cost, *pytensor.grad(cost, variables)], mode=mode_of(engine))
    names = ["logits", "cost", *(f"gradient of {v.name}" for v in variables)]
    results = dict(zip(names, map(np.asarray, function(images, labels)), strict=True))
    return {v.name: v.get_value() for v in variables}, results


def theirs(parameters, images, labels, dtype):
    """The same arrays by PyTorch in `dtype`, in PyTorch's layout."""
    network = torch_alexnet(dropout_rate=0)
    load_weights(network, parameters)
    network = network.to(dtype)
    logits = network(torch.from_numpy(images.transpose(3, 0, 1, 2).copy()).to(dtype))
    cost = torch_cross_entropy(logits, torch.from_numpy(labels).long())
    cost.backward()
    gradients = [p.grad for p in network.parameters()]
    arrays = [logits.detach(), cost.detach(), *gradients]
    return [array.double().numpy() for array in arrays]


def distance(array, truth):
    """Relative L2."""
    return float(np.linalg.norm(array - truth) / np.linalg.norm(truth))


def rows(batch, seed, engine):
    rng = np.random.default_rng(seed)
    images = (rng.random((3, 227, 227, batch), dtype=np.float32) - 0.5) * 255
    labels = rng.integers(0, 1000, batch).astype("int32")
    parameters, results = ours(images, labels, seed, engine)
    exact, single = (theirs(parameters, images, labels, dtype) for dtype in (torch.float64, torch.float32))
    for (name, array), truth, peer in zip(results.items(), exact, single, strict=True):
        value = from_c01b(np.atleast_1d(array)).numpy() if array.ndim else array
        yield {"name": name, "value": distance(value, truth), "unit": "relative L2", "peer": distance(peer, truth)}


def summarised(runs):
    """One row for each array, of the rows of several seeds."""
    for same in zip(*runs, strict=True):
        ours, peer = ([row[key] for row in same] for key in ("value", "peer"))
        made = report.row(same[0]["name"], ours, same[0]["unit"], peer=statistics.median(peer))
        ratio = {"ratio": made["peer"] / made["value"]} if made["value"] else {}
        yield made | {**ratio, "largest": max(ours), "peer_largest": max(peer)}


def main():
    parser = report.parser(__doc__, quick="batch 2, one seed")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=range(5))
    parser.add_argument("--engine", default="cpu")
    options = parser.parse_args()
    batch, seeds = (2, [0]) if options.quick else (options.batch, options.seeds)
    results = list(summarised([list(rows(batch, seed, options.engine)) for seed in seeds]))
    print(f"{'relative L2 to PyTorch float64':32} {'ours':>10} {'largest':>10} {'float32':>10} {'largest':>10}")
    for row in results:
        print(f"{row['name']:32} {row['value']:10.2e} {row['largest']:10.2e} {row['peer']:10.2e} "
              f"{row['peer_largest']:10.2e}")
    report.write(results, options.json)
    worst = max(results, key=lambda row: row["value"] / max(1e-5, row["peer"]))
    good = worst["value"] <= max(1e-5, worst["peer"])
    print(f"{'all within' if good else 'NOT within'} the larger of 1e-5 and PyTorch's own; worst: {worst['name']}")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
