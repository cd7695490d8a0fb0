"""`thompson`: a random member's favourite, against what the members disagree on most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import laws
import numpy as np
import pytest
from scipy.stats import chisquare

from spannerlm.environments import TabularEnvironment, rare_skill
from spannerlm.errors import InputError
from spannerlm.explorers import Thompson
from spannerlm.explorers.learner import asked
from spannerlm.explorers.pairing import Basket
from spannerlm.explorers.pooled import PoolState
from spannerlm.explorers.thompson import disputed, favourite
from spannerlm.policy import tilt
from spannerlm.records import LabelItem, LabelRequest

ENV = laws.random_table(1)


def state_after(env: TabularEnvironment = ENV, labels: int = 12, *, fresh: bool = True) -> PoolState:
    """The state after some labels, with the budget raised."""
    spec = laws.spec_of(env, labels=labels, fresh=fresh)
    state: PoolState = laws.drive(Thompson(pool=30), laws.Bench(env, spec)).state
    return replace(state, learner=replace(state.learner, spec=replace(spec, labels=10_000)))


def slow_pair(state: PoolState, x: int, thetas: np.ndarray, member: int) -> tuple[str, str]:
    """SEA's rule, response by response; pairs that were labelled already, or of one response, are left out.

    Where no pair is left, the favourite twice.
    """
    spec, told, draws = state.learner.spec, state.learner.labelled, state.pools[x]
    phi = dict(zip(draws.responses, draws.features, strict=True))
    first = max(phi, key=lambda y: float(phi[y] @ thetas[member]))
    best, largest = first, -1.0
    for y in phi:
        if spec.feedback == "comparison":
            new = spec.fresh or asked(LabelItem(x, first, opponent=y)) not in told
        else:
            new = spec.fresh or (x, first) not in told or (x, y) not in told
        spread = float(np.var([(phi[y] - phi[first]) @ theta for theta in thetas]))
        if y != first and new and spread > largest:
            best, largest = y, spread
    return first, best


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("compared", [True, False])
def test_every_pair_is_the_favourite_and_the_most_disputed(fresh: bool, compared: bool) -> None:
    state = state_after(laws.compared(ENV) if compared else ENV, 8, fresh=fresh)
    thetas = Thompson().thetas(state, rng=np.random.default_rng(5))
    assert thetas.shape == (20, 3)
    scores = state.candidates.features @ thetas.T
    found = set()
    for owner, x in enumerate(state.candidates.ids):
        for member in range(20):
            basket = Basket.of(state, 6, skip=True)
            row = favourite(basket, owner, scores[:, member], new=False)
            other = disputed(basket, row, scores)
            names = state.candidates.responses[row], state.candidates.responses[other]
            assert names == slow_pair(state, int(x), thetas, member)
            found.add(names)
    assert len(found) > 4


@pytest.mark.parametrize("compared", [True, False])
def test_a_request_holds_pairs_of_its_own_members(compared: bool) -> None:
    state = state_after(laws.compared(ENV) if compared else ENV)
    items = Thompson(singles=False).choose(state, 8, rng=np.random.default_rng(9))
    thetas = Thompson().thetas(state, rng=np.random.default_rng(9))
    possible = {(x, *slow_pair(state, x, thetas, member)) for x in state.pools for member in range(20)}
    if compared:
        pairs = [(item.prompt, item.response, str(item.opponent)) for item in items]
    else:
        pairs = [(a.prompt, a.response, b.response) for a, b in zip(items[::2], items[1::2], strict=True)]
    assert len(pairs) == (8 if compared else 4)
    assert set(pairs) <= possible


def test_members_are_independent_draws_of_the_posterior() -> None:
    state = state_after(labels=40)
    rng = np.random.default_rng(2)
    draws = np.concatenate([Thompson().thetas(state, rng=rng) for _ in range(200)])
    others = state.learner.posterior.sample(4000, rng=rng)
    error = np.sqrt(2 * others.var(axis=0) / 4000)
    assert np.all(np.abs(draws.mean(axis=0) - others.mean(axis=0)) < 4 * error)
    np.testing.assert_allclose(np.cov(draws.T), np.cov(others.T), rtol=0, atol=0.15 * others.var(axis=0).max())
    assert np.abs(Thompson().thetas(replace(state, box=0.1), rng=rng)).max() <= 0.1


def test_members_come_from_the_prior_before_the_first_label() -> None:
    state = state_after(labels=0)
    thetas = np.concatenate([Thompson().thetas(state, rng=np.random.default_rng(k)) for k in range(200)])
    transform = state.learner.transform
    np.testing.assert_allclose(
        np.cov(thetas.T), transform @ transform, rtol=0, atol=0.15 * np.abs(transform).max() ** 2
    )
    assert not Thompson(proper=True).thetas(state, rng=np.random.default_rng(0)).any()


def test_singles_label_new_favourites_only() -> None:
    state = state_after(fresh=False)
    explorer = Thompson()
    items = explorer.choose(state, 5, rng=np.random.default_rng(3))
    thetas = explorer.thetas(state, rng=np.random.default_rng(3))
    assert 0 < len(items) <= 5
    assert len(set(items)) == len(items)
    for item in items:
        draws, told = state.pools[item.prompt], [*state.learner.labelled, *((i.prompt, i.response) for i in items)]
        told.remove((item.prompt, item.response))
        left = [k for k, y in enumerate(draws.responses) if (item.prompt, y) not in state.learner.labelled]
        ranks = [sorted(left, key=lambda k: -float(draws.features[k] @ theta)) for theta in thetas]
        assert any(
            draws.responses[rank[i]] == item.response for rank in ranks for i in range(min(len(items), len(rank)))
        )
    trace = laws.drive(explorer, laws.Bench(ENV, laws.spec_of(ENV, labels=11, batch=5)))
    assert [len(r.items) for r in trace.requests if isinstance(r, LabelRequest)] == [5, 5, 1]


def test_comparisons_are_of_pairs_even_with_singles() -> None:
    state = state_after(laws.compared(ENV))
    rng = np.random.default_rng
    pairs = Thompson(singles=False).choose(state, 4, rng=rng(0))
    assert pairs == Thompson(singles=True).choose(state, 4, rng=rng(0))
    assert all(item.opponent is not None for item in pairs)


def test_proper_responses_are_drawn_from_members_policies() -> None:
    state = state_after(labels=40)
    x, counts, chances = 0, Counter[str](), np.zeros(len(state.pools[0].responses))
    explorer, draws = Thompson(proper=True, singles=True, skip=False), state.pools[0]
    base = draws.counts / draws.counts.sum()
    for seed in range(600):
        items = explorer.choose(state, 8, rng=np.random.default_rng(seed))
        thetas = explorer.thetas(state, rng=np.random.default_rng(seed))
        mine = [item.response for item in items if item.prompt == x][:1]
        counts.update(mine)
        if mine:
            chances += np.mean([tilt(base, draws.features @ theta, ENV.beta) for theta in thetas], axis=0)
    found = np.array([counts[y] for y in draws.responses])
    used = chances > 5
    lump = found[~used].sum(), chances[~used].sum() + 1e-9
    assert chisquare([*found[used], lump[0]], [*chances[used], lump[1]]).pvalue > 1e-3


@pytest.mark.parametrize("singles", [True, False])
def test_a_rare_value_is_found_that_the_base_model_seldom_shows(singles: bool) -> None:
    env, explorer = rare_skill(0.01, prompts=8, seed=1), Thompson(singles=singles)
    trace = laws.drive(explorer, laws.Bench(env, laws.spec_of(env, labels=240, batch=20)))
    assert env.regret(explorer.policy(trace.state).table(env)) < 0.1 * env.regret(env.base_probs)


@pytest.mark.parametrize("law", [laws.budgets_hold, laws.every_label_is_spent, laws.nothing_is_asked_twice])
def test_pairs_obey_the_laws_of_labels_too(law: Callable[..., None]) -> None:
    law(Thompson(pool=16, singles=False), ENV)


def test_one_member_is_not_an_ensemble() -> None:
    with pytest.raises(InputError, match="members: expected at least 2, got 1"):
        Thompson(members=1)
