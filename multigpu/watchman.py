"""The watchman of an MPI job: a process of its own that sees which rank has failed first, says so, and ends the job.

When a rank dies mpiexec kills the others within milliseconds, so who of them could still say which was first?  The
watchman is a child of rank 0 in a session of its own, which mpiexec leaves alone; it knows nothing of MPI.  Every rank
has a TCP connection to it (multigpu.lifeline), on which go the messages of multigpu.lines.

A rank that is gone is an end of file.  The kernel queues these ends in the order in which they came, so the first is
the culprit, also where the watchman gets to see them together.  A rank is silent when it says nothing for time_out
seconds, or when it waits for nobody and yet does no step; before its first step it gets FIRST seconds.  Seconds are
counted in looks of the watchman, so a job that is suspended as a whole, and resumed, misses nothing.

Where the rule is one whose server can do without a client (Settled.lone), one that is Apart and dies, is silent or Lost
is dropped: the log says so, the server is told, what is left of the client is killed, and the others go on.

Run as `python -m multigpu.watchman LISTENER SIZE`, the token on standard input.  It ends with the last of the ranks.
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

from multigpu.control import Failed
from multigpu.lines import (
    Apart,
    Beat,
    Bye,
    Dropped,
    End,
    Here,
    Line,
    Lost,
    Nonce,
    Released,
    Settled,
    Welcome,
    name_of,
    proof_of,
)

LOOK, LONGEST = 0.25, 1.0                        # seconds from one look at the clock to the next; more are not counted
TIME_OUT = 300.0                                 # seconds, until rank 0 says how many
FIRST = 600.0                                    # seconds for what comes before a rank's first step
MEETING = 60.0                                   # seconds in which all ranks have to come
SPEECH = 5.0                                     # seconds in which one who has come has to say who it is
SOON = 1.0                                       # seconds in which a better reason than "another has failed" may come
HEARD = 0.3                                      # seconds in which mpiexec passes the sentence on: aborting it does not
GRACE = 3.0                                      # seconds in which the ranks have to end, once they have to
LEFT = 2.0                                       # seconds without any rank after which there is nobody to wait for
SWEEP = 5.0                                      # seconds within which mpiexec ends all, where it does so after a death
SERVER = 0                                       # the rank that the others cannot do without


class Rank:
    """What the watchman knows of a rank: its line, who it is, and for how many seconds it has been silent or still."""

    def __init__(self, line, here, name):
        self.line, self.rank, self.pid, self.host, self.name = line, here.rank, here.pid, here.host, name
        self.beat, self.apart, self.done, self.status = Beat(0, True, False), False, False, 0
        self.silent = self.still = 0.0

    def hear(self, beat):
        self.silent = 0.0
        if beat.waiting or beat.steps != self.beat.steps:
            self.still = 0.0
        self.beat = beat


class Watchman:
    """Watches `size` ranks, who come to the listening socket and know the token; run() ends with the last of them."""

    def __init__(self, listener, size, token):
        self._listener, self._size, self._token = listener, size, token
        self._time_out, self._log, self._lone = TIME_OUT, None, False
        self._whole, self._dropped = True, -SWEEP                # no rank is missing; when one was dropped
        self._strangers, self._ranks = {}, {}    # by file descriptor: (Line, Nonce, until when), and Rank
        self._came = 0                           # ranks that have come
        self._paces, self._together = None, 0.0  # of all ranks at the last look; seconds in which all have waited
        self._any, self._ends = select.epoll(), select.epoll()           # all that happens; who has gone, in order
        listener.setblocking(False)
        self._any.register(listener, select.EPOLLIN)
        self._verdict = None                     # (Rank, Failed), of a failure that follows from another
        self._until = 0.0

    def run(self):
        """Until all ranks have done their part, or have been ended."""
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
        status = max(rank.status for rank in self._ranks.values() if not (self._lone and rank.rank != SERVER))
        for rank in self._ranks.values():
            tell(rank, Released(status, self._whole))
        return None

    def _accept(self):
        """Ask who comes to prove that it is of this job."""
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        line, nonce = Line(connection), Nonce(secrets.token_hex(16))
        with suppress(OSError):
            line.send(nonce)
        self._strangers[connection.fileno()] = line, nonce, time.monotonic() + SPEECH
        self._any.register(connection, select.EPOLLIN)

    def _gone(self):
        """The verdict on the first rank that has gone, or None."""
        for fd, _ in self._ends.poll(0):
            rank = self._ranks[fd]
            failed = self._listen(rank)          # its last words
            self._forget(fd)
            if not (rank.done and self._may_miss(rank)):
                return rank, failed or self._death_of(rank)
            self._whole = False                  # it has left
        return None

    def _death_of(self, rank):
        """What is said of a rank that has died."""
        if rank.rank == SERVER and time.monotonic() - self._dropped < SWEEP:
            return Lost("has been ended, as mpiexec does with all where one has died; Open MPI's goes on where it is "
                        "started as mpiexec --enable-recovery")  # fmt: skip
        return Lost("has died: it was killed, or has crashed; mpiexec may say by which signal")

    def _forget(self, fd):
        self._any.unregister(fd)
        self._ends.unregister(fd)
        del self._ranks[fd]

    def _may_miss(self, rank):
        """Whether the others go on without this rank."""
        return self._lone and isinstance(rank, Rank) and rank.rank != SERVER and rank.apart

    def _let_go(self, verdict):
        """The verdict, or None where the others go on without the rank, which is then dropped."""
        rank, failed = verdict or (None, None)
        if not isinstance(failed, Lost):
            return verdict
        if not self._may_miss(rank):
            return rank, Failed(failed.sentence, 1)
        for fd in [fd for fd, other in self._ranks.items() if other is rank]:
            self._forget(fd)
            self._kill(rank)
        left = sum(other.rank != SERVER for other in self._ranks.values())
        rest = {0: "no client is left", 1: "1 client is left"}.get(left, f"{left} clients are left")
        say(f"{sentence_of(rank.name, failed.sentence)}; it is dropped, and {rest}", self._log)
        self._whole, self._dropped = False, time.monotonic()
        for server in self._ranks.values():
            if server.rank == SERVER:
                tell(server, Dropped(rank.rank))
        return None

    def _kill(self, rank):
        """End what is left of a rank that is dropped."""
        tell(rank, End(1, False))                # on another host that is all there is to do
        if rank.host == socket.gethostname():
            with suppress(OSError):
                os.kill(rank.pid, signal.SIGKILL)

    def _heard(self, events):
        """The verdict on the first rank of those that have said something, or None."""
        for fd in events:
            if fd in self._strangers:
                self._admit(fd)
            elif fd in self._ranks and (failed := self._listen(self._ranks[fd])):
                verdict = self._ranks[fd], failed
                if isinstance(failed, Lost) or not failed.follows:
                    return verdict
                if self._verdict is None:
                    self._verdict, self._until = verdict, time.monotonic() + SOON
        return None

    def _admit(self, fd):
        """Take one who has proven to be of this job among the ranks, and send others away."""
        line, nonce, _ = self._strangers[fd]
        try:
            messages, ended = line.read()
        except ValueError:
            messages, ended = [], True
        here = next((message for message in messages if isinstance(message, Here)), None)
        if here is None and not ended:
            return
        del self._strangers[fd]
        who = name_of(here.rank, here.pid, here.host) if here else ""
        if here is None or not hmac.compare_digest(here.proof, proof_of(self._token, nonce.text, who)):
            self._any.unregister(fd)
            line.close()
            return
        rank = Rank(line, here, who)
        self._ranks[fd], self._came = rank, self._came + 1
        self._ends.register(fd, select.EPOLLRDHUP)
        tell(rank, Welcome(proof_of(self._token, nonce.text, "watchman")))

    def _listen(self, rank):
        """Take what a rank has said; returns what it has Failed with, or None."""
        try:
            messages, _ = rank.line.read()
        except ValueError as error:
            return Failed(f"says what nobody understands: {error}", 1)
        for message in messages:
            if isinstance(message, Beat):
                rank.hear(message)
            elif isinstance(message, Bye):
                rank.done, rank.status = True, message.status
            elif isinstance(message, Apart):
                rank.apart = True
            elif isinstance(message, Settled):
                self._time_out, self._log, self._lone = message
            elif isinstance(message, Lost):
                return Lost(f": {message.sentence}")
            elif isinstance(message, Failed):
                return message._replace(sentence=f": {message.sentence}")
        return None

    def _look(self, since, passed):
        """The verdict on a rank that has not been heard for too long, or does not go on, or None.

        since, passed  seconds since the watchman began, and since the last look
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
                return rank, Lost(f"has been silent for {self._time_out:g} s (time_out): it hangs, was stopped, or "
                                  "cannot be reached")  # fmt: skip
            if not rank.beat.waiting and not rank.done and rank.still > limit:
                return rank, Lost(f"has not done a step for {limit:g} s, and waits for no other rank; if a step takes "
                                  "so long, give a larger time_out")  # fmt: skip
        if self._came < self._size and since > MEETING:
            return f"{self._size - self._came} of {self._size} ranks", Failed(
                f"have not come within {MEETING:g} s; they have to reach rank 0's machine over TCP", 1
            )
        return self._all_wait(ranks, passed)

    def _all_wait(self, ranks, passed):
        """The verdict on ranks of which each waits for others, and none does a step, or None."""
        paces = [(rank.beat.steps, rank.beat.waiting or rank.done) for rank in ranks]
        still = paces == self._paces and all(waits for _, waits in paces)
        self._together = self._together + passed if still else 0.0
        self._paces = paces
        if paces and self._together > self._time_out:
            return "all ranks", Failed(
                f"wait for each other, and have done nothing else for {self._time_out:g} s (time_out): what connects "
                "them may be broken", 1
            )  # fmt: skip
        return None

    def _end(self, who, failed):
        """Say who has failed, a Rank or a name, and how, and end all ranks."""
        name = who.name if isinstance(who, Rank) else who
        say(sentence_of(name, failed.sentence), self._log)
        time.sleep(HEARD)
        ranks = sorted(self._ranks.values(), key=lambda rank: (rank.name == name, rank.silent > 2, rank.rank))
        for place, rank in enumerate(ranks):     # the lowest that lives ends the job
            tell(rank, End(failed.status, place == 0))
        until = time.monotonic() + GRACE
        while self._ranks and time.monotonic() < until:
            for fd, _ in self._ends.poll(LOOK):
                self._ends.unregister(fd)
                del self._ranks[fd]
        for rank in self._ranks.values():
            if rank.rank == 0 and rank.pid == os.getppid():
                os.kill(rank.pid, signal.SIGKILL)            # mpiexec then kills the rest


def sentence_of(name, rest):
    return f"{name}{'' if rest.startswith(':') else ' '}{rest}"


def tell(rank, message):
    """Send a message to a rank, which may be gone."""
    with suppress(OSError):
        rank.line.send(message)


def say(sentence, log):
    """A line in the run's log, if there is one by now, and on standard error."""
    if log and Path(log).exists():
        with suppress(OSError), open(log, "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {sentence}\n")
    with suppress(OSError):
        os.write(2, f"{sentence}\n".encode())


def main(listener, size):
    token = sys.stdin.buffer.read()
    with socket.socket(fileno=int(listener)) as listening:
        Watchman(listening, int(size), token).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
