"""ask / tell where something breaks: a full disk, a SIGKILL at each point, a new process; and on a real model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_asking import finish, opened, worth
from test_asking_edges import asked_of, slow_theta

from spannerlm import Run
from spannerlm.errors import LedgerError
from spannerlm.ledger import Ledger


class Full:
    """A disk that is full at the n-th time that a point of the ledger is reached, and has room again then."""

    def __init__(self, point: str, at: int = 1) -> None:
        self.point, self.left = point, at

    def __call__(self, point: str) -> None:
        self.left -= point == self.point
        if point == self.point and self.left == 0:
            raise LedgerError("no space left")


def broken_once(run: Run, point: str, act: Callable[[], object], at: int = 1) -> None:
    journal = run._ledger._journal
    former, journal.trace = journal.trace, Full(point, at)
    with pytest.raises(LedgerError, match="no space left"):
        act()
    journal.trace = former


@pytest.mark.parametrize("point", ["before-drawn", "before-request", "before-claim"])
def test_a_run_whose_disk_was_full_goes_on_in_the_same_process_as_if_nothing_had_been(
    tmp_path: Path, point: str
) -> None:
    with opened(tmp_path / "whole") as whole, opened(tmp_path / "broken") as broken:
        broken_once(broken, point, lambda: broken.ask(4))
        assert broken.ask(4) == whole.ask(4)
        assert broken.counts == whole.counts


@pytest.mark.parametrize(("point", "at"), [("before-reply", 1), ("before-labelled", 1), ("before-revise", 2)])
def test_an_answer_that_could_not_be_written_is_told_again(tmp_path: Path, point: str, at: int) -> None:
    with opened(tmp_path / "whole") as whole, opened(tmp_path / "broken") as broken:
        for run in (whole, broken):
            first, late = run.ask(4), run.ask(6)[4:]
            run.tell({query.id: 0.5 for query in first})
            run.release([query.id for query in late])
        answers = {query.id: 1.5 for query in [*first, *late]}
        whole.tell(answers, revise=True)
        broken_once(broken, point, lambda: broken.tell(answers, revise=True), at)
        broken.tell(answers, revise=True)
        np.testing.assert_allclose(broken.policy().theta, whole.policy().theta, rtol=0, atol=1e-12)
        np.testing.assert_allclose(broken.policy().theta, slow_theta(broken), rtol=0, atol=1e-12)
        assert (broken.counts, broken.answers()) == (whole.counts, whole.answers())


@pytest.mark.parametrize("point", ["before-request", "before-claim", "before-reply", "before-labelled"])
def test_labels_that_could_not_be_written_are_added_again(tmp_path: Path, point: str) -> None:
    with opened(tmp_path) as run:
        query = run.ask(1)[0]
        given = [query.prompt], [query.response], [1.5]
        broken_once(run, point, lambda: run.add(*given))
        run.add(*given)
        assert (run.counts.given, run.counts.charged) == (1, 1)
        run.tell(query.id, 0.5)
        theta = run.policy().theta
        assert np.abs(theta).max() > 0.0
    with opened(tmp_path) as again:
        np.testing.assert_allclose(again.policy().theta, theta, rtol=0, atol=1e-12)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_asking import opened, worth
import spannerlm.ledger.journal as journal

point, folder = sys.argv[1], Path(sys.argv[2])
with opened(folder) as run:
    queries = run.ask(4)
    run.add([queries[0].prompt], [queries[0].response], [0.1])
    run.tell(queries[0].id, 0.5)
    print(*(q.id for q in queries), flush=True)
    def trace(name):
        if name == point:
            os.kill(os.getpid(), signal.SIGKILL)
    run._ledger._journal.trace = trace
    if point.startswith("after-revise") or point.startswith("before-revise"):
        run.tell(queries[0].id, 0.75, revise=True)
    run.tell({q.id: worth(q) for q in queries[1:]})
    print("acknowledged", flush=True)
    run.ask(8)
    print("asked", flush=True)
"""


@pytest.mark.parametrize(
    "point",
    [f"{when}-{kind}" for when in ("before", "after") for kind in ("reply", "labelled", "claim", "request", "revise")],
)
def test_sigkill_at_each_point_of_a_tell_loses_nothing_that_was_acknowledged(tmp_path: Path, point: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, point, str(tmp_path / "run"), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    lines = done.stdout.splitlines()
    ids = lines[0].split()
    with opened(tmp_path / "run") as again:
        status = {answer.query.id: (answer.status, answer.value) for answer in again.answers()}
        told = [again.query(id) for id in ids[1:]]
        recorded = "acknowledged" in lines or point in ("after-reply", "before-labelled", "after-labelled")
        expected = [("label", worth(q)) if recorded else ("waiting", None) for q in told]
        assert [status[q.id] for q in told] == expected  # all of the batch or nothing of it
        assert status[ids[0]] == ("label", 0.75 if point == "after-revise" else 0.5)
        np.testing.assert_allclose(slow_theta(again), again.policy().theta, rtol=0, atol=1e-12)
        if not recorded:
            assert again.ask(3) == told
        again.tell({q.id: worth(q) for q in told})
        finish(again)
        assert again.counts.labels == 40
        ids_asked = [answer.query.id for answer in again.answers()]
        assert len(set(ids_asked)) == len(ids_asked)
    assert Ledger.verify(tmp_path / "run").ok


@pytest.fixture(scope="module")
def helpdesk() -> dict[str, Any]:
    from spannerlm import bundled

    task = bundled.load("helpdesk")
    return {
        "prompts": task.train_prompts[:6],
        "model": str(task.model_path),
        "features": list(task.features),
        "generation": {"max_new_tokens": task.max_new_tokens, "stop": list(task.stop)},
    }


def test_where_labels_are_not_fresh_nobody_rates_a_response_twice(helpdesk: dict[str, Any], tmp_path: Path) -> None:
    with Run.open(tmp_path, budget=24, batch=4, overlap=2, explorer="random-singles", **helpdesk) as run:
        names = ["ann", "bob", "cho"]
        rng = np.random.default_rng(1)
        while found := [q for name in rng.permutation(names) if (q := run.ask(2, worker=str(name)))]:
            run.tell({query.id: float(len(query.response)) for queries in found for query in queries})
        raters: dict[Any, list[str]] = {}
        for answer in run.answers():
            raters.setdefault(asked_of(answer.query), []).append(answer.query.worker)
        assert run.counts.labels == 24
        assert all(len(who) == len(set(who)) == 2 for who in raters.values())


def test_a_new_process_needs_the_directory_alone_and_no_model_to_tell(helpdesk: dict[str, Any], tmp_path: Path) -> None:
    with Run.open(tmp_path / "run", budget=8, batch=4, **helpdesk) as run:
        queries = run.ask(4)
    code = (
        "import json, sys\nfrom spannerlm import Run\n"
        "with Run.open(sys.argv[1]) as run:\n"
        "    run.tell({name: 1.0 for name in json.loads(sys.argv[2])})\n"
        "    run.save()\n"
        "    print(run.counts.labels, run._oracle._loaded)\n"
    )
    told = json.dumps([query.id for query in queries])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run"), told], capture_output=True, text=True, env=environment
    )
    assert done.stdout == "4 None\n", done.stderr
    assert (tmp_path / "run" / "policy.safetensors").exists()
