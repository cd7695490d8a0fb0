"""coreset: greedy leverage in the design of all labels, whatever they said."""

from __future__ import annotations

from dataclasses import replace

import laws
import numpy as np
import pytest

from spannerlm.environments import TabularEnvironment, rare_skill
from spannerlm.explorers.coreset import Coreset, design, greedy_leverage
from spannerlm.explorers.pooled import PoolState

ENV = laws.random_table(4, prompts=5, responses=20, dim=4)


def trained(labels: int, env: TabularEnvironment = ENV, **changes: object) -> PoolState:
    """A state with labels behind it and a budget ahead."""
    spec = laws.spec_of(env, labels=labels, **changes)
    state = laws.drive(Coreset(pool=30), laws.Bench(env, spec)).state
    assert isinstance(state, PoolState)
    return replace(state, learner=replace(state.learner, spec=replace(spec, labels=400)))


@pytest.mark.parametrize("again", [True, False])
def test_greedy_leverage_is_the_slow_rule(again: bool) -> None:
    rng = np.random.default_rng(0)
    features, allowed = rng.normal(size=(30, 4)), rng.random(30) < 0.7
    sigma = np.diag([0.5, 1.0, 2.0, 4.0])
    expected: list[int] = []
    total = sigma.copy()
    for _ in range(12):
        values = [x @ np.linalg.solve(total, x) if ok else -1.0 for x, ok in zip(features, allowed, strict=True)]
        if not again:
            values = [-1.0 if i in expected else v for i, v in enumerate(values)]
        expected.append(int(np.argmax(values)))
        total += np.outer(features[expected[-1]], features[expected[-1]])
    assert greedy_leverage(features, sigma, allowed, 12, again=again) == expected
    assert len(set(expected)) == 12 or again


def test_nothing_allowed_or_fewer_than_asked() -> None:
    features, few = np.eye(3), np.array([True, False, True])
    assert greedy_leverage(features, np.eye(3), ~few & few, 5, again=True) == []
    assert sorted(greedy_leverage(features, np.eye(3), few, 5, again=False)) == [0, 2]


def test_sigma_is_the_prior_and_all_labels() -> None:
    state = trained(18)
    learner, posterior = state.learner, state.learner.posterior
    assert posterior is not None
    inverse = np.linalg.inv(learner.transform)
    slow = posterior.lambdas[posterior.mode()[1]] * inverse @ inverse
    for (x, response, *_), times in learner.labelled.items():
        phi = ENV.features[x, int(response)] - learner.centres[x]
        slow = slow + times * np.outer(phi, phi)
    np.testing.assert_allclose(design(learner), slow, rtol=1e-9, atol=1e-12)


def test_the_values_of_labels_decide_nothing_before_the_prior_is_refitted() -> None:
    """Two raters, the same design: the first batch cannot depend on any label, and follows the prior alone."""
    spec = laws.spec_of(ENV, labels=6)
    others = replace(ENV, mean_rewards=-3.0 * ENV.mean_rewards)
    first, second = (laws.drive(Coreset(pool=30), laws.Bench(env, spec)) for env in (ENV, others))
    assert first.bench.asked == second.bench.asked


def test_a_rare_direction_is_labelled_at_once() -> None:
    env = rare_skill(0.02, prompts=8, seed=1)
    trace = laws.drive(Coreset(pool=400), laws.Bench(env, laws.spec_of(env, labels=10, batch=10)))
    rare = [item for item in trace.bench.asked if int(item.response) == 40]
    assert len({item.prompt for item in rare}) == 8


def test_labels_that_are_out_count() -> None:
    state = trained(18)
    explorer, rng = Coreset(pool=30), np.random.default_rng(0)
    found = explorer.choose(state, 4, rng=rng)
    out = replace(state, learner=replace(state.learner, pending=found[:2]))
    assert explorer.choose(out, 2, rng=rng) == found[2:]


def test_equal_features_are_skipped_and_without_the_skip_bought() -> None:
    env = replace(ENV, features=np.repeat(ENV.features[:, :1], 20, axis=1))
    for skip, labels in ((True, 0), (False, 13)):
        bench = laws.Bench(env, laws.spec_of(env, labels=13, draws=4000))
        laws.drive(Coreset(pool=16, skip=skip), bench)
        assert bench.bought == labels
