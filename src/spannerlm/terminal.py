"""What every command owes the terminal: one message and an exit status, clean standard output, and a kind Ctrl-C."""

from __future__ import annotations

import errno
import json
import math
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from spannerlm.errors import ConfigError, InputError, ModelError, RewardError, SpannerError
from spannerlm.live import LiveView, stripped
from spannerlm.progress import Progress

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where there is no room for a file."""


@contextmanager
def boundary(as_json: bool) -> Iterator[None]:
    """Turn what a user can cause into one message and an exit status; all else is a bug and keeps its traceback."""
    try:
        yield
    except KeyboardInterrupt as stop:
        _fail(stop, str(stop) or "stopped", 130, as_json)
    except SpannerError as error:
        _fail(error, f"Error: {error}", 2 if isinstance(error, ConfigError) else 1, as_json)
    except BrokenPipeError:  # whoever read standard output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise typer.Exit(1) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        hint = "; make room, nothing is lost and `spannerlm resume` goes on" if error.errno in FULL else ""
        _fail(error, f"Error: {where}{error.strerror or error}{hint}", 1, as_json)
    except MemoryError as error:
        _fail(error, "Error: out of memory; lower generation.batch_size or max_prompts", 1, as_json)


@contextmanager
def kept(directory: Path) -> Iterator[None]:
    """Add to an error that interrupts a run that the run can go on; the ledger's own errors say what to do."""
    try:
        yield
    except (InputError, ModelError, RewardError) as error:
        if (directory / "run.db").exists():
            error.add_note(f"what was bought is kept; once that is mended, `{_resume(directory)}` goes on")
        raise


def _fail(error: BaseException, message: str, status: int, as_json: bool) -> NoReturn:
    message = stripped("\n".join([message, *getattr(error, "__notes__", ())]))
    typer.echo(message, err=True)
    if as_json:
        text = message.removeprefix("Error: ")
        typer.echo(json.dumps({"error": {"type": type(error).__name__, "message": text}}))
    raise typer.Exit(status) from None


@contextmanager
def reserved_stdout(as_json: bool) -> Iterator[Console]:
    """A console on standard output. With ``--json`` all else that is written there, at any level, goes to stderr."""
    if not as_json:
        yield Console(highlight=False, soft_wrap=False)
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with open(kept, "w", encoding="utf-8", closefd=False) as file, redirect_stdout(sys.stderr):
            yield Console(file=file)
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def print_json(console: Console, value: Any) -> None:
    """Write the one JSON document."""
    console.file.write(json.dumps(_plain(value), indent=1, allow_nan=False) + "\n")


def print_lines(console: Console, lines: Sequence[str]) -> None:
    """Write lines as they are, escape codes stripped."""
    for line in lines:
        console.print(Text(stripped(line)), soft_wrap=True)


def _plain(value: Any) -> Any:
    """The value as JSON holds it: tuples as lists, an undefined or infinite number as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Interrupts:
    """Ctrl-C: the first ends the run once the request at hand is recorded, the second ends the process at once.

    Nothing is lost either way: whatever was acknowledged is on disk. Before the first draw there is nothing to wait
    for, and the first ends it at once. An observer: hands each record on to the view.
    """

    def __init__(self, directory: Path, view: LiveView) -> None:
        self._directory, self._view = directory, view
        self._begun = self._stopping = False

    def __enter__(self) -> Callable[[Progress], None]:
        self._former = signal.getsignal(signal.SIGINT)
        if self._former is not signal.SIG_IGN:  # as under nohup: whoever ignores it has a reason
            signal.signal(signal.SIGINT, self._pressed)
        return self._observe

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is KeyboardInterrupt:
            self._stopping = True  # the next one ends the process, also while files are being closed
        else:
            signal.signal(signal.SIGINT, self._former)

    def _observe(self, progress: Progress) -> None:
        self._begun = self._begun or progress.draws + progress.labels > 0
        if self._stopping:
            raise KeyboardInterrupt(_stopped(self._directory))
        self._view(progress)

    def _pressed(self, _signal: int, _frame: FrameType | None) -> None:
        if self._stopping:
            self._view.abandon()
            os.write(2, f"{_stopped(self._directory)}\n".encode("utf-8", "replace"))
            os._exit(130)
        self._stopping = True
        if not self._begun:
            raise KeyboardInterrupt(_stopped(self._directory))
        note = "stopping after the request at hand; Ctrl-C again stops at once"
        if not self._view.note(note):
            os.write(2, f"{note}\n".encode())


def _stopped(directory: Path) -> str:
    if not (directory / "run.db").exists():
        return "stopped before anything was drawn or bought"
    return f"stopped; nothing is lost; `{_resume(directory)}` goes on"


def _resume(directory: Path) -> str:
    """The command that goes on with a run, as a shell takes it."""
    return shlex.join(["spannerlm", "resume", str(directory)])
