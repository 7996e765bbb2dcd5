"""The training loop: bit-exact resume, identical pixels for every way of loading and cropping, divergence, stops."""

import json
import shutil

import numpy as np
import pytest

from alexnet.run import checkpoint_format
from alexnet.run.checkpoint_format import CheckpointError
from alexnet.run.recorder import read_records
from alexnet.training.loop import Diverged
from multigpu.rules import single
from multigpu.rules.single import SingleWorker
from tests import tiny

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Make 52 images: 13 batches of 4."""
    return tiny.make_data(tmp_path_factory.mktemp("data") / "set", train=52)


def final_state(folder):
    """Return arrays and position of the newest checkpoint."""
    arrays, metadata = checkpoint_format.load(checkpoint_format.latest(folder))
    return arrays, metadata["position"]


def assert_same_run(folder, other):
    """Assert that weights, velocities and position are bit-identical, and the records equal."""
    (arrays, position), (others, other_position) = final_state(folder), final_state(other)
    assert position == other_position
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)
    timed = {"seconds", "calc", "sync", "comm", "wait", "at"}
    records = [
        [{key: value for key, value in record.items() if key not in timed} for record in read_records(run)]
        for run in (folder, other)
    ]
    assert records[0] == records[1]


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """Run 40 iterations without interruption: three epochs of 13 and one step; the rate drops after the second."""
    output = tmp_path_factory.mktemp("straight")
    changes = {"n_epochs": 9, "n_iterations": 40, "lr_step": "2", "keep_snapshots": "null", "print_freq": 10}
    return tiny.run(data, output, snapshot_iterations=20, **changes)


def resumed(data, output, straight, at, **changes):
    """Resume from the checkpoint of iteration `at`, in a copy of the folder of the uninterrupted run."""
    folder = output / "run"
    shutil.copytree(straight, folder)
    for path in checkpoint_format.snapshots(folder):
        if path != checkpoint_format.snapshot_path(folder, at):
            path.unlink()
    given = {"n_epochs": 9, "n_iterations": 40, "lr_step": "2", "print_freq": 10}
    return tiny.run(data, output, resume_train=checkpoint_format.snapshot_path(folder, at), **(given | changes))


@pytest.mark.parametrize("para_load", ["true", "false"])
@pytest.mark.parametrize("at", [20, 26], ids=["within an epoch", "at an epoch's end and a rate drop"])
def test_resume_is_bit_exact(data, tmp_path, straight, at, para_load):
    folder = resumed(data, tmp_path, straight, at, para_load=para_load)
    assert final_state(folder)[1]["iteration"] == 40
    rates = {record["learning_rate"] for record in read_records(folder)}
    assert sorted(rates) == pytest.approx([0.001, 0.01])
    assert_same_run(folder, straight)


@pytest.mark.parametrize(
    "changes",
    [{"para_load": "false"}, {"slots": 4}, {"use_data_layer": "false"}, {"threads": 1}],
    ids=["read by the worker", "a longer ring", "cropped by the loader", "one thread"],
)
def test_every_way_of_reading_gives_the_same_bits(data, tmp_path, straight, changes):
    given = {"n_epochs": 9, "n_iterations": 14, "lr_step": "2"}
    arrays = final_state(tiny.run(data, tmp_path, **(given | changes)))[0]
    expected = final_state(tiny.run(data, tmp_path, run_name="plain", **given))[0]
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_stop_saves_and_loses_no_step(data, tmp_path, straight):
    stopped = tiny.run(data, tmp_path, line=tiny.Line(stop_after=17), n_epochs=9, n_iterations=40, lr_step="2")
    position = final_state(stopped)[1]
    assert 0 < position["iteration"] < 40 and position["batch"] > 0
    path = checkpoint_format.latest(stopped)
    tiny.run(data, tmp_path, resume_train=path, n_epochs=9, n_iterations=40, lr_step="2")
    assert_same_run(stopped, straight)


class Sparse(SingleWorker):
    """Synchronises every 4 steps and whenever `last` is set; records these steps and reports a cost of 7 for them."""

    asked = ()

    def after_step(self, step, cost, error, rate, stop, last):
        assert np.isfinite(cost)
        if step % 4 and not last:
            return super().after_step(step, cost, error, rate, False, last)
        type(self).asked += (step,)
        return super().after_step(step, 7.0, error, rate, stop, last)


@pytest.fixture
def sparse(monkeypatch):
    monkeypatch.setattr(single, "SingleWorker", Sparse)
    monkeypatch.setattr(Sparse, "asked", ())
    return Sparse


def test_workers_are_equal_when_validating_and_saving(data, tmp_path, sparse):
    folder = tiny.run(data, tmp_path, n_epochs=9, n_iterations=19, snapshot_iterations=6)
    assert sparse.asked == (4, 6, 8, 12, 13, 16, 18, 19)
    costs = [record["cost"] for record in read_records(folder) if record["kind"] == "train"]
    assert [iteration for iteration, cost in enumerate(costs, 1) if cost == 7] == list(sparse.asked)


@pytest.mark.parametrize(("asked", "stopped"), [(0, 0), (2, 4), (5, 8), (12, 12)])
def test_stop_takes_effect_at_the_next_exchange(data, tmp_path, sparse, asked, stopped):
    """The loop checks for a stop once before the first step, then once per step."""
    folder = tiny.run(data, tmp_path, line=tiny.Line(stop_after=asked), n_epochs=9)
    assert final_state(folder)[1]["iteration"] == stopped


def test_validation_sums_over_all_workers(data, tmp_path, monkeypatch):
    class Twin(SingleWorker):
        """Adds a worker that has validated as many images, all of them wrong, at a cost of 3 each."""

        def total(self, values, stop):
            own = np.array(values)
            return (own + own[-1] * np.array([3, 1, 1, 1]), stop) if own.size == 4 else (own, stop)

    one = tiny.run(data, tmp_path, run_name="one", n_epochs=1)
    monkeypatch.setattr(single, "SingleWorker", Twin)
    twins = tiny.run(data, tmp_path, run_name="twins", n_epochs=1)
    one, twins = (read_records(folder)[-1] for folder in (one, twins))
    assert twins["images"] == 2 * one["images"] == 20
    assert twins["cost"] == pytest.approx((one["cost"] + 3) / 2)
    assert twins["top1_error"] == pytest.approx((one["top1_error"] + 1) / 2)


def test_training_lowers_the_cost_and_validation_covers_every_image(data, tmp_path):
    folder = tiny.run(data, tmp_path, pictures=True, n_epochs=8, dropout_rate=0, learning_rate=0.02)
    validations = [record for record in read_records(folder) if record["kind"] == "validation"]
    assert [record["images"] for record in validations] == [10] * 8
    costs = [record["cost"] for record in read_records(folder) if record["kind"] == "train"]
    assert np.mean(costs[-13:]) < 0.7 * np.mean(costs[:13])
    left = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "log.txt", "records.jsonl", "train.csv", "validation.csv", "filters.png"} <= left


def test_divergence_names_iteration_and_last_checkpoint(data, tmp_path):
    sentence = r"cost became (nan|inf) at iteration \d+, in epoch \d, on .*\.hkl; .* last good checkpoint is"
    with pytest.raises(Diverged, match=sentence) as error:
        tiny.run(data, tmp_path, learning_rate=1e20, snapshot_iterations=1, warmup_epochs=1, n_epochs=3)
    path = checkpoint_format.latest(tmp_path / "run")
    assert path is not None and str(path) in str(error.value)
    arrays = checkpoint_format.load(path)[0]
    assert all(np.isfinite(array).all() for array in arrays.values())


def test_nan_validation_cost_ends_the_run(tmp_path):
    one_step = tiny.make_data(tmp_path / "set", train=4)
    with pytest.raises(Diverged, match="validation cost became (nan|inf) after epoch 1; .* no checkpoint was saved"):
        tiny.run(one_step, tmp_path, n_epochs=1, learning_rate=1e20)


@pytest.mark.filterwarnings("default:passed over")
def test_folder_resumes_from_newest_loadable_checkpoint(data, tmp_path, straight):
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    newest, *_ = checkpoint_format.snapshots(folder)
    newest.write_bytes(newest.read_bytes()[:-1])
    tiny.run(data, tmp_path, resume_train=folder, n_epochs=9, n_iterations=40, lr_step="2", print_freq=10)
    assert f"warning: passed over: {newest} is no checkpoint" in (folder / "log.txt").read_text()
    assert_same_run(folder, straight)


def test_resume_within_an_epoch_needs_the_same_batches(data, tmp_path, straight):
    with pytest.raises(CheckpointError, match=r"so workers \* batch_size must stay 1 \* 4, got 1 \* 2; a check"):
        resumed(data, tmp_path, straight, 20, batch_size=2)


def test_checkpoint_of_another_network_is_refused(data, tmp_path, straight):
    with pytest.raises(CheckpointError, match="was saved with model 'tiny', this run has 'alexnet'"):
        resumed(data, tmp_path, straight, 26, model="alexnet")


def test_batch_larger_than_the_set_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match="batch size 64 is larger than the set of 52 images"):
        tiny.run(data, tmp_path, batch_size=64)


def test_records_are_strict_json(straight):
    for line in (straight / "records.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
