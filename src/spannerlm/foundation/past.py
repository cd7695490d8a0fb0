"""The pool that a run has left: its draws, its labels and its features, for a coverage report without new costs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from spannerlm.config import RunConfig, load_config
from spannerlm.errors import InputError
from spannerlm.features import Concatenation, FeatureMap, NGrams, feature_map
from spannerlm.foundation.gather import Gathered, Source, declined, graded, map_name
from spannerlm.foundation.pool import Labels, Pool
from spannerlm.ledger import Counts, Ledger
from spannerlm.oracle import joined
from spannerlm.records import Drawn, Draws, FloatArray, Generated, Label, Labelled
from spannerlm.tasks import Task, load_task


@dataclass(frozen=True, eq=False)
class Past:
    """What a run's directory told."""

    config: RunConfig
    task: Task
    found: Gathered


def gather_run(directory: Path) -> Past:
    """The pool of the prompts that a run explored, from its directory, which is only read.

    Maps: the run's own, its parts where it has several, and n-grams of the texts. Labels are those that the explorer
    chose: they tell of features, not of rates. Prompts with fewer draws than others are left out. Cost: none.
    """
    if not (directory / "config.yaml").exists():
        raise InputError(f"{directory}: expected the directory of a run, found no config.yaml in it")
    config = load_config(directory / "config.yaml")
    task = load_task(config)
    with Ledger.open(directory, read_only=True) as ledger:
        prompts, spec, counts = ledger.prompts, ledger.meta.get("features"), ledger.counts
        draws, labels = _events(ledger)
    if not draws or spec is None:
        raise InputError(f"{directory}: expected a run with draws and stored features, found none: let it draw first")
    most = max(int(d.counts.sum()) for d in draws.values())
    kept = [x for x in sorted(draws) if int(draws[x].counts.sum()) == most]
    warnings = ["Draws and labels are those of the run; its labels were chosen, so they tell nothing of rates."]
    if len(kept) < len(draws):
        warnings.append(f"{len(draws) - len(kept)} prompts with fewer draws than {most:,} are left out.")
    phi = feature_map(spec)
    maps = _slices(config, task, phi)
    records = tuple(_with_ngrams(draws[x], prompts[x]) for x in kept)
    source = Source(task.truth, task.truth is not None, columns=task.columns)
    pool = Pool(
        prompts=tuple(prompts[x] for x in kept),
        draws=records,
        maps={**maps, "ngrams": slice(phi.dim, phi.dim + NGrams().dim)},
        rewards=graded(task.truth, records, prompts, source) if task.truth is not None else None,
        noise_std=getattr(task.reward, "std", 0.0),
        labels=_rows(records, kept, labels),
    )
    return Past(config, task, Gathered(pool, _spent(counts), (*warnings, *declined(pool))))


def _events(ledger: Ledger) -> tuple[dict[int, Draws], list[Label]]:
    """Base draws of explored prompts, merged by prompt, and the rewards bought."""
    found: dict[int, list[Draws]] = defaultdict(list)
    labels: list[Label] = []
    for entry in ledger.replay():
        event = entry.event
        if isinstance(event, Drawn) and entry.purpose == "explore" and not event.exhausted:
            for record in event.draws:
                found[record.prompt].append(record)
        elif isinstance(event, Labelled):
            labels += [a for a in event.labels if a.value is not None and a.charged and a.opponent is None]
    return {x: joined(records) for x, records in found.items()}, labels


def _slices(config: RunConfig, task: Task, phi: FeatureMap) -> dict[str, slice]:
    """The run's map as a whole, and each of its parts where it has several."""
    spec = config.features or task.features
    whole = {map_name(spec if isinstance(spec, (str, Mapping)) or len(spec) > 1 else spec[0]): slice(0, phi.dim)}
    if not isinstance(phi, Concatenation) or len(phi.parts) < 2 or not isinstance(spec, (list, tuple)):
        return whole
    bounds = pairwise(accumulate((part.dim for part in phi.parts), initial=0))
    return {**{map_name(part): slice(*ends) for part, ends in zip(spec, bounds, strict=True)}, **whole}


def _with_ngrams(draws: Draws, prompt: str) -> Draws:
    """The record with the n-grams of its texts beside its features."""
    n = len(draws.responses)
    none = np.zeros(n)
    text = Generated(prompt, draws.responses, draws.counts, none, none.astype(np.int64), none > 0.0)
    return Draws(draws.prompt, draws.responses, draws.counts, np.hstack([draws.features, NGrams()(text)]))


def _rows(records: tuple[Draws, ...], kept: list[int], labels: list[Label]) -> Labels | None:
    """The labels of responses that are in the pool; None where there are none."""
    place = {x: i for i, x in enumerate(kept)}
    index = [{response: i for i, response in enumerate(d.responses)} for d in records]
    found: list[tuple[int, int, Any]] = []
    for label in labels:
        x = place.get(label.prompt)
        row = None if x is None else index[x].get(label.response)
        if x is not None and row is not None:
            found.append((x, row, label.value))
    if not found:
        return None
    prompts, rows = (np.array([entry[i] for entry in found], dtype=np.int64) for i in (0, 1))
    values: FloatArray = np.array([entry[2] for entry in found], dtype=np.float64)
    return Labels(prompts, rows, values, random=False)


def _spent(counts: Counts) -> Counts:
    """What the run spent; the report itself costs nothing."""
    return Counts(eval_draws=counts.draws, eval_labels=counts.labels, skips=counts.skips)
