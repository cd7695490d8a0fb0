"""The rivals and the families that they meet on."""

from __future__ import annotations

from spannerlm.bench.plans import Task, Variant, known_variants

CONTENDERS = known_variants(
    *(
        Variant(name)
        for name in (
            "directed",
            "spanner-sampling",
            "thompson",
            "coreset",
            "active-preference",
            "linucb-enumerate",
        )
    )
)
"""Who was the best somewhere while they were made."""
OTHERS = known_variants(
    *(Variant(name) for name in ("passive", "random-singles", "best-of-n", "epsilon-greedy", "online-dpo", "xpo"))
)
"""Who find nothing rare within these budgets: a few seeds show it."""
RIVALS = CONTENDERS + OTHERS

TUNING = (
    Task("rare-skill p=.1", "rare-skill", {"p": 0.1}, labels=300),
    Task("rare-skill p=.01", "rare-skill", {"p": 0.01}, labels=300),
    Task("rare-skill p=.001", "rare-skill", {"p": 0.001}, labels=300),
    Task("intercepts p=.01", "rare-skill", {"p": 0.01}, {"prompt-intercepts": {"std": 1.0}}, labels=300),
    Task("deceptive p=.01", "deceptive", {"p": 0.01}, labels=400),
    Task("decoys", "decoys", labels=700),
    Task("tie", "tie", labels=400),
    Task("max-k-dnf k=5", "max-k-dnf", {"k": 5}, labels=300),
)
"""The families of DIRECTED.md: what was looked at while `directed` was made."""

HELD_OUT = (
    Task("power-law p=.001", "power-law", {"p": 0.001}, labels=400),
    Task("low-variance", "low-variance", labels=400),
    Task("noise x4 p=.01", "rare-skill", {"p": 0.01}, {"heavy-noise": {"factor": 4.0}}, labels=600),
    Task(
        "nuisance p=.01",
        "rare-skill",
        {"p": 0.01},
        {"prompt-intercepts": {"std": 2.0}, "irrelevant-directions": {"extra": 32}},
        labels=400,
    ),
    Task("uneven decoys", "decoys", {"mass": 0.05}, {"heteroscedastic": {"spread": 4.0}}, labels=400),
)
"""Written down before any explorer was run on them, and never tuned on. Heavy noise has a standard deviation of 2;
``nuisance`` has intercepts of 2 and 32 directions that do not matter; in ``uneven decoys`` noise differs by response,
four to one at most."""

STEPS = known_variants(Variant("multi-turn-spanner"), Variant("multi-turn-spanner-paper", long=True))
"""Who act step by step, on token families only."""
SEQUENCES = known_variants(Variant("directed"), Variant("spanner-sampling"), Variant("passive", long=True))
"""Whom they are compared with: a draw is a whole sequence."""


def lock(family: str, horizon: int, labels: int, long: int = 0, prefix: str = "") -> Task:
    """A lock of two actions at each of ``horizon`` steps."""
    return Task(f"{prefix}{family} H={horizon}", family, {"horizon": horizon}, labels=labels, long=long)
