"""ask / tell at its edges: budgets under labels from elsewhere, turns, twice the same id, the way round of a pair."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from laws import environments
from test_asking import ENV, finish, ledger_of, opened, worth

import spannerlm
from spannerlm import Run
from spannerlm.api import explore
from spannerlm.errors import InputError
from spannerlm.explorers import EXPLORERS
from spannerlm.ledger import Ledger
from spannerlm.records import Event, Failed, Labelled, LabelRequest


def asked_of(query: spannerlm.Query) -> tuple[str, frozenset[str | None]]:
    return query.prompt, frozenset((query.response, query.opponent))


def charged_and_open(run: Run) -> int:
    """Slow: what the answers add up to, without the counts."""
    return sum(answer.status != "released" for answer in run.answers())


def slow_theta(run: Run) -> Any:
    """The explorer's state folded from scratch over what the ledger replays, by no driver."""
    state = run._explorer.init(run.spec)
    for entry in run._ledger.replay():
        event: Event = entry.event
        if entry.purpose != "given" or not isinstance(event, LabelRequest):
            state = run._explorer.absorb(state, event)
    return run._explorer.policy(state).theta


# --- the budget -----------------------------------------------------------------------------------------------------


def test_labels_from_elsewhere_leave_the_budget_as_it_is_while_others_are_out(tmp_path: Path) -> None:
    with opened(tmp_path, budget=6) as run:
        out = run.ask(6)
        assert run.add([q.prompt for q in out[:3]], [q.response for q in out[:3]], [1.0, 2.0, 3.0]) == 3
        assert run.ask(9) == out
        assert (run.counts.charged, charged_and_open(run)) == (6, 6)
        run.tell({query.id: worth(query) for query in out})
        assert run.ask(9) == []
        assert (run.counts.labels, run.counts.given, run.reason) == (6, 3, "labels spent")


def test_late_answers_may_cost_more_than_the_budget_and_then_nothing_more_is_asked(tmp_path: Path) -> None:
    with opened(tmp_path, budget=4) as run:
        late = run.ask(4, worker="ann")
        run.release([q.id for q in late])
        finish(run, "bob")
        assert run.counts.charged == 4
        run.tell({query.id: worth(query) for query in late})
        assert run.counts.labels == 8  # they were paid for
        assert run.ask(4, worker="bob") == run.ask(4, worker="cho") == []
        assert run.reason == "labels spent"


def test_what_overlap_leaves_over_is_not_asked_and_the_run_says_why(tmp_path: Path) -> None:
    with opened(tmp_path, budget=5, overlap=2) as run:
        finish(run, "ann")
        assert (run.counts.labels, run.reason) == (2, "")
        finish(run, "bob")
        assert (run.counts.labels, run.ask(1, worker="ann"), run.reason) == (4, [], "labels spent")


def test_a_label_that_was_not_charged_is_asked_for_again(tmp_path: Path) -> None:
    with opened(tmp_path, budget=3) as run:
        first = run.ask(3)
        run.fail(first[0].id, "the queue was down", charged=False)
        run.fail(first[1].id, "the assay broke")
        run.skip(first[2].id)
        assert run.counts.charged == 2
        assert len(run.ask(3)) == 1
        assert run.reason == ""
        counts = run.counts
        assert counts.charged == counts.labels + counts.skips + counts.failed - counts.free + counts.waiting == 3


def test_money_holds_where_labels_were_added_by_somebody_without_a_price(tmp_path: Path) -> None:
    with opened(tmp_path, budget=9, money=4.0, prices={"ann": 1.0}) as run:
        query = run.ask(1, worker="ann")[0]
        run.add([query.prompt], [query.response], [1.0])
        assert run.spent() == 1.0
        assert len(run.ask(9, worker="ann")) == 4
        finish(run, "ann")
        assert (run.counts.labels, run.spent(), run.reason) == (4, 4.0, "money spent")
    with opened(tmp_path / "free") as run:
        assert np.isnan(run.spent())


# --- who is asked what ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("feedback", ["scalar", "comparison"])
def test_where_labels_are_fresh_the_second_turn_goes_to_somebody_else_too(tmp_path: Path, feedback: str) -> None:
    with opened(tmp_path, overlap=2, budget=40, feedback=feedback) as run:
        while queries := run.ask(3, worker="ann"):
            run.tell({query.id: worth(query) for query in queries})
        alone = Counter(asked_of(answer.query) for answer in run.answers())
        assert run.counts.labels == 20  # half of the budget is left for others
        finish(run, "bob")
        both = Counter(asked_of(answer.query) for answer in run.answers())
        assert run.counts.labels == 40
        assert both == Counter({key: 2 * count for key, count in alone.items()})
        by_worker = Counter((a.query.worker, *asked_of(a.query)) for a in run.answers())
        assert all(by_worker["ann", *key] == by_worker["bob", *key] for key in both)


def test_an_id_given_twice_is_released_once(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        a, b = run.ask(2)
        run.release([a.id, a.id])
        with pytest.raises(InputError, match="expected each once"):
            run._ledger.release([run._questions.by_id(b.id)[0]] * 2)
        assert run.counts.waiting == 1
    assert Ledger.verify(tmp_path).ok
    with opened(tmp_path) as again:
        assert again.counts.waiting == 1


def test_a_query_has_one_way_round_whatever_became_of_it(tmp_path: Path) -> None:
    """A pair that was taken back and asked again the other way round has the id, and so the order, that it had."""
    with opened(tmp_path, feedback="comparison") as run:
        query = run.ask(1, worker="ann")[0]
        run.release([query.id])
        k, x = run._ledger.next_request, int(query.prompt)
        item = spannerlm.records.LabelItem(x, str(query.opponent), True, query.response)
        run._issue(k, LabelRequest((item,)))
        run._ledger.claim(k, rater="ann")
        (again,) = [q for q in run._questions.held("ann") if q.id == query.id]
        assert again == query == run.query(query.id)
        run.tell(query.id, 1.0)
        (label,) = [
            label for entry in run._ledger.replay() if isinstance(entry.event, Labelled) for label in entry.event.labels
        ]
        assert (label.response, label.value) == (query.opponent, 0.0)
        assert np.array_equal(slow_theta(run), run.policy().theta)


def test_twenty_asked_at_once_differ_and_are_worth_more_than_copies(tmp_path: Path) -> None:
    with opened(tmp_path / "many", budget=60, batch=20) as run:
        first = run.ask(20)
        assert len({asked_of(query) for query in first}) == 20
        assert run.counts.waiting == 20
        run.tell({query.id: worth(query) for query in first})
        many = ENV.regret(run.policy().table(ENV))
    with opened(tmp_path / "one", budget=60, batch=20) as run:
        query = run.ask(1)[0]
        prompts, responses = [query.prompt] * 20, [query.response] * 20
        run.add(prompts, responses, [worth(query)] * 20)
        copies = ENV.regret(run.policy().table(ENV))
    assert many < copies


# --- what is refused ------------------------------------------------------------------------------------------------


def test_check_says_what_tell_would_refuse_and_records_nothing(tmp_path: Path) -> None:
    with opened(tmp_path, feedback="comparison") as run:
        a, b, c = run.ask(3)
        run.tell(a.id, 1.0)
        before = ledger_of(tmp_path)
        answers = {a.id: 0.0, b.id: 2.0, c.id: 0.5, "0" * 20: 1.0, "nobody": 1.0}
        found = run.check(answers)
        assert list(found) == [a.id, b.id, "0" * 20, "nobody"]
        assert "say revise" in found[a.id]
        assert "[0, 1]" in found[b.id]
        assert list(run.check({a.id: 0.0, c.id: None}, revise=True)) == []
        assert run.check({a.id: 1.0, b.id: None, c.id: Failed("lost")}) == {}
        assert ledger_of(tmp_path) == before


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (([None], ["0"], [1.0]), r"prompts\[0\]: expected a prompt or an index below"),
        (([0, 1.0], ["0", "0"], [1.0, 1.0]), r"prompts\[1\]"),
        (([True], ["0"], [1.0]), r"prompts\[0\]"),
        (([-1], ["0"], [1.0]), r"prompts\[0\]"),
        (([0], [3], [1.0]), r"responses\[0\]: expected text, got int"),
        (([0], ["0"], ["1"]), r"values\[0\]: expected a finite number"),
        (([0], ["0"], [float("inf")]), r"values\[0\]"),
        (([0, 0], ["0", "0"], [1.0, 2.0]), r"values\[1\]: expected 1"),
    ],
)
def test_labels_that_are_wrong_are_added_by_no_means(tmp_path: Path, given: Any, problem: str) -> None:
    with opened(tmp_path) as run:
        run.ask(1)
        before = ledger_of(tmp_path)
        with pytest.raises(InputError, match=problem):
            run.add(*given)
        assert ledger_of(tmp_path) == before


def test_what_somebody_is_being_asked_is_told_and_not_added(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        query = run.ask(1, worker="ann")[0]
        before = ledger_of(tmp_path)
        with pytest.raises(InputError, match="tell it instead"):
            run.add([query.prompt], [query.response], [1.0], rater="ann")
        assert ledger_of(tmp_path) == before
        run.tell(query.id, 1.0)
        assert run.add([query.prompt], [query.response], [1.0], rater="ann") == 0
        assert run.add([query.prompt], [query.response], [2.0], rater="bob") == 1


def test_a_batch_of_rewards_and_comparisons_is_added_together(tmp_path: Path) -> None:
    with opened(tmp_path, feedback="comparison") as run:
        query = run.ask(1)[0]
        texts = [query.response, query.response, str(query.opponent)]
        opponents = [None, query.opponent, query.response]
        assert run.add([query.prompt] * 3, texts, [2.5, 1.0, 0.0], opponents=opponents) == 2
        with pytest.raises(InputError, match=r"values\[0\]: expected 1"):
            run.add([query.prompt], [query.response], [0.0], opponents=[query.opponent])
        assert np.array_equal(slow_theta(run), run.policy().theta)


# --- the fold -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(EXPLORERS))
def test_answers_one_by_one_and_out_of_order_teach_what_a_batch_does(tmp_path: Path, name: str) -> None:
    """Of the same questions: the policy is the same whether answers come together or singly, last ones first."""
    env = environments()["tie"]
    policies = []
    for way in ("together", "singly"):
        with Run.open(tmp_path / way, env=env, explorer=name, budget=12, batch=6, draws=20_000) as run:
            queries = run.ask(6)
            answers = {query.id: float(i % 3) for i, query in enumerate(queries)}
            if way == "together":
                run.tell(answers)
            for id, value in reversed(answers.items()):
                run.tell(id, value)
            assert np.allclose(slow_theta(run), run.policy().theta, rtol=0, atol=1e-12)
            assert run.counts.labels == len(queries) > 0
            policies.append((queries, run.policy().theta))
    assert policies[0][0] == policies[1][0]
    np.testing.assert_allclose(policies[0][1], policies[1][1], rtol=1e-7, atol=1e-9)


def test_a_run_that_is_told_at_once_learns_what_one_with_a_reward_does(tmp_path: Path) -> None:
    reward = ENV.reward(0)
    with opened(tmp_path, budget=40, batch=4) as run:
        while queries := run.ask(4):
            texts = [q.prompt for q in queries], [q.response for q in queries]
            claims = [run._questions.by_id(q.id)[0] for q in queries]
            values = reward(*texts, replicate=[claim.replicate for claim in claims])
            run.tell({q.id: float(value) for q, value in zip(queries, values, strict=True)})
        theta = run.policy().theta
    result = explore(ENV, labels=40, batch=4, seed=0)
    np.testing.assert_allclose(theta, result.policy.theta, rtol=1e-7, atol=1e-9)


def test_after_everything_the_state_is_a_slow_fold_and_so_it_is_after_a_restart(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    with opened(tmp_path, budget=60, overlap=2) as run:
        for turn in range(60):
            queries = run.ask(3, worker=["ann", "bob", "cho"][turn % 3])
            for query in queries:
                kind = rng.integers(8)
                if kind == 0:
                    run.skip(query.id)
                elif kind == 1:
                    run.fail(query.id, "broke", charged=bool(rng.integers(2)))
                elif kind == 2:
                    run.release([query.id])
                elif kind < 6:
                    run.tell(query.id, worth(query) + float(rng.normal()))
            known = [a for a in run.answers() if a.status in ("label", "skip", "released")]
            if turn % 4 == 3 and known:
                run.tell(known[int(rng.integers(len(known)))].query.id, float(rng.normal()), revise=True)
            if turn == 20:
                run.add([q.prompt for q in queries], [q.response for q in queries], [0.5] * len(queries))
        theta, counts, left = run.policy().theta, run.counts, run.answers()
        np.testing.assert_allclose(slow_theta(run), theta, rtol=0, atol=1e-12)
        statuses = Counter(answer.status for answer in left)
        assert statuses["label"] == counts.labels
        assert (statuses["skip"], statuses["failed"]) == (counts.skips, counts.failed)
        assert statuses["waiting"] == counts.waiting
        assert min(statuses[kind] for kind in ("label", "skip", "failed")) > 0
        assert counts.charged == counts.labels + counts.skips + counts.failed - counts.free + counts.waiting
    with opened(tmp_path, budget=60, overlap=2) as again:
        assert (again.counts, again.answers()) == (counts, left)
        np.testing.assert_allclose(again.policy().theta, theta, rtol=0, atol=1e-12)
    assert Ledger.verify(tmp_path).ok


def test_eight_raters_at_once_fifty_items_and_no_item_exceeds_its_overlap(tmp_path: Path) -> None:
    """They answer, skip, hand back and change their minds, each in a thread; somebody adds labels meanwhile."""
    with opened(tmp_path, overlap=2, budget=100) as run:
        problems: list[BaseException] = []

        def work(number: int) -> None:
            rng = np.random.default_rng(number)
            try:
                while queries := run.ask(2, worker=f"rater {number}"):
                    for query in queries:
                        kind = rng.integers(8)
                        if kind == 0:
                            run.release([query.id])
                        elif kind == 1:
                            run.skip(query.id)
                        else:
                            run.tell(query.id, worth(query))
                        if kind == 2:
                            run.tell(query.id, worth(query) + 1.0, revise=True)
                        if kind == 3:
                            run.add([query.prompt], [query.response], [worth(query)])
                    run.policy(), run.progress(), run.agreement(), run.answers()
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []
        assert (run.counts.charged, run.counts.waiting) == (100, 0)
        turns: dict[tuple[int, int], list[str]] = {}
        for claim, status, _ in run._ledger.purchases():
            if status != "released" and not run._questions.is_given(claim):
                turns.setdefault((claim.request, claim.position // 2), []).append(claim.rater)
        assert len(turns) == 50
        assert all(len(who) == len(set(who)) == 2 for who in turns.values())
        theta = run.policy().theta
        np.testing.assert_allclose(slow_theta(run), theta, rtol=0, atol=1e-9)
    with opened(tmp_path, overlap=2, budget=100) as again:
        np.testing.assert_allclose(again.policy().theta, theta, rtol=0, atol=1e-9)
    assert Ledger.verify(tmp_path).ok
