"""Modifiers: what each changes and what it must leave as it was, alone and chained."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import laws
import numpy as np
import pytest

from spannerlm.environments import (
    MODIFIERS,
    HeteroscedasticEnvironment,
    TabularEnvironment,
    duplicated,
    environment,
    heavy_noise,
    heteroscedastic,
    irrelevant_directions,
    misspecified,
    near_orthogonal,
    prompt_intercepts,
    rare_skill,
    rotated,
    tie,
)
from spannerlm.errors import InputError
from spannerlm.policy import LinearSoftmaxPolicy

ENV = rare_skill(0.05, prompts=9, seed=1)


def same_but_for(first: TabularEnvironment, second: TabularEnvironment, *changed: str) -> None:
    for name in ("prompt_probs", "base_probs", "features", "mean_rewards", "beta", "noise_std"):
        equal = np.array_equal(getattr(first, name), getattr(second, name))
        assert equal == (name not in changed), name


def test_misspecified_moves_every_reward_by_zeta_beta() -> None:
    for zeta in (0.1, 0.5, 2.0):
        env = misspecified(ENV, zeta, seed=4)
        same_but_for(ENV, env, "mean_rewards")
        moves = (env.mean_rewards - ENV.mean_rewards) / ENV.beta
        np.testing.assert_allclose(np.abs(moves), zeta, rtol=1e-9)
        assert abs(np.mean(moves > 0) - 0.5) < 5 * 0.5 / np.sqrt(moves.size)
        assert env.realizability_gap() == pytest.approx(zeta * misspecified(ENV, 1.0, seed=4).realizability_gap())
        shift = np.log(env.optimal_policy() / ENV.optimal_policy()) - moves  # the normaliser is all that is left
        np.testing.assert_allclose(shift - shift[:, :1], 0.0, rtol=0, atol=1e-9)
    same_but_for(ENV, misspecified(ENV, 0.0))
    full = near_orthogonal(17, seed=0)
    with pytest.raises(InputError, match="expected features that can not express random moves, got 16 dimensions"):
        misspecified(full, 0.5)


def test_intercepts_change_no_policy_and_no_regret() -> None:
    env = prompt_intercepts(ENV, 2.0, seed=4)
    same_but_for(ENV, env, "mean_rewards")
    shifts = env.mean_rewards - ENV.mean_rewards
    np.testing.assert_allclose(shifts - shifts[:, :1], 0.0, rtol=0, atol=1e-12)
    np.testing.assert_allclose(env.optimal_policy(), ENV.optimal_policy(), rtol=1e-9)
    assert env.coverage() == pytest.approx(ENV.coverage(), rel=1e-9)
    for policy in laws.policies(ENV, 3):
        assert env.regret(policy) == pytest.approx(ENV.regret(policy), abs=1e-12)
        assert env.value(policy) == pytest.approx(ENV.value(policy) + shifts[:, 0].mean(), abs=1e-12)
    wide = tie(prompts=2000, responses=2, dim=2)
    found = (prompt_intercepts(wide, 2.0, seed=1).mean_rewards - wide.mean_rewards)[:, 0]
    assert abs(found.std() - 2.0) < 5 * 2.0 / np.sqrt(2 * 2000)
    assert abs(found.mean()) < 5 * 2.0 / np.sqrt(2000)


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_irrelevant_directions_are_of_no_use(scale: float) -> None:
    env = irrelevant_directions(ENV, 6, scale=scale, seed=4)
    same_but_for(ENV, env, "features")
    shrink = np.sqrt(1 + scale**2)
    np.testing.assert_allclose(shrink * env.features[..., :16], ENV.features, rtol=1e-12)
    np.testing.assert_allclose(shrink * np.linalg.norm(env.features[..., 16:], axis=-1), scale, rtol=1e-12)
    assert env.feature_norm() <= 1 + 1e-12
    assert env.dim == 22
    theta = np.linalg.lstsq(env.features.reshape(-1, 22), env.mean_rewards.ravel(), rcond=None)[0]
    np.testing.assert_allclose(theta[16:], 0.0, rtol=0, atol=1e-9)


def test_rare_irrelevant_directions_belong_to_twins() -> None:
    env = irrelevant_directions(ENV, 6, rare=0.1, seed=4)
    np.testing.assert_allclose(env.base_probs[:, ::2], 0.9 * ENV.base_probs, rtol=1e-12)
    np.testing.assert_allclose(env.base_probs[:, 1::2], 0.1 * ENV.base_probs, rtol=1e-12)
    for start in (0, 1):
        np.testing.assert_array_equal(env.mean_rewards[:, start::2], ENV.mean_rewards)
        np.testing.assert_allclose(np.sqrt(2) * env.features[:, start::2, :16], ENV.features, rtol=1e-12)
    assert not env.features[:, ::2, 16:].any()
    added = np.sqrt(2) * env.features[:, 1::2, 16:].reshape(-1, 6)
    np.testing.assert_allclose(np.sort(added, axis=1), np.tile([0, 0, 0, 0, 0, 1.0], (len(added), 1)), atol=1e-12)
    counts = added.sum(axis=0)
    assert (np.abs(counts - len(added) / 6) < 5 * np.sqrt(len(added) * 5 / 36)).all()
    unchanged(env, ENV, lambda policy: policy.reshape(*ENV.base_probs.shape, 2).sum(axis=-1))


def unchanged(env: TabularEnvironment, of: TabularEnvironment, merge: Callable[[np.ndarray], np.ndarray]) -> None:
    """Split responses change neither the optimum of their parents nor what is lost by any policy that shares alike."""
    np.testing.assert_allclose(merge(env.optimal_policy()), of.optimal_policy(), rtol=1e-9)
    assert env.optimal_value() == pytest.approx(of.optimal_value(), rel=1e-12)
    assert env.coverage() == pytest.approx(of.coverage(), rel=1e-12)
    copies = env.base_probs.shape[1] // of.base_probs.shape[1]
    share = env.base_probs / np.repeat(of.base_probs, copies, axis=1)
    for policy in laws.policies(of, 3):
        assert env.regret(np.repeat(policy, copies, axis=1) * share) == pytest.approx(of.regret(policy), abs=1e-12)


def test_rotated_features_play_the_same_policies() -> None:
    env = rotated(ENV, seed=4)
    same_but_for(ENV, env, "features")
    flat, turned = ENV.features.reshape(-1, 16), env.features.reshape(-1, 16)
    np.testing.assert_allclose(turned @ turned.T, flat @ flat.T, rtol=0, atol=1e-12)
    turn = np.linalg.lstsq(flat, turned, rcond=None)[0]
    np.testing.assert_allclose(turn @ turn.T, np.eye(16), rtol=0, atol=1e-9)
    theta = np.linspace(-1, 1, 16)
    table = LinearSoftmaxPolicy(theta, ENV.beta).table(ENV)
    np.testing.assert_allclose(LinearSoftmaxPolicy(theta @ turn, ENV.beta).table(env), table, rtol=1e-9)
    assert not np.allclose(turn, rotated_matrix(5))
    assert rotated(tie(dim=1), seed=1).dim == 1


def rotated_matrix(seed: int) -> Any:
    return np.linalg.lstsq(ENV.features.reshape(-1, 16), rotated(ENV, seed=seed).features.reshape(-1, 16), rcond=None)[
        0
    ]


@pytest.mark.parametrize("copies", [1, 3])
def test_duplicates_share_the_mass(copies: int) -> None:
    env = duplicated(ENV, copies)
    for c in range(copies):
        np.testing.assert_allclose(env.base_probs[:, c::copies], ENV.base_probs / copies, rtol=1e-12)
        np.testing.assert_array_equal(env.features[:, c::copies], ENV.features)
        np.testing.assert_array_equal(env.mean_rewards[:, c::copies], ENV.mean_rewards)
    unchanged(env, ENV, lambda policy: policy.reshape(*ENV.base_probs.shape, copies).sum(axis=-1))


def test_heavy_noise_is_a_factor() -> None:
    env = heavy_noise(ENV, 4.0)
    same_but_for(ENV, env, "noise_std")
    assert env.noise_std == 4 * ENV.noise_std
    keys = {"prompts": ["2"] * 5, "completions": list("01234"), "replicate": range(5)}
    plain, loud = (np.array(e.reward(3)(**keys), dtype=np.float64) for e in (ENV, env))
    np.testing.assert_allclose(loud - ENV.mean_rewards[2, :5], 4 * (plain - ENV.mean_rewards[2, :5]), rtol=1e-9)
    assert env.comparison(3)(["2"], ["0"], ["1"], replicate=[0]) == ENV.comparison(3)(
        ["2"], ["0"], ["1"], replicate=[0]
    )


def test_heteroscedastic_noise_has_the_same_mean_square() -> None:
    env = heteroscedastic(ENV, 16.0, seed=4)
    same_but_for(ENV, env)
    square = sum(
        rho * p * s * s
        for rho, base, shape in zip(env.prompt_probs, env.base_probs, env.noise_shape, strict=True)
        for p, s in zip(base, shape, strict=True)
    )
    assert square == pytest.approx(1.0, rel=1e-12)
    ratio = env.noise_shape.max() / env.noise_shape.min()
    assert 12.0 < ratio <= 16.0
    logs = np.log(env.noise_shape / env.noise_shape.min()) / np.log(ratio)  # uniform on [0, 1]
    assert abs(logs.mean() - 0.5) < 5 * np.sqrt(1 / 12 / logs.size)
    assert abs(logs.var() - 1 / 12) < 5 * np.sqrt(1 / 180 / logs.size)
    np.testing.assert_allclose(heteroscedastic(ENV, 1.0).noise_shape, 1.0, rtol=1e-12)


def test_heteroscedastic_labels_scale_the_noise_of_plain_ones() -> None:
    env = heteroscedastic(ENV, 16.0, seed=4)
    responses = [str(y) for y in range(41)]
    plain, shaped = (
        np.array(e.reward(3)(["5"] * 41, responses, replicate=[2] * 41), dtype=np.float64) for e in (ENV, env)
    )
    noise = plain - ENV.mean_rewards[5]
    np.testing.assert_allclose(shaped, ENV.mean_rewards[5] + env.noise_shape[5] * noise, rtol=0, atol=1e-12)
    rater = env.reward(3)
    assert rater.pure
    assert rater(["5"], ["7"], replicate=[2]) == [shaped[7]]
    skips = replace(rater, mean=lambda prompts, completions: [None if y == "1" else 0.5 for y in completions])
    assert [value is None for value in skips(["5"] * 3, ["0", "1", "2"], replicate=[0, 0, 0])] == [False, True, False]
    silent = heavy_noise(env, 0.0)
    assert silent.reward(3)(["5"], ["7"], replicate=[2]) == [ENV.mean_rewards[5, 7]]


@pytest.mark.parametrize("order", [*itertools.permutations(["heteroscedastic", "duplicated", "heavy-noise"])], ids=str)
def test_noise_of_its_own_survives_every_chain(order: tuple[str, ...]) -> None:
    env: TabularEnvironment = ENV
    for name in order:
        env = MODIFIERS[name](env, **laws.SETTINGS[name])
    assert isinstance(env, HeteroscedasticEnvironment)
    assert env.noise_shape.shape == env.base_probs.shape
    assert env.noise_std == 3 * ENV.noise_std
    assert np.sum(env.prompt_probs[:, None] * env.base_probs * env.noise_shape**2) == pytest.approx(1.0)
    copied = bool(np.array_equal(env.noise_shape[:, ::2], env.noise_shape[:, 1::2]))
    assert copied == (order.index("heteroscedastic") < order.index("duplicated"))
    twice = heteroscedastic(env, 9.0, seed=8)
    assert twice.noise_shape.max() / twice.noise_shape.min() > 1.5 * 9.0


def test_a_modifier_leaves_its_argument_alone() -> None:
    before = {n: np.copy(getattr(ENV, n)) for n in ("base_probs", "features", "mean_rewards")}
    for name, function in MODIFIERS.items():
        function(ENV, **laws.SETTINGS[name])
    for name, array in before.items():
        np.testing.assert_array_equal(getattr(ENV, name), array)


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("misspecified", {"zeta": -0.1}, "zeta: expected a finite number of at least 0"),
        ("misspecified", {"zeta": "large"}, "zeta: expected a finite number"),
        ("prompt-intercepts", {"std": -1}, "std: expected a finite number of at least 0"),
        ("irrelevant-directions", {"extra": 0}, "extra: expected an integer of at least 1"),
        ("irrelevant-directions", {"extra": 2, "rare": 1.0}, "rare: expected a number strictly between 0 and 1"),
        ("irrelevant-directions", {"extra": 2, "scale": 0}, "scale: expected a finite number above 0"),
        ("duplicated", {"copies": 0}, "copies: expected an integer of at least 1"),
        ("heavy-noise", {"factor": -2}, "factor: expected a finite number of at least 0"),
        ("heteroscedastic", {"spread": 0.5}, "spread: expected a finite number of at least 1"),
        ("rotated", {"seed": -1}, "seed: expected an integer of at least 0"),
    ],
)
def test_what_is_wrong_is_named(name: str, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        environment("tie", modifiers={name: settings})


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        (np.ones((9, 40)), r"noise_shape: expected shape \(9, 41\)"),
        (-np.ones((9, 41)), "noise_shape: expected finite"),
        (np.full((9, 41), np.nan), "noise_shape: expected finite"),
    ],
)
def test_a_wrong_noise_shape_is_refused(shape: np.ndarray, says: str) -> None:
    env = heteroscedastic(ENV, 2.0)
    with pytest.raises(InputError, match=says):
        replace(env, noise_shape=shape)
