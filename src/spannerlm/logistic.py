"""Bayesian logistic regression on comparisons -> a posterior over theta (THEORY 6; DIRECTED.md, "Comparisons").

P(y preferred to y') = sigmoid(<theta, phi(x, y) - phi(x, y')> / s). Everything that a prompt's responses share drops
out: there is no intercept, no random effect of the prompt and no noise level. A tie counts as half of each outcome.
Cost: no draws and no labels; time k d^2 + d^3 per Newton step for k comparisons, a few steps per prior precision.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logsumexp

from spannerlm.errors import InputError
from spannerlm.records import FloatArray
from spannerlm.regression import Posterior

LAMBDAS = tuple(10.0 ** (k / 3.0) for k in range(-9, 1))
"""Prior precision of theta / s in units of the feature scale S, 1e-3 .. 1. The cap at 1 says that rewards differ by as
much as s at least: evidence alone would shrink a rare but valuable direction away (DIRECTED.md, "Model")."""
NOISE_FLOOR = 0.1
"""Least noise of rewards beside comparisons, in units of s: rewards that happen to be equal must not tell infinitely
much."""
NEWTON_STEPS = 100
"""Damped Newton steps at most; a handful suffice."""
TOLERANCE = 1e-10
"""Newton decrement, in nats of log posterior, at which the mode is found."""


@dataclass(frozen=True, eq=False)
class ComparisonStats:
    """All comparisons so far: a logistic posterior has no smaller sufficient statistic."""

    parts: tuple[tuple[FloatArray, FloatArray], ...] = ()
    """Batches of relative features [k, d] and outcomes [k] in [0, 1]."""

    def add(self, relative: FloatArray, outcomes: FloatArray) -> ComparisonStats:
        """The statistics with comparisons of relative features [k, d] and outcomes [k] added."""
        return ComparisonStats((*self.parts, (relative, outcomes)))

    @property
    def comparisons(self) -> int:
        """Comparisons absorbed."""
        return sum(len(outcomes) for _, outcomes in self.parts)

    @cached_property
    def relative(self) -> FloatArray:
        """[k, d] relative features."""
        return np.concatenate([relative for relative, _ in self.parts])

    @cached_property
    def outcomes(self) -> FloatArray:
        """[k] 1 where the first response was preferred, 0 where the second was, .5 for a tie."""
        return np.concatenate([outcomes for _, outcomes in self.parts])


@dataclass(frozen=True, eq=False)
class Rewards:
    """What rewards of single responses say of theta / s, beside the comparisons: a Gaussian likelihood."""

    information: FloatArray
    """[d, d] for transformed features."""
    moment: FloatArray
    """[d] information times where it is largest."""

    @classmethod
    def of(cls, posterior: Posterior, scale: float) -> Rewards:
        """From a fit to rewards, at its most likely noise level and intercept variance; ``scale`` is s."""
        g, k = posterior.mode()
        noise = max(float(posterior.noise_variances[g, k]), (NOISE_FLOOR * scale) ** 2)
        vectors, per_noise = posterior.eigenvectors[g], scale / noise
        information: FloatArray = (vectors * posterior.eigenvalues[g]) @ vectors.T * (scale * per_noise)
        return cls(information, vectors @ posterior.targets[g] * per_noise)

    @classmethod
    def none(cls, dim: int) -> Rewards:
        """Of no reward."""
        return cls(np.zeros((dim, dim)), np.zeros(dim))


@dataclass(frozen=True, eq=False)
class LogisticPosterior:
    """Posterior over theta: a mixture, over the grid of lambda, of Laplace approximations."""

    mean: FloatArray
    """[d] posterior mean of theta, in reward units, for untransformed features."""
    weights: FloatArray
    """[1, L] posterior weight of each prior precision."""
    lambdas: FloatArray
    """[L]"""
    modes: FloatArray
    """[L, d] mode at each precision, in logits, for transformed features."""
    eigenvalues: FloatArray
    """[L, d] of the information matrix at each mode."""
    eigenvectors: FloatArray
    """[L, d, d]"""
    scale: float
    """s, in reward units."""
    transform: FloatArray = field(repr=False)
    """[d, d] T of the features it was fitted to."""
    noise_std: float = float("nan")
    """Undefined: comparisons have no noise level of their own."""
    intercept: float = float("nan")
    """Undefined: comparisons say nothing of the level of the rewards."""

    def mode(self) -> tuple[int, int]:
        """Indices of the grid point of largest weight; the first is always 0."""
        return 0, int(np.argmax(self.weights[0]))

    def covariance(self) -> FloatArray:
        """[d, d] the inverse of `precision`: s^2 times it is the covariance of theta at the mode."""
        _, k = self.mode()
        vectors = self.transform @ self.eigenvectors[k]
        return np.asarray((vectors / (self.eigenvalues[k] + self.lambdas[k])) @ vectors.T)

    def precision(self) -> FloatArray:
        """[d, d] Sigma with s ||phi||_{Sigma^-1} the posterior standard deviation of <theta, phi>, at the mode."""
        _, k = self.mode()
        sigma = (self.eigenvectors[k] * (self.eigenvalues[k] + self.lambdas[k])) @ self.eigenvectors[k].T
        inverse = np.linalg.inv(self.transform)
        sigma = inverse @ sigma @ inverse
        return np.asarray(0.5 * (sigma + sigma.T))

    def predict(self, shift: FloatArray, prompts: int) -> tuple[float, float]:  # noqa: ARG002
        """(nan, nan): the level of a reward cannot be known from comparisons alone."""
        return float("nan"), float("nan")

    def sample(self, size: int, *, rng: np.random.Generator) -> FloatArray:
        """[size, d] draws of theta from the posterior, in reward units."""
        k = rng.choice(len(self.lambdas), size=size, p=self.weights[0])
        spread = self.eigenvalues[k] + self.lambdas[k][:, None]  # [size, d]
        noise = rng.standard_normal(spread.shape) / np.sqrt(spread)
        thetas: FloatArray = self.modes[k] + np.einsum("sij,sj->si", self.eigenvectors[k], noise)
        return np.asarray(self.scale * thetas @ self.transform)


def fit_comparisons(
    stats: ComparisonStats,
    prior_scale: float,
    *,
    scale: float = 1.0,
    transform: FloatArray | None = None,
    lambdas: tuple[float, ...] = LAMBDAS,
    rewards: Rewards | None = None,
) -> LogisticPosterior:
    """The posterior over theta from comparisons, logits = <theta, T relative> / s, and from ``rewards``, if any.

    ``prior_scale`` is S = E |phi - centre|^2 over draws, in which the prior precisions are expressed; ``scale`` is s.
    ``rewards`` must be of features transformed alike. Raises `InputError` without comparisons and rewards.
    """
    if stats.comparisons > 0:
        relative, outcomes = stats.relative, stats.outcomes
    elif rewards is not None:
        relative, outcomes = np.zeros((0, len(rewards.moment))), np.zeros(0)
    else:
        raise InputError("expected at least one comparison to fit a posterior, got none: absorb labels first")
    dim = relative.shape[1]
    beside = Rewards.none(dim) if rewards is None else rewards
    turned = np.eye(dim) if transform is None else transform
    features = relative @ turned
    penalties = prior_scale * np.asarray(lambdas)
    w = np.zeros(dim)
    modes, values, vectors, evidence = [], [], [], []
    for penalty in penalties[::-1]:  # from the strongest prior down: each mode is a good start for the next
        w = _mode(features, outcomes, penalty, w, beside)
        p = expit(features @ w)
        information = (features * (p * (1.0 - p))[:, None]).T @ features + beside.information
        found, basis = np.linalg.eigh(information)
        found = np.maximum(found, 0.0)
        loss = -_log_posterior(features, outcomes, penalty, w, beside)
        evidence.append(0.5 * dim * np.log(penalty) - 0.5 * float(np.sum(np.log(found + penalty))) - loss)
        modes.append(w)
        values.append(found)
        vectors.append(basis)
    log_weights = np.array(evidence[::-1])
    weights = np.exp(log_weights - logsumexp(log_weights))
    stacked = np.array(modes[::-1])
    return LogisticPosterior(
        mean=scale * turned @ (weights @ stacked),
        weights=weights[None, :],
        lambdas=penalties,
        modes=stacked,
        eigenvalues=np.array(values[::-1]),
        eigenvectors=np.array(vectors[::-1]),
        scale=scale,
        transform=turned,
    )


def ridge_comparisons(stats: ComparisonStats, penalty: float, bound: float, *, scale: float, dim: int) -> FloatArray:
    """[d] theta of logistic maximum likelihood with ridge ``penalty`` on theta / s, norm at most ``bound``.

    ``scale`` is s; theta is 0 without comparisons. The norm constraint is met by raising the penalty: the constrained
    maximum lies on the ridge path, along which the norm falls.
    """
    if stats.comparisons == 0:
        return np.zeros(dim)

    def excess(power: float) -> float:
        return float(np.linalg.norm(scale * found(np.exp(power)))) - bound

    def found(ridge: float) -> FloatArray:
        return _mode(stats.relative, stats.outcomes, ridge, np.zeros(dim), Rewards.none(dim))

    low = float(np.log(penalty))
    if excess(low) > 0.0:
        # |w| <= |gradient at 0| / ridge: beyond this one the bound holds
        slope = np.linalg.norm(stats.relative.T @ (stats.outcomes - 0.5))
        low = float(brentq(excess, low, np.log(2.0 * scale * slope / bound), xtol=1e-12, rtol=1e-12))
    return scale * found(np.exp(low))


def _log_posterior(features: FloatArray, outcomes: FloatArray, penalty: float, w: FloatArray, beside: Rewards) -> float:
    logits = features @ w
    rewards = float(beside.moment @ w - 0.5 * w @ beside.information @ w)
    return float(outcomes @ logits - np.sum(np.logaddexp(0.0, logits)) - 0.5 * penalty * w @ w) + rewards


def _mode(features: FloatArray, outcomes: FloatArray, penalty: float, start: FloatArray, beside: Rewards) -> FloatArray:
    """[d] maximum of the log posterior by damped Newton steps (iteratively reweighted least squares)."""
    w, value = start, _log_posterior(features, outcomes, penalty, start, beside)
    for _ in range(NEWTON_STEPS):
        p = expit(features @ w)
        gradient = features.T @ (outcomes - p) - penalty * w + beside.moment - beside.information @ w
        hessian = (features * (p * (1.0 - p))[:, None]).T @ features + beside.information
        hessian[np.diag_indices_from(hessian)] += penalty
        step = np.linalg.solve(hessian, gradient)
        decrement = float(gradient @ step)
        if decrement <= TOLERANCE:
            return w
        size = 1.0
        while (moved := _log_posterior(features, outcomes, penalty, w + size * step, beside)) < value and size > 1e-8:
            size *= 0.5
        w, value = w + size * step, moved
    return w
