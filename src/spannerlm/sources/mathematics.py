"""What `MathMatch` runs in its worker: a call of `math-verify`. Imports nothing of the package."""

from __future__ import annotations

import importlib
from typing import Any


def verified(completions: list[str], answer: list[Any]) -> list[float | None]:
    """[k] 1.0 where the completion's mathematics equals the answer's, else 0.0; None where the answer has none."""
    library = importlib.import_module("math_verify")
    values: list[float | None] = []
    for text, right in zip(completions, answer, strict=True):
        # Its own time limits rest on signals; the process is killed from outside instead.
        gold = [] if right is None else library.parse(f"${right}$", parsing_timeout=None)
        found = library.parse(text, parsing_timeout=None)
        values.append(float(library.verify(gold, found, timeout_seconds=None)) if gold else None)
    return values
