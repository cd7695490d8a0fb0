"""Segments of a response as text that can be read again: the tokens that were drawn, and whether the response ended.

A run keeps texts, and goes on from them after a crash; but one text has many spellings in tokens, of which the model
may draw any, and the law of what follows depends on the tokens. So a segment is its text wherever the tokenizer,
reading it behind the segments before, spells it as it was drawn. Where it does not (a rare spelling, part of a
character, a text that looks like an end), the token ids stand behind the text, after the control character U+001F.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from spannerlm.backends.text import REMEMBERED, TextCodec

MARK = "\x1f"
MARKED = re.compile(rf"(.*){MARK}(\d+(?: \d+)*)", re.DOTALL)
"""A segment with its tokens."""


@dataclass(frozen=True)
class Reading:
    """What the segments of a response say."""

    ids: tuple[int, ...] = ()
    """Tokens, end-of-sequence left out."""
    text: str = ""
    ended: bool = False
    """Whether end-of-sequence came."""


@dataclass(frozen=True)
class Spelled:
    """A segment as it was drawn."""

    row: tuple[int, ...]
    """Tokens, end-of-sequence left out."""
    ended: bool
    last: bool
    """Whether the response is over by what the text says alone, or by the number of segments: no tokens follow."""


class Speller:
    """Writes segments behind others and reads them. ``end`` is the text of the end-of-sequence id ``eos[0]``."""

    def __init__(self, codec: TextCodec, eos: tuple[int, ...], end: str) -> None:
        self._codec = codec
        self._eos = eos
        self._end = end
        self._known: dict[tuple[str, tuple[str, ...]], Reading] = {}

    def read(self, prompt: str, segments: Sequence[str]) -> Reading:
        """Tokens and text of these segments of a response; a text from elsewhere as the tokenizer writes it."""
        whole = tuple(segments)
        start = next((k for k in range(len(whole), 0, -1) if (prompt, whole[:k]) in self._known), 0)
        reading = self._known[prompt, whole[:start]] if start else Reading()
        for k in range(start, len(whole)):
            reading = self._next(prompt, reading, whole[k])
            self._remember(prompt, whole[: k + 1], reading)
        return reading

    def write(self, prompt: str, before: Sequence[str], reading: Reading, drawn: Sequence[Spelled]) -> list[str]:
        """The segments that were drawn behind these, as text; ``reading`` is that of ``before``."""
        texts = self._codec.decode([reading.ids, *((*reading.ids, *d.row) for d in drawn)])
        return [
            self._written(prompt, tuple(before), reading, one, texts[0], whole)
            for one, whole in zip(drawn, texts[1:], strict=True)
        ]

    def text(self, segment: str) -> str:
        """A segment's own text, without its end or its tokens."""
        found = MARKED.fullmatch(segment)
        if found is not None:
            return found[1]
        return segment.removesuffix(self._end) if self._end else segment

    def _written(
        self, prompt: str, before: tuple[str, ...], reading: Reading, drawn: Spelled, base: str, whole: str
    ) -> str:
        fits = whole.startswith(base)
        text = whole[len(base) :] if fits else self._codec.decode([drawn.row])[0]
        plain = text + self._end * drawn.ended
        again = self._next(prompt, reading, plain) if fits and not MARKED.fullmatch(plain) else None
        actual = (*reading.ids, *drawn.row)
        same = again is not None and again.ended == drawn.ended and (drawn.last or again.ids == actual)
        if again is not None and same:
            self._remember(prompt, (*before, plain), again)
            return plain
        ids = (*drawn.row, self._eos[0]) if drawn.ended else drawn.row
        return f"{text}{MARK}{' '.join(map(str, ids))}"

    def _next(self, prompt: str, reading: Reading, segment: str) -> Reading:
        """What was read, with one more segment."""
        found = MARKED.fullmatch(segment)
        if found is not None:
            row = tuple(map(int, found[2].split()))
            ended = bool(self._eos) and row[-1] == self._eos[0]
            ids = (*reading.ids, *(row[:-1] if ended else row))
            base, whole = self._codec.decode([reading.ids, ids])
            fits = whole.startswith(base)
            return Reading(ids, reading.text + whole[len(base) :] if fits else whole, ended)
        ended = bool(self._end) and segment.endswith(self._end)
        plain = segment.removesuffix(self._end) if ended else segment
        text = reading.text + plain
        return Reading(self._spelled(prompt, reading.ids, text, plain), text, ended)

    def _spelled(self, prompt: str, before: tuple[int, ...], text: str, plain: str) -> tuple[int, ...]:
        """Tokens of ``text``, of which those ``before`` are settled and ``plain`` is the rest."""
        whole = tuple(self._codec.response_ids(prompt, text))
        if whole[: len(before)] == before:
            return whole
        return (*before, *self._codec.own_ids(plain))

    def _remember(self, prompt: str, segments: tuple[str, ...], reading: Reading) -> None:
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        self._known[prompt, segments] = reading
