"""rare-skill(p): a valuable response of mass p hides among forty ordinary ones (TESTBEDS)."""

from __future__ import annotations

import numpy as np

from spannerlm.environments.parts import BULK_DIM, bulk_features, bulk_theta, check_count, check_share, with_rare
from spannerlm.environments.tabular import TabularEnvironment
from spannerlm.records import FloatArray

SKILLS = 8
"""Valuable directions; prompt x needs the one of index x mod 8."""


def rare_skill(p: float = 0.01, *, prompts: int = 32, noise_std: float = 0.5, seed: int = 0) -> TabularEnvironment:
    """rare-skill(p) with ``prompts`` prompts: 40 bulk responses in the first 8 dimensions and one rare response of
    mass p with phi = e_{8 + (x mod 8)} and reward 1; d = 16, beta = 1/(2 ln(1/p)), C_cov ~ 1/(p (1 + p - p^2)).

    Raises `InputError` unless 0 < p < 1.
    """
    check_share("p", p)
    check_count("prompts", prompts)
    check_count("seed", seed, least=0)
    rng = np.random.default_rng([seed, 1])  # older than `generator`: published figures rest on this stream
    return hidden_skills(np.full(prompts, p), beta=1.0 / (2.0 * np.log(1.0 / p)), noise_std=noise_std, rng=rng)


def hidden_skills(masses: FloatArray, *, beta: float, noise_std: float, rng: np.random.Generator) -> TabularEnvironment:
    """The environment whose prompt x hides the skill x mod 8, reward 1, at mass ``masses[x]`` [X]."""
    prompts = len(masses)
    bulk = bulk_features(prompts, rng)
    theta = np.concatenate([bulk_theta(rng), np.ones(SKILLS)])
    rare = np.eye(BULK_DIM + SKILLS)[BULK_DIM + np.arange(prompts) % SKILLS][:, None]
    return with_rare(bulk, rare, masses[:, None], theta, beta=beta, noise_std=noise_std)
