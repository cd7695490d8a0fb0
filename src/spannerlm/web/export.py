"""What was rated, for elsewhere: answers, skips apart from them, preference pairs (RELIABILITY, faults 16 and 21)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spannerlm.questions import Answer


def rows(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """One row per answer with a value, in the order in which they were asked."""
    return [_row(answer) | {"value": answer.value} for answer in answers if answer.status == "label"]


def skips(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """One row per query that was skipped or failed: never a reward."""
    return [_row(answer) | {"status": answer.status} for answer in answers if answer.status in ("skip", "failed")]


def pairs(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Preference pairs as trainers take them: prompt, chosen, rejected; ties are none."""
    found = []
    for answer in answers:
        query, value = answer.query, answer.value
        if answer.status != "label" or query.opponent is None or value is None or value == 0.5:
            continue
        better, worse = (query.response, query.opponent) if value > 0.5 else (query.opponent, query.response)
        found.append({"prompt": query.prompt, "chosen": better, "rejected": worse, "rater": query.worker})
    return found


def _row(answer: Answer) -> dict[str, Any]:
    query = answer.query
    row: dict[str, Any] = {"id": query.id, "rater": query.worker, "prompt": query.prompt, "response": query.response}
    return row | ({"opponent": query.opponent} if query.opponent is not None else {}) | dict(query.columns)
