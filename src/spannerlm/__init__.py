"""Label-efficient exploration for reinforcement learning with language models, through a sampling oracle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spannerlm.api import explore
from spannerlm.asking import Run
from spannerlm.questions import Query
from spannerlm.run import Result
from spannerlm.tilted import load_policy

if TYPE_CHECKING:
    from spannerlm.foundation.job import CoverageReport, coverage_report

__version__ = "0.1.0"

__all__ = ["CoverageReport", "Query", "Result", "Run", "__version__", "coverage_report", "explore", "load_policy"]


def __getattr__(name: str) -> Any:
    """The coverage report's names, whose modules are read when one of them is first used."""
    if name in ("CoverageReport", "coverage_report"):
        from spannerlm.foundation import job

        return getattr(job, name)
    raise AttributeError(f"module 'spannerlm' has no attribute {name!r}")
