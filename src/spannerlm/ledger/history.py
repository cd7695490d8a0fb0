"""Requests and outcomes as rows of a journal, and the past read back from them, bit for bit.

Where the bulk of an event lies: in memory by reference; on disk in the row, and draws beyond ``INLINE_LIMIT`` in a
parquet shard that the row vouches for. What is read back does not depend on which. RELIABILITY: the same ledger.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from spannerlm.ledger.books import Asked, Books, Counts
from spannerlm.ledger.codec import Json, canonical, compact, pack, parse, request_from, unpack
from spannerlm.ledger.journal import Journal, Row
from spannerlm.ledger.shards import Shard, read_shard, split_draws, write_shard
from spannerlm.records import Drawn, Draws, Event, FloatArray, Labelled, Request, Rollout

DRAWS = "draws"
"""Folder of the shards within a run directory."""
INLINE_LIMIT = 64 * 2**10
"""Bytes up to which draws stay in their row: a file of their own would cost three more fsyncs."""


@dataclass(frozen=True)
class Entry:
    """One event of the past."""

    k: int
    """Number of the request that it is, or answers."""
    purpose: str
    """``explore`` or ``evaluate``."""
    event: Event
    counts: Counts
    """What had been spent once it was recorded."""


class History:
    """The events of one journal; ``directory`` is None in memory."""

    def __init__(self, journal: Journal, directory: Path | None) -> None:
        self.journal = journal
        self.directory = directory
        self._kept: dict[int, Any] = {}  # in memory: arrays or draws of a row, by reference

    def append(self, kind: str, k: int, body: Json, arrays: Sequence[FloatArray] = ()) -> int:
        """Return the sequence number of a new row with this body and these arrays, durable."""
        if self.directory is not None:
            return self.journal.append(kind, k, canonical(body), pack(arrays) if arrays else None)
        seq = self.journal.append(kind, k, canonical(body))
        if arrays:
            self._kept[seq] = tuple(arrays)
        return seq

    def append_drawn(self, k: int, body: Json, draws: Sequence[Draws]) -> int:
        """Return the sequence number of a new ``drawn`` row with these draws, durable: a shard before its row."""
        body = {**body, "prompts": [record.prompt for record in draws]}
        body["sizes"] = [len(record.responses) for record in draws]
        if any(record.prefix is not None for record in draws):
            body["after"] = _after(draws, body.get("paths", ()))
        if self.directory is None:
            seq = self.journal.append("drawn", k, canonical(body))
            self._kept[seq] = tuple(draws)
            return seq
        features = _stacked(draws)
        texts = [text for record in draws for text in record.responses]
        if features.nbytes + 8 * len(texts) + sum(map(len, texts)) > INLINE_LIMIT:
            shard = write_shard(self.directory / DRAWS, f"{k:08d}.parquet", draws, features, trace=self.journal.trace)
            return self.journal.append("drawn", k, canonical({**body, "shard": asdict(shard)}))
        counts = [int(count) for record in draws for count in record.counts]
        inline = canonical({**body, "responses": texts, "counts": counts})
        return self.journal.append("drawn", k, inline, pack([features]))

    def request(self, seq: int) -> Request:
        """Return the request in row ``seq``."""
        row = self.journal.row(seq)
        return request_from(parse(row.body), self._arrays(row))

    def bodies(self) -> Iterator[tuple[Row, Json]]:
        """Yield every row with its body, in order, without reading features."""
        return ((row, parse(row.body)) for row in self.journal.rows())

    def replay(self, revised: Mapping[str, Any]) -> Iterator[Entry]:
        """Yield every event in order, with the last reply of each claim whose answer was revised, by its key."""
        for row, _, event, books in self._events(revised):
            if event is not None:
                yield Entry(row.k, books.purposes[row.k], event, books.counts)

    def export(self) -> Iterator[str]:
        """Yield canonical JSON lines: what the run was told, then requests, draws and labels in order."""
        books = Books()
        for row, body, event, books in self._events():
            if row.kind == "open":
                yield _line("open", meta=body["meta"], prompts=_sha256(canonical(body["identities"])))
            elif row.kind == "request":
                yield _line("request", k=row.k, request=body, arrays=[_digest(array) for array in self._arrays(row)])
            elif isinstance(event, Drawn):
                yield from (_draws_line(row.k, record) for record in event.draws)
                names = ("spent", "exhausted", "info", "paths", "tokens")
                yield _line("drawn", k=row.k, **{name: body[name] for name in names if name in body})
            elif isinstance(event, Labelled) and books.told is not None:
                yield from _label_lines(*books.told)
                yield _line("labelled", k=row.k, info=body["info"], features=_digest(event.features))
            elif row.kind == "revise":
                yield _line("revision", key=body["key"], reply=body["reply"])
        for asked in books.asked.values():
            yield from _label_lines(asked, [at for at in asked.answered() if at not in asked.told])

    def _events(self, revised: Mapping[str, Any] | None = None) -> Iterator[tuple[Row, Json, Event | None, Books]]:
        """Yield each row, its body, its event if it is one, and the books after it; ``revised`` replies from the
        start on."""
        books = Books()
        for row, body in self.bodies():
            if revised and row.kind == "revise":
                continue
            if revised and row.kind == "reply":
                replies = zip(body["keys"], body["replies"], strict=True)
                body = {**body, "replies": [revised.get(key, reply) for key, reply in replies]}
            books.apply(row.seq, row.kind, row.k, body)
            yield row, body, self._event(row, body, books), books

    def _event(self, row: Row, body: Json, books: Books) -> Event | None:
        if row.kind == "request":
            return request_from(body, self._arrays(row))
        if row.kind == "drawn":
            paths = tuple(Rollout(x, tuple(segments), text) for x, segments, text in body.get("paths", ()))
            tokens = body.get("tokens", 0)
            return Drawn(self._draws(row, body), body["spent"], tuple(body["exhausted"]), body["info"], paths, tokens)
        if row.kind == "labelled" and books.told is not None:
            asked, positions = books.told
            return Labelled(asked.labels(positions), self._arrays(row)[0], body["info"])
        return None

    def _arrays(self, row: Row) -> tuple[FloatArray, ...]:
        if self.directory is None:
            kept: tuple[FloatArray, ...] = self._kept.get(row.seq, ())
            return kept
        return () if row.blob is None else unpack(row.blob)

    def _draws(self, row: Row, body: Json) -> tuple[Draws, ...]:
        if self.directory is None:
            kept: tuple[Draws, ...] = self._kept[row.seq]
            return kept
        prompts, sizes = body["prompts"], body["sizes"]
        if "shard" in body:
            draws = read_shard(self.directory / DRAWS, Shard(**body["shard"]), prompts, sizes)
        else:
            draws = split_draws(prompts, sizes, body["responses"], body["counts"], self._arrays(row)[0])
        if "after" not in body:
            return draws
        prefixes = [_before(after, body.get("paths", ())) for after in body["after"]]
        return tuple(replace(record, prefix=prefix) for record, prefix in zip(draws, prefixes, strict=True))


def _after(draws: Sequence[Draws], paths: Sequence[Any]) -> list[Any]:
    """Return each record's prefix: None, its segments, or [path, steps] where it is the start of a path.

    A roll-out of H steps has prefixes of 0 .. H - 1 segments: written out, they would take H^2 / 2.
    """
    starts = {tuple(path[:step]): [i, step] for i, (_, path, _) in enumerate(paths) for step in range(len(path))}
    found: list[Any] = []
    for record in draws:
        prefix = record.prefix
        found.append(None if prefix is None else starts.get(prefix, list(prefix)))
    return found


def _before(after: Any, paths: Sequence[Any]) -> tuple[str, ...] | None:
    """Return the prefix that ``_after`` wrote."""
    if after is None:
        return None
    if after and isinstance(after[0], int):
        return tuple(paths[after[0]][1][: after[1]])
    return tuple(after)


def _stacked(draws: Sequence[Draws]) -> FloatArray:
    """Return [n, d] the features of all draws, in the type in which they are stored."""
    if not draws:
        return np.zeros((0, 0))
    return compact(np.concatenate([record.features for record in draws]))


def _line(kind: str, **values: Any) -> str:
    return canonical({"type": kind, **values}).decode("ascii")


def _draws_line(k: int, record: Draws) -> str:
    counts = [int(count) for count in record.counts]
    return _line(
        "draws",
        k=k,
        prompt=record.prompt,
        responses=list(record.responses),
        counts=counts,
        features=_digest(record.features),
    )


def _label_lines(asked: Asked, positions: Sequence[int]) -> Iterator[str]:
    for position in positions:
        bought = asked.lines[position]
        label = dict(vars(asked.label(position)))
        if bought.opponent is None:
            del label["opponent"]  # a column of comparisons alone: other runs export what they always did
        yield _line("label", k=asked.k, key=bought.key, rater=bought.rater, reason=bought.reason, **label)


def _digest(array: FloatArray) -> str:
    """Return a hex digest of an array's shape and float64 values."""
    return _sha256(f"{list(array.shape)}".encode() + np.ascontiguousarray(array, "<f8").tobytes())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
