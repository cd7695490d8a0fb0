"""What tilting reaches, against the exact optimum of simulated tables."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from spannerlm.environments import random_table
from spannerlm.errors import InputError
from spannerlm.foundation.bounds import ScoreLaws
from spannerlm.foundation.pool import Pool, pool_of
from spannerlm.foundation.reach import Reach, reach
from spannerlm.policy import beta_for_kl
from spannerlm.records import Draws


def told(pool: Pool, **changes: object) -> Reach:
    asked = {"kls": (0.5, 2.0), "kl": 1.0, "share": 0.9, "by": "true reward", "rng": np.random.default_rng(0)}
    return reach(pool, **{"scores": pool.rewards, **asked, **changes})  # type: ignore[arg-type]


def made(scores: list[list[float]], counts: list[list[int]]) -> Pool:
    draws = tuple(
        Draws(x, tuple(map(str, range(len(c)))), np.array(c), np.zeros((len(c), 1))) for x, c in enumerate(counts)
    )
    rewards = tuple(np.array(s) for s in scores)
    return Pool(tuple(map(str, range(len(draws)))), draws, {"a": slice(0, 1)}, rewards)


def test_bounds_cover_the_exact_optimum_at_the_same_budget() -> None:
    covered = {"value": [], "ratio": [], "draws": [], "needed": []}  # type: dict[str, list[bool]]
    for seed in range(1600, 1606):
        env = random_table(seed=seed)
        order = np.argsort(env.mean_rewards, axis=1)
        law = ScoreLaws(*(np.take_along_axis(t, order, axis=1) for t in (env.mean_rewards, env.base_probs)))
        found = told(pool_of(env, 256, rng=np.random.default_rng(seed)))
        for row in found.rows:
            inverse = 1.0 / beta_for_kl(env.base_probs, env.mean_rewards, row.kl)
            covered["value"].append(row.value.low <= law.value(inverse) + 1e-9 <= row.value.high + 2e-9)
            covered["ratio"].append(row.ratio_q99.high >= law.ratio_quantile(inverse, 0.99) - 1e-6)
            covered["draws"].append(row.draws_per_answer.high >= law.draws_per_accept(inverse, 0.01).mean() - 1e-6)
            if row.kl == 1.0:
                needed = law.needed(inverse, 0.9, 1e6)
                covered["needed"].append(found.needed.low <= needed <= found.needed.high)
    assert all(np.mean(hits) >= 0.85 for hits in covered.values()), {k: np.mean(v) for k, v in covered.items()}


def test_what_was_asked_about_has_its_row_and_json_takes_all() -> None:
    found = told(pool_of(random_table(seed=1620), 256, rng=np.random.default_rng(0)))
    assert [row.kl for row in found.rows] == [0.5, 1.0, 2.0]
    assert found.at is found.rows[1]
    assert found.at.told
    assert found.at.gain == pytest.approx(found.at.value.value - found.base.value)
    for row in found.rows:
        assert row.value.low <= row.value.value <= row.value.high
        assert 1.0 == row.draws_per_answer.low <= row.draws_per_answer.value <= row.draws_per_answer.high
    assert json.loads(json.dumps(asdict(found)))["at"]["kl"] == 1.0
    assert any("at most" in s and "95 % confidence" in s for s in found.statements)
    again = told(pool_of(random_table(seed=1620), 256, rng=np.random.default_rng(0)))
    assert again == found


def test_neither_a_shift_nor_a_scale_of_the_scores_changes_the_costs() -> None:
    pool = pool_of(random_table(seed=1621, binary=1), 128, rng=np.random.default_rng(0))
    assert pool.rewards is not None
    first, other = told(pool), told(pool, scores=tuple(3.0 * r + 7.0 for r in pool.rewards))
    for a, b in zip(first.rows, other.rows, strict=True):
        assert b.beta == pytest.approx(3.0 * a.beta, rel=1e-4)
        assert b.gain == pytest.approx(3.0 * a.gain, rel=1e-4)
        assert b.draws_per_answer.high == pytest.approx(a.draws_per_answer.high, rel=1e-3)
    assert other.needed.value == pytest.approx(first.needed.value, rel=1e-3)


def test_draws_that_hold_too_few_good_responses_cannot_tell() -> None:
    found = told(made([[0.0, 1.0]], [[7, 1]]), kls=(3.0,), kl=3.0)
    assert not found.at.told
    assert math.isinf(found.at.draws_per_answer.high)
    assert math.isinf(found.needed.high)
    assert math.isinf(found.at.value.high)
    assert any("cannot tell" in s for s in found.statements)
    assert told(made([[0.0, 1.0]], [[7, 1]]), kls=(3.0,), kl=3.0, largest=1.0).at.value.high == 1.0


@pytest.mark.parametrize(("scores", "counts"), [([[0.0, 0.0]] * 3, [[3, 2]] * 3), ([[0.5], [1.0]], [[8], [8]])])
def test_equal_scores_allow_no_tilt(scores: list[list[float]], counts: list[list[int]]) -> None:
    found = told(made(scores, counts))
    assert math.isinf(found.at.beta)
    assert found.at.gain == 0.0
    assert not found.at.told
    assert found.at.draws_per_answer.value == 1.0
    assert "changes nothing" in found.statements[0]


def test_declined_responses_and_prompts_are_left_out() -> None:
    whole = made([[0.0, 1.0], [0.0, 1.0]], [[40, 24], [50, 14]])
    holes = made([[0.0, 1.0, math.nan], [0.0, 1.0, math.nan], [math.nan] * 3], [[40, 24, 6], [50, 14, 6], [1, 2, 67]])
    assert told(holes).rows == told(whole).rows
    assert told(holes).prompts == 2
    shifted = made([[math.nan, math.nan], [0.0, 1.0]], [[40, 24], [50, 14]])
    assert told(shifted).at.worst_prompt == 1


def test_many_prompts_and_many_draws_make_no_warning() -> None:
    rng = np.random.default_rng(0)
    for prompts, n in ((1, 2), (60, 16), (2, 1500)):
        counts = [[1] * n for _ in range(prompts)]
        found = told(made(rng.normal(size=(prompts, n)).tolist(), counts), kls=(0.5, 8.0))
        assert all(row.value.low <= row.value.value for row in found.rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kls": (0.0,)}, "positive budgets"),
        ({"share": 1.0}, "share"),
        ({"largest": 0.5}, "largest"),
        ({"scores": (np.zeros(3),)}, "scores"),
        ({"scores": (np.full(2, np.nan),)}, "scores"),
        ({"scores": (np.array([0.0, np.inf]),)}, "scores"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        told(made([[0.0, 1.0]], [[3, 5]]), **changes)


def test_one_draw_of_each_prompt_bounds_nothing() -> None:
    found = told(made([[0.2], [0.7]], [[1], [1]]))
    assert (found.base.value, found.base.low, found.base.high) == (pytest.approx(0.45), -math.inf, math.inf)
    assert (found.at.value.low, found.at.value.high) == (-math.inf, math.inf)
    mixed = told(made([[0.2, np.nan], [0.7, 0.3]], [[1, 7], [4, 4]]))
    sure = told(made([[0.2, np.nan], [0.7, 0.3]], [[8, 0], [4, 4]]))
    assert mixed.base.high - mixed.base.low > sure.base.high - sure.base.low > 0.0
