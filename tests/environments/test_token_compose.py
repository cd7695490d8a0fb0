"""Modifiers of token environments: what each changes and what it must leave as it was."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import token_laws

from spannerlm.environments import compose
from spannerlm.environments.token import TokenEnvironment
from spannerlm.environments.token_compose import blocks, misspecified, random_features
from spannerlm.environments.token_families import TOKEN_FAMILIES, additive_lock, random_token_mdp, token_environment
from spannerlm.errors import InputError
from spannerlm.records import FloatArray

FIELDS = ("next_state", "base_probs", "features", "step_rewards", "initial_probs")


def same_but_for(first: TokenEnvironment, second: TokenEnvironment, *changed: str) -> None:
    for name in FIELDS:
        equal = np.array_equal(getattr(first, name), getattr(second, name))
        assert equal == (name not in changed), name
    assert (first.beta, first.noise_std) == (second.beta, second.noise_std)


def in_blocks(env: TokenEnvironment, policy: FloatArray, m: int) -> FloatArray:
    """The same policy [H, S, A] for blocks of ``m`` actions, [H / m, S, A^m], one block at a time."""
    found = np.zeros((env.horizon // m, env.states, env.actions**m))
    for block, state in np.ndindex(found.shape[:2]):
        for index, actions in enumerate(itertools.product(range(env.actions), repeat=m)):
            mass, s = 1.0, state
            for place, action in enumerate(actions):
                mass *= policy[block * m + place, s, action]
                s = env.next_state[block * m + place, s, action]
            found[block, state, index] = mass
    return found


@pytest.mark.parametrize("m", [1, 2, 4])
def test_blocks_are_the_same_task_in_fewer_steps(m: int) -> None:
    env = token_laws.odd_environment(3, h=4)
    grouped = blocks(env, m)
    assert grouped.base_probs.shape == (4 // m, 4, 3**m)
    assert grouped.step_dim == 2 * m
    assert grouped.dim == env.dim
    assert grouped.tokens_per_action == m
    token_laws.obeys(grouped)
    close: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(grouped.optimal_value(), env.optimal_value(), **close)
    np.testing.assert_allclose(grouped.coverage(), env.coverage(), **close)
    reached = grouped.reachable
    optimum = in_blocks(env, env.optimal_policy(), m)
    np.testing.assert_allclose(grouped.optimal_policy()[reached], optimum[reached], **close)
    policy = token_laws.random_policy(env, 5)
    np.testing.assert_allclose(grouped.value(in_blocks(env, policy, m)), env.value(policy), **close)
    np.testing.assert_allclose(grouped.regret(in_blocks(env, policy, m)), env.regret(policy), **close)
    table, other = env.to_table(), grouped.to_table()  # digits in base A: the order of sequences is the same
    np.testing.assert_allclose(other.mean_rewards, table.mean_rewards, **close)
    np.testing.assert_allclose(other.base_probs, table.base_probs, **close)
    np.testing.assert_array_equal(other.features, table.features)


def test_blocks_of_one_change_nothing_and_blocks_of_blocks_are_blocks() -> None:
    env = additive_lock(8, seed=1)
    same_but_for(env, blocks(env, 1))
    same_but_for(blocks(env, 4), blocks(blocks(env, 2), 2))
    assert blocks(blocks(env, 2), 2).tokens_per_action == 4


@pytest.mark.parametrize("m", [1, 2, 4])
def test_one_block_costs_the_coverage_of_its_steps(m: int) -> None:
    """C_cond^m: tokens per answer grow exponentially in the block, H m^-1 blocks of m tokens and C_cond^m draws."""
    for a in (2, 5):
        env = additive_lock(8, a, seed=1)
        grouped = blocks(env, m)
        assert grouped.step_coverage() == pytest.approx(env.step_coverage() ** m, rel=1e-11)
        assert grouped.coverage() == pytest.approx(env.coverage(), rel=1e-11)
    for name in TOKEN_FAMILIES:
        env = token_environment(name, horizon=4, states=4)
        assert blocks(env, 2).step_coverage() <= env.step_coverage() ** 2 * (1 + 1e-12)


@pytest.mark.parametrize("m", [2, 3, 6])
def test_locks_stay_realizable_in_blocks_and_random_mdps_can_be_made_so(m: int) -> None:
    for name in ("additive-lock", "gated-lock", "delayed-lock"):
        assert np.max(blocks(token_environment(name, horizon=6, seed=m), m).realizability_gap()) < 1e-12
    assert np.max(blocks(token_environment("embedded-lock", horizon=6, actions=4), m).realizability_gap()) < 1e-12
    env = blocks(random_token_mdp(6, 3, seed=m), m)
    assert np.max(env.realizability_gap()) > 1e-3
    again = random_features(env, 5, seed=m)
    assert np.max(again.realizability_gap()) < 1e-12
    assert again.tokens_per_action == m


def test_random_features_change_nothing_else() -> None:
    env = token_laws.odd_environment(0)
    found = random_features(env, 7, seed=1)
    same_but_for(env, found, "features")
    assert found.features.shape == (3, 4, 3, 7)
    np.testing.assert_allclose(np.linalg.norm(found.features, axis=-1), 1.0, rtol=1e-12)
    assert np.max(found.realizability_gap()) < 1e-12
    token_laws.obeys(found)
    same_but_for(found, random_features(env, 7, seed=1))
    assert not np.array_equal(found.features, random_features(env, 7, seed=2).features)
    single = token_laws.odd_environment(0, a=1)  # no choice at all: q = 0
    np.testing.assert_allclose(np.linalg.norm(random_features(single, 2).features, axis=-1), 1.0, rtol=1e-12)
    with pytest.raises(InputError, match="dim: expected an integer of at least 2"):
        random_features(env, 1)


@pytest.mark.parametrize("name", TOKEN_FAMILIES)
def test_misspecified_moves_every_log_density_by_zeta(name: str) -> None:
    env = token_environment(name, seed=1)
    for zeta in (0.1, 0.8):
        other = misspecified(env, zeta, seed=4)
        same_but_for(env, other, "step_rewards")
        signs = (other.action_values - env.action_values) / (zeta * env.beta)
        np.testing.assert_allclose(np.abs(signs), 1.0, rtol=1e-9)
        assert abs(np.mean(signs > 0) - 0.5) < 5 * 0.5 / np.sqrt(signs.size)
        moves = np.log(other.optimal_policy() / env.optimal_policy()) - zeta * signs
        np.testing.assert_allclose(moves - moves[..., :1], 0.0, rtol=0, atol=1e-8)
        gap, unit = other.realizability_gap(), misspecified(env, 1.0, seed=4).realizability_gap()
        np.testing.assert_allclose(gap, zeta * unit, rtol=1e-8, atol=1e-12)
        assert zeta * env.beta <= np.max(gap) <= 4 * zeta * env.beta
    np.testing.assert_allclose(misspecified(env, 0.0).step_rewards, env.step_rewards, rtol=0, atol=1e-14)


def test_misspecified_at_one_step_is_the_modifier_of_tables() -> None:
    env = token_laws.odd_environment(2, h=1, s=4, a=5)
    ours, theirs = misspecified(env, 0.5, seed=3).to_table(), compose.misspecified(env.to_table(), 0.5, seed=3)
    np.testing.assert_allclose(ours.mean_rewards, theirs.mean_rewards, rtol=0, atol=1e-15)


def test_misspecified_obeys() -> None:
    token_laws.obeys(misspecified(token_laws.odd_environment(2), 0.5))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda env: blocks(env, 3), "m: expected a divisor of H = 8 .* got 3 where A = 2"),
        (lambda env: blocks(env, 0), "m: expected an integer of at least 1"),
        (lambda env: blocks(additive_lock(13), 13), "A\\^m of at most 4096, got 13"),
        (lambda env: misspecified(env, -0.1), "zeta: expected a finite number of at least 0"),
        (
            lambda env: misspecified(additive_lock(2, 2, states=1), 0.5),
            "can not express random moves, got 2 dimensions for 2 values a step, which leave",
        ),
    ],
)
def test_what_is_wrong_is_named(change: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        change(additive_lock())
