"""What raters see: leases by a clock that nobody sets, the two sides, undo, what is exported."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spannerlm import Run
from spannerlm.environments import environment
from spannerlm.errors import InputError
from spannerlm.web import export
from spannerlm.web.desk import Desk

ENV = environment("rare-skill", seed=1)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def made(folder: Path, clock: Clock, **options: Any) -> Iterator[Desk]:
    given = {"env": ENV, "budget": 12, "batch": 2, "overlap": 2, "feedback": "comparison", **options}
    with Run.open(folder, **given) as run:
        desk = Desk(run, lease_s=60.0, clock=clock)
        yield desk
        desk.close()


@pytest.fixture
def desk(tmp_path: Path, clock: Clock) -> Iterator[Desk]:
    yield from made(tmp_path, clock)


def item(desk: Desk, rater: str) -> dict[str, Any]:
    """The next item, once it is there."""
    for _ in range(400):
        found = desk.next(rater)
        if found["state"] != "thinking":
            break
        time.sleep(0.02)
    assert found["state"] == "item", found
    return dict(found["item"])


def test_an_item_stays_until_it_is_answered_and_tells_nothing_of_the_run(desk: Desk) -> None:
    first = item(desk, "ann")
    assert item(desk, "ann") == first
    assert set(first) == {"id", "prompt", "columns", "sides"}
    assert len(first["sides"]) == 2
    saved = desk.answer("ann", first["id"], {"choice": "left"})
    assert (saved["state"], saved["mine"]) == ("saved", 1)
    assert item(desk, "ann")["id"] != first["id"]


@pytest.mark.parametrize("choice", ["left", "right", "tie", "bad"])
def test_the_side_that_was_seen_is_the_side_that_is_preferred(desk: Desk, choice: str) -> None:
    flips = set()
    for _ in range(4):
        shown = item(desk, "ann")
        desk.answer("ann", shown["id"], {"choice": choice})
        answer = next(a for a in desk.run.answers() if a.query.id == shown["id"])
        query = answer.query
        flips.add(shown["sides"][0] == query.response)
        better = {1.0: query.response, 0.0: query.opponent, 0.5: None}[answer.value or 0.0]
        assert better == {"left": shown["sides"][0], "right": shown["sides"][1]}.get(choice)
        again = desk.previous("ann", None)["item"]
        assert again["value"] == {"left": 1.0, "right": 0.0}.get(choice, 0.5)
    rows = [json.loads(line) for line in (desk.run.directory / "ratings.jsonl").read_text().splitlines()]
    assert [row["choice"] for row in rows] == [choice] * 4
    assert {row["left"] for row in rows} <= {"response", "opponent"}


def test_both_orders_are_shown(desk: Desk) -> None:
    left = []
    while len(left) < 6:
        shown = item(desk, "ann")
        query = desk.run.query(shown["id"])
        left.append(shown["sides"][0] == query.response)
        desk.answer("ann", shown["id"], {"choice": "tie"})
    assert set(left) == {True, False}


def test_undo_goes_back_and_another_answer_is_a_revision(desk: Desk) -> None:
    first = item(desk, "ann")
    desk.answer("ann", first["id"], {"choice": "left"})
    second = item(desk, "ann")
    desk.answer("ann", second["id"], {"skip": "no idea"})
    back = desk.previous("ann", None)["item"]
    assert (back["id"], back["was"], back["value"]) == (second["id"], "skip", None)
    further = desk.previous("ann", back["id"])["item"]
    assert (further["id"], further["was"]) == (first["id"], "label")
    assert desk.previous("ann", first["id"])["state"] == "none"
    desk.answer("ann", first["id"], {"choice": "right"})
    desk.answer("ann", second["id"], {"choice": "tie"})
    counts = desk.run.counts
    assert (counts.labels, counts.skips) == (2, 0)
    assert desk.previous("bob", None)["state"] == "none"


def test_an_item_that_nobody_answers_goes_to_others_and_a_late_answer_is_kept(desk: Desk, clock: Clock) -> None:
    held = [item(desk, "ann") for _ in range(1)]
    names = [f"rater {i}" for i in range(12)]
    for name in names[:11]:
        item(desk, name)  # all of the budget is out now
    assert desk.next("late")["state"] == "thinking"
    clock.now = 59.0
    assert desk.next("late")["state"] == "thinking"
    clock.now = 61.0
    found = desk.next("late")
    assert found["state"] == "item"
    assert desk.run.counts.waiting <= 12
    desk.answer("ann", held[0]["id"], {"choice": "left"})
    assert desk.run.counts.labels == 1


def test_nobody_answers_for_others_and_wrong_answers_are_named(desk: Desk) -> None:
    shown = item(desk, "ann")
    for rater, name, given, match in (
        ("bob", shown["id"], {"choice": "left"}, "somebody else"),
        ("ann", shown["id"], {"choice": "up"}, "choice: expected one of"),
        ("ann", shown["id"], {"choice": ["left"]}, "choice: expected one of"),
        ("ann", shown["id"], {"value": 1.0}, "choice: expected one of"),
        ("ann", shown["id"], {}, "got none"),
        ("ann", shown["id"], {"choice": "left", "skip": "x"}, "got choice, skip"),
        ("ann", shown["id"], {"skip": "x" * 501}, "at most 500"),
        ("ann", "0" * 20, {"choice": "left"}, "found none"),
        ("ann", None, {"choice": "left"}, "id: expected"),
        ("", shown["id"], {"choice": "left"}, "rater: expected a name"),
        ("x" * 81, shown["id"], {"choice": "left"}, "rater: expected a name"),
    ):
        with pytest.raises(InputError, match=match):
            desk.answer(rater, name, given)  # type: ignore[arg-type]
    assert desk.run.counts.labels == 0


def test_numbers_are_rated_one_response_at_a_time(tmp_path: Path, clock: Clock) -> None:
    for desk in made(tmp_path, clock, feedback="scalar", overlap=1):
        shown = item(desk, "ann")
        assert len(shown["sides"]) == 1
        for value in (True, "3", None, float("nan")):
            with pytest.raises(InputError):
                desk.answer("ann", shown["id"], {"value": value})
        desk.answer("ann", shown["id"], {"value": 3})
        assert desk.previous("ann", None)["item"]["value"] == 3.0


def test_exports_are_lossless_and_skips_stand_apart(desk: Desk) -> None:
    for choice in ("left", "tie", "right"):
        desk.answer("ann", item(desk, "ann")["id"], {"choice": choice})
    desk.answer("ann", item(desk, "ann")["id"], {"skip": "both empty"})
    answers = desk.run.answers()
    rows = export.rows(answers)
    assert [row["value"] for row in rows] == [a.value for a in answers if a.status == "label"]
    assert len(rows) == 3
    assert [row["status"] for row in export.skips(answers)] == ["skip"]
    pairs = export.pairs(answers)
    assert len(pairs) == 2
    for pair in pairs:
        match = next(a for a in answers if {a.query.response, a.query.opponent} == {pair["chosen"], pair["rejected"]})
        assert (match.value == 1.0) == (pair["chosen"] == match.query.response)


def test_the_panel_counts_what_was_rated(desk: Desk) -> None:
    for rater in ("ann", "bob", "ann"):
        desk.answer(rater, item(desk, rater)["id"], {"choice": "left"})
    desk.answer("bob", item(desk, "bob")["id"], {"skip": "x"})
    panel = desk.panel()
    assert (panel["labels"], panel["skips"], panel["budget"], panel["overlap"]) == (3, 1, 12, 2)
    assert panel["raters"] == [{"name": "ann", "labels": 2}, {"name": "bob", "labels": 1}]
    assert panel["money"] is None
    assert json.dumps(panel, allow_nan=False)


def test_all_are_told_when_nothing_is_left(desk: Desk) -> None:
    for _ in range(6):
        for rater in ("ann", "bob"):
            found = desk.next(rater)
            if found["state"] == "done":
                break
            desk.answer(rater, item(desk, rater)["id"], {"choice": "left"})
    for _ in range(200):
        found = desk.next("ann")
        if found["state"] == "done":
            break
        time.sleep(0.02)
    assert (found["state"], found["why"], found["left"]) == ("done", "labels spent", 0)
