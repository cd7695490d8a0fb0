"""Predicted regret against exact regrets of sampled thetas, and the F test of lack of fit against two least squares."""

from __future__ import annotations

from dataclasses import replace

import laws
import numpy as np
import pytest
from scipy.stats import f as f_distribution
from scipy.stats import kstest

import spannerlm
from spannerlm.environments import TabularEnvironment, environment, tie
from spannerlm.explorers import RandomSingles
from spannerlm.explorers.candidates import Candidates
from spannerlm.explorers.directed import Directed
from spannerlm.explorers.foresight import (
    SAMPLES,
    Replicates,
    add_replicates,
    divergences,
    lack_of_fit,
    predicted_regret,
    wide_posterior,
)
from spannerlm.explorers.learner import Learner
from spannerlm.explorers.pooled import PoolState
from spannerlm.logistic import LogisticPosterior, fit_comparisons
from spannerlm.policy import tilt
from spannerlm.records import Label, Labelled
from spannerlm.regression import LAMBDAS, fit_labels

ENV = laws.random_table(1)


def state_after(env: TabularEnvironment = ENV, labels: int = 30) -> PoolState:
    state: PoolState = laws.drive(Directed(pool=40), laws.Bench(env, laws.spec_of(env, labels=labels))).state
    return state


def exact(c: Candidates, rho: np.ndarray, theta: np.ndarray, beta: float) -> TabularEnvironment:
    """The pools as an environment in which theta is true; prompts padded with responses of mass 0."""
    width = max(c.rows(x).stop - c.rows(x).start for x in range(len(c.ids)))
    base, phi = np.zeros((len(c.ids), width)), np.zeros((len(c.ids), width, c.features.shape[1]))
    for x in range(len(c.ids)):
        rows = c.rows(x)
        base[x, : rows.stop - rows.start], phi[x, : rows.stop - rows.start] = c.weights[rows], c.features[rows]
    return TabularEnvironment(rho, base, phi, phi @ theta, beta=beta, noise_std=1.0)


@pytest.mark.parametrize("beta", [0.1, 0.37, 5.0])
def test_divergences_are_regrets_on_the_pools(beta: float) -> None:
    c, rng = state_after().candidates, np.random.default_rng(0)
    rho, theta, thetas = rng.dirichlet(np.ones(3)), rng.normal(size=3), rng.normal(size=(6, 3))
    found = divergences(c, rho, theta, thetas, beta)
    for value, other in zip(found, thetas, strict=True):
        env = exact(c, rho, other, beta)
        assert beta * value == pytest.approx(env.regret(tilt(env.base_probs, env.features @ theta, beta)), rel=1e-9)
    np.testing.assert_allclose(divergences(c, rho, theta, theta[None], beta), 0.0, atol=1e-12)


@pytest.mark.parametrize("compared", [False, True])
def test_predicted_regret_is_the_mean_over_the_posterior(compared: bool) -> None:
    """Against 1500 draws of our own: within five standard errors of the mean of 64."""
    state = state_after(laws.compared(ENV) if compared else ENV)
    learner, c = state.learner, state.candidates
    found = predicted_regret(learner, c, state.theta, ENV.beta, rng=np.random.default_rng(0))
    rho = ENV.prompt_probs[c.ids] / ENV.prompt_probs[c.ids].sum()
    for value, fit in ((found.expected, learner.posterior), (found.wide, wide_posterior(learner))):
        assert fit is not None
        regrets = []
        for theta in fit.sample(1500, rng=np.random.default_rng(1)):
            env = exact(c, rho, theta, ENV.beta)
            regrets.append(env.regret(tilt(env.base_probs, env.features @ state.theta, ENV.beta)))
        error = np.std(regrets) * np.sqrt(1 / SAMPLES + 1 / 1500)
        assert abs(value - np.mean(regrets)) < 5 * error
        assert np.mean(regrets) > 0.0
    same = predicted_regret(learner, c, state.theta, ENV.beta, rng=np.random.default_rng(0))
    assert same == found


def test_sampled_thetas_stay_within_the_box() -> None:
    """With every theta brought to the one in use there is no regret."""
    state = state_after()

    def here(thetas: np.ndarray) -> np.ndarray:
        return np.tile(state.theta, (len(thetas), 1))

    told = state.learner, state.candidates, state.theta, ENV.beta
    found = predicted_regret(*told, bounded=here, rng=np.random.default_rng(0))
    assert found.expected == pytest.approx(0.0, abs=1e-12)
    assert found.wide == pytest.approx(0.0, abs=1e-12)
    boxed = replace(state, box=0.5 * float(np.abs(state.theta).max()))
    assert boxed.foresight == predicted_regret(
        state.learner,
        state.candidates,
        boxed.theta,
        ENV.beta,
        bounded=lambda t: np.clip(t, -float(boxed.box or 0.0), float(boxed.box or 0.0)),
        rng=np.random.default_rng([30, 64]),
    )


def test_without_labels_or_temperature_nothing_is_predicted() -> None:
    state = state_after()
    rng = np.random.default_rng(0)
    empty = replace(Learner.start(state.learner.spec), moments=state.learner.moments)
    for found in (
        predicted_regret(empty, state.candidates, state.theta, 1.0, rng=rng),
        predicted_regret(state.learner, state.candidates, state.theta, float("inf"), rng=rng),
    ):
        assert np.isnan([found.expected, found.wide]).all()


def test_the_wide_prior_is_the_inverse_of_the_features_covariance() -> None:
    """T T' ~ C^-1, floored at a hundredth of the mean, tr(T C T) = S; and precisions up to a tenth of S."""
    learner = state_after().learner
    values, vectors = np.linalg.eigh(learner.covariance)
    shape = sum(np.outer(v, v) / max(e / values.mean(), 0.01) ** 0.5 for e, v in zip(values, vectors.T, strict=True))
    turn = shape * np.sqrt(np.trace(learner.covariance) / np.trace(shape @ learner.covariance @ shape))
    lambdas = tuple(v for v in LAMBDAS if v < 0.11)
    assert len(lambdas) == 7
    slow = fit_labels(learner.stats, learner.centres, learner.scale, transform=turn, lambdas=lambdas)
    fit = wide_posterior(learner)
    np.testing.assert_allclose(fit.mean, slow.mean, rtol=1e-8)
    np.testing.assert_allclose(fit.weights, slow.weights, rtol=1e-8)
    assert learner.posterior is not None
    assert np.abs(fit.mean - learner.posterior.mean).max() > 1e-4, "nothing would tell it from the usual one"
    pairs = state_after(laws.compared(ENV)).learner
    wide, told = wide_posterior(pairs), pairs.comparisons
    assert isinstance(wide, LogisticPosterior)
    turn = pairs.prior_transform(0.5)
    np.testing.assert_allclose(wide.mean, fit_comparisons(told, pairs.scale, transform=turn, lambdas=lambdas).mean)


def test_what_was_never_labelled_is_wide_open_under_the_wide_prior() -> None:
    """After random labels, rare-skill's rare directions are unknown; the wide prediction is the larger one."""
    env = laws.rare_skill(0.01, prompts=8, seed=0)
    trace = laws.drive(RandomSingles(pool=300), laws.Bench(env, laws.spec_of(env, labels=100, batch=50)))
    learner = trace.state.learner
    c = Candidates.of({r.prompt: r for r in env.draw(range(8), 400, rng=np.random.default_rng(0))})
    found = predicted_regret(learner, c, learner.theta, env.beta, rng=np.random.default_rng(0))
    assert found.wide > 1.5 * found.expected


# --- lack of fit ----------------------------------------------------------------------------------------------------


def test_replicates_are_all_rewards_of_a_response() -> None:
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(6, 2))
    first = (Label(0, "a", 1.0), Label(2, "a", 4.0), Label(0, "a", 3.0))
    second = (
        Label(0, "a", 5.0),
        Label(0, "b", None, status="skip"),
        Label(1, "a", 1.0, opponent="b"),
        Label(2, "a", 4.0, charged=False),
        Label(1, "c", 0.0),
    )
    one = add_replicates({}, Labelled(first, phi[[0, 1, 0]]))
    two = add_replicates(one, Labelled(second, phi[[0, 2, 3, 1, 4]]))
    assert one[0, "a"].count == 2
    told = {key: (g.count, g.total, g.square) for key, g in two.items()}
    assert told == {(0, "a"): (3, 9.0, 35.0), (2, "a"): (1, 4.0, 16.0), (1, "c"): (1, 0.0, 0.0)}
    np.testing.assert_array_equal(two[0, "a"].features, phi[0])
    np.testing.assert_array_equal(two[1, "c"].features, phi[4])


X, D, GROUPS = 6, 3, 30
Rows = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def labels(seed: int, misfit: float = 0.0) -> Rows:
    """Prompts, responses, features and labels of 90 rewards: of 30 responses of 6 prompts with intercepts."""
    rng = np.random.default_rng(seed)
    phi, level, wrong = rng.normal(size=(GROUPS, D)), 3.0 * rng.normal(size=X), misfit * rng.normal(size=GROUPS)
    rows = np.concatenate([np.arange(GROUPS), rng.integers(GROUPS, size=60)])
    y = phi[rows] @ [1.0, -1.0, 0.5] + level[rows % X] + wrong[rows] + rng.normal(size=90)
    return rows % X, rows, phi[rows], y


def f_test(told: Rows) -> float:
    """The F test by two least squares: a constant per prompt and theta, or a constant per response."""
    x, row, phi, y = told
    linear = np.hstack([np.eye(X)[x], phi])
    coefficients = np.linalg.lstsq(linear, y, rcond=None)[0]
    groups = np.eye(GROUPS)[row]
    pure = np.sum((y - groups @ np.linalg.lstsq(groups, y, rcond=None)[0]) ** 2)
    left = np.sum((y - linear @ coefficients) ** 2) - pure
    free, degrees = GROUPS - int(np.linalg.matrix_rank(linear)), len(y) - GROUPS
    return float(f_distribution.sf(left / free / (pure / degrees), free, degrees))


def replicates(told: Rows) -> dict[tuple[int, str], Replicates]:
    x, row, phi, y = told
    event = Labelled(tuple(Label(int(a), str(b), float(v)) for a, b, v in zip(x, row, y, strict=True)), phi)
    return add_replicates({}, event)


def test_lack_of_fit_is_the_f_test_of_nested_least_squares() -> None:
    for seed in range(5):
        told = labels(seed, misfit=0.3 * seed)
        assert lack_of_fit(replicates(told)) == pytest.approx(f_test(told), rel=1e-8)
        x, row, phi, y = told
        phi = np.column_stack([phi, phi[:, 0] - phi[:, 1], np.eye(X)[x][:, :1]])  # two that add nothing
        wide = x, row, phi, y
        assert lack_of_fit(replicates(wide)) == pytest.approx(f_test(told), rel=1e-8)


def test_its_p_values_are_uniform_under_the_linear_model_and_tiny_otherwise() -> None:
    found = [lack_of_fit(replicates(labels(seed))) for seed in range(400)]
    assert kstest(found, "uniform").pvalue > 1e-3
    assert max(lack_of_fit(replicates(labels(seed, misfit=2.0))) for seed in range(20)) < 1e-3


def test_where_nothing_can_be_tested_there_is_no_suspicion() -> None:
    g = Replicates(1, 2.0, 4.0, np.ones(D))
    assert lack_of_fit({}) == 1.0
    assert lack_of_fit({(0, str(k)): g for k in range(20)}) == 1.0  # no replicates
    exact_ones = Replicates(2, 4.0, 8.0, np.ones(D))
    assert lack_of_fit({(0, str(k)): exact_ones for k in range(20)}) == 1.0  # no noise
    noisy = Replicates(2, 4.0, 9.0, np.ones(D))
    line = {(0, str(k)): replace(noisy, features=k * np.ones(D), total=4.0 + k**2 % 3) for k in range(9)}
    line = {key: replace(g, square=0.5 * g.total**2 + 1.0) for key, g in line.items()}
    assert lack_of_fit(dict(list(line.items())[:2])) == 1.0  # as many responses as coefficients
    assert lack_of_fit(line) < 1.0


def test_noise_alone_seldom_warns_in_a_run() -> None:
    """24 runs on tie: at a level of .01, four warnings have a chance of 1e-4. Shifted rewards always warn."""
    warned = []
    for seed in range(24):
        env = tie(prompts=4, responses=9, dim=3, seed=seed)
        warned.append(spannerlm.explore(env, labels=80, batch=40, seed=seed + 1000).state.misfit)
    assert sum(warned) <= 3
    for seed in range(3):
        env = environment("tie", modifiers={"misspecified": {"zeta": 2.0}}, prompts=4, responses=9, dim=3, seed=seed)
        state = spannerlm.explore(env, labels=80, batch=40, seed=seed).state
        assert state.misfit
        assert lack_of_fit(state.replicates) < 1e-6
