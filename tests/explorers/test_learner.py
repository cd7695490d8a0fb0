"""The learner: books of labels and draws, moments against naive loops, and the prior's shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spannerlm.explorers.learner import PRIOR_FLOOR, PRIOR_POWER, Learner, asked
from spannerlm.logistic import ComparisonStats, Rewards, fit_comparisons
from spannerlm.records import Drawn, DrawRequest, Draws, Label, LabelItem, Labelled, LabelRequest, Spec, StopRequest
from spannerlm.regression import LabelStats, Posterior, fit_labels

X, D = 4, 3


def started(**changes: Any) -> Learner:
    told = {"labels": 10, "draws": 100, "batch": 6, "beta": 1.0, **changes}
    return Learner.start(Spec(np.full(X, 1 / X), D, **told))


def draws(prompt: int, seed: int, n: int = 5, offset: float = 0.0) -> Draws:
    rng = np.random.default_rng(seed)
    scale = np.array([3.0, 1.0, 0.01])
    return Draws(
        prompt, tuple(f"{i}" for i in range(n)), rng.integers(1, 6, n), offset + scale * rng.normal(size=(n, D))
    )


def labelled(*labels: Label, seed: int = 0, **info: Any) -> Labelled:
    return Labelled(labels, np.random.default_rng(seed).normal(size=(len(labels), D)), info)


def naive_covariance(records: list[Draws]) -> np.ndarray:
    total, degrees = np.zeros((D, D)), 0
    for x in {r.prompt for r in records}:
        rows = np.concatenate([np.repeat(r.features, r.counts, axis=0) for r in records if r.prompt == x])
        total += (rows - rows.mean(axis=0)).T @ (rows - rows.mean(axis=0))
        degrees += len(rows) - 1
    return total / degrees


def test_moments_are_those_of_all_base_draws() -> None:
    records = [draws(0, 1), draws(2, 2, n=3), draws(0, 3)]
    learner = started().absorb(Drawn(tuple(records[:2]), 9)).absorb(Drawn((records[2],), 4))
    np.testing.assert_allclose(learner.covariance, naive_covariance(records), rtol=1e-9, atol=1e-12)
    rows = np.concatenate([np.repeat(r.features, r.counts, axis=0) for r in (records[0], records[2])])
    np.testing.assert_allclose(learner.centres[0], rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(learner.centres[1], np.zeros(D))
    assert learner.scale == pytest.approx(np.trace(naive_covariance(records)))
    assert learner.drawn == 13
    assert learner.draws_left == 87
    assert started(draws=None).draws_left == float("inf")


def test_tilted_draws_cost_and_say_nothing_of_the_base_model() -> None:
    before = started().absorb(Drawn((draws(0, 1),), 9))
    after = before.absorb(Drawn((draws(0, 2, n=1),), 30, exhausted=(False,)))
    np.testing.assert_array_equal(after.covariance, before.covariance)
    assert after.drawn == 39


def test_features_that_do_not_vary_have_no_scale() -> None:
    rows = Draws(0, ("a", "b"), np.array([3, 4]), np.full((2, D), 1e5 / 3))
    learner = started().absorb(Drawn((rows,), 7))
    np.testing.assert_array_equal(learner.covariance, np.zeros((D, D)))
    assert learner.scale == 1.0
    np.testing.assert_array_equal(learner.transform, np.eye(D))


def test_a_common_offset_changes_nothing() -> None:
    plain, far = (started().absorb(Drawn((draws(0, 1, n=9, offset=o), draws(1, 2, offset=o)), 5)) for o in (0.0, 1e3))
    np.testing.assert_allclose(far.covariance, plain.covariance, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(far.transform, plain.transform, rtol=1e-4)


def test_the_transform_is_the_stated_prior() -> None:
    """T = U diag(max(e / mean e, .01)^-.15) U', scaled so that tr(T C T) = tr C (DIRECTED.md, "Model")."""
    learner = started().absorb(Drawn((draws(0, 1, n=9), draws(1, 2, n=9)), 60))
    values, vectors = np.linalg.eigh(learner.covariance)
    assert values[0] / values.mean() < PRIOR_FLOOR < values[1] / values.mean()  # the floor is at work
    raw = [max(e / values.mean(), PRIOR_FLOOR) ** -PRIOR_POWER for e in values]
    expected = sum(r * np.outer(v, v) for r, v in zip(raw, vectors.T, strict=True))
    ratio = learner.transform / expected
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-6)
    moved = learner.transform @ learner.covariance @ learner.transform
    assert np.trace(moved) == pytest.approx(learner.scale)
    np.testing.assert_allclose(learner.transform, learner.transform.T, atol=1e-12)


@pytest.mark.parametrize("power", [0.0, 0.15, 0.5])
def test_a_prior_of_any_power_keeps_the_scale(power: float) -> None:
    """T is C^-power in shape, where nothing is floored: prior covariance T T' is C^(-2 power)."""
    rng = np.random.default_rng(3)
    features = rng.normal(size=(40, D)) * [2.0, 1.0, 0.8]
    learner = started().absorb(Drawn((Draws(1, tuple(map(str, range(40))), np.ones(40, dtype=int), features),), 40))
    turn, c = learner.prior_transform(power), learner.covariance
    values, vectors = np.linalg.eigh(c)
    shape = sum(e ** (-2.0 * power) * np.outer(v, v) for e, v in zip(values, vectors.T, strict=True))
    ratio = float(np.trace(turn @ turn) / np.trace(shape))
    np.testing.assert_allclose(turn @ turn, ratio * shape, rtol=1e-8, atol=1e-10)
    assert np.trace(turn @ c @ turn) == pytest.approx(np.trace(c))
    assert (learner.transform == learner.prior_transform(PRIOR_POWER)).all()


def test_requests_wait_until_they_are_answered() -> None:
    items = (LabelItem(0, "a"), LabelItem(1, "b"), LabelItem(0, "c"))
    learner = started().absorb(LabelRequest(items))
    assert (learner.labels_left, learner.batch()) == (7, 6)
    assert not any(learner.open(x, y) for x, y in ((0, "a"), (1, "b"), (0, "c")))
    assert learner.open(1, "a")
    learner = learner.absorb(labelled(Label(1, "b", 1.0), Label(0, "a", None, status="skip")))
    assert learner.pending == (LabelItem(0, "c"),)
    assert learner.out == {(0, "c")}
    assert (learner.bought, learner.labels_left) == (2, 7)
    assert not learner.open(0, "a"), "a skip need not be asked again"
    learner = learner.absorb(labelled(Label(0, "c", None, status="failed", charged=False)))
    assert (learner.bought, learner.labels_left, learner.batch()) == (2, 8, 6)
    assert learner.stats.labels == 1
    assert learner.absorb(DrawRequest((0,), 5)) is learner
    assert learner.absorb(Drawn((draws(0, 1),), 9)).drawn == learner.drawn + 9
    assert learner.absorb(StopRequest("done")) is learner


def test_equal_items_wait_one_by_one_where_labels_are_fresh() -> None:
    learner = started(fresh=True).absorb(LabelRequest((LabelItem(0, "a", True),) * 3))
    learner = learner.absorb(labelled(Label(0, "a", 1.0)))
    assert len(learner.pending) == 2
    assert learner.open(0, "a")
    assert learner.labelled == {(0, "a"): 1}


def test_a_reused_label_is_learned_once_and_costs_nothing() -> None:
    first = started().absorb(labelled(Label(0, "a", 1.0)))
    again = first.absorb(labelled(Label(0, "a", 1.0, charged=False)))
    assert again.stats.labels == again.bought == 1
    np.testing.assert_array_equal(again.stats.cross, first.stats.cross)


def test_the_posterior_is_the_regressions() -> None:
    event = labelled(Label(0, "a", 1.0), Label(2, "b", -0.5), Label(0, "c", None), Label(1, "d", 2.0))
    learner = started()
    assert learner.posterior is None
    np.testing.assert_array_equal(learner.theta, np.zeros(D))
    learner = learner.absorb(Drawn((draws(0, 1), draws(2, 2)), 30)).absorb(event)
    kept = [0, 1, 3]
    stats = LabelStats.empty(X, D).add(np.array([0, 2, 1]), event.features[kept], np.array([1.0, -0.5, 2.0]))
    expected = fit_labels(stats, learner.centres, learner.scale, transform=learner.transform)
    np.testing.assert_allclose(learner.theta, expected.mean, rtol=1e-12)
    assert learner.posterior is learner.posterior, "fitted once per state"


def test_folding_ten_thousand_labels_keeps_the_state_small() -> None:
    """The state holds sums and one count per labelled response, not the labels; the time is a few seconds at most."""
    learner = started(labels=20_000, fresh=True)
    rng = np.random.default_rng(0)
    for k in range(500):
        event = Labelled(tuple(Label(int(x), "a", 1.0, k) for x in rng.integers(X, size=20)), rng.normal(size=(20, D)))
        learner = learner.absorb(event)
    assert learner.stats.labels == 10_000
    assert len(learner.labelled) == X


@pytest.mark.parametrize(
    ("item", "settles"),
    [
        (LabelItem(3, "b"), (3, "b")),
        (LabelItem(3, "b", True), (3, "b")),
        (Label(3, "b", None, 2, "skip"), (3, "b")),
        (LabelItem(3, "b", opponent="a"), (3, "a", "b")),
        (Label(3, "a", 0.5, opponent="b"), (3, "a", "b")),
    ],
)
def test_what_a_label_settles(item: Label | LabelItem, settles: tuple[int | str, ...]) -> None:
    assert asked(item) == settles


# --- comparisons ----------------------------------------------------------------------------------------------------


def compared(*outcomes: float | None, start: int = 0) -> list[Label]:
    """A comparison of "0" with "1", then of "0" with "2", and so on, of prompt 0."""
    return [
        Label(0, "0", v, status="skip" if v is None else "label", opponent=f"{start + i + 1}")
        for i, v in enumerate(outcomes)
    ]


def test_comparisons_are_kept_apart_from_rewards_and_fitted_where_they_are_the_feedback() -> None:
    learner = started(feedback="comparison", scale=0.5).absorb(Drawn((draws(0, 1),), 9))
    assert learner.posterior is None
    np.testing.assert_array_equal(learner.theta, np.zeros(D))
    event = labelled(*compared(1.0, None, 0.0, 0.5), Label(1, "7", 3.0))
    learner = learner.absorb(event)
    assert learner.bought == 5
    assert (learner.comparisons.comparisons, learner.stats.labels) == (3, 1)
    np.testing.assert_array_equal(learner.comparisons.relative, event.features[[0, 2, 3]])
    slow = fit_comparisons(
        ComparisonStats().add(event.features[[0, 2, 3]], np.array([1.0, 0.0, 0.5])),
        learner.scale,
        scale=0.5,
        transform=learner.transform,
    )
    np.testing.assert_allclose(learner.theta, slow.mean, atol=1e-6)  # one reward alone says nothing of differences
    more = learner.absorb(labelled(Label(1, "3", 1.0), Label(1, "5", -2.0)))
    rewards = Rewards.of(fit_labels(more.stats, more.centres, more.scale, transform=more.transform), 0.5)
    both = fit_comparisons(more.comparisons, more.scale, scale=0.5, transform=more.transform, rewards=rewards)
    np.testing.assert_array_equal(more.theta, both.mean)
    assert np.abs(both.mean - learner.theta).max() > 1e-3
    scalar = started().absorb(Drawn((draws(0, 1),), 9)).absorb(event)
    assert isinstance(scalar.posterior, Posterior)
    assert scalar.stats.labels == 1


def test_a_pair_is_settled_whichever_way_round_and_its_responses_are_not() -> None:
    learner = started(feedback="comparison").absorb(labelled(*compared(1.0, None)))
    learner = learner.absorb(LabelRequest((LabelItem(0, "4", opponent="3"),)))
    for first, second in (("0", "1"), ("0", "2"), ("3", "4")):
        assert not learner.open(0, first, second)
        assert not learner.open(0, second, first)
        assert learner.open(1, first, second)
    assert learner.out == {(0, "3", "4")}
    assert set(learner.labelled) == {(0, "0", "1"), (0, "0", "2")}
    assert learner.open(0, "1", "2")
    assert learner.open(0, "0")
    assert learner.labels_left == 10 - 2 - 1
    turned = learner.absorb(labelled(Label(0, "3", 1.0, opponent="4")))
    assert turned.pending == ()
    again = learner.absorb(labelled(Label(0, "0", 1.0, opponent="1", charged=False)))
    assert (again.bought, again.comparisons.comparisons) == (2, 1)
    assert started(feedback="comparison", fresh=True).absorb(labelled(*compared(1.0))).open(0, "0", "1")
