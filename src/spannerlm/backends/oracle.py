"""A real model, its prompts and a feature map as the sampling oracles that explorers draw from (THEORY 1, 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from spannerlm.errors import InputError
from spannerlm.features import FeatureMap
from spannerlm.records import Draws, FloatArray, Generated
from spannerlm.segments import Segments
from spannerlm.segments import segments as parsed_segments


class TextModel(Protocol):
    """What a back end offers: sampled text with the hidden states asked for."""

    @property
    def max_new_tokens(self) -> int:
        """Tokens of a response at most, end-of-sequence included."""

    def generate(
        self, prompts: Sequence[str], n: int, *, hidden: Sequence[str], rng: np.random.Generator
    ) -> tuple[Generated, ...]:
        """[m] records of ``n`` independent responses to each prompt. Cost: ``n * m`` draws."""

    def extend(
        self,
        prompts: Sequence[str],
        prefixes: Sequence[Sequence[str]],
        n: int,
        *,
        segments: Segments,
        horizon: int | None,
        hidden: Sequence[str],
        rng: np.random.Generator,
    ) -> tuple[Generated, ...]:
        """[m] records of ``n`` next segments after prompt i and the segments of prefix i. Cost: ``n * m`` segments.

        After ``horizon`` - 1 segments the next one runs to the response's end.
        """

    def forget(self) -> None:
        """Drop what is kept of prefixes that were extended."""

    def joined(self, prompt: str, segments: Sequence[str]) -> str:
        """The response that these segments make, as :meth:`generate` would give it."""

    def complete(self, prompt: str, segments: Sequence[str]) -> bool:
        """Whether the response has ended: by end-of-sequence, a stop string or the token limit."""

    def score(self, prompt: str, responses: Sequence[str], hidden: Sequence[str]) -> Generated:
        """Record [n] of given responses, in their order. Cost: no draws."""


class ModelOracle:
    """Draws from a model by prompt index, with features; with ``segments`` a `TokenOracle` too (THEORY 5).

    ``segments`` says what a step is (see `spannerlm.segments.segments`: a number of tokens, ``"line"``, ...), and
    ``horizon`` how many of them a response has at most: the last one then runs to its end, so that every roll-out is a
    whole response, with the law of :meth:`draw`. Features of a step are the map's, of the segment as a response to the
    prompt and what precedes it: ``before-eos:LAYER`` is the hidden state at the segment's end, of its last token.
    """

    def __init__(
        self,
        model: TextModel,
        prompts: Sequence[str],
        features: FeatureMap,
        *,
        segments: Segments | Any = None,
        horizon: int | None = None,
    ) -> None:
        if isinstance(prompts, str) or not prompts:
            raise InputError(f"prompts: expected a list of at least one text, got {prompts!r}")
        if horizon is not None and (isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1):
            raise InputError(f"horizon: expected a whole number of segments above 0, got {horizon!r}")
        if horizon is not None and segments is None:
            raise InputError(f"segments: expected what a step is where horizon={horizon} is given: try segments=8")
        self._model = model
        self._prompts = tuple(prompts)
        self._features = features
        self._segments = None if segments is None else parsed_segments(segments)
        self._horizon = horizon
        self._rng: np.random.Generator | None = None

    @property
    def prompts(self) -> Sequence[str]:
        """[X] the prompts, by index."""
        return self._prompts

    @property
    def dim(self) -> int:
        """Feature dimension d, of a response and of a step alike."""
        return self._features.dim

    @property
    def features(self) -> FeatureMap:
        """The feature map phi."""
        return self._features

    @property
    def segments(self) -> Segments | None:
        """What a step is; None where there are none."""
        return self._segments

    @property
    def horizon(self) -> int | None:
        """H, segments of a response at most; None where there are none, or where their text says how many there are."""
        if self._segments is None or self._horizon is not None or not self._segments.fixed:
            return self._horizon
        return -(-self._model.max_new_tokens // self._segments.tokens)

    def draw(self, prompts: Sequence[int], n: int, *, rng: np.random.Generator) -> tuple[Draws, ...]:
        """[m] records of ``n`` independent responses y ~ pi_ref(. | x) each. Cost: ``n * m`` draws."""
        texts = [self._prompts[i] for i in prompts]
        found = self._model.generate(texts, n, hidden=self._features.hidden, rng=rng)
        return tuple(
            Draws(i, r.responses, r.counts, self._features(r), tokens=_tokens(r))
            for i, r in zip(prompts, found, strict=True)
        )

    def extend(
        self, prompts: Sequence[int], prefixes: Sequence[tuple[str, ...]], n: int, *, rng: np.random.Generator
    ) -> tuple[Draws, ...]:
        """[m] records of ``n`` next segments after prompt i and prefix i, with step features [k, d].

        Cost: ``n * m`` segments. After a complete response the only segment is the empty one. What was encoded is
        encoded again only under another ``rng``: a run has one for each request, whose outcome is then the same to the
        last bit wherever the run was cut off and resumed. `InputError` without ``segments``, or unless there is one
        prefix per prompt.
        """
        if self._segments is None:
            raise InputError("segments: expected what a step is, to go on after a prefix, got none: try segments=8")
        if len(prefixes) != len(prompts):
            raise InputError(f"prefixes: expected one per prompt, {len(prompts)} in all, got {len(prefixes)}")
        if rng is not self._rng:
            self._model.forget()
            self._rng = rng
        found = self._model.extend(
            [self._prompts[i] for i in prompts],
            prefixes,
            n,
            segments=self._segments,
            horizon=self._horizon,
            hidden=self._features.hidden,
            rng=rng,
        )
        return tuple(
            Draws(i, r.segments or r.responses, r.counts, self._features(r), tuple(p), _tokens(r))
            for i, p, r in zip(prompts, prefixes, found, strict=True)
        )

    def joined(self, prompt: int, segments: Sequence[str]) -> str:
        """The response that these segments make, as :meth:`draw` would give it."""
        return self._model.joined(self._prompts[prompt], segments)

    def complete(self, prompt: int, segments: Sequence[str]) -> bool:
        """Whether nothing can follow: the response has ended, or these are H segments."""
        if self._horizon is not None and len(segments) >= self._horizon:
            return True
        return self._model.complete(self._prompts[prompt], segments)

    def tokens(self, draws: Draws) -> int:
        """Tokens generated for the draws of one record, ends included: each draw's own, also where they share some.

        `InputError` for a record that no model has just made: the ledger keeps the tokens of a request as one number.
        """
        if draws.tokens is None:
            raise InputError("tokens: expected draws as a model made them, got a record without their number of tokens")
        return draws.tokens

    def features_of(self, prompt: int, responses: Sequence[str]) -> FloatArray:
        """[n, d] features of given responses, for labels that come from elsewhere. Cost: no draws."""
        return self._features(self._model.score(self._prompts[prompt], responses, self._features.hidden))


def _tokens(record: Generated) -> int:
    """Tokens of all draws; where the back end does not say, those of each response's one spelling."""
    return int(record.counts @ record.lengths) if record.tokens is None else record.tokens
