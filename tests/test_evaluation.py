"""Values of tilted policies: exact on a pool, unbiased from labels, covered by their intervals in simulation."""

from __future__ import annotations

import laws
import numpy as np
import pytest
from scipy.stats import binom, t

from spannerlm.environments import TabularEnvironment
from spannerlm.evaluation import (
    EvaluationPool,
    Sampled,
    Tilted,
    cross_validated_fit,
    knee,
    mean_interval,
    off_policy_value,
    predicted_value,
    sampling_plan,
)
from spannerlm.explorers import AdaptiveSpannerSampling
from spannerlm.explorers.learner import Learner
from spannerlm.records import Drawn, Draws, Labelled, Spec
from spannerlm.regression import LabelStats, fit_labels

D = 3


def random_pool(seed: int, prompts: int = 8, shift: float = 0.5) -> EvaluationPool:
    """Draws of prompts with 3 to 9 responses each, features around a centre of the prompt's own."""
    rng = np.random.default_rng(seed)
    draws = []
    for x in range(prompts):
        n = int(rng.integers(3, 10))
        features = rng.normal(size=(n, D)) + shift * rng.normal(size=D)
        draws.append(Draws(x, tuple(map(str, range(n))), rng.integers(1, 9, size=n), features))
    return EvaluationPool(draws)


POOL, THETA = random_pool(0), np.array([1.0, -0.5, 2.0])
SCORES = POOL.scores(THETA)
TRUTH = np.where(POOL.base > 0.0, SCORES + np.random.default_rng(1).normal(size=SCORES.shape), 0.0)


def test_a_tilted_policy_on_a_pool_prompt_by_prompt() -> None:
    tilted = POOL.at_beta(SCORES, 0.8)
    values, kls, worst = [], [], []
    for row, draws in enumerate(POOL.draws):
        base = draws.counts / draws.counts.sum()
        weights = base * np.exp(draws.features @ THETA / 0.8)
        weights /= weights.sum()
        values.append(sum(w * TRUTH[row, i] for i, w in enumerate(weights)))
        kls.append(sum(w * np.log(w / b) for w, b in zip(weights, base, strict=True)))
        worst.append(max(weights / base))
        np.testing.assert_allclose(POOL.centres()[row], base @ draws.features)
    np.testing.assert_allclose(tilted.mean(TRUTH), values, rtol=1e-12)
    assert tilted.kl == pytest.approx(np.mean(kls), rel=1e-12)
    np.testing.assert_allclose(tilted.draws_per_answer(), worst, rtol=1e-12)
    assert POOL.at_kl(SCORES, 0.6).kl == pytest.approx(0.6, rel=1e-5)
    base_model = POOL.at_beta(SCORES, np.inf)
    np.testing.assert_allclose(base_model.weights, POOL.base, rtol=1e-14)
    assert base_model.kl == pytest.approx(0.0, abs=1e-15)


def test_mean_interval_is_students() -> None:
    values = np.array([1.0, 4.0, -2.0, 0.5])
    found = mean_interval(values)
    half = t.ppf(0.975, 3) * np.std(values, ddof=1) / 2.0
    assert (found.value, found.low, found.high) == pytest.approx((0.875, 0.875 - half, 0.875 + half))
    one, none = mean_interval(np.array([2.0])), mean_interval(np.zeros(0))
    assert one.value == 2.0
    assert np.isnan([one.low, one.high, none.value, none.low, none.high]).all()


# --- from labels ----------------------------------------------------------------------------------------------------

PLAN = POOL.at_kl(SCORES, 1.0)
TARGETS = {"plan": PLAN, "base": POOL.at_beta(SCORES, np.inf), "between": POOL.at_kl(SCORES, 0.3)}
"""Targets whose weights against half plan, half base are at most about 2."""


def test_plan_takes_prompts_in_turn_and_rows_from_the_mixture() -> None:
    """16,000 rows against half base, half plan; five standard errors."""
    prompts, rows = sampling_plan(PLAN, 16_000, rng=np.random.default_rng(2))
    np.testing.assert_array_equal(np.bincount(prompts), 2000)
    for size in (1, 3, 11):
        some, _ = sampling_plan(PLAN, size, rng=np.random.default_rng(3))
        counts = np.bincount(some, minlength=8)
        assert counts.sum() == size
        assert np.ptp(counts) <= 1
    for x in range(8):
        p = 0.5 * (PLAN.base[x] + PLAN.weights[x])
        found = np.bincount(rows[prompts == x], minlength=len(p)) / 2000
        assert (np.abs(found - p) <= 5 * np.sqrt(p * (1 - p) / 2000)).all()


def simulate(target: Tilted, size: int, model: np.ndarray, *, shared: bool, noise: float) -> np.ndarray:
    """[400, 2] error and whether the interval holds the truth; ``shared``: a response has one label, however often."""
    truth, out = float(np.mean(target.mean(TRUTH))), []
    for seed in range(400):
        rng = np.random.default_rng([seed, size])
        prompts, rows = sampling_plan(PLAN, size, rng=rng)
        errors = rng.normal(size=TRUTH.shape)[prompts, rows] if shared else rng.normal(size=size)
        found = off_policy_value(Sampled(prompts, rows, TRUTH[prompts, rows] + noise * errors), PLAN, target, model)
        out.append((found.value - truth, found.low <= truth <= found.high))
    return np.array(out, dtype=np.float64)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("size", [24, 100])
@pytest.mark.parametrize("name", TARGETS)
def test_off_policy_value_is_unbiased_and_covered_whatever_the_prediction(name: str, size: int, shared: bool) -> None:
    """A wrong prediction, 400 runs: the mean error within four standard errors of 0, at least 92 % covered."""
    wrong = np.random.default_rng(7).normal(size=TRUTH.shape) * 2.0 - 1.0
    errors, covered = simulate(TARGETS[name], size, wrong, shared=shared, noise=1.5).T
    assert abs(errors.mean()) < 4 * errors.std() / 20
    assert covered.mean() >= 0.92


def test_a_good_prediction_narrows_the_estimate() -> None:
    rough = simulate(PLAN, 60, 0.0 * TRUTH, shared=False, noise=0.1)[:, 0].std()
    fine = simulate(PLAN, 60, TRUTH, shared=False, noise=0.1)[:, 0].std()
    assert fine < rough / 4


def test_off_policy_value_by_hand() -> None:
    base, weights = np.array([[0.5, 0.5], [0.25, 0.75]]), np.array([[0.9, 0.1], [0.5, 0.5]])
    plan = Tilted(weights, base, 1.0)
    sampled = Sampled(np.array([0, 1, 1]), np.array([0, 0, 1]), np.array([2.0, 1.0, -1.0]))
    model = np.array([[1.0, 0.0], [0.5, 0.0]])
    ratios = np.array([0.9 / 0.7, 0.5 / 0.375, 0.5 / 0.625])
    residuals = ratios * [1.0, 0.5, -1.0]
    expected = mean_interval(residuals)
    found = off_policy_value(sampled, plan, plan, model)
    offset = (0.9 * 1.0 + 0.5 * 0.5) / 2
    assert found.value == pytest.approx(offset + residuals.mean())
    assert found.high - found.low == pytest.approx(expected.high - expected.low)  # every response came once
    nothing = off_policy_value(Sampled(*(np.zeros(0, dtype=np.int64),) * 2, np.zeros(0)), plan, plan, model)
    assert np.isnan([nothing.value, nothing.low, nothing.high]).all()


# --- by prediction --------------------------------------------------------------------------------------------------


def predicted_and_true(seed: int, labels: int) -> tuple[bool, bool]:
    """A realizable task of 12 labelled and 12 held-out prompts: whether the intervals hold the true values of the
    learned policy and of the base model."""
    rng = np.random.default_rng(seed)
    theta, pool = rng.normal(size=D), random_pool(seed + 10_000, prompts=24)
    prompts = rng.integers(12, size=labels)
    rows = [rng.choice(len(pool.draws[x].counts), p=pool.draws[x].counts / pool.draws[x].counts.sum()) for x in prompts]
    features = np.array([pool.draws[x].features[i] for x, i in zip(prompts, rows, strict=True)])
    values = features @ theta + 0.5 * rng.normal(size=labels)
    stats = LabelStats.empty(24, D).add(prompts, features, values)
    posterior = fit_labels(stats, pool.centres(), float(D))
    held_out = EvaluationPool(pool.draws[12:])
    learned = held_out.at_kl(held_out.scores(posterior.mean), 0.7)
    base = held_out.at_beta(held_out.scores(posterior.mean), np.inf)
    out = []
    for policy in (learned, base):
        truth = float(np.mean(policy.mean(held_out.scores(theta))))
        found = predicted_value(posterior, held_out, policy)
        out.append(found.low <= truth <= found.high)
    return out[0], out[1]


@pytest.mark.parametrize("labels", [12, 60])
def test_predicted_values_are_covered_on_realizable_tasks(labels: int) -> None:
    """400 tasks: at least 92 % covered, and not everything (the intervals are not idle)."""
    covered = np.mean([predicted_and_true(seed, labels) for seed in range(400)], axis=0)
    assert (covered >= 0.92).all(), covered
    assert (covered <= 0.998).all(), covered


def test_predicted_values_are_covered_when_the_explorer_chose_the_labels() -> None:
    """100 runs of the adaptive spanner: not fewer covered than 95 % allows at 1e-4."""
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng([seed, 5])
        theta, features = rng.normal(size=D), rng.normal(size=(24, 12, D)) + 0.5 * rng.normal(size=(24, 1, D))
        base = rng.dirichlet(np.ones(12), size=24)
        env = TabularEnvironment(
            np.full(12, 1 / 12), base[:12], features[:12], features[:12] @ theta, beta=1.0, noise_std=0.5
        )
        explorer = AdaptiveSpannerSampling(pool=16)
        trace = laws.drive(explorer, laws.Bench(env, laws.spec_of(env, labels=30, batch=10)), seed=seed)
        posterior = explorer.learner(trace.state).posterior
        assert posterior is not None
        counts = [rng.multinomial(300, p) for p in base[12:]]
        held_out = EvaluationPool(
            [
                Draws(x, tuple(map(str, np.flatnonzero(c))), c[c > 0], features[12 + x, c > 0])
                for x, c in enumerate(counts)
            ]
        )
        policy = held_out.at_kl(held_out.scores(posterior.mean), 0.7)
        found = predicted_value(posterior, held_out, policy)
        covered += found.low <= np.mean(policy.mean(held_out.scores(theta))) <= found.high
    assert covered >= binom.ppf(1e-4, 100, 0.95)


# --- fit and knee ---------------------------------------------------------------------------------------------------


def learner_and_labels(seed: int, n: int, d: int, signal: float) -> tuple[Learner, np.ndarray, np.ndarray, np.ndarray]:
    """A learner that has absorbed n labels of prompts with intercepts, noise 1."""
    rng = np.random.default_rng(seed)
    spec = Spec(np.full(5, 0.2), d, labels=10_000, draws=None, batch=20, beta=1.0)
    draws = tuple(
        Draws(x, tuple(map(str, range(40))), np.ones(40, dtype=int), rng.normal(size=(40, d))) for x in range(5)
    )
    prompts, rows = rng.integers(5, size=n), rng.integers(40, size=n)
    features = np.array([draws[x].features[i] for x, i in zip(prompts, rows, strict=True)])
    theta = signal * rng.normal(size=d) / np.sqrt(d)
    values = features @ theta + rng.normal(size=n)
    labels = tuple(laws.Label(int(x), str(i), float(v)) for x, i, v in zip(prompts, rows, values, strict=True))
    learner = Learner.start(spec).absorb(Drawn(draws, 200)).absorb(Labelled(labels, features))
    return learner, prompts, features, values


def test_fit_finds_the_share_that_features_explain() -> None:
    """Signal variance s^2, noise 1, 400 labels: R^2 near s^2 / (1 + s^2); interval around it; noise near 1."""
    for signal in (0.5, 2.0, 6.0):
        learner, *labels = learner_and_labels(3, 400, 4, signal)
        fit = cross_validated_fit(learner, *labels, rng=np.random.default_rng(0))
        share = np.var(labels[2] - labels[1] @ learner.theta) / np.var(labels[2])
        assert fit.r2.value == pytest.approx(1.0 - share, abs=0.05)
        assert fit.r2.low < fit.r2.value < fit.r2.high
        assert fit.noise_std == pytest.approx(1.0, abs=5 / np.sqrt(800))
        assert (fit.labels, fit.folds) == (400, 5)


def test_fit_is_not_fooled_by_many_features() -> None:
    """30 features, 45 labels of pure noise: explained in the sample, not out of it."""
    found = []
    for seed in range(5):
        learner, *labels = learner_and_labels(seed, 45, 30, 0.0)
        residual = labels[2] - labels[2].mean() - (labels[1] - labels[1].mean(axis=0)) @ learner.theta
        fit = cross_validated_fit(learner, *labels, rng=np.random.default_rng(0))
        assert fit.r2.value < 1.0 - np.var(residual) / np.var(labels[2]) - 0.1
        assert fit.r2.low < 0.0
        found.append(fit.r2.value)
    assert np.mean(found) < 0.05


def test_fit_is_undefined_where_there_is_nothing_to_tell() -> None:
    learner, *labels = learner_and_labels(1, 9, 2, 1.0)
    assert np.isnan(cross_validated_fit(learner, *labels, rng=np.random.default_rng(0)).r2.value)
    learner, prompts, features, values = learner_and_labels(1, 30, 2, 1.0)
    equal = cross_validated_fit(learner, prompts, features, 0.0 * values + 2.0, rng=np.random.default_rng(0))
    assert np.isnan([equal.r2.value, equal.r2.low, equal.r2.high, equal.noise_std]).all()


def test_knee_is_farthest_above_the_chord() -> None:
    kls = np.linspace(0.0, 4.0, 41)
    assert knee(kls, np.sqrt(kls)) == 10  # sqrt(t) - t is largest at t = 1/4
    assert knee(kls, 3.0 + 5.0 * np.sqrt(kls)) == 10
    steep = np.minimum(kls, 0.5)
    assert knee(kls, steep) == 5
    for values in (-np.sqrt(kls), 0.0 * kls, kls, kls**2, kls**0.9, np.where(kls == 2.0, np.nan, np.sqrt(kls))):
        assert knee(kls, values) is None
    assert knee(np.array([1.0]), np.array([2.0])) is None
    assert knee(np.zeros(0), np.zeros(0)) is None
