"""random-table: tables of every kind with known truth, on which intervals and forecasts are checked (ours)."""

from __future__ import annotations

import numpy as np

from spannerlm.environments.parts import check_count, generator
from spannerlm.environments.tabular import TabularEnvironment
from spannerlm.policy import beta_for_kl
from spannerlm.records import FloatArray

SKILL = 0.8
"""Coordinate of a skill: with half a unit vector beside it the norm stays below 1."""


def random_table(*, prompts: int = 0, responses: int = 0, binary: int = -1, seed: int = 0) -> TabularEnvironment:
    """A realizable table whose sizes, masses, rewards and noise are drawn from the seed.

    Each prompt has ``responses`` ordinary responses (30 to 400; 0: drawn) with Zipf-like masses, and one to three good
    ones with one of 1 to 6 skills; their mass together, the prompt's success rate, is log-normal around a median from
    .2 % to 30 %, and 0 for a share of the prompts (0, 10 or 30 %; never all). ``binary`` 1: rewards are 0 or 1; 0:
    ordinary rewards vary too and a skill is worth .7 to 1.5; -1: drawn. beta is that of .5 to 2 nats, or of .7 times
    what it takes to play nothing but good responses. ``prompts`` 8 to 40 (0: drawn), d = 6 to 24, noise .1, .3 or .5.
    Not a test-bed of the paper's.
    """
    check_count("prompts", prompts, least=0)
    check_count("responses", responses, least=0)
    check_count("binary", binary, least=-1)
    rng = generator("random-table", seed)
    drawn = int(rng.integers(8, 41)), int(np.exp(rng.uniform(np.log(30), np.log(400))))
    x, y = prompts or drawn[0], responses or drawn[1]
    bulk_dim, skills, coin = int(rng.integers(5, 19)), int(rng.integers(1, 7)), int(rng.integers(2))
    zero_one = bool(coin if binary == -1 else binary)
    masses = _masses(x, y, rng)
    good = _good(x, rng)
    base = np.concatenate([masses * (1.0 - good.sum(axis=1, keepdims=True)), good], axis=1)
    features = np.zeros((x, y + good.shape[1], bulk_dim + skills))
    directions = rng.standard_normal((x, y + good.shape[1], bulk_dim))
    features[..., :bulk_dim] = 0.5 * directions / np.linalg.norm(directions, axis=-1, keepdims=True)
    features[np.arange(x), y:, bulk_dim + rng.integers(skills, size=x)] = SKILL
    worth = np.ones(skills) if zero_one else rng.uniform(0.7, 1.5, skills)
    ordinary = np.zeros(bulk_dim) if zero_one else rng.normal(0.0, 0.3 / np.sqrt(bulk_dim), bulk_dim)
    rewards = features @ np.concatenate([ordinary, worth / SKILL])
    rate = good.sum(axis=1)
    able = rate > 0.0
    most = -float(np.mean(np.log(rate[able])))  # nats to the good responses and no further
    kl = min(float(rng.choice([0.5, 1.0, 2.0])), 0.7 * most) * float(np.mean(able))
    beta = beta_for_kl(base, rewards, kl)
    noise_std = float(rng.choice([0.1, 0.3, 0.5]))
    return TabularEnvironment(np.full(x, 1.0 / x), base, features, rewards, beta=beta, noise_std=noise_std)


def _masses(prompts: int, responses: int, rng: np.random.Generator) -> FloatArray:
    """[X, Y] masses of ordinary responses: Zipf's law of an exponent of its own, in random order and uneven."""
    ranks = rng.permuted(np.tile(np.arange(1.0, responses + 1.0), (prompts, 1)), axis=1)
    masses = ranks ** -rng.uniform(0.3, 1.5) * rng.gamma(2.0, 0.5, (prompts, responses))
    return np.asarray(masses / masses.sum(axis=1, keepdims=True))


def _good(prompts: int, rng: np.random.Generator) -> FloatArray:
    """[X, 3] masses of good responses: zero where a prompt has fewer."""
    median, spread = np.exp(rng.uniform(np.log(0.002), np.log(0.3))), rng.uniform(0.2, 1.5)
    rate = np.minimum(median * np.exp(spread * rng.standard_normal(prompts)), 0.9)
    able = rng.random(prompts) >= rng.choice([0.0, 0.1, 0.3])
    able[int(rng.integers(prompts))] = True
    parts = rng.dirichlet(np.ones(3), prompts) * (np.arange(3) < rng.integers(1, 4, (prompts, 1)))
    return np.asarray(parts / parts.sum(axis=1, keepdims=True) * (rate * able)[:, None])
