"""What countdown is about: three numbers, a target, and a reward for an expression that is right (TESTBEDS)."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from spannerlm.errors import InputError

PROMPT = "make {target} from {numbers} ;"
LARGEST_NUMBER = 12
LARGEST_TARGET = 60
NUMBERS = 3

ANSWER = "answer"
"""The word before the final expression."""
NOISE_STD = 0.3
MAX_NEW_TOKENS = 48
"""The longest reply of the corpus has 42 tokens with its end; the rest is room for what the model makes up."""
LONGEST_EXPRESSION = 24
"""Tokens of an expression that are read at most: any that uses three numbers once needs nine, without idle brackets."""

OPERATORS: Mapping[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
TOKEN = re.compile(r"[1-9][0-9]{0,3}|[-+*/()]")
PROBLEM = re.compile(r"make ([1-9]\d{0,3}) from ((?:[1-9]\d{0,3} )+);")


@dataclass(frozen=True)
class Problem:
    """Numbers to use, each exactly once, and the value to reach."""

    numbers: tuple[int, ...]
    target: int

    @property
    def prompt(self) -> str:
        """The problem as the model reads it."""
        return PROMPT.format(target=self.target, numbers=" ".join(map(str, self.numbers)))


def problem_of(prompt: str) -> Problem:
    """The problem that a prompt poses."""
    found = PROBLEM.fullmatch(" ".join(prompt.split()))
    if found is None:
        raise InputError(
            f"countdown prompt: expected one such as 'make 24 from 2 3 4 ;', got {prompt!r}: use the bundled prompts, "
            "or bring your own reward along with your own prompts"
        )
    return Problem(tuple(map(int, found[2].split())), int(found[1]))


def answer_of(completion: str) -> list[str] | None:
    """The tokens after the last "answer"; None where there is no such word."""
    words = completion.split()
    if ANSWER not in words:
        return None
    return words[len(words) - words[::-1].index(ANSWER) :]


def value_of(tokens: Sequence[str]) -> Fraction | None:
    """The exact value of an expression in whole numbers, + - * / and brackets; None where it has none."""
    if len(tokens) > LONGEST_EXPRESSION or not all(TOKEN.fullmatch(token) for token in tokens):
        return None
    try:
        return _value(ast.parse(" ".join(tokens), mode="eval").body)
    except (SyntaxError, ZeroDivisionError):
        return None


def _value(node: ast.expr) -> Fraction:
    """The exact value; SyntaxError for what Python knows and this grammar does not: signs, calls."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return Fraction(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    raise SyntaxError(ast.dump(node))


def correct(prompt: str, completion: str) -> bool:
    """Whether the final expression uses exactly the numbers given, each once, and equals the target."""
    problem, answer = problem_of(prompt), answer_of(completion)
    if answer is None or sorted(t for t in answer if t.isdecimal()) != sorted(map(str, problem.numbers)):
        return False
    return value_of(answer) == problem.target


@dataclass(frozen=True)
class TrueReward:
    """The mean reward of a reply: 1 where its final expression is correct, else 0; how it was found does not count."""

    pure: ClassVar[bool] = True
    """It may be called again at no cost."""

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:  # noqa: ARG002
        """[k] mean rewards; columns are ignored. Free and pure: it is not a label until noise is added."""
        if len(prompts) != len(completions):
            raise InputError(f"expected one prompt per completion; got {len(prompts)} and {len(completions)}")
        return [float(correct(prompt, completion)) for prompt, completion in zip(prompts, completions, strict=True)]
