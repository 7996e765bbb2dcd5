"""One full training step, and one validation step, of this AlexNet: ours and PyTorch's in turn.

python -m benchmarks.step [--quick] [--json FILE] [--batch 16 64 128 256] [--runs 7] [--modes ours eager ...]

Forward, backward and update, dropout on, on random images in memory (ours crops them from bytes, PyTorch is handed
the finished crops).  Each program is a process of its own that makes one step when told to, so that all see the same
machine and each one's peak memory is its own.  Same threads for all.  OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE are
removed from the environment of both.  The peer of a row is PyTorch's best float32 mode; its bfloat16 autocast is shown
for information.
"""

import argparse
import statistics

import numpy as np

from benchmarks import report
from benchmarks.program import CORES, Program, serve, take_turns

OURS = "ours"
PEERS = ("eager", "channels_last", "compile")            # PyTorch's float32 modes
MODES = (OURS, *PEERS, "bfloat16")
CLASSES = 1000


# ---- the programs measured


def our_steps(batch):
    """(train step, validation step) of this project."""
    from alexnet.compile import Network
    from alexnet.data import centre_crop
    from alexnet.models import AlexNet
    from alexnet.updates import momentum_sgd

    rng = np.random.default_rng(0)
    network = Network(AlexNet(rng), np.full((3, 256, 256), 110, "float32"), momentum_sgd)
    images = rng.integers(0, 256, (3, 256, 256, batch), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, batch).astype("int32")
    inputs = images, *centre_crop(batch, 227), labels
    network.compile_all()
    return lambda: network.train(*inputs, np.float32(1e-3)), lambda: network.validate(*inputs)


def torch_steps(batch, mode):
    """(train step, validation step) of the same network in PyTorch."""
    import torch

    from benchmarks.torch_alexnet import torch_alexnet

    layout = torch.contiguous_format if mode == "eager" else torch.channels_last
    network = torch_alexnet().to(memory_format=layout)
    parameters = [{"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": 5e-4, "lr": 1e-3}]
    parameters += [{"params": [p for p in network.parameters() if p.ndim == 1], "weight_decay": 0, "lr": 2e-3}]
    optimizer = torch.optim.SGD(parameters, momentum=0.9)
    images = torch.randn(batch, 3, 227, 227).to(memory_format=layout) * 60
    labels = torch.randint(0, CLASSES, (batch,))
    forward = torch.compile(network) if mode == "compile" else network
    cost_of = torch.nn.functional.cross_entropy

    def train():
        network.train()
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "bfloat16"):
            cost = cost_of(forward(images), labels)
        cost.backward()
        optimizer.step()

    def validate():
        network.eval()
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "bfloat16"):
            logits = forward(images)
            return cost_of(logits, labels), (logits.argmax(1) != labels).float().mean()

    return train, validate


def run_steps(mode, batch, threads):
    """Be one of the programs."""
    if mode == OURS:
        from alexnet.dispatch.cpu import build

        build.use_threads(threads)
        train, validate = our_steps(batch)
    else:
        import torch

        torch.set_num_threads(threads)
        train, validate = torch_steps(batch, mode)
    serve({"train": train, "validate": validate})


# ---- the measuring


def measure(batch, runs, threads, modes):
    """kind -> mode -> list of seconds, and mode -> peak MiB."""
    arguments = ["--batch", batch, "--threads", threads, "--serve"]
    programs = {mode: Program("benchmarks.step", *arguments, mode, threads=threads) for mode in modes}
    try:
        seconds = {}
        for kind in ("train", "validate"):
            seconds[kind], memory = take_turns(programs, kind, runs, warm_up=2)
    finally:
        for program in programs.values():
            program.close()
    return seconds, memory


def rows(batch, runs, threads, modes):
    seconds, memory = measure(batch, runs, threads, modes)
    for kind, times in seconds.items():
        medians = {mode: statistics.median(values) for mode, values in times.items()}
        peer = min((medians[mode] for mode in PEERS if mode in medians), default=None)
        for mode, values in times.items():
            yield {
                "name": f"{kind} step, batch {batch}, {mode}",
                "value": batch / medians[mode],
                "unit": "images/s",
                "seconds": medians[mode],
                "spread": (max(values) - min(values)) / medians[mode],
                "peak_memory_mib": memory[mode],
                **({"peer": batch / peer, "ratio": peer / medians[mode]} if peer else {}),
            }


def main():
    parser = report.parser(__doc__, quick="batch 8, 3 runs")
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 64, 128, 256])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=CORES)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--serve", choices=MODES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        run_steps(options.serve, options.batch[0], options.threads)
        return 0
    batches, runs = ([8], 3) if options.quick else (options.batch, options.runs)
    results = []
    print(f"{'':44} {'images/s':>8} {'seconds':>8} {'spread':>7} {'MiB':>7} {'ratio':>6}")
    for batch in batches:
        for row in rows(batch, runs, options.threads, options.modes):
            results.append(row)
            ratio = f"{row['ratio']:6.2f}" if "ratio" in row else ""
            print(f"{row['name']:44} {row['value']:8.1f} {row['seconds']:8.3f} {row['spread']:7.1%} "
                  f"{row['peak_memory_mib']:7.0f} {ratio}", flush=True)
    report.write(results, options.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
