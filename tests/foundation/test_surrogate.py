"""The surrogate of a pool, what is attainable on it, and traced runs: against slow loops."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax

import spannerlm
from spannerlm.environments import TabularEnvironment, random_table
from spannerlm.errors import InputError
from spannerlm.foundation.pool import Labels, Pool, pool_of, random_labels
from spannerlm.foundation.surrogate import HOLD, attainable, first_held, learned, surrogate, trace, value_at_kl
from spannerlm.policy import kl_divergence


@pytest.fixture(scope="module")
def env() -> TabularEnvironment:
    return random_table(prompts=6, responses=30, seed=1100)


@pytest.fixture(scope="module")
def pool(env: TabularEnvironment) -> Pool:
    return pool_of(env, 200, rng=np.random.default_rng(0))


def rewards_of(pool: Pool) -> tuple[np.ndarray, ...]:
    assert pool.rewards is not None
    return pool.rewards


def test_surrogate_holds_frequencies_features_and_rewards(pool: Pool) -> None:
    found = surrogate(pool, "features", rewards_of(pool), 0.2)
    assert found.noise_std == 0.2
    for x, (draws, rewards) in enumerate(zip(pool.draws, rewards_of(pool), strict=True)):
        n = len(rewards)
        for i in range(n):
            assert found.base_probs[x, i] == pytest.approx(draws.counts[i] / 200)
            assert found.mean_rewards[x, i] == rewards[i]
            assert np.array_equal(found.features[x, i], draws.features[i])
        assert np.all(found.base_probs[x, n:] == 0.0)


def test_surrogate_leaves_out_what_was_declined(pool: Pool) -> None:
    rows = [row.copy() for row in rewards_of(pool)]
    rows[0][0], rows[1][:] = np.nan, np.nan
    found = surrogate(pool, "features", rows, 0.0)
    assert len(found.prompt_probs) == len(pool.prompts) - 1
    counts = pool.draws[0].counts
    assert found.base_probs[0, 0] == pytest.approx(counts[1] / (200 - counts[0]))
    assert len(surrogate(pool, "features", rows, 0.0, prompts=[1, 2]).prompt_probs) == 1
    with pytest.raises(InputError, match="at least one that is known"):
        surrogate(pool, "features", rows, 0.0, prompts=[1])


@pytest.mark.parametrize("kl", [0.3, 1.0])
def test_value_at_kl_spends_the_budget(env: TabularEnvironment, kl: float) -> None:
    found = value_at_kl(env, env.mean_rewards, kl)
    best = None
    for beta in np.geomspace(1e-2, 1e2, 4000):  # a slow scan: the first temperature within the budget
        table = env.base_probs * softmax(env.mean_rewards / beta, axis=1)
        table /= table.sum(axis=1, keepdims=True)
        if np.mean(kl_divergence(table, env.base_probs)) <= kl:
            best = np.mean(np.sum(table * env.mean_rewards, axis=1))
            break
    assert found == pytest.approx(best, abs=2e-3)


def test_attainable_is_the_optimum_where_features_express_the_reward(env: TabularEnvironment) -> None:
    base, best = attainable(env, 1.0)
    assert base == pytest.approx(np.mean(np.sum(env.base_probs * env.mean_rewards, axis=1)))
    assert best == pytest.approx(value_at_kl(env, env.mean_rewards, 1.0), abs=1e-6)


def test_attainable_is_less_where_they_do_not(env: TabularEnvironment) -> None:
    arrays = env.prompt_probs, env.base_probs
    poor = TabularEnvironment(*arrays, env.features[..., :2], env.mean_rewards, beta=1.0, noise_std=0.0)
    base, best = attainable(poor, 1.0)
    assert base <= best < attainable(env, 1.0)[1]
    none = TabularEnvironment(*arrays, np.zeros_like(env.features), env.mean_rewards, beta=1.0, noise_std=0.0)
    base, best = attainable(none, 1.0)
    assert base == best


def test_learned_is_what_a_run_with_these_labels_would_know(env: TabularEnvironment, pool: Pool) -> None:
    labels = random_labels(pool, env, 40, rng=np.random.default_rng(1))
    learner = learned(replace(pool, rewards=None, labels=labels), "features")
    assert learner.bought == 40
    assert learner.drawn == 200 * len(pool.prompts)
    for x, draws in enumerate(pool.draws):
        assert np.allclose(learner.centres[x], draws.counts @ draws.features / 200)
    assert learner.stats.square == pytest.approx(float(np.sum((labels.values - labels.values.mean()) ** 2)))


def test_trace_is_a_run_of_the_library_cut_short(env: TabularEnvironment) -> None:
    """Same labels at the same policies as `spannerlm.explore` has with a KL budget, but for the early stop."""
    base, best = attainable(env, 1.0)
    found = trace(env, "directed", target=base + 0.5 * (best - base), kl=1.0, draws=200, labels=200, batch=10, seed=3)
    assert found.labels == tuple(range(0, 10 * len(found.labels), 10))
    assert math.isfinite(found.held)
    assert found.labels[-1] == found.held + HOLD * 10
    whole = trace(env, "directed", target=math.inf, kl=1.0, draws=200, labels=found.labels[-1], batch=10, seed=3)
    assert whole.values == found.values
    assert math.isinf(whole.held)
    assert spannerlm.explore(env, labels=20, seed=3).labels == 20  # the same driver is behind both


def slow_held(labels: list[int], values: list[float], target: float, span: int, final: bool) -> float:
    for at in labels:
        end = at + span
        if not final and labels[-1] < end:
            continue
        if all(v >= target for n, v in zip(labels, values, strict=True) if at <= n <= end):
            return at
    return math.inf


def test_first_held_against_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        labels = [0, *np.cumsum(rng.integers(1, 12, rng.integers(1, 15))).tolist()]
        values = (rng.random(len(labels)) < 0.75).astype(float).tolist()
        span, final = int(rng.integers(1, 40)), bool(rng.integers(2))
        assert first_held(labels, values, 1.0, span=span, final=final) == slow_held(labels, values, 1.0, span, final)


def test_first_held_wants_the_target_to_stay() -> None:
    values = [0.0, 1.0, 0.0, 1.0, 1.0, 1.0]
    assert first_held([0, 10, 20, 30, 40, 50], values, 1.0, span=20, final=False) == 30
    assert math.isinf(first_held([0, 10, 20, 30, 40, 50], values, 1.0, span=30, final=False))
    assert first_held([0, 10, 20, 30, 40, 50], values, 1.0, span=30, final=True) == 30


def test_a_label_bought_once_is_learned_once_and_an_offset_does_not_matter(pool: Pool) -> None:
    env = random_table(prompts=6, responses=30, seed=1100)
    labels = random_labels(pool, env, 60, rng=np.random.default_rng(3))
    bare = replace(pool, rewards=None, labels=labels)
    twice = Labels(*(np.concatenate([a, a]) for a in (labels.prompts, labels.rows, labels.values)), random=True)
    once = learned(bare, "features")
    again = learned(replace(bare, labels=twice), "features")
    assert again.stats.labels == once.stats.labels == 60
    far = learned(replace(bare, labels=replace(labels, values=labels.values + 1e5)), "features")
    np.testing.assert_allclose(far.theta, once.theta, atol=1e-5)
