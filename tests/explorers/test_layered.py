"""`multi-turn-spanner-paper`: with one step the published algorithm; with more, an induction that learns locks."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layered_desk import Desk, driven, spec_of

import spannerlm
from spannerlm.environments import token_environment
from spannerlm.environments.token import TokenEnvironment
from spannerlm.errors import InputError
from spannerlm.explorers import TheorySpannerSampling, explorer_by_name
from spannerlm.explorers.layered import LayeredSpanner, LayeredState
from spannerlm.explorers.spanner_sampling import theory_schedule
from spannerlm.ledger import Counts, Ledger
from spannerlm.records import (
    Drawn,
    Event,
    Label,
    Labelled,
    LabelRequest,
)
from spannerlm.run import Driver, spec_meta

ENV = token_environment("gated-lock", horizon=4, seed=1)
BOUND = 0.52
"""B of the runs of one step: it binds for some of their labels, not for all."""


# --- H = 1 is the algorithm of THEORY 3 -----------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "labels"), [(2, 1000), (8, 1000), (5, 41)])
@pytest.mark.parametrize("seed", [0, 1])
def test_one_step_is_the_published_algorithm(batch: int, labels: int, seed: int) -> None:
    """THEORY 5: same draws, same sampler, an intercept per pair. So the same pairs, labels, theta and policy."""
    env = token_environment("random-token-mdp", horizon=1, actions=7, dim=4, states=5, seed=seed)
    fields = {"penalty": 0.3, "nu": 0.5, "t_span": 150, "n_span": 5, "t_exp": 31, "bound": 3.0}
    paper = LayeredSpanner(**fields, b=BOUND, delta=0.1, shrink=None)
    theory = TheorySpannerSampling(c_cov=3.0, b=BOUND, delta=0.1, overrides=fields)
    ours, our_states = driven(paper, env, seed, batch=batch, labels=labels)
    theirs, their_states = driven(theory, env, seed, batch=batch, labels=labels, horizon=None)
    asked = [[e.items for e in events if isinstance(e, LabelRequest)] for events in (ours, theirs)]
    assert asked[0] == asked[1]
    assert sum(map(len, asked[0])) == 40 if labels == 41 else sum(map(len, asked[0])) > 60
    for one, other in zip(*(labels_and_draws(events) for events in (ours, theirs)), strict=True):
        if isinstance(one, Labelled):
            assert one.labels == other.labels
            continue
        assert one.info.get("seed") == other.info.get("seed") or one.info["phase"] == "tilt"
        if one.info["phase"] != "tilt":
            assert repr([replace(record, prefix=None) for record in one.draws]) == repr(list(other.draws))
    after = [
        [(state, event) for state, event in zip(states, events, strict=True) if isinstance(event, Labelled)]
        for states, events in ((our_states, ours), (their_states, theirs))
    ]
    moved = set()
    for (mine, _), (published, _) in zip(*after, strict=True):
        layer = mine.layers[0]
        np.testing.assert_allclose(layer.spanner.sigma, published.spanner.sigma, rtol=0, atol=1e-9)
        assert layer.spanner.accepted == published.spanner.accepted
        np.testing.assert_allclose(layer.theta, theory._theta(published), rtol=0, atol=1e-9)
        table = theory.policy(published).table(env.to_table())
        np.testing.assert_allclose(paper.policy(mine).table(env)[0], table, rtol=0, atol=1e-9)
        moved.add(round(float(np.linalg.norm(layer.theta)), 6))
    assert len(moved) > 3
    assert max(moved) == pytest.approx(BOUND), "norm(theta) <= B"
    assert ours[-1].reason == {"published schedule complete": "schedule complete"}.get(
        theirs[-1].reason, theirs[-1].reason
    )


def labels_and_draws(events: list[Event]) -> list[Any]:
    """Outcomes, without the roll-outs of one step: nothing is drawn in those."""
    drawn = [event for event in events if isinstance(event, Drawn) and event.info["phase"] == "roll-out"]
    assert all(event.spent == 0 and not event.draws for event in drawn)
    kept = [event for event in events if isinstance(event, (Drawn, Labelled))]
    return [event for event in kept if event.info["phase"] != "roll-out"]


def test_the_published_schedule() -> None:
    told = {"beta": 0.4, "r_max": 1.5, "b": 2.0, "eps": 0.3, "delta": 0.2}
    explorer = LayeredSpanner.published(4, **told, c_cond=2.5, draws=9)
    schedule = theory_schedule(4, **told, c_cov=2.5)
    for name in ("penalty", "nu", "t_span", "n_span", "t_exp", "bound"):
        assert getattr(explorer, name) == getattr(schedule, name)
    assert (explorer.draws, explorer.b, explorer.delta, explorer.shrink) == (9, 2.0, 0.2, None)


# --- several steps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "labels"), [("additive-lock", 500), ("gated-lock", 150), ("delayed-lock", 80)])
@pytest.mark.parametrize("seed", [0, 1])
def test_locks_of_four_steps_are_learned(family: str, labels: int, seed: int) -> None:
    """Regret below 5 % of the gap; the labels are all spent, and tokens are draws, one each."""
    env = token_environment(family, horizon=4, seed=seed)
    result = spannerlm.explore(env, explorer="multi-turn-spanner-paper", labels=labels, batch=8, seed=seed)
    assert env.regret(result.policy.table(env)) < 0.05 * env.regret(env.base_probs)
    assert (result.labels, result.reason) == (labels, "labels spent")
    assert result.counts.tokens == result.counts.draws == result.history[-1]["tokens"]
    assert result.theta.shape == (4, env.step_dim)


def test_tokens_are_those_of_the_draws() -> None:
    env = token_environment("gated-lock", horizon=4, seed=2, modifiers={"blocks": {"m": 2}})
    result = spannerlm.explore(env, explorer="multi-turn-spanner-paper", labels=30, seed=0)
    assert result.counts.tokens == env.tokens_per_action * result.counts.draws > 0
    events, _ = driven(LayeredSpanner(), ENV, 0)
    for request, outcome in zip(events[::2], events[1::2], strict=False):
        if isinstance(outcome, Drawn):
            starts = request.prefixes
            steps = 4 - np.array([len(prefix) for prefix in starts]) if request.tilt else np.ones(len(starts))
            assert outcome.spent == outcome.tokens == request.n * steps.sum()


def test_labels_go_from_the_last_step_to_the_first_and_start_again_where_a_pair_is_found() -> None:
    events, states = driven(LayeredSpanner(), ENV, 3, labels=150)
    restarts = 0
    for before, event, after in zip(states, events[1:], states[1:], strict=False):
        pairs = zip(before.layers, after.layers, strict=True)
        new = [h for h, (old, layer) in enumerate(pairs) if layer.spanner.accepted > old.spanner.accepted]
        if new:
            assert isinstance(event, Drawn)
            assert after.at >= max(new)
            restarts += any(pair.difference is not None for layer in before.layers for pair in layer.pairs)
        if isinstance(event, LabelRequest):
            (step,) = set(event.info["steps"])
            assert not any(pair.open for layer in before.layers[step + 1 :] for pair in layer.pairs)
        if isinstance(event, Labelled):
            (step,) = set(event.info["steps"])
            assert not np.array_equal(after.layers[step].theta, before.layers[step].theta)
            assert all(pair.open for layer in after.layers[:step] for pair in layer.pairs), "to be rolled out afresh"
            assert [a.theta is b.theta for a, b in zip(after.layers, before.layers, strict=True)].count(False) == 1
    assert restarts > 0


def test_roll_outs_that_find_a_pair_are_not_labelled() -> None:
    env = token_environment("random-token-mdp", horizon=4, seed=0)
    _, states = driven(LayeredSpanner(t_span=1), env, 0, labels=200)
    found = 0
    for before, after in itertools.pairwise(states):
        if sum(layer.spanner.accepted for layer in after.layers) > sum(
            layer.spanner.accepted for layer in before.layers
        ):
            found += before.at >= 0 and not before.probes
            assert after.queue == after.contexts == ()
    assert found > 0


def test_a_smaller_nu_takes_nothing_from_the_policy() -> None:
    """Most of what lay within the first radius lies beyond the next one, until it is labelled."""
    explorer = LayeredSpanner()
    _, states = driven(explorer, ENV, 0, labels=200)
    before, after = next((a, b) for a, b in itertools.pairwise(states) if b.nu < a.nu)
    at_once = explorer.policy(replace(after, radius=after.nu)).table(ENV)
    table = explorer.policy(after).table(ENV)
    np.testing.assert_array_equal(table, explorer.policy(replace(before, layers=after.layers)).table(ENV))
    assert np.abs(at_once - table).max() > 0.1


def test_core_pairs_lay_beyond_nu_when_they_were_found() -> None:
    explorer = LayeredSpanner(t_exp=0)
    _, states = driven(explorer, ENV, 1, labels=120)
    assert states[-1].nu < explorer.nu, "the first schedule was complete"
    for h in range(4):
        sigma, seen = explorer.penalty * np.eye(ENV.step_dim), 0
        for state in states:
            for pair in state.layers[h].pairs[seen:]:
                norm = np.sqrt(pair.relative @ np.linalg.solve(sigma, pair.relative))
                assert norm > state.nu
                sigma, seen = sigma + np.outer(pair.relative, pair.relative), seen + 1
        np.testing.assert_allclose(states[-1].layers[h].spanner.sigma, sigma, rtol=1e-12)


def test_what_no_roll_in_reaches_is_found_behind_core_pairs_before_any_label() -> None:
    """Delayed lock of 12 steps: a base roll-in is still good at the last step once in 2048, and no label tells."""
    env = token_environment("delayed-lock", horizon=12, seed=0)
    events, states = driven(LayeredSpanner(t_span=8), env, 0)
    first = next(i for i, event in enumerate(events) if isinstance(event, LabelRequest))
    scans = [e for e in events[:first] if isinstance(e, Drawn) and e.info["phase"] == "scan"]
    assert all(phi[:2].sum() == 0 for e in scans for d in e.draws if len(d.prefix or ()) == 11 for phi in d.features)
    for layer in states[first].layers:
        assert any(pair.relative[:2].any() for pair in layer.pairs), "a pair of a good state"


class Stopping(TokenEnvironment):
    """The gated lock, but a second action 1 ends the sequence; what is missing then counts as actions 0."""

    def complete(self, prompt: int, segments: Any) -> bool:
        return len(segments) == self.horizon or list(segments).count("1") == 2

    def reward(self, seed: int) -> Any:
        rater = super().reward(seed)

        def padded(prompts: list[str], texts: list[str], **columns: Any) -> list[float]:
            return rater(prompts, [" ".join((text.split(" ") + ["0"] * 4)[:4]) for text in texts], **columns)

        return padded


def test_sequences_may_end_before_the_last_step() -> None:
    arrays = ENV.next_state, ENV.base_probs, ENV.features, ENV.step_rewards, ENV.initial_probs
    env = Stopping(*arrays, beta=ENV.beta, noise_std=0.2)
    explorer = LayeredSpanner(shrink=None, t_exp=5)
    events, states = driven(explorer, env, 0, labels=1000)
    assert events[-1].reason == "schedule complete"
    assert [layer.rounds for layer in states[-1].layers] == [5] * 4, "those that had ended before are counted too"
    explored = [len(layer.pairs) - layer.spanner.accepted for layer in states[-1].layers]
    assert explored[3] < 5
    texts = {item.response for event in events if isinstance(event, LabelRequest) for item in event.items}
    assert min(map(len, texts)) < max(map(len, texts)) == 7
    assert all(text.split(" ").count("1") == 2 for text in texts if len(text) < 7)


def test_a_label_that_never_came_leaves_its_pair_out() -> None:
    explorer, desk = LayeredSpanner(), Desk(ENV, 0)
    state = explorer.init(spec_of(ENV))
    while not isinstance(request := explorer.decide(state, rng=desk.rng()), LabelRequest) or state.at > 1:
        state = explorer.absorb(explorer.absorb(state, request), desk.answer(request))
        desk.turn += 1
    outcome: Any = desk.answer(request)
    skipped = (replace(outcome.labels[0], value=None, status="skip"), *outcome.labels[1:])
    state = explorer.absorb(explorer.absorb(state, request), replace(outcome, labels=skipped))
    step = request.info["steps"][0]
    known = [state.layers[step].pairs[row].difference for row in request.info["rows"]]
    values = [label.value for label in outcome.labels]
    net = [(a - g) - (b - h) for a, b, (g, h) in zip(values[::2], values[1::2], request.info["gains"], strict=True)]
    assert known == [None, *net[1:]]
    assert any(g != h for g, h in request.info["gains"]), "a later step has learned"
    assert not state.layers[step].pairs[request.info["rows"][0]].open, "it is not asked for again"
    pairs = [pair for pair in state.layers[step].pairs if pair.difference is not None]
    phi, r = np.array([p.relative for p in pairs]), np.array([p.difference for p in pairs])
    slow = np.linalg.solve(phi.T @ phi + explorer.penalty * np.eye(4), phi.T @ r)
    np.testing.assert_allclose(state.layers[step].theta, slow, atol=1e-12)
    alien = Labelled((Label(0, "0 0 0 0", 1.0),), np.zeros((1, ENV.dim)))
    np.testing.assert_array_equal(explorer.absorb(state, alien).theta, state.theta)


# --- runs -----------------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def go(folder: Path | None, *, kill: bool = False) -> tuple[list[str], list[dict[str, Any]], Counts]:
    spec = spec_of(ENV, labels=24)

    def observe(run: Driver) -> None:
        if kill and not run.reason:
            raise Killed

    with Ledger.open(folder, meta=spec_meta(spec, 0), prompts=list(ENV.prompts)) as ledger:
        run = Driver(ENV, LayeredSpanner(t_span=8), ENV.reward(0), ledger, spec, seed=0, observe=observe)
        run.measure = lambda policy: {"regret": ENV.regret(policy.table(ENV))}
        run.replay()
        run.explore()
        run.stop()
        return list(ledger.export()), run.history, ledger.counts


def test_a_run_killed_after_every_request_is_the_undisturbed_one(tmp_path: Path) -> None:
    whole, history, counts = go(tmp_path / "whole")
    for _ in range(200):
        try:
            parts, again, _ = go(tmp_path / "parts", kill=True)
        except Killed:
            continue
        break
    assert parts == whole
    assert again == history
    assert counts.labels == 24
    assert [row["labels"] for row in history] == sorted({row["labels"] for row in history})


def test_it_ends_where_every_sequence_has_its_label() -> None:
    env = token_environment("delayed-lock", horizon=2, states=2, seed=0)
    spec = spec_of(env, labels=50, fresh=False)
    with Ledger.open(None, meta=spec_meta(spec, 0), prompts=list(env.prompts)) as ledger:
        run = Driver(env, LayeredSpanner(), env.reward(0), ledger, spec, seed=0)
        run.explore()
        assert (run.reason, ledger.counts.labels) == ("schedule complete", 4)
        assert ledger.counts.reused > 20


@pytest.mark.parametrize("draws", [1, 500, 1600, 2120, *range(2500, 4500, 250)])
def test_the_draws_budget_holds(draws: int) -> None:
    result = spannerlm.explore(ENV, explorer="multi-turn-spanner-paper", labels=2000, draws=draws, seed=0)
    assert result.draws <= draws
    assert result.reason == "draws spent"
    assert (result.draws == 0) == (draws < 32 * 12 * 4)
    assert (result.state.contexts, result.state.anchors) == ((), ()), "a round that has begun is paid for"


def test_a_schedule_without_shrinkage_ends() -> None:
    explorer = LayeredSpanner(t_span=70, shrink=None)
    events, states = driven(explorer, ENV, 0, labels=2000)
    assert events[-1].reason == "schedule complete"
    assert states[-1].scanned == 70
    assert [layer.rounds for layer in states[-1].layers] == [2] * 4
    assert not any(pair.open for layer in states[-1].layers for pair in layer.pairs)
    assert events[-1].info == explorer.progress(states[-1])
    assert events[-1].info["pairs"] == sum(layer.spanner.accepted for layer in states[-1].layers)


def test_decide_is_pure_and_states_are_a_fold() -> None:
    explorer = LayeredSpanner(t_span=8)
    events, states = driven(explorer, ENV, 2, labels=30)
    state: LayeredState = explorer.init(spec_of(ENV, labels=30))
    for event, known in zip(events, states, strict=True):
        first, second = (explorer.decide(state, rng=np.random.default_rng(7)) for _ in range(2))
        assert repr(first) == repr(second)
        state = explorer.absorb(state, event)
        np.testing.assert_array_equal(state.theta, known.theta)
    assert explorer.learner(state).bought == 30


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"horizon": None}, "needs an oracle that resumes prefixes"),
        ({"feedback": "comparison"}, "learns from 'scalar' alone, got 'comparison'"),
        ({"beta": None, "kl": 1.0}, "needs one, got a KL budget"),
    ],
)
def test_runs_that_it_refuses(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        LayeredSpanner().init(spec_of(ENV, **changes))


WRONG = {"penalty": 0.0, "nu": float("nan"), "t_span": 0, "n_span": 0, "t_exp": -1, "bound": 0.5, "draws": 0, "b": -1.0}


@pytest.mark.parametrize(("name", "value"), [*WRONG.items(), ("delta", 1.0), ("shrink", 1.0)])
def test_settings_that_it_refuses(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"got {name} = "):
        explorer_by_name("multi-turn-spanner-paper", {name: value})


def test_its_name_on_the_command_line() -> None:
    assert explorer_by_name("multi-turn-spanner-paper", {"nu": 0.5}) == LayeredSpanner(nu=0.5)
