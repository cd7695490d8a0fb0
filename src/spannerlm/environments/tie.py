"""tie: nothing is rare and everything is close; exploration must cost nothing here (TESTBEDS)."""

from __future__ import annotations

import numpy as np

from spannerlm.environments.parts import check_count
from spannerlm.environments.tabular import TabularEnvironment


def tie(
    *, prompts: int = 32, responses: int = 40, dim: int = 16, noise_std: float = 0.5, seed: int = 0
) -> TabularEnvironment:
    """tie: random unit features, uniform pi_ref, theta random of norm 2, beta = 1, C_cov about 4."""
    for name, count in (("prompts", prompts), ("responses", responses), ("dim", dim)):
        check_count(name, count)
    check_count("seed", seed, least=0)
    rng = np.random.default_rng([seed, 2])  # older than `generator`: published figures rest on this stream
    features = rng.standard_normal((prompts, responses, dim))
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    theta = rng.standard_normal(dim)
    theta *= 2.0 / np.linalg.norm(theta)
    base = np.full((prompts, responses), 1.0 / responses)
    rho = np.full(prompts, 1.0 / prompts)
    return TabularEnvironment(rho, base, features, features @ theta, beta=1.0, noise_std=noise_std)
