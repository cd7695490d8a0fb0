"""RELIABILITY, faults 1 to 4, 6 and 7: real processes killed at named points and at random, out of room, at odds."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from crashes import REFEREE
from ledgers import quick_folder

from spannerlm.errors import LedgerLockedError
from spannerlm.ledger import Ledger

PROGRAM = Path(__file__).with_name("crashes.py")


class Zygote:
    """The process that starts, kills and limits runs."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, do, **command):
        self.process.stdin.write(json.dumps({"do": do, **command}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def run(self, directory, **how):
        answer = self("run", dir=str(directory), **how)
        assert answer.get("error") != "crash", answer
        return answer

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture(scope="module")
def zygote():
    started = Zygote()
    yield started
    started.close()


@pytest.fixture
def folder(tmp_path):
    """Where runs are killed: the page cache survives a kill, so that memory is as good as a disk."""
    with quick_folder(tmp_path) as quick:
        yield quick


@pytest.fixture(scope="module")
def undisturbed(zygote, tmp_path_factory):
    """The points that a run passes, in order, and its export."""
    directory = tmp_path_factory.mktemp("undisturbed") / "run"
    points = zygote.run(directory)["points"]
    return points, export(directory)


def export(directory):
    with Ledger.open(directory, read_only=True) as ledger:
        return list(ledger.export())


def charges(directory):
    path = directory / REFEREE
    return Counter(path.read_text().split()) if path.exists() else Counter()


def test_a_run_passes_every_kind_of_point(undisturbed):
    kinds = ("open", "request", "drawn", "claim", "reply", "labelled")
    expected = {f"{when}-{kind}" for kind in kinds for when in ("before", "within", "after", "head")}
    expected |= {"before-table", "after-table", "shard-written", "shard-renamed", "after-send"}
    assert set(undisturbed[0]) == expected


def test_killed_at_each_point_a_run_resumes_to_the_same_export(zygote, folder, undisturbed):
    points, expected = undisturbed
    for point, times in Counter(points).items():
        for nth in {1, times}:
            directory = folder / f"{point}-{nth}"
            assert zygote.run(directory, point=point, nth=nth)["killed"] == signal.SIGKILL
            assert zygote.run(directory)["killed"] == 0
            assert export(directory) == expected, (point, nth)
            assert Ledger.verify(directory).problems == (), (point, nth)


# The first label request is number 2; it claims 7 keys for its 8 items and replies to 2 of them, then to the rest.
STATES = {
    ("before-claim", 1): {"unfinished": 2, "in_doubt": 0, "labels": 0, "charged": 0},
    ("within-claim", 1): {"unfinished": 2, "in_doubt": 0, "labels": 0, "charged": 0},
    ("after-claim", 1): {"unfinished": 2, "in_doubt": "all", "labels": 0, "charged": 0},
    ("head-claim", 1): {"unfinished": 2, "in_doubt": "all", "labels": 0, "charged": 0},
    ("after-send", 1): {"unfinished": 2, "in_doubt": "all", "labels": 0, "charged": 2},
    ("before-reply", 1): {"unfinished": 2, "in_doubt": "all", "labels": 0, "charged": 2},
    ("within-reply", 1): {"unfinished": 2, "in_doubt": "all", "labels": 0, "charged": 2},
    ("after-reply", 1): {"unfinished": 2, "in_doubt": "rest", "labels": 2, "charged": 2},
    ("head-reply", 1): {"unfinished": 2, "in_doubt": "rest", "labels": 2, "charged": 2},
    ("within-reply", 2): {"unfinished": 2, "in_doubt": "rest", "labels": 2, "charged": "all"},
    ("after-reply", 2): {"unfinished": 2, "in_doubt": 0, "labels": "all", "charged": "all"},
    ("within-labelled", 1): {"unfinished": 2, "in_doubt": 0, "labels": "all", "charged": "all"},
    ("after-labelled", 1): {"unfinished": None, "in_doubt": 0, "labels": "all", "charged": "all"},
    ("within-request", 4): {"unfinished": None, "in_doubt": 0, "labels": "all", "charged": "all"},
    ("after-request", 4): {"unfinished": 3, "in_doubt": 0, "labels": "all", "charged": "all"},
    ("shard-written", 1): {"unfinished": 1, "in_doubt": 0, "labels": 0, "charged": 0},
    ("shard-renamed", 1): {"unfinished": 1, "in_doubt": 0, "labels": 0, "charged": 0},
    ("after-drawn", 2): {"unfinished": None, "in_doubt": 0, "labels": 0, "charged": 0},
}


@pytest.mark.parametrize(("point", "nth"), STATES)
def test_killed_at_a_point_the_ledger_is_in_the_exact_state(zygote, folder, undisturbed, point, nth):
    first = [json.loads(line) for line in undisturbed[1]]
    bought = len({line["key"] for line in first if line["type"] == "label" and line["k"] == 2})
    assert bought > 2
    words = {"all": bought, "rest": bought - 2}
    assert zygote.run(folder / "run", point=point, nth=nth)["killed"] == signal.SIGKILL
    with Ledger.open(folder / "run", read_only=True) as ledger:
        open_request = ledger.unfinished()
        found = {
            "unfinished": None if open_request is None else open_request[0],
            "in_doubt": len(ledger.in_doubt()),
            "labels": ledger.counts.labels,
            "charged": charges(folder / "run").total(),
        }
    assert found == {name: words.get(value, value) for name, value in STATES[point, nth].items()}


@pytest.mark.parametrize("how", ["drop", "rebuy"])
@pytest.mark.parametrize(("point", "nth"), [("after-claim", 1), ("after-send", 1), ("within-reply", 2)])
def test_what_is_in_doubt_is_bought_again_only_at_the_users_word(zygote, folder, how, point, nth):
    directory = folder / "run"
    zygote.run(directory, point=point, nth=nth)
    with Ledger.open(directory, read_only=True) as ledger:
        doubtful = {claim.key for claim in ledger.in_doubt()}
    assert doubtful
    zygote.run(directory, how=how)
    twice = {key for key, times in charges(directory).items() if times > 1}
    with Ledger.open(directory) as ledger:
        counts = ledger.counts
    assert twice <= (doubtful if how == "rebuy" else set())
    assert counts.rebought == (len(doubtful) if how == "rebuy" else 0)
    assert counts.failed == (len(doubtful) if how == "drop" else 0)
    stored = counts.labels + counts.eval_labels
    assert counts.charged == stored + counts.failed
    assert stored <= len(charges(directory)) <= counts.charged


@pytest.mark.parametrize("seed", range(17))
def test_killed_at_random_again_and_again_a_run_ends_with_the_same_export(zygote, folder, undisturbed, seed):
    rng = np.random.default_rng(seed)
    kills = 0
    for _ in range(12):
        kills += zygote.run(folder / "run", after=float(rng.uniform(0.0, 0.02)))["killed"] == signal.SIGKILL
    zygote.run(folder / "run")
    assert kills
    assert export(folder / "run") == undisturbed[1]
    assert Ledger.verify(folder / "run").problems == ()


@pytest.mark.parametrize("limit", [40, 3000, 9000, 20_000, 33_000, 60_000])
def test_out_of_room_a_run_stops_with_a_clear_error_and_resumes(zygote, folder, undisturbed, limit):
    answer = zygote.run(folder / "run", limit=limit)
    assert answer["error"] == "LedgerError"
    assert re.search(r"could not be (written|prepared|opened)", answer["message"])
    charged = charges(folder / "run").total()
    assert zygote.run(folder / "run", limit=limit)["error"] == "LedgerError"
    assert charges(folder / "run").total() <= charged + 2, "no new buying"
    assert "error" not in zygote.run(folder / "run")
    assert export(folder / "run") == undisturbed[1]


@pytest.mark.parametrize("worker", [False, True])
def test_a_second_process_is_refused_until_the_first_is_dead(zygote, folder, worker):
    holder = zygote("hold", dir=str(folder / "run"), worker=worker)
    try:
        with pytest.raises(LedgerLockedError, match=f"in use by process {holder['pid']};"):
            Ledger.open(folder / "run")
        Ledger.open(folder / "run", read_only=True).close()
    finally:
        zygote("kill", pid=holder["pid"])
        start = time.monotonic()
    Ledger.open(folder / "run").close()  # although a forked worker of the dead process may live on
    assert time.monotonic() - start < 1
    if worker:
        zygote("kill", pid=holder["worker"], child=False)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_every_row_is_synced_before_it_is_acknowledged(tmp_path, undisturbed):
    """Power loss: what was acknowledged has been fdatasynced, the row first and then its head."""
    log = tmp_path / "log"
    command = ["strace", "-f", "-y", "-o", log, "-e", "trace=fsync,fdatasync,write", sys.executable, PROGRAM, "once"]
    traced = subprocess.run([*command, tmp_path / "run"], capture_output=True, text=True, check=False)
    if traced.returncode:
        pytest.skip(f"strace may not trace here: {traced.stderr[-200:]}")
    passed = [("start", [])]
    for line in log.read_text(errors="replace").splitlines():
        if found := re.search(r'write\(1<.*>, "([a-z-]+)\\n"', line):
            passed.append((found[1], []))
        elif found := re.search(r"f(?:data)?sync\(\d+<(.*)>\) += 0", line):
            passed[-1][1].append(Path(found[1]).name)
    assert [point for point, _ in passed[1:]] == undisturbed[0]
    for at, (point, synced) in enumerate(passed):
        if point.startswith("within-"):
            assert "run.db-wal" in synced, point
        elif point.startswith("after-") and point not in ("after-table", "after-send"):
            assert synced == ["run.head.tmp"], point
        elif point == "shard-written":
            assert (passed[at - 1][1][-1], synced) == ("00000001.parquet.tmp", ["draws"])
