"""near-orthogonal(C) as THEORY.md 2 and TESTBEDS.md state it."""

from __future__ import annotations

import numpy as np
import pytest

from spannerlm.environments import FAMILIES, near_orthogonal


@pytest.mark.parametrize("c", [64, 1024, 16384])
def test_the_family_is_as_stated(c: int) -> None:
    env = near_orthogonal(c, seed=1)
    assert FAMILIES["near-orthogonal"] is near_orthogonal
    assert env.features.shape == (1, c, 16)
    np.testing.assert_allclose(env.base_probs, 1 / c)
    np.testing.assert_allclose(np.linalg.norm(env.features, axis=-1), 1.0, rtol=1e-12)
    best = env.mean_rewards[0].argmax()
    assert env.mean_rewards[0, best] == pytest.approx(1.0)
    np.testing.assert_allclose(env.mean_rewards[0], env.features[0] @ env.features[0, best], rtol=1e-9, atol=1e-12)
    assert env.beta == pytest.approx(0.2 / np.log(c))
    assert env.noise_std == 0.5


@pytest.mark.parametrize("c", [64, 1024, 16384])
def test_the_optimum_is_one_response_and_coverage_is_near_c(c: int) -> None:
    """Over 10 seeds: at least half the mass on y* and C_cov within [C/2, C]; nearly all of both in the median."""
    envs = [near_orthogonal(c, seed=seed) for seed in range(10)]
    tops = [env.optimal_policy()[0, env.mean_rewards[0].argmax()] for env in envs]
    assert min(tops) > 0.5
    assert np.median(tops) > 0.95
    np.testing.assert_allclose([env.coverage() for env in envs], c * np.array(tops), rtol=1e-9)


def test_the_best_response_is_any_of_them() -> None:
    """Its index over 400 seeds: uniform on 8, by a chi-square of 7 degrees of freedom below its 1e-6 quantile (41)."""
    found = [int(near_orthogonal(8, seed=seed).mean_rewards.argmax()) for seed in range(400)]
    counts = np.bincount(found, minlength=8)
    assert np.sum((counts - 50) ** 2 / 50) < 41
