"""What one step of a response is: some tokens, a line, a sentence, or what a function of the user says (THEORY 5)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from spannerlm.errors import InputError

LIMIT = 64
"""Tokens at most of a segment that ends by its text, where no other limit is given."""
SENTENCE = re.compile(r"""(\n|[.!?\u2026\u3002\uff01\uff1f]["'\u201d\u2019\u00bb)\]]*\s*\Z)""")
"""What ends a sentence: a line's end anywhere, or a mark at the end, perhaps with quotes and brackets behind it."""

Until = Literal["line", "sentence"]
Ends = Callable[[str], bool]
"""The segment's text so far -> whether it is over. Asked after each token; the same text gets the same answer."""


@dataclass(frozen=True)
class Segments:
    """Where a segment ends: at ``tokens`` tokens, or before, as soon as ``until`` or ``ends`` holds of its text.

    Segments end between tokens: a token whose text goes on behind a line's end belongs to the line as a whole, so
    that segments drawn one after the other have the law of whole responses. Raises `InputError` for both ``until`` and
    ``ends``, for a limit below 1, or for an unknown ``until``.
    """

    tokens: int = LIMIT
    """Tokens at most."""
    until: Until | None = None
    ends: Ends | None = None

    def __post_init__(self) -> None:
        if isinstance(self.tokens, bool) or not isinstance(self.tokens, int) or self.tokens < 1:
            raise InputError(f"segments: expected a whole number of tokens above 0, got {self.tokens!r}")
        if self.until not in (None, "line", "sentence"):
            raise InputError(f"segments: expected until 'line' or 'sentence', got {self.until!r}")
        if self.ends is not None and not callable(self.ends):
            raise InputError(f"segments: expected a function ends(text) -> bool, got {self.ends!r}")
        if self.ends is not None and self.until is not None:
            raise InputError(f"segments: expected until or ends, got both: leave until={self.until!r} out")

    @property
    def fixed(self) -> bool:
        """Whether the number of tokens alone says where a segment ends."""
        return self.until is None and self.ends is None

    def over(self, text: str) -> bool:
        """Whether a segment with this text so far is over, its number of tokens aside."""
        if self.ends is not None:
            return bool(self.ends(text))
        if self.until == "line":
            return "\n" in text
        return self.until == "sentence" and SENTENCE.search(text) is not None

    def spec(self) -> dict[str, Any]:
        """JSON object from which `segments` makes this again. Raises `InputError` where ``ends`` is a function."""
        if self.ends is not None:
            name = getattr(self.ends, "__qualname__", repr(self.ends))
            raise InputError(f"segments: expected what a file can describe, got the Python function {name!r}")
        return {"tokens": self.tokens} if self.until is None else {"until": self.until, "tokens": self.tokens}

    def __str__(self) -> str:
        """``8``, ``line:64``, ``sentence:64``: the text that `segments` reads; of a function its name and the limit."""
        if self.ends is not None:
            return f"{getattr(self.ends, '__qualname__', 'ends')}:{self.tokens}"
        return str(self.tokens) if self.until is None else f"{self.until}:{self.tokens}"


def segments(config: Any) -> Segments:
    """Segments from a number of tokens, a text (``8``, ``line``, ``sentence:40``), a mapping with keys ``tokens`` and
    ``until``, a function of the segment's text, or `Segments` itself. Raises `InputError` for anything else."""
    if isinstance(config, Segments):
        return config
    if isinstance(config, int):
        return Segments(config)
    if isinstance(config, str):
        return _from_text(config)
    if isinstance(config, Mapping):
        unknown = set(config) - {"tokens", "until"}
        if unknown:
            raise InputError(f"segments: expected the keys tokens and until, got {sorted(map(str, unknown))}")
        if not config:
            raise InputError("segments: expected tokens, until or both, got an empty mapping")
        return Segments(**config)
    if callable(config):
        return Segments(ends=config)
    raise InputError(f"segments: expected a number, a text, a mapping or a function, got {config!r}; try 'line'")


def _from_text(text: str) -> Segments:
    name, colon, number = text.strip().partition(":")
    if not colon and name.isdecimal():
        return Segments(int(name))
    if name in ("line", "sentence") and (not colon or number.isdecimal()):
        return Segments(int(number) if colon else LIMIT, cast(Until, name))
    raise InputError(f"segments: expected tokens ('8'), 'line' or 'sentence', with a limit ('line:64'), got {text!r}")


def cut_at_stop(text: str, stop: Sequence[str], *, keep: bool) -> str:
    """The text before the first stop string, or up to its end where it is kept."""
    found = [(text.find(s), s) for s in stop if s in text]
    if not found:
        return text
    start, which = min(found)
    return text[: start + len(which)] if keep else text[:start]
