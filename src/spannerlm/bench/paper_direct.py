"""What the page shows beside the suite's rows: samplers' laws in closed form, and one sign vector for all prompts.

Deterministic, from fixed seeds; some seconds.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from spannerlm.api import explore
from spannerlm.bench.paper_plan import dnf_settings
from spannerlm.environments import environment
from spannerlm.environments.max_k_dnf import Terms, max_k_dnf_terms
from spannerlm.errors import InputError
from spannerlm.explorers import explorer_by_name
from spannerlm.records import FloatArray, IntArray
from spannerlm.samplers import adaptive_law

TARGET, RATIOS = np.array([0.3, 0.6, 0.1]), np.array([1.0, 0.1])
"""A law of three points: its tilted masses, and the weights of the first two relative to the largest."""
SAMPLER_COVERAGES = (100, 1000)
FACTORS = (1, 2)
"""M of SoftmaxSampler, as a multiple of C."""
DELTAS = (0.9, 0.5, 0.2, 0.1, 0.03, 0.01, 0.003, 0.001)
SIMULATED = 4000
"""Values of Zhat that a law of SoftmaxSampler is averaged over."""
SIZES = (10, 12, 14)
"""Numbers of variables n for the MaxSAT solver."""
TERM, TERMS, LABELS, FORMULAS = 4, 100, 400, 3


def samplers() -> dict[str, Any]:
    """(d) Total variation to the tilted law against draws / C, for a law of known coverage C.

    `adaptive_sampler` with N draws: exact. SoftmaxSampler_{M, delta}: exact but for Zhat, which is simulated; its
    draws are N for Zhat and M for the scan, in expectation.
    """
    curves: list[dict[str, Any]] = []
    rng = np.random.default_rng(0)
    for c in SAMPLER_COVERAGES:
        base = TARGET[:2] / (c * RATIOS)
        base = np.append(base, 1.0 - base.sum())
        weights = TARGET / base
        grid = np.geomspace(0.5, 32.0, 25)
        adaptive = [[m, _tv(adaptive_law(base, np.log(weights), max(1, round(m * c))))] for m in grid.tolist()]
        curves.append({"sampler": "adaptive", "c": c, "m": None, "points": adaptive})
        for factor in FACTORS:
            points = []
            for delta in DELTAS:
                bound = factor * c
                size = math.ceil(4.0 * bound * math.log(4.0 / delta))
                spent = (size + bound) / c
                points.append([spent, _tv(softmax_law(base, weights, bound, size, rng))])
            curves.append({"sampler": "softmax", "c": c, "m": factor, "points": points})
    return {"curves": curves, "simulated": SIMULATED}


def softmax_law(base: FloatArray, weights: FloatArray, bound: float, size: int, rng: np.random.Generator) -> FloatArray:
    """[Y] law of one response of SoftmaxSampler on a finite law of mean weight 1, averaged over simulated Zhat."""
    zhat = rng.multinomial(size, base, size=SIMULATED) @ weights / size
    accept = base * np.minimum(1.0, weights / (bound * zhat[:, None]))
    total = accept.sum(axis=1, keepdims=True)
    none = (1.0 - total) ** size
    return np.asarray(np.mean(accept / total * (1.0 - none) + none * base, axis=0))


def sign_vectors() -> dict[str, Any] | None:
    """(c) Terms satisfied by the best sign vector (RC2, a MaxSAT solver), by random ones, by what explorers learned.

    None where python-sat is not installed.
    """
    try:
        rows = [_formula(n, seed) for n in SIZES for seed in range(FORMULAS)]
    except ImportError:
        return None
    names = [name for name in rows[0] if name not in ("n", "seed")]
    mean = [{"n": n, **{x: float(np.mean([r[x] for r in rows if r["n"] == n])) for x in names}} for n in SIZES]
    return {"terms": TERMS, "k": TERM, "labels": LABELS, "formulas": FORMULAS, "rows": rows, "mean": mean}


def best_signs(terms: Terms) -> IntArray:
    """[n] signs that satisfy the most terms: a solution of Max-k-DNF.

    One hard clause per literal says that a chosen term is satisfied, one soft clause per term that it is chosen.
    Raises `InputError` where there is none, which cannot be.
    """
    from pysat.examples.rc2 import RC2
    from pysat.formula import WCNF

    n = len(terms.truth)
    formula = WCNF()
    for j, (variables, signs) in enumerate(zip(terms.variables.tolist(), terms.signs.tolist(), strict=True)):
        chosen = n + 1 + j
        for variable, sign in zip(variables, signs, strict=True):
            formula.append([-chosen, sign * (variable + 1)])
        formula.append([chosen], weight=1)
    with RC2(formula) as solver:
        model = solver.compute()
    if model is None:
        raise InputError("terms: expected a formula with a solution, got none")
    held = set(model)
    return np.array([1 if i + 1 in held else -1 for i in range(n)], dtype=np.int64)


def _formula(n: int, seed: int) -> dict[str, Any]:
    terms = max_k_dnf_terms(TERM, n=n, prompts=TERMS, seed=seed)
    env = environment("max-k-dnf", k=TERM, n=n, prompts=TERMS, seed=seed)
    rng = np.random.default_rng([seed, n])
    random = rng.choice(np.array([-1, 1]), (1000, n))
    row: dict[str, Any] = {
        "n": n,
        "seed": seed,
        "best": int(terms.satisfied(best_signs(terms)).sum()),
        "planted": int(terms.satisfied(terms.truth).sum()),
        "random": float(np.mean([terms.satisfied(signs).sum() for signs in random])),
    }
    for name in ("coreset", "online-dpo"):
        explorer = explorer_by_name(name, dnf_settings(TERM, skip=True))
        theta = explore(env, explorer=explorer, labels=LABELS, batch=40, seed=10_000 + seed).policy.theta
        row[name] = int(terms.satisfied(np.where(theta >= 0.0, 1, -1)).sum())
    return row


def _tv(law: FloatArray) -> float:
    return 0.5 * float(np.abs(law - TARGET).sum())
