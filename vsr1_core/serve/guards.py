"""What is refused before a request reaches the API: a foreign Host or Origin, a missing token, a body that is too large
or does not end. Every answer gets headers that let a browser load nothing from elsewhere.

A page of another site can send requests to 127.0.0.1 from a visitor's browser. The Host check stops DNS rebinding, by
which such a site would become the same origin; Origin and Sec-Fetch-Site tell the other ones apart.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vsr1_core.serve.engine import Limits

COOKIE = "vsr1_token"
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@dataclass(frozen=True)
class Access:
    """Who may use the server. token: empty for none. names: the host names by which it is addressed, beside those of
    this machine alone. any_address: whether it may be addressed by any IP address, which no site can take over."""

    token: str = ""
    names: frozenset[str] = field(default_factory=frozenset)
    any_address: bool = False

    def knows_host(self, host: str) -> bool:
        """Whether a `Host` header names this server."""
        name = _host_name(host)
        if name in LOCAL_NAMES or name in map(_host_name, self.names):
            return True
        return self.any_address and _is_address(name)

    def has_token(self, scope: Scope) -> bool:
        """Whether the request carries the token, as a bearer or as the cookie of the page."""
        if not self.token:
            return True
        headers = Headers(scope=scope)
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if kind.lower() == "bearer" else _cookie(headers.get("cookie", ""))
        return hmac.compare_digest(given.encode(), self.token.encode())


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _cookie(header: str) -> str:
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


class Guards:
    """ASGI middleware with all checks. count: called with the method, the status, and the seconds of each request."""

    def __init__(self, app: ASGIApp, access: Access, limits: Limits, count: Callable[[str, int, float], None]) -> None:
        self.app, self.access, self.limits, self.count = app, access, limits, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        begun = asyncio.get_running_loop().time()

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
                self.count(scope["method"], message["status"], asyncio.get_running_loop().time() - begun)
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, answer)
        else:
            await self._pass_on(scope, receive, answer)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self.access.knows_host(hosts[0]):
            return _refused(421, "this server has another name; start it with: vsr1 serve --name NAME")
        if not _is_same_origin(headers, scope):
            return _refused(403, "another site may not use this server")
        if not self.access.has_token(scope):
            return self._enter(scope) or _refused(401, "a token is needed; open the address that `vsr1 serve` printed")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.limits.body_bytes:
            return _refused(413, f"a request may have {self.limits.body_bytes:,} bytes")
        return None

    def _enter(self, scope: Scope) -> Response | None:
        """For the printed address of the page: the token in a cookie, and the same address without it."""
        query = scope["query_string"].decode("latin-1")
        given = parse_qs(query).get("token", [""])[0] if len(query) < 4096 else ""
        if scope["path"] != "/" or not hmac.compare_digest(given.encode(), self.access.token.encode()):
            return None
        entered = RedirectResponse("/", status_code=303)
        entered.set_cookie(COOKIE, self.access.token, httponly=True, samesite="strict")
        return entered

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the app answer; a body that is too long, or that does not come, ends the request."""
        limited = _LimitedBody(receive, self.limits)

        async def watched(message: Message) -> None:
            if limited.failure is None:
                await send(message)
            elif message["type"] == "http.response.start":  # the app's own answer to a body that did not come
                await limited.failure(scope, receive, send)

        await self.app(scope, limited, watched)


def _is_same_origin(headers: Headers, scope: Scope) -> bool:
    """Whether the request comes from our page, from a program, or from a person who opened a link."""
    origin, host = headers.get("origin"), headers.get("host", "")
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        return False
    if headers.get("sec-fetch-site") in (None, "same-origin", "none"):
        return True
    return scope["method"] == "GET" and scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate"


def _refused(status: int, detail: str) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, {"Connection": "close"})


class _LimitedBody:
    """`receive` of a request whose body is counted and has to be complete in time."""

    def __init__(self, receive: Callable[[], Awaitable[MutableMapping[str, Any]]], limits: Limits) -> None:
        self._receive, self._limits = receive, limits
        self._num_bytes, self._is_complete = 0, False
        self.failure: Response | None = None
        """What is answered in place of the app, once the body is known to be bad."""
        self._until = asyncio.get_running_loop().time() + limits.body_s

    async def __call__(self) -> Message:
        if self._is_complete:
            return await self._receive()
        left = self._until - asyncio.get_running_loop().time()
        try:
            message = await asyncio.wait_for(self._receive(), max(left, 0.001))
        except TimeoutError:
            return self._fail(408, f"the request did not end within {self._limits.body_s:g} s")
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > self._limits.body_bytes:
            return self._fail(413, f"a request may have {self._limits.body_bytes:,} bytes")
        self._is_complete = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    def _fail(self, status: int, detail: str) -> Message:
        self.failure, self._is_complete = _refused(status, detail), True
        return {"type": "http.disconnect"}
