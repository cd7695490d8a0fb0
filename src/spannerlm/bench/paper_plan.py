"""The suite `paper`: which runs show each claim. Names of tasks begin with the claim's letter."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from spannerlm.bench.plans import Block, Plan, Task, Variant, known_variants
from spannerlm.bench.tables import HELD_OUT, RIVALS, SEQUENCES, STEPS, TUNING, lock
from spannerlm.environments.max_k_dnf import max_k_dnf_bound

# --- (a) coverage is necessary: near-orthogonal ---------------------------------------------------------------------

COVERAGES = (64, 256, 1024, 4096, 16_384)
SHARES = tuple(2.0**j for j in range(-4, 5))
"""Budgets of draws, as multiples of C."""
QUIET, LOUD = 0.1, 0.5
"""Label noise: d labels tell theta* where it is small, as THEORY 2 says; the other is TESTBEDS' own."""
ONE_POOL = {"pool": 10**6, "doubling": None}
"""All draws of the budget at once: what a method can do that is given n draws."""
GIVEN = (Variant("coreset", settings=ONE_POOL),)


def sweep_task(c: int, share: float, noise: float = QUIET) -> str:
    """Name of the task with C = ``c`` and ``share`` C draws."""
    return f"a: C={c}, {share:g} C draws, noise {noise:g}"


def told_nothing_task(c: int) -> str:
    """Name of the task with C = ``c`` and no limit on draws."""
    return f"a: C={c}"


def _orthogonal(c: int, share: float, noise: float, labels: int, batch: int) -> Task:
    draws = round(share * c)
    given = {"c": c, "noise_std": noise}
    return Task(
        sweep_task(c, share, noise), "near-orthogonal", given, labels=labels, batch=batch, draws=draws, drawn=True
    )


SWEEP = tuple(_orthogonal(c, s, QUIET, 120, 5 if s == SHARES[-1] else 20) for c in COVERAGES for s in SHARES)
NOISY = tuple(_orthogonal(c, SHARES[-1], LOUD, 500, 10) for c in COVERAGES)
TOLD_NOTHING = tuple(
    Task(told_nothing_task(c), "near-orthogonal", {"c": c, "noise_std": QUIET}, labels=400, drawn=True)
    for c in COVERAGES
)

# --- (b) rare skills ------------------------------------------------------------------------------------------------

MASSES = (1e-1, 10**-1.5, 1e-2, 10**-2.5, 1e-3, 10**-3.5, 1e-4)
OURS = known_variants(Variant("spanner-sampling"), Variant("directed"))
LONG = {1e-1: (1500, 20), 10**-1.5: (5000, 50), 1e-2: (10_000, 100), 10**-2.5: (30_000, 500), 1e-3: (80_000, 1000)}
"""p -> labels and batch of `passive`; beyond, it takes too long to be run here."""
TRAINED = tuple(
    Variant(name, f"{name}{suffix}", settings)
    for name in ("online-dpo", "xpo")
    for suffix, settings in (
        ("", {}),
        (", fresh draws", {"fresh_prompts": 16, "doubling": None, "pool": 64}),
    )
)
"""With the growing pools that every rival gets here, and with 64 fresh draws a prompt as a policy in training has."""


def rare_task(p: float, kind: str = "") -> str:
    """Name of the task with rare mass ``p``."""
    return f"b: p={p:.2g}{kind}"


RARE = tuple(Task(rare_task(p), "rare-skill", {"p": p}, labels=400) for p in MASSES)
RARE_PASSIVE = tuple(
    Task(rare_task(p), "rare-skill", {"p": p}, labels=labels, batch=batch) for p, (labels, batch) in LONG.items()
)
RARE_TRAINED = (Task(rare_task(1e-3), "rare-skill", {"p": 1e-3}, labels=20_000, batch=100),)

# --- (c) interventions at training time: max-k-dnf -------------------------------------------------------------------

TERMS = tuple(range(2, 8))
PROPER = known_variants(
    Variant("online-dpo", family=True),
    Variant("xpo", family=True),
    Variant("thompson", "thompson, proper", {"proper": True, "singles": False}, family=True),
)
IMPROPER = known_variants(
    Variant("spanner-sampling"), Variant("coreset", family=True), Variant("directed", family=True)
)


def dnf_task(k: int, skip: bool) -> str:
    """Name of the task with terms of length ``k``."""
    return f"c: k={k}" + (", skip" if skip else "")


def dnf_settings(k: int, skip: bool) -> dict[str, Any]:
    """The same for every explorer that draws pools: 16 fresh prompts a round, each with about 8 informative draws."""
    mass = 1.0 / (1.0 + math.exp(2.0 * k - 2.0))
    draws = {"fresh_prompts": 16, "doubling": None, "pool": math.ceil(8.0 / mass)}
    return {**draws, "box": max_k_dnf_bound(k), "skip": skip}


def _dnf(k: int, skip: bool, labels: int) -> Task:
    settings = dnf_settings(k, skip)
    return Task(dnf_task(k, skip), "max-k-dnf", {"k": k}, labels=labels, batch=40, settings=settings)


# --- the others ------------------------------------------------------------------------------------------------------

HARMLESS = (
    Task("e: tie", "tie", labels=600),
    Task("e: tie, misspecified", "tie", {}, {"misspecified": {"zeta": 0.5}}, labels=600),
    Task("e: rare-skill p=.1, misspecified", "rare-skill", {"p": 0.1}, {"misspecified": {"zeta": 0.5}}, labels=600),
)
HARMLESS_EXPLORERS = known_variants(*(Variant(n) for n in ("passive", "spanner-sampling", "directed", "thompson")))
TABLE = tuple(
    replace(task, name=f"f: {task.name}", labels=min(task.labels, 400), batch=20) for task in TUNING + HELD_OUT
)

# --- (g) foresight: what `directed` predicts of its regret, and its warning -------------------------------------------

ZETAS = (1.0, 2.0, 4.0, 8.0)
FORESIGHT = tuple(
    Task(f"g: {name}, zeta={zeta:g}", family, given, {"misspecified": {"zeta": zeta}}, labels=300)
    for name, family, given in (("tie", "tie", {}), ("rare-skill p=.1", "rare-skill", {"p": 0.1}))
    for zeta in ZETAS
)
MISSPECIFIED = {
    task.name: float(task.modifiers["misspecified"]["zeta"])
    for task in (*HARMLESS, *FORESIGHT)
    if "misspecified" in task.modifiers
}
"""Task -> zeta, the size of what no feature explains: moves of the reward by +-zeta beta."""

# --- (h) step by step or all at once: locks -------------------------------------------------------------------------

STEPWISE = {"delayed-lock": (4, 6, 8, 12, 16, 24, 32), "gated-lock": (4, 6, 8, 12, 16)}
"""Family -> horizons of `multi-turn-spanner`."""
LAYERED = 16
"""The largest horizon of the published variant."""
WHOLE = 12
"""The largest horizon of whole sequences: beyond, their exact cost is quoted."""


def lock_task(family: str, horizon: int) -> str:
    """Name of the task with this horizon."""
    return f"h: {family} H={horizon}"


def _locks(limit: int) -> tuple[Task, ...]:
    """The locks of up to ``limit`` steps."""
    every = [(family, h) for family, horizons in STEPWISE.items() for h in horizons if h <= limit]
    return tuple(lock(family, h, 160 + 16 * h, 1500, "h: ") for family, h in every)


# Cells of the sweep have seeds of their own: draws of one seed at different budgets are correlated, and so would be
# the errors that the fitted exponent averages.
PAPER = Plan(
    "The claims of the paper: coverage, rare skills, interventions at training time, no harm, rivals, step by step.",
    (
        *(
            Block((task,), GIVEN, seeds=64, offset=1000 * i) for i, task in enumerate(SWEEP)
        ),  # independent of each other
        Block(NOISY, GIVEN, seeds=12),
        Block(TOLD_NOTHING, OURS, seeds=8),
        Block(RARE, OURS, seeds=16),
        Block(RARE_PASSIVE, (Variant("passive"),), seeds=8),
        Block(RARE_TRAINED, TRAINED, seeds=6),
        Block(tuple(_dnf(k, False, 6000) for k in TERMS), PROPER, seeds=4),
        Block(tuple(_dnf(k, False, 800) for k in TERMS), IMPROPER, seeds=4),
        Block(tuple(_dnf(k, True, 2000) for k in TERMS), (*PROPER, *IMPROPER), seeds=4),
        Block(HARMLESS, HARMLESS_EXPLORERS, seeds=16),
        Block(TABLE, RIVALS, seeds=2),
        Block(FORESIGHT, known_variants(Variant("directed")), seeds=8, batch=5),
        Block(_locks(max(map(max, STEPWISE.values()))), STEPS[:1], seeds=10),
        Block(_locks(LAYERED), STEPS[1:], seeds=4),
        Block(_locks(WHOLE), SEQUENCES, seeds=8),
    ),
    seeds=8,
    batch=20,
    reference="spanner-sampling",
)
