"""One writer per run directory: a kernel flock that dies with its process (RELIABILITY: one writer; faults 6 and 7)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import weakref
from pathlib import Path

from spannerlm.errors import LedgerError, LedgerLockedError


class Lock:
    """The lock on a file, held from construction to ``release`` or the end of this process, however it ends.

    Raises LedgerLockedError naming the PID of the process that holds it, LedgerError if the file cannot be opened.
    A forked child does not hold it: else a worker that outlives its parent would keep the run locked.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._handle: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise LedgerError(f"{path}: could not be opened ({error.strerror})") from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = os.pread(self._handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
            self.release()
            raise LedgerLockedError(f"{path.parent} is in use by process {pid}; wait for it or stop it") from None
        with contextlib.suppress(OSError):  # a full disk: the PID is a courtesy, the lock holds without it
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, f"{os.getpid()}\n".encode(), 0)
        _HELD.add(self)

    @property
    def held(self) -> bool:
        """Whether this process holds it."""
        return self._handle is not None

    def release(self) -> None:
        """Give it up; twice does nothing. In a forked child: drop the child's copy alone."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


_HELD: weakref.WeakSet[Lock] = weakref.WeakSet()


def _release_in_child() -> None:
    for lock in list(_HELD):
        lock.release()


os.register_at_fork(after_in_child=_release_in_child)
