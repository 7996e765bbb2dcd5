"""The signals that stop a run, as the launcher receives them. One request can arrive as several signals.

timeout(1) sends its signal twice: to its child, and to its own process group. On a loaded machine seconds pass between
the two, so a run whose parent is timeout expects two signals for each request, whatever the time between them.
A SIGTERM to a worker is meant for the whole run. The worker forwards it as FORWARDED, after its current kernel.
"""

import math
import os
import signal
import socket
import time
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Self

from multigpu.launch.process import FORWARDED, SIGNAL_DEBOUNCE, stop_signals

SENDS_TWICE = "timeout"                          # name of a parent process that sends every signal twice


class Signals:
    """Receives the stop signals through a socket, so that connection.wait can wait for them together with processes.

    Attributes:
        reader: readable when a signal has been received.
    """

    def __enter__(self) -> Self:
        self.reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._handled = -math.inf                # time at which the last request had been handled
        self._twins: list[int] = []              # signals that are still expected for requests that have been counted
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        numbers = {*stop_signals(), FORWARDED}
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self.reader.close()
        self._writer.close()

    def receive(self) -> signal.Signals | None:
        """Return the received signal; None if it is not one of them, or belongs to a request that has been counted."""
        number = self.reader.recv(1)[0]
        if number == FORWARDED:
            return signal.SIGTERM if self._handled == -math.inf else None
        if number not in self._handlers:
            return None
        if number in self._twins:
            self._twins.remove(number)
            return None
        if time.monotonic() - self._handled < SIGNAL_DEBOUNCE:
            return None
        if name_of_parent() == SENDS_TWICE:
            self._twins.append(number)
        return signal.Signals(number)

    def pending(self) -> signal.Signals | None:
        """Return a stop signal that has been received and not yet been returned, or None; do not wait."""
        while wait([self.reader], 0):
            if received := self.receive():
                return received
        return None

    def handled(self) -> None:
        """Note that the last request has been handled; what arrives within SIGNAL_DEBOUNCE seconds belongs to it."""
        self._handled = time.monotonic()


def name_of_parent() -> str:
    """Return the name of the parent process; an empty text if it is not known."""
    with suppress(OSError):
        return Path(f"/proc/{os.getppid()}/comm").read_text(encoding="utf-8", errors="replace").strip()
    return ""


def stop_notice(number: int) -> str:
    """Return the message of the first stop signal."""
    if number == signal.SIGINT:
        return "finishing this step, then saving; press Ctrl-C again to stop without saving"
    name = signal.Signals(number).name
    return f"{name} received: finishing this step, then saving; a second signal stops without saving"
