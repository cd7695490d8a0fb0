"""A coverage report's document -> figures and one self-contained HTML page (no model, no network, no script).

Every text of the document is hostile input: the template escapes it, control characters are spelled out, and a strict
content-security policy lets nothing load or run, as in `spannerlm.report`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spannerlm import wording
from spannerlm.figures import render
from spannerlm.files import durable_write, make_folder, sync_folder
from spannerlm.foundation.canvas import MOST
from spannerlm.foundation.figures import FIGURES, build
from spannerlm.report import _inline
from spannerlm.wording import Row, count, few, nats, number, share, short

TEMPLATE = Path(__file__).parents[1] / "templates" / "coverage.html"
BEYOND = 30
"""Prompts beyond the model that are shown; the rest are counted."""
ROWS = 100
"""Prompts of the table that are shown."""
CUT = 120
"""Letters of a text in the table of prompts."""
NONE = "–"

VERDICTS: Mapping[str, tuple[str, str]] = {
    "go": ("✔", "good"),
    "go with draws": ("◐", "costly"),
    "better features": ("✎", "costly"),
    "no foundation": ("✘", "bad"),
    "nothing to gain": ("=", "plain"),
    "cannot tell": ("?", "plain"),
}
"""Symbol and class of each verdict; its word stands beside them."""

CAPTIONS: Mapping[str, tuple[str, str]] = {
    "pass_at_k": (
        "Chance that one of k draws succeeds",
        "Solid: counted in the draws. Dashed: extrapolated from how the prompts' success rates are spread; where its "
        "band is wide, the data cannot tell.",
    ),
    "best_of_k": (
        "Reward of the best of k draws",
        "The expected true reward where the best of k draws is taken. Without a band: too few draws to bound it.",
    ),
    "value_and_cost": (
        "What tilting reaches, and what an answer costs",
        "Tilting takes the model's better draws more often; KL is how far that goes from the base model. The farther, "
        "the more it earns and the more draws an answer costs. Whiskers end at the upper 95 % bound; an arrow: these "
        "draws give no bound.",
    ),
    "success_rates": (
        "Success rate of a draw, prompt by prompt",
        "Prompts none of whose draws succeeded are set apart. Dashed: the rarest success that the draws of one answer "
        "(coverage.max_draws) can still afford.",
    ),
    "features": (
        "Features under test",
        "A feature map turns a reply into the numbers that labels teach about. What a policy fitted elsewhere on each "
        "map keeps of the gain, and what the map explains of the rewards' differences within a prompt. Below 0 it is "
        "worse than no features.",
    ),
    "forecast": (
        "Labels to the target",
        "Labels until the policy holds the named share of the gain, in simulated runs on these draws: chosen by "
        "exploration, and of random draws. An arrow: the runs' labels ended before the upper end.",
    ),
    "spectrum": (
        "Spectrum of the relative features",
        "The steeper it falls, the fewer directions there are for labels to learn.",
    ),
    "spanner_growth": (
        "Growth of the spanner",
        "Pairs of replies whose labels span what the draws differ in, after so many draws of each prompt.",
    ),
}
"""Title and caption of each figure."""


def write_page(directory: Path, document: Mapping[str, Any]) -> tuple[Path, ...]:
    """The files written: ``figures/*.png`` and ``*.svg`` of what there is to draw, and ``coverage.html``.

    Each is whole or absent; a figure that has nothing to show any more is removed. Equal documents give equal bytes.
    Raises `LedgerError` where the disk refuses. Cost: no draws, no labels.
    """
    folder = directory / "figures"
    make_folder(folder)
    written: list[Path] = []
    pictures: dict[str, str] = {}
    for name in FIGURES:
        paths = folder / f"{name}.png", folder / f"{name}.svg"
        figure = build(name, document)
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
    durable_write(directory / "coverage.html", render_page(document, pictures).encode("utf-8"))
    sync_folder(directory)
    return (*written, directory / "coverage.html")


def render_page(document: Row, pictures: Mapping[str, str]) -> str:
    """The page's HTML; ``pictures``: figure name -> inline SVG, made by `figures` and therefore trusted."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        visible=lambda text: wording.visible(str(text)), cut=cut, short=short, share=share, count=count
    )
    models: Sequence[Row] = document["models"]
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        document=document,
        about=about(document),
        headline=document["headline"] if len(models) > 1 else (),
        several=len(models) > 1,
        symbols={kind: VERDICTS.get(kind, ("?", "plain")) for kind in (m["verdict"]["kind"] for m in models)},
        comparison=comparison(document) if len(models) > 1 else (),
        figures=[(*CAPTIONS[name], Markup(svg)) for name, svg in pictures.items()],
        sections=[_section(model, document) for model in models],
        rows_shown=ROWS,
        most=MOST,
    )


def _section(model: Row, document: Row) -> dict[str, Any]:
    """What the template shows of one model beside its verdict."""
    hopeless = list((model.get("success") or {}).get("hopeless") or ())
    return {
        "model": model,
        "statements": statements(model),
        "seen": seen_rows(model),
        "spans": span_rows(model),
        "kls": kl_rows(model),
        "steps": step_rows(model),
        "maps": part_maps(model),
        "parts": part_rows(model),
        "beyond": [(k, document["prompts"][k]) for k in hopeless[:BEYOND]],
        "beyond_more": max(0, len(hopeless) - BEYOND),
        "prompts": prompt_rows(model, document["prompts"]),
    }


def cut(text: object) -> str:
    """The text on one line, at most CUT letters of it, control characters spelled out."""
    line = " ".join(wording.visible(str(text)).split())
    return line if len(line) <= CUT else f"{line[: CUT - 1]}…"


def about(document: Row) -> str:
    """What was asked, in one line."""
    settings = document["settings"]
    words = [f"{_plural(len(document['prompts']), 'prompt')}", f"{_plural(settings.get('draws'), 'draw')} of each"]
    if settings.get("reward"):
        words.append(f"reward: {settings['reward']}")
    level = settings.get("success") or {}
    if not math.isnan(number(level.get("value"))):
        source = {"two values": "the upper of its two values", "optimum": "what the best policy earns on average"}
        how = source.get(str(level.get("source")), "as given")
        words.append(f"success: {few(level['value'])} or more ({how})")
    return " · ".join([*words, f"KL budget: {nats(settings.get('kl'))}", f"seed {settings.get('seed', NONE)}"])


def _plural(size: object, noun: str) -> str:
    return f"{count(size)} {noun}{'' if number(size) == 1 else 's'}"


def _get(row: object, *keys: str) -> Any:
    """The value under the keys; None where one of them is not there."""
    for key in keys:
        row = row.get(key) if isinstance(row, Mapping) else None
    return row


def bounded(row: Row | None) -> str:
    """An estimate with its upper bound: "11 (at most 44)", "11 (no bound)"; or "–"."""
    value, high = number(_get(row, "value")), number(_get(row, "high"))
    if math.isnan(value):
        return NONE if math.isnan(high) else f"at most {few(high)}"
    return f"{few(value)} ({'no bound' if math.isnan(high) else f'at most {few(high)}'})"


def ranged(row: Row | None) -> str:
    """A count with its interval: "60 [45, 75]", "240 [130, no bound]", "more than 300"; or "–"."""
    value, low, high = (number(_get(row, key)) for key in ("value", "low", "high"))
    if math.isnan(value):
        return NONE if math.isnan(low) else f"more than {count(low)}"
    if math.isnan(low):
        return count(value)
    return f"{count(value)} [{count(low)}, {'no bound' if math.isnan(high) else count(high)}]"


def percent(row: Row | None) -> str:
    """A share with its interval, in percent: "73 % [61, 82]"; or "–"."""
    value, low, high = (100.0 * number(_get(row, key)) for key in ("value", "low", "high"))
    if math.isnan(value) or math.isnan(low + high):
        return share(value / 100.0)
    return f"{few(value)} % [{few(low)}, {few(high)}]"


def whole_percent(row: Row | None) -> str:
    """A share with its interval, in whole percent: "-1 % [-6, 4]"; or "–"."""
    ends = [100.0 * number(_get(row, key)) for key in ("value", "low", "high")]
    value, low, high = (NONE if math.isnan(end) else f"{round(end):,}" for end in ends)
    if NONE in (value, low, high):
        return NONE if value == NONE else f"{value} %"
    return f"{value} % [{low}, {high}]"


def interval(row: Row | None) -> str:
    """Value and interval as text; or "–"."""
    return wording.interval(row or {})


def _pass_at(model: Row, k: float) -> Row:
    """The row of pass@k nearest to ``k`` draws."""
    rows: Sequence[Row] = _get(model, "success", "pass_at") or ()
    return min(rows, key=lambda row: abs(number(row["k"]) - k), default={})


def comparison(document: Row) -> list[tuple[str, list[str]]]:
    """Rows of the table side by side: what it is, then one text per model. Rows that nobody has are left out."""
    models: Sequence[Row] = document["models"]
    settings = document["settings"]
    most = number(settings.get("max_draws"))
    far = {str(_pass_at(m, most).get("k")) for m in models if _pass_at(m, most)}
    name = f"success of one of {count(float(far.pop()))} draws" if len(far) == 1 else "success of one of many draws"
    table = [
        ("verdict", [str(m["verdict"]["kind"]) for m in models]),
        ("success of one draw", [interval(_pass_at(m, 1.0)) for m in models]),
        (name, [interval(_pass_at(m, most)) for m in models]),
        (f"value at KL = {few(settings.get('kl'))}", [interval(_get(m, "reach", "at", "value")) for m in models]),
        ("draws per answer there", [bounded(_get(m, "reach", "at", "draws_per_answer")) for m in models]),
        ("draws of each prompt needed", [bounded(_get(m, "reach", "needed")) for m in models]),
        ("labels to the target", [ranged(_get(m, "forecast", "labels")) for m in models]),
        ("features to use", [str(_get(m, "maps", "best") or NONE) for m in models]),
        ("prompts beyond it", [count(len(m["success"]["hopeless"])) if m.get("success") else NONE for m in models]),
        ("distinct replies a prompt", [few(_get(m, "unseen", "distinct")) for m in models]),
        ("entropy (nats)", [interval(_get(m, "unseen", "entropy")) for m in models]),
    ]
    return [(label, cells) for label, cells in table if any(cell != NONE for cell in cells)]


def statements(model: Row) -> list[tuple[str, list[str]]]:
    """Headed groups of the sentences that the parts make, of one map only; groups without one are left out."""
    spans, best = model.get("spans") or (), _get(model, "maps", "best")
    used = next((row for row in spans if row.get("map") == best), spans[0] if spans else {})
    groups = (
        ("What the draws can have seen", _get(model, "unseen", "statements")),
        ("What they differ in", used.get("statements")),
        ("What the model can do", _get(model, "success", "statements")),
        ("What tilting reaches", _get(model, "reach", "statements")),
        ("Step by step", _get(model, "steps", "statements")),
        ("Which features to use", _features(model)),
        ("What it would take", _get(model, "forecast", "statements")),
    )
    return [(head, list(sentences)) for head, sentences in groups if sentences]


def _features(model: Row) -> list[str]:
    """Why this map is the one to use, then what the maps' sentences say."""
    reason, said = _get(model, "maps", "reason"), _get(model, "maps", "statements") or ()
    return [*([reason] if reason and reason not in said else []), *said]


def seen_rows(model: Row) -> list[tuple[str, str]]:
    """The draws in numbers: label and text."""
    seen = model["unseen"]
    rows = [
        ("draws of each prompt", count(seen.get("draws"))),
        ("distinct replies a prompt, on average", few(seen.get("distinct"))),
        ("entropy of a prompt's replies (nats)", interval(seen.get("entropy"))),
        ("probability that the next draw is a reply not seen yet", percent(seen.get("unseen"))),
        ("prompts with one single reply", count(seen.get("constant"))),
    ]
    return [(label, text) for label, text in rows if text != NONE]


def span_rows(model: Row) -> list[tuple[str, ...]]:
    """One row per feature map: name, dimension, effective rank, directions of 95 %, pairs, other pairs beyond them."""
    return [
        (
            str(row.get("map")),
            count(row.get("dim")),
            interval(row.get("effective_rank")),
            count(row.get("directions_95")),
            count(_get((row.get("growth") or [{}])[-1], "pairs")),
            f"{count(row.get('beyond'))} of {count(row.get('tested'))}" if number(row.get("tested")) > 0.0 else NONE,
        )
        for row in model.get("spans") or ()
    ]


def kl_rows(model: Row) -> list[tuple[str, ...]]:
    """One row per KL: KL, value, gain, q99 of the density ratio, draws per answer, whether the draws can tell."""
    return [
        (
            few(row.get("kl")),
            interval(row.get("value")),
            short(row.get("gain")),
            bounded(row.get("ratio_q99")),
            bounded(row.get("draws_per_answer")),
            "yes" if row.get("told") else "no",
        )
        for row in _get(model, "reach", "rows") or ()
    ]


def step_rows(model: Row) -> list[tuple[str, ...]]:
    """One row per step: step, q99 and largest of its ratios, draws a segment, tokens a draw, answers that get there."""
    return [
        (
            count(row.get("step")),
            bounded(row.get("ratio_q99")),
            few(row.get("largest")),
            few(row.get("draws")),
            few(row.get("tokens")),
            share(row.get("share")),
        )
        for row in _get(model, "steps", "rows") or ()
    ]


def part_maps(model: Row) -> list[str]:
    """The maps that were tested on the reward's parts."""
    return [str(row.get("map")) for row in _get(model, "maps", "rows") or () if row.get("parts")]


def part_rows(model: Row) -> list[tuple[str, ...]]:
    """One row per part of the reward: part, share of the reward's variance, what each of `part_maps` explains of it."""
    rows = [row.get("parts") or () for row in _get(model, "maps", "rows") or ()]
    found = [{str(part.get("part")): part for part in parts} for parts in rows if parts]
    names = list(dict.fromkeys(name for parts in found for name in parts))
    first = {name: next(parts[name] for parts in found if name in parts) for name in names}
    return [
        (name, share(first[name].get("variance")), *(whole_percent(_get(parts, name, "r2")) for parts in found))
        for name in names
    ]


def prompt_rows(model: Row, prompts: Sequence[str]) -> list[tuple[str, ...]]:
    """Up to ROWS prompts, the hardest first where success is known: number, text and what is known of each."""
    graded = {row["prompt"]: row for row in _get(model, "success", "per_prompt") or ()}
    rows = list(_get(model, "unseen", "prompts") or ())
    rates = {x: number(_get(row, "rate", "value")) for x, row in graded.items()}
    rows.sort(key=lambda row: math.inf if math.isnan(rate := rates.get(row["prompt"], math.nan)) else rate)
    table = []
    for row in rows[:ROWS]:
        found = graded.get(row["prompt"])
        told: tuple[str, ...] = (NONE, NONE) if graded else ()
        if found:
            told = f"{count(found['correct'])} of {count(found['draws'])}", percent(found["rate"])
        common = f"{cut(row.get('top'))} ({share(row.get('top_share'))})"
        table.append(
            (
                count(row["prompt"] + 1),
                cut(prompts[row["prompt"]]),
                *told,
                count(row.get("distinct")),
                interval(row.get("entropy")),
                common,
            )
        )
    return table
