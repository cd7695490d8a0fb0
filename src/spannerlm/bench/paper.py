"""`bench paper`: rows -> numbers -> sentences and figures -> one page that needs nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from spannerlm.bench.paper_claims import coverage, foresight, harmless, interventions, rare, rivals, stepwise
from spannerlm.bench.paper_direct import samplers, sign_vectors
from spannerlm.bench.paper_figures import CLAIM, build
from spannerlm.bench.paper_plan import MISSPECIFIED
from spannerlm.bench.paper_words import TITLES, sentences
from spannerlm.bench.rows import Suite, load_rows, load_suite
from spannerlm.bench.show import figure_text, interval_text, plain_values
from spannerlm.bench.statistics import runs
from spannerlm.errors import InputError
from spannerlm.figures import render
from spannerlm.files import durable_write, make_folder, sync_folder
from spannerlm.wording import visible

TEMPLATE = Path(__file__).parent.with_name("templates") / "paper.html"


def paper_numbers(rows: pa.Table, rivals_rows: tuple[pa.Table, str, str] | None = None) -> dict[str, Any]:
    """All numbers of the page by claim, a to h; a claim without rows is empty.

    ``rivals_rows``: (rows, reference, where they come from) of a suite `rivals`; else (f) and (g) have the paper
    suite's own.
    Cost: no rows are made; a few seconds for what needs none (`paper_direct`).
    """
    found = runs(rows)
    numbers: dict[str, Any] = {
        "a": coverage(found),
        "b": rare(found),
        "c": interventions(found),
        "d": samplers(),
        "e": harmless(found),
        "h": stepwise(found),
    }
    signs = sign_vectors()
    if signs is not None:
        numbers["c"]["signs"] = signs
    wrong = {key: seeds for key, seeds in found.items() if key[0] in MISSPECIFIED}
    if rivals_rows is None:
        own = rows.filter(pc.starts_with(rows["task"], "f: "))
        source = "Reduced: {} seeds, batches of 20 and at most 400 labels; `spannerlm bench rivals` is the whole table"
        numbers["f"] = rivals(own, "spanner-sampling", "") if own.num_rows else {}
        if numbers["f"]:
            numbers["f"]["source"] = source.format(numbers["f"]["seeds"])
        right = {key: seeds for key, seeds in found.items() if key[0].startswith("f: ")}
        numbers["g"] = foresight(right, wrong, "Realizable families: the reduced runs of (f)")
    else:
        table, reference, source = rivals_rows
        numbers["f"] = rivals(table, reference, source)
        numbers["g"] = foresight(runs(table), wrong, f"Realizable families: {source[0].lower()}{source[1:]}")
    return numbers


def load_rivals(directory: Path) -> tuple[pa.Table, str, str]:
    """(rows, reference, a sentence) of the suite `rivals` in ``directory``; `InputError` where there is another."""
    suite = load_suite(directory)
    if suite.name != "rivals":
        raise InputError(f"{directory}: expected rows of suite 'rivals', found {suite.name!r}: give its directory")
    seeds = len({job.seed for job in suite.jobs})
    batch = sorted({job.batch for job in suite.jobs})
    return load_rows(directory), suite.reference, f"The suite rivals: {seeds} seeds, batches of {batch[-1]}"


def write_paper(
    directory: Path, suite: Suite, rows: pa.Table, rivals_rows: tuple[pa.Table, str, str] | None = None
) -> tuple[Path, ...]:
    """The files written: ``figures/*.png`` and ``*.svg``, ``paper.json`` with every number, and ``paper.html``.

    Each is whole or absent; a figure that has nothing to show any more is removed. Raises `LedgerError` where the disk
    takes no more.
    """
    numbers = paper_numbers(rows, rivals_rows)
    folder = directory / "figures"
    make_folder(folder)
    written: list[Path] = []
    pictures: dict[str, str] = {}
    for name in (name for names in CLAIM.values() for name in names):
        paths = folder / f"{name}.png", folder / f"{name}.svg"
        figure = build(name, numbers)
        if figure is None:
            for path in paths:
                path.unlink(missing_ok=True)
            continue
        drawing = render(figure)
        for path, data in zip(paths, (drawing.png, drawing.svg), strict=True):
            durable_write(path, data)
            written.append(path)
        pictures[name] = "data:image/svg+xml;base64," + base64.b64encode(drawing.svg).decode("ascii")
    sync_folder(folder)
    said = sentences(numbers)
    shown = {"note": suite.note, "claims": {k: {"title": TITLES[k], "sentences": v} for k, v in said.items()}}
    text = json.dumps({**shown, "numbers": plain_values(numbers)}, indent=1, allow_nan=False) + "\n"
    durable_write(directory / "paper.json", text.encode())
    page = render_paper(suite.note, numbers, said, pictures)
    durable_write(directory / "paper.html", page.encode("utf-8"))
    sync_folder(directory)
    return (*written, directory / "paper.json", directory / "paper.html")


def render_paper(
    note: str, numbers: Mapping[str, Any], said: Mapping[str, list[str]], pictures: Mapping[str, str]
) -> str:
    """The page's HTML; ``pictures``: figure name -> data URI."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(visible=lambda text: visible(str(text)))
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    claims = [
        (key, TITLES[key], said[key], [(name, pictures[name]) for name in CLAIM[key] if name in pictures])
        for key in TITLES
        if key in said
    ]
    return template.render(note=note, claims=claims, table=_table(numbers.get("f") or {}))


def _table(f: Mapping[str, Any]) -> dict[str, Any]:
    """Column names and rows of the rivals' table, as text; empty where there is none."""
    records = f.get("table") or ()
    tasks = list(dict.fromkeys(r["task"] for r in records))
    cells = {(r["variant"], r["task"]): r for r in records}
    variants = list(dict.fromkeys(r["variant"] for r in records))

    def cell(record: Mapping[str, Any] | None) -> tuple[str, str]:
        if record is None:
            return "–", ""
        return figure_text(record["labels"]["value"]), interval_text(record["labels"])

    return {"tasks": tasks, "rows": [(v, [cell(cells.get((v, t))) for t in tasks]) for v in variants]}
