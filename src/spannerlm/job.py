"""A configured run: model, prompts, features, reward and explorer put together, run, measured and written down.

`run_job` creates a run directory or goes on with one: everything that was bought or drawn is read from its ledger, the
rest is derived from it again.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from spannerlm.backends.oracle import ModelOracle
from spannerlm.config import RunConfig, dump_config, load_config
from spannerlm.errors import InputError, LedgerCorruptError, LedgerError
from spannerlm.evaluation import EvaluationPool
from spannerlm.explorers import STEP_EXPLORERS, Explorer, explorer_by_name
from spannerlm.features import FeatureMap, feature_map
from spannerlm.files import durable_write, sync_folder
from spannerlm.inputs import read_prompts
from spannerlm.ledger import Ledger
from spannerlm.measures import LabelMeasure, Measure, Measured, measure_truth
from spannerlm.progress import Progress
from spannerlm.records import Spec
from spannerlm.report import write_report
from spannerlm.run import Driver, Stopwatch, explorer_meta, spec_meta
from spannerlm.sourcing import identity
from spannerlm.summary import KLS, summarise
from spannerlm.tasks import Task, load_model, load_task, model_options
from spannerlm.tilted import save_policy

DRAWS_PER_PROMPT = 512
"""Default draws budget per explored prompt: what the default run affords within a minute and a half."""

Observer = Callable[[Progress], None]
InDoubt = Literal["rebuy", "drop"]


def run_job(config: RunConfig, directory: Path, observer: Observer = lambda _: None) -> dict[str, Any]:
    """The report of a run in ``directory``, created or continued: run.db, policy, figures, report.html are there.

    Cost: ``config.labels`` labels at most, ``config.draws`` draws to learn, ``evaluation.draws`` per held-out prompt.
    """
    return Job(config, directory, observer).run()


def resume_job(directory: Path, observer: Observer = lambda _: None, in_doubt: str | None = None) -> dict[str, Any]:
    """The report of the run in ``directory``, continued where it was cut off.

    ``in_doubt``: what becomes of labels that were asked for and never answered, ``rebuy`` or ``drop``.
    """
    check_rewarded(directory)
    if not (directory / "config.yaml").exists():
        raise InputError(
            f"{directory}: expected a run directory, found no config.yaml in it: see `spannerlm run --out`"
        )
    config = load_config(directory / "config.yaml")
    settle: InDoubt | None = None if in_doubt is None else "rebuy" if in_doubt == "rebuy" else "drop"
    return Job(config, directory, observer, settle).run()


def check_rewarded(directory: Path) -> None:
    """`InputError` where the labels of the run are told (`spannerlm.asking`); nothing where nobody can say."""
    told = False
    if (directory / "run.db").exists():
        # others tell of damage
        with suppress(LedgerError, InputError), Ledger.open(directory, read_only=True) as ledger:
            told = "asked" in ledger.meta
    if told:
        raise InputError(
            f"{directory}: expected a run with a reward, found one whose labels are told: `spannerlm ask`, `tell` and "
            "`label` go on with it, `spannerlm sample` draws from its policy"
        )


def load_report(directory: Path) -> dict[str, Any]:
    """The stored rows of a finished run."""
    check_rewarded(directory)
    path = directory / "report.json"
    if not path.exists():
        raise InputError(f"{directory}: expected a finished run, found no report.json: `spannerlm resume` finishes it")
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report


class Job:
    """One configured run; its parts are built once, in the order of the way data flows."""

    def __init__(
        self,
        config: RunConfig,
        directory: Path,
        observer: Observer,
        in_doubt: InDoubt | None = None,
    ) -> None:
        self.config, self.directory, self.observer, self.in_doubt = config, directory, observer, in_doubt
        self.started = time.perf_counter()
        self.stopwatch = Stopwatch()
        self.warnings: list[str] = []

    def run(self) -> dict[str, Any]:
        """The report: everything bought is on disk before it returns."""
        config = self.config
        task = load_task(config, self.directory)
        explorer = build_explorer(config)
        self._claim_directory()
        self._tell("load the model")
        with self.stopwatch.part("load"):
            model = load_model(config, task, self.directory)
            phi = feature_map(task.features, getattr(model, "hidden_size", None))
        oracle = ModelOracle(model, task.prompts, phi)
        spec = spec_of(config, task, phi)
        meta = {**spec_meta(spec, config.seed), **explorer_meta(explorer), **self._meta(task, phi)}
        notes = {"versions": versions(), "platform": platform.platform(), "rewards": self._reward_versions()}
        ledger = Ledger.open(self.directory, meta=meta, prompts=task.prompts, columns=task.columns, notes=notes)
        with ledger:
            run = Driver(
                oracle,
                explorer,
                task.reward,
                ledger,
                spec,
                seed=config.seed,
                compare=task.compare,
                columns=task.columns,
            )
            run.stopwatch, run.observe = self.stopwatch, self._observe
            measured = self._explore(run, task)
            run.stop()
            return self._finish(run, task, model, phi, measured)

    def _claim_directory(self) -> None:
        """Make the directory and write what was configured; `InputError` where somebody else's configuration lies."""
        if (self.directory / "run.db").exists():
            return  # a run that goes on keeps its configuration, and its ledger refuses one that contradicts it
        text, path = dump_config(self.config).encode(), self.directory / "config.yaml"
        if path.exists() and path.read_bytes() != text:
            raise InputError(f"{path}: expected a new directory, found another configuration: choose another --out")
        if self.config.eval_labels and self.config.heldout is None and self.config.prompts is not None:
            texts = read_prompts(self.config.prompts, self.config.prompt_column).texts
            if len(texts) < 2:
                raise InputError("eval_labels: expected at least 2 prompts, so that one can be held out, got 1")
        self.directory.mkdir(parents=True, exist_ok=True)
        self._write("config.yaml", text)

    def _reward_versions(self) -> list[str]:
        """Fingerprints of the user's reward file, one per version that this run has used, this one last.

        More than one is warned of, now and whenever the run is taken up again: their labels are in one regression.
        """
        now, before = fingerprint(self.config), []
        if (self.directory / "run.db").exists():
            with suppress(InputError), Ledger.open(self.directory, read_only=True) as ledger:  # cut off before a row
                before = list(ledger.notes.get("rewards", ()))
        known = before if now is None or now in before[-1:] else [*before, now]
        if len(known) > 1:
            self.warnings.append(
                "The reward's file has changed since this run began: labels from both versions are in one regression."
            )
        return known

    def _explore(self, run: Driver, task: Task) -> Measured:
        """Evaluation draws first, so that the value can be followed; then the explorer until it stops."""
        config = self.config
        rows = range(len(task.train), len(task.train) + min(len(task.heldout), config.evaluation.max_prompts))
        measured = Measured(run, config.kl, partial(self._measure, task, run))
        run.measure = measured.policy
        if self.in_doubt is not None:  # last: whatever could refuse to resume has had its say
            damage = Ledger.verify(self.directory).problems
            if damage:
                raise LedgerCorruptError(f"{self.directory}: {damage[0]}; nothing was changed: see `spannerlm verify`")
            run.ledger.settle_in_doubt(self.in_doubt)
        run.replay()
        if rows:
            self._tell("draw held-out responses", run)
            run.draw_for_evaluation(rows, config.evaluation.draws)
        run.explore()
        if config.eval_labels:
            measured.buy(config.eval_labels, seed=config.seed)
        return measured

    def _measure(self, task: Task, run: Driver, pool: EvaluationPool) -> Measure:
        if task.truth is None:
            return LabelMeasure(pool, run)
        with self.stopwatch.part("reward"):
            return measure_truth(pool, task.truth, task.prompts, task.columns)

    def _finish(self, run: Driver, task: Task, model: Any, phi: FeatureMap, measured: Measured) -> dict[str, Any]:
        self._tell("compare with random labels", run)
        report = summarise(run, task, self.config, measured)
        beta = float(getattr(run.explorer.policy(run.state), "beta", float("nan")))
        about = {**self._meta(task, phi), **self._reach(run, measured, beta)}
        save_policy(self.directory, run.explorer.policy(run.state).theta, beta, about)
        report["usage"] = bills(task, model, phi)
        report["warnings"] = [*self.warnings, *getattr(model, "warnings", ())]
        self._tell("write the report", run)
        report["timings"] = {**self.stopwatch.seconds, "total": time.perf_counter() - self.started}
        report["versions"] = versions()
        with self.stopwatch.part("report"):
            write_report(self.directory, report)
        report["timings"] = {**self.stopwatch.seconds, "total": time.perf_counter() - self.started}
        self._write("report.json", json.dumps(plain(report), indent=1).encode())
        return report

    def _reach(self, run: Driver, measured: Measured, beta: float) -> dict[str, Any]:
        """Largest density ratio of the learned policy on held-out draws, and beta and ratio at other KL budgets.

        Empty without held-out draws.
        """
        if measured.measure is None:
            return {}
        pool = measured.measure.pool
        scores = pool.scores(run.explorer.policy(run.state).theta)
        curve = [(kl, pool.at_kl(scores, kl)) for kl in KLS if kl > 0.0]
        by_kl = [{"kl": kl, "beta": t.beta, "coverage": float(np.max(t.draws_per_answer()))} for kl, t in curve]
        found = {"coverage": float(np.max(pool.at_beta(scores, beta).draws_per_answer()))}
        return found if any(np.isinf(row["beta"]) for row in by_kl) else {**found, "by_kl": by_kl}

    def _meta(self, task: Task, phi: FeatureMap) -> dict[str, Any]:
        """What else decides the run: the model, its options and the features."""
        return {"model": task.model, "options": model_options(self.config, task), "features": phi.spec()}

    def _write(self, name: str, data: bytes) -> None:
        durable_write(self.directory / name, data)
        sync_folder(self.directory)

    def _observe(self, run: Driver) -> None:
        self._tell(str(run.history[-1].get("phase", "")) if run.history else "", run)

    def _tell(self, phase: str, run: Driver | None = None) -> None:
        elapsed = time.perf_counter() - self.started
        budget = self.config.labels
        if run is None:
            self.observer(Progress(phase, 0, 0, budget, elapsed_s=elapsed))
            return
        counts, row = run.ledger.counts, run.history[-1] if run.history else {}
        labels = counts.labels + counts.eval_labels
        left = elapsed / labels * (budget - labels) if labels else None
        progress = Progress(
            phase=phase,
            draws=counts.draws,
            labels=labels,
            budget=budget,
            pairs=row.get("pairs"),
            certificate=row.get("certificate"),
            value=row.get("value"),
            value_name=f"held-out value at KL = {self.config.kl:g}",
            elapsed_s=elapsed,
            remaining_s=left,
        )
        self.observer(progress)


def bills(task: Task, model: Any, phi: FeatureMap) -> dict[str, Any]:
    """What servers were asked for, by who stands behind them: requests, tokens, cost."""
    behind = {
        "the judge of rewards": task.reward,
        "the judge of pairs": task.compare,
        "the model": model,
        "the embeddings": phi,
    }
    used = {name: getattr(one, "usage", None) for name, one in behind.items()}
    return {name: asdict(usage) for name, usage in used.items() if usage is not None}


def fingerprint(config: RunConfig) -> str | None:
    """Hex sha256 of the files, or settings, of the user's reward and comparison; None for bundled ones."""
    sources = [source for source in (config.reward, config.compare) if source is not None]
    parts = dict.fromkeys(identity(source) for source in sources)
    return hashlib.sha256(b"".join(parts)).hexdigest() if parts else None


def build_explorer(config: RunConfig) -> Explorer:
    """The explorer that the configuration names, with its settings; `InputError` for a setting it does not have, or for
    one that acts step by step, whose policies the report cannot compare on whole held-out responses."""
    if config.explorer in STEP_EXPLORERS:
        raise InputError(
            f"explorer: expected one of whole responses for a run with a report, got {config.explorer!r}: in Python, "
            "spannerlm.explore(..., segments=...) runs it on a model"
        )
    return explorer_by_name(config.explorer, config.explorer_settings)


def spec_of(config: RunConfig, task: Task, phi: FeatureMap) -> Spec:
    """Budgets and prompt distribution: uniform over the train prompts, none on held-out ones."""
    probs = np.zeros(len(task.prompts))
    probs[: len(task.train)] = 1.0 / len(task.train)
    explored = min(len(task.train), config.max_prompts)
    return Spec(
        prompt_probs=probs,
        dim=phi.dim,
        labels=config.labels - config.eval_labels,
        draws=config.draws or DRAWS_PER_PROMPT * explored,
        batch=config.batch,
        beta=config.beta,
        kl=None if config.beta is not None else config.kl,
        feedback=config.feedback,
        scale=config.scale,
        target_regret=config.target_regret,
    )


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    found = {"python": platform.python_version()}
    for name in ("spannerlm", "numpy", "scipy", "torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def plain(value: Any) -> Any:
    """The value as JSON can hold it: NumPy numbers unwrapped, NaN and infinities as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value
