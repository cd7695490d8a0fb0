"""random-table: what its docstring states holds for every seed."""

from __future__ import annotations

import numpy as np
import pytest

from spannerlm.environments import FAMILIES, random_table
from spannerlm.policy import kl_divergence


@pytest.mark.parametrize("seed", range(30))
def test_the_table_is_as_stated(seed: int) -> None:
    env = random_table(seed=seed)
    assert FAMILIES["random-table"] is random_table
    x, y = env.base_probs.shape
    assert 8 <= x <= 40
    assert 33 <= y <= 403
    assert 6 <= env.dim <= 24
    assert env.feature_norm() <= 1.0
    assert env.realizability_gap() < 1e-9
    rate = env.base_probs[:, -3:].sum(axis=1)
    assert rate.max() > 0.0
    assert np.all(env.base_probs[:, :-3] > 0.0)
    kl = float(np.mean(kl_divergence(env.optimal_policy(), env.base_probs)))
    able = rate > 0.0
    most = 0.7 * -float(np.mean(np.log(rate[able])))
    assert any(kl == pytest.approx(min(wanted, most) * able.mean(), abs=1e-4) for wanted in (0.5, 1.0, 2.0))
    assert env.noise_std in (0.1, 0.3, 0.5)


def test_rewards_are_zero_and_one_where_that_is_asked() -> None:
    env = random_table(binary=1, seed=5)
    np.testing.assert_allclose(env.mean_rewards[:, :-3], 0.0, atol=1e-12)
    np.testing.assert_allclose(env.mean_rewards[:, -3:], 1.0, atol=1e-12)
    other = random_table(binary=0, seed=5)
    assert np.all(other.mean_rewards[:, :-3].std(axis=1) > 0.0)
    assert {bool(np.ptp(random_table(seed=s).mean_rewards[:, :-3]) > 1e-9) for s in range(10)} == {True, False}


def test_sizes_can_be_given_and_a_seed_is_a_table() -> None:
    env = random_table(prompts=9, responses=40, seed=3)
    assert env.base_probs.shape == (9, 43)
    again, other = random_table(prompts=9, responses=40, seed=3), random_table(prompts=9, responses=40, seed=4)
    np.testing.assert_array_equal(env.base_probs, again.base_probs)
    assert np.abs(env.base_probs - other.base_probs).max() > 0.0
