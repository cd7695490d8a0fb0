"""Draws from the tilted policy pi_ref * exp(f / beta), made from base draws and their log-weights f / beta (THEORY 3).

* `softmax_sampler`: the paper's rejection sampler; it must be told the bound M on the density ratio.
* `adaptive_sampler`: told nothing. Every base draw gets the key ``weight / uniform``; the k largest keys win.
* `pool_sample`, `pool_weights`: the same rule over stored draws, averaged over the uniforms in closed form.

**Why the largest key (ours).** Let ``v = w / u`` with ``u`` uniform on (0, 1]. For every m above the largest possible
weight, ``P(v > m) = E[w] / m`` and, given ``v > m``, the draw has *exactly* the tilted law: accepting above m is
rejection sampling with bound m. So of N draws the largest keys above ``sup w`` are independent draws from the tilted
law, whatever m is, and neither the bound nor the normaliser has to be known to find them. With C = sup density
ratio, the k largest keys of N draws are k independent draws from the tilted law but for a total variation of at most
``P(Binomial(N, 1/C) < k)``, which for k = 1 is ``(1 - 1/C)^N``. No sampler that returns one of its draws can promise
less over all laws of coverage C: where the target sits on one response of base mass 1/C, that is the probability not
to see it. Keys ``weight / exponential`` instead give self-normalised importance resampling, whose error falls like C/N
only. (The keys are those of priority sampling: Duffield, Lund and Thorup, J. ACM 54(6), 2007. For k = 1 the law is
also that of the last state of independence Metropolis-Hastings run over the N draws.)

**N must not depend on the weights it is applied to.** A scan that goes on while its own weights look too uneven holds
the heavy ones back, and can be worse than stopping at once. So a scan whose length is not given is ruled by *other*
draws: a pilot, or draws stored before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from spannerlm.errors import InputError
from spannerlm.oracle import SamplingOracle
from spannerlm.records import Draws, FloatArray, IntArray

Draw = Callable[[int], Draws]
"""``draw(n)``: n independent base draws for one prompt, as distinct responses with counts. Cost: n draws."""
Score = Callable[[FloatArray], FloatArray]
"""``score(features [n, d]) -> [n]``: log-weights f(x, y) / beta; -inf means never, +inf and nan are refused."""

_NODES, _NODE_WEIGHTS = np.polynomial.laguerre.laggauss(24)
# 24 nodes: selection probabilities agree with adaptive quadrature to 1e-6 on pools from 1 to 10,000 draws.


@dataclass(frozen=True, eq=False)
class Accepted:
    """What a sampler returned for one prompt, and what that cost."""

    responses: tuple[str, ...]
    """[k] accepted responses; one response may come more than once."""
    features: FloatArray
    """[k, d] phi(x, y) of each."""
    log_weights: FloatArray
    """[k] f(x, y) / beta of each."""
    spent: int
    """Base draws made, rejected ones included."""
    exhausted: bool
    """True where the sampler ran out of draws, so that its law may be off."""
    effective_size: float
    """(sum w)^2 / sum w^2 over the base draws whose weights were looked at."""
    max_log_weight: float
    """Largest log-weight among them."""


@dataclass(frozen=True, eq=False)
class Scan:
    """State of a scan of one prompt: the k largest keys so far, what they must reach, and sums over every draw."""

    k: int
    """Responses wanted."""
    log_level: float = -math.inf
    """log of the key that k draws must reach; -inf where the length of the scan is fixed beforehand."""
    rate: float = 1.0
    """Share of draws expected to reach it."""
    responses: tuple[str, ...] = ()
    """[j] the draws with the largest keys, best first; j <= k, less only while fewer have a positive weight."""
    features: FloatArray = field(default_factory=lambda: np.zeros((0, 0)))
    """[j, d] their features."""
    log_weights: FloatArray = field(default_factory=lambda: np.zeros(0))
    """[j] their log-weights."""
    log_keys: FloatArray = field(default_factory=lambda: np.zeros(0))
    """[j] their log-keys, falling."""
    spent: int = 0
    """Base draws made, a pilot included."""
    scanned: int = 0
    """Those with a key, a pilot excluded."""
    log_sum: float = -math.inf
    """log of the sum of weights."""
    log_sum_squares: float = -math.inf
    """log of the sum of squared weights."""
    max_log_weight: float = -math.inf
    """Largest log-weight."""


def effective_sample_size(log_weights: FloatArray, counts: IntArray | None = None) -> float:
    """(sum w)^2 / sum w^2 of draws with these log-weights [n] and counts [n]; nan where no weight is positive.

    Between 1 and the number of draws. Cost: no draws, no labels. A large value is no proof of coverage: a response
    not yet seen has no weight in it.
    """
    logw, c = _checked(log_weights, counts)
    if not np.any((c > 0) & (logw > -np.inf)):
        return math.nan
    return math.exp(2.0 * _log_total(logw, c) - _log_total(2.0 * logw, c))


def top_sample_size(log_weights: FloatArray, counts: IntArray | None = None) -> float:
    """sum w / max w of draws with log-weights [n] and counts [n]; nan where no weight is positive.

    The expected number of draws that rejection at the largest weight seen would accept: what `adaptive_sampler` lives
    on, and never above `effective_sample_size`. Cost: no draws, no labels.
    """
    logw, c = _checked(log_weights, counts)
    if not np.any((c > 0) & (logw > -np.inf)):
        return math.nan
    return math.exp(_log_total(logw, c) - float(np.max(logw[c > 0])))


def softmax_sampler(draw: Draw, score: Score, *, bound: float, delta: float, rng: np.random.Generator) -> Accepted:
    """One response from SoftmaxSampler_{beta, M, delta} (THEORY 3), with M = ``bound``.

    N = ceil(4 M log(4 / delta)) base draws set Zhat, the mean weight. Then at most N further draws are scanned, each
    accepted with probability min(1, w / (M Zhat)); the first accepted is returned, else one more base draw
    and ``exhausted``. Cost: N draws, plus M Zhat / Z expected (drawn in blocks of ceil(M)); no labels.

    Valid where M is at least twice the sup of the density ratio: the law is then within delta in total variation. At
    M = C clipping leaves a floor (about .011 at C = 1000, delta = .01).
    """
    if not bound >= 1.0 or not 0.0 < delta < 1.0:
        raise InputError(f"softmax_sampler needs bound >= 1 and 0 < delta < 1; got bound={bound}, delta={delta}")
    size = math.ceil(4.0 * bound * math.log(4.0 / delta))
    first = draw(size)
    logw, counts = _checked(score(first.features), first.counts)
    log_level = math.log(bound) + _log_total(logw, counts) - math.log(size)
    seen = (effective_sample_size(logw, counts), float(np.max(logw[counts > 0])))
    spent, block, pick = size, first, -1
    while pick < 0 and spent < 2 * size:
        block = draw(min(math.ceil(bound), 2 * size - spent))
        logw, counts = _checked(score(block.features), block.counts)
        spent += int(counts.sum())
        accepted = rng.binomial(counts, np.exp(np.minimum(0.0, logw - log_level)))
        if accepted.any():  # every accepted draw of the block is equally likely to have come first
            pick = int(rng.choice(accepted.size, p=accepted / accepted.sum()))
    exhausted = pick < 0
    if exhausted:
        block, pick, spent = draw(1), 0, spent + 1
        logw, _ = _checked(score(block.features), block.counts)
    chosen = (block.responses[pick],), block.features[[pick]], logw[[pick]]
    return Accepted(*chosen, spent, exhausted, *seen)


def adaptive_sampler(
    draw: Draw,
    score: Score,
    *,
    k: int = 1,
    draws: int | None = None,
    seen: tuple[FloatArray, IntArray] | None = None,
    min_draws: int = 64,
    max_draws: int = 65_536,
    margin: float = 8.0,
    rng: np.random.Generator,
) -> Accepted:
    """k responses from the tilted policy by one scan of base draws; neither C nor Z need be known (module text).

    With ``draws`` the scan has that length N, and the k responses are within P(Binomial(N, 1/C) < k) of k independent
    tilted draws; ``exhausted`` says that one of their keys is below a weight that was seen. Cost: N draws.

    Without it a pilot of ``min_draws``, or the (log-weights [n], counts [n]) ``seen`` before, sets the level
    ``(1 + margin / e) max w`` with ``e = sum w / max w``: the fewer draws carry the pilot, the less its maximum is
    trusted. The scan then makes at least ``min_draws`` and stops when k keys reach the level, or at ``max_draws`` in
    all (``exhausted``). Its law is exact where no weight exceeds the level. Cost: ``min_draws + k C (1 + margin / e)``
    draws, once the largest weight has been seen. Zero tilt returns base draws exactly, whatever the options. No labels.

    The rule is blind, as any rule is, to what it has not seen: a response of base mass p is among n draws with
    probability 1 - (1 - p)^n. Raise ``min_draws`` against spikes, ``margin`` against tails (its size was chosen on
    lognormal, power-law and k-point weights: benchmarks/samplers.py).
    """
    if draws is not None:
        block = draw(draws)
        return finish(absorb(Scan(k=k), block, score(block.features), rng=rng))
    if seen is None:
        block = draw(min_draws)
        scan = start(score(block.features), block.counts, k=k, margin=margin, spent=min_draws)
    else:
        scan = start(*seen, k=k, margin=margin)
    while (n := wanted(scan, min_draws=min_draws, max_draws=max_draws)) > 0:
        block = draw(n)
        scan = absorb(scan, block, score(block.features), rng=rng)
    return finish(scan)


def adaptive_samples(
    oracle: SamplingOracle,
    prompts: Sequence[int],
    scores: Sequence[Score],
    *,
    k: int = 1,
    min_draws: int = 64,
    max_draws: int = 65_536,
    margin: float = 8.0,
    rng: np.random.Generator,
) -> tuple[Accepted, ...]:
    """[m] what `adaptive_sampler` returns for each of m prompts, their draws asked for together, round by round.

    ``scores``: [m] one score per prompt. In a round, prompts that want equally many draws share one oracle call.
    """
    pilots = oracle.draw(prompts, min_draws, rng=rng)
    scans = [
        start(score(pilot.features), pilot.counts, k=k, margin=margin, spent=min_draws)
        for pilot, score in zip(pilots, scores, strict=True)
    ]
    while any(need := [wanted(scan, min_draws=min_draws, max_draws=max_draws) for scan in scans]):
        for n in sorted(set(need) - {0}):
            rows = [i for i, x in enumerate(need) if x == n]
            for i, draws in zip(rows, oracle.draw([prompts[i] for i in rows], n, rng=rng), strict=True):
                scans[i] = absorb(scans[i], draws, scores[i](draws.features), rng=rng)
    return tuple(finish(scan) for scan in scans)


def start(
    log_weights: FloatArray, counts: IntArray | None = None, *, k: int = 1, margin: float = 8.0, spent: int = 0
) -> Scan:
    """The scan for k responses whose level these draws set (log-weights [n], counts [n]); they are not candidates.

    ``spent``: what they cost, 0 where they were there before.
    """
    logw, c = _checked(log_weights, counts)
    if k < 1 or margin < 0.0 or not np.any((c > 0) & (logw > -np.inf)):
        raise InputError(f"a scan needs k >= 1, margin >= 0 and a pilot with a positive weight; got {k=}, {margin=}")
    top, size = float(np.max(logw[c > 0])), top_sample_size(logw, c)
    factor = 1.0 + margin / size
    return Scan(
        k=k,
        log_level=top + math.log(factor),
        rate=size / float(c.sum()) / factor,
        spent=spent,
        log_sum=_log_total(logw, c),
        log_sum_squares=_log_total(2.0 * logw, c),
        max_log_weight=top,
    )


def wanted(scan: Scan, *, min_draws: int = 64, max_draws: int = 65_536) -> int:
    """How many more base draws the scan asks for; 0 when k keys reach its level or ``max_draws`` are spent.

    As many as the pilot expects it to take, in multiples of ``min_draws`` so that prompts share calls.
    """
    missing = scan.k - int(np.sum(scan.log_keys >= scan.log_level))
    if missing <= 0 and scan.scanned >= min_draws:
        return 0
    n = min_draws * math.ceil(max(1.0, missing / scan.rate) / min_draws)
    return max(0, min(n, max_draws - scan.spent))


def absorb(scan: Scan, draws: Draws, log_weights: FloatArray, *, rng: np.random.Generator) -> Scan:
    """The scan after these draws, whose log-weights are [n]. Cost: nothing beyond the draws themselves."""
    logw, counts = _checked(log_weights, draws.counts)
    log_keys = _log_keys(logw, counts, scan.k, rng)  # [n, j]
    rows, columns = np.nonzero(log_keys > -np.inf)
    keys = np.concatenate([scan.log_keys, log_keys[rows, columns]])
    order = np.argsort(-keys, kind="stable")[: scan.k]
    held = len(scan.responses)
    return replace(
        scan,
        responses=tuple(scan.responses[i] if i < held else draws.responses[rows[i - held]] for i in order),
        features=np.concatenate([scan.features.reshape(held, draws.features.shape[1]), draws.features[rows]])[order],
        log_weights=np.concatenate([scan.log_weights, logw[rows]])[order],
        log_keys=keys[order],
        spent=scan.spent + int(counts.sum()),
        scanned=scan.scanned + int(counts.sum()),
        log_sum=float(np.logaddexp(scan.log_sum, _log_total(logw, counts))),
        log_sum_squares=float(np.logaddexp(scan.log_sum_squares, _log_total(2.0 * logw, counts))),
        max_log_weight=max(scan.max_log_weight, float(np.max(logw[counts > 0], initial=-np.inf))),
    )


def finish(scan: Scan) -> Accepted:
    """The scan's responses, best key first; fewer than k where fewer draws than k had a positive weight."""
    some = scan.max_log_weight > -math.inf
    level = scan.log_level if scan.log_level > -math.inf else scan.max_log_weight
    return Accepted(
        responses=scan.responses,
        features=scan.features,
        log_weights=scan.log_weights,
        spent=scan.spent,
        exhausted=int(np.sum(scan.log_keys >= level)) < scan.k,
        effective_size=math.exp(2.0 * scan.log_sum - scan.log_sum_squares) if some else math.nan,
        max_log_weight=scan.max_log_weight,
    )


def pool_weights(log_weights: FloatArray, counts: IntArray | None = None) -> FloatArray:
    """[n] probability that the largest key falls on each of the stored draws (log-weights [n], counts [n]).

    What `adaptive_sampler` would return, averaged over its uniforms: with r = w / max w,
    ``q_i = int_0^1 c_i r_i / (1 - s r_i) prod_j (1 - s r_j)^{c_j} ds``. Use in place of self-normalised weights
    ``w / sum w``: averaged over pools of N draws, the law q differs from the tilted one by at most (1 - 1/C)^N, where
    self-normalising is off by about C/N. As estimator of a mean from one pool, its bias was 2 to 7 times smaller on
    lognormal weights and its error up to 14 % larger (the heaviest draw weighs more): it pays where many prompts are
    averaged. Cost: no draws, no labels, O(24 n) time. Sums to 1; nan where no weight is positive.
    """
    logw, c = _checked(log_weights, counts)
    if not np.any((c > 0) & (logw > -np.inf)):
        return np.full(logw.shape, np.nan)
    r = np.where(c > 0, np.exp(np.minimum(0.0, logw - np.max(logw[c > 0]))), 0.0)
    tau = _NODES / (c @ r)  # [24]; s = 1 - exp(-tau) is where the hazard -sum_j c_j log(1 - s r_j) reaches the node
    for _ in range(50):  # the hazard is concave in tau, so Newton from the left rises to the root; 6 steps are usual
        fade = (1.0 - r) + r * np.exp(-tau)[:, None]  # [24, n] = 1 - s r
        step = (_NODES + np.log(fade) @ c) * np.exp(tau) / ((r / fade) @ c)
        tau = tau + step
        if np.all(np.abs(step) <= 1e-12 * tau):
            break
    share = c * r / ((1.0 - r) + r * np.exp(-tau)[:, None])  # [24, n]
    q = _NODE_WEIGHTS @ (share / share.sum(axis=1, keepdims=True))  # [n]
    return np.asarray(q / q.sum(), dtype=np.float64)


def pool_sample(
    log_weights: FloatArray, counts: IntArray | None, k: int, rng: np.random.Generator, *, distinct: bool = False
) -> IntArray:
    """[k] indices of stored draws of one prompt (log-weights [n], counts [n]), from the tilted law by the largest key.

    Each index alone has the law of `pool_weights`. They are independent given the pool; with ``distinct`` they are the
    k largest keys of one scan, so that a stored draw is used once (a response with count c at most c times): of a
    pool of N draws these are k independent tilted draws but for P(Binomial(N, 1/C) < k). Cost: no draws, no labels.
    """
    logw, c = _checked(log_weights, counts)
    if not distinct:
        q = np.cumsum(pool_weights(logw, c))
        if np.isnan(q[-1]):
            raise InputError("pool_sample needs a stored draw of positive weight; every log-weight is -inf")
        return np.asarray(np.searchsorted(q / q[-1], rng.random(k), side="right"), dtype=np.int64)
    log_keys = _log_keys(logw, c, k, rng)
    rows, columns = np.nonzero(log_keys > -np.inf)
    if rows.size < k:
        raise InputError(f"pool_sample needs {k} stored draws of positive weight to be distinct; there are {rows.size}")
    return np.asarray(rows[np.argsort(-log_keys[rows, columns], kind="stable")[:k]], dtype=np.int64)


def adaptive_law(base_probs: FloatArray, log_weights: FloatArray, n: int) -> FloatArray:
    """[Y] exact law of the largest key of ``n`` draws: what `adaptive_sampler` returns with k = 1 and n draws fixed.

    ``base_probs`` [Y] and ``log_weights`` [Y] of a finite law. With t the tilted law, T(m) its mass on weights <= m and
    ``G(m) = P(no key above m) = (1 - E min(1, w / m))^n``: ``law(y) = t(y) int_{m > w(y)} dG(m) / T(m)``; T is 1 above
    every weight, so only the levels below contribute an error, in all at most G(max w) = (1 - 1/C)^n. Where some
    weights are 0 the law may sum to less than 1: what is missing is the probability that no draw has a weight.
    """
    p = np.asarray(base_probs, dtype=np.float64)
    logw, _ = _checked(log_weights, None)
    r = np.where(p > 0, np.exp(logw - np.max(logw[p > 0])), 0.0)
    tilted = p * r / (p @ r)
    levels = np.unique(r[p * r > 0])[::-1]  # [L] falling
    quiet = np.array([np.clip(1.0 - p @ np.minimum(1.0, r / m), 0.0, 1.0) ** n for m in levels])
    mass = np.array([tilted[r <= m].sum() for m in levels])
    gain = np.cumsum(np.append(1.0 - quiet[0], (quiet[:-1] - quiet[1:]) / mass[1:]))  # [L]
    index = np.searchsorted(-levels, -r)
    return np.where(p * r > 0, tilted * gain[np.minimum(index, levels.size - 1)], 0.0)


def _log_keys(logw: FloatArray, counts: IntArray, k: int, rng: np.random.Generator) -> FloatArray:
    """[n, j] log of the min(k, count) largest keys w / u of each response's copies; -inf beyond its count."""
    copies = np.arange(max(1, min(k, int(counts.max(initial=0)))))
    left = counts[:, None] - copies  # [n, j] copies whose uniform is not yet placed
    gaps = rng.standard_exponential(left.shape) / np.maximum(left, 1)
    log_uniform = np.log(-np.expm1(-np.cumsum(gaps, axis=1)))  # smallest uniforms in rising order (Renyi)
    return np.where(left > 0, logw[:, None] - log_uniform, -np.inf)


def _log_total(logw: FloatArray, counts: IntArray) -> float:
    """log of the total weight of draws; -inf where there is none. Calls are small: SciPy's takes 10 times as long."""
    top = float(np.max(logw[counts > 0], initial=-np.inf))
    return top + math.log(float(counts @ np.exp(np.minimum(0.0, logw - top)))) if top > -math.inf else -math.inf


def _checked(log_weights: FloatArray, counts: IntArray | None) -> tuple[FloatArray, IntArray]:
    """([n], [n]) float64 log-weights and their counts, one each by default."""
    logw = np.asarray(log_weights, dtype=np.float64)
    c = np.ones(logw.shape, dtype=np.int64) if counts is None else np.asarray(counts, dtype=np.int64)
    if logw.ndim != 1 or c.shape != logw.shape or np.any(c < 0):
        raise InputError(f"expected log-weights [n] and counts [n] >= 0; got shapes {logw.shape} and {c.shape}")
    if np.any(np.isnan(logw)) or np.any(logw == np.inf):
        raise InputError(
            "a log-weight f / beta is nan or +inf; expected finite values or -inf. Check theta, the features and beta"
        )
    return logw, c
