"""What the ledger promises the driver, in memory and on disk alike: requests, outcomes, the fold, opening."""

import dataclasses
import json
import sqlite3
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledgers import META, PROMPTS, a_little_of_everything, ask, draw, draws_of, finish, quick_folder, tell_all

from spannerlm.errors import InputError, LedgerError, LedgerLockedError
from spannerlm.ledger import Ledger
from spannerlm.ledger.codec import TEXT_LIMIT
from spannerlm.records import Drawn, DrawRequest, LabelItem, Labelled, LabelRequest

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()))


# --- the fold -------------------------------------------------------------------------------------------------------


def test_a_replay_gives_what_the_driver_was_given(ledger):
    events = a_little_of_everything(ledger)
    assert tell_all(tuple(ledger.events())) == tell_all(tuple(events))


def test_a_reopened_ledger_gives_the_same_events_counts_and_export(tmp_path):
    with Ledger.open(tmp_path, meta=META, prompts=PROMPTS) as ledger:
        events, counts, export = a_little_of_everything(ledger), ledger.counts, list(ledger.export())
        stopped = ledger.stopped
    assert (tmp_path / "draws" / "00000001.parquet").exists()
    assert not (tmp_path / "draws" / "00000000.parquet").exists(), "small draws need no file of their own"
    with Ledger.open(tmp_path) as ledger:
        assert tell_all(tuple(ledger.events())) == tell_all(tuple(events))
        assert ledger.counts == counts
        assert list(ledger.export()) == export
        assert tell_all(ledger.stopped) == tell_all(stopped)
        assert ledger.meta == META
        assert ledger.prompts == tuple(PROMPTS)
        assert ledger.next_request == 6


def test_memory_and_disk_export_the_same_lines(tmp_path):
    exports = []
    for place in (None, tmp_path):
        with Ledger.open(place, meta=META, prompts=PROMPTS, notes={"versions": str(place)}) as ledger:
            a_little_of_everything(ledger)
            exports.append(list(ledger.export()))
    assert exports[0] == exports[1]
    assert [json.loads(line)["type"] for line in exports[0]][:4] == ["open", "request", "draws", "drawn"]
    assert "versions" not in "".join(exports[0])


@pytest.mark.parametrize("change", ["response", "count", "feature", "label"])
def test_the_export_shows_every_difference(change):
    def lines(changed):
        with Ledger.open(None, prompts=PROMPTS) as ledger:
            record = draws_of(1, ["a", "b" if changed != "response" else "c"])
            if changed == "count":
                record.counts[0] += 1
            if changed == "feature":
                record.features[0, 0] = np.nextafter(record.features[0, 0], 9)
            draw(ledger, record)
            finish(ledger, ask(ledger, (1, "a")), 0.5 if changed != "label" else np.nextafter(0.5, 1))
            return list(ledger.export())

    assert lines("") == lines("")
    assert lines("") != lines(change)


def test_in_memory_draws_are_kept_by_reference(tmp_path):
    record = draws_of(1, ["a"])
    with Ledger.open(None, prompts=PROMPTS) as ledger:
        assert draw(ledger, record).draws[0] is record
        drawn = list(ledger.events())[1]
        assert drawn.draws[0].features is record.features


def test_what_the_driver_gets_back_is_c_ordered_float64_and_plain(ledger):
    record = dataclasses.replace(draws_of(1, ["a", "b"]), features=np.asfortranarray(np.ones((2, 3), np.float32)))
    drawn = draw(ledger, record)
    assert drawn.draws[0].features.dtype == np.float64
    assert drawn.draws[0].features.flags.c_contiguous
    request = ledger.request(1, DrawRequest((1,), 1, info={"pair": (1, 2)}))
    assert request.info == {"pair": [1, 2]}


def test_replay_tells_counts_and_purpose_at_each_event(ledger):
    draw(ledger, draws_of(0, ["a"]), spent=3)
    finish(ledger, ask(ledger, (0, "a")))
    finish(ledger, ask(ledger, (0, "b"), purpose="evaluate"))
    seen = [(e.k, e.purpose, e.counts.draws, e.counts.labels, e.counts.eval_labels) for e in ledger.replay()]
    explore, evaluate = "explore", "evaluate"
    assert seen == [
        (0, explore, 0, 0, 0), (0, explore, 3, 0, 0), (1, explore, 3, 0, 0),
        (1, explore, 3, 1, 0), (2, evaluate, 3, 1, 0), (2, evaluate, 3, 1, 1),
    ]  # fmt: skip
    assert len(list(ledger.events())) == 4


def test_rows_appended_during_a_replay_are_not_part_of_it(ledger):
    draw(ledger, draws_of(0, ["a"]))
    events = ledger.events()
    next(events)
    draw(ledger, draws_of(0, ["b"]))
    assert len(list(events)) == 1
    assert len(list(ledger.events())) == 4


# --- requests -------------------------------------------------------------------------------------------------------


def test_a_request_without_outcome_is_unfinished_until_it_has_one(ledger):
    assert ledger.unfinished() is None
    request = ledger.request(0, DrawRequest((1,), 2, info={"phase": "x"}))
    assert tell_all(ledger.unfinished()) == tell_all((0, request))
    with pytest.raises(InputError, match="request 0 has no outcome"):
        ledger.request(1, DrawRequest((1,), 2))
    ledger.drawn(0, Drawn((draws_of(1, ["a"]),), 2))
    assert ledger.unfinished() is None


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda x: x.request(1, DrawRequest((0,), 1)), "expected request 0, got 1"),
        (lambda x: x.request(0, DrawRequest((4,), 1)), "prompt 4: expected an index below 4"),
        (lambda x: x.request(0, LabelRequest((LabelItem(-1, "a"),))), "prompt -1"),
        (lambda x: x.request(0, DrawRequest((0,), 1), purpose="spy"), "purpose"),
        (lambda x: x.drawn(0, Drawn((), 1)), "none is open"),
        (lambda x: x.claim(0), "none is open"),
        (lambda x: (x.request(0, DrawRequest((0,), 1)), x.claim(0)), "draw request 0 is open"),
        (lambda x: ask(x, (0, "a"), positions=[1]), "positions"),
        (lambda x: (ask(x, (0, "a")), x.labels(0)), "1 items are unanswered"),
        (lambda x: draw(x, dataclasses.replace(draws_of(0, ["a"]), counts=np.ones(1))), "counts"),
        (lambda x: draw(x, dataclasses.replace(draws_of(0, ["a"]), features=np.ones((2, 3)))), "features"),
        (lambda x: draw(x, draws_of(0, ["a"], d=2), draws_of(1, ["a"], d=3)), "d differs"),
        (lambda x: draw(x, draws_of(0, ["x" * (TEXT_LIMIT + 1)])), "limit"),
        (lambda x: ask(x, (0, "x" * (TEXT_LIMIT + 1))), "limit"),
    ],
)
def test_what_is_not_in_order_is_refused_by_name(ledger, act, message):
    with pytest.raises(InputError, match=message):
        act(ledger)


def test_the_outcome_must_be_of_its_claims(ledger):
    claims = ask(ledger, (0, "a"))
    ledger.reply(claims, [0.5])
    wrong = dataclasses.replace(ledger.labels(0)[0], value=0.6)
    with pytest.raises(InputError, match="not those of its claims"):
        ledger.labelled(0, Labelled((wrong,), np.zeros((1, 2))))
    with pytest.raises(InputError, match=r"features \[k, d\]"):
        ledger.labelled(0, Labelled(ledger.labels(0), np.zeros((2, 2))))


# --- opening --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("meta", "prompts", "message"),
    [
        ({**META, "seed": 2}, PROMPTS, "made with seed = 1, now it is 2"),
        ({"seed": 1}, PROMPTS, "explorer"),
        ({**META, "kl": 2}, PROMPTS, "made with kl = None"),
        (META, PROMPTS[:2], "other prompts"),
        (META, [*PROMPTS[:3], "x"], "other prompts"),
    ],
)
def test_a_ledger_is_resumed_with_what_it_was_made_with(tmp_path, meta, prompts, message):
    Ledger.open(tmp_path, meta=META, prompts=PROMPTS).close()
    with pytest.raises(InputError, match=message):
        Ledger.open(tmp_path, meta=meta, prompts=prompts)
    Ledger.open(tmp_path, meta=META, prompts=PROMPTS).close()


def test_notes_may_change_and_the_last_are_told(tmp_path):
    Ledger.open(tmp_path, meta=META, prompts=PROMPTS, notes={"numpy": "1"}).close()
    with Ledger.open(tmp_path, notes={"numpy": "2"}) as ledger:
        lines = list(ledger.export())
    with Ledger.open(tmp_path, read_only=True) as ledger:
        assert ledger.notes == {"numpy": "2"}
        assert list(ledger.export()) == lines


def test_nothing_is_made_where_there_is_nothing_to_resume(tmp_path):
    for how in ({}, {"read_only": True}, {"read_only": True, "meta": META, "prompts": PROMPTS}):
        with pytest.raises(InputError, match="found no run"):
            Ledger.open(tmp_path / "none", **how)
    assert not (tmp_path / "none").exists()


def test_one_writes_and_others_read_beside_it(tmp_path):
    with Ledger.open(tmp_path, meta=META, prompts=PROMPTS) as ledger:
        draw(ledger, draws_of(0, ["a"]))
        with Ledger.open(tmp_path, read_only=True) as reader:
            draw(ledger, draws_of(0, ["b"]))
            assert len(list(reader.events())) == 2
            assert Ledger.verify(tmp_path).ok
            with pytest.raises(LedgerError, match="read-only"):
                reader.request(1, DrawRequest((0,), 1))
        with pytest.raises(LedgerLockedError, match="in use by process"):
            Ledger.open(tmp_path)
        draw(ledger, draws_of(0, ["c"]))
    with pytest.raises(LedgerError, match="closed"):
        ledger.request(3, DrawRequest((0,), 1))
    ledger.close()


# --- texts and speed ------------------------------------------------------------------------------------------------


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(prompt=ANY_TEXT, responses=st.lists(ANY_TEXT, min_size=1, max_size=4), rater=ANY_TEXT)
def test_any_text_comes_back_code_point_for_code_point(tmp_path_factory, prompt, responses, rater):
    with quick_folder(tmp_path_factory.mktemp("texts")) as folder:
        with Ledger.open(folder, meta={}, prompts=[prompt]) as ledger:
            draw(ledger, draws_of(0, responses))
            finish(ledger, ask(ledger, *[(0, text) for text in responses], rater=rater))
            export = list(ledger.export())
        with Ledger.open(folder) as ledger:
            events = list(ledger.events())
            assert list(ledger.export()) == export
    assert ledger.prompts == (prompt,)
    assert events[1].draws[0].responses == tuple(responses)
    assert [label.response for label in events[3].labels] == responses
    assert export[0].isascii()


def test_a_prompt_of_10_mb_is_kept(tmp_path):
    prompt = "\0é😀" * 1_500_000
    Ledger.open(tmp_path, meta={}, prompts=[prompt]).close()
    with Ledger.open(tmp_path) as ledger:
        assert ledger.prompts == (prompt,)


def test_a_label_costs_microseconds_in_memory():
    """About 30 us a label in processor time; the bound is loose, for slow and busy machines."""
    with Ledger.open(None, prompts=PROMPTS) as ledger:
        start = time.process_time()
        for _ in range(100):
            finish(ledger, ask(ledger, *[(0, f"r{i}", True) for i in range(20)]))
        assert (time.process_time() - start) / 2000 < 300e-6
    assert ledger.counts.labels == 2000


def test_a_database_cut_off_before_its_first_row_is_empty_and_not_damaged(tmp_path):
    sqlite3.connect(tmp_path / "run.db").execute("PRAGMA journal_mode=WAL").close()
    assert Ledger.verify(tmp_path).ok
    with pytest.raises(InputError, match="holds nothing yet"):
        Ledger.open(tmp_path, read_only=True)
    with Ledger.open(tmp_path, meta=META, prompts=PROMPTS) as ledger:
        assert ledger.next_request == 0
