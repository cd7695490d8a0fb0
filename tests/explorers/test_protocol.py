"""Every explorer has what the protocol names, with its parameters, and says what each does."""

from __future__ import annotations

import inspect
from typing import Any

import laws
import pytest

from spannerlm.explorers import Explorer
from spannerlm.explorers.learner import Learner

METHODS = [name for name, value in vars(Explorer).items() if inspect.isfunction(value) and not name.startswith("_")]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", laws.explorers())
def test_methods_have_the_protocols_parameters(name: str, method: str) -> None:
    found: Any = getattr(laws.explorers()[name], method)
    expected = list(inspect.signature(getattr(Explorer, method)).parameters.values())[1:]
    got = list(inspect.signature(found).parameters.values())
    assert [(p.name, p.kind) for p in got] == [(p.name, p.kind) for p in expected]
    assert inspect.getdoc(found)


def test_the_protocol_is_the_three_functions_and_three_views() -> None:
    assert METHODS == ["init", "decide", "absorb", "policy", "learner", "progress"]


@pytest.mark.parametrize("name", laws.explorers())
def test_explorers_are_equal_where_their_settings_are(name: str) -> None:
    first, second = laws.explorers()[name], laws.explorers()[name]
    assert first == second
    env = laws.environments()["tie"]
    assert isinstance(first.learner(first.init(laws.spec_of(env))), Learner)
