"""Explorers: what decides which responses are drawn and which are labelled. One method per file."""

from __future__ import annotations

from collections.abc import Callable

from spannerlm.errors import InputError
from spannerlm.explorers.passive import Passive
from spannerlm.explorers.protocol import Explorer
from spannerlm.explorers.random_singles import RandomSingles
from spannerlm.explorers.spanner_adaptive import AdaptiveSpannerSampling
from spannerlm.explorers.spanner_sampling import SpannerSampling, TheorySpannerSampling

EXPLORERS: dict[str, Callable[[], Explorer]] = {
    "spanner-sampling": SpannerSampling,
    "passive": Passive,
    "random-singles": RandomSingles,
}
"""Name -> function that builds the explorer with its defaults."""


def explorer_by_name(explorer: str | Explorer) -> Explorer:
    """The explorer of that name with its defaults, or the instance itself; `InputError` names the known ones."""
    if not isinstance(explorer, str):
        return explorer
    if explorer not in EXPLORERS:
        raise InputError(f"explorer: expected one of {', '.join(sorted(EXPLORERS))}, got {explorer!r}")
    return EXPLORERS[explorer]()


__all__ = [
    "EXPLORERS",
    "AdaptiveSpannerSampling",
    "Explorer",
    "Passive",
    "RandomSingles",
    "SpannerSampling",
    "TheorySpannerSampling",
    "explorer_by_name",
]
