"""Arbitrary configurations and arbitrary damage to ledgers: a named error or nothing worse, in thousands of cases.

With the cases of tests/test_labelfiles.py more than 10,000 in every run of the tests, ten times as many of those here
with SPANNERLM_SOAK.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from spannerlm.config import RunConfig, dump_config, load_config
from spannerlm.errors import ConfigError, LedgerError, SpannerError
from spannerlm.ledger import Ledger
from spannerlm.records import LabelItem, Labelled, LabelRequest

TIMES = 10 if os.environ.get("SPANNERLM_SOAK") else 1
KEYS = [*RunConfig.model_fields, "generation", "server", "coverage", "kind", "function", "column", "url", "price", "x"]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["helpdesk", "judge", "exact", "function", "a.py:f", "trl.rewards:f", "hidden", "ngrams", "1e999"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=6,
)


def loaded_or_named(path: Path, overrides: tuple[str, ...] = ()) -> None:
    """A configuration that comes back from its own dump, or an error with words."""
    try:
        config = load_config(path, overrides)
    except ConfigError:
        return
    path.write_text(dump_config(config))
    assert load_config(path) == config


@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5))
@settings(max_examples=1000 * TIMES, deadline=None)
def test_any_values_are_a_configuration_or_a_named_error(data: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_text(yaml.safe_dump(data, allow_unicode=False))
        loaded_or_named(path)


@given(
    st.one_of(st.binary(max_size=120), st.text(max_size=120).map(lambda text: text.encode("utf-8", "surrogatepass")))
)
@settings(max_examples=1500 * TIMES, deadline=None)
def test_any_bytes_are_a_configuration_or_a_named_error(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_bytes(data)
        loaded_or_named(path)


@given(st.sampled_from(KEYS), st.text(max_size=30))
@settings(max_examples=1000 * TIMES, deadline=None)
def test_any_override_is_taken_or_a_named_error(key: str, text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_text("labels: 5\n")
        loaded_or_named(path, (f"{key}={text}",))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a backup beside it: labels of all kinds, all rows in run.db."""
    directory = tmp_path_factory.mktemp("fuzzed") / "run"
    with Ledger.open(directory, meta={"a": 1}, prompts=["p", "\0é😀"]) as ledger:
        for k in range(3):
            request = LabelRequest(tuple(LabelItem(0, f"r{k}{i}") for i in range(3)))
            ledger.request(k, request)
            claims = ledger.claim(k)
            ledger.reply(claims, [1.0, None, 0.25])
            ledger.labelled(k, Labelled(ledger.labels(k), [[float(i)] for i in range(3)]))  # type: ignore[arg-type]
        ledger.backup(directory.parent / "whole.backup")
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    """All files but the index that SQLite makes to read, and an empty log."""
    found = {path.name: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if name != "run.db-shm" and (name, data) != ("run.db-wal", b"")}


def damaged(data: bytes, at: float, how: str, junk: bytes) -> bytes:
    """The bytes with a place of theirs overwritten, cut out, put in, or cut off."""
    place = int(at * len(data))
    if how == "torn":
        return data[:place]
    rest = {"changed": place + len(junk), "inserted": place, "lost": place + max(1, len(junk))}[how]
    return data[:place] + (b"" if how == "lost" else junk) + data[rest:]


DAMAGE = (
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(["torn", "changed", "inserted", "lost"]),
    st.binary(min_size=1, max_size=40),
)


@given(st.sampled_from(["run.db", "run.head"]), *DAMAGE)
@settings(max_examples=700 * TIMES, deadline=None)
def test_any_damage_to_a_ledger_is_found_or_harmless_and_nothing_is_overwritten(
    run: Path, name: str, at: float, how: str, junk: bytes
) -> None:
    with Ledger.open(run, read_only=True) as ledger:
        expected = list(ledger.export())
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "run"
        shutil.copytree(run, copy)
        (copy / name).write_bytes(damaged((run / name).read_bytes(), at, how, junk))
        before = contents(copy)
        report = Ledger.verify(copy)
        assert contents(copy) == before
        try:
            with Ledger.open(copy) as ledger:
                found = list(ledger.export())
        except SpannerError:
            return
        if report.ok:
            assert found == expected


@pytest.mark.parametrize("place", [b"CREATE TABLE journal", b"journal", b"seq INTEGER", b"SQLite format 3"])
def test_a_schema_that_is_no_text_is_damage(run: Path, tmp_path: Path, place: bytes) -> None:
    """SQLite quotes the schema's bytes in its message, which Python then cannot read."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    data = (copy / "run.db").read_bytes()
    at = data.index(place)
    (copy / "run.db").write_bytes(data[:at] + b"\x80\xff" + data[at + 2 :])
    assert not Ledger.verify(copy).ok
    for read_only in (True, False):
        with pytest.raises(LedgerError), Ledger.open(copy, read_only=read_only):
            pass


@given(*DAMAGE)
@settings(max_examples=300 * TIMES, deadline=None)
def test_any_damage_to_a_backup_makes_the_same_ledger_or_none(run: Path, at: float, how: str, junk: bytes) -> None:
    with Ledger.open(run, read_only=True) as ledger:
        expected = list(ledger.export())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "broken.backup"
        file.write_bytes(damaged((run.parent / "whole.backup").read_bytes(), at, how, junk))
        try:
            Ledger.restore(file, Path(folder) / "run")
        except SpannerError:
            assert not (Path(folder) / "run" / "run.db").exists()
            return
        with Ledger.open(Path(folder) / "run") as ledger:
            assert list(ledger.export()) == expected
