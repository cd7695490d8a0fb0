"""What trainers are given: rows checked against the ledger, laws against exact weights, files read by their tools."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from trl import data_utils

import spannerlm
from spannerlm import bundled
from spannerlm.dialogue import PLAIN, Form
from spannerlm.errors import InputError
from spannerlm.exporting import KINDS, Export, exported, read_run, write_export
from spannerlm.ledger import Ledger
from spannerlm.records import Drawn, Labelled
from spannerlm.tilted import load_policy

TASK = bundled.load("helpdesk")
PROMPTS = list(TASK.train_prompts[:5])
MODEL: dict[str, Any] = {"model": str(TASK.model_path), "prompts": PROMPTS, "features": list(TASK.features)}


def more(prompts: list[str], completions: list[str], opponents: list[str], **columns: Any) -> list[float]:
    """The longer one; equal lengths are a tie, and replies that thank are not compared."""
    gaps = [len(a.split()) - len(b.split()) for a, b in zip(completions, opponents, strict=True)]
    return [0.5 if gap == 0 else float(gap > 0) for gap in gaps]


@pytest.fixture(scope="module")
def rewarded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rewarded") / "my-run"
    spannerlm.explore(**MODEL, reward=TASK.reward, labels=30, draws=600, batch=5, seed=1, run_dir=folder)
    return folder


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared") / "my-pairs"
    options: dict[str, Any] = {"feedback": "comparison", "compare": more, "generation": {"max_new_tokens": 24}}
    spannerlm.explore(**MODEL, **options, labels=24, draws=600, batch=6, seed=1, run_dir=folder)
    return folder


def events(directory: Path) -> list[Any]:
    """An independent reading of the ledger: the outcomes as the explorer saw them."""
    with Ledger.open(directory, read_only=True) as ledger:
        return list(ledger.events())


@pytest.mark.parametrize(
    "values", [[1, "x"], [{"a": 1}, [1]], [2**70, 1], [{"k": [1, {"z": 1}]}, None], [{}, {}], [True, 2]]
)
def test_values_that_parquet_cannot_hold_are_named_and_nothing_is_left(values: list[Any], tmp_path: Path) -> None:
    found = Export("prompts", tuple({"prompt": "a", "level": value} for value in values), {}, {"run": "r"})
    for name in ("rows.parquet", "rows"):
        with pytest.raises(InputError, match=r"level: values that one column of parquet cannot hold .*write to .jsonl"):
            write_export(found, tmp_path / name)
        assert not (tmp_path / name).exists()
    write_export(found, tmp_path / "rows.jsonl")
    assert [json.loads(line)["level"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == values
    odd = Export("prompts", ({"prompt": "a", "\ud800": 1},), {}, {"run": "r"})
    with pytest.raises(InputError, match="half of a surrogate pair"):
        write_export(odd, tmp_path / "rows.parquet")


def test_rewards_are_the_ledgers_labels(rewarded: Path) -> None:
    seen = [label for event in events(rewarded) if isinstance(event, Labelled) for label in event.labels]
    rows = exported(rewarded, "reward").rows
    assert [(r["prompt"], r["completion"], r["reward"]) for r in rows] == [
        (PROMPTS[label.prompt], label.response, label.value) for label in seen
    ]
    assert len(rows) == 30


def test_pairs_of_rewards_are_of_one_prompt_each_response_once_and_differ(rewarded: Path) -> None:
    known: dict[tuple[str, str], float] = {
        (r["prompt"], r["completion"]): r["reward"] for r in exported(rewarded, "reward").rows
    }
    for margin in (0.0, 0.3):
        found = exported(rewarded, "preference", margin=margin)
        used = Counter((r["prompt"], text) for r in found.rows for text in (r["chosen"], r["rejected"]))
        assert set(used.values()) == {1}
        for row in found.rows:
            gap = known[row["prompt"], row["chosen"]] - known[row["prompt"], row["rejected"]]
            assert gap == row["chosen_reward"] - row["rejected_reward"] > margin
        best = defaultdict(lambda: -np.inf)
        for (prompt, _), value in known.items():
            best[prompt] = max(best[prompt], value)
        tops = {row["prompt"]: row["chosen_reward"] for row in reversed(found.rows)}
        assert all(tops[prompt] == best[prompt] for prompt in tops)
    assert len(exported(rewarded, "preference", margin=0.3).rows) < len(exported(rewarded, "preference").rows)


def test_comparisons_are_pairs_and_ties_are_counted(compared: Path) -> None:
    labels = [label for event in events(compared) if isinstance(event, Labelled) for label in event.labels]
    wanted = Counter(
        (PROMPTS[x.prompt], *((x.response, x.opponent) if x.value == 1.0 else (x.opponent, x.response)))
        for x in labels
        if x.value != 0.5
    )
    found = exported(compared, "preference")
    assert Counter((r["prompt"], r["chosen"], r["rejected"]) for r in found.rows) == wanted
    assert sum(found.left_out.values()) == sum(label.value == 0.5 for label in labels)


def test_draws_of_the_policy_have_its_exact_weights_on_what_was_drawn(rewarded: Path) -> None:
    """Counts times exp(score / beta), written anew from the ledger's events; the base law fails the same test."""
    policy: Any = load_policy(rewarded)
    weights: dict[str, Counter[str]] = defaultdict(Counter)
    base: dict[str, Counter[str]] = defaultdict(Counter)
    for event in events(rewarded):
        for record in event.draws if isinstance(event, Drawn) else ():
            scores = np.exp(record.features @ policy.theta / policy.beta)
            for text, count, score in zip(record.responses, record.counts, scores, strict=True):
                weights[PROMPTS[record.prompt]][text] += count * score
                base[PROMPTS[record.prompt]][text] += count
    n = 2000
    rows = exported(rewarded, "sft", n=n, seed=3).rows
    assert len(rows) == n * len(PROMPTS)
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        seen[row["prompt"]][row["completion"]] += 1

    def distance(law: dict[str, Counter[str]]) -> float:
        """Largest deviation of a frequency, in standard errors."""
        worst = 0.0
        for prompt, table in law.items():
            total = sum(table.values())
            for text, weight in table.items():
                p = weight / total
                if n * p > 10:
                    worst = max(worst, abs(seen[prompt][text] / n - p) / np.sqrt(p * (1 - p) / n))
        return worst

    assert distance(weights) < 4.5
    assert distance(base) > 10


def test_pairs_of_the_policy_are_two_texts_of_one_prompt(rewarded: Path) -> None:
    policy: Any = load_policy(rewarded)
    rows = exported(rewarded, "policy-preference", n=50).rows
    past = read_run(rewarded)
    score = {
        (PROMPTS[x], text): float(phi @ policy.theta)
        for x, d in past.draws.items()
        for text, phi in zip(d.responses, d.features, strict=True)
    }
    assert all(row["chosen"] != row["rejected"] for row in rows)
    gaps = [score[r["prompt"], r["chosen"]] - score[r["prompt"], r["rejected"]] for r in rows]
    assert np.mean(gaps) > 0.1


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("conversational", [False, True])
def test_what_is_written_is_read_by_datasets_and_is_what_trl_takes(
    kind: Any, conversational: bool, rewarded: Path, tmp_path: Path
) -> None:
    found = exported(rewarded, kind, conversational=conversational)
    write_export(found, tmp_path / "set")
    write_export(found, tmp_path / "rows.parquet")
    write_export(found, tmp_path / "rows.jsonl")
    loaded = datasets.load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.to_list() == list(found.rows)
    assert pq.read_table(tmp_path / "rows.parquet").to_pylist() == list(found.rows)
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == list(found.rows)
    assert data_utils.is_conversational(loaded[0]) is conversational
    columns = {"preference": {"prompt", "chosen", "rejected"}, "sft": {"prompt", "completion"}, "prompts": {"prompt"}}
    columns["policy-preference"], columns["reward"] = columns["preference"], columns["sft"] | {"reward"}
    assert columns[kind] <= set(loaded.column_names)
    text = (tmp_path / "set" / "README.md").read_text()
    assert '| run | "my-run" |' in text
    assert str(tmp_path) not in text
    assert str(TASK.model_path) not in text


def test_the_system_prompt_comes_first(compared: Path) -> None:
    past = read_run(compared)
    assert past.form == PLAIN
    from spannerlm.exporting import _messages

    assert [m["role"] for m in _messages("prompt", "hi", Form("Be kind."))] == ["system", "user"]


def test_the_same_seed_gives_the_same_rows_and_runs_of_ask_are_exported_too(tmp_path: Path) -> None:
    from spannerlm.environments import environment

    with spannerlm.Run.open(tmp_path / "run", env=environment("rare-skill", seed=1), budget=8) as run:
        for i, query in enumerate(run.ask(4, worker="ann")):
            run.tell(query.id, float(i))
        run.skip(run.ask(1, worker="ann")[0].id)
        run.ask(1, worker="ann")
        run.save()
    found = exported(tmp_path / "run", "reward")
    assert [row["reward"] for row in found.rows] == [0.0, 1.0, 2.0, 3.0]
    assert sum(found.left_out.values()) == 2
    assert exported(tmp_path / "run", "sft", seed=1).rows == exported(tmp_path / "run", "sft", seed=1).rows
    assert exported(tmp_path / "run", "sft", n=9, seed=1).rows != exported(tmp_path / "run", "sft", n=9, seed=2).rows


def export_of(*texts: str) -> Export:
    return Export("sft", tuple({"prompt": "p", "completion": t} for t in texts), {}, {"run": "r"})


def test_odd_texts_come_back_byte_by_byte(tmp_path: Path) -> None:
    texts = ["", "\0", "😀", "\u202eabc", "=1+1", "\r\n", 'a,b"c', "e\u0301"]
    write_export(export_of(*texts), tmp_path / "a.parquet")
    assert [r["completion"] for r in pq.read_table(tmp_path / "a.parquet").to_pylist()] == texts
    write_export(export_of(*texts, "\ud800"), tmp_path / "a.jsonl")
    assert [json.loads(line)["completion"] for line in (tmp_path / "a.jsonl").read_text().splitlines()] == [
        *texts,
        "\ud800",
    ]
    with pytest.raises(InputError, match="row 8: half of a surrogate pair"):
        write_export(export_of(*texts, "\ud800"), tmp_path / "b.parquet")
    assert not (tmp_path / "b.parquet").exists()
    write_export(export_of("=1+1", "@x"), tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text().splitlines()[1:] == ["p,'=1+1", "p,'@x"]


def test_nothing_is_replaced_and_wrong_names_are_told(rewarded: Path, tmp_path: Path) -> None:
    found = export_of("a")
    (tmp_path / "there.jsonl").write_text("mine")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")
    for name, says in (
        ("there.jsonl", "expected a name that is free"),
        ("link.jsonl", "expected a name that is free"),
        ("no/such/folder/a.jsonl", "make it first"),
        ("a.pkl", "expected a name that ends in .jsonl, .parquet or .csv"),
    ):
        with pytest.raises(InputError, match=says):
            write_export(found, tmp_path / name)
    assert (tmp_path / "there.jsonl").read_text() == "mine"
    with pytest.raises(InputError, match="expected at least one row"):
        write_export(export_of(), tmp_path / "empty.jsonl")
    with pytest.raises(InputError, match="got lists of messages"):
        write_export(exported(rewarded, "sft", conversational=True), tmp_path / "a.csv")
    with pytest.raises(InputError, match="format: expected one of"):
        exported(rewarded, "dpo")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"found no run\.db"):
        exported(tmp_path, "sft")
    with pytest.raises(InputError, match="n: expected"):
        exported(rewarded, "sft", n=0)


def test_from_the_command_line(rewarded: Path, tmp_path: Path) -> None:
    script = str(Path(sys.executable).with_name("spannerlm"))

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [script, "export", str(rewarded), *arguments], capture_output=True, text=True, check=False
        )

    done = call("--format", "sft", "-n", "2", "--out", str(tmp_path / "a.jsonl"), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["rows"], told["run"], told["format"]) == (10, "my-run", "sft")
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 10
    again = call("--format", "sft", "--out", str(tmp_path / "a.jsonl"))
    assert (again.returncode, "a name that is free" in again.stderr) == (1, True)
    shown = call("--format", "preference", "--out", str(tmp_path / "pairs"))
    assert "rows of preference" in shown.stdout
