"""low-variance as TESTBEDS.md states it."""

from __future__ import annotations

import numpy as np
import pytest

from spannerlm.environments import FAMILIES, low_variance


def test_the_family_is_as_stated() -> None:
    env = low_variance(seed=1)
    assert FAMILIES["low-variance"] is low_variance
    assert env.features.shape == (32, 200, 16)
    np.testing.assert_allclose(env.base_probs, 1 / 200)
    theta = np.linalg.lstsq(env.features.reshape(-1, 16), env.mean_rewards.ravel(), rcond=None)[0]
    assert np.linalg.norm(theta) == pytest.approx(2.0)
    assert (env.beta, env.noise_std) == (0.1, 0.5)


def test_features_are_clipped_gaussians_of_falling_spread() -> None:
    """Where the norm is below 1 nothing was clipped: there, components are compared with draws of a slow rewrite."""
    phi = np.concatenate([low_variance(seed=seed).features.reshape(-1, 16) for seed in range(10)])
    norms = np.linalg.norm(phi, axis=1)
    clipped = norms > 1 - 1e-9
    rng = np.random.default_rng(0)
    raw = np.stack([rng.normal(0.0, 1 / i, len(phi)) for i in range(1, 17)], axis=1)
    long = np.linalg.norm(raw, axis=1) > 1
    assert abs(clipped.mean() - long.mean()) < 5 * np.sqrt(2 * 0.25 / len(phi))
    slow = np.where(long[:, None], raw / np.linalg.norm(raw, axis=1, keepdims=True), raw)
    for rows, others in ((phi[~clipped], slow[~long]), (phi[clipped], slow[long])):
        error = np.sqrt((rows**2).var(axis=0) / len(rows) + (others**2).var(axis=0) / len(others))
        assert (np.abs((rows**2).mean(axis=0) - (others**2).mean(axis=0)) < 5 * error).all()
    assert (np.diff(phi.std(axis=0)) < 0).sum() >= 13


def test_parameters() -> None:
    assert low_variance(prompts=3, responses=5, dim=2).features.shape == (3, 5, 2)
