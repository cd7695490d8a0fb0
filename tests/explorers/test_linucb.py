"""linucb-enumerate: the whole response set, listed once and kept out of frequencies, and the most promising of it."""

from __future__ import annotations

from dataclasses import replace

import laws
import numpy as np
import pytest

import spannerlm
from spannerlm.environments import TabularEnvironment, rare_skill
from spannerlm.errors import InputError
from spannerlm.explorers.linucb import LinUCB, ListedState
from spannerlm.ledger import Ledger
from spannerlm.oracle import RecordedOracle
from spannerlm.records import DrawRequest, LabelRequest
from spannerlm.run import Driver

ENV = laws.random_table(4, prompts=5, responses=12, dim=4)


def trained(env: TabularEnvironment = ENV, labels: int = 24, **changes: object) -> tuple[ListedState, laws.Trace]:
    """A state with labels behind it and a budget ahead, and how it came about."""
    spec = laws.spec_of(env, labels=labels, **changes)
    trace = laws.drive(LinUCB(pool=16), laws.Bench(env, spec))
    assert isinstance(trace.state, ListedState)
    return replace(trace.state, learner=replace(trace.state.learner, spec=replace(spec, labels=400))), trace


def test_the_list_follows_the_first_pool_and_comes_once() -> None:
    state, trace = trained()
    support = tuple(np.flatnonzero(ENV.prompt_probs).tolist())
    kinds = [bool(r.info.get("enumerate")) for r in trace.requests if isinstance(r, DrawRequest)]
    assert kinds[:2] == [False, True]
    assert sum(kinds) == 1
    for x in support:
        assert sorted(map(int, state.listed[x].responses)) == list(range(12))
        np.testing.assert_array_equal(state.listed[x].counts, 1)
    drawn = sum(int(pool.counts.sum()) for pool in state.pools.values())
    assert state.learner.drawn == trace.bench.spent == drawn + 12 * len(support)


def test_the_list_enters_no_frequency_and_no_moment() -> None:
    state, _ = trained()
    found, pool = state.everything, state.candidates
    assert len(found) == 12 * len(found.ids)
    for (x, response), row in found.index.items():
        old = pool.index.get((x, response))
        assert found.weights[row] == (0.0 if old is None else pool.weights[old])
        centre = state.learner.moments.sums[x] / state.learner.moments.counts[x]
        np.testing.assert_allclose(found.features[row], ENV.features[x, int(response)] - centre, rtol=0, atol=1e-12)
    counts = [int(state.pools[int(x)].counts.sum()) for x in found.ids]
    np.testing.assert_array_equal(state.learner.moments.counts[found.ids], counts)


@pytest.mark.parametrize("fresh", [True, False])
def test_the_choice_is_the_slow_upper_confidence_bound(fresh: bool) -> None:
    state, _ = trained(fresh=fresh)
    learner, found, posterior = state.learner, state.everything, state.learner.posterior
    assert posterior is not None
    items = LinUCB(pool=16, alpha=2.0).choose(state, 7, rng=np.random.default_rng(0))
    sigma, taken = posterior.precision(), set(learner.labelled) if not fresh else set()
    for item in items:  # whichever prompt came up: of its responses, the chosen one has the largest bound
        bounds = {}
        for y in range(12):
            phi = found.features[found.index[item.prompt, str(y)]]
            width = posterior.noise_std * np.sqrt(phi @ np.linalg.solve(sigma, phi))
            if (item.prompt, str(y)) not in taken:
                bounds[str(y)] = phi @ learner.theta + 2.0 * width
        assert item.response == max(bounds, key=lambda y: bounds[y])
        phi = found.features[found.index[item.prompt, item.response]]
        sigma = sigma + np.outer(phi, phi)
        if not fresh:
            taken.add((item.prompt, item.response))
    assert len(items) == 7


def test_it_labels_what_was_never_drawn() -> None:
    env = rare_skill(1e-9, prompts=8, seed=1)
    trace = laws.drive(LinUCB(pool=16), laws.Bench(env, laws.spec_of(env, labels=24)))
    assert len({item.prompt for item in trace.bench.asked if item.response == "40"}) >= 6
    drawn = {(x, response) for x, pool in trace.state.pools.items() for response in pool.responses}
    assert not any(response == "40" for _, response in drawn)


def test_a_draws_budget_cuts_the_list() -> None:
    support = int(np.count_nonzero(ENV.prompt_probs))
    for left, each in ((0, 0), (support - 1, 0), (3 * support + 1, 3)):
        state, trace = trained(draws=16 * support + left)
        assert trace.bench.spent <= 16 * support + left
        assert [len(record.responses) for record in state.listed.values()] == [each] * (support if each else 0)
        assert trace.bench.bought == 24
        for x, record in state.listed.items():
            best = np.sort(np.argsort(-ENV.base_probs[x], kind="stable")[:each])
            assert list(map(int, record.responses)) == best.tolist()


def test_prompts_drawn_afresh_are_listed_as_they_come() -> None:
    spec = laws.spec_of(ENV, labels=30)
    trace = laws.drive(LinUCB(pool=8, fresh_prompts=2), laws.Bench(ENV, spec))
    assert trace.bench.bought == 30
    listed = [x for r in trace.requests if isinstance(r, DrawRequest) and r.info.get("enumerate") for x in r.prompts]
    assert len(set(listed)) == len(listed)
    rounds = [r for r in trace.requests if isinstance(r, LabelRequest)]
    assert {item.prompt for r in rounds for item in r.items} <= set(listed)


def test_a_run_lists_the_responses_and_counts_them() -> None:
    result = spannerlm.explore(ENV, explorer=LinUCB(pool=16, doubling=None), labels=20, seed=0)
    support = int(np.count_nonzero(ENV.prompt_probs))
    assert result.labels == 20
    assert result.draws == support * (16 + 12)
    assert result.history[-1]["regret"] < result.history[0]["regret"]


def test_an_oracle_that_cannot_list_is_refused() -> None:
    records = ENV.draw(range(5), 20, rng=np.random.default_rng(0))
    spec = laws.spec_of(ENV, labels=5)
    ledger = Ledger.open(None, meta={"seed": 0}, prompts=list(ENV.prompts))
    run = Driver(RecordedOracle(ENV.prompts, records), LinUCB(pool=4), ENV.reward(0), ledger, spec, seed=0)
    with pytest.raises(InputError, match="linucb-enumerate needs an environment that can list its responses"):
        run.explore()


def test_equal_features_are_skipped_and_without_the_skip_bought() -> None:
    env = replace(ENV, features=np.repeat(ENV.features[:, :1], 12, axis=1))
    for skip, labels in ((True, 0), (False, 13)):
        bench = laws.Bench(env, laws.spec_of(env, labels=13, draws=4000))
        laws.drive(LinUCB(pool=16, skip=skip), bench)
        assert bench.bought == labels
