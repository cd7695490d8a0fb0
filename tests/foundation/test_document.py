"""The report put together: the parts agree with each other, several models are ranked, and JSON can hold it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from spannerlm.environments import random_table, rare_skill
from spannerlm.explorers.learner import Learner
from spannerlm.foundation.document import Question, Subject, _rank, _spread, document, fitted_scores
from spannerlm.foundation.gather import Gathered, gather_table
from spannerlm.foundation.pool import Pool
from spannerlm.job import plain
from spannerlm.ledger import Counts
from spannerlm.records import Drawn, Draws, Label, Labelled, Spec

QUESTION = Question(kl=1.0, simulations=0, seed=3)


def made(env: Any, question: Question = QUESTION, *, labels: int | None = None, draws: int = 256) -> dict[str, Any]:
    found = gather_table(env, labels=labels, draws=draws, seed=1)
    return document([Subject("m", "table", found)], question, title="t", reward="r")


@pytest.fixture(scope="module")
def graded() -> dict[str, Any]:
    return made(random_table(prompts=10, responses=60, binary=0, seed=1004))


def test_the_parts_speak_of_the_same_draws(graded: dict[str, Any]) -> None:
    (model,) = graded["models"]
    assert graded["settings"]["draws"] == 256
    assert graded["settings"]["labels"] == 0
    assert model["counts"] == {"prompts": 10, "draws": 2560, "labels": 0, "skips": 0}
    assert model["unseen"]["total"] == 2560
    assert model["success"]["draws"] == 2560
    assert [span["map"] for span in model["spans"]] == ["features"] == [row["map"] for row in model["maps"]["rows"]]
    assert model["reach"]["kl"] == 1.0
    assert 1.0 in graded["settings"]["kls"]
    assert [row["kl"] for row in model["reach"]["rows"]] == graded["settings"]["kls"]
    assert model["forecast"] is None
    assert graded["headline"] == [model["verdict"]["title"]]
    assert graded["settings"]["reward_kind"] == "real"


def test_the_level_of_an_optimum_is_what_it_earns(graded: dict[str, Any]) -> None:
    level = graded["settings"]["success"]
    assert level["source"] == "optimum"
    assert level["value"] == pytest.approx(graded["models"][0]["reach"]["at"]["value"]["value"], rel=0.1)
    given = made(random_table(prompts=10, responses=60, binary=0, seed=1004), Question(success=0.9, simulations=0))
    assert given["settings"]["success"] == {"value": 0.9, "source": "given"}


def test_json_holds_it_and_the_seed_decides(graded: dict[str, Any]) -> None:
    again = made(random_table(prompts=10, responses=60, binary=0, seed=1004))
    text = json.dumps(plain(graded), allow_nan=False)
    assert text == json.dumps(plain(again), allow_nan=False)


def test_a_forecast_is_of_the_map_to_use() -> None:
    found = made(rare_skill(0.1, prompts=8, noise_std=0.2), Question(kl=1.0, simulations=2, horizon=100))
    (model,) = found["models"]
    assert model["forecast"]["map"] == model["maps"]["best"]
    assert model["forecast"]["simulations"] == 2
    assert model["forecast"]["draws"] == model["reach"]["needed"]
    assert model["forecast"]["answer"] == model["reach"]["at"]["draws_per_answer"]


def test_without_rewards_only_what_the_draws_hold() -> None:
    found = made(random_table(prompts=10, responses=60, seed=1004), labels=0)
    (model,) = found["models"]
    assert [model[part] for part in ("success", "reach", "maps", "forecast")] == [None] * 4
    assert model["verdict"]["kind"] == "cannot tell"
    assert found["settings"]["success"] is None
    assert found["settings"]["reward_kind"] is None
    assert model["unseen"]["statements"]


def test_labels_tell_of_rates_and_of_the_reward_fitted_to_them() -> None:
    env = random_table(prompts=10, responses=60, binary=0, seed=1004)
    found = made(env, labels=400)
    (model,) = found["models"]
    assert model["success"] is None  # no level was given, and what an optimum earns is not read off noisy labels
    assert made(env, Question(kl=1.0, success=0.8, simulations=0), labels=400)["models"][0]["success"]["by"] == "labels"
    assert model["maps"]["by"] == "labels"
    assert model["reach"]["by"] == "reward fitted to labels on features"
    few = made(env, labels=12)["models"][0]
    assert few["reach"] is None  # twelve labels show nothing of what explains them
    assert few["verdict"]["kind"] == "cannot tell"


def test_the_fitted_reward_is_the_learners() -> None:
    env = rare_skill(0.1, prompts=8, noise_std=0.1)
    pool = gather_table(env, labels=400, draws=64, seed=2).pool
    assert pool.labels is not None
    scores = fitted_scores(pool, "features")
    learner = Learner.start(Spec(np.full(8, 1 / 8), env.dim, 400, None, 1)).absorb(Drawn(pool.draws, 8 * 64))
    every = zip(pool.labels.prompts, pool.labels.rows, pool.labels.values, strict=True)
    rows = list(dict.fromkeys(every))  # a label that was bought once is told once
    assert len(rows) < 400
    labels = tuple(Label(int(x), pool.draws[x].responses[i], float(v)) for x, i, v in rows)
    learner = learner.absorb(Labelled(labels, np.array([pool.draws[x].features[i] for x, i, _ in rows])))
    for x, d in enumerate(pool.draws):
        slopes = d.features @ learner.theta
        np.testing.assert_allclose(scores[x] - scores[x][0], slopes - slopes[0], atol=1e-9)
    truth = [env.mean_rewards[x, np.array(d.responses, int)] for x, d in enumerate(pool.draws)]
    within = [np.concatenate([row - row.mean() for row in rows]) for rows in (scores, truth)]
    assert np.corrcoef(*within)[0, 1] > 0.9


def test_models_side_by_side_share_one_level_and_the_better_foundation_is_named() -> None:
    good, bad = (random_table(prompts=10, responses=60, binary=1, seed=s) for s in (1001, 1001))
    base = bad.base_probs.copy()
    base[:, -3:] *= 1e-9
    bad = type(bad)(
        bad.prompt_probs,
        base / base.sum(axis=1, keepdims=True),
        bad.features,
        bad.mean_rewards,
        beta=bad.beta,
        noise_std=bad.noise_std,
    )
    subjects = [
        Subject(name, "table", gather_table(env, labels=None, draws=1024, seed=0))
        for name, env in (("damaged", bad), ("whole", good))
    ]
    found = document(subjects, Question(kl=1.0, success=1.0, simulations=0), title="t", reward="r")
    assert found["best"] == "whole"
    assert [m["verdict"]["kind"] for m in found["models"]] == ["no foundation", "go"]
    assert found["headline"][0].startswith("whole is the best foundation of these 2: Go")
    levels = [m["success"]["level"]["value"] for m in found["models"]]
    assert levels == [1.0, 1.0]
    both = document(subjects[:1] * 2, Question(kl=1.0, success=1.0, simulations=0), title="t", reward="r")
    assert both["headline"][0] == "None of these 2 models is a foundation for these prompts."


def test_examples_are_draws_commonest_first_then_the_best() -> None:
    env = random_table(prompts=10, responses=60, binary=0, seed=1004)
    pool = gather_table(env, labels=None, draws=256, seed=1).pool
    examples = made(env)["models"][0]["examples"]
    assert [e["prompt"] for e in examples] == ["0", "4", "9"]
    first = examples[0]["responses"]
    assert pool.rewards is not None
    shares = sorted((pool.draws[0].counts / 256).tolist(), reverse=True)
    assert [r["share"] for r in first[:3]] == shares[:3]
    assert max(r["reward"] for r in first) == pool.rewards[0].max()
    assert all(math.isfinite(r["reward"]) for r in first)


def by_hand(rewards: list[list[float]], counts: list[int]) -> Gathered:
    """Prompts with the same counts of responses, whose features are random."""
    rng = np.random.default_rng(0)
    names = tuple(map(str, range(len(counts))))
    draws = tuple(Draws(x, names, np.array(counts), rng.normal(size=(len(counts), 2))) for x in range(len(rewards)))
    pool = Pool(tuple(map(str, range(len(rewards)))), draws, {"a": slice(0, 2)}, tuple(map(np.array, rewards)))
    return Gathered(pool, Counts())


def together(*found: Gathered, success: float | None = None) -> dict[str, Any]:
    subjects = [Subject(f"m{i}", "table", one) for i, one in enumerate(found)]
    return document(subjects, Question(simulations=0, success=success), title="t", reward="r")


def test_a_model_that_never_earns_anything_is_not_the_best_foundation() -> None:
    never = by_hand([[0.0] * 4] * 6, [64] * 4)
    some = by_hand(np.random.default_rng(0).random((6, 8)).tolist(), [32] * 8)
    found = together(never, some)
    assert found["best"] == "m1"
    assert found["models"][0]["verdict"]["kind"] == "cannot tell"
    alone = together(never)
    assert alone["models"][0]["verdict"]["kind"] == "cannot tell"
    same = together(never, never)
    assert same["headline"][0].startswith("Which of these 2 models is the best foundation cannot be told: m0: Cannot")


def test_two_values_are_those_of_all_models_together() -> None:
    low = by_hand([[0.0, 0.5, 0.0, 0.0]] * 6, [16] * 4)
    high = by_hand([[0.0, 0.01, 0.02, 5.0]] * 6, [61, 1, 1, 1])
    found = together(low, high)  # the upper value of the first is no bound for the second
    assert found["settings"]["success"]["source"] == "optimum"
    assert found["settings"]["reward_kind"] == "real"
    fails, does = by_hand([[0.0] * 4] * 6, [16] * 4), by_hand([[1.0] * 4] * 6, [16] * 4)
    both = together(fails, does)
    assert both["settings"]["success"] == {"value": 1.0, "source": "two values"}
    assert [m["success"]["pass_at"][0]["value"] for m in both["models"]] == [0.0, 1.0]


def test_an_unknown_value_does_not_outrank_a_negative_one() -> None:
    section = {"verdict": {"kind": "cannot tell"}, "success": None, "reach": None}
    known = {**section, "reach": {"at": {"value": {"value": -5.0}}}}
    assert _rank(known) < _rank(section)


def test_a_reward_that_was_always_declined_is_no_reward() -> None:
    (model,) = together(by_hand([[math.nan] * 4] * 6, [16] * 4))["models"]
    assert [model[part] for part in ("success", "reach", "maps")] == [None] * 3
    assert model["verdict"]["kind"] == "cannot tell"


def test_the_headline_says_what_the_values_are_of_and_whether_they_differ() -> None:
    env = random_table(prompts=10, responses=60, binary=0, seed=1004)
    bought = gather_table(env, labels=400, draws=256, seed=1)
    subjects = [Subject(name, "table", bought) for name in ("a", "b")]
    found = document(subjects, Question(kl=1.0, simulations=0), title="t", reward="r")
    assert found["headline"][1].startswith(
        "What tilting reaches at KL = 1, by the reward fitted to labels on features:"
    )
    assert found["headline"][1].endswith("their 95 % intervals overlap.")
    loud = replace(bought.pool.labels, values=bought.pool.labels.values)  # type: ignore[type-var]
    noisy = replace(bought, pool=replace(bought.pool, labels=loud))
    assert _spread(noisy.pool, None) == pytest.approx(np.ptp(loud.values))
    fitted = fitted_scores(bought.pool, "features")
    assert _spread(bought.pool, fitted) == pytest.approx(np.ptp(np.concatenate(fitted)))


@pytest.mark.parametrize("labels", [None, 200])
@pytest.mark.parametrize(("scale", "offset"), [(1000.0, 0.0), (1.0, 1e5), (1.0, -7.0)])
def test_units_and_origin_of_the_reward_change_no_verdict(labels: int | None, scale: float, offset: float) -> None:
    env = random_table(prompts=8, responses=40, binary=0, seed=1005)
    found = gather_table(env, labels=labels, draws=64, seed=1)
    pool = found.pool
    rewards = None if pool.rewards is None else tuple(scale * r + offset for r in pool.rewards)
    bought = None if pool.labels is None else replace(pool.labels, values=scale * pool.labels.values + offset)
    moved = replace(found, pool=replace(pool, rewards=rewards, labels=bought, noise_std=scale * pool.noise_std))
    (before,), (after,) = (
        document([Subject("m", "t", one)], QUESTION, title="t", reward="r")["models"] for one in (found, moved)
    )
    assert after["verdict"]["kind"] == before["verdict"]["kind"]
    for row, other in zip(before["maps"]["rows"], after["maps"]["rows"], strict=True):
        assert other["r2"] == pytest.approx(row["r2"], abs=1e-4)
    if before["reach"] is not None:
        at, new = before["reach"]["at"], after["reach"]["at"]
        assert new["gain"] == pytest.approx(scale * at["gain"], rel=1e-3)
        assert new["value"]["value"] == pytest.approx(scale * at["value"]["value"] + offset, rel=1e-3)
        assert new["draws_per_answer"] == pytest.approx(at["draws_per_answer"], rel=1e-3)
    if before["success"] is not None:
        assert after["success"]["pass_at"] == before["success"]["pass_at"]
