"""Coverage statistics against exact values, slow rewrites, and the frequencies that their intervals promise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binom, norm
from scipy.stats import t as student

from spannerlm.coverage import (
    coverage_constant,
    draws_needed,
    draws_per_accept,
    mean_pass_at_k,
    pass_at_k,
    pass_at_k_interval,
    pool_coverage,
    pool_kl,
    quantile_interval,
    ratio_quantile,
)
from spannerlm.errors import InputError
from spannerlm.samplers import pool_weights


def frequency(hits: list[bool]) -> tuple[float, float]:
    p = float(np.mean(hits))
    return p, 3.5 * math.sqrt(max(p * (1.0 - p), 0.01) / len(hits))


# --- exact tables ---------------------------------------------------------------------------------------------------


def test_coverage_constant_by_hand():
    policy = np.array([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5]])
    base = np.array([[0.3, 0.3, 0.4], [0.1, 0.89, 0.01]])
    assert coverage_constant(policy, base) == pytest.approx(50.0)
    assert coverage_constant(policy, base, [1.0, 0.0]) == pytest.approx(3.0)
    assert coverage_constant(base, base) == 1.0
    assert coverage_constant(policy[0], base[0]) == pytest.approx(3.0)


def test_coverage_constant_of_a_tilted_law_is_its_largest_weight_over_the_mean():
    rng = np.random.default_rng(0)
    base = rng.dirichlet(np.ones(4), size=(5, 3))
    weights = np.exp(2.0 * rng.normal(size=base.shape))
    mean = np.sum(base * weights, axis=-1, keepdims=True)
    slow = max(weights[h, s, a] / mean[h, s, 0] for h, s, a in itertools.product(range(5), range(3), range(4)))
    assert coverage_constant(base * weights / mean, base) == pytest.approx(slow)


def test_coverage_constant_where_the_base_misses_or_no_row_counts():
    assert coverage_constant([0.5, 0.5], [1.0, 0.0]) == math.inf
    assert coverage_constant([1.0, 0.0], [1.0, 0.0]) == 1.0
    assert math.isnan(coverage_constant([[1.0]], [[1.0]], [0.0]))
    with pytest.raises(InputError, match="one shape"):
        coverage_constant([1.0], [0.5, 0.5])


# --- draws per accepted response ------------------------------------------------------------------------------------


def test_draws_per_accept_is_c_cov_of_the_pool():
    log_weights, counts = np.log([1.0, 2.0, 8.0]), np.array([6, 3, 1])
    pool = counts / 10.0
    tilted = pool * np.exp(log_weights) / (pool @ np.exp(log_weights))
    assert draws_per_accept(log_weights, counts) == pytest.approx(coverage_constant(tilted, pool))
    assert draws_per_accept(np.full(4, 3.0)) == pytest.approx(1.0)


@pytest.mark.parametrize("clipped", [0.01, 0.2, 0.39, 0.4, 0.7])
def test_clipping_costs_what_it_says(clipped):
    rng = np.random.default_rng(1)
    log_weights, counts = 1.5 * rng.normal(size=30), rng.integers(0, 4, size=30)
    p = counts / counts.sum()
    ratio = np.exp(log_weights) / (p @ np.exp(log_weights))
    draws = draws_per_accept(log_weights, counts, clipped=clipped)
    bound = draws * (1.0 - clipped)
    assert p @ np.maximum(0.0, ratio - bound) == pytest.approx(clipped)  # the mass that is clipped
    assert 1.0 / (p @ np.minimum(1.0, ratio / bound)) == pytest.approx(draws)  # draws per acceptance
    law = p * np.minimum(ratio, bound)
    assert 0.5 * np.abs(law / law.sum() - p * ratio).sum() <= clipped + 1e-12


def test_draws_needed_by_binomial_tails():
    log_weights, counts = np.log([1.0, 50.0]), np.array([990, 10])
    coverage = draws_per_accept(log_weights, counts)
    for k, delta in ((1, 0.01), (1, 1e-4), (8, 0.05), (64, 0.01)):
        n = draws_needed(log_weights, counts, k=k, delta=delta)
        assert binom.cdf(k - 1, n, 1.0 / coverage) <= delta
        assert binom.cdf(k - 1, math.floor(0.8 * n), 1.0 / coverage) > delta
    assert draws_needed(np.zeros(5), k=3) == 3.0
    assert math.isnan(draws_needed(np.full(2, -np.inf)))
    with pytest.raises(InputError, match="k >= 1"):
        draws_needed(np.zeros(2), k=0)


# --- quantiles ------------------------------------------------------------------------------------------------------


def slow_quantile_interval(values, level, confidence):
    """Ends by summing binomial probabilities: the j-th smallest is below the quantile with P(Bin(n, level) >= j)."""
    x, n, tail = np.sort(values), len(values), (1.0 - confidence) / 2.0
    low = [x[j - 1] for j in range(1, n + 1) if binom.sf(j - 1, n, level) >= 1.0 - tail]
    high = [x[j - 1] for j in range(1, n + 1) if binom.sf(j - 1, n, level) <= tail]
    return (low[-1] if low else -np.inf), (high[0] if high else np.inf)


@pytest.mark.parametrize(("n", "level"), [(5, 0.5), (40, 0.5), (40, 0.9), (300, 0.99), (7, 0.01)])
def test_quantile_interval_by_binomial_sums(n, level):
    values = np.random.default_rng(2).normal(size=n)
    got = quantile_interval(values, level=level)
    assert (got.low, got.high) == slow_quantile_interval(values, level, 0.95)
    assert got.low <= got.value <= got.high


def test_quantile_interval_reads_counts_as_copies():
    rng = np.random.default_rng(3)
    values, counts = rng.normal(size=12), rng.integers(0, 5, size=12)
    assert quantile_interval(values, counts, level=0.7) == quantile_interval(np.repeat(values, counts), level=0.7)
    assert math.isnan(quantile_interval(values, np.zeros(12, dtype=np.int64), level=0.7).value)


def test_quantile_interval_holds_on_laws_with_ties():
    rng = np.random.default_rng(4)
    hits = []
    for _ in range(1500):
        got = quantile_interval(np.floor(3.0 * rng.random(40)), level=0.6, confidence=0.9)
        hits.append(got.low <= 1.0 <= got.high)
    p, error = frequency(hits)
    assert p >= 0.9 - error


def test_ratio_quantile_of_one_law_is_exact_in_the_limit():
    base, log_weights = np.array([0.5, 0.3, 0.15, 0.05]), np.log([0.2, 1.0, 3.0, 9.0])
    counts = (base * 1_000_000).astype(np.int64)
    tilted = base * np.exp(log_weights) / (base @ np.exp(log_weights))
    for level in (0.05, 0.3, 0.5, 0.9):
        expected = log_weights[np.searchsorted(np.cumsum(tilted), level)] - math.log(base @ np.exp(log_weights))
        got = ratio_quantile(log_weights, counts, level=level)
        assert (got.value, got.low, got.high) == pytest.approx((expected,) * 3, abs=1e-6)


def test_ratio_quantile_interval_covers_on_lognormal_weights():
    rng = np.random.default_rng(5)
    truth, hits = float(norm.ppf(0.8)) + 1.0 - 0.5, []  # under the tilted law the log-weight is N(1, 1), log Z = 1/2
    for _ in range(600):
        got = ratio_quantile(rng.normal(size=300), level=0.8)
        hits.append(got.low <= truth <= got.high)
    p, error = frequency(hits)
    assert abs(p - 0.95) <= error + 0.02


def test_ratio_quantile_ends_may_be_infinite_or_undefined():
    assert ratio_quantile(np.array([0.0, 3.0]), level=0.5).high == math.inf
    assert math.isnan(ratio_quantile(np.full(3, -np.inf), level=0.5).value)
    with pytest.raises(InputError, match=r"\(0, 1\)"):
        ratio_quantile(np.zeros(3), level=1.0)


# --- KL -------------------------------------------------------------------------------------------------------------


def slow_kl(log_weights):
    q = np.exp(log_weights) / np.exp(log_weights).sum()
    return float(np.sum(q * np.log(q * len(q))))


def test_pool_kl_is_the_jackknife_of_the_plug_in():
    rng = np.random.default_rng(6)
    values, counts = rng.normal(size=9), np.array([1, 2, 1, 4, 1, 1, 3, 1, 1])
    flat = np.repeat(values, counts)
    n = flat.size
    pseudo = [n * slow_kl(flat) - (n - 1) * slow_kl(np.delete(flat, i)) for i in range(n)]
    assert pool_kl(values, counts).value == pytest.approx(np.mean(pseudo))
    assert pool_kl(values + 300.0, counts).value == pytest.approx(np.mean(pseudo))


def test_pool_kl_of_no_tilt_and_of_nothing():
    assert pool_kl(np.full(5, 2.0)).value == pytest.approx(0.0, abs=1e-12)
    assert math.isnan(pool_kl(np.zeros(1)).value)
    assert math.isnan(pool_kl(np.full(3, -np.inf)).value)
    one_left = pool_kl(np.array([0.0, -np.inf]))
    assert one_left.value == pytest.approx(math.log(2.0))
    assert math.isnan(one_left.high)


def test_pool_kl_is_less_biased_than_the_plug_in_and_covers():
    rng = np.random.default_rng(7)
    truth, values, plug_in, hits = 0.125, [], [], []
    for _ in range(1200):
        log_weights = 0.5 * rng.normal(size=60)
        got = pool_kl(log_weights)
        values.append(got.value)
        plug_in.append(slow_kl(log_weights))
        hits.append(got.low <= truth <= got.high)
    assert abs(np.mean(values) - truth) <= 3.5 * np.std(values) / math.sqrt(1200)
    assert np.mean(plug_in) - truth < -4.0 * np.std(plug_in) / math.sqrt(1200)
    p, error = frequency(hits)
    assert p >= 0.92 - error


# --- what a pool has seen -------------------------------------------------------------------------------------------


def test_pool_coverage_by_hand():
    got = pool_coverage(np.log([1.0, 3.0, 4.0]), np.array([5, 1, 2]), delta=0.1, ratio_bound=3.0)
    assert (got.draws, got.distinct) == (8, 3)
    assert got.base_unseen == pytest.approx(1 / 8)
    assert got.tilted_unseen == pytest.approx(3 / 16)
    assert got.base_above_bound == pytest.approx(1.0 - 0.1 ** (1 / 8))
    assert got.tilted_above_bound == pytest.approx(3.0 * (1.0 - 0.1 ** (1 / 8)))
    assert math.isnan(pool_coverage(np.zeros(2)).tilted_above_bound)
    assert math.isnan(pool_coverage(np.zeros(0)).base_unseen)


def test_pool_coverage_bounds_hold():
    rng = np.random.default_rng(8)
    base = 1.0 / np.arange(1.0, 401.0)
    base /= base.sum()
    log_weights = rng.permutation(np.linspace(-1.0, 2.0, 400))
    above, unseen, estimates, missing = [], [], [], []
    for _ in range(1500):
        counts = rng.multinomial(80, base)
        got = pool_coverage(log_weights, counts, delta=0.1)
        seen = np.max(log_weights[counts > 0])
        above.append(base[log_weights > seen].sum() <= got.base_above_bound)
        missing.append(base[counts == 0].sum())
        unseen.append(missing[-1] <= got.base_unseen_bound)
        estimates.append(got.base_unseen)
    p, error = frequency(above)
    assert p >= 0.9 - error
    assert np.mean(unseen) >= 0.9
    assert abs(np.mean(estimates) - np.mean(missing)) < 0.01  # Good-Turing: bias at most 1 / N


# --- pass@k ---------------------------------------------------------------------------------------------------------


def test_pass_at_k_is_the_share_of_subsets_with_a_correct_draw():
    for n, c, k in itertools.product(range(1, 8), range(8), range(1, 8)):
        if c > n:
            continue
        got = pass_at_k([n], [c], k)[0]
        if k > n:
            assert math.isnan(got)
            continue
        subsets = list(itertools.combinations(range(n), k))
        assert got == pytest.approx(sum(min(s) < c for s in subsets) / len(subsets), abs=1e-13)


def test_pass_at_k_is_stable_for_large_samples():
    got = pass_at_k([2_000_000, 2_000_000], [1, 3], 100)
    one = 100 / 2_000_000
    assert got[0] == pytest.approx(one, rel=1e-12)
    n = 2_000_000
    three = 1.0 - (n - 100) * (n - 101) * (n - 102) / (n * (n - 1) * (n - 2))
    assert got[1] == pytest.approx(three, rel=1e-9)


def test_pass_at_k_interval_is_exact_or_conservative():
    for n, p, k in ((10, 0.3, 4), (30, 0.02, 8), (6, 0.9, 20)):
        c = np.arange(n + 1)
        low, high = pass_at_k_interval(np.full(n + 1, n), c, k).T
        truth = 1.0 - (1.0 - p) ** k
        assert binom.pmf(c, n, p)[(low <= truth) & (truth <= high)].sum() >= 0.95
    ends = pass_at_k_interval([5, 5, 0], [0, 5, 0], 3)
    assert (ends[0, 0], ends[1, 1]) == (0.0, 1.0)
    assert np.isnan(ends[2]).all()


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (0.05, 1.0), (5.0, 1.0), (2.0, 6.0)])
def test_mean_pass_at_k_covers(a, b):
    rng = np.random.default_rng(9)
    k, draws = 4, np.full(60, 8)
    truth = 1.0 - float(np.prod([(b + i) / (a + b + i) for i in range(k)]))
    hits = []
    for _ in range(500):
        got = mean_pass_at_k(draws, rng.binomial(draws, rng.beta(a, b, size=60)), k)
        assert got.low <= got.value <= got.high
        hits.append(got.low <= truth <= got.high)
    p, error = frequency(hits)
    assert p >= 0.94 - error


def test_mean_pass_at_k_where_it_has_no_width_or_no_value():
    none = mean_pass_at_k(np.full(20, 8), np.zeros(20, dtype=np.int64), 4)
    assert none.value == none.low == 0.0
    assert 0.1 < none.high < 0.25
    assert math.isnan(mean_pass_at_k([8, 3], [1, 1], 4).value)
    one = mean_pass_at_k([8], [1], 4)
    assert one.value == pytest.approx(0.5)
    assert math.isnan(one.low)
    with pytest.raises(InputError, match="0 <= correct <= draws"):
        mean_pass_at_k([3], [4], 1)


def test_pool_weights_enter_ratio_quantile():
    """Self-normalised weights would put less on the heaviest draw, and move a high quantile."""
    log_weights = np.log([1.0, 2.0, 4.0, 60.0])
    plain = np.exp(log_weights) / np.exp(log_weights).sum()
    assert pool_weights(log_weights)[3] > plain[3]
    assert ratio_quantile(log_weights, level=0.05).value == pytest.approx(math.log(4.0 / 16.75))


# --- the ends of every interval, from their formulas, and what is refused -------------------------------------------


def all_nan(interval):
    return all(math.isnan(end) for end in (interval.value, interval.low, interval.high))


def test_undefined_intervals_have_undefined_ends():
    nothing, no_weight = np.zeros(0), np.full(3, -np.inf)
    assert all_nan(quantile_interval(nothing, level=0.5))
    assert all_nan(ratio_quantile(no_weight, level=0.5))
    assert all_nan(pool_kl(np.zeros(1)))
    assert all_nan(pool_kl(no_weight))
    assert all_nan(mean_pass_at_k([], [], 1))
    half = pool_kl(np.array([0.0, -np.inf]))
    assert all(math.isnan(end) for end in (half.low, half.high))
    one = mean_pass_at_k([8], [1], 4)
    assert all(math.isnan(end) for end in (one.low, one.high))
    empty = pool_coverage(nothing)
    assert (empty.draws, empty.distinct) == (0, 0)
    assert math.isnan(draws_per_accept(nothing))


@pytest.mark.parametrize(("n", "level", "rank"), [(40, 0.5, 20), (41, 0.5, 21), (7, 0.01, 1), (100, 0.07, 7)])
def test_quantile_is_the_first_order_statistic_that_reaches_the_level(n, level, rank):
    """.07 x 100 is a little above 7 in binary."""
    assert quantile_interval(np.arange(1.0, n + 1.0), level=level).value == rank


def test_quantile_interval_may_start_at_the_smallest_draw():
    got = quantile_interval(np.arange(7.0), level=0.5)  # P(Bin(7, 1/2) >= 1) = .992, P(.. >= 2) = .938
    assert (got.low, got.high) == slow_quantile_interval(np.arange(7.0), 0.5, 0.95) == (0.0, 6.0)


def test_ratio_quantile_ends_by_the_formula():
    rng = np.random.default_rng(10)
    log_weights, counts, level = rng.normal(size=40), rng.integers(1, 4, size=40), 0.6
    q = pool_weights(log_weights, counts)
    ratio = log_weights - math.log(counts @ np.exp(log_weights) / counts.sum())

    def at(target):
        reach = [x for x in sorted(ratio) if q[ratio <= x].sum() >= target]
        return reach[0] if reach else math.inf

    value = at(level)
    variance = sum(q[i] ** 2 / counts[i] * ((ratio[i] <= value) - level) ** 2 for i in range(40))
    for confidence in np.linspace(0.02, 0.98, 97):
        error = float(norm.ppf(0.5 + confidence / 2.0)) * math.sqrt(variance)
        got = ratio_quantile(log_weights, counts, level=level, confidence=confidence)
        assert (got.value, got.low, got.high) == pytest.approx((value, at(level - error), at(level + error)))
    assert ratio_quantile(np.array([0.0, 3.0]), level=0.5).low == -math.inf


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0, 8.0])
def test_pool_kl_ends_by_the_formula(spread):
    flat = spread * np.random.default_rng(11).normal(size=12)
    flat = np.append(flat, flat[:2])
    n, weights = flat.size, np.exp(flat)
    pseudo = np.array([n * slow_kl(flat) - (n - 1) * slow_kl(np.delete(flat, i)) for i in range(n)])
    effective = weights.sum() ** 2 / (weights**2).sum()
    freedom = max(effective - 1.0, 1.0)
    error = np.std(pseudo, ddof=1) / math.sqrt(n) * float(student.ppf(0.95, freedom))
    value = float(pseudo.mean())
    high = value * math.exp(error / value) if error <= value else max(value, math.e * error)
    got = pool_kl(flat[:12], np.array([2, 2] + [1] * 10), confidence=0.9)
    assert (got.value, got.low, got.high) == pytest.approx((max(0, value), max(0, value - error), high), rel=1e-9)
    assert pool_kl(np.zeros(1), np.array([2])).value == 0.0


def test_pool_coverage_bounds_by_the_formula():
    counts = np.array([900, 70, 28, 1, 1])
    got = pool_coverage(np.zeros(5), counts, delta=0.1, ratio_bound=1e6)
    assert got.base_unseen_bound == pytest.approx(0.002 + (1 + 2**0.5) * math.sqrt(math.log(20.0) / 1000))
    assert got.tilted_above_bound == 1.0
    assert pool_coverage(np.zeros(3)).base_unseen_bound == 1.0


@pytest.mark.parametrize(("n", "c"), [(1, 0), (1, 1), (9, 0), (9, 1), (9, 4), (9, 8), (9, 9)])
def test_pass_at_k_interval_is_clopper_and_pearson_carried_through(n, c):
    """Each end of p is where what was seen, or more of it, has half of what confidence leaves."""
    (low, high), k = pass_at_k_interval([n], [c], 3, confidence=0.9)[0], 3
    p_low, p_high = (1.0 - (1.0 - end) ** (1.0 / k) for end in (low, high))
    assert binom.sf(c - 1, n, p_low) == pytest.approx(0.05) if c else low == 0.0
    assert binom.cdf(c, n, p_high) == pytest.approx(0.05) if c < n else high == 1.0


@pytest.mark.parametrize("correct", [[1, 2], [4, 4, 4, 3, 4], [0, 8, 0, 8], [3, 3], [8, 8, 8], [1, 7, 2, 5, 5, 0]])
def test_mean_pass_at_k_is_wilson_at_the_effective_number(correct):
    size = len(correct)
    values = pass_at_k([8] * size, correct, 2)
    mean = sum(values) / size
    if 0.0 < mean < 1.0:
        deviations = sum((v - mean) ** 2 for v in values)
        effective = min(size * mean * (1 - mean) / ((deviations + mean * (1 - mean)) / size), 3.0 * size)
    else:
        effective = size
    t = float(student.ppf(0.95, size - 1))
    root = math.sqrt(mean * (1 - mean) / effective + t**2 / (4 * effective**2))
    ends = [(mean + t**2 / (2 * effective) + sign * t * root) / (1 + t**2 / effective) for sign in (-1, 1)]
    got = mean_pass_at_k([8] * size, correct, 2, confidence=0.9)
    expected = (mean, min(mean, ends[0]), max(mean, ends[1]))
    assert (got.value, got.low, got.high) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_few_weights_have_their_draws_per_accept():
    assert draws_per_accept(np.zeros(1)) == 1.0
    assert draws_per_accept(np.log([1.0, 2.0]), clipped=0.9) == pytest.approx(1.0)  # below every ratio: all accepted
    assert draws_per_accept(np.array([0.0, 2000.0]), np.array([5, 0])) == 1.0  # what was never drawn has no say
    assert draws_per_accept(np.array([800.0, 800.0 + math.log(3.0)])) == pytest.approx(1.5)
    single = np.random.default_rng(12).normal(size=50).astype(np.float32)
    assert draws_per_accept(single) == pytest.approx(draws_per_accept(single.astype(np.float64)), rel=1e-14)
    low = np.log([1.0, 1.5])  # C = 1.2: P(no acceptance in N) = .01 at N / C = 4.6
    assert draws_needed(low) == draws_needed(low, k=1) == math.ceil(-1.2 * math.log(0.01))


@pytest.mark.parametrize(
    ("values", "counts"),
    [([[0.0, 1.0]], [[1, 1]]), ([0.0, 1.0], [1]), ([0.0, 1.0], [1, -1]), ([0.0, math.nan], [1, 1]), ([0.0], [1, 1])],
)
def test_values_and_counts_that_do_not_fit_are_refused(values, counts):
    with pytest.raises(InputError, match=r"expected values .* got shapes"):
        draws_per_accept(np.array(values), np.array(counts))


@pytest.mark.parametrize(
    ("draws", "correct", "k"), [([3], [1, 1], 1), ([[3]], [[1]], 1), ([3], [-1], 1), ([3], [4], 1), ([3], [1], 0)]
)
def test_graded_answers_that_do_not_fit_are_refused(draws, correct, k):
    with pytest.raises(InputError, match="0 <= correct <= draws"):
        pass_at_k(draws, correct, k)


def test_levels_and_shares_outside_their_range_are_refused():
    for level, confidence in ((0.0, 0.9), (1.0, 0.9), (0.5, 0.0), (0.5, 1.0), (0.5, 1.5), (-0.1, 0.9)):
        with pytest.raises(InputError, match=r"\(0, 1\)"):
            quantile_interval(np.zeros(3), level=level, confidence=confidence)
    for clipped in (-0.1, 1.0, 1.5):
        with pytest.raises(InputError, match="share of the tilted mass"):
            draws_per_accept(np.zeros(3), clipped=clipped)
    for delta in (0.0, 1.0, 1.5):
        with pytest.raises(InputError, match="0 < delta < 1"):
            draws_needed(np.zeros(3), delta=delta)
    with pytest.raises(InputError, match=r"row_probs must have shape \(1, 2\), .* got \(2,\)"):
        coverage_constant([[[1.0], [1.0]]], [[[1.0], [1.0]]], [1.0, 1.0])
