"""Verifiers: rewards that compare a response with a column of its prompt: 1.0 where it is right, else 0.0; free."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, ClassVar

from spannerlm.errors import InputError
from spannerlm.rewards import Answer
from spannerlm.sources.process import Killable

NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?")
"""A decimal number, perhaps with commas between thousands."""


@dataclass(frozen=True)
class ExactMatch:
    """Right where the response is the column's text, or one of its texts where the column holds lists."""

    column: str = "answer"
    strip: bool = True
    """Whether white space around both counts for nothing."""
    ignore_case: bool = False
    pure: ClassVar[bool] = True

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]
    ) -> list[float | None]:
        """[k] 1.0 or 0.0; None where the column is null. `InputError` where there is no such column."""
        wanted = _column(columns, self.column, len(prompts))
        return [self._one(text, right) for text, right in zip(completions, wanted, strict=True)]

    def _one(self, text: str, right: Any) -> float | None:
        if right is None:
            return None
        options = right if isinstance(right, (list, tuple)) else [right]
        return float(self._plain(text) in {self._plain(str(option)) for option in options})

    def _plain(self, text: str) -> str:
        text = text.strip() if self.strip else text
        return text.casefold() if self.ignore_case else text


@dataclass(frozen=True)
class RegexMatch:
    """Right where a regular expression is found in the response; with a group, where the group is the column's text.

    Some patterns take time exponential in the length of the text: run those in a `Killable`.
    """

    pattern: str
    column: str | None = None
    """Column with which the first group is compared; None: that the pattern is found is enough."""
    last: bool = True
    """Which match counts where there are several: the last, or the first."""
    pure: ClassVar[bool] = True

    def __post_init__(self) -> None:
        try:
            groups = re.compile(self.pattern).groups
        except re.error as error:
            raise InputError(f"pattern: expected a regular expression, got {self.pattern!r}: {error}") from error
        if self.column is not None and not groups:
            raise InputError(f"pattern: expected a group to compare with {self.column!r}, got none: put it in (...)")

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]
    ) -> list[float | None]:
        """[k] 1.0 or 0.0; None where the column is null. `InputError` where there is no such column."""
        if self.column is None:
            return [float(re.search(self.pattern, text) is not None) for text in completions]
        wanted = _column(columns, self.column, len(prompts))
        return [self._one(text, right) for text, right in zip(completions, wanted, strict=True)]

    def _one(self, text: str, right: Any) -> float | None:
        if right is None:
            return None
        found = list(re.finditer(self.pattern, text))
        if not found:
            return 0.0
        group = found[-1 if self.last else 0].group(1)
        return float(group is not None and group.strip() == str(right).strip())


@dataclass(frozen=True)
class NumericMatch:
    """Right where the last number of the response is the column's, up to a tolerance: absolute, or relative to it."""

    column: str = "answer"
    tolerance: float = 0.0
    relative: float = 0.0
    pure: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("tolerance", "relative"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value < math.inf:
                raise InputError(f"{name}: expected a number of at least 0, got {value!r}")

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]
    ) -> list[float | None]:
        """[k] 1.0 or 0.0; None where the column is null. `InputError` where it is missing, or holds no number."""
        wanted = [self._wanted(value) for value in _column(columns, self.column, len(prompts))]
        return [
            None if right is None else self._one(text, right) for text, right in zip(completions, wanted, strict=True)
        ]

    def _wanted(self, value: Any) -> Decimal | None:
        if value is None:
            return None
        number = _decimal(str(value))
        if isinstance(value, bool) or number is None:
            raise InputError(f"column {self.column!r}: expected a number, got {value!r}")
        return number

    def _one(self, text: str, right: Decimal) -> float:
        numbers = [number for match in NUMBER.finditer(text) if (number := _decimal(match.group())) is not None]
        if not numbers:
            return 0.0
        allowed = max(Decimal(str(self.tolerance)), Decimal(str(self.relative)) * abs(right))
        return float(abs(numbers[-1] - right) <= allowed)


@dataclass(frozen=True)
class MathMatch:
    """Right where the response's mathematics equals the column's, as `math-verify` sees it, in a killable process.

    Needs the package ``math-verify``, `InputError` where it is not installed. What takes too long, or kills the
    checker, is recorded as failed: to check it again would end the same.
    """

    column: str = "answer"
    timeout_s: float = 10.0
    pure: ClassVar[bool] = True
    checker: Killable = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise InputError("math-verify: expected the package to be installed, found none: pip install math-verify")
        checker = f"{Path(__file__).with_name('mathematics.py')}:verified"
        object.__setattr__(self, "checker", Killable(checker, timeout_s=self.timeout_s, by_item=True, pure=True))

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]) -> list[Answer]:
        """[k] 1.0 or 0.0; None where the column is null or holds no mathematics that can be read."""
        return self.checker(prompts, completions, answer=_column(columns, self.column, len(prompts)))


def _column(columns: dict[str, Sequence[Any]], name: str, expected: int) -> Sequence[Any]:
    """[k] the column of this name; `InputError` where there is none."""
    if name not in columns:
        have = ", ".join(columns) or "none"
        raise InputError(f"column {name!r}: expected it beside the prompts, got {have}: add it, or name another")
    if len(columns[name]) != expected:
        raise InputError(f"column {name!r}: expected {expected} values, one per prompt, got {len(columns[name])}")
    return columns[name]


def _decimal(text: str) -> Decimal | None:
    """The number that a text is, exactly; None where it is none."""
    try:
        number = Decimal(text.strip().replace(",", ""))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None
