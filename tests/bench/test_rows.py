"""The engine: rows are what the explorer's history says, one job's failure is its own, and a suite goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import spannerlm
from spannerlm.bench import SCHEMA, Job, Suite, load_rows, load_suite, run_suite
from spannerlm.bench.rows import work
from spannerlm.environments import environment, token_environment
from spannerlm.errors import InputError, LedgerLockedError
from spannerlm.explorers import explorer_by_name
from spannerlm.ledger.lock import Lock

JOB = Job("rare p=.1", "rare-skill", {"p": 0.1}, {"heavy-noise": {"factor": 2.0}}, "passive", {"pool": 32}, 3, 60, 20)
BROKEN = replace(JOB, task="broken", parameters={"q": 0.1})


def small(seeds=2):
    """A suite of two explorers."""
    jobs = tuple(
        replace(JOB, explorer=name, settings={}, variant=name, seed=seed)
        for name in ("spanner-sampling", "passive")
        for seed in range(seeds)
    )
    return Suite("small", jobs)


def test_rows_are_the_history_of_the_same_exploration():
    rows = work("s", JOB)
    env = environment("rare-skill", p=0.1, seed=3, modifiers=JOB.modifiers)
    explorer = explorer_by_name("passive", {"pool": 32})
    history = spannerlm.explore(env, explorer=explorer, labels=60, batch=20, seed=10_003).history
    assert list(rows) == SCHEMA.names
    for name in ("labels", "draws", "regret", "phase"):
        assert rows[name] == [row[name] for row in history]
    assert rows["rounds"] == [0, 1, 2, 3]
    assert set(rows["start"]) == {history[0]["regret"]} == {env.regret(env.base_probs)}
    assert set(rows["job"]) == {JOB.key}
    assert set(rows["status"]) == {"done"}
    assert rows["predicted_regret"] == rows["warning"] == [None] * 4


LOCK = replace(
    JOB, task="gated", environment="gated-lock", parameters={"horizon": 3}, modifiers={}, explorer="multi-turn-spanner",
    settings={}, variant="steps",
)  # fmt: skip


def test_rows_of_a_token_environment_say_tokens_and_what_it_is():
    rows = work("s", LOCK)
    env = token_environment("gated-lock", horizon=3, seed=3)
    history = spannerlm.explore(env, explorer="multi-turn-spanner", labels=60, batch=20, seed=10_003).history
    for name in ("labels", "draws", "tokens", "regret"):
        assert rows[name] == [row[name] for row in history]
    assert rows["tokens"] == rows["draws"]  # one action is one token
    sizes = {name: set(rows[name]) for name in ("horizon", "c_cov", "c_cond")}
    assert sizes == {"horizon": {3}, "c_cov": {env.coverage()}, "c_cond": {env.step_coverage()}}
    whole = work("s", replace(LOCK, explorer="passive"))
    assert whole["tokens"] == [3 * draws for draws in whole["draws"]]
    blocks = work("s", replace(LOCK, modifiers={"blocks": {"m": 3}}))
    assert blocks["tokens"] == [3 * draws for draws in blocks["draws"]]
    table = work("s", JOB)
    assert {value for name in ("tokens", "horizon", "c_cov", "c_cond") for value in table[name]} == {None}


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (replace(JOB, explorer="multi-turn-spanner", settings={}), "expected a token environment for 'multi-turn"),
        (replace(LOCK, drawn=True), "drawn: expected a table, got the token family 'gated-lock'"),
    ],
)
def test_what_only_the_other_kind_of_environment_has_is_refused(job, message):
    rows = work("s", job)
    assert rows["status"] == ["failed"]
    assert message in rows["error"][0]


def test_rows_that_were_stored_before_there_were_tokens_are_read(tmp_path):
    rows = run_suite(small(1), tmp_path, jobs=1)
    file = tmp_path / "rows" / f"{small(1).jobs[0].key}.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["tokens", "horizon", "c_cov", "c_cond"]), file)
    assert load_rows(tmp_path).equals(rows)


def test_what_an_explorer_says_of_itself_reaches_the_rows(monkeypatch):
    class Talking(type(explorer_by_name("passive"))):
        def progress(self, state):
            said = {"predicted_regret": 0.5, "predicted_regret_wide": 0.7, "warning": "misfit", "seed": 99, "rounds": 7}
            return {**super().progress(state), **said}

    monkeypatch.setitem(spannerlm.explorers.EXPLORERS, "passive", Talking)
    rows = work("s", JOB)
    assert set(rows["predicted_regret"]) == {0.5}
    assert set(rows["predicted_regret_wide"]) == {0.7}
    assert set(rows["warning"]) == {"misfit"}
    assert set(rows["seed"]) == {3}  # the job's
    assert rows["rounds"] == [0, 1, 2, 3]  # counted, not told


def test_the_key_names_everything_that_rows_depend_on():
    assert replace(JOB).key == JOB.key == Job(**json.loads(json.dumps(asdict(JOB)))).key
    others = {
        "seed": 4,
        "labels": 61,
        "settings": {},
        "parameters": {"p": 0.2},
        "modifiers": {},
        "feedback": "comparison",
    }
    assert len({JOB.key, *(replace(JOB, **{name: value}).key for name, value in others.items())}) == 7
    assert len(JOB.key) == 16


def test_the_seed_alone_decides_environment_first_pool_and_noise():
    found = {}
    for name in ("passive", "random-singles"):
        env = environment("rare-skill", p=0.1, seed=3)
        result = spannerlm.explore(env, explorer=explorer_by_name(name, {}), labels=1, batch=1, seed=3)
        pool = result.state.pools
        found[name] = env.features, env.reward(3)(["1"], ["2"], replicate=[4]), {x: pool[x].counts for x in pool}
    for one, other in zip(*found.values(), strict=True):
        np.testing.assert_equal(one, other)


def test_a_suite_is_kept_resumed_and_loaded(tmp_path):
    told = []
    rows = run_suite(small(), tmp_path, observe=told.append)
    assert rows.schema == SCHEMA
    assert [f.number for f in told] == [1, 2, 3, 4]
    assert {f.total for f in told} == {4}
    assert list(dict.fromkeys(rows["job"].to_pylist())) == [job.key for job in small().jobs]
    assert load_rows(tmp_path).equals(rows)
    assert load_suite(tmp_path) == small()
    assert sorted(p.name for p in (tmp_path / "rows").iterdir()) == sorted(f"{j.key}.parquet" for j in small().jobs)
    gone = small().jobs[2].key
    (tmp_path / "rows" / f"{gone}.parquet").unlink()
    told.clear()
    again = run_suite(small(seeds=3), tmp_path, jobs=1, observe=told.append)
    assert [f.job.key for f in told] == [job.key for job in small(3).jobs if job.seed == 2 or job.key == gone]
    assert run_suite(small(), tmp_path, observe=told.append).equals(rows)  # made again, and the same
    assert len(told) == 3
    assert load_rows(tmp_path).equals(rows)
    assert again.num_rows > rows.num_rows


def test_a_failed_job_leaves_a_row_and_its_error_and_is_tried_again(tmp_path):
    told = []
    suite = Suite("broken", (BROKEN, JOB))
    rows = run_suite(suite, tmp_path, observe=told.append)
    first = rows.to_pylist()[0]
    assert (first["status"], first["labels"], first["regret"]) == ("failed", 0, None)
    assert "InputError" in first["error"]
    assert {f.job.task: "expected one of p" in f.error for f in told} == {"broken": True, JOB.task: False}
    told.clear()
    run_suite(suite, tmp_path, observe=told.append)
    assert [f.job.task for f in told] == ["broken"]


def test_every_worker_has_one_thread(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code = (
        "import os\nfrom dataclasses import dataclass\nfrom threadpoolctl import threadpool_info\n"
        "from spannerlm.explorers import EXPLORERS, Passive\n"
        "@dataclass(frozen=True)\n"
        "class Spy(Passive):\n"
        "    def progress(self, state):\n"
        "        most = max(pool['num_threads'] for pool in threadpool_info())\n"
        "        return {'phase': f\"{os.environ.get('OMP_NUM_THREADS')} {most}\"}\n"
        "EXPLORERS['spy'] = Spy\n"
    )
    (tmp_path / "spy.py").write_text(code)
    main = (
        "import sys, spy\nfrom pathlib import Path\nfrom spannerlm.bench import rows\n"
        "if __name__ == '__main__':\n"
        "    rows._pair = lambda suite, job: (job, (__import__('spy'), rows.work(suite, job))[1])\n"
        "    for jobs in (1, 2):\n"
        "        many = tuple(rows.Job('t', 'tie', {}, {}, 'spy', {}, s, 20) for s in range(2))\n"
        "        found = rows.run_suite(rows.Suite('s', many), Path(f'out{jobs}'), jobs=jobs)\n"
        "        print(*sorted(set(found['phase'].to_pylist())))\n"
    )
    (tmp_path / "main.py").write_text(main)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "main.py"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["None 1", "1 1"]  # this process, then workers


def test_an_interrupted_suite_keeps_what_is_finished(tmp_path):
    code = (
        "from pathlib import Path\nfrom spannerlm.bench import run_suite, suite_by_name\n"
        "suite = suite_by_name('quick', ['passive'], ['rare-skill p=.01'], seeds=200)\n"
        "run_suite(suite, Path('out'), observe=lambda f: print(f.job.key, flush=True))\n"
    )
    with open(tmp_path / "told", "w") as told_to:
        process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=told_to, start_new_session=True)
    while not (tmp_path / "told").read_text():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)  # its workers too
    process.wait(timeout=30)
    told = set((tmp_path / "told").read_text().split())
    kept = {path.stem for path in (tmp_path / "out" / "rows").glob("*.parquet")}
    assert told <= kept
    assert len(kept) < 200
    for key in kept:
        assert set(pq.read_table(tmp_path / "out" / "rows" / f"{key}.parquet")["status"].to_pylist()) == {"done"}
    assert set(load_rows(tmp_path / "out")["job"].to_pylist()) == kept


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:ray.*", "ignore::FutureWarning:ray.*", "ignore::ResourceWarning"
)
def test_a_local_ray_gives_the_same_rows(tmp_path):
    suite = replace(small(), jobs=(*small().jobs, BROKEN))
    local = run_suite(suite, tmp_path / "local", jobs=2)
    told = []
    ray = run_suite(suite, tmp_path / "ray", engine="ray", jobs=2, observe=told.append)
    assert ray.equals(local)
    assert np.isfinite(ray["regret"].drop_null().to_numpy()).all()
    assert len(told) == len(suite.jobs)


def test_what_does_not_fit_is_refused_with_what_to_do(tmp_path):
    for options, message in (
        ({"engine": "dask"}, "engine: expected one of local, ray, got 'dask'"),
        ({"jobs": 0}, "jobs: expected at least 1 worker, got 0"),
    ):
        with pytest.raises(InputError, match=message):
            run_suite(small(), tmp_path, **options)
    with pytest.raises(InputError, match=r"found no suite\.json in it"):
        load_rows(tmp_path)
    with pytest.raises(InputError, match="one twice"):
        Suite("s", (JOB, JOB))
    run_suite(Suite("one", (JOB,)), tmp_path, jobs=1)
    with pytest.raises(InputError, match="expected rows of suite 'small', found 'one': give another --out"):
        run_suite(small(), tmp_path)
    lock = Lock(tmp_path / "lock")
    with pytest.raises(LedgerLockedError, match="is in use by process"):
        run_suite(Suite("one", (JOB,)), tmp_path)
    lock.release()
    told = json.loads((tmp_path / "suite.json").read_text())
    told["versions"]["spannerlm"] = "0.0.1"
    (tmp_path / "suite.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match=r"found rows made with \{'spannerlm': '0.0.1'\}: give another --out"):
        run_suite(Suite("one", (JOB,)), tmp_path)
    (tmp_path / "suite.json").write_text("[]")
    with pytest.raises(InputError, match="expected what a suite has written"):
        load_suite(tmp_path)


def test_a_damaged_file_of_rows_is_named(tmp_path):
    run_suite(Suite("one", (JOB,)), tmp_path, jobs=1)
    file = tmp_path / "rows" / f"{JOB.key}.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match=f"{JOB.key}.parquet: expected rows in parquet, could not read them"):
        load_rows(tmp_path)
    pq.write_table(pa.table({"x": [1]}), file)
    with pytest.raises(InputError, match="got others: remove it"):
        run_suite(Suite("one", (JOB,)), tmp_path, jobs=1)
