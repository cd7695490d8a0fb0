"""What a run knows, as tables that trainers take: TRL's preference, prompt-completion and prompt-only data.

Everything is read from the run's directory; no model is loaded and nothing is drawn. Responses "of the policy" are the
run's own stored draws, resampled with the policy's weights (THEORY 1): counts times exp(<theta, phi> / beta).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spannerlm.dialogue import Form, Message
from spannerlm.errors import InputError
from spannerlm.files import durable_write, make_folder, sync_folder
from spannerlm.labelfiles import written
from spannerlm.ledger import Ledger
from spannerlm.oracle import joined
from spannerlm.policy import tilt
from spannerlm.records import Drawn, Draws, FloatArray
from spannerlm.tilted import read_policy

Kind = Literal["preference", "policy-preference", "sft", "reward", "prompts"]
Row = dict[str, Any]

KINDS: dict[str, str] = {
    "preference": "pairs from what was labelled: prompt, chosen, rejected",
    "policy-preference": "pairs of a draw of the policy and one of the base model: prompt, chosen, rejected",
    "sft": "draws of the policy: prompt, completion",
    "reward": "what was labelled, with its reward: prompt, completion, reward",
    "prompts": "the prompts alone",
}
"""Format -> what its rows are."""
TEXTS = ("prompt", "chosen", "rejected", "completion")


@dataclass(frozen=True)
class Export:
    """Rows, and what was left out of them."""

    kind: Kind
    rows: tuple[Row, ...]
    left_out: Mapping[str, int]
    """Reason -> how many labels or prompts."""
    about: Mapping[str, Any]
    """Where the rows come from."""


@dataclass(frozen=True, eq=False)
class Past:
    """What a run directory holds."""

    name: str
    prompts: tuple[str, ...]
    columns: Mapping[str, Sequence[Any]]
    explored: tuple[int, ...]
    """Prompts with draws to learn from."""
    draws: Mapping[int, Draws]
    labels: tuple[tuple[int, str, str | None, str, float], ...]
    """(prompt, response, opponent, rater, value) of each label with a value."""
    unlabelled: Mapping[str, int]
    """Status -> labels without a value."""
    meta: Mapping[str, Any]
    form: Form


def read_run(directory: Path) -> Past:
    """What the ledger of a run holds. `InputError` where there is no run."""
    if not (directory / "run.db").exists():
        raise InputError(f"{directory}: expected the directory of a run, found no run.db in it")
    with Ledger.open(directory, read_only=True) as ledger:
        meta, prompts = ledger.meta, ledger.prompts
        labels, missing = [], defaultdict[str, int](int)
        for claim, status, value in ledger.purchases():
            if status == "label" and value is not None:
                labels.append((claim.prompt, claim.response, claim.opponent, claim.rater, value))
            else:
                missing[status or "waiting"] += 1
        records: dict[int, list[Draws]] = defaultdict(list)
        for event in ledger.events():
            for record in event.draws if isinstance(event, Drawn) else ():
                if record.prefix is None:
                    records[record.prompt].append(record)
    asked = meta.get("asked") or {}
    options = meta.get("options") or {}
    return Past(
        name=directory.resolve().name,
        prompts=prompts,
        columns=asked.get("columns") or {},
        explored=tuple(sorted(records)),
        draws={x: joined(found) for x, found in records.items()},
        labels=tuple(labels),
        unlabelled=dict(missing),
        meta=meta,
        form=Form(options.get("system"), bool(options.get("dialogues"))),
    )


def exported(
    directory: Path,
    kind: Kind,
    *,
    n: int = 4,
    kl: float | None = None,
    margin: float = 0.0,
    conversational: bool = False,
    seed: int = 0,
) -> Export:
    """The rows of a format. Cost: no draws and no labels.

    ``n``: rows of each prompt where the policy is sampled. ``kl``: of the policy, in nats; None: the run's own.
    ``margin``: least difference of rewards of a pair. ``conversational``: texts as lists of messages, with the run's
    system prompt in front; always where its prompts are whole conversations. The same ``seed`` gives the same rows.
    `InputError` where the run cannot give them.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InputError(f"n: expected a whole number of at least 1, got {n!r}")
    if kind not in KINDS:
        raise InputError(f"format: expected one of {', '.join(KINDS)}, got {kind!r}")
    past = read_run(directory)
    about = _about(directory, past, kind, seed)
    rng = np.random.default_rng([seed, 31])
    left_out = {f"labels without a value: {status}": k for status, k in past.unlabelled.items()}
    if kind == "preference":
        rows, skipped = _labelled_pairs(past, margin)
        left_out |= skipped
    elif kind == "reward":
        rows = _rewards(past)
    elif kind == "prompts":
        rows = [{"prompt": text} | {k: v[x] for k, v in past.columns.items()} for x, text in enumerate(past.prompts)]
        left_out = {}
    else:
        laws, about["kl"], about["beta"] = _laws(directory, past, kl)
        make = _drawn_pairs if kind == "policy-preference" else _drawn
        rows = make(past, laws, n, rng)
        left_out = {}
    if conversational or past.form.dialogues:
        rows = [{k: _messages(k, v, past.form) if k in TEXTS else v for k, v in row.items()} for row in rows]
    return Export(kind, tuple(rows), {k: v for k, v in left_out.items() if v}, {**about, "rows": len(rows)})


def _rewards(past: Past) -> list[Row]:
    return [
        {"prompt": past.prompts[x], "completion": response, "reward": value, "rater": rater}
        for x, response, opponent, rater, value in past.labels
        if opponent is None
    ]


def _labelled_pairs(past: Past, margin: float) -> tuple[list[Row], dict[str, int]]:
    """Comparisons as they were answered; of rewards the best of a prompt with the worst, the second best with the
    second worst, and so on, each response once, while their rewards differ by more than the margin."""
    rows: list[Row] = []
    ties, rewards = 0, dict[int, dict[str, list[float]]]()
    for x, response, opponent, rater, value in past.labels:
        if opponent is None:
            rewards.setdefault(x, {}).setdefault(response, []).append(value)
        elif value == 0.5:
            ties += 1
        else:
            better, worse = (response, opponent) if value > 0.5 else (opponent, response)
            rows.append({"prompt": past.prompts[x], "chosen": better, "rejected": worse, "rater": rater})
    close = 0
    for x, known in sorted(rewards.items()):
        order = sorted(known, key=lambda text: (-float(np.mean(known[text])), text))
        means = {text: float(np.mean(known[text])) for text in known}
        for better, worse in zip(order[: len(order) // 2], reversed(order), strict=False):
            gap = means[better] - means[worse]
            if gap <= margin:
                close += 1
                continue
            pair = {"prompt": past.prompts[x], "chosen": better, "rejected": worse}
            rows.append({**pair, "chosen_reward": means[better], "rejected_reward": means[worse]})
    return rows, {"comparisons that were ties": ties, f"pairs that differ by {margin:g} or less": close}


Law = tuple[FloatArray, FloatArray]
"""[k] shares of a prompt's distinct draws under the base model and under the policy."""


def _laws(directory: Path, past: Past, kl: float | None) -> tuple[dict[int, Law], float | None, float]:
    """Prompt -> laws on its draws; the KL that was asked for, and beta."""
    theta, beta, _ = read_policy(directory, kl)
    if theta.ndim == 2 or past.meta.get("turns") is not None:
        raise InputError(
            f"{directory}: expected a policy of whole responses, got one of steps or turns: draw from it with "
            "`spannerlm sample`"
        )
    laws = {}
    for x in past.explored:
        record = past.draws[x]
        if record.features.shape[1] != len(theta):
            raise InputError(
                f"{directory}: theta has {len(theta)} entries, the draws' features {record.features.shape[1]}"
            )
        base = record.counts / record.counts.sum()
        scores = (record.features @ theta)[None]
        laws[x] = (base, np.asarray(tilt(base[None], scores, beta)[0]))
    if not laws:
        raise InputError(f"{directory}: expected a run that has drawn, found no draws")
    return laws, past.meta.get("kl") if kl is None else kl, beta


def _drawn(past: Past, laws: Mapping[int, Law], n: int, rng: np.random.Generator) -> list[Row]:
    """``n`` independent draws of the policy for each prompt."""
    rows = []
    for x, (_, law) in laws.items():
        texts = past.draws[x].responses
        rows += [{"prompt": past.prompts[x], "completion": texts[i]} for i in rng.choice(len(law), n, p=law)]
    return rows


def _drawn_pairs(past: Past, laws: Mapping[int, Law], n: int, rng: np.random.Generator) -> list[Row]:
    """``n`` pairs of each prompt: one draw of the policy, and one of the base model that is another text."""
    rows = []
    for x, (base, law) in laws.items():
        texts = past.draws[x].responses
        if len(texts) < 2:
            continue
        for i in rng.choice(len(law), n, p=law):
            rest = np.where(np.arange(len(base)) == i, 0.0, base)
            k = rng.choice(len(base), p=rest / rest.sum())
            rows.append({"prompt": past.prompts[x], "chosen": texts[i], "rejected": texts[k]})
    return rows


def _messages(name: str, text: str, form: Form) -> list[Message]:
    return form.messages(text) if name == "prompt" else [{"role": "assistant", "content": text}]


def _about(directory: Path, past: Past, kind: Kind, seed: int) -> dict[str, Any]:
    """Provenance, without a path of this machine."""
    from importlib.metadata import version

    model = past.meta.get("model")
    found: dict[str, Any] = {
        "run": past.name,
        "format": kind,
        "spannerlm": version("spannerlm"),
        "explorer": past.meta.get("explorer"),
        "model": None if model is None else Path(model).name if Path(model).is_absolute() else model,
        "run_seed": past.meta.get("seed"),
        "seed": seed,
        "labels": len(past.labels),
        "draws": int(sum(record.counts.sum() for record in past.draws.values())),
    }
    head = directory / "run.head"
    if head.exists():
        found["ledger"] = hashlib.sha256(head.read_bytes()).hexdigest()
    return found


# --- files ----------------------------------------------------------------------------------------------------------


def write_export(found: Export, out: Path) -> None:
    """Write the rows: to a .jsonl, .parquet or .csv file, or to a new directory that `datasets.load_dataset` reads,
    with a card. What is there is never replaced. `InputError` for a name or rows that do not fit."""
    if out.exists() or out.is_symlink():
        raise InputError(f"{out}: expected a name that is free, found something there: give another")
    if not out.absolute().parent.is_dir():
        raise InputError(f"{out}: expected a folder to write into, found none: make it first")
    if not found.rows:
        left = "; ".join(f"{number} {why}" for why, number in found.left_out.items())
        raise InputError(f"{found.kind}: expected at least one row, got none{': ' + left if left else ''}")
    suffix = out.suffix.lower()
    if suffix == ".jsonl":
        durable_write(out, written(found.rows, "jsonl"))
    elif suffix == ".csv":
        if any(isinstance(value, list) for value in found.rows[0].values()):
            raise InputError(f"{out}: expected texts in a .csv, got lists of messages: write to .jsonl")
        durable_write(out, written(found.rows, "csv"))
    elif suffix == ".parquet":
        durable_write(out, _parquet(found.rows))
    elif not suffix:
        data = _parquet(found.rows)
        make_folder(out / "data")
        durable_write(out / "data" / "train-00000-of-00001.parquet", data)
        durable_write(out / "README.md", card(found).encode())
        sync_folder(out / "data")
        sync_folder(out)
        return
    else:
        raise InputError(
            f"{out}: expected a name that ends in .jsonl, .parquet or .csv, or a directory, got {suffix!r}"
        )
    sync_folder(out.absolute().parent)


def _parquet(rows: Sequence[Row]) -> bytes:
    """The rows as a parquet file."""
    for number, row in enumerate(rows):
        for text in _strings([*row, *row.values()]):
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise InputError(f"row {number}: half of a surrogate pair, which parquet cannot hold: write to .jsonl")
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.BytesIO()
    for name in names:
        try:
            column = pa.table({name: [row.get(name) for row in rows]})
            pq.write_table(column, io.BytesIO())
        except (pa.ArrowException, OverflowError) as error:
            raise InputError(
                f"{name}: values that one column of parquet cannot hold ({str(error).splitlines()[0]}): write to .jsonl"
            ) from error
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), out)
    return out.getvalue()


def _strings(values: Iterable[Any]) -> Iterable[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            yield from _strings(value)
        elif isinstance(value, dict):
            yield from _strings([*value, *value.values()])


def card(found: Export) -> str:
    """README.md of a dataset: what its rows are and where they come from."""
    size = len(found.rows)
    bounds = ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    category = next((name for most, name in bounds if size < most), "n>1M")
    columns = list(dict.fromkeys(name for row in found.rows for name in row))
    left = "\n".join(f"- {number} {why}" for why, number in found.left_out.items()) or "- nothing"
    facts = "\n".join(f"| {name} | {json.dumps(value)} |" for name, value in found.about.items() if value is not None)
    front = {
        "license": "unknown",
        "tags": ["spannerlm", "trl", found.kind],
        "size_categories": [category],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}],
    }
    head = "\n".join(f"{name}: {json.dumps(value)}" for name, value in front.items())
    return (
        f"---\n{head}\n---\n\n# {found.about['run']}: {found.kind}\n\n{KINDS[found.kind][:1].upper()}"
        f"{KINDS[found.kind][1:]}. Columns: {', '.join(columns)}.\n\n```python\nimport datasets\n\n"
        f'data = datasets.load_dataset("{found.about["run"]}", split="train")  # or wherever this folder lies\n```\n\n'
        f"## Where the rows come from\n\n| | |\n|---|---|\n{facts}\n\nLeft out:\n\n{left}\n"
    )
