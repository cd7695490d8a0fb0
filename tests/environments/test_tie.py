"""tie as TESTBEDS.md states it."""

from __future__ import annotations

import numpy as np
import pytest

from spannerlm.environments import FAMILIES, tie


def test_the_family_is_as_stated() -> None:
    env = tie(seed=1)
    assert FAMILIES["tie"] is tie
    assert env.features.shape == (32, 40, 16)
    np.testing.assert_allclose(env.base_probs, 1 / 40)
    np.testing.assert_allclose(env.prompt_probs, 1 / 32)
    np.testing.assert_allclose(np.linalg.norm(env.features, axis=-1), 1.0, rtol=1e-12)
    theta = np.linalg.lstsq(env.features.reshape(-1, 16), env.mean_rewards.ravel(), rcond=None)[0]
    assert np.linalg.norm(theta) == pytest.approx(2.0)
    assert env.realizability_gap() < 1e-12
    assert (env.beta, env.noise_std) == (1.0, 0.5)


def test_nothing_is_rare() -> None:
    """C_cov is about 4: over 20 seeds, a median between 3 and 5."""
    coverages = [tie(seed=seed).coverage() for seed in range(20)]
    assert 3.0 < np.median(coverages) < 5.0
    assert max(coverages) < np.exp(2 * 2.0)  # exp(2 R_max / beta), R_max = |theta|


def test_directions_are_isotropic() -> None:
    """Mean of phi phi' over 20 x 1,280 unit vectors is I/16: entries within five standard errors."""
    phi = np.concatenate([tie(seed=seed).features.reshape(-1, 16) for seed in range(20)])
    products = np.einsum("ni,nj->nij", phi, phi)
    error = products.std(axis=0) / np.sqrt(len(phi))
    assert (np.abs(products.mean(axis=0) - np.eye(16) / 16) < 5 * error).all()


def test_parameters() -> None:
    env = tie(prompts=3, responses=5, dim=2, noise_std=0.1, seed=7)
    assert env.features.shape == (3, 5, 2)
    np.testing.assert_array_equal(env.features, tie(prompts=3, responses=5, dim=2, noise_std=0.1, seed=7).features)
    assert not np.array_equal(env.features, tie(prompts=3, responses=5, dim=2, noise_std=0.1, seed=8).features)
