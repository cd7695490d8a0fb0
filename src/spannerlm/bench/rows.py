"""The engine and its store: jobs are run, each leaves one parquet file of rows, and finished ones are never run again.

A job names everything that its rows depend on. Its seed alone decides the environment, the noise of every label (keyed
by prompt, response and replicate) and the generator of the first request: explorers meet under common random numbers.
The environment is made from the seed itself and the run from 10,000 more, so that no stream serves both.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from joblib import Parallel, delayed, parallel_config
from threadpoolctl import threadpool_limits

from spannerlm.api import explore
from spannerlm.bench.plans import check_steps
from spannerlm.bench.watched import WatchedEnvironment
from spannerlm.environments import TOKEN_FAMILIES, TabularEnvironment, TokenEnvironment, environment, token_environment
from spannerlm.errors import InputError
from spannerlm.explorers import explorer_by_name
from spannerlm.files import durable_write, make_folder
from spannerlm.ledger.lock import Lock

Engine = Literal["local", "ray"]

SCHEMA = pa.schema(
    [
        ("job", pa.string()),
        ("suite", pa.string()),
        ("task", pa.string()),
        ("variant", pa.string()),
        ("explorer", pa.string()),
        ("environment", pa.string()),
        ("seed", pa.int64()),
        ("labels", pa.int64()),
        ("draws", pa.int64()),
        ("tokens", pa.int64()),
        ("rounds", pa.int64()),
        ("updates", pa.int64()),
        ("regret", pa.float64()),
        ("regret_drawn", pa.float64()),
        ("start", pa.float64()),
        ("phase", pa.string()),
        ("predicted_regret", pa.float64()),
        ("predicted_regret_wide", pa.float64()),
        ("warning", pa.string()),
        ("stopped", pa.bool_()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("horizon", pa.int64()),
        ("c_cov", pa.float64()),
        ("c_cond", pa.float64()),
    ]
)
"""One row per entry of a job's history: costs so far, label requests so far (``rounds``), updates of the policy as the
explorer counts them (``updates``: also those after rounds that brought nothing to label); the regret of the policy,
and what it is when only responses drawn so far can be played (``regret_drawn``, for jobs that ask for it); the regret
at 0 labels (``start``); what the explorer says of itself (null where it says nothing); whether the job stopped with
labels left (``stopped``); and ``status``: ``done``, or ``failed`` with the traceback in ``error`` and a single row. On
token environments also the ``tokens`` drawn so far, H (``horizon``), C_cov of whole sequences and C_cond of one step
(THEORY 1); null on tables."""

TOKEN_COLUMNS = ("tokens", "horizon", "c_cov", "c_cond")
"""What is null on tables; rows that were stored before there were token environments lack them."""

RUN_SEED = 10_000
"""What a run's seed is above that of its environment."""

WAVE = 8
"""Jobs per worker that Ray gets at once: its back end hands results over only when all are there, so that an
interrupted suite loses at most these; fewer would leave workers waiting for the slowest job of each wave."""

PACKAGES = ("spannerlm", "numpy", "scipy")
"""Whose versions a row depends on."""


@dataclass(frozen=True)
class Job:
    """One explorer on one environment with one seed; JSON values throughout."""

    task: str
    """Name of the column: the environment with its parameters, for people."""
    environment: str
    """A name of `FAMILIES` or `TOKEN_FAMILIES`."""
    parameters: Mapping[str, Any]
    modifiers: Mapping[str, Any]
    explorer: str
    """A name of `EXPLORERS`, or of `STEP_EXPLORERS` on a token family."""
    settings: Mapping[str, Any]
    seed: int
    labels: int
    """Label budget."""
    batch: int = 20
    """Labels per request, at most."""
    feedback: str = "scalar"
    """What a label is: ``scalar`` or ``comparison`` (THEORY 6)."""
    variant: str = ""
    """Name of explorer and settings, for people; the explorer's where empty."""
    draws: int | None = None
    """Budget of draws; None: no limit."""
    drawn: bool = False
    """Whether rows also say the regret of what can be played with the responses drawn so far."""

    def __post_init__(self) -> None:
        if not self.variant:
            object.__setattr__(self, "variant", self.explorer)

    @property
    def key(self) -> str:
        """16 hexadecimal digits that name the job: the start of the SHA-256 of its canonical JSON."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Suite:
    """Jobs that belong together; `InputError` where one is there twice."""

    name: str
    jobs: tuple[Job, ...]
    note: str = ""
    """What the suite shows, in a sentence."""
    reference: str = ""
    """The variant that the others are compared with, seed by seed; the first one where empty."""

    def __post_init__(self) -> None:
        if not self.reference and self.jobs:
            object.__setattr__(self, "reference", self.jobs[0].variant)
        keys = [job.key for job in self.jobs]
        if len(set(keys)) < len(keys):
            twice = self.jobs[next(i for i, key in enumerate(keys) if key in keys[:i])]
            raise InputError(f"suite {self.name!r}: expected different jobs, got one twice: {twice}")


@dataclass(frozen=True, eq=False)
class Finished:
    """What an observer is told of each job: its rows, and how far the suite is."""

    job: Job
    rows: pa.Table
    """Its rows, as stored."""
    number: int
    """Jobs of the suite that are finished, those of earlier runs included."""
    total: int
    """Jobs of the suite."""

    @property
    def error(self) -> str:
        """The last line of what failed; empty where nothing did."""
        text = self.rows["error"][0].as_py()
        return text.strip().splitlines()[-1] if text else ""


def run_suite(
    suite: Suite,
    out: Path,
    *,
    engine: Engine = "local",
    jobs: int = 2,
    observe: Callable[[Finished], None] = lambda _: None,
) -> pa.Table:
    """The rows of every job of the suite, jobs in the suite's order, labels rising.

    Rows are kept in ``out/rows/JOB.parquet``, each file written once and whole, and the suite in ``out/suite.json``:
    the same call goes on where another was cut off. A job that fails leaves a row that says so, and is tried again by
    the next call. ``engine`` is ``local``, with ``jobs`` processes, or ``ray``, with ``jobs`` workers on the cluster at
    ``RAY_ADDRESS``, or on a Ray of its own where there is none; rows are the same from either. ``observe`` is called
    in this process after each job. Cost: the labels and draws of the jobs, all simulated.

    Raises `InputError` where ``out`` holds rows made by other versions of the packages or ``ray`` is not installed,
    `LedgerError` where the disk takes no more or another process writes to ``out``.
    """
    if engine not in get_args(Engine):
        raise InputError(f"engine: expected one of {', '.join(get_args(Engine))}, got {engine!r}")
    if jobs < 1:
        raise InputError(f"jobs: expected at least 1 worker, got {jobs}")
    folder = out / "rows"
    make_folder(folder)
    lock = Lock(out / "lock")
    try:
        _describe(suite, out)
        finished = {job.key: table for job in suite.jobs if (table := _stored(folder, job)) is not None}
        left = [job for job in suite.jobs if job.key not in finished]
        for job, columns in _results(engine, jobs, suite.name, left):
            rows = pa.table(columns, schema=SCHEMA)
            data = pa.BufferOutputStream()
            pq.write_table(rows, data)
            durable_write(folder / f"{job.key}.parquet", data.getvalue().to_pybytes())
            finished[job.key] = rows
            observe(Finished(job, rows, len(finished), len(suite.jobs)))
    finally:
        lock.release()
    return _joined([finished[job.key] for job in suite.jobs])


def load_rows(out: Path) -> pa.Table:
    """The rows of every finished or failed job of the suite in ``out``, in the suite's order, labels rising.

    Raises `InputError` where there is no suite or a file of rows is damaged.
    """
    files = [out / "rows" / f"{job.key}.parquet" for job in load_suite(out).jobs]
    return _joined([_read(file) for file in files if file.exists()])


def load_suite(out: Path) -> Suite:
    """The suite that was run in ``out``; `InputError` where there is none."""
    told = _told(out)
    if told is None:
        raise InputError(f"{out}: expected the directory of a suite, found no suite.json in it; run the suite first")
    jobs = tuple(Job(**job) for job in told["jobs"])
    return Suite(told["name"], jobs, told["note"], told["reference"])


def work(suite: str, job: Job) -> dict[str, list[Any]]:
    """The columns of a job's rows: `SCHEMA`'s names, one entry per row of its history.

    The record of draws and labels stays in memory. An exception becomes a row of status ``failed``: the other jobs of a
    suite do not depend on this one. One thread, whatever the machine: workers share its cores.
    """
    fixed = {
        "job": job.key,
        "suite": suite,
        **{name: getattr(job, name) for name in ("task", "variant", "explorer", "environment", "seed")},
    }
    try:
        with threadpool_limits(limits=1):
            history, stopped, sizes = _explored(job)
    except Exception:
        rows = [{"labels": 0, "draws": 0, "rounds": 0, "status": "failed", "error": traceback.format_exc()}]
    else:
        fixed |= {"start": float(history[0]["regret"]), "stopped": stopped, "status": "done", "error": None, **sizes}
        rows = [{**row, "rounds": i, "updates": row.get("rounds")} for i, row in enumerate(history)]
    return {name: [fixed.get(name, row.get(name)) for row in rows] for name in SCHEMA.names}


def _explored(job: Job) -> tuple[Sequence[Mapping[str, Any]], bool, dict[str, float]]:
    """The history of a job, a row at 0 labels, then one per label request; whether it stopped with labels left; and
    horizon, C_cov and C_cond where the environment is one of tokens."""
    check_steps(job.explorer, job.environment)
    env: TabularEnvironment | TokenEnvironment
    sizes: dict[str, float] = {}
    watched = None
    if job.environment in TOKEN_FAMILIES:
        if job.drawn:
            raise InputError(f"drawn: expected a table, got the token family {job.environment!r}: leave drawn out")
        env = token_environment(job.environment, **job.parameters, seed=job.seed, modifiers=job.modifiers)
        sizes = {"horizon": env.horizon, "c_cov": env.coverage(), "c_cond": env.step_coverage()}
    else:
        env = environment(job.environment, **job.parameters, seed=job.seed, modifiers=job.modifiers)
        watched = WatchedEnvironment(env) if job.drawn else None
    explorer = explorer_by_name(job.explorer, job.settings)
    options: dict[str, Any] = {} if job.feedback == "scalar" else {"feedback": job.feedback}
    result = explore(
        watched or env,
        explorer=explorer,
        labels=job.labels,
        draws=job.draws,
        batch=job.batch,
        seed=RUN_SEED + job.seed,
        **options,
    )
    history: Sequence[Mapping[str, Any]] = result.history
    if watched is not None:
        found = zip(history, watched.regrets, strict=True)
        history = [{**row, "regret_drawn": regret} for row, regret in found]
    return history, result.labels < job.labels, sizes


# --- the engines ----------------------------------------------------------------------------------------------------


def _results(engine: Engine, jobs: int, suite: str, left: Sequence[Job]) -> Iterator[tuple[Job, dict[str, list[Any]]]]:
    """Each job with its columns, as they are finished."""
    if engine == "local":
        with parallel_config(backend="loky", n_jobs=jobs, inner_max_num_threads=1):
            results = Parallel(return_as="generator_unordered")(delayed(_pair)(suite, job) for job in left)
            try:
                for result in results:  # noqa: UP028 it would be closed before its warning is off
                    yield result
            finally:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "[0-9]+ tasks (which were|have been)", UserWarning)
                    results.close()
    elif left:
        with _ray(jobs):
            for first in range(0, len(left), WAVE * jobs):
                yield from Parallel()(delayed(_pair)(suite, job) for job in left[first : first + WAVE * jobs])


def _pair(suite: str, job: Job) -> tuple[Job, dict[str, list[Any]]]:
    return job, work(suite, job)


@contextmanager
def _ray(jobs: int) -> Iterator[None]:
    """Joblib's Ray back end, on the cluster at RAY_ADDRESS or on a Ray of its own, which is shut down again."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody unless the user says so
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise InputError("engine 'ray': expected the package ray, found none: pip install 'spannerlm[ray]'") from error
    register_ray()
    started = not ray.is_initialized()
    if started:
        address = os.environ.get("RAY_ADDRESS")
        ray.init(
            address=address or "local",
            num_cpus=None if address else jobs,
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
        )
    try:
        with parallel_config(backend="ray", n_jobs=jobs):
            yield
    finally:
        if started:
            ray.shutdown()


# --- the store ------------------------------------------------------------------------------------------------------


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def _told(out: Path) -> dict[str, Any] | None:
    """What suite.json says, or None where there is none."""
    file = out / "suite.json"
    if not file.exists():
        return None
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        return {key: told[key] for key in ("name", "note", "reference", "jobs", "versions")}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file}: expected what a suite has written, got something else ({error}): remove it"
        ) from error


def _describe(suite: Suite, out: Path) -> None:
    """Write suite.json; InputError where the directory's rows come from other versions or from another suite."""
    told, versions = _told(out), _versions()
    if told is not None and told["name"] != suite.name:
        raise InputError(f"{out}: expected rows of suite {suite.name!r}, found {told['name']!r}: give another --out")
    if told is not None and told["versions"] != versions:
        before, now = (
            {k: v[k] for k in v if told["versions"].get(k) != versions.get(k)} for v in (told["versions"], versions)
        )
        raise InputError(f"{out}: expected rows made with {now}, found rows made with {before}: give another --out")
    described = {**asdict(suite), "versions": versions}
    durable_write(out / "suite.json", (json.dumps(described, indent=1) + "\n").encode())


def _stored(folder: Path, job: Job) -> pa.Table | None:
    """The job's rows, or None where it is not finished: never run, or failed."""
    file = folder / f"{job.key}.parquet"
    if not file.exists():
        return None
    table = _read(file)
    return table if table["status"][0].as_py() == "done" else None


def _read(file: Path) -> pa.Table:
    try:
        table = pq.read_table(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{file}: expected rows in parquet, could not read them ({error}): remove it") from error
    for name in TOKEN_COLUMNS:
        if name not in table.schema.names:
            field = SCHEMA.field(name)
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    if set(table.schema.names) == set(SCHEMA.names):
        table = table.select(SCHEMA.names)
    if table.schema != SCHEMA or table.num_rows == 0:
        raise InputError(f"{file}: expected rows with columns {', '.join(SCHEMA.names)}, got others: remove it")
    return table


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables) if tables else SCHEMA.empty_table()
