"""The durable journal of draws and labels: the one truth of a run, and the only place that counts (`core` says how)."""

from spannerlm.ledger.core import Claim, Counts, Entry, Failed, Ledger, Verification, Waiting

__all__ = ["Claim", "Counts", "Entry", "Failed", "Ledger", "Verification", "Waiting"]
