"""Pass@k, its bands and the prompts named, against enumeration and against tables whose truth is known."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from itertools import combinations, pairwise

import numpy as np
import pytest

from spannerlm.environments import random_table
from spannerlm.evaluation import EvaluationPool
from spannerlm.foundation.pool import Labels, Pool, pool_of, random_labels
from spannerlm.foundation.success import Level, Success, best_of_k, level_of, success
from spannerlm.policy import beta_for_kl, tilt
from spannerlm.records import Draws

ONE = Level(1.0, "given")


def pool(draws: list[int], correct: list[int], values: tuple[float, float] = (0.0, 1.0)) -> Pool:
    """Prompts with two responses, one of which succeeds."""
    records = tuple(
        Draws(x, ("no", "yes"), np.array([n - c, c]), np.zeros((2, 1)))
        for x, (n, c) in enumerate(zip(draws, correct, strict=True))
    )
    rewards = tuple(np.array(values) for _ in draws)
    return Pool(tuple(map(str, range(len(draws)))), records, {"map": slice(0, 1)}, rewards)


def found(draws: list[int], correct: list[int], *, max_draws: int = 1000, seed: int = 0) -> Success:
    result = success(pool(draws, correct), ONE, max_draws=max_draws, rng=np.random.default_rng(seed))
    assert result is not None
    return result


def test_pass_at_k_is_the_mean_over_all_subsets_and_over_prompts() -> None:
    correct = [0, 1, 3, 6]
    result = found([6] * 4, correct)
    for row in result.pass_at:
        if row.k <= 6:
            share = [math.comb(6 - c, row.k) / math.comb(6, row.k) for c in correct]
            assert row.value == pytest.approx(1.0 - np.mean(share))
        assert row.measured == (row.k <= 6)


def test_the_grid_doubles_and_holds_n_and_ten_times_n() -> None:
    assert [row.k for row in found([6] * 2, [1, 2]).pass_at] == [1, 2, 4, 6, 8, 16, 32, 60]
    assert [row.k for row in found([64] * 2, [1, 2]).pass_at][-5:] == [64, 128, 256, 512, 640]


@pytest.mark.parametrize("correct", [[0] * 8, [64] * 8, [0, 0, 0, 1, 5, 30, 60, 64], [32] * 8])
def test_bands_are_in_order_and_rise_with_k(correct: list[int]) -> None:
    rows = found([64] * 8, correct).pass_at
    for row in rows:
        assert 0.0 <= row.low <= row.value <= row.high <= 1.0
    for one, two in pairwise(rows):
        assert one.value <= two.value
        assert one.low <= two.low + 1e-12
        assert one.high <= two.high


def _rates(env: object, level: float) -> np.ndarray:
    """[X] true success rates of a table."""
    return np.minimum(np.sum(env.base_probs * (env.mean_rewards >= level - 1e-9), axis=1), 1.0)  # type: ignore[attr-defined]


def test_bands_hold_the_truth_of_tables() -> None:
    hits: dict[str, list[bool]] = {"measured": [], "beyond": [], "zero": [], "best": []}
    for seed in range(1900, 1906):
        env = random_table(seed=seed, prompts=12)
        n = (64, 256, 1024, 2048)[seed % 4]
        drawn = pool_of(env, n, rng=np.random.default_rng(seed))
        level = level_of(drawn, 1.0)
        result = success(drawn, level, max_draws=1000, rng=np.random.default_rng(seed))
        assert result is not None
        rates = _rates(env, level.value)
        for row in result.pass_at:
            truth = float(np.mean(1.0 - (1.0 - rates) ** row.k))
            hits["measured" if row.measured else "beyond"].append(row.low - 1e-6 <= truth <= row.high + 1e-6)
        truth = float(np.mean(rates < 1e-3))
        hits["zero"].append(result.zero.low - 1e-9 <= truth <= result.zero.high + 1e-9)
        order = np.argsort(env.mean_rewards, axis=1)
        values = np.take_along_axis(env.mean_rewards, order, axis=1)
        below = np.minimum(np.cumsum(np.take_along_axis(env.base_probs, order, axis=1), axis=1), 1.0)
        for best in result.best_of:
            truth = float(np.mean(np.sum(values * np.diff(below**best.k, axis=1, prepend=0.0), axis=1)))
            hits["best"].append(best.low <= truth <= best.high)
    for name, held in hits.items():
        assert len(held) >= 5, name
        assert np.mean(held) >= 0.75, name  # six tables: one miss is .17, and all its k miss together


def test_where_draws_cannot_tell_the_band_is_wide_and_the_sentence_says_so() -> None:
    result = found([64] * 20, [0] * 10 + [20] * 10)
    last = result.pass_at[-1]
    assert last.low < 0.56
    assert last.high > 0.8
    assert result.told < 640
    assert any("64 draws miss a rate of 1/21 with probability .05" in s for s in result.statements)


def test_prompts_without_success_are_named_only_where_the_draws_reach_that_far() -> None:
    few = found([64], [0])
    assert few.hopeless == ()
    assert any("cannot tell whether the rate is below 1/1000" in s for s in few.statements)
    many = found([20000] * 4, [0, 0, 3000, 9000])
    assert many.hopeless == (0, 1)
    assert many.zero.low == many.zero.high == 0.5
    assert any(
        s.startswith("Of 4 prompts, 2 are beyond this model: no success in 20,000 draws") for s in many.statements
    )
    assert found([20000], [1], max_draws=100).hopeless == (0,)


def test_prompts_named_are_beyond_the_model() -> None:
    rng = np.random.default_rng(11)
    named = []
    for n in (256, 512, 2048):
        rates = np.where(rng.random(60) < 0.4, 0.0, rng.beta(0.5, 5.0, 60))
        result = found([n] * 60, rng.binomial(n, rates).tolist())
        named += [bool(rates[x] < 1e-3) for x in result.hopeless]
    assert len(named) > 20
    assert np.mean(named) >= 0.95


def test_rate_of_a_prompt_is_that_of_its_draws_alone() -> None:
    rows = found([64] * 3, [0, 16, 64]).per_prompt
    assert [row.rate.value for row in rows] == [0.0, 0.25, 1.0]
    assert rows[0].rate.high == pytest.approx(1.0 - 0.025 ** (1.0 / 64.0))
    assert all(row.rate.low <= row.rate.value <= row.rate.high for row in rows)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 7])
def test_best_of_k_is_the_mean_over_all_subsets(k: int) -> None:
    values, counts = np.array([0.3, -1.0, 2.0, 0.5]), np.array([2, 3, 1, 1])
    drawn = np.repeat(values, counts)
    expected = np.mean([drawn[list(rows)].max() for rows in combinations(range(7), k)])
    assert best_of_k(values, counts, k)[0] == pytest.approx(expected)


def test_variance_of_the_best_of_k_is_that_of_fresh_pools() -> None:
    rng = np.random.default_rng(0)
    values, probs = rng.standard_normal(40), rng.dirichlet(np.ones(40))
    for k in (1, 8, 32):
        fresh = [best_of_k(values[c > 0], c[c > 0], k) for c in rng.multinomial(256, probs, size=600)]
        estimate, variance = np.array(fresh).T
        assert np.mean(variance) == pytest.approx(np.var(estimate), rel=0.25)
    assert best_of_k(values, np.arange(1, 41), 1)[1] == pytest.approx(
        np.var(np.repeat(values, np.arange(1, 41)), ddof=1) / 820
    )


def test_the_best_of_many_has_no_upper_end_and_two_values_none_at_all() -> None:
    env = random_table(seed=1001, binary=0)
    drawn = pool_of(env, 64, rng=np.random.default_rng(0))
    result = success(drawn, level_of(drawn, 1.0), max_draws=1000, rng=np.random.default_rng(0))
    assert result is not None
    assert [math.isfinite(row.high) for row in result.best_of] == [row.k <= 16 for row in result.best_of]
    assert all(row.low <= row.value <= row.high for row in result.best_of)
    assert found([64] * 2, [3, 4]).best_of == ()


def test_draws_all_alike_bound_nothing() -> None:
    records = tuple(Draws(x, ("same",), np.array([64]), np.zeros((1, 1))) for x in range(3))
    rewards = (np.array([0.1]), np.array([0.2]), np.array([0.4]))
    alike = Pool(("a", "b", "c"), records, {"map": slice(0, 1)}, rewards)
    result = success(alike, Level(0.2, "given"), max_draws=1000, rng=np.random.default_rng(0))
    assert result is not None
    for row in result.best_of:
        assert row.value == pytest.approx(0.7 / 3.0)
        assert (row.low, row.high) == (-math.inf, math.inf)


def test_level_is_the_upper_of_two_values_or_what_the_optimum_earns() -> None:
    assert level_of(pool([8], [3], (-1.0, 2.0)), 1.0) == Level(2.0, "two values")
    env = random_table(seed=1002, binary=0)
    drawn = pool_of(env, 256, rng=np.random.default_rng(0))
    level = level_of(drawn, 0.7)
    assert level.source == "optimum"
    assert drawn.rewards is not None
    evaluation = EvaluationPool(drawn.draws)
    scores = np.zeros(evaluation.base.shape)
    for x, row in enumerate(drawn.rewards):
        scores[x, : len(row)] = row
    weights = tilt(evaluation.base, scores, beta_for_kl(evaluation.base, scores, 0.7))
    assert level.value == pytest.approx(float(np.mean(np.sum(weights * scores, axis=1))))
    assert math.isnan(level_of(replace(drawn, rewards=None), 1.0).value)


def test_rewards_all_equal_are_said_to_tell_nothing() -> None:
    flat = pool([64] * 3, [10, 20, 30], (0.0, 0.0))
    level = level_of(flat, 1.0)
    result = success(flat, level, max_draws=1000, rng=np.random.default_rng(0))
    assert level.value == 0.0
    assert result is not None
    assert result.pass_at[0].value == 1.0
    assert any("nothing here tells good from bad" in s for s in result.statements)


def test_declined_draws_leave_the_counts() -> None:
    full = pool([10] * 2, [4, 0])
    part = replace(full, rewards=(np.array([np.nan, 1.0]), np.array([np.nan, np.nan])))
    result = success(part, ONE, max_draws=1000, rng=np.random.default_rng(0))
    assert result is not None
    assert [(row.draws, row.correct) for row in result.per_prompt] == [(4, 4), (0, 0)]
    assert not any(row.measured for row in result.pass_at)
    assert math.isnan(result.per_prompt[1].rate.value)
    assert any("1 prompt has no graded draw" in s for s in result.statements)
    nothing = replace(full, rewards=(np.full(2, np.nan), np.full(2, np.nan)))
    assert success(nothing, ONE, max_draws=1000, rng=np.random.default_rng(0)) is None


def test_random_labels_are_graded_as_bought_and_chosen_ones_are_not_used() -> None:
    env = random_table(seed=1006, binary=1, prompts=12)
    ungraded = pool_of(env, 64, graded=False, rng=np.random.default_rng(0))
    assert success(ungraded, ONE, max_draws=1000, rng=np.random.default_rng(0)) is None
    labels = random_labels(ungraded, env, 90, rng=np.random.default_rng(1))
    result = success(replace(ungraded, labels=labels), Level(0.5, "given"), max_draws=9, rng=np.random.default_rng(0))
    assert result is not None
    assert result.by == "labels"
    assert result.draws == 90
    for row in result.per_prompt:
        mine = labels.values[labels.prompts == row.prompt]
        assert (row.draws, row.correct) == (len(mine), int(np.sum(mine >= 0.5)))
    assert "Labels have noise" in result.statements[0]
    chosen = Labels(labels.prompts, labels.rows, labels.values, random=False)
    assert success(replace(ungraded, labels=chosen), ONE, max_draws=9, rng=np.random.default_rng(0)) is None


@pytest.mark.parametrize(
    ("draws", "correct"), [([1], [0]), ([1], [1]), ([1] * 3, [1, 0, 1]), ([512] * 5, [0] * 5), ([512] * 5, [512] * 5)]
)
def test_extremes_are_plain_numbers_for_json(draws: list[int], correct: list[int]) -> None:
    result = found(draws, correct)
    assert json.loads(json.dumps(asdict(result)))["draws"] == sum(draws)
    assert result.zero.low <= result.zero.value <= result.zero.high
    assert sum(c.weight for c in result.components) == pytest.approx(1.0)
    assert result.components[0].a == 0.0


def test_the_same_seed_gives_the_same_report() -> None:
    one, two = (found([64] * 4, [0, 1, 5, 40], seed=3) for _ in range(2))
    assert one == two


@pytest.mark.parametrize(("scale", "offset"), [(1e-12, 0.0), (1e3, 0.0), (1.0, 1e5), (1.0, -3.0)])
def test_the_level_moves_with_the_reward(scale: float, offset: float) -> None:
    drawn = pool_of(random_table(seed=1002), 64, rng=np.random.default_rng(0))
    assert drawn.rewards is not None
    moved = replace(drawn, rewards=tuple(scale * r + offset for r in drawn.rewards))
    counts = []
    for one in (drawn, moved):
        result = success(one, level_of(one, 1.0), max_draws=1000, rng=np.random.default_rng(0))
        assert result is not None
        counts.append([row.correct for row in result.per_prompt])
    assert counts[0] == counts[1]
    assert 0 < sum(counts[0]) < 64 * len(drawn.prompts)


def test_no_probability_of_one_or_more() -> None:
    text = " ".join(found([100_000] * 20, [0] * 20).statements)
    assert "with probability 0.99 or more" in text
    assert "probability 1.00 or more" not in text
