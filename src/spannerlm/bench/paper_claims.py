"""What the rows of the suite `paper` say of each claim: numbers only, no verdict; what was not run is left out.

A cost is that of the first row from which the regret stays at a tenth of its start for 60 labels. Where a seed never
got there its cost is *at least* that of its last row: such costs carry ``reached`` < 1, and what is fitted to them is a
lower bound, never an estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from spannerlm.bench import paper_plan as plan
from spannerlm.bench.show import HOLD, SPACING, TARGET
from spannerlm.bench.statistics import (
    Interval,
    Runs,
    exponent,
    first_held,
    geometric_mean,
    median,
    paired_ratio,
    summary,
    value_at,
)
from spannerlm.records import FloatArray

Numbers = dict[str, Any]
"""JSON values and intervals."""

SHARES_OF_REGRET = (0.3, 0.1, 0.03, 0.01)
BUDGETS = tuple(range(40, 601, 40))
"""Labels at which regret is compared where exploring must not hurt."""


def costs(tables: Sequence[pa.Table], share: float = TARGET, column: str = "regret") -> FloatArray:
    """[4, S] labels, draws and updates of each job to the target, or at its last row; and whether it got there.

    Updates of the policy are as the explorer counts them, else label requests.
    """
    found = []
    for rows in tables:
        held = first_held(rows, share, HOLD, SPACING, column)
        reached = bool(np.isfinite(held.labels))
        row = rows.slice(int(held.rounds) if reached else rows.num_rows - 1, 1).to_pylist()[0]
        updates = row["rounds"] if row["updates"] is None else row["updates"]
        found.append([row["labels"], row["draws"], updates, float(reached)])
    return np.asarray(found, dtype=np.float64).reshape(-1, 4).T


def coverage(runs: Runs) -> Numbers:
    """(a) Near-orthogonal: completion against budgets of draws, draws and labels to completion against C.

    A run is complete if the policy on the responses that it drew reaches the target. Per seed, the number n of draws to
    completion is that of Spearman and Karber: ``log n = log n_max + s / 2 - s (number of budgets that sufficed)`` for
    budgets a factor e^s apart; its geometric mean over seeds assumes no form of the law of n. Every cell has seeds of
    its own, taken in order, so that cells are independent.
    """
    methods: Numbers = {}
    step = float(np.log(plan.SHARES[1] / plan.SHARES[0]))
    for variant in _variants(runs, "a: "):
        draws, success = [], []
        for c in plan.COVERAGES:
            cells = [runs.get((plan.sweep_task(c, share), variant), {}) for share in plan.SHARES]
            size = min(len(cell) for cell in cells)
            if size == 0:
                continue
            tables = [[cell[s] for s in sorted(cell)[:size]] for cell in cells]
            done = np.array([costs(cell, column="regret_drawn")[3] for cell in tables])  # [m, S]
            success += [[c, share, float(row.mean())] for share, row in zip(plan.SHARES, done, strict=True)]
            largest = np.log(c * plan.SHARES[-1]) + step / 2.0
            draws.append((c, np.exp(largest - step * done.sum(axis=0))))
        if not draws:
            continue
        methods[variant] = {
            "seeds": min(len(values) for _, values in draws),
            "success": success,
            "draws": [{"c": c, **_of(geometric_mean(values))} for c, values in draws],
            "exponent_draws": _exponent(draws, geometric=True),
            "labels": {
                f"{noise:g}": _growth(
                    runs,
                    variant,
                    [(c, plan.sweep_task(c, plan.SHARES[-1], noise)) for c in plan.COVERAGES],
                    column="regret_drawn",
                )
                for noise in (plan.QUIET, plan.LOUD)
            },
        }
    told = {}
    for variant in _variants(runs, "a: "):
        tasks = [(c, plan.told_nothing_task(c)) for c in plan.COVERAGES]
        found = _growth(runs, variant, tasks, column="regret_drawn")
        if found["points"]:
            told[variant] = found
    return {"given": methods, "told_nothing": told} if methods or told else {}


def rare(runs: Runs) -> Numbers:
    """(b) Rare skills: labels and draws against 1/p; labels at p = .001 as multiples of ours; labels against regret."""
    tasks = [(1.0 / p, plan.rare_task(p)) for p in plan.MASSES]
    methods = {v: _growth(runs, v, tasks) for v in _variants(runs, "b: ")}
    for variant, found in methods.items():
        low = [(x, task) for x, task in tasks if x >= 99.9]
        found["exponent_draws_rare"] = _growth(runs, variant, low)["exponent_draws"]
    if not methods:
        return {}
    at = plan.rare_task(1e-3)
    ratios: Numbers = {}
    for ours in (v.explorer for v in plan.OURS):
        for other in methods:
            mine, theirs = runs.get((at, ours), {}), runs.get((at, other), {})
            seeds = _common([mine, theirs])
            if other in (v.explorer for v in plan.OURS) or not seeds:
                continue
            a, b = costs([mine[s] for s in seeds]), costs([theirs[s] for s in seeds])
            ratio = median(b[0] / a[0])
            ratios.setdefault(ours, {})[other] = {
                **_of(ratio),
                "seeds": len(seeds),
                "reached": float(b[3].mean()),
                "ours_reached": float(a[3].mean()),
            }
    rate = {}
    for variant in (v.explorer for v in plan.OURS):
        tables = list(runs.get((plan.rare_task(1e-2), variant), {}).values())
        if tables:
            found_rate = [(1.0 / share, costs(tables, share)) for share in SHARES_OF_REGRET]
            rate[variant] = {
                "points": [_point(x, c) for x, c in found_rate],
                "exponent": _exponent([(x, c[0]) for x, c in found_rate]),
                "reached": min(float(c[3].mean()) for _, c in found_rate),
            }
    return {"methods": methods, "ratios": ratios, "rate": rate}


def interventions(runs: Runs) -> Numbers:
    """(c) max-k-dnf: labels and rounds against 2^k, without and with the skip of what says nothing."""
    found: Numbers = {}
    for name, skip in (("without_skip", False), ("with_skip", True)):
        tasks = [(2.0**k, plan.dnf_task(k, skip)) for k in plan.TERMS]
        proper = [v.name or v.explorer for v in plan.PROPER]
        methods = {}
        for variant in _variants(runs, "c: "):
            growth = _growth(runs, variant, tasks)
            if growth["points"]:
                methods[variant] = {**growth, "proper": variant in proper}
        if methods:
            found[name] = methods
    return found


def harmless(runs: Runs) -> Numbers:
    """(e) Regret at equal labels, and as a multiple of that of `passive`, seed by seed."""
    found: Numbers = {}
    for task in (task.name for task in plan.HARMLESS):
        reference = runs.get((task, "passive"), {})
        methods = {}
        for variant in _variants(runs, task):
            cells = runs.get((task, variant), {})
            seeds = _common([cells, reference])
            if not seeds:
                continue
            tables = [cells[s] for s in seeds]
            shares = np.array([value_at(t, BUDGETS) / float(t["start"][0].as_py()) for t in tables])
            ratios = [
                paired_ratio(*(np.array([value_at(source[s], [b])[0] for s in seeds]) for source in (cells, reference)))
                for b in BUDGETS
            ]
            methods[variant] = {
                "seeds": len(seeds),
                "regret": [{"labels": b, **_of(median(v))} for b, v in zip(BUDGETS, shares.T, strict=True)],
                "ratio": [{"labels": b, **_of(r)} for b, r in zip(BUDGETS, ratios, strict=True)],
                "labels": _of(median(np.array([first_held(t, TARGET, HOLD, SPACING).labels for t in tables]))),
            }
        if methods:
            found[task.removeprefix("e: ")] = methods
    return found


def rivals(rows: pa.Table, reference: str, source: str) -> Numbers:
    """(f) The table of the rivals: labels to the target by task and variant, and where its rows come from."""
    records = summary(rows, reference, TARGET, HOLD, SPACING)
    if not records:
        return {}
    kept = [
        {
            "task": record["task"].removeprefix("f: "),
            **{key: record[key] for key in ("variant", "seeds", "reached")},
            "labels": _of(record["labels"]),
            "ratio": _of(record["ratio"]),
        }
        for record in records
    ]
    return {"source": source, "reference": reference, "seeds": max(r["seeds"] for r in records), "table": kept}


# --- parts ------------------------------------------------------------------------------------------------------------


def _growth(runs: Runs, variant: str, tasks: Sequence[tuple[float, str]], column: str = "regret") -> Numbers:
    """Costs of one variant against x, and their exponents: over seeds that every task has, where they share any."""
    cells = [(x, runs.get((task, variant), {})) for x, task in tasks]
    cells = [(x, cell) for x, cell in cells if cell]
    seeds = _common([cell for _, cell in cells])
    size = len(seeds) if seeds else min((len(cell) for _, cell in cells), default=0)
    chosen = [(x, [cell[s] for s in seeds or sorted(cell)[:size]]) for x, cell in cells]
    found = [(x, costs(tables, column=column)) for x, tables in chosen] if size else []
    numbers: Numbers = {
        "seeds": size,
        "reached": min((float(c[3].mean()) for _, c in found), default=float("nan")),
        "points": [_point(x, c) for x, c in found],
    }
    for i, name in enumerate(("labels", "draws", "rounds")):
        numbers[f"exponent_{name}"] = _exponent([(x, c[i]) for x, c in found])
        middles = [float(np.median(c[i])) for _, c in found]
        numbers[f"spread_{name}"] = max(middles) / min(middles) if middles and min(middles) > 0.0 else float("nan")
    return numbers


def _point(x: float, c: FloatArray) -> Numbers:
    named = {name: _of(median(c[i])) for i, name in enumerate(("labels", "draws", "rounds"))}
    return {"x": float(x), **named, "reached": float(c[3].mean())}


def _exponent(points: Sequence[tuple[float, FloatArray]], geometric: bool = False) -> Numbers:
    """The exponent over x; of the seeds in order, as many as every x has."""
    if len(points) < 2:
        return _of(Interval(float("nan"), float("nan"), float("nan")))
    size = min(len(values) for _, values in points)
    y = np.array([values[:size] for _, values in points])
    return _of(exponent([x for x, _ in points], np.maximum(y, 1e-9), geometric=geometric))


def _of(interval: Interval) -> Numbers:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def _variants(runs: Runs, prefix: str) -> list[str]:
    """The variants of tasks whose names begin so, in their order."""
    return list(dict.fromkeys(variant for task, variant in runs if task.startswith(prefix)))


def _common(cells: Sequence[Any]) -> list[int]:
    """The seeds that all of them have."""
    return sorted(set.intersection(*(set(cell) for cell in cells))) if cells else []
