"""Explorers: what decides which responses are drawn and which are labelled. One method per file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from spannerlm.errors import InputError
from spannerlm.explorers.passive import Passive
from spannerlm.explorers.protocol import Explorer
from spannerlm.explorers.random_singles import RandomSingles
from spannerlm.explorers.spanner_adaptive import AdaptiveSpannerSampling
from spannerlm.explorers.spanner_sampling import SpannerSampling, TheorySpannerSampling

EXPLORERS: dict[str, Callable[..., Explorer]] = {
    "spanner-sampling": SpannerSampling,
    "passive": Passive,
    "random-singles": RandomSingles,
}
"""Name -> function that builds the explorer with its defaults."""


def explorer_by_name(explorer: str | Explorer, settings: Mapping[str, Any] | None = None) -> Explorer:
    """The explorer of that name with these settings, or the instance itself.

    `InputError` names the known explorers, or what is wrong with a setting.
    """
    if not isinstance(explorer, str):
        return explorer
    if explorer not in EXPLORERS:
        raise InputError(f"explorer: expected one of {', '.join(sorted(EXPLORERS))}, got {explorer!r}")
    try:
        return EXPLORERS[explorer](**(settings or {}))
    except TypeError as error:
        unknown = str(error).rpartition("argument ")[2]
        known = ", ".join(field.name for field in fields(EXPLORERS[explorer]()))  # type: ignore[arg-type]
        raise InputError(f"explorer_settings: expected some of {known} for {explorer!r}, got {unknown}") from error


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
