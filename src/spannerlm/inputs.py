"""The user's own prompts with their columns. What is wrong is named with file and line.

Prompts are text. Every file is read whole and refused whole, so that no prompt is ever left out in silence.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spannerlm.dialogue import PLAIN, Form, written
from spannerlm.errors import InputError

LARGEST_TEXT = 16 * 2**20
"""Bytes of one prompt at most: longer than the context of any model, short enough to be handled whole."""
SHOWN = 5
"""Mistakes of a file that are listed; a file with one has often thousands of the same kind."""
TRAINERS = ("completion_ids", "trainer_state", "log_extra", "log_metric")
"""Arguments that TRL's trainers hand over beside texts and columns."""
RESERVED = ("prompts", "completions", "opponents", "replicate", "idempotency_key", *TRAINERS)
"""Arguments of a reward function that no column can be handed over as."""


@dataclass(frozen=True)
class Prompts:
    """Prompts of a file, in its order, with what stands beside them."""

    texts: tuple[str, ...]
    """[X] the prompts; the same text may stand twice, and then counts twice."""
    columns: dict[str, tuple[Any, ...]]
    """Name -> [X] JSON values, None where a row has none; handed to the reward function by name."""
    form: Form | None = None
    """What the texts stand for where the prompts were lists of messages, as TRL has them; None: they were texts."""

    def in_full(self) -> Prompts:
        """The same lists of messages, each text the whole of one."""
        if self.form is None or (self.form.dialogues and self.form.system is None):
            return self
        texts = tuple(written(self.form.messages(text)) for text in self.texts)
        return replace(self, texts=texts, form=Form(dialogues=True))


@dataclass(frozen=True)
class _Row:
    """One record of a file and its place, ``file:line``."""

    place: str
    values: Mapping[str, Any]


def read_prompts(path: Path, column: str = "prompt") -> Prompts:
    """The prompts of a .jsonl, .json, .csv, .parquet or .txt file, or of a directory that `datasets` saved.

    InputError lists what is wrong, with its line.

    Prompts are all texts, or all lists of messages as TRL has them, whose last is the user's. .jsonl: one object per
    line, blank lines skipped. .json: a list of objects. .csv: comma-separated, with a header; all values are text.
    .txt: one prompt per line, blank lines skipped, no further columns. UTF-8 throughout.
    """
    reader = _reader(path)
    try:
        rows = reader(path, column)
    except OSError as error:
        raise InputError(
            f"{path}: expected a file of prompts, could not read it ({error.strerror or error})"
        ) from error
    if not rows:
        raise InputError(f"{path}: expected one prompt at least, got none; the file is empty")
    if not any(column in row.values for row in rows):
        rows = rows[:1]  # once is enough
    problems = [problem for row in rows for problem in _problems(row, column)]
    if problems:
        raise InputError(_listing(path, problems))
    names = dict.fromkeys(name for row in rows for name in row.values if name != column)
    columns = {name: tuple(row.values.get(name) for row in rows) for name in names}
    return _formed(str(path), [row.values[column] for row in rows], columns)


def given_prompts(prompts: Sequence[Any]) -> Prompts:
    """Prompts that were given as Python objects: texts, or lists of messages as in a file. `InputError` for others."""
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str) and (wrong := _wrong_prompt(prompt)):
            raise InputError(f"prompts[{number}]: {wrong}: give texts, or lists of messages")
    return _formed("prompts", prompts, {})


def behind(prompts: Prompts, system: str | None, name: str) -> Form:
    """The form of these prompts behind a system message of the configuration, called ``name`` there; None: none.

    `InputError` where they have another one of their own.
    """
    form = prompts.form or PLAIN
    if system is None:
        return form
    firsts = [form.messages(text)[0] for text in prompts.texts] if form.dialogues else []
    if form.system not in (None, system) or any(first["role"] == "system" for first in firsts):
        raise InputError(f"{name}: expected none, because the prompts have one of their own: leave it out")
    return replace(form, system=system)


def fitted(prompts: Prompts, form: Form) -> tuple[str, ...]:
    """[X] these prompts as texts for a policy that was learned on prompts of this ``form``.

    A text is the user's words. `InputError` for a conversation where the policy knows none, or another system message.
    """
    whole = prompts.in_full()
    texts = []
    for i, text in enumerate(prompts.texts):
        told = [{"role": "user", "content": text}] if whole.form is None else whole.form.messages(whole.texts[i])
        first = told.pop(0)["content"] if told[0]["role"] == "system" else None
        if first is not None and first != form.system and (form.system is not None or not form.dialogues):
            own = "none" if form.system is None else f"{form.system!r:.200}"
            raise InputError(f"prompts[{i}]: expected the run's own system message ({own}), got {first!r:.200}")
        if form.dialogues:
            own_first = [] if first is None or form.system is not None else [{"role": "system", "content": first}]
            texts.append(written([*own_first, *told]))
        elif len(told) > 1:
            raise InputError(
                f"prompts[{i}]: expected one message, the user's, because this policy was learned on such, got a "
                f"conversation of {len(told)}"
            )
        else:
            texts.append(told[0]["content"])
    return tuple(texts)


def _formed(place: str, prompts: Sequence[Any], columns: dict[str, tuple[Any, ...]]) -> Prompts:
    """Prompts that are well in themselves, in the plainest form that holds them all."""
    texts = sum(isinstance(prompt, str) for prompt in prompts)
    if texts == len(prompts):
        return Prompts(tuple(prompts), columns)
    if texts:
        raise InputError(
            f"{place}: expected prompts that are all texts, or all lists of messages, got {texts} texts and "
            f"{len(prompts) - texts} lists; make them alike"
        )
    systems = {prompt[0]["content"] if prompt[0]["role"] == "system" else None for prompt in prompts}
    if len(systems) > 1 or any(len(prompt) > 1 + (prompt[0]["role"] == "system") for prompt in prompts):
        return Prompts(tuple(map(written, prompts)), columns, Form(dialogues=True))
    return Prompts(tuple(prompt[-1]["content"] for prompt in prompts), columns, Form(systems.pop()))


# --- prompts --------------------------------------------------------------------------------------------------------


def _reader(path: Path) -> Callable[[Path, str], list[_Row]]:
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet, ".txt": _txt}
    if not path.exists():
        raise InputError(f"{path}: expected a file of prompts, found none{near(path.name, siblings(path))}")
    if path.is_dir():
        return _saved
    if not path.is_file():
        raise InputError(f"{path}: expected a file of prompts, got a device")
    if path.suffix.lower() not in readers:
        raise InputError(
            f"{path}: expected a file name that ends in {', '.join(readers)}, got "
            f"{path.suffix or 'no ending'!r}{near(path.suffix, readers)}"
        )
    return readers[path.suffix.lower()]


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}:{line}: expected UTF-8 text, got the byte 0x{data[error.start]:02x}; save the file as UTF-8"
        ) from error


def _txt(path: Path, column: str) -> list[_Row]:
    lines = enumerate(_text(path).split("\n"), start=1)
    return [_Row(f"{path}:{i}", {column: line.removesuffix("\r")}) for i, line in lines if line.strip()]


def _jsonl(path: Path, column: str) -> list[_Row]:
    rows, problems = [], []
    for i, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            try:
                rows.append(_Row(f"{path}:{i}", _object(_loads(line), column)))
            except ValueError as error:
                problems.append(f"{path}:{i}: {_why(error)}")
    if problems:
        raise InputError(_listing(path, problems))
    return rows


def _json(path: Path, column: str) -> list[_Row]:
    text = _text(path)
    try:
        data = _loads(text) if text.strip() else []
    except ValueError as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        raise InputError(f"{path}:{line}: {_why(error)}") from error
    if not isinstance(data, list):
        raise InputError(f'{path}: expected a list of objects such as [{{"{column}": "..."}}], got {kind_of(data)}')
    rows, problems = [], []
    for i, item in enumerate(data, start=1):
        try:
            rows.append(_Row(f"{path}: item {i}", _object(item, column)))
        except ValueError as error:
            problems.append(f"{path}: item {i}: {error}")
    if problems:
        raise InputError(_listing(path, problems))
    return rows


def _loads(text: str) -> Any:
    def refuse(name: str) -> Any:
        raise ValueError(f"expected JSON, got {name}, which JSON has no place for; use null")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("expected JSON, got one that is nested too deeply") from error


def _object(value: Any, column: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f'expected an object such as {{"{column}": "..."}}, got {kind_of(value)}')
    return value


def _why(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"expected JSON, but {error.msg[:1].lower()}{error.msg[1:]} at column {error.colno}"
    return str(error)


def _csv(path: Path, _column: str) -> list[_Row]:
    limit = csv.field_size_limit(2 * LARGEST_TEXT)
    try:
        reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
        return _csv_rows(path, reader)
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: expected comma-separated values, but {error}") from error
    finally:
        csv.field_size_limit(limit)


def _csv_rows(path: Path, reader: Any) -> list[_Row]:
    header: list[str] = next(reader, [])
    if twice := [name for name in header if header.count(name) > 1]:
        raise InputError(f"{path}:1: expected each column once in the header, got {twice[0]!r} again")
    rows, problems, line = [], [], reader.line_num + 1
    for cells in reader:
        if cells and len(cells) != len(header):
            problems.append(f"{path}:{line}: expected {len(header)} values, as in the header, got {len(cells)}")
        elif cells:
            rows.append(_Row(f"{path}:{line}", dict(zip(header, cells, strict=True))))
        line = reader.line_num + 1  # a value in quotes may span lines: a record's place is its first
    if problems:
        raise InputError(_listing(path, problems))
    return rows


def _parquet(path: Path, _column: str) -> list[_Row]:
    try:
        rows = pq.ParquetFile(path).read().to_pylist()
    except (pa.ArrowException, ValueError, OverflowError, OSError) as error:
        why = str(error).splitlines() or [type(error).__name__]
        raise InputError(f"{path}: expected a parquet file, but {why[0]}") from error
    return [_Row(f"{path}: row {i}", row) for i, row in enumerate(rows, start=1)]


def _saved(path: Path, _column: str) -> list[_Row]:
    """A directory of ``Dataset.save_to_disk``: Arrow files in the order that its state.json has."""
    if (path / "dataset_dict.json").is_file():
        splits = [entry.name for entry in sorted(path.iterdir()) if (entry / "state.json").is_file()]
        raise InputError(f"{path}: expected one split of a dataset, got {', '.join(splits) or 'none'}: name its folder")
    try:
        state = _loads((path / "state.json").read_text(encoding="utf-8"))
        names = [str(file["filename"]) for file in state["_data_files"]]
        tables = [pa.ipc.open_stream((path / Path(name).name).read_bytes()).read_all() for name in names]
        rows = [row for table in tables for row in table.to_pylist()]
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: expected a file of prompts, or a directory that Dataset.save_to_disk wrote, found one without "
            f"{Path(error.filename).name}"
        ) from error
    except (pa.ArrowException, ValueError, LookupError, TypeError, OverflowError) as error:
        why = str(error).splitlines() or [type(error).__name__]
        raise InputError(f"{path}: expected a directory that Dataset.save_to_disk wrote, but {why[0]}") from error
    return [_Row(f"{path}: row {i}", row) for i, row in enumerate(rows, start=1)]


def _problems(row: _Row, column: str) -> Iterator[str]:
    """What is wrong with one record."""
    if column not in row.values:
        names = ", ".join(row.values) or "none"
        yield f"{row.place}: expected a column {column!r}, got {names}{near(column, row.values)}; set prompt_column"
    for name, value in row.values.items():
        wrong = _wrong_prompt(value) if name == column else _wrong_column(name, value)
        if wrong:
            yield f"{row.place}: {name}: {wrong}"


def _wrong_prompt(value: Any) -> str | None:
    if not isinstance(value, list) or not value or not all(isinstance(i, dict) and "role" in i for i in value):
        return _wrong_text(value)
    roles = [item["role"] for item in value]
    talk = roles[1:] if roles[0] == "system" else roles
    if talk[-1:] != ["user"] or not all(role in ("user", "assistant") for role in talk):
        return (
            "expected messages of the user and the assistant, perhaps behind one of the system, the user's last, got "
            f"the roles {roles}"
        )
    for item in value:
        if more := [name for name, said in item.items() if name not in ("role", "content") and said is not None]:
            return f"expected messages of role and content, got {more[0]!r} beside them; leave it out"
    wrong = [_wrong_text(item.get("content")) for item in value]
    return next((f"content: {why}" for why in wrong if why), None)


def _wrong_text(value: Any) -> str | None:
    if not isinstance(value, str):
        return f"expected text, got {kind_of(value)}"
    if not value.strip():
        return "expected text, got an empty prompt"
    if len(value) > LARGEST_TEXT or len(value.encode("utf-8", "surrogatepass")) > LARGEST_TEXT:
        return f"expected at most {LARGEST_TEXT} bytes, got {len(value)} characters"
    if any("\ud800" <= character <= "\udfff" for character in value):
        return "expected valid Unicode, got half of a surrogate pair"
    return None


def _wrong_column(name: str, value: Any) -> str | None:
    if name in RESERVED:
        return f"expected another name for this column, because {name!r} is an argument of every reward function"
    try:
        plain = _is_json(value)
    except RecursionError:
        return "expected a JSON value, got one that is nested too deeply"
    if not plain:
        return f"expected a JSON value, got {kind_of(value)}; write it as text or leave the column out"
    return None


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_json, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (str, bool, int))


# --- sentences ------------------------------------------------------------------------------------------------------


def _listing(path: Path, problems: list[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return f"{path}: {len(problems)} bad entries\n  " + "\n  ".join(problems[:SHOWN]) + more


def near(name: str, choices: Collection[str]) -> str:
    """What was perhaps meant, as the end of a message; empty where nothing is near."""
    found = difflib.get_close_matches(name, list(choices), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def siblings(path: Path) -> list[str]:
    """Names beside a file."""
    try:
        return [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return []


def kind_of(value: Any) -> str:
    """The value and its type, short enough for a message."""
    if value is None:
        return "nothing (null)"
    shown = repr(value)
    return f"{shown if len(shown) <= 60 else shown[:57] + '...'} ({type(value).__name__})"
