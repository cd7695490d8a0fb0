"""Sequences put together step by step, with the draws that each step was chosen from, and the fit of their rewards.

Path consistency (THEORY 5): r(y) = V_1(x) + sum_h A_h, A_h = f_h(a_h) - beta log E_ref exp(f_h / beta), for every
complete sequence, whatever law it came from. So a labelled sequence stays usable after each refit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.special import logsumexp

from spannerlm.records import Draws, FloatArray, IntArray, Rollout
from spannerlm.regression import PRIOR_SHAPE, PRIOR_SHARE, LabelStats, Posterior, fit_labels

STEPS = 12
"""Gauss-Newton steps of one fit at most."""
CLOSE = 0.01
"""Move of a parameter, relative to beta, that ends it."""
LEVELS = (0.03, 0.3, 3.0)
"""Prior precisions that are tried, in units of the feature scale; the evidence at each optimum chooses. The grid of
`fit_labels` chooses by one linearisation, in which a nearly certain policy looks like one that knows nothing."""
GAMMA = 1.0
"""Variance of a prompt's intercept in units of the noise variance."""
BACKWARD = 0.3
"""Ridge of the backward fit, relative to what one draw tells of an average direction."""
SHARES = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01)
"""Shares of a Gauss-Newton step that are tried."""

Place = tuple[int, tuple[str, ...]]
"""A prompt and a prefix."""


@dataclass(frozen=True, eq=False)
class Choice:
    """What was drawn at one place: distinct segments, how often each, their features."""

    segments: tuple[str, ...]
    counts: IntArray
    """[k]"""
    features: FloatArray
    """[k, d]"""

    def add(self, draws: Draws) -> Choice:
        """With further draws of the same place."""
        rows = {segment: i for i, segment in enumerate(self.segments)}
        new = [i for i, segment in enumerate(draws.responses) if segment not in rows]
        counts = np.concatenate([self.counts, np.zeros(len(new), dtype=np.int64)])
        rows |= {draws.responses[i]: len(self.segments) + k for k, i in enumerate(new)}
        np.add.at(counts, [rows[segment] for segment in draws.responses], draws.counts)
        return Choice(tuple(rows), counts, np.concatenate([self.features, draws.features[new]]))


@dataclass(frozen=True, eq=False)
class Store:
    """All draws so far, by place."""

    choices: Mapping[Place, Choice] = field(default_factory=dict)

    def add(self, records: Iterable[Draws]) -> Store:
        """With the draws of records that have a prefix; others are no steps."""
        found = dict(self.choices)
        for draws in records:
            if draws.prefix is not None:
                place = draws.prompt, draws.prefix
                known = found.get(place)
                fresh = Choice(draws.responses, draws.counts, draws.features)
                found[place] = fresh if known is None else known.add(draws)
        return Store(found)


@dataclass(frozen=True, eq=False)
class Paths:
    """Sequences as arrays: N of them, R places with at most K distinct draws, H steps of d features each."""

    prompts: IntArray
    """[N]"""
    rows: IntArray
    """[N, H] place of each step; -1 beyond a sequence's end."""
    chosen: IntArray
    """[N, H] which of the place's draws was kept."""
    steps: IntArray
    """[R] step of each place."""
    shares: FloatArray
    """[R, K] counts over draws."""
    draws: FloatArray
    """[R] draws at each place."""
    features: FloatArray
    """[R, K, d]"""

    @classmethod
    def of(cls, store: Store, rollouts: Sequence[Rollout], shape: tuple[int, int]) -> Paths:
        """The arrays of these sequences, all of whose steps are in the store; ``shape`` is (H, d)."""
        horizon, dim = shape
        index: dict[Place, int] = {}
        rows = np.full((len(rollouts), horizon), -1)
        chosen = np.zeros((len(rollouts), horizon), dtype=np.int64)
        for i, path in enumerate(rollouts):
            for h, segment in enumerate(path.segments):
                place = path.prompt, path.segments[:h]
                rows[i, h] = index.setdefault(place, len(index))
                chosen[i, h] = store.choices[place].segments.index(segment)
        found = [store.choices[place] for place in index]
        width = max((len(choice.segments) for choice in found), default=1)
        counts, features = np.zeros((len(found), width)), np.zeros((len(found), width, dim))
        for r, choice in enumerate(found):
            counts[r, : len(choice.counts)], features[r, : len(choice.counts)] = choice.counts, choice.features
        total = counts.sum(axis=1)
        steps = np.array([len(prefix) for _, prefix in index], dtype=np.int64)
        prompts = np.array([path.prompt for path in rollouts], dtype=np.int64)
        return cls(prompts, rows, chosen, steps, counts / total[:, None], total, features)

    @property
    def shape(self) -> tuple[int, int]:
        """(H, d)"""
        return self.rows.shape[1], self.features.shape[2]

    def at(self, theta: FloatArray, beta: float) -> Tilted:
        """Every place tilted by these parameters [H, d]."""
        scores = np.einsum("rkd,rd->rk", self.features, theta[self.steps])
        with np.errstate(divide="ignore"):
            logits = np.log(self.shares) + scores / beta
        values = beta * logsumexp(logits, axis=1)
        return Tilted(self, np.exp(logits - values[:, None] / beta), scores - values[:, None], beta)

    def spread(self) -> FloatArray:
        """[R] trace of the covariance of features under pi_ref at each place."""
        means = np.einsum("rk,rkd->rd", self.shares, self.features)
        return np.asarray(np.einsum("rk,rkd->r", self.shares, (self.features - means[:, None]) ** 2))


@dataclass(frozen=True, eq=False)
class Tilted:
    """The places of some sequences at one parameter."""

    paths: Paths
    laws: FloatArray
    """[R, K] probabilities proportional to shares exp(f / beta)."""
    gains: FloatArray
    """[R, K] A = f - beta log E_ref exp(f / beta) of every draw."""
    beta: float

    @cached_property
    def means(self) -> FloatArray:
        """[R, d] mean feature of each place."""
        return np.asarray(np.einsum("rk,rkd->rd", self.laws, self.paths.features))

    def sums(self) -> FloatArray:
        """[N] sum of A along each sequence."""
        p = self.paths
        return np.asarray(np.where(p.rows >= 0, self.gains[p.rows, p.chosen], 0.0).sum(axis=1))

    def jacobian(self) -> FloatArray:
        """[N, H d] its derivative: phi(a_h) - E_softmax phi in the h-th block of d."""
        p = self.paths
        blocks = p.features[p.rows, p.chosen] - self.means[p.rows]
        return np.asarray(np.where(p.rows[..., None] >= 0, blocks, 0.0).reshape(len(p.rows), -1))

    def normaliser_variances(self) -> FloatArray:
        """[N] variance of sum_h beta log E_ref exp(f_h / beta) from the finite number of draws, in squared reward
        units: beta^2 (sum_k law^2 / share - 1) / n at each step, to first order in 1 / n."""
        p = self.paths
        ratio = np.divide(self.laws**2, p.shares, out=np.zeros_like(self.laws), where=p.shares > 0.0)
        each = self.beta**2 * (ratio.sum(axis=1) - 1.0) / p.draws
        return np.asarray(np.where(p.rows >= 0, each[p.rows], 0.0).sum(axis=1))


@dataclass(frozen=True, eq=False)
class PathFit:
    """What the labelled sequences say of the parameters."""

    theta: FloatArray
    """[H, d]"""
    posterior: Posterior
    """Of theta, flat, around the last linearisation."""
    noise_std: float
    """Estimated from the residuals, so with the normalisers' noise."""
    normaliser_std: float
    """Of the normalisers' noise in one label, root mean square."""
    evidence: float
    """Log marginal likelihood to second order, up to a constant."""


def fit_paths(paths: Paths, values: FloatArray, beta: float, start: FloatArray, prompts: int) -> PathFit:
    """Gauss-Newton on r = mu + u_x + sum_h A_h, u_x a random effect of each of ``prompts``; ``start`` is [H, d].

    Each linearisation is the regression of `fit_labels`, which finds the noise; of its step the share is taken that
    lowers the penalised squares most. A is concave in f and saturates at beta log(1 / share), so that there are local
    optima: it begins at ``start``, at 0 and at `backward`, and the largest evidence wins.
    """
    spread = paths.spread()
    steps = [spread[paths.steps == h] for h in range(paths.shape[0])]
    scale = max(float(sum(s.mean() for s in steps if len(s))), 1e-12)
    starts = (start, np.zeros_like(start), backward(paths, values, beta, scale / start.size))
    fits = [_gauss_newton(paths, values, beta, theta, prompts, level * scale) for level in LEVELS for theta in starts]
    return max(fits, key=lambda fit: fit.evidence)


def backward(paths: Paths, values: FloatArray, beta: float, variance: float) -> FloatArray:
    """[H, d] from the last step to the first: r less the A of later steps is Q_h(prefix, a_h) plus noise, which is
    regressed on phi_h among the sequences that share the prefix, an intercept of its own for each.

    Linear in each step, so no local optimum; what it leaves unused is how one prefix's value compares with another's.
    """
    horizon, dim = paths.shape
    theta, rest = np.zeros((horizon, dim)), values.copy()
    for h in reversed(range(horizon)):
        there = np.flatnonzero(paths.rows[:, h] >= 0)
        places, chosen = paths.rows[there, h], paths.chosen[there, h]
        _, group = np.unique(places, return_inverse=True)
        count = np.bincount(group)
        phi, left = paths.features[places, chosen], rest[there]
        sums = np.zeros((len(count), dim))
        np.add.at(sums, group, phi)
        phi = phi - (sums / count[:, None])[group]
        left = left - (np.bincount(group, left) / count)[group]
        theta[h] = np.linalg.solve(phi.T @ phi + BACKWARD * variance * np.eye(dim), phi.T @ left)
        rest[there] -= paths.at(theta, beta).gains[places, chosen]
    return theta


def _gauss_newton(
    paths: Paths, values: FloatArray, beta: float, start: FloatArray, prompts: int, penalty: float
) -> PathFit:
    """The fit at one prior precision from one start."""
    shape, theta, centres = start.shape, start.reshape(-1), np.zeros((prompts, start.size))
    for _ in range(STEPS):
        here = paths.at(theta.reshape(shape), beta)
        jacobian = here.jacobian()
        stats = LabelStats.empty(prompts, len(theta))
        stats = stats.add(paths.prompts, jacobian, values - here.sums() + jacobian @ theta)
        posterior = fit_labels(stats, centres, 1.0, gammas=(GAMMA,), lambdas=(penalty,))
        tried = [theta + share * (posterior.mean - theta) for share in (0.0, *SHARES)]
        merits = [_merit(paths, values, beta, at.reshape(shape), prompts, GAMMA, penalty) for at in tried]
        moved = tried[int(np.argmin(merits))] - theta
        theta = theta + moved
        if np.max(np.abs(moved)) < CLOSE * beta:
            break
    here = paths.at(theta.reshape(shape), beta)
    noise = float(np.sqrt(np.mean(here.normaliser_variances())))
    left = PRIOR_SHARE * float(np.var(values)) + 0.5 * min(merits)
    evidence = -(PRIOR_SHAPE + 0.5 * (len(values) - 1)) * np.log(max(left, 1e-300))
    evidence -= 0.5 * float(np.sum(np.log1p(posterior.eigenvalues[0] / penalty)))
    return PathFit(theta.reshape(shape), posterior, posterior.noise_std, noise, float(evidence))


def _merit(
    paths: Paths, values: FloatArray, beta: float, theta: FloatArray, prompts: int, gamma: float, penalty: float
) -> float:
    """What the fit makes small: squared residuals in noise units plus the penalty of theta [H, d]."""
    rest = values - paths.at(theta, beta).sums()
    return _squares(rest, paths.prompts, gamma, prompts) + penalty * float(np.sum(theta**2))


def _squares(rest: FloatArray, owners: IntArray, gamma: float, prompts: int) -> float:
    """Residual sum of squares in noise units with the intercepts mu and u_x, of variance gamma, integrated out."""
    count, total = np.bincount(owners, minlength=prompts), np.bincount(owners, rest, minlength=prompts)
    k = gamma / (1.0 + gamma * count)
    mass, first = float(np.sum(count * (1.0 - k * count))), float((1.0 - k * count) @ total)
    return float(rest @ rest) - float(k @ total**2) - first * first / mass


def information(jacobian: FloatArray, owners: IntArray, prompts: int, gamma: float) -> FloatArray:
    """[Hd, Hd] information of sequences on theta, in noise units, after an intercept per prompt of variance gamma."""
    count = np.bincount(owners, minlength=prompts)
    sums = np.zeros((prompts, jacobian.shape[1]))
    np.add.at(sums, owners, jacobian)
    k = gamma / (1.0 + gamma * count)
    return np.asarray(jacobian.T @ jacobian - (sums * k[:, None]).T @ sums)
