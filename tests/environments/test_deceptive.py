"""deceptive(p) as TESTBEDS.md states it."""

from __future__ import annotations

import numpy as np
import pytest

from spannerlm.environments import FAMILIES, deceptive


@pytest.mark.parametrize("p", [0.1, 0.01])
def test_the_family_is_as_stated(p: float) -> None:
    env = deceptive(p, seed=1)
    assert FAMILIES["deceptive"] is deceptive
    assert env.features.shape == (32, 41, 16)
    np.testing.assert_allclose(env.base_probs[:, :40], (1 - p) / 40, rtol=1e-12)
    np.testing.assert_allclose(env.base_probs[:, 40], p, rtol=1e-12)
    for x in range(32):
        rare, first = np.zeros(16), np.zeros(16)
        rare[0], rare[8 + x % 8], first[0] = 0.6, 0.8, 0.9
        np.testing.assert_allclose(env.features[x, 40], rare, rtol=1e-12)
        np.testing.assert_array_equal(env.features[x, 0], first)
    np.testing.assert_allclose(np.linalg.norm(env.features[:, 1:40, :8], axis=-1), 0.5, rtol=1e-12)
    assert not env.features[:, :40, 8:].any()
    assert env.feature_norm() == pytest.approx(1.0)
    assert env.beta == pytest.approx(1 / (2 * np.log(1 / p)))


def test_theta_and_rewards_are_as_stated() -> None:
    env = deceptive(0.01, seed=2)
    phi, reward = env.features.reshape(-1, 16), env.mean_rewards.ravel()
    theta = np.linalg.lstsq(phi, reward, rcond=None)[0]
    np.testing.assert_allclose(theta[[0, *range(8, 16)]], [-1.0] + [2.0] * 8, rtol=1e-9)
    assert np.linalg.norm(theta[1:8]) < 5 * 0.3
    np.testing.assert_allclose(env.mean_rewards[:, 40], -0.6 + 1.6, rtol=1e-12)
    np.testing.assert_allclose(env.mean_rewards[:, 0], -0.9, rtol=1e-12)


def test_bulk_labels_alone_mislead() -> None:
    """The shortest theta that explains the bulk gives the valuable response -.6: less than the bulk's own mean."""
    env = deceptive(0.01, seed=3)
    bulk = env.features[:, :40].reshape(-1, 16)
    theta = np.linalg.lstsq(bulk, env.mean_rewards[:, :40].ravel(), rcond=None)[0]
    np.testing.assert_allclose(env.features[:, 40] @ theta, -0.6, rtol=1e-9)
    assert (env.mean_rewards[:, :40].mean(axis=1) > -0.6).all()
