"""Trunks and branches where sequences end early, prompts differ in weight, labels break; the look ahead, slowly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp

from spannerlm.environments import token_environment
from spannerlm.errors import InputError
from spannerlm.explorers.multi_turn import MultiTurnSpanner
from spannerlm.explorers.paths import Paths
from spannerlm.explorers.trunk import SAMPLES, Design, TrunkState, foresight
from spannerlm.ledger import Ledger
from spannerlm.records import DrawRequest, Draws, FloatArray, Label, Labelled, LabelRequest, Spec, StepTilt
from spannerlm.run import Driver
from spannerlm.stepwise import rolled

DIM, HORIZON = 3, 4
BETA = 0.2


class Words:
    """Sequences of the letters a, b, c, at most four; an "a" ends one. Two prompts; features by step and letter."""

    prompts = ("x", "y")
    dim = HORIZON * DIM
    letters = ("a", "b", "c")
    law = np.array([0.2, 0.5, 0.3])

    def draw(self, prompts: Sequence[int], n: int, *, rng: np.random.Generator) -> tuple[Draws, ...]:
        raise AssertionError("steps only")

    def extend(
        self, prompts: Sequence[int], prefixes: Sequence[tuple[str, ...]], n: int, *, rng: np.random.Generator
    ) -> tuple[Draws, ...]:
        out = []
        for x, prefix in zip(prompts, prefixes, strict=True):
            counts = rng.multinomial(n, self.law)
            seen = np.flatnonzero(counts)
            features = np.array([self.feature(x, prefix, self.letters[i]) for i in seen])
            out.append(Draws(x, tuple(self.letters[i] for i in seen), counts[seen], features, tuple(prefix)))
        return tuple(out)

    def feature(self, prompt: int, prefix: tuple[str, ...], letter: str) -> FloatArray:
        return np.eye(DIM)[self.letters.index(letter)] * (1.0 if len(prefix) % 2 else -1.0)

    def joined(self, prompt: int, segments: Sequence[str]) -> str:
        return "".join(segments)

    def complete(self, prompt: int, segments: Sequence[str]) -> bool:
        return len(segments) == HORIZON or "a" in segments

    def tokens(self, draws: Draws) -> int:
        return int(draws.counts.sum())


def worth(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float | None]:
    """A long sequence of c is best."""
    return [0.3 * text.count("c") - 0.1 * text.count("a") for text in completions]


def spec_of(labels: int = 40, rho: Sequence[float] = (0.5, 0.5), **options: Any) -> Spec:
    return Spec(np.array(rho), HORIZON * DIM, labels, None, 6, beta=BETA, horizon=HORIZON, **options)


def driven(spec: Spec, reward: Any = worth, explorer: MultiTurnSpanner | None = None) -> Driver:
    ledger = Ledger.open(None, meta={}, prompts=list(Words.prompts))
    run = Driver(Words(), explorer or MultiTurnSpanner(), reward, ledger, spec, seed=3)
    run.explore()
    return run


def test_sequences_may_end_early() -> None:
    run = driven(spec_of())
    state: TrunkState = run.state
    lengths = {len(path.segments) for path in state.labelled}
    assert len(lengths) > 1
    assert max(lengths) == HORIZON
    paths = Paths.of(state.store, state.labelled, state.shape)
    jacobian = paths.at(state.theta, BETA).jacobian().reshape(len(state.labelled), HORIZON, DIM)
    for row, path in zip(jacobian, state.labelled, strict=True):
        assert not row[len(path.segments) :].any()
    assert run.ledger.counts.labels == len(state.values) <= 40
    drawn = rolled(
        Words(),
        DrawRequest((0,) * 200, 8, tilt=StepTilt(run.explorer.policy(run.state).theta, BETA), prefixes=((),) * 200),
        rng=np.random.default_rng(1),
    )
    learned = np.mean(worth([], [path.response for path in drawn.paths]))
    base = 0.3 * 0.3 * sum(0.8**h for h in range(HORIZON))  # c at each step that is reached, less at most 0.1
    assert learned > base + 0.2


def test_trunks_follow_the_prompts_weights() -> None:
    run = driven(spec_of(36, rho=(0.9, 0.1)))
    trunks = [
        x
        for entry in run.ledger.replay()
        if isinstance(entry.event, DrawRequest) and entry.event.info["phase"] == "trunk"
        for x in entry.event.prompts
    ]
    share = np.mean(np.array(trunks) == 0)
    assert abs(share - 0.9) < 3.0 * np.sqrt(0.09 / len(trunks)) + 1e-9
    assert set(trunks) == {0, 1}


def test_a_failed_and_a_skipped_label_are_charged_and_teach_nothing() -> None:
    explorer = MultiTurnSpanner()
    state, rng, k = explorer.init(spec_of()), np.random.default_rng(0), 0
    while True:
        request = explorer.decide(state, rng=np.random.default_rng([0, k]))
        state = explorer.absorb(state, request)
        if isinstance(request, LabelRequest):
            break
        state = explorer.absorb(state, rolled(Words(), request, rng=rng))
        k += 1
    before, (first, second, *rest) = state, request.items
    broken = [
        Label(first.prompt, first.response, None, status="failed"),
        Label(second.prompt, second.response, None, status="skip"),
    ]
    after = explorer.absorb(state, Labelled(tuple(broken), np.zeros((2, state.learner.spec.dim))))
    assert after.fit is None
    assert (after.labelled, after.waiting) == (before.labelled, before.waiting)
    assert after.learner.bought == before.learner.bought + 2
    assert after.learner.pending == tuple(rest)
    good = [Label(item.prompt, item.response, 0.5) for item in rest]
    after = explorer.absorb(after, Labelled(tuple(good), np.zeros((len(rest), state.learner.spec.dim))))
    assert len(after.values) == len(rest)
    assert not after.learner.pending


def test_failures_neither_end_a_run_nor_exceed_its_budget() -> None:
    def breaks(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[Any]:
        return [None if i % 2 else v for i, v in enumerate(worth(prompts, completions))]

    run = driven(spec_of(30), breaks)
    counts = run.ledger.counts
    assert counts.labels + counts.skips == counts.charged <= 30
    assert counts.skips > 5
    assert len(run.state.values) == counts.labels


def test_branches_have_branches() -> None:
    run = driven(spec_of(60), explorer=MultiTurnSpanner(nu=0.3))
    starts = [
        (start, prefix)
        for entry in run.ledger.replay()
        if isinstance(entry.event, DrawRequest) and entry.event.info["phase"] == "branch"
        for start, prefix in zip(entry.event.info["starts"], entry.event.prefixes or (), strict=True)
    ]
    assert all(len(prefix) == start for start, prefix in starts)
    branches = {prefix for _, prefix in starts}
    again = [
        prefix
        for prefix in branches
        if any(other != prefix and other == prefix[: len(other)] and len(other) > 0 for other in branches)
    ]
    assert again, "no branch grew out of a branch's later steps"


def test_a_pair_is_looked_at_again_once_between_trunks_and_its_more_telling_side_goes_first() -> None:
    explorer = MultiTurnSpanner(nu=0.3)
    run = driven(spec_of(24))
    state = replace(run.state, branches=(), waiting=(), rechecked=False)
    state = replace(state, learner=replace(state.learner, spec=replace(state.learner.spec, labels=10_000)))
    again = explorer._rechecked(state)
    assert again.branches
    assert again.rechecked
    design, theta = Design.of(state), state.rolled(state.bold)
    for core, (x, prefix) in zip(state.cores, again.branches, strict=False):
        choice, h = state.store.choices[core.place], len(core.place[1])
        if (x, prefix[:-1]) != core.place:
            continue
        rows = [choice.segments.index(name) for name in (core.kept, core.other)]
        relative = choice.features[rows[1]] - choice.features[rows[0]]
        law = choice.counts * np.exp(choice.features @ theta[h] / BETA)
        mean = law / law.sum() @ choice.features
        block = design.covariance[h * DIM : (h + 1) * DIM, h * DIM : (h + 1) * DIM]
        gains = [
            float((relative @ block @ (choice.features[k] - mean)) ** 2)
            / (1.0 + float((choice.features[k] - mean) @ block @ (choice.features[k] - mean)))
            for k in rows
        ]
        assert prefix[-1] == choice.segments[rows[int(np.argmax(gains))]]
        break
    item = state.labelled[0]
    phi = np.zeros((1, state.learner.spec.dim))
    label = Label(item.prompt, item.response, 0.1)
    settled = replace(again, branches=())
    later = explorer.absorb(settled, Labelled((label,), phi))
    assert not later.branches, "core pairs must wait for the next trunks"


def test_the_look_ahead_is_what_slow_sums_say() -> None:
    run = driven(spec_of(40))
    state: TrunkState = run.state
    trunks = list(state.labelled[-6:])
    found = foresight(state, trunks)
    fit = state.fit
    assert fit is not None
    covariance = fit.covariance.reshape(HORIZON, DIM, HORIZON, DIM)

    def law(choice: Any, theta: FloatArray) -> tuple[FloatArray, float]:
        logits = np.log(choice.counts / choice.counts.sum()) + choice.features @ theta / BETA
        total = float(logsumexp(logits))
        return np.exp(logits - total), BETA * total

    expected, sampled = 0.0, np.zeros(SAMPLES)
    thetas = fit.samples(SAMPLES, rng=np.random.default_rng([state.learner.bought, 65]))
    for path in trunks:
        for h in range(len(path.segments)):
            choice = state.store.choices[path.prompt, path.segments[:h]]
            own, value = law(choice, fit.theta[h])
            mean = own @ choice.features
            spread = sum(p * np.outer(f - mean, f - mean) for p, f in zip(own, choice.features, strict=True))
            expected += float(np.trace(covariance[h, :, h, :] @ spread)) * fit.noise_std**2 / (2.0 * BETA)
            for i, theta in enumerate(thetas):
                _, other = law(choice, theta[h])
                gain = choice.features @ (fit.theta[h] - theta[h]) - value + other
                sampled[i] += float(own @ gain)
    assert found.expected == pytest.approx(expected / len(trunks))
    assert found.sampled == pytest.approx(float(sampled.mean()) / len(trunks))
    assert found.worse == max(found.expected, found.sampled)
    assert found.expected >= 0.0
    assert found.sampled >= -1e-12


def test_what_it_cannot_work_with_is_refused() -> None:
    explorer = MultiTurnSpanner()
    for spec, match in (
        (replace(spec_of(), horizon=None), "resumes prefixes"),
        (replace(spec_of(), beta=None, kl=2.0), "give beta"),
        (replace(spec_of(), feedback="comparison"), "'scalar' alone"),
    ):
        with pytest.raises(InputError, match=match):
            explorer.init(spec)
    for alike in (-0.1, 1.0):
        with pytest.raises(InputError, match="alike"):
            MultiTurnSpanner(alike=alike)


def test_steps_that_are_alike_still_find_a_delayed_reward() -> None:
    env = token_environment("delayed-lock", horizon=6, seed=0)
    spec = Spec(env.prompt_probs, env.dim, 60, None, 10, beta=env.beta, fresh=True, horizon=6)
    with Ledger.open(None, meta={}, prompts=list(env.prompts)) as ledger:
        run = Driver(env, MultiTurnSpanner(alike=0.9), env.reward(0), ledger, spec, seed=0)
        run.explore()
        regret = env.regret(run.explorer.policy(run.state).table(env))
    assert regret < 0.1 * (env.optimal_value() - env.value(env.base_probs))
