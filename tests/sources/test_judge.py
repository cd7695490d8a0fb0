"""Judges behind a server: what is asked, how replies are read, what they cost, what is never asked twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from referees import Referee

from spannerlm.errors import InputError, LedgerError
from spannerlm.http import Usage, seconds_until
from spannerlm.records import Later, Unknown
from spannerlm.rewards import Raised, ask_comparison, ask_reward
from spannerlm.sources.judge import Judge, PairJudge, RubricJudge

URL = "http://127.0.0.1:1/v1"


@pytest.fixture
def pair(referee: Referee, tmp_path: Path) -> Iterator[PairJudge]:
    with PairJudge(referee.url, "m", journal=tmp_path / "judge.jsonl", price=(1.0, 10.0)) as judge:
        yield judge


def test_pairs_are_asked_in_both_orders_and_averaged(pair: PairJudge, referee: Referee) -> None:
    columns = {"idempotency_key": ["k", "l", "m"]}
    assert ask_comparison(pair, ["p"] * 3, ["long", "b", "cc"], ["a", "long", "dd"], columns) == [1.0, 0.0, 0.5]
    assert sorted(referee.charged) == ["k-ab", "k-ba", "l-ab", "l-ba", "m-ab", "m-ba"]
    assert pair.usage == Usage(6, 600, 60, pytest.approx(6 * (0.1 + 0.1)))


def test_a_judge_that_prefers_a_place_is_undecided(referee: Referee) -> None:
    first = "Always say the first. {{ a[:0] }}{{ b[:0] }}"  # the referee answers with a score, which is no verdict
    with PairJudge(referee.url, "m", template=first) as judge:
        [found] = ask_comparison(judge, ["p"], ["x"], ["y"], {})
        assert isinstance(found, Unknown)
    for said, value in ((("A", "A"), 0.5), (("B", "B"), 0.5), (("A", "tie"), 0.75), (("tie", "A"), 0.25)):
        with PairJudge(URL, "m") as judge:
            replies = iter(said)
            judge._ask = lambda key, names, replies=replies: judge._value(json.dumps({"winner": next(replies)}))  # type: ignore[assignment, misc]
            assert ask_comparison(judge, ["p"], ["x"], ["y"], {}) == [value]


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ('{"score": 3}', 3.0),
        (' {"score": 3.5, "reason": "short"}\n', 3.5),
        ('{"score": 10}', 10.0),
        ('{"score": 10.5}', None),
        ('{"score": -1}', None),
        ('{"score": true}', None),
        ('{"score": "3"}', None),
        ('{"score": NaN}', None),
        ('{"score": 1e999}', None),
        ('{"score": 3, "score": 4}', None),
        ('{"score": 3, "confidence": 1}', None),
        ('{"score": 3} {"score": 3}', None),
        ('```json\n{"score": 3}\n```', None),
        ("3", None),
        ("", None),
        ("[" * 100_000, None),
        ("null", None),
    ],
)
def test_replies_are_read_strictly(content: str, value: float | None) -> None:
    with RubricJudge(URL, "m") as judge:
        assert judge._value(content) == value


def test_an_unknown_winner_is_none() -> None:
    with PairJudge(URL, "m") as judge:
        for content in ('{"winner": "a"}', '{"winner": ["A"]}', '{"winner": 1}', "{}", '{"winner": "A", "score": 1}'):
            assert judge._value(content) is None
        assert judge._value('{"winner": "tie", "reason": "equal"}') == 0.5


def test_what_was_paid_for_outlives_the_process(referee: Referee, tmp_path: Path) -> None:
    options: Any = {"journal": tmp_path / "judge.jsonl", "price": (1.0, 10.0), "concurrency": 1}
    referee.goes_wrong(["fine", "fine", "fine", "429:5", "prose"])
    columns = {"idempotency_key": ["k", "l", "m"]}
    with PairJudge(referee.url, "m", **options) as judge:
        found = ask_comparison(judge, ["p"] * 3, ["xx", "yy", "zz"], ["x"] * 3, columns)
        assert found[:2] == [1.0, Later(5.0, "the judge answered 429")]
        assert isinstance(found[2], Unknown)
    with open(tmp_path / "judge.jsonl", "ab") as file:
        file.write(b'{"key": "torn')
    with PairJudge(referee.url, "m", **options) as judge:
        assert judge.usage.requests == 4
        assert ask_comparison(judge, ["p"] * 3, ["xx", "yy", "zz"], ["x"] * 3, columns) == [1.0] * 3
        assert judge.usage == Usage(7, 700, 70, pytest.approx(7 * 0.2))
    assert referee.charged == ["k-ab", "k-ba", "l-ab", "m-ab", "l-ba", "m-ab", "m-ba"]  # what said nothing: once more
    assert len((tmp_path / "judge.jsonl").read_bytes().splitlines()) == 7


def test_a_journal_that_is_none_or_cannot_be_written_is_named(referee: Referee, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("hello\nworld\n")
    with pytest.raises(InputError, match=r"other.txt:1: expected a line of a judge's journal"):
        RubricJudge(URL, "m", journal=tmp_path / "other.txt")
    nowhere = tmp_path / "nowhere" / "judge.jsonl"
    with (
        RubricJudge(referee.url, "m", journal=nowhere) as judge,
        pytest.raises(LedgerError, match="could not be written"),
    ):
        ask_reward(judge, ["p"], ["x"], {})  # not taken for a function that raises, which would be asked again


def test_the_template_gets_columns_and_texts_as_they_are(referee: Referee) -> None:
    seen: list[str] = []
    template = "{{ prompt }}|{{ response }}|{{ level }}|{{ guidelines }}"
    with RubricJudge(referee.url, "m", template=template, guidelines="be kind") as judge:
        real = judge._server.ask
        judge._server.ask = lambda key, body, usable: (
            seen.append(body["messages"][0]["content"]) or real(key, body, usable)
        )  # type: ignore[assignment, func-returns-value]
        hostile = "{{ 7 * 7 }} <b>\x00\ud800 {% raw %}"
        [found] = ask_reward(judge, ["p & q"], [hostile], {"level": [3]})
        assert isinstance(found, float)
        assert seen == [f"p & q|{hostile}|3|be kind"]
        assert judge.usage.requests == 1
    with RubricJudge(referee.url, "m", template="{{ nothing }}") as judge:
        assert ask_reward(judge, ["p"], ["x"], {}) == [
            Raised("the judge's template raised UndefinedError: 'nothing' is undefined")
        ]
    with RubricJudge(referee.url, "m", template="{{ ''.__class__.__mro__ }}") as judge:
        [found] = ask_reward(judge, ["p"], ["x"], {})
        assert isinstance(found, Raised)
        assert "SecurityError" in found.reason
    assert len(referee.charged) == 1


def test_a_refusal_says_why_and_never_the_key(referee: Referee, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    referee.goes_wrong(["401", "503", "503:2", "429"])
    with RubricJudge(referee.url, "m", key_env="JUDGE_KEY") as judge:
        found = [ask_reward(judge, ["p"], ["x"], {})[0] for _ in range(4)]
        assert found == [
            Raised("the judge refused with 401: no Bearer ***"),
            Unknown("the judge answered 503", b"no Bearer ***"),
            Later(2.0, "the judge answered 503"),
            Later(1.0, "the judge answered 429"),
        ]
        assert "s3cret" not in repr(vars(judge)) + repr(vars(judge._server))
    assert referee.charged == []


def test_without_a_run_keys_tell_texts_and_replicates_apart(referee: Referee) -> None:
    with RubricJudge(referee.url, "m", highest=1.0) as judge:
        ask_reward(judge, ["p", "p", "p", "q"], ["x", "x", "y", "x"], {"replicate": [0, 1, 0, 0]})
        ask_reward(judge, ["p"], ["x"], {})
    assert len(set(referee.charged)) == len(referee.charged) == 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"base_url": "ftp://x"}, "base_url: expected http"),
        ({"base_url": "http://user:pw@host/v1"}, "base_url: expected no password"),
        ({"base_url": "http://host/v1?api_key=1"}, "base_url: expected no password and no query"),
        ({"key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY: expected the API key in this environment variable, found none"),
        ({"timeout_s": 0.0}, "timeout_s: expected a positive number"),
        ({"price": (1.0, -1.0)}, "price: expected two prices"),
        ({"concurrency": 0}, "concurrency: expected a whole number of at least 1, got 0"),
        ({"template": "{% if %}"}, "template: expected a Jinja2 template, but"),
        ({"lowest": 1.0, "highest": 1.0}, "lowest, highest: expected two numbers in this order"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as refused:
        RubricJudge(**{"base_url": URL, "model": "m", **options})
    assert "pw" not in str(refused.value).replace("expected", "")


def test_a_judge_is_one_of_the_two() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Judge(URL, "m")  # type: ignore[abstract]


def test_retry_after_is_a_number_or_a_date() -> None:
    assert [seconds_until(after) for after in (None, "7", "0", "-3", "nan", "soon", "inf")] == [1, 7, 0, 1, 1, 1, 1]
    assert seconds_until("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert 0.0 < seconds_until("Wed, 21 Oct 2099 07:28:00 GMT") < 1e10
