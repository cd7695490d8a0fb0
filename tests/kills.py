"""Run a job, kill it with SIGKILL at random instants, resume it, and compare the canonical ledgers.

    python tests/kills.py table|model KILLS SEED DIRECTORY

A process of its own, because it forks: every import is done once, each run is a child that is killed. Prints one JSON
line per kill. "Random instants" are uniform over the duration of an undisturbed run, the last one seen, because a busy
machine changes its pace; every third run is killed a second time while it resumes.
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


def child(job: Callable[[Path], None], directory: Path, kill_after: float | None) -> tuple[bool, float]:
    """Run the job in a forked process: whether it was killed before its end, and the seconds that it had."""
    start = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            job(directory)
            status = 0
        finally:
            os._exit(status)
    done, status = 0, 0
    while kill_after is not None and not done and time.perf_counter() - start < kill_after:
        time.sleep(0.001)
        done, status = os.waitpid(pid, os.WNOHANG)
    if kill_after is not None and not done:
        os.kill(pid, signal.SIGKILL)
    if not done:
        _, status = os.waitpid(pid, 0)
    took = time.perf_counter() - start
    if os.WIFSIGNALED(status):
        return True, took
    if os.WEXITSTATUS(status):
        raise SystemExit(f"the run in {directory.name} failed with status {os.WEXITSTATUS(status)}")
    return False, took


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
    _, duration = child(job, folder / "undisturbed", None)
    expected = export(folder / "undisturbed")
    for i in range(kills):
        directory = folder / f"killed-{i}"
        killed, took = child(job, directory, float(rng.uniform(0.0, duration)))
        rows = recorded(directory) if killed else 0
        again = i % 3 == 2 and child(job, directory, float(rng.uniform(0.0, duration)))[0]
        _, rest = child(job, directory, None)
        if not killed or not (rows or again):  # what ran from beginning to end tells the pace
            duration = rest if killed else took
        same = export(directory) == expected
        whole = Ledger.verify(directory).ok
        print(json.dumps({"killed": killed, "again": again, "rows": rows, "same": same, "whole": whole}), flush=True)
    print(json.dumps({"rows": len(expected)}), flush=True)


if __name__ == "__main__":
    main()
