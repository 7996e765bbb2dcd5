"""A training step, a validation step and inference of a network: this project, PyTorch and inference engines in turn.

python -m benchmarks.step [--quick] [--json FILE] [--model alexnet] [--batch 16 64 128 256] [--runs 7] [--trial 2]
                          [--modes eager ...]

A training step is forward, backward and update, with dropout, in float32. The images are random and in memory. In
training and validation, this project crops them from bytes; PyTorch receives the finished crops. Inference computes the
logits of finished crops. Each program is a separate process that runs one step on request, so all programs run under
the same machine conditions. All use the same number of threads.

For each batch, a trial runs PyTorch's float32 modes in turn: eager on NCHW, eager on channels_last, torch.compile on
channels_last; for inference also onnxruntime and OpenVINO in float32, if they are installed, on the network's export to
ONNX. For each kind of step, the fastest mode then runs in turn with this project. It is the peer of all rows of this
kind: ratio is the peer's seconds divided by the row's. The `runs` column distinguishes the long measurement from the
trial; neither includes the warm-up.

Peak memory is the maximum resident set size of the program. Inference is measured first, in a process that has run
nothing else, then validation, then training. bfloat16 autocast is shown for information, up to the first batch at which
it is slower than float32.

Two further ratios compare this project with itself: 2 threads with 1 thread, and the cost of an image at the smallest
batch with that at batch 128. These programs also run in turn, for 128 images each, after an uncounted step, as in
continuous training. Finally, the training step of both projects is limited to AVX2 (ALEXNET_ISA=avx2,
ONEDNN_MAX_CPU_ISA=AVX2), if the processor has wider instructions.
"""

import contextlib
import importlib.util
import pathlib
import statistics
import tempfile
from typing import NamedTuple

import numpy as np

from benchmarks.harness import report
from benchmarks.harness.machine import instruction_sets
from benchmarks.harness.program import CORES, Program, serve, take_turns, warm_up

OURS, BFLOAT16 = "ours", "bfloat16"
PEERS = ("eager", "channels_last", "compile")            # PyTorch's float32 modes
ENGINES = {"onnxruntime": "onnxruntime", "openvino": "OpenVINO"}         # for inference: package -> name
KINDS = ("infer", "validate", "train")                   # this order: the peak of validation excludes training
RATE = 1e-4                                              # learning rate
CLASSES = 1000
LONG = 256                                               # from this batch on, a trial has one run
AVX2 = {"ALEXNET_ISA": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


# ---- measured programs


def our_steps(model, batch):
    """Return {kind: step} of this project. Each is compiled in its first run."""
    from alexnet.data.dataset import centre_crop
    from alexnet.models import model_class
    from alexnet.training.network import Network
    from alexnet.training.updates import momentum_sgd

    rng = np.random.default_rng(0)
    built, mean = model_class(model)(rng), np.full((3, 256, 256), 110, "float32")
    network, of_crops = Network(built, mean, momentum_sgd), Network(built, mean, crop=False)
    images = rng.integers(0, 256, (3, 256, 256, batch), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, batch).astype("int32")
    size = built.image_size
    inputs = images, *centre_crop(batch, size), labels
    crops = []                                           # only for inference: the others crop from bytes

    def infer():
        if not crops:
            crops.append(rng.standard_normal((3, size, size, batch), dtype=np.float32))
        return of_crops.logits(crops[0])

    def validate():
        crops.clear()
        return network.validate(*inputs)

    def train():
        crops.clear()
        return network.train(*inputs, np.float32(RATE))

    return {"infer": infer, "validate": validate, "train": train}


def torch_steps(model, batch, mode):
    """Return {kind: step} of the same network in PyTorch."""
    import torch

    from alexnet.models import model_class
    from benchmarks.harness.torch_alexnet import momentum_sgd
    from benchmarks.harness.torch_networks import torch_network

    layout = torch.contiguous_format if mode == "eager" else torch.channels_last
    network, size = torch_network(model).to(memory_format=layout), model_class(model).image_size
    optimizer = momentum_sgd(network, RATE)
    images = (torch.randn(batch, 3, size, size) * 60).contiguous(memory_format=layout)
    labels = torch.randint(0, CLASSES, (batch,))
    forward = torch.compile(network) if mode == "compile" else network
    cost_of = torch.nn.functional.cross_entropy

    def autocast():
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == BFLOAT16)

    def train():
        network.train()
        optimizer.zero_grad()
        with autocast():
            *auxiliary, logits = forward(images)
            cost = sum((0.3 * cost_of(each, labels) for each in auxiliary), cost_of(logits, labels))
        cost.backward()
        optimizer.step()

    def infer():
        network.eval()
        with torch.inference_mode(), autocast():
            return forward(images)[-1]

    def validate():
        network.eval()
        with torch.no_grad(), autocast():
            logits = forward(images)[-1]
            return cost_of(logits, labels), (logits.argmax(1) != labels).float().mean()

    return {"infer": infer, "validate": validate, "train": train}


def engine_steps(model, batch, engine, threads):
    """Return {"infer": step} of an inference engine on the export of the network."""
    from alexnet import pretrained
    from alexnet.models import model_class

    kind = model_class(model)
    arrays = {each.name: each.variable.get_value() for each in kind(np.random.default_rng(0)).parameters}
    crops = np.random.default_rng(1).uniform(0, 255, (batch, 3, kind.image_size, kind.image_size)).astype("float32")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "network.onnx"
        pretrained.save(pretrained.Weights(model, arrays, np.full((3, 256, 256), 110, "float32")), path)
        if engine == "onnxruntime":
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            return {"infer": lambda: session.run(["logits"], {"images": crops})}
        import openvino

        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        core = openvino.Core()
        network = core.read_model(path)
        network.reshape([batch, 3, kind.image_size, kind.image_size])
        request = core.compile_model(network, "CPU", settings).create_infer_request()
    return {"infer": lambda: request.infer({0: crops})}


def work(mode, model, batch, threads):
    """Main function of a measured program: serve its steps."""
    batch, threads = int(batch), int(threads)
    if mode == OURS:
        from alexnet.native import compiler

        compiler.use_threads(threads)
        serve(our_steps(model, batch))
    elif mode in ENGINES:
        serve(engine_steps(model, batch, mode, threads))
    else:
        import torch

        torch.set_num_threads(threads)
        serve(torch_steps(model, batch, mode))


# ---- measurement


class Plan(NamedTuple):
    """Settings of a measurement.

    modes      PyTorch's modes and inference engines
    trial      runs of each of them
    runs       runs of the fastest mode and this project, in turn
    """

    modes: tuple
    runs: int
    trial: int
    threads: int
    model: str = "alexnet"
    variables: dict = {}                                 # added to the environment of all programs


def program(mode, batch, plan):
    threads = plan.threads
    return Program("benchmarks.step", "--worker", mode, plan.model, batch, threads, threads=threads,
                   variables=plan.variables)


def serves(mode, kind):
    """Return whether a mode has steps of a kind."""
    return kind == "infer" or mode not in ENGINES


def title(mode):
    """Return the name of a peer."""
    return ENGINES.get(mode) or f"PyTorch {mode}"


def fastest(seconds):
    """Return the name with the smallest median in {name: list of seconds}, or None if it is empty."""
    return min(seconds, key=lambda name: statistics.median(seconds[name]), default=None)


def measure(batch, plan, kinds=KINDS):
    """Return {kind: {mode: list of seconds}}, {kind: {mode: peak MiB}} and {kind: fastest peer}."""
    with contextlib.ExitStack() as stack:
        programs = {mode: stack.enter_context(program(mode, batch, plan)) for mode in plan.modes}
        seconds, memory, best = {}, {}, {}
        for kind in kinds:
            able = {mode: each for mode, each in programs.items() if serves(mode, kind)}
            warm_up(able.values(), kind)
            seconds[kind], memory[kind] = take_turns(able, kind, plan.trial if batch < LONG else 1)
            best[kind] = fastest(seconds[kind])
        for mode in programs.keys() - set(best.values()):
            programs[mode].close()
        programs[OURS] = stack.enter_context(program(OURS, batch, plan))
        for kind in kinds:
            rivals = {mode: programs[mode] for mode in (OURS, best[kind]) if mode}
            warm_up([rivals[OURS]], kind)                        # the peer's program is already warm
            times, peaks = take_turns(rivals, kind, plan.runs)
            seconds[kind] = {OURS: [], **seconds[kind], **times}
            memory[kind] = {**peaks, **memory[kind]}             # the peer's value is from its trial
    return seconds, memory, best


def rows(batch, plan, kinds=KINDS, suffix=""):
    """Yield the rows of one batch; `peer_is` is the fastest peer."""
    seconds, memory, best = measure(batch, plan, kinds)
    for kind in reversed(kinds):
        for mode, times in seconds[kind].items():
            held = {}
            if best[kind]:
                peer = statistics.median(seconds[kind][best[kind]])
                held = {"peer": batch / peer, "ratio": peer / statistics.median(times),
                        "peer_is": title(best[kind]), "peer_peak_mib": memory[kind][best[kind]]}
            name = f"{of(plan.model)}{kind} step, batch {batch}, {mode}{suffix}"
            yield step_row(name, batch, times, memory[kind][mode], **held)


def of(model):
    """Return the start of a row's name for a network other than AlexNet."""
    return "" if model == "alexnet" else f"{model} "


def step_row(name, batch, times, memory, **held):
    speeds = [batch / seconds for seconds in times]
    return report.row(name, speeds, "images/s", seconds=statistics.median(times), peak_mib=memory, **held)


def bfloat16_rows(batch, plan, results):
    """Yield one run per kind with bfloat16 autocast, compared with the fastest float32 mode in `results`."""
    with program(BFLOAT16, batch, plan) as only:
        for kind in KINDS:
            name = f"{of(plan.model)}{kind} step, batch {batch}"
            held = next(row for row in results if row["name"] == f"{name}, {OURS}")
            warm_up([only], kind)
            seconds, memory = take_turns({BFLOAT16: only}, kind, runs=1)
            times = seconds[BFLOAT16]
            yield step_row(f"{name}, {BFLOAT16}", batch, times, memory[BFLOAT16], peer_is=held["peer_is"],
                           peer=held["peer"], ratio=batch / held["peer"] / times[0])


# ---- ratios of this project, and AVX2


def scaling_rows(batch, small, plan, runs):
    """Yield the speed-up of two threads, and the cost per image of a small batch relative to a large one."""
    name = f"{of(plan.model)}train step, batch {batch}, ours: 2 threads to 1"
    wanted = {"two": (batch, 2), "one": (batch, 1), "small": (small, CORES), "large": (batch, CORES)}
    if CORES == 2:
        del wanted["large"]                              # same as "two"
    elif CORES == 1:
        del wanted["two"]
        yield report.not_measured(name, "there is one core")
    with contextlib.ExitStack() as stack:
        programs = {key: stack.enter_context(program(OURS, size, plan._replace(threads=threads)))
                    for key, (size, threads) in wanted.items()}
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
        name = f"{of(plan.model)}train step, ours: an image at batch {small} to one at {batch}"
        yield report.row(name, dearer, "times the cost")


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
    engines = tuple(filter(importlib.util.find_spec, ENGINES)) if importlib.util.find_spec("onnx") else ()
    plan = Plan(peers + engines, options.runs, options.trial, options.threads, options.model)
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
        yield from scaling_rows(large, min(options.batch), plan, runs=5)
        yield from avx2_rows(large, plan)


def add_options(parser):
    parser.add_argument("--model", default="alexnet", metavar="NAME", help="a name of alexnet.models (%(default)s)")
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 64, 128, 256])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--trial", type=int, default=2, help="runs of each peer, to find the fastest")
    parser.add_argument("--threads", type=int, default=CORES)
    parser.add_argument("--modes", nargs="*", choices=(*PEERS, BFLOAT16), default=(*PEERS, BFLOAT16))


def main(arguments=None):
    quick = {"batch": [8], "runs": 3, "trial": 1, "modes": ("eager", "channels_last")}
    return report.main(all_rows, __doc__, "batch 8, 3 runs, without torch.compile and without the ratios and AVX2",
                       quick, add_options, work, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
