"""The pictures say what the rows say: read from the artists, not from pixels."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET

import matplotlib
import pytest
import reports
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from numpy.testing import assert_allclose

from spannerlm import figures


def built(name: str, report: dict) -> Figure:
    figure = figures.build(name, report)
    assert figure is not None
    return figure


def line(axes: Axes, label: str) -> Line2D:
    found = [artist for artist in axes.get_lines() if artist.get_label() == label]
    assert len(found) == 1, [artist.get_label() for artist in axes.get_lines()]
    return found[0]


def texts(figure: Figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(match=lambda a: hasattr(a, "get_text")))


def test_value_against_labels_holds_both_curves_their_bands_and_the_two_levels() -> None:
    report = reports.full()
    (axes,) = built("value_against_labels", report).axes
    for label, rows in (("spanner-sampling", report["history"]), *report["baselines"].items()):
        assert_allclose(line(axes, label).get_xdata(), [row["labels"] for row in rows])
        assert_allclose(line(axes, label).get_ydata(), [row["value"] for row in rows])
    for label, value in (("base model", 0.21), ("true-reward optimum", 1.145)):
        assert_allclose(line(axes, label).get_ydata(), value)
    bands = [artist for artist in axes.collections if isinstance(artist, PolyCollection)]
    heights = sorted((b.get_paths()[0].vertices[:, 1].min(), b.get_paths()[0].vertices[:, 1].max()) for b in bands)
    assert_allclose(heights, [(0.16, 1.01), (0.22, 1.07)])


def test_every_point_lies_inside_the_panel() -> None:
    for report in (reports.full(), reports.sparse()):
        for name in figures.FIGURES:
            for axes in built(name, report).axes:
                (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
                for artist in axes.get_lines():
                    if artist.get_transform() != axes.transData or not len(artist.get_xdata()):
                        continue  # a rule across the panel, or no mark at all
                    x, y = artist.get_data()
                    assert min(x) >= left - 1e-9, (name, artist.get_label())
                    assert max(x) <= right + 1e-9, (name, artist.get_label())
                    assert min(y) >= low - 1e-9, (name, artist.get_label())
                    assert max(y) <= high + 1e-9, (name, artist.get_label())


def test_the_axis_is_logarithmic_only_where_one_curve_has_many_more_labels() -> None:
    assert built("value_against_labels", reports.full()).axes[0].get_xscale() == "symlog"
    (axes,) = built("value_against_labels", reports.sparse()).axes
    assert axes.get_xscale() == "linear"
    assert_allclose(line(axes, "spanner-sampling").get_xdata(), [20.0])  # the row without a value is no mark at 0


def test_value_against_kl_marks_the_recommended_point_in_both_panels() -> None:
    report = reports.full()
    top, bottom = built("value_against_kl", report).axes
    for name, rows in report["value_against_kl"].items():
        assert_allclose(line(top, name).get_ydata(), [row["value"] for row in rows])
        assert_allclose(line(bottom, name).get_ydata(), [row["draws_per_answer"] for row in rows])
    assert bottom.get_yscale() == "log"
    assert_allclose(line(top, "recommended value").get_data(), [[1.5], [0.86]])
    assert_allclose(line(bottom, "recommended draws_per_answer").get_data(), [[1.5], [6.52]])
    for axes in (top, bottom):
        assert_allclose(line(axes, "recommended").get_xdata(), 1.5)


def test_undefined_numbers_leave_their_marks_out() -> None:
    top, bottom = built("value_against_kl", reports.sparse()).axes
    assert_allclose(line(top, "spanner-sampling").get_xdata(), [0.0, 2.0])
    assert_allclose(line(bottom, "spanner-sampling").get_ydata(), [1.0, 14.0])
    assert not [a for a in bottom.get_lines() if a.get_label() == "recommended draws_per_answer"]
    (axes,) = built("spectrum", reports.sparse()).axes
    assert_allclose(line(axes, "spectrum").get_data(), [[1, 2, 3], [0.5, 0.2, 0.01]])
    assert not [a for a in axes.get_lines() if a.get_label() == "effective rank"]


def test_spanner_growth_shows_pairs_and_certificate() -> None:
    report = reports.full()
    figure = built("spanner_growth", report)
    top, bottom = figure.axes
    assert_allclose(line(top, "pairs").get_data(), [[0, 20, 40, 60, 80, 100], [0, 10, 16, 26, 34, 40]])
    assert_allclose(line(bottom, "eta").get_data(), [[40, 60, 80, 100], [1.0, 1.0, 0.0034, 0.0034]])
    assert bottom.get_yscale() == "log"
    assert "ν = 1.4" in texts(figure)


def test_spectrum_marks_the_effective_rank() -> None:
    report = reports.full()
    figure = built("spectrum", report)
    assert_allclose(line(figure.axes[0], "spectrum").get_ydata(), report["spectrum"])
    assert_allclose(line(figure.axes[0], "effective rank").get_xdata(), 17.3)
    assert "17.3" in texts(figure)


def test_draws_per_answer_is_the_distribution_over_prompts() -> None:
    report = reports.full()
    (axes,) = built("draws_per_answer", report).axes
    x, y = line(axes, "share").get_data()
    for values in (3.0, 20.0, 41.0):
        at_most = sum(v <= values for v in report["draws_per_answer"]) / 40
        assert max(s for v, s in zip(x, y, strict=True) if v <= values) == pytest.approx(at_most)
    assert_allclose(line(axes, "50 %").get_data(), [[21.0], [0.5]])  # the 20th of 2, 3, ..., 41
    assert_allclose(line(axes, "90 %").get_data(), [[37.0], [0.9]])


@pytest.mark.parametrize("name", list(figures.FIGURES))
def test_nothing_to_draw_is_no_figure(name: str) -> None:
    empty = {"value_against_kl": {"spanner-sampling": [{"kl": None, "value": None}]}, "history": [], "spectrum": []}
    assert figures.build(name, empty) is None
    assert figures.build(name, dict.fromkeys(reports.full())) is None  # every value None


@pytest.mark.parametrize("name", list(figures.FIGURES))
def test_files_are_valid_and_equal_for_equal_rows(name: str) -> None:
    drawing = figures.render(built(name, reports.full()))
    assert drawing.png.startswith(b"\x89PNG\r\n\x1a\n")
    assert drawing.png.endswith(b"IEND\xaeB`\x82")
    root = ET.fromstring(drawing.svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(drawing.png) < 150_000
    assert len(drawing.svg) < 40_000
    assert figures.render(built(name, reports.full())) == drawing


def test_names_are_never_read_as_markup_or_mathematics() -> None:
    report = reports.full()
    name = r"$\frac{1}{0}$ \undefined <script>" + "\x1b\u202e日本"  # would raise if read as mathematics
    report |= {"explorer": name, "value_against_kl": {name: reports.curve(0.9, 1.0)}}
    for kind in ("value_against_labels", "value_against_kl"):
        svg = figures.render(built(kind, report)).svg
        ET.fromstring(svg)
        assert rb"$\frac{1}{0}$" in svg
        assert b"<script" not in svg
        assert b"\x1b" not in svg


def shown(figure: Figure) -> list[Text]:
    """Every text that is drawn; tick labels beyond their axis are not."""
    found = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in figure.axes:
        found += [*axes.texts, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            found += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [text for text in found if text.get_text() and text.get_visible()]


@pytest.mark.parametrize("name", list(figures.FIGURES))
@pytest.mark.parametrize("kind", ["full", "sparse"])
def test_no_two_texts_overlap_and_none_is_cut_off(kind: str, name: str) -> None:
    figure = built(name, getattr(reports, kind)())
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in shown(figure)]
    assert len(boxes) > 6
    for k, (text, box) in enumerate(boxes):
        assert box.x0 >= 0.0, text
        assert box.y0 >= 0.0, text
        assert box.x1 <= figure.bbox.x1, text
        assert box.y1 <= figure.bbox.y1, text
        for other, another in boxes[k + 1 :]:
            width = min(box.x1, another.x1) - max(box.x0, another.x0)
            height = min(box.y1, another.y1) - max(box.y0, another.y0)
            assert min(width, height) < 1.5, (text, other)


@pytest.mark.parametrize(("low", "high"), [(1.0, 64.0), (0.0034, 1.0), (20.0, 1000.0), (3.1, 3.3), (1e-9, 1e9)])
def test_log_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    ticks = figures.log_ticks(low, high)
    assert 1 <= len(ticks) <= 8
    assert all(low * 0.99 <= t <= high * 1.01 for t in ticks)
    assert ticks == sorted(ticks)


def test_importing_loads_no_matplotlib_and_drawing_no_pyplot() -> None:
    code = """
import sys
import spannerlm.report
assert "matplotlib" not in sys.modules
from spannerlm.figures import build, render
render(build("spectrum", {"spectrum": [2.0, 1.0]}))
assert "matplotlib.figure" in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_building_leaves_the_users_matplotlib_settings_alone() -> None:
    before = dict(matplotlib.rcParams)
    figures.render(built("spectrum", reports.full()))
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("labels", [[0, 10, 20], [24], [0], [100, 7000]])
def test_every_point_is_inside_the_panel(labels: list[int]) -> None:
    rows = [{"labels": n, "value": n / 1000, "low": n / 1000 - 0.1, "high": n / 1000 + 0.1} for n in labels]
    table = [{"name": "base model", "value": -3.0}]
    (axes,) = built("value_against_labels", {"history": rows, "explorer": "a", "table": table}).axes
    (left, right), (down, up) = axes.get_xlim(), axes.get_ylim()
    assert all(left <= n <= right for n in labels)
    assert down < -3.0
    assert up > labels[-1] / 1000 + 0.1


@pytest.mark.parametrize("most", [4, 7])
def test_log_ticks_are_few_and_round(most: int) -> None:
    for k in range(-80, 40):
        for factor in (3.0, 7.0, 40.0, 1e3, 1e11):
            low = 1.07 * 10.0 ** (k / 10)
            ticks = figures.log_ticks(low, low * factor, most)
            assert 2 <= len(ticks) <= most
            assert ticks == sorted(ticks)
            assert all(0.99 * low <= t <= 1.01 * low * factor for t in ticks)
            assert all(float(f"{t:.0e}") == t for t in ticks)
