"""The process that listens: its address, its connections, and its end in good order."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from contextlib import suppress

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from finetune.errors import UsageError
from finetune.serving.budget import Limits

HEADER_BYTES = 16 * 1024
IDLE_SECONDS = 15.0  # without a whole request's header, or with an answer that nobody reads


class Connection(H11Protocol):
    """One that ends when it has been idle for long, also in the middle of a header.

    uvicorn itself waits for the first request, and for the rest of a header, without an end.
    """

    _ending: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to count."""
        super().connection_made(transport)
        self._count()

    def data_received(self, data: bytes) -> None:
        """Count while no request is in work."""
        super().data_received(data)
        self._count()

    def on_response_complete(self) -> None:
        """Count from the answer on."""
        self._stop()
        super().on_response_complete()
        self._count()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop to count."""
        self._stop()
        super().connection_lost(exc)

    def _count(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if not idle:
            self._stop()
        elif self._ending is None:
            self._ending = self.loop.call_later(IDLE_SECONDS, self.transport.abort)

    def _stop(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own, which nobody else reaches."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        UsageError: the address is not this machine's, or the port is taken.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"Expected to listen at {host}, port {port}, found that it cannot be done "
            f"({getattr(error, 'strerror', None) or error}); name another --port or --host."
        ) from error


def address_of(listener: socket.socket) -> str:
    """As a browser takes it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def settings(app: ASGIApp, limits: Limits) -> uvicorn.Config:
    """How uvicorn is to serve: HTTP alone, without a word of what runs here."""
    return uvicorn.Config(
        app,
        access_log=False,
        date_header=False,
        h11_max_incomplete_event_size=HEADER_BYTES,
        http=Connection,
        lifespan="off",
        limit_concurrency=limits.connections,
        log_config=None,
        log_level="critical",  # a line for each odd request would be a stranger's to write
        loop="asyncio",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=round(limits.answer_seconds),
        ws="none",
    )


def run(app: ASGIApp, listener: socket.socket, limits: Limits) -> None:
    """Answer until the process is told to end (Ctrl-C, SIGTERM); what is in work is answered."""
    uvicorn.Server(settings(app, limits)).run([listener])
