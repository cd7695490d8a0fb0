"""Sampled token sequences -> one record per prompt, each distinct text once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spannerlm.backends.decoding import Sequences
from spannerlm.records import Generated


@dataclass
class _Entry:
    """One distinct text: where its representative sequence stands, and what its draws add up to."""

    text: str
    block: int
    row: int
    logprob: float
    first: int
    count: int
    tokens: int
    """Of all its draws."""


def collapse(
    prompts: Sequence[str],
    blocks: Sequence[Sequences],
    texts: Sequence[Sequence[str]],
    pools: dict[str, tuple[str, int]],
) -> tuple[Generated, ...]:
    """[m] records, one per prompt, of ``blocks`` whose sequences read ``texts``, in order of first appearance.

    Several token sequences of one text are one response, represented by the most probable of them. That choice, unlike
    the first to appear, does not change with the draws once its usual spelling has come up.
    """
    tables: list[dict[str, _Entry]] = [{} for _ in prompts]
    for b, block in enumerate(blocks):
        columns = (block.prompt.tolist(), block.first.tolist(), block.counts.tolist(), block.logprobs.tolist())
        for row, (text, i, first, count, logprob) in enumerate(zip(texts[b], *columns, strict=True)):
            _add(tables[i], _Entry(text, b, row, logprob, first, count, count * block.tokens.shape[1]))
    pooled = [block.pooled(pools) for block in blocks]
    over = [block.ended | block.stopped for block in blocks]
    records = []
    for prompt, table in zip(prompts, tables, strict=True):
        entries = sorted(table.values(), key=lambda e: e.first)
        records.append(
            Generated(
                prompt=prompt,
                responses=tuple(e.text for e in entries),
                counts=np.array([e.count for e in entries], dtype=np.int64),
                logprobs=np.array([e.logprob for e in entries]),
                lengths=np.array([blocks[e.block].tokens.shape[1] for e in entries], dtype=np.int64),
                finished=np.array([over[e.block][e.row] for e in entries], dtype=bool),
                hidden={name: np.stack([pooled[e.block][name][e.row] for e in entries]) for name in pools},
                tokens=sum(e.tokens for e in entries),
            )
        )
    return tuple(records)


def _add(table: dict[str, _Entry], new: _Entry) -> None:
    old = table.get(new.text)
    if old is not None:
        new.count += old.count
        new.tokens += old.tokens
        new.first = min(new.first, old.first)
        if old.logprob >= new.logprob:
            new.block, new.row, new.logprob = old.block, old.row, old.logprob
    table[new.text] = new
