"""Segments of a server's responses: cut from what came, written so that they can be read again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from spannerlm.backends.wire import Choice, estimated
from spannerlm.records import Generated
from spannerlm.segments import Segments, cut_at_stop

END = "\x03"
"""At the end of a segment after which nothing follows."""
MARK = "\x1f"
"""Between a segment's text and its number of tokens."""
LEFT_OUT = {ord(END): None, ord(MARK): None}


@dataclass(frozen=True)
class Read:
    """What the segments of a prefix say."""

    text: str = ""
    tokens: int = 0
    ended: bool = False


@dataclass(frozen=True)
class Draw:
    """One response or segment."""

    text: str
    length: int
    logprob: float
    finished: bool
    segment: str | None = None
    """As :func:`read` takes it; None for a whole response."""


def read(segments: Sequence[str]) -> Read:
    """Text, tokens and end of these segments; tokens are estimated where a segment does not say, as a user's own."""
    text, tokens = "", 0
    for segment in segments:
        body, mark, number = segment.removesuffix(END).rpartition(MARK)
        known = bool(mark) and number.isdecimal()
        own = body if known else segment.removesuffix(END)
        text, tokens = text + own, tokens + (int(number) if known else estimated(own) - 1)
    return Read(text, tokens, any(segment.endswith(END) for segment in segments))


def total(logprobs: Sequence[float] | None) -> float:
    """Log-probability of a response in nats; nan where its tokens' are not known."""
    return math.nan if logprobs is None else math.fsum(logprobs)


def whole(choice: Choice, length: int, stop: tuple[str, ...]) -> Draw:
    """A complete response. Servers leave the stop string off, or on, or draw on behind it, which is dropped here."""
    text = cut_at_stop(choice.text, stop, keep=False)
    if text == choice.text:
        return Draw(text, length, total(choice.logprobs), choice.finished)
    length, logprobs = part(choice, length, len(cut_at_stop(choice.text, stop, keep=True)))
    return Draw(text, length, total(logprobs), True)


def part(choice: Choice, length: int, size: int) -> tuple[int, tuple[float, ...] | None]:
    """Tokens of the first ``size`` characters, and their log-probabilities where they are known."""
    if choice.tokens is not None and choice.logprobs is not None and "".join(choice.tokens).startswith(choice.text):
        ends = np.cumsum([len(token) for token in choice.tokens])
        count = 1 + int(np.searchsorted(ends, size))
        return count, choice.logprobs[:count]
    return max(1, math.ceil(length * size / len(choice.text))), None


def nothing(prompt: str, n: int) -> Generated:
    """The record of ``n`` empty segments, after a complete response."""
    return Generated(
        prompt=prompt,
        responses=("",),
        counts=np.array([n], dtype=np.int64),
        logprobs=np.zeros(1),
        lengths=np.zeros(1, dtype=np.int64),
        finished=np.ones(1, dtype=bool),
        tokens=0,
        segments=(END,),
    )


@dataclass(frozen=True)
class Cutter:
    """Makes segments of what a server drew behind a prefix."""

    before: Read
    segments: Segments
    stop: tuple[str, ...]
    final: bool
    """Whether the response ends with this segment."""
    left: int
    """Tokens that the response may still have."""
    spaced: bool = False
    """Whether a space that the server dropped is put back in front."""

    def __call__(self, choice: Choice, length: int) -> Draw:
        """The segment: what was drawn, up to its end by the text; behind its last one, up to a stop string."""
        text = choice.text.translate(LEFT_OUT)
        if self.spaced and self.before.text[-1:].strip() and text[:1].strip():
            text = f" {text}"
        both = self.before.text + text
        size = len(cut_at_stop(both, self.stop, keep=True)) - len(self.before.text)
        stopped = any(s in both for s in self.stop)
        if not self.final and not self.segments.fixed:
            end = self._end(text, choice.tokens)
            size, stopped = min(size, end), stopped and size <= end
        ended, tokens, logprobs = choice.finished, length, choice.logprobs
        if size < len(text):
            ended, (tokens, logprobs) = False, part(replace(choice, text=text), length, size)
            text = text[:size]
        closed = self.final or ended or stopped or tokens >= self.left
        return Draw(text, tokens, total(logprobs), ended or stopped, f"{text}{END if closed else f'{MARK}{tokens}'}")

    def _end(self, text: str, shown: Sequence[str] | None) -> int:
        """Characters of the segment: it ends between tokens where they are shown, else between characters."""
        sizes: Sequence[int] = range(1, len(text))
        if shown is not None and "".join(shown).startswith(text):
            sizes = [min(size, len(text)) for size in accumulate(map(len, shown))]
        return next((size for size in sizes if self.segments.over(text[:size])), len(text))
