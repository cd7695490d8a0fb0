"""Who is asked what: random bookings beside a slow rewrite from the list of all that happened."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spannerlm.askdriver import Settings
from spannerlm.errors import InputError
from spannerlm.ledger import Ledger
from spannerlm.questions import ANYONE, GIVEN, Questions, number, same_answer
from spannerlm.records import Failed, LabelItem, LabelRequest, Spec

RATERS = ("ann", "bob", "cem")


def spec(**changes: Any) -> Spec:
    names: dict[str, Any] = {"prompt_probs": np.full(2, 0.5), "dim": 1, "labels": 60, "draws": None, "batch": 4}
    return Spec(**(names | {"beta": 0.1, "kl": None, "fresh": False} | changes))


def ledger(folder: Path) -> Ledger:
    return Ledger.open(folder, meta={"seed": 0}, prompts=["p0", "p1"])


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("fresh", [False, True])
def test_who_is_asked_what_is_what_a_slow_rewrite_says(tmp_path: Path, seed: int, fresh: bool) -> None:
    rng = np.random.default_rng(seed)
    overlap = int(rng.integers(1, 4))
    money = float(rng.integers(8, 30)) if seed % 2 else None
    settings = Settings(overlap, {"ann": 1.0, "*": 2.0}, money, {})
    about = spec(fresh=fresh)
    happened: list[dict[str, Any]] = []  # every item ever asked for, in order, with what became of it
    with ledger(tmp_path) as book:
        questions = Questions(book, about, settings)
        for _ in range(40):
            act = rng.integers(4)
            if act == 0 or not happened:
                new = [LabelItem(int(rng.integers(2)), f"r{rng.integers(6)}", fresh) for _ in range(2)]
                shared = questions.shared_out(tuple(new), 50)
                if not shared:
                    continue
                k = book.next_request
                book.request(k, LabelRequest(shared), detached=True)
                happened += [
                    {"turn": (k, i // overlap), "at": (item.prompt, item.response), "rater": None, "status": None}
                    for i, item in enumerate(shared)
                ]
            elif act == 1:
                rater, n = RATERS[rng.integers(3)], int(rng.integers(1, 5))
                expected = slowly_assigned(happened, rater, n, settings, fresh)
                claims = questions.assign(rater, n)
                assert [(claim.prompt, claim.response) for claim in claims] == [row["at"] for row in expected]
                for row, claim in zip(expected, claims, strict=True):
                    row.update(
                        rater=rater, status="waiting" if claim.to_buy else "known", id=claim.key[:20], claim=claim
                    )
            else:
                out = [row for row in happened if row["status"] == "waiting"]
                if not out:
                    continue
                row = out[rng.integers(len(out))]
                if act == 2:
                    row["value"] = float(rng.integers(3))
                    book.reply([row["claim"]], [row["value"]])
                    row["status"] = "label"
                else:
                    book.reply([row["claim"]], [None])
                    row["status"] = "skip"
            for rater in RATERS:
                held = [row["id"] for row in happened if row["rater"] == rater and row["status"] == "waiting"]
                assert [query.id for query in questions.held(rater)] == held
            assert questions.spent() == pytest.approx(slowly_spent(happened))
            assert money is None or questions.spent() <= money + 1e-9
            assert len(questions.unclaimed()) == sum(row["status"] is None for row in happened)
            assert questions.agreement() == pytest.approx(slowly_agreed(happened), nan_ok=True)


def slowly_spent(happened: list[dict[str, Any]]) -> float:
    paid = [row for row in happened if row["status"] in ("waiting", "label", "skip")]
    return sum((1.0 if row["rater"] == "ann" else 2.0) for row in paid)


def slowly_assigned(
    happened: list[dict[str, Any]], rater: str, n: int, settings: Settings, fresh: bool
) -> list[dict[str, Any]]:
    """In order: never what he was asked, nor a second one of one turn, nor beyond the money."""
    chosen: list[dict[str, Any]] = []
    price = 1.0 if rater == "ann" else 2.0
    for row in happened:
        if row["status"] is not None or len(chosen) == n:
            continue
        mine = [other for other in happened if other["rater"] == rater] + chosen
        again = [
            other for other in mine if other["at"] == row["at"] and (not fresh or other["status"] in (None, "waiting"))
        ]
        spent = slowly_spent(happened) + price * (len(chosen) + 1)
        if again or any(other["turn"] == row["turn"] for other in mine):
            continue
        if settings.money is not None and spent > settings.money + 1e-9:
            continue
        chosen.append(row)
    return chosen


def slowly_agreed(happened: list[dict[str, Any]]) -> tuple[float, int]:
    told = [row for row in happened if row["status"] == "label"]
    values = [row["value"] for row in told]
    near = [
        abs(a["value"] - b["value"]) <= 0.1 * (max(values) - min(values))
        for a, b in combinations(told, 2)
        if a["at"] == b["at"]
    ]
    return (sum(near) / len(near) if near else math.nan), len(near)


def test_names_of_workers_and_their_prices(tmp_path: Path) -> None:
    with ledger(tmp_path) as book:
        free = Questions(book, spec(), Settings(1, {}, None, {}))
        assert free.worker(None) == ANYONE
        assert free.worker("ann") == "ann"
        for wrong in ("", "  ", GIVEN, 3):
            with pytest.raises(InputError, match="worker: expected a name"):
                free.worker(wrong)  # type: ignore[arg-type]
        shared = Questions(book, spec(), Settings(2, {}, None, {}))
        with pytest.raises(InputError, match="2 workers rate each response"):
            shared.worker(None)
        paid = Questions(book, spec(), Settings(1, {"ann": 2.0}, 10.0, {}))
        assert paid.worker("ann") == "ann"
        with pytest.raises(InputError, match="prices: expected one for 'bob'"):
            paid.worker("bob")


@pytest.mark.parametrize("answer", [0.5, None, Failed("broke", True)])
def test_what_is_the_same_answer(answer: Any) -> None:
    statuses = {"label": 0.5, "skip": None, "failed": None, None: None, "released": None}
    own = {float: "label", type(None): "skip", Failed: "failed"}[type(answer)]
    for status, value in statuses.items():
        assert same_answer(status, value, answer) == (status == own)
    assert not same_answer("label", 0.25, answer)


@pytest.mark.parametrize("wrong", [None, True, "1", math.nan, math.inf, 10**400, [1.0], 1j])
def test_what_is_no_number_is_said_by_name(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"^abc: expected a (finite )?number"):
        number("abc", wrong)


def test_numbers_of_every_kind_are_numbers() -> None:
    assert [number("x", value) for value in (1, 0.5, np.float32(0.25), np.int64(3))] == [1.0, 0.5, 0.25, 3.0]
