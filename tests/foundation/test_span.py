"""The span of draws: spectrum against all pairs, effective rank against exact covariances, spanner and certificate."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from scipy.stats import entropy

from spannerlm.environments import random_table
from spannerlm.environments.tabular import TabularEnvironment
from spannerlm.foundation.pool import Pool, pool_of
from spannerlm.foundation.span import NU, _grow, span
from spannerlm.records import Draws
from spannerlm.spanner import Spanner, certify, disjoint_pairs


def exact_rank(env: TabularEnvironment) -> float:
    """exp of the entropy of the spectrum of the exact within-prompt covariance."""
    total = np.zeros((env.dim, env.dim))
    for base, phi in zip(env.base_probs, env.features, strict=True):
        total += np.cov(phi.T, aweights=base, ddof=0)
    return float(np.exp(entropy(np.maximum(np.linalg.eigvalsh(total), 0.0))))


def pool_with(features: np.ndarray, counts: np.ndarray | None = None) -> Pool:
    """A pool whose prompts' responses have the features [X, n, d] and the counts [n]."""
    size, n, d = features.shape
    counts = np.ones(n, dtype=np.int64) if counts is None else counts
    draws = tuple(Draws(x, tuple(map(str, range(n))), counts, features[x]) for x in range(size))
    return Pool(tuple(map(str, range(size))), draws, {"m": slice(0, d)})


def test_the_spectrum_is_that_of_all_pairs_of_draws() -> None:
    rng = np.random.default_rng(0)
    features, counts = rng.standard_normal((3, 5, 4)), np.array([3, 1, 4, 1, 2])
    found = span(pool_with(features, counts), "m", rng=rng)
    total = np.zeros((4, 4))
    for phi in np.repeat(features, counts, axis=1):
        for a in phi:
            for b in phi:
                total += np.outer(a - b, a - b)
    values = np.linalg.eigvalsh(total)[::-1]
    np.testing.assert_allclose(found.spectrum, values / values.sum(), atol=1e-12)
    cumulated = np.cumsum(values) / values.sum()
    assert found.directions_95 == 1 + next(i for i, share in enumerate(cumulated) if share >= 0.95)
    assert found.dim == 4


@pytest.mark.parametrize("n", [64, 256])
def test_the_effective_rank_covers_the_exact_one_and_has_little_bias(n: int) -> None:
    hits, errors, plain = [], [], []
    for seed in range(1000, 1040):
        env = random_table(seed=seed)
        found = span(pool_of(env, n, rng=np.random.default_rng(seed)), "features", rng=np.random.default_rng(1))
        truth = exact_rank(env)
        hits.append(found.effective_rank.low <= truth <= found.effective_rank.high)
        errors.append(math.log(found.effective_rank.value / truth))
        plain.append(math.log(math.exp(entropy(found.spectrum)) / truth))
    assert np.mean(hits) >= 0.92
    assert abs(np.mean(errors)) < 0.005
    assert abs(np.mean(errors)) < abs(np.mean(plain))


def test_features_in_other_units_or_turned_around_span_the_same() -> None:
    rng = np.random.default_rng(3)
    features = rng.standard_normal((4, 60, 5)) * np.array([1.0, 0.7, 0.5, 0.2, 0.1])
    turn = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    plain, other = (
        span(pool_with(f), "m", rng=np.random.default_rng(7)) for f in (features, 30.0 * features @ turn + 2.0)
    )
    np.testing.assert_allclose(plain.spectrum, other.spectrum, atol=1e-10)
    assert plain.growth == other.growth
    assert (plain.tested, plain.beyond) == (other.tested, other.beyond)
    assert plain.radius == pytest.approx(other.radius)
    assert other.penalty == pytest.approx(900.0 * plain.penalty)


def test_the_certificate_is_that_of_theory_3_on_the_other_half() -> None:
    env = random_table(prompts=6, seed=1001)
    found = span(pool_of(env, 201, rng=np.random.default_rng(0)), "features", rng=np.random.default_rng(0))
    assert found.tested == 6 * 50  # floor(101 / 2) pairs of each prompt
    spent = 0.05 / ((found.acceptances + 1) * (found.acceptances + 2))
    assert found.eta_radius == pytest.approx(1.0 - spent ** (1.0 / found.tested))
    assert found.eta == (1.0 if found.beyond else found.eta_radius)
    assert (found.beyond > 0) == (found.radius > NU)
    assert found.growth[-1].pairs == found.acceptances
    assert found.growth[-1].draws == 100
    pairs = [g.pairs for g in found.growth]
    assert pairs == sorted(pairs)
    assert 8 <= len(found.growth) <= 10


def test_at_every_point_of_the_growth_curve_no_pair_of_the_draws_so_far_lies_beyond() -> None:
    rng = np.random.default_rng(0)
    features, counts = list(rng.standard_normal((3, 40, 4))), [rng.integers(0, 4, 40) for _ in range(3)]
    least = min(int(c.sum()) for c in counts)
    counts = [rng.multivariate_hypergeometric(c, least) for c in counts]
    spanner, growth = _grow(Spanner.start(4.0 * np.eye(4)), features, counts, rng)
    inverse = np.linalg.inv(spanner.sigma)
    for phi, c in zip(features, counts, strict=True):
        apart = phi[c > 0][:, None] - phi[c > 0][None]
        assert np.max(np.einsum("abi,ij,abj->ab", apart, inverse, apart)) <= NU**2 + 1e-9
    assert growth[-1].draws == least
    assert growth[-1].pairs == spanner.accepted > 4


def test_what_is_certified_holds_for_the_exact_law() -> None:
    """The exact mass of pairs beyond the largest norm tested is below the bound."""
    law = 1.0 / np.arange(1.0, 301.0)
    law /= law.sum()
    held = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        phi = rng.standard_normal((300, 4))
        first, rest = rng.multinomial(60, law), rng.multinomial(60, law)
        spanner, _ = _grow(Spanner.start(4.0 * np.eye(4)), [phi], [first], rng)
        pairs = disjoint_pairs(rest, rng=rng)
        proof = certify(spanner.norms(phi[pairs[:, 0]] - phi[pairs[:, 1]]), NU, 0.05, spanner.accepted)
        norms = spanner.norms((phi[:, None] - phi[None]).reshape(-1, 4)).reshape(300, 300)
        held.append(law @ (norms > proof.radius) @ law <= proof.eta_radius)
        held.append(law @ (norms > NU) @ law <= proof.eta)
    assert all(held)


def test_a_single_direction_takes_few_pairs() -> None:
    features = np.random.default_rng(0).standard_normal((5, 80, 1)) * np.eye(3)[0]
    found = span(pool_with(features), "m", rng=np.random.default_rng(0))
    assert found.effective_rank.value == pytest.approx(1.0)
    assert found.directions_95 == 1
    assert found.acceptances <= 3


@pytest.mark.parametrize(("features", "counts"), [(np.ones((3, 1, 4)), [64]), (np.zeros((2, 64, 4)), None)])
def test_draws_that_are_all_alike_have_nothing_to_span(features: np.ndarray, counts: list[int] | None) -> None:
    pool = pool_with(features, None if counts is None else np.array(counts))
    found = span(pool, "m", rng=np.random.default_rng(0))
    assert found.spectrum == (0.0,) * 4
    assert math.isnan(found.effective_rank.value)
    assert (found.directions_95, found.acceptances, found.beyond, found.radius) == (0, 0, 0, 0.0)
    assert "do not differ" in found.statements[0]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_few_draws_of_one_prompt_are_enough_to_run(n: int) -> None:
    found = span(pool_with(np.random.default_rng(0).standard_normal((1, n, 3))), "m", rng=np.random.default_rng(0))
    assert found.statements
    assert found.tested == (n - n // 2) // 2
    assert len(found.growth) == (1 if n == 4 else 0)
    json.dumps(asdict(found))


def test_the_same_generator_gives_the_same_span() -> None:
    pool = pool_of(random_table(prompts=4, seed=1002), 64, rng=np.random.default_rng(0))
    assert span(pool, "features", rng=np.random.default_rng(5)) == span(pool, "features", rng=np.random.default_rng(5))
