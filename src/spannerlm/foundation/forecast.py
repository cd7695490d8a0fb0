"""Labels, draws and serving cost to a target, forecast before a label is bought: runs simulated on the pool (ours).

A parametric bootstrap: the pool's draws stand for the model, its true rewards, or rewards that its labels leave
possible, for the truth, and the explorers themselves run on that. What no draw has shown is in no forecast (THEORY 3).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from spannerlm.coverage import Interval, draws_per_accept
from spannerlm.environments import TabularEnvironment
from spannerlm.explorers.foresight import wide_posterior
from spannerlm.foundation.pool import CONFIDENCE, Pool
from spannerlm.foundation.surrogate import Trace, attainable, learned, surrogate, trace
from spannerlm.policy import beta_for_kl, padded, tilt
from spannerlm.records import FloatArray, IntArray
from spannerlm.regression import Posterior
from spannerlm.run import check_budget
from spannerlm.wording import count, few, short

EXPLORER, RANDOM = "directed", "random-singles"
PROMPTS = 32
"""Prompts of a simulated run, at most: each run takes its own at random."""
WIDENING = 1.5
"""By how much the band of labels is wider, at each end, than the simulated runs: a few do not show their extremes."""
CLOSE = 1.3
"""Up to this many times the labels of `directed`, labels of random draws do as well."""
CLIPPED = 0.01
"""Share of the tilted mass that an answer may lose."""
SUBSAMPLES = 10
NOTHING = 1e-9
"""Gain, as a share of the range of rewards, that is taken for rounding."""


@dataclass(frozen=True)
class Forecast:
    """What a run with one feature map is expected to cost."""

    map: str
    by: str
    """What the simulated truth rests on: ``true reward`` or ``labels``."""
    explorer: str
    target: float
    """Mean reward to reach and hold at the KL budget: mean over simulations."""
    share: float
    """The target's share of the gain that linear policies of this map can attain."""
    labels: Interval
    """Labels to reach and hold the target; inf: not within the budget; 0 where there is nothing to gain."""
    reached: float
    """Share of the simulated runs that did within the budget."""
    budget: int
    """Labels of a simulated run, at most."""
    random_labels: Interval
    """The same for labels of random draws."""
    random_reached: float
    draws: Interval
    """Draws per prompt that the run should make."""
    answer: Interval
    """Base draws per answer at the KL budget."""
    tokens_per_answer: float
    """Tokens drawn for an answer; nan where unknown."""
    simulations: int
    """Simulated runs of each of the two explorers; 0 where there is nothing to simulate."""
    held: float
    """Mean reward where the simulated runs ended: at the whole budget, or earlier where the target had held by then."""
    prompts: int
    """Prompts of each simulated run."""
    statements: tuple[str, ...]

    @property
    def pays(self) -> bool:
        """Whether exploring is expected to need clearly fewer labels than random draws do."""
        return self.random_labels.value > CLOSE * self.labels.value


def forecast(
    pool: Pool,
    name: str,
    *,
    kl: float,
    share: float,
    labels: int,
    batch: int,
    simulations: int,
    rng: np.random.Generator,
    needed: Interval | None = None,
    answer: Interval | None = None,
) -> Forecast | None:
    """The forecast for map ``name`` at a budget of ``kl`` nats; None where no reward is known, or no run is asked for.

    Each of ``simulations`` runs of `directed`, and of random labels, has at most ``labels`` labels in batches of
    ``batch``, one for each response, the pool's number of draws per prompt, and at most 32 prompts (its own random ones
    where there are more). The target is base + ``share`` times the gain of the best of three linear policies of this
    map fitted to all rewards: what the map cannot express is not held against the labels (`maps` tells that
    loss). It must stay met for three further batches.

    Truth: the true rewards with the pool's label noise, where they are free. Else each run has its own, mu + <theta,
    phi - centre>, with the regression's noise and theta in turn from the posterior of the labels and from that under
    the wide prior, which says what rare directions may do. ``labels`` is the median of the runs, inf unless more than
    half got there, with the band of 95 % of the runs, widened by `WIDENING` at each end. On random tables (17 to 34 of
    seeds 1000-1033, 256 or 512 draws) the median was within a factor 2 of the truth in 95 %, and in 82 to 88 % with 50
    or 100 labels for all that is known: hardly more than one guess for all tables, 40 labels, hits there. A single
    run fell into the band in 99 % and 96 %.

    ``needed`` and ``answer``: draws per prompt and per answer where `reach` has told them; else the first is found on
    subsamples of the pool, and the second is its plug-in, which has no upper end. Raises `InputError` on a budget that
    is none. Cost: no draws and no labels of the model; time of 2 x ``simulations`` runs.
    """
    check_budget(labels, None, batch)
    scores = _scores(pool, name)
    if simulations < 1 or scores is None:
        return None
    known = [(d.counts[np.isfinite(s)], s[np.isfinite(s)]) for d, s in zip(pool.draws, scores, strict=True)]
    known = [(c, s) for c, s in known if len(s)]
    needed = needed or _draws(known, kl, share, rng=rng)
    answer = answer or _answer(known, kl)
    runs = _simulate(pool, name, kl, share, labels, batch, simulations, rng=rng)
    by, same = "true reward" if pool.rewards is not None else "labels", not _varies(pool)
    if same and pool.rewards is not None:
        told, random, reached, random_reached = Interval(0.0, 0.0, 0.0), Interval(0.0, 0.0, 0.0), 1.0, 1.0
    else:
        told, reached = _band([run.directed.held for run in runs], labels)
        random, random_reached = _band([run.random.held for run in runs], labels)
    base = float(np.mean([c @ s / c.sum() for c, s in known]))
    tokens = [] if pool.tokens is None else [d.counts @ t for d, t in zip(pool.draws, pool.tokens, strict=True)]
    found = Forecast(
        map=name,
        by=by,
        explorer=EXPLORER,
        target=float(np.mean([run.target for run in runs])) if runs else base,
        share=share,
        labels=told,
        reached=reached,
        budget=labels,
        random_labels=random,
        random_reached=random_reached,
        draws=needed,
        answer=answer,
        tokens_per_answer=float(np.mean(tokens)) / pool.n * answer.value if tokens else math.nan,
        simulations=len(runs),
        held=float(np.mean([run.directed.values[-1] for run in runs])) if runs else base,
        prompts=min(PROMPTS, len(known)),
        statements=(),
    )
    return replace(found, statements=_statements(found, pool, kl, same=same, gains=any(run.gain > 0.0 for run in runs)))


# --- simulated runs --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """One simulated truth, and what both explorers made of it."""

    target: float
    gain: float
    """Attainable gain; 0 where it is only rounding."""
    directed: Trace
    random: Trace


def _simulate(
    pool: Pool,
    name: str,
    kl: float,
    share: float,
    labels: int,
    batch: int,
    simulations: int,
    *,
    rng: np.random.Generator,
) -> list[_Run]:
    """Runs on as many simulated truths; none where the rewards known do not vary."""
    runs: list[_Run] = []
    for env in _truths(pool, name, simulations, rng=rng) if _varies(pool) else ():
        base, best = attainable(env, kl)
        seed = int(rng.integers(2**31))
        if best - base <= NOTHING * float(np.ptp(env.mean_rewards[env.base_probs > 0.0])):
            never = Trace((0,), (base,), math.inf)
            runs.append(_Run(base, 0.0, never, never))
            continue
        target = base + share * (best - base)
        directed, random = (
            trace(env, explorer, target=target, kl=kl, draws=pool.n, labels=labels, batch=batch, seed=seed)
            for explorer in (EXPLORER, RANDOM)
        )
        runs.append(_Run(target, best - base, directed, random))
    return runs


def _truths(pool: Pool, name: str, simulations: int, *, rng: np.random.Generator) -> Iterator[TabularEnvironment]:
    """As many surrogates, each with its own prompts where there are many, and its own truth where only labels are."""
    if pool.rewards is not None:
        able = [x for x, row in enumerate(pool.rewards) if np.isfinite(row).any()]
        for _ in range(simulations):
            yield surrogate(pool, name, pool.rewards, pool.noise_std, prompts=_some(able, rng=rng))
        return
    learner = learned(pool, name)
    mean = 0.0 if pool.labels is None else float(np.mean(pool.labels.values))
    narrow, wide = learner.posterior, wide_posterior(learner)
    assert isinstance(narrow, Posterior)
    assert isinstance(wide, Posterior)
    for i in range(simulations):
        fit = wide if i % 2 else narrow
        theta = fit.sample(1, rng=rng)[0]
        features = zip(pool.features(name), learner.centres, strict=True)
        rewards = [mean + fit.intercept + (phi - centre) @ theta for phi, centre in features]
        chosen = _some(range(len(rewards)), rng=rng)
        yield surrogate(pool, name, rewards, narrow.noise_std, prompts=chosen)


def _some(prompts: Sequence[int], *, rng: np.random.Generator) -> list[int]:
    """At most `PROMPTS` of them, ascending."""
    if len(prompts) <= PROMPTS:
        return list(prompts)
    return sorted(int(x) for x in rng.choice(np.asarray(prompts), PROMPTS, replace=False))


def _varies(pool: Pool) -> bool:
    """Whether two of the rewards known differ."""
    rows = pool.rewards if pool.rewards is not None else () if pool.labels is None else (pool.labels.values,)
    values = np.concatenate(rows)
    return bool(np.ptp(values[np.isfinite(values)]) > 0.0)


def _band(held: Sequence[float], budget: int) -> tuple[Interval, float]:
    """Median and widened band of the labels of simulated runs, and the share of them that got there."""
    if not held:
        return Interval(math.inf, 0.0, math.inf), 0.0
    tail = (1.0 - CONFIDENCE) / 2.0
    low = min(float(np.quantile(held, tail, method="lower")), float(budget))
    value = float(np.quantile(held, 0.5, method="higher"))
    high = WIDENING * float(np.quantile(held, 1.0 - tail, method="higher"))
    bounds = math.floor(low / WIDENING), math.ceil(high) if high <= budget else math.inf
    return Interval(value, *map(float, bounds)), float(np.mean(np.isfinite(held)))


# --- draws and answers -----------------------------------------------------------------------------------------------


def _scores(pool: Pool, name: str) -> Sequence[FloatArray] | None:
    """[X] of [n_x]: the true rewards, else those that the labels predict; None where neither tells anything."""
    if pool.rewards is not None:
        return pool.rewards if any(np.isfinite(row).any() for row in pool.rewards) else None
    if pool.labels is None or not np.isfinite(pool.labels.values).any():
        return None
    learner = learned(pool, name)
    mean = float(np.mean(pool.labels.values))
    return [mean + (f - c) @ learner.theta for f, c in zip(pool.features(name), learner.centres, strict=True)]


def _draws(
    known: Sequence[tuple[IntArray, FloatArray]], kl: float, share: float, *, rng: np.random.Generator
) -> Interval:
    """Draws per prompt, doubled from 2, at which subsamples of the pool hold ``share`` of its gain at the KL budget.

    The upper end is that at which nearly all subsamples do; inf beyond half of the pool, which cannot tell of itself.
    """
    n = max(int(c.sum()) for c, _ in known)
    scores = padded([s for _, s in known])
    base = float(np.mean([c @ s / c.sum() for c, s in known]))
    gain = _value([c for c, _ in known], scores, kl) - base
    if gain <= NOTHING * float(np.ptp(np.concatenate([s for _, s in known]))):
        return Interval(1.0, 1.0, 1.0)
    low, value, high = float(n), float(n), math.inf
    sizes = [2**j for j in range(1, int(np.log2(n)) + 1) if 2**j < n]
    for size in reversed(sizes):
        kept = np.empty(SUBSAMPLES)
        for k in range(SUBSAMPLES):
            some = [rng.multivariate_hypergeometric(c, min(size, int(c.sum()))) for c, _ in known]
            kept[k] = (_value(some, scores, kl) - base) / gain
        low = size if kept.max() >= share else low
        value = size if kept.mean() >= share else value
        high = size if kept.min() >= share and 2 * size <= n else high
        if kept.max() < share:
            break
    return Interval(float(value), float(min(low, value)), float(max(high, value)))


def _value(counts: Sequence[IntArray], scores: FloatArray, kl: float) -> float:
    """Mean score of the policy tilted by the scores on draws with these counts."""
    base = padded([c / c.sum() for c in counts])
    return float(np.mean(np.sum(tilt(base, scores, beta_for_kl(base, scores, kl)) * scores, axis=1)))


def _answer(known: Sequence[tuple[IntArray, FloatArray]], kl: float) -> Interval:
    """Draws per answer on the pool: from below, because of what no draw has shown."""
    beta = beta_for_kl(padded([c / c.sum() for c, _ in known]), padded([s for _, s in known]), kl)
    cost = float(np.mean([draws_per_accept(s / beta, c, clipped=CLIPPED) for c, s in known]))
    return Interval(cost, 1.0, math.inf)


# --- sentences -------------------------------------------------------------------------------------------------------


def _statements(found: Forecast, pool: Pool, kl: float, *, same: bool, gains: bool) -> tuple[str, ...]:
    if same and found.by == "true reward":
        return ("All rewards known are equal: there is nothing to gain, and no label is needed.",)
    if same:
        return ("All labels are equal: they cannot tell what there is to find, so nothing is forecast.",)
    goal = f"{few(100 * found.share)} % of what policies on {found.map} can gain at KL = {few(kl)}"
    if not gains:
        return (f"Policies on {found.map} gain nothing at KL = {few(kl)}: labels do not help with these features.",)
    out = [f"{_need(EXPLORER, found.labels, found.reached, found)} {goal} (mean reward {short(found.target)})."]
    if math.isfinite(found.labels.value) and not found.pays:
        out.append("Exploration does not pay here: labels of random draws get there with about as many.")
    elif math.isfinite(found.random_labels.value):
        times = few(found.random_labels.value / max(found.labels.value, 1.0))
        out.append(f"Labels of random draws need about {count(found.random_labels.value)}: {times} times as many.")
    elif math.isfinite(found.labels.value):
        done = f"{count(round(found.random_reached * found.simulations))} of {found.simulations}"
        out.append(f"Labels of random draws get there in {done} simulated runs of {count(found.budget)} labels.")
    if pool.labels is not None and pool.rewards is None:
        out.append(
            f"This rests on {count(len(pool.labels.values))} labels: each simulated run has a truth that they leave "
            "possible, rare directions included. Free rewards would narrow it."
        )
    some = f", each on {found.prompts} of the {len(pool.prompts)} prompts" if found.prompts < len(pool.prompts) else ""
    out.append(
        f"{found.simulations} simulated runs{some}, with {count(pool.n)} draws of each prompt: what no draw has shown "
        "is in no forecast."
    )
    return tuple(out)


def _need(explorer: str, labels: Interval, reached: float, found: Forecast) -> str:
    if not math.isfinite(labels.value):
        done = f"{round(reached * found.simulations)} of {found.simulations} simulated runs"
        return f"{count(found.budget)} labels are not expected to do: with `{explorer}` {done} hold"
    high = count(labels.high) if math.isfinite(labels.high) else f"more than {count(found.budget)}"
    return f"About {count(labels.value)} labels [{count(labels.low)}, {high}], chosen by `{explorer}`, hold"
