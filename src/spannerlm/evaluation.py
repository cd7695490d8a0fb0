"""Value of a tilted policy from stored draws: by the true reward, by prediction, or by labels bought for it.

Policies are compared at equal KL, on draws of prompts that were not explored. On the draws of one prompt the tilted
policy has the self-normalised weights q proportional to w exp(score / beta), w the draw frequencies. No function here
draws or labels anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, t

from spannerlm.explorers.learner import Learner
from spannerlm.policy import beta_for_kl, kl_divergence, tilt
from spannerlm.records import Draws, FloatArray, IntArray
from spannerlm.regression import LabelStats, Posterior, fit_labels

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; nan where undefined."""

    value: float
    low: float
    high: float


def mean_interval(values: FloatArray) -> Interval:
    """Mean of independent values [n] with Student's interval; the bounds are nan for one value."""
    n = len(values)
    mean = float(np.mean(values)) if n else float("nan")
    if n < 2:
        return Interval(mean, float("nan"), float("nan"))
    half = float(t.ppf(0.5 + CONFIDENCE / 2.0, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half)


@dataclass(frozen=True, eq=False)
class Tilted:
    """A policy on a pool of draws at one temperature."""

    weights: tuple[FloatArray, ...]
    """Per prompt [n_x]: probability of each distinct response under the tilted policy."""
    base: tuple[FloatArray, ...]
    """Per prompt [n_x]: its draw frequency."""
    beta: float

    @property
    def kl(self) -> float:
        """Mean over prompts of the KL from the draws' frequencies, in nats."""
        return float(np.mean([kl_divergence(q, w) for q, w in zip(self.weights, self.base, strict=True)]))

    def draws_per_answer(self) -> FloatArray:
        """[X] largest density ratio on the prompt's draws: base draws per accepted response under rejection."""
        return np.array([float(np.max(q / w)) for q, w in zip(self.weights, self.base, strict=True)])

    def mean(self, values: Sequence[FloatArray]) -> FloatArray:
        """[X] expectation per prompt of values given per distinct response."""
        return np.array([float(q @ v) for q, v in zip(self.weights, values, strict=True)])


@dataclass(frozen=True, eq=False)
class EvaluationPool:
    """Draws of held-out prompts on which policies are compared."""

    draws: tuple[Draws, ...]

    def frequencies(self) -> tuple[FloatArray, ...]:
        """Per prompt [n_x]: how often each distinct response was drawn, as a share."""
        return tuple(d.counts / d.counts.sum() for d in self.draws)

    def scores(self, theta: FloatArray) -> list[FloatArray]:
        """Per prompt [n_x]: <theta, phi>."""
        return [d.features @ theta for d in self.draws]

    def at_kl(self, scores: Sequence[FloatArray], kl: float) -> Tilted:
        """The policy tilted by these scores, at the temperature where it costs ``kl`` nats on average."""
        base = self.frequencies()
        return self.at_beta(scores, beta_for_kl(list(base), list(scores), kl))

    def at_beta(self, scores: Sequence[FloatArray], beta: float) -> Tilted:
        """The policy tilted by these scores at temperature ``beta``; inf is the base model."""
        base = self.frequencies()
        return Tilted(tuple(tilt(w, s, beta) for w, s in zip(base, scores, strict=True)), base, beta)


def predicted_value(posterior: Posterior, pool: EvaluationPool, tilted: Tilted, centres: FloatArray) -> Interval:
    """Posterior prediction of the mean reward of a tilted policy: mu + <theta, E_q phi - centre>, per prompt.

    centres [m, d]: mean feature of the base model's draws, by prompt of the pool. The interval holds what the posterior
    of theta and mu leaves open; a misfit of the features is not in it. Cost: none.
    """
    means = np.array([q @ d.features for q, d in zip(tilted.weights, pool.draws, strict=True)])  # [m, d]
    shift = (means - centres).mean(axis=0)
    value = posterior.intercept + float(shift @ posterior.mean)
    variance = posterior.noise_std**2 * float(shift @ np.linalg.solve(posterior.precision(), shift))
    half = float(norm.ppf(0.5 + CONFIDENCE / 2.0)) * np.sqrt(variance + posterior.intercept_std**2)
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
    rows = [rng.choice(len(tilted.base[x]), p=0.5 * (tilted.base[x] + tilted.weights[x])) for x in prompts]
    return prompts, np.array(rows, dtype=np.int64)


def off_policy_value(sampled: Sampled, plan: Tilted, target: Tilted, model: Sequence[FloatArray]) -> Interval:
    """Doubly robust value of ``target`` from labels of responses sampled by ``sampling_plan(plan)``.

    ``model``: per prompt [n_x], a prediction of each response's reward made without these labels. The estimate is the
    prediction's mean under the target plus the mean of importance-weighted residuals, weights at most 2 sup q / (w + q)
    <= 2 where target is plan: unbiased for the pool whatever the prediction, and narrow where it is good. Cost: none
    beyond the labels given.
    """
    predicted = target.mean(model)
    ratios = []
    for x, i in zip(sampled.prompts, sampled.rows, strict=True):
        ratios.append(target.weights[x][i] / (0.5 * (plan.base[x][i] + plan.weights[x][i])))
    fitted = np.array([model[x][i] for x, i in zip(sampled.prompts, sampled.rows, strict=True)])
    residuals = np.array(ratios) * (sampled.values - fitted)
    interval = mean_interval(residuals)
    offset = float(np.mean(predicted))
    return Interval(offset + interval.value, offset + interval.low, offset + interval.high)


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


def knee(kls: FloatArray, values: FloatArray) -> int:
    """Index of the curve's knee: the point farthest above the chord between its ends, both axes scaled to 1.

    The last point where the curve gains nothing over its first, or holds an undefined value.
    """
    gain = float(values[-1] - values[0]) if len(values) else 0.0
    if not np.all(np.isfinite(values)) or gain <= 0.0:
        return max(len(values) - 1, 0)
    above = (values - values[0]) / gain - (kls - kls[0]) / (kls[-1] - kls[0])
    return int(np.argmax(above))
