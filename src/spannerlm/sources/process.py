"""`Killable`: a reward or comparison function in a process of its own, which is killed when it hangs (fault 10)."""

from __future__ import annotations

import json
import math
import os
import selectors
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from spannerlm.errors import InputError, RewardError
from spannerlm.records import Failed, Later, Unknown
from spannerlm.rewards import Answer, FunctionRaisedError, Raised, check_values

PROGRAM = Path(__file__).with_name("worker.py")
START_S = 120.0
"""Longest that the import of the function's file may take."""


class _Lost(Exception):
    """The worker is gone, or was killed: why, and what it had said."""

    def __init__(self, why: str, said: bytes = b"") -> None:
        super().__init__(why)
        self.said = said


class Killable:
    """A function that runs in a worker process, with a time limit for each call.

    What was asked in a call that ran out of time, or in which the worker died, has an `Unknown` outcome: perhaps
    charged, never sent again blindly. The next call gets a new worker. With ``pure=True`` nothing can have been
    charged, but to ask again would end the same: such items have `Failed`. A with-block, or `close`, ends the worker.
    """

    def __init__(self, reference: str, *, timeout_s: float, by_item: bool = False, pure: bool = False) -> None:
        """``reference``: ``path/to/file.py:function`` or ``module:function``, sync or async.

        ``by_item``: call it with lists of one, the limit being for each item; one that hangs, raises or dies costs the
        others nothing. Raises `InputError` on a bad argument; the function is imported at the first call, which raises
        `RewardError` where it cannot be.
        """
        place, _, name = reference.rpartition(":")
        if not place or not name:
            raise InputError(f"reference: expected path/to/file.py:function or module:function, got {reference!r}")
        if place.endswith(".py") and not Path(place).is_file():
            raise InputError(f"reference: expected a Python file, found no {place}")
        if isinstance(timeout_s, bool) or not 0.0 < timeout_s < math.inf:
            raise InputError(f"timeout_s: expected a positive number of seconds, got {timeout_s!r}")
        self.reference, self.timeout_s, self.by_item, self.pure = reference, float(timeout_s), by_item, pure
        self._worker: _Worker | None = None
        self._end: weakref.finalize[Any, Any] | None = None

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        opponents: Sequence[str] | None = None,
        **columns: Sequence[Any],
    ) -> list[Answer]:
        """[k] answers: rewards, or comparisons where there are opponents. Cost: k labels.

        Raises `RewardError` where the function raises (by item: `Raised` stands for that one) or answers wrongly.
        """
        texts = {"prompts": list(prompts), "completions": list(completions)}
        texts |= {} if opponents is None else {"opponents": list(opponents)}
        if not self.by_item:
            return self._called(texts, columns)
        answers: list[Answer] = []
        for i in range(len(texts["completions"])):
            one = {name: [text[i]] for name, text in texts.items()}
            try:
                answers += self._called(one, {name: [column[i]] for name, column in columns.items()})
            except FunctionRaisedError as error:
                answers.append(Raised(str(error)))
            except RewardError as error:
                error.reply = repr([*answers, error.reply])  # paid for, though the batch is refused whole
                raise
        return answers

    def _called(self, texts: Mapping[str, list[str]], columns: Mapping[str, Sequence[Any]]) -> list[Answer]:
        """Answers of one call of the function."""
        expected, kind = len(texts["completions"]), _kind(texts)
        request = {"texts": texts, "columns": {name: list(column) for name, column in columns.items()}}
        line = json.dumps(request).encode("ascii") + b"\n"
        worker = self._ready()
        if not worker.send(line):  # whole lines are read or none: it has not begun
            self.close()
            return [Later(0.0, "the worker died before it was asked")] * expected
        try:
            answer = json.loads(worker.line(time.monotonic() + self.timeout_s, self.timeout_s))
        except _Lost as lost:
            self.close()
            stands = Failed(str(lost)) if self.pure else Unknown(str(lost), lost.said)
            return [stands] * expected
        if "raised" in answer:
            raise FunctionRaisedError(f"the {kind} function raised {answer['raised']}")
        try:
            if "values" not in answer:
                raise RewardError(f"expected a list of {expected} {kind}s, got {answer['strange']}")
            values = [_record(value) for value in answer["values"]]
            return check_values(values, expected, kind)
        except RewardError as error:
            error.reply = json.dumps(answer)
            raise

    def _ready(self) -> _Worker:
        """The worker, a new one where there is none or it has died since."""
        if self._worker is not None and self._worker.process.poll() is None:
            return self._worker
        self.close()
        self._worker = worker = _Worker.started(self.reference)
        self._end = weakref.finalize(self, worker.kill)
        try:
            said = json.loads(worker.line(time.monotonic() + START_S, START_S))
        except _Lost as lost:
            self.close()
            raise RewardError(f"{self.reference}: the worker did not start: {lost}") from lost
        if "unusable" in said:
            self.close()
            raise RewardError(f"{self.reference}: could not be loaded: {said['unusable']}")
        return worker

    def close(self) -> None:
        """End the worker; the next call starts another."""
        if self._end is not None:
            self._end()
        self._worker = self._end = None

    def __enter__(self) -> Killable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class _Worker:
    """A running worker process, leader of a group of its own."""

    process: subprocess.Popen[bytes]
    to: IO[bytes]
    back: IO[bytes]

    @classmethod
    def started(cls, reference: str) -> _Worker:
        command = [sys.executable, "-P", str(PROGRAM), reference, str(os.getpid()), *sys.path]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, bufsize=0
        )
        assert process.stdin is not None
        assert process.stdout is not None
        return cls(process, process.stdin, process.stdout)

    def send(self, line: bytes) -> bool:
        """Hand a line over; False where nobody reads it any more."""
        view = memoryview(line)
        try:
            while view:
                view = view[self.to.write(view) :]
        except BrokenPipeError:
            return False
        return True

    def line(self, until: float, limit: float) -> bytes:
        """The next line. Raises `_Lost` where none comes in time, or none any more."""
        said = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self.back, selectors.EVENT_READ)
            while not said.endswith(b"\n"):
                if not selector.select(max(0.0, until - time.monotonic())):
                    raise _Lost(f"no answer within {limit:g} s", said)
                part = os.read(self.back.fileno(), 1 << 16)
                if not part:
                    raise _Lost(f"the worker died without an answer (exit status {self.process.wait()})", said)
                said += part
        return said

    def kill(self) -> None:
        """End the process, and whatever it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.to.close()
        self.back.close()


def _kind(texts: Mapping[str, Any]) -> Literal["reward", "comparison"]:
    """What the function is asked for."""
    return "comparison" if "opponents" in texts else "reward"


def _record(value: Any) -> Any:
    """A value as the function returned it; what it had no place for is a wrong one still."""
    if not isinstance(value, dict):
        return value
    [(kind, fields)] = value.items()
    if kind == "Failed":
        return Failed(*fields)
    if kind == "Later":
        return Later(*fields)
    if kind == "Unknown":
        return Unknown(fields[0], bytes.fromhex(fields[1]))
    raise RewardError(f"expected numbers or None, got {fields}: return a float, or None for no label")
