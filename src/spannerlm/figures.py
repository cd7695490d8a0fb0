"""The five pictures of a run, drawn from its stored rows: value, KL, spanner, spectrum, draws per answer.

Matplotlib is loaded when the first picture is built, and only through its objects: no pyplot, no global figure. Each
builder returns None where its rows hold nothing to draw; an undefined number leaves its mark out and is never a 0.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spannerlm.wording import Row, few, nats, number, plain, quantile, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9"
"""Okabe and Ito's colours: told apart by every common kind of colour vision."""
INK, MUTED, RULE = "#1b1f24", "#5b6570", "#e4e7eb"
OTHERS = ((VERMILION, "s"), (ORANGE, "D"), (PURPLE, "^"), (SKY, "v"))
"""Colour and marker of what the explorer is compared with, in order."""

STYLE: dict[str, Any] = {
    "text.parse_math": False,  # a dollar sign in somebody's text is a dollar sign
    "text.usetex": False,
    "font.family": ["DejaVu Sans"],  # ships with matplotlib; wider than system fonts, so that these fit in its place
    "font.size": 12.0,
    "axes.linewidth": 0.8,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "grid.color": RULE,
    "svg.fonttype": "none",  # text stays text: small files, searchable
    "svg.hashsalt": "spannerlm",  # equal rows give equal files
    "path.simplify": True,
}
SIZE = (6.8, 4.25)
"""Inches. With 12 point letters, still legible at half that size."""
DPI = 144
SVG_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"


@dataclass(frozen=True)
class Series:
    """One curve with its band: only rows in which both its x and its value are defined."""

    name: str
    x: list[float]
    value: list[float]
    low: list[float]
    high: list[float]

    @classmethod
    def of(cls, name: str, rows: Iterable[Row], x: str, value: str = "value") -> Series:
        """The curve of ``value`` against ``x`` in the rows, in the order of x; nan where an interval is undefined."""
        keys = (x, value, "low", "high")
        points = [tuple(number(row.get(key)) for key in keys) for row in rows]
        kept = sorted(p for p in points if not (math.isnan(p[0]) or math.isnan(p[1])))
        return cls(name, *([p[k] for p in kept] for k in range(4)))

    def banded(self) -> tuple[list[float], list[float], list[float]]:
        """x, low and high of the points whose interval is defined."""
        kept = [k for k in range(len(self.x)) if not math.isnan(self.low[k] + self.high[k])]
        return [self.x[k] for k in kept], [self.low[k] for k in kept], [self.high[k] for k in kept]


@dataclass(frozen=True)
class Drawing:
    """One picture as two files."""

    png: bytes
    svg: bytes


def build(name: str, report: Row) -> Figure | None:
    """The figure ``name``, one of FIGURES; None where the report has nothing to draw in it."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure: Figure | None = FIGURES[name](report)
        return figure


def render(figure: Figure) -> Drawing:
    """The figure as PNG and SVG; no date and no address inside: equal figures are equal bytes."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png", dpi=DPI, pil_kwargs={"compress_level": 4})
        figure.savefig(svg, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return Drawing(png.getvalue(), svg.getvalue().replace(b"'DejaVu Sans'", SVG_FONTS.encode()))


def value_against_labels(report: Row) -> Figure | None:
    """Value of the policy against labels bought, beside the random baseline, the base model and the optimum."""
    history, baselines = report.get("history") or (), report.get("baselines") or {}
    ours = Series.of(_explorer(report), history, "labels")
    others = [s for s in (Series.of(str(k), rows or (), "labels") for k, rows in baselines.items()) if s.x]
    if not ours.x and not others:
        return None
    figure, (axes,) = _canvas("Value against labels", _value_note(report), "labels bought")
    figure.subplots_adjust(top=0.775)
    axes.set_ylabel(_value_unit(report))
    xs = [x for s in (ours, *others) for x in s.x]
    _label_scale(axes, xs)
    looks = _looks([ours.name, *(s.name for s in others)], ours.name)
    for series in (*others, ours):
        _curve(axes, series, looks[series.name])
    right = min(xs) > 0.5 * max(xs)  # every curve is there: the base model's name goes to the other end
    lines = {str(row.get("name")): number(row.get("value")) for row in report.get("table") or ()}
    _level(axes, "base model", lines.get("base model", math.nan), MUTED, left=right)
    _level(axes, "true-reward optimum", lines.get("true-reward optimum", math.nan), GREEN, left=True)
    axes.margins(y=0.12)
    _key(figure, axes, [series for series in (ours, *others) if series.x])
    return figure


def value_against_kl(report: Row) -> Figure | None:
    """Value against KL from the base model, and beneath it what an answer costs there in draws."""
    rows = {str(name): points or () for name, points in (report.get("value_against_kl") or {}).items()}
    above = [s for s in (Series.of(name, points, "kl") for name, points in rows.items()) if s.x]
    below = [s for s in (Series.of(name, points, "kl", "draws_per_answer") for name, points in rows.items()) if s.x]
    if not above:
        return None
    note = _value_note(report, at_kl=False)
    figure, (top, bottom) = _canvas("Value against distance from the base model", note, "KL (nats)", 2)
    figure.subplots_adjust(right=0.74)
    top.set_ylabel(_value_unit(report))
    bottom.set_ylabel("draws per\nanswer")
    looks = _looks(list(rows), _explorer(report))
    for series in above:
        _curve(top, series, looks[series.name])
    for series in below:
        bottom.plot(series.x, series.value, label=series.name, **looks[series.name])
    _log_y(bottom, [v for s in below for v in s.value], most=4)
    _side_labels(top, above, looks)
    _recommended(report.get("recommended") or {}, top, bottom)
    return figure


def spanner_growth(report: Row) -> Figure | None:
    """Pairs in the spanner against labels, and beneath it the certificate: the mass left uncovered, at most."""
    history: Sequence[Row] = report.get("history") or ()
    pairs = Series.of("pairs", history, "labels", "pairs")
    issued = [{"labels": r.get("labels"), **(r.get("certificate") or {})} for r in history]
    eta = Series.of("eta", issued, "labels", "eta")
    if not pairs.x or not (any(pairs.value) or eta.x):
        return None
    figure, (top, bottom) = _canvas(
        "Spanner growth", "pairs whose labels span what replies differ in", "labels bought", 2
    )
    top.set_ylabel("pairs\naccepted")
    top.plot(pairs.x, pairs.value, label="pairs", drawstyle="steps-post", **_look(BLUE, "o"))
    top.set_ylim(bottom=0)
    bottom.set_ylabel("uncovered\nshare, at most")
    bottom.plot(eta.x, eta.value, label="eta", drawstyle="steps-post", **_look(VERMILION, "o"))
    _log_y(bottom, [*eta.value, 0.1, 1.0], most=4)
    _nu_labels(bottom, issued)
    if not eta.x:
        bottom.text(0.5, 0.5, "no certificate was issued", color=MUTED, ha="center", transform=bottom.transAxes)
    return figure


def spectrum(report: Row) -> Figure | None:
    """Eigenvalues of the relative features' covariance, and their effective rank."""
    values = [number(v) for v in report.get("spectrum") or ()]
    points = [(k, v) for k, v in enumerate(values, start=1) if v > 0.0]
    if not points:
        return None
    figure, (axes,) = _canvas(
        "Spectrum of the relative features", "variance of the differences between draws, by direction", "direction"
    )
    axes.set_ylabel("variance")
    axes.plot(*zip(*points, strict=True), label="spectrum", **_look(BLUE, "o" if len(points) <= 32 else ""))
    _log_y(axes, [v for _, v in points])
    if len(values) > 12:
        axes.set_xscale("log")
        _ticks(axes.xaxis, log_ticks(1, len(values)))
    else:
        _ticks(axes.xaxis, range(1, len(values) + 1))
        axes.set_xlim(0.7, len(values) + 0.3)
    rank = number(report.get("effective_rank"))
    if not math.isnan(rank):
        axes.axvline(rank, color=VERMILION, linewidth=1.4, linestyle=(0, (4, 3)), label="effective rank")
        right = rank > 0.5 * len(values) or (len(values) > 12 and rank > len(values) ** 0.55)
        _note(axes, f"effective rank {few(rank)}", (rank, 0.92), VERMILION, ha="right" if right else "left")
    return figure


def draws_per_answer(report: Row) -> Figure | None:
    """Share of the held-out prompts that are answered within so many draws of the base model."""
    values = sorted(v for v in map(number, report.get("draws_per_answer") or ()) if v > 0.0)
    if not values:
        return None
    note = "held-out prompts, at the recommended KL"
    figure, (axes,) = _canvas("Draws per accepted answer", note, "draws of the base model per answer")
    axes.set_ylabel("share of prompts")
    n = len(values)
    x, shares = [values[0], *values], [k / n for k in range(n + 1)]
    axes.plot(x, shares, label="share", drawstyle="steps-post", **_look(BLUE, ""))
    axes.set_ylim(0.0, 1.06)
    _ticks(axes.yaxis, [0.0, 0.25, 0.5, 0.75, 1.0], lambda v: f"{100.0 * v:.0f} %")
    if values[-1] > 8.0 * values[0]:
        axes.set_xscale("log")
        _ticks(axes.xaxis, log_ticks(values[0], values[-1]))
        axes.margins(x=0.12)
    else:
        axes.set_xlim(0.0, 1.12 * values[-1])
    for q in (0.5, 0.9) if n > 1 else (1.0,):
        at = quantile(values, q)
        axes.plot([at], [q], marker="o", color=VERMILION, markersize=7, label=f"{100.0 * q:.0f} %", linestyle="none")
        note = f"{100.0 * q:.0f} % within {few(at)}" if n > 1 else f"{few(at)} draws"
        axes.annotate(note, (at, q), (-9, 4), textcoords="offset points", ha="right", color=VERMILION, bbox=HALO)
    return figure


FIGURES: dict[str, Callable[[Row], Any]] = {
    "value_against_labels": value_against_labels,
    "value_against_kl": value_against_kl,
    "spanner_growth": spanner_growth,
    "spectrum": spectrum,
    "draws_per_answer": draws_per_answer,
}
HALO = {"boxstyle": "square,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.82}


def log_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers of [low, high] for a logarithmic axis, at most ``most``: 1-2-5 in each decade, or its 1 only."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)

    def inside(*digits: int) -> list[float]:
        ticks = (float(f"{digit}e{k}") for k in decades for digit in digits)
        return [t for t in ticks if low * 0.999 <= t <= high * 1.001]

    fine, coarse = inside(1, 2, 5), inside(1)
    if len(fine) <= most:
        return fine if len(fine) >= 2 else inside(1, 2, 3, 4, 6, 8)[:most] or [low, high]
    return coarse[:: 1 + (len(coarse) - 1) // most] if len(coarse) >= 2 else fine[::2]


def _canvas(title: str, note: str, xlabel: str, panels: int = 1) -> tuple[Figure, tuple[Axes, ...]]:
    """An empty figure with its title, a line beneath it, and one panel or two above each other (3 : 2)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, facecolor="white")
    figure.text(0.025, 0.945, title, fontsize=13.5, fontweight="bold", va="center")
    figure.text(0.025, 0.885, note, fontsize=11.0, color=MUTED, va="center")
    ratio = {"height_ratios": (3, 2), "hspace": 0.16} if panels == 2 else {}
    grid = figure.subplots(panels, 1, sharex=True, squeeze=False, gridspec_kw=ratio)
    figure.subplots_adjust(left=0.155, right=0.965, bottom=0.13, top=0.835)
    for axes in grid[:, 0]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=0, pad=5)
        axes.grid(axis="y", linewidth=0.8)
        axes.set_axisbelow(True)
    grid[-1, 0].set_xlabel(xlabel)
    return figure, tuple(grid[:, 0])


def _explorer(report: Row) -> str:
    return str(report.get("explorer") or "explorer")


def _value_unit(report: Row) -> str:
    return "reward" if report.get("true_reward_free", True) else "predicted reward"


def _value_note(report: Row, at_kl: bool = True) -> str:
    kl = number(report.get("kl"))
    place = f" at KL = {nats(kl)}" if at_kl and not math.isnan(kl) else ""
    return f"mean on held-out prompts{place}; bands: 95 % intervals"


def _look(color: str, marker: str, line: str = "-") -> dict[str, Any]:
    """Keywords of a line."""
    return {"color": color, "marker": marker, "markersize": 4.5, "linewidth": 2.0, "linestyle": line}


def _looks(names: Sequence[str], explorer: str) -> dict[str, dict[str, Any]]:
    """Name -> keywords of its line: the explorer blue and whole, the optimum green and dotted, the others dashed."""
    fixed = {explorer: _look(BLUE, "o"), "true-reward optimum": _look(GREEN, "", ":")}
    rest = [name for name in names if name not in fixed]
    return fixed | {name: _look(*OTHERS[k % len(OTHERS)], "--") for k, name in enumerate(rest)}


def _curve(axes: Axes, series: Series, look: Mapping[str, Any]) -> None:
    """A line with its band; a lone point with its bar."""
    axes.plot(series.x, series.value, label=series.name, **look)
    x, low, high = series.banded()
    if len(x) == 1:
        axes.vlines(x, low, high, color=look["color"], linewidth=1.4)
    elif x:
        axes.fill_between(x, low, high, color=look["color"], alpha=0.16, linewidth=0.0)


def _level(axes: Axes, name: str, value: float, color: str, left: bool) -> None:
    """A horizontal line across the panel, named at its left or right end."""
    if math.isnan(value):
        return
    axes.axhline(value, color=color, linewidth=1.4, linestyle=":", label=name)
    place: Any = {"xy": (0.01 if left else 0.99, value), "xycoords": axes.get_yaxis_transform()}
    look: Any = {"ha": "left" if left else "right", "va": "bottom", "color": color, "fontsize": 10.0}
    axes.annotate(f"{name} {short(value)}", xytext=(0, 3), textcoords="offset points", **place, **look)


def _key(figure: Figure, axes: Axes, curves: Sequence[Series]) -> None:
    """The curves' names and last values above the panel, where no curve can run through them."""
    lines = {line.get_label(): line for line in axes.get_lines()}
    names = [f"{plain(s.name)} {short(s.value[-1])}" for s in curves]
    font: Any = {"size": 10.0, "weight": "bold"}
    figure.legend(
        [lines[s.name] for s in curves],
        names,
        loc="center left",
        bbox_to_anchor=(0.025, 0.825),
        borderpad=0.0,
        borderaxespad=0.0,
        ncols=min(2, len(names)),
        frameon=False,
        labelcolor="linecolor",
        prop=font,
        handlelength=1.6,
        columnspacing=1.2,
    )


def _side_labels(axes: Axes, curves: Sequence[Series], looks: Mapping[str, Mapping[str, Any]]) -> None:
    """The curves' names to the right of the panel, at their ends' heights, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    ends = sorted(curves, key=lambda s: s.value[-1])
    texts = [plain(s.name).replace(", ", ",\n").replace("-reward ", "-reward\n") for s in ends]
    floor = -1.0
    for series, text in zip(ends, texts, strict=True):
        half = 0.065 * (1 + text.count("\n"))
        height = max((series.value[-1] - low) / (high - low), floor + half)
        floor = height + half
        font: Any = {"color": looks[series.name]["color"], "fontsize": 10.0, "fontweight": "bold", "va": "center"}
        axes.text(1.02, height, text, transform=axes.transAxes, **font)


def _recommended(recommended: Row, top: Axes, bottom: Axes) -> None:
    """The recommended KL: a line through both panels, and its point on each."""
    kl = number(recommended.get("kl"))
    if math.isnan(kl):
        return
    for axes, key in ((top, "value"), (bottom, "draws_per_answer")):
        axes.axvline(kl, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), label="recommended")
        y = number(recommended.get(key))
        if not math.isnan(y):
            axes.plot([kl], [y], color=INK, marker="o", markersize=7, label=f"recommended {key}", zorder=6)
    low, high = top.get_xlim()
    side = ("right", -5) if kl > 0.5 * (low + high) else ("left", 5)
    place: Any = {
        "xycoords": bottom.get_xaxis_transform(),
        "textcoords": "offset points",
        "ha": side[0],
        "va": "bottom",
    }
    text = f"recommended {nats(kl)}"
    bottom.annotate(text, (kl, 0.05), (side[1], 0), color=INK, fontsize=10.0, bbox=HALO, zorder=6, **place)


def _nu_labels(axes: Axes, issued: Iterable[Row], limit: int = 6) -> None:
    """The spanner radius nu at the certificates where it changes, the last ``limit`` of them."""
    changes: list[tuple[float, float, float]] = []
    for row in issued:
        point = tuple(number(row.get(key)) for key in ("labels", "eta", "nu"))
        if not any(map(math.isnan, point)) and (not changes or changes[-1][2] != point[2]):
            changes.append((point[0], point[1], point[2]))
    for x, y, nu in changes[-limit:]:
        axes.annotate(f"\u03bd = {few(nu)}", (x, y), (5, 5), textcoords="offset points", fontsize=9.5, color=MUTED)


def _label_scale(axes: Axes, labels: Sequence[float]) -> None:
    """Linear from 0, or logarithmic beyond the first label batch where one curve has far more labels than that."""
    positive = sorted(x for x in labels if x > 0.0)
    if not positive or positive[-1] <= 8.0 * positive[0]:
        last = positive[-1] if positive else 1.0
        axes.set_xlim(-0.02 * last, 1.04 * last)
        return
    axes.set_xscale("symlog", linthresh=positive[0], linscale=0.35)
    axes.set_xlim(0.0, positive[-1] * 1.12)
    _ticks(axes.xaxis, [0.0, *log_ticks(positive[0], positive[-1])])


def _log_y(axes: Axes, values: Sequence[float], most: int = 7) -> None:
    """A logarithmic y axis around the positive ones of the values, at least a factor 3 high."""
    positive = [v for v in values if v > 0.0]
    if not positive:
        axes.set_yticks([])
        return
    low, high = min(positive), max(positive)
    room = max((high / low) ** 0.12, math.sqrt(3.0 * low / high), 1.12)
    axes.set_yscale("log")
    axes.set_ylim(low / room, high * room)
    _ticks(axes.yaxis, log_ticks(low / room, high * room, most))


def _ticks(axis: Any, places: Sequence[float], form: Callable[[float], str] = lambda v: f"{v:,.10g}") -> None:
    """Ticks at these places only, in plain numbers: no powers, no offset."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    axis.set_major_locator(FixedLocator(list(places)))
    axis.set_major_formatter(FixedFormatter([form(v) for v in places]))
    axis.set_minor_locator(NullLocator())


def _note(axes: Axes, text: str, place: tuple[float, float], color: str, ha: str) -> None:
    """Text beside a vertical line, at (data x, share of the panel's height)."""
    offset = (-6 if ha == "right" else 6, 0)
    frame: Any = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points"}
    axes.annotate(text, place, offset, ha=ha, va="top", color=color, fontweight="bold", bbox=HALO, **frame)
