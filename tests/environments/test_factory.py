"""`built`: names and parameters to an environment of any kind, and what it says of wrong ones."""

from __future__ import annotations

from typing import Any

import pytest

from spannerlm.environments.factory import built
from spannerlm.errors import InputError


def word(size: int, letter: str = "a", *, seed: int = 0) -> str:
    return f"{letter * size}{seed}"


def doubled(text: str) -> str:
    return text + text


def tailed(text: str, tail: str, *, seed: int = 0) -> str:
    return f"{text}-{tail}{seed}"


def build(name: str = "word", asked: Any = None, **parameters: Any) -> str:
    return built("text", name, {"word": word}, {"doubled": doubled, "tailed": tailed}, asked or {}, parameters)


def test_modifiers_come_in_the_order_of_their_table_and_follow_the_seed() -> None:
    assert build(size=2) == "aa0"
    assert build(asked={"tailed": {"tail": "x"}, "doubled": {}}, size=1, letter="b") == "b0b0-x0"
    assert build(asked={"tailed": {"tail": "x"}}, size=1, seed=4) == "a4-x4"
    assert build(asked={"tailed": {"tail": "x", "seed": 7}}, size=1, seed=4) == "a4-x7"


@pytest.mark.parametrize(
    ("name", "asked", "parameters", "says"),
    [
        ("wort", {}, {"size": 1}, "text: expected one of word, got 'wort': did you mean 'word'"),
        ("zzz", {}, {"size": 1}, "text: expected one of word, got 'zzz'$"),
        ("word", {}, {}, "parameters of 'word': expected size, got nothing"),
        ("word", {}, {"letter": "b"}, "parameters of 'word': expected size, got letter"),
        ("word", {}, {"size": 1, "sise": 2}, "parameters of 'word': expected one of size, letter, seed, got 'sise'"),
        ("word", {}, {"size": 1, "seed": "2"}, "seed of 'word': expected a number such as 0, got '2'"),
        ("word", {}, {"size": 1, "seed": True}, "seed of 'word': expected a number such as 0, got True"),
        ("word", {"tail": {}}, {"size": 1}, "modifiers: expected one of doubled, tailed, got 'tail'"),
        ("word", {"tailed": None}, {"size": 1}, "expected a mapping of parameters for 'tailed', got None"),
        ("word", {"tailed": {}}, {"size": 1}, "parameters of 'tailed': expected tail, got nothing"),
        ("word", {"doubled": {"text": "x"}}, {"size": 1}, "parameters of 'doubled': expected none, got 'text'"),
    ],
)
def test_what_is_wrong_is_named(name: str, asked: Any, parameters: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        build(name, asked, **parameters)
