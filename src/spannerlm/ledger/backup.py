"""Whether a run directory is whole, and one file that holds all of it (RELIABILITY: verify, backup, fault 5)."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from spannerlm.errors import InputError, LedgerCorruptError, LedgerError
from spannerlm.files import durable_write, make_folder, sync_folder
from spannerlm.ledger.codec import parse
from spannerlm.ledger.history import DRAWS
from spannerlm.ledger.journal import DAMAGED, DATABASE, Journal
from spannerlm.ledger.shards import Shard, checked_bytes

CONFIGURATION = "config.yaml"
"""What a run directory has beside the ledger that nothing else tells."""


@dataclass(frozen=True)
class Verification:
    """What was found in a run directory."""

    rows: int
    """Rows of the chain, 0 where it is broken."""
    shards: int
    """Files of draws that the rows vouch for."""
    problems: tuple[str, ...]
    """What is not as it was written; empty if all is well."""
    notes: tuple[str, ...] = ()
    """What is odd and harmless: files that no row vouches for, left by a crash."""

    @property
    def ok(self) -> bool:
        """Whether every row and every shard is what was written."""
        return not self.problems


def verify(directory: Path) -> Verification:
    """Return what is found of the rows, of the head kept outside the database, and of the shards. Changes nothing."""
    try:
        journal = Journal.open(directory, read_only=True)
    except LedgerError as error:
        return Verification(0, 0, (str(error),))
    with closing(journal):
        problems: list[str] = []
        shards = list(_shards(journal))
        rows = journal.head.seq
        problems += journal.structure()
    for shard in shards:
        try:
            checked_bytes(directory / DRAWS, shard)
        except LedgerError as error:
            problems.append(str(error))
    known = {shard.name for shard in shards}
    folder = directory / DRAWS
    strange = sorted(path.name for path in folder.iterdir() if path.name not in known) if folder.is_dir() else []
    return Verification(
        rows, len(shards), tuple(problems), tuple(f"{DRAWS}/{name}: no row knows it" for name in strange)
    )


def back_up(journal: Journal, directory: Path, file: Path) -> None:
    """Write rows, shards and the configuration into one SQLite file, replaced in one step. Raises LedgerError."""
    temporary = file.with_name(file.name + ".tmp")
    temporary.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(temporary, isolation_level=None)) as target:
            journal.copy_into(target)
            target.execute("PRAGMA journal_mode=DELETE")
            target.execute("CREATE TABLE shard (name TEXT PRIMARY KEY, data BLOB NOT NULL)")
            for shard in _shards(journal):
                target.execute("INSERT INTO shard VALUES (?, ?)", (shard.name, checked_bytes(directory / DRAWS, shard)))
            target.execute("CREATE TABLE configuration (data BLOB NOT NULL)")
            if (directory / CONFIGURATION).exists():
                target.execute("INSERT INTO configuration VALUES (?)", ((directory / CONFIGURATION).read_bytes(),))
        os.replace(temporary, file)
        sync_folder(file.absolute().parent)
    except (OSError, *DAMAGED) as error:
        temporary.unlink(missing_ok=True)
        raise LedgerError(f"{file}: the backup could not be written ({error}); the ledger is as it was") from error


def restore(file: Path, directory: Path) -> None:
    """Unpack a backup into a directory without a ledger; LedgerCorruptError, and no ledger there, if it is damaged."""
    if (directory / DATABASE).exists():
        raise InputError(f"{directory}: holds a ledger already; restore into another directory")
    if not file.is_file():
        raise InputError(f"{file}: expected a backup, found no such file")
    make_folder(directory / DRAWS)
    temporary = directory / (DATABASE + ".restored")
    durable_write(temporary, file.read_bytes())
    try:
        with closing(sqlite3.connect(temporary, isolation_level=None)) as source:
            for name, data in source.execute("SELECT name, data FROM shard"):
                if not isinstance(name, str) or Path(name).name != name or not isinstance(data, bytes):
                    raise LedgerCorruptError(f"{file}: {name!r} is not the name of a shard")
                durable_write(directory / DRAWS / name, data)
            source.execute("DROP TABLE shard")
            if source.execute("SELECT 1 FROM sqlite_master WHERE name = 'configuration'").fetchone():  # not in old ones
                for (data,) in source.execute("SELECT data FROM configuration"):
                    durable_write(directory / CONFIGURATION, data)
                source.execute("DROP TABLE configuration")
    except DAMAGED as error:
        raise LedgerCorruptError(f"{file}: not a backup, or damaged ({error})") from error
    sync_folder(directory / DRAWS)
    Journal.adopt(temporary, directory, lambda journal: _check_shards(journal, directory / DRAWS))


def _check_shards(journal: Journal, folder: Path) -> None:
    for shard in _shards(journal):
        checked_bytes(folder, shard)


def _shards(journal: Journal) -> Iterator[Shard]:
    for row in journal.rows():
        if row.kind == "drawn":
            shard = parse(row.body).get("shard")
            if shard is not None:
                yield Shard(**shard)
