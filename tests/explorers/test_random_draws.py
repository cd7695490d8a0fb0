"""The two random baselines: fresh draws from pi_ref, a pool that is kept apart, and when they give up."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import laws
import numpy as np
import pytest
from scipy.stats import chisquare

from spannerlm.environments import TabularEnvironment, tie
from spannerlm.explorers import Passive, RandomSingles
from spannerlm.explorers.random_draws import PATIENCE
from spannerlm.records import Drawn, DrawRequest, Draws, LabelItem, LabelRequest, StopRequest

both = pytest.mark.parametrize("explorer", [Passive(pool=8), RandomSingles(pool=8)], ids=lambda e: e.name)
ENV = laws.random_table(1)


@both
def test_labelled_responses_have_the_base_law(explorer: Any) -> None:
    """2,000 labels against rho x pi_ref: a chi-square at 1e-6."""
    trace = laws.drive(explorer, laws.Bench(ENV, laws.spec_of(ENV, labels=2000, batch=20)))
    counts = Counter((item.prompt, int(item.response)) for item in trace.bench.asked)
    law = ENV.prompt_probs[:, None] * ENV.base_probs
    if explorer.group == 2:
        prompts = Counter(item.prompt for item in trace.bench.asked[::2])
        used = ENV.prompt_probs > 0
        observed = np.array([prompts[x] for x in range(len(used))])
        assert chisquare(observed[used], 1000 * ENV.prompt_probs[used]).pvalue > 1e-6
        rows = np.array([counts[0, y] for y in range(7)])
        law, total = ENV.base_probs[0], rows.sum()
    else:
        rows, total = np.array([[counts[x, y] for y in range(7)] for x in range(4)]), 2000
    expected = total * law[law > 0]
    assert not rows[law == 0].any()
    big = expected >= 5
    assert (
        chisquare(
            np.append(rows[law > 0][big], rows[law > 0][~big].sum() + 1e-9),
            np.append(expected[big], expected[~big].sum() + 1e-9),
        ).pvalue
        > 1e-6
    )


@both
def test_draws_are_the_pool_and_one_per_label(explorer: Any) -> None:
    trace = laws.drive(explorer, laws.Bench(ENV, laws.spec_of(ENV, labels=40, batch=20)))
    assert trace.bench.spent == 3 * 8 + 40
    first, *later = [r for r in trace.requests if isinstance(r, DrawRequest)]
    assert (first.n, first.info["phase"]) == (8, "pool")
    assert all((r.n, r.info["phase"]) == (explorer.group, explorer.name) for r in later)


@both
@pytest.mark.parametrize("draws", [24, 41, 63])
def test_draws_are_kept_for_the_labels(explorer: Any, draws: int) -> None:
    """However few draws there are, the pool leaves one for every label, down to two draws a prompt."""
    trace = laws.drive(explorer, laws.Bench(ENV, laws.spec_of(ENV, labels=18, draws=draws)))
    assert trace.bench.bought == 18
    assert trace.bench.spent <= draws


@both
def test_every_draw_is_spent_before_giving_up(explorer: Any) -> None:
    trace = laws.drive(explorer, laws.Bench(ENV, laws.spec_of(ENV, labels=500, draws=101, batch=20)))
    assert trace.bench.spent == 101 - (101 - 6) % explorer.group
    assert trace.stop.reason == "draws spent"


@both
def test_it_gives_up_where_everything_is_labelled(explorer: Any) -> None:
    env = tie(prompts=2, responses=3, dim=2)
    trace = laws.drive(explorer, laws.Bench(env, laws.spec_of(env, labels=100, fresh=False)))
    assert trace.bench.bought == 6
    assert f"in {PATIENCE} requests" in trace.stop.reason
    last = [isinstance(r, LabelRequest) for r in trace.requests[:-1]][-PATIENCE:]
    assert not any(last)


@both
def test_copies_are_labelled_where_labels_are_fresh_and_once_where_not(explorer: Any) -> None:
    env = TabularEnvironment([1.0], [[1.0]], [[[0.5, 1.0]]], [[1.0]], beta=1.0, noise_std=1.0)
    fresh = laws.drive(explorer, laws.Bench(env, laws.spec_of(env, labels=12)))
    assert fresh.bench.known[0, "0"] != [fresh.bench.known[0, "0"][0]] * 12
    assert len(fresh.bench.known[0, "0"]) == 12
    once = laws.drive(explorer, laws.Bench(env, laws.spec_of(env, labels=12, fresh=False)))
    assert len(once.bench.asked) == 1


@both
def test_draws_from_elsewhere_are_labelled_too_but_not_twice(explorer: Any) -> None:
    state = explorer.init(laws.spec_of(ENV, fresh=False, labels=9))
    record = Draws(0, ("0", "3"), np.array([2, 1]), ENV.features[0, [0, 3]])
    for _ in range(2):
        state = explorer.absorb(state, Drawn((record,), 3))
    assert state.fresh == (LabelItem(0, "0"), LabelItem(0, "3"))
    request = explorer.decide(state, rng=np.random.default_rng(0))
    assert isinstance(request, LabelRequest)
    assert request.items == state.fresh


@both
def test_progress_tells_the_phase_and_the_policy_is_linear(explorer: Any) -> None:
    state = explorer.init(laws.spec_of(ENV))
    assert explorer.progress(state) == {"phase": "pool"}
    np.testing.assert_allclose(explorer.policy(state).table(ENV), ENV.base_probs, atol=1e-12)
    trace = laws.drive(explorer, laws.Bench(ENV, laws.spec_of(ENV)))
    assert explorer.progress(trace.state) == {"phase": explorer.name}
    theta = explorer.learner(trace.state).theta
    np.testing.assert_array_equal(explorer.policy(trace.state).theta, theta)


@both
def test_prompts_beyond_the_limit_get_no_pool(explorer: Any) -> None:
    env = tie(prompts=9, responses=4, dim=2)
    few = replace(explorer, max_prompts=4)
    trace = laws.drive(few, laws.Bench(env, laws.spec_of(env)))
    assert len(trace.state.pools) == 4
    assert {item.prompt for item in trace.bench.asked} <= set(trace.state.pools)


@both
def test_spent_labels_stop_it(explorer: Any) -> None:
    trace = laws.drive(explorer, laws.Bench(ENV, laws.spec_of(ENV)))
    again = explorer.decide(trace.state, rng=np.random.default_rng(0))
    assert isinstance(again, StopRequest)
    assert again.reason == trace.stop.reason == "labels spent"
