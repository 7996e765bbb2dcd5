"""Rule slowmo: the outer updates, its identities with rule bsp, its equality with replicas, and resuming."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from alexnet.run import checkpoint, checkpoint_format
from alexnet.training.loop import InputLost
from alexnet.training.network import build_model, build_network
from multigpu.communicator import PipeCommunicator
from multigpu.device import open_device
from multigpu.exchange.flat_buffer import BLOCK
from multigpu.rules.slowmo import SlowmoRule, nesterov_step, slow_momentum_step
from tests import tiny, tiny_train
from tests.mpi import needs_mpi, results, team_of
from tests.multigpu.exchange import workers
from tests.multigpu.exchange.fakes import FakeRecorder
from tests.multigpu.exchange.workers import RATE, NormalisedNetwork, SmallNetwork, Team
from tests.multigpu.runs import Run, clean_up
from tests.tiny import settings

mpi_team = team_of(3)
TINY = Path(tiny_train.__file__)
PLAIN = {"slowmo_alpha": 1, "slowmo_beta": 0}    # the outer update returns the mean
DILOCO = {"slowmo_nesterov": "true", "slowmo_alpha": 0.7, "slowmo_beta": 0.9, "slowmo_buffers": "maintain"}


# ---- the outer updates


@pytest.mark.parametrize("length", [1, 7, BLOCK, 2 * BLOCK + 3])
def test_slow_momentum_matches_the_equations(length):
    rng = np.random.default_rng(length)
    x, u, alpha, beta = rng.normal(size=length), np.zeros(length), 0.8, 0.6
    slow, momentum = x.copy(), u.copy()
    for rate in (0.1, 0.1, 0.01, 0.001):
        mean = x + rate * rng.normal(size=length)
        u = beta * u + (x - mean) / rate                     # equation 2
        x = x - alpha * rate * u                             # equation 3
        slow_momentum_step(mean, slow, momentum, alpha, beta, rate)
        np.testing.assert_allclose(slow, x, rtol=0, atol=1e-12)
        np.testing.assert_allclose(momentum, u, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(mean, slow)


def test_outer_updates_match_hand_computation():
    def trajectory(step, *constants):
        slow, momentum, found = np.array([1.0]), np.zeros(1), []
        for mean in (0.5, 0.25):
            step(np.array([mean]), slow, momentum, *constants)
            found += [slow[0], momentum[0]]
        return found

    assert trajectory(slow_momentum_step, 1.0, 0.5, 0.125) == [0.5, 4, 0, 4]      # 0.125: exact in binary
    assert trajectory(slow_momentum_step, 0.5, 0.5, 0.125) == [0.75, 4, 0.375, 6]
    assert trajectory(nesterov_step, 1.0, 0.5) == [0.25, 0.5, 0.125, 0.25]
    assert trajectory(nesterov_step, 0.5, 0.5) == [0.625, 0.5, 0.28125, 0.625]


@pytest.mark.parametrize("step", [lambda *arrays: slow_momentum_step(*arrays, 1, 0, 0.3),
                                  lambda *arrays: nesterov_step(*arrays, 1, 0)], ids=["slowmo", "nesterov"])
def test_without_momentum_the_mean_is_kept_to_the_bit(step):
    rng = np.random.default_rng(0)
    mean, slow, momentum = rng.normal(size=(3, BLOCK + 5)).astype("float32")
    mean[:4], slow[:4] = (-0.0, -0.0, 0.0, 1e-42), (1, -1, -1, 1)         # signed zeros, and a subnormal number
    expected = mean.tobytes()
    step(mean, slow, momentum)
    assert mean.tobytes() == slow.tobytes() == expected


def gradient(w, batch):
    """The gradient of the mean over a batch of (a.w - b)**2 / 2."""
    a, b = batch
    return a.T @ (a @ w - b) / len(b)


def test_one_sgd_step_per_round_is_large_batch_momentum():
    """Wang et al. 2020, section 2: H = 1, alpha = 1 and SGD on each worker."""
    rng, n, beta = np.random.default_rng(0), 4, 0.7
    one = rng.normal(size=5)
    slow, v, momentum = one.copy(), np.zeros(5), np.zeros(5)
    for step in range(60):
        rate = 0.1 if step < 30 else 0.01
        a, b = rng.normal(size=(n, 8, 5)), rng.normal(size=(n, 8))
        v = beta * v + gradient(one, (a.reshape(-1, 5), b.ravel()))
        one = one - rate * v
        mean = np.mean([slow - rate * gradient(slow, (a[i], b[i])) for i in range(n)], axis=0)
        slow_momentum_step(mean, slow, momentum, 1.0, beta, rate)
        np.testing.assert_allclose(slow, one, rtol=0, atol=1e-12)


def test_nesterov_with_many_steps_is_diloco():
    """Douillard et al. 2023, algorithm 1, with momentum SGD as the inner optimizer that keeps its state."""
    rng, n, inner_steps, mu, rate, outer_rate, outer_mu = np.random.default_rng(1), 4, 50, 0.9, 0.002, 0.7, 0.9
    theta = rng.normal(size=5)
    slow, momentum, buffer = theta.copy(), np.zeros(5), np.zeros(5)
    v, mine = np.zeros((n, 5)), np.zeros((n, 5))
    for _ in range(20):
        batches = [(rng.normal(size=(8, 5)), rng.normal(size=8)) for _ in range(n)]
        outer_gradient, weights = np.zeros(5), [slow.copy() for _ in range(n)]
        for i in range(n):
            local = theta.copy()
            for _ in range(inner_steps):
                v[i] = mu * v[i] + gradient(local, batches[i])
                local -= rate * v[i]
                mine[i] = mu * mine[i] + gradient(weights[i], batches[i])
                weights[i] -= rate * mine[i]
            outer_gradient += (theta - local) / n
        buffer = outer_mu * buffer + outer_gradient
        theta = theta - outer_rate * (outer_gradient + outer_mu * buffer)
        nesterov_step(np.mean(weights, axis=0), slow, momentum, outer_rate, outer_mu)
        np.testing.assert_allclose(slow, theta, rtol=0, atol=1e-12)
        np.testing.assert_allclose(momentum, buffer, rtol=0, atol=1e-12)


# ---- workers on the host


@pytest.fixture(scope="module")
def team():
    """Three workers on the host; a test can use the first two of them."""
    team = Team(3)
    yield team
    team.close()


def train(team, size, steps, changes, stop_at=None, backend="cpu", kind=SmallNetwork):
    return results(team.run(workers.train, ["cpu"] * size, steps, changes, 1, stop_at, backend, kind, size=size))


def digests(found):
    """Return the checksums of a worker's state after each step, without the outer momentum."""
    return [{name: each for name, each in digest.items() if "_momentum" not in name} for digest in found.digests]


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize(("buffers", "what"), [("maintain", "weights"), ("average", "weights_and_momentum")])
@pytest.mark.parametrize("stop_at", [None, {1: 4}], ids=["until the end", "stopped"])
def test_without_momentum_it_is_bsp_to_the_bit(team, every, buffers, what, stop_at):
    slow = {"rule": "slowmo", "slowmo_steps": every, "slowmo_buffers": buffers} | PLAIN
    ours = train(team, 3, 7, slow, stop_at)
    theirs = train(team, 3, 7, {"average_every": every, "exchange_what": what}, stop_at)
    for one, other in zip(ours, theirs, strict=True):
        assert digests(one) == digests(other)
        assert one.costs == other.costs and one.sent == other.sent


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"slowmo_nesterov": "false"}, DILOCO, {"slowmo_buffers": "average"}],
                         ids=["reset", "diloco", "average"])
def test_workers_are_identical_after_each_outer_step(team, changes):
    found = train(team, 3, 7, {"rule": "slowmo", "slowmo_steps": 3} | changes)
    local = {name for name in found[0].digests[0] if name.endswith(".velocity")} if changes is DILOCO else set()
    for step, last in ((2, False), (5, False), (6, True)):
        states = [each.digests[step] for each in found]
        shared = states[0].keys() - (set() if last else local)
        assert [{name: state[name] for name in shared} for state in states] == [
            {name: states[0][name] for name in shared}
        ] * 3
    assert found[0].digests[3] != found[1].digests[3]
    assert found[0].sent["Ready"] == 2 * 3                   # to two peers; no messages in between


def replicas(steps, every, rate, alpha, beta, nesterov=False, buffers="reset"):
    """Train two replicas in this process by the equations, in float64 between the steps; return the last state."""
    networks = [workers.make_network(kind=NormalisedNetwork) for _ in range(2)]
    weights = [parameter.variable.name for parameter in networks[0].trainable_parameters]
    x = {name: np.float64(networks[0].get_state()[name]) for name in weights}
    u = {name: np.zeros(array.shape) for name, array in x.items()}
    scale = 1.0 if nesterov else float(rate)
    for step in range(1, steps + 1):
        for rank, network in enumerate(networks):
            network.train(*workers.synthetic_batch(step, rank, 2, 1), rate)
        if step % every and step < steps:
            continue
        states = [network.get_state() for network in networks]
        state = {name: (np.float64(states[0][name]) + states[1][name]) / 2 for name in states[0]}
        for name in weights:
            delta = (x[name] - state[name]) / scale
            u[name] = beta * u[name] + delta
            x[name] = x[name] - alpha * scale * (delta + beta * u[name] if nesterov else u[name])
            state[name] = x[name]
        for each in networks:
            own = {name: array for name, array in each.get_state().items() if name.endswith(".velocity")}
            kept = {name: 0 * array if buffers == "reset" else array for name, array in own.items()}
            average = buffers == "average" or buffers == "maintain" and step == steps
            each.set_state({
                name: np.asarray(array, states[0][name].dtype) for name, array in
                (state if average else state | kept).items()
            })
    return networks[0].get_state(), u


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "arguments"), [
    ({}, (1.0, 0.6)),
    ({"slowmo_alpha": 0.8, "slowmo_beta": 0.5, "slowmo_buffers": "average"}, (0.8, 0.5, False, "average")),
    (DILOCO, (0.7, 0.9, True, "maintain")),
], ids=["reset", "average", "diloco"])
@pytest.mark.parametrize("backend", ["cpu", "jax"])
def test_workers_match_replicas(team, changes, arguments, backend):
    if backend == "jax":
        pytest.importorskip("jax", reason="the jax backend needs jax, which is not installed")
    slow = {"rule": "slowmo", "slowmo_steps": 3} | changes
    found = train(team, 2, 11, slow, None, backend, NormalisedNetwork)
    expected, momentum = replicas(11, 3, RATE, *arguments)
    assert {"bn1.mean", "bn1.gamma", "conv1.W.velocity"} < expected.keys()
    for name, array in expected.items():
        tolerance = 1e-5 * max(np.abs(array).max(), 1e-2)
        np.testing.assert_allclose(found[0].states[-1][name], array, rtol=0, atol=tolerance, err_msg=name)
    kind = "nesterov_momentum" if changes is DILOCO else "slow_momentum"
    for name, array in momentum.items():
        tolerance = 1e-4 * np.abs(array).max()
        np.testing.assert_allclose(found[0].states[-1][f"{name}.{kind}"], array, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.slow
def test_gpus_are_bit_identical_to_the_host(team, cuda_emulator):
    changes = {"rule": "slowmo", "slowmo_steps": 2}
    gpus = Team(2, **cuda_emulator.environment(devices=2))
    try:
        arguments = ["cuda0", "cuda1"], 5, changes
        emulated = results(gpus.run(workers.train, *arguments, size=2))
    finally:
        gpus.close()
    on_host = train(team, 2, 5, changes)
    assert [each.digests for each in emulated] == [each.digests for each in on_host]


@pytest.fixture
def one_worker():
    """A network, and the Synchronizer of a worker without others, with two steps per round."""
    network, rule = workers.make_network(), SlowmoRule()
    config = settings("none", "none", rule="slowmo", slowmo_steps=2)
    network.rule_state = rule.state(network, config)
    with (
        open_device("cpu") as device,
        rule.connect(config, network, device, PipeCommunicator(0, {}), FakeRecorder()) as exchange,
    ):
        yield network, exchange


@pytest.mark.slow
def test_weights_stay_in_the_flat_buffer(one_worker):
    network, exchange = one_worker
    for step in (1, 2):
        cost, error = exchange.step(*workers.synthetic_batch(step, 0, 1, 1), rate=RATE)
        exchange.after_step(step, cost, error, RATE, False, False)
    flat = exchange._groups[0].strategy.flat.array()
    assert all(np.shares_memory(weights.get_value(borrow=True), flat) for weights in network.weights)
    assert all(momentum.get_value().any() for momentum in network.rule_state)


@pytest.mark.slow
def test_lost_input_within_a_round_ends_without_a_checkpoint(one_worker):
    with pytest.raises(InputLost, match="the images of step 2 do not arrive, and with slowmo_steps=2 the workers have"):
        one_worker[1].abandon(2)


@pytest.mark.mpi
@needs_mpi
@pytest.mark.parametrize("exchange", ["asa32", "ar"])
def test_ranks_are_bsp_without_momentum_and_identical_with_it(mpi_team, exchange):
    def run(**changes):
        arguments = 7, {"exchange": exchange} | changes
        return results(mpi_team.run("tests.multigpu.rules.bsp_ranks:train", *arguments, size=3))

    slow = {"rule": "slowmo", "slowmo_steps": 3}
    bsp, plain = run(average_every=3, exchange_what="weights"), run(slowmo_buffers="maintain", **slow, **PLAIN)
    assert [each.weights for each in plain] == [each.weights for each in bsp]
    found = run(**slow)
    assert found[0].weights != plain[0].weights
    for step in (2, 5, 6):
        assert found[0].digests[step] == found[1].digests[step] == found[2].digests[step]


# ---- complete runs


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """28 images: 7 steps of 2 by each of two workers."""
    return tiny.make_data(tmp_path_factory.mktemp("data") / "set", train=28, validation=9)


@pytest.fixture
def finished(data):
    """(folder, **settings) -> the folder of a run of train.py with two workers, after its successful end."""
    started = []

    def run(folder, **given):
        folder.mkdir(exist_ok=True)
        given = {"data": data, "model": "tiny", "rule": "slowmo", "batch_size": 2, "devices": "cpu,cpu",
                 "output": folder / "runs", "n_epochs": 9, "keep_snapshots": "null"} | given
        started.append(Run(folder, [f"{key}={value}" for key, value in given.items()], TINY))
        assert started[-1].start().finish(60) == (0, "")
        return folder / "runs" / "run"

    yield run
    clean_up(started)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"slowmo_steps": 3}, {"slowmo_steps": 3} | DILOCO], ids=["slowmo", "diloco"])
def test_resume_is_bit_exact(finished, tmp_path, changes):
    given = {"n_iterations": 12, "snapshot_iterations": 5} | changes
    straight = finished(tmp_path / "straight", run_name="run", **given)
    folder = shutil.copytree(straight, tmp_path / "resumed" / "runs" / "run")
    for path in checkpoint_format.snapshots(folder):
        if path != checkpoint_format.snapshot_path(folder, 5):
            path.unlink()
    again = finished(tmp_path / "resumed", resume_train=checkpoint_format.snapshot_path(folder, 5), **given)
    arrays, expected = tiny.final(again), tiny.final(straight)
    assert arrays.keys() == expected.keys()
    assert any(name.endswith("_momentum") and array.any() for name, array in arrays.items())
    for name, array in expected.items():
        assert array.tobytes() == arrays[name].tobytes(), name


@pytest.mark.slow
def test_another_rule_drops_the_outer_momentum(finished, data, tmp_path):
    folder = finished(tmp_path, run_name="run", n_epochs=1)
    assert "conv1.W.slow_momentum" in tiny.final(folder)
    tiny.resume_copy(folder, 7, data, tmp_path, n_epochs=2, devices="cpu")
    assert "conv1.W.slow_momentum" not in tiny.final(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("former", ["bsp", "nesterov"])
def test_outer_momentum_starts_at_zero_if_it_was_not_saved(finished, data, tmp_path, former):
    changes = {"rule": "bsp"} if former == "bsp" else DILOCO
    snapshot = checkpoint.load(finished(tmp_path, run_name="run", n_epochs=1, **changes))
    config = settings(data, tmp_path, rule="slowmo")
    network = build_network(config, build_model(config, 3), snapshot.mean)
    network.rule_state = SlowmoRule().state(network, config)
    checkpoint.restore(snapshot, network, config)
    state = network.get_state()
    assert not state["conv1.W.slow_momentum"].any()
    np.testing.assert_array_equal(state["conv1.W"], snapshot.arrays["conv1.W"])
