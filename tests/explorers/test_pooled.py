"""How the pools grow, seen through the smallest explorer that is built on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import laws
import numpy as np
import pytest

from spannerlm.environments import TabularEnvironment
from spannerlm.errors import InputError
from spannerlm.explorers.learner import Learner
from spannerlm.explorers.pooled import MAX_BARREN, MAX_POOL, PATIENCE, PoolExplorer, PoolState
from spannerlm.policy import LinearSoftmaxPolicy
from spannerlm.records import Drawn, DrawRequest, Event, LabelItem, LabelRequest, StopRequest

ENV = laws.random_table(1)  # four prompts, the last of probability 0
X = 3


@dataclass(frozen=True)
class Patient(PoolExplorer):
    """Labels any rows, once every pool holds ``worth`` draws."""

    worth: int = 0
    name: ClassVar[str] = "patient"

    def choose(self, state: PoolState, size: int, *, rng: np.random.Generator) -> tuple[LabelItem, ...]:
        held = min(int(draws.counts.sum()) for draws in state.pools.values())
        rows = rng.integers(len(state.candidates), size=size if held >= self.worth else 0)
        return tuple(state.candidates.item(state.learner, int(row)) for row in rows)


def run(explorer: PoolExplorer, env: TabularEnvironment = ENV, **spec: Any) -> laws.Trace:
    return laws.drive(explorer, laws.Bench(env, laws.spec_of(env, **spec)))


def steps(trace: laws.Trace) -> str:
    """What was asked for, in order: D8 for eight draws a prompt, L5 for five labels."""
    found = []
    for request in trace.requests:
        if isinstance(request, DrawRequest):
            found.append(f"D{request.n}")
        elif isinstance(request, LabelRequest):
            found.append(f"L{len(request.items)}")
    return " ".join(found)


def stop(trace: laws.Trace) -> StopRequest:
    last = trace.requests[-1]
    assert isinstance(last, StopRequest)
    return last


@pytest.mark.parametrize(
    ("settings", "spec", "expected"),
    [
        ({}, {"labels": 35, "batch": 5}, "D8 L5 L5 D8 L5 L5 D16 L5 L5 D32 L5"),
        ({}, {"labels": 50, "batch": 20}, "D8 L20 D24 L20 D96 L10"),
        ({"doubling": 4}, {"labels": 12, "batch": 3}, "D8 L3 L3 D8 L3 D16 L3"),
        ({"doubling": None}, {"labels": 35, "batch": 20}, "D8 L20 L15"),
        ({"worth": 20}, {"labels": 10, "batch": 5}, "D8 D8 D16 L5 L5"),
        ({"worth": 20}, {"labels": 50, "batch": 20}, "D8 D8 D16 L20 L20 D96 L10"),
        ({}, {"labels": 12, "batch": 5, "draws": 8 * X + 4 * X + 2}, "D8 L5 L5 D4 L2"),
        ({}, {"labels": 30, "batch": 5, "draws": 5 * X}, "D5 L5 L5 L5 L5 L5 L5"),
    ],
)
def test_pools_double_with_the_labels_and_where_nothing_is_worth_one(
    settings: dict[str, Any], spec: dict[str, Any], expected: str
) -> None:
    trace = run(Patient(pool=8, **settings), **spec)
    assert steps(trace) == expected
    assert stop(trace).reason == "labels spent"
    state: PoolState = trace.state
    drawn = sum(r.n for r in trace.requests if isinstance(r, DrawRequest))
    assert state.size == drawn
    assert [int(state.pools[x].counts.sum()) for x in range(X)] == [drawn] * X
    assert state.asked == spec["labels"]
    assert state.rounds == expected.count("L")
    assert sorted(state.pools) == [0, 1, 2]


def test_patience_ends() -> None:
    trace = run(Patient(pool=8, worth=8 * 2**PATIENCE + 1), labels=20, batch=5)
    assert steps(trace) == "D8 D8 D16 D32"
    assert "nothing that is worth a label is left" in stop(trace).reason
    just = run(Patient(pool=8, worth=8 * 2**PATIENCE), labels=20, batch=5)
    assert steps(just) == "D8 D8 D16 D32 L5 L5 L5 L5"
    assert steps(run(Patient(pool=8, worth=9, doubling=None))) == "D8"
    assert steps(run(Patient(pool=8, worth=99), draws=11 * X)) == "D8 D3"


def test_patience_is_renewed_by_a_label() -> None:
    explorer = Patient(pool=8)
    state = run(explorer, labels=5, batch=5).state
    tired = replace(state, barren=PATIENCE - 1)
    assert explorer.absorb(tired, LabelRequest((LabelItem(0, "0"),), {"phase": "patient"})).barren == 0
    assert explorer.absorb(tired, LabelRequest((LabelItem(0, "0"),), {"phase": "other"})).barren == PATIENCE - 1


def test_only_its_own_labels_make_the_pools_grow() -> None:
    explorer = Patient(pool=8)
    state = explorer.init(laws.spec_of(ENV))
    items = (LabelItem(0, "0"),) * 25
    assert explorer.absorb(state, LabelRequest(items)).asked == 0
    assert explorer.absorb(state, LabelRequest(items, {"phase": "patient"})).asked == 25


def test_too_small_a_budget_stops_at_once() -> None:
    trace = run(Patient(pool=8), draws=2 * X - 1)
    assert steps(trace) == ""
    assert "at least 2 draws" in stop(trace).reason


def test_few_prompts_are_chosen_once() -> None:
    trace = run(Patient(pool=8, max_prompts=2), labels=30, batch=10)
    asked = {r.prompts for r in trace.requests if isinstance(r, DrawRequest)}
    assert len(asked) == 1
    assert len(asked.pop()) == 2


def test_fresh_prompts_are_drawn_for_every_round() -> None:
    trace = run(Patient(pool=8, doubling=10, fresh_prompts=2), labels=40, batch=5)
    assert steps(trace) == "D8 L5 D8 L5 D16 L5 D16 L5 D32 L5 D32 L5 D64 L5 D64 L5"
    prompts = None
    seen = set()
    for request in trace.requests:
        if isinstance(request, DrawRequest):
            prompts = request.prompts
            assert 1 <= len(prompts) <= 2
            assert 3 not in prompts
            seen.add(prompts)
        elif isinstance(request, LabelRequest):
            assert {item.prompt for item in request.items} <= set(prompts or ())
    assert len(seen) > 2
    assert set(trace.state.pools) == set(prompts or ())
    assert trace.state.rounds == 8


def test_fresh_prompts_come_from_rho() -> None:
    """One prompt a round over 400 rounds: counts within five standard errors of rho."""
    trace = run(Patient(pool=2, doubling=None, fresh_prompts=1), labels=400, batch=1)
    prompts = [r.prompts[0] for r in trace.requests if isinstance(r, DrawRequest)]
    assert len(prompts) == 400
    counts = np.bincount(prompts, minlength=4)
    rho = ENV.prompt_probs
    assert np.all(np.abs(counts - 400 * rho) <= 5 * np.sqrt(400 * rho * (1 - rho)))


def test_fresh_prompts_that_bring_nothing_are_replaced_and_counted() -> None:
    explorer = Patient(pool=8, worth=9, fresh_prompts=2)
    trace = run(explorer, draws=400)
    assert stop(trace).reason == "draws spent"
    state: PoolState = trace.state
    pools = [r for r in trace.requests if isinstance(r, DrawRequest)]
    assert all(r.n == 8 for r in pools)
    assert trace.bench.spent <= 400
    assert 400 - trace.bench.spent < 2 * 8
    assert [r.info["barren"] for r in pools] == [False] + [True] * (len(pools) - 1)
    assert state.barren == state.rounds == len(pools) - 1
    assert set(state.pools) == set(pools[-1].prompts)
    endless = replace(state, barren=MAX_BARREN, learner=replace(state.learner, spec=laws.spec_of(ENV)))
    request = explorer.decide(endless, rng=np.random.default_rng(0))
    assert isinstance(request, StopRequest)
    assert str(MAX_BARREN) in request.reason
    almost = explorer.decide(replace(endless, barren=MAX_BARREN - 1), rng=np.random.default_rng(0))
    assert isinstance(almost, DrawRequest)


@pytest.mark.parametrize("asked", [0, 9, 10, 45, 10**6])
def test_pools_have_a_limit(asked: int) -> None:
    explorer = Patient(pool=8)
    state = replace(run(explorer, labels=1, batch=1).state, asked=asked)
    state = replace(state, learner=replace(state.learner, spec=laws.spec_of(ENV)))
    request = explorer.decide(state, rng=np.random.default_rng(0))
    more = min(8 * 2 ** (asked // 10), MAX_POOL) - 8
    assert (request.n if isinstance(request, DrawRequest) else 0) == more


def test_draws_from_elsewhere_are_welcome_but_are_no_pool() -> None:
    explorer, rng = Patient(pool=8), np.random.default_rng(0)
    state = explorer.init(laws.spec_of(ENV))
    foreign = Drawn(ENV.draw((1,), 40, rng=rng), 40)
    state = explorer.absorb(state, foreign)
    assert state.size == 0
    assert int(state.pools[1].counts.sum()) == 40
    request = explorer.decide(state, rng=rng)
    assert isinstance(request, DrawRequest)
    assert (request.prompts, request.n) == ((0, 1, 2), 8)
    state = explorer.absorb(state, Drawn(ENV.draw(request.prompts, 8, rng=rng), 8 * X, info=request.info))
    assert state.size == 8
    assert [int(state.pools[x].counts.sum()) for x in range(X)] == [8, 48, 8]
    later = explorer.absorb(state, foreign)
    assert later.size == 8
    assert isinstance(explorer.decide(later, rng=rng), LabelRequest)
    tilted = replace(foreign, exhausted=(False,))
    assert explorer.absorb(state, tilted).pools is state.pools


def test_the_state_is_what_the_learner_says_within_the_box() -> None:
    explorer = Patient(pool=8, box=0.05)
    state: PoolState = run(explorer).state
    assert np.abs(state.learner.theta).max() > 0.05
    np.testing.assert_array_equal(state.theta, np.clip(state.learner.theta, -0.05, 0.05))
    policy = explorer.policy(state)
    assert isinstance(policy, LinearSoftmaxPolicy)
    np.testing.assert_array_equal(policy.theta, state.theta)
    assert policy.beta == ENV.beta
    free: PoolState = run(replace(explorer, box=None)).state
    np.testing.assert_array_equal(free.theta, free.learner.theta)
    assert isinstance(explorer.learner(state), Learner)
    assert explorer.progress(state) == {"phase": "patient", "rounds": 7}
    assert explorer.progress(explorer.init(laws.spec_of(ENV))) == {"phase": "pool", "rounds": 0}


def test_states_are_not_changed_by_events() -> None:
    explorer = Patient(pool=8)
    trace = run(explorer, labels=12)
    state = explorer.init(trace.bench.spec)
    states: list[PoolState] = [state]
    prints = [laws.fingerprint(state)]
    events: list[Event] = trace.events
    for event in events:
        states.append(explorer.absorb(states[-1], event))
        prints.append(laws.fingerprint(states[-1]))
    assert [laws.fingerprint(s) for s in states] == prints


def test_comparisons_are_refused_by_who_can_not_learn_from_them() -> None:
    with pytest.raises(InputError, match="'patient': expected scalar rewards"):
        Patient().init(laws.spec_of(laws.compared(ENV)))
    with pytest.raises(NotImplementedError):
        PoolExplorer().choose(run(Patient()).state, 1, rng=np.random.default_rng(0))
