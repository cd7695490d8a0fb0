"""The stored rows of a finished run: everything its report shows, computed once (the schema of ``report.json``).

Baselines share the run's own draws and its reward, with ledgers of their own in memory: they cost the user nothing, and
are made only where the true reward is free.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from spannerlm.config import RunConfig
from spannerlm.coverage import Interval, draws_needed
from spannerlm.evaluation import Fit, Tilted, cross_validated_fit, knee, off_policy_value
from spannerlm.explorers import Explorer, Passive, RandomSingles
from spannerlm.ledger import Ledger
from spannerlm.logistic import LogisticPosterior
from spannerlm.measures import UNDEFINED, Measure, Measured
from spannerlm.oracle import RecordedOracle
from spannerlm.policy import Policy
from spannerlm.records import FloatArray
from spannerlm.run import Driver
from spannerlm.tasks import Task
from spannerlm.wording import GAIN

KLS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
"""KL budgets in nats of the value curve; beyond 4 the draws of one prompt hold too few good responses to tell."""
REPLIES = 3
"""Prompts shown, and replies of each before and after."""
BASELINES = {"scalar": "random-singles", "comparison": "random comparisons"}
"""Kind of label -> name of the random baseline: fresh base draws, rewarded singly or compared in pairs."""
GAIN_SAMPLES = 2000
"""Draws of theta behind the interval of a predicted gain."""
BASELINE_ROWS = 20
"""Label batches of the random baseline: as many rows as its curve needs."""
BASELINE_SEEDS = 5
"""Random runs of which the median is shown."""
MORE = 10
"""The random baseline is followed to this many times the labels."""


def summarise(run: Driver, task: Task, config: RunConfig, measured: Measured) -> dict[str, Any]:
    """The report mapping of a run that has stopped. No draws and no labels beyond the baselines' own."""
    policy = run.explorer.policy(run.state)
    learner = run.explorer.learner(run.state)
    counts = run.ledger.counts
    report: dict[str, Any] = {
        "title": f"{task.name}: {run.explorer.name} with {counts.labels} labels",
        "model": task.model_name,
        "task": task.name,
        "explorer": run.explorer.name,
        "seed": config.seed,
        "kl": config.kl,
        "reward_name": task.reward_name,
        "feedback": run.spec.feedback,
        "true_reward_free": task.truth is not None,
        "counts": asdict(counts),
        "history": run.history,
        "reason": run.reason,
        **spectrum(learner.covariance),
        "fit": _fit(run, config.seed),
        "baselines": {},
        "baseline_seeds": None,
        "table": [],
        "value_against_kl": {},
        "recommended": None,
        "draws_per_answer": [],
        "replies": [],
        "estimates": [],
    }
    measure = measured.measure
    if measure is None or counts.labels == 0:
        return report
    random = _baselines(run, task, config, measured)
    board = Board(measure, config.kl)
    curve = board.curve(measure.pool.scores(policy.theta))
    recommended = recommend(curve, board, measure.pool.scores(policy.theta))
    return {
        **report,
        "baselines": {BASELINES[run.spec.feedback]: random[-1].history} if random else {},
        "baseline_seeds": BASELINE_SEEDS if random else None,
        "table": board.table(run, random),
        "value_against_kl": {run.explorer.name: curve, **board.other_curves(random)},
        "recommended": recommended,
        "draws_per_answer": board.per_prompt(measure.pool.scores(policy.theta), recommended["kl"]),
        "replies": _replies(board, policy, task, rng=np.random.default_rng([config.seed, 13])),
        "estimates": _estimates(run, measured, policy),
    }


def spectrum(covariance: FloatArray) -> dict[str, Any]:
    """Eigenvalues of the covariance of relative features, falling, and their effective rank (exp of the entropy).

    Relative features phi(x, y, y') have twice this covariance: one factor for all, so the shape is the same.
    """
    values = np.maximum(np.linalg.eigvalsh(2.0 * covariance)[::-1], 0.0)
    shares = values[values > 0.0] / values.sum() if values.sum() > 0.0 else np.array([1.0])
    return {"spectrum": values.tolist(), "effective_rank": float(np.exp(-np.sum(shares * np.log(shares))))}


@dataclass(frozen=True, eq=False)
class Baseline:
    """A random-labels run on the same draws."""

    history: list[dict[str, Any]]
    theta: FloatArray
    """[d] at its last label."""


@dataclass(frozen=True)
class Board:
    """Values of policies at one KL and along a range of them, on the same held-out draws."""

    measure: Measure
    kl: float

    def point(self, tilted: Tilted) -> dict[str, Any]:
        """KL, value with interval, and draws per accepted response of one policy."""
        per_answer = float(np.mean(tilted.draws_per_answer()))
        kl = tilted.kl if np.isfinite(tilted.beta) else 0.0  # the base model's own is rounding
        return {"kl": kl, **asdict(self.measure.value(tilted)), "draws_per_answer": per_answer}

    def curve(self, scores: FloatArray) -> list[dict[str, Any]]:
        """One point per KL budget for the policy tilted by scores [X, n]."""
        return [{**self.point(self.measure.pool.at_kl(scores, kl)), "kl": kl} for kl in KLS]

    def per_prompt(self, scores: FloatArray, kl: float) -> list[float]:
        """[X] draws per accepted response at this KL budget."""
        return [float(c) for c in self.measure.pool.at_kl(scores, kl).draws_per_answer()]

    def table(self, run: Driver, random: tuple[Baseline, ...]) -> list[dict[str, Any]]:
        """Base model, random at the same and at ten times the labels, the explorer, the optimum: at equal KL."""
        pool, counts = self.measure.pool, run.ledger.counts
        base = self.point(pool.at_beta(np.zeros_like(pool.base), float("inf")))
        rows = [{"name": "base model", "labels": 0, "draws": 0, **base}]
        for name, other in zip(("random, same labels", f"random, {MORE}x labels"), random, strict=False):
            last = other.history[-1]
            rows.append({"name": name, "labels": last["labels"], "draws": last["draws"], **self._tilted(other.theta)})
        own = self._tilted(run.explorer.policy(run.state).theta)
        rows.append({"name": run.explorer.name, "labels": counts.labels, "draws": counts.draws, **own})
        truth = self.measure.rewards()
        if truth is not None:
            best = self.point(pool.at_kl(truth, self.kl))
            rows.append({"name": "true-reward optimum", "labels": None, "draws": None, **best})
        return rows

    def _tilted(self, theta: FloatArray) -> dict[str, Any]:
        return self.point(self.measure.pool.at_kl(self.measure.pool.scores(theta), self.kl))

    def other_curves(self, random: tuple[Baseline, ...]) -> dict[str, list[dict[str, Any]]]:
        """Value against KL of random labels, as many, and of the optimum, where known."""
        pool, truth = self.measure.pool, self.measure.rewards()
        curves = {}
        if random:
            curves["random, same labels"] = self.curve(pool.scores(random[0].theta))
        if truth is not None:
            curves["true-reward optimum"] = self.curve(truth)
        return curves


def _baselines(run: Driver, task: Task, config: RunConfig, measured: Measured) -> tuple[Baseline, ...]:
    """Random labels of the run's kind, as many and ten times as many; none where the true reward is not free.

    Which labels random draws happen to hit matters more than anything: of `BASELINE_SEEDS` runs with the run's labels
    the one of median value is kept, and followed on.
    """
    labels = run.ledger.counts.labels
    if not config.baselines or task.truth is None or labels == 0 or measured.measure is None:
        return ()
    with run.stopwatch.part("baselines"):
        seeds = [config.seed + i for i in range(BASELINE_SEEDS)]
        short = {seed: _random_labels(run, task, measured, labels, seed) for seed in seeds}
        seed = sorted(seeds, key=lambda k: short[k].history[-1]["value"])[len(seeds) // 2]
        return short[seed], _random_labels(run, task, measured, MORE * labels, seed)


def _random_labels(run: Driver, task: Task, measured: Measured, labels: int, seed: int) -> Baseline:
    """Random singles or random comparisons on the run's own draws; its draws cost no model call."""
    oracle = RecordedOracle(task.prompts, run.exploration_draws)
    explored = np.unique([draws.prompt for draws in run.exploration_draws])
    probs = np.zeros_like(run.spec.prompt_probs)
    probs[explored] = run.spec.prompt_probs[explored] / run.spec.prompt_probs[explored].sum()
    # One batch size for both lengths: the shorter run is then the beginning of the longer one.
    batch = max(run.spec.batch, MORE * run.ledger.counts.labels // BASELINE_ROWS)
    spec = replace(run.spec, prompt_probs=probs, labels=labels, draws=None, batch=batch)
    explorer: Explorer = RandomSingles() if spec.feedback == "scalar" else Passive()
    with Ledger.open(None, meta={}, prompts=task.prompts, columns=task.columns) as ledger:
        other = Driver(
            oracle, explorer, task.reward, ledger, spec, seed=seed, compare=task.compare, columns=task.columns
        )
        other.measure = measured.policy
        other.explore()
        return Baseline(other.history, other.explorer.policy(other.state).theta)


def recommend(curve: list[dict[str, Any]], board: Board, scores: FloatArray) -> dict[str, Any]:
    """The KL at the knee of the value curve, else the run's own, what it is worth and what one answer costs there."""
    kls, values = (np.array([row[key] for row in curve], dtype=np.float64) for key in ("kl", "value"))
    best = knee(kls, values)
    pool = board.measure.pool
    tilted = pool.at_kl(scores, board.kl if best is None else float(kls[best]))
    row = {**board.point(tilted), "kl": board.kl} if best is None else curve[best]
    gained = values[-1] - values[0]
    share = ""
    if gained > 0.0:
        share = f"{(row['value'] - values[0]) / gained:.0%} of what KL = {kls[-1]:g} nats gains over the base model"
    if best is not None:
        reason = f"the knee of the curve: {share}, and beyond it each nat buys less than the average nat"
    elif gained > 0.0:
        reason = f"the KL that was asked for: {share}; the curve has no knee, so how far to go is a matter of cost"
    else:
        reason = "the KL that was asked for: the curve gains nothing over the base model, or is not known"
    with np.errstate(divide="ignore"):
        scans = [
            draws_needed(np.log(q[: len(d.counts)] / w[: len(d.counts)]), d.counts)
            for q, w, d in zip(tilted.weights, tilted.base, pool.draws, strict=True)
        ]
    return {**row, "beta": tilted.beta, "draws_per_scan": float(np.mean(scans)), "reason": reason}


def _replies(board: Board, policy: Policy, task: Task, *, rng: np.random.Generator) -> list[dict[str, Any]]:
    """For the first held-out prompts, replies drawn from the base model and from the learned policy."""
    pool, truth = board.measure.pool, board.measure.rewards()
    tilted = pool.at_kl(pool.scores(policy.theta), board.kl)
    shown = []
    for x, draws in enumerate(pool.draws[:REPLIES]):

        def some(weights: FloatArray, x: int = x) -> list[dict[str, Any]]:
            rows = rng.choice(weights.shape[1], size=REPLIES, p=weights[x] / weights[x].sum())
            texts = pool.draws[x].responses
            return [{"text": texts[i], "reward": None if truth is None else float(truth[x, i])} for i in rows]

        shown.append({"prompt": task.prompts[draws.prompt], "before": some(pool.base), "after": some(tilted.weights)})
    return shown


def _fit(run: Driver, seed: int) -> dict[str, Any]:
    """Cross-validated fit of the features on rewards, and what it means in words; undefined for comparisons."""
    if run.spec.feedback == "comparison":
        fit = Fit(UNDEFINED, sum(label.value is not None for label, _ in run.labels_seen), 0, float("nan"))
        return _fit_row(fit, "not known: the fit is cross-validated on rewards only, and these labels are comparisons")
    seen = [(label, phi) for label, phi in run.labels_seen if label.value is not None and label.opponent is None]
    rows = [(label.prompt, phi, label.value) for label, phi in seen]
    prompts = np.array([x for x, _, _ in rows], dtype=np.int64)
    features = np.array([phi for _, phi, _ in rows]).reshape(len(rows), run.spec.dim)
    values = np.array([v for _, _, v in rows], dtype=np.float64)
    fit = cross_validated_fit(
        run.explorer.learner(run.state), prompts, features, values, rng=np.random.default_rng([seed, 17])
    )
    return _fit_row(fit, _reading(fit))


def _fit_row(fit: Fit, reading: str) -> dict[str, Any]:
    row = {"labels": fit.labels, "folds": fit.folds, "noise_std": fit.noise_std, "reading": reading}
    return {**asdict(fit.r2), "r2": fit.r2.value, **row}


def _reading(fit: Fit) -> str:
    if not np.isfinite(fit.r2.value):
        return "too few different labels to tell whether the features explain this reward"
    if fit.r2.value <= 0.0:
        share = "labels left out of the fit are predicted no better than by their mean"
    else:
        share = f"the features explain {fit.r2.value:.0%} of the variance of labels left out of the fit"
    if fit.r2.low > 0.3:
        return f"yes: {share}"
    if fit.r2.high < 0.1:
        return f"no: {share}; try other features before buying more labels"
    return f"{fit.labels} labels are too few to tell: {share}, and the interval is wide"


def _estimates(run: Driver, measured: Measured, policy: Policy) -> list[dict[str, Any]]:
    """What the run's own labels say of the learned policy's value, where the true reward is not free."""
    measure = measured.measure
    posterior = run.explorer.learner(run.state).posterior
    if measure is None or (measure.rewards() is not None and measured.sampled is None):
        return []
    tilted = measured.tilted(policy)
    found = [] if measure.rewards() is not None else [_prediction(posterior, measure, tilted)]
    if measured.sampled is not None and measured.plan is not None and posterior is not None:
        scores = measure.pool.scores(policy.theta)
        level = posterior.intercept if np.isfinite(posterior.intercept) else float(np.mean(measured.sampled.values))
        model = level + scores - np.sum(measure.pool.base * scores, axis=1, keepdims=True)
        note = f"doubly robust, from {len(measured.sampled.values)} labels bought for it on held-out prompts"
        base = measure.pool.at_beta(scores, float("inf"))
        for name, target in (("base model", base), ("learned policy", tilted)):
            value = off_policy_value(measured.sampled, measured.plan, target, model)
            found.append(_estimate(f"off-policy estimate, {name}", value, note))
    return found


def _prediction(posterior: Any, measure: Measure, tilted: Tilted) -> dict[str, Any]:
    """The value that the explorer's own labels predict; from comparisons the gain over the base model: no level."""
    if not isinstance(posterior, LogisticPosterior):
        note = "by the regression on the explorer's labels; holds as far as the features explain the reward"
        return _estimate("posterior prediction", measure.value(tilted), note)
    moved = tilted.weights - measure.pool.base  # [X, n]
    relative = np.mean([moved[x, : len(d.counts)] @ d.features for x, d in enumerate(measure.pool.draws)], axis=0)
    gains = posterior.sample(GAIN_SAMPLES, rng=np.random.default_rng(GAIN_SAMPLES)) @ relative
    low, high = np.quantile(gains, [0.025, 0.975])
    note = (
        f"by the regression on the explorer's comparisons, in units in which s = {posterior.scale:g}; "
        "holds as far as the features explain the reward"
    )
    value = Interval(float(relative @ posterior.mean), float(low), float(high))
    return _estimate(GAIN, value, note)


def _estimate(name: str, value: Interval = UNDEFINED, note: str = "") -> dict[str, Any]:
    return {"name": name, **asdict(value), "note": note}
