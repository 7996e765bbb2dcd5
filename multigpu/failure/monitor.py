"""The monitor of an MPI job: a separate process that detects the first failed rank, reports it and ends the job.

mpiexec kills all ranks within milliseconds after a death, so no rank could report which one died first.  The monitor
is a child of rank 0 in its own session, which mpiexec does not kill; it does not use MPI.  Every rank connects to it.
"""

import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

from multigpu.failure.protocol import (
    HEARTBEATS,
    EndJob,
    Failure,
    Heartbeat,
    JobSettings,
    Order,
    RankDropped,
    Released,
    name_of,
)
from multigpu.launch.clock import RunningClock, TimeLimit
from multigpu.messages import MessageError
from multigpu.mpi import supervisor_link, tcp
from multigpu.mpi.supervisor_link import JobEnded, StartSettings
from multigpu.mpi.tcp import TcpConnection

POLL = 0.25                                      # seconds between two checks
FIRST_STEP, JOIN, CAUSE = 600.0, 60.0, 1.0       # seconds: first step; all ranks register; a failure's cause is seen
FORWARD, GRACE = 0.3, 3.0                        # seconds: mpiexec forwards the message, an abort drops it; ranks end
SERVER = 0                                       # the rank that the others depend on


@dataclass(eq=False)
class MonitoredRank:
    """A rank's connection, its last heartbeat, and when it came; times in seconds of JobMonitor's clock."""

    connection: TcpConnection[Heartbeat]
    state: Heartbeat
    heard: float                                 # time of the last heartbeat
    changed: float                               # time at which its progress, waiting or failure last changed
    hung_up: bool = False

    def read(self, clock: float) -> None:
        """Read the heartbeats that have arrived."""
        with suppress(EOFError, OSError):        # its hang-up follows
            try:
                while self.connection.poll():
                    state = self.connection.recv()
                    last, self.state, self.heard = self.state, state, clock
                    if (last.steps, last.waiting, last.failure) != (state.steps, state.waiting, state.failure):
                        self.changed = clock
            except MessageError as error:
                self.state.failure = Failure(f"its heartbeat cannot be read: {error}", fatal=False, curable=True)

    def name(self) -> str:
        """Return the rank's name in messages."""
        return name_of(self.state.rank, self.state.pid, self.state.host)

    def waits(self) -> bool:
        """Return whether the rank waits for others."""
        return self.state.waiting or self.state.finished is not None

    def failure(self, clock: float, timeout: float) -> Failure | None:
        """Return why the rank cannot continue, or None. A rank may exit once it is detached and has finished."""
        state, unchanged = self.state, clock - self.changed
        limit = timeout if state.begun else max(FIRST_STEP, timeout)
        if state.failure and (not state.failure.caused_by_peer or unchanged > CAUSE or self.hung_up):
            return state.failure._replace(reason=f": {state.failure.reason}")
        if self.hung_up and (state.finished is None or not state.detached):
            return Failure(" has died: it was killed, or has crashed; mpiexec may report the signal", fatal=False,
                           curable=True)
        if clock - self.heard > timeout:
            return Failure(f" has been silent for {timeout:g} s (heartbeat_timeout): it hangs, was stopped, or cannot "
                           "be reached", fatal=False, curable=True)
        if unchanged > limit and not self.waits():
            return Failure(f" has not done a step for {limit:g} s, and is not waiting for another rank; if a step "
                           "takes this long, increase heartbeat_timeout", fatal=False, curable=True)
        return None

    def send(self, message: Order) -> None:
        """Send a message, unless the rank has exited."""
        with suppress(OSError):
            self.connection.send(message)


class JobMonitor:
    """Monitors `size` ranks, which connect to the listening socket and know the key.

    Args:
        supervisor: the connection to the job's supervisor, which can start the job again; None if there is none.
        parent: process id of rank 0, which has started this process; None: unknown.
    """

    def __init__(
        self, listener: socket.socket, size: int, key: bytes, supervisor: TcpConnection[StartSettings] | None = None,
        parent: int | None = None,
    ) -> None:
        self._size = self._missing = size        # _missing: ranks that have not registered yet
        self._supervisor = supervisor
        self._parent = parent
        self._settings = JobSettings()
        self._clock = 0.0                        # seconds in which the job was not suspended, at the last check
        self._ranks: dict[int, MonitoredRank] = {}               # by file descriptor
        self._listener = tcp.Listener(listener, key, HEARTBEATS, size)
        self._new: list[TcpConnection[Heartbeat]] = []           # have not sent their first heartbeat yet
        self._hangups = select.epoll()           # of hang-ups only, so that it returns them in their order
        self._complete = True                    # whether no rank is lost

    def run(self) -> bool:
        """Run until all ranks have finished, or have been ended because of a failure; return whether they finished."""
        try:
            return self._run()
        finally:
            self._listener.close()
            for connection in [*self._new, *(rank.connection for rank in self._ranks.values())]:
                connection.close()

    def _run(self) -> bool:
        clock = RunningClock()
        while self._missing or any(rank.state.finished is None for rank in self._ranks.values()):
            wait([*self._listener.sockets(), *(each.fileno() for each in self._new), *self._ranks], POLL)
            self._clock = clock.now()
            if (failed := self._find_failure()) is not None:
                self._end_job(*failed)
                return False
        ranks = [rank for rank in self._ranks.values() if not self._settings.elastic or rank.state.rank == SERVER]
        status = max(rank.state.finished or 0 for rank in ranks)
        self._report_end(JobEnded(status))
        for rank in self._ranks.values():
            rank.send(Released(status, self._complete))
        return True

    def _register(self) -> None:
        """Add the ranks that have connected and sent their first heartbeat."""
        self._new += self._listener.accept()
        for connection in list(self._new):
            try:
                if not connection.poll():
                    continue
                state = connection.recv()
            except (EOFError, OSError, MessageError):
                state = None
            if state is None or not self._is_missing(state.rank):
                connection.close()               # if the rank does not connect again, it is missing
            else:
                rank = MonitoredRank(connection, state, self._clock, self._clock)
                self._ranks[connection.fileno()] = rank
                self._hangups.register(connection, select.EPOLLRDHUP)
                self._missing -= 1
            self._new.remove(connection)

    def _is_missing(self, rank: int) -> bool:
        """Return whether this is a rank of the job that has not registered."""
        return 0 <= rank < self._size and all(other.state.rank != rank for other in self._ranks.values())

    def _find_failure(self) -> tuple[str, Failure] | None:
        """Return (name, failure) of the first rank, or all, whose failure ends the job; drop the other failed ranks."""
        hangups = self._hangups.poll(0)
        self._register()
        ranks = sorted(self._ranks.values(), key=lambda rank: rank.state.rank)
        died = [self._ranks[fd] for fd, _ in hangups]
        for rank in died + [rank for rank in ranks if rank not in died]:
            rank.hung_up = rank in died
            rank.read(self._clock)
            self._settings = rank.state.settings or self._settings
            failure = rank.failure(self._clock, self._settings.heartbeat_timeout)
            if failure and (failure.fatal or not rank.state.detached):
                return rank.name(), failure
            if failure or rank.hung_up:
                self._drop(rank, failure)
        timeout = self._settings.heartbeat_timeout
        if ranks and all(rank.waits() and self._clock - rank.changed > timeout for rank in ranks):
            return "all ranks", Failure(f" wait for each other, and have done nothing else for {timeout:g} s "
                                        "(heartbeat_timeout): what connects them may be broken", curable=True)
        if self._missing and self._parent not in (None, os.getppid()):           # perhaps before it has registered
            return f"rank 0 (pid {self._parent})", Failure(" has died while the job started", curable=True)
        if self._missing and self._clock > JOIN:
            return f"{self._missing} of {self._size} ranks", Failure(
                f" have not come within {JOIN:g} s; they have to reach rank 0's machine over TCP")
        return None

    def _drop(self, rank: MonitoredRank, failure: Failure | None) -> None:
        """Continue without a rank. If it has failed, report it, end what remains of it, and notify the server."""
        self._complete = False
        del self._ranks[rank.connection.fileno()]
        rank.send(EndJob(1, abort=False))        # all that is possible on another host
        rank.connection.close()
        if failure is None:
            return
        if rank.state.host == socket.gethostname() and rank.state.pid > 1:
            with suppress(OSError):
                os.kill(rank.state.pid, signal.SIGKILL)
        clients = sum(other.state.rank != SERVER for other in self._ranks.values())
        rest = {0: "no client is left", 1: "1 client is left"}.get(clients, f"{clients} clients are left")
        self._report(rank.name() + failure.reason + f"; it is dropped, and {rest}")
        for other in self._ranks.values():
            other.changed = self._clock          # it may have waited for this rank
            if other.state.rank == SERVER:
                other.send(RankDropped(rank.state.rank))

    def _end_job(self, name: str, failure: Failure) -> None:
        """Report which rank has failed and how; end all ranks."""
        self._report(name + failure.reason)
        curable = failure.curable and not any(rank.state.stopping for rank in self._ranks.values())
        self._report_end(JobEnded(failure.status, name + failure.reason, curable, self._settings.log))
        time.sleep(FORWARD)
        ranks = sorted(self._ranks.values(), key=lambda r: (r.name() == name, r.heard < self._clock - 2, r.state.rank))
        for rank in ranks:                       # the lowest running rank ends the job
            rank.send(EndJob(failure.status, abort=rank is ranks[0]))
        limit = TimeLimit(GRACE)
        while self._ranks and limit.left():
            for fd, _ in self._hangups.poll(POLL):
                self._ranks.pop(fd).connection.close()
        for rank in self._ranks.values():
            if rank.state.rank == 0 and rank.state.pid == os.getppid():          # mpiexec then kills the others
                os.kill(rank.state.pid, signal.SIGKILL)

    def _report_end(self, end: JobEnded) -> None:
        """Notify the supervisor, if there is one, how the job has ended."""
        if self._supervisor:
            with suppress(OSError):              # it has been killed
                self._supervisor.send(end)

    def _report(self, line: str) -> None:
        """Write a line to standard error, and to the run's log if it exists by now."""
        with suppress(OSError):
            os.write(2, f"{line}\n".encode())
        if Path(self._settings.log).is_file():
            with suppress(OSError), open(self._settings.log, "a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")


def main(listener: str, size: str, parent: str) -> None:
    """Run the monitor on an inherited listening socket, given by its file descriptor. The key is on standard input.

    Args:
        size: number of ranks.
        parent: process id of rank 0.
    """
    with socket.socket(fileno=int(listener)) as listening:
        key = sys.stdin.buffer.read()
        supervisor = None
        with suppress(ConnectionError):          # it has been killed, so mpiexec stops the job
            supervisor = supervisor_link.connect()
        finished = JobMonitor(listening, int(size), key, supervisor, int(parent)).run()
    if not finished:                             # MPICH's mpiexec collects one exit status at each event of rank 0's
        os.close(1)                              # outputs, which this process shares, and takes 0 for all others that
        time.sleep(0.05)                         # it has killed: without an event after the end, the job's may be 0


if __name__ == "__main__":
    main(*sys.argv[1:])
