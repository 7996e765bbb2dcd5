"""Authenticated TCP connections between processes on several machines; both ends know a key.

The handshake is that of multiprocessing.connection: an HMAC of a random challenge, in both directions.  Only then are
messages unpickled.
"""

import fcntl
import socket
import struct
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge

CONNECT_LIMIT = 2.0                              # seconds within which an address has to accept a connection
HANDSHAKE_LIMIT = 5                              # seconds within which the other end has to answer
HANDSHAKE_ERRORS = (OSError, EOFError, ValueError, AssertionError, AuthenticationError)
SIOCGIFADDR = 0x8915                             # linux/sockios.h


def own_addresses() -> list[str]:
    """Return the IPv4 addresses of this machine, loopback last."""
    addresses = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):              # an interface without an address
                reply = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()))
                addresses.append(socket.inet_ntoa(reply[20:24]))
    return sorted(addresses, key=lambda address: address.startswith("127."))


def connect(addresses: list[str], port: int, key: bytes) -> Connection:
    """Connect to the first address at which the other end answers; raises ConnectionError if none does."""
    for address in addresses:
        with suppress(*HANDSHAKE_ERRORS):
            connection = wrap(socket.create_connection((address, port), CONNECT_LIMIT))
            answer_challenge(connection, key)
            deliver_challenge(connection, key)
            return connection
    raise ConnectionError(f"no answer at {', '.join(addresses)}, port {port}")


def accept(peer: socket.socket, key: bytes) -> Connection:
    """Return the Connection over an accepted socket; raises HANDSHAKE_ERRORS if the other end is a stranger."""
    connection = wrap(peer)
    deliver_challenge(connection, key)
    answer_challenge(connection, key)
    return connection


def wrap(peer: socket.socket) -> Connection:
    """Return a Connection over a socket; it raises BlockingIOError if no data comes within HANDSHAKE_LIMIT."""
    peer.setblocking(True)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", HANDSHAKE_LIMIT, 0))
    return Connection(peer.detach())
