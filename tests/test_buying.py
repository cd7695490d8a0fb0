"""The buyer alone: what is recorded, in which order, for every mixture of answers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from spannerlm.buying import BACK_OFF_S, BROKEN, LATER_LIMIT, TRIES, Buyer, refuse_doubtful, turned_away
from spannerlm.errors import InDoubtError, RewardError
from spannerlm.ledger import Claim, Ledger
from spannerlm.records import Failed, LabelItem, Labelled, LabelRequest, Later, Unknown
from spannerlm.rewards import Answer, FunctionRaisedError, Raised


def claimed(ledger: Ledger, n: int) -> tuple[Claim, ...]:
    """The claims of a new request for n responses; the one before gets its outcome."""
    k = ledger.next_request
    if k:
        labels = ledger.labels(k - 1)
        ledger.labelled(k - 1, Labelled(labels, np.zeros((len(labels), 1))))
    ledger.request(k, LabelRequest(tuple(LabelItem(0, f"{k} {i}") for i in range(n))))
    return ledger.claim(k)


def opened() -> Ledger:
    return Ledger.open(None, meta={}, prompts=["p"])


class Script:
    """A source that answers each item by the next entry of its own script, then by 1.0; and all the times it slept."""

    def __init__(self, script: dict[str, list[Any]]) -> None:
        self.script, self.calls, self.slept = script, list[list[str]](), list[float]()

    def __call__(self, claims: Sequence[Claim]) -> list[Answer]:
        names = [claim.response.split()[1] for claim in claims]
        self.calls.append(names)
        answers = [self.script[name].pop(0) if self.script.get(name) else 1.0 for name in names]
        if "raise" in answers:
            raise FunctionRaisedError("it raised")
        return answers

    def buyer(self, ledger: Ledger) -> Buyer:
        return Buyer(ledger, self, clock=lambda: 1e9, sleep=self.slept.append)


def kinds(ledger: Ledger) -> list[str]:
    return [row.kind for row, _ in ledger._history.bodies()]


def state(ledger: Ledger) -> list[tuple[str | None, float | None]]:
    return [(status, value) for _, status, value in ledger.purchases()]


def test_each_answer_is_recorded_as_what_it_is_and_numbers_first() -> None:
    answers = [Unknown("cut", b"x"), 0.5, None, Failed("no", charged=False), Later(2.0, "busy"), Raised("oops")]
    source = Script({str(i): [answer] for i, answer in enumerate(answers)})
    with opened() as ledger:
        assert source.buyer(ledger).buy(claimed(ledger, 6)) == ["cut"]
        failed = ("failed", None)
        assert state(ledger) == [(None, None), ("label", 0.5), ("skip", None), failed, ("label", 1.0), ("label", 1.0)]
        assert source.calls == [list("012345"), ["4"], ["5"]]
        assert kinds(ledger)[3:] == ["reply", "rejected", "attempt", "attempt", "attempt", "reply", "reply"]
        assert source.slept == [2.0]
        assert (ledger.counts.in_doubt, ledger.counts.failed, ledger.counts.free) == (1, 1, 1)


@pytest.mark.parametrize("script", list(itertools.product(["raise", "later", "value"], repeat=4)))
def test_an_item_alone_ends_by_its_script(script: tuple[str, ...]) -> None:
    """Every script of four answers of one item, the source having answered another before."""
    answers: dict[str, Any] = {"raise": "raise", "later": Later(1.0, "busy"), "value": 0.5}
    source = Script({"0": [0.0, *(answers[name] for name in script)]})
    with opened() as ledger:
        buyer = source.buyer(ledger)
        buyer.buy(claimed(ledger, 1))
        buyer.buy(claimed(ledger, 1))
        raises, calls, end = 0, 0, None
        for name in (*script, "value"):  # the slow rewrite
            calls += 1
            raises += name == "raise"
            if name == "value" or raises == TRIES:
                end = ("label", 0.5 if calls <= len(script) else 1.0) if name == "value" else ("failed", None)
                break
        assert state(ledger)[1] == end
        assert len(source.calls) == 1 + calls


def test_waits_grow_are_recorded_and_end() -> None:
    source = Script({"0": [Later(0.0, "busy")] * LATER_LIMIT})
    with opened() as ledger:
        [claim] = claimed(ledger, 1)
        with pytest.raises(RewardError, match=f"1 items were turned away {LATER_LIMIT} times, at last because: busy"):
            source.buyer(ledger).buy([claim])
        assert source.slept == [BACK_OFF_S * 2.0**i for i in range(LATER_LIMIT - 1)]
        [again] = ledger.claim(claim.request)
        assert turned_away(again)
        assert again.not_before == 1e9 + BACK_OFF_S * 2.0 ** (LATER_LIMIT - 1)
        assert again.attempts == 2 * LATER_LIMIT - 1
        later = Script({"0": [Later(0.0, "busy")]})  # a run that is resumed asks once more, not eight times
        with pytest.raises(RewardError, match=f"turned away {LATER_LIMIT + 1} times"):
            later.buyer(ledger).buy([again])
        assert len(later.calls) == 1


def test_a_wrong_reply_is_kept_with_what_was_answered_before() -> None:
    def ask(claims: Sequence[Claim]) -> list[Answer]:
        error = RewardError("reward 0: expected a finite number")
        error.reply = "[nan]\ud800"
        if len(claims) == 1:
            raise error
        return [1.0, Raised("oops")]

    with opened() as ledger:
        claims = claimed(ledger, 2)
        with pytest.raises(RewardError, match="finite"):
            Buyer(ledger, ask, clock=lambda: 0.0, sleep=lambda _: None).buy(claims)
        assert state(ledger) == [("label", 1.0), (None, None)]
        last = [body for row, body in ledger._history.bodies() if row.kind == "rejected"][-1]
        assert bytes.fromhex(last["raw"]) == b"[nan]\xed\xa0\x80"


def test_a_source_is_broken_after_so_many_items_in_a_row_and_not_before() -> None:
    """Requests of random sizes whose items all raise, after one that is answered: failed below five in a row."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        source, sizes = Script({}), rng.integers(1, 4, size=8).tolist()
        with opened() as ledger:
            buyer, failed = source.buyer(ledger), 0
            buyer.buy(claimed(ledger, 1))
            for size in sizes:
                source.script = {str(i): ["raise"] * 9 for i in range(size)}
                claims = claimed(ledger, size)
                if failed + size >= BROKEN:
                    with pytest.raises(RewardError, match=f"it raised; {failed + size} items in a row"):
                        buyer.buy(claims)
                    break
                buyer.buy(claims)
                failed += size
                assert ledger.counts.failed == failed
            assert (ledger.counts.failed, ledger.counts.in_doubt) == (failed, size)


def test_doubt_is_refused_with_a_reason_if_there_is_one() -> None:
    refuse_doubtful([])
    with pytest.raises(InDoubtError, match=r"2 labels were asked for and never answered: they may"):
        refuse_doubtful(["", ""])
    with pytest.raises(InDoubtError, match=r"1 labels were asked for and never answered \(cut off\): they may"):
        refuse_doubtful(["cut off"])


def test_who_was_turned_away_is_in_doubt_again_once_sent_again() -> None:
    def killed(claims: Sequence[Claim]) -> list[Answer]:
        raise KeyboardInterrupt

    with opened() as ledger:
        [claim] = claimed(ledger, 1)
        with pytest.raises(RewardError, match="resume in 1e\\+06 s"):
            Script({"0": [Later(1e6, "busy")]}).buyer(ledger).buy([claim])
        [away] = ledger.claim(claim.request)
        assert turned_away(away)
        with pytest.raises(KeyboardInterrupt):
            Buyer(ledger, killed, clock=lambda: 2e9, sleep=lambda _: None).buy([away])
        [sent] = ledger.claim(claim.request)
        assert sent.in_doubt
        assert not turned_away(sent)


def test_who_was_turned_away_is_not_dropped_with_those_in_doubt() -> None:
    """Nothing was charged for them: they stay open, and are asked again when the run is taken up."""
    with opened() as ledger:
        claims = claimed(ledger, 2)
        with pytest.raises(RewardError, match="turned away"):
            Script({"0": [Later(1e6, "busy")], "1": [Unknown("cut", b"x")]}).buyer(ledger).buy(claims)
        assert (ledger.counts.in_doubt, ledger.counts.away, ledger.counts.charged) == (1, 1, 2)
        assert [claim.key for claim in ledger.in_doubt()] == [claims[1].key]
        ledger.settle_in_doubt("drop")
        away, dropped = ledger.claim(claims[0].request)
        assert turned_away(away)
        assert away.to_buy
        assert dropped.label is not None
        assert dropped.label.status == "failed"
        assert (ledger.counts.in_doubt, ledger.counts.failed, ledger.counts.away) == (0, 1, 1)


def test_an_answer_ends_a_row_of_failures() -> None:
    source = Script({})
    with opened() as ledger:
        buyer = source.buyer(ledger)
        for size, script in ((1, []), (BROKEN - 1, ["raise"] * 9), (1, []), (BROKEN - 1, ["raise"] * 9)):
            source.script = {str(i): list(script) for i in range(size)}
            buyer.buy(claimed(ledger, size))
        assert (ledger.counts.labels, ledger.counts.failed) == (2, 2 * (BROKEN - 1))
