"""low-variance: directions of which the base model shows less and less, all of which matter alike (TESTBEDS)."""

from __future__ import annotations

import numpy as np

from spannerlm.environments.parts import check_count, generator
from spannerlm.environments.tabular import TabularEnvironment


def low_variance(
    *, prompts: int = 32, responses: int = 200, dim: int = 16, noise_std: float = 0.5, seed: int = 0
) -> TabularEnvironment:
    """low-variance: uniform pi_ref, phi Gaussian with standard deviation 1/i in dimension i = 1 .. d, norm clipped at
    1; theta a random vector of norm 2, beta = .1."""
    for name, count in (("prompts", prompts), ("responses", responses), ("dim", dim)):
        check_count(name, count)
    rng = generator("low-variance", seed)
    features = rng.standard_normal((prompts, responses, dim)) / np.arange(1, dim + 1)
    features /= np.maximum(1.0, np.linalg.norm(features, axis=-1, keepdims=True))
    theta = rng.standard_normal(dim)
    theta *= 2.0 / np.linalg.norm(theta)
    base = np.full((prompts, responses), 1.0 / responses)
    rho = np.full(prompts, 1.0 / prompts)
    return TabularEnvironment(rho, base, features, features @ theta, beta=0.1, noise_std=noise_std)
