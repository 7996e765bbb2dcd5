"""The benchmarks of many workers: the cost model's formulas against counting and simulation, and a real job."""

import heapq
import json
import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from benchmarks import __main__ as benchmarks
from benchmarks import cost_model, links, scaling
from benchmarks.links import LINKS, LOADS, Link, Load, Measured
from tests.mpi import needs_mpi

MIB = 1 << 20
# powers of two, so that sums are exact
LINK = Link(2.0**-10, 2.0**20)


# ---- the critical path


@pytest.mark.parametrize("strategy, workers, n, expected", [
    ("ar", 2, 1000, (2, 1000)), ("ar", 4, 1000, (4, 1500)), ("ar", 5, 1000, (6, 1600)),
    ("asa32", 2, 1000, (2, 1000)), ("asa32", 4, 1000, (6, 1500)), ("asa16", 4, 1000, (6, 750)),
    ("nccl32", 8, 1000, (14, 1750)), ("nccl16", 8, 1000, (14, 875)),
    ("copper", 2, 1000, (2, 2000)), ("copper", 4, 4 * MIB, (4, 10 * MIB)), ("copper", 5, 4 * MIB, (6, 15 * MIB)),
    ("copper16", 4, 4 * MIB, (4, 6 * MIB)), ("peer", 2, 1000, (2, 1000)), ("peer", 4, 1000, (4, 1500)),
])
def test_messages_and_bytes_are_those_counted_by_hand(strategy, workers, n, expected):
    assert links.path(strategy, workers, n) == expected


@pytest.mark.parametrize("strategy", links.PEERS)
def test_one_worker_exchanges_nothing(strategy):
    assert links.path(strategy, 1, 1000) == (0, 0)


def test_on_gpus_two_peers_copy_each_others_whole_buffer():
    assert links.path("peer", 2, 1000, on_gpus=True) == (2, 1000)
    assert links.path("peer", 4, 1000, on_gpus=True) == (4, 1500)


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match="must be one of ar, asa32, .*, got 'carrier pigeon'"):
        links.path("carrier pigeon", 2, 1000)


@pytest.mark.parametrize("workers", [2, 3, 4, 7, 8])
def test_a_rings_bytes_are_those_that_its_busiest_rank_sends(workers):
    """Simulate reduce-scatter and all-gather: in each step every rank sends a slice to the next."""
    n = 840 * workers
    slices = [n * (rank + 1) // workers - n * rank // workers for rank in range(workers)]
    sent = [sum(slices[(rank - step) % workers] for step in range(workers - 1))
            + sum(slices[(rank + 1 - step) % workers] for step in range(workers - 1)) for rank in range(workers)]
    assert links.path("nccl32", workers, n) == (2 * (workers - 1), max(sent))


def test_an_exchange_takes_its_messages_latency_and_its_bytes_over_the_bandwidth():
    assert links.exchange_seconds("asa32", 4, 2**20, LINK) == 6 * 2.0**-10 + 1.5
    assert links.exchange_seconds("asa32", 4, 2**20, LINK, host=2.0**-20) == 6 * 2.0**-10 + 3.0
    assert links.exchange_seconds("asa16", 4, 2**20, LINK) == 6 * 2.0**-10 + 0.75


# ---- workers without a barrier


def simulated_easgd(workers, tau, step, message, rounds=200):
    """Return the mean seconds per step of workers that compute tau steps and then queue for the server (FIFO)."""
    arrivals, free, ends = [(tau * step, worker) for worker in range(workers)], 0.0, []
    for _ in range(rounds * workers):
        arrived, worker = heapq.heappop(arrivals)
        free = max(arrived, free) + 2 * message
        ends.append(free)
        heapq.heappush(arrivals, (free + tau * step, worker))
    half = len(ends) // 2                                     # skip the transient
    return (ends[-1] - ends[half - 1]) * workers / ((len(ends) - half) * tau)


@pytest.mark.parametrize("workers", [1, 2, 4, 5, 6, 20])
def test_easgd_takes_what_a_simulated_server_takes_until_it_has_no_time_left(workers):
    load = Load(parameters=2**18, batch=4, seconds_per_image=1.0)               # a message takes slightly more than 1 s
    message = LINK.latency + 1.0
    expected = simulated_easgd(workers, 2, 4.0, message) - load.step
    assert links.seconds_per_step("easgd", workers, load, LINK, tau=2) == pytest.approx(expected, rel=1e-9)


def test_gossip_takes_its_share_of_a_message():
    load = Load(parameters=2**18, batch=4, seconds_per_image=1.0)
    assert links.seconds_per_step("gosgd", 8, load, LINK, p=0.25) == (1 + 2.0**-10) / 4
    assert links.seconds_per_step("gosgd", 1, load, LINK, p=0.25) == 0


# ---- the fit


def made(link, strategies=("asa32",), workers=(2, 3, 4, 8), cores=2, noise=None):
    lengths = (1000, 10**5, 10**7, 488_000_000)
    found = [Measured(name, n, size, max(1.0, n / cores) * links.exchange_seconds(name, n, size, link))
             for name in strategies for n in workers for size in lengths]
    noise = np.ones(len(found)) if noise is None else noise
    return [each._replace(seconds=each.seconds * factor) for each, factor in zip(found, noise, strict=True)]


@pytest.mark.parametrize("latency, bandwidth", [(1e-6, 1e9), (3e-5, 5e10), (2e-3, 1e8)])
@pytest.mark.parametrize("strategy", links.PEERS)
def test_a_fit_finds_the_constants_that_the_data_were_made_with(strategy, latency, bandwidth):
    found = links.fit(made(Link(latency, bandwidth), [strategy]), cores=2)
    assert found.link[:2] == pytest.approx((latency, bandwidth), rel=1e-9)
    np.testing.assert_allclose(found.ratios, 1, rtol=1e-9)
    assert found.deviation == pytest.approx(1)


def test_a_fit_to_noise_is_the_best_on_a_grid_and_says_how_far_it_is_off(rng):
    measured = made(Link(2e-6, 3e9), noise=np.exp(rng.normal(0, 0.3, 16)))
    found = links.fit(measured, cores=2)

    def squares(latency, bandwidth):
        link = Link(latency, bandwidth)
        return sum(math.log(each.seconds / max(1, each.workers / 2) / links.exchange_seconds(
            "asa32", each.workers, each.bytes, link)) ** 2 for each in measured)

    best = squares(*found.link[:2])
    around = [squares(found.link.latency * a, found.link.bandwidth * b) for a in (0.99, 1, 1.01)
              for b in (0.99, 1, 1.01) if (a, b) != (1, 1)]
    assert best < min(around)
    assert found.deviation == pytest.approx(math.exp(math.sqrt(best / 16)))
    assert found.link.latency == pytest.approx(2e-6, rel=0.4)
    assert found.link.bandwidth == pytest.approx(3e9, rel=0.4)


# ---- predictions and published results


def test_a_prediction_is_computation_and_exchanges_of_5120_images():
    load = Load(parameters=2**18, batch=64, seconds_per_image=0.125)             # 8 s per step, 1 MiB
    found = links.predict("asa32", 4, load, LINK)
    assert found.train == 5120 / 4 * 0.125
    assert found.comm == 20 * (6 * 2.0**-10 + 1.5)
    assert found.speedup == pytest.approx(640 / (160 + found.comm))
    assert links.predict("asa32", 1, load, LINK) == (640, 0, 1)


def test_the_published_comm_is_that_of_so_many_exchanges():
    found = {(each.bytes, each.workers): each.seconds for each in links.published()}
    assert found[4 * 60_965_224, 2] == pytest.approx(0.78 / 20)                 # 20 steps of 2 x 128 images
    assert found[4 * 13_378_280, 8] == pytest.approx(0.80 / 20)                 # 20 steps of 8 x 32 images


def test_no_published_exchange_is_faster_than_its_link_and_the_fit_is_within_a_quarter():
    for each in links.published():
        assert 1 < each.seconds / links.exchange_seconds("asa32", each.workers, each.bytes, LINKS["PCIe 3.0 x16"]) < 6
    assert links.fit(links.published()).deviation < 1.25


# ---- the cost model's benchmark


def strategy_rows():
    found = made(Link(2e-6, 4e9), ["asa32", "copper"], workers=(2, 4), cores=cost_model.CORES)
    rows = [{"name": "a", "value": 1.0, "unit": "s", "strategy": each.strategy, "ranks": each.workers,
             "bytes": each.bytes, "seconds": each.seconds} for each in found]
    return [*rows, {"name": "nccl32", "value": None, "unit": "", "note": "no GPU", "strategy": "nccl32"},
            {"name": "a memcpy", "value": 3.0, "unit": "s", "bytes": 1000, "seconds": 3.0}]


def test_the_cost_model_makes_rows_and_a_picture_of_what_was_measured(tmp_path, monkeypatch, capsys):
    figures, savefig = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: (figures.append(figure), savefig(figure, *a, **k)))
    measured, written, picture = tmp_path / "measured", tmp_path / "rows", tmp_path / "model.png"
    measured.write_text("".join(json.dumps(row) + "\n" for row in strategy_rows()))
    assert cost_model.main(["--measured", str(measured), "--json", str(written), "--picture", str(picture)]) == 0
    rows = {row["name"]: row for row in map(json.loads, written.read_text().splitlines())}
    for name in ("asa32", "copper"):
        assert rows[f"{name} on this machine"]["value"] == pytest.approx(4)
        assert rows[f"{name} on this machine"]["latency_us"] == pytest.approx(2)
    eight = rows["AlexNet, 8 K80 GPUs, comm"]
    assert (eight["value"], eight["unit"], eight["peer_is"]) == (0.61, "s", "PCIe 3.0 x16")
    assert eight["peer"] == pytest.approx(5 * (14 * 5.7e-6 + 1.75 * 4 * 60_965_224 / 12.1e9))
    assert eight["ratio"] == pytest.approx(0.61 / eight["peer"])
    far = rows["GoogLeNet, a K80's speed, InfiniBand HDR"]
    expected = links.predict("asa32", 64, LOADS["GoogLeNet"], LINKS["InfiniBand HDR"], host=1 / 4e9)
    assert far["value"] == pytest.approx(expected.speedup)
    assert far["gosgd"] > far["value"] > far["copper"]
    with Image.open(picture) as image:
        assert min(image.size) > 900
    ratios, alexnet = figures[0].axes[1:3]
    points = [line.get_ydata() for line in ratios.lines if line.get_linestyle() == "None"]
    np.testing.assert_allclose(np.concatenate(points), 1)
    pcie = next(line for line in alexnet.lines if line.get_label() == "PCIe 3.0 x16")
    np.testing.assert_array_equal(pcie.get_xdata(), [2**k for k in range(1, 11)])
    assert pcie.get_ydata()[1] == pytest.approx(
        25 * links.predict("asa32", 4, LOADS["AlexNet"], LINKS["PCIe 3.0 x16"]).speedup
    )
    stars = next(line for line in alexnet.lines if line.get_label() == "Theano-MPI, K80")
    assert stars.get_ydata()[-1] == pytest.approx(100 * 20.50 / (2.63 + 0.61) / 8)
    assert f"drew {picture}" in capsys.readouterr().out


def test_links_of_one_machine_cost_no_host_and_those_between_hosts_cost_what_was_fitted():
    fits = cost_model.fits_of(cost_model.as_measured(strategy_rows()))
    assert list(fits) == ["asa32", "copper"]
    assert cost_model.host_of("asa32", "PCIe 3.0 x16", fits) == 0
    assert cost_model.host_of("easgd", "10 Gbit Ethernet", fits) == pytest.approx(1 / 4e9)
    assert cost_model.host_of("asa16", "10 Gbit Ethernet", fits) == 0             # not measured


# ---- the training benchmark


def speed(seconds, comm, sync):
    return {"seconds": seconds, "comm": comm, "sync": sync}


def test_a_row_splits_the_median_step_into_train_comm_and_sync():
    job = scaling.Job("alexnet", 4, "asa32", 32, 3)
    records = [speed(10, 2, 1), speed(12, 3, 1.5), speed(30, 4, 20)]
    row = scaling.row_of(job, records, alone=24)
    assert row["name"] == "alexnet, batch 32, 4 ranks, asa32"
    assert (row["value"], row["train"], row["comm"], row["sync"], row["times_as_fast"]) == (12, 7.5, 3, 1.5, 2)


def test_each_strategy_is_measured_with_more_than_one_rank_and_one_rank_once():
    todo = list(scaling.jobs(["alexnet", "googlenet"], [4, 1, 2], 32, 3))
    assert len(todo) == 2 * (1 + 2 * len(scaling.STRATEGIES))
    assert [(job.model, job.ranks, job.strategy) for job in todo[:3]] == [
        ("alexnet", 1, "auto"), ("alexnet", 2, "ar"), ("alexnet", 2, "asa32"),
    ]


def test_a_job_that_fails_or_comes_too_late_is_a_row_that_says_so(monkeypatch):
    def fail(job, data, seconds):
        raise RuntimeError("the job ended with status 2: no such strategy")

    monkeypatch.setattr(scaling, "measure", fail)
    monkeypatch.setattr(scaling, "make_data", lambda folder: folder)
    todo = list(scaling.jobs(["alexnet"], [1], 32, 3))
    first, *published = scaling.rows(todo, minutes=1)
    assert (first["value"], first["note"]) == (None, "the job ended with status 2: no such strategy")
    assert next(scaling.rows(todo, minutes=-1))["note"] == "the -1 minutes were over"
    (eight,) = [row for row in published if row["name"] == "Theano-MPI: AlexNet, 8 K80 GPUs"]
    assert (eight["train"], eight["comm"], round(eight["times_as_fast"], 2)) == (2.63, 0.61, 6.33)


@needs_mpi
@pytest.mark.mpi
def test_a_real_job_of_two_ranks_has_the_times_of_both_of_each_step(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "PROGRAM", "tests.tiny_scaling")
    monkeypatch.setattr(scaling, "IMAGES", 16)
    data = scaling.make_data(tmp_path / "set")
    records = scaling.measure(scaling.Job("tiny", 2, "peer", 4, 2), data, seconds=120)
    assert [(record["iteration"], record["workers"], record["images"]) for record in records] == [(2, 2, 8), (3, 2, 8)]
    row = scaling.row_of(scaling.Job("tiny", 2, "peer", 4, 2), records, None)
    assert 0 < row["comm"] < row["value"]
    assert 0 < row["train"] < row["value"]


def test_a_job_that_takes_too_long_is_ended(tmp_path, monkeypatch):
    command = tmp_path / "mpiexec"
    command.write_text("#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 0.1; done\n")            # ignores SIGTERM
    command.chmod(0o755)
    monkeypatch.setattr(scaling, "mpiexec", lambda: str(command))
    monkeypatch.setattr(scaling, "GRACE", 0.2)
    with pytest.raises(RuntimeError, match="not done within 0 s"):
        scaling.measure(scaling.Job("tiny", 1, "peer", 4, 2), tmp_path, seconds=0.3)


def test_what_a_job_ended_with_is_what_its_first_rank_said():
    said = "a warning\nrank 1: model: there is no network 'x'\nrank 0: follows\nAbort(2) on node 0\n"
    assert scaling.what_was_wrong(said) == "rank 1: model: there is no network 'x'"
    assert scaling.what_was_wrong("mpiexec: not so\n\n") == "mpiexec: not so"


def test_all_three_are_sections_of_the_results():
    assert {"strategies", "scaling", "cost_model"} <= {benchmark.module for benchmark in benchmarks.BENCHMARKS}
