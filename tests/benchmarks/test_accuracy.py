"""The benchmark of accuracy: its statistics, its variants of the network, its rows, and a quick run."""

import json
import math

import numpy as np
import pytest

from alexnet.data.dataset import DataError
from benchmarks.accuracy import __main__ as accuracy
from benchmarks.accuracy import figure, large_batch, networks, proposed_rate, trainings
from benchmarks.accuracy.seed_noise import compared_curves, holm, pooled_deviation, welch
from benchmarks.harness import report

MODELS = [value for value in vars(networks).values() if isinstance(value, type) and issubclass(value, networks.Small)]


# ---- the statistics


def test_welch_matches_a_worked_example():
    found = welch([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    assert found == pytest.approx((-3, (2 / 3) ** 0.5, -3.674, 0.02131), rel=1e-3)
    assert welch([1.0, 1.0], [1.0, 1.0]).p == 1
    assert welch([1.0, 1.0], [2.0, 2.0]).p == 0


def test_holm_matches_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])


def test_statistic_detects_a_shift_and_rarely_noise():
    """Curves of 4 epochs and 3 seeds, with a deviation of 1 point."""
    rng = np.random.default_rng(0)

    def detected(shift):
        groups = [rng.normal(60 + each, 1, (3, 4)).tolist() for each in (0, shift)]
        return min(p for _, p in compared_curves(*groups)) < accuracy.LEVEL

    assert np.mean([detected(0) for _ in range(300)]) < 0.08
    assert np.mean([detected(8) for _ in range(100)]) > 0.9


def test_pooled_deviation_weights_groups_by_their_freedom():
    assert pooled_deviation([[0.0, 2.0], [5.0, 5.0, 5.0]]) == pytest.approx((2 / 3) ** 0.5)


# ---- networks and settings


@pytest.mark.parametrize("model", MODELS)
def test_variant_has_the_sizes_of_the_baseline(model):
    shapes = {row.name: row.shape for row in model(None, classes=10).describe((3, 216, 216))}
    assert (shapes["flatten4"], shapes["fc7"]) == ((512,), (10,))


@pytest.mark.parametrize("name", accuracy.ABLATIONS)
def test_settings_of_each_change_are_valid_and_change_something(name, tmp_path):
    changed, baseline = (trainings.settings_of(tmp_path, 4, **each) for each in (accuracy.ABLATIONS[name], {}))
    assert changed != baseline


def test_pytorchs_network_has_our_shapes():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from benchmarks.accuracy.torch_small import torch_small
    from benchmarks.harness.torch_alexnet import from_c01b

    ours = [tuple(from_c01b(each.variable.get_value()).shape) for each in networks.Small(None, classes=10).parameters]
    assert ours == [tuple(each.shape) for each in torch_small(10).parameters()]


# ---- data and rows


def test_folder_without_class_folders_is_a_data_set(tmp_path):
    assert trainings.made_data(tmp_path, tmp_path / "made", (1, 1)) == tmp_path
    for half in ("train", "test"):
        (tmp_path / half).mkdir()
    with pytest.raises(DataError, match="train"):               # it has halves, but no images
        trainings.made_data(tmp_path, tmp_path / "made", (1, 1))


def test_stored_curves_are_not_computed_again(tmp_path):
    curve = [[2.0, 0.5]]
    trainings.Curves(tmp_path / "curves").get("baseline", 1, lambda: curve)
    assert trainings.Curves(tmp_path / "curves").get("baseline", 1, pytest.fail) == curve


def curves_with(tmp_path, **errors):
    """Return Curves with the given final errors, one per seed."""
    path = tmp_path / "curves"
    path.write_text(json.dumps({
        name: {str(seed): [[2.0, 0.9], [1.5, error]] for seed, error in enumerate(values, 1)}
        for name, values in errors.items()
    }))
    return trainings.Curves(path)


def test_ablation_row_has_change_and_standard_error(tmp_path):
    curves = curves_with(tmp_path, baseline=[0.60, 0.62], **{"no groups": [0.65, 0.65]})
    baseline, row = accuracy.ablation_rows(["no groups"], tmp_path, 2, 2, curves)
    assert "change" not in baseline
    assert (row["value"], row["change"], row["standard_error"]) == pytest.approx((65, 4, 1))


@pytest.mark.parametrize(("best", "calls"), [(1, 3), (0.25, 5), (8, 5)])
def test_rate_is_tuned_until_both_neighbours_are_worse(best, calls):
    asked = []
    assert large_batch.tuned(1, lambda rate: asked.append(rate) or abs(math.log(rate / best))) == best
    assert len(asked) == len(set(asked)) == calls


def test_row_of_a_batch_size_has_the_tuned_rate_and_starts_from_that_of_the_size_before(tmp_path):
    errors = {
        "lars, batch 32, rate 0.5": [0.6], "lars, batch 32, rate 1": [0.5, 0.52], "lars, batch 32, rate 2": [0.7],
        "lars, batch 64, rate 1": [0.55, 0.55], "lars, batch 64, rate 2": [0.8], "lars, batch 64, rate 0.5": [0.8],
    }
    rows = list(large_batch.rule_rows("lars", tmp_path, (32, 64), 2, 2, curves_with(tmp_path, **errors)))
    assert [(row["rate"], row["runs"]) for row in rows] == [(1, 2), (1, 2)]
    assert [row["mean"] for row in rows] == pytest.approx([51, 55])


def test_row_of_a_proposed_rate_is_compared_with_the_best_rate(tmp_path):
    task = next(iter(proposed_rate.TASKS))
    curves = curves_with(tmp_path, **{
        f"{task}, rate {rate:g}": errors for rate, errors in {
            0.2: [0.7, 0.7], 0.1: [0.62, 0.64], 0.05: [0.60, 0.62], 0.025: [0.9, 0.9],
        }.items()
    })
    curves.curves[f"{task}, proposal"] = {"1": 0.1}
    row = proposed_rate.task_row(task, tmp_path, tmp_path, 2, curves)
    assert (row["value"], row["peer"], row["peer_is"]) == (pytest.approx(63), pytest.approx(61), "rate 0.05")
    assert row["difference"] == pytest.approx(2)


@pytest.mark.parametrize("task", proposed_rate.TASKS.values())
def test_settings_of_each_task_are_valid(task, tmp_path):
    trainings.settings_of(tmp_path, task.epochs, **task.settings)


@pytest.mark.parametrize("rule", large_batch.FIRST)
def test_settings_of_large_batches_are_valid(rule, tmp_path):
    config = trainings.settings_of(tmp_path, 10, **large_batch.settings(rule, 256, 0.1, 10))
    assert (config.micro_batches, config.warmup_epochs) == (8, 2)


def test_figure_has_a_line_per_seed_and_a_mean(tmp_path):
    curves = curves_with(tmp_path, **dict.fromkeys(figure.SHOWN, [0.5, 0.6])).curves
    assert [len(axes.lines) for axes in figure.accuracy_figure(curves).axes] == [9, 9]


def test_theano_mpis_curves_end_at_the_published_errors():
    last = {row["run"]: (row["epoch"], row["top1_error"], row["top5_error"]) for row in figure.theano_mpi_rows()}
    assert last == {"alexnet_1gpu": ("70", "0.428726", "0.200381"), "alexnet_4gpu": ("70", "0.432916", "0.203304"),
                    "alexnet_8gpu": ("70", "0.45735", "0.220225")}
    assert len(figure.theano_mpi_figure(figure.theano_mpi_rows()).axes) == 3


# ---- the program


@pytest.mark.slow
def test_quick_ablation_needs_no_pytorch(tmp_path):
    assert accuracy.main(["--quick", "--ablations", "no groups", "--json", str(tmp_path / "rows")]) == 0
    baseline, row = report.read(tmp_path / "rows")
    assert (baseline["name"], row["name"], row["runs"]) == ("baseline", "no groups", 2)
    assert row["standard_error"] >= 0


@pytest.mark.slow
def test_quick_run_agrees_with_pytorch_and_detects_faults(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    assert accuracy.main(["--quick", "--json", str(tmp_path / "rows")]) == 0
    values = {row["name"]: row["value"] for row in report.read(tmp_path / "rows")}
    faults = [value for name, value in values.items() if "fault" in name]
    assert values["change of the weights in 10 steps"] < accuracy.BOUND < min(faults)
