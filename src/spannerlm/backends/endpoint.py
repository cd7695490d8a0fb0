"""Requests to a model's server: many at once, sent again where that may help, and never paid for twice."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spannerlm.backends.spool import Spool
from spannerlm.backends.wire import Reply, Request, paid, parsed
from spannerlm.errors import InputError, ModelError
from spannerlm.http import api_key, checked_price, checked_seconds, checked_url, hidden, seconds_until

if TYPE_CHECKING:
    import httpx

LARGEST_REPLY = 2**26
"""Bytes of one reply that are read at most."""
LONGEST_WAIT_S = 60.0
"""Of one wait, whatever a server asks for."""
FIRST_WAIT_S = 0.5
"""After the first failure; twice as long after each one more."""
AGAIN = {408, 409, 425, 429}
"""Statuses below 500 after which the same request may succeed."""
SHOWN = 300
"""Characters of a server's reply that an error shows."""


class Refused(ModelError):
    """A server said no, or nothing that can be used; ``status`` and ``said`` are its last reply's, 0 without one."""

    def __init__(self, message: str, status: int = 0, said: str = "") -> None:
        super().__init__(message)
        self.status, self.said = status, said


class Endpoint:
    """One model's server behind ``base_url`` (…/v1).

    A request is sent again, ``retries`` times at most and later each time, after 429 and 5xx (when Retry-After says), a
    connection that failed or broke, ``timeout_s`` seconds without the whole reply, and a reply that is not what was
    asked for. What was under way when another request failed for good is waited for and kept in the journal.
    `InputError` for wrong settings or an empty ``key_env``; the key is read at each call and stored nowhere.
    """

    def __init__(
        self,
        base_url: str,
        *,
        key_env: str | None,
        timeout_s: float,
        retries: int,
        concurrency: int,
        price: Sequence[float],
        journal: Path | None,
    ) -> None:
        self.url, self.timeout_s, self._price = checked_url(base_url), checked_seconds(timeout_s), checked_price(price)
        for name, value, least in (("retries", retries, 0), ("concurrency", concurrency, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name}: expected a whole number of at least {least}, got {value!r}")
        api_key(key_env)
        try:
            import httpx
        except ImportError as error:
            raise ModelError(
                "a model behind a server needs the package httpx, which is not installed; "
                "run: pip install 'spannerlm[serve]'"
            ) from error
        self._key_env, self.retries, self.concurrency = key_env, retries, concurrency
        # Reading the certificates takes time; without them nothing is trusted, and plain HTTP needs none.
        secure = self.url.startswith("https:")
        self._ssl = httpx.create_ssl_context() if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._jitter = np.random.default_rng()  # only of waits: nothing that is drawn depends on it
        self.spool = Spool(journal)

    def owner(self) -> str | None:
        """Who serves, as the list of models says (``vllm``, ``sglang``, ...); None where it does not."""
        try:
            status, _, raw = self._run(self._listed())
            found = json.loads(raw)["data"][0]["owned_by"] if status == 200 else None
        except (ModelError, ValueError, LookupError, TypeError, RecursionError):
            return None  # not every server has a list, and nothing but a setting's default depends on it
        return found if isinstance(found, str) else None

    def send(self, requests: Sequence[Request], retries: int | None = None) -> list[Reply]:
        """[k] the replies, ``concurrency`` requests at once; what the journal holds is not sent.

        `Refused`, a `ModelError`, where one did not come in the end; the others that came are in the journal.
        """
        self.spool.shrink()
        try:
            replies: list[Reply] = self._run(self._all(requests, self.retries if retries is None else retries))
        finally:
            self.spool.sync()
        return replies

    def close(self) -> None:
        """Close the journal."""
        self.spool.close()

    @staticmethod
    def _run(work: Any) -> Any:
        """The coroutine's result, also where the caller has an event loop of its own, as notebooks have."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(work)
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, work).result()

    def _client(self) -> httpx.AsyncClient:
        import httpx

        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.concurrency)
        return httpx.AsyncClient(timeout=self.timeout_s, limits=limits, verify=self._ssl)

    async def _listed(self) -> tuple[int, str | None, bytes]:
        async with self._client() as client:
            return await self._received(client, "GET", "/models", None, api_key(self._key_env))

    async def _all(self, requests: Sequence[Request], retries: int) -> list[Reply]:
        replies: dict[int, Reply] = {}
        failures: list[Refused] = []
        waiting = iter(enumerate(requests))

        async def work() -> None:
            for i, request in waiting:
                if failures:
                    return
                try:
                    replies[i] = await self._one(client, request, retries, failures)
                except Refused as error:
                    failures.append(error)

        async with self._client() as client:
            await asyncio.gather(*(work() for _ in range(min(self.concurrency, len(requests)))))
        if failures:
            raise failures[0]
        return [replies[i] for i in range(len(requests))]

    async def _one(
        self, client: httpx.AsyncClient, request: Request, retries: int, failures: Sequence[Refused]
    ) -> Reply:
        key = request.key(self.url)
        known = self.spool.take(key)
        if known is not None:
            return Reply.of(known)
        for attempt in range(retries + 1):
            try:
                return await self._sent(client, request, key)
            except _Again as again:
                if attempt == retries or failures:
                    times = f"after {attempt + 1} attempts" if attempt else "at once"
                    raise Refused(
                        f"{self.url}{request.path}: gave up {times}: {again}: see that the server runs, then resume",
                        again.status,
                    ) from again
                wait = FIRST_WAIT_S * 2.0**attempt * self._jitter.uniform(0.5, 1.5)
                self.spool.retried()
                await asyncio.sleep(min(LONGEST_WAIT_S, max(wait, again.seconds)))
        raise AssertionError("the last attempt returns or raises")

    async def _sent(self, client: httpx.AsyncClient, request: Request, key: str) -> Reply:
        """The reply of one attempt, in the journal. Raises `_Again` where another attempt may help."""
        secret = api_key(self._key_env)
        status, after, raw = await self._received(client, "POST", request.path, request.body, secret)
        if status in AGAIN or status >= 500:
            seconds = seconds_until(after) if after is not None else 0.0
            raise _Again(f"the server answered {status}: {_shown(raw)}", seconds, status)
        if status != 200:
            hint = ": put the right key into key_env" if status in (401, 403) else ""
            raise Refused(
                f"{self.url}{request.path}: refused with {status}: {_shown(raw)}{hint}",
                status,
                raw.decode("utf-8", "replace"),
            )
        reply = parsed(raw, request)
        if isinstance(reply, str):
            self.spool.lost(*self._bill(*paid(raw)))
            raise _Again(f"the server's reply {reply}: {_shown(raw)}", status=status)
        self.spool.add(key, reply.row(), *self._bill(reply.prompt_tokens or 0, reply.completion_tokens or 0))
        return reply

    def _bill(self, prompt: int, completion: int) -> tuple[int, int, float]:
        """The tokens and what they cost."""
        return prompt, completion, (prompt * self._price[0] + completion * self._price[1]) / 1000.0

    async def _received(
        self, client: httpx.AsyncClient, method: str, path: str, body: Any, secret: str
    ) -> tuple[int, str | None, bytes]:
        """Status, Retry-After and the body without the key, all within `timeout_s` seconds."""
        import httpx

        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {secret}"} if secret else {}
        content = None if body is None else json.dumps(body).encode("ascii")
        received = bytearray()
        try:
            async with (
                asyncio.timeout(self.timeout_s),
                client.stream(method, self.url + path, content=content, headers=headers) as response,
            ):
                async for part in response.aiter_raw():
                    received += part
                    if len(received) > LARGEST_REPLY:
                        raise Refused(f"{self.url}{path}: the reply is larger than {LARGEST_REPLY} bytes")
        except TimeoutError as error:
            raise _Again(f"the reply was not complete within {self.timeout_s:g} s") from error
        except httpx.HTTPError as error:
            why = hidden(f"{type(error).__name__} {error}".encode(), secret).decode()
            raise _Again(f"no whole reply came ({why.strip()})") from error
        return response.status_code, response.headers.get("Retry-After"), hidden(bytes(received), secret)


class _Again(ModelError):
    """An attempt that failed in a way that the next one may not."""

    def __init__(self, message: str, seconds: float = 0.0, status: int = 0) -> None:
        super().__init__(message)
        self.seconds, self.status = seconds, status


def _shown(raw: bytes) -> str:
    """The beginning of a server's reply."""
    text = raw[: 4 * SHOWN].decode("utf-8", "replace")
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "…")
