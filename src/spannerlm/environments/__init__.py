"""Exact test-beds: environments that declare their optimum, regret and coverage."""

from __future__ import annotations

from spannerlm.environments.rare_skill import rare_skill
from spannerlm.environments.tabular import TabularEnvironment
from spannerlm.environments.tie import tie

FAMILIES = {"rare-skill": rare_skill, "tie": tie}
"""Name -> function that makes the environment from its parameters."""

__all__ = ["FAMILIES", "TabularEnvironment", "rare_skill", "tie"]
