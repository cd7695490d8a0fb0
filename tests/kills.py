"""Run a job, kill it with SIGKILL at random instants, resume it, and compare the canonical ledgers.

    python tests/kills.py table|model KILLS SEED DIRECTORY

A process of its own, because it forks: every import is done once, each run is a child that is killed. Prints one JSON
line per kill. "Random instants" are uniform over the duration of an undisturbed run; every third run is killed a second
time while it resumes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import spannerlm
from spannerlm.config import load_config
from spannerlm.environments import rare_skill
from spannerlm.errors import InputError
from spannerlm.job import run_job
from spannerlm.ledger import Ledger

MODEL = [
    "labels=40",
    "batch=8",
    "max_prompts=6",
    "draws=600",
    "evaluation.draws=32",
    "evaluation.max_prompts=4",
    "baselines=false",
]


def run_table(directory: Path) -> None:
    spannerlm.explore(rare_skill(0.01), labels=120, batch=10, draws=200_000, seed=3, run_dir=directory)


def run_model(directory: Path) -> None:
    run_job(load_config(None, MODEL), directory)


def child(job: Callable[[Path], None], directory: Path, kill_after: float | None) -> bool:
    """Run the job in a forked process; True if it was killed before its end."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            job(directory)
            status = 0
        finally:
            os._exit(status)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status):
        raise SystemExit(f"the run in {directory.name} failed with status {os.WEXITSTATUS(status)}")
    return False


def export(directory: Path) -> list[str]:
    with Ledger.open(directory, read_only=True) as ledger:
        return list(ledger.export())


def recorded(directory: Path) -> int:
    """Lines of the export of a run that was killed; 0 where it had not recorded anything."""
    try:
        return len(export(directory))
    except InputError:
        return 0


def main() -> None:
    kind, kills, seed, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    job = {"table": run_table, "model": run_model}[kind]
    rng = np.random.default_rng(seed)
    start = time.perf_counter()
    child(job, folder / "undisturbed", None)
    duration = time.perf_counter() - start
    expected = export(folder / "undisturbed")
    for i in range(kills):
        directory = folder / f"killed-{i}"
        killed = child(job, directory, float(rng.uniform(0.0, duration)))
        rows = recorded(directory) if killed else 0
        again = child(job, directory, float(rng.uniform(0.0, duration))) if i % 3 == 2 else False
        child(job, directory, None)
        same = export(directory) == expected
        whole = Ledger.verify(directory).ok
        print(json.dumps({"killed": killed, "again": again, "rows": rows, "same": same, "whole": whole}), flush=True)
    print(json.dumps({"rows": len(expected)}), flush=True)


if __name__ == "__main__":
    main()
