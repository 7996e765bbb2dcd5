"""Rendezvous: workers started by hand connect in any order, or all of them get an error that states the mismatch."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import connection

import pytest

from alexnet.config import ConfigError, load_config
from multigpu.communicator import PeerDied
from multigpu.launch.rendezvous import SOCKET_NAME, Arrival, Placement, Stopped, rendezvous
from multigpu.messages import encode


@pytest.fixture
def start(tmp_path):
    """Return start(rank, size, device): it runs a rendezvous in a thread and returns its Future; the test ends all."""
    stop = threading.Event()

    def start(rank, size=2, device="cpu", **settings):
        given = {"output": tmp_path} | settings
        config = load_config([f"{key}={value}" for key, value in given.items()])
        return pool.submit(rendezvous, config, Placement(rank, size, device), stop.is_set)

    with ThreadPoolExecutor(8) as pool:
        start.stop = stop
        yield start
        stop.set()


@pytest.fixture
def wait_for_rank_0(tmp_path):
    """Return a function that waits until rank 0 listens."""

    def wait():
        end = time.monotonic() + 5
        while not (tmp_path / SOCKET_NAME).exists() or (tmp_path / SOCKET_NAME).stat().st_mode & 0o777 != 0o600:
            assert time.monotonic() < end
            time.sleep(0.01)
        time.sleep(0.1)

    return wait


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_workers_connect_in_any_order(start, order, tmp_path):
    futures = {}
    for rank in order:
        futures[rank] = start(rank, size=3, device=f"cuda{rank}", **({"run_name": "ours"} if rank == 0 else {}))
        time.sleep(0.05)
    configs, pipes = zip(*(futures[rank].result(10) for rank in range(3)), strict=True)
    assert [config.run_name for config in configs] == ["ours"] * 3
    for rank, mine in enumerate(pipes):
        assert set(mine) == {0, 1, 2} - {rank}
        for other, pipe in mine.items():
            pipe.send((rank, other))
    for rank, mine in enumerate(pipes):
        assert {pipe.recv() for pipe in mine.values()} == {(other, rank) for other in mine}
        assert not any(pipe.poll() for pipe in mine.values())
    assert not (tmp_path / SOCKET_NAME).exists()


def test_single_worker_does_not_wait(start, tmp_path):
    assert start(0, size=1).result(5)[1] == {}
    assert not (tmp_path / SOCKET_NAME).exists()


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ((1, 3, "cpu"), "rank 0 was started with size=2 and rank 1 with size=3: give all workers the same size"),
        ((0, 2, "cpu"), "rank 0 was started twice, as processes .*: give each worker its own rank, 0 to 1, and"),
        ((1, 2, "cuda1"), "rank 0 and rank 1 were both started with device=cuda1: give each its own, or start both by "
                          "devices=cuda1,cuda1 if they are to share it"),
    ],
)
def test_mismatch_is_an_error_of_all_workers(start, wait_for_rank_0, second, message, tmp_path):
    first = start(0, 2, "cuda1")
    wait_for_rank_0()
    for refused in (start(*second), first):
        with pytest.raises(ConfigError, match=message):
            refused.result(5)
    assert not (tmp_path / SOCKET_NAME).exists()


def test_duplicate_rank_is_an_error_of_all_workers(start, wait_for_rank_0):
    first = start(0, 3)
    wait_for_rank_0()
    twins = [start(1, 3), start(1, 3)]
    for worker in (first, *twins):
        with pytest.raises(ConfigError, match=r"rank 1 was started twice, .* 0 to 2, and each run its own output"):
            worker.result(5)


@pytest.mark.parametrize("rank", [0, 1])
def test_stop_request_ends_the_wait(start, rank):
    waiting = start(rank)
    time.sleep(0.1)
    start.stop.set()
    with pytest.raises(Stopped):
        waiting.result(2)


def test_rank_0_names_a_worker_that_died(start, wait_for_rank_0, tmp_path):
    first = start(0, 3)
    wait_for_rank_0()
    with connection.Client(str(tmp_path / SOCKET_NAME), "AF_UNIX") as dying:
        dying.send_bytes(encode(Arrival(1, 3, "cpu", 12345)))
        time.sleep(0.3)
    with pytest.raises(PeerDied, match=r"worker 1 \(pid 12345\) has died before all workers had connected"):
        first.result(5)


def test_other_ranks_detect_the_death_of_rank_0(start, tmp_path):
    with connection.Listener(str(tmp_path / SOCKET_NAME), "AF_UNIX") as listener:
        waiting = start(1)
        with listener.accept() as pipe:
            pipe.recv_bytes()
    with pytest.raises(PeerDied, match="worker 0 has died, or was stopped, before all workers had connected"):
        waiting.result(5)


def test_connection_without_arrival_is_ignored(start, wait_for_rank_0, tmp_path):
    first = start(0)
    wait_for_rank_0()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(tmp_path / SOCKET_NAME))
    assert set(start(1).result(5)[1]) == {0}
    assert set(first.result(5)[1]) == {1}


def test_socket_of_a_killed_run_is_replaced(start, tmp_path):
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(tmp_path / SOCKET_NAME))
    workers = [start(1), start(0)]
    assert [set(worker.result(5)[1]) for worker in workers] == [{0}, {1}]


def test_too_long_socket_path_is_refused(start, tmp_path):
    with pytest.raises(ConfigError, match="longer than the 107 bytes"):
        start(0, output=tmp_path / ("x" * 100)).result(5)


def test_folder_that_cannot_be_created_is_refused(start, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="output: cannot create the folder"):
        start(0, output=tmp_path / "file" / "runs").result(5)
