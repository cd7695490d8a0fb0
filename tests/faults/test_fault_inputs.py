"""Rows 16, 18 and 22 of the fault table: odd texts, degenerate inputs, files of other makers, through whole runs."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import spannerlm
from spannerlm.errors import InputError, LedgerError, SpannerError
from spannerlm.ledger import Ledger
from spannerlm.records import Generated
from spannerlm.tilted import load_policy, save_policy

ODD = [
    "",
    "\0",
    "a\0b",
    "\ud800",
    "\udfff!",
    "😀👩‍👩‍👧",
    "\u202eevil\u202c",
    "שלום",
    "\r\n\t",
    "e\u0301",
    "\x1b[31mred",
    "<script>",
]
"""Empty, NULs, halves of surrogate pairs, emoji, right-to-left, controls, combining, escape codes, markup."""


class OddModel:
    """A back end of a user's own that answers with odd texts."""

    max_new_tokens, hidden_size = 4, None

    def generate(
        self, prompts: Sequence[str], n: int, *, hidden: Sequence[str], rng: np.random.Generator
    ) -> tuple[Generated, ...]:
        found = []
        for prompt in prompts:
            counts = rng.multinomial(n, np.full(len(ODD), 1 / len(ODD)))
            seen = np.flatnonzero(counts)
            k = len(seen)
            ones = np.ones(k, dtype=np.int64)
            texts = tuple(ODD[i] for i in seen)
            found.append(Generated(prompt, texts, counts[seen], np.full(k, -2.0), ones, ones.astype(bool)))
        return tuple(found)


def lengths(prompts: Sequence[str], completions: Sequence[str]) -> list[list[float]]:
    return [[float(len(text)), float(text.isascii()), float("a" in text)] for text in completions]


def reward(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def test_fault_16_odd_texts_and_a_prompt_of_10_mb_go_through_a_run_byte_by_byte(tmp_path: Path) -> None:
    prompts = ["x" * 10_000_000, "\0é😀\u202e", " leading and trailing "]
    result = spannerlm.explore(
        prompts=prompts, model=OddModel(), features=lengths, reward=reward, labels=20, draws=600, run_dir=tmp_path
    )
    assert result.labels == 20
    assert Ledger.verify(tmp_path).ok
    with Ledger.open(tmp_path, read_only=True) as ledger:
        assert list(ledger.prompts) == prompts
        events = list(ledger.events())
        lines = [json.loads(line) for line in ledger.export()]
    drawn = {text for event in events for draws in getattr(event, "draws", ()) for text in draws.responses}
    labelled = [label for event in events for label in getattr(event, "labels", ())]
    assert drawn == set(ODD)
    assert len(labelled) == 20
    assert all(label.value == len(label.response) for label in labelled)
    assert lines


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_fault_18_features_that_are_no_numbers_are_named_before_a_label_is_bought(bad: float, tmp_path: Path) -> None:
    def features(prompts: Sequence[str], completions: Sequence[str]) -> list[list[float]]:
        return [[bad if text == "שלום" else 1.0] for text in completions]

    bought: list[str] = []

    def paid(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        bought.extend(completions)
        return [1.0] * len(completions)

    with pytest.raises(InputError, match=r"features: expected finite numbers, got .* for 'שלום'"):
        spannerlm.explore(
            prompts=["p"], model=OddModel(), features=features, reward=paid, labels=5, draws=200, run_dir=tmp_path
        )
    assert not bought


@pytest.mark.parametrize("x", [1, 2])
@pytest.mark.parametrize("what", ["zero", "constant", "equal rewards"])
@pytest.mark.parametrize("explorer", ["directed", "spanner-sampling", "passive"])
def test_fault_18_what_tells_nothing_leaves_the_base_policy_at_worst(x: int, what: str, explorer: str) -> None:
    def features(texts: Sequence[str], completions: Sequence[str]) -> list[list[float]]:
        if what == "equal rewards":
            return lengths(texts, completions)
        return [[0.0 if what == "zero" else 3.0] * 3 for _ in completions]

    def flat(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        return [1.0] * len(completions) if what == "equal rewards" else reward(prompts, completions)

    result = spannerlm.explore(
        prompts=[f"p{i}" for i in range(x)],
        model=OddModel(),
        features=features,
        reward=flat,
        explorer=explorer,
        labels=8,
        draws=400,
    )
    assert np.isfinite(result.theta).all()
    if what != "equal rewards":  # what is learned cannot matter: all scores of a prompt are equal
        [phi] = {tuple(row) for row in features(["p"] * len(ODD), ODD)}
        scores = np.array([phi] * len(ODD)) @ result.theta
        assert np.ptp(scores) == 0.0


def test_fault_18_no_prompts_is_a_named_error() -> None:
    with pytest.raises(InputError, match="prompts: expected a list of at least one text"):
        spannerlm.explore(prompts=[], model=OddModel(), features=lengths, reward=reward, labels=5)


class Evil:
    """What would run if it were unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("unpickled"),))


@pytest.mark.parametrize("kind", ["pickle", "pt"])
@pytest.mark.parametrize("name", ["policy.safetensors", "policy.json", "run.db"])
def test_fault_22_a_pickle_is_refused_and_never_run(
    kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    save_policy(folder, np.ones(3), 1.0, {"model": None, "options": {}, "features": None, "coverage": 2.0})
    if kind == "pt":
        torch.save({"theta": Evil()}, folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(Evil()))
    before = (folder / name).read_bytes()
    with pytest.raises(SpannerError):
        Ledger.open(folder) if name == "run.db" else load_policy(folder, model=OddModel(), features=lengths)  # type: ignore[arg-type]
    if name == "run.db":
        assert not Ledger.verify(folder).ok
        with pytest.raises(LedgerError):
            Ledger.restore(folder / name, tmp_path / "other")
    assert (folder / name).read_bytes() == before
    assert not (tmp_path / "unpickled").exists()
