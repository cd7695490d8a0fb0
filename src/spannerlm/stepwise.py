"""Draws after a prefix, and sequences put together step by step from draws that are tilted (THEORY 5).

At each step some draws come from pi_ref and one of them is kept. Two rules for which (ours):

* ``key``: the largest weight / uniform, as `spannerlm.samplers` has it for whole responses. Its law is that of the
  tilted policy but for a total variation of at most ``(1 - 1/C)^n``, C the coverage of this one step.
* ``odds``: with odds count exp(f / beta), self-normalised resampling, which is off by about C / n.

`resampled_law` is the exact law of either where pi_ref can be enumerated, `sampled_table` that of a policy, for
``env.regret``. `rolled` and `walked` use ``key``: no other rule that returns one of n draws can promise more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import logsumexp

from spannerlm.errors import InputError
from spannerlm.oracle import TokenOracle
from spannerlm.policy import StepEnvironment, StepSoftmaxPolicy, tilt
from spannerlm.records import Drawn, DrawRequest, Draws, FloatArray, Rollout, StepTilt
from spannerlm.samplers import Scan, absorb, adaptive_law, finish, pool_sample

Rule = Literal["key", "odds"]
"""Which of the draws of a step is kept."""
NODE = 0.25
"""Distance of the nodes of a quadrature in log t: the trapezoid's error is about exp(-pi^2 / NODE)."""
TAIL = 42.0
"""How many factors of e below the smallest scale it begins: what lies before has a mass of exp(-TAIL)."""


# --- exact laws -----------------------------------------------------------------------------------------------------


def resampled_law(base_probs: FloatArray, scores: FloatArray, beta: float, n: int, *, rule: Rule = "key") -> FloatArray:
    """[..., A] exact law of the one that is kept of ``n`` draws from base_probs [..., A] with these scores [..., A].

    With ``odds``, w = exp(score / beta) and M(t) = sum_b p_b exp(-t w_b):
    ``law(a) = n p_a w_a int_0^inf exp(-t w_a) M(t)^(n-1) dt``, by the trapezoid rule in log t. With ``key`` it is
    `spannerlm.samplers.adaptive_law`, in closed form. Both are the base law for n = 1 and the tilted one as n grows.
    Cost: no draws. Raises `InputError` for shapes that differ, n < 1, beta <= 0, scores that are not finite.
    """
    base, values = np.asarray(base_probs, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if base.shape != values.shape or base.ndim < 1:
        raise InputError(f"scores: expected one per probability, shape {base.shape}, got {values.shape}")
    if n < 1 or not beta > 0.0 or not np.all(np.isfinite(values)):
        raise InputError(f"expected n of at least 1, a positive beta and finite scores, got n={n} and beta={beta}")
    if rule not in ("key", "odds"):
        raise InputError(f"rule: expected 'key' or 'odds', got {rule!r}")
    one = adaptive_law if rule == "key" else _odds_law
    rows = zip(base.reshape(-1, base.shape[-1]), values.reshape(-1, base.shape[-1]) / beta, strict=True)
    return np.array([one(p, log_weights, n) for p, log_weights in rows]).reshape(base.shape)


def resampling_bias(
    base_probs: FloatArray, scores: FloatArray, beta: float, n: int, *, rule: Rule = "key"
) -> FloatArray:
    """[...] exact total variation between `resampled_law` and the tilted law, of each step.

    That of whole sequences is at most the expected sum of it along them.
    """
    law = resampled_law(base_probs, scores, beta, n, rule=rule)
    return np.asarray(0.5 * np.abs(law - tilt(base_probs, scores, beta)).sum(axis=-1))


def sampled_table(policy: StepSoftmaxPolicy, env: StepEnvironment, n: int, *, rule: Rule = "key") -> FloatArray:
    """[H, S, A] what is played where a step of the policy is resampled from ``n`` draws: `policy.table` as n grows.

    ``env.regret`` of it is the exact regret of the sampler. Time: H S laws of A actions.
    """
    scores = np.einsum("hsad,hd->hsa", env.features, policy.theta)
    return resampled_law(env.base_probs, scores, policy.beta, n, rule=rule)


def expected_draws(base_probs: FloatArray, scores: FloatArray, beta: float, n: int, level: float) -> FloatArray:
    """[...] draws of one step that `walked` makes on average, one at a time: it stops at the first key above ``level``,
    in score units, and after ``n``.

    With ``level`` at or above every score the law is that of ``n`` draws all the same: what the largest of n keys adds
    to the first one above the largest weight is what happens where there is none.
    """
    reached = np.sum(base_probs * np.exp(np.minimum(0.0, (scores - level) / beta)), axis=-1, keepdims=True)
    missed = np.clip(1.0 - reached, 0.0, 1.0)
    return np.asarray((missed ** np.arange(n)).sum(axis=-1))


def _odds_law(base_probs: FloatArray, log_weights: FloatArray, n: int) -> FloatArray:
    """[A] the law of resampling with odds count times weight, for one row."""
    law = np.zeros_like(base_probs)
    possible = base_probs > 0.0
    p, logw = base_probs[possible], log_weights[possible] - np.max(log_weights[possible])
    if n == 1:
        law[possible] = p
        return law
    u = np.arange(-TAIL - np.log(n), TAIL / 6.0 - np.min(logw), NODE)  # log t; exp(-exp(TAIL / 6)) is 0
    with np.errstate(over="ignore"):
        x = np.exp(u[:, None] + logw)  # [K, A] t w
    log_m = logsumexp(-x, axis=1, b=p, keepdims=True)
    law[possible] = NODE * np.exp(np.log(n * p) + logw + u[:, None] - x + (n - 1) * log_m).sum(axis=0)
    return law


# --- draws ----------------------------------------------------------------------------------------------------------


def rolled(oracle: TokenOracle, request: DrawRequest, *, rng: np.random.Generator) -> Drawn:
    """The outcome of a request with prefixes: ``n`` next segments after each; with a `StepTilt`, on to the end.

    At each step ``n`` draws come from pi_ref and the one of the largest key is kept (module text): the tilted law as n
    grows. Every draw is returned, by step, with its prefix; ``paths`` has what was kept. Cost: n segments per step
    and prompt.
    """
    assert request.prefixes is not None  # the caller has looked
    if request.tilt is None:
        draws = oracle.extend(request.prompts, request.prefixes, request.n, rng=rng)
        return _outcome(oracle, request, draws)
    assert isinstance(request.tilt, StepTilt)  # a Tilt is for whole responses
    paths = list(request.prefixes)
    found: list[Draws] = []
    while rows := [i for i, path in enumerate(paths) if not oracle.complete(request.prompts[i], path)]:
        records = oracle.extend([request.prompts[i] for i in rows], [paths[i] for i in rows], request.n, rng=rng)
        found += records
        for i, record in zip(rows, records, strict=True):
            scores = record.features @ request.tilt.theta[len(paths[i])]
            kept = pool_sample(scores / request.tilt.beta, record.counts, 1, rng, distinct=True)
            paths[i] = (*paths[i], record.responses[int(kept[0])])
    return _outcome(oracle, request, tuple(found), _rollouts(oracle, request.prompts, paths))


@dataclass(frozen=True, eq=False)
class Walk:
    """Complete sequences of a step-by-step policy, and what they cost."""

    paths: tuple[Rollout, ...]
    """[m]"""
    draws: tuple[int, ...]
    """[m] segments drawn for each."""
    tokens: tuple[int, ...]
    """[m] tokens generated for each."""
    exhausted: tuple[int, ...]
    """[m] steps that made all n draws with no key above the level: where the law may be off. 0 without levels."""


def walked(
    oracle: TokenOracle,
    prompts: Sequence[int],
    theta: FloatArray,
    beta: float,
    n: int,
    *,
    levels: FloatArray | None = None,
    block: int = 4,
    rng: np.random.Generator,
) -> Walk:
    """[m] one complete sequence for each prompt under theta [H, d], from at most ``n`` draws per step.

    ``levels`` [H]: largest score <theta_h, phi> that was seen before at each step, of other draws. A step ends early,
    after a multiple of ``block`` draws, where a key lies above it; that leaves the law of ``n`` draws as it is unless a
    weight exceeds its level (`expected_draws`). Without levels each step makes all n. Cost: n segments per step and
    prompt at most.
    """
    if n < 1 or block < 1:
        raise InputError(f"expected at least one draw per step and block, got n={n} and block={block}")
    paths: list[tuple[str, ...]] = [()] * len(prompts)
    spent, tokens, exhausted = ([0] * len(prompts) for _ in range(3))
    while rows := [i for i, path in enumerate(paths) if not oracle.complete(prompts[i], path)]:
        scans = {i: Scan(k=1, log_level=np.inf if levels is None else levels[len(paths[i])] / beta) for i in rows}
        left, size = rows, n if levels is None else min(block, n)
        while left:
            records = oracle.extend([prompts[i] for i in left], [paths[i] for i in left], size, rng=rng)
            for i, record in zip(left, records, strict=True):
                tokens[i] += oracle.tokens(record)
                scans[i] = absorb(scans[i], record, record.features @ theta[len(paths[i])] / beta, rng=rng)
            left = [i for i in left if scans[i].scanned < n and scans[i].log_keys[0] < scans[i].log_level]
            size = min(block, n - scans[left[0]].scanned) if left else 0  # all that are left have made equally many
        for i in rows:
            kept = finish(scans[i])
            spent[i] += kept.spent
            exhausted[i] += kept.exhausted and levels is not None
            paths[i] = (*paths[i], kept.responses[0])
    return Walk(_rollouts(oracle, prompts, paths), tuple(spent), tuple(tokens), tuple(exhausted))


def largest_scores(theta: FloatArray, records: Iterable[tuple[int, Iterable[FloatArray]]]) -> FloatArray:
    """[H] largest score under theta [H, d] of records (step, features, [d] each); inf at a step that has none.

    The levels of `walked`.
    """
    levels = np.full(len(theta), -np.inf)
    for step, features in records:
        levels[step] = max(levels[step], float(np.max(np.array(list(features)) @ theta[step])))
    return np.where(levels > -np.inf, levels, np.inf)


def _rollouts(oracle: TokenOracle, prompts: Sequence[int], paths: Sequence[tuple[str, ...]]) -> tuple[Rollout, ...]:
    return tuple(Rollout(x, path, oracle.joined(x, path)) for x, path in zip(prompts, paths, strict=True))


def _outcome(
    oracle: TokenOracle, request: DrawRequest, draws: tuple[Draws, ...], kept: tuple[Rollout, ...] = ()
) -> Drawn:
    tokens = sum(oracle.tokens(record) for record in draws)
    return Drawn(draws, request.n * len(draws), info=request.info, paths=kept, tokens=tokens)
