"""Who may ask, and what goes out: checked around every route, so that none can forget it.

- Host: on this machine's own address only its own names count, so that no page on the web can
  reach the server by a name of its own (DNS rebinding).
- Origin: what changes or costs something is taken from the server's own page, or from a program,
  never from another page (CSRF).
- Token: compared in constant time; page and health check are public.
- Answers: JSON with one sentence; what went wrong inside is written on standard error alone.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import sys

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune.serving.budget import Busy

OWN_NAMES = ("127.0.0.1", "localhost", "[::1]")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class JsonResponse(Response):
    """Any text in JSON, also names that are no UTF-8."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        """In ASCII."""
        return json.dumps(content, allow_nan=False).encode("ascii")


def refusal(error: HTTPException) -> Response:
    """One sentence on why there is no answer."""
    return JsonResponse({"error": error.detail}, error.status_code, dict(error.headers or {}))


class Guard:
    """Wraps an application.

    Args:
        app: what answers.
        token: without which nothing but public paths is answered; None: nobody is asked.
        own_names_only: whether the server is on this machine's own address.
        public: paths for which no token is needed.
        seconds: longest that a request may take.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None,
        own_names_only: bool,
        public: frozenset[str],
        seconds: float,
    ) -> None:
        self.app = app
        self.token = token
        self.own_names_only = own_names_only
        self.public = public
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, in time, whatever happens."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def send_guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            self._check(Request(scope))
            async with asyncio.timeout(self.seconds):
                await self.app(scope, receive, send_guarded)
        except ClientDisconnect:
            return
        except Exception as error:
            if started:  # a connection that breaks off says so
                raise
            await refusal(_told(error, self.seconds))(scope, receive, send_guarded)

    def _check(self, request: Request) -> None:
        host = request.headers.get("host", "").lower()
        if self.own_names_only and re.sub(r":\d+$", "", host) not in OWN_NAMES:
            raise HTTPException(421, f"Expected a host out of {', '.join(OWN_NAMES)}.")
        if request.method not in ("GET", "HEAD"):
            origin = request.headers.get("origin")
            site = request.headers.get("sec-fetch-site", "none")
            other = origin is not None and origin.partition("://")[2].lower() != host
            if other or site not in ("same-origin", "none"):
                raise HTTPException(403, "Expected a request of this server's own page.")
        if self.token is not None and request.url.path not in self.public:
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not secrets.compare_digest(given.encode(), self.token.encode()):
                raise HTTPException(
                    401,
                    "Expected the server's token as `Authorization: Bearer TOKEN`.",
                    {"WWW-Authenticate": "Bearer"},
                )


def _told(error: Exception, seconds: float) -> HTTPException:
    match error:
        case HTTPException():
            return error
        case Busy():
            again = {"Retry-After": "1"}
            return HTTPException(503, "Too much is in work at the moment; try again.", again)
        case TimeoutError():
            return HTTPException(504, f"Expected an answer in {seconds:.0f} s, found none; retry.")
    print(f"finetune: a request failed ({type(error).__name__}: {error})", file=sys.stderr)
    return HTTPException(500, "The server failed at this; its owner finds the reason printed.")
