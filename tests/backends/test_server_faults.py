"""Servers that fail: nothing that was paid for is lost or used twice, and errors name what is wrong, never the key."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
import textwrap
from collections import Counter

import numpy as np
import pytest
from served import Small

from spannerlm.backends import endpoint, spool
from spannerlm.backends.server import ServerModel
from spannerlm.backends.spool import Spool
from spannerlm.errors import InputError, LedgerError, ModelError

PROMPTS = ["a;", "b;"]
KEY = "sk-very-secret-7"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Waits of a few milliseconds, and the key."""
    monkeypatch.setattr(endpoint, "FIRST_WAIT_S", 0.001)
    monkeypatch.setenv("SPANNERLM_TEST_KEY", KEY)


def rng(seed=0):
    return np.random.default_rng(seed)


def loaded(small, **options):
    defaults = {"api": "completions", "max_new_tokens": 5, "timeout_s": 20.0, "key_env": "SPANNERLM_TEST_KEY"}
    return ServerModel.load("m", base_url=small.url, **{**defaults, **options})


def plain(records):
    return [(r.responses, r.counts.tolist(), r.lengths.tolist(), r.tokens) for r in records]


FATES = ["drop", "half", "slow", "trickle", "429", "500", "503", "408", "words", "null", "fewer", "filtered"]


@pytest.fixture(scope="module")
def undisturbed():
    with Small() as small:
        return plain(
            ServerModel.load("m", base_url=small.url, api="completions", max_new_tokens=5).generate(
                PROMPTS, 40, rng=rng()
            )
        )


@pytest.fixture(scope="module")
def bill():
    """Tokens of prompt and completion of the same draws from a server without faults."""
    with Small() as small:
        model = ServerModel.load("m", base_url=small.url, api="completions", max_new_tokens=5)
        model.generate(PROMPTS, 40, rng=rng())
        return [model.usage.prompt_tokens, model.usage.completion_tokens]


@pytest.mark.parametrize("fate", FATES)
def test_a_fault_now_and_then_changes_nothing(fate, undisturbed, bill):
    with Small(lambda k: fate if k in (3, 5, 6) else None) as small:
        late = fate in ("slow", "trickle")  # a busy machine may be late more often
        model = loaded(small, **({"timeout_s": 0.4, "retries": 20} if late else {}))
        assert plain(model.generate(PROMPTS, 40, rng=rng())) == undisturbed
        assert model.usage.requests == len(set(small.paid)) == 12
        assert model.usage.retried == 3 or (late and model.usage.retried > 3)
        assert len(small.paid) == 12 or late
        lost = [model.usage.prompt_tokens, model.usage.completion_tokens] != bill
        assert lost == (fate in ("null", "fewer", "filtered")), "what was of no use was charged all the same"
        assert set(small.keys) == {f"Bearer {KEY}"}


@pytest.mark.parametrize("fate", [*FATES, "401", "404"])
def test_a_fault_that_lasts_is_named_without_the_key(fate, tmp_path):
    journal = tmp_path / "draws.jsonl"
    late = fate in ("slow", "trickle")
    with Small(lambda k: fate if k >= 4 else None) as small:
        model = loaded(small, retries=1, timeout_s=0.3 if late else 20.0, journal=journal)
        with pytest.raises(ModelError) as caught:
            model.generate(PROMPTS, 40, rng=rng())
        model.close()
    said = str(caught.value)
    assert small.url in said
    assert KEY not in said
    assert KEY.encode() not in journal.read_bytes()
    expected = {
        "slow": "not complete within",
        "trickle": "not complete within",
        "half": "no whole reply",
        "drop": "no whole reply",
        "words": "no completion in the OpenAI form",
        "null": "completion in the OpenAI form|None for a text",
        "fewer": "choices where",
        "filtered": "content_filter",
        "401": "key_env",
    }
    assert caught.match(expected.get(fate, fate))


@pytest.mark.parametrize("fate", ["drop", "500", "half"])
def test_a_resumed_run_asks_only_for_what_is_missing(fate, tmp_path, undisturbed):
    journal = tmp_path / "draws.jsonl"
    with Small(lambda k: fate if 5 <= k < 40 else None) as small:
        model = loaded(small, retries=1, concurrency=3, journal=journal, price=(1.0, 2.0))
        with pytest.raises(ModelError):
            model.generate(PROMPTS, 40, rng=rng())
        model.close()
        before = model.usage
        first = list(small.paid)
        small.fate = lambda k: None
        again = loaded(small, journal=journal, price=(1.0, 2.0))
        assert again.usage.requests == before.requests == len(first) == 5
        assert plain(again.generate(PROMPTS, 40, rng=rng())) == undisturbed
        assert Counter(small.paid).most_common(1)[0][1] == 1
        assert len(small.paid) == again.usage.requests == 12
        np.testing.assert_allclose(
            again.usage.cost, (again.usage.prompt_tokens + 2.0 * again.usage.completion_tokens) / 1000
        )
        again.close()
        sent = len(small.bodies)
        third = loaded(small, journal=journal)
        assert plain(third.generate(PROMPTS, 40, rng=rng())) == undisturbed
        assert len(small.bodies) == sent
        assert third.usage.cost == pytest.approx(again.usage.cost)
        third.close()


def test_a_killed_process_leaves_what_it_paid_for(tmp_path, undisturbed):
    journal = tmp_path / "draws.jsonl"
    with Small(lambda k: "slow" if k >= 8 else None) as small:
        code = f"""
            import numpy as np
            from spannerlm.backends.server import ServerModel
            model = ServerModel.load("m", base_url={small.url!r}, api="completions", max_new_tokens=5, concurrency=1,
                                     journal={str(journal)!r})
            model.generate({PROMPTS!r}, 40, rng=np.random.default_rng(0))
        """
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
        while len(small.bodies) < 9:
            assert process.poll() is None
        process.kill()
        process.wait()
        paid = len(small.paid)
        with open(journal, "ab") as file:
            file.write(b'{"key": "torn')
        small.fate = lambda k: None
        model = loaded(small, journal=journal)
        assert plain(model.generate(PROMPTS, 40, rng=rng())) == undisturbed
        assert paid == 8
        assert len(small.paid) == len(set(small.paid)) == 12
        model.close()


def test_a_server_that_is_gone_is_named():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    model = ServerModel.load("m", base_url=url, retries=1)
    with pytest.raises(ModelError, match="ConnectError"):
        model.generate(["a;"], 2, rng=rng())


def test_a_key_that_vanishes_is_named(monkeypatch):
    with Small() as small:
        model = loaded(small)
        monkeypatch.delenv("SPANNERLM_TEST_KEY")
        with pytest.raises(InputError, match="SPANNERLM_TEST_KEY"):
            model.generate(["a;"], 2, rng=rng())


def test_a_reply_of_any_size_is_not_read(monkeypatch):
    monkeypatch.setattr(endpoint, "LARGEST_REPLY", 50)
    with Small() as small, pytest.raises(ModelError, match="larger than 50 bytes"):
        loaded(small).generate(["a;"], 2, rng=rng())


def test_the_journal_is_bounded_and_keeps_what_was_not_used(tmp_path, monkeypatch):
    path = tmp_path / "sub" / "journal"
    first = Spool(path)
    first.add("unused", {"text": "x" * 100}, 1, 2, 0.5)
    first.note("plan", {"n": True})
    first.close()
    monkeypatch.setattr(spool, "LIMIT", 3000)
    held = Spool(path)
    for k in range(200):
        held.shrink()
        held.add(f"key {k}", {"text": "y" * 50}, 1, 2, 0.5)
        assert held.take(f"key {k}") == {"text": "y" * 50}
        held.retried()
        held.sync()
    assert path.stat().st_size < 3500
    assert held.usage.retried == 200
    held.close()
    last = Spool(path)
    assert last.take("unused") == {"text": "x" * 100}
    assert last.fact("plan") == {"n": True}
    assert (last.usage.requests, last.usage.prompt_tokens, last.usage.completion_tokens) == (201, 201, 402)
    assert last.usage.cost == pytest.approx(100.5)
    last.clear()
    assert last.take("unused") is None
    assert last.usage.requests == 201
    last.close()
    assert [p.name for p in path.parent.iterdir()] == ["journal"]


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "notes"
    path.write_text("hello\nthere\n")
    with pytest.raises(InputError, match="another file"):
        Spool(path)
    assert path.read_text() == "hello\nthere\n"
    with pytest.raises(LedgerError, match="could not be opened"):
        Spool(tmp_path)


@pytest.mark.parametrize("what", ["text", "key", "cost", "sum", "end", "deep", "fact"])
def test_a_line_that_was_changed_is_named_and_nothing_is_made_of_it(what, tmp_path):
    journal = tmp_path / "draws.jsonl"
    with Small() as small:
        model = loaded(small, journal=journal)
        model.generate(PROMPTS, 40, rng=rng())
        model.close()
        lines = journal.read_bytes().splitlines(keepends=True)
        at = next(i for i, line in enumerate(lines) if (b'"fact"' in line) == (what == "fact"))
        changed = {
            "text": lines[at].replace(b'"text": "', b'"text": "x', 1),
            "key": lines[at].replace(b'"key": "', b'"key": "0', 1),
            "cost": lines[at].replace(b'"cost": 0', b'"cost": -1', 1),
            "sum": lines[at].rpartition(b" ")[0] + b"\n",
            "end": lines[at][:-3] + b"!!\n",
            "deep": b"[" * 10**5 + b"\n",
            "fact": lines[at].replace(b'"value": {', b'"value": {"x": 1, ', 1),
        }
        assert changed[what] != lines[at]
        journal.write_bytes(b"".join([*lines[:at], changed[what], *lines[at + 1 :]]))
        with pytest.raises(InputError, match=f"draws.jsonl:{at + 1}: expected a line of a model's journal"):
            loaded(small, journal=journal)
        journal.write_bytes(b"".join([*lines, lines[-1]]))
        again = loaded(small, journal=journal)
        assert again.usage.requests == model.usage.requests, "a line that stands twice counts once"
        again.close()


def test_damage_while_the_journal_is_open_is_found(tmp_path):
    spool = Spool(tmp_path / "journal")
    spool.add("key", {"text": "a"}, 1, 1, 0.0)
    data = (tmp_path / "journal").read_bytes()
    with open(tmp_path / "journal", "r+b") as file:
        file.write(data.replace(b'"a"', b'"b"'))
    with pytest.raises(LedgerError, match="damaged now"):
        spool.take("key")
    spool.close()


def test_what_was_paid_in_vain_is_in_the_bill_of_a_resumed_run_too(tmp_path):
    journal = tmp_path / "draws.jsonl"
    with Small(lambda k: "fewer" if k in (3, 5) else None) as small:
        model = loaded(small, journal=journal, price=(1.0, 2.0))
        model.generate(PROMPTS, 40, rng=rng())
        model.close()
        again = loaded(small, journal=journal)
        for name in ("requests", "prompt_tokens", "completion_tokens", "cost"):
            assert getattr(again.usage, name) == pytest.approx(getattr(model.usage, name))
        assert again.usage.requests == 12
        again.close()
        spool = Spool(journal)
        spool.clear()
        spool.close()
        last = Spool(journal)
        assert last.usage.cost == pytest.approx(model.usage.cost)
        last.close()


def test_a_file_that_may_not_grow_is_named(tmp_path):
    held = Spool(tmp_path / "journal")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
    try:
        with pytest.raises(LedgerError, match="make room"):
            held.add("key", {"text": "x" * 100}, 1, 1, 0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    held.add("later", {"text": "x"}, 1, 1, 0.0)
    held.close()
    again = Spool(tmp_path / "journal")
    assert again.take("later") == {"text": "x"}
    assert again.take("key") is None
    again.close()


def test_journals_are_lines_of_json(tmp_path):
    with Small() as small:
        model = loaded(small, journal=tmp_path / "journal")
        model.generate(["a;"], 10, rng=rng())
        model.close()
    rows = [json.loads(line.rpartition(" ")[0]) for line in (tmp_path / "journal").read_text().splitlines()]
    assert sum("reply" in row for row in rows) == len(small.paid)
    assert all(len(row["key"]) == 64 for row in rows if "reply" in row)
