"""A pool as an exact environment, on which runs are simulated before one is paid for: a parametric bootstrap (ours)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spannerlm.environments import TabularEnvironment
from spannerlm.errors import InputError
from spannerlm.explorers import explorer_by_name
from spannerlm.explorers.learner import Learner
from spannerlm.foundation.pool import Pool
from spannerlm.ledger import Ledger
from spannerlm.policy import Policy, beta_for_kl, padded, tilt
from spannerlm.records import Drawn, Draws, FloatArray, Info, Label, Labelled, Spec
from spannerlm.run import Driver

HOLD = 3
"""Batches of labels for which a target must stay met after it was reached."""


@dataclass(frozen=True)
class Trace:
    """What the policy of one run was worth after each batch of labels."""

    labels: tuple[int, ...]
    values: tuple[float, ...]
    """Mean reward at the KL budget, over all responses of the environment."""
    held: float
    """Labels from which the target was met and stayed met; inf where it was not."""


def surrogate(
    pool: Pool, name: str, rewards: Sequence[FloatArray], noise_std: float, *, prompts: Sequence[int] | None = None
) -> TabularEnvironment:
    """The pool as a table: draw frequencies for pi_ref, one map's features, mean rewards [X] of [n_x].

    Its beta means nothing: runs on it are given a KL budget. Responses whose reward is nan (declined) are left out, and
    so are prompts without any other, and all but ``prompts`` where these are given. Raises `InputError` where nothing
    is left. Cost: no draws, no labels.
    """
    known = {x: np.flatnonzero(np.isfinite(rewards[x])) for x in (range(len(rewards)) if prompts is None else prompts)}
    kept = {x: rows for x, rows in known.items() if len(rows)}
    if not kept:
        raise InputError("rewards: expected at least one that is known, got none: leave the forecast out")
    counts = [pool.draws[x].counts[rows] for x, rows in kept.items()]
    base = padded([c / c.sum() for c in counts])
    phi = pool.features(name)
    features = np.zeros((*base.shape, phi[0].shape[1]))
    for row, (x, rows) in enumerate(kept.items()):
        features[row, : len(rows)] = phi[x][rows]
    table = padded([rewards[x][rows] for x, rows in kept.items()])
    rho = np.full(len(kept), 1.0 / len(kept))
    return TabularEnvironment(rho, base, features, table, beta=1.0, noise_std=noise_std)


def value_at_kl(env: TabularEnvironment, scores: FloatArray, kl: float) -> float:
    """Mean reward of the policy tilted by scores [X, Y] at the temperature that spends ``kl`` nats on average."""
    table = tilt(env.base_probs, scores, beta_for_kl(env.base_probs, scores, kl))
    return float(np.mean(np.sum(table * env.mean_rewards, axis=1)))


def attainable(env: TabularEnvironment, kl: float) -> tuple[float, float]:
    """(base, best): mean reward of the base model, and of the best of three linear policies at ``kl`` nats.

    They are fitted to all true rewards by least squares within prompts, with the weights of the base model, of half
    base half optimum, and equal ones: the optimum itself where the features express the reward.
    """
    base, rewards = env.base_probs, env.mean_rewards
    best = tilt(base, rewards, beta_for_kl(base, rewards, kl))
    start = value_at_kl(env, np.zeros_like(rewards), 0.0)
    found = [start]
    for weights in (base, 0.5 * (base + best), (base > 0.0) / np.sum(base > 0.0, axis=1, keepdims=True)):
        phi = env.features - np.einsum("xy,xyd->xd", weights, env.features)[:, None]
        weighted = phi * weights[..., None]
        gram = np.einsum("xyd,xye->de", weighted, phi, optimize=True)
        cross = np.einsum("xyd,xy->d", weighted, rewards)
        theta = np.linalg.lstsq(gram, cross, rcond=1e-10)[0]
        found.append(value_at_kl(env, env.features @ theta, kl))
    return start, max(found)


def learned(pool: Pool, name: str) -> Learner:
    """What the pool's labels, less their mean, teach of one map: draws and labels folded into a `Learner`.

    A response whose one label counts as often as it was drawn is learned from once: its noise is one noise. Cost: none.
    """
    assert pool.labels is not None  # the callers have looked
    phi, count = pool.features(name), len(pool.prompts)
    dim = phi[0].shape[1]
    draws = tuple(Draws(x, d.responses, d.counts, f) for x, (d, f) in enumerate(zip(pool.draws, phi, strict=True)))
    places = (pool.labels.prompts.tolist(), pool.labels.rows.tolist())
    values = (pool.labels.values - np.mean(pool.labels.values)).tolist()
    rows = list(dict.fromkeys(zip(*places, values, strict=True)))
    labels = tuple(Label(x, draws[x].responses[i], v) for x, i, v in rows)
    features = np.array([phi[x][i] for x, i, _ in rows]).reshape(len(rows), dim)
    learner = Learner.start(Spec(np.full(count, 1.0 / count), dim, len(rows), None, 1))
    return learner.absorb(Drawn(draws, pool.n * count)).absorb(Labelled(labels, features))


def trace(
    env: TabularEnvironment,
    explorer: str,
    *,
    target: float,
    kl: float,
    draws: int,
    labels: int,
    batch: int,
    seed: int,
) -> Trace:
    """One run of an explorer on an exact environment, as a run on a model would be: a KL budget, ``draws`` per prompt.

    Each response is labelled at most once. Ends as soon as ``target`` was met and held for `HOLD` batches. A
    run that ends because nothing is left to label keeps its last policy. Cost: at most draws X draws and ``labels``.
    """
    spec = Spec(env.prompt_probs, env.dim, labels, draws * len(env.prompt_probs), batch, kl=kl)
    span = HOLD * batch

    def columns(run: Driver) -> tuple[list[int], list[float]]:
        return [int(row["labels"]) for row in run.history], [float(row["value"]) for row in run.history]

    def measure(policy: Policy) -> Info:
        return {"value": value_at_kl(env, env.features @ policy.theta, kl)}

    def observe(run: Driver) -> None:
        bought, values = columns(run)
        if not run.reason and math.isfinite(first_held(bought, values, target, span=span, final=False)):
            run.reason = "held"

    with Ledger.open(None, meta={"seed": seed}, prompts=list(env.prompts)) as ledger:
        run = Driver(env, explorer_by_name(explorer), env.reward(seed), ledger, spec, seed=seed, observe=observe)
        run.measure = measure
        run.explore()
    bought, values = columns(run)
    held = first_held(bought, values, target, span=span, final=bought[-1] < labels)
    return Trace(tuple(bought), tuple(values), held)


def first_held(labels: Sequence[int], values: Sequence[float], target: float, *, span: int, final: bool) -> float:
    """Labels at which the target is met, and stays met for ``span`` further labels; inf where it never is.

    ``final``: no policy comes after the last one, so that its value holds for good.
    """
    for start in labels:
        within = [value for at, value in zip(labels, values, strict=True) if start <= at <= start + span]
        if min(within) >= target and (final or labels[-1] >= start + span):
            return float(start)
    return math.inf
