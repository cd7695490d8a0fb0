"""A run killed at any instant resumes to the same canonical ledger (RELIABILITY, promise and fault 1)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("kills.py")
KILLS = {"table": 200, "model": 20} if os.environ.get("SPANNERLM_SOAK") else {"table": 50, "model": 3}
"""Runs that are killed at a random time; in `make soak` as many as RELIABILITY asks for."""


def killed_runs(kind: str, kills: int, folder: Path) -> tuple[list[dict[str, Any]], int]:
    command = [sys.executable, str(SCRIPT), kind, str(kills), "20261122", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=580)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return lines[:-1], lines[-1]["rows"]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "kills"), KILLS.items())
def test_every_killed_run_resumes_to_the_undisturbed_ledger(kind: str, kills: int, tmp_path: Path) -> None:
    runs, rows = killed_runs(kind, kills, tmp_path)
    assert len(runs) == kills
    assert all(run["same"] and run["whole"] for run in runs), runs
    cut_off = [run for run in runs if run["killed"] and run["rows"] < rows]
    assert len(cut_off) >= kills // 2, runs  # else the kills came too late to prove anything
    if kind == "table":
        assert len({run["rows"] for run in cut_off}) > 5  # and at different places
        assert any(run["again"] for run in runs)
