"""A real model, its prompts and a feature map as the sampling oracle that explorers draw from (THEORY 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from spannerlm.errors import InputError
from spannerlm.features import FeatureMap
from spannerlm.records import Draws, FloatArray, Generated


class TextModel(Protocol):
    """What a back end offers: sampled text with the hidden states asked for."""

    def generate(
        self, prompts: Sequence[str], n: int, *, hidden: Sequence[str], rng: np.random.Generator
    ) -> tuple[Generated, ...]:
        """[m] records of ``n`` independent responses to each prompt. Cost: ``n * m`` draws."""

    def extend(
        self,
        prompts: Sequence[str],
        prefixes: Sequence[str],
        n: int,
        *,
        tokens: int,
        stop: Sequence[str],
        hidden: Sequence[str],
        rng: np.random.Generator,
    ) -> tuple[Generated, ...]:
        """[m] records of ``n`` next segments after prompt i and prefix i. Cost: ``n * m`` segments."""

    def score(self, prompt: str, responses: Sequence[str], hidden: Sequence[str]) -> Generated:
        """Record [n] of given responses, in their order. Cost: no draws."""


class ModelOracle:
    """Draws from a model by prompt index, with features; both oracle protocols of :mod:`spannerlm.oracle`.

    ``tokens`` and ``stop`` say what a segment of :meth:`extend` is: one token by default, a line with
    ``tokens=100, stop=["\\n"]``.
    """

    def __init__(
        self,
        model: TextModel,
        prompts: Sequence[str],
        features: FeatureMap,
        *,
        tokens: int = 1,
        stop: Sequence[str] = (),
    ) -> None:
        if isinstance(prompts, str) or not prompts:
            raise InputError(f"prompts: expected a list of at least one text, got {prompts!r}")
        self._model = model
        self._prompts = tuple(prompts)
        self._features = features
        self._tokens = tokens
        self._stop = tuple(stop)

    @property
    def prompts(self) -> Sequence[str]:
        """[X] the prompts, by index."""
        return self._prompts

    @property
    def dim(self) -> int:
        """Feature dimension d."""
        return self._features.dim

    @property
    def features(self) -> FeatureMap:
        """The feature map phi."""
        return self._features

    def draw(self, prompts: Sequence[int], n: int, *, rng: np.random.Generator) -> tuple[Draws, ...]:
        """[m] records of ``n`` independent responses y ~ pi_ref(. | x) each. Cost: ``n * m`` draws."""
        texts = [self._prompts[i] for i in prompts]
        found = self._model.generate(texts, n, hidden=self._features.hidden, rng=rng)
        return tuple(self._draws(i, record) for i, record in zip(prompts, found, strict=True))

    def extend(
        self, prompts: Sequence[int], prefixes: Sequence[tuple[str, ...]], n: int, *, rng: np.random.Generator
    ) -> tuple[Draws, ...]:
        """[m] records of ``n`` next segments after prompt i and prefix i. Cost: ``n * m`` segments.

        Features are those of the segment as a response to the prompt and prefix together (THEORY 5).
        """
        found = self._model.extend(
            [self._prompts[i] for i in prompts],
            ["".join(prefix) for prefix in prefixes],
            n,
            tokens=self._tokens,
            stop=self._stop,
            hidden=self._features.hidden,
            rng=rng,
        )
        return tuple(self._draws(i, record) for i, record in zip(prompts, found, strict=True))

    def features_of(self, prompt: int, responses: Sequence[str]) -> FloatArray:
        """[n, d] features of given responses, for labels that come from elsewhere. Cost: no draws."""
        return self._features(self._model.score(self._prompts[prompt], responses, self._features.hidden))

    def _draws(self, prompt: int, record: Generated) -> Draws:
        return Draws(prompt, record.responses, record.counts, self._features(record))
