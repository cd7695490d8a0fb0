"""Rounds of trunks: what is looked at again, branches later, waits, ends a run; what `Paths.of` lays out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from spannerlm.environments import token_environment
from spannerlm.explorers.multi_turn import IDLE, MultiTurnSpanner
from spannerlm.explorers.paths import Paths, Store
from spannerlm.explorers.trunk import Design, TrunkState
from spannerlm.ledger import Counts, Ledger
from spannerlm.records import Drawn, DrawRequest, Event, Label, Labelled, LabelRequest, Request, Spec, StopRequest
from spannerlm.run import Driver
from spannerlm.stepwise import rolled

HORIZON = 4
ENV = token_environment("random-token-mdp", horizon=HORIZON, seed=0)  # eight prompts, from .03 to .32
DIM = ENV.step_dim


def spec_of(labels: int, *, batch: int = 6, draws: int | None = None, fresh: bool = True) -> Spec:
    return Spec(ENV.prompt_probs, ENV.dim, labels, draws, batch, beta=ENV.beta, fresh=fresh, horizon=HORIZON)


@dataclass
class Trace:
    """Every event of a run driven by hand, with the states around it."""

    explorer: MultiTurnSpanner
    state: TrunkState
    steps: list[tuple[TrunkState, Event, TrunkState]] = field(default_factory=list)
    stop: StopRequest | None = None

    def absorb(self, event: Event) -> None:
        before = self.state
        self.state = self.explorer.absorb(before, event)
        self.steps.append((before, event, self.state))

    def after(self, kind: type) -> list[tuple[TrunkState, Any, TrunkState]]:
        return [step for step in self.steps if isinstance(step[1], kind)]


def worth(request: LabelRequest, rng: np.random.Generator) -> list[Label]:
    prompts, responses = zip(*((ENV.prompts[item.prompt], item.response) for item in request.items), strict=True)
    replicate = rng.integers(10**6, size=len(prompts)).tolist()
    values = ENV.reward(0)(prompts, responses, replicate=replicate)
    return [Label(item.prompt, item.response, value) for item, value in zip(request.items, values, strict=True)]


def driven(
    spec: Spec, explorer: MultiTurnSpanner | None = None, answer: Callable[..., list[Label]] = worth, most: int = 500
) -> Trace:
    """A run to its end, or to ``most`` requests."""
    explorer = explorer or MultiTurnSpanner()
    trace = Trace(explorer, explorer.init(spec))
    for k in range(most):
        request: Request = explorer.decide(trace.state, rng=np.random.default_rng([0, k]))
        rng = np.random.default_rng([1, k])
        if isinstance(request, StopRequest):
            trace.stop = request
            break
        trace.absorb(request)
        if isinstance(request, DrawRequest):
            trace.absorb(rolled(ENV, request, rng=rng))
        else:
            trace.absorb(Labelled(tuple(answer(request, rng)), np.zeros((len(request.items), ENV.dim))))
    return trace


def block(covariance: np.ndarray, h: int) -> np.ndarray:
    return covariance[h * DIM : (h + 1) * DIM, h * DIM : (h + 1) * DIM]


# --- what is looked at again ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [10_000, 3])
def test_of_every_pair_that_the_labels_do_not_tell_apart_the_more_telling_side_is_rolled_out_again(budget: int) -> None:
    last = driven(spec_of(40), MultiTurnSpanner(nu=0.4)).state
    start, lengths = Design.of(replace(last, branches=(), waiting=())).covariance, []
    for core in last.cores:
        rows = dict(zip(last.store.choices[core.place].segments, last.store.choices[core.place].features, strict=True))
        relative = rows[core.other] - rows[core.kept]
        lengths.append(float(np.sqrt(relative @ block(start, len(core.place[1])) @ relative)))
    nu = float(np.median(lengths)) * 0.9
    learner = replace(last.learner, spec=replace(last.learner.spec, labels=last.learner.bought + budget))
    state = replace(last, branches=(), waiting=(), learner=learner)
    covariance, expected, sides, near = start, [], [], 0
    for core in state.cores:  # by whole inverses, where the explorer has rank-one updates
        (x, prefix), h = core.place, len(core.place[1])
        choice = state.store.choices[core.place]
        features = dict(zip(choice.segments, choice.features, strict=True))
        relative = features[core.other] - features[core.kept]
        if relative @ block(covariance, h) @ relative <= nu**2:
            near += 1
            continue
        if len(expected) == budget:
            continue
        law = choice.counts * np.exp(choice.features @ state.rolled(state.bold)[h] / ENV.beta)
        mean = law / law.sum() @ choice.features
        after = []
        for name in (core.kept, core.other):
            own = np.zeros(HORIZON * DIM)
            own[h * DIM : (h + 1) * DIM] = features[name] - mean
            after.append(np.linalg.inv(np.linalg.inv(covariance) + np.outer(own, own)))
        left = [relative @ block(told, h) @ relative for told in after]
        side = int(np.argmin(left))
        sides.append(side)
        expected.append((x, (*prefix, (core.kept, core.other)[side])))
        covariance = after[side]
    again = MultiTurnSpanner(nu=nu)._rechecked(state)
    assert again.branches == tuple(expected)
    assert again.rechecked
    assert again.waiting == ()
    assert len(expected) == 3 if budget == 3 else set(sides) == {0, 1}
    assert near > 0


def test_pairs_that_never_pass_are_looked_at_once_per_round_and_only_after_new_labels() -> None:
    trace = driven(spec_of(60), MultiTurnSpanner(nu=0.05))  # so small that hardly any pair passes
    looks, rounds = 0, 0
    for before, event, after in trace.steps:
        if isinstance(event, DrawRequest) and event.info["phase"] == "trunk":
            assert not after.rechecked
            rounds += 1
        if after.rechecked and not before.rechecked:
            assert isinstance(event, Labelled)
            assert len(after.values) > len(before.values)
            looks += 1
        if isinstance(event, Labelled):
            assert after.idle == 0, "a label was bought: the run is not idle"
        if isinstance(event, Labelled) and before.rechecked:
            assert after.branches == before.branches, "a second look before the next trunks"
    assert 0 < looks <= rounds
    assert trace.stop is not None
    assert trace.stop.reason == "labels spent"


def test_a_label_that_never_comes_starts_no_look() -> None:
    def none(request: LabelRequest, rng: np.random.Generator) -> list[Label]:
        return [Label(item.prompt, item.response, None, status="skip") for item in request.items]

    trace = driven(spec_of(30), MultiTurnSpanner(nu=0.05), none)
    assert not any(after.rechecked for _, _, after in trace.steps)
    assert trace.stop is not None
    assert trace.state.learner.bought == 30
    assert trace.state.fit is None
    assert np.all(trace.explorer.policy(trace.state).theta == 0.0)


# --- branches -------------------------------------------------------------------------------------------------------


def test_a_branch_is_tested_at_its_later_steps_and_branches_there() -> None:
    explorer = MultiTurnSpanner(nu=0.4)
    seen = 0
    for before, event, after in driven(spec_of(80, batch=40), explorer).after(Drawn):
        if event.info["phase"] != "branch":
            continue
        assert after.waiting == (*before.waiting, *event.paths), "one label for each branch"
        assert before.branches == ()
        starts = dict(zip(event.paths, event.info["starts"], strict=True))
        for (x, prefix), core in zip(after.branches, after.cores[len(before.cores) :], strict=True):
            h = len(prefix) - 1
            grown = [path for path in event.paths if path.prompt == x and path.segments[:h] == prefix[:h]]
            assert any(starts[path] <= h and path.segments[h] == core.kept for path in grown)
            assert core.place == (x, prefix[:h])
            assert prefix[h] == core.other != core.kept
            seen += 1
        if after.branches:  # the first of them is tested before any other is counted in
            (x, prefix), h = after.branches[0], len(after.branches[0][1]) - 1
            choice, core = after.store.choices[x, prefix[:h]], after.cores[len(before.cores)]
            covariance = block(Design.of(replace(after, branches=())).covariance, h)
            off = choice.features - choice.features[choice.segments.index(core.kept)]
            lengths = [float(row @ covariance @ row) for row in off]
            assert choice.segments[int(np.argmax(lengths))] == core.other
            assert max(lengths) > 0.4**2
    assert seen > 5


# --- labels that do not come ----------------------------------------------------------------------------------------


def waiting_state(batch: int) -> tuple[MultiTurnSpanner, TrunkState]:
    """A state with a fit in which more than two batches of different sequences wait for labels."""
    explorer = MultiTurnSpanner()
    for _, _, after in driven(spec_of(80, batch=20), explorer).after(Drawn):
        different = {(path.prompt, path.response): path for path in after.waiting}
        if after.fit is not None and not after.branches and len(different) > 2 * batch:
            learner = replace(after.learner, spec=replace(after.learner.spec, batch=batch))
            return explorer, replace(after, learner=learner, waiting=tuple(different.values()))
    raise AssertionError("no such state")


def test_a_batch_that_breaks_leaves_the_others_waiting_and_each_is_asked_for_once() -> None:
    explorer, state = waiting_state(batch=2)
    planned = [(path.prompt, path.response) for path in state.waiting]
    free, bought, fit = state.free, state.learner.bought, state.fit
    asked: list[tuple[int, str]] = []
    for k in range(2):
        request = explorer.decide(state, rng=np.random.default_rng(k))
        assert isinstance(request, LabelRequest)
        state = explorer.absorb(state, request)
        assert state.free == free  # asked for or waiting: the same to the budget
        asked += [(item.prompt, item.response) for item in request.items]
        broken = [
            Label(item.prompt, item.response, None, status=status)
            for item, status in zip(request.items, ("failed", "skip"), strict=True)
        ]
        state = explorer.absorb(state, Labelled(tuple(broken), np.zeros((2, ENV.dim))))
        assert [(path.prompt, path.response) for path in state.waiting] == planned[len(asked) :]
        assert asked == planned[: len(asked)]
        assert state.learner.bought == bought + len(asked)
        assert state.free == free
        assert state.fit is fit
        assert not state.learner.pending
    design = Design.of(state).covariance  # what broke tells nothing
    kept = replace(state, asked={key: path for key, path in state.asked.items() if key not in asked})
    np.testing.assert_array_equal(Design.of(kept).covariance, design)


@pytest.mark.parametrize("value", [None, 0.7])
def test_a_label_that_is_not_charged_costs_and_teaches_nothing(value: float | None) -> None:
    explorer, state = waiting_state(batch=2)
    request = explorer.decide(state, rng=np.random.default_rng(0))
    assert isinstance(request, LabelRequest)
    status = "label" if value is not None else "failed"
    free = [Label(item.prompt, item.response, value, status=status, charged=False) for item in request.items]
    before = explorer.absorb(state, request)
    after = explorer.absorb(before, Labelled(tuple(free), np.zeros((2, ENV.dim))))
    assert (after.values, after.fit, after.waiting) == (before.values, before.fit, before.waiting)
    assert after.learner.bought == state.learner.bought
    assert after.free == state.free + 2
    assert not after.learner.pending


def test_where_all_sequences_have_their_labels_a_run_without_a_limit_on_draws_ends() -> None:
    env = token_environment("gated-lock", horizon=2, seed=0)  # sixteen sequences
    spec = Spec(env.prompt_probs, env.dim, 500, None, 5, beta=env.beta, horizon=2)
    rounds = []

    def observe(run: Driver) -> None:
        rounds.append(run.state.idle)
        assert len(rounds) < 600

    def reward(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        return [float(text.count("1")) for text in completions]

    with Ledger.open(None, meta={}, prompts=list(env.prompts)) as ledger:
        run = Driver(env, MultiTurnSpanner(), reward, ledger, spec, seed=0, observe=observe)
        run.explore()
        counts: Counts = ledger.counts
    assert run.reason == "no sequence without a label found"
    assert max(rounds) == IDLE
    assert counts.labels == 16
    assert counts.reused > 0


# --- prompts --------------------------------------------------------------------------------------------------------


def test_with_prompts_of_unequal_weight_trunks_follow_them_and_the_regret_falls() -> None:
    before, after, found = [], [], np.zeros(ENV.states)
    for seed in range(3):
        with Ledger.open(None, meta={}, prompts=list(ENV.prompts)) as ledger:
            run = Driver(ENV, MultiTurnSpanner(), ENV.reward(seed), ledger, spec_of(120, batch=20), seed=seed)
            run.explore()
            for entry in ledger.replay():
                if isinstance(entry.event, DrawRequest) and entry.event.info["phase"] == "trunk":
                    found += np.bincount(entry.event.prompts, minlength=ENV.states)
        before.append(ENV.regret(ENV.base_probs))
        after.append(ENV.regret(run.explorer.policy(run.state).table(ENV)))
    error = np.sqrt(ENV.prompt_probs * (1.0 - ENV.prompt_probs) / found.sum())
    assert np.all(np.abs(found / found.sum() - ENV.prompt_probs) < 3.5 * error)
    assert np.mean(after) < 0.5 * np.mean(before)


# --- arrays ---------------------------------------------------------------------------------------------------------


def test_sequences_are_laid_out_place_by_place() -> None:
    state = driven(spec_of(30)).state
    short = [replace(path, segments=path.segments[:2]) for path in state.labelled[:3]]  # as where a sequence ends early
    rollouts = [*state.labelled, *short]
    paths = Paths.of(state.store, rollouts, state.shape)
    places: dict[int, tuple[int, tuple[str, ...]]] = {}
    for i, path in enumerate(rollouts):
        assert paths.prompts[i] == path.prompt
        assert np.all(paths.rows[i, len(path.segments) :] == -1)
        for h, segment in enumerate(path.segments):
            row, place = int(paths.rows[i, h]), (path.prompt, path.segments[:h])
            assert places.setdefault(row, place) == place
            choice = state.store.choices[place]
            k = len(choice.segments)
            assert choice.segments[paths.chosen[i, h]] == segment
            assert paths.steps[row] == h
            assert paths.draws[row] == choice.counts.sum()
            np.testing.assert_allclose(paths.shares[row, :k], choice.counts / choice.counts.sum())
            np.testing.assert_array_equal(paths.features[row, :k], choice.features)
            assert not paths.shares[row, k:].any()
            assert not paths.features[row, k:].any()
    assert sorted(places) == list(range(len(paths.steps)))
    assert len(set(places.values())) == len(places)
    for row, place in places.items():
        choice, share = state.store.choices[place], paths.shares[row]
        mean = share @ paths.features[row]
        slow = sum(c * np.sum((f - mean) ** 2) for c, f in zip(choice.counts, choice.features, strict=True))
        assert paths.spread()[row] == pytest.approx(slow / choice.counts.sum())
    tail = paths.of_rows(slice(len(rollouts) - 3, None))
    np.testing.assert_array_equal(tail.rows, paths.rows[-3:])
    theta = np.random.default_rng(0).normal(size=state.shape)
    np.testing.assert_allclose(tail.at(theta, ENV.beta).sums(), paths.at(theta, ENV.beta).sums()[-3:])


def test_no_sequences_make_empty_arrays() -> None:
    paths = Paths.of(Store(), [], (HORIZON, DIM))
    assert paths.shape == (HORIZON, DIM)
    assert paths.at(np.zeros(paths.shape), 0.5).sums().shape == (0,)
    assert paths.at(np.zeros(paths.shape), 0.5).jacobian().shape == (0, HORIZON * DIM)


def test_what_paths_say_of_a_draw_is_the_normalised_score_of_its_place() -> None:
    state = driven(spec_of(20)).state
    theta, beta = np.random.default_rng(2).normal(size=state.shape), 0.3
    tilted = Paths.of(state.store, state.labelled, state.shape).at(theta, beta)
    variances, jacobian = tilted.normaliser_variances(), tilted.jacobian()
    for i, path in enumerate(state.labelled):
        total, variance = 0.0, 0.0
        for h, segment in enumerate(path.segments):
            choice = state.store.choices[path.prompt, path.segments[:h]]
            n, chosen = choice.counts.sum(), choice.segments.index(segment)
            weights = np.exp(choice.features @ theta[h] / beta)
            normaliser = choice.counts @ weights / n
            total += float(choice.features[chosen] @ theta[h] - beta * np.log(normaliser))
            second = choice.counts @ weights**2 / n  # the delta method: var of a mean of n weights over its square
            variance += beta**2 * (second - normaliser**2) / n / normaliser**2
            mean = (choice.counts * weights) @ choice.features / (n * normaliser)
            np.testing.assert_allclose(jacobian[i, h * DIM : (h + 1) * DIM], choice.features[chosen] - mean, atol=1e-12)
        assert tilted.sums()[i] == pytest.approx(total)
        assert variances[i] == pytest.approx(variance, abs=1e-12)
