"""The design against naive rewrites, and the certificate against what it promises, in simulation (THEORY 3)."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy.stats import binom, chisquare

from spannerlm.errors import InputError
from spannerlm.records import Draws
from spannerlm.spanner import (
    Pair,
    Spanner,
    acceptance_bound,
    certify,
    disjoint_pair_counts,
    disjoint_pairs,
    draws_to_see,
    first_pair,
    greedy_disjoint_pairs,
    greedy_pair,
    mass_seen,
    spending,
)


def random_draws(seed: int, n: int = 6, d: int = 3) -> Draws:
    rng = np.random.default_rng(seed)
    return Draws(0, tuple(f"y{i}" for i in range(n)), rng.integers(1, 4, size=n), rng.normal(size=(n, d)))


def naive_norm(sigma: np.ndarray, relative: np.ndarray) -> float:
    return float(np.sqrt(relative @ np.linalg.solve(sigma, relative)))


# --- the design -----------------------------------------------------------------------------------------------------


def test_accepting_adds_the_outer_product_and_halves_a_long_direction() -> None:
    rng = np.random.default_rng(0)
    pairs, sigma = rng.normal(size=(5, 3)), np.diag([1.0, 2.0, 0.5])
    spanner = Spanner.start(sigma)
    for relative in pairs:
        before = spanner.norms(relative[None])[0] ** 2
        spanner = spanner.accept(relative)
        np.testing.assert_allclose(spanner.norms(relative[None])[0] ** 2, before / (1.0 + before), rtol=1e-10)
    np.testing.assert_allclose(spanner.sigma, sigma + sum(np.outer(p, p) for p in pairs), rtol=1e-12)
    assert spanner.accepted == 5
    np.testing.assert_allclose(spanner.norms(pairs), [naive_norm(spanner.sigma, p) for p in pairs], rtol=1e-9)


@pytest.mark.parametrize("total", [0, 1, 2, 5, 8])
def test_disjoint_pairs_use_every_draw_once(total: int) -> None:
    counts = np.array([0, 2, 1, 5])[: max(1, total)]
    pairs = disjoint_pairs(counts, rng=np.random.default_rng(1))
    assert pairs.shape == (counts.sum() // 2, 2)
    used = np.bincount(pairs.ravel(), minlength=len(counts))
    assert (used <= counts).all()
    assert used.sum() == 2 * (counts.sum() // 2)


def exact_law_of_pair_tables(counts: np.ndarray, k: int) -> dict[tuple[int, ...], float]:
    """Every order of the draws is equally likely; the table counts (first, second) of the first k pairs."""
    deck = np.repeat(np.arange(len(counts)), counts)
    tables: Counter[tuple[int, ...]] = Counter()
    for order in itertools.permutations(deck):
        table = np.zeros((len(counts), len(counts)), dtype=int)
        for i in range(k):
            table[order[2 * i], order[2 * i + 1]] += 1
        tables[tuple(table.ravel())] += 1
    total = sum(tables.values())
    return {table: n / total for table, n in tables.items()}


@pytest.mark.parametrize(("counts", "k"), [([2, 1, 3], 3), ([1, 4, 2], 2)])
def test_pairs_and_pair_counts_have_the_law_of_shuffled_draws(counts: list[int], k: int) -> None:
    """Both ways of pairing against the law by enumeration of all orders; two chi-squares at 1e-6."""
    exact, size = exact_law_of_pair_tables(np.array(counts), k), 4000
    rng = np.random.default_rng(2)

    def listed() -> np.ndarray:
        table = np.zeros((3, 3), dtype=int)
        np.add.at(table, tuple(disjoint_pairs(np.array(counts), rng=rng)[:k].T), 1)
        return table

    for draw in (listed, lambda: disjoint_pair_counts(np.array(counts), k, rng=rng)):
        seen = Counter(tuple(draw().ravel()) for _ in range(size))
        assert set(seen) <= set(exact)
        observed = [seen[table] for table in exact]
        assert chisquare(observed, [size * p for p in exact.values()]).pvalue > 1e-6


def test_first_pair_is_the_first_of_the_shuffled_pairs_beyond_nu() -> None:
    spanner = Spanner.start(np.diag([1.0, 3.0, 0.2]))
    seen_none = seen_late = False
    for seed in range(60):
        draws, nu = random_draws(seed), 4.0
        pair, looked = first_pair(spanner, draws, nu, rng=np.random.default_rng(seed))
        order = disjoint_pairs(draws.counts, rng=np.random.default_rng(seed))
        norms = [naive_norm(spanner.sigma, draws.features[i] - draws.features[j]) for i, j in order]
        hits = [k for k, value in enumerate(norms) if value > nu]
        if not hits:
            seen_none = True
            assert pair is None
            assert looked == len(order)
            continue
        seen_late |= hits[0] > 0
        assert pair is not None
        assert (pair.first, pair.second) == tuple(order[hits[0]])
        assert pair.norm == pytest.approx(norms[hits[0]], rel=1e-9)
        assert looked == hits[0] + 1
    assert seen_none
    assert seen_late


def test_greedy_pair_is_the_farthest_of_all_pairs() -> None:
    spanner = Spanner.start(np.diag([1.0, 3.0, 0.2]))
    for seed in range(10):
        draws = random_draws(seed)
        norms = {
            (i, j): naive_norm(spanner.sigma, draws.features[i] - draws.features[j])
            for i, j in itertools.combinations(range(6), 2)
        }
        best = max(norms, key=lambda pair: norms[pair])
        pair = greedy_pair(spanner, draws, norms[best] - 1e-9)
        assert pair is not None
        assert (pair.first, pair.second) == best
        assert pair.norm == pytest.approx(norms[best], rel=1e-12)
        assert greedy_pair(spanner, draws, norms[best] + 1e-9) is None
    alone = Draws(0, ("a",), np.array([3]), np.ones((1, 3)))
    assert greedy_pair(spanner, alone, 0.0) is None


def test_greedy_disjoint_pairs_share_nothing_and_count_what_came_before() -> None:
    draws, start = random_draws(5, n=9), Spanner.start(0.1 * np.eye(3))
    spanner, pairs = greedy_disjoint_pairs(start, draws, 0.5, limit=4)
    sigma, left, expected = start.sigma, set(range(9)), []
    for _ in range(4):
        norms = {
            (i, j): naive_norm(sigma, draws.features[i] - draws.features[j])
            for i, j in itertools.combinations(sorted(left), 2)
        }
        best = max(norms, key=lambda pair: norms[pair])
        if norms[best] <= 0.5:
            break
        expected.append((*best, pytest.approx(norms[best], rel=1e-9)))
        relative = draws.features[best[0]] - draws.features[best[1]]
        sigma, left = sigma + np.outer(relative, relative), left - set(best)
    assert len(expected) > 1
    assert [(p.first, p.second, p.norm) for p in pairs] == expected
    np.testing.assert_allclose(spanner.sigma, sigma, rtol=1e-12)
    assert spanner.accepted == len(pairs)
    assert len(greedy_disjoint_pairs(start, draws, 0.0, limit=99)[1]) == 4  # nine draws hold four disjoint pairs
    for limit in (0, 1, 2):
        assert greedy_disjoint_pairs(start, draws, 0.0, limit=limit)[1] == pairs[:limit]
    assert greedy_disjoint_pairs(start, draws, 1e3, limit=4) == (start, ())
    two = Draws(0, ("a", "b"), np.array([1, 1]), np.eye(2))
    assert len(greedy_disjoint_pairs(Spanner.start(np.eye(2)), two, 0.0, limit=4)[1]) == 1


def test_a_pair_at_nu_is_not_beyond_it() -> None:
    draws, spanner = (
        Draws(0, ("a", "b"), np.array([1, 1]), np.array([[3.0, 0.0], [0.0, 4.0]])),
        Spanner.start(np.eye(2)),
    )
    assert first_pair(spanner, draws, 5.0, rng=np.random.default_rng(0)) == (None, 1)
    assert greedy_pair(spanner, draws, 5.0) is None
    assert greedy_disjoint_pairs(spanner, draws, 5.0, limit=1)[1] == ()
    below = np.nextafter(5.0, 0.0)
    assert greedy_pair(spanner, draws, below) == Pair(0, 1, 5.0)
    assert greedy_disjoint_pairs(spanner, draws, below, limit=1)[1] == (Pair(0, 1, 5.0),)
    assert first_pair(spanner, draws, below, rng=np.random.default_rng(0))[0] in (Pair(0, 1, 5.0), Pair(1, 0, 5.0))


# --- the bound on acceptances ---------------------------------------------------------------------------------------


def fits(m: int, d: int, penalty: float, nu: float) -> bool:
    return m <= d * np.log(1.0 + 4.0 * m / (d * penalty)) / np.log(1.0 + nu**2)


@pytest.mark.parametrize(
    ("d", "penalty", "nu"), [(1, 1.0, 0.5), (3, 0.1, 0.2), (16, 1e-3, 0.05), (2, 1.0, 1.9), (5, 2, 1)]
)
def test_bound_is_the_largest_solution(d: int, penalty: float, nu: float) -> None:
    bound = acceptance_bound(d, penalty, nu)
    assert fits(bound, d, penalty, nu)
    assert not any(fits(bound + k, d, penalty, nu) for k in range(1, 50))


def test_bound_is_zero_where_no_pair_is_long_enough() -> None:
    """Relative features are at most 2 long: beyond nu = 2 / sqrt(lambda) there is nothing to accept."""
    assert acceptance_bound(1, 1.0, 2.001) == 0
    assert acceptance_bound(1, 1.0, 1.999) >= 1


def most_accepted(d: int, penalty: float, nu: float) -> int:
    """An adversary's acceptances: in the least covered direction, the shortest feature that is just accepted."""
    spanner = Spanner.start(penalty * np.eye(d))
    while True:
        values, vectors = np.linalg.eigh(spanner.sigma)
        relative = min(2.0, (1.0 + 1e-9) * nu * np.sqrt(values[0])) * vectors[:, 0]
        if spanner.norms(relative[None])[0] <= nu:
            return spanner.accepted
        spanner = spanner.accept(relative)


@pytest.mark.parametrize(("d", "penalty", "nu"), [(1, 1.0, 0.5), (3, 0.1, 0.2), (4, 1.0, 1.5), (2, 0.01, 0.7)])
def test_no_adversary_gets_more_pairs_accepted_than_the_bound(d: int, penalty: float, nu: float) -> None:
    bound, greedy = acceptance_bound(d, penalty, nu), most_accepted(d, penalty, nu)
    assert bound / 2 < greedy <= bound  # the bound is not idle either
    for seed in range(5):
        rng, spanner = np.random.default_rng(seed), Spanner.start(penalty * np.eye(d))
        scale = rng.uniform(0.1, 2.0)
        for _ in range(300):
            relative = rng.normal(size=d)
            relative *= scale / np.linalg.norm(relative)
            if spanner.norms(relative[None])[0] > nu:
                spanner = spanner.accept(relative)
        assert spanner.accepted <= bound


@pytest.mark.parametrize(("penalty", "nu"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)])
def test_bound_refuses_what_makes_it_infinite(penalty: float, nu: float) -> None:
    with pytest.raises(InputError, match="positive lambda and nu"):
        acceptance_bound(3, penalty, nu)


# --- the certificate ------------------------------------------------------------------------------------------------


def test_spending_adds_up_to_delta_and_no_more() -> None:
    spent = [spending(0.2, j) for j in range(2000)]
    assert spent[0] == pytest.approx(0.1)
    assert sum(spent) == pytest.approx(0.2 * (1 - 1 / 2001), rel=1e-9)


def test_certificate_by_hand() -> None:
    clean = certify(np.array([0.1, 0.4, 0.2]), 0.5, 0.3, acceptances=1)
    assert clean.eta == pytest.approx(1 - 0.05 ** (1 / 3))
    assert (clean.pairs, clean.beyond, clean.radius, clean.eta_radius) == (3, 0, 0.4, clean.eta)
    assert (clean.nu, clean.delta, clean.acceptances) == (0.5, 0.3, 1)
    assert certify(np.array([0.1, 0.5, 0.2]), 0.5, 0.3, acceptances=1).beyond == 0  # at nu is not beyond it
    dirty = certify(np.array([0.1, 0.6, 0.2]), 0.5, 0.3, acceptances=1)
    assert (dirty.eta, dirty.beyond, dirty.radius) == (1.0, 1, 0.6)
    assert dirty.eta_radius == clean.eta
    none = certify(np.zeros(0), 0.5, 0.3, acceptances=0)
    assert (none.eta, none.eta_radius, none.pairs) == (1.0, 1.0, 0)
    assert np.isnan(none.radius)


def test_certificate_counts_equal_norms_as_often_as_they_came() -> None:
    norms, counts = np.array([0.3, 0.9, 0.1, 5.0]), np.array([2, 1, 4, 0])
    counted = certify(norms, 0.5, 0.1, 2, counts=counts)
    assert counted == certify(np.repeat(norms, counts), 0.5, 0.1, 2)
    assert (counted.pairs, counted.beyond, counted.radius) == (7, 1, 0.9)


def rare_directions(masses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(base [k + 1], features [k + 1, k]): an ordinary response at 0 and one of each mass in a direction of its own."""
    return np.append(1.0 - masses.sum(), masses), np.vstack([np.zeros(len(masses)), np.eye(len(masses))])


def mass_beyond(spanner: Spanner, base: np.ndarray, features: np.ndarray, nu: float) -> float:
    """Mass of pairs (y, y') ~ pi_ref^2 strictly beyond ``nu``, by enumeration."""
    relative = features[:, None] - features[None, :]
    norms = spanner.norms(relative.reshape(-1, features.shape[1])).reshape(len(base), len(base))
    return float(base @ (norms > nu) @ base)


NU, DELTA, RUNS = np.sqrt(0.75), 0.2, 1000
"""nu between the squared norms 1/2 of a direction that was accepted once and 1 of one that never was."""


def violated_on_fresh_prompts(seed: int, masses: np.ndarray) -> bool:
    """One run against an adversary who picks n, before the draws, as the least that makes a clean test a false one."""
    base, features = rare_directions(masses)
    spanner, rng = Spanner.start(np.eye(len(masses))), np.random.default_rng([seed, 11])
    while True:
        true = mass_beyond(spanner, base, features, NU)
        if true < 1e-12:
            return False
        n = int(np.log(spending(DELTA, spanner.accepted)) / np.log1p(-true)) + 1
        pairs = rng.choice(len(base), size=(n, 2), p=base)
        relative = features[pairs[:, 0]] - features[pairs[:, 1]]
        certificate = certify(spanner.norms(relative), NU, DELTA, spanner.accepted)
        if certificate.eta < true:
            return True
        spanner = spanner.accept(relative[np.argmax(spanner.norms(relative) > NU)])


def test_certificate_is_violated_as_often_as_it_may_be_and_no_more() -> None:
    """1,000 runs, prompts from rho. The adversary makes the rule exact: its rate is 1 - prod(1 - (1-p_j)^n_j), about
    1 - prod(1 - delta_j), just below delta. Two-sided at 1e-6."""
    masses = np.array([0.02, 0.015, 0.012, 0.01, 0.008, 0.006])
    violations = sum(violated_on_fresh_prompts(seed, masses) for seed in range(RUNS))
    stages = len(masses)
    sharp = 1.0 - np.prod([1.0 - spending(DELTA, j) for j in range(stages)])
    assert binom.cdf(violations, RUNS, 0.9 * sharp) > 1e-6  # n is whole: each test is a little below its delta_j
    assert binom.sf(violations - 1, RUNS, DELTA) > 1e-6
    assert violations <= binom.ppf(1 - 1e-6, RUNS, sharp)


@pytest.mark.parametrize("widths", [[1.0], [1.0, 3.0, 0.2, 0.7]])
def test_largest_norm_is_a_tolerance_bound(widths: list[float]) -> None:
    """Features uniform on [0, s_x]: P(|phi| > r) = (1 - r/s)^2. The mass beyond the largest norm exceeds `eta_radius`
    with probability delta_j for one law, and at most that for the average of different ones. 2,000 runs, at 1e-6."""
    rng, s, k, runs = np.random.default_rng(3), np.array(widths), 8, 2000
    bad = 0
    for _ in range(runs):
        ends = rng.uniform(size=(len(s), k, 2)) * s[:, None, None]
        certificate = certify(np.abs(ends[..., 0] - ends[..., 1]).ravel(), nu=0.01, delta=0.3, acceptances=1)
        mass = np.mean(np.maximum(1.0 - certificate.radius / s, 0.0) ** 2)
        bad += mass > certificate.eta_radius
        assert certificate.eta == 1.0
    assert binom.sf(bad - 1, runs, spending(0.3, 1)) > 1e-6
    if len(widths) == 1:
        assert binom.cdf(bad, runs, spending(0.3, 1)) > 1e-6


@pytest.mark.parametrize(("eps", "delta"), [(0.1, 0.05), (0.003, 0.2)])
def test_draws_that_show_a_direction_or_all_of_them(eps: float, delta: float) -> None:
    n = draws_to_see(eps, delta)
    missed = (1.0 - eps) ** n / eps  # there are at most 1/eps directions of that mass
    assert delta * 0.5 < missed <= delta
    mass = mass_seen(500, delta)
    assert delta * 0.9 < (1.0 - mass) ** 500 <= delta
    assert mass_seen(0, delta) == mass_seen(1, 0.05) == 1.0


def violated_on_a_fixed_set(seed: int, rule: str) -> bool:
    """One run over prompts of very different masses. The adversary picks N so that the rule under test just certifies
    less than the true average; it then fails if the draws show nothing."""
    masses = np.array([0.2, 0.05, 0.01, 0.0]), np.array([0.02, 0.15, 0.05, 0.01]), np.array([0.0, 0.01, 0.02, 0.08])
    tables = [rare_directions(m) for m in masses]
    spanner, rng = Spanner.start(np.eye(4)), np.random.default_rng([seed, 12])
    while True:
        true = float(np.mean([mass_beyond(spanner, *table, NU) for table in tables]))
        if true < 1e-12:
            return False
        need = int(np.log(spending(DELTA, spanner.accepted)) / np.log1p(-true) / len(tables)) + 1  # pairs a prompt
        size = 2 * need if rule == "disjoint" else int(np.ceil(0.5 + np.sqrt(0.25 + 2 * need)))
        found, norms = [], []
        for base, features in tables:
            counts = rng.multinomial(size, base)
            if rule == "disjoint":
                pairs = disjoint_pairs(counts, rng=rng)
            else:
                pairs = np.array(list(itertools.combinations(np.repeat(np.arange(len(base)), counts), 2)))
            relative = features[pairs[:, 0]] - features[pairs[:, 1]]
            found.append(relative)
            norms.append(spanner.norms(relative))
        certificate = certify(np.concatenate(norms), NU, DELTA, spanner.accepted)
        if certificate.eta < true:
            return True
        beyond = np.concatenate(norms) > NU
        if not beyond.any():
            return False  # certified no less than the truth: the run ends well
        spanner = spanner.accept(np.concatenate(found)[np.argmax(beyond)])


def test_certificate_holds_for_a_fixed_set_of_unlike_prompts_and_the_wrong_rule_does_not() -> None:
    """1,000 runs each. k disjoint pairs of every prompt: at most delta. All pairs as if independent: far more."""
    right = sum(violated_on_a_fixed_set(seed, "disjoint") for seed in range(RUNS))
    wrong = sum(violated_on_a_fixed_set(seed, "all") for seed in range(RUNS))
    assert binom.sf(right - 1, RUNS, DELTA) > 1e-6, right
    assert right > RUNS * DELTA / 20, "the adversary is asleep"
    assert binom.sf(wrong - 1, RUNS, DELTA) < 1e-6, wrong
