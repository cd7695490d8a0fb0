"""Sequences as arrays and the fit of their rewards, against dense rewrites that take no short cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import spannerlm
from spannerlm.environments import token_environment
from spannerlm.explorers.paths import (
    GAMMA,
    LEVELS,
    Paths,
    Store,
    _Intercepts,
    _Problem,
    fit_paths,
    information,
    step_prior,
)
from spannerlm.records import DrawRequest, Draws, FloatArray, Rollout, StepTilt
from spannerlm.regression import PRIOR_SHAPE, PRIOR_SHARE
from spannerlm.stepwise import rolled

HUGE = 1e7


def made(rng: np.random.Generator, *, n: int = 14, horizon: int = 3, dim: int = 2, sizes: int = 4) -> Paths:
    """Sequences of 3 prompts through random places; some end early."""
    store, rollouts = Store(), []
    for i in range(n):
        x, segments = i % 3, ()
        for _ in range(horizon - (i % 5 == 4)):
            if (x, segments) not in store.choices:
                counts = rng.integers(1, 5, sizes)
                names = tuple(str(a) for a in range(sizes))
                store = store.add([Draws(x, names, counts, rng.normal(size=(sizes, dim)), prefix=segments)])
            segments = (*segments, str(rng.integers(sizes)))
        rollouts.append(Rollout(x, segments, " ".join(segments)))
    return Paths.of(store, rollouts, (horizon, dim))


def dense(owners: FloatArray, huge: float = HUGE) -> FloatArray:
    """[N, N] covariance of labels in noise units: 1, GAMMA where the prompt is the same, a mean nobody knows."""
    return np.eye(len(owners)) + GAMMA * (owners[:, None] == owners[None, :]) + huge


def test_a_store_merges_what_was_drawn_at_one_place_and_leaves_whole_responses_out() -> None:
    one = Draws(0, ("a", "b"), np.array([2, 1]), np.array([[1.0], [2.0]]), prefix=("p",))
    two = Draws(0, ("c", "b"), np.array([1, 4]), np.array([[3.0], [2.0]]), prefix=("p",))
    whole = Draws(0, ("a",), np.array([9]), np.array([[1.0]]))
    first = Store().add([one, whole])
    choice = first.add([two]).choices[0, ("p",)]
    assert choice.segments == ("a", "b", "c")
    np.testing.assert_array_equal(choice.counts, [2, 5, 1])
    np.testing.assert_array_equal(choice.features, [[1.0], [2.0], [3.0]])
    assert list(first.choices) == [(0, ("p",))]
    np.testing.assert_array_equal(first.choices[0, ("p",)].counts, [2, 1])  # what was there stays as it was


def test_the_jacobian_is_the_derivative_of_the_sums_and_nothing_beyond_the_end() -> None:
    rng = np.random.default_rng(0)
    paths, beta, eps = made(rng), 0.4, 1e-6
    theta = rng.normal(size=paths.shape)
    slopes = np.empty((len(paths.rows), theta.size))
    for j in range(theta.size):
        move = np.zeros(theta.size)
        move[j] = eps
        up, down = (paths.at(theta + s * move.reshape(theta.shape), beta).sums() for s in (1, -1))
        slopes[:, j] = (up - down) / (2 * eps)
    jacobian = paths.at(theta, beta).jacobian()
    np.testing.assert_allclose(jacobian, slopes, atol=1e-7)
    assert np.all(jacobian[4, -2:] == 0.0)
    assert np.any(jacobian[0, -2:] != 0.0)


def test_intercepts_are_integrated_out_as_with_the_explicit_covariance() -> None:
    rng = np.random.default_rng(1)
    owners = np.array([0, 0, 2, 1, 2, 2, 0])
    columns = rng.normal(size=(7, 3))
    slow = np.linalg.inv(dense(owners))
    fast = _Intercepts.of(owners, 4)  # a prompt without labels changes nothing
    np.testing.assert_allclose(fast.freed(columns), slow @ columns, atol=1e-6)
    np.testing.assert_allclose(fast.diagonal(), np.diag(slow), atol=1e-6)
    known = columns.T @ np.linalg.inv(dense(owners, 0.0)) @ columns
    np.testing.assert_allclose(information(columns, owners, 4, GAMMA), known, atol=1e-10)


def test_gauss_newton_ends_where_the_dense_merit_is_least() -> None:
    rng = np.random.default_rng(2)
    paths, beta = made(rng, n=30), 0.5
    truth = rng.normal(size=paths.shape)
    values = 3.0 + paths.at(truth, beta).sums() + 0.1 * rng.normal(size=30)
    problem = _Problem(paths, values, beta, _Intercepts.of(paths.prompts, 3), step_prior(paths.shape, 0.0))
    solved = problem.solved(np.zeros(paths.shape), 0.05)
    inverse = np.linalg.inv(dense(paths.prompts))

    def merit(theta: FloatArray) -> float:
        rest = values - paths.at(theta, beta).sums()
        return float(rest @ inverse @ rest) + 0.05 * float(np.sum(theta**2))

    assert solved.merit == pytest.approx(merit(solved.theta), abs=1e-4)
    for _ in range(40):
        move = 0.05 * rng.normal(size=paths.shape)
        assert merit(solved.theta + move) > merit(solved.theta)


def test_steps_that_are_alike_share_what_their_labels_tell() -> None:
    rng = np.random.default_rng(8)
    paths = made(rng, n=30)
    horizon, dim = paths.shape
    precision = step_prior(paths.shape, 0.75)
    for theta in rng.normal(size=(5, horizon, dim)):  # the density of H correlated normals, coordinate by coordinate
        between = np.full((horizon, horizon), 0.75) + 0.25 * np.eye(horizon)
        slow = sum(float(column @ np.linalg.solve(between, column)) for column in theta.T)
        assert theta.reshape(-1) @ precision @ theta.reshape(-1) == pytest.approx(slow)
    assert np.array_equal(step_prior(paths.shape, 0.0), np.eye(horizon * dim))
    truth = np.tile(rng.normal(size=dim), (horizon, 1))
    values = paths.at(truth, 0.5).sums() + 0.5 * rng.normal(size=30)
    apart, shared = (fit_paths(paths, values, 0.5, np.zeros(paths.shape), 3, alike=a).theta for a in (0.0, 0.95))
    assert np.linalg.norm(shared - truth) < np.linalg.norm(apart - truth)
    assert np.ptp(shared, axis=0).max() < np.ptp(apart, axis=0).max()


def test_labels_left_out_are_foretold_as_by_really_leaving_them_out() -> None:
    rng = np.random.default_rng(3)
    beta, penalty = 1e5, 0.7  # with so large a beta a sequence's sum is linear in theta
    paths = made(rng, n=16)
    values = rng.normal(size=16)
    solved = _Problem(paths, values, beta, _Intercepts.of(paths.prompts, 3), step_prior(paths.shape, 0.0)).solved(
        np.zeros(paths.shape), penalty
    )
    jacobian = paths.at(np.zeros(paths.shape), beta).jacobian()
    joint = dense(paths.prompts, 1e6) + jacobian @ jacobian.T / penalty
    misses, variances = np.empty(16), np.empty(16)
    for i in range(16):
        others = np.arange(16) != i
        weights = np.linalg.solve(joint[np.ix_(others, others)], joint[others, i])
        misses[i] = values[i] - weights @ values[others]
        variances[i] = joint[i, i] - weights @ joint[others, i]
    noise = (PRIOR_SHAPE * PRIOR_SHARE * np.var(values) + np.sum(misses**2 / variances)) / (PRIOR_SHAPE + 16)
    assert solved.noise_std**2 == pytest.approx(noise, rel=1e-3)
    assert solved.surprise == pytest.approx(0.5 * (np.log(noise) + np.mean(np.log(variances))), abs=1e-3)


def test_the_variance_of_the_normalisers_is_that_of_repeated_draws() -> None:
    rng = np.random.default_rng(4)
    n, beta, laws = 400, 0.5, np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
    features, theta = rng.normal(size=(2, 3, 2)), rng.normal(size=(2, 2))
    one = Paths(
        np.zeros(1, int), np.array([[0, 1]]), np.zeros((1, 2), int), np.arange(2), laws, np.full(2, n), features
    )
    scores = np.einsum("rkd,rd->rk", features, theta)
    shares = np.stack([rng.multinomial(n, law, 20000) / n for law in laws], axis=1)
    repeated = beta * np.log(np.sum(shares * np.exp(scores / beta), axis=2)).sum(axis=1)
    assert one.at(theta, beta).normaliser_variances()[0] == pytest.approx(np.var(repeated), rel=0.05)


@pytest.mark.parametrize("family", ["delayed-lock", "gated-lock", "random-token-mdp"])
def test_at_the_true_parameters_every_sequence_is_explained_and_the_return_has_no_variance(family: str) -> None:
    env = token_environment(family, horizon=4, seed=0)
    rng, horizon = np.random.default_rng(5), 4
    prompts = rng.choice(env.states, 30, p=env.prompt_probs)
    chosen = rng.integers(env.actions, size=(30, horizon))
    # every place enumerated with its exact shares: row s of step h is a state
    states = np.empty((30, horizon), dtype=np.int64)
    state = prompts.copy()
    rewards = np.zeros(30)
    for h in range(horizon):
        states[:, h] = state
        rewards += env.step_rewards[h, state, chosen[:, h]]
        state = env.next_state[h, state, chosen[:, h]]
    places = env.base_probs.reshape(-1, env.actions)
    paths = Paths(
        prompts,
        states + env.states * np.arange(horizon),
        chosen,
        np.repeat(np.arange(horizon), env.states),
        places,
        np.full(len(places), 1e9),
        env.features.reshape(len(places), env.actions, -1),
    )
    truth = np.empty((horizon, env.step_dim))
    for h in range(horizon):
        q, phi = env.action_values()[h] if callable(env.action_values) else env.action_values[h], env.features[h]
        rows = (phi - phi.mean(axis=1, keepdims=True)).reshape(-1, env.step_dim)
        truth[h] = np.linalg.lstsq(rows, (q - q.mean(axis=1, keepdims=True)).reshape(-1), rcond=None)[0]
    soft = env.soft_values() if callable(env.soft_values) else env.soft_values
    exact = soft[0][prompts] + paths.at(truth, env.beta).sums()
    np.testing.assert_allclose(exact, rewards, atol=1e-9)


def test_a_fit_finds_the_parameters_and_its_own_noise() -> None:
    rng = np.random.default_rng(6)
    paths, beta = made(rng, n=300, sizes=3), 0.5
    truth = rng.normal(size=paths.shape)
    values = 1.0 + paths.at(truth, beta).sums() + 0.1 * rng.normal(size=300)
    fit = fit_paths(paths, values, beta, np.zeros(paths.shape), 3)
    assert fit.noise_std == pytest.approx(0.1, rel=0.2)
    errors = (fit.theta - truth).reshape(-1)
    assert errors @ np.linalg.solve(fit.covariance, errors) / fit.noise_std**2 < 20.0  # chi-square of 6
    spread = np.cov(fit.samples(4000, rng=rng).reshape(4000, -1).T)
    np.testing.assert_allclose(spread, fit.covariance * fit.noise_std**2, atol=0.15 * np.max(np.abs(spread)))
    assert np.array_equal(fit_paths(paths, values, beta, np.zeros(paths.shape), 3).theta, fit.theta)


def test_one_label_and_labels_that_are_all_alike_leave_the_base_model_be() -> None:
    rng = np.random.default_rng(7)
    paths = made(rng, n=6)
    for rows in (1, 6):
        some = replace(paths, prompts=paths.prompts[:rows], rows=paths.rows[:rows], chosen=paths.chosen[:rows])
        fit = fit_paths(some, np.full(rows, 2.0), 0.5, np.zeros(paths.shape), 3)
        np.testing.assert_allclose(fit.theta, 0.0, atol=1e-9)
        assert np.all(np.isfinite(fit.covariance))
        assert LEVELS[0] > 0.0


def test_misfit_is_rare_where_features_explain_the_reward_and_found_where_they_do_not() -> None:
    found = []
    for zeta in (0.0, 3.0):
        env = token_environment(
            "additive-lock", horizon=4, actions=3, seed=3, modifiers={"misspecified": {"zeta": zeta}}
        )
        result = spannerlm.explore(env, explorer="multi-turn-spanner", labels=150, seed=0)
        found.append(result.history[-1])
    assert found[0]["misfit"] > 0.05
    assert "warning" not in found[0]
    assert found[1]["misfit"] < 0.01
    assert "do not explain" in found[1]["warning"]


def test_sequences_share_the_draws_that_they_kept_at_the_same_places() -> None:
    env = token_environment("delayed-lock", horizon=4, seed=0)
    request = DrawRequest((0, 0, 0, 1), 6, StepTilt(np.zeros((4, 4)), env.beta), {}, ((),) * 4)
    drawn = rolled(env, request, rng=np.random.default_rng(0))
    paths = Paths.of(Store().add(drawn.draws), drawn.paths, (4, 4))
    for i, one in enumerate(drawn.paths):
        for j, other in enumerate(drawn.paths):
            shared = 0
            while one.prompt == other.prompt and shared < 4 and one.segments[shared] == other.segments[shared]:
                shared += 1
            assert paths.shared()[i, j] == (0.0 if i == j else shared / 4)
