"""The user's own files: prompts with their columns, rewards, comparisons. What is wrong is named with file and line.

Prompts are text. Every file is read whole and refused whole, so that no prompt is ever left out in silence.
"""

from __future__ import annotations

import csv
import difflib
import functools
import importlib.util
import inspect
import io
import json
import math
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from spannerlm.errors import InputError, RewardError
from spannerlm.rewards import CompareFunction, RewardFunction

LARGEST_TEXT = 16 * 2**20
"""Bytes of one prompt at most: longer than the context of any model, short enough to be handled whole."""
SHOWN = 5
"""Mistakes of a file that are listed; a file with one has often thousands of the same kind."""
RESERVED = ("prompts", "completions", "opponents", "replicate", "idempotency_key")
"""Arguments of a reward function that no column can be handed over as."""


@dataclass(frozen=True)
class Prompts:
    """Prompts of a file, in its order, with what stands beside them."""

    texts: tuple[str, ...]
    """[X] the prompts; the same text may stand twice, and then counts twice."""
    columns: dict[str, tuple[Any, ...]]
    """Name -> [X] JSON values, None where a row has none; handed to the reward function by name."""


@dataclass(frozen=True)
class _Row:
    """One record of a file and its place, ``file:line``."""

    place: str
    values: Mapping[str, Any]


def read_prompts(path: Path, column: str = "prompt") -> Prompts:
    """The prompts of a .jsonl, .json, .csv, .parquet or .txt file; InputError lists its bad lines.

    .jsonl: one object per line, blank lines skipped. .json: a list of objects. .csv: comma-separated, with a header;
    all values are text. .txt: one prompt per line, blank lines skipped, no further columns. UTF-8 throughout.
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
    return Prompts(tuple(row.values[column] for row in rows), columns)


def load_reward(reference: str, columns: Collection[str] | None = None) -> RewardFunction:
    """The function of ``path/to/file.py:function``, to be called as ``reward(prompts, completions, **columns)``.

    The file is run, as ``import`` would. Arguments are handed over by name, as TRL does it, so their order in the
    function does not matter. With ``columns``, arguments that no column of these supplies are refused at once.
    Raises InputError (no such file or function, wrong signature) or RewardError (the file raised, and where).
    """
    function = _load("reward", reference, columns)

    @functools.wraps(function)
    def reward(prompts: Any, completions: Any, **others: Any) -> Any:
        return function(prompts=prompts, completions=completions, **others)

    return reward


def load_compare(reference: str, columns: Collection[str] | None = None) -> CompareFunction:
    """The same for ``compare(prompts, completions, opponents, **columns)``; a column named ``opponents`` is refused."""
    if columns is not None and "opponents" in columns:
        raise InputError("compare: expected another name for the column 'opponents', an argument of every comparison")
    function = _load("compare", reference, columns)

    @functools.wraps(function)
    def compare(prompts: Any, completions: Any, opponents: Any, **others: Any) -> Any:
        return function(prompts=prompts, completions=completions, opponents=opponents, **others)

    return compare


# --- prompts --------------------------------------------------------------------------------------------------------


def _reader(path: Path) -> Callable[[Path, str], list[_Row]]:
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet, ".txt": _txt}
    if not path.exists():
        raise InputError(f"{path}: expected a file of prompts, found none{_near(path.name, _siblings(path))}")
    if not path.is_file():
        raise InputError(f"{path}: expected a file of prompts, got a directory or a device")
    if path.suffix.lower() not in readers:
        raise InputError(
            f"{path}: expected a file name that ends in {', '.join(readers)}, got "
            f"{path.suffix or 'no ending'!r}{_near(path.suffix, readers)}"
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
        raise InputError(f'{path}: expected a list of objects such as [{{"{column}": "..."}}], got {_kind(data)}')
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
        raise ValueError(f'expected an object such as {{"{column}": "..."}}, got {_kind(value)}')
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


def _problems(row: _Row, column: str) -> Iterator[str]:
    """What is wrong with one record."""
    if column not in row.values:
        names = ", ".join(row.values) or "none"
        yield f"{row.place}: expected a column {column!r}, got {names}{_near(column, row.values)}; set prompt_column"
    for name, value in row.values.items():
        wrong = _wrong_prompt(value) if name == column else _wrong_column(name, value)
        if wrong:
            yield f"{row.place}: {name}: {wrong}"


def _wrong_prompt(value: Any) -> str | None:
    if isinstance(value, list) and value and all(isinstance(item, dict) and "role" in item for item in value):
        return (
            f"expected text, got a conversation of {len(value)} messages; give the user's message as text, and what "
            "the system says as generation.system_prompt (the model's chat template is applied by itself)"
        )
    if not isinstance(value, str):
        return f"expected text, got {_kind(value)}"
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
        return f"expected a JSON value, got {_kind(value)}; write it as text or leave the column out"
    return None


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_json, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (str, bool, int))


# --- rewards and comparisons ----------------------------------------------------------------------------------------
TEXTS = {"reward": ("prompts", "completions"), "compare": ("prompts", "completions", "opponents")}
"""Key of the configuration -> the arguments that its function gets whatever the columns are."""


def _load(key: str, reference: str, columns: Collection[str] | None) -> Any:
    """The checked function of a reference."""
    file, _, name = reference.rpartition(":")
    if not file or not name:
        raise InputError(f"{key}: expected path/to/file.py:function, got {reference!r}")
    path = Path(file).expanduser().absolute()
    if not path.is_file():
        raise InputError(f"{key}: {path}: expected a Python file, found none{_near(path.name, _siblings(path))}")
    function = _function(key, _import(key, path), path, name)
    _check_signature(key, function, f"{path}: {name}", columns)
    return function


def _import(key: str, path: Path) -> ModuleType:
    """The file as a module of a name of its own; its folder is searched last for what it imports."""
    name = f"_spannerlm_{key}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{key}: {path}: expected the name of a Python file, ending in .py")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as dataclasses and typing expect it
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise RewardError(_where(key, error, path)) from error
    return module


def _where(key: str, error: BaseException, path: Path) -> str:
    """What the user's file raised, with the line of it."""
    if isinstance(error, SyntaxError) and error.filename:
        place, code = f"{error.filename}:{error.lineno}", error.text or ""
        return f"{key}: {place}: expected Python, but {error.msg}{_quoted(code)}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    place, code = (f"{path}:{frames[-1].lineno}", frames[-1].line or "") if frames else (str(path), "")
    return f"{key}: {place}: the file raised {type(error).__name__}: {error}{_quoted(code)}"


def _quoted(code: str) -> str:
    return f"\n    {code.strip()}" if code.strip() else ""


def _function(key: str, module: ModuleType, path: Path, name: str) -> Any:
    if not hasattr(module, name):
        functions = ((own, value) for own, value in vars(module).items() if inspect.isfunction(value))
        names = [own for own, value in functions if value.__module__ == module.__name__ and own[0] != "_"]
        found = f"; it has {', '.join(names)}" if names else ""
        raise InputError(f"{key}: {path}: expected a function {name!r}, found none{found}{_near(name, names)}")
    function = getattr(module, name)
    if not callable(function) or inspect.isclass(function):
        raise InputError(f"{key}: {path}: expected {name!r} to be a function, got {_kind(function)}")
    return function


def _check_signature(key: str, function: Any, place: str, columns: Collection[str] | None) -> None:
    """InputError unless the function takes its texts by name, and the columns have what else it needs."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError) as error:
        raise InputError(f"{key}: {place}: expected a Python function, but it has no signature ({error})") from error
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = {name: p for name, p in signature.parameters.items() if p.kind in kinds}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    required = any(p.kind is p.POSITIONAL_ONLY and p.default is p.empty for p in signature.parameters.values())
    if required or not all(name in named or open_ended for name in TEXTS[key]):
        raise InputError(
            f"{key}: {place}: expected a function ({', '.join(TEXTS[key])}, **columns) -> list of numbers, "
            f"got the arguments {signature}"
        )
    for name, parameter in named.items():
        needed = parameter.default is parameter.empty and name not in TEXTS[key]
        if needed and columns is not None and name not in columns:
            have = ", ".join(columns) or "no columns"
            raise InputError(
                f"{key}: {place}: expected the argument {name!r} to be a column of the prompts, which have "
                f"{have}{_near(name, columns)}; give it a default, or add the column"
            )


# --- sentences ------------------------------------------------------------------------------------------------------


def _listing(path: Path, problems: list[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return f"{path}: {len(problems)} bad entries\n  " + "\n  ".join(problems[:SHOWN]) + more


def _near(name: str, choices: Collection[str]) -> str:
    near = difflib.get_close_matches(name, list(choices), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _siblings(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return []


def _kind(value: Any) -> str:
    """The value and its type, short enough for a message."""
    if value is None:
        return "nothing (null)"
    shown = repr(value)
    return f"{shown if len(shown) <= 60 else shown[:57] + '...'} ({type(value).__name__})"
