"""What stands before every route: host, origin, token, limits, headers (RELIABILITY, faults 19, 20, 23 and 24)."""

from __future__ import annotations

import hmac
import importlib.util
import ipaddress
import time
from collections.abc import Callable, Mapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from spannerlm.errors import InputError

COOKIE = "spannerlm"
"""Name of the cookie that a token in an address is exchanged for."""
BODY_LIMIT = 64 * 2**10
"""Bytes of a request's body at most."""
BURST, PER_SECOND = 200.0, 50.0
"""Requests of one client at once, and how many come back each second: far beyond a rater's pace."""
CLIENTS = 10_000
"""Clients whose pace is remembered."""
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}

Scope = Mapping[str, Any]
Refusal = Callable[[int, str], tuple[bytes, bytes]]
"""(status, why) -> body and content type of what is refused before any route."""


def check_bind(host: str, token: str | None) -> None:
    """`InputError` where a server that others can reach would have no token."""
    if token is None and not is_loopback(host):
        raise InputError(
            f"host: expected a token where the page is bound to {host}, beyond this machine; got none: set "
            "SPANNERLM_TOKEN, or leave --host out"
        )
    if token is not None and len(token) < 16:
        raise InputError("token: expected at least 16 characters, got fewer: try `openssl rand -hex 16`")
    if token is not None and not all("!" <= character <= "~" for character in token):
        raise InputError("token: expected printable ASCII without spaces, got others: try `openssl rand -hex 16`")


def check_packages(command: str) -> None:
    """`InputError` where what serves pages is not installed."""
    for name in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(name) is None:
            raise InputError(f"{command}: expected the package {name}, found none: pip install 'spannerlm[serve]'")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware. ``tokens`` maps a token to the role it gives, ``rater`` or ``owner``; empty: no token is set.

    ``hosts``: names, with and without port, under which it answers, so that no page elsewhere can have its own name
    lead here; None, any: for tokens that no browser sends by itself.
    ``refusal`` words what is answered here; without ``cookies`` only the Authorization header carries a token.
    """

    def __init__(
        self,
        app: Callable[..., Any],
        *,
        hosts: frozenset[str] | None,
        tokens: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
        body_limit: int = BODY_LIMIT,
        refusal: Refusal | None = None,
        cookies: bool = True,
    ) -> None:
        self.app, self.hosts, self.tokens, self.clock = app, hosts, dict(tokens), clock
        self.body_limit, self.refusal, self.cookies = body_limit, refusal or _plain, cookies
        self._pace: dict[str, tuple[float, float]] = {}

    async def __call__(self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # no web sockets
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *own]}
            await send(message)

        async def refuse(status: int, why: str) -> None:
            await _answer(guarded, status, *self.refusal(status, why))

        refused = self._refused(scope, headers)
        if refused is not None:
            await refuse(*refused)
            return
        path, exchanged = scope["path"], self._exchanged(scope) if self.cookies else None
        if exchanged is not None:
            cookie = f"{COOKIE}={exchanged}; HttpOnly; SameSite=Strict; Path=/"
            await _answer(
                guarded,
                303,
                b"",
                b"text/plain",
                [(b"location", path.encode("latin-1")), (b"set-cookie", cookie.encode())],
            )
            return
        role = self._role(headers)
        if role is None and path != "/health":
            await refuse(401, "a token is needed: ask whoever runs this server for it")
            return
        if path.startswith("/owner") and role != "owner":
            await refuse(401, "this page is its owner's")
            return
        body = await _body(receive, self.body_limit)
        if body is None:
            await refuse(413, f"expected a body of at most {self.body_limit} bytes")
            return
        await self.app(scope, _replayed(body, receive), guarded)

    def _refused(self, scope: Scope, headers: Mapping[str, str]) -> tuple[int, str] | None:
        client = (scope.get("client") or ("", 0))[0]
        if not self._in_time(client):
            return 429, "too many requests: wait a second"
        host = headers.get("host", "")
        if self.hosts is not None and host.lower() not in self.hosts:
            return 400, f"expected the host that this page runs on, got {host!r:.80}: SPANNERLM_HOSTS may name others"
        if scope["method"] not in ("GET", "HEAD"):
            origin, site = headers.get("origin"), headers.get("sec-fetch-site")
            if origin is not None and _netloc(origin) != host.lower():
                return 403, "expected a request of this page, got one of another"
            if site is not None and site not in ("same-origin", "none"):
                return 403, "expected a request of this page, got one of another"
            if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                return 415, "expected application/json"
        return None

    def _in_time(self, client: str) -> bool:
        """A bucket of tokens per client."""
        now = self.clock()
        left, then = self._pace.get(client, (BURST, now))
        left = min(BURST, left + (now - then) * PER_SECOND)
        if len(self._pace) > CLIENTS:
            self._pace.clear()
        self._pace[client] = (max(left - 1.0, 0.0), now)
        return left >= 1.0

    def _exchanged(self, scope: Scope) -> str | None:
        """The token in an address, where it is one that is known: it goes into a cookie and out of the address."""
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [])
        if not given or scope["method"] != "GET":
            return None
        return next((token for token in self.tokens if hmac.compare_digest(token.encode(), given[0].encode())), None)

    def _role(self, headers: Mapping[str, str]) -> str | None:
        if not self.tokens:
            return "owner"
        kind, _, given = headers.get("authorization", "").partition(" ")
        known = [given.strip()] if kind.lower() == "bearer" else []
        try:
            cookie = SimpleCookie(headers.get("cookie", "") if self.cookies else "").get(COOKIE)
        except CookieError:
            cookie = None
        known += [] if cookie is None else [cookie.value]
        roles = [
            role
            for token, role in self.tokens.items()
            if any(hmac.compare_digest(token.encode(), one.encode("utf-8", "replace")) for one in known)
        ]
        return "owner" if "owner" in roles else roles[0] if roles else None


def _netloc(origin: str) -> str | None:
    """Host and port of an origin; None where it is no address."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _plain(_: int, text: str) -> tuple[bytes, bytes]:
    return text.encode(), b"text/plain; charset=utf-8"


async def _answer(
    send: Any, status: int, body: bytes, kind: bytes, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    head = [(b"content-type", kind), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def _body(receive: Any, limit: int) -> bytes | None:
    """The whole body; None where it is too long."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return body
        part: bytes = message.get("body", b"")
        body += part
        if len(body) > limit:
            return None
        if not message.get("more_body", False):
            return body


def _replayed(body: bytes, receive: Callable[..., Any]) -> Callable[[], Any]:
    """The body once more, and then whatever the client does."""
    sent = False

    async def again() -> Any:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
