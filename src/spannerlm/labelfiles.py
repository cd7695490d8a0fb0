"""Queries that leave for a spreadsheet, a lab or a queue, and the answers that come back: JSON lines or CSV.

A file is taken whole or not at all: every mistake is named with its line (RELIABILITY, faults 11, 16 and 21).
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from spannerlm.errors import InputError

Format = Literal["jsonl", "csv"]

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters of a cell that a spreadsheet would take for a formula."""
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
"""A number as a cell has it."""
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
    """The rows as a file. Of a CSV all texts are neutralised (`neutral`); an id, hex digits, stays as it is.

    Both keep every text, lone surrogates included: what is read back is what was written.
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
    """A CSV cell that no spreadsheet executes: ``'`` goes before what starts a formula, or would look as if it had one.

    A number is left alone.
    """
    if value is None:
        return ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return repr(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=True)
    return "'" + text if text.lstrip("'").startswith(FORMULA) else text


def answers(data: bytes, form: Format, name: str) -> list[Row]:
    """The answers in a file: ``id`` and ``value`` each, or ``skip``: true, or ``failed``: a reason.

    ``status``: ``skip`` or ``failed`` (with a ``reason``) say the same, as files of the labelling page do. Raises
    `InputError` naming every mistake with its line: nothing of the file is to be used then.
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
    raise_problems(name, problems)
    return found


def given(data: bytes, form: Format, name: str) -> list[GivenRow]:
    """Labels that were there already: ``prompt``, ``response``, ``value`` each, and ``opponent`` of a comparison."""
    found, problems = [], []
    for line, row in _rows(data, form, name):
        try:
            texts = [_text(row, key) for key in ("prompt", "response")]
            none = (None, "") if form == "csv" else (None,)
            opponent = None if row.get("opponent") in none else _text(row, "opponent")
            found.append(GivenRow(line, texts[0], texts[1], opponent, _value(row.get("value"))))
        except ValueError as error:
            problems.append(f"line {line}: {error}")
    raise_problems(name, problems)
    return found


def raise_problems(name: str, problems: Sequence[str]) -> None:
    """`InputError` with the first few of what is wrong in a file, if anything is."""
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise InputError(f"{name}: {'; '.join(problems[:SHOWN])}{more}. Nothing of the file was recorded")


def _rows(data: bytes, form: Format, name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if len(data) > LIMIT:
        raise InputError(f"{name}: expected at most {LIMIT:,} bytes, got {len(data):,}: split the file")
    try:
        text = data.decode("utf-8", "surrogatepass").removeprefix("\ufeff")
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
            row = json.loads(line, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            twice = f", {error}" if isinstance(error, _Twice) else f", got {line[:40]!r}"
            raise InputError(f"{name}: line {number}: expected a JSON object{twice}") from None
        if not isinstance(row, dict):
            raise InputError(f"{name}: line {number}: expected a JSON object, got {line[:40]!r}")
        yield number, row


class _Twice(ValueError):
    """A key that an object has twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these keys and values, each key once."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Twice(f"got {key[:40]!r} twice in it")
        found[key] = value
    return found


def _csv_lines(text: str, name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    limit = csv.field_size_limit(CELL)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        names = list(reader.fieldnames or ())
        twice = next((key for key in names if names.count(key) > 1), None)
        if twice is not None:
            raise InputError(f"{name}: line 1: expected each column once, got {twice[:40]!r} twice")
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
        plain = cell.strip()
        return None if not plain else float(plain) if NUMBER.fullmatch(plain) else cell
    if name == "skip":
        return {"": None, "true": True, "false": False, "1": True, "0": False}.get(cell.strip().lower(), cell)
    return cell[1:] if cell[:1] == "'" and cell.lstrip("'").startswith(FORMULA) else cell


def _answer(line: int, row: Mapping[str, Any]) -> Row:
    name, skip, failed = row.get("id"), row.get("skip"), row.get("failed")
    if not isinstance(name, str) or not name:
        raise ValueError(f"expected an id, got {name!r:.40}")
    if skip not in (None, True, False):
        raise ValueError(f"skip: expected true or false, got {skip!r:.40}")
    if failed not in (None, "") and not isinstance(failed, str):
        raise ValueError(f"failed: expected a reason, got {failed!r:.40}")
    status, reason = row.get("status"), row.get("reason")
    if status not in (None, "", "label", "skip", "failed"):
        raise ValueError(f"status: expected label, skip or failed, got {status!r:.40}")
    if status == "failed" and not failed:
        if not isinstance(reason, str) or not reason:
            raise ValueError(f"reason: expected why it failed, got {reason!r:.40}")
        failed = reason
    skip = skip or status == "skip"
    if skip and failed:
        raise ValueError("expected skip or failed, got both")
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
