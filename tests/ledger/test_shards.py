"""Shards of draws: exact round trips, checksums, and what a full disk leaves behind."""

import os
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spannerlm.errors import LedgerCorruptError, LedgerError
from spannerlm.files import durable_write
from spannerlm.ledger.shards import read_shard, write_shard
from spannerlm.records import Draws

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()))


def quiet(point):
    pass


def draws_of(prompt, responses, d=3, seed=0):
    rng = np.random.default_rng(seed)
    n = len(responses)
    return Draws(prompt, tuple(responses), rng.integers(1, 9, size=n), rng.normal(size=(n, d)))


def put(folder, draws, features=None, trace=quiet):
    stacked = np.concatenate([record.features for record in draws]) if features is None else features
    return write_shard(folder, "00000003.parquet", draws, stacked, trace=trace)


def get(folder, shard, draws):
    return read_shard(folder, shard, [r.prompt for r in draws], [len(r.responses) for r in draws])


def assert_same(found, expected):
    assert [r.prompt for r in found] == [r.prompt for r in expected]
    assert [r.responses for r in found] == [r.responses for r in expected]
    for a, b in zip(found, expected, strict=True):
        assert a.counts.dtype == np.int64
        assert a.counts.tolist() == b.counts.tolist()
        assert a.features.dtype == np.float64
        assert a.features.shape == b.features.shape
        assert a.features.tobytes() == b.features.tobytes()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.lists(ANY_TEXT, max_size=3), min_size=1, max_size=3), st.integers(0, 2))
def test_draws_come_back_bit_for_bit(tmp_path, texts, d):
    draws = [draws_of(5 * i, responses, d) for i, responses in enumerate(texts)]
    assert_same(get(tmp_path, put(tmp_path, draws), draws), draws)


def test_features_kept_as_float32_come_back_as_float64(tmp_path):
    draws = [replace(draws_of(0, ["a", "b"]), features=np.array([[0.5, -0.0, np.nan], [1.0, np.inf, 2.0]]))]
    shard = put(tmp_path, draws, draws[0].features.astype(np.float32))
    assert pq.read_schema(tmp_path / shard.name).field("features").type.value_type == "float"
    assert_same(get(tmp_path, shard, draws), draws)


def test_any_parquet_reader_opens_it(tmp_path):
    shard = put(tmp_path, [draws_of(0, ["a", "b"]), draws_of(4, ["c"])])
    table = pq.read_table(tmp_path / shard.name)
    assert table["response"].to_pylist() == ["a", "b", "c"]
    assert table["prompt"].to_pylist() == [0, 0, 4]
    assert table["record"].to_pylist() == [0, 0, 1]


def test_the_same_draws_make_the_same_file(tmp_path):
    draws = [draws_of(0, ["a", "b"])]
    first = put(tmp_path, draws)
    assert put(tmp_path, draws) == first
    assert first.size == os.path.getsize(tmp_path / first.name)


def test_any_flipped_byte_and_any_torn_end_is_found(tmp_path):
    draws = [draws_of(0, ["a", "b"])]
    shard = put(tmp_path, draws)
    whole = (tmp_path / shard.name).read_bytes()
    for at in range(0, len(whole), 37):
        for damaged in (whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], whole[:at]):
            (tmp_path / shard.name).write_bytes(damaged)
            with pytest.raises(LedgerCorruptError, match="sha256"):
                get(tmp_path, shard, draws)


def test_a_missing_file_is_named(tmp_path):
    draws = [draws_of(0, ["a"])]
    shard = put(tmp_path, draws)
    (tmp_path / shard.name).unlink()
    with pytest.raises(LedgerCorruptError, match=r"00000003.parquet.*missing"):
        get(tmp_path, shard, draws)


def test_a_shard_is_there_under_its_name_only_when_whole(tmp_path):
    seen = []
    put(tmp_path, [draws_of(0, ["a"])], trace=lambda point: seen.append((point, sorted(os.listdir(tmp_path)))))
    assert seen == [("shard-written", ["00000003.parquet.tmp"]), ("shard-renamed", ["00000003.parquet"])]


def test_a_disk_that_refuses_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    durable_write(tmp_path / "x", b"old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LedgerError, match="No space left on device"):
        durable_write(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_missing_folder_is_a_ledger_error(tmp_path):
    with pytest.raises(LedgerError, match="could not be written"):
        durable_write(tmp_path / "none" / "x", b"data")
