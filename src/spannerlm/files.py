"""Files that are whole or absent: written aside, fsynced, renamed (RELIABILITY, the ledger)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from spannerlm.errors import LedgerError


def durable_write(path: Path, data: bytes, *, written: Callable[[], None] = lambda: None) -> None:
    """Replace ``path`` by ``data`` in one step: a temporary file, fsynced, then renamed (the folder is not synced).

    ``written`` is called between the two. Raises LedgerError where the disk does not take it.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        written()
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise LedgerError(
            f"{path}: could not be written ({error.strerror}); what was recorded before is intact. "
            "Make room, then resume"
        ) from error


def make_folder(folder: Path) -> None:
    """Make sure that ``folder`` exists, its own name durable. Raises LedgerError."""
    if not folder.is_dir():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(folder.absolute().parent)
        except OSError as error:
            raise LedgerError(f"{folder}: could not be made ({error.strerror})") from error


def sync_folder(folder: Path) -> None:
    """Make the names of a folder's files durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
