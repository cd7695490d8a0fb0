"""Verifiers against hand-made tables, and a slow independent rewrite for numbers."""

from __future__ import annotations

import importlib.util
import random
from fractions import Fraction
from typing import Any

import pytest

from spannerlm.errors import InputError
from spannerlm.rewards import ask_reward, is_pure
from spannerlm.sources.verifiers import ExactMatch, MathMatch, NumericMatch, RegexMatch


def judged(verifier: Any, response: str, answer: Any, **columns: Any) -> Any:
    return ask_reward(verifier, ["p"], [response], {"answer": [answer], **columns})[0]


@pytest.mark.parametrize(
    ("verifier", "response", "answer", "value"),
    [
        (ExactMatch(), " Paris\n", "Paris", 1.0),
        (ExactMatch(), "paris", "Paris", 0.0),
        (ExactMatch(ignore_case=True), "STRASSE", "straße", 1.0),
        (ExactMatch(strip=False), " Paris", "Paris", 0.0),
        (ExactMatch(), "Rome", ["Paris", "Rome"], 1.0),
        (ExactMatch(), "", [], 0.0),
        (ExactMatch(), "7", 7, 1.0),
        (ExactMatch(), "x", None, None),
        (RegexMatch(r"\bcat\b"), "the cat sat", "?", 1.0),
        (RegexMatch(r"\bcat\b"), "concatenate", "?", 0.0),
        (RegexMatch(r"####\s*(\S+)", "answer"), "#### 3 no #### 4", "4", 1.0),
        (RegexMatch(r"####\s*(\S+)", "answer", last=False), "#### 3 no #### 4", "4", 0.0),
        (RegexMatch(r"####\s*(\S+)", "answer"), "4", "4", 0.0),
        (RegexMatch(r"a(b)?", "answer"), "a", "None", 0.0),
        (RegexMatch(r"####\s*(\S+)", "answer"), "#### 4", None, None),
        (NumericMatch(), "it is 1,234.50 euros", "1234.5", 1.0),
        (NumericMatch(), "between 3 and 4.", 4, 1.0),
        (NumericMatch(), "3, 4", 4, 1.0),
        (NumericMatch(), "3 of 4", 3, 0.0),
        (NumericMatch(), "-2e3", -2000, 1.0),
        (NumericMatch(), "x = .5", 0.5, 1.0),
        (NumericMatch(), "none", 0, 0.0),
        (NumericMatch(tolerance=0.01), "3.14", 3.15, 1.0),
        (NumericMatch(tolerance=0.01), "3.14", 3.1500001, 0.0),
        (NumericMatch(relative=0.01), "-99", -100, 1.0),
        (NumericMatch(relative=0.01), "98.9", 100, 0.0),
        (NumericMatch(), "0.1", 0.1, 1.0),
        (NumericMatch(), "4", None, None),
    ],
)
def test_verdicts(verifier: Any, response: str, answer: Any, value: float | None) -> None:
    assert judged(verifier, response, answer) == value
    assert is_pure(verifier)


def test_numbers_are_compared_exactly() -> None:
    """500 random decimals at, just inside and just outside the tolerance, in rational arithmetic."""
    rng = random.Random(0)
    for _ in range(500):
        digits = rng.randint(0, 12)
        right, tolerance = (f"{rng.randint(-(10**6), 10**6)}e-{digits}" for _ in range(2))
        tolerance = tolerance.lstrip("-")
        for off in (0, 1, -1):
            number = Fraction(right) + Fraction(tolerance) + Fraction(off, 10 ** (digits + 1))
            text = f"{number.numerator * 10**14 // number.denominator}e-14"
            assert Fraction(text) == number
            wanted = float(abs(number - Fraction(right)) <= Fraction(tolerance))
            assert judged(NumericMatch(tolerance=float(tolerance)), f"= {text}", right) == wanted


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: RegexMatch("("), "pattern: expected a regular expression, got '\\('"),
        (lambda: RegexMatch("a", "answer"), "pattern: expected a group to compare with 'answer'"),
        (lambda: NumericMatch(tolerance=-1.0), "tolerance: expected a number of at least 0, got -1.0"),
        (lambda: NumericMatch(relative=float("nan")), "relative"),
        (
            lambda: ExactMatch("right")(["p"], ["a"], answer=["a"]),
            "column 'right': expected it beside the prompts, got",
        ),
        (lambda: ExactMatch()(["p"], ["a"], answer=[]), "column 'answer': expected 1 values"),
        (lambda: NumericMatch()(["p"], ["1"], answer=["one"]), "column 'answer': expected a number, got 'one'"),
        (lambda: NumericMatch()(["p"], ["1"], answer=[True]), "column 'answer': expected a number, got True"),
    ],
)
def test_what_is_wrong_is_named(make: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()


def test_math_verify_is_asked_for_by_name_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="math-verify: expected the package to be installed"):
        MathMatch()


def test_mathematics_is_compared_as_mathematics() -> None:
    pytest.importorskip("math_verify")
    verifier = MathMatch(timeout_s=60.0)
    responses = [r"so $\frac{1}{2}$", "the answer is 7", "no idea", r"$\frac{", "$0.5$"]
    answers = ["0.5", "8", "y", "1", None]
    assert ask_reward(verifier, ["p"] * 5, responses, {"answer": answers}) == [1.0, 0.0, 0.0, 0.0, None]
    verifier.checker.close()
