"""What a suite prints: a line per finished job, the closing table, and the same numbers as a document."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spannerlm.bench.rows import Finished, Suite
from spannerlm.bench.statistics import Interval, summary
from spannerlm.live import stripped
from spannerlm.wording import count, few, share

TARGET, HOLD, SPACING = 0.1, 4, 20
"""The target of every table: regret at most a tenth of its start, at four checks of 20 labels in a row."""


def progress_line(finished: Finished) -> str:
    """``[3/36] tie, passive, seed 2: 400 labels, 2,450 draws, regret 0.491 -> 0.012``, or what failed."""
    job, last = finished.job, finished.rows.slice(finished.rows.num_rows - 1).to_pylist()[0]
    place = f"[{finished.number}/{finished.total}] {job.task}, {job.variant}, seed {job.seed}"
    if finished.error:
        return stripped(f"{place}: failed: {finished.error}")
    costs = f"{count(last['labels'])} labels, {count(last['draws'])} draws"
    return stripped(f"{place}: {costs}, regret {last['start']:.3g} -> {last['regret']:.3g}")


def document(suite: Suite, rows: pa.Table, directory: Path) -> dict[str, Any]:
    """The suite's numbers as JSON values: an undefined one is None, an infinite one the text "inf" or "-inf"."""
    failed = rows.filter(pc.equal(rows["status"], "failed"))
    named = failed.select(["task", "variant", "seed", "error"]).to_pylist()
    return {
        "suite": suite.name,
        "note": suite.note,
        "directory": str(directory),
        "reference": suite.reference,
        "target": {"share": TARGET, "hold": HOLD, "spacing": SPACING},
        "jobs": len(suite.jobs),
        "failed": named,
        "table": [plain_values(record) for record in summary(rows, suite.reference, TARGET, HOLD, SPACING)],
    }


def show_suite(console: Console, shown: Mapping[str, Any]) -> None:
    """Print the table of a `document`: one part per task, one line per variant."""
    reference = shown["reference"]
    console.print(Text(stripped(f"Suite {shown['suite']}. {shown['note']}")))
    console.print()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    table.add_column("task, explorer", overflow="fold", min_width=18)
    table.add_column("labels")
    cost = _cost(shown)
    for name in (cost, "reached"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("ratio of labels")
    task = None
    for record in shown["table"]:
        if record["task"] != task:
            if task is not None:
                table.add_row()
            task = record["task"]
            table.add_row(Text(stripped(task), style="bold"))
        ratio = "reference" if record["variant"] == reference else interval_text(record["ratio"])
        table.add_row(
            Text(" " + stripped(record["variant"])),
            Text(interval_text(record["labels"])),
            Text(figure_text(record[cost]["value"])),
            Text(_reached(record)),
            Text(ratio),
        )
    console.print(table)
    console.print()
    for line in _notes(shown):
        console.print(Text(stripped(line)))


def _notes(shown: Mapping[str, Any]) -> list[str]:
    """What the table's numbers are, and what failed."""
    target = shown["target"]
    window = (target["hold"] - 1) * target["spacing"]
    lines = [
        f"labels, {_cost(shown)}: until regret is at most {share(target['share'])} of where it started and stays there "
        f"for {window} labels; median over seeds with 95 % interval. ∞: not within the label budget.",
        f"ratio of labels: to those of {shown['reference']}, seed by seed. –: undefined.",
    ]
    if shown["failed"]:
        lines.append(
            f"{count(len(shown['failed']))} of {count(shown['jobs'])} jobs failed; the same command tries again."
        )
    page = [f"page     {shown['page']}"] if "page" in shown else []
    return [*lines, f"rows     {shown['directory']}/rows", *page]


def _cost(shown: Mapping[str, Any]) -> str:
    """What stands beside labels: tokens where there are some, since a draw is then a sequence or a single action."""
    return "draws" if all(record["tokens"]["value"] is None for record in shown["table"]) else "tokens"


def _reached(record: Mapping[str, Any]) -> str:
    """``3/4``: how many of the seeds that finished, and how many failed."""
    seeds = record["seeds"]
    failed = f", {record['failed']} failed" if record["failed"] else ""
    return f"{round((record['reached'] or 0.0) * seeds)}/{seeds}{failed}"


def interval_text(interval: Mapping[str, Any]) -> str:
    """``97 [62, 133]``; a single sign where both ends are the value or nothing is known."""
    value, low, high = (figure_text(interval[key]) for key in ("value", "low", "high"))
    return value if value == low == high else f"{value} [{low}, {high}]"


def figure_text(value: Any) -> str:
    """The number to three digits, 174k for thousands from ten on, 2.8M for millions, ∞ or –."""
    if isinstance(value, float) and not math.isfinite(value):
        value = None if math.isnan(value) else str(value)
    if isinstance(value, str):
        return {"inf": "∞", "-inf": "-∞"}.get(value, "–")
    for limit, unit, sign in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value is not None and value >= limit:
            return f"{few(value / unit)}{sign}"
    return few(value)


def plain_values(value: Any) -> Any:
    """JSON values: an interval as its three numbers, an undefined number None, an infinite one "inf" or "-inf"."""
    if isinstance(value, Interval):
        return {field.name: plain_values(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
