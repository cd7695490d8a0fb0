"""The page and its files: whole, self-contained, equal for equal rows, and inert whatever the rows' texts hold."""

from __future__ import annotations

import io
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from spannerlm import report as module
from spannerlm import wording
from spannerlm.errors import LedgerError
from spannerlm.figures import FIGURES
from spannerlm.report import cost_rows, render_page, table_rows, write_report

NAN = math.nan
Row = dict[str, Any]


def synthetic() -> Row:
    """The report mapping of a small finished run."""

    def row(name: str, labels: int | None, value: float, half: float = 0.04) -> Row:
        draws = None if labels is None else 81 * labels
        return {"name": name, "labels": labels, "draws": draws, "kl": 0.0 if labels == 0 else 1.99, "value": value,
                "low": value - half, "high": value + half, "draws_per_answer": 1.0 + 17 * value}  # fmt: skip

    certificate = {"eta": 0.011, "delta": 0.05, "nu": 2.0, "pairs": 1013, "acceptances": 18, "beyond": 3,
                   "radius": 7.9, "eta_radius": 0.004}  # fmt: skip
    history = [
        {"labels": 9 * k, "draws": 100 * k, "value": 0.2 + 0.1 * k, "low": 0.1, "high": 0.9, "pairs": 4 * k, "nu": 2.0,
         "certificate": certificate if k == 2 else None, "phase": "span"}
        for k in range(3)
    ]  # fmt: skip
    curve = [{"kl": k, "value": 0.2 + 0.1 * k, "low": 0.1, "high": 0.9, "draws_per_answer": 2.0**k} for k in (0, 1, 3)]
    reply = {"text": "please check the cable", "reward": 0.63}
    return {
        "title": "toy: mine with 18 labels",
        "model": "toy model",
        "task": "toy",
        "explorer": "mine",
        "seed": 7,
        "kl": 2.0,
        "reward_name": "politeness",
        "true_reward_free": True,
        "counts": {"labels": 18, "draws": 1458, "eval_draws": 3072, "eval_labels": 0, "skips": 2, "failed": 0},
        "history": history,
        "reason": "labels spent",
        "spectrum": [2.0, 1.0, 0.25],
        "effective_rank": 2.3,
        "fit": {"r2": 0.41, "low": 0.22, "high": 0.57, "labels": 18, "folds": 5, "noise_std": 0.31,
                "reading": "yes: the features explain much"},
        "baselines": {"random-singles": history},
        "table": [row("base model", 0, 0.213, 0.003), row("random, same labels", 18, 0.37), row("mine", 18, 0.85),
                  row("true-reward optimum", None, 1.14)],
        "value_against_kl": {"mine": curve, "true-reward optimum": curve},
        "recommended": {**curve[1], "beta": 0.122, "draws_per_scan": 664.0, "reason": "the knee of the curve"},
        "draws_per_answer": [3.0, 8.0, 21.0],
        "replies": [{"prompt": "it is hot", "before": [{"text": "go away", "reward": -0.31}], "after": [reply]}],
        "estimates": [{"name": "posterior prediction", "value": 0.77, "low": 0.61, "high": 0.93, "note": "by labels"}],
        "timings": {"load": 3.7, "total": 38.2, "something else": 1.0},
        "versions": {"python": "3.11.7"},
    }  # fmt: skip


def one_prompt() -> Row:
    """The mapping of a run without held-out prompts, and so few labels that nothing can be told."""
    undefined = dict.fromkeys(("value", "low", "high", "r2", "noise_std"), NAN)
    empty: Row = {key: [] for key in ("table", "draws_per_answer", "replies", "estimates", "spectrum")}
    history = [{"labels": n, "draws": 9 * n, "value": None, "certificate": None, "pairs": 0} for n in (0, 6)]
    fit = {**undefined, "labels": 6, "folds": 5, "reading": "too few different labels to tell"}
    more = {"baselines": {}, "value_against_kl": {}, "recommended": None, "history": history, "fit": fit}
    return {**synthetic(), **empty, **more, "effective_rank": NAN, "true_reward_free": False}


class Page(HTMLParser):
    """Tags, attributes and visible text of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.pieces: list[str] = []
        self.metas: list[dict[str, str | None]] = []
        self._hidden = 0
        self.feed(source)
        self.close()
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._hidden += tag in ("style", "svg")
        if tag == "meta":
            self.metas.append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("style", "svg")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.pieces.append(data)


def page_of(report: Row, directory: str = "run") -> Page:
    return Page(render_page(report, {}, directory))


def written(directory: Path, report: Row) -> str:
    write_report(directory, report)
    return (directory / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    directory = tmp_path_factory.mktemp("runs") / "toy-1"
    directory.mkdir()
    return directory, written(directory, synthetic())


def test_files_are_there_and_readable(made: tuple[Path, str]) -> None:
    from PIL import Image

    directory, _ = made
    names = {path.name for path in (directory / "figures").iterdir()}
    assert names == {f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")}
    for name in FIGURES:
        png = (directory / "figures" / f"{name}.png").read_bytes()
        assert png[:8] == b"\x89PNG\r\n\x1a\n"
        with Image.open(io.BytesIO(png)) as image:
            image.load()
        assert ET.parse(directory / "figures" / f"{name}.svg").getroot().tag.endswith("svg")
    assert not list(directory.rglob("*.tmp"))
    assert sum(path.stat().st_size for path in directory.rglob("*")) < 1_000_000


def test_every_number_of_the_table_is_in_the_page(made: tuple[Path, str]) -> None:
    text = Page(made[1]).text
    for cells in table_rows(synthetic()):
        assert " ".join(cells) in text
    for expected in ("0.213 [0.210, 0.216]", "0.37 [0.33, 0.41]", "0.85 [0.81, 0.89]", "1.14 [1.10, 1.18]", "1,458"):
        assert expected in text
    for expected in ("toy model", "politeness", "seed 7", "664", "2.0 %"[:1], "go away (-0.31)", "cable (0.63)"):
        assert expected in text
    assert "posterior prediction by labels 0.77 [0.61, 0.93]" in text
    assert "R² = 0.41 [0.22, 0.57] on 18 labels, 5 folds" in text
    assert "load the model 3.7 s · in all 38 s" in text
    assert f'spannerlm sample {made[0]} --prompt "…" -n 3 --kl ' in text
    assert "The run ended because: labels spent." in text


def test_the_explorers_own_row_is_marked(made: tuple[Path, str]) -> None:
    (own,) = re.findall(r'<tr class="own">(.*?)</tr>', made[1])
    assert "<td>mine</td>" in own


def test_ids_are_unique_and_every_reference_has_its_target(made: tuple[Path, str]) -> None:
    attributes = Page(made[1]).attributes
    ids = [value for _, name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids)) > 20
    used = [value[1:] for _, name, value in attributes if name in ("href", "xlink:href")]
    used += re.findall(r"url\(#([^)]*)\)", made[1])
    assert used
    assert set(used) <= set(ids)


def assert_inert(source: str) -> None:
    page = Page(source)
    allowed = {"html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "p", "div", "span", "table",
               "thead", "tbody", "tr", "th", "td", "code", "figure", "svg", "defs", "g", "path", "use", "text", "tspan",
               "clippath", "rect"}  # fmt: skip
    assert set(page.tags) <= allowed
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert not [a for a in page.attributes if a[1] in ("src", "srcset", "action", "background", "data", "poster")]
    links = [value for _, name, value in page.attributes if name in ("href", "xlink:href")]
    assert all(value.startswith("#") for value in links)
    addresses = [a for a in page.attributes if "http:" in a[2] or "https:" in a[2]]
    assert {a[1] for a in addresses} <= {"xmlns", "xmlns:xlink"}
    assert "@import" not in source
    assert not re.search(r"url\((?!#)", source)
    assert not wording.CONTROL.search(source)
    (policy,) = [meta["content"] for meta in page.metas if meta.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in (policy or "")
    assert "script-src" not in (policy or "")


def test_the_page_is_self_contained(made: tuple[Path, str]) -> None:
    assert_inert(made[1])
    assert "http" not in Page(made[1]).text


HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>'",
    "</style></title></svg><svg onload=alert(1)>",
    "&lt;b&gt; &amp; {{ 7 * 7 }} {% raw %}",
    "\x1b]0;owned\x07\x1b[31mred",
    "safe\u202egpj.exe\u2066\u200b",
    "$x$ $\\frac{1}$ \\alpha _ ^",
    "lone \ud800 surrogate \udfff",
    "\x00\x0b\x85\ufeff\ufffe",
    "] ]]> --> <!-- {#",
    "x" * 10_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_are_inert_and_shown(text: str) -> None:
    report = synthetic()
    keys = ("title", "model", "reward_name", "reason", "task")
    report |= dict.fromkeys(keys, text)
    report["explorer"] = report["table"][2]["name"] = text
    report["replies"] = [{"prompt": text, "before": [{"text": text, "reward": NAN}], "after": []}]
    report["estimates"] = [{"name": text, "value": 0.5, "low": None, "high": None, "note": text}]
    report["recommended"]["reason"] = report["fit"]["reading"] = text
    report["versions"] = {text: text}
    report["history"][2]["certificate"] = dict.fromkeys(report["history"][2]["certificate"], text)
    source = render_page(report, {}, text)
    source.encode("utf-8")
    assert_inert(source)
    shown = " ".join(wording.visible(text).split())
    assert Page(source).text.count(shown) >= 10
    assert 'class="own"' in source


def test_hostile_texts_are_inert_in_the_pictures_too(tmp_path: Path) -> None:
    report = synthetic()
    hostile = "".join(HOSTILE[:-1])
    report["explorer"] = report["table"][2]["name"] = hostile
    report["value_against_kl"] = {hostile: report["value_against_kl"]["mine"]}
    report["baselines"] = {hostile[::-1]: report["history"]}
    report["history"][2]["certificate"] |= {"nu": hostile}
    source = written(tmp_path, report)
    assert_inert(source)
    assert source.count("<svg") == len(FIGURES)


def test_what_is_missing_is_left_out_and_never_nought(tmp_path: Path) -> None:
    source = written(tmp_path, one_prompt())
    page = Page(source)
    for heading in ("Held-out prompts", "Replies before", "What we recommend", "The value, from labels", "Figures"):
        assert heading not in page.text
    assert "cannot be told yet" in page.text
    assert "R² = – [–, –] on 6 labels" in page.text
    assert "No certificate was issued" in page.text
    assert not re.search(r"\b(nan|none|inf|undefined)\b", page.text, re.IGNORECASE)
    assert list((tmp_path / "figures").iterdir()) == []
    assert_inert(source)


def test_undefined_cells_are_dashes() -> None:
    bare: Row = {"name": "base model", "value": NAN, "low": None, "high": 0.5, "kl": None, "labels": NAN, "draws": None}
    assert table_rows({"table": [bare]}) == [("base model", "–", "–", "–", "–", "–")]
    report = {**synthetic(), "table": [bare], "counts": {}, "timings": {"load": None}, "versions": None}
    report["recommended"] = {"kl": 1.0, "draws_per_scan": None}
    report["replies"] = [{"prompt": "p", "before": [{"text": "t", "reward": None}], "after": []}]
    text = page_of(report).text
    assert "base model – – – – –" in text
    assert "nan" not in text.lower().replace("spanner", "")
    assert "None" not in text
    assert "scans" not in text
    assert " t tilted policy" in text


def test_costs_leave_out_what_cost_nothing() -> None:
    assert cost_rows(synthetic()) == [
        ("reward labels bought to learn", "18"),
        ("draws of the base model to learn", "1,458"),
        ("draws to measure, on held-out prompts", "3,072"),
        ("labels that the source declined", "2"),
    ]
    assert cost_rows({}) == [("reward labels bought to learn", "–"), ("draws of the base model to learn", "–")]


def test_equal_rows_give_equal_files(made: tuple[Path, str], tmp_path: Path) -> None:
    directory = tmp_path / "toy-1"
    directory.mkdir()
    paths = write_report(directory, synthetic())
    assert paths[-1] == directory / "report.html"
    assert len(paths) == 2 * len(FIGURES) + 1
    for path in paths:
        other = (made[0] / path.relative_to(directory)).read_bytes()
        assert path.read_bytes().replace(str(directory).encode(), str(made[0]).encode()) == other, path


def test_a_figure_that_no_longer_applies_is_removed(tmp_path: Path) -> None:
    first = written(tmp_path, synthetic())
    (tmp_path / "figures" / "mine.txt").write_text("a file of the user's own")
    second = written(tmp_path, {**synthetic(), "spectrum": [], "draws_per_answer": []})
    left = {path.name for path in (tmp_path / "figures").iterdir()}
    kept = set(FIGURES) - {"spectrum", "draws_per_answer"}
    assert left == {f"{name}.{kind}" for name in kept for kind in ("png", "svg")} | {"mine.txt"}
    assert (first.count("<svg"), second.count("<svg")) == (5, 3)


def test_files_are_written_aside_and_a_full_disk_leaves_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = written(tmp_path, one_prompt())
    seen: list[Path] = []

    def full(path: Path, data: bytes) -> None:
        seen.append(path)
        raise LedgerError(f"{path}: could not be written (No space left on device)")

    monkeypatch.setattr(module, "durable_write", full)
    with pytest.raises(LedgerError, match="No space left"):
        write_report(tmp_path, synthetic())
    assert seen == [tmp_path / "figures" / "value_against_labels.png"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == before
