"""Rendezvous: workers started by hand connect in any order, or all of them get an error that names the mismatch."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import connection

import pytest

from alexnet.config import ConfigError, load_config
from multigpu.communicator import PeerDied
from multigpu.launcher import Placement
from multigpu.rendezvous import NAME, Arrival, Stopped, rendezvous


@pytest.fixture
def meeting(tmp_path):
    """Return start(rank, size, device): it runs a rendezvous in a thread and returns its Future; the test ends all."""
    over = threading.Event()

    def start(rank, size=2, device="cpu", **settings):
        given = {"output": tmp_path} | settings
        config = load_config([f"{key}={value}" for key, value in given.items()])
        return pool.submit(rendezvous, config, Placement(rank, size, device), over.is_set)

    with ThreadPoolExecutor(8) as pool:
        start.over = over
        yield start
        over.set()


@pytest.fixture
def waiting(tmp_path):
    """Return a function that waits until rank 0 listens."""

    def wait():
        end = time.monotonic() + 5
        while not (tmp_path / NAME).exists() or (tmp_path / NAME).stat().st_mode & 0o777 != 0o600:
            assert time.monotonic() < end
            time.sleep(0.01)
        time.sleep(0.1)

    return wait


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_every_two_workers_get_a_pipe_whoever_comes_first(meeting, order, tmp_path):
    met = {}
    for rank in order:
        met[rank] = meeting(rank, size=3, device=f"cuda{rank}", **({"run_name": "ours"} if rank == 0 else {}))
        time.sleep(0.05)
    configs, pipes = zip(*(met[rank].result(10) for rank in range(3)), strict=True)
    assert [config.run_name for config in configs] == ["ours"] * 3
    for rank, mine in enumerate(pipes):
        assert set(mine) == {0, 1, 2} - {rank}
        for other, pipe in mine.items():
            pipe.send((rank, other))
    for rank, mine in enumerate(pipes):
        assert {pipe.recv() for pipe in mine.values()} == {(other, rank) for other in mine}
        assert not any(pipe.poll() for pipe in mine.values())
    assert not (tmp_path / NAME).exists()


def test_a_worker_alone_meets_nobody(meeting, tmp_path):
    assert meeting(0, size=1).result(5)[1] == {}
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        ((1, 3, "cpu"), "rank 0 was started with size=2 and rank 1 with size=3: give all workers the same size"),
        ((0, 2, "cpu"), "rank 0 was started twice, as processes .*: give each worker its own rank, 0 to 1, and"),
        ((1, 2, "cuda1"), "rank 0 and rank 1 were both started with device=cuda1: give each its own, or start both by "
                          "devices=cuda1,cuda1 if they are to share it"),
    ],
)
def test_who_does_not_fit_is_refused_in_one_sentence_to_all(meeting, waiting, second, sentence, tmp_path):
    first = meeting(0, 2, "cuda1")
    waiting()
    for refused in (meeting(*second), first):
        with pytest.raises(ConfigError, match=sentence):
            refused.result(5)
    assert not (tmp_path / NAME).exists()


def test_a_rank_that_comes_twice_ends_the_meeting_of_all_who_wait(meeting, waiting):
    first = meeting(0, 3)
    waiting()
    twins = [meeting(1, 3), meeting(1, 3)]
    for worker in (first, *twins):
        with pytest.raises(ConfigError, match=r"rank 1 was started twice, .* 0 to 2, and each run its own output"):
            worker.result(5)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_ends_the_waiting(meeting, rank):
    waits = meeting(rank)
    time.sleep(0.1)
    meeting.over.set()
    with pytest.raises(Stopped):
        waits.result(2)


def test_rank_0_names_who_died_while_it_waited(meeting, waiting, tmp_path):
    first = meeting(0, 3)
    waiting()
    with connection.Client(str(tmp_path / NAME), "AF_UNIX") as dying:
        dying.send(Arrival(1, 3, "cpu", 12345))
        time.sleep(0.3)
    with pytest.raises(PeerDied, match=r"worker 1 \(pid 12345\) has died before the others were there"):
        first.result(5)


def test_others_say_that_rank_0_died_while_they_waited(meeting, tmp_path):
    with connection.Listener(str(tmp_path / NAME), "AF_UNIX") as listener:
        waits = meeting(1)
        with listener.accept() as line:
            line.recv()
    with pytest.raises(PeerDied, match="worker 0 has died, or was stopped, before all workers were there"):
        waits.result(5)


def test_who_connects_and_goes_again_is_not_counted(meeting, waiting, tmp_path):
    first = meeting(0)
    waiting()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(tmp_path / NAME))
    assert set(meeting(1).result(5)[1]) == {0}
    assert set(first.result(5)[1]) == {1}


def test_what_a_killed_run_left_is_in_nobodys_way(meeting, tmp_path):
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(tmp_path / NAME))
    workers = [meeting(1), meeting(0)]
    assert [set(worker.result(5)[1]) for worker in workers] == [{0}, {1}]


def test_a_path_too_long_for_a_socket_is_refused(meeting, tmp_path):
    with pytest.raises(ConfigError, match="longer than the 107 bytes"):
        meeting(0, output=tmp_path / ("x" * 100)).result(5)


def test_a_folder_that_cannot_be_is_refused(meeting, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        meeting(0, output=tmp_path / "file" / "runs").result(5)
