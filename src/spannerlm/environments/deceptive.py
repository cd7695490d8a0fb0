"""deceptive(p): what is rare and valuable shares a direction with what is common and bad (TESTBEDS)."""

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
from spannerlm.environments.rare_skill import SKILLS
from spannerlm.environments.tabular import TabularEnvironment


def deceptive(p: float = 0.01, *, prompts: int = 32, noise_std: float = 0.5, seed: int = 0) -> TabularEnvironment:
    """deceptive(p): as rare-skill(p), but the rare phi is .6 e_0 + .8 e_{8 + j}, j = x mod 8, theta_0 = -1,
    theta_{8 + j} = 2, and the first bulk response becomes .9 e_0.

    The rare reward is still 1, and bulk labels alone predict -.6 for it. d = 16, beta = 1/(2 ln(1/p)). Raises
    `InputError` unless 0 < p < 1.
    """
    check_share("p", p)
    check_count("prompts", prompts)
    rng = generator("deceptive", seed)
    bulk = bulk_features(prompts, rng)
    bulk[:, 0] = 0.9 * np.eye(BULK_DIM)[0]
    theta = np.concatenate([bulk_theta(rng), np.full(SKILLS, 2.0)])
    theta[0] = -1.0
    axes = np.eye(BULK_DIM + SKILLS)
    rare = 0.6 * axes[0] + 0.8 * axes[BULK_DIM + np.arange(prompts) % SKILLS]
    masses = np.full((prompts, 1), p)
    return with_rare(bulk, rare[:, None], masses, theta, beta=1.0 / (2.0 * np.log(1.0 / p)), noise_std=noise_std)
