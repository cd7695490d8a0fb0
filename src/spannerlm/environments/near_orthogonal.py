"""near-orthogonal(C): the lower bound's family; one of C responses is worth playing (THEORY 2, TESTBEDS)."""

from __future__ import annotations

import numpy as np

from spannerlm.environments.parts import check_count, generator
from spannerlm.environments.tabular import TabularEnvironment


def near_orthogonal(c: int = 1024, *, dim: int = 16, noise_std: float = 0.5, seed: int = 0) -> TabularEnvironment:
    """near-orthogonal(C): one prompt, ``c`` responses with random unit features, uniform pi_ref.

    theta* = phi(y*) for a response y* drawn uniformly, beta = .2/ln C: pi* concentrates on y*, so C_cov is near C.
    y* is the response of largest reward, 1. Raises `InputError` unless c >= 2.
    """
    check_count("c", c, least=2)
    check_count("dim", dim)
    rng = generator("near-orthogonal", seed)
    features = rng.standard_normal((1, c, dim))
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    theta = features[0, rng.integers(c)]
    base = np.full((1, c), 1.0 / c)
    return TabularEnvironment([1.0], base, features, features @ theta, beta=0.2 / np.log(c), noise_std=noise_std)
