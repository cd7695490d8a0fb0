"""Draws in immutable checksummed parquet files (RELIABILITY: written aside, fsynced, renamed; faults 4, 5, 16).

One file holds the draws of one request, one row per distinct response: ``record`` (position in the request),
``prompt`` (index), ``response`` (string, or binary with surrogates passed through where some text is not valid
Unicode), ``count`` and ``features`` (float32 where nothing is lost by it, else float64). Any parquet reader opens it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spannerlm.errors import LedgerCorruptError, LedgerError
from spannerlm.files import durable_write, make_folder, sync_folder
from spannerlm.records import Draws, FloatArray


@dataclass(frozen=True)
class Shard:
    """Where draws were put, and what vouches for them."""

    name: str
    """File name within the folder of shards."""
    sha256: str
    """Hex digest of the file's bytes."""
    size: int
    """Its length in bytes."""


def write_shard(
    folder: Path, name: str, draws: Sequence[Draws], features: FloatArray, *, trace: Callable[[str], None]
) -> Shard:
    """Return the shard that now holds ``draws``, durable before this returns.

    ``features`` [n, d] are those of all draws, stacked, in the type to be stored. Raises LedgerError where the disk
    does not take it; the file then does not exist. ``trace`` is told ``shard-written`` and ``shard-renamed``.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(_table(draws, features), sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    make_folder(folder)
    durable_write(folder / name, data, written=lambda: trace("shard-written"))
    sync_folder(folder)
    trace("shard-renamed")
    return Shard(name, hashlib.sha256(data).hexdigest(), len(data))


def read_shard(folder: Path, shard: Shard, prompts: Sequence[int], sizes: Sequence[int]) -> tuple[Draws, ...]:
    """Return the draws of a shard, bit for bit: record i is of prompt ``prompts[i]`` with ``sizes[i]`` responses.

    Raises LedgerCorruptError if the file is missing or is not the one that was written.
    """
    data = checked_bytes(folder, shard)
    table = pq.read_table(pa.BufferReader(data))
    n = sum(sizes)
    if table.num_rows != n:
        raise LedgerCorruptError(f"{folder / shard.name}: expected {n} rows, found {table.num_rows}")
    return split_draws(prompts, sizes, _texts(table), table["count"].to_numpy(), _features(table))


def checked_bytes(folder: Path, shard: Shard) -> bytes:
    """Return the bytes of a shard's file; LedgerCorruptError if it is missing or its checksum is another."""
    path = folder / shard.name
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise LedgerCorruptError(f"{path}: the ledger vouches for this file, and it is missing") from None
    except OSError as error:
        raise LedgerError(f"{path}: could not be read ({error.strerror})") from error
    found = hashlib.sha256(data).hexdigest()
    if found != shard.sha256:
        raise LedgerCorruptError(
            f"{path}: expected {shard.size} bytes with sha256 {shard.sha256}, found {len(data)} with {found}"
        )
    return data


def split_draws(
    prompts: Sequence[int], sizes: Sequence[int], responses: Sequence[str], counts: Any, features: FloatArray
) -> tuple[Draws, ...]:
    """Return one record per prompt from responses, counts and features [n, d] stacked over all of them."""
    edges = np.concatenate([[0], np.cumsum(np.asarray(sizes, dtype=np.int64))]).tolist()
    counts = np.asarray(counts, dtype=np.int64)
    return tuple(
        Draws(prompt, tuple(responses[a:b]), counts[a:b], features[a:b])
        for prompt, (a, b) in zip(prompts, pairwise(edges), strict=True)
    )


def _table(draws: Sequence[Draws], features: FloatArray) -> pa.Table:
    sizes = [len(record.responses) for record in draws]
    columns: dict[str, Any] = {
        "record": np.repeat(np.arange(len(draws), dtype=np.int32), sizes),
        "prompt": np.repeat(np.array([record.prompt for record in draws], dtype=np.int64), sizes),
        "response": _text_column([text for record in draws for text in record.responses]),
        "count": np.concatenate([record.counts for record in draws]).astype(np.int64),
    }
    if features.shape[1]:
        flat = pa.array(np.ascontiguousarray(features).reshape(-1))
        columns["features"] = pa.FixedSizeListArray.from_arrays(flat, features.shape[1])
    return pa.table(columns)


def _text_column(texts: list[str]) -> pa.Array:
    try:
        return pa.array(texts, pa.large_string())
    except UnicodeEncodeError:
        return pa.array([text.encode("utf-8", "surrogatepass") for text in texts], pa.large_binary())


def _texts(table: pa.Table) -> list[str]:
    column = table["response"]
    if pa.types.is_large_binary(column.type):
        return [data.decode("utf-8", "surrogatepass") for data in column.to_pylist()]
    texts: list[str] = column.to_pylist()
    return texts


def _features(table: pa.Table) -> FloatArray:
    if "features" not in table.column_names:
        return np.zeros((table.num_rows, 0))
    column = table["features"]
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    result: FloatArray = flat.astype(np.float64, copy=True).reshape(-1, column.type.list_size)
    return result
