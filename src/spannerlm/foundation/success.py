"""How often a model succeeds: pass@k, its extrapolation beyond the draws, and prompts beyond the model (ours).

All of it is about one fixed set of prompts, each with its own success rate. `spannerlm.foundation.mixture` says what
the counts leave open of the rates; every band comes from there, the estimates for k <= n are unbiased.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.special import gammaln, ndtri

from spannerlm.coverage import Interval, pass_at_k, pass_at_k_interval
from spannerlm.evaluation import EvaluationPool
from spannerlm.foundation.mixture import RateMixture, fit_rates
from spannerlm.foundation.pool import CONFIDENCE, Pool
from spannerlm.policy import padded
from spannerlm.records import Draws, FloatArray, IntArray
from spannerlm.wording import count, short

BEYOND = 10
"""Pass@k is extrapolated to this many times the draws of a prompt."""
SURE = 0.95
"""Probability from which a prompt is named as beyond the model."""
NARROW = 0.2
"""Width of a band below which pass@k is told."""
TAIL = 0.0125
"""Of the posterior beyond each end of a band: half of what .95 allows, as a reserve for laws that fit no prior."""
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
    """Largest of these k whose band is narrower than .2; 0 where none is."""
    components: tuple[Component, ...]
    zero: Interval
    """Share of these prompts with a rate below 1 / max_draws."""
    per_prompt: tuple[PromptSuccess, ...]
    hopeless: tuple[int, ...]
    """Prompts whose rate is below 1 / max_draws with probability .95 or more."""
    best_of: tuple[BestOf, ...]
    """Empty where rewards are not free or take at most two values."""
    statements: tuple[str, ...]


def level_of(pool: Pool, kl: float, *, values: FloatArray | None = None) -> Level:
    """The level of success where the user gives none.

    The upper one where the known rewards (``values``: of all models) take exactly two values; else the mean reward of
    the policy tilted by them at ``kl`` nats: a success is then a reply as good as the best policy's average. Labels
    stand in for rewards that are not free, noise included. nan where no reward is known. Cost: none.
    """
    known = _known(pool)
    own = np.unique(np.concatenate([rewards for _, rewards in known])) if known else np.empty(0)
    values = own if values is None else np.unique(values)
    if len(values) == 2:
        return Level(float(values[1]), "two values")
    if not len(own):
        return Level(math.nan, "optimum")
    draws = [Draws(x, ("",) * len(c), c, np.empty((len(c), 0))) for x, (c, _) in enumerate(known)]
    rewards = padded([r for _, r in known])
    value = float(np.mean(EvaluationPool(draws).at_kl(rewards, kl).mean(rewards)))
    return Level(min(value, float(own[-1])), "optimum")


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
    below = mixture.below(1.0 / max_draws)
    ends = pass_at_k_interval(draws, correct, 1, confidence=CONFIDENCE)
    rates = [
        Interval(c / n, *ends[x].tolist()) if n else Interval(math.nan, 0.0, 1.0)
        for x, (n, c) in enumerate(zip(draws.tolist(), correct.tolist(), strict=True))
    ]
    per_prompt = tuple(
        PromptSuccess(x, int(draws[x]), int(correct[x]), rate, float(below[x])) for x, rate in enumerate(rates)
    )
    zero = _posterior(np.mean(mixture.rates < 1.0 / max_draws, axis=2))
    found = Success(
        level=level,
        by="labels" if pool.rewards is None else "true reward",
        draws=int(draws.sum()),
        max_draws=max_draws,
        pass_at=rows,
        told=float(max((row.k for row in rows if row.high - row.low < NARROW), default=0)),
        components=_components(mixture),
        zero=zero,
        per_prompt=per_prompt,
        hopeless=tuple(int(x) for x in np.flatnonzero(below >= SURE)),
        best_of=_best_of(pool),
        statements=(),
    )
    return replace(found, statements=_statements(found, pool))


# --- counts and bands ------------------------------------------------------------------------------------------------


def _known(pool: Pool) -> list[tuple[IntArray, FloatArray]]:
    """Per prompt with any: counts and rewards of the responses whose reward is known."""
    if pool.rewards is not None:
        pairs = [(d.counts[np.isfinite(r)], r[np.isfinite(r)]) for d, r in zip(pool.draws, pool.rewards, strict=True)]
    elif pool.labels is not None:
        values = [pool.labels.values[pool.labels.prompts == x] for x in range(len(pool.prompts))]
        pairs = [(np.ones(len(v), dtype=np.int64), v) for v in values]
    else:
        pairs = []
    return [(c, r) for c, r in pairs if len(r)]


def _graded(pool: Pool, level: Level) -> tuple[IntArray, IntArray] | None:
    """([X] graded draws, [X] successes among them); None without free rewards and without random labels."""
    size, known = len(pool.prompts), [rewards for _, rewards in _known(pool)]
    spread = float(np.ptp(np.concatenate(known))) if known else 0.0
    least = level.value - 1e-9 * spread - 1e-12 * abs(level.value)  # rounding, in any unit of the reward
    if pool.rewards is not None:
        rows = list(zip(pool.counts(), pool.rewards, strict=True))
        return (
            np.array([c[np.isfinite(r)].sum() for c, r in rows], dtype=np.int64),
            np.array([c[np.isfinite(r) & (r >= least)].sum() for c, r in rows], dtype=np.int64),
        )
    if pool.labels is None or not pool.labels.random:
        return None
    x = pool.labels.prompts
    return np.bincount(x, minlength=size), np.bincount(x[pool.labels.values >= least], minlength=size)


def _curve(mixture: RateMixture) -> tuple[PassAt, ...]:
    """Pass@k with its band for every k."""
    n = int(mixture.draws.max())
    least = int(mixture.draws.min())
    rows, value, top = [], 0.0, 0.0
    for k in sorted({2**i for i in range((BEYOND * n).bit_length())} | {n, BEYOND * n}):
        sample = mixture.pass_at(k)
        measured = k <= least
        found = _posterior(sample)
        mean = float(np.mean(pass_at_k(mixture.draws, mixture.correct, k))) if measured else found.value
        value = max(value, min(mean, 1.0))  # pass@k rises with k, its estimates need not
        top = max(top, found.high, value)
        rows.append(PassAt(k, value, min(value, found.low), top, measured))
    return tuple(rows)


def _posterior(sample: FloatArray) -> Interval:
    """Mean of draws [P, S], and what leaves `TAIL` of them at each end under each of the P priors."""
    low, high = np.quantile(sample, [TAIL, 1.0 - TAIL], axis=1)
    least, most = float(low.min()), float(high.max())
    return Interval(min(max(float(np.mean(sample)), least), most), least, most)


def _components(mixture: RateMixture) -> tuple[Component, ...]:
    """The laws of the mixture, with the mean of their weights."""
    weights = mixture.weights.mean(axis=(0, 1))
    return tuple(
        Component(w, a, b) for w, a, b in zip(weights.tolist(), mixture.a.tolist(), mixture.b.tolist(), strict=True)
    )


# --- the best of k ---------------------------------------------------------------------------------------------------


def best_of_k(values: FloatArray, counts: IntArray, k: int) -> tuple[float, float]:
    """(Expected largest of k of the draws without replacement, variance of that as an estimate for k fresh draws).

    ``values`` [m] and ``counts`` [m] of one prompt, k <= n: unbiased, as the mean over all subsets of k draws. The
    variance is that of the influence function, (k F^(k-1)) summed over the gaps above a draw. Cost: none.
    """
    order = np.argsort(values, kind="stable")
    v, c = values[order], counts[order]
    n, reached = int(c.sum()), np.cumsum(c)
    with np.errstate(invalid="ignore"):
        log_below = np.where(reached >= k, gammaln(reached + 1.0) - gammaln(np.maximum(reached - k, 0) + 1.0), -np.inf)
    below = np.exp(log_below - log_below[-1])  # all of k draws are among the first j
    mean = float(v @ np.diff(below, prepend=0.0))
    if n < 2:
        return mean, math.nan
    slopes = k * (reached[:-1] / n) ** (k - 1) * np.diff(v)
    influence = np.append(np.cumsum(slopes[::-1])[::-1], 0.0)
    centred = influence - float(c @ influence) / n
    return mean, float(c @ centred**2) / (n * (n - 1))


def _best_of(pool: Pool) -> tuple[BestOf, ...]:
    """Expected best reward of k draws; prompts whose draws were all declined are left out."""
    known = _known(pool) if pool.rewards is not None else []
    if not known or len(np.unique(np.concatenate([r for _, r in known]))) <= 2:
        return ()
    least = min(int(c.sum()) for c, _ in known)
    z = float(ndtri(0.5 + CONFIDENCE / 2.0))
    rows, low = [], -math.inf
    for k in sorted({2**i for i in range(least.bit_length())} | {least}):
        found = np.array([best_of_k(r, c, k) for c, r in known])
        value = float(found[:, 0].mean())
        spread = float(found[:, 1].sum())
        half = z * math.sqrt(spread) / len(known) if spread > 0.0 else math.inf  # draws all alike bound nothing
        if BEST_SHARE * k <= least:
            low = max(low, value - half)
            rows.append(BestOf(k, value, low, value + half))
        else:
            rows.append(BestOf(k, value, low, math.inf))
    return tuple(rows)


# --- sentences -------------------------------------------------------------------------------------------------------


def _statements(found: Success, pool: Pool) -> tuple[str, ...]:
    """What the figures say, and what they cannot."""
    out = [_meaning(found), _first(found), _further(found), *_beyond(found)]
    known = np.unique(np.concatenate([rewards for _, rewards in _known(pool)]))
    if len(known) == 1:
        out.append(
            f"All rewards known are {short(float(known[0]))}: nothing here tells good from bad. Give a level if some "
            "other reward is the one to reach."
        )
    blank = sum(row.draws == 0 for row in found.per_prompt)
    if blank:
        out.append(f"{_prompts(blank)} no graded draw: what is said of them is what the other prompts lead to expect.")
    if found.best_of:
        row = [b for b in found.best_of if math.isfinite(b.high)]
        out += [] if not row else [f"The best of {count(row[-1].k)} draws earns {_with_ends(row[-1])} on average."]
    return tuple(out)


def _meaning(found: Success) -> str:
    """What a success is."""
    what = {
        "given": "the level given",
        "two values": "the upper of the two rewards seen",
        "optimum": "what the best policy at the KL budget earns on average",
    }[found.level.source]
    value = short(found.level.value)
    if found.by == "labels":
        return (
            f"A success is a label of {value} or more ({what}). Labels have noise, and it is in these rates: they are "
            "of a draw's label, not of its true reward."
        )
    return f"A success is a reward of {value} or more ({what})."


def _first(found: Success) -> str:
    """pass@1, and pass@n as far as all prompts have n graded draws."""
    rows = [row for row in found.pass_at if row.measured]
    if not rows:
        return (
            f"{count(found.draws)} graded draws do not reach every prompt: what is said of pass@1 rests on the others."
        )
    text = f"Averaged over these prompts, a draw succeeds with probability {_with_ends(rows[0])}"
    return (
        f"{text}." if len(rows) == 1 else f"{text}, and one of {count(rows[-1].k)} draws with {_with_ends(rows[-1])}."
    )


def _further(found: Success) -> str:
    """The extrapolation, and why it is wide where it is."""
    last = found.pass_at[-1]
    low, high = _ends(last.low, last.high)
    text = f"pass@{last.k} lies between {low} and {high}"
    if last.high - last.low < NARROW:
        return f"{text}."
    n = max(row.draws for row in found.per_prompt)
    missed = math.floor(n / -math.log(1.0 - CONFIDENCE))
    why = (
        f"{_draws(n)} cannot tell small rates from 0"
        if missed < 2
        else f"{_draws(n)} miss a rate of 1/{missed} with probability .05, and smaller ones more often"
    )
    told = f" The band is narrower than {NARROW:g} at k = {count(found.told)}, and not beyond." if found.told else ""
    return f"{text}: {why}.{told}"


def _beyond(found: Success) -> list[str]:
    """Prompts beyond the model, and those of which the draws cannot tell."""
    size, named = len(found.per_prompt), [found.per_prompt[x] for x in found.hopeless]
    edge = f"1/{found.max_draws}"
    out = []
    if named:
        most, draws = max(row.correct for row in named), min(row.draws for row in named)
        seen = "no success" if most == 0 else f"at most {most} successes" if most > 1 else "at most one success"
        sure = min(math.floor(100.0 * min(row.hopeless for row in named)) / 100.0, 0.99)
        are = "is" if len(named) == 1 else "are"
        each = "each" if len({row.draws for row in named}) == 1 else "or more"
        out.append(
            f"Of {_prompts(size, '')}, {len(named)} {are} beyond this model: {seen} in {_draws(draws)} {each}, and "
            f"a rate below {edge} with probability {short(sure)} or more."
        )
    rest = [row for row in found.per_prompt if row.correct == 0 and row.draws and row.prompt not in found.hopeless]
    if rest:
        fewer = "" if len({row.draws for row in rest}) == 1 else " or fewer"
        out.append(
            f"{_prompts(len(rest))} no success in {_draws(max(row.draws for row in rest))}{fewer}: that cannot tell "
            f"whether the rate is below {edge}."
        )
    if out:
        low, high = _ends(found.zero.low, found.zero.high)
        out.append(f"The share of these prompts with a rate below {edge} lies between {low} and {high}.")
    return out


def _prompts(number: int, verb: str = "have") -> str:
    """The number of prompts, with the verb."""
    words = "1 prompt" if number == 1 else f"{count(number)} prompts"
    return words if not verb else f"{words} {'has' if number == 1 else verb}"


def _draws(number: int) -> str:
    """The number of draws."""
    return "1 draw" if number == 1 else f"{count(number)} draws"


def _ends(low: float, high: float) -> tuple[str, str]:
    """Both ends of an interval of shares."""
    width = max(high - low, 0.01)
    return short(low, width), short(high, width)


def _with_ends(row: PassAt | BestOf) -> str:
    """Value and interval."""
    low, high = _ends(row.low, row.high)
    return f"{short(row.value, max(row.high - row.low, 0.01))} [{low}, {high}]"
