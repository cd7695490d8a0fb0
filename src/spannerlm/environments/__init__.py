"""Exact test-beds: environments that declare their optimum, regret and coverage (TESTBEDS)."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
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
from spannerlm.environments.low_variance import low_variance
from spannerlm.environments.max_k_dnf import Terms, max_k_dnf, max_k_dnf_bound, max_k_dnf_terms
from spannerlm.environments.near_orthogonal import near_orthogonal
from spannerlm.environments.power_law import power_law
from spannerlm.environments.random_table import random_table
from spannerlm.environments.rare_skill import rare_skill
from spannerlm.environments.tabular import TabularEnvironment
from spannerlm.environments.tie import tie
from spannerlm.errors import InputError

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
    family = FAMILIES[_known("environment", name, FAMILIES)]
    _check_parameters(name, family, parameters)
    asked = dict(modifiers or {})
    for modifier, given in asked.items():
        function = MODIFIERS[_known("modifiers", modifier, MODIFIERS)]
        if not isinstance(given, Mapping):
            raise InputError(f"modifiers: expected a mapping of parameters for {modifier!r}, got {given!r}")
        _check_parameters(modifier, function, given, skip=1)
    env = family(**parameters)
    for modifier, function in MODIFIERS.items():
        if modifier in asked:
            seeded = "seed" in inspect.signature(function).parameters and "seed" in parameters
            env = function(env, **{**({"seed": parameters["seed"]} if seeded else {}), **asked[modifier]})
    return env


def _known(what: str, name: Any, names: Iterable[str]) -> str:
    """The name, if it is one of ``names``; else `InputError` with all of them and the nearest."""
    known = list(names)
    if name in known:
        return str(name)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f": did you mean {near[0]!r}?" if near else ""
    raise InputError(f"{what}: expected one of {', '.join(known)}, got {name!r}{hint}")


def _check_parameters(owner: str, function: Callable[..., Any], given: Mapping[str, Any], *, skip: int = 0) -> None:
    """`InputError` where ``given`` names what the function does not take, lacks what it needs, or holds no number."""
    parameters = dict(list(inspect.signature(function).parameters.items())[skip:])
    for name in given:
        _known(f"parameters of {owner!r}", name, parameters)
    missing = [n for n, p in parameters.items() if p.default is inspect.Parameter.empty and n not in given]
    if missing:
        raise InputError(f"parameters of {owner!r}: expected {', '.join(missing)}, got {', '.join(given) or 'nothing'}")
    for name, value in given.items():
        default = parameters[name].default
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not number and isinstance(default, (int, float)):
            raise InputError(f"{name} of {owner!r}: expected a number such as {default:g}, got {value!r}")


__all__ = [
    "FAMILIES",
    "MODIFIERS",
    "HeteroscedasticEnvironment",
    "TabularEnvironment",
    "Terms",
    "deceptive",
    "decoys",
    "duplicated",
    "environment",
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
    "random_table",
    "rare_skill",
    "rotated",
    "tie",
]
