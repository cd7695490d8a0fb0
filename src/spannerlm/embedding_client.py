"""Requests to an embeddings endpoint: several at once, sent again where that may help, each text paid for once."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spannerlm.errors import InputError, ModelError, SpannerError
from spannerlm.http import Usage, api_key, checked_url, hidden, seconds_until
from spannerlm.records import FloatArray

if TYPE_CHECKING:
    import httpx

LARGEST_REPLY = 2**26
"""Bytes of one reply that are read at most."""
KEPT = 2**23
"""Numbers of the vectors that a process keeps at most, so that a text is paid for once."""
FIRST_WAIT_S = 0.5
"""After the first failure; twice as long after each one more."""
LONGEST_WAIT_S = 60.0
"""Of one wait, whatever a server asks for."""
LARGEST = 1e15
"""Bound on the numbers of a vector: its norm and its float32 values are then finite."""
AGAIN = {408, 409, 425, 429}
"""Statuses below 500 after which the same request may succeed."""


@dataclass(frozen=True)
class Settings:
    """Whom to ask, and how."""

    url: str
    model: str
    key_env: str | None
    width: int | None
    """D, which the vectors must have; None: that of the first one."""
    batch_size: int
    concurrency: int
    timeout_s: float
    retries: int


def address(url: str) -> str:
    """The URL without a slash at its end. Raises `InputError` where it is none, or holds a secret."""
    if not isinstance(url, str):
        raise InputError(f"features: expected an address for url, got {url!r}")
    try:
        return checked_url(url)
    except ValueError as error:
        raise InputError(f"features: {str(error).replace('base_url', 'url')}") from error


class Client:
    """What is under way and what is kept, as ``features`` [n, d] of vectors [n, D]. Several threads may call it.

    `ModelError` where httpx is missing.
    """

    def __init__(self, about: Settings, features: Callable[[FloatArray], FloatArray], dim: int) -> None:
        try:
            import httpx
        except ImportError as error:
            raise ModelError(
                "features from a server need the package httpx, which is not installed; "
                "run: pip install 'spannerlm[serve]'"
            ) from error
        self._features, self._dim = features, dim
        self._about, self._url = about, address(about.url) + "/embeddings"
        # Reading the certificates takes time; without them nothing is trusted, and plain HTTP needs none.
        secure = self._url.startswith("https:")
        self._ssl = httpx.create_ssl_context() if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._kept: OrderedDict[str, FloatArray] = OrderedDict()
        self._lock, self._width, self.usage = threading.Lock(), about.width, Usage()
        self._jitter = np.random.default_rng()  # only of waits: no feature depends on it

    def rows(self, texts: Sequence[str]) -> list[FloatArray]:
        """[n] features [d] of each text, zero for a blank one.

        `ModelError` where something did not come in the end, or was not one finite vector per text; `InputError` where
        the key's variable is empty. What came for other texts is kept.
        """
        found = {text: np.zeros(self._dim) for text in texts if not text.strip()}
        with self._lock:
            for text in dict.fromkeys(texts):
                if text in self._kept:
                    self._kept.move_to_end(text)
                    found[text] = self._kept[text]
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        if missing:
            found.update(self._asked(missing))
        return [found[text] for text in texts]

    def _asked(self, texts: Sequence[str]) -> dict[str, FloatArray]:
        """Features of texts, by text, once all requests have come back; those that came are kept whatever fails."""
        import httpx

        size, failed = self._about.batch_size, threading.Event()
        parts = [texts[start : start + size] for start in range(0, len(texts), size)]
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self._about.concurrency)
        with (
            httpx.Client(timeout=self._about.timeout_s, limits=limits, verify=self._ssl) as client,
            ThreadPoolExecutor(min(self._about.concurrency, len(parts))) as pool,
        ):
            replies = list(pool.map(lambda part: self._part(client, part, failed), parts))
        if failures := [reply for reply in replies if isinstance(reply, SpannerError)]:
            raise failures[0]
        return {text: row for reply in replies if isinstance(reply, dict) for text, row in reply.items()}

    def _part(
        self, client: httpx.Client, texts: Sequence[str], failed: threading.Event
    ) -> dict[str, FloatArray] | SpannerError | None:
        """The features, or the error that ends it all; None where another request has failed."""
        if failed.is_set():
            return None
        try:
            vectors = self._received(client, texts, failed)
            if vectors is None:
                return None
            found = dict(zip(texts, self._features(vectors), strict=True))
        except SpannerError as error:
            failed.set()
            return error
        with self._lock:
            self._kept.update(found)
            while len(self._kept) > max(1, KEPT // self._dim):
                self._kept.popitem(last=False)
        return found

    def _received(self, client: httpx.Client, texts: Sequence[str], failed: threading.Event) -> FloatArray | None:
        """[n, D] vectors, after as many attempts as are allowed; None where another request failed meanwhile."""
        for attempt in range(self._about.retries + 1):
            try:
                return self._once(client, texts)
            except _Again as again:
                if attempt == self._about.retries:
                    times = f"after {attempt + 1} attempts" if attempt else "at once"
                    raise ModelError(f"{self._url}: gave up {times}: {again}: see that the server runs") from again
                with self._lock:
                    wait = FIRST_WAIT_S * 2.0**attempt * self._jitter.uniform(0.5, 1.5)
                if failed.wait(min(LONGEST_WAIT_S, max(wait, again.seconds))):
                    return None
        raise AssertionError("the last attempt returns or raises")

    def _once(self, client: httpx.Client, texts: Sequence[str]) -> FloatArray:
        """[n, D] vectors of one request. Raises `_Again` where another may help."""
        secret = api_key(self._about.key_env)
        status, after, raw = self._sent(client, texts, secret)
        if status in AGAIN or status >= 500:
            seconds = 0.0 if after is None else seconds_until(after)
            raise _Again(f"the server answered {status}: {_shown(raw)}", seconds)
        if status != 200:
            hint = ": put the right key into key_env" if status in (401, 403) else ""
            raise ModelError(f"{self._url}: refused with {status}: {_shown(raw)}{hint}")
        try:
            reply = json.loads(raw)
        except (ValueError, RecursionError):
            reply = None
        usage = reply.get("usage") if isinstance(reply, dict) else None
        tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else 0
        with self._lock:
            self.usage = self.usage.plus(tokens if isinstance(tokens, int) else 0, 0, 0.0)
        if reply is None:
            raise _Again(f"the server's reply is no JSON: {_shown(raw)}")
        vectors = _parsed(reply, len(texts))
        if isinstance(vectors, str):
            raise ModelError(f"{self._url}: {vectors}: {_shown(raw)}: is {self._about.model!r} a model of embeddings?")
        with self._lock:
            self._width = self._width or vectors.shape[1]
        if vectors.shape[1] != self._width:
            raise ModelError(
                f"{self._url}: expected vectors of width {self._width}, got {vectors.shape[1]}: is this the same model?"
            )
        return vectors

    def _sent(self, client: httpx.Client, texts: Sequence[str], secret: str) -> tuple[int, str | None, bytes]:
        """Status, Retry-After and the body without the key."""
        import httpx

        headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {secret}"} if secret else {}
        body = {"model": self._about.model, "input": list(texts), "encoding_format": "float"}
        received, until = bytearray(), time.monotonic() + self._about.timeout_s
        try:
            with client.stream("POST", self._url, content=json.dumps(body).encode("ascii"), headers=headers) as reply:
                for part in reply.iter_raw():
                    received += part
                    if len(received) > LARGEST_REPLY:
                        raise ModelError(f"{self._url}: the reply is larger than {LARGEST_REPLY} bytes")
                    if time.monotonic() > until:
                        raise _Again(f"the reply was not complete within {self._about.timeout_s:g} s")
        except httpx.HTTPError as error:
            why = hidden(f"{type(error).__name__} {error}".encode(), secret).decode()
            raise _Again(f"no whole reply came ({why.strip()})") from error
        return reply.status_code, reply.headers.get("Retry-After"), hidden(bytes(received), secret)


class _Again(ModelError):
    """An attempt that failed in a way that the next one may not."""

    def __init__(self, message: str, seconds: float = 0.0) -> None:
        super().__init__(message)
        self.seconds = seconds


def _parsed(reply: Any, n: int) -> FloatArray | str:
    """[n, D] the vectors in the order of the texts; in words what is wrong, where something is."""
    data = reply.get("data") if isinstance(reply, dict) else None
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
        return "expected a list of embeddings in the OpenAI form, got another reply"
    if len(data) != n:
        return f"expected {n} embeddings, one per text, got {len(data)}"
    places = [item.get("index") for item in data]
    if not all(type(place) is int for place in places) or sorted(places) != list(range(n)):
        return f"expected each index from 0 to {n - 1} once, got {places[:9]}"
    rows = [item.get("embedding") for item in sorted(data, key=lambda item: int(item["index"]))]
    try:
        vectors = np.array(rows, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return "expected lists of numbers, all of one length, as embeddings"
    if vectors.ndim != 2 or vectors.shape[1] == 0:
        return f"expected a list of numbers per text, got shape {list(vectors.shape)}"
    if not (np.abs(vectors) < LARGEST).all():
        return "expected finite numbers, got others"
    return vectors


def _shown(raw: bytes) -> str:
    """The beginning of a server's reply."""
    text = raw[:1200].decode("utf-8", "replace")
    return repr(text if len(text) <= 300 else text[:300] + "…")
