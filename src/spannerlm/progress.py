"""What a run tells its observer while it works. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Progress:
    """Where a run stands; an observer gets one now and then and must return at once."""

    phase: str
    """What is being done, in a word or two: ``load the model``, ``draw``, ``label``, ``evaluate``."""
    draws: int
    """T_comp so far."""
    labels: int
    """T_data so far, labels bought to evaluate included."""
    budget: int
    """Labels that may be bought in all."""
    pairs: int | None = None
    """Pairs in the spanner; None for an explorer that has none."""
    certificate: Mapping[str, Any] | None = None
    """What the spanner certifies so far, by name; None where there is nothing to certify."""
    value: float | None = None
    """Value of the policy so far; None before there is one."""
    value_name: str = "value"
    """What ``value`` is: of which prompts, at which KL, known or estimated."""
    elapsed_s: float = 0.0
    """Seconds since this process took up the run."""
    remaining_s: float | None = None
    """Seconds that are left, estimated; None where nothing is known yet."""
