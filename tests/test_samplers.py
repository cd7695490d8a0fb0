"""Laws of the samplers against the exact tilted law, by enumeration first (THEORY 3)."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

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
    assert math.isnan(top_sample_size(nothing))
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


# --- the books of a scan, and what is refused -----------------------------------------------------------------------


class SeededOracle(FiniteOracle):
    """Draws with the generator it is given, from a law for each prompt; remembers what it was asked for."""

    def __init__(self, bases: list[FloatArray]) -> None:
        super().__init__(bases[0], np.random.default_rng(0))
        self.bases, self.asked = bases, []

    def draw(self, prompts, n, *, rng):
        self.asked.append((tuple(prompts), n))
        found = []
        for x in prompts:
            self.base, self.rng = self.bases[x], rng
            found.append(self.one(n))
        return tuple(found)


def same(a: Accepted, b: Accepted) -> None:
    assert (a.responses, a.spent, a.exhausted) == (b.responses, b.spent, b.exhausted)
    assert (a.effective_size, a.max_log_weight) == (b.effective_size, b.max_log_weight)
    np.testing.assert_array_equal(a.log_weights, b.log_weights)
    np.testing.assert_array_equal(a.features, b.features)


OPTIONS = [{}, {"k": 4, "min_draws": 10, "max_draws": 50, "margin": 0.5}, {"k": 3, "margin": 40.0}, {"max_draws": 70}]


@pytest.mark.parametrize("options", OPTIONS)
def test_one_of_many_prompts_is_scanned_as_if_alone(options):
    """Same generator, same draws: options and defaults mean the same in both."""
    base, log_weights = ASYMMETRIC
    for seed in range(20):
        one, many, rng = SeededOracle([base]), SeededOracle([base]), np.random.default_rng(seed)
        alone = adaptive_sampler(
            lambda n, one=one, rng=rng: one.draw([0], n, rng=rng)[0], lambda f: f @ log_weights, rng=rng, **options
        )
        again = np.random.default_rng(seed)
        (got,) = adaptive_samples(many, [0], [lambda f: f @ log_weights], rng=again, **options)
        same(got, alone)
        assert many.asked == one.asked


def test_the_defaults_are_as_documented():
    base, log_weights = ASYMMETRIC
    named = {"min_draws": 64, "max_draws": 65_536, "margin": 8.0}
    for scale in (0.0, 1.0, 4.0):
        for default, explicit in (({}, {"k": 1, **named}), ({"k": 400}, {"k": 400, **named})):
            runs = [
                adaptive_samples(
                    SeededOracle([base]),
                    [0],
                    [lambda f, s=scale: s * (f @ log_weights)],
                    rng=np.random.default_rng(1),
                    **options,
                )[0]
                for options in (default, explicit)
            ]
            same(*runs)
            alone = [FiniteOracle(base, np.random.default_rng(4)) for _ in runs]
            same(
                *(
                    adaptive_sampler(oracle.one, lambda f, s=scale: s * (f @ log_weights), rng=oracle.rng, **options)
                    for oracle, options in zip(alone, (default, explicit), strict=True)
                )
            )
    stored = (log_weights, np.array([6, 20, 14, 24]))
    for margin in (0.5, 200.0):
        oracle = FiniteOracle(base, np.random.default_rng(5))
        got = adaptive_sampler(oracle.one, lambda f: f @ log_weights, k=5, seen=stored, margin=margin, rng=oracle.rng)
        assert got.exhausted is False
        assert got.spent == (64 if margin < 1.0 else oracle.spent)
        assert (got.spent > 64) == (margin > 1.0)
    endless = adaptive_samples(SeededOracle([base]), [0], [_falling()], rng=np.random.default_rng(2))[0]
    assert (endless.spent, endless.exhausted) == (65_536, True)
    oracle = FiniteOracle(base, np.random.default_rng(3))
    endless = adaptive_sampler(oracle.one, _falling(), rng=oracle.rng)
    assert (endless.spent, endless.exhausted) == (65_536, True)
    last = adaptive_sampler(oracle.one, _falling(), max_draws=65, rng=oracle.rng)
    assert (last.spent, last.exhausted, len(last.responses)) == (65, True, 1)
    level = start(np.zeros(4))
    assert (level.k, level.log_level) == (1, pytest.approx(math.log(1.0 + 8.0 / 4)))
    assert wanted(level) == 64
    assert wanted(start(np.array([40.0, 0.0]), np.array([1, 10**6]))) == 65_536


def test_prompts_that_need_little_are_not_charged_for_those_that_need_much():
    bases = [np.array([0.5, 0.5]), np.array([0.02, 0.98]), np.array([0.5, 0.5])]
    scores = [lambda f, s=s: f @ np.array([s, 0.0]) for s in (0.0, math.log(50.0), 0.0)]
    oracle, rng = SeededOracle(bases), np.random.default_rng(3)
    got = adaptive_samples(oracle, [0, 1, 2], scores, k=20, rng=rng)
    assert [a.spent for a in got if a is not got[1]] == [128, 128]
    assert got[1].spent > 1000
    assert not any(a.exhausted for a in got)
    for x, accepted in enumerate(got):
        assert sum(n for prompts, n in oracle.asked for prompt in prompts if prompt == x) == accepted.spent
    assert all(n > 0 for _, n in oracle.asked)


def test_prompts_scores_and_draws_must_match():
    base, log_weights = ASYMMETRIC
    rng = np.random.default_rng(4)
    with pytest.raises(ValueError, match="zip"):
        adaptive_samples(SeededOracle([base, base]), [0, 1], [lambda f: f @ log_weights], rng=rng)

    class Short(SeededOracle):
        def draw(self, prompts, n, *, rng):
            found = super().draw(prompts, n, rng=rng)
            return found if len(self.asked) == 1 else found[:-1]

    with pytest.raises(ValueError, match="zip"):
        adaptive_samples(Short([base, base]), [0, 1], [lambda f: f @ log_weights] * 2, rng=rng)


def test_a_scan_keeps_its_books():
    """Sums over a pilot and two blocks, copies written out; what is held is aligned, best key first."""
    rng = np.random.default_rng(5)
    table = np.log([0.5, 3.0, 1.0, 7.0, 2.0])
    pilot, blocks = np.array([3, 1, 2, 0, 0]), [np.array([2, 0, 4, 1, 3]), np.array([0, 5, 1, 2, 0])]
    scan = start(table, pilot, k=6, margin=2.0, spent=6)
    carried = np.repeat(np.exp(table), pilot)
    assert scan.max_log_weight == pytest.approx(math.log(3.0))  # what was never drawn has no weight
    assert scan.log_level == pytest.approx(math.log(3.0 * (1.0 + 2.0 / (carried.sum() / 3.0))))
    for counts in blocks:
        some = np.flatnonzero(counts)
        draws = Draws(0, tuple(str(i) for i in some), counts[some], np.eye(5)[some])
        scan = absorb(scan, draws, table[some], rng=rng)
        carried = np.append(carried, np.repeat(np.exp(table), counts))
        held = [int(r) for r in scan.responses]
        assert len(held) == 6
        np.testing.assert_array_equal(scan.features, np.eye(5)[held])
        np.testing.assert_array_equal(scan.log_weights, table[held])
        assert (np.diff(scan.log_keys) < 0.0).all()
        assert (scan.log_keys > scan.log_weights).all()
    assert (scan.spent, scan.scanned) == (24, 18)
    assert scan.log_sum == pytest.approx(math.log(carried.sum()))
    assert scan.log_sum_squares == pytest.approx(math.log((carried**2).sum()))
    assert finish(scan).effective_size == pytest.approx(carried.sum() ** 2 / (carried**2).sum())
    assert finish(scan).features is scan.features
    assert finish(scan).log_weights is scan.log_weights
    assert finish(scan).max_log_weight == scan.max_log_weight == pytest.approx(math.log(7.0))


def test_blocks_without_draws_or_weight_leave_a_scan_as_it_was():
    rng = np.random.default_rng(7)
    scan = absorb(Scan(k=2), Draws(0, ("a", "b"), np.array([1, 0]), np.eye(2)), np.array([3.0, 9.0]), rng=rng)
    assert (scan.responses, scan.max_log_weight, scan.spent) == (("a",), 3.0, 1)
    after = absorb(scan, Draws(0, (), np.zeros(0, dtype=np.int64), np.zeros((0, 2))), np.zeros(0), rng=rng)
    after = absorb(after, Draws(0, ("c",), np.array([4]), np.ones((1, 2))), np.array([-np.inf]), rng=rng)
    assert (after.responses, after.max_log_weight, after.spent) == (("a",), 3.0, 5)
    assert (after.log_sum, after.log_sum_squares) == (3.0, 6.0)
    np.testing.assert_array_equal(after.log_keys, scan.log_keys)
    base, log_weights = ASYMMETRIC
    more = adaptive_law(np.append(base, 0.0), np.append(log_weights, 50.0), 4)
    np.testing.assert_allclose(more, np.append(adaptive_law(base, log_weights, 4), 0.0), rtol=1e-12)


def test_what_a_scan_wants_and_when_it_is_exhausted():
    keys = np.array([1.0, 0.0])
    met = Scan(k=2, log_level=0.0, rate=0.5, log_keys=keys, scanned=64, max_log_weight=5.0)
    assert wanted(met) == 0  # a key at the level has reached it
    assert wanted(replace(met, scanned=63)) == 64
    assert wanted(replace(met, k=3)) == 64  # one is missing
    assert wanted(replace(met, k=5, rate=0.01)) == 320  # three are missing, at one in a hundred
    assert wanted(replace(met, k=5, rate=0.01, spent=100), max_draws=200) == 100
    assert wanted(replace(met, k=5, rate=0.01, spent=300), max_draws=200) == 0
    assert wanted(replace(met, k=5, rate=0.01), min_draws=7) == 301
    assert wanted(replace(met, k=3, rate=1.0), min_draws=1) == 1
    assert not finish(met).exhausted
    assert finish(replace(met, log_level=0.1)).exhausted
    assert finish(replace(met, log_level=-math.inf)).exhausted  # no key is above the largest weight
    assert not finish(replace(met, log_level=-math.inf, max_log_weight=0.0)).exhausted
    empty = finish(Scan(k=1))
    assert math.isnan(empty.effective_size)
    assert (empty.exhausted, empty.responses, empty.spent) == (True, (), 0)


@pytest.mark.parametrize(
    ("log_weights", "counts", "options"),
    [
        ([0.0], [1], {"k": 0}),
        ([0.0], [1], {"margin": -1.0}),
        ([0.0, -np.inf], [0, 3], {}),
        ([0.0], [0], {}),
    ],
)
def test_a_scan_without_a_start_is_refused(log_weights, counts, options):
    with pytest.raises(InputError, match="positive weight; got k="):
        start(np.array(log_weights), np.array(counts), **options)


def test_a_scan_may_start_from_one_draw_and_without_a_margin():
    assert start(np.array([2.0]), np.array([1]), margin=0.0).log_level == 2.0
    assert start(np.array([2.0, -np.inf]), np.array([1, 4]), margin=0.5).log_level == pytest.approx(2 + math.log(1.5))


@pytest.mark.parametrize(("log_weights", "counts"), [([[0.0]], [[1]]), ([0.0], [1, 1]), ([0.0, 1.0], [1, -1])])
def test_weights_and_counts_that_do_not_fit_are_refused(log_weights, counts):
    with pytest.raises(InputError, match=r"expected log-weights .* got shapes"):
        pool_weights(np.array(log_weights), np.array(counts))
    with pytest.raises(
        InputError, match=r"^a log-weight f / beta is nan or \+inf; .* Check theta, the features and beta$"
    ):
        pool_weights(np.array([0.0, np.inf]))


def test_what_was_never_drawn_has_no_say_in_a_pool():
    assert np.isnan(pool_weights(np.array([-np.inf, 0.0]), np.array([3, 0]))).all()
    np.testing.assert_allclose(pool_weights(np.array([0.0, 0.5]), np.array([3, 0])), [1.0, 0.0], atol=1e-15)
    assert pool_weights(np.array([0.3]), np.array([2])).tolist() == [1.0]
    assert pool_sample(np.zeros(1), None, 3, np.random.default_rng(0)).tolist() == [0, 0, 0]
    with pytest.raises(InputError, match=r"^pool_sample needs a stored draw of positive weight; every"):
        pool_sample(np.full(1, -np.inf), None, 1, np.random.default_rng(0))
    for size in (effective_sample_size, top_sample_size):
        assert size(np.array([0.0, 2000.0]), np.array([4, 0])) == pytest.approx(4.0)
        assert math.isnan(size(np.array([0.0, -np.inf]), np.array([0, 2])))
        assert math.isnan(size(np.array([0.0, 1.0]), np.array([0, 0])))
    assert effective_sample_size(np.array([2.0, -np.inf]), np.array([1, 2])) == top_sample_size(np.array([7.0])) == 1.0


def test_softmax_sampler_says_what_its_first_batch_weighed():
    """ceil(4 M log(4 / delta)) = 6 draws, once for Zhat and once for the scan, and one more when that ends."""
    table = np.log([1.0, 8.0, 20.0])
    batch = Draws(0, ("a", "b", "c"), np.array([5, 1, 0]), np.eye(3))
    light = Draws(0, ("a",), np.array([1]), np.eye(3)[:1] - 1e9)
    blocks, asked = iter([batch]), []

    def draw(n: int) -> Draws:
        asked.append(n)
        return next(blocks, light)

    rng = np.random.default_rng(6)
    got = softmax_sampler(draw, lambda f: f @ table, bound=1.0, delta=0.9, rng=rng)
    assert asked == [6] + [1] * 7
    assert (got.spent, got.exhausted, got.responses) == (13, True, ("a",))
    assert got.max_log_weight == pytest.approx(math.log(8.0))
    assert got.effective_size == pytest.approx(13.0**2 / 69.0)


def test_softmax_sampler_refuses_what_it_cannot_promise():
    oracle = FiniteOracle(*ASYMMETRIC[:1], np.random.default_rng(0))
    for bound, delta in ((0.99, 0.1), (math.nan, 0.1), (2.0, 0.0), (2.0, 1.0), (2.0, 1.5)):
        with pytest.raises(InputError, match=r"bound >= 1 and 0 < delta < 1; got bound="):
            softmax_sampler(oracle.one, lambda f: np.zeros(len(f)), bound=bound, delta=delta, rng=oracle.rng)
    assert oracle.spent == 0


def test_single_precision_weights_are_summed_in_double():
    single = np.random.default_rng(8).normal(size=200).astype(np.float32)
    double = single.astype(np.float64)
    for size in (top_sample_size, effective_sample_size):
        assert size(single) == pytest.approx(size(double), rel=1e-14)
    np.testing.assert_allclose(pool_weights(single), pool_weights(double), rtol=1e-14)


def test_softmax_sampler_never_scans_more_than_it_may():
    """N = ceil(16 log 8) = 34 draws for Zhat, at most as many in blocks of 4, and a last one."""
    asked, score = [], _falling()

    def draw(n: int) -> Draws:
        asked.append(n)
        return Draws(0, ("a",), np.array([n]), np.ones((1, 1)))

    got = softmax_sampler(draw, score, bound=4.0, delta=0.5, rng=np.random.default_rng(9))
    assert asked == [34] + [4] * 8 + [2, 1]
    assert (got.spent, got.exhausted) == (69, True)
