"""Pools as arrays against loops over prompts and responses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spannerlm.explorers.candidates import SAME, Candidates
from spannerlm.explorers.learner import Learner
from spannerlm.explorers.pools import Pools, add
from spannerlm.policy import beta_for_kl, padded
from spannerlm.records import Drawn, Draws, Label, LabelItem, Labelled, LabelRequest, Spec

D, SIZES = 3, {1: 4, 2: 1, 4: 6, 7: 3}
RHO = np.array([0.0, 0.1, 0.2, 0.0, 0.3, 0.15, 0.0, 0.25])


def records() -> tuple[Draws, ...]:
    rng = np.random.default_rng(0)
    return tuple(
        Draws(x, tuple(f"{x}{i}" for i in range(n)), rng.integers(1, 9, n), rng.normal(size=(n, D)) + 2.0)
        for x, n in SIZES.items()
    )


def pools() -> Pools:
    return add({}, tuple(reversed(records())))


def learner(**changes: Any) -> Learner:
    told = {"labels": 50, "draws": None, "batch": 5, "beta": 0.5, **changes}
    return Learner.start(Spec(RHO, D, **told)).absorb(Drawn(records(), 99))


ALL = Candidates.of(pools())
SCORES = np.random.default_rng(1).normal(size=(5, len(ALL))) * 3.0


def blocks(values: np.ndarray) -> list[np.ndarray]:
    """[n] values prompt by prompt."""
    return np.split(values, np.cumsum(list(SIZES.values()))[:-1])


def frequencies() -> list[np.ndarray]:
    return [draws.counts / draws.counts.sum() for draws in records()]


def test_rows_are_the_distinct_draws_prompt_by_prompt() -> None:
    np.testing.assert_array_equal(ALL.ids, [1, 2, 4, 7])
    assert len(ALL) == 14
    for owner, (draws, w) in enumerate(zip(records(), frequencies(), strict=True)):
        rows = ALL.rows(owner)
        assert ALL.responses[rows] == draws.responses
        assert set(ALL.owners[rows]) == {owner}
        assert rows.start == ALL.starts[owner]
        np.testing.assert_allclose(ALL.weights[rows], w)
        mean = sum(p * phi for p, phi in zip(w, draws.features, strict=True))
        np.testing.assert_allclose(ALL.features[rows], [phi - mean for phi in draws.features], atol=1e-12)
        for i, response in enumerate(draws.responses):
            assert ALL.index[draws.prompt, response] == rows.start + i
    assert len(ALL.index) == len(ALL)


def test_prompt_weights_are_rho_among_those_that_have_a_pool() -> None:
    np.testing.assert_allclose(ALL.prompt_weights(RHO), np.array([0.1, 0.2, 0.3, 0.25]) / 0.85)


@pytest.mark.parametrize("beta", [0.01, 0.7, 50.0])
def test_tilted_partition_and_divergence_are_sums_over_responses(beta: float) -> None:
    values = SCORES - 1e3  # any level: only differences within a prompt count
    tilted, partition = ALL.tilted(values, beta), ALL.log_partition(SCORES / beta)
    spent = ALL.divergence(tilted)
    assert tilted.shape == SCORES.shape
    assert partition.shape == spent.shape == (5, 4)
    for k, scores in enumerate(SCORES):
        for x, (s, w, p) in enumerate(zip(blocks(scores), frequencies(), blocks(tilted[k]), strict=True)):
            logs = s / beta
            top = max(logs)
            mass = sum(w[i] * np.exp(logs[i] - top) for i in range(len(s)))
            slow = np.array([w[i] * np.exp(logs[i] - top) / mass for i in range(len(s))])
            np.testing.assert_allclose(p, slow, rtol=1e-8, atol=1e-15)
            assert partition[k, x] == pytest.approx(top + np.log(mass), abs=1e-9)
            kl = sum(q * np.log(q / b) for q, b in zip(slow, w, strict=True) if q > 0.0)
            assert spent[k, x] == pytest.approx(kl, abs=1e-9)
    np.testing.assert_allclose(ALL.tilted(values[0], beta), tilted[0])
    np.testing.assert_allclose(ALL.per_prompt(SCORES), [[b.sum() for b in blocks(s)] for s in SCORES])


@pytest.mark.parametrize("kl", [1e-3, 0.05, 0.3, 0.8])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_temperature_is_that_of_the_policy_within_a_hundredth(kl: float, size: float) -> None:
    for scores in SCORES * size:
        exact = beta_for_kl(padded(frequencies()), padded(blocks(scores)), kl)
        assert ALL.temperature(scores, kl) == pytest.approx(exact, rel=0.01)
    found = ALL.temperature(SCORES[0], kl)
    assert np.mean(ALL.divergence(ALL.tilted(SCORES[0], found))) == pytest.approx(kl, rel=0.05)


def test_no_tilt_has_no_temperature() -> None:
    assert ALL.temperature(SCORES[0], 0.0) == float("inf")
    assert ALL.temperature(np.full(len(ALL), 3.0), 0.5) == float("inf")


@pytest.mark.parametrize("owners", [[0, 2], [1], [2, 3], [0, 1, 2, 3]])
def test_some_prompts_are_the_candidates_of_their_pools(owners: list[int]) -> None:
    part = ALL.of_prompts(np.array(owners))
    expected = Candidates.of({x: draws for x, draws in pools().items() if x in ALL.ids[owners]})
    for name in ("ids", "starts", "owners", "features", "weights"):
        np.testing.assert_allclose(getattr(part, name), getattr(expected, name))
    assert part.responses == expected.responses
    assert part.index == expected.index


def test_first_prompts() -> None:
    np.testing.assert_array_equal(ALL.first(2).ids, [1, 2])
    assert ALL.first(4) is ALL
    assert ALL.first(9) is ALL


def told(known: Learner, *items: LabelItem, value: float | None = 1.0) -> Learner:
    labels = tuple(
        Label(i.prompt, i.response, value, status="skip" if value is None else "label", opponent=i.opponent)
        for i in items
    )
    return known.absorb(Labelled(labels, np.ones((len(items), D))))


def test_open_rows_have_no_label_and_wait_for_none() -> None:
    known = told(learner(), LabelItem(1, "10"), LabelItem(5, "x"))
    known = told(known, LabelItem(7, "71"), value=None)
    known = known.absorb(LabelRequest((LabelItem(4, "45"),)))
    known = told(known, LabelItem(4, "41", opponent="42"))  # settles a pair, no response
    closed = {(1, "10"), (7, "71"), (4, "45")}
    np.testing.assert_array_equal(ALL.open(known), [key not in closed for key in ALL.index])
    assert ALL.open(told(learner(fresh=True), LabelItem(1, "10"))).all()
    item = ALL.item(known, ALL.index[4, "43"])
    assert item == LabelItem(4, "43", False)
    assert ALL.item(learner(fresh=True), 0) == LabelItem(1, "10", True)


def test_a_pair_of_rewards_costs_what_is_not_known_or_taken() -> None:
    a, b, c = (ALL.index[4, y] for y in ("41", "42", "43"))
    first, second, third = (LabelItem(4, y) for y in ("41", "42", "43"))
    new = learner()
    assert ALL.pair(new, a, b) == (first, second)
    assert ALL.pair(new, b, b) == (second,)
    assert ALL.pair(new, a, c, [first]) == (third,)
    assert ALL.pair(told(new, first), a, b) == (second,)
    assert ALL.pair(told(new, first), a, b, [second]) == ()
    assert ALL.pair(new.absorb(LabelRequest((second,))), a, b) == (first,)
    fresh = told(learner(fresh=True), LabelItem(4, "41"))
    both = (LabelItem(4, "41", True), LabelItem(4, "42", True))
    assert ALL.pair(fresh, a, b, both) == both


def test_a_pair_is_one_comparison_unless_it_was_made_either_way_round() -> None:
    a, b = ALL.index[4, "41"], ALL.index[4, "42"]
    there, back = LabelItem(4, "41", opponent="42"), LabelItem(4, "42", opponent="41")
    new = learner(feedback="comparison")
    assert ALL.pair(new, a, b) == (there,)
    assert ALL.pair(new, b, a) == (back,)
    for item in (there, back):
        assert ALL.pair(told(new, item), a, b) == ()
        assert ALL.pair(new.absorb(LabelRequest((item,))), a, b) == ()
        assert ALL.pair(new, a, b, [item]) == ()
    fresh = LabelItem(4, "41", True, "42")
    assert ALL.pair(told(learner(feedback="comparison", fresh=True), there), a, b, [fresh]) == (fresh,)


def test_features_that_differ_by_rounding_are_the_same() -> None:
    known = learner()
    base, far = np.zeros(D), np.array([np.sqrt(4.0 * SAME * known.scale), 0.0, 0.0])
    draws = Draws(1, ("a", "b", "c"), np.ones(3, dtype=np.int64), np.array([base, 0.25 * far, far]))
    c = Candidates.of({1: draws})
    assert c.same(known, 0, 1)
    assert not c.same(known, 0, 2)
