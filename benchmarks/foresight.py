"""What `directed` predicts of its regret: true over predicted, its warning, and where it stops by itself.

    python benchmarks/foresight.py [--seeds 20] [--jobs 1]

Exact environments, seeds from 3000, batches of 5 labels, at most 600 of them. First table: runs to the cap, true over
predicted regret at some numbers of labels (median over seeds) under the posterior and under the wide prior, the median
over looks every 20 labels, and the share of runs that warn, at some row and at the last; misspecified tasks have 300
labels. Second table: `explore(..., target_regret=...)` with a tenth and a fifth of the regret at the start. `below` is
the share of the runs that stopped whose true regret is at most the asked one; the oracle stops at the first row of the
run to the cap from which true regret stays at most the asked one. Intervals are 95 % bootstraps over seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from joblib import Parallel, delayed

import spannerlm
from spannerlm.bench.paper_claims import foresight
from spannerlm.bench.paper_plan import ZETAS
from spannerlm.bench.rows import RUN_SEED, SCHEMA, Job, work
from spannerlm.bench.statistics import Interval, median, paired_ratio, runs
from spannerlm.environments import environment

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "rare-skill p=.1": ("rare-skill", {"p": 0.1}),
    "rare-skill p=.01": ("rare-skill", {"p": 0.01}),
    "deceptive": ("deceptive", {}),
    "tie": ("tie", {}),
    "low-variance": ("low-variance", {}),
    "power-law": ("power-law", {}),
}
WRONG = ("tie", "rare-skill p=.1")
"""Families that are run misspecified as well."""
ASKED = (0.1, 0.2)
FIRST, BATCH, CAP, SHORT = 3000, 5, 600, 300


def to_the_end(task: str, family: str, seed: int, zeta: float | None) -> pa.Table:
    """The rows of one run that does not stop by itself."""
    name, parameters = FAMILIES[family]
    modifiers = {} if zeta is None else {"misspecified": {"zeta": zeta}}
    labels = CAP if zeta is None else SHORT
    job = Job(task, name, parameters, modifiers, "directed", {}, seed, labels, BATCH)
    rows = pa.table(work("foresight", job), schema=SCHEMA)
    if rows["status"][0].as_py() != "done":
        raise RuntimeError(f"{task}, seed {seed}: {rows['error'][0].as_py()}")
    return rows


def stopped(family: str, seed: int, rows: pa.Table, share: float) -> tuple[float, float, float, float]:
    """(labels at the stop, inf if the cap came first; labels of the oracle; true regret and the asked one)."""
    name, parameters = FAMILIES[family]
    env = environment(name, **parameters, seed=seed)
    asked = share * float(rows["start"][0].as_py())
    options: dict[str, Any] = {"labels": CAP, "batch": BATCH, "seed": RUN_SEED + seed, "target_regret": asked}
    result = spannerlm.explore(env, explorer="directed", **options)
    outside = np.flatnonzero(rows["regret"].to_numpy() > asked)
    first = int(outside[-1]) + 1 if len(outside) else 0
    oracle = float(rows["labels"][first].as_py()) if first < rows.num_rows else float("inf")
    spent = float(result.labels) if result.labels < CAP else float("inf")
    return spent, oracle, env.regret(result.policy.table(env)), asked


def cell(interval: Interval | Mapping[str, float], digits: int = 2) -> str:
    """``1.02 [0.98, 1.06]``."""
    found = vars(interval) if isinstance(interval, Interval) else interval
    value, low, high = (f"{found[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def print_predictions(tables: dict[str, list[pa.Table]], wrong: dict[str, list[pa.Table]]) -> None:
    """The first table."""
    right, off = (runs(pa.concat_tables([t for group in part.values() for t in group])) for part in (tables, wrong))
    numbers = foresight(right, off, "")
    at = [x["labels"] for x in next(iter(numbers["realizable"]["families"].values()))["at"]]
    print(
        "True over predicted regret, expected / wide, at", *at, "labels; over all looks; warned at some row / the last"
    )
    for kind in ("realizable", "misspecified"):
        for task, found in numbers[kind]["families"].items():
            cells = [f"{x['expected']['value']:.2f}/{x['wide']['value']:.2f}" for x in found["at"]]
            print(f"{task:26}", *(f"{c:>11}" for c in [*cells, *[""] * (len(at) - len(cells))]), end="  ")
            print_overall(found)
        print(f"{kind + ', all':26}", end=" " * (12 * len(at) + 2))
        print_overall(numbers[kind]["overall"])


def print_overall(found: Mapping[str, Any]) -> None:
    """Ratios over all looks, and warnings."""
    warned = f"{100 * found['warned']:.0f} % / {100 * found['warned_last']:.0f} %"
    print(f"{cell(found['expected'])}  {cell(found['wide'])}  {warned}")


def print_stops(found: Mapping[tuple[str, float], list[tuple[float, float, float, float]]]) -> None:
    """The second table."""
    columns = ("stopped", "below", "true / asked", "labels", "oracle", "labels / oracle")
    print(f"\n{'asked, of the start':26}", *(f"{name:>20}" for name in columns))
    total: dict[float, list[tuple[float, float, float, float]]] = {}
    for (family, share), outcomes in found.items():
        total.setdefault(share, []).extend(outcomes)
        print_stop(f"{family}, {100 * share:.0f} %", outcomes)
    for share, outcomes in total.items():
        print_stop(f"all, {100 * share:.0f} %", outcomes)


def print_stop(name: str, outcomes: list[tuple[float, float, float, float]]) -> None:
    """One line of the second table."""
    spent, oracle, true, asked = np.array(outcomes).T
    ended = np.isfinite(spent)
    below = f"{np.mean((true <= asked)[ended]):.2f}" if ended.any() else "-"
    ratio = cell(median((true / asked)[ended]))
    shown = f"{ended.mean():.2f}", below, ratio, cell(median(spent), 0), cell(median(oracle), 0)
    print(f"{name:26}", *(f"{text:>20}" for text in (*shown, cell(paired_ratio(spent, oracle)))))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    seeds = range(FIRST, FIRST + args.seeds)
    pool = Parallel(n_jobs=args.jobs)
    tasks = [(family, family, None) for family in FAMILIES]
    tasks += [(f"{family}, zeta={zeta:g}", family, zeta) for family in WRONG for zeta in ZETAS]
    jobs = [(task, family, seed, zeta) for task, family, zeta in tasks for seed in seeds]
    results = pool(delayed(to_the_end)(*job) for job in jobs)
    groups: dict[str, list[pa.Table]] = {task: [] for task, _, _ in tasks}
    for (task, *_), rows in zip(jobs, results, strict=True):
        groups[task].append(rows)
    right = {task: groups[task] for task in FAMILIES}
    print_predictions(right, {task: rows for task, rows in groups.items() if task not in FAMILIES})
    cells = [(family, share) for family in FAMILIES for share in ASKED]
    stops = [
        (family, seed, rows, share) for family, share in cells for seed, rows in zip(seeds, right[family], strict=True)
    ]
    outcomes = pool(delayed(stopped)(*stop) for stop in stops)
    print_stops({key: outcomes[i * len(seeds) : (i + 1) * len(seeds)] for i, key in enumerate(cells)})


if __name__ == "__main__":
    main()
