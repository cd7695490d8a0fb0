"""The table of explorers and how one is found in it."""

from __future__ import annotations

import pytest

from spannerlm.errors import InputError
from spannerlm.explorers import EXPLORERS, STEP_EXPLORERS, AdaptiveSpannerSampling, Passive, explorer_by_name


def test_the_rule_that_is_the_default_and_the_published_one_have_their_names() -> None:
    assert {"directed", "spanner-sampling", "passive", "random-singles"} <= set(EXPLORERS)


@pytest.mark.parametrize("name", {**EXPLORERS, **STEP_EXPLORERS})
def test_explorers_are_found_by_the_name_they_bear(name: str) -> None:
    explorer = explorer_by_name(name)
    assert explorer.name == name
    assert explorer == {**EXPLORERS, **STEP_EXPLORERS}[name]()


def test_an_instance_is_itself_and_settings_are_passed_on() -> None:
    passive = Passive(pool=3)
    assert explorer_by_name(passive) is passive
    assert explorer_by_name("passive", {"pool": 3}) == passive
    assert explorer_by_name("spanner-sampling", {"nu": 1.0}) == AdaptiveSpannerSampling(nu=1.0)


def test_what_is_unknown_is_named_beside_what_is_known() -> None:
    known = ", ".join(sorted({**EXPLORERS, **STEP_EXPLORERS}))
    with pytest.raises(InputError, match=rf"^explorer: expected one of {known}, got 'thompson2'$"):
        explorer_by_name("thompson2")
    with pytest.raises(InputError, match="pole"):
        explorer_by_name("passive", {"pole": 3})
    with pytest.raises(InputError, match="pole"):
        explorer_by_name("spanner-sampling", {"pole": 3})
