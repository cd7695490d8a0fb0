"""One root error and its children: every failure a user can meet has a name here."""

from __future__ import annotations


class SpannerError(Exception):
    """Root of every error that spannerlm raises on purpose."""


class InputError(SpannerError, ValueError):
    """An argument is not what was expected; the message says what was expected, what came and what to do."""


class ConfigError(InputError):
    """A configuration file or a ``--set`` override is wrong; the message names the place."""


class ModelError(SpannerError):
    """A model could not be loaded or did not generate."""


class RewardError(SpannerError):
    """A reward function raised, or returned something that is not one number or None per completion."""

    reply: str = ""
    """What it returned, as text, where it returned anything: a refused reply was paid for and is kept."""


class LedgerError(SpannerError):
    """The ledger could not be read or written."""


class LedgerLockedError(LedgerError):
    """Another process holds the run directory; the message names its PID."""


class LedgerCorruptError(LedgerError):
    """The ledger or a file that it vouches for is not what was written; nothing was overwritten."""


class InDoubtError(LedgerError):
    """Labels were claimed, perhaps charged, and never answered; the user must say what becomes of them."""
