"""`TokenEnvironment`: dynamic programming against sums over all sequences, tables at H = 1, and its oracle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import token_laws
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from spannerlm.environments import TabularEnvironment
from spannerlm.environments.token import TokenEnvironment
from spannerlm.environments.token_families import additive_lock
from spannerlm.errors import InputError, RewardError
from spannerlm.explorers import EXPLORERS
from spannerlm.ledger import Ledger
from spannerlm.policy import LinearSoftmaxPolicy
from spannerlm.records import Spec
from spannerlm.run import Driver, spec_meta

FIELDS = ("next_state", "base_probs", "features", "step_rewards", "initial_probs")
CLOSE: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}


def changed(env: TokenEnvironment, **fields: Any) -> TokenEnvironment:
    """The environment, its arrays copied, with some of them others."""
    return replace(env, **{**{name: getattr(env, name).copy() for name in FIELDS}, **fields})


# --- the optimum and everything that rests on it --------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_everything_is_what_sums_over_all_sequences_say(seed: int, h: int, s: int, a: int, d: int) -> None:
    token_laws.obeys(token_laws.odd_environment(seed, h, s, a, d))


def test_the_law_catches_a_broken_environment() -> None:
    env = token_laws.odd_environment(0)
    optimum = env.optimal_policy()
    object.__setattr__(env, "step_rewards", env.step_rewards + 1e-9 * np.arange(3))  # after the cached optimum
    assert np.array_equal(env.optimal_policy(), optimum)
    with pytest.raises(AssertionError):
        token_laws.obeys(env)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_the_table_over_all_sequences_is_the_same_task(seed: int, h: int) -> None:
    env = token_laws.odd_environment(seed, h)
    table = env.to_table()
    assert (table.beta, table.noise_std, table.dim) == (env.beta, env.noise_std, env.dim)
    np.testing.assert_allclose(table.optimal_policy(), env.sequence_table(env.optimal_policy()), **CLOSE)
    np.testing.assert_allclose(table.optimal_value(), env.optimal_value(), **CLOSE)
    np.testing.assert_allclose(table.coverage(), env.coverage(), **CLOSE)
    policy = token_laws.random_policy(env, seed)
    np.testing.assert_allclose(table.value(env.sequence_table(policy)), env.value(policy), **CLOSE)
    np.testing.assert_allclose(table.regret(env.sequence_table(policy)), env.regret(policy), **CLOSE)
    theta = np.random.default_rng(seed).normal(size=env.dim)
    scores = np.einsum("hsad,hd->hsa", env.features, theta.reshape(h, -1))
    tilted = LinearSoftmaxPolicy(theta, env.beta).table(table)
    np.testing.assert_allclose(tilted, env.sequence_table(env.tilted(scores)), **CLOSE)


@pytest.mark.parametrize("seed", range(5))
def test_one_step_is_a_table_exactly(seed: int) -> None:
    env = token_laws.odd_environment(seed, h=1, s=5, a=6, d=3)
    table = TabularEnvironment(
        env.initial_probs, env.base_probs[0], env.features[0], env.step_rewards[0], beta=0.7, noise_std=0.4
    )
    np.testing.assert_array_equal(env.optimal_policy()[0], table.optimal_policy())
    policy = token_laws.random_policy(env, seed)
    assert env.optimal_value() == table.optimal_value()
    assert env.value(policy) == table.value(policy[0])
    assert env.regret(policy) == table.regret(policy[0])
    assert env.coverage() == pytest.approx(table.coverage(), rel=1e-14)
    assert env.step_coverage() == table.coverage()
    assert env.realizability_gap() == pytest.approx([table.realizability_gap()], rel=1e-9)
    assert (env.dim, env.feature_norm(), env.prompts) == (table.dim, table.feature_norm(), table.prompts)
    streams = [np.random.default_rng(seed) for _ in range(3)]
    ours, theirs = env.draw([0, 1], 50, rng=streams[0]), table.draw([0, 1], 50, rng=streams[1])
    steps = env.extend([0, 1], [(), ()], 50, rng=streams[2])
    for records in zip(ours, theirs, steps, strict=True):
        assert records[0].responses == records[1].responses == records[2].responses
        for other in records[1:]:
            np.testing.assert_array_equal(records[0].counts, other.counts)
            np.testing.assert_array_equal(records[0].features, other.features)
    assert env.reward(3)(["0", "1"], ["2", "3"], replicate=[0, 1]) == table.reward(3)(
        ["0", "1"], ["2", "3"], replicate=[0, 1]
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10**6))
def test_what_no_possible_prefix_reaches_does_not_count(seed: int) -> None:
    """Whatever stands at unreachable states, in the environment and in a policy, changes nothing."""
    env = token_laws.odd_environment(seed)
    rng = np.random.default_rng(seed)
    outside = ~env.reachable
    assert outside.any()
    prefixes = token_laws.Slow(env).conditionals()
    assert {(len(prefix), s) for (_, prefix), (s, _) in prefixes.items()} == set(map(tuple, np.argwhere(env.reachable)))
    rewards, features, base = env.step_rewards.copy(), env.features.copy(), env.base_probs.copy()
    rewards[outside] += 50.0 * rng.normal(size=rewards[outside].shape)
    features[outside] += rng.normal(size=features[outside].shape)
    base[outside] = rng.dirichlet(np.ones(3), size=outside.sum())
    other = changed(env, step_rewards=rewards, features=features, base_probs=base)
    policy = token_laws.random_policy(env, seed)
    wild = policy.copy()
    wild[outside] = np.eye(3)[rng.integers(3, size=outside.sum())]
    np.testing.assert_array_equal(env.optimal_policy()[env.reachable], other.optimal_policy()[env.reachable])
    for name in ("optimal_value", "coverage", "step_coverage", "step_coverages"):
        np.testing.assert_array_equal(getattr(env, name)(), getattr(other, name)())
    np.testing.assert_allclose(env.realizability_gap(), other.realizability_gap(), **CLOSE)
    assert env.value(policy) == other.value(wild)
    assert env.regret(policy) == other.regret(wild)
    np.testing.assert_array_equal(env.occupancy(policy), other.occupancy(wild))


def test_an_impossible_action_of_great_reward_does_not_count() -> None:
    env = token_laws.odd_environment(1)
    assert (env.base_probs == 0.0).any()
    rewards = np.where(env.base_probs == 0.0, 1e3, env.step_rewards)
    other = changed(env, step_rewards=rewards)
    assert other.optimal_value() == env.optimal_value()
    assert other.coverage() == env.coverage()
    assert other.step_coverage() == env.step_coverage()
    np.testing.assert_allclose(env.realizability_gap(), other.realizability_gap(), **CLOSE)


def test_a_policy_outside_the_support_is_infinitely_bad() -> None:
    env = token_laws.odd_environment(1)
    h, s = np.argwhere(env.reachable & (env.base_probs == 0.0).any(axis=-1))[0]
    policy = env.base_probs.copy()
    policy[h, s] = np.full(3, 1 / 3)
    assert env.value(policy) == -np.inf
    assert env.regret(policy) == np.inf


@pytest.mark.parametrize("beta", [1e-3, 1e-1, 100.0])
def test_regret_is_the_loss_of_value_at_any_temperature(beta: float) -> None:
    env = replace(token_laws.odd_environment(4), beta=beta)
    assert env.regret(env.optimal_policy()) == pytest.approx(0.0, abs=1e-12)
    for seed in range(3):
        policy = token_laws.random_policy(env, seed)
        assert env.regret(policy) == pytest.approx(env.optimal_value() - env.value(policy), rel=1e-9, abs=1e-12)
    assert env.coverage() >= 1.0
    assert env.step_coverage() >= 1.0


def test_coverage_beyond_the_largest_float_is_infinite() -> None:
    base, rewards = np.full((400, 1, 2), [0.99, 0.01]), np.tile([0.0, 1.0], (400, 1, 1))
    env = TokenEnvironment(
        np.zeros((400, 1, 2), dtype=int), base, np.zeros((400, 1, 2, 1)), rewards, [1.0], beta=0.05, noise_std=0.0
    )
    assert env.step_coverage() == pytest.approx(100.0, rel=1e-6)
    assert env.coverage() == np.inf


def test_realizability_is_up_to_a_function_of_the_prefix() -> None:
    env = token_laws.odd_environment(2, h=2)
    theta, shifts = np.array([[0.7, -1.3], [0.2, 0.4]]), np.random.default_rng(0).normal(size=(2, 4, 1))
    wanted = np.einsum("hsad,hd->hsa", env.features, theta) + shifts
    rewards = wanted.copy()
    after = changed(env, step_rewards=wanted).soft_values[1]
    rewards[0] -= after[env.next_state[0]]
    env = changed(env, step_rewards=rewards)
    np.testing.assert_allclose(env.action_values, wanted, **CLOSE)
    assert np.all(env.realizability_gap() < 1e-12)
    h, s = 1, int(np.argmax(env.reachable[1] & ((env.base_probs[1] > 0.0).sum(axis=1) == 3)))
    rewards[h, s, 0] += 1.0  # the last step's Q* is its reward, and the first step's goes by its soft maximum
    gaps = changed(env, step_rewards=rewards).realizability_gap()
    assert gaps[1] > 0.01


# --- the oracle and the raters --------------------------------------------------------------------------------------


def fits(counts: np.ndarray, expected: np.ndarray) -> None:
    assert np.all(counts[expected == 0.0] == 0)
    seen = expected > 0.0
    if seen.sum() > 1:
        assert chisquare(counts[seen], expected[seen] / expected[seen].sum() * counts.sum()).pvalue > 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_sequences_come_with_the_probability_declared_and_their_features(seed: int) -> None:
    env, n = token_laws.odd_environment(seed), 20_000
    table, law = env.to_table(), env.sequence_table(env.base_probs)
    for draws in env.draw(range(env.states), n, rng=np.random.default_rng(seed)):
        assert draws.counts.sum() == n
        assert draws.features.shape == (len(draws.responses), env.horizon * env.step_dim)
        rows = [int(text.replace(" ", ""), base=env.actions) for text in draws.responses]
        counts = np.zeros(law.shape[1])
        counts[rows] = draws.counts
        fits(counts, law[draws.prompt])
        np.testing.assert_array_equal(draws.features, table.features[draws.prompt, rows])
        for text, phi, row in zip(draws.responses, draws.features, rows, strict=True):
            walked = [p for p in token_laws.paths(env, draws.prompt) if " ".join(map(str, p.actions)) == text]
            slow = [
                env.features[h, s, a] for h, (s, a) in enumerate(zip(walked[0].states, walked[0].actions, strict=True))
            ]
            np.testing.assert_array_equal(phi, np.concatenate(slow))
            assert table.mean_rewards[draws.prompt, row] == pytest.approx(walked[0].reward, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_any_prefix_can_be_extended(seed: int) -> None:
    env, n = token_laws.odd_environment(seed), 5_000
    rng = np.random.default_rng(seed)
    known = token_laws.Slow(env).conditionals()
    keys = list(known)
    prefixes = [tuple(map(str, prefix)) for _, prefix in keys]
    records = env.extend([x for x, _ in keys], prefixes, n, rng=rng)
    for (x, prefix), draws in zip(keys, records, strict=True):
        step, state = len(prefix), known[x, prefix][0]
        assert draws.prompt == x
        assert draws.counts.sum() == n
        actions = [int(text) for text in draws.responses]
        counts = np.zeros(env.actions)
        counts[actions] = draws.counts
        fits(counts, env.base_probs[step, state])
        np.testing.assert_array_equal(draws.features, env.features[step, state, actions])


def test_extensions_put_end_to_end_are_sequences() -> None:
    """A sequence drawn action by action has the mean reward that the rater of complete sequences gives it."""
    env = replace(token_laws.odd_environment(5), noise_std=0.0)
    rng, prefix, total, state = np.random.default_rng(0), (), 0.0, 0
    for step in range(env.horizon):
        (draws,) = env.extend([0], [prefix], 1, rng=rng)
        action = int(draws.responses[0])
        total += env.step_rewards[step, state, action]
        state = env.next_state[step, state, action]
        prefix = (*prefix, *draws.responses)
    assert env.reward(0)(["0"], [" ".join(prefix)], replicate=[0]) == [pytest.approx(total, abs=1e-15)]


def test_long_sequences_are_drawn_without_a_table() -> None:
    h = 60
    rng = np.random.default_rng(0)
    env = TokenEnvironment(
        rng.integers(3, size=(h, 3, 4)),
        rng.dirichlet(np.ones(4), size=(h, 3)),
        rng.normal(size=(h, 3, 4, 2)),
        rng.normal(size=(h, 3, 4)) / h,
        np.full(3, 1 / 3),
        beta=0.1,
        noise_std=0.1,
    )
    (draws,) = env.draw([2], 500, rng=rng)
    assert draws.features.shape == (500, 2 * h)
    assert len(set(draws.responses)) == 500
    mean = np.mean(env.reward(0)(["2"] * 500, draws.responses, replicate=[0] * 500))
    expected = np.sum(
        changed(env, initial_probs=np.eye(3)[2]).occupancy(env.base_probs)[..., None]
        * env.base_probs
        * env.step_rewards
    )
    assert abs(mean - expected) < 5 * np.sqrt((env.step_rewards.max() ** 2 * h + 0.01) / 500)
    assert env.step_coverage() < env.coverage() < np.inf
    with pytest.raises(InputError, match=r"limit: expected at least A\^H = \d+ sequences, got 4096"):
        env.to_table()


def test_no_draws_are_no_record_of_any() -> None:
    env = token_laws.odd_environment(0)
    (draws,) = env.draw([1], 0, rng=np.random.default_rng(0))
    (step,) = env.extend([1], [("0",)], 0, rng=np.random.default_rng(0))
    assert (draws.responses, draws.features.shape) == ((), (0, 6))
    assert (step.responses, step.features.shape) == ((), (0, 2))


def test_labels_are_the_sum_of_rewards_with_noise() -> None:
    env, k = token_laws.odd_environment(3), 4_000
    path = next(p for p in token_laws.paths(env, 1) if p.actions == (2, 0, 1))
    labels = np.array(env.reward(7)(["1"] * k, ["2 0 1"] * k, replicate=range(k)), dtype=np.float64)
    assert abs(labels.mean() - path.reward) < 5 * 0.4 / np.sqrt(k)
    assert abs(labels.std() - 0.4) < 5 * 0.4 / np.sqrt(2 * k)
    other = next(p for p in token_laws.paths(env, 1) if p.actions == (0, 0, 0))
    wins = np.array(env.comparison(7, 2.0)(["1"] * k, ["2 0 1"] * k, ["0 0 0"] * k, replicate=range(k)), dtype=float)
    p = 1 / (1 + np.exp(-(path.reward - other.reward) / 2.0))
    assert abs(wins.mean() - p) < 5 * np.sqrt(p * (1 - p) / k)
    assert env.reward(0).pure
    assert env.comparison(0).pure


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("2 0", "response: expected 3 actions, got 2 in '2 0'"),
        ("2 0 1 1", "response: expected 3 actions, got 4"),
        ("", "response: expected 3 actions, got 1"),
        ("2 0 3", "action: expected the text of one of 0 .. 2, got '3'"),
        ("2 0 01", "got '01'"),
        ("2 0 -1", "got '-1'"),
        ("2  1", "got ''"),
    ],
)
def test_only_complete_sequences_have_rewards(text: str, says: str) -> None:
    with pytest.raises(RewardError, match=says):
        token_laws.odd_environment(0).reward(0)(["0"], [text], replicate=[0])


def test_what_can_not_be_extended_is_named() -> None:
    env, rng = token_laws.odd_environment(0), np.random.default_rng(0)
    with pytest.raises(InputError, match="prefix: expected fewer than 3 actions, got 3"):
        env.extend([0], [("0", "1", "2")], 1, rng=rng)
    with pytest.raises(InputError, match="prefixes: expected one per prompt, 2 in all, got 1"):
        env.extend([0, 1], [()], 1, rng=rng)
    assert env.extend([], [], 1, rng=rng) == ()
    with pytest.raises(InputError, match=r"action: expected the text of one of 0 .. 2, got 'x'"):
        env.extend([0], [("x",)], 1, rng=rng)
    for x in (-1, 4):
        with pytest.raises(InputError, match=r"prompt: expected one of 0 .. 3"):
            env.extend([x], [()], 1, rng=rng)
        with pytest.raises(InputError, match=r"prompt: expected one of 0 .. 3"):
            env.draw([x], 1, rng=rng)


# --- what is accepted -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"next_state": np.zeros((3, 4, 3))}, r"next_state \[H, S, A\]: expected integers of 0 .. 3"),
        ({"next_state": np.full((3, 4, 3), 4)}, "expected integers of 0 .. 3, indices of states, got int64 4 .. 4"),
        ({"next_state": np.full((3, 4, 3), -1)}, "got int64 -1 .. -1"),
        ({"next_state": np.zeros((3, 4, 2), dtype=int)}, r"next_state .*shape \(3, 4, 3\), got shape \(3, 4, 2\)"),
        ({"base_probs": np.full((4, 3), 1 / 3)}, r"base_probs \[H, S, A\]: expected a non-empty array of shape \(any"),
        ({"base_probs": np.zeros((3, 4, 3))}, "base_probs: expected non-negative rows that sum to 1"),
        ({"features": np.zeros((3, 4, 3))}, r"features \[H, S, A, d\]: expected .* \(3, 4, 3, any\)"),
        ({"features": np.zeros((3, 4, 3, 0))}, "features .*got shape"),
        ({"step_rewards": np.full((3, 4, 3), np.nan)}, r"step_rewards \[H, S, A\]: expected finite numbers, got 36"),
        ({"initial_probs": np.full(3, 1 / 3)}, r"initial_probs \[S\]: expected .* \(4\)"),
        ({"initial_probs": np.full(4, 1 / 3)}, "initial_probs: expected non-negative rows"),
        ({"beta": 0.0}, "beta: expected a positive KL temperature"),
        ({"beta": float("nan")}, "beta: expected a positive KL temperature"),
        ({"noise_std": -1.0}, "noise_std: expected a non-negative number"),
        ({"tokens_per_action": 0}, "tokens_per_action: expected an integer of at least 1"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        changed(token_laws.odd_environment(0), **changes)


@pytest.mark.parametrize("policy", [np.ones((2, 2)), np.full((3, 4, 3), 0.4), np.full((3, 4, 3), np.nan)])
def test_a_policy_that_is_none_is_refused(policy: np.ndarray) -> None:
    env = token_laws.odd_environment(0)
    for method in (env.value, env.regret, env.occupancy, env.sequence_table):
        with pytest.raises(InputError, match="policy"):
            method(policy)


def test_lists_are_accepted_and_norms_are_never_enforced() -> None:
    env = token_laws.odd_environment(0)
    lists = [getattr(env, name).tolist() for name in FIELDS]
    again = TokenEnvironment(*lists, beta=0.7, noise_std=0.4, tokens_per_action=3)
    assert again.tokens_per_action == 3
    assert again.optimal_value() == env.optimal_value()
    large = changed(env, features=1e6 * env.features)
    assert large.feature_norm() == pytest.approx(1e6 * max(np.linalg.norm(env.features.reshape(-1, 2), axis=1)))


def test_a_sequence_level_explorer_runs_on_it() -> None:
    """`draw` is the oracle of complete responses: what explores tables learns an additive lock from sums."""
    env, explorer = additive_lock(6, seed=1), EXPLORERS["passive"]()
    spec = Spec(env.prompt_probs, env.dim, 100, None, 20, beta=env.beta, fresh=True)
    with Ledger.open(None, meta=spec_meta(spec, 0), prompts=list(env.prompts)) as ledger:
        run = Driver(env, explorer, env.reward(0), ledger, spec, seed=0)
        run.explore()
    theta = run.explorer.policy(run.state).theta
    scores = np.einsum("hsad,hd->hsa", env.features, theta.reshape(env.horizon, env.step_dim))
    assert ledger.counts.labels == 100
    assert env.regret(env.tilted(scores)) < 0.1 * env.regret(env.base_probs)
