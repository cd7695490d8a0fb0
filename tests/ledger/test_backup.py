"""RELIABILITY, fault 5: torn and flipped bytes anywhere are found or harmless; backups are whole and come back."""

import os
import shutil
import sqlite3

import numpy as np
import pytest
from ledgers import META, PROMPTS, a_little_of_everything, draw, draws_of, quick_folder

from spannerlm.errors import InputError, LedgerCorruptError, LedgerError
from spannerlm.ledger import Ledger
from spannerlm.records import DrawRequest


@pytest.fixture
def folder(tmp_path):
    """Where damaged copies are made."""
    with quick_folder(tmp_path) as quick:
        yield quick


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    """A closed run directory and its export: all rows are in run.db."""
    directory = tmp_path_factory.mktemp("closed") / "run"
    with Ledger.open(directory, meta=META, prompts=PROMPTS) as ledger:
        a_little_of_everything(ledger)
        export = list(ledger.export())
    assert not (directory / "run.db-wal").exists()
    return directory, export


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """What a kill leaves: most rows in run.db-wal alone."""
    directory = tmp_path_factory.mktemp("killed")
    with Ledger.open(directory / "live", meta=META, prompts=PROMPTS) as ledger:
        a_little_of_everything(ledger)
        export = list(ledger.export())
        shutil.copytree(directory / "live", directory / "run")
    assert (directory / "run" / "run.db-wal").stat().st_size > 10_000
    return directory / "run", export


def contents(directory):
    """Bytes of all files but those that SQLite makes to read: the shared index, and an empty -wal file."""
    files = {path.name: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if name != "run.db-shm" and (name, data) != ("run.db-wal", b"")}


def found_or_harmless(directory, export):
    """Whether damage is found; if so nothing may be touched, else every row must be as it was."""
    before = contents(directory)
    report = Ledger.verify(directory)
    assert contents(directory) == before
    if report.ok:
        for read_only in (True, False):  # what verify passes can be gone on with
            with Ledger.open(directory, read_only=read_only) as ledger:
                assert list(ledger.export()) == export
        return False
    if "draws/" not in report.problems[0]:  # a shard is read, and refused, when the fold comes to it
        with pytest.raises(LedgerError):
            Ledger.open(directory, meta=META, prompts=PROMPTS)
    assert contents(directory) == before, "evidence is never overwritten"
    return True


def damage(directory, name, positions, folder, export, how):
    """Return for how many of these positions the damage is found."""
    whole = (directory / name).read_bytes()
    found = 0
    for at in positions:
        copy = folder / f"{how}-{at}"
        shutil.copytree(directory, copy)
        flipped = whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :]
        (copy / name).write_bytes(flipped if how == "flip" else whole[:at])
        found += found_or_harmless(copy, export)
        shutil.rmtree(copy)
    return found


@pytest.mark.parametrize("how", ["flip", "tear"])
@pytest.mark.parametrize(
    ("state", "name"),
    [
        ("closed", "run.db"),
        ("closed", "run.head"),
        ("killed", "run.db"),
        ("killed", "run.db-wal"),
        ("killed", "run.head"),
    ],
)
def test_damage_is_found_or_harmless(request, folder, state, how, name):
    directory, export = request.getfixturevalue(state)
    size = (directory / name).stat().st_size
    rng = np.random.default_rng(0)
    positions = range(size) if size < 100 else sorted({*range(0, 100, 9), *rng.integers(size, size=60).tolist()})
    found = damage(directory, name, positions, folder, export, how)
    if (state, name) != ("killed", "run.db"):  # there the -wal file holds every page again
        assert found > len(positions) // 4  # the rest falls on unused bytes of pages


def test_every_flipped_byte_of_a_rows_content_is_found(folder, closed):
    directory, export = closed
    whole = (directory / "run.db").read_bytes()
    start = whole.index(b'"held out"')
    assert damage(directory, "run.db", range(start, start + 10), folder, export, "flip") == 10


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DELETE FROM journal WHERE seq = 3", "expected row 3, found 4"),
        ("DELETE FROM journal WHERE seq > 5", "lost. Was run.db copied without its -wal"),
        ("DELETE FROM journal", "ends at 0"),
        ("UPDATE journal SET k = 1 WHERE seq = 2", "row 2 is not what was written"),
        ("UPDATE journal SET kind = 'reply' WHERE seq = 2", "row 2 is not what was written"),
        ("UPDATE journal SET body = CAST(body AS TEXT) WHERE seq = 2", "row 2 is not what was written"),
        ("UPDATE journal SET blob = NULL WHERE seq = 3", "row 3 is not what was written"),
        ("UPDATE journal SET blob = x'' WHERE blob IS NULL", "row 1 is not what was written"),
        ("DROP TABLE journal", "rows 1 to 18 are lost"),
    ],
)
def test_a_row_changed_by_hand_is_named(tmp_path, closed, statement, message):
    shutil.copytree(closed[0], tmp_path / "run")
    db = sqlite3.connect(tmp_path / "run" / "run.db")
    db.execute(statement)
    db.commit()
    db.close()
    (problem,) = Ledger.verify(tmp_path / "run").problems
    assert message in problem
    with pytest.raises(LedgerCorruptError, match=message.replace(".", r"\.")):
        Ledger.open(tmp_path / "run")


@pytest.mark.parametrize(
    ("gone", "message"),
    [("run.db-wal", "are lost"), ("run.db", "are gone|is damaged"), ("run.head", "lost tail cannot be ruled out")],
)
def test_a_missing_file_is_noticed(tmp_path, killed, gone, message):
    shutil.copytree(killed[0], tmp_path / "run")
    (tmp_path / "run" / gone).unlink()
    with pytest.raises(LedgerCorruptError, match=message):
        Ledger.open(tmp_path / "run", meta=META, prompts=PROMPTS)


def test_a_head_that_lags_is_a_crash_and_one_of_another_run_is_not(tmp_path, closed):
    with Ledger.open(tmp_path / "run", meta=META, prompts=PROMPTS) as ledger:
        draw(ledger, draws_of(0, ["a"]))
        ancestor = (tmp_path / "run" / "run.head").read_bytes()
        draw(ledger, draws_of(0, ["b"]))
    (tmp_path / "run" / "run.head").write_bytes(ancestor)
    assert Ledger.verify(tmp_path / "run").ok
    with Ledger.open(tmp_path / "run") as ledger:
        assert ledger.next_request == 2
    assert (tmp_path / "run" / "run.head").read_bytes() != ancestor, "it has caught up"
    (tmp_path / "run" / "run.head").write_text(f"3 {'0' * 64}\n")
    with pytest.raises(LedgerCorruptError, match="another history"):
        Ledger.open(tmp_path / "run")


def test_a_head_that_could_not_be_written_fails_the_next_step_not_this_one(tmp_path, monkeypatch):
    with Ledger.open(tmp_path, meta=META, prompts=PROMPTS) as ledger:

        def full(handle):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            draw_request = ledger.next_request
            with pytest.raises(LedgerError, match="No space left"):
                draw(ledger, draws_of(0, ["a"]))
            assert ledger.next_request == draw_request + 1, "the request was safe; the outcome was refused"
        assert ledger.unfinished() is not None
        ledger.settle_in_doubt("drop")
    with Ledger.open(tmp_path) as ledger:
        assert ledger.next_request == 1
    assert Ledger.verify(tmp_path).ok


def test_damaged_and_missing_shards_are_named_and_the_fold_stops_there(tmp_path, closed):
    shutil.copytree(closed[0], tmp_path / "run")
    shard = tmp_path / "run" / "draws" / "00000001.parquet"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    report = Ledger.verify(tmp_path / "run")
    assert (report.ok, report.shards, len(report.problems)) == (False, 1, 1)
    assert "00000001.parquet" in report.problems[0]
    with Ledger.open(tmp_path / "run") as ledger, pytest.raises(LedgerCorruptError, match=r"00000001\.parquet"):
        list(ledger.events())
    shard.unlink()
    assert "missing" in Ledger.verify(tmp_path / "run").problems[0]


def test_verify_tells_what_is_there_and_what_no_row_knows(tmp_path, closed):
    shutil.copytree(closed[0], tmp_path / "run")
    (tmp_path / "run" / "draws" / "00000009.parquet.tmp").write_bytes(b"half")
    report = Ledger.verify(tmp_path / "run")
    assert report.ok
    assert (report.rows, report.shards) == (18, 1)
    assert report.notes == ("draws/00000009.parquet.tmp: no row knows it",)


# --- backups --------------------------------------------------------------------------------------------------------


def test_a_backup_of_a_ledger_in_use_is_one_file_that_comes_back_whole(tmp_path):
    with Ledger.open(tmp_path / "run", meta=META, prompts=PROMPTS) as ledger:
        a_little_of_everything(ledger)
        export = list(ledger.export())
        ledger.backup(tmp_path / "copy.db")
        ledger.request(6, DrawRequest((0,), 1))
    assert sorted(os.listdir(tmp_path)) == ["copy.db", "run"]
    Ledger.restore(tmp_path / "copy.db", tmp_path / "back")
    assert Ledger.verify(tmp_path / "back").ok
    with Ledger.open(tmp_path / "back") as ledger:
        assert list(ledger.export()) == export
        draw(ledger, draws_of(0, ["a"]))
    assert sorted(os.listdir(tmp_path / "back")) == ["draws", "run.db", "run.head", "run.lock"]


def test_a_reader_can_back_up_too(tmp_path, closed):
    with Ledger.open(closed[0], read_only=True) as ledger:
        ledger.backup(tmp_path / "copy.db")
    Ledger.restore(tmp_path / "copy.db", tmp_path / "back")
    with Ledger.open(tmp_path / "back") as ledger:
        assert list(ledger.export()) == closed[1]


def test_a_damaged_backup_makes_no_ledger(tmp_path, closed):
    with Ledger.open(closed[0], read_only=True) as ledger:
        ledger.backup(tmp_path / "copy.db")
    whole = (tmp_path / "copy.db").read_bytes()
    shard = (closed[0] / "draws" / "00000001.parquet").read_bytes()
    for at in (whole.index(b'"held out"'), whole.index(shard[200:260]), 20):
        (tmp_path / "copy.db").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(LedgerCorruptError):
            Ledger.restore(tmp_path / "copy.db", tmp_path / "back")
        assert not (tmp_path / "back" / "run.db").exists()
    (tmp_path / "copy.db").write_bytes(whole)
    Ledger.restore(tmp_path / "copy.db", tmp_path / "back")
    assert Ledger.verify(tmp_path / "back").ok


def test_nothing_is_backed_up_or_restored_over_what_is_there(tmp_path, closed):
    with Ledger.open(closed[0], read_only=True) as ledger:
        ledger.backup(tmp_path / "copy.db")
        with pytest.raises(LedgerError, match="backup could not be written"):
            ledger.backup(tmp_path / "none" / "copy.db")
    with pytest.raises(InputError, match="holds a ledger already"):
        Ledger.restore(tmp_path / "copy.db", closed[0])
    with pytest.raises(InputError, match="no such file"):
        Ledger.restore(tmp_path / "none.db", tmp_path / "back")
    with Ledger.open(None, prompts=PROMPTS) as ledger, pytest.raises(InputError, match="in memory"):
        ledger.backup(tmp_path / "memory.db")


def test_a_backup_cannot_write_outside_its_folder(tmp_path, closed):
    with Ledger.open(closed[0], read_only=True) as ledger:
        ledger.backup(tmp_path / "copy.db")
    db = sqlite3.connect(tmp_path / "copy.db")
    db.execute("UPDATE shard SET name = '../../escaped'")
    db.commit()
    db.close()
    with pytest.raises(LedgerCorruptError, match="not the name of a shard"):
        Ledger.restore(tmp_path / "copy.db", tmp_path / "back")
    assert not (tmp_path / "escaped").exists()
