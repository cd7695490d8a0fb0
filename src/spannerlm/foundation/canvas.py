"""What the pictures of a coverage report share: panels with their key, scales, bands, and marks for missing bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from spannerlm.figures import BLUE, GREEN, HALO, MUTED, ORANGE, PURPLE, SIZE, SKY, VERMILION, Series, log_ticks
from spannerlm.wording import Row, number, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Look = Mapping[str, Any]
Entry = tuple[str, Row, Look]
"""Name in the key, row of the document, keywords of its line."""

LOOKS = ((BLUE, "o"), (VERMILION, "s"), (GREEN, "D"), (ORANGE, "^"), (PURPLE, "v"), (SKY, "P"))
"""Colour and marker of the models, or of the maps of one model, in order."""
MOST = len(LOOKS)
"""Models, or maps, that one picture shows: the first ones."""


def look(k: int) -> dict[str, Any]:
    """Keywords of the k-th line."""
    color, marker = LOOKS[k]
    return {"color": color, "marker": marker, "markersize": 5.0, "linewidth": 2.0, "linestyle": "-"}


def clipped(name: str, most: int = 28) -> str:
    """The name in letters that every font has, at most ``most`` of them: some of its beginning, more of its end."""
    text = " ".join(visible(name).split()).encode("ascii", "replace").decode("ascii")
    if len(text) <= most:
        return text
    head = (most - 3) // 3
    return f"{text[:head]}...{text[-(most - 3 - head) :]}"


def names_of(rows: Sequence[Row], key: str = "name", most: int = 28) -> list[str]:
    """What pictures call the models (or maps): names cut to ``most`` letters, numbered where two would be the same."""
    names = [clipped(str(row.get(key)), most) for row in rows]
    if len(set(names)) == len(names):
        return names
    return [f"{k}: {clipped(str(row.get(key)), most - 3)}" for k, row in enumerate(rows, start=1)]


def panels(
    title: str,
    note: str,
    key: Sequence[tuple[str, Look]],
    xlabel: str,
    *,
    shape: tuple[int, int] = (1, 1),
    height: float = SIZE[1],
    left: float = 0.15,
) -> tuple[Axes, ...]:
    """Empty panels, below each other (3 : 2, one x axis) or side by side, under a title, a note and a key."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(SIZE[0], height), facecolor="white")
    inch = 1.0 / height
    figure.text(0.025, 1.0 - 0.24 * inch, title, fontsize=13.5, fontweight="bold", va="center")
    figure.text(0.025, 1.0 - 0.5 * inch, note, fontsize=11.0, color=MUTED, va="center")
    columns = 1 if any(len(name) > 30 for name, _ in key) else min(2, len(key))
    lines = math.ceil(len(key) / columns) if key else 0
    if lines:
        handles = [Line2D([], [], **keywords) for _, keywords in key]
        font: Any = {"size": 10.0, "weight": "bold"}
        room: Any = {"borderpad": 0.0, "borderaxespad": 0.0, "handlelength": 1.8, "columnspacing": 1.4}
        figure.legend(handles, [name for name, _ in key], loc="upper left", bbox_to_anchor=(0.025, 1.0 - 0.64 * inch),
                      ncols=columns, frameon=False, labelcolor="linecolor", prop=font, labelspacing=0.35,
                      **room)  # fmt: skip
    ratio: Any = {"height_ratios": (3, 2), "hspace": 0.16} if shape[0] == 2 else {"wspace": 0.3}
    share: Any = {"sharex": True} if shape[0] == 2 else {"sharey": True}
    grid = figure.subplots(*shape, squeeze=False, gridspec_kw=ratio, **share)
    top = 1.0 - (0.76 + 0.22 * lines) * inch
    figure.subplots_adjust(left=left, right=0.965, bottom=0.56 * inch, top=top)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=0, pad=5)
        axes.grid(axis="y", linewidth=0.8)
        axes.set_axisbelow(True)
    grid[-1, 0].set_xlabel(xlabel)
    return tuple(grid.flat)


def whole(axes: Axes) -> Figure:
    """The figure of a panel."""
    figure: Any = axes.figure
    found: Figure = figure
    return found


def ticks(axis: Any, places: Sequence[float], form: Callable[[float], str] = lambda v: f"{v:,.10g}") -> None:
    """Ticks at these places only, in plain numbers."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    axis.set_major_locator(FixedLocator(list(places)))
    axis.set_major_formatter(FixedFormatter([form(v) for v in places]))
    axis.set_minor_locator(NullLocator())


def log_x(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic x axis around the values, at least a factor 3 wide."""
    low, high = min(values), max(values)
    room = max((high / low) ** 0.03, math.sqrt(3.0 * low / high), 1.05)
    axes.set_xscale("log")
    axes.set_xlim(low / room, high * room)
    ticks(axes.xaxis, log_ticks(low, high, 6) if high > low else [low])


def log_y(axes: Axes, values: Sequence[float], most: int, room: float = 0.08) -> None:
    """A logarithmic y axis around the values, ``room`` of its height empty at each end, at least a factor 4 high."""
    low, high = min(values), max(values)
    factor = max((high / low) ** room, math.sqrt(4.0 * low / high), 1.12)
    axes.set_yscale("log")
    axes.set_ylim(low / factor, high * factor)
    ticks(axes.yaxis, log_ticks(low / factor, high * factor, most))


def band(axes: Axes, series: Series, keywords: Look) -> None:
    """The interval of a curve, shaded; a bar where it has one point."""
    x, low, high = series.banded()
    if len(x) == 1:
        axes.vlines(x, low, high, color=keywords["color"], linewidth=1.4)
    elif x:
        axes.fill_between(x, low, high, color=keywords["color"], alpha=0.16, linewidth=0.0)


def dots(axes: Axes, rows: Sequence[Row], keywords: Look) -> None:
    """Marks at (kl, value): hollow where the draws cannot tell."""
    for told in (True, False):
        points = [(number(r.get("kl")), number(r.get("value"))) for r in rows if bool(r.get("told")) is told]
        points = [p for p in points if not math.isnan(p[0] + p[1])]
        if points:
            face = keywords["color"] if told else "white"
            style = {**keywords, "linestyle": "none", "markerfacecolor": face, "markersize": 6.0}
            axes.plot(*zip(*points, strict=True), label="told" if told else "cannot tell", zorder=4, **style)


def upper(axes: Axes, series: Series, keywords: Look, shift: float) -> None:
    """Upper bounds as whiskers with a cap; to the panel's top, with an arrow, where no bound can be given."""
    low, top = axes.get_ylim()
    most = low * (top / low) ** 0.95
    for x, value, high in zip(series.x, series.value, series.high, strict=True):
        free = math.isnan(high)
        at, end = x + shift, most if free else high
        axes.vlines(at, value, end, color=keywords["color"], linewidth=1.4)
        mark: Any = {"marker": "^" if free else "_", "markersize": 8.0, "linestyle": "none", "clip_on": False}
        axes.plot([at], [end], color=keywords["color"], label="no bound" if free else "bound", zorder=5, **mark)


def bars(axes: Axes, marks: Sequence[tuple[float, Row]], color: str, label: str, thick: float, least: float) -> None:
    """Horizontal bars with their intervals; what lies below ``least`` ends there."""
    known = [(y, *(number(row.get(k)) for k in ("value", "low", "high"))) for y, row in marks]
    known = [mark for mark in known if not math.isnan(mark[1])]
    axes.barh([m[0] for m in known], [max(m[1], least) for m in known], thick, color=color, alpha=0.5, label=label)
    for y, value, low, high in known:
        if not math.isnan(low) and not math.isnan(high):
            axes.hlines(y, max(low, least), max(high, least), color="#1b1f24", linewidth=1.6)
        axes.plot([max(value, least)], [y], marker="|", markersize=9, color="#1b1f24", linestyle="none", label="value")


def beside(axes: Axes, text: str, x: float, ha: str, height: float = 0.97) -> None:
    """Text beside a vertical line at ``x``, at a share of the panel's height."""
    place: Any = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points"}
    va, off = ("top", -6 if ha == "right" else 6) if height > 0.5 else ("bottom", -6 if ha == "right" else 6)
    axes.annotate(text, (x, height), (off, 0), ha=ha, va=va, fontsize=10.0, color=MUTED, bbox=HALO, **place)
