"""Messages between ranks that go on without each other: nobody waits for a barrier, and who waits does so asleep.

A message is a NamedTuple of a kind of its own that says the step and the sender it belongs to; one that does not fit
ends the run.  Arrays go apart from them, over the same communicator: whoever is told that one follows receives it.

MPI moves a message while both ends call it.  A blocking call spins, which takes a core from those who compute; so a
rank that has to wait for long looks, sleeps, and looks again.

Importing this file starts MPI, so rules take Post by name.
"""

import time

from multigpu.mpi import MPI
from multigpu.partners import OutOfStep, parted

SHORTEST, LONGEST = 1e-4, 1e-3                   # seconds of sleep between two looks


class Post:
    """This rank's messages to and from the others, sent and received, counted.

    partners  multigpu.mpi.MpiPartners
    """

    TALK, ARRAY = 1, 2                           # tags: of messages, and of the arrays that they announce

    def __init__(self, partners):
        self.comm, self.rank, self.size = partners.comm, partners.rank, partners.size
        self.sent, self.received = [0] * self.size, 0            # messages, by receiver; by now
        self.waiting, self._leaving = partners.waiting, []

    def send(self, message, other):
        """Send a message, without waiting for it to arrive."""
        self._leaving = [request for request in self._leaving if not request.Test()]
        self._leaving.append(self.comm.isend(message, other, self.TALK))
        self.sent[other] += 1

    def take(self):
        """The message that came first, of those that are here by now; None where there is none."""
        status = MPI.Status()
        if not self.comm.iprobe(MPI.ANY_SOURCE, self.TALK, status):
            return None
        message = self.comm.recv(source=status.source, tag=self.TALK)
        if message.sender != status.source:
            raise OutOfStep(
                f"rank {status.source} sends {type(message).__name__} in the name of rank {message.sender}: "
                "one of them is not of this run; start all anew from one checkpoint"
            )
        self.received += 1
        return message

    def hear(self, kind, step, sender):
        """Wait for the one message that may come now; raises OutOfStep for another."""
        message = self.until(self.take)
        if (type(message), message.step, message.sender) != (kind, step, sender):
            self.refuse(message, f"{kind.__name__} of step {step} from rank {sender}")
        return message

    def refuse(self, message, awaited):
        """Raise OutOfStep for a message that is not what this rank waits for."""
        raise parted(f"rank {message.sender}", message, f"rank {self.rank}", awaited)

    def until(self, look):
        """Call look() again and again, until it returns what is true; returns that."""
        with self.waiting():
            pause = SHORTEST
            while not (found := look()):
                time.sleep(pause)
                pause = min(2 * pause, LONGEST)
            return found

    def add_up(self, array):
        """Replace a float32 array by its sum over all ranks, each of which calls this now."""
        with self.waiting():
            self.comm.Allreduce(MPI.IN_PLACE, array)

    def close(self):
        """Wait until all that was sent has left."""
        self.until(lambda: MPI.Request.Testall(self._leaving))
