"""Pools: the draws of each prompt that an explorer keeps to choose from, distinct responses with counts."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from spannerlm.explorers.learner import Learner
from spannerlm.policy import LinearSoftmaxPolicy, Policy, beta_for_kl, padded
from spannerlm.records import DrawRequest, Draws, FloatArray, IntArray, Request, Spec, StopRequest

Pools = Mapping[int, Draws]
"""Prompt index -> all of its draws so far."""


def merge(first: Draws, second: Draws) -> Draws:
    """The draws of one prompt from both records, distinct responses with added counts."""
    index = {response: i for i, response in enumerate(first.responses)}
    rows = np.array([index.get(response, -1) for response in second.responses], dtype=np.int64)
    new = np.flatnonzero(rows < 0)
    counts = first.counts.copy()
    np.add.at(counts, rows[rows >= 0], second.counts[rows >= 0])
    return Draws(
        first.prompt,
        first.responses + tuple(second.responses[i] for i in new),
        np.concatenate([counts, second.counts[new]]),
        np.concatenate([first.features, second.features[new]]),
    )


def add(pools: Pools, draws: tuple[Draws, ...]) -> Pools:
    """The pools with these draws added."""
    merged = dict(pools)
    for record in draws:
        old = merged.get(record.prompt)
        merged[record.prompt] = record if old is None else merge(old, record)
    return MappingProxyType(merged)


def sample_prompts(spec: Spec, limit: int, *, rng: np.random.Generator) -> tuple[int, ...]:
    """Every prompt of positive probability where there are at most ``limit``, else ``limit`` distinct ones from rho."""
    support = np.flatnonzero(spec.prompt_probs)
    if len(support) <= limit:
        return tuple(int(x) for x in support)
    chosen = rng.choice(len(spec.prompt_probs), size=limit, replace=False, p=spec.prompt_probs)
    return tuple(int(x) for x in np.sort(chosen))


def random_prompts(spec: Spec, pools: Pools, size: int, *, rng: np.random.Generator) -> IntArray:
    """[size] prompts from rho, restricted to those with a pool."""
    having = np.array(sorted(pools), dtype=np.int64)
    weights = spec.prompt_probs[having]
    return rng.choice(having, size=size, p=weights / weights.sum())


def affordable(draws: float, each: int, limit: int) -> int:
    """How many times ``each`` draws fit into a budget of ``draws``, inf for no budget: ``limit`` at most."""
    return limit if draws == float("inf") else max(0, min(limit, int(draws) // each))


def opening(learner: Learner, n: int, limit: int, *, rng: np.random.Generator, reserve: int = 0) -> Request:
    """The request for the first pool: n draws for each of at most ``limit`` prompts, fewer where the budget says so.

    ``reserve`` draws are kept for later, as far as two draws a prompt leave them.
    """
    prompts = sample_prompts(learner.spec, limit, rng=rng)
    size = affordable(learner.draws_left, len(prompts), n)
    size = max(min(size, 2), affordable(learner.draws_left - reserve, len(prompts), size))
    if size < 2:
        return StopRequest(f"a pool takes at least 2 draws for each of {len(prompts)} prompts; raise the draws budget")
    return DrawRequest(prompts, size, info={"phase": "pool", "seed": int(rng.integers(2**31))})


def tilted_policy(learner: Learner, pools: Pools) -> Policy:
    """The linear softmax policy of the posterior mean, at beta or at the temperature that spends the KL budget."""
    return LinearSoftmaxPolicy(learner.theta, temperature(learner, pools, learner.theta))


def temperature(learner: Learner, pools: Pools, theta: FloatArray) -> float:
    """beta of the run; with a KL budget, the one at which tilting by ``theta`` spends it on the pools."""
    spec = learner.spec
    if spec.beta is not None:
        return spec.beta
    if not pools:
        return float("inf")
    weights = padded([draws.counts / draws.counts.sum() for draws in pools.values()])
    return beta_for_kl(weights, padded([draws.features @ theta for draws in pools.values()]), spec.kl or 0.0)
