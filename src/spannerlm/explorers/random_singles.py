"""`random-singles`: labels for single base draws of random prompts. What one does without this library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from spannerlm.explorers.random_draws import RandomDraws


@dataclass(frozen=True)
class RandomSingles(RandomDraws):
    """One draw y ~ pi_ref(. | x) of each x ~ rho, labelled. Cost: one label and one draw, after the opening pool."""

    name: ClassVar[str] = "random-singles"
    group: ClassVar[int] = 1
