"""Value of a tilted policy from stored draws: by the true reward, by prediction, or by labels bought for it.

Policies are compared at equal KL, on draws of prompts that were not explored. On the draws of one prompt the tilted
policy has the self-normalised weights q proportional to w exp(score / beta), w the draw frequencies. No function here
draws or labels anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from spannerlm.coverage import Interval
from spannerlm.explorers.learner import Learner
from spannerlm.policy import beta_for_kl, kl_divergence, padded, tilt
from spannerlm.records import Draws, FloatArray, IntArray
from spannerlm.regression import LabelStats, Posterior, fit_labels

CONFIDENCE = 0.95


def mean_interval(values: FloatArray) -> Interval:
    """Mean of independent values [n] with Student's interval; the bounds are nan for one value."""
    n = len(values)
    mean = float(np.mean(values)) if n else float("nan")
    if n < 2:
        return Interval(mean, float("nan"), float("nan"))
    half = float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2.0) * np.std(values, ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half)


@dataclass(frozen=True, eq=False)
class Tilted:
    """A policy on a pool of draws at one temperature; rows are padded with zeros to equal length."""

    weights: FloatArray
    """[X, n] probability of each distinct response under the tilted policy."""
    base: FloatArray
    """[X, n] its draw frequency."""
    beta: float

    @property
    def kl(self) -> float:
        """Mean over prompts of the KL from the draws' frequencies, in nats."""
        return float(np.mean(kl_divergence(self.weights, self.base)))

    def draws_per_answer(self) -> FloatArray:
        """[X] largest density ratio on the prompt's draws: base draws per accepted response under rejection."""
        ratios = np.divide(self.weights, self.base, out=np.zeros_like(self.base), where=self.base > 0.0)
        return np.asarray(ratios.max(axis=1))

    def mean(self, values: FloatArray) -> FloatArray:
        """[X] expectation per prompt of values [X, n] given per distinct response."""
        return np.asarray(np.sum(self.weights * values, axis=1))


class EvaluationPool:
    """Draws of held-out prompts on which policies are compared."""

    def __init__(self, draws: Sequence[Draws]) -> None:
        self.draws = tuple(draws)
        self.base = padded([d.counts / d.counts.sum() for d in self.draws])
        """[X, n] how often each distinct response was drawn, as a share; 0 where a row is shorter."""

    def scores(self, theta: FloatArray) -> FloatArray:
        """[X, n] <theta, phi>."""
        return padded([d.features @ theta for d in self.draws])

    def centres(self) -> FloatArray:
        """[X, d] mean feature of each prompt's draws."""
        return np.array([d.counts @ d.features / d.counts.sum() for d in self.draws])

    def at_kl(self, scores: FloatArray, kl: float) -> Tilted:
        """The policy tilted by scores [X, n], at the temperature where it costs ``kl`` nats on average."""
        return self.at_beta(scores, beta_for_kl(self.base, scores, kl))

    def at_beta(self, scores: FloatArray, beta: float) -> Tilted:
        """The policy tilted by scores [X, n] at temperature ``beta``; inf is the base model."""
        return Tilted(tilt(self.base, scores, beta), self.base, beta)


def predicted_value(posterior: Posterior, pool: EvaluationPool, tilted: Tilted) -> Interval:
    """Posterior prediction of the mean reward of a tilted policy: mu + u_x + <theta, E_q phi - centre>, over prompts.

    The interval holds what the posterior leaves open of theta, of mu and of the intercepts of prompts without labels,
    not a misfit of the features. Cost: none.
    """
    means = np.array([q[: len(d.features)] @ d.features for q, d in zip(tilted.weights, pool.draws, strict=True)])
    shift = (means - pool.centres()).mean(axis=0)  # [d]
    value, variance = posterior.predict(shift, len(pool.draws))
    half = float(stdtrit(2.0 * posterior.shape, 0.5 + CONFIDENCE / 2.0)) * float(np.sqrt(variance))
    return Interval(value, value - half, value + half)


@dataclass(frozen=True, eq=False)
class Sampled:
    """Responses labelled to evaluate: drawn with known probability, so that any policy's value can be estimated."""

    prompts: IntArray
    """[k] row of the evaluation pool."""
    rows: IntArray
    """[k] row of that prompt's draws."""
    values: FloatArray
    """[k] labels."""


def sampling_plan(tilted: Tilted, size: int, *, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """([k] prompt rows, [k] response rows) to label: prompts in turn, responses from half base, half tilted policy."""
    prompts = np.resize(rng.permutation(len(tilted.base)), size)
    mixture = 0.5 * (tilted.base + tilted.weights)
    rows = [rng.choice(mixture.shape[1], p=mixture[x] / mixture[x].sum()) for x in prompts]
    return prompts, np.array(rows, dtype=np.int64)


def off_policy_value(sampled: Sampled, plan: Tilted, target: Tilted, model: FloatArray) -> Interval:
    """Doubly robust value of ``target`` from labels of responses sampled by ``sampling_plan(plan)``.

    ``model`` [X, n]: a prediction of each response's reward made without these labels. The estimate is the prediction's
    mean under the target plus the mean of importance-weighted residuals, weights at most 2 where target is plan or the
    base: unbiased for the pool whatever the prediction (where every prompt is labelled equally often), and narrow where
    it is good. The interval takes the residuals of one response as one, because they may share one label's noise.
    Cost: none beyond the labels given.
    """
    at = sampled.prompts, sampled.rows
    ratios = target.weights[at] / (0.5 * (plan.base[at] + plan.weights[at]))
    corrections = _clustered_interval(ratios * (sampled.values - model[at]), sampled)
    offset = float(np.mean(target.mean(model)))
    return Interval(offset + corrections.value, offset + corrections.low, offset + corrections.high)


def _clustered_interval(values: FloatArray, sampled: Sampled) -> Interval:
    """Mean of values [k] with the interval that holds where those of one response are dependent.

    `mean_interval` where every response came once.
    """
    if not len(values):
        return mean_interval(values)
    mean = float(np.mean(values))
    _, cluster = np.unique(np.stack([sampled.prompts, sampled.rows]), axis=1, return_inverse=True)
    sums = np.bincount(cluster.ravel(), values - mean)  # [n]
    n = len(sums)
    if n < 2:
        return Interval(mean, float("nan"), float("nan"))
    half = float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2.0) * np.sqrt(np.sum(sums**2) * n / (n - 1))) / len(values)
    return Interval(mean, mean - half, mean + half)


@dataclass(frozen=True)
class Fit:
    """How well the features explain the labels, on labels left out of the fit."""

    r2: Interval
    labels: int
    folds: int
    noise_std: float
    """Label noise as the regression sees it, misfit included."""


def cross_validated_fit(
    learner: Learner,
    prompts: IntArray,
    features: FloatArray,
    values: FloatArray,
    *,
    rng: np.random.Generator,
    folds: int = 5,
) -> Fit:
    """Share of the labels' variance that features explain on held-out labels: prompts [n], features [n, d], values [n].

    The interval is a percentile bootstrap over labels of the pooled out-of-fold errors. nan for fewer than 10 labels
    or labels that are all equal. Cost: ``folds`` refits, no draws, no labels.
    """
    n = len(values)
    undefined = Fit(Interval(float("nan"), float("nan"), float("nan")), n, folds, float("nan"))
    if n < 10 or np.ptp(values) == 0.0 or learner.posterior is None:
        return undefined
    fold = rng.permutation(np.arange(n) % folds)
    errors, spread = np.zeros(n), np.zeros(n)
    for f in range(folds):
        train, test = fold != f, fold == f
        stats = LabelStats.empty(*learner.centres.shape).add(prompts[train], features[train], values[train])
        posterior = fit_labels(stats, learner.centres, learner.scale, transform=learner.transform)
        predicted = posterior.intercept + (features[test] - learner.centres[prompts[test]]) @ posterior.mean
        errors[test] = (values[test] - predicted) ** 2
        spread[test] = (values[test] - values[train].mean()) ** 2
    again = rng.integers(n, size=(2000, n))
    bootstrap = 1.0 - errors[again].sum(axis=1) / np.maximum(spread[again].sum(axis=1), 1e-300)
    low, high = np.quantile(bootstrap, [0.5 - CONFIDENCE / 2.0, 0.5 + CONFIDENCE / 2.0])
    r2 = Interval(float(1.0 - errors.sum() / spread.sum()), float(low), float(high))
    return Fit(r2, n, folds, learner.posterior.noise_std)


KNEE = 0.1
"""How far above the chord, as a share of the whole gain, a knee must stand: a straight curve has none."""


def knee(kls: FloatArray, values: FloatArray) -> int | None:
    """Index of the curve's knee: the point farthest above the chord between its ends, both axes scaled to 1.

    None where no point stands `KNEE` above it, where nothing is gained, or a value is undefined.
    """
    gain = float(values[-1] - values[0]) if len(values) else 0.0
    if not np.all(np.isfinite(values)) or gain <= 0.0:
        return None
    above = (values - values[0]) / gain - (kls - kls[0]) / (kls[-1] - kls[0])
    best = int(np.argmax(above))
    return best if above[best] >= KNEE else None
