"""Explorers: what decides which responses are drawn and which are labelled. One method per file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from spannerlm.errors import InputError
from spannerlm.explorers.active_preference import ActivePreference
from spannerlm.explorers.best_of_n import BestOfN
from spannerlm.explorers.coreset import Coreset
from spannerlm.explorers.directed import Directed
from spannerlm.explorers.epsilon_greedy import EpsilonGreedy
from spannerlm.explorers.layered import LayeredSpanner
from spannerlm.explorers.linucb import LinUCB
from spannerlm.explorers.multi_turn import MultiTurnSpanner
from spannerlm.explorers.online_dpo import OnlineDPO
from spannerlm.explorers.passive import Passive
from spannerlm.explorers.protocol import Explorer
from spannerlm.explorers.random_singles import RandomSingles
from spannerlm.explorers.spanner_adaptive import AdaptiveSpannerSampling
from spannerlm.explorers.spanner_sampling import SpannerSampling, TheorySpannerSampling
from spannerlm.explorers.thompson import Thompson
from spannerlm.explorers.xpo import XPO

EXPLORERS: dict[str, Callable[..., Explorer]] = {
    "directed": Directed,
    "spanner-sampling": SpannerSampling,
    "passive": Passive,
    "random-singles": RandomSingles,
    "online-dpo": OnlineDPO,
    "xpo": XPO,
    "thompson": Thompson,
    "best-of-n": BestOfN,
    "epsilon-greedy": EpsilonGreedy,
    "coreset": Coreset,
    "active-preference": ActivePreference,
    "linucb-enumerate": LinUCB,
}
"""Name -> function that builds the explorer with its defaults."""
STEP_EXPLORERS: dict[str, Callable[..., Explorer]] = {
    "multi-turn-spanner": MultiTurnSpanner,
    "multi-turn-spanner-paper": LayeredSpanner,
}
"""The same of those that act step by step: they need an oracle that can go on after a prefix (THEORY 5)."""


def explorer_by_name(explorer: str | Explorer, settings: Mapping[str, Any] | None = None) -> Explorer:
    """The explorer of that name with these settings, or the instance itself.

    `InputError` names the known explorers, or what is wrong with a setting.
    """
    if not isinstance(explorer, str):
        return explorer
    every = {**EXPLORERS, **STEP_EXPLORERS}
    if explorer not in every:
        raise InputError(f"explorer: expected one of {', '.join(sorted(every))}, got {explorer!r}")
    try:
        return every[explorer](**(settings or {}))
    except TypeError as error:
        unknown = str(error).rpartition("argument ")[2]
        known = ", ".join(field.name for field in fields(every[explorer]()))  # type: ignore[arg-type]
        raise InputError(f"explorer_settings: expected some of {known} for {explorer!r}, got {unknown}") from error


__all__ = [
    "EXPLORERS",
    "STEP_EXPLORERS",
    "XPO",
    "ActivePreference",
    "AdaptiveSpannerSampling",
    "BestOfN",
    "Coreset",
    "Directed",
    "EpsilonGreedy",
    "Explorer",
    "LayeredSpanner",
    "LinUCB",
    "MultiTurnSpanner",
    "OnlineDPO",
    "Passive",
    "RandomSingles",
    "SpannerSampling",
    "TheorySpannerSampling",
    "Thompson",
    "explorer_by_name",
]
