"""power-law(p) as TESTBEDS.md states it."""

from __future__ import annotations

import numpy as np
import pytest

from spannerlm.environments import FAMILIES, TabularEnvironment, power_law


@pytest.mark.parametrize("p", [0.1, 0.01, 0.001])
def test_the_family_is_as_stated(p: float) -> None:
    env = power_law(p, seed=1)
    assert FAMILIES["power-law"] is power_law
    assert env.features.shape == (32, 41, 16)
    for x in range(32):
        mass = p ** ((x % 8 + 1) / 8)
        np.testing.assert_allclose(env.base_probs[x], [(1 - mass) / 40] * 40 + [mass], rtol=1e-12)
        np.testing.assert_array_equal(env.features[x, 40], np.eye(16)[8 + x % 8])
    np.testing.assert_allclose(np.linalg.norm(env.features[:, :40, :8], axis=-1), 0.5, rtol=1e-12)
    assert not env.features[:, :40, 8:].any()
    np.testing.assert_allclose(env.mean_rewards[:, 40], 1.0, rtol=1e-12)
    assert env.beta == pytest.approx(1 / (2 * np.log(1 / p)))


@pytest.mark.parametrize("p", [0.1, 0.01, 0.001])
def test_coverage_without_bulk_rewards_is_that_of_the_rarest_skill(p: float) -> None:
    """exp(1/beta) = p^-2, so skill j has ratio p^-2 / (1 - m_j + m_j p^-2), largest at m = p: 1 / (p (1 + p - p^2))."""
    env = power_law(p)
    rare = np.zeros_like(env.mean_rewards)
    rare[:, 40] = 1.0
    flat = TabularEnvironment(env.prompt_probs, env.base_probs, env.features, rare, beta=env.beta, noise_std=0.5)
    assert flat.coverage() == pytest.approx(1 / (p * (1 + p - p * p)), rel=1e-9)
    assert env.coverage() == pytest.approx(flat.coverage(), rel=0.2)
    masses = p ** (np.arange(1, 9) / 8)
    ratios = flat.optimal_policy()[:8, 40] / flat.base_probs[:8, 40]
    np.testing.assert_allclose(ratios, p**-2 / (1 - masses + masses * p**-2), rtol=1e-9)
