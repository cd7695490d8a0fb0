"""The mixture of success rates against scipy, against quadrature, and against rates that are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import betaln, digamma
from scipy.stats import beta, betabinom

from spannerlm.foundation.mixture import DEPTH, RateMixture, dictionary, fit_rates, log_likelihood


def counts(*pairs: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([n for n, _ in pairs]), np.array([c for _, c in pairs])


def test_log_likelihood_is_that_of_scipy() -> None:
    draws, correct = counts((0, 0), (1, 0), (1, 1), (64, 3), (512, 0), (2048, 2048), (30, 29))
    a, b = dictionary(512)
    found = log_likelihood(draws, correct, a, b)
    expected = betabinom.logpmf(correct[:, None], draws[:, None], a[1:], b[1:])
    np.testing.assert_allclose(found[:, 1:], expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(found[:, 0], np.where(correct == 0, 0.0, -np.inf))


@pytest.mark.parametrize("n", [1, 2, 64, 2048])
def test_dictionary_reaches_from_far_below_one_success_to_nearly_one(n: int) -> None:
    a, b = dictionary(n)
    means = np.sort(a / (a + b))
    assert means[0] == 0.0 == a[0]
    assert means[1] <= 1.0 / (DEPTH * n)
    assert means[-1] >= 1.0 - max(0.5, 4.0 / (n + 2.0))
    assert np.all(a[1:] > 0.0)
    assert np.all(b > 0.0)
    odds = means[1:] / (1.0 - means[1:])
    assert np.all(odds[1:] / odds[:-1] <= 3.0 + 1e-9)  # no gap


def _exact(draws: np.ndarray, correct: np.ndarray, a: np.ndarray, b: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """[J] posterior mean of the weights, as the sum over all J^X ways to give prompts a component."""
    size, total, mean = len(a), 0.0, np.zeros(len(a))
    table = np.exp(log_likelihood(draws, correct, a, b))
    for index in np.ndindex(*[size] * len(draws)):
        held = np.bincount(index, minlength=size)
        # E over the Dirichlet prior of prod w^held, by the beta functions of its stick-breaking form
        log_prior, left = 0.0, prior.sum()
        below = np.cumsum(prior[::-1])[::-1]
        after = np.cumsum(held[::-1])[::-1]
        for j in range(size - 1):
            left = below[j + 1]
            log_prior += betaln(prior[j] + held[j], left + after[j + 1]) - betaln(prior[j], left)
        mass = float(np.exp(log_prior) * np.prod(table[np.arange(len(draws)), list(index)]))
        total += mass
        mean += mass * (prior + held) / (prior.sum() + len(draws))
    return mean / total


def test_posterior_of_the_weights_is_that_of_enumeration() -> None:
    draws, correct = counts((20, 0), (20, 0), (20, 0), (20, 1), (40, 13), (5, 0))
    a, b = np.array([0.0, 2.0, 4.0]), np.array([1.0, 60.0, 8.0])
    prior = np.array([0.5, 0.3, 0.3])
    found = fit_rates(draws, correct, rng=np.random.default_rng(0), components=(a, b, prior))
    expected = _exact(draws, correct, a, b, prior)
    error = np.std(found.weights[0].mean(axis=0))  # sanity: the weights differ
    assert error > 0.0
    np.testing.assert_allclose(found.weights[0].mean(axis=0), expected, atol=0.04)


def test_one_component_is_a_beta_posterior_by_quadrature() -> None:
    draws, correct = counts((10, 2), (0, 0), (30, 30))
    one = (np.array([1.5]), np.array([3.0]), np.array([1.0]))
    found = fit_rates(draws, correct, rng=np.random.default_rng(0), components=one)
    grid = (np.arange(20000) + 0.5) / 20000
    for x in range(3):
        density = beta.pdf(grid, 1.5, 3.0) * grid ** correct[x] * (1.0 - grid) ** (draws[x] - correct[x])
        density /= density.sum()
        mean, sd = float(density @ grid), float(np.sqrt(density @ grid**2 - (density @ grid) ** 2))
        sample = found.rates[0, :, x]
        assert abs(sample.mean() - mean) < 4.0 * sd / np.sqrt(len(sample))
        assert abs(np.log(sample).mean() - float(digamma(1.5 + correct[x]) - digamma(4.5 + draws[x]))) < 0.12


def test_probability_below_a_rate_is_the_share_of_the_sampled_rates() -> None:
    draws, correct = counts(*[(64, 0)] * 6, (64, 1), (64, 20))
    found = fit_rates(draws, correct, rng=np.random.default_rng(1))
    for rate in (1e-3, 0.02, 0.3):
        share = np.mean(found.rates < rate, axis=1).min(axis=0)
        np.testing.assert_allclose(found.below(rate), share, atol=0.06)
    np.testing.assert_allclose(found.below(1.0), 1.0)


def test_posterior_mean_follows_the_draws_where_there_are_many() -> None:
    rng = np.random.default_rng(2)
    rates = np.array([0.0, 0.01, 0.2, 0.5, 0.93, 1.0])
    draws = np.full(6, 4000)
    found = fit_rates(draws, rng.binomial(draws, rates), rng=rng)
    np.testing.assert_allclose(found.rates.mean(axis=(0, 1)), rates, atol=0.03)
    assert found.weights.shape[0] == found.rates.shape[0] == found.responsibilities.shape[0] == 2
    np.testing.assert_allclose(found.weights.sum(axis=2), 1.0)
    np.testing.assert_allclose(found.responsibilities.sum(axis=2), 1.0)


def test_prompts_of_equal_counts_have_equal_responsibilities_and_order_does_not_matter() -> None:
    draws, correct = counts((64, 0), (64, 7), (64, 0), (64, 31))
    found = fit_rates(draws, correct, rng=np.random.default_rng(3))
    np.testing.assert_array_equal(found.responsibilities[:, 0], found.responsibilities[:, 2])
    back = fit_rates(draws[::-1], correct[::-1], rng=np.random.default_rng(3))
    np.testing.assert_allclose(back.rates.mean(axis=1)[:, ::-1], found.rates.mean(axis=1), atol=0.006)


def test_the_two_priors_disagree_only_where_the_counts_cannot_tell() -> None:
    draws = np.full(20, 64)
    unclear = fit_rates(draws, np.array([0] * 12 + [20] * 8), rng=np.random.default_rng(4)).pass_at(640).mean(axis=1)
    clear = fit_rates(draws, np.full(20, 20), rng=np.random.default_rng(4)).pass_at(640).mean(axis=1)
    assert unclear[1] - unclear[0] > 0.02
    assert abs(clear[1] - clear[0]) < 1e-3


@pytest.mark.parametrize(
    ("draws", "correct"), [([1], [0]), ([1], [1]), ([0, 3], [0, 3]), ([512] * 40, [0] * 40), ([512] * 40, [512] * 40)]
)
def test_extremes(draws: list[int], correct: list[int]) -> None:
    found = fit_rates(np.array(draws), np.array(correct), rng=np.random.default_rng(5))
    assert isinstance(found, RateMixture)
    assert np.all((found.rates >= 0.0) & (found.rates <= 1.0))
    for k in (1, 7, 10 * max(draws)):
        sample = found.pass_at(k)
        assert np.all((sample >= 0.0) & (sample <= 1.0))
