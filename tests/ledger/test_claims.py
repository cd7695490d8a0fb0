"""Which claim answers which item, what may be answered, and what becomes of claims in doubt; in memory and on disk."""

import dataclasses

import numpy as np
import pytest
from ledgers import META, PROMPTS, ask, draw, draws_of, finish

from spannerlm.errors import InputError
from spannerlm.ledger import Failed, Ledger

# --- claims ---------------------------------------------------------------------------------------------------------


def test_equal_items_are_bought_once_and_fresh_ones_are_numbered(ledger):
    claims = ask(ledger, (0, "a"), (0, "a"), (0, "a", True), (0, "b", True), (0, "b"), (0, "a", True))
    assert [claim.to_buy for claim in claims] == [True, False, True, True, False, True]
    assert [claim.replicate for claim in claims] == [0, 0, 1, 0, 0, 2]
    assert len({claim.key for claim in claims}) == 4
    labels = finish(ledger, claims)
    assert [label.charged for label in labels] == [True, False, True, True, False, True]
    assert (ledger.counts.labels, ledger.counts.reused) == (4, 2)


def test_an_earlier_label_is_reused_unless_a_fresh_one_is_asked_for(ledger):
    finish(ledger, ask(ledger, (0, "a")), 0.25)
    again, fresh = ask(ledger, (0, "a"), (0, "a", True))
    assert again.label is not None
    assert (again.label.value, again.label.charged, again.to_buy) == (0.25, False, False)
    assert (fresh.replicate, fresh.to_buy) == (1, True)
    labels = finish(ledger, (again, fresh), 0.75)
    assert [(label.value, label.replicate) for label in labels] == [(0.25, 0), (0.75, 1)]


def test_a_reused_label_has_a_value_if_any_replicate_has(ledger):
    finish(ledger, ask(ledger, (0, "a")), None)
    finish(ledger, ask(ledger, (0, "a", True)), 0.5)
    assert finish(ledger, ask(ledger, (0, "a")))[0].value == 0.5
    assert ledger.counts.labels == 1


def test_equal_prompts_share_labels_and_raters_do_not(ledger):
    finish(ledger, ask(ledger, (0, "a")))
    (shared,) = ask(ledger, (2, "a"))
    assert shared.label is not None
    assert shared.label.prompt == 2
    finish(ledger, (shared,))
    (other,) = ask(ledger, (0, "a"), rater="drawer")
    assert (other.to_buy, other.replicate) == (True, 0)


def test_prompts_that_differ_in_a_column_do_not_share_labels(place):
    with Ledger.open(place, meta={}, prompts=["p", "p", "p"], columns={"target": [1, 2, 1]}) as ledger:
        first, second, third = ask(ledger, (0, "a"), (1, "a"), (2, "a"))
        assert first.key == third.key != second.key
        assert [first.to_buy, second.to_buy, third.to_buy] == [True, True, False]


def test_keys_depend_on_prompt_response_rater_and_replicate_alone(tmp_path):
    keys = []
    for place in (None, tmp_path):
        with Ledger.open(place, meta={"seed": str(place)}, prompts=["x", "one"]) as ledger:
            keys.append([claim.key for claim in ask(ledger, (1, "a"), (1, "a", True))])
    with Ledger.open(None, prompts=["one"]) as ledger:
        finish(ledger, ask(ledger, (0, "b")))
        keys.append([claim.key for claim in ask(ledger, (0, "a"), (0, "a", True))])
        moved = [claim.key for claim in ledger.claim(1)]
    assert keys[0] == keys[1] == keys[2] == moved


def test_rater_and_response_cannot_run_into_each_other():
    with Ledger.open(None, prompts=["p"]) as ledger:
        finish(ledger, ask(ledger, (0, "c"), rater="ab"))
        assert ask(ledger, (0, "bc"), rater="a")[0].to_buy


def test_claiming_again_gives_the_same_claims_in_doubt_or_settled(ledger):
    claims = ask(ledger, (0, "a"), (0, "b"), (0, "a"))
    assert not any(claim.in_doubt for claim in claims)
    ledger.reply(claims[:1], [0.5])
    again = ledger.claim(0)
    assert [claim.key for claim in again] == [claim.key for claim in claims]
    assert [claim.in_doubt for claim in again] == [False, True, False]
    assert [claim.label is not None for claim in again] == [True, False, True]
    assert [claim.key for claim in ledger.in_doubt()] == [claims[1].key]


def test_a_request_can_be_claimed_part_by_part(ledger):
    first = ask(ledger, (0, "a"), (0, "b"), (0, "a"), positions=[0])
    ledger.reply(first, [0.1])
    rest = ledger.claim(0, positions=[1, 2])
    assert [claim.to_buy for claim in rest] == [True, False]
    ledger.reply(rest[:1], [0.2])
    assert [label.value for label in ledger.labels(0)] == [0.1, 0.2, 0.1]


# --- replies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad", [float("nan"), float("inf"), "0.5", True, np.bool_(True), [1.0], 10**400, np.ones(1), b"1", 1j]
)
def test_a_bad_value_refuses_the_batch_and_is_named(ledger, bad):
    claims = ask(ledger, (0, "a"), (0, "b"))
    before = ledger.counts
    with pytest.raises(InputError, match=r"values\[1\]: expected a finite number"):
        ledger.reply(claims, [0.5, bad])
    assert ledger.counts == before
    assert len(ledger.in_doubt()) == 2


def test_wrong_length_unknown_and_repeated_claims_are_refused(ledger):
    claims = ask(ledger, (0, "a"), (0, "b"))
    with pytest.raises(InputError, match="expected 2 values, one per claim, got 1"):
        ledger.reply(claims, [0.5])
    with pytest.raises(InputError, match=r"claims\[1\].*twice"):
        ledger.reply([claims[0], claims[0]], [0.5, 0.5])
    with pytest.raises(InputError, match=r"claims\[0\].*not a claim of this ledger"):
        ledger.reply([dataclasses.replace(claims[0], key="0" * 64)], [0.5])
    assert ledger.counts.labels == 0


@pytest.mark.parametrize("value", [1, np.float32(0.5), np.int64(3), -0.0])
def test_numbers_of_any_kind_become_floats(ledger, value):
    label = finish(ledger, ask(ledger, (0, "a")), value)[0]
    assert repr(label.value) == repr(float(value))


def test_the_same_reply_twice_is_nothing_and_another_is_an_error(ledger):
    claims = ask(ledger, (0, "a"), (0, "b"))
    ledger.reply(claims, [0.5, None])
    lines = list(ledger.export())
    ledger.reply(claims, [0.5, None])
    assert list(ledger.export()) == lines
    assert ledger.counts.labels == 1
    with pytest.raises(InputError, match=r"claims\[1\]: was answered \('skip', None\)"):
        ledger.reply(claims, [0.5, 0.1])


def test_skips_and_failures_are_kept_apart_with_their_charge(ledger):
    claims = ask(ledger, (0, "a"), (0, "b"), (0, "c"), (0, "d"))
    ledger.reply(claims[:3], [None, Failed("timeout"), Failed("refused", charged=False)])
    counts = ledger.counts
    assert (counts.skips, counts.failed, counts.free, counts.in_doubt, counts.charged) == (1, 2, 1, 1, 3)
    labels = finish(ledger, claims[3:])
    assert [label.status for label in labels] == ["skip", "failed", "failed", "label"]
    assert [label.charged for label in labels] == [True, True, False, True]
    assert ledger.counts.charged == 3
    assert [claim.label.status for claim in ask(ledger, (0, "a"), (0, "b"))] == ["skip", "failed"]


def test_evaluation_has_its_own_columns_and_the_same_budget(ledger):
    draw(ledger, draws_of(0, ["a"]), spent=5, purpose="evaluate")
    draw(ledger, draws_of(0, ["a"]), spent=3)
    finish(ledger, ask(ledger, (0, "a"), (0, "b"), purpose="evaluate"))
    finish(ledger, ask(ledger, (0, "c")))
    counts = ledger.counts
    assert (counts.draws, counts.eval_draws, counts.labels, counts.eval_labels, counts.charged) == (3, 5, 1, 2, 3)
    assert [ledger.purpose(k) for k in range(4)] == ["evaluate", "explore", "evaluate", "explore"]


def test_attempts_and_refused_replies_are_remembered_and_not_exported(place):
    with Ledger.open(place, meta=META, prompts=PROMPTS) as ledger:
        claims = ask(ledger, (0, "a"))
        lines = list(ledger.export())
        ledger.attempt(claims, not_before=12.5)
        ledger.reject(claims, b"\x00{half", "no JSON")
        (claim,) = ledger.claim(0)
        assert (claim.attempts, claim.not_before, claim.to_buy) == (1, 12.5, True)
        assert list(ledger.export()) == lines


# --- in doubt -------------------------------------------------------------------------------------------------------


def test_dropping_what_is_in_doubt_keeps_its_charge(ledger):
    ask(ledger, (0, "a"), (0, "b"))
    ledger.settle_in_doubt("drop")
    assert ledger.in_doubt() == ()
    assert [label.status for label in ledger.labels(0)] == ["failed", "failed"]
    assert ledger.counts.charged == 2


def test_rebuying_is_good_for_one_sending_and_counted(ledger):
    ask(ledger, (0, "a"), (0, "b"))
    assert [claim.in_doubt for claim in ledger.claim(0)] == [True, True]
    ledger.settle_in_doubt("rebuy")
    assert ledger.counts.rebought == 0
    claims = ledger.claim(0)
    assert [(claim.in_doubt, claim.to_buy) for claim in claims] == [(False, True)] * 2
    assert ledger.counts.rebought == 2
    assert [claim.in_doubt for claim in ledger.claim(0)] == [True, True], "sent again, and in doubt again"
    assert [label.value for label in finish(ledger, claims)] == [0.5, 0.5]
    assert (ledger.counts.labels, ledger.counts.charged) == (2, 2)


def test_settling_nothing_is_nothing_and_another_word_is_an_error(ledger):
    lines = list(ledger.export())
    ledger.settle_in_doubt("rebuy")
    ledger.settle_in_doubt("drop")
    assert list(ledger.export()) == lines
    with pytest.raises(InputError, match="expected 'rebuy' or 'drop'"):
        ledger.settle_in_doubt("ask")
