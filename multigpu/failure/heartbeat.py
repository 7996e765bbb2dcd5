"""A rank's connection to the monitor of its MPI job, independent of MPI: sends heartbeats and reports failures."""

import os
import signal
import threading
import time
from contextlib import suppress

from alexnet.native.console import write_now
from multigpu.failure.protocol import EndJob, Failure, Heartbeat, JobSettings, Order, RankDropped, Released, name_of
from multigpu.messages import MessageError
from multigpu.mpi.communicator import MPI, MpiCommunicator
from multigpu.mpi.rank_wrapper import is_wrapped, report_detached
from multigpu.mpi.tcp import TcpConnection, shortened

INTERVAL = 1.0                                   # seconds between two heartbeats
ABORT_LIMIT = 2.0                                # seconds that MPI_Abort gets to end this process
FORWARDING = 0.15                                # seconds for mpiexec to forward a message, which MPI_Abort would drop


class HeartbeatClient:
    """A rank's end of the connection. After finish(): status of the job; complete: whether no rank is missing."""

    def __init__(self, comm: MpiCommunicator, connection: TcpConnection[Order]) -> None:
        self.status = 0
        self.complete = True
        self._comm = comm
        self._connection = connection
        self._state = Heartbeat(comm.rank, os.getpid(), comm.hosts[comm.rank])
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._send()
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()
        comm.on_detach = self._detach

    def configure(self, settings: JobSettings) -> None:
        """Send the settings of the run to the monitor; called at rank 0 only."""
        self._state.settings = settings
        self._send()

    def fail(self, failure: Failure) -> None:
        """Report, from any thread, that this rank cannot continue; the monitor ends the rank or the job in seconds."""
        if self._state.failure is None or self._state.failure.caused_by_peer:
            self._state.failure = failure._replace(reason=shortened(failure.reason))
            self._send()

    def stop(self) -> None:
        """Report that this rank has received a stop signal; called by the handler of the signal."""
        self._state.stopping = True
        threading.Thread(target=self._send, daemon=True).start()     # the interrupted thread may hold the lock

    def finish(self, status: int) -> None:
        """Request an exit status for the job; wait until all ranks have finished, unless this rank has left the job."""
        with self._comm.waiting():
            self.status = self._state.finished = status
            self._send()
            if self._comm.has_left and is_wrapped():
                self.complete = False
            else:
                self._released.wait()
                self._connection.close()

    def _send(self) -> None:
        state = self._state
        with self._lock, suppress(OSError):      # if the monitor is dead, this process is already ending
            state.steps, state.waiting, state.begun = self._comm.pace()
            self._connection.send(state)

    def _detach(self) -> None:
        if self._comm.rank:                      # the job cannot continue without the server
            self._state.detached = True
            self._send()
            report_detached()

    def _run(self) -> None:
        """Send heartbeats and obey the monitor until it releases or ends this rank, or is lost."""
        while not self._released.is_set():
            self._send()
            try:
                if self._connection.poll(INTERVAL):
                    self._obey(self._connection.recv())
            except (EOFError, OSError, MessageError):
                time.sleep(min(2 * FORWARDING * self._comm.rank, 1.0))           # so that usually one rank prints
                name = name_of(self._comm.rank, os.getpid(), self._comm.hosts[self._comm.rank])
                write_now(f"{name} has lost this job's monitor on {self._comm.hosts[0]}; the job ends")
                end_process(1, abort=True)

    def _obey(self, message: Order) -> None:
        match message:
            case RankDropped(rank):
                self._comm.dropped_ranks.add(rank)
            case EndJob(status, abort):
                end_process(status, abort)
            case Released(status, complete):
                self.status, self.complete = status, complete
                self._released.set()


def end_process(status: int, abort: bool) -> None:
    """End this process now, and with `abort` the job as well."""
    try:
        if abort and MPI.Query_thread() == MPI.THREAD_MULTIPLE:
            time.sleep(FORWARDING)
            threading.Thread(target=MPI.COMM_WORLD.Abort, args=(status,), daemon=True).start()
        time.sleep(ABORT_LIMIT)
    finally:
        os.kill(os.getpid(), signal.SIGKILL)
