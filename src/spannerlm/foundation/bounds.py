"""Laws over the scores drawn, their tilts, and laws that may lie behind a pool of draws (ours)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spannerlm.coverage import Interval
from spannerlm.records import FloatArray, IntArray

BINS = 256
"""Scores of one prompt beyond this many distinct ones are merged into bins of equal width, at their means."""
SOFTEST = math.exp(-12.0)
"""Inverse temperatures are searched between this and its inverse, over the widest range of scores."""


@dataclass(frozen=True, eq=False)
class ScoreLaws:
    """For each prompt, a law over scores: rows rise, the last column is the response that no draw has shown."""

    scores: FloatArray
    """[X, K] rising in each row."""
    masses: FloatArray
    """[X, K] rows sum to 1, or how often each score was drawn."""

    def mean(self) -> FloatArray:
        """[X] mean score under the laws."""
        return np.asarray(np.sum(self.masses * self.scores, axis=1))

    def tilted(self, inverse: float) -> FloatArray:
        """[X, K] the laws tilted by exp(inverse * score), normalised."""
        weights = self.masses * np.exp(inverse * np.minimum(self.scores - self._top(), 0.0))
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))

    def inverse_for_kl(self, kl: float, start: float | None = None) -> float:
        """1 / beta at which tilting costs ``kl`` nats on average: `spannerlm.policy.beta_for_kl` for many near laws.

        Newton's method on log KL as a function of log(1 / beta), kept in a shrinking bracket. 0 where no tilt is
        possible, the largest inverse temperature tried where ``kl`` is beyond the support.
        """
        top = self._top()
        falls = np.where(self.masses > 0.0, self.scores - top, 0.0)
        widest = -float(np.min(falls))
        if widest <= 0.0 or kl <= 0.0:
            return 0.0
        low, high = math.log(SOFTEST / widest), -math.log(SOFTEST * widest)
        at = min(max(math.log(start if start else 1.0 / widest), low), high)
        for _ in range(60):
            inverse = math.exp(at)
            weights = self.masses * np.exp(inverse * falls)
            totals = weights.sum(axis=1)
            means = np.sum(weights * falls, axis=1) / totals
            cost = float(np.mean(inverse * means - np.log(totals)))
            if abs(cost - kl) <= 1e-6 * kl or high - low < 1e-7:
                break
            low, high = (at, high) if cost < kl else (low, at)
            spread = float(np.mean(np.sum(weights * falls**2, axis=1) / totals - means**2))
            slope = inverse**2 * spread / cost if cost > 0.0 else 0.0  # d log KL / d log inverse
            step = at + math.log(kl / cost) / slope if slope > 1e-6 else math.nan
            at = step if low < step < high else (low + high) / 2.0
        return math.exp(at)

    def value(self, inverse: float) -> float:
        """Mean over prompts of the expected score under the tilted laws."""
        return float(np.mean(np.sum(self.tilted(inverse) * self.scores, axis=1)))

    def ratio_quantile(self, inverse: float, level: float) -> float:
        """Quantile, under prompt uniform and score tilted, of the density ratio of the tilted law and the law."""
        tilted, ratios = self.tilted(inverse), self._ratios(inverse)
        order = np.argsort(ratios, axis=None)
        reached = np.cumsum(tilted.ravel()[order]) / len(tilted)
        return float(ratios.ravel()[order][min(int(np.searchsorted(reached, level - 1e-12)), reached.size - 1)])

    def draws_per_accept(self, inverse: float, clipped: float) -> FloatArray:
        """[X] draws of the law per accepted response: `spannerlm.coverage.draws_per_accept`, all prompts at once."""
        ratios, tilted, masses = (t[:, ::-1] for t in (self._ratios(inverse), self.tilted(inverse), self.masses))
        carried, tail = np.cumsum(tilted, axis=1), np.cumsum(masses, axis=1)
        below = np.concatenate([ratios[:, 1:], np.zeros((len(ratios), 1))], axis=1)
        first = np.argmax(carried - tail * below > clipped, axis=1)[:, None]
        carried, tail = (np.take_along_axis(t, first, axis=1)[:, 0] for t in (carried, tail))
        return np.asarray((carried - clipped) / tail / (1.0 - clipped))

    def stored_gain(self, inverse: float, sizes: FloatArray) -> FloatArray:
        """[N] expected gain, mean over prompts, of a pool of so many draws weighted by exp(inverse * score).

        Exact: E[sum w r / sum w] = N int_0^inf E[w r exp(-t w)] E[exp(-t w)]^(N - 1) dt, by the trapezium rule in
        log t; weights below 1e-12 of the largest count as that.
        """
        gains = np.zeros(len(sizes))
        for scores, masses, mean in zip(self.scores, self.masses, self.mean(), strict=True):
            s, p = scores[masses > 0.0], masses[masses > 0.0]
            w = np.exp(inverse * (s - s[-1]))
            if w[0] > 1.0 - 1e-12:
                continue
            floor = max(float(w[0]), 1e-12)
            w = np.maximum(w, floor)
            average = float(p @ w)
            t = np.exp(np.arange(math.log(1e-3 / (sizes[-1] * average)), math.log(40.0 / floor), 0.35))
            kernel = p * np.exp(-np.multiply.outer(t, w))  # [T, K]
            total = np.log(kernel.sum(axis=1).clip(1e-300))
            powers = np.exp(np.multiply.outer(sizes - 1.0, total)) * t  # [N, T]
            gains += (powers @ (kernel @ (w * (s - mean)))) / (powers @ (kernel @ w))
        return gains / len(self.scores)

    def needed(self, inverse: float, share: float, most: float) -> float:
        """Draws per prompt after which a stored pool has ``share`` of the gain in expectation; inf beyond ``most``."""
        gain = self.value(inverse) - float(np.mean(self.mean()))
        if gain <= 0.0:
            return 1.0
        sizes = np.exp2(np.arange(0.0, math.log2(most) + 0.5, 0.5))
        shares = self.stored_gain(inverse, sizes) / gain
        first = int(np.argmax(shares >= share))
        if shares[first] < share:
            return math.inf
        if first == 0:
            return 1.0
        part = (share - shares[first - 1]) / (shares[first] - shares[first - 1])
        return float(sizes[first - 1] * 2.0 ** (0.5 * part))

    def _top(self) -> FloatArray:
        """[X, 1] largest score of positive mass."""
        return np.asarray(np.max(self.scores, axis=1, where=self.masses > 0.0, initial=-np.inf)[:, None])

    def _ratios(self, inverse: float) -> FloatArray:
        """[X, K] density ratio of the tilted law and the law, also where there is no mass (finite, capped)."""
        rises = np.minimum(inverse * (self.scores - self._top()), 0.0)
        weights = np.exp(rises)
        return np.asarray(weights / np.sum(self.masses * weights, axis=1, keepdims=True))


def laws_of(scores: Sequence[FloatArray], counts: Sequence[IntArray], largest: float) -> ScoreLaws:
    """How often each score was drawn (masses [X, K] are counts), with a last column of none at ``largest``.

    Rows of fewer scores are filled up in front with their lowest one, of no mass.
    """
    merged = [_merged(s, c) for s, c in zip(scores, counts, strict=True)]
    width = max(len(s) for s, _ in merged)
    table, masses = np.empty((len(merged), width + 1)), np.zeros((len(merged), width + 1))
    for x, (s, c) in enumerate(merged):
        table[x] = s[0]
        table[x, width - len(s) : width], masses[x, width - len(s) : width] = s, c
        table[x, -1] = max(largest, s[-1])
    return ScoreLaws(table, masses)


def _merged(scores: FloatArray, counts: IntArray) -> tuple[FloatArray, FloatArray]:
    """Distinct scores, rising, and how often each was drawn; beyond `BINS` of them means of bins of equal width."""
    known = ~np.isnan(scores) & (counts > 0)
    s, where = np.unique(scores[known], return_inverse=True)
    c = np.bincount(where, weights=counts[known])
    if len(s) > BINS:
        bins = np.minimum((s - s[0]) / (s[-1] - s[0]) * BINS, BINS - 1).astype(np.int64)
        total = np.bincount(bins, weights=c)
        used = total > 0
        s, c = np.bincount(bins, weights=c * s)[used] / total[used], total[used]
    return np.asarray(s, dtype=np.float64), np.asarray(c, dtype=np.float64)


def plain(drawn: ScoreLaws) -> ScoreLaws:
    """The empirical law."""
    return ScoreLaws(drawn.scores, drawn.masses / drawn.masses.sum(axis=1, keepdims=True))


def possible(drawn: ScoreLaws, *, unseen: bool, rng: np.random.Generator) -> ScoreLaws:
    """A law that may lie behind the draws: Dirichlet(counts), with ``unseen`` one more count at the largest score.

    The upper quantiles of its mean are Gaffke's (2005) bound on the mean of a bounded score.
    """
    shapes = drawn.masses.copy()
    shapes[:, -1] = 1.0 if unseen else 0.0
    gammas = rng.standard_gamma(shapes)
    return ScoreLaws(drawn.scores, gammas / gammas.sum(axis=1, keepdims=True))


def upper(values: FloatArray, level: float) -> float:
    """Quantile of simulated values, infinite ones included, by the next larger order statistic."""
    return float(np.quantile(values, level, method="higher"))


def interval_of_mean(drawn: ScoreLaws, quantile: float) -> Interval:
    """Mean over prompts of the mean score of the draws, with its interval given these prompts.

    A prompt with a single draw is taken to spread as the others do on average; without any other nothing is bounded.

    Normal, at the ``quantile`` of the standard law: .94, .96 and .965 of 200 tables were covered at 64, 256 and 1024
    draws; Johnson's (1978) correction for skewness did no better.
    """
    law = plain(drawn)
    sizes, means = drawn.masses.sum(axis=1), law.mean()
    value, several = float(np.mean(means)), sizes > 1.0
    if not several.any():
        return Interval(value, -math.inf, math.inf)
    spread = np.sum(law.masses * (law.scores - means[:, None]) ** 2, axis=1) / np.maximum(sizes - 1.0, 1.0)
    spread = np.where(several, spread, float(np.mean((spread * sizes)[several])))
    error = quantile * math.sqrt(float(np.sum(spread))) / len(sizes)
    return Interval(value, value - error, value + error)
