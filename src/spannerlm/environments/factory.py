"""An environment from names and parameters that may come from JSON: what the factories of all kinds share."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any, TypeVar

from spannerlm.errors import InputError

Environment = TypeVar("Environment")


def built(
    kind: str,
    name: str,
    families: Mapping[str, Callable[..., Environment]],
    modifiers: Mapping[str, Callable[..., Environment]],
    asked: Mapping[str, Mapping[str, Any]],
    parameters: Mapping[str, Any],
) -> Environment:
    """``families[name]`` of these parameters, with the modifiers ``asked`` for, in the order of ``modifiers``.

    A modifier that takes a seed and gets none uses the family's, so that another seed is another environment
    throughout. ``kind`` is what a family is called in a message. `InputError` names the known families, modifiers or
    parameters, or what is wrong with a value.
    """
    family = families[known(kind, name, families)]
    check_parameters(name, family, parameters)
    for modifier, given in asked.items():
        function = modifiers[known("modifiers", modifier, modifiers)]
        if not isinstance(given, Mapping):
            raise InputError(f"modifiers: expected a mapping of parameters for {modifier!r}, got {given!r}")
        check_parameters(modifier, function, given, skip=1)
    env = family(**parameters)
    for modifier, function in modifiers.items():
        if modifier in asked:
            seeded = "seed" in inspect.signature(function).parameters and "seed" in parameters
            env = function(env, **{**({"seed": parameters["seed"]} if seeded else {}), **asked[modifier]})
    return env


def known(what: str, name: Any, names: Iterable[str]) -> str:
    """The name, if it is one of ``names``; else `InputError` with all of them and the nearest."""
    choices = list(names)
    if name in choices:
        return str(name)
    near = difflib.get_close_matches(str(name), choices, n=1)
    hint = f": did you mean {near[0]!r}?" if near else ""
    wanted = f"one of {', '.join(choices)}" if choices else "none"
    raise InputError(f"{what}: expected {wanted}, got {name!r}{hint}")


def check_parameters(owner: str, function: Callable[..., Any], given: Mapping[str, Any], *, skip: int = 0) -> None:
    """`InputError` where ``given`` names what the function does not take, lacks what it needs, or holds no number."""
    parameters = dict(list(inspect.signature(function).parameters.items())[skip:])
    for name in given:
        known(f"parameters of {owner!r}", name, parameters)
    missing = [n for n, p in parameters.items() if p.default is inspect.Parameter.empty and n not in given]
    if missing:
        raise InputError(f"parameters of {owner!r}: expected {', '.join(missing)}, got {', '.join(given) or 'nothing'}")
    for name, value in given.items():
        default = parameters[name].default
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not number and isinstance(default, (int, float)):
            raise InputError(f"{name} of {owner!r}: expected a number such as {default:g}, got {value!r}")
