"""PipeCommunicator: messages in rank order, and the watch over peers."""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from multigpu.communicator import Done, PipeCommunicator, Totals, total
from multigpu.launch.process import pipes_between


def on_all(size, function):
    """Call function(comm) in one thread per rank; return the results in rank order."""
    comms = [PipeCommunicator(rank, pipes) for rank, pipes in pipes_between(range(size)).items()]
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(function, comms))


def test_allgather_returns_messages_in_rank_order():
    def gather(comm):
        return comm.allgather(Totals(1, (float(comm.rank),), False))

    assert on_all(3, gather) == [[Totals(1, (float(rank),), False) for rank in range(3)]] * 3


def test_total_sums_over_workers_and_any_stop_stops_all():
    results = on_all(3, lambda comm: total(comm, 1, [comm.rank, 1.5], comm.rank == 2))
    assert [(sums.tolist(), stop) for sums, stop in results] == [([3.0, 4.5], True)] * 3


def test_pipe_communicator_is_on_one_host():
    comm = PipeCommunicator(1, pipes_between(range(3))[1])
    assert (comm.rank, comm.size, comm.local_rank, comm.local_size) == (1, 3, 1, 3)
    assert (comm.over_mpi, comm.on_one_host, comm.hosts) == (False, True, [socket.gethostname()] * 3)


def test_message_too_long_for_a_pipe_is_refused():
    comm = PipeCommunicator(0, pipes_between(range(2))[0])
    with pytest.raises(ValueError, match="a message has at most 65536 bytes, got Totals with 6"):
        comm.allgather(Totals(1, tuple(float(value) for value in range(10_000)), False))


def test_watch_names_the_dead_peer_despite_unread_messages():
    pipes = pipes_between(range(3))
    deaths = []
    died = threading.Event()
    pipes[2][0].send(Done(1))
    with PipeCommunicator(0, pipes[0]).watch(lambda rank: (deaths.append(rank), died.set())):
        pipes[2][0].close()
        assert died.wait(5)
    assert deaths == [2]


def test_closed_watch_reports_nothing():
    pipes = pipes_between(range(2))
    deaths = []
    watch = PipeCommunicator(0, pipes[0]).watch(deaths.append)
    watch.close()
    watch.close()
    pipes[1][0].close()
    assert deaths == []
