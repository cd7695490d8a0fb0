"""decoys: one valuable rare response per prompt among 47 rare ones that are not worth a label (TESTBEDS)."""

from __future__ import annotations

import numpy as np

from spannerlm.environments.parts import (
    BULK_DIM,
    bulk_features,
    bulk_theta,
    check_count,
    check_share,
    generator,
    with_rare,
)
from spannerlm.environments.tabular import TabularEnvironment

GOOD = 2
"""Valuable directions; prompt x needs the one of index x mod 2."""


def decoys(
    mass: float = 0.02, *, rare: int = 48, prompts: int = 16, noise_std: float = 1.0, seed: int = 0
) -> TabularEnvironment:
    """decoys: ``rare`` rare responses per prompt of equal shares of ``mass``, phi = e_{8 + j}, j below 2 ``rare``.

    The first is j = x mod 2, theta 1; the others are ``rare`` - 1 distinct ones of the 2 ``rare`` - 2 decoys, drawn
    per prompt, theta uniform in [-1, .5]. d = 8 + 2 ``rare``, beta = 1/(2 ln(``rare``/``mass``)). Raises `InputError`
    unless 0 < mass < 1 and rare >= 2.
    """
    check_share("mass", mass)
    check_count("rare", rare, least=2)
    check_count("prompts", prompts)
    rng = generator("decoys", seed)
    bulk = bulk_features(prompts, rng)
    theta = np.concatenate([bulk_theta(rng), np.ones(GOOD), rng.uniform(-1.0, 0.5, 2 * rare - GOOD)])
    found = [np.append(x % GOOD, GOOD + rng.permutation(2 * rare - GOOD)[: rare - 1]) for x in range(prompts)]
    features = np.eye(BULK_DIM + 2 * rare)[BULK_DIM + np.array(found)]
    masses = np.full((prompts, rare), mass / rare)
    return with_rare(bulk, features, masses, theta, beta=1.0 / (2.0 * np.log(rare / mass)), noise_std=noise_std)
