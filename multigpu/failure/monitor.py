"""The monitor of an MPI job: a separate process that detects the first failed rank, reports it and ends the job.

When a rank dies, mpiexec kills the others within milliseconds, so that no rank could report which one was first.  The
monitor is a child of rank 0 in its own session, which mpiexec does not kill; it does not use MPI.  Every rank has a TCP
connection to it (multigpu.failure.heartbeat), which carries the messages of multigpu.failure.protocol.

The exit of a rank is seen as an end of file.  The kernel queues these events in the order in which they occur, so the
first one identifies the cause, even if the monitor receives several at once.  A rank is dead if it sends nothing for
heartbeat_timeout seconds.  It is hung if it does no step for heartbeat_timeout seconds and does not wait for others;
before its first step the limit is FIRST seconds.  Time is counted in looks of the monitor, so a job that is suspended
as a whole and resumed exceeds no limit.

If the rule is elastic (JobSettings.elastic), a Detached rank that dies, hangs or reports PeerLost is dropped: the
monitor logs it, notifies the server and kills what remains of the client.  The other ranks continue.

Run as `python -m multigpu.failure.monitor LISTENER SIZE`, with the token on standard input.
The process ends with the last of the ranks.
"""

import hmac
import os
import secrets
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from multigpu.failure.protocol import (
    Detached,
    EndJob,
    Finished,
    Heartbeat,
    JobSettings,
    JsonSocket,
    Nonce,
    PeerLost,
    RankDropped,
    Register,
    Registered,
    Released,
    name_of,
    proof_of,
)
from multigpu.launcher_link import Failed

LOOK, LONGEST = 0.25, 1.0                        # seconds between two looks; the most that one look counts
TIME_OUT = 300.0                                 # seconds, until rank 0 sends the setting
FIRST = 600.0                                    # limit in seconds before a rank's first step
MEETING = 60.0                                   # seconds within which all ranks have to register
SPEECH = 5.0                                     # seconds within which a new connection has to register
SOON = 1.0                                       # seconds to wait for a better reason than "another has failed"
HEARD = 0.3                                      # seconds for mpiexec to forward the message; an abort drops it
GRACE = 3.0                                      # seconds that ranks get to end after EndJob
LEFT = 2.0                                       # seconds without any rank after which the monitor exits
SWEEP = 5.0                                      # seconds within which mpiexec ends all ranks after a death, if it does
SERVER = 0                                       # the rank that the others depend on


class MonitoredRank:
    """State of a rank in the monitor: connection, identity, seconds since its last message and its last progress."""

    def __init__(self, line, here, name):
        self.line, self.rank, self.pid, self.host, self.name = line, here.rank, here.pid, here.host, name
        self.beat, self.apart, self.done, self.status = Heartbeat(0, True, False), False, False, 0
        self.silent = self.still = 0.0

    def hear(self, beat):
        self.silent = 0.0
        if beat.waiting or beat.steps != self.beat.steps:
            self.still = 0.0
        self.beat = beat


class JobMonitor:
    """Monitors `size` ranks, which connect to the listening socket and know the token."""

    def __init__(self, listener, size, token):
        self._listener, self._size, self._token = listener, size, token
        self._time_out, self._log, self._elastic = TIME_OUT, None, False
        self._whole, self._dropped = True, -SWEEP                # whether no rank is missing; time of the last drop
        self._strangers, self._ranks = {}, {}    # by file descriptor: (JsonSocket, Nonce, deadline); MonitoredRank
        self._came = 0                           # number of ranks that have registered
        self._paces, self._together = None, 0.0  # state at the last look; seconds in which all ranks have waited
        self._any, self._ends = select.epoll(), select.epoll()           # all events; hang-ups, in order
        listener.setblocking(False)
        self._any.register(listener, select.EPOLLIN)
        self._verdict = None                     # (MonitoredRank, Failed) of a failure caused by another
        self._until = 0.0

    def run(self):
        """Run until all ranks have finished or have been ended."""
        began = self._alone = last = time.monotonic()
        while self._came < self._size or not all(rank.done for rank in self._ranks.values()):
            events = [fd for fd, _ in self._any.poll(LOOK)]
            verdict = self._let_go(self._gone() or self._heard(events))
            if self._listener.fileno() in events:
                self._accept()
            now = time.monotonic()
            if verdict is None and now - last >= LOOK:
                verdict, last = self._let_go(self._look(now - began, min(now - last, LONGEST))), now
            if verdict is None and self._verdict and now > self._until:
                verdict = self._verdict
            if verdict:
                return self._end(*verdict)
            if self._ranks:
                self._alone = now
            elif now - self._alone > (LEFT if self._came else MEETING):
                return None
        status = max(rank.status for rank in self._ranks.values() if not (self._elastic and rank.rank != SERVER))
        for rank in self._ranks.values():
            tell(rank, Released(status, self._whole))
        return None

    def _accept(self):
        """Accept a connection and send the challenge that authenticates a rank of this job."""
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        line, nonce = JsonSocket(connection), Nonce(secrets.token_hex(16))
        with suppress(OSError):
            line.send(nonce)
        self._strangers[connection.fileno()] = line, nonce, time.monotonic() + SPEECH
        self._any.register(connection, select.EPOLLIN)

    def _gone(self):
        """Return the verdict on the first rank that has disconnected, or None."""
        for fd, _ in self._ends.poll(0):
            rank = self._ranks[fd]
            failed = self._listen(rank)          # the last messages that it sent
            self._forget(fd)
            if not (rank.done and self._may_miss(rank)):
                return rank, failed or self._death_of(rank)
            self._whole = False                  # it has left the job
        return None

    def _death_of(self, rank):
        """Return the PeerLost that describes the death of a rank."""
        if rank.rank == SERVER and time.monotonic() - self._dropped < SWEEP:
            return PeerLost(
                "was ended by mpiexec, which ends all ranks when one dies; with Open MPI, mpiexec --enable-recovery "
                "lets the others continue"
            )
        return PeerLost("has died: it was killed, or has crashed; mpiexec may report the signal")

    def _forget(self, fd):
        self._any.unregister(fd)
        self._ends.unregister(fd)
        del self._ranks[fd]

    def _may_miss(self, rank):
        """Return whether the others continue without this rank."""
        return self._elastic and isinstance(rank, MonitoredRank) and rank.rank != SERVER and rank.apart

    def _let_go(self, verdict):
        """Return the verdict, or drop the rank and return None if the others continue without it."""
        rank, failed = verdict or (None, None)
        if not isinstance(failed, PeerLost):
            return verdict
        if not self._may_miss(rank):
            return rank, Failed(failed.message, 1)
        for fd in [fd for fd, other in self._ranks.items() if other is rank]:
            self._forget(fd)
            self._kill(rank)
        left = sum(other.rank != SERVER for other in self._ranks.values())
        rest = {0: "no client is left", 1: "1 client is left"}.get(left, f"{left} clients are left")
        say(f"{sentence_of(rank.name, failed.message)}; it is dropped, and {rest}", self._log)
        self._whole, self._dropped = False, time.monotonic()
        for server in self._ranks.values():
            if server.rank == SERVER:
                tell(server, RankDropped(rank.rank))
        return None

    def _kill(self, rank):
        """End what remains of a dropped rank."""
        tell(rank, EndJob(1, False))                # all that is possible on another host
        if rank.host == socket.gethostname():
            with suppress(OSError):
                os.kill(rank.pid, signal.SIGKILL)

    def _heard(self, events):
        """Return the verdict on the first rank that has reported a failure, or None."""
        for fd in events:
            if fd in self._strangers:
                self._admit(fd)
            elif fd in self._ranks and (failed := self._listen(self._ranks[fd])):
                verdict = self._ranks[fd], failed
                if isinstance(failed, PeerLost) or not failed.caused_by_peer:
                    return verdict
                if self._verdict is None:
                    self._verdict, self._until = verdict, time.monotonic() + SOON
        return None

    def _admit(self, fd):
        """Register a connection that has authenticated itself as a rank of this job, and close others."""
        line, nonce, _ = self._strangers[fd]
        try:
            messages, ended = line.read()
        except ValueError:
            messages, ended = [], True
        here = next((message for message in messages if isinstance(message, Register)), None)
        if here is None and not ended:
            return
        del self._strangers[fd]
        who = name_of(here.rank, here.pid, here.host) if here else ""
        if here is None or not hmac.compare_digest(here.proof, proof_of(self._token, nonce.text, who)):
            self._any.unregister(fd)
            line.close()
            return
        rank = MonitoredRank(line, here, who)
        self._ranks[fd], self._came = rank, self._came + 1
        self._ends.register(fd, select.EPOLLRDHUP)
        tell(rank, Registered(proof_of(self._token, nonce.text, "watchman")))

    def _listen(self, rank):
        """Process the messages of a rank; return its Failed or PeerLost, or None."""
        try:
            messages, _ = rank.line.read()
        except ValueError as error:
            return Failed(f"sent a malformed message: {error}", 1)
        for message in messages:
            if isinstance(message, Heartbeat):
                rank.hear(message)
            elif isinstance(message, Finished):
                rank.done, rank.status = True, message.status
            elif isinstance(message, Detached):
                rank.apart = True
            elif isinstance(message, JobSettings):
                self._time_out, self._log, self._elastic = message
            elif isinstance(message, PeerLost):
                return PeerLost(f": {message.message}")
            elif isinstance(message, Failed):
                return message._replace(message=f": {message.message}")
        return None

    def _look(self, since, passed):
        """Return the verdict on a rank that is silent or makes no progress, or None.

        Args:
            since: seconds since the monitor started.
            passed: seconds since the last look.
        """
        for fd, (line, _, until) in list(self._strangers.items()):
            if time.monotonic() > until:
                self._any.unregister(fd)
                line.close()
                del self._strangers[fd]
        ranks = sorted(self._ranks.values(), key=lambda rank: rank.rank)
        for rank in ranks:
            rank.silent += passed
            rank.still += passed
            limit = self._time_out if rank.beat.begun else max(FIRST, self._time_out)
            if rank.silent > self._time_out:
                return rank, PeerLost(f"has been silent for {self._time_out:g} s (heartbeat_timeout): it hangs, "
                                  "was stopped, or cannot be reached")
            if not rank.beat.waiting and not rank.done and rank.still > limit:
                return rank, PeerLost(
                    f"has not done a step for {limit:g} s, and is not waiting for another rank; if a step takes "
                    "this long, increase heartbeat_timeout"
                )
        if self._came < self._size and since > MEETING:
            return f"{self._size - self._came} of {self._size} ranks", Failed(
                f"have not come within {MEETING:g} s; they have to reach rank 0's machine over TCP", 1
            )
        return self._all_wait(ranks, passed)

    def _all_wait(self, ranks, passed):
        """Return the verdict if every rank waits for others and none makes progress, or None."""
        paces = [(rank.beat.steps, rank.beat.waiting or rank.done) for rank in ranks]
        still = paces == self._paces and all(waits for _, waits in paces)
        self._together = self._together + passed if still else 0.0
        self._paces = paces
        if paces and self._together > self._time_out:
            return "all ranks", Failed(
                f"wait for each other, and have done nothing else for {self._time_out:g} s (heartbeat_timeout): "
                "what connects them may be broken", 1
            )
        return None

    def _end(self, who, failed):
        """Report which rank (a MonitoredRank or a name) has failed, and how; end all ranks."""
        name = who.name if isinstance(who, MonitoredRank) else who
        say(sentence_of(name, failed.message), self._log)
        time.sleep(HEARD)
        ranks = sorted(self._ranks.values(), key=lambda rank: (rank.name == name, rank.silent > 2, rank.rank))
        for place, rank in enumerate(ranks):     # the lowest running rank ends the job
            tell(rank, EndJob(failed.status, place == 0))
        until = time.monotonic() + GRACE
        while self._ranks and time.monotonic() < until:
            for fd, _ in self._ends.poll(LOOK):
                self._ends.unregister(fd)
                del self._ranks[fd]
        for rank in self._ranks.values():
            if rank.rank == 0 and rank.pid == os.getppid():
                os.kill(rank.pid, signal.SIGKILL)            # mpiexec then kills the others


def sentence_of(name, rest):
    return f"{name}{'' if rest.startswith(':') else ' '}{rest}"


def tell(rank, message):
    """Send a message to a rank, which may have exited."""
    with suppress(OSError):
        rank.line.send(message)


def say(sentence, log):
    """Write a line to the run's log, if it exists by now, and to standard error."""
    if log and Path(log).exists():
        with suppress(OSError), open(log, "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {sentence}\n")
    with suppress(OSError):
        os.write(2, f"{sentence}\n".encode())


def main(listener, size):
    token = sys.stdin.buffer.read()
    with socket.socket(fileno=int(listener)) as listening:
        JobMonitor(listening, int(size), token).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
