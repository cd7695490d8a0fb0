"""`explore` on exact environments: determinism, budgets, the history, and how many labels exploration saves."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from duels import Duels

import spannerlm
from spannerlm import bundled
from spannerlm.environments import TabularEnvironment, rare_skill, tie
from spannerlm.errors import InputError, SpannerError
from spannerlm.explorers import EXPLORERS, TheorySpannerSampling
from spannerlm.ledger import Ledger
from spannerlm.records import Labelled
from spannerlm.run import Result

THEORY = TheorySpannerSampling(c_cov=20.0, overrides={"t_span": 30, "n_span": 8, "t_exp": 400, "nu": 0.5, "bound": 5.0})
CHOICES: dict[str, Any] = {**{name: name for name in EXPLORERS}, "theory": THEORY}
every_explorer = pytest.mark.parametrize("explorer", CHOICES.values(), ids=CHOICES)


class Watched(TabularEnvironment):
    """Counts what its oracle and its rater are asked for."""

    def __init__(self, env: TabularEnvironment) -> None:
        super().__init__(
            env.prompt_probs, env.base_probs, env.features, env.mean_rewards, beta=env.beta, noise_std=env.noise_std
        )
        object.__setattr__(self, "drawn", 0)
        object.__setattr__(self, "seen", set())
        object.__setattr__(self, "labelled", [])

    def draw(self, prompts: Any, n: int, *, rng: np.random.Generator) -> Any:
        records = super().draw(prompts, n, rng=rng)
        object.__setattr__(self, "drawn", self.drawn + n * len(prompts))
        self.seen.update((d.prompt, y) for d in records for y in d.responses)
        return records

    def enumerate(self, prompts: Any, limit: int) -> Any:
        records = super().enumerate(prompts, limit)
        object.__setattr__(self, "drawn", self.drawn + sum(int(d.counts.sum()) for d in records))
        self.seen.update((d.prompt, y) for d in records for y in d.responses)
        return records

    def _mean_reward(self, prompts: Any, completions: Any) -> list[float]:
        self.labelled.extend((int(x), y) for x, y in zip(prompts, completions, strict=True))
        return super()._mean_reward(prompts, completions)


def rows(result: Result) -> list[tuple[Any, ...]]:
    return [(row["labels"], row["draws"], row["regret"]) for row in result.history]


@every_explorer
def test_a_seed_is_a_run(explorer: Any) -> None:
    env = rare_skill(0.1, prompts=6)
    first, again, other = (spannerlm.explore(env, explorer=explorer, labels=50, seed=s) for s in (3, 3, 4))
    assert rows(first) == rows(again)
    np.testing.assert_array_equal(first.theta, again.theta)
    np.testing.assert_array_equal(first.policy.table(env), again.policy.table(env))
    assert rows(first) != rows(other)


@every_explorer
@pytest.mark.parametrize("labels", [2, 19, 60])
def test_costs_are_what_oracle_and_rater_saw(explorer: Any, labels: int) -> None:
    env = Watched(tie(prompts=5, responses=8, dim=3))
    result = spannerlm.explore(env, explorer=explorer, labels=labels, seed=1)
    whole = labels - labels % 2 if explorer is THEORY else labels  # the published method buys pairs
    assert result.labels == len(env.labelled) == whole
    assert result.draws == env.drawn
    assert set(env.labelled) <= env.seen, "a label was bought for a response that was never drawn"
    assert result.counts.eval_draws == result.counts.eval_labels == 0


@every_explorer
def test_history_starts_at_no_labels_and_steps_by_at_most_twenty(explorer: Any) -> None:
    env = rare_skill(0.05, prompts=6)
    result = spannerlm.explore(env, explorer=explorer, labels=130, seed=0)
    labels = [row["labels"] for row in result.history]
    assert labels[0] == 0
    assert labels[-1] == result.labels == 130
    assert all(0 < b - a <= 20 for a, b in pairwise(labels))
    assert result.history[0]["regret"] == pytest.approx(env.regret(env.base_probs), abs=1e-12)
    assert result.history[-1]["regret"] == env.regret(result.policy.table(env))
    assert result.history[-1]["draws"] == result.draws
    json.dumps(result.history, allow_nan=False)


@every_explorer
def test_history_tells_what_a_run_with_that_budget_returns(explorer: Any) -> None:
    env = rare_skill(0.05, prompts=6)
    history = spannerlm.explore(env, explorer=explorer, labels=120, seed=2).history
    for row in history[1:-1:2]:
        short = spannerlm.explore(env, explorer=explorer, labels=row["labels"], seed=2)
        assert short.labels == row["labels"]
        assert env.regret(short.policy.table(env)) == row["regret"]
        assert short.draws == row["draws"]


@every_explorer
def test_draws_are_never_exceeded(explorer: Any) -> None:
    for draws in (1, 9, 37, 150, 1000):
        env = Watched(tie(prompts=4, responses=8, dim=3))
        result = spannerlm.explore(env, explorer=explorer, labels=24, draws=draws, seed=1)
        assert result.draws == env.drawn <= draws
        assert result.labels <= 24
        assert result.reason
        if explorer is not THEORY and draws >= 37:  # two draws a prompt, and one a label
            assert result.labels == 24


@every_explorer
@pytest.mark.parametrize("name", ["one prompt", "two prompts", "constant", "zero", "equal rewards", "one response"])
def test_small_and_degenerate_tasks_end_in_a_finite_policy(explorer: Any, name: str) -> None:
    rng = np.random.default_rng(0)
    x = 1 if name == "one prompt" else 2
    y = 1 if name == "one response" else 5
    features, rewards = rng.normal(size=(x, y, 2)), rng.normal(size=(x, y))
    features = {"constant": np.full_like(features, 3.0), "zero": np.zeros_like(features)}.get(name, features)
    rewards = np.ones_like(rewards) if name == "equal rewards" else rewards
    env = TabularEnvironment(np.full(x, 1 / x), np.full((x, y), 1 / y), features, rewards, beta=0.5, noise_std=0.1)
    for labels in (1, 7, 30):
        result = spannerlm.explore(env, explorer=explorer, labels=labels, draws=3000, seed=0)
        table = result.policy.table(env)
        assert np.isfinite(table).all()
        np.testing.assert_allclose(table.sum(axis=1), 1.0, atol=1e-12)
        assert np.isfinite([row["regret"] for row in result.history]).all()
        if name in ("constant", "zero", "one response"):
            np.testing.assert_allclose(table, env.base_probs, atol=1e-9)


def test_labels_buy_regret() -> None:
    """Many labels leave next to none of it, whoever chooses them; noise .1."""
    env = tie(prompts=4, responses=8, dim=3, noise_std=0.1)
    for explorer in EXPLORERS:
        history = spannerlm.explore(env, explorer=explorer, labels=400, seed=0).history
        assert history[-1]["regret"] < 0.002 * history[0]["regret"], explorer


def test_a_run_directory_resumes_to_the_same_result(tmp_path: Path) -> None:
    env = rare_skill(0.05, prompts=6)
    plain = spannerlm.explore(env, labels=40, seed=5)
    kept = spannerlm.explore(env, labels=40, seed=5, run_dir=tmp_path / "run")
    again = spannerlm.explore(env, labels=40, seed=5, run_dir=tmp_path / "run")
    assert rows(plain) == rows(kept) == rows(again)
    np.testing.assert_array_equal(kept.theta, again.theta)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"labels": 0}, "labels: expected a whole number of at least 1, got 0"),
        ({"labels": 2.5}, "labels"),
        ({"labels": True}, "labels"),
        ({"labels": 5, "draws": 0}, "draws"),
        ({"labels": 5, "batch": -1}, "batch"),
        ({"labels": 5, "explorer": "spaner"}, "explorer: expected one of .*passive"),
        ({"labels": 5, "beta": 0.1}, "an environment brings its own beta"),
        ({"labels": 5, "segments": 8, "horizon": 2}, "an environment brings its own segments, horizon"),
        ({"labels": 5, "beta": 0.1, "kl": 2.0}, "give one of them"),
        ({"labels": 5, "beta": -0.1}, "positive beta"),
        ({"labels": 5, "kl": -1.0}, "kl: expected a budget of at least 0"),
        ({"labels": 5, "feedback": "duel"}, "feedback: expected 'scalar' or 'comparison', got 'duel'"),
        ({"labels": 5, "feedback": "comparison", "compare": len}, "an environment brings its own compare"),
        ({"labels": 5, "compare": len}, "feedback: expected 'comparison' where compare is given"),
        ({"labels": 5, "scale": 2.0}, "feedback: expected 'comparison' where scale=2.0 is given"),
        ({"labels": 5, "feedback": "comparison", "scale": 0.0}, "scale: expected a positive number of reward units"),
        ({"labels": 5, "feedback": "comparison", "scale": np.inf}, "scale: expected a positive number"),
        ({"labels": 5, "target_regret": -0.1}, "target_regret: expected a positive number of reward units, got -0.1"),
        ({"labels": 5, "target_regret": float("nan")}, "target_regret: expected a positive number"),
        ({"labels": 5, "explorer": "random-singles", "feedback": "comparison"}, "comparison"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        spannerlm.explore(tie(prompts=2, responses=3, dim=2), **options)
    assert isinstance(caught.value, SpannerError)


def test_neither_environment_nor_model_is_an_error() -> None:
    with pytest.raises(InputError, match="expected an environment, or prompts=, model= and reward="):
        spannerlm.explore(labels=5)
    with pytest.raises(InputError, match="expected an environment, or prompts=, model= and compare="):
        spannerlm.explore(labels=5, prompts=["p"], model="m", reward=lambda completions: [], feedback="comparison")


def test_an_environment_compares_by_its_own_rater_and_resumes(tmp_path: Path) -> None:
    env = tie(prompts=4, responses=8, dim=3)
    options: dict[str, Any] = {"labels": 30, "seed": 2, "feedback": "comparison", "scale": 0.5, "target_regret": 0.01}
    result = spannerlm.explore(env, explorer=Duels(), run_dir=tmp_path / "run", **options)
    with Ledger.open(tmp_path / "run") as ledger:
        labels = [label for event in ledger.events() if isinstance(event, Labelled) for label in event.labels]
        assert (ledger.meta["feedback"], ledger.meta["scale"], ledger.meta["target_regret"]) == (
            "comparison",
            0.5,
            0.01,
        )
    rater = env.comparison(2, 0.5)
    for label in labels:
        x, replicate = [str(label.prompt)], [label.replicate]
        assert [label.value] == rater(x, [label.response], [label.opponent or ""], replicate=replicate)
    assert result.labels == len(labels) == 30
    again = spannerlm.explore(env, explorer=Duels(), run_dir=tmp_path / "run", **options)
    assert rows(again) == rows(result)
    with pytest.raises(InputError, match=r"this ledger was made with scale = 0.5, now it is 2.0"):
        spannerlm.explore(env, explorer=Duels(), run_dir=tmp_path / "run", **{**options, "scale": 2.0})


def test_a_real_model_is_explored_by_a_comparison_function(tmp_path: Path) -> None:
    seen: list[tuple[str, str, str, int]] = []

    def shorter(prompts: Any, completions: Any, opponents: Any, level: Any) -> list[float | None]:
        seen.extend(zip(prompts, completions, opponents, level, strict=True))
        return [float(len(a) <= len(b)) for a, b in zip(completions, opponents, strict=True)]

    pytest.importorskip("transformers")
    task = bundled.load("helpdesk")
    result = spannerlm.explore(
        model=str(task.model_path),
        prompts=task.train_prompts[:3],
        columns={"level": [0, 1, 2]},
        compare=shorter,
        feedback="comparison",
        explorer=Duels(fresh=False),
        labels=12,
        batch=6,
        run_dir=tmp_path / "run",
    )
    assert result.labels == len(seen) <= 12
    assert {(prompt, level) for prompt, _, _, level in seen} <= set(zip(task.train_prompts, range(3), strict=False))
    assert len({(prompt, *sorted(pair)) for prompt, *pair, _ in seen}) == len(seen)
    assert (tmp_path / "run" / "run.db").exists()


def test_numpy_budgets_are_numbers() -> None:
    env = tie(prompts=2, responses=3, dim=2)
    result = spannerlm.explore(env, labels=np.int64(5), draws=np.int32(500), batch=np.int8(2), seed=0)  # type: ignore[arg-type]
    assert (type(result.labels), result.labels) == (int, 5)


# --- label efficiency (TESTBEDS) ------------------------------------------------------------------------------------


def labels_to_a_tenth(env: TabularEnvironment, explorer: str, labels: int, seed: int) -> float:
    """Labels until the regret is at most a tenth of the base model's and stays there for 60 more; inf if never."""
    history = spannerlm.explore(env, explorer=explorer, labels=labels, seed=seed).history
    good = [row["labels"] for row in history if row["regret"] <= 0.1 * history[0]["regret"]]
    bad = [row["labels"] for row in history if row["regret"] > 0.1 * history[0]["regret"]]
    held = (n for n in good if n + 60 <= labels and not any(n < other <= n + 60 for other in bad))
    return float(next(held, np.inf))


@pytest.mark.slow
def test_a_rare_skill_takes_a_tenth_of_the_labels() -> None:
    """rare-skill(.01), 5 seeds, medians: passive does not get there with ten times the labels."""
    spanner = np.median([labels_to_a_tenth(rare_skill(0.01, seed=s), "spanner-sampling", 300, s) for s in range(5)])
    assert spanner <= 200
    budget = int(10 * spanner) + 80  # the last rows must hold too
    passive = np.median([labels_to_a_tenth(rare_skill(0.01, seed=s), "passive", budget, s) for s in range(5)])
    assert passive >= 10 * spanner


@pytest.mark.slow
def test_exploring_costs_nothing_where_nothing_is_rare() -> None:
    """tie, 20 seeds under common random numbers, medians: at most 1.2 times the labels of passive."""
    spanner, passive = (
        np.median([labels_to_a_tenth(tie(seed=s), name, 400, s) for s in range(20)])
        for name in ("spanner-sampling", "passive")
    )
    assert spanner <= 1.2 * passive
