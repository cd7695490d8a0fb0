"""Files of queries and answers: what is written comes back, what is wrong is named with its line."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from hypothesis import given as forall
from hypothesis import settings
from hypothesis import strategies as st

from spannerlm.errors import InputError
from spannerlm.labelfiles import FORMULA, Row, answers, format_of, given, neutral, written

ODD = ["", "a\0b", "\ud800 alone", "\U0001f600 \u05e9\u05dc\u05d5\u05dd", 'say "no", now\r\nthen', "=1+1", "-3", "'=x"]


def lines(*rows: dict[str, Any]) -> bytes:
    return written(rows, "jsonl")


def test_answers_skips_and_failures_are_read() -> None:
    data = lines({"id": "a", "value": -0.5, "prompt": "p"}, {"id": "b", "skip": True}, {"id": "c", "failed": "broke"})
    assert answers(data, "jsonl", "x") == [Row(1, "a", -0.5), Row(2, "b", None), Row(3, "c", None, "broke")]
    said = lines(
        {"id": "a", "status": "skip"}, {"id": "b", "status": "failed", "reason": "broke"}, {"id": "c", "value": 1}
    )
    assert answers(said, "jsonl", "x") == [Row(1, "a", None), Row(2, "b", None, "broke"), Row(3, "c", 1.0)]
    table = b"id,value,skip,failed\r\na,-0.5,,\r\nb,,true,\r\nc,,,broke\r\n"
    assert answers(table, "csv", "x") == [Row(2, "a", -0.5), Row(3, "b", None), Row(4, "c", None, "broke")]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"id": "a", "value": None}, "fill it in"),
        ({"id": "a"}, "fill it in"),
        ({"id": "a", "value": True}, "expected a number, got True"),
        ({"id": "a", "value": "1"}, "expected a number, got '1'"),
        ({"id": "a", "value": 10**400}, "finite"),
        ({"id": 7, "value": 1.0}, "expected an id"),
        ({"value": 1.0}, "expected an id"),
        ({"id": "a", "value": 1.0, "skip": True}, "expected none"),
        ({"id": "a", "skip": "yes"}, "true or false"),
        ({"id": "a", "failed": 3}, "a reason"),
        ({"id": "a", "skip": True, "failed": "broke"}, "got both"),
        ({"id": "a", "status": "skip", "value": 1.0}, "expected none"),
        ({"id": "a", "status": "failed"}, "why it failed"),
        ({"id": "a", "status": "lost"}, "status: expected label"),
    ],
)
def test_a_wrong_row_rejects_the_file_and_is_named(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=f"line 2: .*{problem}.*Nothing of the file"):
        answers(lines({"id": "ok", "value": 1.0}, row), "jsonl", "labels.jsonl")


def test_infinities_duplicates_and_other_files_are_named() -> None:
    for word in ("NaN", "Infinity", "-Infinity"):
        with pytest.raises(InputError, match="line 1: value: expected a finite number"):
            answers(f'{{"id": "a", "value": {word}}}'.encode(), "jsonl", "x")
    with pytest.raises(InputError, match="id 'a' was on line 1 already"):
        answers(lines({"id": "a", "value": 1.0}, {"id": "a", "value": 1.0}), "jsonl", "x")
    many = lines(*({"id": str(i)} for i in range(9)))
    with pytest.raises(InputError, match=r"line 5: .*; and 4 more"):
        answers(many, "jsonl", "x")
    for data, form, problem in (
        (b"", "jsonl", "at least one row"),
        (b"id,value\r\n", "csv", "at least one row"),
        (b"\xff\xfe", "jsonl", "UTF-8"),
        (b"[1]", "jsonl", "line 1: expected a JSON object"),
        (b"{", "jsonl", "line 1: expected a JSON object"),
        (b"[" * 100_000, "jsonl", "line 1: expected a JSON object"),
        (b"id,value\r\na\r\n", "csv", "as many cells"),
        (b"id,value\r\na,1,2\r\n", "csv", "as many cells"),
        (b'id,value\r\n"a,1\r\n', "csv", "expected CSV"),
        (b"id,value\r\na,one\r\n", "csv", "line 2: value: expected a number"),
        (b"id,value\r\na,1_0\r\n", "csv", "line 2: value: expected a number"),
        ("id,value\r\na,\u0663\r\n".encode(), "csv", "line 2: value: expected a number"),
        (b'id,value\r\na,"0,5"\r\n', "csv", "line 2: value: expected a number"),
        (b"id,value\r\na,nan\r\n", "csv", "line 2: value: expected a number"),
        (b"id,value\r\na,1e999\r\n", "csv", "line 2: value: expected a finite number"),
        (b"id,value,value\r\na,1,2\r\n", "csv", "line 1: expected each column once, got 'value' twice"),
        (b'\n{"id": "a", "value": 1, "value": 2}', "jsonl", "line 2: expected a JSON object, got 'value' twice"),
    ):
        with pytest.raises(InputError, match=problem):
            answers(data, form, "x")
    with pytest.raises(InputError, match=r"\.jsonl or \.csv"):
        format_of("labels.xlsx")


@pytest.mark.parametrize("text", ODD)
def test_json_lines_keep_every_text(text: str) -> None:
    data = lines({"prompt": text, "response": text, "opponent": None, "value": 1.0})
    assert json.loads(data)["prompt"] == text
    (row,) = given(data, "jsonl", "x")
    assert (row.prompt, row.response, row.opponent) == (text, text, None)


@pytest.mark.parametrize("text", ODD)
def test_cells_start_no_formula_and_come_back(text: str) -> None:
    data = written([{"prompt": text, "response": "r", "value": -2.5}], "csv")
    rows = list(csv.reader(io.StringIO(data.decode("utf-8", "surrogatepass"), newline="")))
    assert not rows[1][0].startswith(FORMULA)
    assert rows[1][2] == "-2.5"
    (row,) = given(data, "csv", "x")
    assert (row.prompt, row.value) == (text, -2.5)


TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=8)
START = st.sampled_from(["", "'", "''", *FORMULA, "'=", "''-", "\ufeff"])


@settings(max_examples=2000, deadline=None)
@forall(st.lists(st.tuples(START, TEXT, st.floats(allow_nan=False, allow_infinity=False)), min_size=1, max_size=4))
def test_what_is_written_is_read_back_from_either_file(parts: list[tuple[str, str, float]]) -> None:
    rows = [{"prompt": start + text, "response": text, "value": value} for start, text, value in parts]
    for form in ("jsonl", "csv"):
        found = given(written(rows, form), form, "x")  # type: ignore[arg-type]
        assert [{"prompt": row.prompt, "response": row.response, "value": row.value} for row in found] == rows


def test_an_empty_opponent_is_one_in_json_lines_and_none_in_a_table() -> None:
    row = {"prompt": "p", "response": "r", "opponent": "", "value": 1.0}
    assert given(lines(row), "jsonl", "x")[0].opponent == ""
    assert given(written([row], "csv"), "csv", "x")[0].opponent is None
    assert answers(b"\xef\xbb\xbf" + lines({"id": "a", "value": 1.0}), "jsonl", "x") == [Row(1, "a", 1.0)]


@settings(max_examples=4000, deadline=None)
@forall(st.binary(max_size=200), st.sampled_from(["jsonl", "csv"]))
def test_any_bytes_are_rows_or_a_named_error(data: bytes, form: Any) -> None:
    for read in (answers, given):
        try:
            outcome = str(len(read(data, form, "name")))
        except InputError as error:
            outcome = str(error)
        assert outcome.startswith("name: ") or int(outcome) > 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2),
)


@settings(max_examples=2000, deadline=None)
@forall(
    st.lists(
        st.dictionaries(st.sampled_from(["id", "value", "skip", "failed", "status", "reason", "x"]), JSON, max_size=5),
        max_size=4,
    )
)
def test_any_objects_are_answers_or_a_named_error(rows: list[dict[str, Any]]) -> None:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    found: list[Row] = []
    problem = ""
    try:
        found = answers(data, "jsonl", "name")
    except InputError as error:
        problem = str(error)
    assert ("line" in problem) == bool(rows and not found)
    for row, raw in zip(found, rows if found else [], strict=True):
        assert row.id == raw["id"]
        assert row.value is None or row.value == raw["value"]


def test_a_neutral_cell_is_text_or_a_number() -> None:
    assert (neutral(None), neutral(-1.5), neutral("+a"), neutral({"a": [1]})) == ("", "-1.5", "'+a", '{"a": [1]}')
