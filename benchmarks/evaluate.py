"""Evaluation on labelled images, this project's and PyTorch's with the same weights; and prediction of one image.

python -m benchmarks.evaluate [--quick] [--json FILE] [--model alexnet] [--images 384] [--batch 128] [--runs 5]
                              [--trial 2] [--modes ...]

Both programs use the same synthetic images and the same network with random weights. This project's program runs the
code of `python -m alexnet evaluate`: it reads batch files, crops, and accumulates in float64. PyTorch holds the images
in memory in its own layout, crops, subtracts the mean, and accumulates in float32 under torch.inference_mode. Its modes
(eager with NCHW, eager with channels_last, torch.compile with channels_last) are tried first. The fastest mode then
alternates with this project's program; each is a separate process with all cores. `ratio` is PyTorch's time divided by
ours. The results of both must agree.

Further rows show this project's evaluation of a folder of JPEGs of 500 x 400 pixels, which are decoded during the
evaluation, its evaluation of ten crops, and the run time of `python -m alexnet predict` for one image, including
process start, with compiled kernels in the cache.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np
from PIL import Image

from alexnet.data import batch_file
from benchmarks.harness import report
from benchmarks.harness.program import CORES, TOP, Program, environment, last_line, serve, take_turns, warm_up
from benchmarks.step import OURS, PEERS, fastest

CLASSES = 1000
WEIGHTS, PHOTOGRAPH = "weights.safetensors", "photograph.jpg"


class Plan(NamedTuple):
    """Amount of measurement: `trial` runs of each PyTorch mode, then `runs` of the fastest mode and our program."""

    model: str
    images: int
    batch: int
    runs: int
    trial: int
    modes: tuple


# ---- weights and images


def make_all(folder, model, images):
    """Create the weights, the data set, a folder of JPEGs and a single photograph in a folder."""
    from alexnet import pretrained
    from alexnet.models import model_class

    rng = np.random.default_rng(0)
    network = model_class(model)(rng)
    arrays = {p.name: p.variable.get_value(borrow=True) for p in network.parameters}
    for layer, (weights, *_) in network.weight_layers.items():
        if len(weights.shape) == 2:                      # dense: so that the predictions differ between images
            arrays[f"{layer}.W"] *= 4
    mean, names = np.full((3, 256, 256), 110, np.float32), pretrained.imagenet_names()
    pretrained.save(pretrained.Weights(model, arrays, mean, names), folder / WEIGHTS)
    data = folder / "data"
    for part in ("labels", "misc", "train_hkl", "val_hkl"):
        (data / part).mkdir(parents=True)
    np.save(data / "misc" / "img_mean.npy", mean)
    for part, n in (("train", 1), ("val", images)):
        np.save(data / "labels" / f"{part}_labels.npy", rng.integers(0, CLASSES, n))
        for number, first in enumerate(range(0, n, 256)):
            pixels = rng.integers(0, 256, (3, 16, 16, min(256, n - first)), dtype=np.uint8)
            pixels = pixels.repeat(16, axis=1).repeat(16, axis=2)
            batch_file.write(data / f"{part}_hkl" / f"{number:04d}.hkl", pixels)
    wnids = [name.split()[0] for name in names]
    for number in range(images):
        path = folder / "photographs" / wnids[number % 10] / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(rng).save(path, quality=90)
    photograph(rng).save(folder / PHOTOGRAPH, quality=90)


def photograph(rng):
    coarse = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    return coarse.resize((500, 400), Image.Resampling.BICUBIC)


# ---- measured programs


def our_evaluations(folder, batch):
    """Return {kind: function} for this project; each function evaluates and returns top-1, top-5 and cost."""
    from alexnet import pretrained
    from alexnet.inference.evaluate import Counts, evaluate
    from alexnet.inference.evaluation_data import DatasetHalf, ImageFolder

    weights = pretrained.load(folder / WEIGHTS)
    network = pretrained.build(weights)
    data = DatasetHalf(folder / "data", CLASSES, weights.class_names)
    photographs = ImageFolder(folder / "photographs", CLASSES, weights.class_names)
    few = DatasetHalf(folder / "data", CLASSES, weights.class_names, limit=max(1, data.n // 8))

    def counted(labelled, crops=1):
        found = evaluate(network, labelled, Counts(CLASSES), batch, crops).summary()
        return found["top1"]["right"], found["top5"]["right"], found["cost"]

    return {"data": lambda: counted(data), "photographs": lambda: counted(photographs), "ten": lambda: counted(few, 10)}


def torch_evaluation(folder, batch, mode):
    """Return a function that evaluates the same network in PyTorch and returns top-1, top-5 and cost."""
    import h5py
    import torch

    from alexnet import pretrained
    from alexnet.models import model_class
    from benchmarks.harness.torch_networks import load_by_name, torch_network

    weights = pretrained.load(folder / WEIGHTS)
    layout = torch.contiguous_format if mode == "eager" else torch.channels_last
    network = torch_network(weights.model).eval()
    load_by_name(network, weights.arrays)
    network = network.to(memory_format=layout)
    forward = torch.compile(network) if mode == "compile" else network
    images = []
    for path in sorted((folder / "data" / "val_hkl").iterdir()):
        with h5py.File(path) as file:
            images.append(torch.from_numpy(np.ascontiguousarray(np.moveaxis(file["data"][:], 3, 0))))
    images = torch.cat(images)
    labels = torch.from_numpy(np.load(folder / "data" / "labels" / "val_labels.npy"))
    size = model_class(weights.model).image_size
    inner = slice((256 - size) // 2, (256 + size) // 2)
    mean = torch.from_numpy(weights.mean[:, inner, inner])

    @torch.inference_mode()
    def evaluate():
        right, cost = {1: 0, 5: 0}, 0.0
        for first in range(0, len(labels), batch):
            own = labels[first : first + batch]
            pixels = images[first : first + batch, :, inner, inner].float() - mean
            logits = forward(pixels.contiguous(memory_format=layout))[-1]
            cost += float(torch.nn.functional.cross_entropy(logits, own, reduction="sum"))
            hits = logits.topk(5).indices == own[:, None]
            for k in right:
                right[k] += int(hits[:, :k].sum())
        return right[1], right[5], cost / len(labels)

    return evaluate


def work(mode, folder, batch):
    """Main function of a measured program. Writes the evaluation results to the folder."""
    folder, batch = pathlib.Path(folder), int(batch)
    threads = int(os.environ.get("OMP_NUM_THREADS", CORES))
    if mode == OURS:
        from alexnet.native import compiler

        compiler.use_threads(threads)
        steps = our_evaluations(folder, batch)
    else:
        import torch

        torch.set_num_threads(threads)
        steps = {"data": torch_evaluation(folder, batch, mode)}
    evaluate = steps["data"]
    serve(steps | {"data": lambda: (folder / f"{mode}.json").write_text(json.dumps(evaluate()))})


# ---- measurement


def program(mode, folder, plan):
    return Program("benchmarks.evaluate", "--worker", mode, folder, plan.batch)


def evaluation_rows(folder, plan):
    """Yield rows for ours and PyTorch's modes, and for the kinds of images that only ours evaluates.

    The fastest PyTorch mode alternates with ours; the other modes have their trial runs only.
    """
    with contextlib.ExitStack() as stack:
        programs = {mode: stack.enter_context(program(mode, folder, plan)) for mode in plan.modes}
        seconds, memory = {}, {}
        if programs:
            warm_up(programs.values(), "data")
            seconds, memory = take_turns(programs, "data", plan.trial)
        best = fastest(seconds)
        for mode in programs.keys() - {best}:
            programs[mode].close()
        ours = stack.enter_context(program(OURS, folder, plan))
        warm_up([ours], "data")
        times, peaks = take_turns({OURS: ours} | ({best: programs[best]} if best else {}), "data", plan.runs)
        if best:
            refuse_difference(folder, best)
        seconds, memory = {OURS: [], **seconds, **times}, {**memory, **peaks}
        yield from (row_of(f"evaluate, batch {plan.batch}, {mode}", plan.images, seconds[mode], memory[mode],
                           f"PyTorch {best}" if best else None, seconds.get(best)) for mode in seconds)
        for kind, name, images in (("photographs", "a folder of JPEGs", plan.images),
                                   ("ten", "10 crops", max(1, plan.images // 8))):
            warm_up([ours], kind)
            times, peaks = take_turns({OURS: ours}, kind, plan.trial)
            yield row_of(f"evaluate, batch {plan.batch}, ours, {name}", images, times[OURS], peaks[OURS])


def row_of(name, images, seconds, memory, peer_is=None, peer=None):
    made = report.row(name, [images / each for each in seconds], "images/s", peak_mib=memory)
    if peer:
        speed = float(np.median([images / each for each in peer]))
        made |= {"peer": speed, "ratio": made["value"] / speed, "peer_is": peer_is}
    return made


def refuse_difference(folder, peer):
    """Raise RuntimeError if the counts differ by more than two images, or the costs by more than 0.1 %.

    Two images may differ because their logits nearly tie.
    """
    ours, theirs = (json.loads((folder / f"{mode}.json").read_text()) for mode in (OURS, peer))
    if (np.abs(np.subtract(ours, theirs)) > [2, 2, 1e-3 * ours[2]]).any():
        raise RuntimeError(f"top-1, top-5 and cost are {ours} here and {theirs} in PyTorch {peer}")


def predict_rows(folder, runs):
    """Yield the seconds of the predict command for one image: with cached kernels, and once with an empty cache."""
    command = [sys.executable, "-m", "alexnet", "predict", "--weights", folder / WEIGHTS, folder / PHOTOGRAPH]
    with tempfile.TemporaryDirectory() as cache:
        times = []
        for _ in range(runs + 1):
            began = time.perf_counter()
            done = subprocess.run(list(map(str, command)), env=environment() | {"ALEXNET_CACHE": cache}, cwd=TOP,
                                  capture_output=True, text=True)
            times.append(time.perf_counter() - began)
            if done.returncode:
                raise RuntimeError(f"predict ended with status {done.returncode}: {last_line(done.stderr)}")
    yield report.row("predict one image, a cold process", times[1:], "s", smallest=min(times[1:]))
    yield report.row("predict one image, a cold process and no kernel compiled", times[:1], "s")


def rows(options):
    modes = options.modes
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed (pip install torch): only this project is measured")
        modes = ()
    plan = Plan(options.model, options.images, options.batch, options.runs, options.trial, tuple(modes))
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        make_all(folder, plan.model, plan.images)
        yield from evaluation_rows(folder, plan)
        yield from predict_rows(folder, plan.runs)


def add_options(parser):
    parser.add_argument("--model", default="alexnet", metavar="NAME", help="a name of alexnet.models (%(default)s)")
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--trial", type=int, default=2, help="runs of each PyTorch mode, to find the fastest")
    parser.add_argument("--modes", nargs="*", choices=PEERS, default=PEERS)


if __name__ == "__main__":
    quick = {"images": 20, "batch": 8, "runs": 2, "trial": 1, "modes": ("eager", "channels_last")}
    description = "20 images, batch 8, 2 runs, without torch.compile"
    raise SystemExit(report.main(rows, __doc__, description, quick, add_options, work))
