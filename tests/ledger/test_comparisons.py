"""Comparisons as labels: one per unordered pair unless fresh, mirrored where swapped; and ledgers from before them."""

import hashlib
import itertools
import json
import sqlite3

import numpy as np
import pytest
from ledgers import META, PROMPTS, ask, finish, tell_all
from test_codec import ODD_TEXTS

from spannerlm.errors import InputError
from spannerlm.ledger import Failed, Ledger
from spannerlm.records import LabelItem, Labelled, LabelRequest

A, B = "a", "b"


def pair(response, opponent, fresh=False, prompt=0):
    return prompt, response, fresh, opponent


# --- claims ---------------------------------------------------------------------------------------------------------


def test_a_pair_is_bought_once_whichever_way_round_and_is_no_reward(ledger):
    claims = ask(ledger, pair(B, A), pair(A, B), (0, A), (0, B), pair(A, "c"), pair(A, B, prompt=1))
    assert [claim.to_buy for claim in claims] == [True, False, True, True, True, True]
    assert [(claim.response, claim.opponent) for claim in claims[:3]] == [(B, A), (A, B), (A, None)]
    assert len({claim.key for claim in claims}) == 5
    labels = finish(ledger, claims, 1.0)
    assert [(label.response, label.opponent, label.value, label.charged) for label in labels[:2]] == [
        (B, A, 1.0, True),
        (A, B, 0.0, False),
    ]
    assert (ledger.counts.labels, ledger.counts.reused, ledger.counts.charged) == (5, 1, 5)


def test_an_earlier_comparison_is_reused_and_mirrored_and_a_fresh_one_is_bought(ledger):
    finish(ledger, ask(ledger, pair(A, B)), 0.75)
    claims = ask(ledger, pair(A, B), pair(B, A), pair(B, A, True), pair(A, B, True))
    assert [claim.to_buy for claim in claims] == [False, False, True, True]
    assert [claim.replicate for claim in claims] == [0, 0, 1, 2]
    labels = finish(ledger, claims, 1.0)
    assert [label.value for label in labels] == [0.75, 0.25, 1.0, 1.0]
    assert [label.charged for label in labels] == [False, False, True, True]
    again = finish(ledger, ask(ledger, pair(B, A), pair(A, B)))
    assert [label.value for label in again] == [0.25, 0.75]  # replicate 0, not the later ones


def test_a_tie_is_its_own_mirror_and_a_skip_has_none(ledger):
    finish(ledger, ask(ledger, pair(A, B)), 0.5)
    finish(ledger, ask(ledger, pair(A, "c")), None)
    tie, skip = finish(ledger, ask(ledger, pair(B, A), pair("c", A)))
    assert (tie.value, skip.value, skip.status) == (0.5, None, "skip")
    assert finish(ledger, ask(ledger, pair("c", A, True)), 0.25)[0].replicate == 1
    assert finish(ledger, ask(ledger, pair(A, "c")))[0].value == 0.75  # the first replicate with a value


def test_a_reply_is_of_its_claims_order(ledger):
    first, swapped = ask(ledger, pair(A, B), pair(B, A))
    ledger.reply([swapped], [0.25])  # by the claim that is answered with the first
    ledger.reply([first], [0.75])  # the same answer: nothing
    with pytest.raises(InputError, match=r"claims\[0\]: was answered \('label', 0.75\)"):
        ledger.reply([first], [0.25])
    assert [label.value for label in ledger.labels(0)] == [0.75, 0.25]
    assert ledger.counts.labels == 1


def test_raters_and_prompts_share_pairs_as_they_share_rewards(ledger):
    finish(ledger, ask(ledger, pair(A, B)), 1.0)
    (shared,) = ask(ledger, pair(B, A, prompt=2))  # prompts 0 and 2 are equal
    assert (shared.label.value, shared.label.prompt, shared.to_buy) == (0.0, 2, False)
    finish(ledger, (shared,))
    assert ask(ledger, pair(A, B), rater="other")[0].to_buy


def test_keys_tell_apart_whatever_texts_are_made_of():
    texts = [*ODD_TEXTS, "1 ", " 1", "2 1 ", "pair", "ab", "a", "b", "1 1 0 a", "0 1 0 "]
    with Ledger.open(None, prompts=["p"]) as ledger:
        keys = []
        for rater in ("", "1", "pair ", "reward"):
            items = [(0, text) for text in texts] + [pair(a, b) for a, b in itertools.combinations(texts, 2)]
            claims = ask(ledger, *items, *[pair(b, a) for _, a, _, b in items[len(texts) :]], rater=rater)
            assert sum(claim.to_buy for claim in claims) == len(items)
            keys += [claim.key for claim in claims if claim.to_buy]
            finish(ledger, claims)
    assert len(set(keys)) == len(keys)


def test_no_reward_can_be_worded_like_a_comparison(ledger):
    """Both keys would be of the same bytes, 1 2 3 rabcd, were there no word before a pair's."""
    pairs = ask(ledger, *[pair("ab", "cd", True)] * 4, rater="r")
    finish(ledger, pairs)
    rewards = ask(ledger, *[(0, " rabcd", True)] * 3, rater="3")
    assert (pairs[3].replicate, rewards[2].replicate) == (3, 2)
    assert pairs[3].key != rewards[2].key


@pytest.mark.parametrize("bad", [1.5, -0.1, 2, float("nan"), True, "1"])
def test_a_comparison_is_a_number_from_0_to_1(ledger, bad):
    claims = ask(ledger, (0, A), pair(A, B))
    with pytest.raises(InputError, match=r"values\[1\]: expected"):
        ledger.reply(claims, [5.0, bad])
    assert ledger.counts.labels == 0
    ledger.reply(claims, [5.0, 1])
    assert [label.value for label in ledger.labels(0)] == [5.0, 1.0]


def test_comparisons_in_doubt_are_rebought_dropped_and_failed_like_rewards(ledger):
    ask(ledger, pair(A, B), pair(B, A), (0, A))
    assert [claim.opponent for claim in ledger.in_doubt()] == [B, None]
    assert ledger.counts.in_doubt == 2
    ledger.settle_in_doubt("rebuy")
    todo = [claim for claim in ledger.claim(0) if claim.to_buy]
    assert [(claim.in_doubt, claim.opponent) for claim in todo] == [(False, B), (False, None)]
    ledger.reply(todo[1:], [0.5])
    ledger.settle_in_doubt("drop")
    assert [label.status for label in ledger.labels(0)] == ["failed", "failed", "label"]
    finish(ledger, ledger.claim(0))
    (claim,) = ask(ledger, pair("c", "d"))
    ledger.reply([claim], [Failed("refused", charged=False)])
    assert (ledger.counts.failed, ledger.counts.free, ledger.counts.rebought) == (2, 1, 2)


def test_what_a_rater_said_comes_back_from_disk_and_backup(tmp_path):
    with Ledger.open(tmp_path / "run", meta=META, prompts=PROMPTS) as ledger:
        finish(ledger, ask(ledger, pair(B, A), (0, A)), 1.0)
        finish(ledger, ask(ledger, pair(A, B), pair(A, B, True)), 0.5)
        events, export = list(ledger.events()), list(ledger.export())
        ledger.backup(tmp_path / "backup")
    Ledger.restore(tmp_path / "backup", tmp_path / "back")
    for place in ("run", "back"):
        assert Ledger.verify(tmp_path / place).ok
        with Ledger.open(tmp_path / place, meta=META, prompts=PROMPTS) as ledger:
            assert tell_all(tuple(ledger.events())) == tell_all(tuple(events))
            assert list(ledger.export()) == export
            assert finish(ledger, ask(ledger, pair(A, B)))[0].value == 0.0
    lines = [line for line in map(json.loads, export) if line["type"] == "label"]
    assert [(line["response"], line.get("opponent"), line["value"]) for line in lines] == [
        (B, A, 1.0),
        (A, None, 1.0),
        (A, B, 0.0),
        (A, B, 0.5),
    ]
    assert ["opponent" in line for line in lines] == [True, False, True, True]


# --- ledgers from before there were comparisons ---------------------------------------------------------------------

IDENTITY = hashlib.sha256(b"2 {}p").hexdigest()
"""What an old ledger knows a prompt "p" without columns by."""


def old_key(response, replicate):
    name = b"reward"
    sizes = f"{len(name)} {replicate} ".encode()
    return hashlib.sha256(bytes.fromhex(IDENTITY) + sizes + name + response.encode()).hexdigest()


def old_rows():
    """(kind, k, body, blob) as they were written before LabelItem had an opponent; the last request is unfinished."""
    header = '{"identities":["%s"],"meta":{"seed":4},"notes":{},"prompts":["p"]}' % IDENTITY  # noqa: UP031
    ask_first = '{"info":{},"items":[[0,"a",false],[0,"b",true]],"purpose":"explore","type":"label"}'
    claim = '{"at":[0,1],"keys":["%s","%s"],"rater":"reward","replicates":[0,%d]}'
    keys = old_key("a", 0), old_key("b", 0)
    features = b'[["<f4",[2,1]]]\n' + np.array([1.0, 2.0], "<f4").tobytes()
    return [
        ("open", 0, header, None),
        ("request", 0, ask_first, None),
        ("claim", 0, claim % (*keys, 0), None),
        ("reply", 0, '{"keys":["%s","%s"],"replies":[0.25,null]}' % keys, None),  # noqa: UP031
        ("labelled", 0, '{"info":{}}', features),
        ("request", 1, ask_first, None),
        ("claim", 1, claim % (keys[0], old_key("b", 1), 1), None),
    ]


def write_old_ledger(directory):
    """A run directory by SQL alone, its chain of hashes and its head worked out here."""
    directory.mkdir()
    db = sqlite3.connect(directory / "run.db")
    db.execute(
        "CREATE TABLE journal (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, k INTEGER NOT NULL,"
        " body BLOB NOT NULL, blob BLOB, hash BLOB NOT NULL)"
    )
    last = hashlib.sha256(b"spannerlm journal 1").digest()
    for seq, (kind, k, text, blob) in enumerate(old_rows(), 1):
        body = text.encode()
        head = f"{seq} {kind} {k} {len(body)} {-1 if blob is None else len(blob)}\n".encode()
        last = hashlib.sha256(last + head + body + (blob or b"")).digest()
        db.execute("INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?)", (seq, kind, k, body, blob, last))
    db.commit()
    db.close()
    (directory / "run.head").write_text(f"{len(old_rows())} {last.hex()}\n")


def test_an_old_run_directory_is_read_resumed_and_goes_on_with_comparisons(tmp_path):
    write_old_ledger(tmp_path / "run")
    assert Ledger.verify(tmp_path / "run").ok
    with Ledger.open(tmp_path / "run", meta={"seed": 4}, prompts=["p"]) as ledger:
        events = list(ledger.events())
        assert events[0].items == (LabelItem(0, "a"), LabelItem(0, "b", True))
        assert [(label.value, label.opponent) for label in events[1].labels] == [(0.25, None), (None, None)]
        np.testing.assert_array_equal(events[1].features, [[1.0], [2.0]])
        assert [claim.key for claim in ledger.in_doubt()] == [old_key("b", 1)]
        claims = ledger.claim(1)
        assert [(claim.to_buy, claim.in_doubt) for claim in claims] == [(False, False), (True, True)]
        finish(ledger, claims, 0.5)
        finish(ledger, ask(ledger, pair("a", "b")), 1.0)
        assert ledger.counts.labels == 3
        export = list(ledger.export())
    with Ledger.open(tmp_path / "run", meta={"seed": 4}, prompts=["p"]) as ledger:
        assert list(ledger.export()) == export
        assert finish(ledger, ask(ledger, pair("b", "a")))[0].value == 0.0


def test_a_run_without_comparisons_is_still_written_byte_for_byte_as_before(tmp_path):
    with Ledger.open(tmp_path / "run", meta={"seed": 4}, prompts=["p"]) as ledger:
        request = LabelRequest((LabelItem(0, "a"), LabelItem(0, "b", True)))
        ledger.request(0, request)
        ledger.reply(ledger.claim(0), [0.25, None])
        ledger.labelled(0, Labelled(ledger.labels(0), np.array([[1.0], [2.0]])))
        ledger.request(1, request)
        ledger.claim(1)
        labels = [line for line in map(json.loads, ledger.export()) if line["type"] == "label"]
    db = sqlite3.connect(tmp_path / "run" / "run.db")
    found = db.execute("SELECT kind, k, body, blob FROM journal ORDER BY seq").fetchall()
    db.close()
    assert found == [(kind, k, body.encode(), blob) for kind, k, body, blob in old_rows()]
    names = {"charged", "k", "key", "prompt", "rater", "reason", "replicate", "response", "status", "type", "value"}
    assert all(set(label) == names for label in labels)


def test_an_opponent_that_is_the_response_is_refused_before_anything_is_recorded(ledger):
    with pytest.raises(InputError, match=r"items\[0\]: expected two responses to compare"):
        ask(ledger, pair(A, A))
    assert ledger.next_request == 0
    assert list(ledger.events()) == []
