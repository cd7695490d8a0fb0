"""`online-dpo`: both responses of every pair come from the policy of the last update."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product

import laws
import numpy as np
import pytest
from scipy.stats import chisquare

from spannerlm.explorers import OnlineDPO
from spannerlm.explorers.pooled import PoolState
from spannerlm.policy import LinearSoftmaxPolicy, tilt
from spannerlm.records import LabelRequest

ENV = laws.random_table(1)


def state_after(labels: int, explorer: OnlineDPO | None = None, **changes: object) -> PoolState:
    """The state after some labels, the budget raised by far."""
    spec = laws.spec_of(ENV, labels=labels, **changes)
    state: PoolState = laws.drive(explorer or OnlineDPO(pool=30), laws.Bench(ENV, spec)).state
    return replace(state, learner=replace(state.learner, spec=replace(spec, labels=10_000)))


def test_pairs_are_independent_draws_of_the_current_policy_that_differ() -> None:
    state = state_after(24)
    candidates, scores = state.candidates, {}
    for x in candidates.ids:
        draws = state.pools[int(x)]
        pi = tilt(draws.counts / draws.counts.sum(), draws.features @ state.learner.theta, ENV.beta)
        scores[int(x)] = dict(zip(draws.responses, pi, strict=True))
    chances = {
        (x, a, b): ENV.prompt_probs[x] * scores[x][a] * scores[x][b]
        for x in scores
        for a, b in product(scores[x], repeat=2)
        if a != b
    }
    assert max(chances.values()) < 0.5
    found: Counter[tuple[int, str, str]] = Counter()
    for seed in range(400):
        items = OnlineDPO().choose(state, 20, rng=np.random.default_rng(seed))
        assert len(items) == 20
        found.update((a.prompt, a.response, b.response) for a, b in zip(items[::2], items[1::2], strict=True))
    assert set(found) <= set(chances)
    total = sum(chances.values())
    common = [pair for pair, chance in chances.items() if chance / total > 2e-3]
    counts = [found[pair] for pair in common]
    expected = [4000 * chances[pair] / total for pair in common]
    rest = [4000 - sum(counts)], [4000 - sum(expected)]
    assert chisquare(counts + rest[0], expected + rest[1]).pvalue > 1e-3


def test_the_first_pairs_come_from_the_base_model() -> None:
    state = OnlineDPO(pool=30).init(laws.spec_of(ENV))
    bench = laws.Bench(ENV, laws.spec_of(ENV))
    request = OnlineDPO(pool=30).decide(state, rng=np.random.default_rng(0))
    state = OnlineDPO(pool=30).absorb(OnlineDPO(pool=30).absorb(state, request), bench.answer(0, request))
    rng = np.random.default_rng(1)
    items = [item for _ in range(300) for item in OnlineDPO(skip=False).choose(state, 20, rng=rng)]
    counts = Counter(item.response for item in items if item.prompt == 0)
    draws = state.pools[0]
    assert chisquare([counts[y] for y in draws.responses], draws.counts / draws.counts.sum() * counts.total())[1] > 1e-4


def test_the_estimate_minimises_the_published_loss() -> None:
    """The DPO loss of tabular densities and the prior: no step away from the logistic mode makes it smaller."""
    env = laws.compared(ENV)
    trace = laws.drive(OnlineDPO(pool=30), laws.Bench(env, laws.spec_of(env, labels=30)))
    learner = trace.state.learner
    posterior = learner.posterior
    k = posterior.mode()[1]
    wins = [(key, value) for key, values in trace.bench.known.items() for value in values]
    assert len(wins) == 30

    def loss(theta: np.ndarray) -> float:
        ratio = np.log(LinearSoftmaxPolicy(theta, env.beta).table(env)[:3] / env.base_probs[:3])
        total = 0.0
        for (x, first, second), value in wins:
            margin = env.beta * (ratio[x, int(first)] - ratio[x, int(second)])
            total += np.log1p(np.exp(-margin)) if value == 1.0 else np.log1p(np.exp(margin))
        z = np.linalg.solve(learner.transform, theta)
        return float(total + 0.5 * posterior.lambdas[k] * z @ z)

    mode = learner.transform @ posterior.modes[k]
    with np.errstate(divide="ignore", invalid="ignore"):
        best = loss(mode)
        steps = np.random.default_rng(3).normal(size=(20, env.dim))
        assert all(loss(mode + size * step) > best for step in steps for size in (1e-3, 1e-1))


@pytest.mark.parametrize("fresh", [True, False])
def test_a_policy_that_plays_one_response_meets_others_on_fixed_prompts_only(fresh: bool) -> None:
    state = state_after(8, fresh=fresh)
    state = replace(state, learner=replace(state.learner, spec=replace(state.learner.spec, beta=1e-9)))
    explorer = OnlineDPO()
    items = explorer.choose(state, 6, rng=np.random.default_rng(0))
    assert items
    if fresh:
        pi = state.candidates.tilted(state.candidates.features @ state.theta, 1e-9)
        likely = np.flatnonzero(pi > 0.5)
        best = {(int(state.candidates.ids[state.candidates.owners[i]]), state.candidates.responses[i]) for i in likely}
        assert {(item.prompt, item.response) for item in items[::2]} <= best
        assert not {(item.prompt, item.response) for item in items[1::2]} & best
        assert replace(explorer, fresh_prompts=4).choose(state, 6, rng=np.random.default_rng(0)) == ()
        same = replace(explorer, skip=False).choose(state, 6, rng=np.random.default_rng(0))
        assert same[::2] == same[1::2]
    else:
        assert all(state.learner.open(item.prompt, item.response) for item in items)


def test_a_request_is_of_whole_pairs_and_the_last_label_a_single() -> None:
    trace = laws.drive(OnlineDPO(pool=16), laws.Bench(ENV, laws.spec_of(ENV, labels=11, batch=5)))
    assert [len(r.items) for r in trace.requests if isinstance(r, LabelRequest)] == [4, 4, 2, 1]
    assert OnlineDPO().progress(trace.state)["rounds"] == 4
