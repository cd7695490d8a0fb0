"""A run whose prompts and responses are attacks; raw text comes out of it as it went in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spannerlm import Run
from spannerlm.askdriver import Settings
from spannerlm.explorers import explorer_by_name
from spannerlm.labelfiles import written
from spannerlm.ledger import Ledger
from spannerlm.records import Draws, Spec
from spannerlm.web import export

ODD = ["", "a\0b", "\ud800 alone", "\U0001f600 \u05e9\u05dc\u05d5\u05dd", "\x1b[31mred", "x" * 20_000]


class TextOracle:
    """Each prompt has one response: the text of the same number."""

    dim = 2

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = self.prompts = tuple(texts)

    def draw(self, prompts: Sequence[int], n: int, *, rng: np.random.Generator) -> tuple[Draws, ...]:
        return tuple(Draws(x, (self.texts[x],), np.array([n]), np.array([[float(x), 1.0]])) for x in prompts)


def hostile_run(folder: Path, oracle: TextOracle) -> Run:
    """A run that asks for the rewards of all texts."""
    n = len(oracle.texts)
    spec = Spec(np.full(n, 1.0 / n), 2, n, None, 4, kl=1.0)
    ledger = Ledger.open(folder, meta={"asked": {}}, prompts=list(oracle.prompts))
    return Run(oracle, explorer_by_name("random-singles"), ledger, spec, Settings(1, {}, None, {}, folder=folder))


def test_odd_texts_go_through_byte_by_byte(tmp_path: Path) -> None:
    with hostile_run(tmp_path, TextOracle(ODD)) as run:
        asked: dict[str, str] = {}
        while queries := run.ask(2, worker="\u202eann"):
            asked |= {query.id: query.response for query in queries}
            run.tell({query.id: 1.0 for query in queries})
        assert sorted(asked.values()) == sorted(ODD)
        rows = [json.loads(line) for line in written(export.rows(run.answers()), "jsonl").splitlines()]
        assert {row["id"]: row["response"] for row in rows} == asked
        assert {row["rater"] for row in rows} == {"\u202eann"}
        assert all(row["prompt"] == row["response"] for row in rows)
