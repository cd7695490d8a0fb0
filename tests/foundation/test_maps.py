"""Features under test: against scikit-learn on explicit folds, on known laws, and where nothing is defined."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from spannerlm.environments import random_table
from spannerlm.errors import InputError
from spannerlm.foundation import maps as module
from spannerlm.foundation.maps import Maps, maps
from spannerlm.foundation.pool import Labels, Pool, pool_of, random_labels
from spannerlm.policy import beta_for_kl, tilt
from spannerlm.records import Draws, FloatArray

KL = 1.0


def made(
    prompts: int = 12, distinct: int = 20, *, noise: float = 0.0, seed: int = 0, parts: bool = False
) -> tuple[Pool, FloatArray]:
    """A pool whose reward is linear in the first three of eight columns, and the coefficients."""
    rng = np.random.default_rng(seed)
    theta = np.array([1.0, -0.5, 0.25])
    draws, rewards, first, still = [], [], [], []
    for x in range(prompts):
        phi = rng.standard_normal((distinct, 8))
        counts = rng.multinomial(4 * distinct, rng.dirichlet(np.ones(distinct)))
        draws.append(Draws(x, tuple(f"{x} {i}" for i in range(distinct)), counts, phi))
        value = phi[:, :3] @ theta + 10.0 * rng.standard_normal() + noise * rng.standard_normal(distinct)
        rewards.append(value)
        first.append(phi[:, 0])
        still.append(np.full(distinct, 0.3 * x))
    named = {"first": tuple(first), "still": tuple(still)} if parts else {}
    slices = {"truth": slice(0, 3), "noise": slice(3, 8), "all": slice(0, 8)}
    return Pool(tuple(map(str, range(prompts))), tuple(draws), slices, tuple(rewards), 0.1, named), theta


def run(pool: Pool, seed: int = 0) -> Maps:
    found = maps(pool, kl=KL, rng=np.random.default_rng(seed))
    assert found is not None
    return found


def labelled(pool: Pool, k: int, noise: float, seed: int = 0, *, random: bool = True) -> Pool:
    rng = np.random.default_rng(seed)
    assert pool.rewards is not None
    prompts = np.sort(np.resize(rng.permutation(len(pool.prompts)), k))
    rows = np.array([rng.choice(len(d.counts), p=d.counts / d.counts.sum()) for d in (pool.draws[x] for x in prompts)])
    means = np.array([pool.rewards[x][i] for x, i in zip(prompts, rows, strict=True)])
    return dataclasses.replace(
        pool, rewards=None, parts={}, labels=Labels(prompts, rows, means + rng.normal(0.0, noise, k), random)
    )


def slow(pool: Pool, name: str, groups: Sequence[module._Group]) -> tuple[float, float]:
    """(R2, share) of one split into folds, with scikit-learn: nested cross-validation written out."""
    assert pool.rewards is not None
    part = pool.maps[name]
    phi, value, count, fold = [], [], [], []
    for g in groups:
        c = pool.draws[g.prompt].counts.astype(float)
        f, r = pool.draws[g.prompt].features[:, part], pool.rewards[g.prompt]
        phi.append(f - np.average(f, axis=0, weights=c))
        value.append(r - np.average(r, weights=c))
        count.append(c)
        fold.append(np.full(len(c), g.fold))
    z, y, w, k = (np.concatenate(rows) for rows in (phi, value, count, fold))
    trace = float(np.sum(w[:, None] * z**2))
    predicted = np.zeros(len(y))
    for left in np.unique(k):
        losses = np.zeros(len(module.PENALTIES))
        for i, penalty in enumerate(module.PENALTIES):
            for inner in np.unique(k[k != left]):
                fit = (k != left) & (k != inner)
                ridge = Ridge(alpha=penalty * trace, fit_intercept=False).fit(z[fit], y[fit], sample_weight=w[fit])
                losses[i] += np.sum(w[k == inner] * (y[k == inner] - ridge.predict(z[k == inner])) ** 2)
        best = module.PENALTIES[int(np.argmin(losses))] * trace
        ridge = Ridge(alpha=best, fit_intercept=False).fit(z[k != left], y[k != left], sample_weight=w[k != left])
        predicted[k == left] = ridge.predict(z[k == left])
    r2 = 1.0 - float(np.sum(w * (y - predicted) ** 2) / np.sum(w * y**2))
    base = np.stack(count) / np.stack(count).sum(axis=1, keepdims=True)
    gains = []
    for scores in (predicted, y):
        table = scores.reshape(len(groups), -1)
        gains.append(float(np.sum(tilt(base, table, beta_for_kl(base, table, KL)) * y.reshape(table.shape))))
    return r2, gains[0] / gains[1]


def test_figures_are_those_of_scikit_learn_on_the_same_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPLITS", 2)
    monkeypatch.setattr(module, "PENALTIES", (1e-6, 1e-2, 0.1, 1.0))
    pool, _ = made(noise=1.0)
    rng = np.random.default_rng(3)
    pool = dataclasses.replace(
        pool,
        draws=tuple(  # every response drawn, so that the slow tables are rectangular
            dataclasses.replace(d, counts=np.concatenate([[41], np.ones(19, dtype=np.int64)])[rng.permutation(20)])
            for d in pool.draws
        ),
    )
    found = run(pool, 3)
    again = np.random.default_rng(3)
    told: dict[str, list[tuple[float, float]]] = {name: [] for name in pool.maps}
    for _ in range(module.SPLITS):
        groups = module._groups(pool, again)
        for name in pool.maps:
            told[name].append(slow(pool, name, groups))
        again.multinomial(12, np.full(12, 1 / 12), size=module.RESAMPLES // module.SPLITS)
    for row in found.rows:
        r2, share = np.mean(told[row.map], axis=0)
        assert row.r2.value == pytest.approx(r2, abs=1e-8)
        assert row.share.value == pytest.approx(share, abs=1e-4)  # beta is found to 1e-6 in its logarithm


def test_a_map_that_holds_the_truth_keeps_all_and_noise_nothing() -> None:
    pool, _ = made(24, 40)
    found = run(pool)
    truth, noise, both = found.rows
    assert found.by == "true reward"
    assert found.labels == 0
    assert found.folds == "prompts"
    assert truth.r2.value == pytest.approx(1.0, abs=1e-6)
    assert truth.share.value == pytest.approx(1.0, abs=1e-3)
    assert abs(noise.r2.value) < 0.05
    assert abs(noise.share.value) < 0.2
    assert both.r2.value == pytest.approx(1.0, abs=1e-6)
    assert found.best == "truth"  # as good as all eight columns, with fewer
    assert "truth (3 dimensions) keeps 100 %" in found.reason
    for row in found.rows:
        assert row.r2.low <= row.r2.value <= row.r2.high <= 1.0
        assert row.share.low <= row.share.value <= row.share.high <= 1.0
    json.dumps(dataclasses.asdict(found))


def test_only_differences_within_a_prompt_matter() -> None:
    pool, _ = made(noise=0.5)
    assert pool.rewards is not None
    moved = dataclasses.replace(
        pool,
        rewards=tuple(r + 5.0 * x for x, r in enumerate(pool.rewards)),
        draws=tuple(dataclasses.replace(d, features=d.features + 3.0 * d.prompt) for d in pool.draws),
    )
    for before, after in zip(run(pool).rows, run(moved).rows, strict=True):
        assert after.r2.value == pytest.approx(before.r2.value, abs=1e-8)
        assert after.share.value == pytest.approx(before.share.value, abs=1e-4)


def test_r2_tells_the_share_that_is_not_noise() -> None:
    pool, theta = made(60, 60, noise=1.0)
    truth = run(pool).rows[0]
    expected = theta @ theta / (theta @ theta + 1.0)
    assert truth.r2.low < expected < truth.r2.high
    assert truth.r2.value == pytest.approx(expected, abs=0.05)
    assert truth.r2.value < truth.share.value < 1.0


def test_features_that_miss_the_reward_are_the_bottleneck() -> None:
    pool, _ = made(24, 40)
    found = run(dataclasses.replace(pool, maps={"noise": slice(3, 8), "less": slice(3, 5)}))
    assert "the features are the bottleneck" in found.reason
    assert found.best == "less"  # neither is better, and it is smaller


def test_parts_have_a_share_and_a_fit_of_their_own() -> None:
    pool, theta = made(24, 40, parts=True)
    found = run(pool)
    first, still = found.rows[0].parts
    assert first.part == "first"
    assert first.r2.value == pytest.approx(1.0, abs=1e-6)
    assert first.variance == pytest.approx(1.0 / (theta @ theta), rel=0.1)
    assert abs(found.rows[1].parts[0].r2.value) < 0.05
    assert still.variance == 0.0
    assert math.isnan(still.r2.value)
    assert any("Never varies" in s and "still" in s for s in found.statements)


def test_a_rare_part_may_be_little_variance_and_most_of_the_gain() -> None:
    rng = np.random.default_rng(1)
    draws, rewards = [], []
    for x in range(20):
        style, rare = rng.standard_normal(1000), (np.arange(1000) < 5).astype(float)
        phi = np.stack([style, rare], axis=1)
        draws.append(Draws(x, tuple(map(str, range(1000))), np.ones(1000, dtype=np.int64), phi))
        rewards.append(0.2 * style + 1.5 * rare)
    slices = {"style": slice(0, 1), "rare": slice(1, 2)}
    found = maps(
        Pool(tuple(map(str, range(20))), tuple(draws), slices, tuple(rewards)), kl=2.0, rng=np.random.default_rng(0)
    )
    assert found is not None
    style_row, rare_row = found.rows
    assert rare_row.r2.value < style_row.r2.value
    assert rare_row.share.value > style_row.share.value
    assert found.best == "rare"


def test_labels_tell_which_map_explains_them() -> None:
    pool, theta = made(16, 40)
    found = run(labelled(pool, 240, 0.3))
    assert found.by == "labels"
    assert found.labels == 240
    assert found.best == "truth"
    truth, noise, _ = found.rows
    expected = 1.0 - 0.09 / (theta @ theta + 0.09)
    assert truth.r2.low < expected < truth.r2.high
    assert noise.r2.value < 0.1
    assert all(math.isnan(row.share.value) for row in found.rows)
    assert any("noise included" in s for s in found.statements)


@pytest.mark.parametrize(("prompts", "k"), [(1, 30), (3, 40), (40, 40), (8, 5), (2, 2), (1, 1)])
def test_labels_of_any_number_are_judged_without_a_warning(prompts: int, k: int) -> None:
    pool, _ = made(prompts, 12)
    found = run(labelled(pool, k, 0.1, random=False))
    assert len(found.rows) == 3
    assert found.best in pool.maps
    assert any("no random draws" in s for s in found.statements) or math.isnan(found.rows[0].r2.value)
    assert any("one label" in s for s in found.statements) == (prompts == 40 or k in (2, 5))
    assert found.folds == ("prompts" if min(prompts, k) >= 5 else "draws")


def test_labels_all_equal_tell_nothing() -> None:
    pool = labelled(made()[0], 30, 0.1)
    assert pool.labels is not None
    labels = dataclasses.replace(pool.labels, values=np.full(30, 0.7))
    found = run(dataclasses.replace(pool, labels=labels))
    assert all(math.isnan(row.r2.value) for row in found.rows)
    assert found.best == "truth"
    assert "do not vary" in found.reason


@pytest.mark.parametrize("prompts", [1, 3])
def test_few_prompts_are_judged_on_draws_left_out(prompts: int) -> None:
    found = run(made(prompts, 60)[0])
    assert found.folds == "draws"
    assert "Fewer than five prompts" in found.statements[0]
    assert found.rows[0].r2.value == pytest.approx(1.0, abs=1e-4)
    assert found.rows[0].share.value > 0.99
    assert found.rows[1].r2.value < 0.2


def test_rewards_all_equal_are_undefined_and_said_so() -> None:
    pool, _ = made(parts=True)
    assert pool.rewards is not None
    found = run(dataclasses.replace(pool, rewards=tuple(np.full(len(r), 0.1 * x) for x, r in enumerate(pool.rewards))))
    assert all(math.isnan(row.r2.value) and math.isnan(row.share.value) for row in found.rows)
    assert found.best == "truth"
    assert "same for all draws" in found.reason


def test_one_prompt_that_carries_everything_gives_no_bound() -> None:
    pool, _ = made()
    assert pool.rewards is not None
    rewards = tuple(r if x == 0 else np.zeros(len(r)) for x, r in enumerate(pool.rewards))
    row = run(dataclasses.replace(pool, rewards=rewards)).rows[0]
    assert row.r2.low <= 0.0
    assert row.r2.high == 1.0
    assert row.share.high == 1.0


def test_still_features_declined_rewards_and_wide_maps() -> None:
    pool, _ = made()
    assert pool.rewards is not None
    rng = np.random.default_rng(5)
    wide = rng.standard_normal((20, 300))
    draws = tuple(
        dataclasses.replace(d, features=np.concatenate([d.features, np.full((20, 1), 0.1), wide], axis=1))
        for d in pool.draws
    )
    rewards = tuple(np.where(np.arange(20) < x, np.nan, r) for x, r in enumerate(pool.rewards[:-1]))
    slices = {"still": slice(8, 9), "wide": slice(0, 309)}
    changed = dataclasses.replace(pool, draws=draws, maps=slices, rewards=(*rewards, np.full(20, np.nan)))
    still, _ = run(changed).rows
    assert still.r2.value == 0.0
    assert still.share.value == 0.0
    assert len(run(labelled(dataclasses.replace(pool, draws=draws, maps=slices), 30, 0.1)).rows) == 2
    assert maps(dataclasses.replace(changed, rewards=(np.full(20, np.nan),) * 12), kl=KL, rng=rng) is None


def test_without_rewards_and_labels_there_is_nothing_to_test() -> None:
    pool, _ = made()
    rng = np.random.default_rng(0)
    assert maps(dataclasses.replace(pool, rewards=None), kl=KL, rng=rng) is None
    with pytest.raises(InputError, match="maps: expected a KL"):
        maps(pool, kl=0.0, rng=rng)
    with pytest.raises(InputError, match="at least one map"):
        maps(dataclasses.replace(pool, maps={}), kl=KL, rng=rng)


def test_a_realizable_table_is_explained_by_its_features() -> None:
    env = random_table(prompts=20, binary=0, seed=1001)
    pool = pool_of(env, 512, rng=np.random.default_rng(0))
    found = run(pool)
    assert found.rows[0].share.value > 0.9
    bought = dataclasses.replace(pool, rewards=None, labels=random_labels(pool, env, 200, rng=np.random.default_rng(1)))
    assert run(bought).rows[0].r2.value < 1.0
