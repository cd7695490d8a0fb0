"""The page: whole, self-contained, its numbers the document's, and inert whatever the document's texts hold."""

from __future__ import annotations

import copy
import html
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from documents import CASES, HOSTILE, LONG, RTL, case

from spannerlm.foundation import page
from spannerlm.foundation.figures import FIGURES
from spannerlm.wording import visible

DOCUMENTS = {name: case(name) for name in CASES}


class Elements(HTMLParser):
    """The page's tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.links: list[tuple[str, str | None]] = []
        self.handlers: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        self.links += [(name, value) for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def rendered(document: dict[str, Any]) -> str:
    return page.render_page(document, {})


def words(document: dict[str, Any]) -> str:
    return " ".join(" ".join(Elements(rendered(document)).words).split())


@pytest.mark.parametrize("name", CASES)
def test_the_files_are_written_and_the_page_loads_nothing(name: str, tmp_path: Path) -> None:
    written = page.write_page(tmp_path, DOCUMENTS[name])
    assert all(path.is_file() and path.stat().st_size for path in written)
    assert set(written) == {path for path in tmp_path.rglob("*") if path.is_file()}
    text = (tmp_path / "coverage.html").read_text(encoding="utf-8")
    found = Elements(text)
    assert not {"script", "iframe", "object", "embed", "link", "img", "form", "base"} & set(found.tags)
    assert not found.handlers
    assert all((value or "").startswith("#") for _, value in found.links)
    assert "default-src 'none'" in text
    assert not re.search(r"url\((?!#)|@import", text)
    assert not re.search(r">\s*(None|nan|inf)\s*<", text)
    assert re.search(r"<title>[^<]+</title>", text)


def test_stale_pictures_go_and_equal_documents_give_equal_bytes(tmp_path: Path) -> None:
    first = {path.name: path.read_bytes() for path in page.write_page(tmp_path, DOCUMENTS["real rewards"])}
    again = {path.name: path.read_bytes() for path in page.write_page(tmp_path, case("real rewards"))}
    assert first == again
    assert [path.name for path in page.write_page(tmp_path, DOCUMENTS["alike"])] == ["coverage.html"]
    assert not list((tmp_path / "figures").iterdir())


def test_a_document_from_its_json_gives_the_same_page() -> None:
    document = copy.deepcopy(DOCUMENTS["real rewards"])
    document["models"][0]["reach"]["needed"]["high"] = math.inf
    document["models"][0]["unseen"]["entropy"]["low"] = math.nan
    finite = json.loads(json.dumps(document).replace("Infinity", "null").replace("NaN", "null"))
    assert rendered(document) == rendered(finite)


def test_hostile_texts_are_shown_escaped_and_never_raw() -> None:
    text = rendered(DOCUMENTS["hostile"])
    assert HOSTILE not in text
    assert "<script" not in text
    assert "<img" not in text
    assert not {"\u202e", "\x1b"} & set(text)
    assert text.count("</style>") == 1
    assert visible(HOSTILE) in html.unescape(text)
    assert "{{ 7*7 }}" in text
    assert RTL in text
    assert LONG in text


@pytest.mark.parametrize("name", CASES)
def test_every_sentence_of_the_document_is_on_the_page(name: str) -> None:
    document = DOCUMENTS[name]
    text = " ".join(html.unescape(rendered(document)).split())
    for model in document["models"]:
        best = model["maps"]["best"] if model["maps"] else model["spans"][0]["map"]
        spans = [row for row in model["spans"] if row["map"] == best]  # the others stand in a table
        parts = [model["unseen"], *spans, *(model[k] for k in ("success", "reach", "maps", "forecast"))]
        said = [s for part in parts if part for s in part["statements"]]
        verdict = model["verdict"]
        for sentence in (*said, verdict["title"], *verdict["reasons"], *verdict["advice"], *model["warnings"]):
            assert " ".join(visible(sentence).split()) in text
        assert page.VERDICTS[verdict["kind"]][0] in text
        assert verdict["kind"] in text


def test_what_is_not_known_has_no_section() -> None:
    heads = ("Parts of the reward", "What tilting reaches", "Prompts beyond the model", "Side by side", "Figures",
             "What the model can do", "Which features to use", "What it would take")  # fmt: skip
    bare, full = words(DOCUMENTS["no rewards"]), words(DOCUMENTS["real rewards"])
    assert not [head for head in heads if head in bare]
    assert [head for head in heads if head not in full] == ["Side by side", "Figures"]  # one model; no pictures given


def test_the_models_side_by_side_have_the_documents_numbers() -> None:
    document = DOCUMENTS["three models"]
    table = dict(page.comparison(document))
    assert table["verdict"] == ["go", "better features", "no foundation"]
    assert table["labels to the target"] == ["67 [52, 82]", "100 [85, 115]", "more than 300"]
    assert table["draws per answer there"] == ["11 (at most 44.1)"] * 3
    firsts = [model["success"]["pass_at"][0]["value"] for model in document["models"]]
    assert [cell.split()[0] for cell in table["success of one draw"]] == [f"{value:.2f}" for value in firsts]
    assert "success of one of 1,024 draws" in table  # the k nearest to the 1000 that were asked for
    text = words(document)
    assert all(cell in text for cells in table.values() for cell in cells)
    unknown = copy.deepcopy(document)
    for model in unknown["models"]:
        model.update(success=None, reach=None, maps=None, forecast=None)
    assert [label for label, _ in page.comparison(unknown)] == [
        "verdict", "distinct replies a prompt", "entropy (nats)"]  # fmt: skip


def test_many_prompts_are_cut_and_the_rest_counted() -> None:
    document = DOCUMENTS["500 prompts"]
    model = document["models"][0]
    rows = page.prompt_rows(model, document["prompts"])
    assert len(rows) == page.ROWS
    hardest = sorted(r["rate"]["value"] for r in model["success"]["per_prompt"])[: page.ROWS]
    assert [float(row[2].split()[0]) / 256 for row in rows] == hardest
    text = words(document)
    named = model["success"]["hopeless"]
    assert f"and {len(named) - page.BEYOND} more" in text
    assert f"{page.ROWS} of 500 prompts" in text
    assert all(document["prompts"][k] in text for k in named[: page.BEYOND])


@pytest.mark.parametrize("count", [0, 1, 30, 31])
def test_prompts_beyond_the_model_are_named(count: int) -> None:
    document = copy.deepcopy(DOCUMENTS["500 prompts"])
    document["models"][0]["success"]["hopeless"] = tuple(range(count))
    text = words(document)
    assert ("Prompts beyond the model" in text) is (count > 0)
    assert ("and 1 more" in text) is (count == 31)


def test_bounds_and_intervals_that_are_missing_are_said() -> None:
    assert page.bounded({"value": 11.0, "low": 1.0, "high": math.inf}) == "11 (no bound)"
    assert page.bounded({"value": 11.0, "low": 1.0, "high": 44.1}) == "11 (at most 44.1)"
    assert page.bounded({"value": None, "low": 1.0, "high": 44.0}) == "at most 44"
    assert page.bounded(None) == page.ranged(None) == page.percent(None) == page.NONE
    assert page.ranged({"value": math.inf, "low": 300.0, "high": math.inf}) == "more than 300"
    assert page.ranged({"value": 240.0, "low": 130.0, "high": None}) == "240 [130, no bound]"
    assert page.percent({"value": 0.73, "low": 0.61, "high": 0.82}) == "73 % [61, 82]"
    assert page.percent({"value": 0.73, "low": None, "high": None}) == "73 %"


def test_every_figure_has_its_caption() -> None:
    assert set(page.CAPTIONS) == set(FIGURES)


def test_of_more_models_than_fit_the_pictures_show_the_first(tmp_path: Path) -> None:
    document = case("three models")
    document["models"] = [{**m, "name": f"{m['name']}-{k}"} for k in range(3) for m in document["models"]]
    page.write_page(tmp_path, document)
    text = " ".join((tmp_path / "coverage.html").read_text(encoding="utf-8").split())
    assert "They show the first 6 of 9 models." in text
    assert all(model["name"] in text for model in document["models"])


def test_prompts_without_a_graded_draw_have_no_rate() -> None:
    document = case("real rewards")
    model = document["models"][0]
    model["success"]["per_prompt"] = model["success"]["per_prompt"][1:]
    rows = {row[0]: row for row in page.prompt_rows(model, document["prompts"])}
    assert len({len(row) for row in rows.values()}) == 1
    assert rows["1"][2:4] == (page.NONE, page.NONE)


def test_parts_of_the_reward_stand_one_to_a_row_with_every_map_beside() -> None:
    model = copy.deepcopy(DOCUMENTS["real rewards"]["models"][0])
    rows = model["maps"]["rows"]
    rows[1]["parts"][0]["r2"] = {"value": -0.0133, "low": -12.5, "high": None}
    rows[2]["parts"][1]["r2"] = {"value": -0.0133, "low": -12.504, "high": 0.0369}
    table = page.part_rows(model)
    assert [row[:2] for row in table] == [("correct", "50 %"), ("polite", "50 %")]
    assert page.part_maps(model) == [row["map"] for row in rows]
    assert all(len(row) == 2 + len(rows) for row in table)
    assert table[0][3] == "-1 %"
    assert table[1][4] == "-1 % [-1,250, 4]"
    assert page.part_rows({**model, "maps": None}) == []


def test_the_pairs_beyond_a_spanner_are_counted() -> None:
    model = copy.deepcopy(DOCUMENTS["real rewards"]["models"][0])
    assert [row[-1] for row in page.span_rows(model)] == ["3 of 500"] * 3
    model["spans"][0]["tested"] = 0
    assert page.span_rows(model)[0][-1] == page.NONE


def test_the_page_says_why_this_map_and_says_it_once() -> None:
    model = copy.deepcopy(DOCUMENTS["real rewards"]["models"][0])
    assert dict(page.statements(model))["Which features to use"][0] == model["maps"]["reason"]
    model["maps"]["statements"] = (model["maps"]["reason"],)
    assert dict(page.statements(model))["Which features to use"] == [model["maps"]["reason"]]
