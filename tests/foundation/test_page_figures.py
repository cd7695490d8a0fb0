"""The pictures of a coverage report say what its document says: read from the artists, not from pixels."""

from __future__ import annotations

import copy
import math
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from documents import CASES, LONG, case
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from numpy.testing import assert_allclose

from spannerlm.figures import render
from spannerlm.foundation import canvas, figures

LABELS_ONLY = {"spectrum", "spanner_growth"}
GRADED = {"pass_at_k", "value_and_cost", "success_rates", "features"} | LABELS_ONLY
EXPECTED = {
    "one prompt": GRADED | {"forecast"},
    "500 prompts": GRADED | {"forecast"},
    "alike": set(),
    "real rewards": GRADED | {"forecast", "best_of_k"},
    "labels": GRADED,
    "no rewards": LABELS_ONLY,
    "three models": GRADED | {"forecast"},
    "hostile": GRADED | {"forecast", "best_of_k"},
}
DOCUMENTS = {name: case(name) for name in CASES}


def built(name: str, document: Any) -> Figure:
    figure = figures.build(name, document)
    assert figure is not None
    return figure


def line(axes: Axes, label: str) -> Line2D:
    found = [artist for artist in axes.get_lines() if artist.get_label() == label]
    assert len(found) == 1, [artist.get_label() for artist in axes.get_lines()]
    return found[0]


def texts(figure: Figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(Text))


@pytest.mark.parametrize("name", CASES)
def test_a_picture_is_there_where_its_rows_are(name: str) -> None:
    found = {key for key in figures.FIGURES if figures.build(key, DOCUMENTS[name]) is not None}
    assert found == EXPECTED[name]


@pytest.mark.parametrize("document", [{}, {"models": []}, {"models": [{"name": "bare"}], "settings": {}}])
def test_of_nothing_there_is_nothing_to_draw(document: dict[str, Any]) -> None:
    assert all(figures.build(key, document) is None for key in figures.FIGURES)


def test_pass_at_k_is_whole_where_measured_and_dashed_beyond() -> None:
    document = DOCUMENTS["real rewards"]
    (axes,) = built("pass_at_k", document).axes
    rows = document["models"][0]["success"]["pass_at"]
    measured, rest = [r for r in rows if r["measured"]], [r for r in rows if not r["measured"]]
    whole, dashed = line(axes, "real"), line(axes, "real, extrapolated")
    assert_allclose(whole.get_xdata(), [r["k"] for r in measured])
    assert_allclose(whole.get_ydata(), [r["value"] for r in measured])
    assert_allclose(dashed.get_ydata(), [r["value"] for r in (measured[-1], *rest)])
    assert whole.get_linestyle() == "-"
    assert dashed.get_linestyle() == "--"
    assert_allclose(line(axes, "drawn").get_xdata(), 512.0)
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert_allclose([heights.min(), heights.max()], [min(r["low"] for r in rows), max(r["high"] for r in rows)])


def test_costs_without_a_bound_end_in_an_arrow_and_untold_ones_are_hollow() -> None:
    document = DOCUMENTS["real rewards"]
    top, bottom = built("value_and_cost", document).axes
    found = document["models"][0]["reach"]
    assert_allclose(
        line(top, "real").get_ydata(), [found["base"]["value"], *(r["value"]["value"] for r in found["rows"])]
    )
    assert_allclose(line(bottom, "real").get_ydata(), [r["draws_per_answer"]["value"] for r in found["rows"]])
    arrows = [artist for artist in bottom.get_lines() if artist.get_label() == "no bound"]
    assert [a.get_xdata()[0] for a in arrows] == [3.0, 4.0]
    assert {a.get_marker() for a in arrows} == {"^"}
    bounds = [a.get_ydata()[0] for a in bottom.get_lines() if a.get_label() == "bound"]
    assert_allclose(bounds, [r["draws_per_answer"]["high"] for r in found["rows"][:4]])
    hollow = line(top, "cannot tell")
    assert_allclose(hollow.get_xdata(), [3.0, 4.0])
    assert hollow.get_markerfacecolor() == "white"


@pytest.mark.parametrize("name", ["one prompt", "real rewards", "500 prompts"])
def test_every_prompt_has_its_rate_and_those_at_zero_stand_apart(name: str) -> None:
    document = DOCUMENTS[name]
    (axes,) = built("success_rates", document).axes
    model = document["models"][0]
    rates = sorted(r["rate"]["value"] for r in model["success"]["per_prompt"])
    shown = line(axes, model["name"])
    assert_allclose(shown.get_ydata(), [r for r in rates if r > 0.0])
    none = line(axes, f"{model['name']}, none")
    assert len(none.get_xdata()) == rates.count(0.0)
    if rates.count(0.0):
        assert max(none.get_ydata()) < line(axes, "set apart").get_ydata()[0] < min(shown.get_ydata())
        assert "none" in [t.get_text() for t in axes.get_yticklabels()]


def test_bars_are_the_documents_and_the_map_to_use_is_bold() -> None:
    document = DOCUMENTS["real rewards"]
    left, right = built("features", document).axes
    rows = document["models"][0]["maps"]["rows"]
    assert_allclose([bar.get_width() for bar in left.patches], [r["share"]["value"] for r in rows])
    assert_allclose([bar.get_width() for bar in right.patches], [r["r2"]["value"] for r in rows])
    assert [t.get_text() for t in left.get_yticklabels()] == [r["map"] for r in rows]
    assert [t.get_fontweight() for t in left.get_yticklabels()] == ["bold", "normal", "normal"]
    (only,) = built("features", DOCUMENTS["labels"]).axes
    assert_allclose([bar.get_width() for bar in only.patches], [r["r2"]["value"] for r in rows])


def test_the_forecast_shows_an_open_end_where_there_is_no_bound() -> None:
    figure = built("forecast", DOCUMENTS["three models"])
    (axes,) = figure.axes
    assert len([a for a in axes.get_lines() if a.get_label().endswith(", open")]) == 4  # random: all; chosen: the worst
    assert "30 % of runs get there within 500" in texts(figure)


def test_spectra_and_spanners_are_of_every_map_of_one_model_and_one_of_several() -> None:
    one, three = DOCUMENTS["real rewards"], DOCUMENTS["three models"]
    (axes,) = built("spectrum", one).axes
    assert [a.get_label().split(":")[0] for a in axes.get_lines()] == ["model-hidden", "bag-of-words", "length"]
    span = one["models"][0]["spans"][0]
    assert_allclose(axes.get_lines()[0].get_ydata(), span["spectrum"])
    (axes,) = built("spanner_growth", one).axes
    assert_allclose(axes.get_lines()[0].get_ydata(), [g["pairs"] for g in span["growth"]])
    (axes,) = built("spectrum", three).axes
    assert len(axes.get_lines()) == 3


def test_a_map_that_only_some_models_know_leaves_no_mark_at_the_others() -> None:
    document = copy.deepcopy(DOCUMENTS["three models"])
    document["models"][1].update(success=None, reach=None, maps=None, forecast=None)
    looks = {a.get_label(): a.get_color() for a in built("pass_at_k", document).axes[0].get_lines()}
    before = {a.get_label(): a.get_color() for a in built("pass_at_k", DOCUMENTS["three models"]).axes[0].get_lines()}
    assert set(looks) < set(before)
    assert all(before[name] == color for name, color in looks.items())


@pytest.mark.parametrize("name", CASES)
def test_marks_lie_inside_the_panels_and_texts_inside_the_picture(name: str) -> None:
    for key in EXPECTED[name]:
        figure = built(key, DOCUMENTS[name])
        FigureCanvasAgg(figure).draw()
        frame = figure.bbox
        every = [(axis, tick) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)
                 for tick in axis.get_major_ticks()]  # fmt: skip
        unseen = {id(tick.label1) for axis, tick in every
                  if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())}  # fmt: skip
        for text in figure.findobj(Text):
            if text.get_text() and text.get_visible() and id(text) not in unseen:
                box = text.get_window_extent()
                assert frame.x0 - 1 <= box.x0 <= box.x1 <= frame.x1 + 1, (key, text.get_text())
                assert frame.y0 - 1 <= box.y0 <= box.y1 <= frame.y1 + 1, (key, text.get_text())
        for axes in figure.axes:
            (left, right), (low, high) = axes.get_xlim(), sorted(axes.get_ylim())
            for artist in axes.get_lines():
                if artist.get_transform() == axes.transData:
                    x, y = artist.get_data()
                    assert all(left <= v <= right for v in x), (key, artist)
                    assert all(low <= v <= high for v in y), (key, artist)


def test_undefined_numbers_are_left_out_whether_null_or_nan() -> None:
    for undefined in (None, math.nan, math.inf):
        document = copy.deepcopy(DOCUMENTS["real rewards"])
        model = document["models"][0]
        for row in model["success"]["pass_at"][-2:]:
            row.update(value=undefined, low=undefined, high=undefined)
        for row in model["reach"]["rows"]:
            row["draws_per_answer"].update(value=undefined, high=undefined)
        model["forecast"]["labels"].update(value=undefined, low=undefined, high=undefined)
        (axes,) = built("pass_at_k", document).axes
        assert len(line(axes, "real, extrapolated").get_xdata()) == len(model["success"]["pass_at"]) - 2 - 9
        for key in EXPECTED["real rewards"]:
            built(key, document)


def test_long_names_keep_their_end_and_never_collide() -> None:
    rows = [{"name": f"{LONG}-{k}"} for k in range(3)]
    assert len(set(canvas.names_of(rows))) == 3
    assert all(len(n) <= 28 for n in canvas.names_of(rows))
    same = canvas.names_of([{"name": f"a{LONG}{k}{LONG}"} for k in range(3)])
    assert len(set(same)) == 3
    assert all(len(n) <= 28 for n in same)


def test_equal_documents_give_equal_bytes_of_well_formed_svg() -> None:
    for key in ("pass_at_k", "features"):
        first, second = (render(built(key, copy.deepcopy(DOCUMENTS["hostile"]))) for _ in range(2))
        assert first == second
        assert ET.fromstring(first.svg).tag.endswith("svg")
        assert b"<script" not in first.svg
