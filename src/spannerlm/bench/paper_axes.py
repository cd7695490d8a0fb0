"""What the figures of `bench paper` share: the canvas, the explorers' looks, lines with intervals, axes, the key."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from spannerlm.figures import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, SIZE, SKY, VERMILION, log_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Numbers = Mapping[str, Any]

LOOKS = {
    "directed": (BLUE, "o"),
    "spanner-sampling": (VERMILION, "s"),
    "passive": (INK, "X"),
    "online-dpo": (ORANGE, "D"),
    "xpo": (PURPLE, "^"),
    "thompson": (GREEN, "v"),
    "coreset": (SKY, "P"),
    "multi-turn-spanner": (GREEN, "*"),
    "multi-turn-spanner-paper": (PURPLE, "p"),
}
"""Colour and marker of each explorer, the same in every figure."""


def canvas(title: str, note: str, panels: int = 1) -> tuple[Figure, tuple[Axes, ...]]:
    """An empty figure with its title, a line beneath it, panels above each other, and room for a key at the right."""
    from matplotlib.figure import Figure

    height = SIZE[1] + 1.1 * (panels - 1)
    figure = Figure(figsize=(SIZE[0], height), facecolor="white")
    figure.text(0.025, 1.0 - 0.235 / height, title, fontsize=13.5, fontweight="bold", va="center")
    figure.text(0.025, 1.0 - 0.49 / height, note, fontsize=10.5, color=MUTED, va="center")
    grid = figure.subplots(panels, 1, sharex=True, squeeze=False, gridspec_kw={"hspace": 0.12 if panels < 3 else 0.28})
    figure.subplots_adjust(
        left=0.145, right=0.735, bottom=0.55 / height, top=1.0 - (0.75 if panels < 3 else 0.95) / height
    )
    for axes in grid[:, 0]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=0, pad=5)
        axes.grid(axis="y", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, tuple(grid[:, 0])


def look(name: str, dashed: bool = False) -> dict[str, Any]:
    """Keywords of an explorer's line; a variant has its explorer's colour and marker."""
    color, marker = LOOKS.get(name.partition(",")[0], (MUTED, "o"))
    style = "--" if dashed or "," in name else "-"
    return {"color": color, "marker": marker, "markersize": 5.0, "linewidth": 1.8, "linestyle": style}


def line(
    axes: Axes, name: str, points: Sequence[tuple[float, Numbers]], look: Mapping[str, Any], band: bool = False
) -> None:
    """A curve through the values, with bars or a band for the intervals, as far as they are finite."""
    kept = [(x, p) for x, p in points if math.isfinite(p["value"]) and p["value"] > 0.0]
    if not kept:
        return
    axes.plot([x for x, _ in kept], [p["value"] for _, p in kept], label=name, **look)
    kept = [(x, p) for x, p in kept if math.isfinite(p["low"] + p["high"]) and p["low"] > 0.0]
    x, low, high = [x for x, _ in kept], [p["low"] for _, p in kept], [p["high"] for _, p in kept]
    if band:
        axes.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0.0)
    else:
        axes.vlines(x, low, high, color=look["color"], linewidth=1.2, alpha=0.7)


def growth(axes: Axes, name: str, points: Sequence[Numbers], cost: str, dashed: bool = False, beside: str = "") -> None:
    """A curve of one cost, ``beside`` under its name in the key; hollow marks where fewer than half of the seeds got
    there."""
    own = look(name, dashed)
    line(axes, f"{name}{beside}", [(p["x"], p[cost]) for p in points], own)
    hollow = [p for p in points if p["reached"] < 0.5]
    style = {**own, "linestyle": "none", "markerfacecolor": "white", "zorder": 4}
    axes.plot([p["x"] for p in hollow], [p[cost]["value"] for p in hollow], **style)


def values(axes: Axes) -> list[float]:
    """Every positive y of the lines and bars of a panel."""
    lines = [np.asarray(line.get_ydata(), dtype=np.float64) for line in axes.get_lines()]
    bars = [np.asarray(path.vertices)[:, 1] for bar in axes.collections for path in bar.get_paths()]
    found = np.concatenate([*lines, *bars, np.zeros(0)])
    return [float(y) for y in found if y > 0.0 and np.isfinite(y)]


def loglog(axes: Axes, xs: Sequence[float], ys: Sequence[float]) -> None:
    """Logarithmic axes around xs and, where there are any, ys."""
    axes.set_xscale("log")
    axes.set_xlim(min(xs) / 1.25, max(xs) * 1.25)
    ticks(axes.xaxis, sorted(set(xs)) if len(set(xs)) <= 5 else log_ticks(min(xs), max(xs), 5))
    if ys:
        log_axis(axes, ys)


def log_axis(axes: Axes, values: Sequence[float], most: int = 6) -> None:
    """A logarithmic y axis around the values, at least a factor 3 high, with plain numbers."""
    low, high = min(values, default=1.0), max(values, default=10.0)
    room = max((high / low) ** 0.06, math.sqrt(max(1.0, 3.0 * low / high)), 1.1)
    axes.set_yscale("log")
    axes.set_ylim(low / room, high * room)
    ticks(axes.yaxis, log_ticks(low / room, high * room, most))


def ticks(axis: Any, places: Sequence[float], form: Callable[[float], str] | None = None) -> None:
    """Ticks at these places only, in plain numbers."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    axis.set_major_locator(FixedLocator(list(places)))
    axis.set_major_formatter(FixedFormatter([(form or _plain)(v) for v in places]))
    axis.set_minor_locator(NullLocator())


def _plain(value: float) -> str:
    """1,000 as it is, 100k and 3M above."""
    for limit, sign in ((1e9, "G"), (1e6, "M"), (1e5, "k")):
        if value >= limit:
            return f"{value / (1e3 if sign == 'k' else limit):,.4g}{sign}"
    return f"{value:,.10g}"


def key(axes: Axes, markersize: float | None = None) -> None:
    """The key at the right of the panel."""
    lines, names = axes.get_legend_handles_labels()
    key = axes.legend(
        lines,
        [name.replace(", ", ",\n") for name in names],
        loc="upper left",
        bbox_to_anchor=(1.01, 1.03),
        frameon=False,
        fontsize=9.5,
        handlelength=2.3,
        labelspacing=0.45,
    )
    if markersize is not None:
        for handle in key.legend_handles:
            handle.set_markersize(markersize)  # type: ignore[union-attr]
