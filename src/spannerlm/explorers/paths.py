"""Sequences put together step by step, with the draws that each step was chosen from, and the fit of their rewards.

Path consistency (THEORY 5): r(y) = V_1(x) + sum_h A_h, A_h = f_h(a_h) - beta log E_ref exp(f_h / beta), for every
complete sequence, whatever law it came from. So a labelled sequence stays usable after each refit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from scipy.special import logsumexp

from spannerlm.policy import tilt
from spannerlm.records import Draws, FloatArray, IntArray, Rollout
from spannerlm.regression import PRIOR_SHAPE, PRIOR_SHARE

STEPS = 12
"""Gauss-Newton steps of one fit at most."""
CLOSE = 0.01
"""Move of a parameter, relative to beta, that ends it."""
LEVELS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Prior precisions that are tried, in units of the feature scale. Labels left out choose, not the marginal likelihood:
a policy that is nearly certain needs large parameters at every step, which a Gaussian prior takes for unlikely long
after the labels have shown them."""
CAUTIOUS = 0.1
"""Largest prior precision, in the same units, of the covariance that regrets are predicted from."""
TESTED = 500
"""Last labels whose residuals are tested for lack of fit."""
SIMULATED = 199
"""Simulations of that test."""
LEVERAGE = 1e-3
"""Least share of a label that its own fit leaves free."""
GAMMA = 1.0
"""Variance of a prompt's intercept in units of the noise variance."""
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

    def tilted(self, theta: FloatArray, beta: float) -> FloatArray:
        """[k] law proportional to counts exp(<theta, phi> / beta)."""
        return tilt(self.counts / self.counts.sum(), self.features @ theta, beta)

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

    def of_rows(self, chosen: slice) -> Paths:
        """Some of the sequences, with all places."""
        return replace(self, prompts=self.prompts[chosen], rows=self.rows[chosen], chosen=self.chosen[chosen])

    def shared(self) -> FloatArray:
        """[N, N] steps that two different sequences share, as a share of H: the same draw at the same place."""
        found = np.zeros((len(self.rows), len(self.rows)))
        for rows, chosen in zip(self.rows.T, self.chosen.T, strict=True):
            same = (rows[:, None] == rows) & (chosen[:, None] == chosen) & (rows >= 0)
            found += same
        np.fill_diagonal(found, 0.0)
        share: FloatArray = found / max(self.rows.shape[1], 1)
        return share

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
        horizon, dim = p.shape
        return np.asarray(np.where(p.rows[..., None] >= 0, blocks, 0.0).reshape(len(p.rows), horizon * dim))

    def normaliser_variances(self) -> FloatArray:
        """[N] variance of sum_h beta log E_ref exp(f_h / beta) from the finite number of draws, in squared reward
        units: beta^2 (sum_k law^2 / share - 1) / n at each step, to first order in 1 / n."""
        p = self.paths
        ratio = np.divide(self.laws**2, p.shares, out=np.zeros_like(self.laws), where=p.shares > 0.0)
        each = self.beta**2 * np.maximum(ratio.sum(axis=1) - 1.0, 0.0) / p.draws
        return np.asarray(np.where(p.rows >= 0, each[p.rows], 0.0).sum(axis=1))


@dataclass(frozen=True, eq=False)
class PathFit:
    """What the labelled sequences say of the parameters."""

    theta: FloatArray
    """[H, d] at the penalty under which left-out labels are foretold best."""
    bold: FloatArray
    """[H, d] at the smallest penalty: believes the labels as they are; to explore with, not to answer with."""
    covariance: FloatArray
    """[H d, H d] of theta around the last linearisation, in units of the noise variance, under a wide prior: what a
    narrower one that foretells labels well takes for known must not end a run."""
    noise_std: float
    """Estimated from the labels left out in turn, so with the normalisers' noise."""
    normaliser_std: float
    """Of the normalisers' noise in one label, root mean square."""
    misfit: float
    """p-value of the test that labels of sequences which share steps leave no more in common than chance would."""

    def samples(self, n: int, *, rng: np.random.Generator) -> FloatArray:
        """[n, H, d] draws of theta."""
        root = np.linalg.cholesky(self.covariance) * self.noise_std
        flat = self.theta.reshape(-1) + rng.standard_normal((n, self.theta.size)) @ root.T
        return np.asarray(flat.reshape(n, *self.theta.shape))


def step_prior(shape: tuple[int, int], alike: float) -> FloatArray:
    """[H d, H d] prior precision of theta [H, d] in units of one penalty: the same coordinate of two different steps
    has correlation ``alike``, in [0, 1), everything else none; the identity at 0."""
    horizon, dim = shape
    between = (1.0 - alike) * np.eye(horizon) + alike
    return np.asarray(np.kron(np.linalg.inv(between), np.eye(dim)))


def fit_paths(
    paths: Paths, values: FloatArray, beta: float, start: FloatArray, prompts: int, *, alike: float = 0.0
) -> PathFit:
    """Gauss-Newton on r = mu + u_x + sum_h A_h, u_x a random effect of each of ``prompts``; ``start`` is [H, d].

    Begins at ``start`` and at 0 with the smallest penalty, and goes on from the better one to larger ones. ``alike`` is
    the prior correlation of the steps' parameters (`step_prior`).
    """
    spread = paths.spread()
    steps = [spread[paths.steps == h] for h in range(paths.shape[0])]
    scale = max(float(sum(s.mean() for s in steps if len(s))), 1e-12)
    problem = _Problem(paths, values, beta, _Intercepts.of(paths.prompts, prompts), step_prior(start.shape, alike))
    bold = min((problem.solved(at, LEVELS[0] * scale) for at in (start, np.zeros_like(start))), key=lambda f: f.merit)
    fits = [bold]
    for level in LEVELS[1:]:
        fits.append(problem.solved(fits[-1].theta, level * scale))
    best = min(fits, key=lambda fit: fit.surprise)
    doubt = problem.covariance(best.theta, CAUTIOUS * scale) if best.penalty > CAUTIOUS * scale else best.covariance
    normalisers = paths.at(best.theta, beta).normaliser_variances()
    spread_std = float(np.sqrt(np.mean(normalisers)))
    return PathFit(best.theta, bold.theta, doubt, best.noise_std, spread_std, problem.misfit(bold))


@dataclass(frozen=True, eq=False)
class _Intercepts:
    """V = 1 + GAMMA per prompt + an unknown mean: how labels hang together, in noise units."""

    owners: IntArray
    """[N] prompt of each label."""
    shares: FloatArray
    """[X] GAMMA / (1 + GAMMA count)."""
    ones: FloatArray
    """[N] what the prompts' intercepts leave of a constant."""

    @classmethod
    def of(cls, owners: IntArray, prompts: int) -> _Intercepts:
        count = np.bincount(owners, minlength=prompts).astype(np.float64)
        shares: FloatArray = GAMMA / (1.0 + GAMMA * count)
        ones: FloatArray = (1.0 - shares * count)[owners]
        return cls(owners, shares, ones)

    def of_rows(self, chosen: slice) -> _Intercepts:
        """Of some of the labels."""
        return _Intercepts.of(self.owners[chosen], len(self.shares))

    def freed(self, columns: FloatArray) -> FloatArray:
        """[N, k] V^-1 times columns [N, k]."""
        sums = np.zeros((len(self.shares), columns.shape[1]))
        np.add.at(sums, self.owners, columns)
        within = columns - (sums * self.shares[:, None])[self.owners]
        return np.asarray(within - np.outer(self.ones, self.ones @ columns) / self.ones.sum())

    def diagonal(self) -> FloatArray:
        """[N] diagonal of V^-1."""
        return np.asarray(1.0 - self.shares[self.owners] - self.ones**2 / self.ones.sum())


@dataclass(frozen=True, eq=False)
class _Solved:
    """An optimum at one penalty."""

    theta: FloatArray
    penalty: float
    covariance: FloatArray
    merit: float
    surprise: float
    """Mean minus log predictive density of a label left out, up to a constant; the linearisation's."""
    noise_std: float


@dataclass(frozen=True, eq=False)
class _Problem:
    """The regression of labels on sequences."""

    paths: Paths
    values: FloatArray
    beta: float
    intercepts: _Intercepts
    prior: FloatArray
    """[H d, H d] what a penalty multiplies."""

    def merit(self, theta: FloatArray, penalty: float) -> float:
        """What the fit makes small: squared residuals, intercepts integrated out, plus the penalty of theta [H, d]."""
        rest = self.values - self.paths.at(theta, self.beta).sums()
        return float(rest @ self.intercepts.freed(rest[:, None])[:, 0]) + penalty * float(
            theta.reshape(-1) @ self.prior @ theta.reshape(-1)
        )

    def solved(self, start: FloatArray, penalty: float) -> _Solved:
        """Gauss-Newton from ``start``; of each step the share that lowers the merit most is taken."""
        theta, merit = start, self.merit(start, penalty)
        for _ in range(STEPS):
            jacobian, target = self._linear(theta)
            freed = self.intercepts.freed(jacobian)
            goal = np.linalg.solve(jacobian.T @ freed + penalty * self.prior, freed.T @ target).reshape(theta.shape)
            merits = [(self.merit(theta + share * (goal - theta), penalty), share) for share in SHARES]
            least, share = min(merits)
            if least >= merit:
                break
            moved, merit = share * (goal - theta), least
            theta = theta + moved
            if np.max(np.abs(moved)) < CLOSE * self.beta:
                break
        jacobian, target = self._linear(theta)
        freed = self.intercepts.freed(jacobian)
        covariance = self._inverse(jacobian.T @ freed, penalty)
        onto = freed @ covariance
        left = self.intercepts.freed(target[:, None])[:, 0] - onto @ (freed.T @ target)
        known = np.maximum(self.intercepts.diagonal() - np.sum(onto * freed, axis=1), LEVERAGE)
        variance = (PRIOR_SHAPE * PRIOR_SHARE * float(np.var(self.values)) + float(np.sum(left**2 / known))) / (
            PRIOR_SHAPE + len(left)
        )
        surprise = 0.5 * float(np.log(max(variance, 1e-300)) - np.mean(np.log(known)))
        return _Solved(theta, penalty, covariance, merit, surprise, float(np.sqrt(variance)))

    def covariance(self, theta: FloatArray, penalty: float) -> FloatArray:
        """[H d, H d] around ``theta`` under that penalty."""
        jacobian, _ = self._linear(theta)
        return self._inverse(jacobian.T @ self.intercepts.freed(jacobian), penalty)

    def misfit(self, fit: _Solved) -> float:
        """Score test of a random effect of each draw at each place, on what ``fit`` leaves of the last labels.

        What features cannot say of a reward is a function of place and draw, and comes back in every sequence that
        goes there. The statistic is simulated under independent noise, so its level is exact for a linear fit.
        """
        chosen = slice(max(0, len(self.values) - TESTED), None)
        paths, free = self.paths.of_rows(chosen), self.intercepts.of_rows(chosen)
        part = _Problem(paths, self.values[chosen], self.beta, free, self.prior)
        jacobian, target = part._linear(fit.theta)
        freed = part.intercepts.freed(jacobian)
        n = len(target)
        left = part.intercepts.freed(np.eye(n))
        left -= freed @ self._inverse(jacobian.T @ freed, fit.penalty) @ freed.T
        shared = part.paths.shared()
        rest = left @ np.column_stack([target, np.random.default_rng([n, 66]).standard_normal((n, SIMULATED))])
        size = np.maximum(np.sum(rest**2, axis=0), 1e-300)
        score = np.sum(rest * (shared @ rest), axis=0) / size
        return float((1 + np.sum(score[1:] >= score[0])) / (1 + SIMULATED))

    def _linear(self, theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Jacobian [N, H d] there, and what it is to explain [N]."""
        here = self.paths.at(theta, self.beta)
        jacobian = here.jacobian()
        return jacobian, self.values - here.sums() + jacobian @ theta.reshape(-1)

    def _inverse(self, information: FloatArray, penalty: float) -> FloatArray:
        """[H d, H d] of the information plus the prior's."""
        return np.asarray(np.linalg.inv(information + penalty * self.prior), dtype=np.float64)


def information(jacobian: FloatArray, owners: IntArray, prompts: int, gamma: float) -> FloatArray:
    """[Hd, Hd] information of sequences on theta, in noise units, after an intercept per prompt of variance gamma."""
    count = np.bincount(owners, minlength=prompts)
    sums = np.zeros((prompts, jacobian.shape[1]))
    np.add.at(sums, owners, jacobian)
    k = gamma / (1.0 + gamma * count)
    return np.asarray(jacobian.T @ jacobian - (sums * k[:, None]).T @ sums)
