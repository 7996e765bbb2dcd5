"""GPU measurements in a few minutes: numerical agreement, step time, and the costs of loader and exchange.

python -m benchmarks.gpu [--quick] [--json FILE] [--devices cuda0,cuda1] [--batch 256] [--runs 5]

Agreement: outputs and gradients of the jax backend in each precision, compared with PyTorch in float64 as in
benchmarks/accuracy/agreement.py.

Step: 20 full training steps (forward, backward, update, with dropout) on images in GPU memory, followed by one
synchronisation, in each precision. The programs are ours, which crops uint8 images, and the same network written
directly in JAX and in PyTorch (channels_last, torch.compile, the best cuDNN algorithms), which receive cropped images.
The programs alternate; the peer is the faster of the other two.

Table 1: seconds per 20 iterations of 256 images from files with train.py, with and without the loader process. It runs
with one worker, and with two workers of 128 images each that exchange weights and momentum after each iteration. With
a single GPU both workers share it, which tests the function but does not show the speed-up of a second GPU.

Exchange: benchmarks/exchange.py on the same devices, compared with the bandwidth of a copy between them in the same
run.

With --devices cpu everything runs on the processor with JAX's CPU backend, which tests this program without a GPU.

Source: Ding et al. 2014, table 1 and section 4.3.
"""

import contextlib
import importlib.util
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

import numpy as np

from benchmarks import table1
from benchmarks.harness import machine, report
from benchmarks.harness.program import Program, environment, last_line, serve, take_turns, warm_up
from multigpu.device import DeviceError, cuda_home

PRECISIONS = ("float32", "tf32", "bfloat16")
OURS, PEERS = "ours", ("jax", "torch")
STEPS = 20                                       # between two synchronisations with the GPU
CLASSES = 1000


# ---- measured programs: each function returns a function that runs `steps` steps and waits for the last


def our_steps(precision, device, batch, steps):
    import jax

    from alexnet.data.augment import centre_crop
    from alexnet.models.alexnet import AlexNet
    from alexnet.training.network import Network
    from alexnet.training.updates import momentum_sgd

    rng = np.random.default_rng(0)
    mean = np.full((3, 256, 256), 110, np.float32)
    network = Network(AlexNet(rng), mean, momentum_sgd, backend="jax", precision=precision, device=device)
    images = jax.device_put(rng.integers(0, 256, (3, 256, 256, batch), dtype=np.uint8), jax_device(device))
    inputs = images, *centre_crop(batch, 227), rng.integers(0, CLASSES, batch).astype(np.int32), np.float32(1e-3)

    def run():
        for _ in range(steps):
            cost, _ = network.train(*inputs)
        float(cost)

    return run


def jax_steps(precision, device, batch, steps):
    import jax

    from benchmarks.harness.jax_alexnet import initial_parameters, make_step

    step, images = make_step(precision), np.random.default_rng(0).normal(0, 60, (batch, 227, 227, 3))
    place = jax_device(device)
    parameters = jax.device_put(initial_parameters(), place)
    state = [parameters, jax.tree.map(jax.numpy.zeros_like, parameters)]
    images = jax.device_put(images.astype(np.float32), place)
    labels = jax.device_put(np.zeros(batch, np.int32), place)
    keys = jax.device_put(jax.random.split(jax.random.key(0), steps), place)

    def run():
        for key in keys:
            *state[:], cost = step(*state, images, labels, key)
        float(cost)

    return run


def jax_device(device):
    import jax

    return jax.devices("cpu" if device == "cpu" else "cuda")[0 if device == "cpu" else int(device.removeprefix("cuda"))]


def torch_steps(precision, device, batch, steps):
    import torch

    from benchmarks.harness.torch_alexnet import momentum_sgd, torch_alexnet

    kind, exact = device.rstrip("0123456789"), precision == "float32"
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = not exact
    network = torch_alexnet().to(device.replace("cuda", "cuda:"), memory_format=torch.channels_last)
    optimizer = momentum_sgd(network)
    place = next(network.parameters()).device
    images = (torch.randn(batch, 3, 227, 227, device=place) * 60).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (batch,), device=place)
    forward = torch.compile(network)

    def run():
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast(kind, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
                cost = torch.nn.functional.cross_entropy(forward(images), labels)
            cost.backward()
            optimizer.step()
        float(cost)

    return run


MAKERS = {OURS: our_steps, "jax": jax_steps, "torch": torch_steps}


def work(name, precision, device, batch, steps):
    """Main function of a measured program: serve its steps."""
    serve({"train": MAKERS[name](precision, device, int(batch), int(steps))})


# ---- measurement


def step_rows(device, batch, steps, runs):
    """Yield three rows for each precision, ours and both peers, in images/s."""
    for precision in PRECISIONS:
        names = [name for name in MAKERS if name != "torch" or importlib.util.find_spec("torch")]
        with contextlib.ExitStack() as stack:
            arguments = precision, device, batch, steps
            programs = {name: stack.enter_context(Program("benchmarks.gpu", "--worker", name, *arguments))
                        for name in names}
            try:
                warm_up(programs.values(), "train")
                seconds, _ = take_turns(programs, "train", runs)
            except RuntimeError as error:
                yield report.not_measured(f"train step, {precision}", str(error))
                continue
        rates = {name: [steps * batch / value for value in values] for name, values in seconds.items()}
        best = max((name for name in names if name != OURS), key=lambda name: statistics.median(rates[name]))
        for name in names:
            row = report.row(f"train step, batch {batch}, {precision}, {name}", rates[name], "images/s")
            yield report.compared(row, rates[best], best)


def table1_rows(devices, batch, iterations):
    """Yield seconds per 20 iterations of `batch` images with train.py, for one and two workers, loader on and off."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        table1.make_data(folder, batch, files=8)
        for workers in (devices[:1], (devices * 2)[:2]):
            ours = table1.TrainPy(folder, batch, workers, "backend=jax")
            for kind, loading in table1.KINDS.items():
                times = [20 * value for value in ours.turn(kind, iterations)]
                name = f"20 iterations of {batch}, {','.join(workers)}, parallel loading: {loading}"
                yield report.row(name, times, "s")


def rows_of(module, *arguments):
    """Run another benchmark as a process and return its rows, with its last line of output if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "rows")
        command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments), "--json", str(path)]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True)
        found = report.read(path)
    failed = [report.not_measured(module, f"status {done.returncode}: {last_line(done.stderr or done.stdout)}")]
    return found + (failed if done.returncode else [])


def all_rows(devices, options):
    """Yield every row as it is measured."""
    device, quick = devices[0], ["--quick"] if options.quick else []
    for precision in PRECISIONS:
        found = rows_of("accuracy.agreement", *quick, "--backend", "jax", "--device", device, "--precision", precision)
        yield from (row | {"name": f"{precision}, {row['name']}"} for row in found)
    steps, iterations = (2, 2) if options.quick else (STEPS, 20)
    yield from step_rows(device, options.batch, steps, options.runs)
    for pair in dict.fromkeys(((device, device), tuple((devices * 2)[:2]))):
        on_gpus = [] if device == "cpu" else ["--devices", ",".join(pair)]
        yield from rows_of("exchange", *quick, *on_gpus)
    yield from table1_rows(devices, options.batch, iterations)


def devices_of(text):
    """Return the devices to measure: those named in `text`, or every GPU.

    Raises:
        CannotMeasure: there is no usable GPU.
    """
    try:
        names = text.split(",") if text else [f"cuda{number}" for number in range(cuda_home("cuda0").count())]
    except DeviceError as error:
        raise report.CannotMeasure(f"{error}; --devices cpu tries this program without a GPU") from error
    return tuple(names)


def rows(options):
    """Yield all rows.

    Raises:
        RuntimeError: a row could not be measured.
    """
    devices, missing = devices_of(options.devices), 0
    print(json.dumps(machine.facts()))
    for row in all_rows(devices, options):
        missing += row["value"] is None
        yield row
    if missing:
        raise RuntimeError(f"{missing} rows could not be measured")


def add_options(parser):
    parser.add_argument("--devices", default="", metavar="cuda0,cuda1", help="default: all CUDA devices")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--runs", type=int, default=5)


def main(arguments=None):
    quick = {"batch": 4, "runs": 1}
    return report.main(rows, __doc__, "batch 4, 2 steps, 1 run", quick, add_options, work, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
