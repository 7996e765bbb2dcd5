"""One full training step and one validation step of AlexNet: this project and PyTorch in turn.

python -m benchmarks.step [--quick] [--json FILE] [--batch 16 64 128 256] [--runs 7] [--trial 2] [--modes eager ...]

A training step is forward, backward and update, with dropout, in float32. The images are random and in memory; this
project crops them from bytes, PyTorch receives the finished crops. Each program is a separate process that runs one
step on request, so all programs run under the same machine conditions. All use the same number of threads.

For each batch, a trial runs PyTorch's float32 modes in turn: eager on NCHW, eager on channels_last, torch.compile on
channels_last. For each kind of step, the fastest mode then runs in turn with this project. It is the peer of all rows
of this kind: ratio is the peer's seconds divided by the row's. The `runs` column distinguishes the long measurement
from the trial; neither includes the warm-up.

Peak memory is the maximum resident set size of the program. Validation is measured first, in a process that has run
nothing else, and training after it. bfloat16 autocast is shown for information, up to the first batch at which it is
slower than float32.

Two further ratios compare this project with itself: 2 threads with 1 thread, and the cost of an image at the smallest
batch with that at batch 128. These programs also run in turn, for 128 images each, after an uncounted step, as in
continuous training. Finally, the training step of both projects is limited to AVX2 (ALEXNET_ISA=avx2,
ONEDNN_MAX_CPU_ISA=AVX2), if the processor has wider instructions.
"""

import contextlib
import importlib.util
import statistics
from typing import NamedTuple

import numpy as np

from benchmarks.harness import report
from benchmarks.harness.machine import instruction_sets
from benchmarks.harness.program import CORES, Program, serve, take_turns, warm_up

OURS, BFLOAT16 = "ours", "bfloat16"
PEERS = ("eager", "channels_last", "compile")            # PyTorch's float32 modes
KINDS = ("validate", "train")                            # this order: the peak of validation excludes training
CLASSES = 1000
LONG = 256                                               # from this batch on, a trial has one run
AVX2 = {"ALEXNET_ISA": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


# ---- measured programs


def our_steps(batch):
    """Return (train step, validation step) of this project. Each is compiled in its first run."""
    from alexnet.data.dataset import centre_crop
    from alexnet.models.alexnet import AlexNet
    from alexnet.training.network import Network
    from alexnet.training.updates import momentum_sgd

    rng = np.random.default_rng(0)
    network = Network(AlexNet(rng), np.full((3, 256, 256), 110, "float32"), momentum_sgd)
    images = rng.integers(0, 256, (3, 256, 256, batch), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, batch).astype("int32")
    inputs = images, *centre_crop(batch, 227), labels
    return lambda: network.train(*inputs, np.float32(1e-3)), lambda: network.validate(*inputs)


def torch_steps(batch, mode):
    """Return (train step, validation step) of the same network in PyTorch."""
    import torch

    from benchmarks.harness.torch_alexnet import momentum_sgd, torch_alexnet

    layout = torch.contiguous_format if mode == "eager" else torch.channels_last
    network = torch_alexnet().to(memory_format=layout)
    optimizer = momentum_sgd(network)
    images = (torch.randn(batch, 3, 227, 227) * 60).contiguous(memory_format=layout)
    labels = torch.randint(0, CLASSES, (batch,))
    forward = torch.compile(network) if mode == "compile" else network
    cost_of = torch.nn.functional.cross_entropy

    def train():
        network.train()
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == BFLOAT16):
            cost = cost_of(forward(images), labels)
        cost.backward()
        optimizer.step()

    def validate():
        network.eval()
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == BFLOAT16):
            logits = forward(images)
            return cost_of(logits, labels), (logits.argmax(1) != labels).float().mean()

    return train, validate


def work(mode, batch, threads):
    """Main function of a measured program: serve its steps."""
    batch, threads = int(batch), int(threads)
    if mode == OURS:
        from alexnet.native import compiler

        compiler.use_threads(threads)
        train, validate = our_steps(batch)
    else:
        import torch

        torch.set_num_threads(threads)
        train, validate = torch_steps(batch, mode)
    serve({"train": train, "validate": validate})


# ---- measurement


class Plan(NamedTuple):
    """Settings of a measurement.

    trial      runs of each PyTorch mode
    runs       runs of the fastest mode and this project, in turn
    """

    modes: tuple
    runs: int
    trial: int
    threads: int
    variables: dict = {}                                 # added to the environment of all programs


def program(mode, batch, threads, variables=None):
    return Program("benchmarks.step", "--worker", mode, batch, threads, threads=threads, variables=variables)


def fastest(seconds):
    """Return the name with the smallest median in {name: list of seconds}, or None if it is empty."""
    return min(seconds, key=lambda name: statistics.median(seconds[name]), default=None)


def measure(batch, plan, kinds=KINDS):
    """Return {kind: {mode: list of seconds}}, {kind: {mode: peak MiB}} and {kind: fastest PyTorch mode}."""
    with contextlib.ExitStack() as stack:
        programs = {mode: program(mode, batch, plan.threads, plan.variables) for mode in plan.modes}
        for each in programs.values():
            stack.enter_context(each)
        seconds, memory, best = {}, {}, {}
        for kind in kinds:
            warm_up(programs.values(), kind)
            seconds[kind], memory[kind] = take_turns(programs, kind, plan.trial if batch < LONG else 1)
            best[kind] = fastest(seconds[kind])
        for mode in programs.keys() - set(best.values()):
            programs[mode].close()
        programs[OURS] = stack.enter_context(program(OURS, batch, plan.threads, plan.variables))
        for kind in kinds:
            rivals = {mode: programs[mode] for mode in (OURS, best[kind]) if mode}
            warm_up([rivals[OURS]], kind)                        # PyTorch's program is already warm
            times, peaks = take_turns(rivals, kind, plan.runs)
            seconds[kind] = {OURS: [], **seconds[kind], **times}
            memory[kind] = {**peaks, **memory[kind]}             # the peer's value is from its trial
    return seconds, memory, best


def rows(batch, plan, kinds=KINDS, suffix=""):
    """Yield the rows of one batch; `peer_is` is the fastest PyTorch mode."""
    seconds, memory, best = measure(batch, plan, kinds)
    for kind in reversed(kinds):
        for mode, times in seconds[kind].items():
            held = {}
            if best[kind]:
                peer = statistics.median(seconds[kind][best[kind]])
                held = {"peer": batch / peer, "ratio": peer / statistics.median(times),
                        "peer_is": f"PyTorch {best[kind]}", "peer_peak_mib": memory[kind][best[kind]]}
            yield step_row(f"{kind} step, batch {batch}, {mode}{suffix}", batch, times, memory[kind][mode], **held)


def step_row(name, batch, times, memory, **held):
    speeds = [batch / seconds for seconds in times]
    return report.row(name, speeds, "images/s", seconds=statistics.median(times), peak_mib=memory, **held)


def bfloat16_rows(batch, plan, results):
    """Yield one run per kind with bfloat16 autocast, compared with the fastest float32 mode in `results`."""
    with program(BFLOAT16, batch, plan.threads) as only:
        for kind in KINDS:
            name = f"{kind} step, batch {batch}"
            held = next(row for row in results if row["name"] == f"{name}, {OURS}")
            warm_up([only], kind)
            seconds, memory = take_turns({BFLOAT16: only}, kind, runs=1)
            times = seconds[BFLOAT16]
            yield step_row(f"{name}, {BFLOAT16}", batch, times, memory[BFLOAT16], peer_is=held["peer_is"],
                           peer=held["peer"], ratio=batch / held["peer"] / times[0])


# ---- ratios of this project, and AVX2


def scaling_rows(batch, small, runs):
    """Yield the speed-up of two threads, and the cost per image of a small batch relative to a large one."""
    name = f"train step, batch {batch}, ours: 2 threads to 1"
    wanted = {"two": (batch, 2), "one": (batch, 1), "small": (small, CORES), "large": (batch, CORES)}
    if CORES == 2:
        del wanted["large"]                              # same as "two"
    elif CORES == 1:
        del wanted["two"]
        yield report.not_measured(name, "there is one core")
    with contextlib.ExitStack() as stack:
        programs = {key: stack.enter_context(program(OURS, *each)) for key, each in wanted.items()}
        warm_up(programs.values(), "train")
        seconds = {key: [] for key in programs}
        for _ in range(runs):
            for key, each in programs.items():
                # a first step is not counted: in training, too, each step follows a step of the same program
                each.step("train")
                steps = max(batch // wanted[key][0], 1)
                seconds[key].append(statistics.mean(each.step("train")[0] for _ in range(steps)))
    if "two" in seconds:
        faster = [one / two for one, two in zip(seconds["one"], seconds["two"], strict=True)]
        yield report.row(name, faster, "times as fast")
    large = seconds.get("large") or seconds["two"]
    if small < batch:
        dearer = [a / small / (b / batch) for a, b in zip(seconds["small"], large, strict=True)]
        yield report.row(f"train step, ours: an image at batch {small} to one at {batch}", dearer, "times the cost")


def avx2_rows(batch, plan):
    """Yield the rows of both projects limited to AVX2, if the processor has wider instructions."""
    sets, suffix = instruction_sets(), ", held to AVX2"
    if "avx512f" in sets:
        yield from rows(batch, plan._replace(variables=AVX2), kinds=("train",), suffix=suffix)
    elif "avx2" in sets:
        reason = "this processor's widest instructions are AVX2, so the rows above are these"
        yield report.not_measured(f"train step, batch {batch}{suffix}", reason)
    else:
        yield report.not_measured(f"train step, batch {batch}{suffix}", "this processor has no AVX2")


# ---- main program


def all_rows(options):
    """Yield every row as soon as it is measured."""
    modes = options.modes
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed (pip install torch): only this project is measured")
        modes = ()
    peers = tuple(mode for mode in modes if mode != BFLOAT16)
    plan = Plan(peers, options.runs, options.trial, options.threads)
    bfloat16 = BFLOAT16 in modes and bool(peers)
    for batch in options.batch:
        found = list(rows(batch, plan))
        yield from found
        if bfloat16:
            results = list(bfloat16_rows(batch, plan, found))
            yield from results
            if max(row["ratio"] for row in results) < 1 and batch != options.batch[-1]:
                bfloat16 = False
                yield report.not_measured(f"{BFLOAT16}, larger batches", f"slower than float32 at batch {batch}")
    if not options.quick:
        large = 128 if 128 in options.batch else max(options.batch)
        yield from scaling_rows(large, min(options.batch), runs=5)
        yield from avx2_rows(large, plan)


def add_options(parser):
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 64, 128, 256])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--trial", type=int, default=2, help="runs of each PyTorch mode, to find the fastest")
    parser.add_argument("--threads", type=int, default=CORES)
    parser.add_argument("--modes", nargs="*", choices=(*PEERS, BFLOAT16), default=(*PEERS, BFLOAT16))


def main(arguments=None):
    quick = {"batch": [8], "runs": 3, "trial": 1, "modes": ("eager", "channels_last")}
    return report.main(all_rows, __doc__, "batch 8, 3 runs, without torch.compile and without the ratios and AVX2",
                       quick, add_options, work, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
