"""What every client of a paid server shares: a checked address, a key that is kept nowhere, how long to wait."""

from __future__ import annotations

import datetime
import email.utils
import math
import os
import re
from dataclasses import astuple, dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from spannerlm.errors import InputError

HIDDEN = b"***"
SECRET = 12
"""Characters of a key from which on it is a secret."""
RETRY_S = 1.0
"""When to come back where the server does not say."""


@dataclass(frozen=True)
class Usage:
    """What a server was asked for so far, the journal's earlier processes included."""

    requests: int = 0
    """Replies that came, whatever they said."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    """In the currency of the price; tokens that a server did not count are not in it."""

    def plus(self, prompt_tokens: int, completion_tokens: int, cost: float) -> Usage:
        """With one reply more."""
        return Usage(
            self.requests + 1,
            self.prompt_tokens + prompt_tokens,
            self.completion_tokens + completion_tokens,
            self.cost + cost,
        )

    def __add__(self, other: Usage) -> Usage:
        """What two servers were asked for."""
        return Usage(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def checked_url(base_url: str) -> str:
    """The address without a slash at its end. Raises `InputError` where it is none, or holds a secret."""
    if not is_address(base_url):
        raise InputError(f"base_url: expected http://... or https://..., got {base_url!r}")
    parts = urlsplit(base_url)
    if parts.username is not None or parts.password is not None or parts.query:
        raise InputError("base_url: expected no password and no query in it, got one: put the key into key_env")
    return base_url.rstrip("/")


def is_address(url: str) -> bool:
    """Whether a text is the address of a server."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, brackets that do not close
        return False


def checked_seconds(timeout_s: float) -> float:
    """The limit. Raises `InputError` unless it is a positive number."""
    if isinstance(timeout_s, bool) or not 0.0 < timeout_s < math.inf:
        raise InputError(f"timeout_s: expected a positive number of seconds, got {timeout_s!r}")
    return float(timeout_s)


def checked_price(price: Any) -> tuple[float, float]:
    """Prices of 1,000 tokens, of prompt and completion. Raises `InputError` unless they are two."""
    if len(price) != 2 or not all(0.0 <= part < math.inf for part in price):
        raise InputError(f"price: expected two prices per 1,000 tokens, prompt and completion, got {price!r}")
    return float(price[0]), float(price[1])


def api_key(variable: str | None) -> str:
    """The key in an environment variable, "" where none is named.

    Raises `InputError` where the variable is empty, or holds what no header can carry.
    """
    key = "" if variable is None else os.environ.get(variable, "").strip()
    if variable is not None and not key:
        raise InputError(f"{variable}: expected the API key in this environment variable, found none")
    if not all("!" <= character <= "~" for character in key):
        raise InputError(
            f"{variable}: expected an API key of printable ASCII characters without spaces, found others: copy it again"
        )
    return key


def hidden(data: bytes, secret: str) -> bytes:
    """The bytes without the key, should a server repeat it, plainly or as JSON and addresses write it.

    A key below `SECRET` characters may be a word such as EMPTY, which a reply holds by itself: it is hidden behind
    "Bearer" alone.
    """
    if not secret:
        return data
    data = data.replace(b"Bearer " + secret.encode(), b"Bearer " + HIDDEN)
    if len(secret) < SECRET:
        return data
    escaped = "".join(rf"(?:{re.escape(c)}|\\{re.escape(c)}|\\u00(?i:{ord(c):02x}))" for c in secret)
    data = re.sub(escaped.encode(), HIDDEN, data)
    return data.replace(quote(secret, safe="").encode(), HIDDEN)


def seconds_until(after: str | None) -> float:
    """Seconds that a Retry-After header asks for: a number, or a date."""
    if after is None:
        return RETRY_S
    try:
        seconds = float(after)
        return seconds if 0.0 <= seconds < math.inf else RETRY_S
    except ValueError:
        pass
    try:
        when = email.utils.parsedate_to_datetime(after)
    except (ValueError, OverflowError):
        return RETRY_S
    now = datetime.datetime.now(datetime.UTC)
    return max(0.0, (when if when.tzinfo else when.replace(tzinfo=datetime.UTC)).timestamp() - now.timestamp())
