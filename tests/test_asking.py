"""ask / tell: the same queries until they are answered, batches whole or not at all, money, overlap, late answers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spannerlm
from spannerlm import Run
from spannerlm.environments import environment
from spannerlm.errors import InputError
from spannerlm.ledger import Ledger
from spannerlm.records import Failed, LabelItem, LabelRequest

ENV = environment("rare-skill", seed=1)
TRUTH = {
    (str(x), str(y)): float(ENV.mean_rewards[x, y])
    for x in range(len(ENV.prompts))
    for y in range(ENV.base_probs.shape[1])
}


def opened(folder: Path, **options: Any) -> Run:
    return Run.open(folder, **{"env": ENV, "budget": 40, "batch": 4, **options})


def worth(query: spannerlm.Query) -> float:
    """The true reward; of a comparison, which is better."""
    own = TRUTH[query.prompt, query.response]
    if query.opponent is None:
        return own
    other = TRUTH[query.prompt, query.opponent]
    return 0.5 if own == other else float(own > other)


def finish(run: Run, worker: str | None = None, n: int = 5) -> None:
    while queries := run.ask(n, worker=worker):
        run.tell({query.id: worth(query) for query in queries})


def ledger_of(folder: Path) -> list[str]:
    with Ledger.open(folder, read_only=True) as ledger:
        return list(ledger.export())


def test_queries_stay_the_same_until_they_are_answered(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        first = run.ask(6)
        assert len({query.id for query in first}) == len({(q.prompt, q.response) for q in first}) == 6
        assert run.ask(6) == first
        assert [q.id for q in run.ask(8)][:6] == [q.id for q in first]
        run.tell(first[2].id, 1.0)
        assert first[2].id not in [q.id for q in run.ask(7)]
        assert run.counts.waiting == 7
        waiting = run.ask(7)
    with opened(tmp_path) as again:
        assert again.ask(7) == waiting
        assert again.query(first[2].id) == first[2]


def test_the_budget_is_spent_and_something_is_learned(tmp_path: Path) -> None:
    with opened(tmp_path, budget=120) as run:
        finish(run)
        assert run.counts.labels == 120
        assert run.reason == "labels spent"
        assert run.ask(1) == []
        regret = ENV.regret(run.policy().table(ENV))
        theta = run.policy().theta
    assert regret < 0.6 * ENV.regret(ENV.base_probs)
    with opened(tmp_path, budget=120) as again:
        np.testing.assert_array_equal(again.policy().theta, theta)
    assert Ledger.verify(tmp_path).ok


def test_a_batch_is_taken_whole_or_not_at_all(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        a, b, c = run.ask(3)
        before = ledger_of(tmp_path)
        for answers, match in (
            ({a.id: 1.0, b.id: float("nan")}, f"{b.id}: expected a finite number"),
            ({a.id: 1.0, b.id: "1"}, "finite number, got '1'"),
            ({a.id: 1.0, b.id: True}, "finite number, got True"),
            ({a.id: 1.0, b.id: None}, "got None: skip"),
            ({a.id: 1.0, b.id: 10**400}, "finite"),
            ({a.id: 1.0, "0" * 20: 1.0}, "found none of that name"),
            ({a.id: 1.0, "x": 1.0}, "expected that of a query"),
        ):
            with pytest.raises(InputError, match=match):
                run.tell(answers)  # type: ignore[arg-type]
            assert ledger_of(tmp_path) == before
        run.tell({a.id: 1.0, b.id: 2.0})
        run.tell({a.id: 1.0})  # the same again changes nothing
        after = ledger_of(tmp_path)
        with pytest.raises(InputError, match=f"{a.id}: was answered 1.0, now 3.0: say revise"):
            run.tell({a.id: 3.0, c.id: 1.0})
        assert ledger_of(tmp_path) == after
        run.skip(c.id)
        run.skip(c.id)
        assert (run.counts.labels, run.counts.skips) == (2, 1)
        run.tell(c.id, 0.5)  # an answer after all: a revision
        assert (run.counts.labels, run.counts.skips) == (3, 0)
        run.tell_all({a.id: None, b.id: Failed("broke", charged=False)}, revise=True)
        assert (run.counts.labels, run.counts.skips, run.counts.failed, run.counts.free) == (1, 1, 1, 1)
        with pytest.raises(InputError, match="n: expected"):
            run.ask(0)


def test_a_revised_run_is_the_one_that_had_the_right_answers_at_once(tmp_path: Path) -> None:
    with opened(tmp_path / "wrong") as wrong, opened(tmp_path / "right") as right:
        queries = wrong.ask(8)
        assert right.ask(8) == queries
        wrong.tell({query.id: -worth(query) for query in queries})
        right.tell({query.id: worth(query) for query in queries})
        assert np.abs(wrong.policy().theta - right.policy().theta).max() > 1e-3
        wrong.tell({query.id: worth(query) for query in queries}, revise=True)
        np.testing.assert_allclose(wrong.policy().theta, right.policy().theta, atol=1e-12)
        shown = [line for line in ledger_of(tmp_path / "wrong") if line.endswith('"type":"revision"}')]
        assert len(shown) == sum(worth(query) != 0.0 for query in queries)


def test_each_response_has_as_many_raters_as_asked_for_and_none_twice(tmp_path: Path) -> None:
    with opened(tmp_path, overlap=3, budget=30, feedback="comparison") as run:
        with pytest.raises(InputError, match="worker: expected a name where 3 workers"):
            run.ask(1)
        with pytest.raises(InputError, match="worker: expected a name"):
            run.ask(1, worker=" ")
        names, rng = ["ann", "bob", "cho", "dan"], np.random.default_rng(0)
        while True:
            order = [str(name) for name in rng.permutation(names)]
            queries = next((found for name in order if (found := run.ask(2, worker=name))), [])
            if not queries:
                break
            run.tell({query.id: worth(query) for query in queries})
        by_pair: dict[Any, list[str]] = {}
        for answer in run.answers():
            texts = frozenset((answer.query.response, answer.query.opponent))
            by_pair.setdefault((answer.query.prompt, texts), []).append(answer.query.worker)
        assert run.counts.labels == 30
        assert all(len(who) % 3 == 0 for who in by_pair.values())
        assert run.agreement() == (1.0, run.agreement()[1])
        assert run.agreement()[1] >= 30


def test_no_worker_is_asked_the_same_at_the_same_time(tmp_path: Path) -> None:
    with opened(tmp_path, overlap=2, budget=40) as run:
        mine = run.ask(5, worker="ann")
        assert len({(q.prompt, q.response) for q in mine}) == 5
        others = run.ask(5, worker="bob")
        assert {(q.prompt, q.response) for q in mine} & {(q.prompt, q.response) for q in others}
        assert not {q.id for q in mine} & {q.id for q in others}


def test_what_was_released_goes_to_others_and_a_late_answer_is_kept(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        late, other = run.ask(2, worker="ann")
        run.release([late.id])
        assert run.counts.charged == 1
        assert [q.id for q in run.ask(1, worker="ann")] == [other.id]
        given = {(q.prompt, q.response): q for q in run.ask(6, worker="bob")}
        again = given[late.prompt, late.response]
        assert again.id != late.id
        run.tell(again.id, 0.25)
        run.tell(late.id, 0.75)
        assert run.counts.labels == 2
        run.release([late.id])  # answered: left as it is
        theta = run.policy().theta
    with opened(tmp_path) as resumed:
        np.testing.assert_array_equal(resumed.policy().theta, theta)


def test_money_is_counted_by_worker(tmp_path: Path) -> None:
    prices = {"expert": 3.0, "*": 1.0}
    with opened(tmp_path, budget=None, money=10.0, prices=prices) as run:
        assert run.spec.labels == 10
        expert = run.ask(9, worker="expert")
        assert len(expert) == 3  # a fourth would cost more than there is
        assert run.spent() == 9.0
        assert len(run.ask(9, worker="student")) == 1
        run.fail(expert[0].id, "never asked", charged=False)
        assert run.spent() == 7.0
        assert len(run.ask(9, worker="student")) == 4
        assert run.spent() == 10.0
    for options, match in (
        ({"budget": None}, "budget: expected"),
        ({"money": 5.0}, "money: expected"),
        ({"money": 5.0, "prices": {"a": -1.0}}, "prices"),
        ({"overlap": 0}, "overlap"),
        ({"budget": 0}, "labels"),
        ({"explorer": "multi-turn-spanner"}, "whole responses"),
    ):
        with pytest.raises(InputError, match=match):
            opened(tmp_path / "new", **options)
    named: dict[str, Any] = {"budget": 5, "money": 5.0, "prices": {"ann": 1.0}}
    with opened(tmp_path / "named", **named) as run, pytest.raises(InputError, match="bob"):
        run.ask(1, worker="bob")


def test_labels_that_were_there_are_learned_from_and_cost_nothing(tmp_path: Path) -> None:
    with opened(tmp_path, budget=20) as run:
        first = run.ask(8)
        run.release([q.id for q in first])
        prompts, responses = [q.prompt for q in first], [q.response for q in first]
        values = [worth(q) for q in first]
        assert run.add(prompts, responses, values) == 8
        assert (run.counts.given, run.counts.charged) == (8, 0)
        assert np.abs(run.policy().theta).max() > 0.0
        assert run.add(prompts[:2], responses[:2], values[:2]) == 0
        theta = run.policy().theta
        np.testing.assert_array_equal(run.policy().theta, theta)
        with pytest.raises(InputError, match=r"values\[1\]: expected .* as 'given' gave before"):
            run.add(prompts[:2], responses[:2], [values[0], values[1] + 1.0])
        with pytest.raises(InputError, match="one of this run's"):
            run.add(["nowhere"], ["0"], [1.0])
        with pytest.raises(InputError, match="expected one that was drawn"):
            run.add([0], ["999"], [1.0])
        with pytest.raises(InputError, match="one prompt and value per response"):
            run.add([0, 0], ["0"], [1.0])
        with pytest.raises(InputError, match="opponents: expected none"):
            run.add([0], ["0"], [1.0], opponents=["1"])
        assert run.counts.given == 8
        finish(run)
        assert run.counts.labels == 20
        theta = run.policy().theta
    with opened(tmp_path, budget=20) as again:
        np.testing.assert_array_equal(again.policy().theta, theta)


def test_rewards_and_comparisons_share_a_posterior(tmp_path: Path) -> None:
    with opened(tmp_path, budget=20, feedback="comparison", scale=0.5) as run:
        queries = run.ask(10)
        with pytest.raises(InputError, match=r"\[0, 1\]"):
            run.tell(queries[0].id, 1.5)
        run.tell({query.id: worth(query) for query in queries})
        before = run.policy().theta
        run.add([q.prompt for q in queries], [q.response for q in queries], [worth(q) + 1.0 for q in queries])
        assert np.abs(run.policy().theta - before).max() > 1e-6


def test_one_process_at_a_time(tmp_path: Path) -> None:
    code = (
        "import sys, spannerlm\nfrom spannerlm.environments import environment\n"
        "from spannerlm.errors import LedgerLockedError\n"
        "try: spannerlm.Run.open(sys.argv[1], env=environment('rare-skill', seed=1), budget=40, batch=4)\n"
        "except LedgerLockedError as error: print(error)"
    )
    with opened(tmp_path):
        found = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert str(os.getpid()) in found.stdout


def test_a_crash_between_the_answer_and_its_outcome_loses_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        queries = run.ask(4)
        run.add([queries[0].prompt], [queries[0].response], [0.1])
        claims = [run._questions.by_id(q.id)[0] for q in queries]
        run._ledger.reply(claims[:3], [worth(q) for q in queries[:3]])  # and killed here
    with opened(tmp_path) as again:
        assert again.counts.labels == 3
        assert [q.id for q in again.ask(1)] == [queries[3].id]
        again.tell(queries[3].id, worth(queries[3]))
        theta = again.policy().theta
    with opened(tmp_path / "whole") as whole:
        asked = whole.ask(4)
        whole.add([asked[0].prompt], [asked[0].response], [0.1])
        whole.tell({q.id: worth(q) for q in asked[:3]})
        whole.tell(asked[3].id, worth(asked[3]))
        np.testing.assert_allclose(whole.policy().theta, theta, atol=1e-12)


def test_a_crash_while_labels_are_added_leaves_none_half_added(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        query = run.ask(1)[0]
        k = run._ledger.next_request
        item = LabelItem(int(query.prompt), query.response)
        run._ledger.request(k, LabelRequest((item,)), purpose="given", detached=True)
        run._ledger.claim(k, rater="given")  # and killed here
    with opened(tmp_path) as again:
        assert again.counts.charged == 1
        assert again.add([query.prompt], [query.response], [2.0]) == 1
        assert again.counts.given == 1
        finish(again)
        assert again.counts.labels == 40


def test_many_threads_ask_and_tell(tmp_path: Path) -> None:
    with opened(tmp_path, overlap=2, budget=80) as run:
        problems: list[BaseException] = []

        def work(name: str) -> None:
            try:
                while queries := run.ask(2, worker=name):
                    run.tell({query.id: worth(query) for query in queries})
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=work, args=(f"rater {i}",)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []
        assert run.counts.labels == 80
        theta = run.policy().theta
    with opened(tmp_path, overlap=2, budget=80) as again:
        np.testing.assert_allclose(again.policy().theta, theta, atol=1e-9)
    assert Ledger.verify(tmp_path).ok


def test_what_was_given_must_be_given_again(tmp_path: Path) -> None:
    opened(tmp_path).close()
    with pytest.raises(InputError, match="made with labels = 40, now it is 41"):
        opened(tmp_path, budget=41)
    with pytest.raises(InputError, match="expected env="):
        Run.open(tmp_path)
    with pytest.raises(InputError, match="prompts= and model="):
        Run.open(tmp_path / "new", budget=3)


@pytest.mark.slow
def test_a_real_model_is_resumed_from_its_directory_alone(tmp_path: Path) -> None:
    from spannerlm import bundled

    task = bundled.load("helpdesk")
    options: dict[str, Any] = {
        "prompts": task.train_prompts[:12],
        "model": str(task.model_path),
        "features": list(task.features),
        "generation": {"max_new_tokens": task.max_new_tokens},
    }
    with Run.open(tmp_path, budget=12, batch=3, columns={"n": list(range(12))}, **options) as run:
        queries = run.ask(6)
        assert all(q.columns == {"n": task.train_prompts.index(q.prompt)} for q in queries)
        run.tell({q.id: float(len(q.response)) for q in queries[:4]})
        run.add([queries[0].prompt], ["please clean the fan"], [1.0])  # never drawn
        run.save()
        theta = run.policy().theta
    with Run.open(tmp_path) as again:
        assert again.ask(2) == queries[4:6]
        np.testing.assert_array_equal(again.policy().theta, theta)
        again.tell({q.id: float(len(q.response)) for q in queries[4:6]})
        assert len(again.ask(3)) == 3
    answers = spannerlm.load_policy(tmp_path).sample([task.heldout_prompts[0]], 2, rng=np.random.default_rng(0))
    assert len(answers) == 1
