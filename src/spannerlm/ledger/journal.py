"""An append-only, hash-chained list of rows that survives a kill, a power cut and a full disk.

What the ledger stands on; it knows nothing of draws or labels. In a directory:

    run.db    SQLite, WAL, ``synchronous=FULL``: table ``journal(seq, kind, k, body, blob, hash)``
    run.head  sequence number and hash of the last row known outside the database, replaced after each commit
    run.lock  the kernel's flock of the one writer, and its PID

Every row is one transaction. Row s holds ``hash_s = sha256(hash_{s-1}, s, kind, k, body, blob)``. A crash between
commit and head leaves a head that is an ancestor: valid. A database that ends before its head has lost its tail:
corrupt. Nothing is opened for writing before it was read through and found whole: evidence is never overwritten.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from spannerlm.errors import InputError, LedgerCorruptError, LedgerError
from spannerlm.files import durable_write, make_folder, sync_folder
from spannerlm.ledger.lock import Lock

Trace = Callable[[str], None]
"""Told the name of each point that a crash test may kill at."""

DATABASE, HEAD, LOCK = "run.db", "run.head", "run.lock"
GENESIS = hashlib.sha256(b"spannerlm journal 1").digest()
"""What the first row's hash is chained to."""
DAMAGED = (sqlite3.Error, UnicodeDecodeError)
"""What reading a damaged database raises: SQLite's own words may quote bytes of it that are no text."""
ROW_LIMIT = 900_000_000
"""Bytes of one row; SQLite refuses a value of 1,000,000,000."""

_TABLE = (
    "CREATE TABLE IF NOT EXISTS journal (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, k INTEGER NOT NULL,"
    " body BLOB NOT NULL, blob BLOB, hash BLOB NOT NULL)"
)
_SELECT = "SELECT seq, kind, k, body, blob, hash FROM journal WHERE seq <= ? ORDER BY seq"


def no_trace(point: str) -> None:
    """Do nothing at ``point``: what runs outside of crash tests."""


@dataclass(frozen=True, slots=True)
class Row:
    """One entry of the journal."""

    seq: int
    """1, 2, 3, ... without a gap."""
    kind: str
    k: int
    body: bytes
    blob: bytes | None
    hash: bytes
    """[32] sha256 over the previous row's hash and this row."""


@dataclass(frozen=True, slots=True)
class Head:
    """A row as it is known outside the database; (0, GENESIS) before the first."""

    seq: int
    hash: bytes


class Journal:
    """The rows of one directory, or of memory where ``directory`` is None; made by ``Journal.open``."""

    def __init__(self, db: sqlite3.Connection, directory: Path | None, lock: Lock | None, trace: Trace) -> None:
        self._db = db
        self._directory = directory
        self._lock = lock
        self.trace = trace
        self._head = Head(0, GENESIS)
        self._head_behind = False
        self._closed = False

    @classmethod
    def open(cls, directory: Path | None, *, read_only: bool = False, trace: Trace = no_trace) -> Journal:
        """Return the journal of a directory, created if absent; None = in memory.

        Raises LedgerLockedError (another writer; names its PID), LedgerCorruptError (nothing is touched), LedgerError,
        and InputError where there is nothing to read. Readers need no lock and see the rows of this instant.
        """
        if directory is None:
            journal = cls(_connect(":memory:"), None, None, trace)
            journal._db.execute(_TABLE)
            return journal
        if read_only:
            return cls._open_reader(directory, trace)
        make_folder(directory)
        lock = Lock(directory / LOCK)
        try:
            return cls._open_writer(directory, lock, trace)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def _open_reader(cls, directory: Path, trace: Trace) -> Journal:
        if not (directory / DATABASE).exists():
            raise InputError(f"{directory}: expected a run directory, found no {DATABASE} in it")
        _look_at_size(directory)
        outside = read_head(directory)  # before the rows: a writer may add some meanwhile, never take any away
        journal = cls(_connect_reader(directory / DATABASE), directory, None, trace)
        try:
            if journal._is_bare():  # killed while it was being made, unless the head knows better
                journal._reach(journal._head, outside)
                return journal
            journal._head = journal._check(outside)
            if outside is None and journal._head.seq > 1:
                raise LedgerCorruptError(f"{directory}: {HEAD} is missing, so a lost tail cannot be ruled out")
        except BaseException:
            journal.close()
            raise
        return journal

    @classmethod
    def _open_writer(cls, directory: Path, lock: Lock, trace: Trace) -> Journal:
        head = Head(0, GENESIS)
        if (directory / DATABASE).exists():
            reader = cls._open_reader(directory, trace)
            head, problems = reader._head, reader.structure()
            reader.close()
            if problems:
                raise LedgerCorruptError(f"{directory / DATABASE} is damaged ({problems[0]}); nothing was changed")
        elif read_head(directory) is not None:
            raise LedgerCorruptError(f"{directory}: {HEAD} is there, the rows of {DATABASE} are gone")
        journal = cls(_connect(str(directory / DATABASE)), directory, lock, trace)
        try:
            _execute(journal._db, "PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL")
            trace("before-table")
            _execute(journal._db, _TABLE)
            trace("after-table")
        except BaseException:
            journal._db.close()
            raise
        journal._head = head
        if head.seq:
            journal._move_head(head)
        sync_folder(directory)
        return journal

    @classmethod
    def adopt(cls, database: Path, directory: Path, check: Callable[[Journal], None]) -> None:
        """Make a database the journal of a directory, its last row the head, unless it or ``check`` finds damage."""
        journal = cls(_connect_reader(database), directory, None, no_trace)
        try:
            journal._head = journal._check(None)
            if problems := journal.structure():
                raise LedgerCorruptError(
                    f"{directory}: the rows are in a damaged file ({problems[0]}); nothing was made"
                )
            check(journal)
            journal._move_head(journal._head)
        finally:
            journal.close()
        os.replace(database, directory / DATABASE)
        sync_folder(directory)

    @property
    def writable(self) -> bool:
        """Whether rows can be appended: not to a reader's journal, a closed one, or one inherited by a fork."""
        return not self._closed and (self._directory is None or (self._lock is not None and self._lock.held))

    @property
    def head(self) -> Head:
        """The last row of this journal."""
        return self._head

    def append(self, kind: str, k: int, body: bytes, blob: bytes | None = None) -> int:
        """Return the sequence number of the new row, durable before this returns.

        Raises LedgerError where it could not be written; all earlier rows are intact and the journal stays usable.
        ``trace`` is told ``before-``, ``within-`` (written, not committed), ``after-`` (committed), ``head-`` + kind.
        """
        if not self.writable:
            raise LedgerError("this ledger was opened read-only, or has been closed; open it for writing")
        if len(body) + len(blob or b"") > ROW_LIMIT:
            raise InputError(f"one {kind} row of {len(body) + len(blob or b'')} bytes; the limit is {ROW_LIMIT}")
        if self._head_behind:
            self._move_head(self._head)
        self.trace(f"before-{kind}")
        seq = self._head.seq + 1
        digest = chain(self._head.hash, seq, kind, k, body, blob)
        self._commit((seq, kind, k, body, blob, digest))
        self._head = Head(seq, digest)
        self.trace(f"after-{kind}")
        try:
            self._move_head(self._head)
        except LedgerError:  # the row is safe, so this step has succeeded: the next one will say so if it lasts
            self._head_behind = True
        self.trace(f"head-{kind}")
        return seq

    def rows(self, *, blobs: bool = True) -> Iterator[Row]:
        """Yield the rows in order, each checked against the chain; LedgerCorruptError at the first that is not whole.

        ``blobs=False`` leaves each row's blob out (after it was checked).
        """
        previous, end = Head(0, GENESIS), self._head  # rows appended while this runs are not part of it
        if not end.seq:
            return  # a database that was cut off while it was being made may not even have its table
        for found in self._select(end.seq):
            row = _checked(previous, found)
            yield row if blobs else Row(row.seq, row.kind, row.k, row.body, None, row.hash)
            previous = Head(row.seq, row.hash)
        if previous != end:
            raise LedgerCorruptError(f"expected row {end.seq} to be the last, found {previous.seq}")

    def row(self, seq: int) -> Row:
        """Return one row, unchecked (``open`` has checked it)."""
        try:
            found = self._db.execute(_SELECT.replace("<=", "="), (seq,)).fetchone()
        except DAMAGED as error:
            raise _reading(error) from error
        if found is None:
            raise LedgerCorruptError(f"row {seq} is missing")
        return Row(*found)

    def _is_bare(self) -> bool:
        """Whether the database has not even its table."""
        try:
            return not self._db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
        except DAMAGED as error:
            raise _reading(error) from error

    def structure(self) -> list[str]:
        """Return what SQLite itself finds wrong with its file; [] if nothing. Damage to unused bytes is not seen."""
        try:
            found = [str(line) for (line,) in self._db.execute("PRAGMA quick_check")]
        except DAMAGED as error:
            return [str(error)]
        return [] if found == ["ok"] else found

    def copy_into(self, target: sqlite3.Connection) -> None:
        """Copy the database into another connection, consistent whatever a writer does meanwhile."""
        self._db.backup(target)

    def close(self) -> None:
        """Close the database and release the lock; closing twice does nothing."""
        self._closed = True
        if self._head_behind:
            with contextlib.suppress(LedgerError):
                self._move_head(self._head)
        self._db.close()
        if self._lock is not None:
            self._lock.release()

    def _commit(self, values: tuple[object, ...]) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?)", values)
            self.trace(f"within-{values[1]}")
            self._db.execute("COMMIT")
        except BaseException as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if not isinstance(error, sqlite3.Error):
                raise
            raise LedgerError(
                f"the ledger could not be written ({error}); nothing of this step was recorded, all before it is "
                "intact. Make room on the disk, then resume"
            ) from error

    def _move_head(self, head: Head) -> None:
        if self._directory is not None:
            durable_write(self._directory / HEAD, f"{head.seq} {head.hash.hex()}\n".encode())
        self._head_behind = False

    def _select(self, last: int) -> Iterator[tuple[int, str, int, bytes, bytes | None, bytes]]:
        try:
            yield from self._db.execute(_SELECT, (last,))
        except DAMAGED as error:
            raise _reading(error) from error

    def _check(self, outside: Head | None) -> Head:
        """Return the last row, having read them all; LedgerCorruptError unless whole and at or beyond ``outside``."""
        last, passed = Head(0, GENESIS), outside is None or outside.seq == 0
        for found in self._select(2**62):
            row = _checked(last, found)
            last = Head(row.seq, row.hash)
            passed = passed or last == outside
        if not passed:
            self._reach(last, outside)
        return last

    def _reach(self, last: Head, outside: Head | None) -> None:
        """Raise LedgerCorruptError, for rows that end at ``last`` and do not contain ``outside``."""
        if outside is None or outside.seq == 0:
            return
        lost = f"rows {last.seq + 1} to {outside.seq} are lost" if last.seq < outside.seq else "another history"
        raise LedgerCorruptError(
            f"{self._directory}: {HEAD} vouches for row {outside.seq}, {DATABASE} ends at {last.seq}: {lost}. "
            f"Was {DATABASE} copied without its -wal file? Nothing was changed; restore a backup"
        )


def chain(previous: bytes, seq: int, kind: str, k: int, body: bytes, blob: bytes | None) -> bytes:
    """Return [32] the hash of a row that follows one with hash ``previous``."""
    length = -1 if blob is None else len(blob)
    digest = hashlib.sha256(previous + f"{seq} {kind} {k} {len(body)} {length}\n".encode())
    digest.update(body)
    digest.update(blob or b"")
    return digest.digest()


def _look_at_size(directory: Path) -> None:
    """Raise LedgerCorruptError if the database was emptied: SQLite would answer that by deleting the -wal file."""
    path = directory / DATABASE
    wal = path.with_name(path.name + "-wal")
    if not path.stat().st_size and (read_head(directory) is not None or (wal.exists() and wal.stat().st_size)):
        raise LedgerCorruptError(f"{path} is empty, and it was not; nothing was changed; restore a backup")


def read_head(directory: Path) -> Head | None:
    """Return the head kept outside the database, None if there is none; LedgerCorruptError if it is damaged."""
    path = directory / HEAD
    try:
        seq, digest = path.read_bytes().decode("ascii").split(" ")
        if not digest.endswith("\n") or len(digest) != 65:
            raise ValueError(digest)
        return Head(int(seq), bytes.fromhex(digest))
    except FileNotFoundError:
        return None
    except ValueError:
        raise LedgerCorruptError(f"{path}: expected a row number and a sha256; it is damaged") from None


def _checked(previous: Head, found: tuple[int, str, int, bytes, bytes | None, bytes]) -> Row:
    seq, kind, k, body, blob, digest = found
    if seq != previous.seq + 1:
        raise LedgerCorruptError(f"expected row {previous.seq + 1}, found {seq}: rows are missing")
    sound = isinstance(body, bytes) and isinstance(blob, (bytes, type(None)))
    if not sound or chain(previous.hash, seq, kind, k, body, blob) != digest:
        raise LedgerCorruptError(f"row {seq} is not what was written: its hash does not match")
    return Row(seq, kind, k, body, blob, digest)


def _connect(target: str, *, uri: bool = False) -> sqlite3.Connection:
    try:
        return sqlite3.connect(target, isolation_level=None, uri=uri, timeout=30.0, check_same_thread=False)
    except sqlite3.Error as error:
        raise LedgerError(f"{target}: could not be opened ({error})") from error


def _connect_reader(path: Path) -> sqlite3.Connection:
    """Return a read-only connection; where even the shared index cannot be made (read-only media), an immutable one."""
    address = path.absolute().as_uri() + "?mode=ro"
    db = _connect(address, uri=True)
    try:
        db.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        db.close()
        if path.with_name(path.name + "-wal").exists():
            raise LedgerError(f"{path}: could not be read; is its directory writable?") from None
        db = _connect(address + "&immutable=1", uri=True)
    except DAMAGED:  # reading the rows will say so
        pass
    return db


def _execute(db: sqlite3.Connection, *statements: str) -> None:
    try:
        for statement in statements:
            db.execute(statement)
    except DAMAGED as error:
        raise LedgerError(
            f"the ledger could not be prepared ({error}); is there room on the disk? What was recorded before is intact"
        ) from error


def _reading(error: Exception) -> LedgerError:
    if isinstance(error, sqlite3.OperationalError) and ("locked" in str(error) or "unable to open" in str(error)):
        return LedgerError(f"the ledger could not be read ({error})")
    return LedgerCorruptError(f"the ledger is damaged ({error}); nothing was changed")
