"""`coverage_report` and the coverage command's work: models loaded one after the other, looked at, written down."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from spannerlm import bundled
from spannerlm.api import DEFAULT_KL
from spannerlm.backends import load
from spannerlm.config import RunConfig, dump_config
from spannerlm.environments import TabularEnvironment
from spannerlm.errors import InputError
from spannerlm.files import durable_write, make_folder, sync_folder
from spannerlm.foundation.document import Question, Subject, document
from spannerlm.foundation.gather import CANDIDATES, SERVED, Gathered, Observer, Source, StepPlan, gather, gather_table
from spannerlm.foundation.page import write_page
from spannerlm.foundation.past import gather_run
from spannerlm.functions import load_reward
from spannerlm.job import plain
from spannerlm.progress import Progress
from spannerlm.rewards import RewardFunction
from spannerlm.segments import segments as parsed_segments
from spannerlm.tasks import load_task, model_options

MODELS = "models"
"""Folder, within a report's, of the ledgers: one for each model."""


@dataclass(frozen=True, eq=False)
class CoverageReport:
    """Whether models are good enough foundations for these prompts."""

    document: Mapping[str, Any]
    """The whole report; numbers are nan or inf where undefined or without a bound."""

    @property
    def verdicts(self) -> dict[str, str]:
        """Name of each model -> the kind of its verdict."""
        return {str(section["name"]): str(section["verdict"]["kind"]) for section in self.document["models"]}

    @property
    def verdict(self) -> str:
        """The verdict's kind where there is one model; the best model's where there are several."""
        best = self.document["best"]
        return self.verdicts[best] if best is not None else next(iter(self.verdicts.values()))

    def __repr__(self) -> str:
        return f"CoverageReport({', '.join(f'{name}: {kind}' for name, kind in self.verdicts.items())})"

    def __str__(self) -> str:
        """Each model's verdict with its reasons and advice."""
        lines: list[str] = []
        for section in self.document["models"]:
            found = section["verdict"]
            lines += [f"{section['name']}: {found['title']}", *(f"  {line}" for line in found["reasons"])]
            lines += [f"  -> {line}" for line in found["advice"]]
        return "\n".join(lines)

    def write(self, directory: Path | str) -> tuple[Path, ...]:
        """The files written to a directory: coverage.json, coverage.html and its figures."""
        folder = Path(directory)
        make_folder(folder)
        found = plain(self.document)
        durable_write(folder / "coverage.json", json.dumps(found, indent=1).encode())
        pages = write_page(folder, found)
        sync_folder(folder)
        return (folder / "coverage.json", *pages)


def coverage_report(
    env: TabularEnvironment | None = None,
    *,
    model: Any = None,
    models: Mapping[str, Any] | None = None,
    prompts: Sequence[str] | None = None,
    reward: RewardFunction | None = None,
    reward_free: bool = False,
    reward_noise: float = 0.0,
    parts: Mapping[str, RewardFunction] | None = None,
    labels: int | None = None,
    draws: int = 512,
    features: Sequence[Any] | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    success: float | None = None,
    kl: float | None = None,
    share: float = 0.9,
    max_draws: int = 1000,
    horizon: int = 500,
    batch: int = 10,
    simulations: int = 8,
    generation: Mapping[str, Any] | None = None,
    seed: int = 0,
    out: Path | str | None = None,
    in_doubt: Literal["rebuy", "drop"] | None = None,
    segments: Any = None,
) -> CoverageReport:
    """Whether a model is a good enough foundation for these prompts and this reward, before labels are bought.

    Of a real model: ``model`` (hub id, path or a loaded back end), or ``models`` by name, and ``prompts`` [X]; of an
    exact environment: ``env``. ``draws`` of each prompt are made. With a ``reward`` (a TRL reward function, called with
    ``columns``, each [X], by keyword) that is ``reward_free`` every draw is graded, and ``reward_noise`` is the noise
    that a label would have; where it costs something, ``labels`` random draws of each model are rewarded. Without
    either, the report says what the draws hold and no more. An environment is graded freely unless ``labels`` is given.

    ``success``: reward from which a reply counts as one. ``features``: maps to test (`feature_map`). ``kl`` in nats is
    the budget, ``share`` the share of the attainable gain that is forecast, ``max_draws`` what an answer may cost.
    ``segments`` (8, ``"line"``, a function of the text: `spannerlm.segments.segments`) asks whether going step by step
    would make answers cheaper; it needs a free reward and takes more draws, about as many again or more.
    With ``out`` the report is written there, and so is the ledger of what was drawn and bought: the same call goes on
    where it was cut off. Cost: draws X draws and at most ``labels`` labels, of each model.

    Raises `InputError` on a bad argument, `RewardError` where the reward fails.
    """
    question = Question(
        DEFAULT_KL if kl is None else float(kl), share, max_draws, success, horizon, batch, simulations, seed
    )
    _check(question, draws, labels)
    if env is not None:
        given = {"model": model, "models": models, "prompts": prompts, "reward": reward, "parts": parts}
        given |= {"features": features, "segments": segments}
        unused = [name for name, value in given.items() if value is not None]
        if unused:
            raise InputError(f"an environment brings its own {', '.join(unused)}: leave them out")
        found = gather_table(env, labels=labels, draws=draws, seed=seed)
        subjects = [Subject("environment", type(env).__name__, found)]
        return _report(subjects, question, "environment", "the environment's", out)
    named = {_short(model): model} if model is not None else dict(models or {})
    if not named or (model is not None and models is not None) or prompts is None:
        raise InputError("expected an environment, or prompts= with either model= or models=")
    source = Source(
        reward, reward is not None and reward_free, reward_noise, labels or 0, dict(parts or {}), dict(columns or {})
    )
    _check_source(source, segments)
    folder = None if out is None else Path(out)
    options = dict(generation or {})
    standard = SERVED if "base_url" in options else CANDIDATES
    tested = standard if features is None else features
    subjects = []
    for name, other in named.items():
        place = None if folder is None else folder / MODELS / _slug(name)
        loaded = load(other, options, place) if isinstance(other, str) else other
        about = {"model": other if isinstance(other, str) else None, "options": options}
        seen = gather(
            loaded,
            prompts,
            source,
            features=tested,
            draws=draws,
            seed=seed,
            directory=place,
            about=about,
            in_doubt=in_doubt,
            steps=None if segments is None else StepPlan(segments, question.kl),
        )
        subjects.append(Subject(name, str(other) if isinstance(other, str) else type(other).__name__, seen))
    return _report(subjects, question, ", ".join(named), getattr(reward, "__name__", None), out)


def coverage_job(
    config: RunConfig,
    directory: Path,
    observer: Observer = lambda _: None,
    in_doubt: Literal["rebuy", "drop"] | None = None,
    segments: Any = None,
) -> CoverageReport:
    """The report of a configuration, written to ``directory``: coverage.html, coverage.json, figures, the ledgers.

    Cost: ``coverage.draws`` draws of each prompt, and ``coverage.labels`` labels at most, for each model; more draws
    with ``segments`` (see `coverage_report`).
    """
    asked = config.coverage
    models = asked.models or ((config.model,) if config.model is not None else ())
    first = config.model_copy(update={"model": models[0] if models else None})
    task = load_task(first, directory, rewarded=False)
    own = config.reward is not None
    base = bundled.load(config.task) if config.task is not None and not own else None
    prompts = task.train[: asked.max_prompts]
    form = task.form if task.conversational else None
    parts = {
        name: load_reward(place, task.columns, form=form, token_ids=task.tokens) for name, place in asked.parts.items()
    }
    free = task.truth is not None
    source = Source(
        reward=task.truth if free else task.reward,
        free=free,
        noise_std=float(getattr(task.reward, "std", 0.0)) if free else 0.0,
        labels=asked.labels,
        parts=parts or (dict(base.parts) if base is not None else {}),
        columns={name: values[: len(prompts)] for name, values in task.columns.items()},
    )
    _check_source(source, segments)
    make_folder(directory)
    durable_write(directory / "config.yaml", dump_config(config).encode())
    options = model_options(first, task)
    subjects = []
    for name, place in _names(models or (task.model,)).items():
        observer(Progress(f"{name}: load the model", 0, 0, source.labels))
        folder = directory / MODELS / _slug(name)
        loaded = load(place, options, folder)
        if task.tokens is not None:
            task.tokens.model = loaded
        found = gather(
            loaded,
            prompts,
            source,
            features=_tested(config, task.features),
            draws=asked.draws,
            seed=config.seed,
            directory=folder,
            about={"model": place, "options": options},
            in_doubt=in_doubt,
            steps=None if segments is None else StepPlan(segments, config.kl),
            observe=lambda p, name=name: observer(replace(p, phase=f"{name}: {p.phase}")),  # type: ignore[misc]
        )
        subjects.append(Subject(name if models else task.model_name, place, found))
    success = asked.success if asked.success is not None else base.success if base is not None else None
    reward = task.reward_name if source.free or source.labels else None
    return _report(subjects, _question(config, success), task.name, reward, directory, observer)


def coverage_of_run(run: Path, directory: Path, observer: Observer = lambda _: None) -> CoverageReport:
    """The report on what a run has drawn and labelled already, written to ``directory``. Cost: none."""
    observer(Progress("read the run", 0, 0, 0))
    past = gather_run(run)
    config, task = past.config, past.task
    base = bundled.load(config.task) if config.task is not None and config.reward is None else None
    success = config.coverage.success
    success = success if success is not None else base.success if base is not None else None
    subject = Subject(task.model_name, task.model, past.found)
    return _report([subject], _question(config, success), task.name, task.reward_name, directory, observer)


def _question(config: RunConfig, success: float | None) -> Question:
    asked = config.coverage
    return Question(
        kl=config.kl,
        share=asked.share,
        max_draws=asked.max_draws,
        success=success,
        horizon=asked.horizon,
        batch=config.batch,
        simulations=asked.simulations,
        seed=config.seed,
    )


def _report(
    subjects: Sequence[Subject],
    question: Question,
    task: str,
    reward: str | None,
    out: Path | str | None,
    observer: Observer = lambda _: None,
) -> CoverageReport:
    draws = sum(subject.found.counts.eval_draws for subject in subjects)
    labels = sum(subject.found.counts.eval_labels for subject in subjects)

    def told(phase: str) -> None:
        observer(Progress(phase, draws, labels, 0))

    title = f"Is it a good enough foundation? {task}"
    report = CoverageReport(document(subjects, question, title=title, reward=reward, observe=told))
    if out is not None:
        told("write the report")
        report.write(out)
    return report


def _tested(config: RunConfig, own: Any) -> tuple[Any, ...]:
    """The maps to test: those asked for, or the candidates, and the run's own where it is none of them."""
    if config.coverage.features is not None:
        return config.coverage.features
    single = own[0] if isinstance(own, list) and len(own) == 1 else own
    candidates = CANDIDATES if config.server.url is None else SERVED
    return candidates if single in candidates else (*candidates, single)


def _names(models: Sequence[str]) -> dict[str, str]:
    """A short name for each model: the end of its path, as much of it as tells them apart."""
    for depth in range(1, 1 + max(len(Path(m).parts) for m in models)):
        names = ["/".join(Path(m).parts[-depth:]) for m in models]
        if len(set(names)) == len(models):
            return dict(zip(names, models, strict=True))
    raise InputError(f"models: expected different ones, got {', '.join(models)}: name each once")


def _short(model: Any) -> str:
    return Path(model).name if isinstance(model, str) else type(model).__name__


def _slug(name: str) -> str:
    """The name as a folder's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:64] or "model"


def _check(question: Question, draws: int, labels: int | None) -> None:
    whole = {"draws": (draws, 1), "max_draws": (question.max_draws, 1), "horizon": (question.horizon, 1)}
    whole["batch"] = (question.batch, 1)
    whole |= {"simulations": (question.simulations, 0), "labels": (0 if labels is None else labels, 0)}
    for name, (value, least) in whole.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name}: expected a whole number of at least {least}, got {value!r}")
    if not 0.0 < question.kl < math.inf:
        raise InputError(f"kl: expected a budget above 0 nats that is finite, got {question.kl}")
    if question.success is not None and not math.isfinite(question.success):
        raise InputError(f"success: expected a finite reward, got {question.success}")
    if not 0.0 < question.share < 1.0:
        raise InputError(f"share: expected a number between 0 and 1, got {question.share}")


def _check_source(source: Source, segments: Any = None) -> None:
    if segments is not None:
        parsed_segments(segments)
        if not source.free:
            raise InputError("segments: expected a free reward, as every answer rolled out is graded: leave it out")
    if not 0.0 <= source.noise_std < math.inf:
        raise InputError(f"reward_noise: expected a standard deviation of at least 0, got {source.noise_std}")
    if source.labels and source.reward is None:
        raise InputError(f"labels: expected a reward to buy {source.labels} of, got none: give a reward")
    if source.labels and source.free:
        raise InputError(f"labels: expected none where the reward is free, got {source.labels}: leave them out")


__all__ = ["CoverageReport", "Gathered", "coverage_job", "coverage_of_run", "coverage_report"]
