"""Laws over scores against slow rewrites, the exact tilt and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta as beta_law

from spannerlm.coverage import draws_per_accept
from spannerlm.environments import random_table
from spannerlm.environments.tabular import TabularEnvironment
from spannerlm.foundation.bounds import BINS, ScoreLaws, interval_of_mean, laws_of, plain, possible
from spannerlm.policy import beta_for_kl, tilt


def exact(env: TabularEnvironment) -> ScoreLaws:
    order = np.argsort(env.mean_rewards, axis=1)
    return ScoreLaws(*(np.take_along_axis(t, order, axis=1) for t in (env.mean_rewards, env.base_probs)))


@pytest.mark.parametrize("seed", [1900, 1901, 1902])
@pytest.mark.parametrize("kl", [0.01, 0.5, 2.0, 50.0])
def test_temperature_and_value_are_those_of_the_exact_tilt(seed: int, kl: float) -> None:
    env = random_table(seed=seed)
    inverse, beta = exact(env).inverse_for_kl(kl), beta_for_kl(env.base_probs, env.mean_rewards, kl)
    assert inverse == pytest.approx(1.0 / beta, rel=1e-4)
    policy = tilt(env.base_probs, env.mean_rewards, beta)
    assert exact(env).value(inverse) == pytest.approx(np.mean(np.sum(policy * env.mean_rewards, axis=1)), abs=1e-5)


def test_quantile_and_draws_per_answer_against_slow_rewrites() -> None:
    env = random_table(seed=1903)
    law, inverse = exact(env), 1.0 / env.beta
    policy = tilt(env.base_probs, env.mean_rewards, env.beta)
    density = policy / np.where(env.base_probs > 0.0, env.base_probs, 1.0)
    ratios = sorted((r, p) for r, p in zip(density.ravel(), policy.ravel(), strict=True) if p > 0.0)
    total = 0.0
    for ratio, mass in ratios:  # noqa: B007
        total += mass / len(policy)
        if total >= 0.99:
            break
    assert law.ratio_quantile(inverse, 0.99) == pytest.approx(ratio)
    counts = np.array([[5, 0, 3, 1, 7], [1, 1, 1, 1, 1]])
    scores = np.array([[0.0, 0.1, 0.4, 0.9, 1.5], [0.0, 0.0, 0.5, 0.5, 2.0]])
    pooled = ScoreLaws(scores, counts / counts.sum(axis=1, keepdims=True))
    for clipped in (0.0, 0.01, 0.2):
        slow = [draws_per_accept(2.0 * s, c, clipped=clipped) for s, c in zip(scores, counts, strict=True)]
        assert pooled.draws_per_accept(2.0, clipped) == pytest.approx(slow)


def test_two_points_in_closed_form() -> None:
    law = ScoreLaws(np.array([[0.0, 1.0]]), np.array([[0.9, 0.1]]))
    inverse = 2.0
    z = 0.9 + 0.1 * math.exp(2.0)
    assert law.value(inverse) == pytest.approx(0.1 * math.exp(2.0) / z)
    assert law.ratio_quantile(inverse, 0.99) == pytest.approx(math.exp(2.0) / z)
    assert law.draws_per_accept(inverse, 0.0)[0] == pytest.approx(math.exp(2.0) / z)
    sizes = np.arange(1.0, 40.0)
    k = np.arange(41)
    binomial = [[math.comb(int(n), int(i)) * 0.1**i * 0.9 ** max(n - i, 0) for i in k] for n in sizes]
    share = [[i * math.exp(2.0) / (i * math.exp(2.0) + max(n - i, 0.0)) for i in k] for n in sizes]
    slow = np.sum(np.array(binomial) * np.array(share), axis=1) - 0.1
    assert law.stored_gain(inverse, sizes) == pytest.approx(slow, abs=2e-4)
    gain = law.value(inverse) - 0.1
    first = int(np.argmax(slow >= 0.8 * gain))
    assert sizes[first - 1] <= law.needed(inverse, 0.8, 64.0) <= sizes[first] + 0.5  # interpolated


def test_stored_gain_against_simulation() -> None:
    env, rng = random_table(seed=1904), np.random.default_rng(0)
    law, inverse = exact(env), 1.0 / env.beta
    found, n, repeats = [], 30, 400
    for scores, masses in zip(law.scores, law.masses, strict=True):
        drawn = scores[rng.choice(len(masses), (repeats, n), p=masses / masses.sum())]
        weights = np.exp(inverse * (drawn - drawn.max()))
        found.append(np.sum(weights * drawn, axis=1) / weights.sum(axis=1) - masses @ scores)
    error = np.std(found, axis=1).mean() / math.sqrt(repeats * len(found))
    assert law.stored_gain(inverse, np.array([1.0, float(n)])) == pytest.approx([0.0, np.mean(found)], abs=5 * error)


def test_one_more_count_bounds_the_mean_as_clopper_and_pearson_do() -> None:
    drawn = laws_of([np.array([0.0, 1.0])], [np.array([57, 3])], largest=1.0)
    rng = np.random.default_rng(0)
    means = [possible(drawn, unseen=True, rng=rng).mean()[0] for _ in range(20_000)]
    assert np.quantile(means, 0.95) == pytest.approx(beta_law.ppf(0.95, 4, 57), rel=0.02)


def test_equal_scores_are_merged_and_many_are_binned_at_their_means() -> None:
    rng = np.random.default_rng(0)
    scores, counts = rng.normal(size=3000), rng.integers(1, 4, 3000)
    few = np.array([1.0, 2.0, 1.0, np.nan])
    law = plain(laws_of([scores, few], [counts, np.array([1, 2, 3, 9])], largest=5.0))
    assert law.scores.shape[1] <= BINS + 1
    assert np.all(np.diff(law.scores, axis=1) >= 0.0)
    assert law.mean() == pytest.approx([scores @ counts / counts.sum(), 8.0 / 6.0])
    full = ScoreLaws(np.sort(scores)[None], (counts[np.argsort(scores)] / counts.sum())[None])
    top = ScoreLaws(law.scores[:1], law.masses[:1])
    assert top.value(3.0) == pytest.approx(full.value(3.0), rel=1e-3)
    assert top.draws_per_accept(3.0, 0.01) == pytest.approx(full.draws_per_accept(3.0, 0.01), rel=0.02)


def test_interval_of_a_mean_is_that_of_strata() -> None:
    scores, counts = [np.array([0.0, 1.0]), np.array([2.0])], [np.array([15, 5]), np.array([20])]
    found = interval_of_mean(laws_of(scores, counts, largest=2.0), 1.96)
    error = 1.96 * np.repeat([0.0, 1.0], [15, 5]).std(ddof=1) / math.sqrt(20) / 2.0
    assert (found.low, found.value, found.high) == pytest.approx((1.125 - error, 1.125, 1.125 + error))
