"""What the tables of suites are made of: tasks, variants, and blocks of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from spannerlm.environments import TOKEN_FAMILIES
from spannerlm.errors import InputError
from spannerlm.explorers import EXPLORERS, STEP_EXPLORERS


@dataclass(frozen=True)
class Task:
    """An environment with its parameters, and what exploring it may cost."""

    name: str
    environment: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    modifiers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    labels: int = 1000
    """Label budget; the target must hold for 60 labels within it."""
    long: int = 0
    """Label budget of baselines that need many; 0: the same."""
    batch: int = 0
    """Labels per request, at most; 0: the block's."""
    draws: int | None = None
    """Budget of draws; None: no limit."""
    drawn: bool = False
    """Whether rows also say the regret of what can be played with the responses drawn so far."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings that the task asks of every variant that says ``family``."""


@dataclass(frozen=True)
class Variant:
    """An explorer with its settings."""

    explorer: str
    name: str = ""
    """Of the line in tables; the explorer's where empty."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    long: bool = False
    """Whether it gets the long budget of each task."""
    family: bool = False
    """Whether it takes the settings that a task brings."""


@dataclass(frozen=True)
class Block:
    """Every variant on every task."""

    tasks: tuple[Task, ...]
    variants: tuple[Variant, ...]
    seeds: int = 0
    """Seeds; 0: the plan's."""
    batch: int = 0
    """Labels per request, at most; 0: the plan's."""
    offset: int = 0
    """Added to every seed: blocks that differ in it are independent."""


@dataclass(frozen=True)
class Plan:
    """A suite before seeds are filled in."""

    note: str
    blocks: tuple[Block, ...]
    seeds: int
    batch: int
    reference: str
    first_seed: int = 0


def known_variants(*variants: Variant) -> tuple[Variant, ...]:
    """Those whose explorer there is: a table may name one before it is built."""
    return tuple(variant for variant in variants if variant.explorer in {**EXPLORERS, **STEP_EXPLORERS})


def check_steps(explorer: str, environment: str) -> None:
    """Raise `InputError` where the explorer acts step by step and the environment is a table, which has no steps."""
    if explorer in STEP_EXPLORERS and environment not in TOKEN_FAMILIES:
        raise InputError(
            f"explorers: expected a token environment for {explorer!r}, which acts step by step, got {environment!r}: "
            f"choose environments among {', '.join(TOKEN_FAMILIES)}"
        )
