"""Queries that leave for a spreadsheet, a lab or a queue, and the answers that come back: JSON lines or CSV.

A file is taken whole or not at all: every mistake is named with its line (RELIABILITY, faults 11, 16 and 21).
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from spannerlm.errors import InputError

Format = Literal["jsonl", "csv"]

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters of a cell that a spreadsheet would take for a formula."""
LIMIT = 200 * 2**20
"""Bytes of a file at most."""
CELL = 16 * 2**20
"""Characters of one CSV cell at most: the ledger's own limit on a text."""
SHOWN = 5
"""Mistakes that are listed."""


@dataclass(frozen=True)
class Row:
    """One answer to a query."""

    line: int
    id: str
    value: float | None
    """None where it was skipped or failed."""
    failed: str | None = None
    """Why the source broke; None where it did not."""


@dataclass(frozen=True)
class GivenRow:
    """One label that somebody had already."""

    line: int
    prompt: str
    response: str
    opponent: str | None
    value: float


def format_of(name: str) -> Format:
    """The format that a file's name says. `InputError` for another suffix."""
    suffix = name.lower().rpartition(".")[2]
    if suffix in ("jsonl", "ndjson"):
        return "jsonl"
    if suffix == "csv":
        return "csv"
    raise InputError(f"{name}: expected a file that ends in .jsonl or .csv")


def written(rows: Sequence[Mapping[str, Any]], form: Format) -> bytes:
    """The rows as a file. Of a CSV all texts but the id's are neutralised: ``'`` goes before what starts a formula.

    JSON keeps every text as it is, lone surrogates included.
    """
    if form == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=True, allow_nan=False) + "\n" for row in rows).encode("ascii")
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(names)
    for row in rows:
        writer.writerow([neutral(row.get(name)) for name in names])
    return text.getvalue().encode("utf-8", "surrogatepass")


def neutral(value: Any) -> str:
    """A CSV cell that no spreadsheet executes; a number is left alone."""
    if value is None:
        return ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return repr(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=True)
    return "'" + text if text.startswith(FORMULA) else text


def answers(data: bytes, form: Format, name: str) -> list[Row]:
    """The answers in a file: ``id`` and ``value`` each, or ``skip``: true, or ``failed``: a reason.

    Raises `InputError` naming every mistake with its line: nothing of the file is to be used then.
    """
    found, problems, seen = [], [], dict[str, int]()
    for line, row in _rows(data, form, name):
        try:
            answer = _answer(line, row)
        except ValueError as error:
            problems.append(f"line {line}: {error}")
            continue
        if answer.id in seen:
            problems.append(f"line {line}: id {answer.id!r} was on line {seen[answer.id]} already")
        seen.setdefault(answer.id, line)
        found.append(answer)
    _raise(name, problems)
    return found


def given(data: bytes, form: Format, name: str) -> list[GivenRow]:
    """Labels that were there already: ``prompt``, ``response``, ``value`` each, and ``opponent`` of a comparison."""
    found, problems = [], []
    for line, row in _rows(data, form, name):
        try:
            texts = [_text(row, key) for key in ("prompt", "response")]
            opponent = None if row.get("opponent") in (None, "") else _text(row, "opponent")
            found.append(GivenRow(line, texts[0], texts[1], opponent, _value(row.get("value"))))
        except ValueError as error:
            problems.append(f"line {line}: {error}")
    _raise(name, problems)
    return found


def _raise(name: str, problems: Sequence[str]) -> None:
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise InputError(f"{name}: {'; '.join(problems[:SHOWN])}{more}. Nothing of the file was recorded")


def _rows(data: bytes, form: Format, name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if len(data) > LIMIT:
        raise InputError(f"{name}: expected at most {LIMIT:,} bytes, got {len(data):,}: split the file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: expected UTF-8 text, got a byte that is none at {error.start}") from None
    rows = list(_json_lines(text, name) if form == "jsonl" else _csv_lines(text, name))
    if not rows:
        raise InputError(f"{name}: expected at least one row, found none")
    return iter(rows)


def _json_lines(text: str, name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(f"{name}: line {number}: expected a JSON object, got {line[:40]!r}") from None
        if not isinstance(row, dict):
            raise InputError(f"{name}: line {number}: expected a JSON object, got {line[:40]!r}")
        yield number, row


def _csv_lines(text: str, name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    limit = csv.field_size_limit(CELL)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        for row in reader:
            if None in row or None in row.values():
                raise InputError(f"{name}: line {reader.line_num}: expected as many cells as the first line has")
            yield reader.line_num, {key: _cell(key, cell) for key, cell in row.items()}
    except csv.Error as error:
        raise InputError(f"{name}: expected CSV, got a line that is none ({error})") from None
    finally:
        csv.field_size_limit(limit)


def _cell(name: str, cell: str) -> Any:
    """What `neutral` made of a text, undone; of the columns that hold no text, their value."""
    if name == "value":
        try:
            return float(cell) if cell.strip() else None
        except ValueError:
            return cell
    if name == "skip":
        return {"": None, "true": True, "false": False, "1": True, "0": False}.get(cell.strip().lower(), cell)
    return cell[1:] if cell[:1] == "'" and cell[1:].startswith(FORMULA) else cell


def _answer(line: int, row: Mapping[str, Any]) -> Row:
    name, skip, failed = row.get("id"), row.get("skip"), row.get("failed")
    if not isinstance(name, str) or not name:
        raise ValueError(f"expected an id, got {name!r:.40}")
    if skip not in (None, True, False):
        raise ValueError(f"skip: expected true or false, got {skip!r:.40}")
    if failed not in (None, "") and not isinstance(failed, str):
        raise ValueError(f"failed: expected a reason, got {failed!r:.40}")
    if skip or failed:
        if row.get("value") is not None:
            raise ValueError(f"value: expected none where it was skipped or failed, got {row['value']!r:.40}")
        return Row(line, name, None, failed or None)
    return Row(line, name, _value(row.get("value")))


def _value(value: Any) -> float:
    if value is None:
        raise ValueError("value: expected a number, got none: fill it in, or say skip: true")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"value: expected a number, got {value!r:.40}")
    try:
        plain = float(value)
    except OverflowError:
        plain = math.inf
    if not math.isfinite(plain):
        raise ValueError(f"value: expected a finite number, got {value!r:.40}")
    return plain


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{key}: expected text, got {value!r:.40}")
    return value
