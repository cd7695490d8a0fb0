"""Trunks and branches: budgets, purity, resume, the designs' short cuts, what is found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spannerlm
from spannerlm.environments import token_environment
from spannerlm.errors import InputError
from spannerlm.explorers.multi_turn import MultiTurnSpanner
from spannerlm.explorers.trunk import Design
from spannerlm.ledger import Counts, Ledger
from spannerlm.records import Spec
from spannerlm.run import Driver, spec_meta

ENV = token_environment("gated-lock", horizon=5, seed=0)
SPEC = Spec(ENV.prompt_probs, ENV.dim, 14, 900, 4, beta=ENV.beta, fresh=True, horizon=5)


class Killed(Exception):
    pass


def go(spec: Spec, folder: Path | None = None, *, kill: bool = False, reward: Any = None) -> tuple[list[str], Counts]:
    """What the ledger holds after a run, and what it counted; ``kill`` ends it after one request."""

    def observe(run: Driver) -> None:
        if kill and not run.reason:
            raise Killed

    with Ledger.open(folder, meta=spec_meta(spec, 0), prompts=list(ENV.prompts)) as ledger:
        run = Driver(ENV, MultiTurnSpanner(), reward or ENV.reward(0), ledger, spec, seed=0, observe=observe)
        run.replay()
        run.explore()
        run.stop()
        return list(ledger.export()), ledger.counts


def run(family: str, horizon: int, labels: int, seed: int = 0, **options: Any) -> Any:
    env = token_environment(family, horizon=horizon, seed=seed)
    return env, spannerlm.explore(env, labels=labels, explorer=MultiTurnSpanner(), seed=seed, batch=20, **options)


def test_a_delayed_reward_is_found() -> None:
    for seed in range(3):
        env, result = run("delayed-lock", 8, 60, seed)
        gap = env.optimal_value() - env.value(env.base_probs)
        assert result.history[-1]["regret"] < 0.1 * gap
        assert result.history[-1]["labels"] <= 60


def test_a_run_repeats_itself_and_one_step_is_enough() -> None:
    first, again = (run("gated-lock", 4, 20)[1].history for _ in range(2))
    assert [row["regret"] for row in first] == [row["regret"] for row in again]
    env, result = run("additive-lock", 1, 20)
    assert result.history[-1]["regret"] < env.optimal_value() - env.value(env.base_probs)


def test_a_run_killed_after_every_request_is_the_undisturbed_one(tmp_path: Path) -> None:
    whole, counts = go(SPEC, tmp_path / "whole")
    for _ in range(200):
        try:
            parts, _ = go(SPEC, tmp_path / "parts", kill=True)
        except Killed:
            continue
        break
    assert parts == whole
    assert counts.labels > 0


@pytest.mark.parametrize(
    ("labels", "draws"), [(0, 900), (1, 900), (2, 900), (7, 900), (200, 300), (200, 700), (9, 100)]
)
def test_budgets_are_never_exceeded(labels: int, draws: int) -> None:
    _, counts = go(replace(SPEC, labels=labels, draws=draws))
    assert counts.labels <= labels
    assert counts.draws <= draws


def test_rewards_that_are_missing_neither_break_a_run_nor_keep_it_going() -> None:
    inner = ENV.reward(0)

    def seldom(prompts: Sequence[str], completions: Sequence[str], replicate: Sequence[int]) -> list[float | None]:
        values = inner(prompts, completions, replicate=replicate)
        return [None if text.startswith("0") else v for text, v in zip(completions, values, strict=True)]

    def never(prompts: Sequence[str], completions: Sequence[str]) -> list[float | None]:
        return [None] * len(prompts)

    for reward in (seldom, never):
        _, counts = go(replace(SPEC, draws=4000), reward=reward)
        assert counts.labels <= 14
        assert counts.draws <= 4000


def test_a_run_stops_by_its_own_prediction_and_tells_it() -> None:
    env = token_environment("delayed-lock", horizon=4, seed=0)
    gap = env.optimal_value() - env.value(env.base_probs)
    _, result = run("delayed-lock", 4, 200, target_regret=0.2 * gap)
    last = result.history[-1]
    assert last["labels"] < 200
    assert 2.0 * max(last["predicted_regret"], last["predicted_regret_wide"]) <= 0.2 * gap
    assert 0 < last["predicted_at"] <= last["labels"]


def test_rank_one_updates_are_recomputed_designs() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    design = Design(np.linalg.inv(root @ root.T + np.eye(6)), 2)
    precision = np.linalg.inv(design.covariance)
    step = np.zeros(6)
    step[2:4] = rng.normal(size=2)
    for found, noise in ((design.with_pair(1, step[2:4]), 2.0), (design.with_label(1, step[2:4]), 1.0)):
        slow = np.linalg.inv(precision + np.outer(step, step) / noise)
        np.testing.assert_allclose(found.covariance, slow, atol=1e-10)
    other = rng.normal(size=2)
    lower = design.squares(1, other[None])[0] - design.with_label(1, step[2:4]).squares(1, other[None])[0]
    assert design.told(1, other, step[2:4]) == pytest.approx(lower)


def test_what_cannot_be_explored_is_refused() -> None:
    env = token_environment("delayed-lock", horizon=4, seed=0)
    good = Spec(env.prompt_probs, env.dim, 25, None, 5, beta=env.beta, fresh=True, horizon=4)
    MultiTurnSpanner().init(good)
    for wrong, words in ((replace(good, horizon=None), "prefixes"), (replace(good, beta=None), "beta")):
        with pytest.raises(InputError, match=words):
            MultiTurnSpanner().init(wrong)
    for options in ({"draws": 1}, {"trunks": 0}, {"nu": 0.0}, {"nu": float("nan")}, {"shrink": 1.0}):
        with pytest.raises(InputError, match="multi-turn-spanner"):
            MultiTurnSpanner(**options)
