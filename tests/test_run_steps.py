"""Draws after a prefix and step-by-step roll-outs: recorded, counted, resumed, and labelled with their features."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from spannerlm.environments import tie
from spannerlm.environments.token import TokenEnvironment
from spannerlm.environments.token_families import gated_lock
from spannerlm.errors import InputError
from spannerlm.ledger import Counts, Ledger, history
from spannerlm.policy import LinearSoftmaxPolicy, tilt
from spannerlm.records import (
    Drawn,
    DrawRequest,
    Draws,
    LabelItem,
    Labelled,
    LabelRequest,
    Rollout,
    Spec,
    StepTilt,
    StopRequest,
)
from spannerlm.run import Driver, spec_meta

ENV = gated_lock(6, seed=1)
SPEC = Spec(ENV.prompt_probs, ENV.dim, 25, None, 5, beta=ENV.beta, fresh=True, horizon=6)


@dataclass(frozen=True)
class State:
    rollouts: tuple[Rollout, ...] = ()
    draws: tuple[Draws, ...] = ()
    bought: int = 0
    rounds: int = 0


class Roller:
    """Rolls out five sequences with random parameters, some from the middle of earlier ones, and labels them."""

    name = "roller"

    def init(self, spec: Spec) -> State:
        return State()

    def decide(self, state: State, *, rng: np.random.Generator) -> Any:
        if state.bought == 25:
            return StopRequest("done")
        if state.rounds == 0:
            return DrawRequest((2, 0), 4, None, {"phase": "look"}, ((), ("0", "1")))
        if state.rounds == 3:
            items = tuple(LabelItem(r.prompt, r.response, fresh=True) for r in state.rollouts)
            return LabelRequest(items)
        starts = [r.segments[:3] for r in state.rollouts] or [()] * 5
        prompts = tuple(r.prompt for r in state.rollouts) or tuple(int(x) for x in rng.choice(4, 5))
        return DrawRequest(prompts, 3, StepTilt(0.1 * rng.normal(size=(6, 4)), ENV.beta), {}, tuple(starts))

    def absorb(self, state: State, event: Any) -> State:
        if isinstance(event, Drawn):
            return replace(state, rollouts=event.paths, draws=event.draws, rounds=state.rounds + 1)
        if isinstance(event, Labelled):
            for label, phi in zip(event.labels, event.features, strict=True):
                path = np.array([[int(a) for a in label.response.split(" ")]])
                np.testing.assert_array_equal(phi, ENV.sequence_features(np.array([label.prompt]), path)[0])
            return replace(state, bought=state.bought + len(event.labels), rounds=1, rollouts=())
        return state

    def policy(self, state: State) -> LinearSoftmaxPolicy:
        return LinearSoftmaxPolicy(np.zeros(ENV.dim), ENV.beta)

    def learner(self, state: State) -> Any:
        raise AssertionError("nobody asked")

    def progress(self, state: State) -> dict[str, int]:
        return {"rounds": state.rounds}


class Killed(Exception):
    pass


def go(folder: Path | None, *, kill: bool = False) -> tuple[list[str], Counts, State]:
    def observe(run: Driver) -> None:
        if kill and not run.reason:
            raise Killed

    with Ledger.open(folder, meta=spec_meta(SPEC, 0), prompts=list(ENV.prompts)) as ledger:
        run = Driver(ENV, Roller(), ENV.reward(0), ledger, SPEC, seed=0, observe=observe)
        run.replay()
        run.explore()
        run.stop()
        return list(ledger.export()), ledger.counts, run.state


@pytest.mark.parametrize("limit", [history.INLINE_LIMIT, 0])
def test_a_run_killed_after_every_request_is_the_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(history, "INLINE_LIMIT", limit)
    whole, counts, state = go(tmp_path / "whole")
    for _ in range(100):
        try:
            parts, *_ = go(tmp_path / "parts", kill=True)
        except Killed:
            continue
        break
    assert parts == whole == go(None)[0]
    assert counts.labels == 25
    assert counts.tokens == counts.draws == 8 + 5 * (5 * 3 * 6 + 5 * 3 * 3)
    assert state.bought == 25


def outcome(request: DrawRequest, env: Any = ENV) -> Drawn:
    with Ledger.open(None, meta=spec_meta(SPEC, 0), prompts=list(env.prompts)) as ledger:
        run = Driver(env, Roller(), env.reward(0), ledger, SPEC, seed=3)
        return run._draw(0, request)


def test_a_roll_out_keeps_its_draws_and_goes_on_from_the_one_it_chose() -> None:
    drawn = outcome(DrawRequest((2, 0), 3, StepTilt(np.zeros((6, 4)), 1.0), {}, ((), ("1", "0", "1", "1"))))
    assert [(r.prompt, len(r.segments)) for r in drawn.paths] == [(2, 6), (0, 6)]
    assert len(drawn.draws) == 8
    for record in drawn.draws:
        row = next(r for r in drawn.paths if r.prompt == record.prompt)
        assert record.prefix is not None
        assert row.segments[: len(record.prefix)] == record.prefix
        assert row.segments[len(record.prefix)] in record.responses
        assert record.counts.sum() == 3
    assert drawn.paths[1].segments[:4] == ("1", "0", "1", "1")
    assert (drawn.spent, drawn.tokens) == (24, 24)


def test_many_draws_a_step_are_the_tilted_law() -> None:
    """With n large the segment that is kept has odds pi_ref exp(<theta_h, phi> / beta)."""
    theta = np.array([[0.03, -0.05, 0.0, 0.0]] * 6)
    drawn = outcome(DrawRequest((1,) * 2000, 5000, StepTilt(theta, ENV.beta), {}, (("0",) * 5,) * 2000))
    state = 1
    for h in range(5):
        state = ENV.next_state[h, state, 0]
    law = tilt(ENV.base_probs[5, state], ENV.features[5, state] @ theta[5], ENV.beta)
    counts = np.bincount([int(r.segments[5]) for r in drawn.paths], minlength=2)
    assert chisquare(counts, 2000 * law).pvalue > 1e-6


def test_an_oracle_of_whole_responses_can_not_go_on() -> None:
    with pytest.raises(
        InputError, match="roller needs an oracle that can go on after a prefix, got TabularEnvironment"
    ):
        outcome(DrawRequest((0,), 3, None, {}, ((),)), tie(prompts=4))
    assert isinstance(ENV, TokenEnvironment)


def test_the_levels_are_the_largest_scores_of_what_was_drawn() -> None:
    with Ledger.open(None, meta=spec_meta(SPEC, 0), prompts=list(ENV.prompts)) as ledger:
        run = Driver(ENV, Roller(), ENV.reward(0), ledger, SPEC, seed=0)
        theta = np.random.default_rng(0).standard_normal((6, 4))
        assert np.all(run.step_levels(theta) == np.inf)
        run.explore()
        events = list(ledger.events())
    best = np.full(6, -np.inf)
    for event in events:
        for record in event.draws if isinstance(event, Drawn) else ():
            assert record.prefix is not None
            h = len(record.prefix)
            best[h] = max(best[h], *(float(phi @ theta[h]) for phi in record.features))
    np.testing.assert_allclose(run.step_levels(theta), best)
