"""One paid request to an OpenAI-compatible server, and the journal of what was paid for.

A reply that came is in the journal, durable, before anything is made of it: it is never paid for twice, in this process
or in a later one. What did not come is named by what is known of it (RELIABILITY: faults 12 to 14).
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spannerlm.errors import InputError, LedgerError
from spannerlm.http import RETRY_S, Usage, api_key, checked_price, checked_seconds, checked_url, hidden, seconds_until
from spannerlm.records import Later, Unknown
from spannerlm.rewards import Raised

if TYPE_CHECKING:
    import httpx

LARGEST_REPLY = 1 << 20
"""Bytes of one reply that are read at most."""


@dataclass(frozen=True)
class Replied:
    """A reply that was paid for."""

    content: str
    """What the model said, in a form that can be used."""


class Journal:
    """Replies by idempotency key; lines of JSON, each fsynced. Without a file they are kept for this process alone."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._lock = path, threading.Lock()
        self._replies: dict[str, Replied] = {}
        self.usage = Usage()
        if path is not None and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        whole, _, torn = path.read_bytes().rpartition(b"\n")
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                self._enter(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{path}:{number}: expected a line of a judge's journal: choose another file"
                ) from error
        if torn:  # cut off while it was written: its reply was never used
            with open(path, "r+b") as file:
                file.truncate(len(whole) + 1 if whole else 0)

    def _enter(self, row: Mapping[str, Any]) -> None:
        self.usage = self.usage.plus(int(row["prompt_tokens"]), int(row["completion_tokens"]), float(row["cost"]))
        if row["content"] is not None:
            self._replies[row["key"]] = Replied(row["content"])

    def known(self, key: str) -> Replied | None:
        """The usable reply that came for this key; None where none did."""
        return self._replies.get(key)

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep a reply, durable when this returns. Raises `LedgerError` where the disk does not take it."""
        with self._lock:
            if self._path is not None:
                try:
                    with open(self._path, "ab") as file:
                        file.write(json.dumps(row).encode("ascii") + b"\n")
                        file.flush()
                        os.fsync(file.fileno())
                except OSError as error:
                    raise LedgerError(f"{self._path}: could not be written ({error.strerror}): make room") from error
            self._enter(row)


class Server:
    """Chat completions of one model behind ``base_url`` (…/v1). Never retries: that is the run's decision."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key_env: str | None,
        timeout_s: float,
        price: tuple[float, float],
        journal: Journal,
    ) -> None:
        """``key_env``: the environment variable with the API key; None: no key. ``price``: per 1,000 prompt and
        completion tokens. Raises `InputError` where the URL holds a secret, the variable is empty, or httpx missing."""
        self._url = checked_url(base_url) + "/chat/completions"
        self._timeout_s, self._price = checked_seconds(timeout_s), checked_price(price)
        try:
            import httpx
        except ImportError as error:
            raise InputError("judge: expected the package httpx, found none: pip install 'spannerlm[serve]'") from error
        self._model, self._key_env, self.journal = model, key_env, journal
        api_key(key_env)
        # A kept connection may be closed by the server just as it is used again: an outcome in doubt for nothing.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._client = httpx.Client(timeout=timeout_s, limits=limits)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(
        self, key: str, body: Mapping[str, Any], usable: Callable[[str], bool]
    ) -> Replied | Later | Unknown | Raised:
        """The reply to one request of this idempotency key; a usable one that is there already costs nothing."""
        known = self.journal.known(key)
        if known is not None:
            return known
        import httpx

        secret = api_key(self._key_env)
        headers = {"Idempotency-Key": key, "Content-Type": "application/json", "Accept-Encoding": "identity"}
        headers |= {"Authorization": f"Bearer {secret}"} if secret else {}
        data = json.dumps({"model": self._model, **body}).encode("ascii")
        received = bytearray()
        try:
            with self._client.stream("POST", self._url, content=data, headers=headers) as response:
                self._receive(response, received)
                status, after = response.status_code, response.headers.get("Retry-After")
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            return Later(RETRY_S, f"no connection to the judge ({type(error).__name__})")
        except httpx.HTTPError as error:
            why = f"the judge's reply was cut off ({type(error).__name__}: {error})"
            return Unknown(hidden(why.encode(), secret).decode(), hidden(bytes(received), secret))
        raw = hidden(bytes(received), secret)
        if status == 429 or (status == 503 and after is not None):
            return Later(seconds_until(after), f"the judge answered {status}")
        if 300 <= status < 500:
            return Raised(f"the judge refused with {status}: {raw[:200].decode('utf-8', 'replace')}")
        if status != 200:
            return Unknown(f"the judge answered {status}", raw)
        return self._paid(key, raw, usable)

    def _receive(self, response: httpx.Response, received: bytearray) -> None:
        """Read the body, also what comes before it breaks off, within the time and size that are allowed."""
        import httpx

        until = time.monotonic() + self._timeout_s
        for part in response.iter_raw():
            received += part
            if len(received) > LARGEST_REPLY:
                raise httpx.ReadError(f"more than {LARGEST_REPLY} bytes")
            if time.monotonic() > until:
                raise httpx.ReadTimeout(f"not complete within {self._timeout_s:g} s")

    def _paid(self, key: str, raw: bytes, usable: Callable[[str], bool]) -> Replied | Unknown:
        """The reply of a request that succeeded, once it is in the journal."""
        content, tokens = _parsed(raw)
        why = "is no chat completion" if content is None else f"is not what was asked for: {content[:80]!r}"
        content = content if content is not None and usable(content) else None
        cost = sum(n * price for n, price in zip(tokens, self._price, strict=True)) / 1000.0
        row = {"key": key, "model": self._model, "prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
        self.journal.add({**row, "cost": cost, "content": content, "raw": raw.hex()})
        return Unknown(f"the judge's reply {why}", raw) if content is None else Replied(content)


def _parsed(raw: bytes) -> tuple[str | None, tuple[int, int]]:
    """What the model said, None where that cannot be read, and the tokens of prompt and completion."""
    try:
        reply = json.loads(raw)
        usage = reply.get("usage") or {}
        tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        content = reply["choices"][0]["message"]["content"]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None, (0, 0)
    return (content if isinstance(content, str) else None), tokens
