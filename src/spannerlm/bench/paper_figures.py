"""The figures of `bench paper`, drawn from its numbers; None where there is nothing to draw."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from spannerlm.bench.paper_axes import LOOKS, Numbers, canvas, growth, key, line, log_axis, loglog, look, ticks, values
from spannerlm.bench.paper_claims import DRAWN_AT
from spannerlm.bench.paper_steps import delayed, gated
from spannerlm.figures import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    STYLE,
    VERMILION,
    log_ticks,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ((BLUE, "o", 0.3), (VERMILION, "x", 0.9))
"""Colour, marker and opacity of realizable and of misspecified tasks."""
FIVE = ((BLUE, "o"), (VERMILION, "s"), (GREEN, "v"), (PURPLE, "^"), (ORANGE, "D"))


def build(name: str, numbers: Numbers) -> Figure | None:
    """The figure ``name``, one of FIGURES; None where the numbers have nothing to draw in it."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure: Figure | None = FIGURES[name](numbers)
        return figure


def completion(numbers: Numbers) -> Figure | None:
    """(a) Share of runs that are complete against draws / C, beside P(y* is drawn)."""
    given = numbers.get("a", {}).get("given") or {}
    if not given:
        return None
    name, method = next(iter(given.items()))
    note = f"near-orthogonal; {name} given n draws, {method['seeds']} seeds a point"
    figure, (axes,) = canvas("Runs complete, against draws / C", note)
    grid = [2.0 ** (k / 8.0) for k in range(-36, 37)]
    c = min(x for x, _, _ in method["success"])
    bound = [1.0 - (1.0 - 1.0 / c) ** (m * c) for m in grid]
    axes.plot(grid, bound, color=MUTED, linewidth=1.6, label="1 - (1 - 1/C)^n")
    for (color, marker), c in zip(FIVE, sorted({x for x, _, _ in method["success"]}), strict=False):
        points = [(share, done) for x, share, done in method["success"] if x == c]
        axes.plot(*zip(*points, strict=True), color=color, marker=marker, linestyle="none", label=f"C = {c:,}")
    axes.set_xscale("log", base=2)
    shares = sorted({share for _, share, _ in method["success"]})
    ticks(axes.xaxis, shares, lambda v: f"{v:g}" if v >= 1.0 else f"1/{1.0 / v:g}")
    ticks(axes.yaxis, [0.0, 0.25, 0.5, 0.75, 1.0], lambda v: f"{100.0 * v:.0f} %")
    axes.set_xlabel("draws n, as a multiple of C")
    axes.set_ylabel("runs complete")
    key(axes)
    return figure


def coverage_growth(numbers: Numbers) -> Figure | None:
    """(a) Draws and labels to completion against C."""
    given = numbers.get("a", {}).get("given") or {}
    if not given:
        return None
    figure, (top, bottom) = canvas(
        "Draws and labels to completion, against coverage", "near-orthogonal; 95 % intervals", 2
    )
    for name, method in given.items():
        line(top, name, [(p["c"], p) for p in method["draws"]], look(name))
        for noise, found in method["labels"].items():
            dashed = found is not next(iter(method["labels"].values()))
            points = [(p["x"], p["labels"]) for p in found["points"]]
            line(bottom, f"{name}, noise {noise}", points, look(name, dashed))
    xs = [p["c"] for method in given.values() for p in method["draws"]]
    top.plot(xs, xs, color=MUTED, linewidth=1.2, linestyle=":", label="C")
    top.set_ylabel("draws")
    bottom.set_ylabel("labels")
    bottom.set_xlabel("coverage C")
    loglog(bottom, xs, [])
    log_axis(top, values(top))
    log_axis(bottom, values(bottom))
    key(top)
    key(bottom)
    return figure


def rare_labels(numbers: Numbers) -> Figure | None:
    """(b) Labels against 1/p."""
    return _rare(numbers, "labels", "Labels against the rarity of the skill", "labels to a tenth of the regret")


def rare_draws(numbers: Numbers) -> Figure | None:
    """(b) Draws against 1/p."""
    return _rare(numbers, "draws", "Draws against the rarity of the skill", "draws of the base model")


def _rare(numbers: Numbers, cost: str, title: str, ylabel: str) -> Figure | None:
    methods = numbers.get("b", {}).get("methods") or {}
    if not methods:
        return None
    figure, (axes,) = canvas(title, "rare-skill; medians with 95 % intervals; hollow: at least")
    for name, found in methods.items():
        growth(axes, name, found["points"], cost)
    xs = [p["x"] for found in methods.values() for p in found["points"]]
    loglog(axes, xs, values(axes))
    axes.set_xlabel("1 / p, p the mass of the rare response")
    axes.set_ylabel(ylabel)
    key(axes)
    return figure


def rate(numbers: Numbers) -> Figure | None:
    """(b) Labels against the regret asked for."""
    found = numbers.get("b", {}).get("rate") or {}
    if not found:
        return None
    figure, (axes,) = canvas("Labels against the regret asked for", "rare-skill, p = .01; hollow: at least")
    for name, method in found.items():
        growth(axes, name, method["points"], "labels")
    xs = [p["x"] for method in found.values() for p in method["points"]]
    loglog(axes, xs, values(axes))
    ticks(axes.xaxis, sorted(set(xs)), lambda v: f"{100.0 / v:.3g} %")
    axes.set_xlabel("regret, as a share of where it started")
    axes.set_ylabel("labels")
    key(axes)
    return figure


def terms_labels(numbers: Numbers) -> Figure | None:
    """(c) Labels against k without the skip."""
    title = "Labels against the length of a term, no skip"
    return _terms(numbers, "without_skip", "labels", title, "labels to a tenth of the regret")


def terms_rounds(numbers: Numbers) -> Figure | None:
    """(c) Rounds against k with the skip."""
    title = "Rounds against the length of a term, with the skip"
    return _terms(numbers, "with_skip", "rounds", title, "rounds: updates of the policy")


def terms_skipped_labels(numbers: Numbers) -> Figure | None:
    """(c) Labels against k with the skip."""
    title = "Labels against the length of a term, with the skip"
    return _terms(numbers, "with_skip", "labels", title, "labels to a tenth of the regret")


def _terms(numbers: Numbers, part: str, cost: str, title: str, ylabel: str) -> Figure | None:
    methods = numbers.get("c", {}).get(part) or {}
    if not methods:
        return None
    note = "max-k-dnf, n = 24; solid: improper, dashed: proper; hollow: at least"
    figure, (axes,) = canvas(title, note)
    for name, found in methods.items():
        points = [{**p, "x": math.log2(p["x"])} for p in found["points"]]
        growth(axes, name, points, cost, dashed=found["proper"])
    ks = sorted({math.log2(p["x"]) for found in methods.values() for p in found["points"]})
    log_axis(axes, values(axes))
    ticks(axes.xaxis, ks)
    axes.set_xlabel("k, variables in a term")
    axes.set_ylabel(ylabel)
    key(axes)
    return figure


def sign_vectors(numbers: Numbers) -> Figure | None:
    """(c) Terms satisfied by sign vectors."""
    found = numbers.get("c", {}).get("signs")
    if not found:
        return None
    note = (
        f"k = {found['k']}, {found['terms']} terms, means over {found['formulas']} formulas; {found['labels']} labels"
    )
    figure, (axes,) = canvas("Terms that one sign vector for all prompts satisfies", note)
    names = {"best": "best: MaxSAT", "planted": "planted", "coreset": "coreset's", "online-dpo": "online-dpo's"}
    looks = {"best": (INK, "_"), "planted": (MUTED, "x"), "random": (PURPLE, "^")} | LOOKS
    order = ["best", "planted", "coreset", "online-dpo", "random"]
    for i, name in enumerate(order):
        color, marker = looks[name]
        x = [row["n"] + 0.22 * (i - 2) for row in found["mean"]]
        size = 16 if marker == "_" else 8
        y = [row[name] for row in found["mean"]]
        label = names.get(name, f"{name} signs")
        axes.plot(x, y, color=color, marker=marker, markersize=size, linestyle="none", label=label, mew=2)
    ticks(axes.xaxis, [row["n"] for row in found["mean"]])
    axes.set_xlim(found["mean"][0]["n"] - 1.0, found["mean"][-1]["n"] + 1.0)
    axes.set_ylim(0.0, None)
    axes.set_xlabel("n, variables")
    axes.set_ylabel("terms satisfied")
    key(axes, markersize=8)
    return figure


def samplers(numbers: Numbers) -> Figure | None:
    """(d) Total variation against draws / C."""
    found = numbers.get("d", {}).get("curves") or ()
    if not found:
        return None
    figure, (axes,) = canvas("What a draw of the tilted policy costs", "a law of three points and known coverage C")
    for curve in found:
        ours = curve["sampler"] == "adaptive"
        color, marker = (BLUE, "o") if ours else (VERMILION, "s") if curve["m"] == 1 else (ORANGE, "D")
        name = "largest key" if ours else f"softmax M = {'' if curve['m'] == 1 else curve['m']}C"
        points = [(x, y) for x, y in curve["points"] if y > 1e-6]
        style = "-" if curve["c"] == found[0]["c"] else ":"
        drawn: dict[str, Any] = {
            "color": color,
            "marker": marker,
            "markersize": 4.0,
            "linewidth": 1.6,
            "linestyle": style,
        }
        axes.plot(*zip(*points, strict=True), label=f"{name}\nC = {curve['c']:,}", **drawn)
    xs = [x for curve in found for x, _ in curve["points"]]
    loglog(axes, xs, [])
    ticks(axes.xaxis, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0])
    axes.set_yscale("log")
    axes.set_ylim(5e-7, 1.5)
    ticks(axes.yaxis, [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0], lambda v: f"{v:g}")
    axes.set_xlabel("draws, as a multiple of C")
    axes.set_ylabel("total variation to the tilted law")
    key(axes)
    return figure


def harmless(numbers: Numbers) -> Figure | None:
    """(e) Regret as a multiple of that of passive sampling, at equal labels."""
    tasks = numbers.get("e") or {}
    if not tasks:
        return None
    note = "at equal labels, seed by seed; below 1 exploring helps; bands: 95 %"
    figure, panels = canvas("Regret over that of passive, where nothing is rare", note, len(tasks))
    for axes, (task, methods) in zip(panels, tasks.items(), strict=True):
        axes.axhline(1.0, color=INK, linewidth=1.0)
        for name, found in methods.items():
            if name != "passive":
                line(axes, name, [(p["labels"], p) for p in found["ratio"]], look(name), band=True)
        log_axis(axes, [*values(axes), 0.8, 1.25], most=4)
        axes.set_ylabel("ratio")
        axes.set_title(task, fontsize=10.0, fontweight="bold", loc="left", pad=3)
    key(panels[0])
    panels[-1].set_xlabel("labels")
    return figure


def rivals(numbers: Numbers) -> Figure | None:
    """(f) Labels over those of the best explorer of each task."""
    table = numbers.get("f", {}).get("table") or ()
    best: dict[str, float] = {}
    for row in table:
        value = row["labels"]["value"]
        if row["variant"] != "linucb-enumerate" and not math.isnan(value):
            best[row["task"]] = min(best.get(row["task"], math.inf), value)
    ratios: dict[str, list[float]] = {}
    for row in table:
        value, least = row["labels"]["value"], best.get(row["task"], math.inf)
        if math.isfinite(least) and least > 0.0 and not math.isnan(value):
            ratios.setdefault(row["variant"], []).append(value / least)
    if not ratios:
        return None
    f = numbers["f"]
    note = f"one mark a task; medians of {f['seeds']} seeds; at the right: not within the labels given"
    figure, (axes,) = canvas("Labels over those of the best, task by task", note)
    figure.subplots_adjust(left=0.26, right=0.95)
    order = sorted(ratios, key=lambda name: sorted(ratios[name])[len(ratios[name]) // 2], reverse=True)
    finite = [x for values in ratios.values() for x in values if math.isfinite(x)]
    edge = 1.6 * max([*finite, 2.0])
    for y, name in enumerate(order):
        color, marker = LOOKS.get(name, (MUTED, "o"))
        inside = sorted(x for x in ratios[name] if math.isfinite(x))
        beyond = sum(math.isinf(x) for x in ratios[name])
        axes.plot(inside, [y] * len(inside), color=color, marker=marker, markersize=6, linestyle="none", alpha=0.75)
        if beyond:
            axes.annotate(f"{beyond} \u2192", (edge, y), ha="right", va="center", color=color, fontweight="bold")
    axes.axvline(1.0, color=INK, linewidth=1.0)
    axes.set_xscale("log")
    low = min([*finite, 1.0])
    axes.set_xlim(0.9 * low, 1.05 * edge)
    ticks(axes.xaxis, log_ticks(low, edge))
    ticks(axes.yaxis, range(len(order)), lambda i: order[int(i)])
    axes.tick_params(axis="y", labelsize=10.0)
    axes.set_xlabel("labels / the least of any explorer (enumeration aside)")
    return figure


def foresight(numbers: Numbers) -> Figure | None:
    """(g) True against predicted regret, expected above, wide below."""
    g = numbers.get("g") or {}
    marks = {name: np.array(_marks(g.get(name) or {})).reshape(-1, 3) for name in ("realizable", "misspecified")}
    shown = {name: points[np.all(np.isfinite(points) & (points > 0.0), axis=1)] for name, points in marks.items()}
    everything = np.concatenate(list(shown.values()))
    if len(everything) == 0:
        return None
    note = f"directed at {', '.join(map(str, DRAWN_AT))} labels, in shares of the start; band: within 2 times"
    figure, panels = canvas("True against predicted regret", note, 2)
    figure.subplots_adjust(left=0.165, hspace=0.16)
    low, high = 0.8 * everything.min(), 1.25 * everything.max()
    least, most = 0.8 * everything[:, 2].min(), 1.25 * everything[:, 2].max()
    for column, (axes, name) in enumerate(zip(panels, ("expected", "wide prior"), strict=True)):
        axes.fill_between([low, high], [low / 2, high / 2], [2 * low, 2 * high], color=MUTED, alpha=0.15, linewidth=0.0)
        axes.plot([low, high], [low, high], color=INK, linewidth=1.0)
        for (kind, points), (color, marker, alpha) in zip(shown.items(), KINDS, strict=True):
            style: dict[str, Any] = {"color": color, "marker": marker, "linestyle": "none", "markersize": 3.5}
            axes.plot(points[:, column], points[:, 2], label=kind, alpha=alpha, **style)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(low, high)
        axes.set_ylim(least, most)
        ticks(axes.yaxis, log_ticks(least, most, 6), _percent)
        axes.set_ylabel("true regret")
        axes.set_title(name, fontsize=10.0, fontweight="bold", loc="left", pad=3)
    ticks(panels[1].xaxis, log_ticks(low, high, 5), _percent)
    panels[1].set_xlabel("predicted regret")
    key(panels[0], markersize=6)
    return figure


def _marks(part: Numbers) -> list[list[float]]:
    return [point for family in (part.get("families") or {}).values() for point in family["points"]]


def _percent(share: float) -> str:
    return f"{100.0 * share:,.10g} %"


FIGURES: dict[str, Callable[[Numbers], Any]] = {
    "completion": completion,
    "coverage_growth": coverage_growth,
    "rare_labels": rare_labels,
    "rare_draws": rare_draws,
    "rate": rate,
    "terms_labels": terms_labels,
    "terms_rounds": terms_rounds,
    "terms_skipped_labels": terms_skipped_labels,
    "sign_vectors": sign_vectors,
    "samplers": samplers,
    "harmless": harmless,
    "rivals": rivals,
    "foresight": foresight,
    "delayed": delayed,
    "gated": gated,
}
CLAIM = {
    "a": ("completion", "coverage_growth"),
    "b": ("rare_labels", "rare_draws", "rate"),
    "c": ("terms_labels", "terms_rounds", "terms_skipped_labels", "sign_vectors"),
    "d": ("samplers",),
    "e": ("harmless",),
    "f": ("rivals",),
    "g": ("foresight",),
    "h": ("delayed", "gated"),
}
"""The figures of each claim."""
