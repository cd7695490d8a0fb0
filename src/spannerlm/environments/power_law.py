"""power-law(p): eight skills, from common to rare (TESTBEDS)."""

from __future__ import annotations

import numpy as np

from spannerlm.environments.parts import check_count, check_share, generator
from spannerlm.environments.rare_skill import SKILLS, hidden_skills
from spannerlm.environments.tabular import TabularEnvironment


def power_law(p: float = 0.01, *, prompts: int = 32, noise_std: float = 0.5, seed: int = 0) -> TabularEnvironment:
    """power-law(p): as rare-skill(p), but skill j = x mod 8 has mass p^((j + 1)/8), from p^(1/8) down to p.

    d = 16, beta = 1/(2 ln(1/p)); with 8 or more prompts C_cov is that of the rarest skill, ~ 1/(p (1 + p - p^2)).
    Raises `InputError` unless 0 < p < 1.
    """
    check_share("p", p)
    check_count("prompts", prompts)
    masses = p ** ((np.arange(prompts) % SKILLS + 1.0) / SKILLS)
    beta = 1.0 / (2.0 * np.log(1.0 / p))
    return hidden_skills(masses, beta=beta, noise_std=noise_std, rng=generator("power-law", seed))
