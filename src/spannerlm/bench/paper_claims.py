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
from numpy.typing import ArrayLike

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
from spannerlm.explorers import STEP_EXPLORERS
from spannerlm.records import FloatArray

Numbers = dict[str, Any]
"""JSON values and intervals."""

SHARES_OF_REGRET = (0.3, 0.1, 0.03, 0.01)
CHECKS = 20
"""Labels between two looks at a predicted regret: runs whose rows are closer together count no more."""
LOOKED_AT = (20, 40, 60, 100, 200, 300, 400, 600)
"""Labels at which the ratio of true to predicted regret is told one by one."""
DRAWN_AT = (40, 80, 160, 320)
"""Labels at which a run is a mark in the scatter."""
PREDICTIONS = {"expected": "predicted_regret", "wide": "predicted_regret_wide"}
LOCKED = 0.05
"""Share of the regret at which a lock counts as opened."""
BUDGETS = tuple(range(40, 601, 40))
"""Labels at which regret is compared where exploring must not hurt."""


def costs(
    tables: Sequence[pa.Table], share: float = TARGET, column: str = "regret", costing: str = "draws"
) -> FloatArray:
    """[4, S] labels, draws and updates of each job to the target, or at its last row; and whether it got there.

    ``costing``: the column that stands for draws, which may be tokens. Updates of the policy are as the explorer counts
    them, else label requests.
    """
    found = []
    for rows in tables:
        held = first_held(rows, share, HOLD, SPACING, column)
        reached = bool(np.isfinite(held.labels))
        row = rows.slice(int(held.rounds) if reached else rows.num_rows - 1, 1).to_pylist()[0]
        updates = row["rounds"] if row["updates"] is None else row["updates"]
        found.append([row["labels"], row[costing], updates, float(reached)])
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


def foresight(realizable: Runs, misspecified: Runs, source: str) -> Numbers:
    """(g) Regret of `directed`: true over predicted, family by family, and how often its warning fires.

    A run's ratio is the median over looks every 20 labels, from its first 20 on; a family's is the median over runs,
    ``overall`` that over the runs of all realizable families. ``warned`` is the share of runs with a warning at any
    row, ``warned_last`` at the last one. Runs of other explorers are left out.
    """
    numbers: Numbers = {"source": source}
    for name, found in (("realizable", realizable), ("misspecified", misspecified)):
        cells = {task: list(seeds.values()) for (task, variant), seeds in found.items() if variant == "directed"}
        families = {task.partition(": ")[2] or task: _foreseen(tables) for task, tables in cells.items() if tables}
        if families:
            everything = [table for tables in cells.values() for table in tables]
            whole = _foreseen(everything)
            overall = {key: whole[key] for key in ("seeds", *PREDICTIONS, "warned", "warned_last")}
            numbers[name] = {"families": families, "overall": overall}
    return numbers if len(numbers) > 1 else {}


def stepwise(runs: Runs) -> Numbers:
    """(h) Locks: tokens and labels to 5 % of the regret against H, by family and explorer, and what is exact.

    ``exponent_tokens`` and ``exponent_labels`` are over H, ``rate_tokens`` is e of a growth like 2^(e H). ``exact``:
    C_cov H tokens, for one answer of the whole optimum by rejection, at every H that was run; median over seeds.
    """
    found: Numbers = {}
    for family, horizons in plan.STEPWISE.items():
        tasks = [(float(h), plan.lock_task(family, h)) for h in horizons]
        methods = {}
        for variant in _variants(runs, f"h: {family} "):
            growth = _growth(runs, variant, tasks, share=LOCKED, costing="tokens")
            if growth["points"]:
                methods[variant] = {**growth, "steps": variant in STEP_EXPLORERS}
        exact = []
        for h, task in tasks:
            tables = [table for (name, _), seeds in runs.items() if name == task for table in seeds.values()]
            if tables:
                c_cov, c_cond = (float(np.median([t[c][0].as_py() for t in tables])) for c in ("c_cov", "c_cond"))
                exact.append({"x": h, "tokens": c_cov * h, "c_cov": c_cov, "c_cond": c_cond})
        if methods:
            single = [(2.0 ** p["x"], np.array([p["tokens"]])) for p in exact]
            found[family] = {"methods": methods, "exact": exact, "rate_exact": _exponent(single)}
    return found


# --- parts ------------------------------------------------------------------------------------------------------------


def _growth(
    runs: Runs,
    variant: str,
    tasks: Sequence[tuple[float, str]],
    column: str = "regret",
    share: float = TARGET,
    costing: str = "draws",
) -> Numbers:
    """Costs of one variant against x, and their exponents: over seeds that every task has, where they share any.

    With ``costing`` tokens these take the place of draws, and ``rate_tokens`` is e of tokens like 2^(e x).
    """
    cells = [(x, runs.get((task, variant), {})) for x, task in tasks]
    cells = [(x, cell) for x, cell in cells if cell]
    seeds = _common([cell for _, cell in cells])
    size = len(seeds) if seeds else min((len(cell) for _, cell in cells), default=0)
    chosen = [(x, [cell[s] for s in seeds or sorted(cell)[:size]]) for x, cell in cells]
    found = [(x, costs(tables, share, column, costing)) for x, tables in chosen] if size else []
    names = ("labels", costing, "rounds")
    numbers: Numbers = {
        "seeds": size,
        "reached": min((float(c[3].mean()) for _, c in found), default=float("nan")),
        "points": [_point(x, c, names) for x, c in found],
    }
    if costing == "tokens":
        numbers["rate_tokens"] = _exponent([(2.0**x, c[1]) for x, c in found])
    for i, name in enumerate(names):
        numbers[f"exponent_{name}"] = _exponent([(x, c[i]) for x, c in found])
        middles = [float(np.median(c[i])) for _, c in found]
        numbers[f"spread_{name}"] = max(middles) / min(middles) if middles and min(middles) > 0.0 else float("nan")
    return numbers


def _foreseen(tables: Sequence[pa.Table]) -> Numbers:
    """What (g) says of some runs; a prediction of nothing, or of a regret that is 0, has no ratio."""
    ends = [int(table["labels"][-1].as_py()) for table in tables]
    looks = [_ratios(table, np.arange(CHECKS, end + 1, CHECKS)) for table, end in zip(tables, ends, strict=True)]
    at = []
    for labels in LOOKED_AT:
        reaching = [_ratios(table, [labels]) for table, end in zip(tables, ends, strict=True) if end >= labels]
        if reaching:
            at.append({"labels": labels, **{name: _of(_middle(reaching, name)) for name in PREDICTIONS}})
    fired = [table["warning"].is_valid().to_numpy() for table in tables]
    points = []
    for table, end in zip(tables, ends, strict=True):
        start, grid = float(table["start"][0].as_py()), [labels for labels in DRAWN_AT if labels <= end]
        columns = [value_at(table, grid, column) / start for column in (*PREDICTIONS.values(), "regret")]
        points += [[float(value) for value in row] for row in zip(*columns, strict=True)]
    return {
        "seeds": len(tables),
        "rows": float(np.median([table.num_rows - 1 for table in tables])),
        **{name: _of(_middle(looks, name)) for name in PREDICTIONS},
        "at": at,
        "warned": float(np.mean([bool(row.any()) for row in fired])),
        "warned_last": float(np.mean([bool(row[-1]) for row in fired])),
        "points": points,
    }


def _ratios(rows: pa.Table, labels: ArrayLike) -> dict[str, FloatArray]:
    """True over predicted regret of one job at these labels, where both are positive."""
    true = value_at(rows, labels)
    found = {}
    for name, column in PREDICTIONS.items():
        said = value_at(rows, labels, column)
        usable = (true > 0.0) & (said > 0.0) & np.isfinite(said)
        found[name] = true[usable] / said[usable]
    return found


def _middle(looks: Sequence[dict[str, FloatArray]], name: str) -> Interval:
    """Median over jobs of each one's median ratio; jobs without any are left out."""
    return median([float(np.median(found[name])) for found in looks if len(found[name])])


def _point(x: float, c: FloatArray, names: Sequence[str] = ("labels", "draws", "rounds")) -> Numbers:
    named = {name: _of(median(c[i])) for i, name in enumerate(names)}
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
