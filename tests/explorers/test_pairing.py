"""The request that pair rivals fill: random rows by probability, and which pairs are worth a label."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import laws
import numpy as np
import pytest
from scipy.stats import chisquare

from spannerlm.environments import TabularEnvironment
from spannerlm.explorers import OnlineDPO
from spannerlm.explorers.learner import asked
from spannerlm.explorers.pairing import Basket, random_rows
from spannerlm.explorers.pooled import PoolState
from spannerlm.records import LabelItem

TABLE = laws.random_table(1)
ENV = replace(TABLE, features=TABLE.features.copy())
ENV.features[:, 3] = ENV.features[:, 4]


def state_of(env: TabularEnvironment, *, fresh: bool, labels: int = 12) -> PoolState:
    """A state after some labels, with room for as many again."""
    spec = laws.spec_of(env, labels=labels, fresh=fresh)
    state: PoolState = laws.drive(OnlineDPO(pool=40), laws.Bench(env, spec)).state
    return replace(state, learner=replace(state.learner, spec=replace(spec, labels=10 * labels)))


@pytest.mark.parametrize("compared", [False, True])
@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_a_pair_is_worth_a_label_if_it_is_new_and_its_features_differ(compared: bool, fresh: bool, skip: bool) -> None:
    state = state_of(laws.compared(ENV) if compared else ENV, fresh=fresh)
    basket, candidates = Basket.of(state, 6, skip), state.candidates
    told = set(state.learner.labelled)
    assert told
    seen = set()
    for i, j in product(range(len(candidates)), repeat=2):
        if candidates.owners[i] != candidates.owners[j]:
            continue
        x = int(candidates.ids[candidates.owners[i]])
        one, two = candidates.responses[i], candidates.responses[j]
        if compared:
            new = one != two and (fresh or asked(LabelItem(x, one, opponent=two)) not in told)
        else:
            new = fresh or (x, one) not in told or (x, two) not in told
        equal = np.allclose(ENV.features[x, int(one)], ENV.features[x, int(two)], rtol=0, atol=1e-9)
        expected = new and not (skip and equal)
        assert basket.worth(np.array([i]), np.array([j]))[0] == expected
        start = candidates.rows(int(candidates.owners[i])).start
        assert basket.partners(i)[j - start] == expected
        seen.add(expected)
    assert seen == {True, False} or (fresh and not skip and not compared)


@pytest.mark.parametrize("fresh", [False, True])
def test_pairs_of_rewards_stay_whole_until_the_last_label(fresh: bool) -> None:
    state = state_of(ENV, fresh=fresh, labels=2)
    first, second = state.candidates.rows(0).start, state.candidates.rows(0).start + 1
    for size, left, room, bought in ((5, 20, 5, 4), (1, 20, 2, 2), (1, 1, 1, 1)):
        spec = replace(state.learner.spec, labels=state.learner.bought + left)
        basket = Basket.of(replace(state, learner=replace(state.learner, spec=spec, labelled={})), size, skip=True)
        assert basket.room == room
        rows = [(int(s), int(s) + 1) for s in state.candidates.starts] if not fresh else [(first, second)] * 3
        for i, j in rows:
            if not basket.full:
                basket.add(i, j)
        assert len(basket.items) == bought
        assert len(set(basket.items)) == bought or fresh


def test_nothing_is_put_in_twice_where_a_label_settles() -> None:
    for env, labels in ((ENV, 2), (laws.compared(ENV), 1)):
        basket = Basket.of(replace(state_of(env, fresh=False, labels=labels)), 10, skip=False)
        rows = basket.candidates.rows(0)
        for _ in range(2):
            for i, j in product(range(rows.start, rows.stop), repeat=2):
                if not basket.full:
                    basket.add(i, j)
        found = [asked(item) for item in basket.items]
        assert len(set(found)) == len(found) > 2
        assert not set(found) & set(basket.state.learner.labelled)


def test_singles_of_prompts_whose_draws_are_all_alike_are_skipped() -> None:
    features = np.repeat(ENV.features[:, :1], ENV.features.shape[1], axis=1)
    features[2] = ENV.features[2]
    state = state_of(replace(ENV, features=features), fresh=True)
    basket = Basket.of(state, 50, skip=True, pairs=False)
    for row in range(len(state.candidates)):
        basket.add_single(row)
    assert {item.prompt for item in basket.items} == {2}


def test_random_rows_follow_the_table() -> None:
    candidates = state_of(ENV, fresh=True).candidates
    rng = np.random.default_rng(0)
    table = candidates.tilted(rng.normal(size=len(candidates)), 0.5)
    table[candidates.starts[1]] = 0.0
    owners = np.repeat([1, 0, 2], 4000)
    found = random_rows(candidates, table, owners, rng=rng)
    np.testing.assert_array_equal(candidates.owners[found], owners)
    for x in range(3):
        rows = candidates.rows(x)
        counts = np.bincount(found[owners == x] - rows.start, minlength=rows.stop - rows.start)
        chances = table[rows] / table[rows].sum()
        assert not counts[chances == 0.0].any()
        used = chances > 0.0
        assert chisquare(counts[used], 4000 * chances[used]).pvalue > 1e-3
