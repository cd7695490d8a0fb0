"""epsilon-greedy: draws of the current policy, mixed with base draws at the stated rate."""

from __future__ import annotations

from dataclasses import replace

import laws
import numpy as np
import pytest

from spannerlm.environments import tie
from spannerlm.explorers.epsilon_greedy import EpsilonGreedy
from spannerlm.explorers.pooled import PoolState

ENV = tie(prompts=4, responses=9, dim=3, seed=3)


def trained(explorer: EpsilonGreedy, **changes: object) -> PoolState:
    """A state with 24 labels behind it and a budget ahead."""
    spec = laws.spec_of(ENV, labels=24, **changes)
    state = laws.drive(explorer, laws.Bench(ENV, spec)).state
    assert isinstance(state, PoolState)
    return replace(state, learner=replace(state.learner, spec=replace(spec, labels=10**6)))


@pytest.mark.parametrize(
    ("epsilon", "half", "chance"), [(0.0, 0, 0.0), (1.0, 0, 1.0), (0.2, 0, 0.2), (0.2, 12, 7 / 15)]
)
def test_labels_follow_the_mixture_of_policy_and_base(epsilon: float, half: int, chance: float) -> None:
    explorer = EpsilonGreedy(pool=40, epsilon=epsilon, half=half, skip=False)
    state = trained(explorer)
    assert explorer.chance(state) == pytest.approx(chance)
    found = state.candidates
    law = np.zeros(len(found))
    for owner, x in enumerate(found.ids):
        inside = found.rows(owner)
        base = found.weights[inside]
        tilted = base * np.exp(np.array([f @ state.learner.theta for f in found.features[inside]]) / ENV.beta)
        law[inside] = ENV.prompt_probs[x] * (chance * base + (1 - chance) * tilted / tilted.sum())
    items = explorer.choose(state, 20_000, rng=np.random.default_rng(0))
    seen = np.bincount([found.index[item.prompt, item.response] for item in items], minlength=len(law)) / len(items)
    np.testing.assert_allclose(seen, law, rtol=0, atol=5.0 / np.sqrt(4 * len(items)))


def test_each_response_once_where_a_label_settles_it() -> None:
    explorer = EpsilonGreedy(pool=16)
    state = trained(explorer, fresh=False)
    items = explorer.choose(state, 100, rng=np.random.default_rng(0))
    assert len(set(items)) == len(items) == state.candidates.open(state.learner).sum()
    assert all(state.learner.open(item.prompt, item.response) for item in items)


def test_it_starts_with_base_draws_only() -> None:
    explorer = EpsilonGreedy()
    start = PoolState(trained(explorer).learner)
    assert explorer.chance(start) == 1.0
    assert explorer.chance(replace(start, asked=50)) == pytest.approx(0.55)
    assert explorer.chance(replace(start, asked=10**9)) == pytest.approx(0.1)


def test_equal_features_are_skipped_and_without_the_skip_bought() -> None:
    env = replace(ENV, features=np.repeat(ENV.features[:, :1], 9, axis=1))
    for skip, labels in ((True, 0), (False, 13)):
        bench = laws.Bench(env, laws.spec_of(env, labels=13, draws=4000))
        laws.drive(EpsilonGreedy(pool=16, skip=skip), bench)
        assert bench.bought == labels
