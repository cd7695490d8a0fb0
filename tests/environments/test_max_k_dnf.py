"""max-k-dnf(n, k) as THEORY.md 4 and TESTBEDS.md state it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from spannerlm.environments import FAMILIES, max_k_dnf, max_k_dnf_bound, max_k_dnf_terms
from spannerlm.policy import LinearSoftmaxPolicy


@pytest.mark.parametrize("k", [2, 4, 7])
def test_the_family_is_as_stated(k: int) -> None:
    env, terms = max_k_dnf(k, seed=1), max_k_dnf_terms(k, seed=1)
    assert FAMILIES["max-k-dnf"] is max_k_dnf
    assert env.features.shape == (20_000, 2, 24)
    assert terms.variables.shape == terms.signs.shape == (20_000, k)
    assert not env.features[:, 1].any()
    for x in range(0, 20_000, 997):
        phi = np.zeros(24)
        for i, sign in zip(terms.variables[x], terms.signs[x], strict=True):
            phi[i] = sign / math.sqrt(k)
        np.testing.assert_array_equal(env.features[x, 0], phi)
        assert len(set(terms.variables[x])) == k
    np.testing.assert_allclose(np.linalg.norm(env.features[:, 0], axis=-1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(np.log(env.base_probs[:, 0] / env.base_probs[:, 1]), -(2 * k - 2), rtol=1e-12)
    theta = np.linalg.lstsq(env.features[:, 0], env.mean_rewards[:, 0], rcond=None)[0]
    np.testing.assert_allclose(theta, 2 * math.sqrt(k) * terms.truth, rtol=1e-9)
    assert np.abs(theta).max() == pytest.approx(max_k_dnf_bound(k))
    assert (env.beta, env.noise_std) == (1.0, 2.0)
    assert env.coverage() == pytest.approx((1 + math.exp(2 * k - 2)) / (1 + math.exp(-2)), rel=1e-9)


@pytest.mark.parametrize(("k", "beta"), [(2, 1.0), (5, 0.3), (7, 2.0)])
def test_log_odds_are_two_less_four_for_each_wrong_sign(k: int, beta: float) -> None:
    env, terms = max_k_dnf(k, prompts=3000, beta=beta, seed=2), max_k_dnf_terms(k, prompts=3000, seed=2)
    optimum = env.optimal_policy()
    log_odds = np.log(optimum[:, 0] / optimum[:, 1])
    rows = zip(terms.variables, terms.signs, strict=True)
    wrong = np.array([sum(terms.truth[i] != s for i, s in zip(*row, strict=True)) for row in rows])
    np.testing.assert_allclose(log_odds, 2.0 - 4.0 * wrong, rtol=1e-9)
    assert {0, 1} <= set(wrong)
    np.testing.assert_array_equal(terms.satisfied(terms.truth), wrong == 0)


@pytest.mark.parametrize("k", [2, 5])
def test_half_is_planted_and_the_rest_is_uniform(k: int) -> None:
    terms = max_k_dnf_terms(k, seed=3)
    right = terms.satisfied(terms.truth)
    assert right[::2].all()
    chance = right[1::2]
    assert abs(chance.mean() - 2**-k) < 5 * math.sqrt(2**-k / len(chance))
    assert abs(terms.signs[1::2].mean()) < 5 / math.sqrt(terms.signs[1::2].size)
    for rows in (slice(0, None, 2), slice(1, None, 2)):  # every variable as often: 10,000 k / 24
        counts = np.bincount(terms.variables[rows].ravel(), minlength=24)
        share = k / 24
        assert (np.abs(counts - 10_000 * share) < 5 * math.sqrt(10_000 * share * (1 - share))).all()


def test_the_planted_assignment_is_the_best_of_all() -> None:
    """Brute force over 2^8 assignments: none satisfies more terms than the planted one; `satisfied` by hand."""
    terms = max_k_dnf_terms(3, n=8, prompts=600, seed=4)
    best, where = -1, None
    for signs in itertools.product([-1, 1], repeat=8):
        share = sum(
            all(signs[i] == s for i, s in zip(variables, row, strict=True))
            for variables, row in zip(terms.variables, terms.signs, strict=True)
        )
        assert share == terms.satisfied(signs).sum()
        if share > best:
            best, where = share, signs
    np.testing.assert_array_equal(where, terms.truth)


@pytest.mark.parametrize("k", [1, 3])
def test_a_policy_within_the_bound_needs_all_signs(k: int) -> None:
    """No theta in the box plays info with odds above 1 where a sign is wrong; a corner of it does wherever none is."""
    env, terms = max_k_dnf(k, n=6, prompts=400, beta=0.7, seed=5), max_k_dnf_terms(k, n=6, prompts=400, seed=5)
    rng, bound = np.random.default_rng(0), max_k_dnf_bound(k, beta=0.7)
    for step in range(50):
        theta = rng.uniform(-bound, bound, 6) if step % 2 else bound * rng.choice([-1, 1], 6)
        likely = LinearSoftmaxPolicy(theta, env.beta).table(env)[:, 0] > 0.5 + 1e-12
        satisfied = terms.satisfied(np.sign(theta))
        assert not likely[~satisfied].any()
        if step % 2 == 0:
            np.testing.assert_array_equal(likely, satisfied)


def test_planted_prompts_do_not_depend_on_temperature_or_noise() -> None:
    np.testing.assert_array_equal(
        max_k_dnf(3, prompts=50, beta=0.1, noise_std=0.0, seed=7).features, max_k_dnf(3, prompts=50, seed=7).features
    )
    assert max_k_dnf(2, n=2, prompts=5).dim == 2
