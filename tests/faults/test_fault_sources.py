"""RELIABILITY, faults 9 to 11: functions that raise, hang, die or answer wrongly; a referee counts what was charged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from arena import attempts, check, go, opened, rejected
from referees import Referee

from spannerlm.buying import BROKEN, TRIES
from spannerlm.errors import InDoubtError, RewardError
from spannerlm.records import Later
from spannerlm.sources.process import Killable


class Paid:
    """A reward that pays the referee for each item, after ``first`` had a look at the call."""

    def __init__(self, referee: Referee, first: Callable[[int, Sequence[str]], None] = lambda call, keys: None) -> None:
        self.referee, self.first, self.calls = referee, first, list[Sequence[str]]()

    def __call__(self, prompts: Sequence[str], idempotency_key: Sequence[str], completions: Any) -> list[float | None]:
        self.calls.append(idempotency_key)
        self.first(len(self.calls), idempotency_key)
        return [self.referee.label(key) for key in idempotency_key]


def poison(key: str) -> bool:
    return int(key, 16) % 7 == 0


def poisoned(call: int, keys: Sequence[str]) -> None:
    if any(map(poison, keys)):
        raise ConnectionError("bad item")


# --- 9: the function raises -----------------------------------------------------------------------------------------


def test_fault_9_what_raises_every_time_is_recorded_as_failed_and_the_others_go_on(
    referee: Referee, tmp_path: Path
) -> None:
    reward = Paid(referee, poisoned)
    with opened(tmp_path) as ledger:
        go(ledger, reward)
        counts = ledger.counts
        bad = [claim for claim, status, _ in ledger.purchases() if status == "failed"]
        assert bad
        assert all(poison(claim.key) for claim in bad)
        assert (counts.labels, counts.failed, counts.free) == (20 - len(bad), len(bad), 0)
        assert all(
            ledger.claim_by_key(claim.key)[0].attempts == 1 + TRIES for claim in bad
        )  # with its batch, and alone
        assert max(Counter(keys[0] for keys in reward.calls if len(keys) == 1).values()) == TRIES
        check(referee, ledger)


def test_fault_9_what_raises_now_and_then_loses_nothing(referee: Referee, tmp_path: Path) -> None:
    def flaky(call: int, keys: Sequence[str]) -> None:
        if call in (1, 2, 5, 14):
            raise TimeoutError("not now")

    with opened(tmp_path) as ledger:
        go(ledger, Paid(referee, flaky))
        assert (ledger.counts.labels, ledger.counts.failed) == (20, 0)
        check(referee, ledger)


@pytest.mark.parametrize(
    ("broken_from", "batch", "calls"), [(1, 10, 11), (2, 10, 12), (1, 1, TRIES), (1, 2, 1 + 2 * TRIES)]
)
def test_fault_9_a_broken_source_stops_the_run_and_eats_no_budget(
    broken_from: int, batch: int, calls: int, referee: Referee, tmp_path: Path
) -> None:
    def broken(call: int, keys: Sequence[str]) -> None:
        if call >= broken_from:
            raise KeyError("answer")

    reward = Paid(referee, broken)
    with opened(tmp_path) as ledger:
        with pytest.raises(RewardError, match=rf"raised KeyError: 'answer'; {batch} items in a row have no answer"):
            go(ledger, reward, batch=batch)
        assert len(reward.calls) == calls
        assert (ledger.counts.labels, ledger.counts.failed) == (10 * (broken_from - 1), 0)
        assert ledger.counts.in_doubt == batch
        assert rejected(ledger)[-1][2] == "the reward function raised KeyError: 'answer'"
    with opened(tmp_path) as ledger:
        ledger.settle_in_doubt("rebuy")
        go(ledger, Paid(referee), batch=batch)
        assert ledger.counts.labels == 20
        check(referee, ledger)


def test_fault_9_one_by_one_items_fail_until_too_many_do_in_a_row(referee: Referee, tmp_path: Path) -> None:
    def broken(call: int, keys: Sequence[str]) -> None:
        if call > 4:
            raise KeyError("answer")

    reward = Paid(referee, broken)
    with opened(tmp_path) as ledger, pytest.raises(RewardError, match=f"{BROKEN} items in a row"):
        go(ledger, reward, batch=1)
    with opened(tmp_path) as ledger:
        assert (ledger.counts.labels, ledger.counts.failed, ledger.counts.in_doubt) == (4, BROKEN - 1, 1)
    assert len(reward.calls) == 4 + BROKEN * TRIES


def test_fault_9_attempts_count_over_a_crash(referee: Referee, tmp_path: Path) -> None:
    tried: Counter[str] = Counter()
    crashes = []

    class Free(Paid):
        pure = True

    def once(call: int, keys: Sequence[str]) -> None:
        tried.update(keys if len(keys) == 1 else ())
        if not crashes and len(keys) == 1 and tried[keys[0]] == 2:
            crashes.append(keys[0])
            raise KeyboardInterrupt
        poisoned(call, keys)

    with opened(tmp_path) as ledger, pytest.raises(KeyboardInterrupt):
        go(ledger, Free(referee, once))
    with opened(tmp_path) as ledger:
        go(ledger, Free(referee, once))
        bad = {claim.key for claim, status, _ in ledger.purchases() if status == "failed"}
        assert crashes[0] in bad
        assert tried[crashes[0]] == TRIES  # two before the crash, one of them without a record
        assert all(tried[key] <= TRIES for key in bad)
        assert max(attempts(ledger)) == 1 + TRIES
        check(referee, ledger)


# --- 10: the function hangs, or its process dies --------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["hang", "die"])
@pytest.mark.parametrize("by_item", [True, False])
def test_fault_10_what_hangs_or_dies_is_in_doubt_and_never_sent_again_blindly(
    fault: str, by_item: bool, referee: Referee, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT_URL", referee.url)
    monkeypatch.setenv("FAULT", f"{fault}:0")
    file = Path(__file__).with_name("paid_functions.py")
    with Killable(f"{file}:labels", timeout_s=1.0, by_item=by_item) as reward:
        with (
            opened(tmp_path) as ledger,
            pytest.raises(InDoubtError, match=r"no answer within 1 s|died without an answer"),
        ):
            go(ledger, reward)
        before = referee.charged
        with opened(tmp_path) as ledger:
            bad = ledger.counts.in_doubt
            assert 0 < bad <= 10
            assert [n for n, _, _ in rejected(ledger)] == [1] * bad
            if by_item:  # all others of the batch are answered, by a new worker
                assert ledger.counts.labels % 10 == 10 - bad
                check(referee, ledger)
            with pytest.raises(InDoubtError, match=f"{bad} labels were asked for"):
                go(ledger, reward)
        assert referee.charged == before
        with opened(tmp_path) as ledger:
            ledger.settle_in_doubt("drop")
            monkeypatch.setenv("FAULT", f"{fault}:8")
            reward.close()  # a worker knows the environment that it was started in
            go(ledger, reward)
            assert (ledger.counts.labels, ledger.counts.failed) == (20 - bad, bad)
            assert len(set(referee.charged)) == len(referee.charged)


def test_fault_9_in_a_worker_that_goes_item_by_item_nobody_pays_for_a_neighbour(
    referee: Referee, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAULT_URL", referee.url)
    monkeypatch.setenv("FAULT", "raise:0")
    file = Path(__file__).with_name("paid_functions.py")
    with Killable(f"{file}:labels", timeout_s=20.0, by_item=True) as reward, opened(tmp_path) as ledger:
        go(ledger, reward)
        charged = Counter(referee.charged)
        for (
            claim,
            status,
            _,
        ) in ledger.purchases():  # those that raise had been charged: their retries are what they ask
            assert status == ("failed" if poison(claim.key) else "label")
            assert charged[claim.key] == (1 + TRIES if poison(claim.key) else 1)


# --- 11: values that are none ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (float("nan"), "reward 3: expected a finite number, got nan"),
        (float("-inf"), "reward 3: expected a finite number, got -inf"),
        ("0.5", r"reward 3: expected a number or None, got '0.5' \(str\)"),
        (True, r"reward 3: expected a number or None, got True \(bool\)"),
        (Later(-1.0, "?"), "reward 3: expected Later with its seconds"),
        ("missing", "expected 10 rewards, one per completion, got 9"),
    ],
)
def test_fault_11_a_wrong_reply_is_rejected_whole_and_kept(
    wrong: Any, says: str, referee: Referee, tmp_path: Path
) -> None:
    def reward(completions: Sequence[str], idempotency_key: Sequence[str]) -> list[Any]:
        values: list[Any] = [referee.label(key) for key in idempotency_key]
        values[3:4] = [] if wrong == "missing" else [wrong]
        return values

    with opened(tmp_path) as ledger:
        with pytest.raises(RewardError, match=says):
            go(ledger, reward)
        assert (ledger.counts.labels, ledger.counts.in_doubt) == (0, 10)
        check(referee, ledger)
        [(claims, raw, why)] = rejected(ledger)
        assert claims == 10
        assert raw.startswith(b"[0.")
        assert why == str(why)
        with pytest.raises(InDoubtError, match="10 labels"):
            go(ledger, reward)
        assert len(referee.charged) == 10
