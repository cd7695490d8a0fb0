"""The sampling oracle: all that a learner ever sees of a pre-trained model (THEORY 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

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
