"""Pools of draws: merging, random choices from them, and the opening request."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from spannerlm.explorers import pools
from spannerlm.explorers.learner import Learner
from spannerlm.policy import kl_divergence, tilt
from spannerlm.records import Drawn, DrawRequest, Draws, Spec, StopRequest


def draws_of(prompt: int, **counts: int) -> Draws:
    features = np.array([[float(ord(y)), float(prompt)] for y in counts])
    return Draws(prompt, tuple(counts), np.array(list(counts.values())), features)


def spec(prompts: int = 4, **changes: object) -> Spec:
    told = {"labels": 40, "draws": None, "batch": 6, "beta": 0.5, **changes}
    return Spec(np.arange(prompts) / np.arange(prompts).sum(), 2, **told)  # type: ignore[arg-type]


def test_merged_draws_add_their_counts_and_keep_their_features() -> None:
    first, second = draws_of(1, a=2, b=1, c=4), draws_of(1, c=1, d=3, a=5)
    merged = pools.merge(first, second)
    assert merged.responses == ("a", "b", "c", "d")
    np.testing.assert_array_equal(merged.counts, [7, 1, 5, 3])
    np.testing.assert_array_equal(merged.features[:, 0], [ord(y) for y in "abcd"])
    np.testing.assert_array_equal(first.counts, [2, 1, 4])


def test_added_draws_join_their_prompt_and_leave_the_old_pools() -> None:
    one = pools.add({}, (draws_of(1, a=2), draws_of(0, b=1)))
    two = pools.add(one, (draws_of(1, c=1), draws_of(3, d=1)))
    assert sorted(one) == [0, 1]
    assert sorted(two) == [0, 1, 3]
    assert two[1].responses == ("a", "c")
    assert one[1].responses == ("a",)


def test_all_possible_prompts_or_a_sample_from_rho() -> None:
    rng = np.random.default_rng(0)
    assert pools.sample_prompts(spec(), 10, rng=rng) == (1, 2, 3)
    counts = Counter(x for _ in range(3000) for x in pools.sample_prompts(spec(), 1, rng=rng))
    assert chisquare([counts[x] for x in (1, 2, 3)], [500, 1000, 1500]).pvalue > 1e-6
    some = pools.sample_prompts(spec(), 2, rng=rng)
    assert len(set(some)) == 2


def test_random_prompts_have_the_stated_law() -> None:
    rng, draws = np.random.default_rng(1), draws_of(2, a=5, b=1, c=4)
    held = {1: draws, 3: draws}
    prompts = Counter(pools.random_prompts(spec(), held, 4000, rng=rng).tolist())
    assert set(prompts) == {1, 3}
    assert chisquare([prompts[1], prompts[3]], [1000, 3000]).pvalue > 1e-6


@pytest.mark.parametrize(
    ("budget", "reserve", "size"),
    [(None, 0, 16), (1000, 0, 16), (48, 0, 16), (47, 0, 15), (6, 0, 2), (60, 40, 6), (40, 40, 2), (40, 400, 2)],
)
def test_opening_spends_what_it_may_and_keeps_the_reserve(budget: int | None, reserve: int, size: int) -> None:
    learner = Learner.start(spec(draws=budget))
    request = pools.opening(learner, 16, 10, rng=np.random.default_rng(0), reserve=reserve)
    assert isinstance(request, DrawRequest)
    assert (request.prompts, request.n) == ((1, 2, 3), size)
    assert request.info["phase"] == "pool"
    assert isinstance(request.info["seed"], int)


def test_opening_without_two_draws_a_prompt_stops_and_says_why() -> None:
    request = pools.opening(Learner.start(spec(draws=5)), 16, 10, rng=np.random.default_rng(0))
    assert isinstance(request, StopRequest)
    assert "2 draws for each of 3 prompts" in request.reason


def test_affordable() -> None:
    assert pools.affordable(float("inf"), 7, 5) == 5
    assert pools.affordable(20, 7, 5) == 2
    assert pools.affordable(6, 7, 5) == 0
    assert pools.affordable(-3, 7, 5) == 0


def test_temperature_is_beta_or_spends_the_kl_on_the_pools() -> None:
    theta = np.array([0.3, 0.0])
    held = pools.add({}, (draws_of(1, a=2, b=1, g=1), draws_of(3, c=1, f=6)))
    given = Learner.start(spec())
    assert pools.temperature(given, held, theta) == 0.5
    learner = Learner.start(spec(beta=None, kl=0.4))
    beta = pools.temperature(learner, held, theta)
    kls = []
    for draws in held.values():
        base = draws.counts / draws.counts.sum()
        kls.append(float(kl_divergence(tilt(base, draws.features @ theta, beta), base)))
    assert np.mean(kls) == pytest.approx(0.4, rel=1e-5)
    assert pools.temperature(learner, {}, theta) == np.inf
    assert pools.temperature(learner, held, 0.0 * theta) == np.inf


def test_policy_before_the_first_label_is_the_base_model() -> None:
    learner = Learner.start(spec()).absorb(Drawn((draws_of(1, a=2, b=3),), 5))
    policy = pools.tilted_policy(learner, {})
    np.testing.assert_array_equal(policy.theta, np.zeros(2))
