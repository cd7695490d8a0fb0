"""Explorers x environments x seeds under common random numbers: resumable suites, their rows and their statistics."""

from __future__ import annotations

from spannerlm.bench.rows import SCHEMA, Engine, Finished, Job, Suite, load_rows, load_suite, run_suite
from spannerlm.bench.suites import SUITES, suite_by_name

__all__ = [
    "SCHEMA",
    "SUITES",
    "Engine",
    "Finished",
    "Job",
    "Suite",
    "load_rows",
    "load_suite",
    "run_suite",
    "suite_by_name",
]
