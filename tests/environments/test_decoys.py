"""decoys as TESTBEDS.md states it."""

from __future__ import annotations

import numpy as np
import pytest

from spannerlm.environments import FAMILIES, decoys


def test_the_family_is_as_stated() -> None:
    env = decoys(seed=1)
    assert FAMILIES["decoys"] is decoys
    assert env.features.shape == (16, 40 + 48, 8 + 96)
    np.testing.assert_allclose(env.base_probs[:, :40], 0.98 / 40, rtol=1e-12)
    np.testing.assert_allclose(env.base_probs[:, 40:], 0.02 / 48, rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(env.features[:, :40, :8], axis=-1), 0.5, rtol=1e-12)
    assert not env.features[:, :40, 8:].any()
    assert env.beta == pytest.approx(1 / (2 * np.log(48 / 0.02)))
    assert env.noise_std == 1.0
    for x in range(16):
        rows = env.features[x, 40:]
        assert ((rows == 0) | (rows == 1)).all()
        assert (rows.sum(axis=1) == 1).all()
        directions = rows.argmax(axis=1) - 8
        assert directions[0] == x % 2
        assert len(set(directions)) == 48
        assert (directions[1:] >= 2).all()
        assert env.mean_rewards[x, 40] == 1.0
        assert (np.abs(env.mean_rewards[x, 41:] + 0.25) <= 0.75).all()


def test_a_direction_is_worth_the_same_in_every_prompt() -> None:
    env = decoys(seed=2)
    worth: dict[int, float] = {}
    for x in range(16):
        for direction, reward in zip(env.features[x, 40:].argmax(axis=1), env.mean_rewards[x, 40:], strict=True):
            assert worth.setdefault(int(direction), float(reward)) == reward
    assert len(worth) == 96  # 15 other prompts' 47 of 94 leave none out


def test_decoys_are_drawn_alike_and_their_values_are_uniform() -> None:
    """Each decoy has 47 in 94 prompts by chance; values have the mean -.25 and variance 1.5^2/12."""
    counts, values = np.zeros(96), []
    for seed in range(40):
        env = decoys(seed=seed)
        used = env.features[:, 41:, 8:].sum(axis=(0, 1))
        counts += used
        theta = np.linalg.lstsq(env.features.reshape(-1, 104), env.mean_rewards.ravel(), rcond=None)[0]
        values.extend(theta[10:])
    n = 40 * 16
    assert not counts[:2].any()
    assert (np.abs(counts[2:] - n / 2) < 5 * np.sqrt(n / 4)).all()
    spread = 1.5 / np.sqrt(12)
    assert abs(np.mean(values) + 0.25) < 5 * spread / np.sqrt(len(values))
    assert abs(np.std(values) - spread) < 5 * spread / np.sqrt(len(values))


def test_parameters() -> None:
    env = decoys(0.1, rare=5, prompts=3, seed=1)
    assert env.features.shape == (3, 45, 18)
    np.testing.assert_allclose(env.base_probs[:, 40:], 0.02, rtol=1e-12)
    assert env.beta == pytest.approx(1 / (2 * np.log(50)))
