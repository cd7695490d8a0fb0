"""One or several models looked at side by side: every part of the coverage report, put together (ours)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from spannerlm.foundation.forecast import forecast
from spannerlm.foundation.gather import Gathered
from spannerlm.foundation.maps import Maps, maps
from spannerlm.foundation.pool import Pool
from spannerlm.foundation.reach import Reach, reach
from spannerlm.foundation.span import span
from spannerlm.foundation.success import Level, level_of, success
from spannerlm.foundation.surrogate import learned
from spannerlm.foundation.unseen import unseen
from spannerlm.foundation.verdict import ORDER, Evidence, best_map, verdict
from spannerlm.records import FloatArray
from spannerlm.regression import Posterior
from spannerlm.wording import few, short

KLS = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0)
"""KL budgets in nats at which an answer's cost is told; the report's own is put between them."""
EXAMPLES = 3
"""Prompts whose draws are shown."""
SHOWN = 6
"""Draws of them that are shown: the commonest, then the best."""

Told = Callable[[str], None]


@dataclass(frozen=True)
class Question:
    """What is asked of every model."""

    kl: float = 2.0
    """KL budget in nats."""
    share: float = 0.9
    """Share of the attainable gain that is forecast."""
    max_draws: int = 1000
    """Base draws of one answer that are still affordable."""
    success: float | None = None
    """Reward from which a reply is a success; None: see `level_of`."""
    horizon: int = 500
    """Labels up to which is forecast."""
    batch: int = 10
    """Labels asked for at once in a run."""
    simulations: int = 8
    """Simulated runs of the forecast; 0: none."""
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, what to call it, and what was gathered of it."""

    name: str
    model: str
    found: Gathered


def document(
    subjects: Sequence[Subject],
    question: Question,
    *,
    title: str,
    reward: str | None,
    observe: Told = lambda _: None,
) -> dict[str, Any]:
    """The report as JSON values would hold it (nan and inf where undefined or without a bound). Cost: none."""
    level = _level([subject.found.pool for subject in subjects], question)
    sections = [_section(subject, question, level, observe) for subject in subjects]
    ranked = sorted(sections, key=_rank)
    pools = [subject.found.pool for subject in subjects]
    return {
        "title": title,
        "prompts": list(pools[0].prompts),
        "settings": {
            **asdict(question),
            "kls": list(_kls(question.kl)),
            "draws": pools[0].n,
            "labels": sum(s.found.counts.eval_labels for s in subjects),
            "success": None if level is None else asdict(level),
            "reward": reward,
            "reward_kind": _reward_kind(pools),
        },
        "headline": _headline(ranked, question),
        "best": ranked[0]["name"] if len(ranked) > 1 else None,
        "models": sections,
    }


def _level(pools: Sequence[Pool], question: Question) -> Level | None:
    """One level for all models: given, the upper of two values in all, or what the best reaches by true rewards.

    What an optimum earns is not read off labels: the best of noisy ones is noise.
    """
    if question.success is not None:
        return Level(float(question.success), "given")
    values = _values(pools)
    found = [(pool, level_of(pool, question.kl, values=values)) for pool in pools]
    levels = [level for pool, level in found if pool.rewards is not None or level.source == "two values"]
    return max((level for level in levels if math.isfinite(level.value)), key=lambda level: level.value, default=None)


def _section(subject: Subject, question: Question, level: Level | None, observe: Told) -> dict[str, Any]:
    """Everything of one model."""
    pool = subject.found.pool
    streams = iter(np.random.default_rng([question.seed, 17]).spawn(5 + len(pool.maps)))
    observe(f"{subject.name}: what the draws have seen")
    seen = unseen(pool)
    spans = [span(pool, name, rng=next(streams)) for name in pool.maps]
    observe(f"{subject.name}: success")
    can = None if level is None else success(pool, level, max_draws=question.max_draws, rng=next(streams))
    observe(f"{subject.name}: features")
    tested = maps(pool, kl=question.kl, rng=next(streams))
    observe(f"{subject.name}: what tilting reaches")
    scores, by = _scores(pool, tested)
    reached = None if scores is None else _reach(pool, scores, by, question, level, next(streams))
    best = tested.best if tested is not None else next(iter(pool.maps))
    told = None
    if reached is not None and question.simulations > 0:
        observe(f"{subject.name}: forecast")
        told = forecast(
            pool,
            best,
            kl=question.kl,
            share=question.share,
            labels=question.horizon,
            batch=question.batch,
            simulations=question.simulations,
            needed=reached.needed,
            answer=reached.at.draws_per_answer,
            rng=next(streams),
        )
        told = told if told is not None and told.simulations else None  # nothing to gain: nothing to forecast
    evidence = Evidence(
        prompts=len(pool.prompts),
        draws=pool.n,
        max_draws=question.max_draws,
        unseen=seen,
        success=can,
        reach=reached,
        maps=tested,
        forecast=told,
        spread=_spread(pool, scores),
        given=level is not None and level.source != "optimum",
        steps=subject.found.steps,
    )
    parts = {"success": can, "reach": reached, "steps": subject.found.steps, "maps": tested, "forecast": told}
    return {
        "name": subject.name,
        "model": subject.model,
        "counts": {
            "prompts": len(pool.prompts),
            "draws": subject.found.counts.eval_draws,
            "labels": subject.found.counts.eval_labels,
            "skips": subject.found.counts.skips,
        },
        "verdict": asdict(verdict(evidence)),
        "unseen": asdict(seen),
        "spans": [asdict(s) for s in spans],
        **{name: None if part is None else asdict(part) for name, part in parts.items()},
        "warnings": list(subject.found.warnings),
        "examples": _examples(pool),
    }


def _scores(pool: Pool, tested: Maps | None) -> tuple[Sequence[FloatArray] | None, str]:
    """What to tilt by, and its name: the true reward, or the fitted one where labels tell that it explains any."""
    if pool.rewards is not None:
        return (pool.rewards if len(_values([pool])) else None), "true reward"
    if pool.labels is not None and tested is not None and best_map(tested).r2.low > 0.0:
        return fitted_scores(pool, tested.best), f"reward fitted to labels on {tested.best}"
    return None, ""


def _reach(
    pool: Pool,
    scores: Sequence[FloatArray],
    by: str,
    question: Question,
    level: Level | None,
    rng: np.random.Generator,
) -> Reach:
    """What tilting by the scores reaches; of two true rewards the upper one is the largest there is."""
    two = level is not None and level.source == "two values" and pool.rewards is not None
    largest = level.value if level is not None and two else None
    kls = _kls(question.kl)
    return reach(pool, scores, kls=kls, kl=question.kl, share=question.share, by=by, largest=largest, rng=rng)


def fitted_scores(pool: Pool, name: str) -> tuple[FloatArray, ...]:
    """[X] of [n_x]: mean reward of each draw as the labels predict it from one map: mu + <theta, phi - centre>."""
    learner = learned(pool, name)
    posterior = learner.posterior
    mean = 0.0 if pool.labels is None else float(np.mean(pool.labels.values))
    mean += posterior.intercept if isinstance(posterior, Posterior) else 0.0
    rows = zip(pool.features(name), learner.centres, strict=True)
    return tuple(mean + (phi - centre) @ learner.theta for phi, centre in rows)


def _kls(kl: float) -> tuple[float, ...]:
    return tuple(sorted({*KLS, float(kl)}))


def _values(pools: Sequence[Pool]) -> FloatArray:
    """Distinct rewards known of any model, by truth or by label, rising."""
    rows = [row for pool in pools for row in pool.rewards or ()]
    rows += [pool.labels.values for pool in pools if pool.labels is not None and pool.rewards is None]
    values = np.concatenate([np.asarray(row, dtype=np.float64) for row in rows]) if rows else np.empty(0)
    return np.unique(values[np.isfinite(values)])


def _spread(pool: Pool, scores: Sequence[FloatArray] | None) -> float:
    """Range of what is tilted by, noise of labels left out, else of the rewards known; nan without any."""
    values = _values([pool]) if scores is None else np.concatenate(scores)
    values = values[np.isfinite(values)]
    return float(np.ptp(values)) if len(values) else math.nan


def _reward_kind(pools: Sequence[Pool]) -> str | None:
    """``two values`` or ``real``; None where no reward is known."""
    distinct = _values(pools)
    return None if not len(distinct) else "two values" if len(distinct) <= 2 else "real"


def _rank(section: Mapping[str, Any]) -> tuple[int, float, float]:
    """Smaller is better: the verdict, then what tilting reaches, then how often a draw succeeds; the unknown last."""
    can, reached = section["success"], section["reach"]
    rate = -can["pass_at"][0]["value"] if can is not None else math.inf
    value = -reached["at"]["value"]["value"] if reached is not None else math.inf
    return ORDER.index(section["verdict"]["kind"]), value, rate


def _headline(ranked: Sequence[Mapping[str, Any]], question: Question) -> list[str]:
    """What the report comes to: the verdict, or which of several models is the better foundation, and why."""
    if len(ranked) == 1:
        return [ranked[0]["verdict"]["title"]]
    first, second = ranked[0], ranked[1]
    lead = f"{first['name']} is the best foundation of these {len(ranked)}: {first['verdict']['title']}"
    if first["verdict"]["kind"] == "no foundation":
        lead = f"None of these {len(ranked)} models is a foundation for these prompts."
    elif first["verdict"]["kind"] == "cannot tell":
        which = f"Which of these {len(ranked)} models is the best foundation cannot be told"
        lead = f"{which}: {first['name']}: {first['verdict']['title']}"
    known = [s for s in (first, second) if s["reach"] is not None]
    if not known:
        return [lead]
    values = [s["reach"]["at"]["value"] for s in known]
    by = " and the ".join(dict.fromkeys(s["reach"]["by"] for s in known))
    told = ", ".join(f"{s['name']} {short(value['value'])}" for s, value in zip(known, values, strict=True))
    both = len(values) == 2 and values[0]["low"] <= values[1]["high"] and values[1]["low"] <= values[0]["high"]
    overlap = "; their 95 % intervals overlap" if both else ""
    return [lead, f"What tilting reaches at KL = {few(question.kl)}, by the {by}: {told}{overlap}."]


def _examples(pool: Pool) -> list[dict[str, Any]]:
    """Some prompts with their commonest draws, then their best."""
    out = []
    for x in np.unique(np.linspace(0, len(pool.prompts) - 1, EXAMPLES).astype(int)):
        d = pool.draws[x]
        known = pool.rewards[x] if pool.rewards is not None else np.full(len(d.counts), np.nan)
        common = np.argsort(-d.counts, kind="stable")[: SHOWN // 2]
        best = [i for i in np.argsort(-np.nan_to_num(known, nan=-np.inf), kind="stable") if i not in common]
        rows = [*common, *best[: SHOWN - len(common)]]
        shown = [
            {"text": d.responses[i], "share": float(d.counts[i] / d.counts.sum()), "reward": float(known[i])}
            for i in rows
        ]
        out.append({"prompt": pool.prompts[x], "responses": shown})
    return out
