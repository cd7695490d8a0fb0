"""Mutation testing of the core with mutmut: how many small errors, planted one at a time, do the tests notice?

    OMP_NUM_THREADS=1 python benchmarks/mutation.py [spanner samplers coverage regression] [--folder DIRECTORY] [--json]

Works on a copy of src, tests and pyproject.toml, so that the working tree is never touched; a copy that is kept
(--folder) is taken up where it was left. Each mutant runs only those tests of its own module's test file that reach
the mutated function, the quickest first, until one fails; one process. About a second a mutant. Survivors are printed
as the line before and after. Killed = a test failed or ran out of time. Functions only: constants are not mutated.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CORE = ("spanner", "samplers", "coverage", "regression")
CONFIGURATION = """[mutmut]
source_paths=src/
only_mutate=
{sources}
pytest_add_cli_args_test_selection=
{tests}
pytest_add_cli_args=
    -p
    no:cacheprovider
    -m
    not slow
track_dependencies=false
use_git_change_detection=false
timeout_multiplier=4
"""


def prepare(folder: Path, modules: list[str]) -> None:
    """The copy that mutmut works on; what it found there before is kept, and used for functions that did not change."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("src", "tests"):
        shutil.rmtree(folder / name, ignore_errors=True)
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    sources = "\n".join(f"    src/spannerlm/{module}.py" for module in modules)
    tests = "\n".join(f"    tests/test_{module}.py" for module in modules)
    (folder / "setup.cfg").write_text(CONFIGURATION.format(sources=sources, tests=tests))


def mutmut(folder: Path, *arguments: str) -> str:
    """What mutmut printed; its own errors end the run."""
    command = [sys.executable, "-m", "mutmut", *arguments]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": ""}, text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def changes(folder: Path, mutant: str) -> list[str]:
    """The lines of a mutant's difference, the unchanged ones left out."""
    lines = mutmut(folder, "show", mutant).splitlines()
    return [f"{x[0]} {x[1:].strip()}" for x in lines if x[:1] in ("-", "+") and x[:3] not in ("---", "+++")]


def outcomes(folder: Path) -> dict[str, str]:
    """Mutant -> killed, timeout, survived, no tests, ..."""
    found = {}
    for line in mutmut(folder, "results", "--all", "true").splitlines():
        mutant, _, outcome = line.strip().partition(": ")
        if outcome:
            found[mutant] = outcome
    return found


def measure(folder: Path, modules: list[str]) -> list[dict[str, Any]]:
    """One row for each module."""
    mutmut(folder, "run", "--max-children", "1")
    found, rows = outcomes(folder), []
    for module in modules:
        own = {name: outcome for name, outcome in found.items() if name.startswith(f"spannerlm.{module}.")}
        left = [name for name, outcome in own.items() if outcome not in ("killed", "timeout")]
        survivors = {name.split(".", 2)[2]: [own[name], *changes(folder, name)] for name in left}
        rows.append({"module": module, "mutants": len(own), "killed": len(own) - len(left), "survivors": survivors})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(CORE)}; all by default")
    parser.add_argument("--folder", type=Path, help="where the copy is kept; a temporary folder by default")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    modules = options.modules or list(CORE)
    if unknown := set(modules) - set(CORE):
        parser.error(f"expected modules of {', '.join(CORE)}, got {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        prepare(folder, modules)
        rows = measure(folder, modules)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        for name, lines in row["survivors"].items():
            print("\n".join([f"{row['module']} {name}: {lines[0]}", *(f"    {line}" for line in lines[1:])]))
    print("\n| module | mutants | killed | survived | score |\n|---|---|---|---|---|")
    whole = {key: sum(row[key] for row in rows) for key in ("mutants", "killed")}
    for row in [*rows, {"module": "all", **whole}]:
        left, score = row["mutants"] - row["killed"], row["killed"] / max(row["mutants"], 1)
        print(f"| {row['module']} | {row['mutants']} | {row['killed']} | {left} | {score:.1%} |")


if __name__ == "__main__":
    main()
