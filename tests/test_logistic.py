"""Regression on comparisons against scipy, the formula of the evidence, and integrals in one dimension."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.special import expit

from spannerlm.errors import InputError
from spannerlm.logistic import LAMBDAS, ComparisonStats, Rewards, fit_comparisons, ridge_comparisons
from spannerlm.regression import LabelStats, fit_labels

THETA = np.array([1.0, -2.0, 0.5])


def told(n: int = 60, seed: int = 0, theta: np.ndarray = THETA) -> tuple[np.ndarray, np.ndarray]:
    """Relative features [n, d] and outcomes [n], a few of them ties."""
    rng = np.random.default_rng(seed)
    relative = rng.normal(size=(n, len(theta)))
    outcomes = (rng.random(n) < expit(relative @ theta)).astype(float)
    outcomes[::7] = 0.5
    return relative, outcomes


def stats_of(relative: np.ndarray, outcomes: np.ndarray) -> ComparisonStats:
    return ComparisonStats().add(relative[:10], outcomes[:10]).add(relative[10:], outcomes[10:])


def loss(w: np.ndarray, features: np.ndarray, outcomes: np.ndarray, penalty: float) -> float:
    """Minus the log posterior, one comparison after the other."""
    total = 0.5 * penalty * sum(c * c for c in w)
    for z, outcome in zip(features, outcomes, strict=True):
        logit = sum(a * b for a, b in zip(z, w, strict=True))
        total -= outcome * np.log(expit(logit)) + (1.0 - outcome) * np.log(expit(-logit))
    return float(total)


def slow(features: np.ndarray, outcomes: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Mode, Hessian there, and Laplace's log evidence up to what all penalties share."""
    d = features.shape[1]
    found = minimize(
        loss, np.zeros(d), (features, outcomes, penalty), method="Nelder-Mead" if d == 1 else "BFGS", tol=1e-9
    )
    w = found.x
    hessian = penalty * np.eye(d)
    for z in features:
        p = float(expit(z @ w))
        hessian += p * (1 - p) * np.outer(z, z)
    evidence = 0.5 * d * np.log(penalty) - 0.5 * np.log(np.linalg.det(hessian)) - loss(w, features, outcomes, penalty)
    return w, hessian, float(evidence)


def test_modes_curvatures_and_evidence_against_a_slow_rewrite() -> None:
    relative, outcomes = told()
    turn = np.linalg.cholesky(np.array([[1.0, 0.2, 0.0], [0.2, 0.5, 0.1], [0.0, 0.1, 2.0]]))
    turn = turn @ turn.T
    posterior = fit_comparisons(stats_of(relative, outcomes), 3.0, transform=turn)
    evidence = []
    for k, penalty in enumerate(3.0 * np.array(LAMBDAS)):
        w, hessian, log_evidence = slow(relative @ turn, outcomes, penalty)
        np.testing.assert_allclose(posterior.modes[k], w, atol=2e-5)
        vectors, values = posterior.eigenvectors[k], posterior.eigenvalues[k] + posterior.lambdas[k]
        np.testing.assert_allclose((vectors * values) @ vectors.T, hessian, rtol=1e-4, atol=1e-4)
        evidence.append(log_evidence)
    weights = np.exp(np.array(evidence) - max(evidence))
    weights /= weights.sum()
    np.testing.assert_allclose(posterior.weights[0], weights, atol=1e-4)
    np.testing.assert_allclose(posterior.mean, turn @ (weights @ posterior.modes), atol=1e-4)
    assert posterior.mode() == (0, int(np.argmax(weights)))


def test_the_mean_is_that_of_the_exact_posterior_but_for_laplaces_error() -> None:
    """One dimension, 80 comparisons: the integral over theta and the grid; the mode is off by O(1/n)."""
    relative, outcomes = told(80, 1, np.array([0.8]))
    posterior = fit_comparisons(stats_of(relative, outcomes), 1.0)
    mass = moment = 0.0
    for penalty in LAMBDAS:

        def density(w: float, penalty: float = penalty) -> float:
            return float(np.sqrt(penalty) * np.exp(40.0 - loss(np.array([w]), relative, outcomes, penalty)))

        mass += quad(density, -4, 6)[0]
        moment += quad(lambda w, f=density: w * f(w), -4, 6)[0]
    sigma = 1.0 / np.sqrt(posterior.precision()[0, 0])
    assert abs(posterior.mean[0] - moment / mass) < 0.25 * sigma


def test_a_tie_is_half_of_each_outcome() -> None:
    relative, _ = told(12)
    ties = ComparisonStats().add(relative, np.full(12, 0.5))
    np.testing.assert_allclose(fit_comparisons(ties, 1.0).mean, 0.0, atol=1e-12)
    _, outcomes = told(12)
    twice = ComparisonStats().add(np.repeat(relative, 2, axis=0), np.repeat(outcomes, 2))
    halves = np.where(outcomes == 0.5, 0.0, outcomes), np.where(outcomes == 0.5, 1.0, outcomes)
    split = ComparisonStats().add(relative, halves[0]).add(relative, halves[1])
    np.testing.assert_allclose(fit_comparisons(split, 1.0).mean, fit_comparisons(twice, 1.0).mean, atol=1e-9)


def test_turned_comparisons_with_mirrored_outcomes_say_the_same() -> None:
    relative, outcomes = told()
    first = fit_comparisons(stats_of(relative, outcomes), 1.0)
    sign = np.where(np.arange(60) % 2, 1.0, -1.0)
    mirrored = np.where(sign > 0, outcomes, 1.0 - outcomes)
    second = fit_comparisons(stats_of(relative * sign[:, None], mirrored), 1.0)
    np.testing.assert_allclose(first.mean, second.mean, atol=1e-9)
    np.testing.assert_allclose(first.precision(), second.precision(), rtol=1e-9)
    swapped = fit_comparisons(stats_of(relative, 1.0 - outcomes), 1.0)
    np.testing.assert_allclose(swapped.mean, -first.mean, atol=1e-9)


def test_theta_is_in_units_of_the_scale() -> None:
    stats = stats_of(*told())
    one, three = fit_comparisons(stats, 1.0), fit_comparisons(stats, 1.0, scale=3.0)
    np.testing.assert_allclose(three.mean, 3.0 * one.mean, rtol=1e-12)
    np.testing.assert_array_equal(three.precision(), one.precision())
    draws = (p.sample(5, rng=np.random.default_rng(0)) for p in (one, three))
    np.testing.assert_allclose(3.0 * next(draws), next(draws), rtol=1e-12)


def test_features_in_another_basis_change_no_prediction() -> None:
    """Rotated features; and T folded into the features instead of given."""
    relative, outcomes = told()
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    plain = fit_comparisons(stats_of(relative, outcomes), 1.0)
    turned = fit_comparisons(stats_of(relative @ rotation, outcomes), 1.0)
    np.testing.assert_allclose(turned.mean, plain.mean @ rotation, atol=1e-8)
    transform = np.diag([2.0, 1.0, 0.5])
    inside = fit_comparisons(stats_of(relative @ transform, outcomes), 1.0)
    given = fit_comparisons(stats_of(relative, outcomes), 1.0, transform=transform)
    np.testing.assert_allclose(given.mean, transform @ inside.mean, rtol=1e-9)
    np.testing.assert_allclose(
        np.linalg.inv(given.precision()), transform @ np.linalg.inv(inside.precision()) @ transform, rtol=1e-9
    )


def test_samples_have_the_moments_of_the_mixture() -> None:
    """40,000 draws against mean and covariance of the mixture of Laplace approximations; five standard errors."""
    transform = np.diag([2.0, 1.0, 0.5])
    posterior = fit_comparisons(stats_of(*told()), 1.0, scale=0.5, transform=transform)
    draws = posterior.sample(40_000, rng=np.random.default_rng(4))
    covariance = np.zeros((3, 3))
    for k, weight in enumerate(posterior.weights[0]):
        vectors, values = posterior.eigenvectors[k], posterior.eigenvalues[k] + posterior.lambdas[k]
        spread = 0.25 * transform @ (vectors / values) @ vectors.T @ transform
        gap = 0.5 * transform @ posterior.modes[k] - posterior.mean
        covariance += weight * (spread + np.outer(gap, gap))
    error = np.sqrt(np.diag(covariance) / len(draws))
    assert (np.abs(draws.mean(axis=0) - posterior.mean) < 5 * error).all()
    root = np.sqrt(np.diag(covariance))
    assert (np.abs(np.cov(draws.T) - covariance) < 5 * 2.0 * np.outer(root, root) / np.sqrt(len(draws))).all()


def test_precision_is_that_of_the_likeliest_prior() -> None:
    relative, outcomes = told()
    posterior = fit_comparisons(stats_of(relative, outcomes), 1.0, lambdas=(0.3,))
    _, hessian, _ = slow(relative, outcomes, 0.3)
    np.testing.assert_allclose(posterior.precision(), hessian, rtol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_covariance_is_the_inverse_curvature_at_the_likeliest_prior(scale: float) -> None:
    """Of logits, whatever s; for untransformed features: in those, theta has the precision T^-1 H T^-1."""
    relative, outcomes = told()
    transform = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, 0.1], [0.0, 0.1, 0.5]])
    posterior = fit_comparisons(stats_of(relative, outcomes), 1.0, scale=scale, transform=transform)
    penalty = LAMBDAS[int(np.argmax(posterior.weights[0]))]
    _, hessian, _ = slow(relative @ transform, outcomes, penalty)
    expected = transform @ np.linalg.inv(hessian) @ transform
    np.testing.assert_allclose(posterior.covariance(), expected, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(posterior.covariance() @ posterior.precision(), np.eye(3), atol=1e-9)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("n", [1, 2, 200])
def test_what_is_perfectly_separable_stays_finite(size: float, n: int) -> None:
    relative = size * np.random.default_rng(5).normal(size=(n, 4))
    outcomes = (relative @ np.ones(4) > 0).astype(float)
    posterior = fit_comparisons(ComparisonStats().add(relative, outcomes), size**2, lambdas=(1e-6, 1.0))
    assert np.isfinite(posterior.mean).all()
    assert np.isfinite(posterior.precision()).all()
    assert np.isfinite(posterior.sample(3, rng=np.random.default_rng(0))).all()
    assert ((relative @ posterior.mean > 0) == (outcomes > 0)).all()


def test_levels_are_undefined_and_nothing_is_no_data() -> None:
    posterior = fit_comparisons(stats_of(*told()), 1.0)
    assert np.isnan([posterior.intercept, posterior.noise_std, *posterior.predict(np.zeros(3), 2)]).all()
    with pytest.raises(InputError, match="at least one comparison"):
        fit_comparisons(ComparisonStats(), 1.0)
    assert ComparisonStats().comparisons == 0
    assert stats_of(*told()).comparisons == 60


# --- the published schedule's regression ----------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_ridge_within_its_bound_is_the_penalised_maximum(scale: float) -> None:
    relative, outcomes = told()
    theta = ridge_comparisons(stats_of(relative, outcomes), 0.7, 100.0, scale=scale, dim=3)
    np.testing.assert_allclose(theta, scale * slow(relative, outcomes, 0.7)[0], atol=2e-5)


def test_ridge_at_its_bound_is_the_constrained_maximum() -> None:
    """Against scipy's constrained optimiser, penalty included."""
    relative, outcomes = told()
    theta = ridge_comparisons(stats_of(relative, outcomes), 0.1, 0.6, scale=0.5, dim=3)
    within = {"type": "ineq", "fun": lambda w: 0.6**2 - 0.25 * w @ w}
    found = minimize(loss, np.zeros(3), (relative, outcomes, 0.1), method="SLSQP", constraints=[within], tol=1e-12)
    np.testing.assert_allclose(theta, 0.5 * found.x, atol=1e-5)
    assert np.linalg.norm(theta) == pytest.approx(0.6)
    np.testing.assert_array_equal(ridge_comparisons(ComparisonStats(), 0.1, 0.6, scale=0.5, dim=3), np.zeros(3))


def test_rewards_beside_comparisons_enter_as_a_gaussian_likelihood() -> None:
    rng = np.random.default_rng(11)
    dim, scale = 3, 0.7
    theta, centres = rng.normal(size=dim), np.zeros((4, dim))
    relative = rng.normal(size=(30, dim))
    outcomes = (rng.random(30) < 1.0 / (1.0 + np.exp(-relative @ theta / scale))).astype(float)
    prompts, phi = rng.integers(4, size=25), rng.normal(size=(25, dim))
    values = phi @ theta + 2.0 + 0.3 * rng.normal(size=25)
    turn = np.diag([1.0, 0.5, 2.0])
    stats = LabelStats.empty(4, dim).add(prompts, phi, values)
    rewards_fit = fit_labels(stats, centres, 1.0, transform=turn)
    comparisons = ComparisonStats().add(relative, outcomes)
    joint = fit_comparisons(
        comparisons, 1.0, scale=scale, transform=turn, lambdas=(0.2,), rewards=Rewards.of(rewards_fit, scale)
    )
    g, k = rewards_fit.mode()
    noise, gamma = rewards_fit.noise_variances[g, k], rewards_fit.gammas[g]
    covariance = noise * (np.eye(25) + gamma * (prompts[:, None] == prompts) + 1e8)  # the mean reward is unknown

    def loss(w: np.ndarray) -> float:
        rest = values - phi @ turn @ (scale * w)
        logits = relative @ turn @ w
        gaussian = 0.5 * rest @ np.linalg.solve(covariance, rest)
        return float(np.sum(np.logaddexp(0.0, logits)) - outcomes @ logits + gaussian + 0.1 * w @ w)

    slow = minimize(loss, np.zeros(dim), tol=1e-10).x
    assert joint.mean == pytest.approx(scale * turn @ slow, abs=2e-3)
    curvature = np.array([[_second(loss, slow, i, j) for j in range(dim)] for i in range(dim)])
    expected = turn @ np.linalg.inv(curvature) @ turn
    assert joint.covariance() == pytest.approx(expected, rel=0.02, abs=1e-4)
    alone = fit_comparisons(comparisons, 1.0, scale=scale, transform=turn, lambdas=(0.2,))
    assert np.trace(joint.covariance()) < np.trace(alone.covariance())
    assert np.linalg.norm(joint.mean - theta) < np.linalg.norm(alone.mean - theta)


def test_rewards_alone_are_enough_where_no_comparison_has_come_yet() -> None:
    rng = np.random.default_rng(12)
    phi, theta = rng.normal(size=(200, 2)), np.array([1.0, -0.5])
    stats = LabelStats.empty(1, 2).add(np.zeros(200, dtype=np.int64), phi, phi @ theta + 0.1 * rng.normal(size=200))
    rewards = Rewards.of(fit_labels(stats, np.zeros((1, 2)), 2.0), 0.5)
    found = fit_comparisons(ComparisonStats(), 2.0, scale=0.5, rewards=rewards)
    assert found.mean == pytest.approx(theta, abs=0.05)


def _second(loss: Callable[[np.ndarray], float], at: np.ndarray, i: int, j: int, step: float = 1e-3) -> float:
    e = step * np.eye(len(at))
    corners = loss(at + e[i] + e[j]) - loss(at + e[i] - e[j]) - loss(at - e[i] + e[j]) + loss(at - e[i] - e[j])
    return corners / (4.0 * step * step)
