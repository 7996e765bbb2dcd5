"""train.py from a user's view: a real run, the files it writes, what it refuses and with which exit status."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from alexnet.run import checkpoint_format
from alexnet.run.recorder import read_records
from multigpu.launch.signals import stop_notice
from tests import tiny

pytestmark = pytest.mark.slow

TOP = Path(__file__).parent.parent
TINY = "model=tests.tiny:Tiny"                   # where the network is not the subject


def train(*arguments, cwd, **environment):
    """Run train.py in a separate process, in folder `cwd`."""
    command = [sys.executable, str(TOP / "train.py"), *map(str, arguments)]
    given = {"env": os.environ | environment, "timeout": 300}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, **given)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("data") / "set", train=6, validation=3, per_file=3)


def test_alexnet_trains_saves_and_resumes(data, tmp_path):
    done = train(f"data={data}", "batch_size=2", "n_epochs=3", "n_iterations=4", "run_name=first", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "first"
    left = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "log.txt", "records.jsonl", "learning_curves.png", "filters.png", "report.html"} <= left
    assert checkpoint_format.latest(folder) == checkpoint_format.snapshot_path(folder, 4)

    again = train("resume_train=latest", "n_iterations=5", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "after 4 iterations" in again.stdout
    assert checkpoint_format.latest(folder) == checkpoint_format.snapshot_path(folder, 5)


@pytest.mark.parametrize(("model", "backend"), [
    pytest.param("bvlc_alexnet", "cpu", marks=pytest.mark.compatibility), ("googlenet", "cpu"), ("vgg16", "cpu"),
    pytest.param("alexnet", "jax", marks=pytest.mark.compatibility), ("googlenet", "jax"),
])
def test_network_trains_with_empty_stderr(model, backend, data, tmp_path):
    settings = f"model={model}", f"backend={backend}", "batch_size=2", "n_iterations=2", "run_name=run"
    done = train(f"data={data}", *settings, "print_freq=1", "learning_rate=0.0001", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "warning" not in done.stdout
    costs = [record["cost"] for record in read_records(tmp_path / "runs" / "run") if record["kind"] == "train"]
    assert len(costs) == 2 and all(0 < cost < 20 for cost in costs)
    shutil.rmtree(tmp_path / "runs")             # VGG-16's checkpoint takes 1.1 GB


def test_training_without_a_compiler_warns_once(data, tmp_path):
    settings = TINY, "batch_size=2", "n_iterations=1", "run_name=plain", "validation=false"
    done = train(f"data={data}", *settings, cwd=tmp_path, CC="/nonexistent/cc")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    warned = [line for line in done.stdout.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 1 and "install gcc" in warned[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_run_saves_its_last_step(number, data, tmp_path):
    settings = f"data={data}", TINY, "batch_size=2", "run_name=it", "print_freq=1", "n_epochs=1000000"
    command = [sys.executable, str(TOP / "train.py"), *settings]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        said = next(line for line in process.stdout if line.startswith("iteration 1"))
        process.send_signal(number)
        rest, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert errors == f"{stop_notice(number)}\nstopped by {number.name}\n"
    last = [line.split()[1] for line in [said, *rest.splitlines()] if line.startswith("iteration")][-1]
    folder = tmp_path / "runs" / "it"
    assert checkpoint_format.latest(folder) == checkpoint_format.snapshot_path(folder, int(last))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["batchsize=4"], "did you mean batch_size?"),
        (["batch_size=4", "batch_size=8"], "batch_size is given twice"),
        (["batch_size=four"], "batch_size must be an integer, got the text 'four'"),
        (["data=nowhere"], "nowhere"),
        (["data={data}", "batch_size=7"], "batch size 7 is larger than the set of 6 images"),
        (["data={data}", "classes=2"], "classes"),
        (["data={data}", "model=alexnett"], "did you mean alexnet?"),
        (["data={data}", "devices=cpu,auto"], "devices must be only auto"),
        (["data={data}", "batch_size=2", "devices=cpu,cuda0"], "cuda0 needs PyCUDA"),
        (["data={data}", "batch_size=4", "devices=cpu,cpu"], "batch size 8 is larger than the set of 6 images"),
        (["update=adam"], "there is no update rule 'adam'"),         # before the synthetic set is made
        (["exchange=x"], "there is no strategy 'x'"),
        (["resume_train=nowhere"], "there is no run folder or checkpoint file nowhere"),
    ],
)
def test_invalid_input_is_refused_with_status_2(arguments, sentence, data, tmp_path):
    done = train(*(argument.format(data=data) for argument in arguments), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "compiling" not in done.stdout
    assert not any((tmp_path / name).exists() for name in ("runs", "data"))


@pytest.mark.parametrize(
    ("module", "unneeded"),
    [
        ("train", "pytensor jax pycuda scipy matplotlib PIL"),  # the launcher; its children import train.py as well
        ("multigpu.loader", "pytensor jax pycuda scipy matplotlib PIL pydantic yaml"),
        ("multigpu.worker", "jax pycuda matplotlib PIL scipy.io onnx google.protobuf"),
        ("alexnet.plots.report.page", "pytensor matplotlib"),
    ],
)
def test_processes_import_only_what_they_need(module, unneeded):
    program = f"import sys, {module}\nprint(*sorted(set({unneeded.split()!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=TOP, capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == ([], "")


def test_folder_of_an_earlier_run_is_not_overwritten(data, tmp_path):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "log.txt").write_text("precious")
    done = train(f"data={data}", "run_name=mine", cwd=tmp_path)
    assert done.returncode == 2
    assert "exists and is not empty" in done.stderr
    assert (tmp_path / "runs" / "mine" / "log.txt").read_text() == "precious"
