"""Replies that a model's server was paid for, on disk until they are of no further use.

One line of JSON and its sum for each reply, under the hash of its request. Lines reach the disk's cache at once, so
that they outlive this process, and are fsynced in batches and at each call's end, so that they outlive the machine.
Replies that this process has used are dropped once the file is larger than `LIMIT`: their draws have been handed over,
while a reply that was paid for and never used stays. Only a single request of a run whose replies are larger than that
may be paid for again, in part, where it is cut off.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from spannerlm import http
from spannerlm.errors import InputError, LedgerError

LIMIT = 2**26
"""Bytes of the file beyond which it is written anew without what was used."""
SUM = 16
"""Hexadecimal digits of a line's SHA-256."""
BATCH = 64
"""Lines that are fsynced together at most."""


@dataclass(frozen=True)
class Usage(http.Usage):
    """What a server has cost so far, the journal's earlier processes included; ``retried`` is of this process alone."""

    retried: int = 0
    """Requests that were sent again. Tokens and cost are of replies that were of no use too, requests are not."""

    def plus(self, prompt_tokens: int, completion_tokens: int, cost: float) -> Usage:
        """With one usable reply more."""
        return replace(
            self,
            requests=self.requests + 1,
            prompt_tokens=self.prompt_tokens + prompt_tokens,
            completion_tokens=self.completion_tokens + completion_tokens,
            cost=self.cost + cost,
        )


class Spool:
    """Replies by the hash of their request, and what was found out about the server. Threads may share one.

    Without a file nothing is kept. `InputError` for a file of another kind, `LedgerError` where the disk does not take
    it. A line that was cut off while it was written is dropped: its reply was never used.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.usage = path, Usage()
        self._lock = threading.RLock()
        self._places: dict[str, tuple[int, int]] = {}
        self._used: dict[str, None] = {}
        self._facts: dict[str, Any] = {}
        self._file: int | None = None
        self._loose = 0
        if path is not None:
            self._open(path)

    def _open(self, path: Path) -> None:
        """Read what is there, and keep the file open: places in it are read again, and lines added at its end."""
        at = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a+b") as file:
                file.seek(0)
                for number, line in enumerate(file, start=1):
                    if not line.endswith(b"\n"):
                        file.truncate(at)
                        break
                    self._read(path, number, line, at)
                    at += len(line)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise LedgerError(f"{path}: could not be opened ({error.strerror}): choose another place") from error

    def _read(self, path: Path, number: int, line: bytes, at: int) -> None:
        try:
            self._enter(_decoded(line), at, len(line))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"{path}:{number}: expected a line of a model's journal, found another, or a damaged one: choose "
                "another file, or move this one away (replies in it that were never used are then paid for again)"
            ) from error

    def _enter(self, row: Mapping[str, Any], at: int, size: int) -> None:
        if "spent" in row:
            self.usage = Usage(**row["spent"])
        elif "lost" in row:
            self._lose(*row["lost"])
        elif "fact" in row:
            self._facts[row["fact"]] = row["value"]
        else:
            if row["key"] in self._places:
                return  # the same line twice
            self._places[row["key"]] = (at, size)
            self.usage = self.usage.plus(row["prompt_tokens"], row["completion_tokens"], row["cost"])

    def fact(self, name: str) -> Any:
        """What was noted under this name; None where nothing was."""
        return self._facts.get(name)

    def note(self, name: str, value: Any) -> None:
        """Keep what was found out, durable when this returns."""
        with self._lock:
            self._facts[name] = value
            self._write({"fact": name, "value": value})
            self.sync()

    def take(self, key: str) -> Any:
        """The reply that was paid for under this key, from now on one that was used; None where there is none."""
        with self._lock:
            place = self._places.get(key)
            if place is None or self._file is None:
                return None
            try:
                row = _decoded(self._line(self._file, key))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise LedgerError(f"{self.path}: a line that was whole is damaged now: see to the disk") from error
            self._used[key] = None
            return row["reply"]

    def add(self, key: str, reply: Any, prompt_tokens: int, completion_tokens: int, cost: float) -> None:
        """Keep a reply that has come and is used now."""
        with self._lock:
            row = {"key": key, "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "cost": cost}
            self.usage = self.usage.plus(prompt_tokens, completion_tokens, cost)
            place = self._write({**row, "reply": reply})
            if place is not None:
                self._places[key], self._used[key] = place, None

    def lost(self, prompt_tokens: int, completion_tokens: int, cost: float) -> None:
        """Count what a reply cost that is of no use."""
        if prompt_tokens or completion_tokens:
            with self._lock:
                self._lose(prompt_tokens, completion_tokens, cost)
                self._write({"lost": [prompt_tokens, completion_tokens, cost]})

    def _lose(self, prompt_tokens: int, completion_tokens: int, cost: float) -> None:
        more = self.usage.plus(prompt_tokens, completion_tokens, cost)
        self.usage = replace(more, requests=self.usage.requests)

    def retried(self) -> None:
        """Count a request that is sent again."""
        with self._lock:
            self.usage = replace(self.usage, retried=self.usage.retried + 1)

    def sync(self) -> None:
        """Make everything durable."""
        with self._lock:
            if self._file is None or not self._loose:
                return
            try:
                os.fsync(self._file)
            except OSError as error:
                raise self._failed(error) from error
            self._loose = 0

    def shrink(self) -> None:
        """Drop what was used where the file is larger than `LIMIT`; called between two calls of the model."""
        with self._lock:
            if self._file is not None and os.fstat(self._file).st_size > LIMIT and self._used:
                self.clear()

    def clear(self) -> None:
        """Drop every reply that was used, and keep what they cost. Safe once the draws made of them are recorded."""
        with self._lock:
            if self._file is None or self.path is None:
                return
            unused = [key for key in self._places if key not in self._used]
            lines = [self._line(self._file, key) for key in unused]
            spent = asdict(replace(self.usage, retried=0))
            for line in lines:  # reading the file again counts them once more
                row = _decoded(line)
                spent["requests"] -= 1
                for name in ("prompt_tokens", "completion_tokens", "cost"):
                    spent[name] -= row[name]
            head = [{"spent": spent}, *({"fact": name, "value": value} for name, value in self._facts.items())]
            retried = self.usage.retried
            self._rewrite(self.path, [*(_encoded(row) for row in head), *lines])
            self.usage = replace(self.usage, retried=retried)

    def close(self) -> None:
        """Make everything durable and close the file."""
        with self._lock:
            try:
                self.sync()
            finally:
                if self._file is not None:
                    os.close(self._file)
                    self._file = None

    def _line(self, file: int, key: str) -> bytes:
        at, size = self._places[key]
        os.lseek(file, at, os.SEEK_SET)
        return os.read(file, size)

    def _rewrite(self, path: Path, lines: list[bytes]) -> None:
        fresh = path.with_name(path.name + ".new")
        try:
            with open(fresh, "wb") as file:
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, path)
        except OSError as error:
            raise self._failed(error) from error
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._places, self._used, self._facts, self._loose, self.usage = {}, {}, {}, 0, Usage()
        self._open(path)

    def _write(self, row: Mapping[str, Any]) -> tuple[int, int] | None:
        if self._file is None:
            return None
        line = _encoded(row)
        at = os.fstat(self._file).st_size
        try:
            done = os.write(self._file, line)
            if done < len(line):
                os.write(self._file, line[done:])
        except OSError as error:
            os.ftruncate(self._file, at)  # what follows must not stand behind half a line
            raise self._failed(error) from error
        self._loose += 1
        if self._loose >= BATCH:
            self.sync()
        return at, len(line)

    def _failed(self, error: OSError) -> LedgerError:
        return LedgerError(f"{self.path}: could not be written ({error.strerror}): make room")


def _encoded(row: Mapping[str, Any]) -> bytes:
    """A line, which ends with the sum of what stands before."""
    body = json.dumps(row).encode("ascii")
    return body + b" " + hashlib.sha256(body).hexdigest()[:SUM].encode() + b"\n"


def _decoded(line: bytes) -> Any:
    """What `_encoded` was given. Raises `ValueError` where the line is not what was written."""
    body, _, digest = line.rstrip(b"\r\n").rpartition(b" ")
    if hashlib.sha256(body).hexdigest()[:SUM].encode() != digest:
        raise ValueError("the sum does not fit")
    return json.loads(body)
