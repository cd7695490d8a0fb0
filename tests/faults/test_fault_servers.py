"""RELIABILITY, faults 12 to 14 and 17: servers that refuse, break off or lie; a referee counts what was charged."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from arena import ENV, SPEC, Clock, attempts, check, driver, go, opened, rejected
from referees import Referee

from spannerlm.buying import LATER_LIMIT, PATIENCE_S
from spannerlm.errors import InDoubtError, RewardError
from spannerlm.explorers import Passive
from spannerlm.records import LabelItem, LabelRequest
from spannerlm.run import Driver
from spannerlm.sources.judge import RubricJudge

# --- 12: come back later --------------------------------------------------------------------------------------------


def test_fault_12_who_is_told_to_come_back_waits_and_the_claim_stands(referee: Referee, tmp_path: Path) -> None:
    referee.goes_wrong(["fine", "429:7", "503:3", *["fine"] * 7, "429:2"])
    clock = Clock()
    with RubricJudge(referee.url, "m", highest=1.0, concurrency=1) as judge, opened(tmp_path) as ledger:
        go(ledger, judge, clock)
        assert clock.slept == [7.0, 2.0]
        assert (ledger.counts.labels, ledger.counts.failed) == (20, 0)
        assert attempts(ledger) == {0: 18, 2: 1, 4: 1}
        check(referee, ledger)


def test_fault_12_the_wait_outlives_a_crash_and_a_wrong_clock(referee: Referee, tmp_path: Path) -> None:
    referee.goes_wrong(["fine"] * 4 + ["429:60"] * 6)
    with RubricJudge(referee.url, "m", highest=1.0, concurrency=1) as judge:
        with opened(tmp_path) as ledger, pytest.raises(KeyboardInterrupt):
            go(ledger, judge, Clock(now=1e9, interrupt=True))
        for now, left in ((1e9 + 20, 40.0), (1e9 - 86400, PATIENCE_S), (1e9 + 86400, 0.0)):
            with opened(tmp_path) as ledger:
                clock = Clock(now, interrupt=left > 0)
                slept: list[float] = []
                run = Driver(
                    ENV, Passive(), judge, ledger, SPEC, seed=4, clock=lambda c=clock: c.now, sleep=slept.append
                )
                if left:

                    def interrupted(seconds: float) -> None:
                        slept.append(seconds)  # noqa: B023
                        raise KeyboardInterrupt

                    for buyer in run._buyers.values():
                        buyer._sleep = interrupted
                    with pytest.raises(KeyboardInterrupt):
                        run.replay()
                else:
                    run.replay()
                    assert ledger.counts.labels == 10
                    check(referee, ledger)
                assert slept == [left]


def test_fault_12_a_source_that_is_never_free_ends_the_run_which_can_be_resumed(
    referee: Referee, tmp_path: Path
) -> None:
    referee.goes_wrong(["429:1"] * 10 * LATER_LIMIT)
    clock = Clock()
    with RubricJudge(referee.url, "m", highest=1.0) as judge:
        with opened(tmp_path) as ledger:
            with pytest.raises(
                RewardError, match=r"10 items were turned away 8 times.*answered 429.*nothing was charged"
            ):
                go(ledger, judge, clock)
            assert len(clock.slept) == LATER_LIMIT - 1
            assert clock.slept == sorted(clock.slept)
        assert referee.charged == []
        with opened(tmp_path) as ledger:  # nobody has to say what becomes of them
            go(ledger, judge, clock)
            assert ledger.counts.labels == 20
            check(referee, ledger)


def test_fault_12_longer_than_we_wait_is_an_end_too(referee: Referee, tmp_path: Path) -> None:
    referee.goes_wrong(["429:86400"])
    with RubricJudge(referee.url, "m", highest=1.0) as judge, opened(tmp_path) as ledger:
        with pytest.raises(RewardError, match="resume in 86400 s"):
            go(ledger, judge)
        assert ledger.counts.labels == 9
        go(ledger, judge)
        check(referee, ledger)


# --- 13, 14: what may have been charged -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "why", "kept"),
    [
        ("500", "the judge answered 500", b"out of luck Bearer ***"),
        ("reset", "cut off (ReadError", b""),
        ("hang", "cut off (ReadTimeout", b""),
        ("half", "cut off (RemoteProtocolError", b'{"choices": [{"message": {"content": '),
        ("garbage", "is no chat completion", b"<html>\xff\x00"),
        ("prose", "is not what was asked for: 'I like it: 7'", b'"content": "I like it: 7"'),
        ("nan", "is not what was asked for", b"NaN"),
    ],
)
def test_faults_13_and_14_what_may_have_been_charged_is_in_doubt_and_its_bytes_are_kept(
    fault: str, why: str, kept: bytes, referee: Referee, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "s3cret-key")
    referee.goes_wrong(["fine", "fine", fault, "fine", fault])
    options: Any = {"highest": 1.0, "timeout_s": 1.0, "key_env": "JUDGE_KEY", "concurrency": 1}
    with RubricJudge(referee.url, "m", journal=tmp_path / "judge.jsonl", **options) as judge:
        with opened(tmp_path) as ledger:
            with pytest.raises(InDoubtError, match="2 labels were asked for and never answered"):
                go(ledger, judge)
            assert (ledger.counts.labels, ledger.counts.in_doubt) == (8, 2)
            check(referee, ledger)
            found = rejected(ledger)
            assert [(n, why in said, kept in raw) for n, raw, said in found] == [(1, True, True)] * 2
        before = referee.charged
        with opened(tmp_path) as ledger, pytest.raises(InDoubtError, match="2 labels"):
            go(ledger, judge)
        assert referee.charged == before
    with (
        opened(tmp_path) as ledger,
        RubricJudge(referee.url, "m", journal=tmp_path / "judge.jsonl", **options) as judge,
    ):
        ledger.settle_in_doubt("rebuy")
        go(ledger, judge)
        assert (ledger.counts.labels, ledger.counts.rebought) == (20, 2)
        assert sorted(Counter(referee.charged).values()) == [1] * 18 + [2] * 2  # at the user's word, under the same key
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or b"s3cret-key" not in file.read_bytes()


def test_fault_13_a_connection_refused_is_not_charged(referee: Referee, tmp_path: Path) -> None:
    referee.stop()
    clock = Clock()
    with RubricJudge(referee.url, "m", highest=1.0) as judge:
        with (
            opened(tmp_path) as ledger,
            pytest.raises(RewardError, match=r"no connection to the judge \(ConnectError\)"),
        ):
            go(ledger, judge, clock)
        assert len(clock.slept) == LATER_LIMIT - 1
        referee.start()
        with opened(tmp_path) as ledger:
            go(ledger, judge, clock)
            assert ledger.counts.labels == 20
            check(referee, ledger)


# --- 17: duplicates -------------------------------------------------------------------------------------------------


def test_fault_17_duplicates_are_bought_once_unless_a_replicate_is_asked_for(referee: Referee, tmp_path: Path) -> None:
    with RubricJudge(referee.url, "m", highest=1.0) as judge, opened(tmp_path) as ledger:
        run = driver(ledger, judge, fresh=False)
        [drawn] = run.draw_for_evaluation([0], 50)
        a, b = (LabelItem(0, response) for response in drawn.responses[:2])
        for items, bought in (((a, a, b, a), 2), ((a, b), 0), ((replace(a, fresh=True), a), 1)):
            before = len(referee.charged)
            run._issue(ledger.next_request, LabelRequest(items), "explore")
            assert len(referee.charged) - before == bought
            check(referee, ledger)
        assert (ledger.counts.labels, ledger.counts.reused) == (3, 5)
