"""The countdown corpus: problems that can be solved, each with a short search that a script makes up as it goes."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from spannerlm.bundled.countdown import task
from spannerlm.bundled.countdown.task import Problem

LARGEST = 99
"""Largest value written: with a word per number, each value is a word."""
ATTEMPTS = 3
"""Attempts of a reply, at most; then the last one is answered though it fails."""
INSIGHT = 0.75
"""How often an attempt of the corpus is a solution, if a solution is picked; else it is one of the failures."""
HELD_OUT = 5
"""One problem of so many is held out."""
SHIPPED = (288, 72)
"""Prompts shipped with the model: to explore on, held out."""


@dataclass(frozen=True)
class Attempt:
    """Two steps that use each number once."""

    steps: tuple[str, str]
    """Such as "3 + 7 = 10" and "12 - 10 = 2"."""
    value: int
    expression: str
    """Such as "12 - ( 3 + 7 )"."""

    def text(self, target: int) -> str:
        """The steps and the verdict."""
        return f"{self.steps[0]} {self.steps[1]} {'yes' if self.value == target else 'no'}"


def results(a: int, b: int) -> list[tuple[str, int, int, int]]:
    """(operator, left, right, value) of every step from two numbers whose value is whole and in 1 .. LARGEST."""
    small, large = min(a, b), max(a, b)
    found = [("+", a, b, a + b), ("*", a, b, a * b), ("-", large, small, large - small)]
    if large % small == 0:
        found.append(("/", large, small, large // small))
    return [step for step in found if 0 < step[3] <= LARGEST]


@cache
def attempts(numbers: tuple[int, int, int]) -> tuple[Attempt, ...]:
    """Every pair of steps on three numbers in ascending order; the first step's result comes first where it can."""
    found: dict[tuple[str, str], Attempt] = {}
    for i, j, k in ((0, 1, 2), (0, 2, 1), (1, 2, 0)):
        for first, left, right, inner in results(numbers[i], numbers[j]):
            for second, x, y, value in results(inner, numbers[k]):
                own = f"( {left} {first} {right} )"
                # Where the inner result equals the third number either may stand first; the result then does.
                expression = f"{own} {second} {y}" if x == inner else f"{x} {second} {own}"
                steps = (f"{left} {first} {right} = {inner}", f"{x} {second} {y} = {value}")
                found.setdefault(steps, Attempt(steps, value, expression))
    return tuple(found.values())


@cache
def problems() -> tuple[Problem, ...]:
    """Every problem with a solution: ascending numbers up to 12, repeats allowed, and a target up to 60."""
    triples = itertools.combinations_with_replacement(range(1, task.LARGEST_NUMBER + 1), task.NUMBERS)
    return tuple(
        Problem(numbers, target)
        for numbers in triples
        for target in sorted({a.value for a in attempts(numbers) if a.value <= task.LARGEST_TARGET})
    )


@cache
def split_problems() -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    """(train, held-out) problems: a random fifth is held out, the same in every corpus."""
    every = problems()
    held = np.zeros(len(every), dtype=bool)
    held[np.random.default_rng(0).permutation(len(every))[: len(every) // HELD_OUT]] = True
    return tuple(p for p, h in zip(every, held, strict=True) if not h), tuple(
        p for p, h in zip(every, held, strict=True) if h
    )


def shipped_prompts() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(train, held-out) prompts that come with the model: a random choice from either side of the split."""
    rng = np.random.default_rng(1)
    sides = []
    for side, size in zip(split_problems(), SHIPPED, strict=True):
        sides.append(tuple(side[i].prompt for i in np.sort(rng.choice(len(side), size, replace=False))))
    return sides[0], sides[1]


def reply(problem: Problem, rng: np.random.Generator) -> str:
    """A search of up to ``ATTEMPTS`` attempts, each a solution with probability ``INSIGHT``, and its answer."""
    every = attempts(problem.numbers)  # type: ignore[arg-type]
    solutions = [a for a in every if a.value == problem.target]
    failures = [a for a in every if a.value != problem.target]
    words: list[str] = []
    for _ in range(ATTEMPTS):
        pool = solutions if rng.random() < INSIGHT else failures
        attempt = pool[int(rng.integers(len(pool)))]
        words.append(attempt.text(problem.target))
        if attempt.value == problem.target:
            break
    return " ".join([*words, task.ANSWER, attempt.expression])


def corpus(documents: int, seed: int) -> list[str]:
    """[documents] prompt and reply, one per line; problems come in shuffled rounds, each as often as any other."""
    train = split_problems()[0]
    order, rng = np.random.default_rng(seed).spawn(2)
    rounds = -(-documents // len(train))
    dealt = [train[i] for _ in range(rounds) for i in order.permutation(len(train))][:documents]
    return [f"{problem.prompt} {reply(problem, rng)}" for problem in dealt]


def split(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """(prompts, replies) of documents; a prompt ends at the semicolon."""
    halves = [line.partition(" ; ") for line in lines]
    return [f"{prompt} ;" for prompt, _, _ in halves], [answer for _, _, answer in halves]


def digest(lines: Sequence[str]) -> str:
    """SHA-256 of the corpus as one text file."""
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def vocabulary() -> list[str]:
    """Every word of a prompt or a reply: numbers first, by value, then the others, sorted."""
    return [*map(str, range(1, LARGEST + 1)), *sorted({*"+-*/()=;", "make", "from", "yes", "no", task.ANSWER})]
