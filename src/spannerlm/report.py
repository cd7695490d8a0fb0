"""Stored rows -> figures and one self-contained HTML page (no model, no network, no script in the page).

The rows are the mapping of ``report.json`` (`spannerlm.summary`). Every text in them is hostile input: the template
escapes it, control characters are spelled out, and a strict content-security policy lets nothing load or run.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spannerlm import wording
from spannerlm.figures import FIGURES, build, render
from spannerlm.files import durable_write, make_folder, sync_folder

TEMPLATE = Path(__file__).with_name("templates") / "report.html"
TITLES = {
    "value_against_labels": "Value against labels",
    "value_against_kl": "Value against KL, and what an answer costs",
    "spanner_growth": "The spanner and its certificate",
    "spectrum": "Spectrum of relative features",
    "draws_per_answer": "Draws per accepted response",
}
PARTS = (
    ("load", "load the model"),
    ("generation", "generation and features"),
    ("reward", "reward"),
    ("explorer", "explorer"),
    ("ledger", "ledger"),
    ("evaluation", "evaluation"),
    ("baselines", "random baselines"),
    ("report", "report"),
    ("total", "in all"),
)
"""Parts of a run whose seconds are told, in the order of their place in it."""


def write_report(directory: Path, report: Mapping[str, Any]) -> tuple[Path, ...]:
    """The files written: ``figures/*.png`` and ``*.svg`` of what there is to draw, and ``report.html``.

    Each is whole or absent. A figure that has nothing to show any more is removed. Raises `LedgerError` where the disk
    refuses. Cost: no draws, no labels.
    """
    folder = directory / "figures"
    make_folder(folder)
    written: list[Path] = []
    pictures: dict[str, str] = {}
    for name in FIGURES:
        paths = folder / f"{name}.png", folder / f"{name}.svg"
        figure = build(name, report)
        if figure is None:
            for path in paths:
                path.unlink(missing_ok=True)
            continue
        drawing = render(figure)
        for path, data in zip(paths, (drawing.png, drawing.svg), strict=True):
            durable_write(path, data)
            written.append(path)
        pictures[name] = _inline(drawing.svg, name)
    sync_folder(folder)
    durable_write(directory / "report.html", render_page(report, pictures, str(directory)).encode("utf-8"))
    sync_folder(directory)
    return (*written, directory / "report.html")


def _inline(svg: bytes, name: str) -> str:
    """The SVG element alone, its ids made the picture's own: several share one page."""
    text = svg.decode("utf-8")
    text = text[text.index("<svg") :]
    for before, after in (('id="', f'id="{name}-'), ("url(#", f"url(#{name}-"), ('href="#', f'href="#{name}-')):
        text = text.replace(before, after)
    return text


def render_page(report: Mapping[str, Any], pictures: Mapping[str, str], directory: str) -> str:
    """The page's HTML; ``pictures``: figure name -> inline SVG, made by `figures` and therefore trusted."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        sentence=_sentence,
        visible=lambda text: wording.visible(str(text)),
        few=wording.few,
        short=wording.short,
        share=wording.share,
    )
    captions = wording.captions(report)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        report=report,
        shell_path=shlex.quote(wording.visible(directory)),
        python_path=repr(wording.visible(directory)),
        headline=wording.headline(report),
        recommendation=wording.recommendation(report),
        recommended=report.get("recommended") or {},
        certificate=wording.certificate_words(report),
        table=table_rows(report),
        figures=[(TITLES[name], captions[name], Markup(svg)) for name, svg in pictures.items()],
        costs=cost_rows(report),
        times=[(label, wording.seconds(report["timings"][key])) for key, label in PARTS if key in _timings(report)],
        estimates=[(e["name"], wording.interval(e), e["note"]) for e in report.get("estimates") or ()],
    )


def _sentence(text: str) -> str:
    """The text with its first letter raised and one full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _timings(report: Mapping[str, Any]) -> Mapping[str, Any]:
    return report.get("timings") or {}


def table_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of the final table as text: name, value with its interval, KL, labels, draws, draws per answer."""
    return [
        (
            wording.visible(str(row.get("name"))),
            wording.interval(row),
            wording.short(row.get("kl")),
            wording.count(row.get("labels")),
            wording.count(row.get("draws")),
            wording.few(row.get("draws_per_answer")),
        )
        for row in report.get("table") or ()
    ]


def cost_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the run has cost, by kind, as text; kinds that cost nothing are left out, labels and draws never."""
    counts = report.get("counts") or {}
    kinds = (
        ("labels", "reward labels bought to learn", True),
        ("draws", "draws of the base model to learn", True),
        ("eval_labels", "labels bought to measure", False),
        ("eval_draws", "draws to measure, on held-out prompts", False),
        ("skips", "labels that the source declined", False),
        ("failed", "labels that failed", False),
        ("rebought", "labels asked for a second time, perhaps paid twice", False),
    )
    rows = [(label, wording.count(counts.get(key))) for key, label, always in kinds if always or counts.get(key)]
    return rows + [(f"requests to {name}", wording.bill(paid)) for name, paid in (report.get("usage") or {}).items()]
