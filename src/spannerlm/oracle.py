"""The sampling oracle: all that a learner ever sees of a pre-trained model (THEORY 1)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from spannerlm.errors import InputError
from spannerlm.records import Draws


class SamplingOracle(Protocol):
    """The weak oracle: complete responses from pi_ref, with the features of what was drawn and of nothing else."""

    @property
    def prompts(self) -> Sequence[str]:
        """[X] the prompts, by index."""

    @property
    def dim(self) -> int:
        """Feature dimension d."""

    def draw(self, prompts: Sequence[int], n: int, *, rng: np.random.Generator) -> tuple[Draws, ...]:
        """[m] records of ``n`` independent draws y ~ pi_ref(. | x) each. Cost: ``n * m`` draws."""


class TokenOracle(SamplingOracle, Protocol):
    """The token-level oracle: one segment (a token, a line, a turn) after any prefix (THEORY 1, 5)."""

    def extend(
        self, prompts: Sequence[int], prefixes: Sequence[tuple[str, ...]], n: int, *, rng: np.random.Generator
    ) -> tuple[Draws, ...]:
        """[m] records of ``n`` draws of the next segment after prompt i and prefix i. Cost: ``n * m`` segments."""

    def joined(self, prompt: int, segments: Sequence[str]) -> str:
        """The response that these segments make."""

    def complete(self, prompt: int, segments: Sequence[str]) -> bool:
        """Whether nothing can follow these segments."""

    def tokens(self, draws: Draws) -> int:
        """Tokens that the draws of one record took."""


class RecordedOracle:
    """Draws from stored draws: pi_ref replaced by its empirical distribution. For baselines that share one pool.

    Each draw is an independent one of the prompt's stored draws, with replacement. Cost: counted like any other
    draw, though no model is asked.
    """

    def __init__(self, prompts: Sequence[str], records: Iterable[Draws]) -> None:
        self._prompts = tuple(prompts)
        merged: dict[int, list[Draws]] = defaultdict(list)
        for record in records:
            merged[record.prompt].append(record)
        self._records = {x: joined(found) for x, found in merged.items()}
        if not self._records:
            raise InputError("expected at least one stored draw, got none: record draws first")

    @property
    def prompts(self) -> Sequence[str]:
        """[X] the prompts, by index."""
        return self._prompts

    @property
    def dim(self) -> int:
        """Feature dimension d."""
        return int(next(iter(self._records.values())).features.shape[1])

    def draw(self, prompts: Sequence[int], n: int, *, rng: np.random.Generator) -> tuple[Draws, ...]:
        """[m] records of ``n`` stored draws each, with replacement. Raises `InputError` for a prompt without any."""
        out = []
        for x in prompts:
            if x not in self._records:
                raise InputError(f"prompt {x}: expected one of {len(self._records)} prompts with stored draws")
            stored = self._records[x]
            counts = rng.multinomial(n, stored.counts / stored.counts.sum())
            seen = np.flatnonzero(counts)
            out.append(Draws(x, tuple(stored.responses[i] for i in seen), counts[seen], stored.features[seen]))
        return tuple(out)


def joined(records: list[Draws]) -> Draws:
    """One record with all draws, each response once."""
    responses = [r for record in records for r in record.responses]
    counts = np.concatenate([record.counts for record in records])
    features = np.concatenate([record.features for record in records])
    rows = {response: i for i, response in reversed(list(enumerate(responses)))}  # where each came first
    at = np.array([rows[response] for response in responses], dtype=np.int64)
    kept = np.unique(at)
    totals = np.bincount(at, counts, minlength=len(at)).astype(np.int64)
    return Draws(records[0].prompt, tuple(responses[i] for i in kept), totals[kept], features[kept])
