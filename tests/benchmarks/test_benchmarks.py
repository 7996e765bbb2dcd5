"""The arithmetic and the report of the benchmarks; the tests measure nothing and do not need PyTorch."""

import contextlib
import importlib
import json
import os
import pathlib
import sys

import numpy as np
import pytest

from alexnet.data.dataset import centre_crop, open_dataset
from alexnet.nn import LRN, Conv, Dense, Dropout, Flatten, Sequential
from alexnet.training.network import Network
from alexnet.training.updates import momentum_sgd
from benchmarks import __main__ as benchmarks
from benchmarks import evaluate, exchange, finetune, gpu, kernels, startup, step, table1
from benchmarks.harness import nodes, report, results
from benchmarks.harness.program import environment, last_line, take_turns, warm_up
from multigpu.device import DeviceError

pytestmark = pytest.mark.slow

ROW = {"name": "train step, batch 128, ours", "value": 40.0, "unit": "images/s", "spread": 0.05, "runs": 7,
       "peer": 20.0, "ratio": 2.0, "peer_is": "PyTorch eager"}


def section(rows=(ROW,), failure=None, module="step"):
    return results.Section(module, "The step", ("--quick",), list(rows), 61.0, failure)


def markdown(*sections, by_hand=""):
    facts = {"processor": "a fake one"}
    return results.markdown(sections, benchmarks.HEADLINES, facts, "python -m benchmarks", "2026-01-02", by_hand)


@pytest.mark.parametrize("benchmark", [each.module for each in benchmarks.BENCHMARKS])
def test_each_benchmark_can_be_imported(benchmark):
    try:
        importlib.import_module(f"benchmarks.{benchmark}")
    except ModuleNotFoundError as error:
        assert error.name in ("torch", "onnxruntime", "pycuda"), error


# ---- rows


def test_row_has_median_and_spread():
    row = report.row("a", [3.0, 1.0, 2.0], "s", peer=4.0)
    assert row == {"name": "a", "value": 2.0, "unit": "s", "spread": 1.0, "runs": 3, "peer": 4.0}


def test_rows_are_read_as_they_were_written(tmp_path):
    rows = [ROW, report.not_measured("b", "no such processor")]
    report.write(rows, tmp_path / "rows")
    assert report.read(tmp_path / "rows") == rows
    assert [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()] == rows


def test_missing_file_has_no_rows(tmp_path):
    assert report.read(tmp_path / "rows") == []


# ---- two interleaved programs


def test_side_is_an_interpreter_and_a_checkout(tmp_path):
    assert startup.Side.parse("/usr/bin/python3").checkout == startup.TOP
    with pytest.raises(ValueError, match="is no checkout: it has no train.py"):
        startup.Side.parse(f"/usr/bin/python3@{tmp_path}")
    (tmp_path / "train.py").touch()
    assert startup.Side.parse(f"/usr/bin/python3@{tmp_path}") == ("/usr/bin/python3", tmp_path)


def test_sides_alternate_and_keep_their_results():
    order = []
    ours, theirs = startup.alternate(("a", "b"), lambda side, run: order.append(side) or f"{side}{run}", 3)
    assert "".join(order) == "baabba"
    assert (ours, theirs) == (["a0", "a1", "a2"], ["b0", "b1", "b2"])


def test_worker_process_prints_nothing(capsys):
    calls = []
    arguments = ["--worker", "ours", "16"]
    assert report.main(None, "A benchmark.", "", worker=lambda *given: calls.append(given), arguments=arguments) == 0
    assert calls == [("ours", "16")]
    assert capsys.readouterr().out == ""


# ---- the main program


def test_rows_measured_before_a_failure_are_written(tmp_path, capsys):
    def rows(options):
        yield report.row("a", [options.batch], "s")
        raise RuntimeError("the disk is full")

    def add_options(parser):
        parser.add_argument("--batch", type=int, default=128)

    arguments = ["--quick", "--json", str(tmp_path / "rows")]
    assert report.main(rows, "A benchmark.", "batch 4", {"batch": 4}, add_options, arguments=arguments) == 1
    assert [row["value"] for row in report.read(tmp_path / "rows")] == [4]
    assert capsys.readouterr().err == "the disk is full\n"


# ---- the step's choices


def test_best_mode_has_the_smallest_median():
    assert step.fastest({"eager": [2.0, 2.2, 9.0], "compile": [1.0, 2.5, 2.6]}) == "eager"       # mean, min: compile
    assert step.fastest({}) is None


def test_steps_are_compared_with_their_best_mode(monkeypatch):
    seconds = {"infer": {"ours": [1.0], "openvino": [0.5]},
               "validate": {"ours": [1.0], "eager": [2.0], "compile": [4.0]},
               "train": {"ours": [2.0], "eager": [8.0], "compile": [6.0]}}
    memory = {kind: dict.fromkeys(modes, 100.0) for kind, modes in seconds.items()}
    best = {"infer": "openvino", "validate": "eager", "train": "compile"}
    monkeypatch.setattr(step, "measure", lambda *_: (seconds, memory, best))
    plan = step.Plan(("eager", "compile"), 1, 1, 1)
    found = {row["name"]: (row["value"], row["peer_is"], row["ratio"]) for row in step.rows(16, plan)}
    assert found["infer step, batch 16, ours"] == (16.0, "OpenVINO", 0.5)
    assert found["train step, batch 16, ours"] == (8.0, "PyTorch compile", 3.0)
    assert found["validate step, batch 16, ours"] == (16.0, "PyTorch eager", 2.0)
    assert found["train step, batch 16, eager"] == (2.0, "PyTorch compile", 0.75)


@pytest.mark.parametrize(("sets", "reason"), [({"avx2"}, "the rows above are these"), (set(), "has no AVX2")])
def test_avx2_is_skipped_if_redundant_or_missing(monkeypatch, sets, reason):
    monkeypatch.setattr(step, "instruction_sets", lambda: sets)
    (row,) = step.avx2_rows(128, plan=None)
    assert row["value"] is None
    assert reason in row["note"]


def test_avx512_machines_also_measure_avx2(monkeypatch):
    plans = []
    monkeypatch.setattr(step, "instruction_sets", lambda: {"avx2", "avx512f"})
    monkeypatch.setattr(step, "rows", lambda batch, plan, kinds, suffix: plans.append(plan) or [ROW])
    assert list(step.avx2_rows(128, step.Plan((), 7, 2, 2))) == [ROW]
    assert plans[0].variables == {"ALEXNET_ISA": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


class Fake:
    """A program whose steps take a given time."""

    def __init__(self, journal, name, **seconds):
        self.journal, self.name, self.seconds = journal, name, seconds

    def begin(self, kind):
        self.kind = kind
        self.journal.append((self.name, "begins"))

    def end(self):
        self.journal.append((self.name, self.kind))
        return self.seconds[self.kind], 100.0

    def step(self, kind):
        self.kind = kind
        return self.end()

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.close()

    def close(self):
        self.journal.append((self.name, "closed"))


def test_programs_alternate_after_an_uncounted_warm_up():
    journal = []
    programs = {name: Fake(journal, name, train=seconds) for name, seconds in (("a", 1.0), ("b", 2.0))}
    warm_up(programs.values(), "train")
    assert take_turns(programs, "train", runs=2) == ({"a": [1.0] * 2, "b": [2.0] * 2}, {"a": 100, "b": 100})
    steps = [("a", "train"), ("b", "train")]
    assert journal == [("a", "begins"), ("b", "begins"), *steps, *steps, *steps]


def test_table1_runs_pytorch_between_our_two_turns():
    journal = []

    class Contestant:
        def __init__(self, name, **seconds):
            self.name, self.seconds = name, seconds

        def turn(self, kind, iterations):
            journal.append((self.name, kind))
            return [self.seconds[kind]] * iterations

    contestants = [Contestant("one worker", parallel=1.0, serial=1.5),
                   Contestant("two workers", parallel=1.25, serial=2.0),
                   Contestant("PyTorch", parallel=2.0, serial=4.0)]
    seconds = table1.measure({each.name: each for each in contestants}, iterations=3)
    turns = ["one worker", "two workers", "PyTorch", "one worker"]
    assert journal == [(name, kind) for name in turns for kind in ("parallel", "serial")]
    yes, no, yes2, no2, gain, second = table1.table_rows(seconds, 256)
    assert (yes["value"], yes["peer"], yes["ratio"], yes["runs"], yes["peer_runs"]) == (20, 40, 2, 6, 3)
    assert (no["value"], no["peer"]) == (30, 80)
    assert (yes2["value"], yes2["runs"], no2["value"], no2["ratio"]) == (25, 3, 40, 2)
    assert (gain["value"], gain["peer"], second["value"]) == (1.5, 2, 0.8)


def test_gpu_step_is_compared_with_the_faster_peer(monkeypatch):
    seconds = {"ours": 1.0, "jax": 4.0, "torch": 2.0}

    def program(module, *arguments):
        return contextlib.nullcontext(Fake([], arguments[1], train=seconds[arguments[1]]))

    monkeypatch.setattr(gpu, "Program", program)
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: name)
    found = {row["name"]: row for row in gpu.step_rows("cuda0", batch=8, steps=20, runs=3)}
    assert len(found) == 3 * len(gpu.PRECISIONS)
    ours = found["train step, batch 8, tf32, ours"]
    assert (ours["value"], ours["peer"], ours["ratio"], ours["peer_is"]) == (160, 80, 2, "torch")


def test_gpu_benchmark_without_a_gpu_gives_the_reason(monkeypatch, capsys):
    def absent(name):
        raise DeviceError(f"{name} needs PyCUDA")

    monkeypatch.setattr(gpu, "cuda_home", absent)
    assert gpu.main([]) == 2
    assert capsys.readouterr().err == "cuda0 needs PyCUDA; --devices cpu tries this program without a GPU\n"


def test_only_the_best_pytorch_modes_are_measured_fully(monkeypatch):
    journal = []
    programs = {"ours": Fake(journal, "ours", infer=1.0, validate=1.0, train=2.0),
                "eager": Fake(journal, "eager", infer=3.0, validate=3.0, train=4.0),
                "compile": Fake(journal, "compile", infer=3.0, validate=2.0, train=5.0),
                "channels_last": Fake(journal, "channels_last", infer=9.0, validate=9.0, train=9.0),
                "openvino": Fake(journal, "openvino", infer=1.5)}
    monkeypatch.setattr(step, "program", lambda mode, *_: programs[mode])
    plan = step.Plan(("eager", "channels_last", "compile", "openvino"), runs=7, trial=2, threads=2)
    seconds, memory, best = step.measure(16, plan)
    assert best == {"infer": "openvino", "validate": "compile", "train": "eager"}
    assert step.title(best["infer"]) == "OpenVINO"
    runs = {kind: {mode: len(times) for mode, times in seconds[kind].items()} for kind in seconds}
    assert runs["infer"] == {"ours": 7, "eager": 2, "compile": 2, "channels_last": 2, "openvino": 7}
    assert runs["train"] == {"ours": 7, "eager": 7, "channels_last": 2, "compile": 2}
    assert runs["validate"] == {"ours": 7, "eager": 2, "channels_last": 2, "compile": 7}
    assert memory["train"].keys() == runs["train"].keys()
    assert journal.index(("ours", "validate")) > journal.index(("channels_last", "closed"))
    assert {name for name, what in journal if what == "closed"} == set(programs)


# ---- the nodes of a step


@pytest.fixture(scope="module")
def tiny_step():
    """Return (seconds, watched nodes) of three steps of a network with AlexNet's kinds of layers and real kernels."""
    rng = np.random.default_rng(0)
    model = Sequential(
        Conv(rng, 3, 16, size=11, stride=8, pool=(3, 2)), LRN(),                         # 16 x 13 x 13
        Conv(rng, 16, 16, size=3, pad=1), Flatten(),
        Dense(rng, 2704, 64), Dropout(0.5, 3),
        Dense(rng, 64, 80, relu=False),
    )
    model.channels, model.image_size = 3, 227
    network = Network(model, np.zeros((3, 256, 256), "float32"), momentum_sgd)
    watched = nodes.watch(network.train)
    images = np.zeros((3, 256, 256, 8), np.uint8)
    seconds = [
        report.seconds(lambda: network.train(images, *centre_crop(8, 227), np.zeros(8, "int32"), np.float32(0)))
        for _ in range(3)
    ]
    return seconds, watched


def test_every_node_has_a_layer_and_a_pass(tiny_step):
    passes = {
        "conv1": ["forward", "max pool", "bias and ReLU", "LRN", "LRN gradient", "ReLU gradient", "bias gradient",
                  "max pool gradient", "filter gradient", "update"],
        "conv2": ["forward", "bias and ReLU", "ReLU gradient", "input gradient", "filter gradient"],
        "fc3": ["forward", "bias and ReLU", "dropout", "dropout gradient", "ReLU gradient", "bias gradient",
                "input gradient"],
        "fc4": ["forward", "bias", "input gradient"],
    }
    names = set(nodes.by_name(tiny_step[1]))
    wanted = {f"{layer} {each}" for layer in passes for each in passes[layer]} | {"crop mirror", nodes.REST}
    apart, fused = {"fc3 filter gradient", "fc3 update"}, {"fc3 filter gradient update"}
    assert names >= wanted
    assert names >= apart or names >= fused
    assert "conv1 input gradient" not in names
    assert [node.name for node in tiny_step[1]].count("fc4 forward") == 1, "nothing is computed twice"


def test_nodes_sum_to_the_step(tiny_step):
    seconds, watched = tiny_step
    sums = [sum(call) for call in zip(*(times for times, _ in nodes.by_name(watched).values()), strict=True)]
    assert len(sums) == 3
    assert all(0.5 * whole < parts < whole for whole, parts in zip(seconds, sums, strict=True))


def test_bytes_of_a_node_are_its_inputs_and_outputs(tiny_step):
    _, nbytes = nodes.by_name(tiny_step[1])["conv1 LRN"]
    assert nbytes == 2 * 4 * (16 * 13 * 13 * 8)                          # in and out, float32


@pytest.mark.parametrize(
    ("name", "text"),
    [("Convolution", "forward"), ("ConvolutionInputGradient", "input gradient"), ("LRNGradient", "LRN gradient"),
     ("MaxPool", "max pool"), ("FilterGradientUpdate", "filter gradient update")],
)
def test_class_name_is_split_into_words(name, text):
    assert nodes.words(name) == text


LIMITS = kernels.Ceilings(operations=100e9, nbytes=10e9)


@pytest.mark.parametrize(
    ("operations", "nbytes", "ceiling", "bound_by"), [(1e9, 5e7, 10, "multiply-adds"), (1e9, 2e8, 20, "memory")]
)
def test_ceiling_is_the_slower_limit(operations, nbytes, ceiling, bound_by):
    row = kernels.pass_row("conv1 forward", [0.04], 0.4, 0.08, operations, nbytes, LIMITS)
    wanted = {"value": 40, "share": 0.1, "peer": 80, "ratio": 2, "ceiling_ms": ceiling, "bound_by": bound_by}
    assert {key: row[key] for key in wanted} == pytest.approx(wanted)
    assert row["of_ceiling"] == pytest.approx(ceiling / 40)


def test_fused_node_is_compared_with_its_parts():
    peers = {"fc6 filter gradient": [3.0], "fc6 update": [1.0, 5.0]}
    assert kernels.peer_of("fc6 filter gradient update", peers) == 6
    assert kernels.peer_of("fc6 update", peers) == 3
    assert kernels.peer_of("fc6 dropout", peers) is None


def test_sums_of_a_step_include_all_parts():
    found = [
        kernels.pass_row("conv1 forward", [0.04], 0.1, 0.08, 1e9, 0, LIMITS),
        kernels.pass_row("fc6 filter gradient update", [0.02], 0.1, 0.05, 1e9, 0, LIMITS),
        kernels.pass_row("conv1 LRN", [0.01], 0.1, 0.06, 0, 1e6, LIMITS),
        kernels.pass_row("small nodes, in NumPy", [0.03], 0.1, None, 0, 0, LIMITS),
    ]
    rows = {row["name"]: row for row in kernels.sums(found, [0.1], torch_ms=200, dense={"fc6"})}
    assert {name: (row["value"], row["peer"]) for name, row in rows.items()} == {
        name: pytest.approx(pair)
        for name, pair in {"all convolutions": (40, 80), "all dense layers": (20, 50), "all else": (40, 70),
                           "the whole step": (100, 200)}.items()
    }
    assert rows["all convolutions"]["of_ceiling"] == pytest.approx(10 / 40)


# ---- the report


def test_table_has_a_column_per_key_and_notes():
    text = results.table([ROW | {"peak_mib": 1234.5}, report.not_measured("b", "no such processor")])
    assert text.splitlines() == [
        "|  | median, images/s | spread | runs | peer, images/s | ratio | peer is | peak MiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| train step, batch 128, ours | 40.0 | 5 % | 7 | 20.0 | **2.00** | PyTorch eager | 1,234 |",
        "",
        "- b: no such processor",
    ]


def test_differing_units_are_shown_with_each_value():
    text = results.table([ROW | {"name": "a"}, ROW | {"name": "b", "unit": "s"}])
    assert "| a | 40.0 images/s | 5 % | 7 | 20.0 images/s | **2.00** | PyTorch eager |" in text
    assert "| b | 40.0 s | 5 % | 7 | 20.0 s | **2.00** | PyTorch eager |" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (3.27e-7, "3.27e-07"), (0.1234, "0.123"), (4.056, "4.06"), (31.46, "31.5"), (1847.2, "1,847")],
)
def test_numbers_have_three_significant_digits(value, text):
    assert results.number(value) == text


def test_report_has_machine_summary_sections_and_notes():
    text = markdown(section(), section([ROW], module="accuracy.agreement"), by_hand="## Trainings\n\nBy hand.\n")
    short = "| train step, batch 128, ours | 40.0 | **2.00** | PyTorch eager |"
    wanted = ["# Results", "a fake one", "## Summary", short,
              "## The step", "`python -m benchmarks.step --quick` (1:01 min)", "| 5 % | 7 |",
              "Error of the network's", "## Trainings\n\nBy hand.\n"]
    places = [text.index(part) for part in wanted]
    assert places == sorted(places)
    assert text.count("train step, batch 128, ours") == 3                # the summary names it once


def test_failure_is_in_the_summary_and_its_section():
    text = markdown(section(failure="exit status 1: no memory"))
    assert "**`step` failed**" in text
    assert "**This benchmark failed:** exit status 1: no memory" in text
    assert text.count(ROW["name"]) == 2                                  # rows measured before the failure are shown


@pytest.mark.parametrize("module", [benchmark.module for benchmark in benchmarks.BENCHMARKS])
def test_every_benchmark_is_described(module):
    text = results.description(module)
    assert len(text.split(". ")) > 1
    assert "python -m benchmarks" not in text


# ---- running all benchmarks


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """A folder benchmarks/ with one program that works, one that fails and one that takes too long."""
    package = tmp_path / "benchmarks"
    package.mkdir()
    row = json.dumps({"name": "a", "value": 1.5, "unit": "s"}) + "\n"
    write = f"import pathlib, sys\npathlib.Path(sys.argv[-1]).write_text({row!r})\n"
    (package / "good.py").write_text(write)
    (package / "bad.py").write_text(write + "raise SystemExit('the disk is full')\n")
    (package / "slow.py").write_text("import time; time.sleep(60)\n")
    monkeypatch.setattr(benchmarks, "HERE", package)
    monkeypatch.setattr(results, "PROGRAMS", package)
    both = benchmarks.Benchmark("bad", "Bad", 1), benchmarks.Benchmark("good", "Good", 1)
    monkeypatch.setattr(benchmarks, "BENCHMARKS", both)
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    return package


def test_failing_benchmark_does_not_stop_the_others(scripts, tmp_path, capsys):
    output, rows = tmp_path / "results.md", tmp_path / "rows"
    assert benchmarks.main(["--output", str(output), "--json", str(rows)]) == 1
    text = output.read_text()
    assert "**This benchmark failed:** exit status 1: the disk is full" in text
    assert [row["benchmark"] for row in report.read(rows)] == ["bad", "good"]
    assert "[2/2, 0:0" in capsys.readouterr().out


def test_status_is_0_without_failures(scripts, tmp_path):
    assert benchmarks.main(["--only", "good", "--output", str(tmp_path / "results.md")]) == 0


def test_longest_benchmark_gets_the_unused_time(monkeypatch):
    limits = {}

    def run(benchmark, quick, limit):
        limits[benchmark.module] = limit
        return section(module=benchmark.module)

    monkeypatch.setattr(benchmarks, "run", run)
    sections = benchmarks.run_all([benchmarks.Benchmark(*each) for each in (("step", "", 9), ("loader", "", 1))], False)
    assert [each.module for each in sections] == ["step", "loader"]      # in the order of the report
    assert list(limits) == ["loader", "step"]
    assert limits == pytest.approx({"loader": 60, "step": 600}, abs=1)


def test_benchmark_is_killed_at_its_time_limit(scripts):
    failed = benchmarks.run(benchmarks.Benchmark("slow", "Slow", 1), quick=False, limit=1)
    assert failed.failure.startswith("killed at its time limit")
    assert failed.seconds < 10


@pytest.mark.parametrize("arguments", [["--quick"], ["--only", "step"], ["--quick", "--only", "step"]])
def test_only_a_complete_run_replaces_the_results(arguments):
    assert benchmarks.options_of(arguments).output is None
    assert benchmarks.options_of([]).output == pathlib.Path(benchmarks.__file__).parent / "RESULTS.md"


def test_docstring_gives_the_sum_of_the_limits():
    minutes = sum(benchmark.minutes for benchmark in benchmarks.BENCHMARKS)
    assert f"the limits add up to {minutes:g} minutes" in benchmarks.__doc__


# ---- the exchange


def test_every_exchange_is_compared_with_a_memcpy():
    memcpy, *ways = exchange.exchange_rows(exchange.Amount(4096, 1, (2,)))
    assert memcpy["name"] == "memcpy of 0.0 MB by one thread"
    both = "weights and momentum"
    names = (f"{both}, ShardedAverage", f"{both}, PairwiseAverage", "gradients, ShardedAverage")
    assert [row["name"] for row in ways] == [f"2 workers, {name}" for name in names]
    for row in ways:
        assert row["ratio"] == row["value"] / row["peer"] > 0
        assert row["peer_is"].startswith("memcpy")


# ---- programs


def test_openblas_settings_are_removed(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("OPENBLAS_L2_SIZE", "1024")
    assert not [name for name in environment() if name.startswith("OPENBLAS_")]
    assert environment()["PATH"] == os.environ["PATH"]


def test_error_of_a_program_is_reported(tmp_path, monkeypatch):
    (tmp_path / "dying.py").write_text("raise SystemExit('no such mode')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    program = step.Program("dying")
    with program, pytest.raises(RuntimeError, match="dying exited with status 1: no such mode"):
        program.step("train")


def test_last_line_skips_blank_lines():
    assert last_line("Traceback\nValueError: too small\n\n") == "ValueError: too small"
    assert last_line("") == ""


# ---- evaluation


def test_evaluation_is_compared_with_pytorchs_best():
    row = evaluate.row_of("a", 100, [2.0, 1.0, 4.0], 300.0, "PyTorch eager", [5.0, 4.0])
    assert (row["value"], row["peer"], row["ratio"], row["peak_mib"]) == (50.0, 22.5, 50 / 22.5, 300.0)
    assert "ratio" not in evaluate.row_of("a", 100, [2.0], 300.0)


def test_different_counts_are_refused(tmp_path):
    (tmp_path / "ours.json").write_text("[100, 200, 6.5]")
    (tmp_path / "eager.json").write_text("[101, 200, 6.5001]")           # one image whose logits are nearly equal
    evaluate.refuse_difference(tmp_path, "eager")
    for other in ("[140, 200, 6.5]", "[100, 200, 6.6]"):
        (tmp_path / "eager.json").write_text(other)
        with pytest.raises(RuntimeError, match=r"are \[100, 200, 6.5\] here and .* in PyTorch eager"):
            evaluate.refuse_difference(tmp_path, "eager")


# ---- fine-tuning


def test_target_error_needs_two_consecutive_validations():
    assert finetune.reached({10: 0.5, 20: 0.1, 30: 0.2, 40: 0.05, 50: 0.1}, 0.1) == 40
    assert finetune.reached({10: 0.5, 20: 0.1}, 0.1) is None
    assert finetune.reached({}, 0.1) is None


def test_fine_tuning_has_new_classes(tmp_path):
    """Each class has all its pictures, and no class is in both sets."""
    plan = finetune.Plan(first=(20, 10), train=4, validation=2)
    before, after = (open_dataset(folder) for folder in finetune.made_sets(tmp_path, plan))
    assert (before.classes, before.train.n, before.validation.n) == (10, 20, 10)
    assert (after.classes, after.train.n, after.validation.n) == (6, 24, 12)
    assert set(before.class_names).isdisjoint(after.class_names)
    assert after.validation.labels.tolist() == sorted(after.validation.labels)
    assert [sorted(after.train.labels[i:i + 6]) for i in (0, 6)] == [[0, 1, 2, 3, 4, 5]] * 2      # classes alternate
