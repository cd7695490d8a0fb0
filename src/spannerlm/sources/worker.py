"""The process in which `Killable` runs a function: one JSON line in, one out. A program, imported by no module.

It imports nothing but the standard library, so that it starts in an instant after its predecessor was killed; values
are checked by whoever reads them.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

STANDS_FOR = {"Failed": ("reason", "charged"), "Later": ("seconds", "reason"), "Unknown": ("reason", "raw")}
"""Records that a function may return in place of a number, with their fields."""


def loaded(reference: str) -> Callable[..., Any]:
    """The function of ``path/to/file.py:function`` or ``module:function``."""
    place, _, name = reference.rpartition(":")
    if not place.endswith(".py"):
        module = importlib.import_module(place)
    else:
        sys.path.append(str(Path(place).absolute().parent))
        spec = importlib.util.spec_from_file_location("_spannerlm_killable", place)
        assert spec is not None  # the name ends in .py
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module.__name__] = module  # as dataclasses and typing expect it
        spec.loader.exec_module(module)
    function = getattr(module, name)
    if not callable(function):
        raise TypeError(f"{name} is no function")
    return function  # type: ignore[no-any-return]


def arguments(
    function: Callable[..., Any], texts: dict[str, list[str]], columns: dict[str, list[Any]]
) -> tuple[list[Any], dict[str, Any]]:
    """Positional and named arguments, as `spannerlm.rewards` hands them to a function."""
    parameters = inspect.signature(function).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {name: column for name, column in columns.items() if open_ended or name in parameters}
    places = [parameters.get(name) for name in texts if name != "prompts"]
    if any(place is None or place.kind is place.POSITIONAL_ONLY for place in places):
        return list(texts.values()), named
    return [], {**named, **{name: text for name, text in texts.items() if open_ended or name in parameters}}


def called(function: Callable[..., Any], texts: dict[str, list[str]], columns: dict[str, list[Any]]) -> dict[str, Any]:
    """What the function returned or raised, as the answer to send."""
    try:
        positional, named = arguments(function, texts, columns)
        values = function(*positional, **named)
        if inspect.isawaitable(values):
            values = asyncio.run(waited(values))
        if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
            return {"strange": repr(values)}
        return {"values": [plain(value) for value in values]}
    except (Exception, SystemExit) as error:
        return {"raised": f"{type(error).__name__}: {error}"}


async def waited(values: Any) -> Any:
    """What an awaitable comes to."""
    return await values


def plain(value: Any) -> Any:
    """The value as JSON holds it; what is neither a number, None nor a record is handed on as its text."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    kind = type(value).__name__
    if kind == "Decimal":
        value = float(value)
    if value is None or type(value) in (int, float):
        return value
    if kind in STANDS_FOR:
        fields = [getattr(value, name) for name in STANDS_FOR[kind]]
        return {kind: [*fields[:-1], fields[-1].hex()] if kind == "Unknown" else fields}
    return {"strange": f"{value!r} ({kind})"}


def leave_with(parent: int) -> None:
    """End this process soon after the one that started it, however that ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> None:
    """Answer until standard input ends. What the function prints goes to standard error."""
    reference, parent, *path = sys.argv[1:]
    threading.Thread(target=leave_with, args=[int(parent)], daemon=True).start()
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    sys.path += [entry for entry in path if entry not in sys.path]

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        function = loaded(reference)
    except (Exception, SystemExit) as error:
        answer({"unusable": f"{type(error).__name__}: {error}"})
        return
    answer({"ready": True})
    for line in os.fdopen(os.dup(0), encoding="ascii"):
        asked = json.loads(line)
        answer(called(function, asked["texts"], asked["columns"]))


if __name__ == "__main__":
    main()
