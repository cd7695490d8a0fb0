"""In how many directions the draws of a model differ, and whether a few pairs of them span the rest (THEORY 3; ours).

For one feature map. Only differences within a prompt matter, so everything rests on relative features. No labels are
needed: the units of the spanner are those of a prior that holds before the first label.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri, xlogy

from spannerlm.coverage import Interval
from spannerlm.foundation.pool import CONFIDENCE, Pool
from spannerlm.records import Draws, FloatArray, IntArray
from spannerlm.spanner import Spanner, certify, disjoint_pairs, greedy_pair
from spannerlm.wording import count, few, share

NU = 1.0
"""Radius of the spanner. At 1 no pair is taken twice: a pair in Sigma has norm^2 = u / (1 + u) < 1, so a pair counts as
spanned from when its reward difference is known as well as one noisy look at it would tell."""
POINTS = 9
"""Points of the growth curve."""
SHARE = 0.95
"""Share of the variance whose directions are counted."""
SLACK = 0.2
"""Share, in variance, of one more draw in a direction of its own that the interval of the effective rank allows for.
Set on tables with seeds from 1000 on."""
ROUNDING = 1e-12
"""Variance, relative to the mean square, that is taken for rounding."""


@dataclass(frozen=True)
class Growth:
    """How large the spanner is after so many draws."""

    draws: int
    """Of each prompt."""
    pairs: int


@dataclass(frozen=True)
class Span:
    """What the draws span on one feature map. Intervals are of 95 %."""

    map: str
    dim: int
    spectrum: tuple[float, ...]
    """[dim] eigenvalues of the within-prompt covariance as shares of their sum, falling; zeros if nothing varies."""
    effective_rank: Interval
    """exp of the spectrum's entropy: 1 .. dim; nan if nothing varies."""
    directions_95: int
    """Fewest directions that hold 95 % of the variance; 0 if nothing varies."""
    growth: tuple[Growth, ...]
    """Pairs of the spanner against the draws of each prompt that it has looked at; up to half of the draws."""
    nu: float
    penalty: float
    """S of Sigma_0 = S I: variance within prompts of the first half of the draws; 1 if nothing varies."""
    eta: float
    """Certificate (THEORY 3): at most this share of pairs of fresh draws lies beyond ``nu``; 1 if a tested one did."""
    radius: float
    """Largest norm among the pairs tested; nan if there are none."""
    eta_radius: float
    """At most this share of pairs of fresh draws lies beyond ``radius``."""
    acceptances: int
    """Pairs in the spanner."""
    tested: int
    """Disjoint pairs of the other half of the draws, as many of each prompt."""
    beyond: int
    """How many of them lie beyond ``nu``."""
    statements: tuple[str, ...]


def span(pool: Pool, name: str, *, rng: np.random.Generator) -> Span:
    """How many directions of the map ``name`` the draws of ``pool`` vary in, and the spanner of half of them.

    Sigma starts at S I, S the variance within prompts: the prior under which the rewards of a prompt's draws spread as
    much as the noise of a label does. In these units a pair beyond ``nu`` is one whose reward difference would remain
    uncertain by more than nu standard deviations of that noise, were the pairs of the spanner labelled. The spanner is
    grown on growing parts of one half of the draws, farthest pairs first, and tested on the other half. The certificate
    is for the average over these prompts. Cost: no draws, no labels.
    """
    features = [phi - (d.counts @ phi) / d.counts.sum() for d, phi in zip(pool.draws, pool.features(name), strict=True)]
    square = float(
        sum(d.counts @ np.sum(phi**2, axis=1) for d, phi in zip(pool.draws, pool.features(name), strict=True))
    )
    counts = pool.counts()
    values, vectors = _spectrum(features, counts, ROUNDING * square)
    total = float(values.sum())
    rank = _effective_rank(features, counts, values, vectors)
    first = [rng.multivariate_hypergeometric(c, pool.n // 2, method="marginals") for c in counts]
    rest = [c - half for c, half in zip(counts, first, strict=True)]
    scale = float(_spectrum(features, first, ROUNDING * square)[0].sum())
    penalty = scale if scale > 0.0 else 1.0
    spanner, growth = _grow(Spanner.start(penalty * np.eye(len(values))), features, first, rng)
    pairs = [disjoint_pairs(c, rng=rng) for c in rest]
    norms = np.concatenate([spanner.norms(f[p[:, 0]] - f[p[:, 1]]) for f, p in zip(features, pairs, strict=True)])
    proof = certify(norms, NU, 1.0 - CONFIDENCE, spanner.accepted)
    result = Span(
        map=name,
        dim=len(values),
        spectrum=tuple((values / total if total > 0.0 else values).tolist()),
        effective_rank=rank,
        directions_95=int(np.searchsorted(np.cumsum(values), (SHARE - 1e-9) * total)) + 1 if total > 0.0 else 0,
        growth=growth,
        nu=NU,
        penalty=penalty,
        eta=proof.eta,
        radius=proof.radius,
        eta_radius=proof.eta_radius,
        acceptances=spanner.accepted,
        tested=proof.pairs,
        beyond=proof.beyond,
        statements=(),
    )
    return replace(result, statements=_statements(result, len(pool.prompts), pool.n))


def _spectrum(
    features: list[FloatArray], counts: list[IntArray] | tuple[IntArray, ...], least: float
) -> tuple[FloatArray, FloatArray]:
    """(eigenvalues [d], falling, eigenvectors [d, d]) of the within-prompt covariance, mean over prompts.

    Unbiased: a degree of freedom per prompt is its mean's. All 0 where the draws' sum of squares is at most ``least``.
    """
    d = features[0].shape[1]
    outer = np.zeros((d, d))
    for phi, c in zip(features, counts, strict=True):
        if c.sum() > 1:
            z = phi - (c @ phi) / c.sum()
            outer += (z * c[:, None]).T @ z
    if float(np.trace(outer)) <= least:
        return np.zeros(d), np.eye(d)
    values, vectors = np.linalg.eigh(outer / (len(counts) * (int(counts[0].sum()) - 1)))
    return np.maximum(values[::-1], 0.0), vectors[:, ::-1]


def _effective_rank(
    features: list[FloatArray], counts: tuple[IntArray, ...], values: FloatArray, vectors: FloatArray
) -> Interval:
    """exp of the spectrum's entropy H, its bias of order 1/n removed, with a normal interval for H over draws.

    H = ln t - s / t with t = tr C and s = tr(C ln C). The delta method: the squared coordinates of the draws along the
    eigenvectors give the influence of each on H; their fourth moments, the variance of every entry of C in that basis,
    by which second-order perturbation of s and t is off on average.
    """
    total = float(values.sum())
    if total <= 0.0:
        return Interval(math.nan, math.nan, math.nan)
    n, size = int(counts[0].sum()), len(counts)
    positive = values > 1e-14 * total
    logs = np.log(values, out=np.zeros_like(values), where=positive)
    s = float(values @ logs)
    weights = np.where(positive, -(logs - s / total) / total, 0.0)  # dH / d lambda
    entries = np.zeros((len(values), len(values)))  # variance of each entry of C, in the basis of its eigenvectors
    variance = cross = spread = largest = 0.0
    for phi, c in zip(features, counts, strict=True):
        share_of = c / n
        z = phi @ vectors
        squares = z * z
        weighted = squares * share_of[:, None]
        means = weighted.sum(axis=0)
        entries += weighted.T @ squares - ((z * share_of[:, None]).T @ z) ** 2
        influence, norm, product = squares @ weights, squares.sum(axis=1), squares @ (logs + 1.0)
        largest = max(largest, float(norm.max()))
        variance += float(share_of @ (influence - means @ weights) ** 2)
        spread += float(share_of @ (norm - means.sum()) ** 2)
        cross += float(share_of @ ((norm - means.sum()) * (product - means @ (logs + 1.0))))
    scale = (n - 1) * size * size
    entries, variance, spread, cross = entries / scale, variance / scale, spread / scale, cross / scale
    both = np.logical_and.outer(positive, positive)
    gaps = np.subtract.outer(values, values)
    apart = both & (np.abs(gaps) > 1e-9 * total)
    slopes = np.divide(2.0, np.add.outer(values, values), out=np.zeros_like(gaps), where=both)  # of ln, where they meet
    np.divide(np.subtract.outer(logs, logs), gaps, out=slopes, where=apart)
    second = 0.5 * float(np.sum(slopes * entries))
    bias = -0.5 * spread / total**2 - second / total + cross / total**2 - s * spread / total**3
    entropy = -float(np.sum(xlogy(values / total, values / total)))
    one = min(largest / (n * size * total), 0.5)  # share of the variance that one more draw may add, in a new direction
    variance += SLACK * (one * (1.0 - math.log(one))) ** 2
    error = float(ndtri(0.5 + CONFIDENCE / 2.0)) * math.sqrt(variance)
    most = math.log(len(values))
    corrected = min(max(entropy - bias, 0.0), most)
    return Interval(math.exp(corrected), math.exp(max(corrected - error, 0.0)), math.exp(min(corrected + error, most)))


def _grow(
    spanner: Spanner, features: list[FloatArray], counts: list[IntArray], rng: np.random.Generator
) -> tuple[Spanner, tuple[Growth, ...]]:
    """The spanner of draws ``counts`` and its size on the way: at each point no pair of the draws so far is beyond nu.

    One pass over the prompts does, since norms only shrink.
    """
    n = int(counts[0].sum())
    orders = [rng.permutation(np.repeat(np.arange(len(c)), c)) for c in counts]
    growth = []
    for m in np.unique(np.geomspace(2, n, POINTS).round().astype(np.int64)) if n > 1 else ():
        for phi, order in zip(features, orders, strict=True):
            seen = phi[np.unique(order[:m])]
            draws = Draws(0, ("",) * len(seen), np.ones(len(seen), dtype=np.int64), seen)
            while (pair := greedy_pair(spanner, draws, NU)) is not None:
                spanner = spanner.accept(seen[pair.first] - seen[pair.second])
        growth.append(Growth(int(m), spanner.accepted))
    return spanner, tuple(growth)


def _pairs(n: int) -> str:
    return f"{count(n)} pair" if n == 1 else f"{count(n)} pairs"


def _statements(found: Span, size: int, draws: int) -> tuple[str, ...]:
    where = "these prompts" if size > 1 else "this prompt"
    if draws < 2:
        return (f"One draw of each prompt says nothing of how responses differ on map {found.map}.",)
    if found.directions_95 == 0:
        return (f"The draws of {where} do not differ on map {found.map}: it has nothing to tell responses apart by.",)
    rank = found.effective_rank
    out = [
        f"On map {found.map} the draws of {where} have an effective rank of {few(rank.value)} of {found.dim} (95 %: "
        f"{few(rank.low)} to {few(rank.high)}); 95 % of the variance lies in {found.directions_95} of the directions."
    ]
    if not found.growth:
        return (*out, "A spanner needs four draws of each prompt.")
    last = found.growth[-1]
    out.append(
        f"{_pairs(found.acceptances)} of draws span the first {count(last.draws)} draws of each prompt: were they "
        "labelled, no two of these draws would differ in reward by something less certain than one noisy label, under "
        "a prior of signal as large as noise."
    )
    if len(found.growth) > 2:
        before = found.growth[-2]
        grown = last.pairs - before.pairs
        out.append(
            f"From {count(before.draws)} to {count(last.draws)} draws of each prompt the spanner "
            + (f"grew by {_pairs(grown)}." if grown else "did not grow.")
        )
    if not found.tested:
        return tuple(out)
    sure = (
        f"with {100.0 * CONFIDENCE:.0f} % confidence, on average over {where}" if size > 1 else "with 95 % confidence"
    )
    if found.beyond == 0:
        out.append(
            f"Of {_pairs(found.tested)} of other draws none lies beyond it: at most {share(found.eta)} of pairs "
            f"do, {sure}."
        )
    else:
        out.append(
            f"Of {_pairs(found.tested)} of other draws {count(found.beyond)} lie beyond it, the farthest at "
            f"{few(found.radius)} times the noise: at most {share(found.eta_radius)} of pairs are farther, {sure}."
        )
    out.append("Behaviour rarer than the draws could show remains unseen: no rule can be free of this.")
    return tuple(out)
