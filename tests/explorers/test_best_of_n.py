"""best-of-n: the winner by the estimate, a base draw beside it, and pairs that stay together."""

from __future__ import annotations

from dataclasses import replace

import laws
import numpy as np
import pytest

from spannerlm.environments import TabularEnvironment, tie
from spannerlm.explorers.best_of_n import BestOfN, bought
from spannerlm.explorers.pooled import PoolState
from spannerlm.records import LabelRequest

ENV = tie(prompts=4, responses=9, dim=3, seed=3)


def trained(explorer: BestOfN, env: TabularEnvironment = ENV, **changes: object) -> PoolState:
    """A state with 24 labels behind it and a budget ahead."""
    spec = laws.spec_of(env, labels=24, **changes)
    state = laws.drive(explorer, laws.Bench(env, spec)).state
    assert isinstance(state, PoolState)
    return replace(state, learner=replace(state.learner, spec=replace(spec, labels=400)))


def test_the_winner_is_the_best_of_n_draws_and_its_rival_a_base_draw() -> None:
    """Over many pairs of one prompt: P(winner = y) = P(all n draws are y or worse) - P(all are worse)."""
    explorer = BestOfN(pool=40, n=5, skip=False)
    state = trained(explorer)
    pairs = np.array(list(explorer._pairs(state, 20_000, rng=np.random.default_rng(0))))
    found = state.candidates
    for owner in range(len(found.ids)):
        inside = found.rows(owner)
        weights = found.weights[inside]
        scores = np.array([float(state.learner.theta @ f) for f in found.features[inside]])
        mine = pairs[found.owners[pairs[:, 0]] == owner] - inside.start
        wins = np.array([(weights[scores <= s].sum()) ** 5 - (weights[scores < s].sum()) ** 5 for s in scores])
        for column, law in ((0, wins), (1, weights)):
            seen = np.bincount(mine[:, column], minlength=len(law)) / len(mine)
            np.testing.assert_allclose(seen, law, rtol=0, atol=5.0 / np.sqrt(4 * len(mine)))


def test_before_the_first_label_the_winner_is_any_of_the_draws() -> None:
    explorer = BestOfN(pool=40, skip=False)
    state = trained(explorer)
    start = replace(state, learner=replace(state.learner, stats=type(state.learner.stats).empty(4, 3)))
    pairs = np.array(list(explorer._pairs(start, 20_000, rng=np.random.default_rng(0))))
    law = start.candidates.weights / len(start.candidates.ids)
    seen = np.bincount(pairs[:, 0], minlength=len(law)) / len(pairs)
    np.testing.assert_allclose(seen, law, rtol=0, atol=5.0 / np.sqrt(4 * len(pairs)))


def test_pairs_stay_together_until_the_last_label() -> None:
    bench = laws.Bench(ENV, laws.spec_of(ENV, labels=23, batch=5))
    requests = [r for r in laws.drive(BestOfN(pool=16), bench).requests if isinstance(r, LabelRequest)]
    assert [len(r.items) for r in requests] == [4, 4, 4, 4, 4, 2, 1]
    for request in requests[:-1]:
        prompts = [item.prompt for item in request.items]
        assert prompts[::2] == prompts[1::2]


def test_a_settled_response_does_not_win_again() -> None:
    explorer = BestOfN(pool=16)
    state = trained(explorer, fresh=False)
    known = ~state.candidates.open(state.learner)
    assert known.any()
    firsts = [first for first, _ in explorer._pairs(state, 500, rng=np.random.default_rng(0))]
    assert firsts
    assert not known[firsts].any()


@pytest.mark.parametrize("feedback", ["scalar", "comparison"])
def test_equal_features_are_skipped_and_without_the_skip_bought(feedback: str) -> None:
    env = replace(ENV, features=np.repeat(ENV.features[:, :1], 9, axis=1))
    env = laws.compared(env) if feedback == "comparison" else env
    for skip, labels in ((True, 0), (False, 13)):
        bench = laws.Bench(env, laws.spec_of(env, labels=13, draws=4000))
        laws.drive(BestOfN(pool=16, skip=skip), bench)
        assert bench.bought == labels


def test_what_is_bought_of_pairs() -> None:
    state = trained(BestOfN(pool=16))
    pairs = [(0, 1), (2, 3), (1, 0)]
    for size, rows in ((1, [0, 1]), (2, [0, 1]), (3, [0, 1]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3, 1, 0])):
        items = bought(state.candidates, state.learner, size, pairs)
        assert [state.candidates.index[item.prompt, item.response] for item in items] == rows
    last = replace(state.learner, spec=replace(state.learner.spec, labels=state.learner.bought + 1))
    assert len(bought(state.candidates, last, 1, pairs)) == 1
