"""What draws have seen: entropy and missing mass against exact laws, bounds against THEORY 3, intervals that cover."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import digamma
from scipy.stats import entropy, multinomial

from spannerlm.environments import random_table
from spannerlm.foundation.pool import Pool, pool_of
from spannerlm.foundation.unseen import PromptUnseen, every_mass_seen, missing_mass, unseen
from spannerlm.records import Draws
from spannerlm.spanner import draws_to_see

LAW = np.array([0.5, 0.3, 0.15, 0.05])


def pool_of_counts(*counts: list[int]) -> Pool:
    draws = tuple(
        Draws(x, tuple(f"r{i}" for i in range(len(c))), np.array(c), np.zeros((len(c), 1)))
        for x, c in enumerate(counts)
    )
    return Pool(tuple(map(str, range(len(counts)))), draws, {"none": slice(0, 1)})


def outcomes(law: np.ndarray, n: int) -> list[tuple[float, np.ndarray]]:
    """(probability, counts) of everything that n draws can give."""
    cells = itertools.product(range(n + 1), repeat=len(law))
    return [(multinomial.pmf(c, n, law), np.array(c)) for c in cells if sum(c) == n]


def one(counts: np.ndarray) -> PromptUnseen:
    return unseen(pool_of_counts([int(c) for c in counts if c])).prompts[0]


def test_the_missing_mass_is_right_on_average_over_everything_that_can_be_drawn() -> None:
    n = 7
    mass = sum(p * LAW[c == 0].sum() for p, c in outcomes(LAW, n))
    more = sum(p * np.sum(c == 1) for p, c in outcomes(LAW, n + 1)) / (n + 1)
    assert more == pytest.approx(mass)  # Good and Turing: one more draw makes it unbiased
    raw = sum(p * np.sum(c == 1) for p, c in outcomes(LAW, n)) / n
    estimate = sum(p * one(c).unseen.value for p, c in outcomes(LAW, n))
    assert abs(estimate - mass) < 0.3 * abs(raw - mass)


def test_the_entropy_is_less_biased_than_counting() -> None:
    n, law = 12, LAW
    found = [(p, one(c).entropy.value, entropy(c)) for p, c in outcomes(law, n)]
    ours, plain = sum(p * h for p, h, _ in found), sum(p * h for p, _, h in found)
    assert abs(ours - entropy(law)) < 0.3 * abs(plain - entropy(law))


@pytest.mark.parametrize(
    "counts", [[9, 4, 2, 1, 1, 1], [5, 3, 1, 1], [4, 2, 2, 2], [2, 2, 1, 1, 1, 1, 1, 1, 1], [2, 2]]
)
def test_the_entropy_is_the_published_estimate(counts: list[int]) -> None:
    c = np.array(counts)
    n, f1, f2 = int(c.sum()), int(np.sum(c == 1)), int(np.sum(c == 2))
    value = sum(k / n * sum(1.0 / j for j in range(k, n)) for k in counts)
    if f1:
        a = 2 * f2 / ((n - 1) * f1 + 2 * f2) if f2 else 2 / ((n - 1) * (f1 - 1) + 2)
        head = sum((1 - a) ** r / r for r in range(1, n))
        value += f1 / n * (1 - a) ** (1 - n) * (-math.log(a) - head)
    assert one(c).entropy.value == pytest.approx(value)
    assert digamma(n) - c @ digamma(c) / n <= value + 1e-12


def test_the_variance_leaves_out_one_draw_at_a_time() -> None:
    counts = [9, 4, 3, 2, 2, 2, 1, 1]
    n = sum(counts)
    left = []
    for i, c in enumerate(counts):
        fewer = [k - (i == j) for j, k in enumerate(counts)]
        left += [one(np.array(fewer)).entropy.value] * c
    jackknife = (n - 1) / n * float(np.sum((np.array(left) - np.mean(left)) ** 2))
    found = one(np.array(counts)).entropy
    seen = sum(k / n * sum(1.0 / j for j in range(k, n)) for k in counts)
    floor = 2.0 * ((math.log(n) + 1.0) / n) ** 2
    expected = found.value - 1.959964 * math.sqrt(jackknife + floor) - 0.25 * (found.value - seen)
    assert found.low == pytest.approx(expected, rel=1e-5)


def test_many_draws_give_the_exact_law() -> None:
    rng = np.random.default_rng(0)
    found = one(rng.multinomial(10**7, LAW))
    assert found.entropy.value == pytest.approx(entropy(LAW), abs=1e-3)
    assert found.unseen.high < 1e-6
    assert (found.top, found.distinct, found.draws) == ("r0", 4, 10**7)


def test_known_log_probabilities_are_averaged() -> None:
    pool = pool_of_counts([6, 3, 1])
    known = unseen(replace(pool, logprobs=(np.log([0.5, 0.3, 0.01]),)))
    assert known.exact
    assert known.entropy.value == pytest.approx(-(0.6 * np.log(0.5) + 0.3 * np.log(0.3) + 0.1 * np.log(0.01)))
    assert 0.0 <= known.entropy.low < known.entropy.value < known.entropy.high < math.inf


def test_directions_are_bounded_as_theory_3_says() -> None:
    assert every_mass_seen(2000, 0.05) == pytest.approx(0.0042306, abs=1e-7)
    for n in (4, 64, 2000, 10**7):
        assert draws_to_see(every_mass_seen(n, 0.05), 0.05) == pytest.approx(n)
    assert every_mass_seen(2, 0.05) == 1.0
    found = unseen(pool_of_counts([2000], [2000]))
    assert (
        found.statements[0]
        == "n = 2000 draws of one prompt see every direction of mass above 0.43 %, with 95 % confidence."
    )
    assert found.fixed_direction == pytest.approx(math.log(20) / 2000)
    assert found.never == pytest.approx(0.05 / 2000)
    assert found.total == 4000
    assert found.every_direction_total == pytest.approx(every_mass_seen(4000, 0.05))
    assert found.fixed_direction_total == pytest.approx(math.log(20) / 4000)
    assert found.never_total == pytest.approx(0.05 / 4000)


def test_a_direction_spread_unevenly_over_prompts_is_seen_at_least_as_surely() -> None:
    masses, n = np.array([0.02, 0.0, 0.001, 0.003]), 40
    assert np.prod((1.0 - masses) ** n) <= (1.0 - masses.mean()) ** (n * len(masses))
    assert 1.0 - np.prod((1.0 - masses) ** n) <= n * len(masses) * masses.mean()


def test_one_response_each_is_said_to_be_so() -> None:
    found = unseen(pool_of_counts([64], [64], [64]))
    assert found.constant == 3
    assert found.entropy.value == 0.0 < found.entropy.high < 0.2
    assert found.unseen.value == 0.0 < found.unseen.high < found.prompts[0].unseen.high < 0.1
    assert found.statements[-1] == "For 3 of 3 prompts all 64 draws are one and the same response."


def test_draws_that_never_repeat_bound_the_entropy_from_below_only() -> None:
    found = unseen(pool_of_counts([1] * 64))
    assert found.entropy.high == math.inf
    assert found.entropy.low < math.log(546)  # 546 equal responses do not repeat in 64 draws with probability .025
    assert found.unseen.low > 0.9
    assert any("no upper bound" in s for s in found.statements)


def test_few_draws_claim_nothing() -> None:
    found = unseen(pool_of_counts([1], [1]))
    assert (found.unseen.low, found.unseen.high, found.every_direction, found.constant) == (0.0, 1.0, 1.0, 0)
    assert found.entropy.high == math.inf
    assert "too few" in found.statements[0]
    assert unseen(pool_of_counts([1, 1])).every_direction == 1.0


def test_intervals_cover_on_tables() -> None:
    hits: dict[str, list[bool]] = {"entropy": [], "unseen": [], "mean entropy": [], "mean unseen": []}
    widths = []
    for seed in range(1000, 1040):
        env = random_table(seed=seed)
        pool = pool_of(env, 128, rng=np.random.default_rng(seed))
        found = unseen(pool)
        truth = entropy(env.base_probs, axis=1)
        left = [1.0 - env.base_probs[d.prompt, np.array(d.responses, dtype=int)].sum() for d in pool.draws]
        for p, h, m in zip(found.prompts, truth, left, strict=True):
            hits["entropy"].append(p.entropy.low <= h <= p.entropy.high)
            hits["unseen"].append(p.unseen.low <= m + 1e-12 and m <= p.unseen.high)
            widths.append(p.unseen.high - p.unseen.low)
        hits["mean entropy"].append(found.entropy.low <= truth.mean() <= found.entropy.high)
        hits["mean unseen"].append(found.unseen.low <= np.mean(left) <= found.unseen.high)
    assert {name: np.mean(hit) >= 0.9 for name, hit in hits.items()} == dict.fromkeys(hits, True)
    assert np.mean(widths) < 0.25


def test_the_ends_of_the_missing_mass_solve_their_own_equation() -> None:
    n, rare = 200, np.array([[12.0, 5.0], [30.0, 9.0]])
    found = missing_mass(rare, n)
    once, twice = rare.sum(axis=0)
    centre = once - 2.0 * twice / (n - 1)
    for mass in (found.low, found.high):
        m = 2 * n * mass
        uneven = np.sum((rare[:, 0] / once * m) ** 2) / n
        assert (centre - m) ** 2 == pytest.approx(1.959964**2 * (m - uneven + 2.0 * twice + 2.0), rel=1e-5)


def test_one_draw_has_no_upper_bound_of_entropy_because_it_is_one() -> None:
    pool = replace(pool_of_counts([1], [1]), logprobs=(np.array([-1.0]), np.array([-2.0])))
    text = " ".join(unseen(pool).statements)
    assert "one draw of each prompt" in text
    assert "hardly ever repeat" not in text
