"""How often a model succeeds: pass@k, its extrapolation beyond the draws, and prompts beyond the model (ours).

All of it is about one fixed set of prompts, each with its own success rate. `spannerlm.foundation.mixture` says what
the counts leave open of the rates; every band comes from there, the estimates for k <= n are unbiased.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import gammaln, ndtri

from spannerlm.coverage import Interval, pass_at_k, pass_at_k_interval
from spannerlm.evaluation import EvaluationPool
from spannerlm.foundation.mixture import RateMixture, fit_rates
from spannerlm.foundation.pool import CONFIDENCE, Pool
from spannerlm.policy import padded
from spannerlm.records import Draws, FloatArray, IntArray
from spannerlm.wording import count, few, short

BEYOND = 10
"""Pass@k is extrapolated to this many times the draws of a prompt."""
SURE = 0.95
"""Probability from which a prompt is named as beyond the model."""
NARROW = 0.2
"""Width of a band below which pass@k is told."""
BEST_SHARE = 4
"""An upper end for the best of k is given up to k = n / BEST_SHARE: beyond, it hangs on responses not drawn."""


@dataclass(frozen=True)
class Level:
    """The reward from which a response is a success."""

    value: float
    source: Literal["given", "two values", "optimum"]


@dataclass(frozen=True)
class PassAt:
    """Mean over these prompts of the probability that at least one of k fresh draws succeeds."""

    k: int
    value: float
    """Unbiased where ``measured``, else the posterior mean."""
    low: float
    high: float
    measured: bool
    """Whether every prompt has k graded draws."""


@dataclass(frozen=True)
class Component:
    """One law of the mixture that the prompts' rates come from: Beta(a, b); a = 0 is a rate of exactly 0."""

    weight: float
    """Posterior mean of its weight."""
    a: float
    b: float


@dataclass(frozen=True)
class PromptSuccess:
    """One prompt."""

    prompt: int
    draws: int
    """Graded draws."""
    correct: int
    rate: Interval
    """Of this prompt's draws alone (Clopper-Pearson); nan for the value without any."""
    hopeless: float
    """Probability that its rate is below 1 / max_draws, given all prompts."""


@dataclass(frozen=True)
class BestOf:
    """Expected best true reward of k draws, mean over these prompts."""

    k: int
    value: float
    low: float
    high: float
    """inf where no bound can be given."""


@dataclass(frozen=True)
class Success:
    """How often the model succeeds on these prompts. Intervals are of 95 %."""

    level: Level
    by: Literal["true reward", "labels"]
    draws: int
    """Graded in all."""
    max_draws: int
    pass_at: tuple[PassAt, ...]
    """For k = 1, 2, 4, ..., n, ..., 10 n; n is the largest number of graded draws of a prompt."""
    told: float
    """Largest of these k up to which every band is narrower than .2; 0 where none is."""
    components: tuple[Component, ...]
    zero: Interval
    """Share of these prompts with a rate below 1 / max_draws."""
    per_prompt: tuple[PromptSuccess, ...]
    hopeless: tuple[int, ...]
    """Prompts whose rate is below 1 / max_draws with probability .95 or more."""
    best_of: tuple[BestOf, ...]
    """Empty where rewards are not free or take at most two values."""
    statements: tuple[str, ...]


def level_of(pool: Pool, kl: float) -> Level:
    """The level of success where the user gives none.

    The upper one where the known rewards take exactly two values; else the mean reward of the policy tilted by them at
    ``kl`` nats: a success is then a reply as good as the best policy's average. Labels stand in for rewards that are
    not free, noise included. nan where no reward is known. Cost: none.
    """
    known = _known(pool)
    values = np.unique(np.concatenate([rewards for _, rewards in known])) if known else np.empty(0)
    if len(values) == 2:
        return Level(float(values[1]), "two values")
    if not len(values):
        return Level(math.nan, "optimum")
    draws = [Draws(x, ("",) * len(c), c, np.empty((len(c), 0))) for x, (c, _) in enumerate(known)]
    rewards = padded([r for _, r in known])
    value = float(np.mean(EvaluationPool(draws).at_kl(rewards, kl).mean(rewards)))
    return Level(min(value, float(values[-1])), "optimum")


def success(pool: Pool, level: Level, *, max_draws: int, rng: np.random.Generator) -> Success | None:
    """How often draws of ``pool`` succeed at ``level``, for k draws up to ten times those made.

    None without free rewards and without random labels. A prompt is named as beyond the model where its rate is below
    1 / ``max_draws`` with probability .95 or more. Declined draws are left out. Cost: no draws, no labels.
    """
    graded = _graded(pool, level)
    if graded is None or math.isnan(level.value) or not graded[0].sum():
        return None
    draws, correct = graded
    mixture = fit_rates(draws, correct, rng=rng)
    rows = _curve(mixture)
    narrow = [row.high - row.low < NARROW for row in rows]
    told = narrow.index(False) if False in narrow else len(rows)
    below = mixture.below(1.0 / max_draws)
    ends = pass_at_k_interval(draws, correct, 1, confidence=CONFIDENCE)
    per_prompt = tuple(
        PromptSuccess(x, n, c, Interval(c / n, *ends[x].tolist()) if n else Interval(math.nan, 0.0, 1.0), float(below[x]))
        for x, (n, c) in enumerate(zip(draws.tolist(), correct.tolist(), strict=True))
    )
    zero = np.mean(mixture.rates < 1.0 / max_draws, axis=1)
    found = Success(
        level=level,
        by="labels" if pool.rewards is None else "true reward",
        draws=int(draws.sum()),
        max_draws=max_draws,
        pass_at=rows,
        told=float(rows[told - 1].k) if told else 0.0,
        components=_components(mixture),
        zero=_posterior(zero, float(np.mean(below))),
        per_prompt=per_prompt,
        hopeless=tuple(int(x) for x in np.flatnonzero(below >= SURE)),
        best_of=_best_of(pool),
        statements=(),
    )
    return replace(found, statements=_statements(found, pool))
