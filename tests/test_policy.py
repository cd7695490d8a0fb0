"""Policies on finite sets against loops, scans and brute force; reductions to the base model and to each other."""

from __future__ import annotations

import laws
import numpy as np
import pytest
from scipy.optimize import minimize

from spannerlm.environments import TabularEnvironment
from spannerlm.errors import InputError
from spannerlm.linalg import whitening_root
from spannerlm.policy import (
    LinearSoftmaxPolicy,
    TruncatedSoftmaxPolicy,
    beta_for_kl,
    kl_divergence,
    padded,
    tilt,
)

SEEDS = [0, 1, 2]


def big_table(seed: int) -> TabularEnvironment:
    return laws.random_table(seed, prompts=9, responses=23, dim=5)


@pytest.mark.parametrize("seed", SEEDS)
def test_value_lost_is_the_divergence_from_the_optimum(seed: int) -> None:
    """J(pi*) - J(pi) = beta KL(pi || pi*) to 1e-12, zeros in pi_ref and rho included (THEORY 1)."""
    env = big_table(seed)
    laws.regret_is_the_divergence_from_the_optimum(env)
    optimum = env.optimal_policy()
    assert (env.base_probs == 0.0).any()
    assert optimum[env.base_probs == 0.0].max() == 0.0
    for policy in laws.policies(env, seed):
        used = env.prompt_probs > 0.0
        divergence = env.prompt_probs[used] @ kl_divergence(policy, optimum)[used]
        assert env.optimal_value() - env.value(policy) == pytest.approx(env.beta * divergence, abs=1e-12)
        assert env.regret(policy) == pytest.approx(env.beta * divergence, abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_optimum_is_what_brute_force_finds(seed: int) -> None:
    """A generic optimiser over logits, started far away, ends at the same value and the same table."""
    env = laws.random_table(seed, prompts=2, responses=6)
    rho, base = env.prompt_probs[0], env.base_probs[0]
    inside = np.flatnonzero(base)

    def loss(logits: np.ndarray) -> float:
        p = np.exp(logits - logits.max())
        p /= p.sum()
        return -float(p @ env.mean_rewards[0, inside] - env.beta * p @ np.log(p / base[inside]))

    start = np.random.default_rng(seed).normal(size=len(inside))
    found = minimize(loss, start, method="BFGS", options={"gtol": 1e-9})
    p = np.exp(found.x - found.x.max())
    p /= p.sum()
    np.testing.assert_allclose(env.optimal_policy()[0, inside], p, rtol=0, atol=1e-5)
    assert -rho * found.fun == pytest.approx(env.optimal_value(), abs=1e-10)


def test_tilt_is_the_weighted_base() -> None:
    base, scores = np.array([[0.2, 0.0, 0.8], [0.5, 0.25, 0.25]]), np.array([[1.0, 9.0, -2.0], [0.3, 0.2, 0.1]])
    weights = base * np.exp(scores / 0.7)
    np.testing.assert_allclose(tilt(base, scores, 0.7), weights / weights.sum(axis=1, keepdims=True), rtol=1e-13)
    np.testing.assert_allclose(tilt(base, scores, np.inf), base, rtol=1e-15)
    np.testing.assert_allclose(tilt(base, scores, 1e-6), [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], rtol=0, atol=1e-300)


def test_divergence_by_hand_and_at_the_edges() -> None:
    p, q = np.array([[0.25, 0.75, 0.0], [0.0, 1.0, 0.0]]), np.array([[0.5, 0.25, 0.25], [0.5, 0.5, 0.0]])
    expected = [0.25 * np.log(0.5) + 0.75 * np.log(3.0), np.log(2.0)]
    np.testing.assert_allclose(kl_divergence(p, q), expected, rtol=1e-14)
    assert kl_divergence(np.array([0.5, 0.5]), np.array([1.0, 0.0])) == np.inf
    tiny = 1e-310  # the ratio overflows, the divergence does not
    expected_tiny = 0.5 * (np.log(0.5) - np.log(tiny)) + 0.5 * np.log(0.5)
    assert kl_divergence(np.array([0.5, 0.5]), np.array([tiny, 1.0 - tiny])) == pytest.approx(expected_tiny)


# --- the policies ---------------------------------------------------------------------------------------------------


def test_linear_softmax_realises_a_linear_reward() -> None:
    env, theta = big_table(3), np.array([1.0, -2.0, 0.5, 0.0, 3.0])
    realizable = TabularEnvironment(
        env.prompt_probs, env.base_probs, env.features, env.features @ theta, beta=0.8, noise_std=0.0
    )
    assert realizable.realizability_gap() < 1e-12
    np.testing.assert_allclose(
        LinearSoftmaxPolicy(theta, 0.8).table(env), realizable.optimal_policy(), rtol=1e-12, atol=1e-300
    )
    zero = LinearSoftmaxPolicy(np.zeros(5), 0.8).table(env)
    np.testing.assert_allclose(zero, env.base_probs, rtol=1e-14)


def naive_truncated_table(env: TabularEnvironment, policy: TruncatedSoftmaxPolicy) -> np.ndarray:
    table = np.zeros_like(env.base_probs)
    sigma = np.linalg.inv(policy.root.T @ policy.root)
    for x in range(len(table)):
        for anchor, chance in enumerate(env.base_probs[x]):
            weights = []
            for y, base in enumerate(env.base_probs[x]):
                relative = env.features[x, y] - env.features[x, anchor]
                inside = np.sqrt(relative @ np.linalg.solve(sigma, relative)) <= policy.nu
                weights.append(base * np.exp((relative @ policy.theta if inside else 0.0) / policy.beta))
            table[x] += chance * np.array(weights) / sum(weights)
    return table


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("nu", [0.7, 2.0])
def test_truncated_table_is_a_double_loop(seed: int, nu: float) -> None:
    env, rng = laws.random_table(seed), np.random.default_rng(seed)
    factor = rng.normal(size=(3, 3))
    root = whitening_root(factor @ factor.T + np.eye(3))
    policy = TruncatedSoftmaxPolicy(rng.normal(size=3), 0.6, root, nu)
    table = policy.table(env)
    np.testing.assert_allclose(table, naive_truncated_table(env, policy), rtol=1e-9, atol=1e-12)
    assert not np.allclose(table, LinearSoftmaxPolicy(policy.theta, 0.6).table(env), atol=1e-3)
    assert not np.allclose(table, env.base_probs, atol=1e-3)


def test_truncation_at_nothing_is_the_base_and_at_infinity_the_linear_policy() -> None:
    env, theta = laws.random_table(4), np.array([0.5, -1.0, 2.0])
    never = TruncatedSoftmaxPolicy(theta, 0.5, np.eye(3), 0.0).table(env)
    np.testing.assert_allclose(never, env.base_probs, rtol=0, atol=1e-14)
    always = TruncatedSoftmaxPolicy(theta, 0.5, np.eye(3), np.inf).table(env)
    np.testing.assert_allclose(always, LinearSoftmaxPolicy(theta, 0.5).table(env), rtol=1e-12, atol=1e-15)


# --- the temperature of a KL budget ---------------------------------------------------------------------------------


def pool(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Base frequencies and scores of prompts with 3 to 9 responses, padded."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(3, 10, size=6)
    return padded([rng.dirichlet(np.ones(n)) for n in sizes]), padded([rng.normal(size=n) * 3 for n in sizes])


def mean_kl(base: np.ndarray, scores: np.ndarray, beta: float) -> float:
    rows = []
    for p, s in zip(base, scores, strict=True):
        s, p = s[p > 0.0], p[p > 0.0]
        q = p * np.exp((s - s.max()) / beta)
        q /= q.sum()
        rows.append(sum(a * np.log(a / b) for a, b in zip(q, p, strict=True) if a > 0.0))
    return float(np.mean(rows))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kl", [1e-6, 0.01, 0.4, 1.0])
def test_temperature_spends_the_budget_as_a_scan_finds_it(seed: int, kl: float) -> None:
    base, scores = pool(seed)
    beta = beta_for_kl(base, scores, kl)
    assert mean_kl(base, scores, beta) == pytest.approx(kl, rel=1e-5)
    grid = np.exp(np.linspace(np.log(beta) - 1.0, np.log(beta) + 1.0, 201))
    best = grid[np.argmin([abs(mean_kl(base, scores, b) - kl) for b in grid])]
    assert best == pytest.approx(beta, rel=0.011)


def test_temperature_of_impossible_budgets() -> None:
    base, scores = pool(5)
    assert beta_for_kl(base, scores, 0.0) == np.inf
    assert beta_for_kl(base, 0.0 * scores + 3.0, 0.4) == np.inf
    everything = beta_for_kl(base, scores, 100.0)  # more than the support allows: the arg max
    largest = np.where(base > 0.0, scores, -np.inf).argmax(axis=1)
    np.testing.assert_allclose(tilt(base, scores, everything)[np.arange(6), largest], 1.0, atol=1e-12)
    for kl in (1e-11, 1e-13, 1e-300):
        assert mean_kl(base, scores, beta_for_kl(base, scores, kl)) <= 1e-10
    for wrong in (-0.1, float("nan")):
        with pytest.raises(InputError, match="KL budget"):
            beta_for_kl(base, scores, wrong)


def test_scaling_the_scores_scales_the_temperature() -> None:
    base, scores = pool(6)
    for factor in (1e-6, 1e6):
        assert beta_for_kl(base, factor * scores, 0.5) == pytest.approx(
            factor * beta_for_kl(base, scores, 0.5), rel=1e-5
        )


def test_padding_has_no_weight() -> None:
    table = padded([np.array([1.0, 2.0]), np.array([]), np.array([3.0])])
    np.testing.assert_array_equal(table, [[1.0, 2.0], [0.0, 0.0], [3.0, 0.0]])
    assert padded([]).shape == (0, 0)
