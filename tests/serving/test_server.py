"""The listening process: connections that say nothing end, and no more are held than allowed."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import uvicorn

from finetune.errors import UsageError
from finetune.serving import server
from finetune.serving.app import Service, application
from finetune.serving.budget import Limits
from finetune.serving.engine import Engine

Connect = Callable[[], socket.socket]
ASKED = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def connect(classifier) -> Iterator[Connect]:
    """Connections to a server with little patience."""
    limits = Limits(connections=12, reading_seconds=0.5)
    engine = Engine(classifier, images_in_work=limits.images_in_work)
    app = application(Service(classifier, engine, limits))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(server, "IDLE_SECONDS", 0.5)
        with server.listening("127.0.0.1", 0) as listener:
            running = uvicorn.Server(server.settings(app, limits))
            thread = threading.Thread(target=running.run, args=([listener],))
            thread.start()
            yield lambda: socket.create_connection(listener.getsockname(), timeout=20)
            running.should_exit = True
            thread.join()


def rest(connection: socket.socket) -> bytes:
    """All that comes until the other side ends."""
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    return received


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /hea",
        ASKED,
        ASKED + b"\r\n" + ASKED,  # a good request first
        # Refused by its header alone.
        b"POST /predict HTTP/1.1\r\nHost: evil\r\nContent-Length: 1000000\r\n\r\nx",
    ],
    ids=["nothing", "half a line", "half a header", "half a second header", "half a refused body"],
)
def test_who_says_no_more_is_left(connect: Connect, sent: bytes) -> None:
    with closing(connect()) as connection:
        connection.sendall(sent)
        received = rest(connection)  # would time out where the server waits
    assert (b"HTTP/1.1" in received) == (b"\r\n\r\n" in sent)


def test_a_body_that_trickles_in_is_refused_in_time(connect: Connect) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
    with closing(connect()) as connection:
        connection.sendall(head + b"x")
        assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")


def test_a_header_without_an_end_is_refused(connect: Connect) -> None:
    with closing(connect()) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000)
        assert rest(connection).startswith(b"HTTP/1.1 400 ")


def test_more_connections_than_allowed_are_told_so(connect: Connect) -> None:
    held = [connect() for _ in range(16)]
    time.sleep(0.1)
    with closing(held.pop()) as connection:
        connection.sendall(ASKED + b"\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 503 ")
    for connection in held:
        assert rest(connection) == b""
        connection.close()
    with closing(connect()) as connection:
        connection.sendall(ASKED + b"\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_nothing_says_what_runs_here(connect: Connect) -> None:
    with closing(connect()) as connection:
        connection.sendall(ASKED + b"\r\n")
        head = connection.recv(65536).lower()
    assert b"server:" not in head
    assert b"uvicorn" not in head


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.1", False),
        ("example.org", False),
    ],
)
def test_whose_address_it_is(host: str, own: bool) -> None:
    assert server.is_loopback(host) == own


def test_a_port_that_is_taken_is_one_line() -> None:
    with server.listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port}, found that it cannot be done"):
            server.listening("127.0.0.1", port)
    with pytest.raises(UsageError, match="name another --port"):  # nobody's address
        server.listening("192.0.2.1", 0)
