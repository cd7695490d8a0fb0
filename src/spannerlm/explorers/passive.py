"""`passive`: labels for random pairs, two fresh base draws of a random prompt. Label-inefficient by design."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from spannerlm.explorers.random_draws import RandomDraws


@dataclass(frozen=True)
class Passive(RandomDraws):
    """Random pairs (y, y') ~ pi_ref^2 of x ~ rho, both labelled: SpannerSampling without the spanner.

    Cost: two labels and two draws a pair, after the opening pool; with comparisons one label.
    """

    name: ClassVar[str] = "passive"
    group: ClassVar[int] = 2
    comparisons: ClassVar[bool] = True
