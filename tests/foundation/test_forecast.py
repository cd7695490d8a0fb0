"""The forecast: against an independent loop, its order on known families, and its corner cases."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from spannerlm.coverage import Interval
from spannerlm.environments import TabularEnvironment, environment, random_table
from spannerlm.errors import InputError
from spannerlm.explorers import explorer_by_name
from spannerlm.foundation.forecast import WIDENING, Forecast, forecast
from spannerlm.foundation.pool import Labels, Pool, pool_of, random_labels
from spannerlm.policy import beta_for_kl, tilt
from spannerlm.records import Drawn, DrawRequest, Draws, Label, Labelled, Spec, StopRequest

SETTINGS: dict[str, Any] = {"kl": 1.0, "share": 0.9, "labels": 150, "batch": 10, "simulations": 4}


def told(pool: Pool, seed: int = 0, **changes: Any) -> Forecast:
    found = forecast(pool, "features", rng=np.random.default_rng(seed), **{**SETTINGS, **changes})
    assert found is not None
    return found


@pytest.fixture(scope="module")
def easy() -> Pool:
    return pool_of(random_table(prompts=5, responses=20, seed=1101), 128, rng=np.random.default_rng(0))


def one_prompt(rewards: list[float], features: np.ndarray, counts: list[int]) -> Pool:
    names = tuple(map(str, range(len(rewards))))
    draws = Draws(0, names, np.array(counts, dtype=np.int64), features)
    return Pool(("p",), (draws,), {"features": slice(0, features.shape[1])}, (np.array(rewards),), noise_std=0.1)


def test_same_seed_same_forecast(easy: Pool) -> None:
    assert told(easy, 3, simulations=2) == told(easy, 3, simulations=2)
    assert told(easy, 3, simulations=2) != told(easy, 4, simulations=2)


def slow_run(pool: Pool, name: str, seed: int, labels: int) -> float:
    """Labels to hold 90 % of the gain, by an own driver: no ledger, no early stop, the optimum for the best policy."""
    assert pool.rewards is not None
    width = max(len(d.counts) for d in pool.draws)
    base, phi = np.zeros((len(pool.draws), width)), np.zeros((len(pool.draws), width, pool.draws[0].features.shape[1]))
    means = np.zeros((len(pool.draws), width))
    for x, d in enumerate(pool.draws):
        for i in range(len(d.counts)):
            base[x, i], phi[x, i], means[x, i] = d.counts[i] / pool.n, d.features[i], pool.rewards[x][i]
    env = TabularEnvironment(np.full(len(base), 1 / len(base)), base, phi, means, beta=1.0, noise_std=pool.noise_std)
    noisy = env.reward(seed)

    def worth(scores: np.ndarray) -> float:
        return float((tilt(base, scores, beta_for_kl(base, scores, 1.0)) * means).sum(axis=1).mean())

    explorer = explorer_by_name(name)
    state = explorer.init(Spec(env.prompt_probs, env.dim, labels, pool.n * len(base), 10, kl=1.0))
    bought, values, k, known = [0], [worth(np.zeros_like(means))], 0, 0
    while True:
        request = explorer.decide(state, rng=np.random.default_rng([seed, k]))
        if isinstance(request, StopRequest):
            break
        state = explorer.absorb(state, request)
        if isinstance(request, DrawRequest):
            draws = env.draw(request.prompts, request.n, rng=np.random.default_rng([seed, k, 1]))
            state = explorer.absorb(state, Drawn(draws, request.n * len(draws), info=request.info))
        else:
            at = [(item.prompt, int(item.response)) for item in request.items]
            got = noisy([str(x) for x, _ in at], [str(y) for _, y in at], replicate=[0] * len(at))
            rows = tuple(Label(x, str(y), value) for (x, y), value in zip(at, got, strict=True))
            state = explorer.absorb(state, Labelled(rows, np.array([phi[x, y] for x, y in at]), request.info))
            known += len(at)
            bought.append(known)
            values.append(worth(phi @ explorer.policy(state).theta))
        k += 1
    target = values[0] + 0.9 * (worth(means) - values[0])
    for at, _ in enumerate(bought):
        ahead = [v for n, v in zip(bought, values, strict=True) if bought[at] <= n <= bought[at] + 30]
        if min(ahead) >= target - 1e-9 and (bought[-1] >= bought[at] + 30 or bought[-1] < labels):
            return bought[at]
    return math.inf


@pytest.mark.parametrize("explorer", ["directed", "random-singles"])
def test_one_simulation_is_an_independent_run(easy: Pool, explorer: str) -> None:
    for seed in range(3):
        found = told(easy, seed, simulations=1, needed=Interval(1, 1, 1))
        drawn = int(np.random.default_rng(seed).integers(2**31))  # the run's seed is the first thing that is drawn
        told_labels = found.labels if explorer == "directed" else found.random_labels
        assert told_labels.value == slow_run(easy, explorer, drawn, 150)


def test_band_holds_the_median_and_is_wider_than_the_runs(easy: Pool) -> None:
    found = told(easy, simulations=5)
    singles = [told(easy, seed, simulations=1).labels for seed in range(4)]
    assert found.labels.low <= found.labels.value <= found.labels.high
    assert found.simulations == 5
    for one in singles:  # one run: its own labels, widened
        assert one.low == math.floor(min(one.value, 150) / WIDENING)
        assert one.high == (math.ceil(one.value * WIDENING) if one.value * WIDENING <= 150 else math.inf)


def test_rare_value_needs_exploring() -> None:
    rare = environment("rare-skill", p=0.01, prompts=16, seed=0)
    arrays = rare.prompt_probs, rare.base_probs, rare.features, rare.mean_rewards
    env = TabularEnvironment(*arrays, beta=1.0, noise_std=0.2)
    found = told(pool_of(env, 512, rng=np.random.default_rng(0)), labels=200)
    assert math.isfinite(found.labels.value)
    assert found.random_labels.value > 2.0 * found.labels.value
    assert found.pays
    assert not any("does not pay" in s for s in found.statements)


def test_common_value_does_not() -> None:
    rng = np.random.default_rng(5)
    features = rng.choice([-1.0, 1.0], (8, 24, 4))  # every response is as long, every direction as common
    base = np.full((8, 24), 1 / 24)
    env = TabularEnvironment(np.full(8, 1 / 8), base, features, features.sum(axis=2) / 2, beta=1.0, noise_std=1.0)
    found = told(pool_of(env, 256, rng=rng), simulations=6)
    assert not found.pays
    assert any("does not pay" in s for s in found.statements)


def test_labels_alone_tell_something() -> None:
    env = random_table(prompts=8, responses=40, binary=1, seed=1102)
    pool = pool_of(env, 256, graded=False, rng=np.random.default_rng(0))
    found = told(replace(pool, labels=random_labels(pool, env, 60, rng=np.random.default_rng(1))))
    assert found.by == "labels"
    assert found.simulations == 4
    assert 0.0 < found.labels.low <= found.labels.value
    assert any("rests on 60 labels" in s for s in found.statements)


def test_nothing_known_no_forecast(easy: Pool) -> None:
    assert forecast(replace(easy, rewards=None), "features", rng=np.random.default_rng(0), **SETTINGS) is None
    blank = tuple(np.full(len(d.counts), np.nan) for d in easy.draws)
    assert forecast(replace(easy, rewards=blank), "features", rng=np.random.default_rng(0), **SETTINGS) is None
    none = Labels(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0), random=True)
    bare = replace(easy, rewards=None, labels=none)
    assert forecast(bare, "features", rng=np.random.default_rng(0), **SETTINGS) is None
    assert forecast(easy, "features", rng=np.random.default_rng(0), **{**SETTINGS, "simulations": 0}) is None


def test_a_budget_is_a_positive_number(easy: Pool) -> None:
    for changes in ({"labels": 0}, {"batch": 0}, {"kl": -1.0}):
        with pytest.raises(InputError):
            told(easy, **changes)


def test_equal_rewards_nothing_to_gain(easy: Pool) -> None:
    found = told(replace(easy, rewards=tuple(np.ones(len(d.counts)) for d in easy.draws)))
    assert found.labels == Interval(0.0, 0.0, 0.0)
    assert found.target == 1.0
    assert found.held == 1.0
    assert found.simulations == 0
    assert "nothing to gain" in found.statements[0]


def test_equal_labels_cannot_tell(easy: Pool) -> None:
    rows = np.zeros(5, dtype=np.int64)
    found = told(replace(easy, rewards=None, labels=Labels(np.arange(5), rows, np.zeros(5), random=True)))
    assert math.isinf(found.labels.value)
    assert "cannot tell" in found.statements[0]


def test_features_that_tell_nothing(easy: Pool) -> None:
    flat = tuple(replace(d, features=np.zeros_like(d.features)) for d in easy.draws)
    found = told(replace(easy, draws=flat))
    assert math.isinf(found.labels.value)
    assert found.reached == 0.0
    assert "gain nothing" in found.statements[0]


def test_one_prompt_and_one_response() -> None:
    rng = np.random.default_rng(0)
    many = told(one_prompt(rng.standard_normal(12).tolist(), rng.standard_normal((12, 3)), [10] * 12))
    assert many.prompts == 1
    alone = told(one_prompt([1.0], np.ones((1, 3)), [64]))
    assert alone.labels.value == 0.0


def test_declined_responses_are_left_out(easy: Pool) -> None:
    assert easy.rewards is not None
    rows = [row.copy() for row in easy.rewards]
    rows[0][:], rows[1][0] = np.nan, np.nan
    assert told(replace(easy, rewards=tuple(rows))).prompts == len(easy.prompts) - 1


def test_many_prompts_are_looked_at_in_parts() -> None:
    env = random_table(prompts=40, responses=30, seed=1103)
    found = told(pool_of(env, 64, rng=np.random.default_rng(0)), simulations=2)
    assert found.prompts == 32
    assert any("32 of the 40 prompts" in s for s in found.statements)


def test_draws_and_answers_are_passed_on_or_told(easy: Pool) -> None:
    passed = told(easy, needed=Interval(100.0, 50.0, 200.0), answer=Interval(7.0, 3.0, 20.0))
    assert passed.draws == Interval(100.0, 50.0, 200.0)
    assert passed.answer == Interval(7.0, 3.0, 20.0)
    assert math.isnan(passed.tokens_per_answer)
    found = told(replace(easy, tokens=tuple(np.full(len(d.counts), 3) for d in easy.draws)))
    assert found.draws.low <= found.draws.value <= found.draws.high
    assert 2 <= found.draws.value <= easy.n
    assert found.tokens_per_answer == pytest.approx(3.0 * found.answer.value)
    assert found.answer.value > 1.0


def test_answer_is_the_largest_ratio_but_for_what_is_clipped() -> None:
    found = told(one_prompt([0.0, 1.0], np.array([[0.0], [1.0]]), [100, 100]), kl=0.1)
    p = next(p for p in np.linspace(0.5, 1.0, 20001) if np.log(2) + p * np.log(p) + (1 - p) * np.log1p(-p) >= 0.1)
    assert found.answer.value <= 2 * p
    assert found.answer.value == pytest.approx(2 * p, rel=0.03)


def test_it_goes_into_json(easy: Pool) -> None:
    found = told(easy)
    again = json.loads(json.dumps(asdict(found)))
    assert again["labels"]["value"] == found.labels.value
    assert again["statements"] == list(found.statements)
