"""Laws of the samplers against the exact tilted law, by enumeration first (THEORY 3)."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import binom, multinomial

from spannerlm.errors import InputError
from spannerlm.records import Draws, FloatArray
from spannerlm.samplers import (
    Accepted,
    Scan,
    absorb,
    adaptive_law,
    adaptive_sampler,
    adaptive_samples,
    effective_sample_size,
    finish,
    pool_sample,
    pool_weights,
    softmax_sampler,
    start,
    top_sample_size,
    wanted,
)

TARGETS = {
    2: (np.array([0.9, 0.1]), np.array([1.0])),
    3: (np.array([0.3, 0.6, 0.1]), np.array([1.0, 0.1])),
    5: (np.array([0.3, 0.2, 0.2, 0.2, 0.1]), np.array([1.0, 0.3, 0.1, 0.03])),
}
ASYMMETRIC = (np.array([0.1, 0.3, 0.2, 0.4]), np.log([5.0, 1.0, 2.0, 0.3]))


def law(points: int, coverage: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Base law, log-weights and tilted law on this many points with C_cov = ``coverage``."""
    tilted, ratios = TARGETS[points]
    base = tilted[:-1] / (coverage * ratios)
    base = np.append(base, 1.0 - base.sum())
    return base, np.log(tilted / base), tilted


def tv(a: FloatArray, b: FloatArray) -> float:
    return 0.5 * float(np.abs(a - b).sum())


def tilt(base: FloatArray, log_weights: FloatArray) -> FloatArray:
    p = base * np.exp(log_weights)
    return p / p.sum()


class FiniteOracle:
    """Draws from one finite law; one-hot features, responses named by their index."""

    def __init__(self, base: FloatArray, rng: np.random.Generator) -> None:
        self.base, self.rng, self.spent, self.calls = base, rng, 0, 0
        self.prompts, self.dim = ("x",), base.size

    def one(self, n: int) -> Draws:
        self.spent += n
        counts = self.rng.multinomial(n, self.base)
        some = np.flatnonzero(counts)
        return Draws(0, tuple(str(i) for i in some), counts[some], np.eye(self.dim)[some])

    def draw(self, prompts, n, *, rng):
        self.calls += 1
        return tuple(self.one(n) for _ in prompts)


def compositions(n: int, parts: int):
    for bars in itertools.combinations(range(n + parts - 1), parts - 1):
        ends = (-1, *bars, n + parts - 1)
        yield np.array([b - a - 1 for a, b in itertools.pairwise(ends)])


def softmax_law(base, log_weights, bound, size, zhat_law):
    """Exact law of SoftmaxSampler given the law of Zhat as (probabilities, values)."""
    out = np.zeros(base.size)
    for prob, zhat in zip(*zhat_law, strict=True):
        accept = base * np.minimum(1.0, np.exp(log_weights) / (bound * zhat))
        none = (1.0 - accept.sum()) ** size
        out += prob * (accept / accept.sum() * (1.0 - none) + none * base)
    return out


def two_point_zhat(base, log_weights, size):
    hits = np.arange(size + 1)
    w = np.exp(log_weights)
    return binom.pmf(hits, size, base[0]), (hits * w[0] + (size - hits) * w[1]) / size


def empirical(sample, points: int, runs: int) -> tuple[FloatArray, FloatArray]:
    counts = np.bincount([int(r) for _ in range(runs) for r in sample().responses], minlength=points)
    p = counts / counts.sum()
    return p, np.sqrt(p * (1.0 - p) / counts.sum())


def assert_law(sample, expected: FloatArray, runs: int) -> None:
    """Every point within 4.5 standard errors of the *expected* law, two-sided."""
    p, _ = empirical(sample, expected.size, runs)
    error = np.sqrt(expected * (1.0 - expected) / runs)
    assert np.all(np.abs(p - expected) <= 4.5 * error + 1e-12), (p, expected, error)


# --- the exact law of the largest key -------------------------------------------------------------------------------


def law_by_enumeration(base, log_weights, n):
    """Law of the first acceptance at the largest weight present, over all orders of all draws: written out slowly."""
    w = np.exp(log_weights)
    out = np.zeros(base.size)
    for draws in itertools.product(range(base.size), repeat=n):
        prob = np.prod(base[list(draws)])
        top = max(w[list(draws)])
        for order in itertools.permutations(draws):  # scan in a random order
            alive = 1.0
            for y in order:
                out[y] += prob / math.factorial(n) * alive * w[y] / top
                alive *= 1.0 - w[y] / top
    return out


def law_by_metropolis(base, log_weights, n):
    """Law of the last state of independence Metropolis-Hastings over n draws, the first of them its start."""
    w = np.exp(log_weights)
    accept = np.minimum(1.0, w[None, :] / w[:, None])
    step = base[None, :] * accept
    step[np.diag_indices(base.size)] += 1.0 - step.sum(axis=1)
    return base @ np.linalg.matrix_power(step, n - 1)


def test_law_of_the_largest_key_is_that_of_a_scan_in_random_order_at_the_largest_weight():
    base, log_weights = ASYMMETRIC
    for n in (1, 2, 4):
        np.testing.assert_allclose(
            adaptive_law(base, log_weights, n), law_by_enumeration(base, log_weights, n), atol=1e-13
        )


@pytest.mark.parametrize("points", [2, 3, 5])
def test_law_of_the_largest_key_is_that_of_independence_metropolis_hastings(points):
    base, log_weights, _ = law(points, 30.0)
    for n in (1, 7, 200):
        got = adaptive_law(base, log_weights, n)
        np.testing.assert_allclose(got, law_by_metropolis(base, log_weights, n), atol=1e-12)
        assert got.sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("coverage", [100.0, 1000.0])
@pytest.mark.parametrize("points", [2, 3, 5])
def test_error_at_8_and_16_coverages(points, coverage):
    base, log_weights, tilted = law(points, coverage)
    at_8, at_16 = (tv(adaptive_law(base, log_weights, int(m * coverage)), tilted) for m in (8, 16))
    assert at_8 < 3.1e-4
    assert at_16 < 1.1e-7


def test_error_is_at_most_the_probability_that_rejection_at_the_true_bound_fails():
    rng = np.random.default_rng(3)
    for _ in range(200):
        base, log_weights = rng.dirichlet(np.full(6, 0.5)), 2.0 * rng.normal(size=6)
        tilted = tilt(base, log_weights)
        coverage = np.max(tilted / base)
        for n in (1, 3, 20, 300):
            error = tv(adaptive_law(base, log_weights, n), tilted)
            assert error <= (1.0 - 1.0 / coverage) ** n + 1e-12
    spike = adaptive_law(np.array([1e-3, 1.0 - 1e-3]), np.array([0.0, -np.inf]), 500)
    assert spike[0] == pytest.approx(1.0 - 0.999**500)  # no sampler of its own draws can do better here


def test_zero_tilt_gives_the_base_law_exactly():
    base = np.array([0.2, 0.5, 0.3])
    for n in (1, 5, 1000):
        np.testing.assert_allclose(adaptive_law(base, np.full(3, 0.7), n), base, atol=1e-15)
    counts = np.array([3, 1, 6])
    np.testing.assert_allclose(pool_weights(np.full(3, -4.0), counts), counts / 10, atol=1e-14)


def test_a_law_split_in_two_equal_copies_gives_the_same_law():
    base, log_weights = ASYMMETRIC
    halves = np.concatenate([base, base]) / 2
    twice = adaptive_law(halves, np.tile(log_weights, 2), 9)
    np.testing.assert_allclose(twice[:4] + twice[4:], adaptive_law(base, log_weights, 9), atol=1e-14)
    counts = np.array([2, 5, 1, 8])
    copies = pool_weights(np.repeat(log_weights, counts))
    joined = [part.sum() for part in np.split(copies, np.cumsum(counts)[:-1])]
    np.testing.assert_allclose(pool_weights(log_weights, counts), joined, atol=1e-13)


def test_a_shift_of_the_score_changes_nothing():
    base, log_weights = ASYMMETRIC
    np.testing.assert_allclose(
        adaptive_law(base, log_weights + 700.0, 5), adaptive_law(base, log_weights, 5), atol=1e-13
    )
    np.testing.assert_allclose(pool_weights(log_weights - 900.0), pool_weights(log_weights), atol=1e-13)
    a, b = (
        adaptive_sampler(
            FiniteOracle(base, np.random.default_rng(1)).one,
            lambda f, s=s: f @ log_weights + s,
            k=3,
            rng=np.random.default_rng(2),
        )
        for s in (0.0, 50.0)
    )
    assert a.responses == b.responses
    assert a.spent == b.spent


# --- stored draws ---------------------------------------------------------------------------------------------------


def slow_pool_weights(log_weights, counts):
    """The integral of the docstring of `pool_weights` by adaptive quadrature over log(1 / (1 - s))."""
    r = np.exp(log_weights - np.max(log_weights))
    out = []
    for i in range(r.size):

        def integrand(t, i=i):
            fade = (1.0 - r) + r * np.exp(-t)
            return counts[i] * r[i] / fade[i] * np.exp(counts @ np.log(fade) - t)

        scale = 1.0 / float(counts @ r)
        grid = np.concatenate([[0.0], scale * np.geomspace(0.01, 300.0 / scale, 40)])
        out.append(sum(quad(integrand, a, b, epsabs=1e-13)[0] for a, b in itertools.pairwise(grid)))
    return np.array(out)


@pytest.mark.parametrize("spread", [0.5, 2.0, 6.0])
def test_pool_weights_are_the_integral_they_claim(spread):
    rng = np.random.default_rng(5)
    for n in (1, 2, 7, 40):
        log_weights, counts = spread * rng.normal(size=n), rng.integers(1, 4, size=n)
        np.testing.assert_allclose(pool_weights(log_weights, counts), slow_pool_weights(log_weights, counts), atol=2e-7)


def test_pool_weights_averaged_over_pools_are_the_law_of_the_largest_key():
    base, log_weights = ASYMMETRIC
    for n in (1, 3, 8):
        mean = sum(multinomial.pmf(c, n, base) * pool_weights(log_weights, c) for c in compositions(n, base.size))
        np.testing.assert_allclose(mean, adaptive_law(base, log_weights, n), atol=3e-7)


def test_pool_weights_beat_self_normalised_weights():
    base, log_weights, tilted = law(2, 100.0)
    counts = np.arange(801)
    pools = np.stack([counts, 800 - counts], axis=1)
    prob = binom.pmf(counts, 800, base[0])
    likely = prob > 1e-12
    keyed = sum(p * pool_weights(log_weights, c) for p, c in zip(prob[likely], pools[likely], strict=True))
    plain = pools * np.exp(log_weights)
    assert tv(keyed, tilted) < 3e-4
    assert 0.014 < tv(prob @ (plain / plain.sum(axis=1, keepdims=True)), tilted) < 0.016


def test_pool_sample_follows_pool_weights():
    log_weights, counts = np.log([4.0, 1.0, 0.2, 2.0]), np.array([1, 6, 3, 0])
    rng = np.random.default_rng(7)
    expected = pool_weights(log_weights, counts)
    picks = pool_sample(log_weights, counts, 40_000, rng)
    assert expected[3] == 0.0
    assert np.all(np.abs(np.bincount(picks, minlength=4) / 40_000 - expected) <= 4.5 * np.sqrt(expected / 40_000))
    firsts = [pool_sample(log_weights, counts, 2, rng, distinct=True)[0] for _ in range(1500)]
    assert np.all(np.abs(np.bincount(firsts, minlength=4) / 1500 - expected) <= 4.5 * np.sqrt(expected / 1500))


def test_distinct_picks_use_a_stored_draw_once():
    rng = np.random.default_rng(0)
    counts = np.array([2, 1, 0, 3])
    picks = pool_sample(np.array([0.0, 5.0, 9.0, -2.0]), counts, 6, rng, distinct=True)
    np.testing.assert_array_equal(np.bincount(picks, minlength=4), counts)
    with pytest.raises(InputError, match="there are 6"):
        pool_sample(np.zeros(4), counts, 7, rng, distinct=True)


def test_pools_without_weight_are_undefined():
    nothing = np.full(3, -np.inf)
    assert np.isnan(pool_weights(nothing)).all()
    assert math.isnan(effective_sample_size(nothing))
    assert math.isnan(top_sample_size(np.zeros(2), np.zeros(2, dtype=np.int64)))
    with pytest.raises(InputError, match="positive weight"):
        pool_sample(nothing, None, 1, np.random.default_rng(0))
    with pytest.raises(InputError, match="nan or"):
        pool_weights(np.array([0.0, np.nan]))


def test_sample_sizes():
    log_weights, counts = np.log([3.0, 1.0]), np.array([2, 5])
    w = np.repeat([3.0, 1.0], counts)
    assert effective_sample_size(log_weights, counts) == pytest.approx(w.sum() ** 2 / (w**2).sum())
    assert top_sample_size(log_weights, counts) == pytest.approx(w.sum() / 3.0)
    assert effective_sample_size(np.zeros(4), np.array([1, 2, 3, 4])) == pytest.approx(10.0)


# --- fresh draws ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 6, 60])
def test_adaptive_sampler_of_fixed_length_has_its_law(n):
    base, log_weights = ASYMMETRIC
    rng = np.random.default_rng(11)
    oracle = FiniteOracle(base, rng)
    assert_law(
        lambda: adaptive_sampler(oracle.one, lambda f: f @ log_weights, draws=n, rng=rng),
        adaptive_law(base, log_weights, n),
        5000,
    )
    assert oracle.spent == 5000 * n


def test_the_law_test_fails_on_broken_samplers():
    base, log_weights = ASYMMETRIC
    rng = np.random.default_rng(11)
    oracle = FiniteOracle(base, rng)

    def broken(scale: float, exponential: bool):
        def sample() -> Accepted:
            block = oracle.one(6)
            logw = np.repeat(scale * (block.features @ log_weights), block.counts)
            u = rng.standard_exponential(logw.size) if exponential else rng.random(logw.size)
            pick = np.repeat(np.arange(block.counts.size), block.counts)[np.argmax(logw - np.log(u))]
            return Accepted((block.responses[pick],), block.features[[pick]], logw[:1], 6, False, 1.0, 0.0)

        return sample

    expected = adaptive_law(base, log_weights, 6)
    assert_law(broken(1.0, False), expected, 5000)
    for scale, exponential in ((-1.0, False), (0.8, False), (1.0, True)):
        with pytest.raises(AssertionError):
            assert_law(broken(scale, exponential), expected, 5000)


def test_k_largest_keys_are_independent_tilted_draws():
    base, log_weights = np.array([0.2, 0.5, 0.3]), np.log([3.0, 1.0, 0.5])
    tilted = tilt(base, log_weights)
    rng = np.random.default_rng(13)
    oracle, k, n, runs = FiniteOracle(base, rng), 3, 60, 5000
    assert binom.cdf(k - 1, n, 1.0 / np.max(tilted / base)) < 1e-6
    joint = np.zeros((3, 3, 3))
    for _ in range(runs):
        got = adaptive_sampler(oracle.one, lambda f: f @ log_weights, k=k, draws=n, rng=rng)
        joint[tuple(int(r) for r in got.responses)] += 1
    expected = np.einsum("a,b,c->abc", tilted, tilted, tilted)
    statistic = float(((joint - runs * expected) ** 2 / (runs * expected)).sum())
    assert abs(statistic - 26.0) < 4.5 * math.sqrt(2.0 * 26.0)


def test_blocks_and_copies_do_not_matter_to_a_scan():
    """Keys of a response with a count are the largest of so many keys: mean log-key against its closed form."""
    rng = np.random.default_rng(17)
    for count in (1, 4, 50):
        block = Draws(0, ("a",), np.array([count]), np.ones((1, 1)))
        top = [absorb(Scan(k=2), block, np.zeros(1), rng=rng).log_keys for _ in range(1500)]
        first = np.array([-t[0] for t in top])  # log of the smallest of ``count`` uniforms: -H_count on average
        harmonic = sum(1.0 / j for j in range(1, count + 1))
        assert abs(first.mean() + harmonic) <= 4.5 * first.std() / math.sqrt(1500)
        assert all(t.size == min(2, count) for t in top)
    split = [Draws(0, ("a",), np.array([c]), np.ones((1, 1))) for c in (1, 49)]
    runs = [
        absorb(absorb(Scan(k=2), split[0], np.zeros(1), rng=rng), split[1], np.zeros(1), rng=rng) for _ in range(1500)
    ]
    second, whole = np.array([s.log_keys[1] for s in runs]), np.array([t[1] for t in top])
    assert abs(second.mean() - whole.mean()) <= 4.5 * math.hypot(second.std(), whole.std()) / math.sqrt(1500)
    assert runs[0].spent == 50


def test_adaptive_sampler_sizes_itself():
    base, log_weights, tilted = law(3, 20.0)
    rng = np.random.default_rng(19)
    oracle = FiniteOracle(base, rng)
    p, error = empirical(
        lambda: adaptive_sampler(oracle.one, lambda f: f @ log_weights, min_draws=256, rng=rng), 3, 2500
    )
    assert np.all(np.abs(p - tilted) <= 4.5 * error)
    assert 512 <= oracle.spent / 2500 <= 640


def test_adaptive_sampler_at_zero_tilt_is_the_base_policy_and_cheap():
    base = np.array([0.2, 0.5, 0.3])
    rng = np.random.default_rng(23)
    oracle = FiniteOracle(base, rng)
    assert_law(lambda: adaptive_sampler(oracle.one, lambda f: np.zeros(len(f)), rng=rng), base, 3000)
    got = adaptive_sampler(oracle.one, lambda f: np.zeros(len(f)), k=40, rng=rng)
    assert (len(got.responses), got.spent, got.exhausted) == (40, 128, False)
    assert got.effective_size == pytest.approx(128.0)


def test_draws_seen_before_replace_the_pilot():
    base, log_weights = ASYMMETRIC
    rng = np.random.default_rng(29)
    oracle = FiniteOracle(base, rng)
    stored = (log_weights, np.array([6, 20, 14, 24]))
    got = adaptive_sampler(oracle.one, lambda f: f @ log_weights, seen=stored, rng=rng)
    assert got.spent == 64 == oracle.spent
    level = start(*stored, margin=8.0)
    size = top_sample_size(*stored)
    assert level.log_level == pytest.approx(math.log(5.0 * (1.0 + 8.0 / size)))
    assert level.rate == pytest.approx(size / 64 / (1.0 + 8.0 / size))


def test_exhausted_says_that_the_draws_ran_out():
    base, log_weights, _ = law(2, 1000.0)
    rng = np.random.default_rng(31)
    oracle = FiniteOracle(base, rng)
    spike = (log_weights, np.array([1, 999]))
    got = adaptive_sampler(oracle.one, lambda f: f @ log_weights, seen=spike, k=9, max_draws=200, rng=rng)
    assert (got.spent, got.exhausted, len(got.responses)) == (200, True, 9)
    assert wanted(start(*spike, k=9), max_draws=10) == 10
    three = Draws(0, ("a", "b"), np.array([2, 1]), np.ones((2, 1)))
    nothing = finish(absorb(Scan(k=3), three, np.array([0.0, -np.inf]), rng=rng))
    assert (nothing.responses, nothing.exhausted) == (("a", "a"), True)


def test_many_prompts_share_oracle_calls():
    base, log_weights = ASYMMETRIC
    rng = np.random.default_rng(37)
    oracle = FiniteOracle(base, rng)
    scores = [lambda f, s=s: s * (f @ log_weights) for s in (0.0, 1.0, 1.0, 4.0)]
    got = adaptive_samples(oracle, [0, 0, 0, 0], scores, k=5, rng=rng)
    assert sum(a.spent for a in got) == oracle.spent
    assert all(len(a.responses) == 5 and not a.exhausted for a in got)
    assert oracle.calls < 12


# --- the paper's sampler --------------------------------------------------------------------------------------------


def test_softmax_sampler_at_twice_the_coverage_is_within_delta():
    for points, coverage, delta in ((2, 50.0, 0.01), (2, 1000.0, 0.01), (2, 50.0, 0.2)):
        base, log_weights, tilted = law(points, coverage)
        size = math.ceil(4.0 * 2.0 * coverage * math.log(4.0 / delta))
        exact = softmax_law(base, log_weights, 2.0 * coverage, size, two_point_zhat(base, log_weights, size))
        assert tv(exact, tilted) <= delta


def test_softmax_sampler_at_the_coverage_keeps_a_floor():
    base, log_weights, tilted = law(2, 1000.0)
    size = math.ceil(4.0 * 1000.0 * math.log(400.0))
    exact = softmax_law(base, log_weights, 1000.0, size, two_point_zhat(base, log_weights, size))
    assert 0.005 < tv(exact, tilted) < 0.012


@pytest.mark.parametrize("points", [3, 5])
def test_softmax_sampler_on_more_points_is_within_delta(points):
    """Zhat by simulation of its batch, everything else exact: the error of that has a standard error below 1e-4."""
    base, log_weights, tilted = law(points, 200.0)
    bound, delta = 400.0, 0.01
    size = math.ceil(4.0 * bound * math.log(4.0 / delta))
    zhat = np.random.default_rng(41).multinomial(size, base, size=3000) @ np.exp(log_weights) / size
    assert tv(softmax_law(base, log_weights, bound, size, (np.full(3000, 1 / 3000), zhat)), tilted) <= delta


@pytest.mark.parametrize("bound", [1.0, 2.0, 6.0])
def test_softmax_sampler_follows_its_exact_law(bound):
    base, log_weights = np.array([0.2, 0.8]), np.log([4.0, 1.0])
    delta, runs = 0.5, 4000
    rng = np.random.default_rng(43)
    oracle = FiniteOracle(base, rng)
    size = math.ceil(4.0 * bound * math.log(4.0 / delta))
    expected = softmax_law(base, log_weights, bound, size, two_point_zhat(base, log_weights, size))
    assert_law(
        lambda: softmax_sampler(oracle.one, lambda f: f @ log_weights, bound=bound, delta=delta, rng=rng),
        expected,
        runs,
    )


def test_softmax_sampler_counts_what_it_spends():
    base, log_weights = ASYMMETRIC
    rng = np.random.default_rng(47)
    oracle = FiniteOracle(base, rng)
    got = softmax_sampler(oracle.one, lambda f: f @ log_weights, bound=8.0, delta=0.01, rng=rng)
    assert got.spent == oracle.spent
    assert (got.exhausted, got.max_log_weight) == (False, pytest.approx(math.log(5.0)))
    never = softmax_sampler(oracle.one, _falling(), bound=1.0, delta=0.9, rng=rng)
    assert (never.exhausted, len(never.responses)) == (True, 1)
    with pytest.raises(InputError, match="bound >= 1"):
        softmax_sampler(oracle.one, lambda f: f @ log_weights, bound=0.5, delta=0.1, rng=rng)


def _falling():
    """A score whose first batch is heavy and all later ones light, so that nothing is accepted."""
    calls = itertools.count()
    return lambda f: np.full(len(f), 0.0 if next(calls) == 0 else -40.0)
