"""Sampling step by step: exact laws against sums over every outcome, what is drawn against the laws, and the costs."""

from __future__ import annotations

from itertools import product
from math import factorial
from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad

from spannerlm.environments import TokenEnvironment
from spannerlm.environments.token_families import additive_lock, embedded_lock, gated_lock
from spannerlm.errors import InputError
from spannerlm.policy import StepSoftmaxPolicy, tilt
from spannerlm.records import DrawRequest, StepTilt
from spannerlm.stepwise import expected_draws, resampled_law, resampling_bias, rolled, sampled_table, walked

BASE = np.array([0.45, 0.3, 0.2, 0.05])
SCORES = np.array([0.0, 0.7, -0.4, 1.5])
BETA = 0.5


def kept(counts: Any, weights: Any, rule: str) -> Any:
    """Odds of each response to be kept of these draws."""
    if rule == "odds":
        return counts * weights / (counts @ weights)
    found = np.zeros(len(counts))
    for a in np.flatnonzero(counts):  # one copy of a has key w / u: largest where every other key is below it

        def others(u: float, a: int = int(a)) -> float:
            below = np.maximum(0.0, 1.0 - weights * u / weights[a])  # P(w' / u' < w / u), each
            return float(np.prod(below ** (counts - (np.arange(len(counts)) == a))))

        found[a] = counts[a] * quad(others, 0.0, 1.0, points=np.minimum(1.0, weights[a] / weights))[0]
    return found


def every_outcome(base: Any, weights: Any, n: int, rule: str) -> Any:
    law = np.zeros(len(base))
    for counts in product(range(n + 1), repeat=len(base)):
        if sum(counts) == n:
            mass = factorial(n) * np.prod([p**c / factorial(c) for p, c in zip(base, counts, strict=True)])
            law += mass * kept(np.array(counts), weights, rule)
    return law


@pytest.mark.parametrize("rule", ["key", "odds"])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_law_is_the_sum_over_every_outcome(rule: Any, n: int) -> None:
    law = resampled_law(BASE, SCORES, BETA, n, rule=rule)
    np.testing.assert_allclose(law, every_outcome(BASE, np.exp(SCORES / BETA), n, rule), atol=1e-8)
    assert law.sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("rule", ["key", "odds"])
def test_laws_of_extreme_weights_and_impossible_responses(rule: Any) -> None:
    """A spike of weight e^600: it is kept if and only if it was drawn; what is impossible is never kept."""
    base, scores = np.array([0.25, 0.5, 0.25, 0.0]), np.array([600.0, 1.0, 0.0, 900.0])
    law = resampled_law(base, scores, 1.0, 6, rule=rule)
    assert law[0] == pytest.approx(1.0 - 0.75**6, abs=1e-12)
    assert law[3] == 0.0
    assert law.sum() == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(resampled_law(base, np.zeros(4), 1.0, 6, rule=rule), base, atol=1e-12)


def test_keys_are_closer_to_the_tilted_law_than_odds_and_within_their_bound() -> None:
    tilted = tilt(BASE, SCORES, BETA)
    bound = 1.0 - 1.0 / np.max(tilted / BASE)
    for n in (2, 8, 32, 128):
        key, odds = (float(resampling_bias(BASE, SCORES, BETA, n, rule=rule)) for rule in ("key", "odds"))
        assert key <= min(odds, bound**n) + 1e-12
    assert odds == pytest.approx(
        float(resampling_bias(BASE, SCORES, BETA, 256, rule="odds")) * 2, rel=0.05
    )  # C / n, where keys have exponentially little


def test_rows_of_a_table_are_rows() -> None:
    base, scores = np.stack([BASE, BASE[::-1]])[None], np.stack([SCORES, SCORES])[None]
    law = resampled_law(base, scores, BETA, 3, rule="odds")
    assert law.shape == (1, 2, 4)
    np.testing.assert_allclose(law[0, 1], resampled_law(BASE[::-1], SCORES, BETA, 3, rule="odds"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scores": SCORES[:2]}, "scores: expected one per probability"),
        ({"n": 0}, "n of at least 1"),
        ({"beta": 0.0}, "a positive beta"),
        ({"scores": SCORES * np.nan}, "finite scores"),
        ({"rule": "best"}, "rule: expected 'key' or 'odds', got 'best'"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], says: str) -> None:
    options: dict[str, Any] = {"base_probs": BASE, "scores": SCORES, "beta": BETA, "n": 3, **change}
    with pytest.raises(InputError, match=says):
        resampled_law(**options)


# --- the gated lock -------------------------------------------------------------------------------------------------


def truth(env: TokenEnvironment) -> Any:
    """[H, d] least squares of Q* on phi up to a function of the prefix: exact, the lock being realizable."""
    theta = []
    for h in range(env.horizon):
        seen = env.reachable[h]
        phi, q = env.features[h][seen], env.action_values[h][seen]
        phi, q = phi - phi.mean(axis=1, keepdims=True), q - q.mean(axis=1, keepdims=True)
        theta.append(np.linalg.lstsq(phi.reshape(-1, env.step_dim), q.ravel(), rcond=None)[0])
    return np.array(theta)


LOCK = gated_lock(16, seed=1)
THETA = truth(LOCK)
POLICY = StepSoftmaxPolicy(THETA, LOCK.beta)
LOCK_SCORES = np.einsum("hsad,hd->hsa", LOCK.features, THETA)
LEVELS = LOCK_SCORES.max(axis=(1, 2))


def test_few_draws_per_step_are_nearly_the_optimum() -> None:
    """Regret of the sampled law at the true parameter: 8 draws per step miss 2 % of the gap narrowly, 10 leave .5 %."""
    gap = LOCK.regret(LOCK.base_probs)
    assert LOCK.regret(POLICY.table(LOCK)) < 1e-12
    key = [LOCK.regret(sampled_table(POLICY, LOCK, n)) / gap for n in (4, 8, 10, 16)]
    odds = [LOCK.regret(sampled_table(POLICY, LOCK, n, rule="odds")) / gap for n in (4, 8, 10, 16)]
    assert all(a < b for a, b in zip(key, odds, strict=True))
    for env, least in ((additive_lock(16), 100.0), (embedded_lock(), 4.0)):
        laws = (resampled_law(env.base_probs, env.action_values, env.beta, 8, rule=rule) for rule in ("odds", "key"))
        worse, better = (env.regret(law) for law in laws)
        assert worse > least * better
    np.testing.assert_allclose(key, [0.351, 0.0214, 0.0047, 0.00004], rtol=0.1)


SMALL = gated_lock(4, seed=1)
SMALL_POLICY = StepSoftmaxPolicy(truth(SMALL), SMALL.beta)
SMALL_LEVELS = np.einsum("hsad,hd->hsa", SMALL.features, SMALL_POLICY.theta).max(axis=(1, 2))


def fits(paths: Any, law: Any) -> bool:
    """Whether complete sequences of prompt 0 have this law, given step by step."""
    table = SMALL.sequence_table(law)[0]
    found = np.bincount([int("".join(path.segments), 2) for path in paths], minlength=16)
    errors = np.sqrt(len(paths) * table * (1.0 - table))
    return bool(np.all(np.abs(found - len(paths) * table) <= 4.5 * errors + 1.0))


@pytest.mark.parametrize("levels", [None, SMALL_LEVELS])
def test_walks_have_the_sampled_law_whether_or_not_a_step_ends_early(levels: Any) -> None:
    """3 draws per step, so that the law is far from the tilted one."""
    theta, beta = SMALL_POLICY.theta, SMALL_POLICY.beta
    walk = walked(SMALL, (0,) * 1500, theta, beta, 3, levels=levels, block=1, rng=np.random.default_rng(0))
    assert fits(walk.paths, sampled_table(SMALL_POLICY, SMALL, 3))
    assert not fits(walk.paths, SMALL_POLICY.table(SMALL))


def test_steps_that_end_early_cost_what_is_expected() -> None:
    """Gated lock H = 16, at most 16 draws per step: .004 % of the gap at 32 tokens an answer, of 128 allowed."""
    table = sampled_table(POLICY, LOCK, 16)
    occupancy = LOCK.occupancy(table)
    each = [expected_draws(LOCK.base_probs[h], LOCK_SCORES[h], LOCK.beta, 16, LEVELS[h]) for h in range(16)]
    expected = float(sum(o @ e for o, e in zip(occupancy, each, strict=True)))
    prompts = tuple(int(x) for x in np.random.default_rng(1).choice(LOCK.states, 100, p=LOCK.prompt_probs))
    walk = walked(LOCK, prompts, THETA, LOCK.beta, 16, levels=LEVELS, block=1, rng=np.random.default_rng(2))
    assert walk.tokens == walk.draws
    assert np.mean(walk.tokens) == pytest.approx(expected, abs=4.5 * np.std(walk.tokens) / np.sqrt(100))
    assert expected < 35.0
    full = walked(LOCK, (0,), THETA, LOCK.beta, 16, rng=np.random.default_rng(2))
    assert full.draws == (256,)
    blocks = walked(LOCK, (0,) * 5, THETA, LOCK.beta, 10, levels=LEVELS, block=4, rng=np.random.default_rng(2))
    assert max(blocks.draws) <= 160
    assert expected_draws(BASE, SCORES, BETA, 7, 1e3) == pytest.approx(7.0)
    assert expected_draws(BASE, SCORES, BETA, 7, -1e3) == pytest.approx(1.0)


def test_a_step_that_never_reached_its_level_says_so() -> None:
    rng = np.random.default_rng(0)
    reached = walked(SMALL, (0,) * 20, SMALL_POLICY.theta, SMALL.beta, 64, levels=SMALL_LEVELS, rng=rng)
    beyond = walked(SMALL, (0,) * 3, SMALL_POLICY.theta, SMALL.beta, 6, levels=SMALL_LEVELS + 99.0, rng=rng)
    assert reached.exhausted == (0,) * 20
    assert (beyond.exhausted, beyond.draws, beyond.tokens) == ((4,) * 3, (24,) * 3, (24,) * 3)
    assert walked(SMALL, (0,), SMALL_POLICY.theta, SMALL.beta, 2, rng=rng).exhausted == (0,)
    with pytest.raises(InputError, match="at least one draw per step"):
        walked(SMALL, (0,), SMALL_POLICY.theta, SMALL.beta, 0, rng=rng)


def test_roll_outs_have_the_sampled_law() -> None:
    request = DrawRequest((0,) * 1500, 3, StepTilt(SMALL_POLICY.theta, SMALL.beta), {}, ((),) * 1500)
    drawn = rolled(SMALL, request, rng=np.random.default_rng(3))
    assert fits(drawn.paths, sampled_table(SMALL_POLICY, SMALL, 3))
    assert drawn.spent == drawn.tokens == 1500 * 3 * 4
