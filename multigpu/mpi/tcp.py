"""Authenticated TCP connections between processes on several machines, which know a key of 32 random bytes.

    client                                               server
    a random nonce                          ---------->
                                            <----------  a random nonce
    HMAC(session, "client")                 ---------->
                                            <----------  HMAC(session, "server")
    length, HMAC of the message, message    <--------->  the same

session = HMAC(key, both nonces).  Everything before the first message has a fixed length and is only compared, so a
stranger's bytes are never parsed.  The HMAC of a message includes its direction and its number: a message cannot be
forged, changed, repeated or left out.  Messages are JSON (multigpu.messages) and are not encrypted.

A handshake has HANDSHAKE_LIMIT seconds.  A Listener never waits for a stranger, and keeps a limited number of them.
"""

import fcntl
import hmac
import secrets
import select
import socket
import struct
import time
from collections import deque
from contextlib import suppress
from typing import Generic, Self, TypeVar

from multigpu.launch.clock import RunningClock, TimeLimit
from multigpu.messages import Decoder, MessageError, encode

M = TypeVar("M")

CONNECT_LIMIT = 2.0                              # seconds within which an address has to accept a connection
HANDSHAKE_LIMIT = 5.0                            # seconds for a whole handshake
SEND_LIMIT = 5                                   # seconds that a server waits for a client that does not read
PATIENCE = 20.0                                  # seconds within which a process of the job tries to connect
BACKLOG = 128                                    # connections that have not been accepted yet
RETRY = 0.2                                      # seconds between two attempts to connect
STRANGERS = 64                                   # connections without a complete handshake, beside the expected ones
MAX_BYTES = 1 << 20                              # of a message
MAX_REASON = 10_000                              # characters of a reason in a message
NONCE = DIGEST = 32                              # bytes
HEADER = struct.Struct("!I16s")                  # of a message: its length, and the first bytes of its HMAC
SIOCGIFADDR = 0x8915                             # linux/sockios.h


class NotAuthenticated(ConnectionError):
    """The other end does not know the key."""


class TcpConnection(Generic[M]):
    """A connection whose other end has proved that it knows the key.

    Args:
        peer: the socket.
        session: the key of this connection.
        outgoing, incoming: the names of this end and of the other.
        decode: of the messages that arrive.
    """

    def __init__(self, peer: socket.socket, session: bytes, outgoing: str, incoming: str, decode: Decoder[M]) -> None:
        self._peer = peer
        self._session = session
        self._sides = outgoing, incoming
        self._decode = decode
        self._sent = 0
        self._received = 0
        self._buffer = bytearray()               # a part of a message
        self._messages: deque[M] = deque()
        self._ended = False

    def fileno(self) -> int:
        """Return the file descriptor, which select and poll accept."""
        return self._peer.fileno()

    def send(self, message: object) -> None:
        """Send a message. Raises OSError; one thread at a time may call it."""
        data = encode(message, MAX_BYTES)
        self._peer.sendall(HEADER.pack(len(data), self._code(self._sides[0], self._sent, data)) + data)
        self._sent += 1

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Wait at most `timeout` seconds, or without a limit; return whether recv() returns or raises at once.

        Raises:
            MessageError: what has arrived is no message of the other end.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        poll = select.poll()
        poll.register(self._peer, select.POLLIN)
        while not self._messages and not self._ended:
            rest = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not poll.poll(None if rest is None else 1000 * rest):
                return False
            self._read()
        return True

    def recv(self) -> M:
        """Wait for a message and return it.

        Raises:
            EOFError: the other end has closed the connection.
            MessageError: as for poll().
        """
        self.poll(None)
        if not self._messages:
            raise EOFError
        return self._messages.popleft()

    def close(self) -> None:
        self._peer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _read(self) -> None:
        """Read what has arrived, at most the rest of one message, without waiting."""
        wanted = HEADER.size
        if len(self._buffer) >= HEADER.size:
            wanted += HEADER.unpack_from(self._buffer)[0]
        try:
            data = self._peer.recv(wanted - len(self._buffer), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except ConnectionError:                  # reset: what has arrived before is lost
            data = b""
        self._ended = not data
        self._buffer += data
        if len(self._buffer) < HEADER.size:
            return
        length, code = HEADER.unpack_from(self._buffer)
        if length > self._decode.limit:
            raise MessageError(f"a message has at most {self._decode.limit} bytes, got a length of {length}")
        if len(self._buffer) < HEADER.size + length:
            return
        content = bytes(self._buffer[HEADER.size:])
        self._buffer.clear()
        if not hmac.compare_digest(code, self._code(self._sides[1], self._received, content)):
            raise MessageError("the HMAC of a message is wrong: it was changed on its way")
        self._received += 1
        self._messages.append(self._decode(content))

    def _code(self, side: str, number: int, content: bytes) -> bytes:
        """Return the first 16 bytes of the HMAC of a message of this side."""
        return digest(self._session, f"{side} {number} ".encode() + content)[:16]


class Listener(Generic[M]):
    """Accepts connections, and completes the handshake of those that know the key.

    Args:
        listener: a listening socket.
        key: of the job.
        decode: of the messages that arrive.
        expected: number of processes that may connect at the same time.
    """

    def __init__(self, listener: socket.socket, key: bytes, decode: Decoder[M], expected: int) -> None:
        self._listener = listener
        self._listener.setblocking(False)
        self._key = key
        self._decode = decode
        self._most = expected + STRANGERS
        self._strangers: deque[Stranger] = deque()               # the oldest first
        self._clock = RunningClock()

    def sockets(self) -> list[socket.socket]:
        """Return what to wait for before accept() is called."""
        return [self._listener, *(stranger.peer for stranger in self._strangers)]

    def accept(self) -> list[TcpConnection[M]]:
        """Return the connections whose handshake is complete by now; never waits. Call it at least every second."""
        connections = []
        now = self._clock.now()
        for stranger in list(self._strangers):
            try:
                session = stranger.read(self._key)
            except OSError:
                session = None
                stranger.deadline = now
            if session is not None:
                connections.append(TcpConnection(stranger.peer, session, "server", "client", self._decode))
                self._strangers.remove(stranger)
            elif stranger.deadline <= now:
                self._drop(stranger)
        with suppress(OSError):                  # no further connection, or it has ended already
            for _ in range(self._most):
                peer, _ = self._listener.accept()
                with suppress(OSError):
                    self._strangers.append(Stranger(peer, now + HANDSHAKE_LIMIT))
                if len(self._strangers) > self._most:
                    self._drop(self._strangers[0])
        return connections

    def close(self) -> None:
        """Close the listening socket and the connections without a complete handshake."""
        self._listener.close()
        while self._strangers:
            self._drop(self._strangers[0])

    def _drop(self, stranger: "Stranger") -> None:
        self._strangers.remove(stranger)
        stranger.peer.close()


class Stranger:
    """The server's end of a connection during the handshake.

    Attributes:
        deadline: of the handshake, on the clock of the Listener.
    """

    def __init__(self, peer: socket.socket, deadline: float) -> None:
        self.peer = peer
        self.deadline = deadline
        self._nonce = secrets.token_bytes(NONCE)
        self._received = b""
        peer.setblocking(False)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer.sendall(self._nonce)

    def read(self, key: bytes) -> bytes | None:
        """Read what has arrived; return the key of the session once the other end has proved that it knows `key`.

        Raises:
            OSError: it does not, or has closed the connection.
        """
        try:
            data = self.peer.recv(NONCE + DIGEST - len(self._received))
        except BlockingIOError:
            return None
        if not data:
            raise NotAuthenticated("the other end has closed the connection")
        self._received += data
        if len(self._received) < NONCE + DIGEST:
            return None
        session = session_key(key, self._received[:NONCE], self._nonce)
        if not hmac.compare_digest(self._received[NONCE:], digest(session, b"client")):
            raise NotAuthenticated("the other end does not know the key")
        self.peer.sendall(digest(session, b"server"))
        self.peer.setblocking(True)
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_LIMIT, 0))
        return session


def connect(
    addresses: list[str], port: int, key: bytes, decode: Decoder[M], patience: float = 0.0
) -> TcpConnection[M]:
    """Connect to the first address at which a server answers that knows the key.

    Args:
        decode: of the messages that arrive.
        patience: seconds within which the addresses are tried again, unless all of them refuse: a server of the job
            listens before its clients start, so it is dead.

    Raises:
        ConnectionError: none answers.
    """
    limit = TimeLimit(patience, CONNECT_LIMIT + HANDSHAKE_LIMIT)
    while True:
        refused = 0
        for address in addresses:
            try:
                peer = socket.create_connection((address, port), CONNECT_LIMIT)
            except OSError as error:
                refused += isinstance(error, ConnectionRefusedError)
                continue
            try:
                return TcpConnection(peer, shake_hands(peer, key), "client", "server", decode)
            except OSError:
                peer.close()
        if refused == len(addresses) or not limit.left():
            raise ConnectionError(f"no answer at {', '.join(addresses)}, port {port}")
        time.sleep(RETRY)


def shake_hands(peer: socket.socket, key: bytes) -> bytes:
    """Do the client's part of the handshake; return the key of the session. Raises OSError."""
    deadline = time.monotonic() + HANDSHAKE_LIMIT
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    nonce = secrets.token_bytes(NONCE)
    peer.sendall(nonce)
    session = session_key(key, nonce, read_exactly(peer, NONCE, deadline))
    peer.sendall(digest(session, b"client"))
    if not hmac.compare_digest(read_exactly(peer, DIGEST, deadline), digest(session, b"server")):
        raise NotAuthenticated("the other end does not know the key")
    peer.settimeout(None)
    return session


def read_exactly(peer: socket.socket, size: int, deadline: float) -> bytes:
    """Return `size` bytes; raises OSError if they do not arrive before time.monotonic() reaches the deadline."""
    data = b""
    while len(data) < size:
        peer.settimeout(max(0.001, deadline - time.monotonic()))
        more = peer.recv(size - len(data))
        if not more:
            raise NotAuthenticated("the other end has closed the connection")
        data += more
    return data


def session_key(key: bytes, client: bytes, server: bytes) -> bytes:
    """Return the key of a session from the key of the job and the nonces of both ends."""
    return digest(key, b"session" + client + server)


def digest(key: bytes, content: bytes) -> bytes:
    """Return the HMAC-SHA256."""
    return hmac.digest(key, content, "sha256")


def shortened(reason: str) -> str:
    """Return the beginning of a reason that is too long for a message."""
    return reason if len(reason) <= MAX_REASON else f"{reason[:MAX_REASON]} ..."


def own_addresses() -> list[str]:
    """Return the IPv4 addresses of this machine, loopback last."""
    addresses = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):              # an interface without an address
                reply = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()))
                addresses.append(socket.inet_ntoa(reply[20:24]))
    return sorted(addresses, key=lambda address: address.startswith("127."))
