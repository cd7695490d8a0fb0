"""Exact test-beds: environments that declare their optimum, regret and coverage (TESTBEDS)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from spannerlm.environments.compose import (
    MODIFIERS,
    HeteroscedasticEnvironment,
    duplicated,
    heavy_noise,
    heteroscedastic,
    irrelevant_directions,
    misspecified,
    prompt_intercepts,
    rotated,
)
from spannerlm.environments.deceptive import deceptive
from spannerlm.environments.decoys import decoys
from spannerlm.environments.factory import built
from spannerlm.environments.low_variance import low_variance
from spannerlm.environments.max_k_dnf import Terms, max_k_dnf, max_k_dnf_bound, max_k_dnf_terms
from spannerlm.environments.near_orthogonal import near_orthogonal
from spannerlm.environments.power_law import power_law
from spannerlm.environments.random_table import random_table
from spannerlm.environments.rare_skill import rare_skill
from spannerlm.environments.tabular import TabularEnvironment
from spannerlm.environments.tie import tie
from spannerlm.environments.token import TokenEnvironment
from spannerlm.environments.token_compose import TOKEN_MODIFIERS, blocks, random_features
from spannerlm.environments.token_families import (
    TOKEN_FAMILIES,
    additive_lock,
    delayed_lock,
    embedded_lock,
    gated_lock,
    random_token_mdp,
    token_environment,
)

FAMILIES: dict[str, Callable[..., TabularEnvironment]] = {
    "rare-skill": rare_skill,
    "power-law": power_law,
    "deceptive": deceptive,
    "decoys": decoys,
    "low-variance": low_variance,
    "near-orthogonal": near_orthogonal,
    "max-k-dnf": max_k_dnf,
    "tie": tie,
    "random-table": random_table,
}
"""Name -> function that makes the environment from its parameters."""


def environment(
    name: str, /, *, modifiers: Mapping[str, Mapping[str, Any]] | None = None, **parameters: Any
) -> TabularEnvironment:
    """The environment of that family, with these parameters and modifiers; all of them may come from JSON.

    ``modifiers`` maps names of `MODIFIERS` to their parameters. They are applied in the order of that table, whatever
    the order given. A modifier that takes a seed and gets none uses the family's, so that another seed is another
    environment throughout. ``environment("rare-skill", p=0.01, seed=3, modifiers={"prompt-intercepts": {"std": 1.0}})``

    `InputError` names the known families, modifiers or parameters, or what is wrong with a value.
    """
    return built("environment", name, FAMILIES, MODIFIERS, modifiers or {}, parameters)


__all__ = [
    "FAMILIES",
    "MODIFIERS",
    "TOKEN_FAMILIES",
    "TOKEN_MODIFIERS",
    "HeteroscedasticEnvironment",
    "TabularEnvironment",
    "Terms",
    "TokenEnvironment",
    "additive_lock",
    "blocks",
    "deceptive",
    "decoys",
    "delayed_lock",
    "duplicated",
    "embedded_lock",
    "environment",
    "gated_lock",
    "heavy_noise",
    "heteroscedastic",
    "irrelevant_directions",
    "low_variance",
    "max_k_dnf",
    "max_k_dnf_bound",
    "max_k_dnf_terms",
    "misspecified",
    "near_orthogonal",
    "power_law",
    "prompt_intercepts",
    "random_features",
    "random_table",
    "random_token_mdp",
    "rare_skill",
    "rotated",
    "tie",
    "token_environment",
]
