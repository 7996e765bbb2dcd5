"""TCP connections: only processes that know the key get one, and strangers cost a limited amount of anything."""

import os
import pickle
import socket
import struct
import threading
import time
from contextlib import contextmanager
from multiprocessing.connection import wait

import pytest

from multigpu.failure.protocol import HEARTBEATS, ORDERS, Heartbeat, Released
from multigpu.messages import MessageError, encode
from multigpu.mpi import tcp

KEY = bytes(range(32))
EXPECTED = 2                                     # connections of the job

GARBAGE = {
    "nothing": b"",
    "text": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 10,
    "a pickle": pickle.dumps(os.system) * 10,
    "a huge length": struct.pack("!I", 2**32 - 1) * 50,
    "a large size of multiprocessing": struct.pack("!iQ", -1, 2**60) * 10,
    "nonces only": bytes(64),
    "one byte": b"x",
}


@pytest.fixture(autouse=True)
def short_limits(monkeypatch):
    monkeypatch.setattr(tcp, "HANDSHAKE_LIMIT", 0.5)


@contextmanager
def serving():
    """Run a Listener in a thread; yield (port, the Listener, the accepted connections)."""
    accepted, end = [], threading.Event()
    listener = tcp.Listener(socket.create_server(("127.0.0.1", 0), backlog=tcp.BACKLOG), KEY, HEARTBEATS, EXPECTED)

    def serve():
        while not end.is_set():
            wait(listener.sockets(), 0.02)
            accepted.extend(listener.accept())

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.sockets()[0].getsockname()[1], listener, accepted
    finally:
        end.set()
        thread.join()
        listener.close()
        for connection in accepted:
            connection.close()


def test_refused_connection_is_not_tried_again():
    """The server of a job listens before its clients start."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=rf"no answer at 127\.0\.0\.1, port {port}"):
        tcp.connect(["127.0.0.1"], port, KEY, ORDERS, patience=60.0)
    assert time.monotonic() - began < 5


def ends(peer, seconds=3.0):
    """Return whether the other end closes the connection."""
    peer.settimeout(seconds)
    try:
        while peer.recv(4096):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def exchange(port, accepted):
    """Connect as a process of the job, and send a message in each direction."""
    with tcp.connect(["127.0.0.1"], port, KEY, ORDERS, patience=5.0) as connection:
        connection.send(Heartbeat(1, 2, "host"))
        deadline = time.monotonic() + 5
        while not accepted and time.monotonic() < deadline:
            time.sleep(0.005)
        assert accepted[-1].recv() == Heartbeat(1, 2, "host")
        accepted[-1].send(Released(0, True))
        assert connection.recv() == Released(0, True)
    with pytest.raises(EOFError):
        accepted[-1].recv()


def test_messages_arrive_in_their_order():
    with serving() as (port, _, accepted), tcp.connect(["127.0.0.1"], port, KEY, ORDERS) as connection:
        sent = [Heartbeat(rank, 2, "x" * 1000 * rank) for rank in range(20)]
        for message in sent:
            connection.send(message)
        while not accepted:
            time.sleep(0.005)
        assert [accepted[0].recv() for _ in sent] == sent
        assert not accepted[0].poll() and not accepted[0].poll(0.01)


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_stranger_is_dropped_within_the_limit(content):
    with serving() as (port, listener, accepted), socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(content)
        exchange(port, accepted)                 # before the stranger is dropped
        assert ends(stranger) and len(accepted) == 1 and not listener._strangers


def test_limit_is_that_of_the_whole_handshake():
    with serving() as (port, _, _), socket.create_connection(("127.0.0.1", port)) as stranger:
        began = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - began < 3:
                stranger.sendall(b"x")
                time.sleep(0.1)
        assert time.monotonic() - began < 2


def test_process_with_another_key_is_refused_by_both_ends():
    with serving() as (port, _, accepted):
        with pytest.raises(ConnectionError, match=f"no answer at 127.0.0.1, port {port}"):
            tcp.connect(["127.0.0.1"], port, bytes(32), ORDERS)
        assert accepted == []
    with socket.create_server(("127.0.0.1", 0)) as server:       # it sends back what it receives
        thread = threading.Thread(target=echo, args=(server,))
        thread.start()
        with pytest.raises(ConnectionError):
            tcp.connect(["127.0.0.1"], server.getsockname()[1], KEY, ORDERS)
        thread.join()


def echo(server):
    peer, _ = server.accept()
    with peer:
        while data := peer.recv(4096):
            peer.sendall(data)


def test_thousand_connections_do_not_disturb(monkeypatch):
    monkeypatch.setattr(tcp, "HANDSHAKE_LIMIT", 60.0)
    strangers = []
    with serving() as (port, listener, accepted):
        most = 0
        for _ in range(1000):
            strangers.append(socket.create_connection(("127.0.0.1", port)))
            most = max(most, len(listener._strangers))
        exchange(port, accepted)
        assert most <= EXPECTED + tcp.STRANGERS + 1          # with one that is being dropped
        for stranger in strangers:
            stranger.close()


@contextmanager
def connected():
    """Yield (client, server) of one connection."""
    with serving() as (port, _, accepted), tcp.connect(["127.0.0.1"], port, KEY, ORDERS) as client:
        while not accepted:
            time.sleep(0.005)
        yield client, accepted[0]


def frame(content, length=None, code=bytes(16)):
    return tcp.HEADER.pack(len(content) if length is None else length, code) + content


def test_length_is_refused_before_the_message_is_read():
    with connected() as (client, server):
        client._peer.sendall(frame(b"x", length=2**32 - 1))
        with pytest.raises(MessageError, match="a message has at most 1048576 bytes, got a length of 4294967295"):
            server.poll(2.0)


def test_forged_changed_and_repeated_messages_are_refused():
    message = encode(Heartbeat(1, 2, "host"))
    for tamper in ("forge", "change", "repeat", "reflect"):
        with connected() as (client, server):
            good = frame(message, code=client._code("client", 0, message))
            wrong = {
                "forge": frame(message), "change": good.replace(b"host", b"most"), "repeat": good + good,
                "reflect": frame(message, code=client._code("server", 0, message)),
            }[tamper]
            client._peer.sendall(wrong)
            if tamper == "repeat":
                assert server.recv() == Heartbeat(1, 2, "host")
            with pytest.raises(MessageError, match="the HMAC of a message is wrong"):
                server.poll(2.0)


def test_half_a_message_does_not_block():
    with connected() as (client, server):
        message = encode(Heartbeat(1, 2, "host"))
        whole = frame(message, code=client._code("client", 0, message))
        for byte in whole[:-1]:
            client._peer.sendall(bytes([byte]))
        assert not server.poll(0.1)
        client._peer.sendall(whole[-1:])
        assert server.recv() == Heartbeat(1, 2, "host")
