"""The pictures of a coverage report, drawn from its document: what the model can do, reach and cost; its features.

As in `spannerlm.figures`: matplotlib's objects only, no global figure; a builder returns None where there is nothing to
draw; an undefined number leaves its mark out. A missing upper bound is an arrow, never a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from spannerlm.figures import HALO, INK, MUTED, STYLE, Series, log_ticks
from spannerlm.foundation import canvas
from spannerlm.foundation.canvas import LOOKS, MOST, Entry, Look
from spannerlm.wording import Row, count, few, nats, number, share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DASHED: Any = {"linewidth": 1.0, "linestyle": (0, (4, 3))}
SHARE_FLOOR = 1e-4
"""Share of the variance below which a direction is not drawn: no label will be spent on it."""
BARS = 40
"""Prompts up to which each has a mark and a bar of its own."""
LEAST = -0.5
"""Where the bar of a negative share ends."""


def build(name: str, document: Row) -> Figure | None:
    """The figure ``name``, one of FIGURES; None where the document has nothing to draw in it."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure: Figure | None = FIGURES[name](document)
        return figure


def pass_at_k(document: Row) -> Figure | None:
    """Chance that one of k draws succeeds, against k: measured whole, extrapolated dashed."""
    models = _models(document, "success", "pass_at")
    if not models:
        return None
    level = number(((document.get("settings") or {}).get("success") or {}).get("value"))
    goal = "" if math.isnan(level) else f"success: a reward of {few(level)} or more; "
    note = f"{goal}{_prompts(document)}; bands: 95 %"
    (axes,) = canvas.panels("Chance that one of k draws succeeds", note, _names(models), "draws of a prompt, k")
    ks: list[float] = []
    for name, model, look in models:
        rows = model["success"]["pass_at"]
        seen = Series.of(name, [row for row in rows if row.get("measured")], "k")
        beyond = Series.of(name, [row for row in rows if not row.get("measured")], "k")
        mark = {} if len(seen.x) <= 16 else {"marker": ""}
        axes.plot(seen.x, seen.value, label=name, **{**look, **mark})
        dashed = {**look, "marker": "", "linestyle": (0, (2.2, 1.4))}
        x, y = seen.x[-1:] + beyond.x, seen.value[-1:] + beyond.value
        axes.plot(x, y, label=f"{name}, extrapolated", **dashed)
        canvas.band(axes, Series.of(name, rows, "k"), look)
        ks += seen.x + beyond.x
    axes.set_ylabel("probability")
    axes.set_ylim(0.0, 1.12)
    canvas.ticks(axes.yaxis, [0.0, 0.25, 0.5, 0.75, 1.0])
    canvas.log_x(axes, ks)
    n = max(number(r["k"]) for _, m, _ in models for r in m["success"]["pass_at"] if r.get("measured"))
    if 1.0 < n < max(ks):
        axes.axvline(n, color=INK, label="drawn", **DASHED)
        canvas.beside(axes, f"measured, n = {count(n)}", n, "right")
        canvas.beside(axes, "extrapolated", n, "left")
    return canvas.whole(axes)


def best_of_k(document: Row) -> Figure | None:
    """Expected reward of the best of k draws, against k."""
    models = _models(document, "success", "best_of")
    if not models:
        return None
    note = f"{_prompts(document)}; bands: 95 % intervals"
    (axes,) = canvas.panels("Reward of the best of k draws", note, _names(models), "draws of a prompt, k")
    ks: list[float] = []
    for name, model, look in models:
        series = Series.of(name, model["success"]["best_of"], "k")
        axes.plot(series.x, series.value, label=name, **look)
        canvas.band(axes, series, look)
        ks += series.x
    axes.set_ylabel("expected reward")
    canvas.log_x(axes, ks)
    return canvas.whole(axes)


def value_and_cost(document: Row) -> Figure | None:
    """Value of the tilted policy against KL, and beneath it what an answer costs, with its upper bound."""
    models = _models(document, "reach", "rows")
    if not models:
        return None
    note = f"{_prompts(document)}; 95 % intervals; hollow: the draws cannot tell"
    title = "What tilting reaches, and what an answer costs"
    top, bottom = canvas.panels(title, note, _names(models), "KL (nats)", shape=(2, 1))
    costs: list[float] = []
    drawn: list[tuple[Series, Look]] = []
    for name, model, look in models:
        found = model["reach"]
        values = [{"kl": 0.0, **(found.get("base") or {}), "told": True}, *_flat(found["rows"], "value")]
        series = Series.of(name, values, "kl")
        top.plot(series.x, series.value, label=name, **{**look, "marker": ""})
        canvas.band(top, series, look)
        canvas.dots(top, values, look)
        spent = _flat(found["rows"], "draws_per_answer")
        line = Series.of(name, spent, "kl")
        bottom.plot(line.x, line.value, label=name, **{**look, "marker": ""})
        canvas.dots(bottom, spent, look)
        drawn.append((line, look))
        costs += [v for v in (*line.value, *line.high) if v > 0.0]
        costs += [3.0 * v for v, high in zip(line.value, line.high, strict=True) if math.isnan(high)]  # room for arrows
    known = all(model["reach"].get("by") == "true reward" for _, model, _ in models)
    top.set_ylabel("reward" if known else "fitted reward")
    bottom.set_ylabel("draws per\nanswer")
    if costs:
        canvas.log_y(bottom, costs, 4, 0.1)
    else:
        bottom.set_yticks([])
    most = max((x for line, _ in drawn for x in line.x), default=1.0)
    for k, (line, look) in enumerate(drawn if costs else ()):
        canvas.upper(bottom, line, look, (k - 0.5 * (len(drawn) - 1)) * 0.014 * most)
    kl = number(models[0][1]["reach"].get("kl"))
    if not math.isnan(kl):
        for axes in (top, bottom):
            axes.axvline(kl, color=INK, label="budget", **DASHED)
        canvas.beside(top, f"budget: {nats(kl)}", kl, "right" if kl > 0.6 * most else "left", 0.04)
    return canvas.whole(top)


def success_rates(document: Row) -> Figure | None:
    """Success rate of every prompt, the hardest first; prompts without a single success set apart at the bottom."""
    models = _models(document, "success", "per_prompt")
    rows = {name: [r for r in model["success"]["per_prompt"] if r.get("draws")] for name, model, _ in models}
    models = [entry for entry in models if rows[entry[0]]]
    if not models:
        return None
    seen = [number(r["rate"]["value"]) for found in rows.values() for r in found if r.get("correct")]
    size = max(map(len, rows.values()))
    shown = "bars" if size <= BARS else "bands"
    note = f"these {count(size)} prompts, the hardest first; {shown}: 95 % intervals" if size > 1 else "the one prompt"
    (axes,) = canvas.panels("Success rate of a draw, prompt by prompt", note, _names(models), "prompts, in order")
    rare = 1.0 / max(1.0, number((document.get("settings") or {}).get("max_draws")))
    floor = 0.6 * min([rare, *seen])
    none = any(not r.get("correct") for found in rows.values() for r in found)
    apart = floor / (1.0 / floor) ** 0.14
    for k, (name, _, look) in enumerate(models):
        found = sorted(rows[name], key=lambda r: (bool(r.get("correct")), number(r["rate"]["value"])))
        zeros = sum(not r.get("correct") for r in found)
        shift = 0.16 * (k - 0.5 * (len(models) - 1)) if size <= BARS else 0.0
        xs = [x + 1.0 + shift for x in range(len(found))]
        _rates(axes, name, xs[zeros:], [r["rate"] for r in found[zeros:]], look, floor, size)
        hollow = {**look, "linestyle": "none", "markerfacecolor": "white"}
        height = apart * (floor / apart) ** (0.2 * (k - 0.5 * (len(models) - 1)))
        axes.plot(xs[:zeros], [height] * zeros, label=f"{name}, none", **hollow)
    axes.set_yscale("log")
    axes.set_ylabel("success rate")
    axes.set_ylim(apart * (apart / floor) ** 0.6 if none else floor, 1.6)
    places = log_ticks(floor, 1.0, 6)
    canvas.ticks(axes.yaxis, [apart, *places] if none else places, lambda v: "none" if v == apart else f"{v:.6g}")
    if none:
        axes.axhline(floor, color=MUTED, linewidth=0.8, label="set apart")
    axes.axhline(rare, color=INK, label="affordable", **DASHED)
    place: Any = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "ha": "right", "va": "bottom"}
    axes.annotate(f"1 in {count(1.0 / rare)}", (0.995, rare), (0, 2), fontsize=10.0, color=MUTED, bbox=HALO, **place)
    room = max(0.6, 0.02 * size)
    axes.set_xlim(1.0 - room, size + room)
    canvas.ticks(axes.xaxis, sorted({1, *(round(size * q) for q in (0.25, 0.5, 0.75, 1.0) if size * q >= 1)}))
    return canvas.whole(axes)


def spectrum(document: Row) -> Figure | None:
    """Shares of the relative features' variance, by direction."""
    curves = []
    for name, row, look in _spans(document):
        values = [number(v) for v in row.get("spectrum") or ()]
        points = [(k, v) for k, v in enumerate(values, start=1) if v > SHARE_FLOOR]
        rank = few((row.get("effective_rank") or {}).get("value"))
        if points:
            curves.append((f"{name}: rank {rank}", points, look))
    if not curves:
        return None
    note = "variance of what replies to one prompt differ in; rank: effective rank"
    (axes,) = canvas.panels("Spectrum of the relative features", note, _key(curves), "direction")
    for name, points, look in curves:
        axes.plot(*zip(*points, strict=True), label=name, **{**look, **({"marker": ""} if len(points) > 24 else {})})
    axes.set_ylabel("share of the variance")
    canvas.log_y(axes, [v for _, points, _ in curves for _, v in points], 6)
    longest = max(k for _, points, _ in curves for k, _ in points)
    if longest > 12:
        canvas.log_x(axes, [1.0, float(longest)])
    else:
        canvas.ticks(axes.xaxis, range(1, longest + 1))
        axes.set_xlim(0.7, longest + 0.3)
    return canvas.whole(axes)


def spanner_growth(document: Row) -> Figure | None:
    """Pairs that a spanner needs, against the draws that it has seen."""
    found = [(name, Series.of(name, row.get("growth") or (), "draws", "pairs"), look)
             for name, row, look in _spans(document)]  # fmt: skip
    curves = [(f"{name}: {count(s.value[-1])} pairs", s, look) for name, s, look in found if s.x]
    if not curves:
        return None
    note = "flat: more draws show no new direction; rising: they still do"
    (axes,) = canvas.panels("Growth of the spanner", note, _key(curves), "draws of each prompt")
    for name, series, look in curves:
        axes.plot(series.x, series.value, label=name, drawstyle="steps-post", **look)
    axes.set_ylabel("pairs")
    axes.locator_params(axis="y", integer=True)
    axes.set_ylim(0.0, 1.12 * max(1.0, *(v for _, s, _ in curves for v in s.value)))
    canvas.log_x(axes, [x for _, s, _ in curves for x in s.x])
    return canvas.whole(axes)


def features(document: Row) -> Figure | None:
    """Feature maps under test: share of the gain that they keep, and of the variance that they explain."""
    models = _models(document, "maps", "rows")
    rows = [row for _, model, _ in models for row in model["maps"]["rows"]]
    every = (("share", "of the gain kept"), ("r2", "of the variance explained"))
    kinds = [kind for kind in every if any(not math.isnan(_value(row, kind[0])) for row in rows)]
    if not kinds:
        return None
    maps = list(dict.fromkeys(str(row.get("map")) for row in rows))
    folds = {str(model["maps"].get("folds") or "prompts") for _, model, _ in models}
    note = f"tested on {' or '.join(sorted(folds, reverse=True))} left out; bars: 95 % intervals; bold: to use"
    height = max(2.6, 1.7 + (0.26 * len(models) + 0.16) * len(maps) + 0.11 * len(models))
    shape = (1, len(kinds))
    grid = canvas.panels("Features under test", note, _names(models), "", shape=shape, height=height, left=0.255)
    thick = 0.8 / len(models)
    for axes, (key, unit) in zip(grid, kinds, strict=True):
        least = 0.0
        for k, (name, model, look) in enumerate(models):
            shift = (k - 0.5 * (len(models) - 1)) * thick
            marks = [(maps.index(str(r.get("map"))) + shift, r.get(key) or {}) for r in model["maps"]["rows"]]
            canvas.bars(axes, marks, look["color"], name, 0.84 * thick, LEAST)
            least = min([least, *(number(row.get("low")) for _, row in marks if number(row.get("low")) < 0.0)])
        axes.set_xlim(max(1.15 * LEAST, least - 0.05) if least < 0.0 else 0.0, 1.05)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", linewidth=0.8)
        axes.axvline(0.0, color=MUTED, linewidth=0.8, label="nothing")
        canvas.ticks(axes.xaxis, [0.0, 0.5, 1.0], lambda v: f"{100.0 * v:.0f} %")
        axes.set_xlabel(unit)
    grid[0].set_ylim(len(maps) - 0.45, -0.55)
    labels = canvas.names_of([{"name": name} for name in maps], most=18)
    canvas.ticks(grid[0].yaxis, range(len(maps)), lambda k: labels[int(k)])
    best = {str(model["maps"].get("best")) for _, model, _ in models}
    for text, name in zip(grid[0].get_yticklabels(), maps, strict=True):
        text.set(fontweight="bold" if name in best else "normal", color=INK)
    return canvas.whole(grid[0])


def forecast(document: Row) -> Figure | None:
    """Labels to the target: chosen by exploration, and at random. An open end is an arrow."""
    models = _models(document, "forecast")
    sides = (("chosen", "labels", "reached"), ("at random", "random_labels", "random_reached"))
    rows = [
        (f"{name}\n{kind}" if len(models) > 1 else kind, model["forecast"], key, reached, LOOKS[k])
        for name, model, _ in models
        for k, (kind, key, reached) in enumerate(sides)
        if model["forecast"].get(key)
    ]
    if not rows:
        return None
    goal, runs = rows[0][1].get("share"), rows[0][1].get("simulations")
    note = f"with {share(goal)} of what can be gained; bars: 95 %; {count(runs)} simulated runs"
    left = 0.17 if len(models) == 1 else 0.32
    height = max(2.7, 1.5 + 0.62 * len(rows))
    (axes,) = canvas.panels("Labels to the target", note, (), "labels", height=height, left=left)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", linewidth=0.8)
    xs: list[float] = []
    for y, (title, found, key, reached, (color, marker)) in enumerate(rows):
        value, low, high = (number(found[key].get(k)) for k in ("value", "low", "high"))
        budget = number(found.get("budget"))
        known = [v for v in (value, low, high, budget) if v > 0.0]
        start = next((v for v in (low, value, budget) if v > 0.0), min(known))
        end = high if high > 0.0 else max(known)
        axes.hlines(y, start, end, color=color, linewidth=6.0, alpha=0.3, label=f"{title}, band")
        if math.isnan(high):
            axes.plot([end], [y], marker=">", color=color, markersize=9, linestyle="none", label=f"{title}, open")
        if not math.isnan(value):
            axes.plot([value], [y], marker=marker, color=color, markersize=8, linestyle="none", label=title)
        done = number(found.get(reached))
        ended = "not told" if math.isnan(done) else f"{share(done)} of runs get there within {count(budget)}"
        words = ended if math.isnan(value) else count(value) if math.isnan(done) else f"{count(value)}; {ended}"
        place: Any = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "va": "center"}
        axes.annotate(words, (0.0, y), (5, 14), fontsize=10.0, color=color, fontweight="bold", **place)
        xs += [start, end]
    axes.set_ylim(len(rows) - 0.6, -0.75)
    canvas.ticks(axes.yaxis, range(len(rows)), lambda k: rows[int(k)][0])
    axes.tick_params(axis="y", labelcolor=INK, labelsize=11.0 if len(models) == 1 else 9.5)
    canvas.log_x(axes, xs)
    return canvas.whole(axes)


FIGURES: dict[str, Callable[[Row], Any]] = {
    "pass_at_k": pass_at_k,
    "best_of_k": best_of_k,
    "value_and_cost": value_and_cost,
    "success_rates": success_rates,
    "features": features,
    "forecast": forecast,
    "spectrum": spectrum,
    "spanner_growth": spanner_growth,
}


def _models(document: Row, *keys: str) -> list[Entry]:
    """Name, section and look of the models, at most MOST, that have something under ``keys``; looks never shift."""
    models: Sequence[Row] = (document.get("models") or ())[:MOST]
    found: list[Entry] = []
    for k, (name, model) in enumerate(zip(canvas.names_of(models), models, strict=True)):
        part: Any = model
        for key in keys:
            part = (part or {}).get(key)
        if part:
            found.append((name, model, canvas.look(k)))
    return found


def _names(models: Sequence[Entry]) -> list[tuple[str, Look]]:
    """The key of a picture of models: nothing for one."""
    return _key(models) if len(models) > 1 else []


def _key(curves: Sequence[tuple[str, Any, Look]]) -> list[tuple[str, Look]]:
    return [(name, look) for name, _, look in curves]


def _spans(document: Row) -> list[Entry]:
    """The curves of the feature maps: of every map of a single model, or of one map of each of several models."""
    models: Sequence[Row] = document.get("models") or ()
    if len(models) == 1:
        rows: Sequence[Row] = (models[0].get("spans") or ())[:MOST]
        names = canvas.names_of(rows, "map", 20)
        return [(name, row, canvas.look(k)) for k, (name, row) in enumerate(zip(names, rows, strict=True))]
    return [(name, row, look) for name, model, look in _models(document, "spans") if (row := _best_span(model))]


def _best_span(model: Row) -> Row:
    """The row of the map to use, or of the first one."""
    best = (model.get("maps") or {}).get("best")
    return next((row for row in model["spans"] if row.get("map") == best), model["spans"][0])


def _flat(rows: Sequence[Row], key: str) -> list[Row]:
    """Rows of a KL with the interval ``key`` of each."""
    return [{"kl": row.get("kl"), "told": row.get("told"), **(row.get(key) or {})} for row in rows]


def _value(row: Row, key: str) -> float:
    return number((row.get(key) or {}).get("value"))


def _prompts(document: Row) -> str:
    size = len(document.get("prompts") or ())
    return "the one prompt" if size == 1 else f"mean over {count(size)} prompts"


def _rates(
    axes: Axes, name: str, xs: Sequence[float], rates: Sequence[Row], look: Look, floor: float, size: int
) -> None:
    """Rates above none with their intervals: a mark and a bar each where there are few, else a line and a band."""
    ys, lows, highs = ([max(floor, number(r.get(k))) for r in rates] for k in ("value", "low", "high"))
    if size <= BARS:
        axes.vlines(xs, lows, highs, color=look["color"], linewidth=1.4, alpha=0.7)
        axes.plot(xs, ys, label=name, **{**look, "linestyle": "none"})
        return
    axes.plot(xs, ys, label=name, **{**look, "marker": ""})
    axes.fill_between(xs, lows, highs, color=look["color"], alpha=0.16, linewidth=0.0)
