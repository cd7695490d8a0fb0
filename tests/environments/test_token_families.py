"""The token families: what TESTBEDS states of each, in exact formulas, and the factory."""

from __future__ import annotations

import inspect
import json
from typing import Any

import numpy as np
import pytest
import token_laws

from spannerlm.environments.token import TokenEnvironment
from spannerlm.environments.token_compose import TOKEN_MODIFIERS, blocks, misspecified
from spannerlm.environments.token_families import (
    TOKEN_FAMILIES,
    additive_lock,
    delayed_lock,
    embedded_lock,
    gated_lock,
    random_token_mdp,
    token_environment,
)
from spannerlm.errors import InputError

SMALL: dict[str, dict[str, Any]] = {
    "additive-lock": {"horizon": 3, "actions": 3, "states": 3},
    "gated-lock": {"horizon": 4, "actions": 2, "states": 4},
    "delayed-lock": {"horizon": 3, "actions": 3, "states": 6},
    "embedded-lock": {"horizon": 3, "actions": 5, "dim": 3, "states": 3},
    "random-token-mdp": {"horizon": 3, "actions": 3, "states": 4, "dim": 4},
}
"""Parameters of a small member of each family."""
FIELDS = ("next_state", "base_probs", "features", "step_rewards", "initial_probs")


@pytest.mark.parametrize("name", TOKEN_FAMILIES)
@pytest.mark.parametrize("seed", range(3))
def test_every_family_obeys_and_is_realizable(name: str, seed: int) -> None:
    env = token_environment(name, seed=seed, **SMALL[name])
    token_laws.obeys(env)
    assert np.max(env.realizability_gap()) < 1e-12
    assert np.max(token_environment(name, seed=seed).realizability_gap()) < 1e-12
    assert env.feature_norm() <= 1 + 1e-12
    assert env.noise_std == 0.2
    assert env.tokens_per_action == 1


@pytest.mark.parametrize(("h", "a"), [(1, 2), (4, 2), (16, 2), (5, 3), (3, 20), (64, 2)])
def test_additive_lock_has_exponential_coverage_and_the_same_at_every_step(h: int, a: int) -> None:
    """pi* plays the right index with probability 9 / (9 + A - 1), whatever came before."""
    env = additive_lock(h, a, seed=h)
    ratio = 9.0 * a / (a + 8.0)
    np.testing.assert_allclose(env.step_coverages(), ratio, rtol=1e-12)
    assert env.step_coverage() == pytest.approx(ratio, rel=1e-12)
    assert env.coverage() == pytest.approx(ratio**h, rel=1e-10)
    assert env.optimal_value() == pytest.approx(np.log(9.0 / ratio) / np.log(9.0), rel=1e-10)
    assert env.value(env.base_probs) == pytest.approx(1.0 / a, rel=1e-12)
    np.testing.assert_allclose(env.occupancy(env.base_probs), 1 / 8, rtol=1e-12)  # no state is lost on the way
    np.testing.assert_array_equal(env.step_rewards.sum(axis=2), np.full((h, 8), 1.0 / h))  # one right action each
    assert (env.step_dim, env.beta) == (a, pytest.approx(1.0 / (h * np.log(9.0))))
    assert env.feature_norm() == 1.0


@pytest.mark.parametrize(("h", "a"), [(1, 2), (4, 2), (16, 2), (32, 2), (5, 3), (3, 20)])
def test_gated_and_delayed_locks_by_their_recursions(h: int, a: int) -> None:
    """Z of a good state: one action of A leads on. C_cov = 9^H / Z_1, for rewards on the way and at the end alike."""
    gated, delayed = gated_lock(h, a, seed=h), delayed_lock(h, a, seed=h)
    z, late = [1.0], [9.0**h]
    for _ in range(h):
        z.append((9.0 * z[-1] + a - 1.0) / a)
        late.append((late[-1] + a - 1.0) / a)
    assert gated.coverage() == pytest.approx(9.0**h / z[h], rel=1e-9)
    assert delayed.coverage() == pytest.approx(9.0**h / late[h], rel=1e-9)
    np.testing.assert_allclose(gated.step_coverages(), [9.0 * z[k - 1] / z[k] for k in range(h, 0, -1)], rtol=1e-9)
    np.testing.assert_allclose(delayed.step_coverages(), [late[k - 1] / late[k] for k in range(h, 0, -1)], rtol=1e-9)
    assert 1.0 < gated.step_coverage() <= delayed.step_coverage() <= a
    half = 4
    good = gated.occupancy(gated.optimal_policy())[:, :half]
    np.testing.assert_allclose(good, good[:, :1] * np.ones(half), rtol=1e-9)
    for env in (gated, delayed):
        np.testing.assert_array_equal(env.initial_probs, np.repeat([0.25, 0.0], half))
        assert not np.any(env.step_rewards[:, half:])
        assert np.all(env.next_state[:, half:] >= half)  # bad for ever
        stays = env.next_state[:, :half] < half
        np.testing.assert_array_equal(stays.sum(axis=2), 1)
        assert env.step_dim == 2 * a
        assert np.all(env.features[:, :half, :, a:] == 0.0)
        assert np.all(env.features[:, half:, :, :a] == 0.0)
    np.testing.assert_array_equal(gated.step_rewards[:, :half], (gated.next_state[:, :half] < half) / h)
    np.testing.assert_array_equal(delayed.step_rewards[-1, :half], delayed.next_state[-1, :half] < half)
    assert not np.any(delayed.step_rewards[:-1])


def test_the_gated_locks_coverage_is_near_the_first_reading() -> None:
    """TESTBEDS: 94,208 draws for one sequence-level answer at H = 16; rejection needs a few C_cov."""
    assert gated_lock(16).coverage() == pytest.approx(57344.0, rel=1e-8)


def test_embedded_lock_has_one_embedding_per_token() -> None:
    env = embedded_lock(seed=3)
    assert env.features.shape == (4, 8, 20, 6)
    np.testing.assert_allclose(np.linalg.norm(env.features, axis=-1), 1.0, rtol=1e-12)
    tokens = env.features[0, 0]
    order = np.lexsort(tokens.T)
    for h in range(4):
        goals = []
        for s in range(8):
            found = env.features[h, s]
            np.testing.assert_array_equal(found[np.lexsort(found.T)], tokens[order])  # a permutation at every state
            goals.append(found[np.argmax(env.step_rewards[h, s])])
            np.testing.assert_allclose(env.step_rewards[h, s], found @ goals[0] / 4, rtol=0, atol=1e-15)
        np.testing.assert_array_equal(goals, goals[:1] * 8)
    assert not np.array_equal(env.features[0], env.features[1])
    assert env.coverage() == pytest.approx(np.prod(env.step_coverages()), rel=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_random_token_mdps_are_realizable_to_rounding(seed: int) -> None:
    rng = np.random.default_rng(seed)
    h, a, s, d = (int(n) for n in (rng.integers(1, 9), rng.integers(2, 7), rng.integers(1, 12), rng.integers(2, 10)))
    env = random_token_mdp(h, a, d, states=s, seed=seed)
    assert np.max(env.realizability_gap()) < 1e-12
    np.testing.assert_allclose(np.linalg.norm(env.features, axis=-1), 1.0, rtol=1e-12)
    assert env.step_dim == d
    assert np.all(env.base_probs > 0.0)
    assert np.min(env.step_rewards) >= 0.0
    assert np.max(env.step_rewards) <= 1.0 / h


def test_random_token_mdps_need_their_prefix() -> None:
    """Q* itself is not linear, nor is the reward of a whole sequence: only Q* up to a function of the prefix."""
    env = random_token_mdp(states=6, actions=3, horizon=3, seed=0)
    flat = env.features.reshape(3, -1, 6)
    for h in range(3):
        target = env.action_values[h].ravel()
        left = target - flat[h] @ np.linalg.lstsq(flat[h], target, rcond=None)[0]
        assert np.max(np.abs(left)) > 1e-3
    assert env.to_table().realizability_gap() > 1e-3


@pytest.mark.parametrize("name", ["additive-lock", "gated-lock", "delayed-lock", "embedded-lock"])
def test_rewards_of_whole_sequences_are_linear_in_locks(name: str) -> None:
    assert token_environment(name, **SMALL[name]).to_table().realizability_gap() < 1e-12


@pytest.mark.parametrize("name", TOKEN_FAMILIES)
def test_seeds_decide(name: str) -> None:
    first, again, other = (token_environment(name, seed=seed, **SMALL[name]) for seed in (5, 5, 6))
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(first, field), getattr(again, field))
    assert not np.array_equal(first.next_state, other.next_state)
    assert not np.array_equal(first.features, other.features)
    assert inspect.signature(TOKEN_FAMILIES[name]).parameters["states"].default == 8
    assert token_environment(name, noise_std=0.5, **SMALL[name]).noise_std == 0.5


# --- the factory ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOKEN_FAMILIES)
def test_an_environment_survives_json_with_its_modifiers(name: str) -> None:
    modifiers = {"misspecified": {"zeta": 0.3}, "random-features": {"dim": 3, "seed": 9}, "blocks": {"m": 2}}
    parameters = {"horizon": 4, "states": 4, "seed": 2}
    env = token_environment(name, modifiers=modifiers, **parameters)
    again = token_environment(name, **json.loads(json.dumps({"modifiers": modifiers, **parameters})))
    by_hand = TOKEN_MODIFIERS["random-features"](blocks(TOKEN_FAMILIES[name](**parameters), 2), dim=3, seed=9)
    by_hand = misspecified(by_hand, 0.3, seed=2)  # the order of the table, and the family's seed
    for other in (again, by_hand):
        assert isinstance(other, TokenEnvironment)
        for field in FIELDS:
            np.testing.assert_array_equal(getattr(env, field), getattr(other, field))
    assert env.reward(1)(["0"], ["0 0"], replicate=[0]) == again.reward(1)(["0"], ["0 0"], replicate=[0])


@pytest.mark.parametrize(
    ("name", "parameters", "says"),
    [
        ("gated-loc", {}, "token environment: expected one of additive-lock, .* did you mean 'gated-lock'"),
        ("gated-lock", {"dim": 3}, "parameters of 'gated-lock': expected one of horizon, actions, states"),
        ("gated-lock", {"states": 5}, "states: expected an even number, half of them good, got 5"),
        ("delayed-lock", {"horizon": 0}, "horizon: expected an integer of at least 1"),
        ("additive-lock", {"actions": 0}, "actions: expected an integer of at least 1"),
        ("additive-lock", {"horizon": "4"}, "horizon of 'additive-lock': expected a number such as 8, got '4'"),
        ("additive-lock", {"noise_std": -1.0}, "noise_std: expected a non-negative number"),
        ("embedded-lock", {"dim": 0}, "dim: expected an integer of at least 1"),
        ("random-token-mdp", {"dim": 1}, "dim: expected an integer of at least 2"),
        ("random-token-mdp", {"concentration": 0.0}, "concentration: expected a finite number above 0"),
        ("random-token-mdp", {"seed": -1}, "seed: expected an integer of at least 0"),
        ("additive-lock", {"modifiers": {"block": {}}}, "modifiers: expected one of blocks, .*did you mean 'blocks'"),
        ("additive-lock", {"modifiers": {"blocks": {}}}, "'blocks': expected m, got nothing"),
        ("additive-lock", {"modifiers": {"blocks": 2}}, "expected a mapping of parameters for 'blocks', got 2"),
    ],
)
def test_what_is_wrong_is_named(name: str, parameters: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        token_environment(name, **parameters)
