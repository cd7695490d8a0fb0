"""Detached requests: answers that come one by one, late, revised, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spannerlm.errors import InputError
from spannerlm.ledger import Claim, Ledger
from spannerlm.records import Drawn, DrawRequest, Draws, Failed, LabelItem, Labelled, LabelRequest

ITEMS = tuple(LabelItem(0, text) for text in "abcd")


def begun(folder: Path | None = None, **options: Any) -> Ledger:
    return Ledger.open(folder, meta={"seed": 0}, prompts=["p", "q"], **options)


def asked(ledger: Ledger, items: tuple[LabelItem, ...] = ITEMS, **options: Any) -> int:
    k = ledger.next_request
    ledger.request(k, LabelRequest(items), detached=True, **options)
    return k


def told(ledger: Ledger, k: int, claims: tuple[Claim, ...], values: list[Any]) -> Labelled:
    ledger.reply(claims, values)
    at = [claim.position for claim in claims]
    return ledger.labelled(k, Labelled(ledger.labels(k, at), np.ones((len(at), 2))), at)


def test_answers_come_in_any_order_while_others_are_asked(tmp_path: Path) -> None:
    with begun(tmp_path) as ledger:
        first = asked(ledger)
        ann = ledger.claim(first, rater="ann", positions=[2])
        second = asked(ledger, (LabelItem(1, "z"),))
        bob = ledger.claim(first, rater="bob", positions=[0, 1])
        assert ledger.unfinished() is None
        assert [(w.request, w.position, w.claim and w.claim.rater) for w in ledger.waiting()] == [
            (first, 0, "bob"),
            (first, 1, "bob"),
            (first, 2, "ann"),
            (first, 3, None),
            (second, 0, None),
        ]
        assert (ledger.counts.waiting, ledger.counts.in_doubt, ledger.counts.charged) == (3, 0, 3)
        assert ledger.in_doubt() == ()
        event = told(ledger, first, ann, [0.5])
        assert [(label.response, label.value) for label in event.labels] == [("c", 0.5)]
        k = ledger.next_request
        ledger.request(k, DrawRequest((0,), 2))  # a draw may be under way while answers come
        told(ledger, first, (bob[1],), [Failed("gone", charged=False)])
        ledger.drawn(k, Drawn((Draws(0, ("a",), np.array([2]), np.ones((1, 2))),), 2))
        told(ledger, first, (bob[0],), [None])
        counts = ledger.counts
        assert (counts.labels, counts.skips, counts.failed, counts.free, counts.waiting) == (1, 1, 1, 1, 0)
        assert counts.charged == 2
        whole = list(ledger.export())
        events = [str(entry.event) for entry in ledger.replay()]
        assert ledger.charged_by_rater() == {"ann": 1, "bob": 1}
    with Ledger.open(tmp_path) as again:
        assert list(again.export()) == whole
        assert [str(entry.event) for entry in again.replay()] == events
        assert [(w.request, w.position) for w in again.waiting()] == [(first, 3), (second, 0)]
    assert Ledger.verify(tmp_path).ok


def test_an_answer_without_an_outcome_is_known_after_a_crash(tmp_path: Path) -> None:
    with begun(tmp_path) as ledger:
        k = asked(ledger)
        ledger.reply(ledger.claim(k, rater="ann", positions=[1, 3]), [1.0, 2.0])
    with Ledger.open(tmp_path) as again:
        assert again.untold() == ((k, "explore", ((1, ITEMS[1]), (3, ITEMS[3]))),)
        again.labelled(k, Labelled(again.labels(k, [1, 3]), np.ones((2, 2))), [1, 3])
        assert again.untold() == ()
        with pytest.raises(InputError, match="without an outcome"):
            again.labelled(k, Labelled(again.labels(k, [1]), np.ones((1, 2))), [1])


def test_what_was_taken_back_is_asked_again_and_a_late_answer_is_kept() -> None:
    with begun() as ledger:
        k = asked(ledger, ITEMS[:1])
        (ann,) = ledger.claim(k, rater="ann")
        ledger.release([ann])
        assert ledger.counts.charged == 0
        (bob,) = ledger.claim(k, rater="bob")
        assert bob.key != ann.key
        told(ledger, k, (bob,), [1.0])
        late, again = ledger.reopen(ann.key)
        assert again.key == ann.key
        told(ledger, late, (again,), [0.0])
        assert (ledger.counts.labels, ledger.counts.waiting) == (2, 0)
        with pytest.raises(InputError, match="taken back"):
            ledger.reopen(ann.key)
        with pytest.raises(InputError, match="waits for an answer"):
            ledger.release([bob])
        other = asked(ledger, (LabelItem(0, "b"),))
        (first,) = ledger.claim(other, rater="ann")
        ledger.release([first])
        (second,) = ledger.claim(other, rater="ann")  # the same question to the same person: the same key
        assert second.key == first.key


def test_a_revision_takes_the_place_of_the_answer_and_both_are_kept(tmp_path: Path) -> None:
    with begun(tmp_path) as ledger:
        k = asked(ledger)
        claims = ledger.claim(k, rater="ann")
        told(ledger, k, claims[:2], [1.0, None])
        ledger.revise(claims[0], 3.0)
        ledger.revise(claims[1], 4.0)
        ledger.revise(claims[0], Failed("sorry"))
        assert (ledger.counts.labels, ledger.counts.skips, ledger.counts.failed) == (1, 0, 1)
        with pytest.raises(InputError, match="answered query"):
            ledger.revise(claims[2], 1.0)
        with pytest.raises(InputError, match="finite"):
            ledger.revise(claims[1], float("nan"))
    with Ledger.open(tmp_path) as again:
        (event,) = [entry.event for entry in again.replay() if isinstance(entry.event, Labelled)]
        assert [(label.status, label.value) for label in event.labels] == [("failed", None), ("label", 4.0)]
        lines = [
            line for line in again.export() if line.endswith(('"type":"revision"}', '"value":1.0}', '"value":null}'))
        ]
        assert len(lines) == 5
        assert '"value":1.0' in lines[0]


def test_labels_that_were_there_already_cost_nothing() -> None:
    with begun() as ledger:
        k = asked(ledger, ITEMS[:2], purpose="given")
        assert ledger.waiting() == ()
        claims = ledger.claim(k, rater="given")
        assert ledger.counts.charged == 0
        told(ledger, k, claims, [1.0, 2.0])
        assert (ledger.counts.given, ledger.counts.labels, ledger.counts.charged) == (2, 0, 0)
        assert ledger.charged_by_rater()["given"] == 0


def test_only_labels_may_be_detached_and_others_wait_for_their_turn() -> None:
    with begun() as ledger:
        with pytest.raises(InputError, match="request for labels"):
            ledger.request(0, DrawRequest((0,), 1), detached=True)
        k = asked(ledger)
        other = ledger.next_request
        ledger.request(other, LabelRequest(ITEMS[:1]))
        with pytest.raises(InputError, match="no outcome yet"):
            ledger.request(other + 1, LabelRequest(ITEMS[1:2]))
        ledger.claim(other)
        ledger.settle_in_doubt("drop")  # of the run's own request, not of the people's
        ledger.claim(k, rater="ann")
        ledger.settle_in_doubt("drop")
        assert (ledger.counts.failed, ledger.counts.waiting) == (1, 4)


def test_a_claim_is_taken_back_once(tmp_path: Path) -> None:
    with begun(tmp_path) as ledger:
        (claim,) = ledger.claim(asked(ledger, ITEMS[:1]), rater="ann")
        with pytest.raises(InputError, match="expected each once"):
            ledger.release([claim, claim])
        ledger.release([claim])
        with pytest.raises(InputError, match="waits for an answer, got released"):
            ledger.release([claim])
        with pytest.raises(InputError, match="released"):
            ledger.reply([claim], [1.0])
        rows = list(ledger.export())
    with begun(tmp_path) as again:
        assert list(again.export()) == rows


def test_counts_add_up_whatever_becomes_of_claims_and_so_they_do_after_a_restart(tmp_path: Path) -> None:
    """A random history, counted slowly from the claims after every step; the replay ends with the last answers."""
    rng = np.random.default_rng(3)
    values = [None, Failed("broke"), Failed("never sent", charged=False), 0.5, 1.5, -2.0]
    paid = {"label": True, "skip": True, "released": False, None: True}
    free: set[str] = set()
    with begun(tmp_path) as ledger:
        for step in range(120):
            if step % 10 == 0:
                asked(ledger, tuple(LabelItem(int(rng.integers(2)), f"{step} {i}") for i in range(6)))
            waiting = ledger.waiting()
            item = waiting[int(rng.integers(len(waiting)))]
            answered = [c for c, status, _ in ledger.purchases() if status in ("label", "skip", "failed")]
            value: Any = values[int(rng.integers(len(values)))]
            if answered and step % 5 == 4:
                claim = answered[int(rng.integers(len(answered)))]
                ledger.revise(claim, value)
            elif item.claim is None:
                ledger.claim(item.request, rater="ann" if step % 2 else "bob", positions=[item.position])
                continue
            elif step % 7 == 0:
                ledger.release([item.claim])
                continue
            else:
                claim = item.claim
                told(ledger, item.request, (claim,), [value])
            free.discard(claim.key)
            if isinstance(value, Failed) and not value.charged:
                free.add(claim.key)
            rows = [(c, status) for c, status, _ in ledger.purchases()]
            slow = sum(paid.get(status, c.key not in free) for c, status in rows)
            counts = ledger.counts
            statuses = [status for _, status in rows]
            assert counts.charged == slow == sum(ledger.charged_by_rater().values())
            assert counts.charged == counts.labels + counts.skips + counts.failed - counts.free + counts.waiting
            assert (counts.labels, counts.skips) == (statuses.count("label"), statuses.count("skip"))
            assert (counts.failed, counts.free) == (statuses.count("failed"), len(free))
            assert counts.waiting == statuses.count(None)
        assert min(counts.labels, counts.skips, counts.failed, counts.free, counts.waiting) > 0
        whole, counts = list(ledger.export()), ledger.counts
    with begun(tmp_path) as again:
        assert (list(again.export()), again.counts) == (whole, counts)
        last = {
            c.response: (status, value) for c, status, value in again.purchases() if status not in (None, "released")
        }
        replayed = {
            label.response: (label.status, label.value)
            for entry in again.replay()
            if isinstance(entry.event, Labelled)
            for label in entry.event.labels
        }
        assert replayed == last
