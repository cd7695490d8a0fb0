"""Ridge and Bayesian linear regression of reward labels on features -> a posterior over theta.

Two views of the same labels, both as sufficient statistics that labels are folded into, in any order:

* `DifferenceStats`: one observation per labelled pair, r - r' = <theta, phi(x, y, y')> (THEORY 3, the published way);
* `LabelStats`: one observation per label, y = mu + u_x + <theta, phi - centre_x> + noise, where the prompt's
  intercept u_x is a random effect (DIRECTED.md). Pairs within a prompt form by themselves through u_x.

Cost: no draws and no labels; time d^2 per label to absorb, d^3 per grid point of gamma to fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln, logsumexp

from spannerlm.errors import InputError
from spannerlm.records import FloatArray, IntArray

GAMMAS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
"""Variance of the prompt's intercept in units of the noise variance: from no intercept to a free one."""
LAMBDAS = tuple(10.0 ** (k / 3.0) for k in range(-9, 13))
"""Prior precision in units of the feature scale S, 1e-3 .. 1e4. At 1 the prior signal is as large as the noise."""
SHRINKAGE = 5.0
"""Prior weight of a precision beyond 1, against 1: (lambda / S)^(-SHRINKAGE / 2). Marginal likelihood of ordinary
labels alone shrinks a rare but valuable direction away. A hard cap at 1 prevents that (DIRECTED.md), but leaves a prior
far too wide where many rare directions were tried and are worth little. So the cap yields to evidence: five nats for
each factor e in the prior's standard deviation (decoys, regret left at 400 labels: .47 with the hard cap, .05 so)."""
PRIOR_SHAPE = 1.0
"""Shape of the inverse-gamma prior of the noise variance: worth two observations."""
PRIOR_SHARE = 0.05
"""Its scale, as a share of the variance of the labels seen."""


@dataclass(frozen=True, eq=False)
class DifferenceStats:
    """Sufficient statistics of reward differences: one observation per pair, both labels bought."""

    outer: FloatArray
    """[d, d] sum of phi phi'."""
    cross: FloatArray
    """[d] sum of phi (r - r')."""
    square: float
    """sum of (r - r')^2."""
    pairs: int

    @classmethod
    def empty(cls, dim: int) -> DifferenceStats:
        """Statistics of no pair."""
        return cls(np.zeros((dim, dim)), np.zeros(dim), 0.0, 0)

    def add(self, relative: FloatArray, differences: FloatArray) -> DifferenceStats:
        """The statistics with pairs of relative features [k, d] and reward differences [k] added."""
        return DifferenceStats(
            self.outer + relative.T @ relative,
            self.cross + relative.T @ differences,
            self.square + float(differences @ differences),
            self.pairs + len(differences),
        )

    def ridge(self, penalty: float, bound: float | None = None) -> FloatArray:
        """[d] least squares with ridge ``penalty``, norm at most ``bound`` (THEORY 3, phase 2).

        The norm constraint is met by raising the penalty: the constrained minimum lies on the ridge path.
        """
        values, vectors = np.linalg.eigh(self.outer)
        target = vectors.T @ self.cross
        values = np.maximum(values, 0.0)
        if bound is not None and np.linalg.norm(target / (values + penalty)) > bound:
            penalty = _penalty_for_norm(values, target, bound, penalty)
        theta: FloatArray = vectors @ (target / (values + penalty))
        return theta


def _penalty_for_norm(values: FloatArray, target: FloatArray, bound: float, low: float) -> float:
    """The penalty at which the ridge solution has norm ``bound``: bisection on a decreasing function."""
    high = float(np.linalg.norm(target)) / bound
    for _ in range(200):
        middle = 0.5 * (low + high)
        if np.linalg.norm(target / (values + middle)) > bound:
            low = middle
        else:
            high = middle
    return high


@dataclass(frozen=True, eq=False)
class LabelStats:
    """Sufficient statistics of single labels, by prompt; features as drawn, so that any centre may come later."""

    outer: FloatArray
    """[d, d] sum of phi phi'."""
    cross: FloatArray
    """[d] sum of phi y."""
    square: float
    """sum of y^2."""
    counts: FloatArray
    """[X] labels per prompt."""
    feature_sums: FloatArray
    """[X, d] sum of phi per prompt."""
    value_sums: FloatArray
    """[X] sum of y per prompt."""

    @classmethod
    def empty(cls, prompts: int, dim: int) -> LabelStats:
        """Statistics of no label for X prompts and d features."""
        return cls(
            np.zeros((dim, dim)), np.zeros(dim), 0.0, np.zeros(prompts), np.zeros((prompts, dim)), np.zeros(prompts)
        )

    def add(self, prompts: IntArray, features: FloatArray, values: FloatArray) -> LabelStats:
        """The statistics with labels added: prompts [k], features phi(x, y) [k, d], values [k]."""
        counts, sums, totals = self.counts.copy(), self.feature_sums.copy(), self.value_sums.copy()
        np.add.at(counts, prompts, 1.0)
        np.add.at(sums, prompts, features)
        np.add.at(totals, prompts, values)
        return LabelStats(
            self.outer + features.T @ features,
            self.cross + features.T @ values,
            self.square + float(values @ values),
            counts,
            sums,
            totals,
        )

    @property
    def labels(self) -> int:
        """Labels absorbed."""
        return int(self.counts.sum())

    def centred(self, centres: FloatArray, transform: FloatArray | None = None) -> LabelStats:
        """The same statistics for features z = T (phi - centre_x): centres [X, d], transform T [d, d] symmetric.

        Only prompts that have labels are kept: [X] becomes the number of those.
        """
        seen = np.flatnonzero(self.counts)
        count, centre, total = self.counts[seen], centres[seen], self.value_sums[seen]
        sums = self.feature_sums[seen]
        mixed = sums.T @ centre  # [d, d]
        outer = self.outer - mixed - mixed.T + (centre * count[:, None]).T @ centre
        cross = self.cross - centre.T @ total
        shifted = sums - count[:, None] * centre
        if transform is not None:
            outer, cross, shifted = transform @ outer @ transform, transform @ cross, shifted @ transform
        return LabelStats(0.5 * (outer + outer.T), cross, self.square, count, shifted, total)

    def variance(self) -> float:
        """Sample variance of the labels; a small positive floor where they are all equal or fewer than two."""
        n = self.labels
        mean = float(self.value_sums.sum()) / max(n, 1)
        spread = (self.square - n * mean * mean) / max(n - 1, 1)
        return max(spread, 1e-8 * max(1.0, mean * mean))


@dataclass(frozen=True, eq=False)
class Posterior:
    """Posterior over theta: a mixture, over the grid of (gamma, lambda), of Gaussians around ridge solutions."""

    mean: FloatArray
    """[d] posterior mean of theta."""
    weights: FloatArray
    """[G, L] posterior weight of each grid point."""
    gammas: FloatArray
    """[G]"""
    lambdas: FloatArray
    """[L]"""
    eigenvalues: FloatArray
    """[G, d] of the information matrix A at each gamma."""
    eigenvectors: FloatArray
    """[G, d, d]"""
    targets: FloatArray
    """[G, d] V' b."""
    noise_variances: FloatArray
    """[G, L] posterior mode scale of sigma^2 at each grid point."""
    masses: FloatArray
    """[G] precision of mu given theta, in noise units."""
    offsets: FloatArray
    """[G] mean of mu at theta = 0: the labels' weighted mean."""
    slopes: FloatArray
    """[G, d] by how much that falls as theta grows: the weighted mean of their (transformed) features."""
    shape: float
    """Shape of sigma^2's inverse-gamma posterior."""
    transform: FloatArray | None
    """[d, d] T of the features it was fitted to; theta is given for untransformed features."""
    intercept: float
    """Posterior mean of mu: the mean reward of a base draw, over prompts."""

    @property
    def noise_std(self) -> float:
        """Posterior estimate of the label noise's standard deviation, in reward units."""
        return float(np.sqrt(np.sum(self.weights * self.noise_variances)))

    def mode(self) -> tuple[int, int]:
        """Indices of the grid point of largest weight."""
        g, k = np.unravel_index(int(np.argmax(self.weights)), self.weights.shape)
        return int(g), int(k)

    def covariance(self) -> FloatArray:
        """[d, d] the inverse of `precision`: sigma^2 times it is the covariance of theta at the mode."""
        g, k = self.mode()
        vectors = self.eigenvectors[g] if self.transform is None else self.transform @ self.eigenvectors[g]
        return np.asarray((vectors / (self.eigenvalues[g] + self.lambdas[k])) @ vectors.T)

    def precision(self) -> FloatArray:
        """[d, d] A + lambda I in noise units at the mode, for untransformed features: Sigma of THEORY 3.

        sigma ||phi||_{Sigma^-1} is the posterior standard deviation of <theta, phi>.
        """
        g, k = self.mode()
        vectors = self.eigenvectors[g]
        sigma: FloatArray = (vectors * (self.eigenvalues[g] + self.lambdas[k])) @ vectors.T
        if self.transform is not None:
            inverse = np.linalg.inv(self.transform)
            sigma = inverse @ sigma @ inverse
        return np.asarray(0.5 * (sigma + sigma.T))

    def predict(self, shift: FloatArray, prompts: int) -> tuple[float, float]:
        """(mean, variance) of mu + <theta, shift> + the mean intercept of as many prompts without labels: shift [d].

        Moments of the whole mixture: noise, theta and mu with their covariance, and what the grid leaves open.
        """
        z = shift if self.transform is None else self.transform @ shift
        scale = self.eigenvalues[:, None, :] + self.lambdas[:, None]  # [G, L, d]
        rotated = np.einsum("gij,gi->gj", self.eigenvectors, z - self.slopes)[:, None, :]  # [G, 1, d]
        means = self.offsets[:, None] + np.sum(rotated * self.targets[:, None, :] / scale, axis=-1)  # [G, L]
        leverage = 1.0 / self.masses[:, None] + np.sum(rotated**2 / scale, axis=-1) + self.gammas[:, None] / prompts
        noise = self.noise_variances * self.shape / max(self.shape - 1.0, 0.5)  # mean of sigma^2
        mean = float(np.sum(self.weights * means))
        return mean, float(np.sum(self.weights * (noise * leverage + (means - mean) ** 2)))

    def sample(self, size: int, *, rng: np.random.Generator) -> FloatArray:
        """[size, d] draws of theta from the posterior."""
        flat = rng.choice(self.weights.size, size=size, p=self.weights.ravel())
        g, k = np.unravel_index(flat, self.weights.shape)
        variance = self.noise_variances[g, k] * self.shape / rng.gamma(self.shape, size=size)
        scale = self.eigenvalues[g] + self.lambdas[k][:, None]  # [size, d]
        noise = rng.standard_normal(scale.shape) * np.sqrt(variance[:, None] / scale)
        thetas: FloatArray = np.einsum("sij,sj->si", self.eigenvectors[g], self.targets[g] / scale + noise)
        return thetas if self.transform is None else np.asarray(thetas @ self.transform)


def fit_labels(
    stats: LabelStats,
    centres: FloatArray,
    scale: float,
    *,
    transform: FloatArray | None = None,
    gammas: tuple[float, ...] = GAMMAS,
    lambdas: tuple[float, ...] = LAMBDAS,
) -> Posterior:
    """The posterior over theta from single labels with a random intercept per prompt (DIRECTED.md, "Fit").

    centres [X, d] are the prompts' mean features, ``scale`` is S = E |phi - centre|^2 over draws, in which the prior
    precisions ``lambdas`` are expressed; gamma = 0 is dropped as soon as a prompt has two labels, because then
    the intercept's variance is identified and must not be ruled out. Raises `InputError` without labels.
    """
    if stats.labels == 0:
        raise InputError("expected at least one label to fit a posterior, got none: absorb labels first")
    centred = stats.centred(centres, transform)
    repeated = bool(np.any(centred.counts > 1))
    grid = np.array([g for g in gammas if g > 0.0 or not repeated])
    penalties = scale * np.asarray(lambdas)
    floor = PRIOR_SHARE * stats.variance()
    fits = [_fit_gamma(centred, g, penalties, floor) for g in grid]
    narrow = np.maximum(np.log(np.asarray(lambdas)), 0.0)
    evidence = np.array([f.evidence for f in fits]) - 0.5 * SHRINKAGE * narrow  # [G, L]
    weights = np.exp(evidence - logsumexp(evidence))
    ridges = [f.target / (f.values + penalties[:, None]) @ f.vectors.T for f in fits]  # [L, d] at each gamma
    means = np.array([w @ ridge for w, ridge in zip(weights, ridges, strict=True)])  # [G, d]
    mean = means.sum(axis=0)  # [d], in transformed features
    shares = weights.sum(axis=1)  # [G]
    offset = sum(shares[i] * f.total / f.mass - means[i] @ f.slope / f.mass for i, f in enumerate(fits))
    return Posterior(
        mean=mean if transform is None else transform @ mean,
        intercept=float(offset),
        weights=weights,
        gammas=grid,
        lambdas=penalties,
        eigenvalues=np.array([f.values for f in fits]),
        eigenvectors=np.array([f.vectors for f in fits]),
        targets=np.array([f.target for f in fits]),
        noise_variances=np.array([f.variance for f in fits]),
        masses=np.array([f.mass for f in fits]),
        offsets=np.array([f.total / f.mass for f in fits]),
        slopes=np.array([f.slope / f.mass for f in fits]),
        shape=PRIOR_SHAPE + 0.5 * (stats.labels - 1),
        transform=transform,
    )


@dataclass(frozen=True, eq=False)
class _GammaFit:
    values: FloatArray
    vectors: FloatArray
    target: FloatArray
    evidence: FloatArray
    variance: FloatArray
    mass: float
    """Precision of mu in noise units."""
    slope: FloatArray
    """[d] weighted sum of features that mu is to explain."""
    total: float
    """Weighted sum of labels."""


def _fit_gamma(stats: LabelStats, gamma: float, penalties: FloatArray, floor: float) -> _GammaFit:
    """The eigendecomposed normal equations at one gamma, with mu and every u_x integrated out, for all penalties."""
    count, sums, totals = stats.counts, stats.feature_sums, stats.value_sums
    k = gamma / (1.0 + gamma * count)  # [X]
    rest = 1.0 - k * count
    mass = float(np.sum(count * rest))
    a1, t1 = rest @ sums, float(rest @ totals)
    information = stats.outer - (sums * k[:, None]).T @ sums - np.outer(a1, a1) / mass
    moment = stats.cross - sums.T @ (k * totals) - a1 * (t1 / mass)
    square = stats.square - float(k @ totals**2) - t1 * t1 / mass
    values, vectors = np.linalg.eigh(0.5 * (information + information.T))
    values = np.maximum(values, 0.0)
    target = vectors.T @ moment
    denominators = values + penalties[:, None]  # [L, d]
    residual = np.maximum(square - np.sum(target**2 / denominators, axis=1), 0.0)
    shape = PRIOR_SHAPE + 0.5 * (stats.labels - 1)
    scale = floor + 0.5 * residual
    evidence = (
        0.5 * len(values) * np.log(penalties)
        - 0.5 * np.sum(np.log(denominators), axis=1)
        - 0.5 * float(np.sum(np.log1p(gamma * count)))
        - 0.5 * np.log(mass)
        + gammaln(shape)
        - shape * np.log(scale)
    )
    return _GammaFit(values, vectors, target, evidence, scale / shape, mass, a1, t1)
