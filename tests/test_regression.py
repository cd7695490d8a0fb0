"""Both regressions against dense rewrites: full n x n covariances, augmented least squares, a constrained solver."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import gammaln

from spannerlm.errors import InputError
from spannerlm.regression import (
    GAMMAS,
    LAMBDAS,
    PRIOR_SHAPE,
    PRIOR_SHARE,
    SHRINKAGE,
    DifferenceStats,
    LabelStats,
    Posterior,
    fit_labels,
)

X, D = 7, 3


class Task:
    """Labels of repeated and single prompts, one prompt without any, features far from their centres."""

    def __init__(self, seed: int, n: int = 17, *, distinct: bool = False) -> None:
        rng = np.random.default_rng(seed)
        self.prompts = rng.permutation(X)[:n] if distinct else rng.choice(X - 1, size=n)
        self.features = rng.normal(size=(len(self.prompts), D)) + np.array([3.0, -1.0, 0.5])
        self.centres = rng.normal(size=(X, D)) + np.array([2.0, -1.0, 0.0])
        self.values = 2.0 + self.features @ np.array([1.0, -2.0, 0.5]) + rng.normal(size=len(self.prompts))
        self.values += rng.normal(size=X)[self.prompts]
        factor = rng.normal(size=(D, D))
        self.transform = factor @ factor.T + 0.5 * np.eye(D)
        self.scale = 1.7

    def stats(self, order: np.ndarray | None = None, pieces: int = 3) -> LabelStats:
        rows = np.arange(len(self.prompts)) if order is None else order
        stats = LabelStats.empty(X, D)
        for part in np.array_split(rows, pieces):
            stats = stats.add(self.prompts[part], self.features[part], self.values[part])
        return stats

    def design(self, transform: np.ndarray | None) -> np.ndarray:
        z = np.array([phi - self.centres[x] for x, phi in zip(self.prompts, self.features, strict=True)])
        return z if transform is None else z @ transform.T


class Dense:
    """The posterior at one (gamma, lambda) from K = I + gamma P P' + Z Z' / lambda, mu flat, sigma^2 integrated out."""

    def __init__(self, task: Task, gamma: float, penalty: float, transform: np.ndarray | None) -> None:
        y, n = task.values, len(task.values)
        z = task.design(transform)
        same = np.array([[float(a == b) for b in task.prompts] for a in task.prompts])
        cov = np.eye(n) + gamma * same + z @ z.T / penalty
        inverse, ones = np.linalg.inv(cov), np.ones(n)
        mass = ones @ inverse @ ones
        self.mu = ones @ inverse @ y / mass
        residual = y - self.mu
        rss = residual @ inverse @ residual
        projected = inverse - np.outer(inverse @ ones, ones @ inverse) / mass
        self.theta = z.T @ inverse @ residual / penalty
        self.covariance = np.eye(D) / penalty - z.T @ projected @ z / penalty**2  # of theta / sigma
        shape = PRIOR_SHAPE + (n - 1) / 2
        scale = PRIOR_SHARE * np.var(y, ddof=1) + rss / 2
        self.variance = scale / shape
        self.evidence = -np.linalg.slogdet(cov)[1] / 2 - np.log(mass) / 2 + gammaln(shape) - shape * np.log(scale)
        self.mass, self.inverse, self.z, self.transform = mass, inverse, z, transform
        self.gamma, self.penalty, self.values, self.shape = gamma, penalty, y, shape
        if transform is not None:
            self.theta = transform.T @ self.theta
            self.covariance = transform.T @ self.covariance @ transform

    def predict(self, shift: np.ndarray, prompts: int) -> tuple[float, float]:
        """Mean and variance of the kriging predictor with a flat mean, at a new place, over new prompts' intercepts."""
        shift = shift if self.transform is None else self.transform @ shift
        seen = self.z @ shift / self.penalty
        mean = self.mu + seen @ self.inverse @ (self.values - self.mu)
        left = 1.0 - np.ones(len(seen)) @ self.inverse @ seen
        spread = shift @ shift / self.penalty - seen @ self.inverse @ seen + left**2 / self.mass
        return mean, (spread + self.gamma / prompts) * self.variance * self.shape / (self.shape - 1.0)


GAMMA_GRID, LAMBDA_GRID = (0.0, 0.3, 2.0, 50.0), (0.004, 0.1, 1.0)


def dense_grid(task: Task, gammas: tuple[float, ...], transform: np.ndarray | None) -> list[list[Dense]]:
    return [[Dense(task, g, task.scale * k, transform) for k in LAMBDA_GRID] for g in gammas]


@pytest.mark.parametrize("transformed", [False, True])
@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_posterior_equals_the_dense_gaussian_process(seed: int, distinct: bool, transformed: bool) -> None:
    task = Task(seed, distinct=distinct)
    transform = task.transform if transformed else None
    fit = fit_labels(
        task.stats(), task.centres, task.scale, transform=transform, gammas=GAMMA_GRID, lambdas=LAMBDA_GRID
    )
    gammas = GAMMA_GRID if distinct else GAMMA_GRID[1:]  # a repeated prompt identifies its intercept
    np.testing.assert_array_equal(fit.gammas, gammas)
    np.testing.assert_allclose(fit.lambdas, task.scale * np.array(LAMBDA_GRID))
    grid = dense_grid(task, gammas, transform)
    evidence = np.array([[cell.evidence for cell in row] for row in grid])
    weights = np.exp(evidence - evidence.max())
    weights /= weights.sum()
    np.testing.assert_allclose(fit.weights, weights, rtol=1e-7, atol=1e-12)
    assert fit.weights.min() < 0.5 * fit.weights.max()  # the grid matters
    cells = [(w, cell) for ws, row in zip(weights, grid, strict=True) for w, cell in zip(ws, row, strict=True)]
    np.testing.assert_allclose(fit.mean, sum(w * cell.theta for w, cell in cells), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(fit.intercept, sum(w * cell.mu for w, cell in cells), rtol=1e-8)
    np.testing.assert_allclose(fit.noise_variances, [[cell.variance for cell in row] for row in grid], rtol=1e-8)
    np.testing.assert_allclose(fit.noise_std, np.sqrt(sum(w * cell.variance for w, cell in cells)), rtol=1e-8)
    g, k = fit.mode()
    assert fit.weights[g, k] == fit.weights.max()
    np.testing.assert_allclose(np.linalg.inv(fit.precision()), grid[g][k].covariance, rtol=1e-6, atol=1e-9)


def test_samples_have_the_mean_and_covariance_of_the_mixture() -> None:
    """100,000 draws against the exact moments from the dense rewrite; five standard errors."""
    task = Task(3, n=9)
    grid = dense_grid(task, GAMMA_GRID[1:], task.transform)
    fit = fit_labels(
        task.stats(), task.centres, task.scale, transform=task.transform, gammas=GAMMA_GRID, lambdas=LAMBDA_GRID
    )
    shape = PRIOR_SHAPE + 4.0
    assert fit.shape == shape
    cells = [(w, cell) for ws, row in zip(fit.weights, grid, strict=True) for w, cell in zip(ws, row, strict=True)]
    mean = sum(w * cell.theta for w, cell in cells)
    second = sum(
        w * (cell.covariance * cell.variance * shape / (shape - 1.0) + np.outer(cell.theta, cell.theta))
        for w, cell in cells
    )
    size = 100_000
    draws = fit.sample(size, rng=np.random.default_rng(4))
    assert draws.shape == (size, D)
    error = draws.std(axis=0) / np.sqrt(size)
    assert (np.abs(draws.mean(axis=0) - mean) < 5 * error).all()
    products = np.einsum("si,sj->sij", draws, draws)
    error = products.std(axis=0) / np.sqrt(size)
    assert (np.abs(products.mean(axis=0) - second) < 5 * error).all()
    covariance = second - np.outer(mean, mean)
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=0.05 * np.trace(covariance))


def test_any_order_and_any_pieces_give_the_same_statistics() -> None:
    task = Task(5, n=40)
    reference = fit_labels(task.stats(pieces=1), task.centres, task.scale)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(40)
        stats = task.stats(order, pieces=1 + 3 * seed)
        for name in ("outer", "cross", "square", "counts", "feature_sums", "value_sums"):
            np.testing.assert_allclose(getattr(stats, name), getattr(task.stats(), name), rtol=1e-12, atol=1e-12)
        fit = fit_labels(stats, task.centres, task.scale)
        np.testing.assert_allclose(fit.mean, reference.mean, rtol=1e-9)
        np.testing.assert_allclose(fit.weights, reference.weights, rtol=1e-8, atol=1e-12)
    assert stats.labels == 40


def test_recentred_statistics_are_those_of_recentred_features() -> None:
    task = Task(6)
    centred = task.stats().centred(task.centres, task.transform)
    z = task.design(task.transform)
    seen = np.unique(task.prompts)
    np.testing.assert_allclose(centred.outer, z.T @ z, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(centred.cross, z.T @ task.values, rtol=1e-10, atol=1e-10)
    sums = [z[task.prompts == x].sum(axis=0) for x in seen]
    np.testing.assert_allclose(centred.feature_sums, sums, rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(centred.counts, [np.sum(task.prompts == x) for x in seen])
    assert centred.square == pytest.approx(np.sum(task.values**2))


def test_shifting_or_scaling_the_labels_shifts_and_scales_the_posterior() -> None:
    task = Task(7)
    fit = fit_labels(task.stats(), task.centres, task.scale)
    task.values = 100.0 - 3.0 * task.values
    other = fit_labels(task.stats(), task.centres, task.scale)
    np.testing.assert_allclose(other.weights, fit.weights, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(other.mean, -3.0 * fit.mean, rtol=1e-7)
    assert other.intercept == pytest.approx(100.0 - 3.0 * fit.intercept)
    assert other.noise_std == pytest.approx(3.0 * fit.noise_std)


def fit_by_prompt(spread: float, seed: int) -> Posterior:
    """A fit to four labels of each of 30 prompts whose intercepts spread this much, noise 1."""
    rng = np.random.default_rng(seed)
    prompts = np.repeat(np.arange(30), 4)
    features = rng.normal(size=(120, 2))
    values = features @ np.array([1.0, -1.0]) + spread * rng.normal(size=30)[prompts] + rng.normal(size=120)
    return fit_labels(LabelStats.empty(30, 2).add(prompts, features, values), np.zeros((30, 2)), 2.0)


def test_the_evidence_finds_the_intercepts_variance() -> None:
    for seed in range(3):
        few, many = fit_by_prompt(0.3, seed), fit_by_prompt(10.0, seed)
        assert few.weights.sum(axis=1) @ few.gammas < 1.0
        assert many.weights.sum(axis=1) @ many.gammas > 50.0
        np.testing.assert_allclose(many.mean, [1.0, -1.0], atol=5 / np.sqrt(90))  # five standard errors
        assert many.noise_std == pytest.approx(1.0, abs=5 / np.sqrt(2 * 90))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_equal_or_few_labels_give_a_finite_posterior(n: int) -> None:
    task = Task(8, n=n)
    task.values = np.full(n, 7.0)
    fit = fit_labels(task.stats(pieces=1), task.centres, task.scale)
    assert fit.intercept == pytest.approx(7.0)
    np.testing.assert_allclose(fit.mean, 0.0, atol=1e-6)
    assert np.isfinite(fit.sample(10, rng=np.random.default_rng(0))).all()
    assert 0.0 < fit.noise_std < 0.1
    assert fit.weights.sum() == pytest.approx(1.0)
    assert fit.gammas[0] == (0.0 if len(set(task.prompts)) == n else GAMMAS[1])


@pytest.mark.parametrize("transformed", [False, True])
@pytest.mark.parametrize(("prompts", "n"), [(1, 9), (5, 9), (2, 3)])
def test_predictions_have_the_moments_of_the_mixture(prompts: int, n: int, transformed: bool) -> None:
    """Against the kriging predictor with a flat mean at every grid point; the covariance is that of the mode."""
    task, shift = Task(9, n=n), np.array([0.4, -1.0, 0.7])
    transform = task.transform if transformed else None
    gammas = GAMMA_GRID if len(set(task.prompts)) == n else GAMMA_GRID[1:]
    fit = fit_labels(
        task.stats(), task.centres, task.scale, transform=transform, gammas=GAMMA_GRID, lambdas=LAMBDA_GRID
    )
    grid = dense_grid(task, gammas, transform)
    cells = [(w, cell) for ws, row in zip(fit.weights, grid, strict=True) for w, cell in zip(ws, row, strict=True)]
    moments = [(w, *cell.predict(shift, prompts)) for w, cell in cells]
    mean = sum(w * m for w, m, _ in moments)
    variance = sum(w * (v + (m - mean) ** 2) for w, m, v in moments)
    assert fit.predict(shift, prompts) == pytest.approx((mean, variance), rel=1e-7)
    g, k = fit.mode()
    np.testing.assert_allclose(fit.covariance(), grid[g][k].covariance, rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(fit.precision() @ fit.covariance(), np.eye(D), atol=1e-8)
    np.testing.assert_array_equal(fit.precision(), fit.precision().T)


def test_the_variance_of_the_labels_is_that_of_the_sample_with_a_floor() -> None:
    task = Task(10, n=6)
    assert task.stats().variance() == pytest.approx(np.var(task.values, ddof=1))
    for values, floor in (([], 1e-8), ([3.0], 9e-8), ([-20.0, -20.0], 4e-6), ([0.5, 0.5], 1e-8)):
        rows = np.zeros(len(values), dtype=np.int64)
        stats = LabelStats.empty(X, D).add(rows, np.zeros((len(values), D)), np.array(values))
        assert stats.variance() == pytest.approx(floor)
    two = LabelStats.empty(X, D).add(np.zeros(2, dtype=np.int64), np.zeros((2, D)), np.array([1.0, 2.0]))
    assert two.variance() == pytest.approx(0.5)


def test_precisions_beyond_the_scale_are_held_to_be_unlikely() -> None:
    """(lambda / S)^(-SHRINKAGE / 2) beyond 1, nothing below."""
    task, lambdas = Task(12), (0.1, 1.0, 2.0, 1000.0)
    fit = fit_labels(task.stats(), task.centres, task.scale, gammas=GAMMA_GRID, lambdas=lambdas)
    cells = [[Dense(task, g, task.scale * k, None).evidence for k in lambdas] for g in GAMMA_GRID[1:]]
    logs = np.array(cells) - SHRINKAGE / 2.0 * np.log([1.0, 1.0, 2.0, 1000.0])
    expected = np.exp(logs - logs.max())
    np.testing.assert_allclose(fit.weights, expected / expected.sum(), rtol=1e-7, atol=1e-14)


def test_the_grid_of_precisions_reaches_far_beyond_the_scale() -> None:
    np.testing.assert_allclose(LAMBDAS, np.logspace(-3, 4, 22))
    assert 1.0 in LAMBDAS


def test_only_strong_evidence_shrinks_theta_beyond_the_scale() -> None:
    """Noise alone: a few labels leave the prior signal as large as the noise, thousands do not."""
    rng = np.random.default_rng(0)
    precisions = []
    for n in (30, 4000):
        features = rng.normal(size=(n, 10)) / np.sqrt(10.0)
        stats = LabelStats.empty(1, 10).add(np.zeros(n, dtype=np.int64), features, rng.normal(size=n))
        fit = fit_labels(stats, np.zeros((1, 10)), 1.0)
        precisions.append(float(fit.lambdas[fit.mode()[1]]))
    assert precisions[0] <= 1.0 < 30.0 < precisions[1]


def test_no_label_is_an_error() -> None:
    with pytest.raises(InputError, match=r"^expected at least one label"):
        fit_labels(LabelStats.empty(X, D), np.zeros((X, D)), 1.0)


# --- differences ----------------------------------------------------------------------------------------------------


def differences(seed: int, n: int = 12, d: int = 4) -> tuple[np.ndarray, np.ndarray, DifferenceStats]:
    rng = np.random.default_rng(seed)
    relative, values = rng.normal(size=(n, d)) * [1.0, 0.3, 2.0, 0.05], rng.normal(size=n)
    stats = DifferenceStats.empty(d)
    for rows in np.array_split(np.random.default_rng(seed + 1).permutation(n), 4):
        stats = stats.add(relative[rows], values[rows])
    return relative, values, stats


@pytest.mark.parametrize("penalty", [1e-3, 0.7, 30.0])
def test_ridge_is_augmented_least_squares(penalty: float) -> None:
    relative, values, stats = differences(1)
    expected = np.linalg.lstsq(
        np.vstack([relative, np.sqrt(penalty) * np.eye(4)]), np.concatenate([values, np.zeros(4)]), rcond=None
    )[0]
    np.testing.assert_allclose(stats.ridge(penalty), expected, rtol=1e-8)
    np.testing.assert_allclose(stats.ridge(penalty, bound=1.001 * np.linalg.norm(expected)), expected, rtol=1e-8)
    assert stats.pairs == 12
    assert stats.square == pytest.approx(np.sum(values**2))


@pytest.mark.parametrize("bound", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("seed", [1, 4])
def test_norm_bound_solves_the_constrained_problem(seed: int, bound: float) -> None:
    relative, values, stats = differences(seed)
    penalty = 1e-3

    def loss(theta: np.ndarray) -> float:
        return float(np.sum((relative @ theta - values) ** 2) + penalty * theta @ theta)

    found = stats.ridge(penalty, bound)
    free = stats.ridge(penalty)
    assert np.linalg.norm(free) > bound
    assert np.linalg.norm(found) == pytest.approx(bound, rel=1e-9)
    constraint = {"type": "ineq", "fun": lambda theta: bound**2 - theta @ theta, "jac": lambda theta: -2.0 * theta}
    best = minimize(
        loss,
        found + 0.1 * bound * np.random.default_rng(0).normal(size=4),
        jac=lambda theta: 2.0 * (relative.T @ (relative @ theta - values) + penalty * theta),
        constraints=[constraint],
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    np.testing.assert_allclose(found, best.x, rtol=0, atol=1e-5 * max(1.0, bound))
    assert loss(found) <= best.fun + 1e-9


def test_tightening_the_bound_shrinks_the_solution() -> None:
    _, _, stats = differences(2)
    norms = [np.linalg.norm(stats.ridge(1e-3, bound)) for bound in (10.0, 1.0, 0.1, 1e-6)]
    assert all(a > b for a, b in pairwise(norms))
    np.testing.assert_array_equal(DifferenceStats.empty(3).ridge(0.5, 1.0), np.zeros(3))
    faint = DifferenceStats.empty(1).add(np.array([[0.1]]), np.array([1.0]))
    assert faint.ridge(0.01)[0] == pytest.approx(5.0)
    assert faint.ridge(0.01, bound=1.0)[0] == pytest.approx(1.0)
