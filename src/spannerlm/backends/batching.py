"""Cutting many draws of many prompts into batches that fit, and what a batch may hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from spannerlm.backends.decoding import Rules, Sequences, sample
from spannerlm.backends.forward import Frontier, Tally, tapped
from spannerlm.backends.prefixes import PrefixStore
from spannerlm.backends.resuming import Resuming
from spannerlm.errors import ModelError
from spannerlm.records import IntArray

MOST_ROWS = 4096
"""Draws of a batch at most: the more, the more share their first tokens; beyond, even small models gain little."""
ROOM = 64
"""New tokens that the cache has room for at first; most replies end before their limit."""
CPU_BYTES = 2**30
"""Memory that an automatic batch may take on a CPU; on a GPU it is half of what is free."""


@dataclass(frozen=True)
class Piece:
    """Draws ``start`` .. ``start + n - 1`` of one prompt, in one batch."""

    prompt: int
    start: int
    n: int


def plan(lengths: Sequence[int], n: int, rows: int) -> list[list[Piece]]:
    """Batches of at most ``rows`` draws, prompts of similar length together, so that little is padded."""
    batches: list[list[Piece]] = []
    room = 0
    for i in np.argsort(lengths, kind="stable").tolist():
        start = 0
        while start < n:
            if room == 0:
                batches.append([])
                room = rows
            size = min(room, n - start)
            batches[-1].append(Piece(i, start, size))
            start, room = start + size, room - size
    return batches


def sample_batches(
    model: Any,
    prompts: Sequence[Sequence[int]],
    n: int,
    rules: Rules,
    seeds: IntArray,
    rows: int,
    tally: Tally,
    store: PrefixStore | None = None,
) -> list[Sequences]:
    """Blocks of sequences: ``prompt`` is the index in ``prompts``, ``first`` the draw's number (of n) at that prompt.

    The uniforms of prompt i come from ``seeds[i]``, row by row, so the cutting into batches changes nothing. With a
    ``store`` no token that it knows is encoded again, and it gets to know those that are encoded.
    """
    streams = [np.random.default_rng(int(seed)) for seed in seeds]
    layers = tuple(sorted({layer for _, layer in rules.pools.values()}))
    blocks: list[Sequences] = []
    for batch in plan([len(p) for p in prompts], n, rows):
        index = np.array([piece.prompt for piece in batch])
        own = rules.of(index)
        u = np.zeros((sum(piece.n for piece in batch), own.limit))
        ends = np.cumsum([piece.n for piece in batch])
        for piece, end, limit in zip(batch, ends.tolist(), own.limits.tolist(), strict=True):
            u[end - piece.n : end, :limit] = streams[piece.prompt].random((piece.n, limit))
        ids = [tuple(prompts[i]) for i in index]
        with torch.inference_mode(), tapped(model, layers) as states:
            frontier = Frontier(model, states, len(u), max(map(len, ids)) + min(own.limit, ROOM), tally)
            resuming = None
            if store is not None and frontier.storable:
                fresh = partial(Frontier, model, states, tally=tally)
                resuming = Resuming(store, layers, ids, frontier, fresh, rows)
            start = frontier.prefill(ids) if resuming is None else resuming.start()
            found = sample(frontier, start, np.array([piece.n for piece in batch]), u, own, resuming)
        blocks += [_numbered(block, batch) for block in found if len(block.prompt)]
    return blocks


def rows_that_fit(config: Any, device: torch.device, itemsize: int, length: int) -> int:
    """Rows of ``length`` tokens whose cache and next-token distributions fit in memory, 1 to ``MOST_ROWS``."""
    budget = CPU_BYTES if device.type != "cuda" else torch.cuda.mem_get_info(device)[0] // 2
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = 4 * config.num_hidden_layers * heads * width * itemsize * length  # keys and values, buffers that double
    distributions = 4 * 8 * config.vocab_size  # float64 probabilities, their sums, two temporaries
    return int(min(MOST_ROWS, max(1, budget // (cache + distributions))))


def check_context(config: Any, prompts: Sequence[Sequence[int]], limits: Sequence[int]) -> None:
    """ModelError where a prompt and the tokens that may follow it exceed the positions that the model knows."""
    context = getattr(config, "max_position_embeddings", None)
    pairs = [(len(prompt), int(limit)) for prompt, limit in zip(prompts, limits, strict=True)]
    longest, tokens = max(pairs, key=sum, default=(0, 0))
    if context is not None and longest + tokens > context:
        raise ModelError(
            f"a prompt has {longest} tokens and {tokens} more are asked for, but the model's context holds {context}; "
            f"shorten the prompt or lower max_new_tokens (at most {max(context - longest, 0)} fit)"
        )


@contextmanager
def memory_named(rows: int) -> Iterator[None]:
    """Turn a GPU's running out of memory into a ModelError that says which number to lower."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise ModelError(f"the GPU ran out of memory with batches of {rows}; lower batch_size ({error})") from error


def _numbered(block: Sequences, batch: Sequence[Piece]) -> Sequences:
    """The block with prompts and draws numbered as the caller knows them."""
    offsets = np.cumsum([0] + [piece.n for piece in batch[:-1]])
    shift = np.array([piece.start for piece in batch]) - offsets
    prompts = np.array([piece.prompt for piece in batch])
    return replace(block, prompt=prompts[block.prompt], first=block.first + shift[block.prompt])
