"""active-preference: the pair of largest posterior variance, for rewards and for comparisons."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import laws
import numpy as np
import pytest
from scipy.special import expit

from spannerlm.explorers.active_preference import ActivePreference, outcome_variance, precision
from spannerlm.explorers.pooled import PoolState
from spannerlm.records import FloatArray, LabelItem

ENV = laws.random_table(4, prompts=5, responses=12, dim=4)


def trained(feedback: str, labels: int = 24, **changes: object) -> PoolState:
    """A state with labels behind it and a budget ahead."""
    env = laws.compared(ENV) if feedback == "comparison" else ENV
    spec = laws.spec_of(env, labels=labels, **changes)
    state = laws.drive(ActivePreference(pool=30), laws.Bench(env, spec)).state
    assert isinstance(state, PoolState)
    return replace(state, learner=replace(state.learner, spec=replace(spec, labels=400)))


def slow_pairs(state: PoolState, pairs: int, asked: set[frozenset[int]], settled: set[int]) -> list[set[int]]:
    """The best pairs of rows, one by one, from all of them; without those ``asked`` or with both rows ``settled``."""
    found, comparing = state.candidates, state.learner.spec.feedback == "comparison"
    sigma, chosen = precision(state.learner), list[set[int]]()
    for _ in range(pairs):
        best: tuple[float, set[int], FloatArray] = (-1.0, set(), sigma)
        for i, j in combinations(range(len(found)), 2):
            if found.owners[i] != found.owners[j] or frozenset((i, j)) in asked or {i, j} <= settled:
                continue
            phi = found.features[i] - found.features[j]
            value, weight = float(phi @ np.linalg.solve(sigma, phi)), 0.5
            if comparing:
                logit = float(phi @ state.learner.theta)
                value *= float(outcome_variance(np.array([logit]), np.array([value]))[0])
                weight = float(expit(logit) * expit(-logit))
            if value > best[0] + 1e-12:
                best = value, {i, j}, weight * np.outer(phi, phi)
        sigma = sigma + best[2]
        chosen.append(best[1])
        asked = asked | {frozenset(best[1])} if not state.learner.spec.fresh else asked
        settled = settled | best[1] if not comparing and not state.learner.spec.fresh else settled
    return chosen


def rows_of(state: PoolState, items: tuple[LabelItem, ...]) -> list[int]:
    """Rows of all responses that these labels are about, in order."""
    names = [(item.prompt, name) for item in items for name in (item.response, item.opponent) if name is not None]
    return [state.candidates.index[name] for name in names]


@pytest.mark.parametrize("labels", [0, 24])
@pytest.mark.parametrize("feedback", ["scalar", "comparison"])
def test_the_choice_is_the_slow_one(feedback: str, labels: int) -> None:
    state = trained(feedback, max(labels, 1))
    if labels == 0:
        empty = type(state.learner).start(state.learner.spec)
        state = replace(state, learner=replace(empty, moments=state.learner.moments))
    found = state.candidates
    explorer = ActivePreference(pool=30, top=len(found))
    items = explorer.choose(state, 6, rng=np.random.default_rng(0))
    rows = rows_of(state, items)
    pairs = [set(rows[i : i + 2]) for i in range(0, len(rows), 2)]
    assert len(items) == 6
    assert pairs == slow_pairs(state, len(pairs), set(), set())


def test_the_comparison_choice_without_fresh_labels_asks_each_pair_once() -> None:
    state = trained("comparison", fresh=False)
    found = state.candidates
    asked = {frozenset(found.index[x, name] for name in pair) for x, *pair in state.learner.labelled}
    items = ActivePreference(pool=30, top=len(found)).choose(state, 6, rng=np.random.default_rng(0))
    rows = rows_of(state, items)
    assert [set(rows[i : i + 2]) for i in range(0, 12, 2)] == slow_pairs(state, 6, asked, set())


def test_a_known_reward_is_not_bought_again_with_its_pair() -> None:
    state = trained("scalar", fresh=False)
    found = state.candidates
    settled = set(np.flatnonzero(~found.open(state.learner)).tolist())
    items = ActivePreference(pool=30, top=len(found)).choose(state, 2, rng=np.random.default_rng(0))
    best = slow_pairs(state, 1, set(), settled)[0]
    assert set(rows_of(state, items)[: len(best - settled)]) == best - settled
    assert not set(rows_of(state, items)) & settled


def test_the_expected_information_of_an_outcome() -> None:
    """E p (1 - p) by quadrature, within 6 % up to a spread of 3 logits; exact where the logit is known."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    for mean in (0.0, 0.7, 2.0):
        for std in (0.1, 1.0, 3.0):
            p = expit(mean + std * nodes)
            got = outcome_variance(np.array([mean]), np.array([std**2]))[0]
            np.testing.assert_allclose(got, weights @ (p * (1 - p)), rtol=0.06)
    np.testing.assert_allclose(outcome_variance(np.array([1.0]), np.zeros(1)), expit(1.0) * expit(-1.0))


@pytest.mark.parametrize("feedback", ["scalar", "comparison"])
def test_pairs_that_are_out_count(feedback: str) -> None:
    state = trained(feedback)
    explorer, rng = ActivePreference(pool=30), np.random.default_rng(0)
    (first,) = [explorer.choose(state, 1 if feedback == "comparison" else 2, rng=rng)]
    out = replace(state, learner=replace(state.learner, pending=first))
    assert set(explorer.choose(out, 1, rng=rng)) != set(first)


@pytest.mark.parametrize("feedback", ["scalar", "comparison"])
def test_equal_features_are_skipped_and_without_the_skip_bought(feedback: str) -> None:
    env = replace(ENV, features=np.repeat(ENV.features[:, :1], 12, axis=1))
    env = laws.compared(env) if feedback == "comparison" else env
    for skip, labels in ((True, 0), (False, 13)):
        bench = laws.Bench(env, laws.spec_of(env, labels=13, draws=4000))
        laws.drive(ActivePreference(pool=16, skip=skip), bench)
        assert bench.bought == labels
