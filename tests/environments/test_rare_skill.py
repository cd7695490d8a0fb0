"""rare-skill(p) as TESTBEDS.md states it."""

from __future__ import annotations

import numpy as np
import pytest

from spannerlm.environments import FAMILIES, rare_skill


@pytest.mark.parametrize("p", [0.1, 0.01, 0.001])
def test_the_family_is_as_stated(p: float) -> None:
    env = rare_skill(p, seed=1)
    assert env.features.shape == (32, 41, 16)
    np.testing.assert_allclose(env.base_probs[:, :40], (1 - p) / 40, rtol=1e-12)
    np.testing.assert_allclose(env.base_probs[:, 40], p, rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(env.features[:, :40, :8], axis=-1), 0.5, rtol=1e-12)
    assert not env.features[:, :40, 8:].any()
    np.testing.assert_array_equal(env.features[:, 40], np.eye(16)[8 + np.arange(32) % 8])
    np.testing.assert_allclose(env.mean_rewards[:, 40], 1.0, rtol=1e-12)
    assert env.beta == pytest.approx(1 / (2 * np.log(1 / p)))
    assert env.noise_std == 0.5
    assert env.realizability_gap() < 1e-12
    assert env.feature_norm() == pytest.approx(1.0)
    np.testing.assert_allclose(env.prompt_probs, 1 / 32)


@pytest.mark.parametrize("p", [0.1, 0.01, 0.001])
def test_coverage_without_bulk_rewards_is_the_formula(p: float) -> None:
    """With theta = 0 on the bulk, Z = (1 - p) + p exp(2 ln(1/p)) = (1 - p) + 1/p: C_cov = 1 / (p (1 + p - p^2))."""
    env = rare_skill(p)
    rare = np.zeros_like(env.mean_rewards)
    rare[:, 40] = 1.0
    flat = type(env)(env.prompt_probs, env.base_probs, env.features, rare, beta=env.beta, noise_std=0.5)
    assert flat.coverage() == pytest.approx(1 / (p * (1 + p - p * p)), rel=1e-9)
    assert env.coverage() == pytest.approx(flat.coverage(), rel=0.2)


def test_bulk_theta_has_the_stated_spread() -> None:
    """theta ~ N(0, (.3/sqrt 8)^2), recovered from bulk rewards over 200 seeds: within five standard errors."""
    thetas = []
    for seed in range(200):
        env = rare_skill(0.1, prompts=2, seed=seed)
        bulk = env.features[:, :40, :8].reshape(-1, 8)
        thetas.append(np.linalg.lstsq(bulk, env.mean_rewards[:, :40].ravel(), rcond=None)[0])
    values = np.array(thetas).ravel()
    spread = 0.3 / np.sqrt(8)
    assert abs(values.mean()) < 5 * spread / np.sqrt(1600)
    assert abs(values.std() - spread) < 5 * spread / np.sqrt(3200)


def test_seeds_and_parameters() -> None:
    assert FAMILIES["rare-skill"] is rare_skill
    np.testing.assert_array_equal(rare_skill(seed=3).features, rare_skill(seed=3).features)
    assert not np.array_equal(rare_skill(seed=3).features, rare_skill(seed=4).features)
    small = rare_skill(0.2, prompts=3, noise_std=0.0)
    assert (len(small.prompts), small.noise_std) == (3, 0.0)
