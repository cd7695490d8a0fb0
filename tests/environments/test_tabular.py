"""`TabularEnvironment`: what it knows of itself, at the edges of what it accepts (the laws are in `test_laws.py`)."""

from __future__ import annotations

from typing import Any

import laws
import numpy as np
import pytest

from spannerlm.environments import TabularEnvironment
from spannerlm.errors import InputError

ARRAYS: dict[str, Any] = {
    "prompt_probs": [0.25, 0.75],
    "base_probs": [[0.5, 0.3, 0.2], [0.1, 0.0, 0.9]],
    "features": [[[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], [[0.0, 0.0], [2.0, 1.0], [-1.0, 1.0]]],
    "mean_rewards": [[1.0, -1.0, 0.0], [0.5, 9.0, -0.5]],
}


def build(beta: float = 0.5, noise_std: float = 0.3, **changes: Any) -> TabularEnvironment:
    given = {**ARRAYS, **changes}
    return TabularEnvironment(
        given["prompt_probs"],
        given["base_probs"],
        given["features"],
        given["mean_rewards"],
        beta=beta,
        noise_std=noise_std,
    )


def test_everything_by_hand() -> None:
    env = build()
    z0 = 0.5 * np.exp(2.0) + 0.3 * np.exp(-2.0) + 0.2
    z1 = 0.1 * np.exp(1.0) + 0.9 * np.exp(-1.0)
    optimum = [
        [0.5 * np.exp(2.0) / z0, 0.3 * np.exp(-2.0) / z0, 0.2 / z0],
        [0.1 * np.exp(1.0) / z1, 0.0, 0.9 * np.exp(-1.0) / z1],
    ]
    np.testing.assert_allclose(env.optimal_policy(), optimum, rtol=1e-13)
    assert env.optimal_value() == pytest.approx(0.5 * (0.25 * np.log(z0) + 0.75 * np.log(z1)), rel=1e-13)
    assert env.coverage() == pytest.approx(max(np.exp(2.0) / z0, np.exp(1.0) / z1), rel=1e-13)
    base = env.base_probs
    assert env.value(base) == pytest.approx(0.25 * 0.2 + 0.75 * (0.05 - 0.45), rel=1e-13)
    assert env.regret(base) == pytest.approx(env.optimal_value() - env.value(base), rel=1e-12)
    assert env.regret(env.optimal_policy()) == pytest.approx(0.0, abs=1e-15)
    assert env.feature_norm() == pytest.approx(np.sqrt(5.0))
    assert env.dim == 2
    assert list(env.prompts) == ["0", "1"]


def test_a_policy_outside_the_support_is_infinitely_bad() -> None:
    env = build()
    outside = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    assert env.value(outside) == -np.inf
    assert env.regret(outside) == np.inf


@pytest.mark.parametrize("beta", [1e-4, 1e-2, 100.0])
def test_regret_is_the_loss_of_value_at_any_temperature(beta: float) -> None:
    """At beta = 1e-4 the optimum underflows to 0 where the base does not: the regret is finite all the same."""
    env = build(beta=beta)
    for policy in laws.policies(env, 1):
        assert env.regret(policy) == pytest.approx(env.optimal_value() - env.value(policy), rel=1e-9, abs=1e-13)
    assert 0.0 < env.regret(env.base_probs) < 2.0


def test_impossible_prompts_do_not_count() -> None:
    env = build(prompt_probs=[1.0, 0.0])
    first, outside = env.optimal_policy()[0], [0.0, 1.0, 0.0]
    table = np.array([first, outside])  # off the support of a prompt that never comes
    assert env.regret(table) == pytest.approx(0.0, abs=1e-15)
    assert env.value(table) == pytest.approx(env.optimal_value())
    assert env.coverage() == pytest.approx(first[0] / 0.5)


def test_realizability_is_reported() -> None:
    theta = np.array([0.7, -1.3])
    features = np.array(ARRAYS["features"])
    linear = features @ theta + np.array([[3.0], [-8.0]])  # a shift by prompt changes nothing
    assert build(mean_rewards=linear).realizability_gap() < 1e-12
    impossible = linear.copy()
    impossible[1, 1] += 5.0  # base probability 0
    assert build(mean_rewards=impossible).realizability_gap() < 1e-12
    broken = linear.copy()
    broken[0, 2] += 0.5
    gap = build(mean_rewards=broken).realizability_gap()
    assert 0.01 < gap < 0.51
    assert build(mean_rewards=broken, prompt_probs=[0.0, 1.0]).realizability_gap() < 1e-12


def test_norms_and_realizability_are_never_enforced() -> None:
    env = build(features=1e6 * np.array(ARRAYS["features"]), mean_rewards=1e3 * np.array(ARRAYS["mean_rewards"]))
    assert env.feature_norm() > 1e6
    assert np.isfinite(env.optimal_policy()).all()


def test_rows_that_sum_to_one_but_for_rounding_can_be_drawn_from() -> None:
    base = np.array(ARRAYS["base_probs"]) * (1.0 + 5e-10)
    (draws,) = build(base_probs=base).draw([1], 10_000, rng=np.random.default_rng(0))
    assert draws.counts.sum() == 10_000
    assert "1" not in draws.responses
    short = np.array(ARRAYS["base_probs"])
    short[1] = [0.1, 0.9 - 5e-10, 0.0]  # what is missing must not fall to the response that can not come
    found = [build(base_probs=short).draw([1], 10**12, rng=np.random.default_rng(k))[0].responses for k in range(5)]
    assert all("2" not in responses for responses in found)


def test_replicates_are_fresh_and_seeds_differ() -> None:
    env = build()
    again = env.reward(0)(["0"] * 3, ["1"] * 3, replicate=[0, 1, 0])
    assert again[0] == again[2] != again[1]
    assert env.reward(1)(["0"], ["1"], replicate=[0]) != env.reward(0)(["0"], ["1"], replicate=[0])
    assert build(noise_std=0.0).reward(0)(["0", "1"], ["1", "2"], replicate=[0, 4]) == [-1.0, -0.5]


def test_comparisons_follow_the_rewards_of_one_prompt_at_the_scale() -> None:
    """4,000 replicates of one pair per scale: the frequency is sigmoid of the reward gap, in units of the scale."""
    env, n = build(), 4000
    for scale in (0.5, 1.0, 4.0):
        rater = env.comparison(3, scale)
        wins = np.array(rater(["0"] * n, ["0"] * n, ["1"] * n, replicate=range(n)), dtype=np.float64)
        p = 1.0 / (1.0 + np.exp(-2.0 / scale))
        assert abs(wins.mean() - p) < 5 * np.sqrt(p * (1 - p) / n)
        assert rater.pure
    assert env.comparison(3) == env.comparison(3, 1.0)
    with pytest.raises(InputError, match="scale"):
        env.comparison(0, 0.0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompt_probs": [1.0]}, "prompt_probs: expected leading shape"),
        ({"prompt_probs": [[0.5, 0.5]]}, "prompt_probs: expected a non-empty array with 1 axes"),
        ({"features": np.zeros((2, 4, 2))}, "features: expected leading shape"),
        ({"mean_rewards": np.zeros((2, 2))}, "mean_rewards: expected leading shape"),
        ({"base_probs": np.zeros((2, 0))}, "base_probs: expected a non-empty array"),
        ({"prompt_probs": [0.5, 0.6]}, "prompt_probs: expected non-negative rows that sum to 1"),
        ({"base_probs": [[0.5, 0.6, -0.1], [0.1, 0.0, 0.9]]}, "base_probs: expected non-negative rows"),
        ({"mean_rewards": [[np.nan, 0.0, 0.0], [0.0, 0.0, 0.0]]}, "mean_rewards: expected finite numbers, got 1 NaN"),
        ({"features": np.full((2, 3, 2), np.inf)}, "features: expected finite numbers, got 12"),
        ({"beta": 0.0}, "beta: expected a positive KL temperature"),
        ({"beta": float("inf")}, "beta: expected a positive KL temperature"),
        ({"noise_std": -1.0}, "noise_std: expected a non-negative number"),
        ({"noise_std": float("nan")}, "noise_std: expected a non-negative number"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        build(**changes)


@pytest.mark.parametrize("policy", [np.ones((2, 2)), np.full((2, 3), 0.4), -np.ones((2, 3)), np.full((2, 3), np.nan)])
def test_a_policy_that_is_none_is_refused(policy: np.ndarray) -> None:
    with pytest.raises(InputError, match="policy"):
        build().value(policy)
    with pytest.raises(InputError, match="policy"):
        build().regret(policy)
