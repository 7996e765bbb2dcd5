"""JobMonitor without MPI: fake ranks connect to it from threads of this process."""

import os
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from multigpu.failure import monitor
from multigpu.failure.monitor import JobMonitor
from multigpu.failure.protocol import ORDERS, EndJob, Failure, Heartbeat, JobSettings, RankDropped, Released
from multigpu.mpi import tcp

KEY = b"the key of this job"
TIMEOUT = 0.5                                    # seconds


@contextmanager
def running(size, monkeypatch, limits=()):
    """Run a JobMonitor in a thread; yield (its port, the lines that it reports)."""
    lines = []
    monkeypatch.setattr(JobMonitor, "_report", lambda self, line: lines.append(line))
    for name, seconds in {"POLL": 0.02, "FORWARD": 0.0, "GRACE": 0.2, "CAUSE": 0.3, **dict(limits)}.items():
        monkeypatch.setattr(monitor, name, seconds)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=JobMonitor(listener, size, KEY).run)
        thread.start()
        yield listener.getsockname()[1], lines
        thread.join(10)
        assert not thread.is_alive()
        while FakeRank.connections:
            FakeRank.connections.pop().close()


class FakeRank:
    """A rank that sends the heartbeats that a test asks for."""

    connections = []                             # of all fake ranks of a test

    def __init__(self, port, rank, settings=None):
        self.connections.append(connection := tcp.connect(["127.0.0.1"], port, KEY, ORDERS))
        self.connection = connection
        self.state = Heartbeat(rank, 0, "elsewhere", settings=settings)
        self.send()

    def send(self, **changes):
        vars(self.state).update(changes)
        self.connection.send(self.state)

    def receive(self):
        assert self.connection.poll(5)
        return self.connection.recv()


def test_releases_ranks_with_highest_status(monkeypatch):
    with running(2, monkeypatch) as (port, lines):
        ranks = [FakeRank(port, rank) for rank in range(2)]
        for rank, status in zip(ranks, (0, 143), strict=True):
            rank.send(finished=status)
        assert [rank.receive() for rank in ranks] == 2 * [Released(143, True)]
    assert lines == []


def test_ignores_strangers(monkeypatch):
    with running(1, monkeypatch) as (port, lines), socket.create_connection(("127.0.0.1", port)):
        with pytest.raises(ConnectionError, match="no answer at 127.0.0.1"):
            tcp.connect(["127.0.0.1"], port, b"another key", ORDERS)
        rank = FakeRank(port, 0)             # while the first stranger is silent
        rank.send(finished=0)
        assert rank.receive() == Released(0, True)
    assert lines == []


def test_names_a_rank_whose_heartbeat_cannot_be_read(monkeypatch):
    with running(2, monkeypatch) as (port, lines):
        ranks = [FakeRank(port, rank) for rank in range(2)]
        ranks[1].connection.send(EndJob(1, True))
        assert ranks[0].receive() == EndJob(1, True)
    assert lines == ["rank 1 (pid 0 on elsewhere): its heartbeat cannot be read: a message must be Heartbeat, got "
                     "'EndJob'"]


def test_each_rank_registers_once(monkeypatch):
    with running(1, monkeypatch) as (port, lines):
        rank = FakeRank(port, 0)
        rank.send(steps=1)
        time.sleep(0.2)                      # it is registered
        for number in (0, 1, -1):
            with pytest.raises(EOFError):
                FakeRank(port, number).receive()
        rank.send(finished=0)
        assert rank.receive() == Released(0, True)
    assert lines == []


def test_reports_missing_ranks(monkeypatch):
    with running(3, monkeypatch, {"JOIN": 0.5}) as (port, lines):
        assert FakeRank(port, 0).receive() == EndJob(1, True)
    assert lines == ["2 of 3 ranks have not come within 0.5 s; they have to reach rank 0's machine over TCP"]


def test_ends_at_once_if_rank_0_has_died_before_it_came(monkeypatch):
    monkeypatch.setattr(JobMonitor, "_report", lambda self, line: lines.append(line))
    monkeypatch.setattr(monitor, "FORWARD", 0)
    lines = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        began = time.monotonic()
        assert JobMonitor(listener, 2, KEY, parent=os.getpid()).run() is False       # not the parent of this process
        assert time.monotonic() - began < 5
    assert lines == [f"rank 0 (pid {os.getpid()}) has died while the job started"]


def test_reports_ranks_that_all_wait(monkeypatch):
    with running(2, monkeypatch) as (port, lines):
        ranks = [FakeRank(port, rank, JobSettings(TIMEOUT)) for rank in range(2)]
        while not lines:
            for rank in ranks:
                rank.send(waiting=True)
            time.sleep(0.05)
    (line,) = lines
    assert line.startswith("all ranks wait for each other, and have done nothing else for 0.5 s")


def test_names_the_cause_of_a_failure(monkeypatch):
    with running(2, monkeypatch) as (port, lines):
        ranks = [FakeRank(port, rank) for rank in range(2)]
        time.sleep(0.5)                      # both are registered
        ranks[0].send(failure=Failure("rank 1 is gone", caused_by_peer=True))
        time.sleep(0.1)
        ranks[1].send(failure=Failure("the data is wrong", 2))
        assert [rank.receive() for rank in ranks] == [EndJob(2, True), EndJob(2, False)]
    assert lines == ["rank 1 (pid 0 on elsewhere): the data is wrong"]


def test_first_of_several_deaths_is_the_cause(monkeypatch):
    with running(3, monkeypatch, {"POLL": 0.5}) as (port, lines):
        ranks = [FakeRank(port, rank) for rank in range(3)]
        time.sleep(0.7)                      # all are registered
        for rank in (2, 0, 1):
            ranks[rank].connection.close()
    assert lines == ["rank 2 (pid 0 on elsewhere) has died: it was killed, or has crashed; mpiexec may report the "
                     "signal"]


def test_drops_a_detached_rank(monkeypatch):
    with running(3, monkeypatch) as (port, lines):
        server, lost, other = (FakeRank(port, rank, JobSettings(60.0, "", True)) for rank in range(3))
        for client in (lost, other):
            client.send(detached=True)
        time.sleep(0.5)                      # both are registered
        lost.send(failure=Failure("its loader has died", fatal=False))
        assert server.receive() == RankDropped(1)
        for rank in (server, other):
            rank.send(finished=0)
        assert [rank.receive() for rank in (server, other)] == 2 * [Released(0, False)]
    assert lines == ["rank 1 (pid 0 on elsewhere): its loader has died; it is dropped, and 1 client is left"]
