"""What a history row says of a policy: by the true reward, by prediction, by labels bought for it."""

from __future__ import annotations

import numpy as np
import pytest

from spannerlm.environments import rare_skill
from spannerlm.evaluation import EvaluationPool
from spannerlm.explorers import AdaptiveSpannerSampling
from spannerlm.ledger import Ledger
from spannerlm.measures import LabelMeasure, Measured, TruthMeasure, measure_truth
from spannerlm.policy import LinearSoftmaxPolicy
from spannerlm.records import Draws, Spec
from spannerlm.run import Driver

ENV = rare_skill(0.1, prompts=8, noise_std=0.2)
PROBS = np.array([1 / 6] * 6 + [0.0, 0.0])
SPEC = Spec(PROBS, ENV.dim, labels=60, draws=20_000, batch=20, beta=ENV.beta)


def truth(prompts: list[str], completions: list[str]) -> list[float | None]:
    means = [float(ENV.mean_rewards[int(x), int(y)]) for x, y in zip(prompts, completions, strict=True)]
    return [None if y == "3" else m for m, y in zip(means, completions, strict=True)]


def driven(ledger: Ledger) -> Driver:
    run = Driver(ENV, AdaptiveSpannerSampling(), ENV.reward(0), ledger, SPEC, seed=0)
    run.draw_for_evaluation([6, 7], 4000)
    run.explore()
    return run


def test_truth_is_asked_once_per_response_and_skips_leave_the_pool() -> None:
    pool = EvaluationPool(ENV.draw([6, 7], 400, rng=np.random.default_rng(0)))
    measure = measure_truth(pool, truth, list(ENV.prompts), {})
    assert all("3" not in draws.responses for draws in measure.pool.draws)
    base = measure.pool.at_beta(np.zeros_like(measure.table), float("inf"))
    slow = []
    for draws in measure.pool.draws:
        total = sum(int(c) for c in draws.counts)
        each = [
            ENV.mean_rewards[draws.prompt, int(y)] * int(c) for y, c in zip(draws.responses, draws.counts, strict=True)
        ]
        slow.append(sum(each) / total)
    assert measure.value(base).value == pytest.approx(np.mean(slow), abs=1e-12)


def test_the_value_follows_the_policy_and_is_undefined_without_draws() -> None:
    with Ledger.open(None, meta={}, prompts=list(ENV.prompts)) as ledger:
        run = Driver(ENV, AdaptiveSpannerSampling(), ENV.reward(0), ledger, SPEC, seed=0)
        measured = Measured(run, 1.0, lambda pool: measure_truth(pool, truth, list(ENV.prompts), {}))
        flat = LinearSoftmaxPolicy(np.zeros(ENV.dim), 1.0)
        assert measured.policy(flat) == {}
        run.draw_for_evaluation([6, 7], 4000)
        good = LinearSoftmaxPolicy(np.concatenate([np.zeros(8), np.ones(8)]), 1.0)
        assert measured.policy(good)["value"] > measured.policy(flat)["value"] + 0.5


def test_prediction_is_undefined_before_labels_and_near_the_truth_after() -> None:
    with Ledger.open(None, meta={}, prompts=list(ENV.prompts)) as ledger:
        run = Driver(ENV, AdaptiveSpannerSampling(), ENV.reward(0), ledger, SPEC, seed=0)
        run.draw_for_evaluation([6, 7], 4000)
        pool = EvaluationPool(run.evaluation_draws)
        tilted = pool.at_beta(pool.scores(np.zeros(ENV.dim)), float("inf"))
        assert np.isnan(LabelMeasure(pool, run).value(tilted).value)
        run.explore()
        tilted = pool.at_kl(pool.scores(run.explorer.policy(run.state).theta), 1.0)
        found = LabelMeasure(pool, run).value(tilted)
        table = [[ENV.mean_rewards[d.prompt, int(y)] for y in d.responses] for d in pool.draws]
        exact = np.mean([q[: len(r)] @ np.array(r) for q, r in zip(tilted.weights, table, strict=True)])
        half = (found.high - found.low) / 2
        assert abs(found.value - exact) < 2 * half
        assert half < 0.5


def test_bought_labels_are_counted_apart_and_match_their_responses() -> None:
    with Ledger.open(None, meta={}, prompts=list(ENV.prompts)) as ledger:
        run = driven(ledger)
        measured = Measured(run, 1.0, lambda pool: LabelMeasure(pool, run))
        before = ledger.counts
        measured.buy(30, seed=0)
        assert measured.sampled is not None
        assert ledger.counts.labels == before.labels
        assert 0 < ledger.counts.eval_labels <= 30
        assert len(measured.sampled.values) == 30
        sampled = measured.sampled
        exact = [
            ENV.mean_rewards[run.evaluation_draws[x].prompt, int(run.evaluation_draws[x].responses[i])]
            for x, i in zip(sampled.prompts, sampled.rows, strict=True)
        ]
        assert np.std(sampled.values - np.array(exact)) == pytest.approx(0.2, rel=0.5)


def test_a_constant_pool_measures_one_value() -> None:
    draws = Draws(0, ("a",), np.array([5]), np.zeros((1, 2)))
    measure = TruthMeasure(EvaluationPool([draws]), np.array([[0.7]]))
    tilted = measure.pool.at_kl(measure.pool.scores(np.ones(2)), 2.0)
    assert measure.value(tilted).value == 0.7
    assert np.isnan(measure.value(tilted).low)  # one prompt says nothing of the spread over prompts
