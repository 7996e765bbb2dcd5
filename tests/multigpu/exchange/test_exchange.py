"""Rule bsp with strategy peer: N workers stay bit-identical and match one worker with the combined batch."""

import re

import numpy as np
import pytest

from alexnet.config.schema import ConfigError
from alexnet.native import compiler
from multigpu.communicator import DesyncError, Done, PeerDied, PipeCommunicator, Ready
from multigpu.launch.process import CONTEXT
from multigpu.messages import encode
from multigpu.rules import Synchronizer
from tests.mpi import results
from tests.multigpu.exchange import workers
from tests.multigpu.exchange.workers import Seat, Team

pytestmark = pytest.mark.slow

STEPS = 20
STAGED = "; the workers exchange through the host's memory instead, which is slower"
WHAT = ["weights_and_momentum", "gradients"]


@pytest.fixture(scope="module")
def team():
    """Four workers on the host; a test can use the first few of them."""
    team = Team(4)
    yield team
    team.close()


@pytest.fixture(scope="module")
def gpus(cuda_emulator):
    """Eight workers with eight emulated GPUs, through the real PyCUDA."""
    team = Team(8, **cuda_emulator.environment(devices=8))
    yield team
    team.close()


@pytest.fixture
def fresh():
    """(size, **environment) -> a new Team, for a test that leaves it unusable."""
    teams = []

    def make(size, **environment):
        teams.append(Team(size, **environment))
        return teams[-1]

    yield make
    for team in teams:
        team.close()


@pytest.fixture(scope="module")
def single_worker():
    """parts -> the result of one worker that trains on `parts` combined batches per step."""
    found = {}

    def train(parts):
        if parts not in found:
            found[parts] = workers.train(Seat(0, 1, {}), ["cpu"], STEPS, {}, parts)
        return found[parts]

    return train


def assert_identical(found):
    """Assert that the state of all workers is bit-identical after every step."""
    for each in found[1:]:
        assert each.digests == found[0].digests
        assert each.costs == found[0].costs


def assert_close(state, expected, tolerance):
    """Assert that each array's largest difference is within the tolerance, relative to its largest value."""
    for name, array in expected.items():
        np.testing.assert_allclose(state[name], array, rtol=0, atol=tolerance * np.abs(array).max(), err_msg=name)


@pytest.mark.parametrize("what", WHAT)
@pytest.mark.parametrize("size", [2, 3, 4])
def test_workers_match_one_worker_on_combined_batches(team, single_worker, size, what):
    found = results(team.run(workers.train, ["cpu"] * size, STEPS, {"exchange_what": what}, size=size))
    assert_identical(found)
    together = single_worker(size)
    assert_close(found[0].states[0], together.states[0], 1e-6)
    assert_close(found[0].states[-1], together.states[-1], 1e-5)
    np.testing.assert_allclose(found[0].costs, together.costs, rtol=1e-5)


@pytest.mark.parametrize("what", WHAT)
def test_batch_normalisation_averages_running_statistics(team, what):
    """Weights and statistics equal those of replicas in one process that normalise their own batches."""
    arguments = ["cpu"] * 2, 5, {"exchange_what": what}, 1, None, "cpu", workers.NormalisedNetwork
    found = results(team.run(workers.train, *arguments, size=2))
    assert_identical(found)
    states = workers.train_replicas(2, 5)
    assert {"bn1.mean", "bn1.variance", "bn1.gamma"} < states[0].keys()
    assert_close(found[0].states[0], states[0], 1e-6)
    assert_close(found[0].states[-1], states[-1], 1e-5)


@pytest.mark.parametrize("what", WHAT)
def test_local_running_statistics_stay_with_their_worker(team, what):
    changes = {"exchange_what": what, "running_statistics": "local"}
    found = results(team.run(workers.train, ["cpu"] * 2, 5, changes, 1, None, "cpu", workers.NormalisedNetwork, size=2))
    differ = {name for name, digest in found[0].digests[-1].items() if digest != found[1].digests[-1][name]}
    assert differ == {"bn1.mean", "bn1.variance"}
    last = workers.train_replicas(2, 5)[-1]
    means = {name: (found[0].states[-1][name] + found[1].states[-1][name]) / 2 for name in differ}
    assert_close(means, {name: last[name] for name in differ}, 1e-5)            # weights do not depend on them
    assert_close({"bn1.gamma": found[0].states[-1]["bn1.gamma"]}, {"bn1.gamma": last["bn1.gamma"]}, 1e-5)


@pytest.mark.parametrize("what", WHAT)
def test_backend_that_owns_its_memory_exchanges_copies(team, single_worker, what):
    pytest.importorskip("jax", reason="the jax backend needs jax, which is not installed")
    arguments = ["cpu"] * 2, 5, {"exchange_what": what}, 1, None, "jax"
    found = results(team.run(workers.train, *arguments, size=2))
    assert_identical(found)
    assert_close(found[0].states[-1], single_worker(2).states[4], 1e-5)


def test_average_every_exchanges_each_third_step(team):
    found = results(team.run(workers.train, ["cpu"] * 2, 7, {"average_every": 3}, size=2))
    identical = [False, False, True, False, False, True, True]           # the last exchange is requested
    for what in ("digests", "costs"):
        assert [one == other for one, other in zip(*(getattr(each, what) for each in found), strict=True)] == identical
    assert found[0].sent["Ready"] == 3                               # no messages in between


@pytest.mark.parametrize("every, last", [(1, 4), (3, 6)])
def test_all_stop_after_the_same_step(team, every, last):
    found = results(team.run(workers.train, ["cpu"] * 3, 20, {"average_every": every}, 1, {1: 4}, size=3))
    assert [len(each.costs) for each in found] == [last] * 3
    assert found[0].digests[-1] == found[1].digests[-1] == found[2].digests[-1]


def test_total_sums_over_all_workers(team):
    values = [np.array([0.1, 1e9]), np.array([0.2, 1.0]), np.array([0.3, 1e-9])]
    found = results(team.run(workers.sum_up, values, [False, False, True], size=3))
    for sums, stopped, ones, stop in found:
        np.testing.assert_array_equal(sums, values[0] + values[1] + values[2])
        assert sums.dtype == np.float64
        assert (list(ones), stopped, stop) == ([3, 3], False, True)


# ---- strategies


@pytest.mark.parametrize("size, kind", [(2, "PairwiseAverage"), *((n, "ShardedAverage") for n in (2, 3, 4))])
def test_means_are_bit_exact(team, size, kind):
    results(team.run(workers.exchange_values, ["cpu"] * size, 50, kind, size=size))


@pytest.mark.parametrize("kind", ["PairwiseAverage", "ShardedAverage"])
@pytest.mark.parametrize("verb", ["upload", "copy", "mean", "synchronise", "unpack"])
def test_workers_wait_for_a_slow_worker(team, kind, verb):
    results(team.run(workers.exchange_values, ["cpu"] * 2, 4, kind, (1, verb), size=2))


@pytest.mark.skipif(not compiler.compiler_available(), reason="the references update nothing in place")
def test_large_host_arrays_are_stored_in_the_flat_buffer(team):
    for steps in results(team.run(workers.arrays_in_place, 3, size=2)):
        for found in steps[1:]:                              # from the first exchange on
            assert found >= {"fc2.W", "fc2.W.velocity"}      # arrays not updated in place are copied


# ---- staging


@pytest.mark.parametrize("verb", ["can_reach", "open"])
def test_unreachable_memory_is_staged_through_the_host(team, verb):
    found = results(team.run(workers.exchange_values, ["cpu"] * 3, 4, None, None, (1, verb), size=3))
    assert [warnings for warnings, _ in found] == [[f"this device cannot {verb}{STAGED}"], [], []]


@pytest.mark.parametrize("lacking, reason", [
    ("peer", "cuda0 has no peer access to cuda1"), ("ipc", "memory of cuda0 cannot be shared with another process"),
])
def test_unreachable_gpus_give_the_same_result(cuda_emulator, gpus, fresh, lacking, reason):
    team = fresh(2, **cuda_emulator.environment(devices=2, **{lacking: False}))
    staged = results(team.run(workers.train, ["cuda0", "cuda1"], 5, {}))
    direct = results(gpus.run(workers.train, ["cuda0", "cuda1"], 5, {}, size=2))
    assert_identical([*staged, *direct])
    (warning,) = staged[0].warnings
    assert warning.startswith(reason)
    assert warning.endswith(STAGED)
    assert staged[1].warnings == direct[0].warnings == []


def test_host_and_gpu_workers_exchange_through_the_host(gpus, team):
    mixed = results(gpus.run(workers.train, ["cpu", "cuda5"], 5, {}, size=2))
    assert_identical([*mixed, *results(team.run(workers.train, ["cpu"] * 2, 5, {}, size=2))])
    assert mixed[0].warnings == [f"the cpu cannot open buffers on cuda5{STAGED}"]


# ---- emulated GPUs


@pytest.mark.parametrize("what", WHAT)
@pytest.mark.parametrize("size", [2, 3, 4])
def test_gpu_and_host_workers_are_bit_identical(gpus, team, size, what):
    changes = {"exchange_what": what}
    found = results(gpus.run(workers.train, [f"cuda{rank}" for rank in range(size)], STEPS, changes, size=size))
    assert_identical([*found, *results(team.run(workers.train, ["cpu"] * size, STEPS, changes, size=size))])
    assert found[0].warnings == []


@pytest.mark.parametrize("devices", ["00", "10", "3210", "0011", "01234567"])
def test_gpu_means_are_bit_exact_without_pending_copies(gpus, devices):
    devices = [f"cuda{number}" for number in devices]
    steps = 1000 if len(devices) == 2 else 100
    found = results(gpus.run(workers.exchange_values, devices, steps, size=len(devices)))
    for warnings, sent in found:
        assert (warnings, sent["Ready"]) == ([], steps * (len(devices) - 1))


@pytest.mark.parametrize("kind", ["PairwiseAverage", "ShardedAverage"])
@pytest.mark.parametrize("verb", ["upload", "copy", "mean", "synchronise", "unpack"])
def test_gpus_wait_for_a_slow_gpu(gpus, kind, verb):
    results(gpus.run(workers.exchange_values, ["cuda0", "cuda1"], 4, kind, (1, verb), size=2))


# ---- failures


def test_worker_at_another_step_is_reported(fresh):
    one, two = fresh(2).run(workers.exchange_values, ["cpu"] * 2, 3, None, None, None, {1: 2})
    assert type(one) is type(two) is DesyncError
    assert re.fullmatch(
        r"worker 1 \(pid \d+\) sent Ready of step 3, worker 0 waits for Ready of step 2: "
        r"the workers are out of step; restart all of them from one checkpoint", str(one)
    )


def test_message_of_another_type_is_reported():
    ours, theirs = CONTEXT.Pipe()
    theirs.send_bytes(encode(Done(1)))
    with ours, theirs, pytest.raises(DesyncError, match="sent Done of step 1, worker 0 waits for Ready of step 1"):
        PipeCommunicator(0, {1: ours}).recv_all(Ready, 1)


def test_death_is_reported_while_another_worker_computes():
    pipes = {rank: CONTEXT.Pipe() for rank in (1, 2)}
    comm = PipeCommunicator(0, {rank: ours for rank, (ours, _) in pipes.items()})
    pipes[2][1].close()
    for call in (lambda: comm.recv_all(Ready, 1), lambda: comm.send_all(Done(1))):
        with pytest.raises(PeerDied, match="^worker 2 has died; worker 0 cannot continue without it$"):
            call()
    for pipe in (pipes[1][0], pipes[1][1], pipes[2][0]):
        pipe.close()


# Worker 1 sends 2 x 10 messages: WorkerInfo, Reachability, BufferHandle, Reachability, Ready, Done, Ready, Done,
# Totals, Closed
@pytest.mark.parametrize("message", [0, 3, 4, 7, 8, 11, 12, 15, 16, 18])
def test_death_between_any_two_messages_is_reported(fresh, message):
    one, dead, two = fresh(3).run(workers.die, message)
    assert dead is None
    for survivor in (one, two):
        assert type(survivor) is PeerDied
        assert re.match(r"worker 1 (\(pid \d+\) )?has died; worker [02] cannot continue", str(survivor))


@pytest.mark.parametrize("changes, steps, weights, error, sentence", [
    ([{}, {}, {"momentum": 0.8}], [0] * 3, [0] * 3, ConfigError,
     "workers 0 and 2 differ in momentum: 0.9 and 0.8; give both the same"),
    ([{}] * 3, [0] * 3, [5, 5, 6], ConfigError,
     "workers 0 and 2 begin with different W; restart both, or resume both from one checkpoint"),
    ([{}] * 2, [40, 60], [0] * 2, DesyncError,
     "worker [01] sent WorkerInfo of step .0, worker [10] waits for WorkerInfo of step .0: "
     "the workers are out of step; .*"),
])
def test_mismatched_workers_are_refused(fresh, changes, steps, weights, error, sentence):
    for refusal in fresh(len(steps)).run(workers.connect, changes, steps, weights):
        assert type(refusal) is error
        assert re.fullmatch(sentence, str(refusal))


def test_settings_of_one_worker_may_differ(team):
    by_hand = {"size": 2, "device": "cpu"}
    changes = [by_hand | {"rank": 0, "threads": 1}, by_hand | {"rank": 1, "threads": 2, "device": "cuda0"}]
    results(team.run(workers.connect, changes, [3, 3], [0, 0], size=2))


# ---- closing


def test_memory_is_freed_after_all_others_closed_it(team, tmp_path):
    assert results(team.run(workers.close_in_order, tmp_path, size=3)) == [[], [], []]


def test_synchronizer_does_not_close_after_an_error():
    class Waiting(Synchronizer):
        step = after_step = total = None

        def close(self):
            raise AssertionError("close() waits for the other workers")

    with pytest.raises(ZeroDivisionError), Waiting():
        raise ZeroDivisionError
