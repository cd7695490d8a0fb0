"""`xpo`: one response of the optimistic policy against one of the base model."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import laws
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import chisquare

from spannerlm.environments import TabularEnvironment
from spannerlm.errors import InputError
from spannerlm.explorers import XPO, OnlineDPO
from spannerlm.explorers.pooled import PoolState
from spannerlm.explorers.xpo import log_normaliser, optimistic_theta
from spannerlm.policy import tilt
from spannerlm.records import FloatArray

ENV = laws.random_table(1)
ENVS = {"rewards": ENV, "comparisons": laws.compared(ENV)}


def state_after(env: TabularEnvironment, labels: int = 24, **changes: object) -> PoolState:
    """The state after some labels."""
    state: PoolState = laws.drive(XPO(pool=30), laws.Bench(env, laws.spec_of(env, labels=labels, **changes))).state
    return state


def base_log_probability(state: PoolState, theta: FloatArray) -> float:
    """E_x E_{y' ~ pi_ref} log pi_theta(y' | x), prompt by prompt over the pools."""
    spec = state.learner.spec
    total, mass = 0.0, sum(spec.prompt_probs[x] for x in state.pools)
    for x, draws in state.pools.items():
        base = draws.counts / draws.counts.sum()
        total += spec.prompt_probs[x] / mass * base @ np.log(tilt(base, draws.features @ theta, spec.beta))
    return float(total)


@pytest.mark.parametrize("name", ENVS)
def test_the_optimistic_estimate_minimises_loss_and_optimism(name: str) -> None:
    env = ENVS[name]
    state = state_after(env)
    learner, posterior, optimism = state.learner, state.learner.posterior, 0.7
    pairs, sigma = (12, posterior.noise_std) if name == "rewards" else (24, 1.0)
    alpha = optimism * env.beta / sigma * np.sqrt(env.dim / pairs)

    def loss(theta: FloatArray) -> float:
        step = theta - learner.theta
        fit = step @ posterior.precision() @ step / (2.0 * sigma**2)
        return float(fit + alpha * pairs * base_log_probability(state, theta))

    theta = optimistic_theta(state, optimism)
    slow = minimize(loss, learner.theta, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 5000})
    np.testing.assert_allclose(loss(theta), slow.fun, rtol=0, atol=1e-7)
    np.testing.assert_allclose(theta, slow.x, rtol=0, atol=1e-3)
    assert loss(theta) < loss(learner.theta) - 1e-3


@pytest.mark.parametrize("name", ENVS)
def test_without_optimism_the_estimate_is_that_of_online_dpo(name: str) -> None:
    state = state_after(ENVS[name])
    np.testing.assert_array_equal(optimistic_theta(state, 0.0), state.learner.theta)
    np.testing.assert_allclose(optimistic_theta(state, 1e-9), state.learner.theta, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(XPO().policy(state).theta, OnlineDPO().policy(state).theta)


def test_the_more_optimism_the_less_is_kept_of_the_base_model() -> None:
    state = state_after(ENV)
    kept = [base_log_probability(state, optimistic_theta(state, c)) for c in (0.0, 0.1, 1.0, 10.0)]
    assert np.all(np.diff(kept) < -1e-3)


def test_the_normaliser_and_its_gradient_are_those_of_the_pools() -> None:
    state = state_after(ENV)
    candidates = state.candidates
    rho = candidates.prompt_weights(ENV.prompt_probs)
    theta = np.array([0.4, -1.0, 0.3])
    value, gradient = log_normaliser(candidates, rho, theta, ENV.beta)
    slow = 0.0
    for i, x in enumerate(candidates.ids):
        draws = state.pools[int(x)]
        base = draws.counts / draws.counts.sum()
        centred = draws.features - base @ draws.features
        slow += ENV.beta * rho[i] * np.log(base @ np.exp(centred @ theta / ENV.beta))
    np.testing.assert_allclose(value, slow, rtol=1e-12)
    for i, step in enumerate(1e-6 * np.eye(3)):
        up, down = (log_normaliser(candidates, rho, theta + s * step, ENV.beta)[0] for s in (1, -1))
        np.testing.assert_allclose(gradient[i], (up - down) / 2e-6, rtol=0, atol=1e-8)


def test_second_responses_are_base_draws_and_first_ones_optimistic() -> None:
    state = state_after(ENV)
    spec = replace(state.learner.spec, labels=10_000)
    state = replace(state, learner=replace(state.learner, spec=spec))
    explorer, x = XPO(skip=False, optimism=1.0), 0
    draws = state.pools[x]
    base = draws.counts / draws.counts.sum()
    pi = tilt(base, draws.features @ optimistic_theta(state, 1.0), ENV.beta)
    items = [item for k in range(100) for item in explorer.choose(state, 40, rng=np.random.default_rng(k))]
    for half, chances in ((items[::2], pi), (items[1::2], base)):
        counts = Counter(item.response for item in half if item.prompt == x)
        found = np.array([counts[y] for y in draws.responses])
        used = chances * counts.total() > 3.0
        lump = found[~used].sum(), chances[~used].sum() * counts.total()
        observed, expected = [*found[used], lump[0]], [*(chances[used] * counts.total()), lump[1] + 1e-9]
        assert chisquare(observed, expected).pvalue > 1e-3
    assert np.abs(pi - base).sum() > 0.2


def test_the_box_and_an_unset_temperature_are_kept() -> None:
    state = replace(state_after(ENV), box=0.05)
    theta = optimistic_theta(state, 1.0)
    assert np.abs(theta).max() <= 0.05
    untold = state_after(ENV, labels=0, beta=None, kl=0.5)
    np.testing.assert_array_equal(optimistic_theta(untold, 1.0), np.zeros(3))
    told = state_after(ENV, beta=None, kl=0.5)
    assert np.isfinite(optimistic_theta(told, 1.0)).all()
    assert not np.array_equal(optimistic_theta(told, 1.0), told.theta)


@pytest.mark.parametrize("optimism", [-0.1, float("nan"), float("inf")])
def test_optimism_is_a_weight(optimism: float) -> None:
    with pytest.raises(InputError, match="optimism: expected a finite number of at least 0"):
        XPO(optimism=optimism)
