"""rare-skill(p): a valuable response of mass p hides among forty ordinary ones (TESTBEDS)."""

from __future__ import annotations

import numpy as np

from spannerlm.environments.tabular import TabularEnvironment

BULK, BULK_DIM, RARE_DIM = 40, 8, 8


def rare_skill(p: float = 0.01, *, prompts: int = 32, noise_std: float = 0.5, seed: int = 0) -> TabularEnvironment:
    """rare-skill(p) with ``prompts`` prompts: 40 bulk responses in the first 8 dimensions and one rare response of
    mass p with phi = e_{8 + (x mod 8)} and reward 1; d = 16, beta = 1/(2 ln(1/p)), C_cov ~ 1/(p (1 + p - p^2))."""
    rng = np.random.default_rng([seed, 1])
    directions = rng.standard_normal((prompts, BULK, BULK_DIM))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    features = np.zeros((prompts, BULK + 1, BULK_DIM + RARE_DIM))
    features[:, :BULK, :BULK_DIM] = 0.5 * directions
    features[np.arange(prompts), BULK, BULK_DIM + np.arange(prompts) % RARE_DIM] = 1.0
    theta = np.concatenate([rng.normal(0.0, 0.3 / np.sqrt(BULK_DIM), BULK_DIM), np.ones(RARE_DIM)])
    base = np.full((prompts, BULK + 1), (1.0 - p) / BULK)
    base[:, BULK] = p
    beta = 1.0 / (2.0 * np.log(1.0 / p))
    rho = np.full(prompts, 1.0 / prompts)
    return TabularEnvironment(rho, base, features, features @ theta, beta=beta, noise_std=noise_std)
