"""Features under test: what of the reward each feature map explains, and keeps of the gain, on prompts left out (ours).

Only differences within a prompt matter (THEORY 1), so rewards and features are taken less their prompt's mean. A fit
is a ridge regression on other prompts, its penalty chosen by cross-validation inside those: the Gram matrices of the
folds are all it takes. Nothing here costs a draw or a label.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np

from spannerlm.coverage import Interval
from spannerlm.errors import InputError
from spannerlm.explorers.learner import Learner
from spannerlm.foundation.pool import CONFIDENCE, Pool
from spannerlm.policy import beta_for_kl, padded
from spannerlm.records import Drawn, Draws, FloatArray, IntArray, Spec
from spannerlm.regression import LabelStats
from spannerlm.wording import count, few, share

FOLDS = 5
"""Parts of the prompts that are left out in turn; with fewer prompts than that, parts of each prompt's draws."""
PENALTIES = tuple(10.0 ** (k / 2.0) for k in range(-18, 3))
"""Ridge penalties tried, in units of the trace of the Gram matrix: 1e-9 (least squares) to 10 (next to nothing)."""
SPLITS = 4
"""Random ways to part the prompts: figures are their mean, and intervals hold what the parting changes."""
RESAMPLES = 1000
"""Of the prompts, for intervals; of the draws, with few prompts, a third as many."""
CARRIERS = 4.0
"""Prompts, counted by what they weigh, below which resampling them tells no bound."""
LABELLED = 20.0
"""The same of labels: a few lucky ones say little of what other labels would have shown."""
TOLERANCE = 0.02
"""A share, or R2, by which a map may fall short without being called worse."""
HALF = 0.5
"""Share of the optimum's gain below which the features are called the bottleneck."""
FINEST = 0.01
"""Half width of an interval at least: what other draws would have done to the fits is not in the resamples."""
WIDER = 1.5
"""The same for labels, as a factor: their fits rest on labels as few and as noisy as those that judge."""
WITHIN = 1.0 / 3.0
"""Share of the labels beyond one per prompt from which on R2 is of their variance within prompts alone."""
ROUNDING = 1e-12
"""Variance of features, and spread of labels, relative to the mean square and its root: taken for rounding."""
UNDEFINED = Interval(math.nan, math.nan, math.nan)
Folds = Literal["prompts", "draws"]
By = Literal["true reward", "labels"]


@dataclass(frozen=True)
class PartRow:
    """One named part of the reward on one map."""

    part: str
    variance: float
    """Its own within-prompt variance, as a share of the reward's; parts that go together need not add up to 1."""
    r2: Interval
    """What the map explains of it, on prompts left out; nan for a part that never varies within a prompt."""


@dataclass(frozen=True)
class MapRow:
    """One feature map under test."""

    map: str
    dim: int
    r2: Interval
    """Share of the reward's within-prompt variance that a linear fit explains on prompts left out. Below 0: worse than
    no prediction. Nan where the reward does not vary."""
    share: Interval
    """Share of the optimum's gain that tilting by that prediction keeps, at the same KL; nan where rewards are not
    free. About 0 where the map knows nothing, and below where it misleads."""
    parts: tuple[PartRow, ...]


@dataclass(frozen=True)
class Maps:
    """Every map of a pool under test, and which to use."""

    rows: tuple[MapRow, ...]
    best: str
    """The map to use."""
    reason: str
    """Why, in words and numbers."""
    by: By
    labels: int
    """Labels that it rests on; 0 where the reward is free."""
    folds: Folds
    """What was left out of the fits: with fewer than five prompts, some draws of each."""
    statements: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Group:
    """Draws of one prompt that are left out together: all of them, or a part where prompts are few."""

    prompt: int
    fold: int
    rows: IntArray
    """[n] of the prompt's draws."""
    counts: FloatArray
    """[n]"""
    targets: FloatArray
    """[n, T] the reward, then its parts, each less its mean over the group."""

    def features(self, pool: Pool, name: str) -> FloatArray:
        """[n, d] of one map, less their mean over the group."""
        phi = pool.draws[self.prompt].features[self.rows, pool.maps[name]]
        return np.asarray(phi - self.counts @ phi / self.counts.sum())


def maps(pool: Pool, *, kl: float, rng: np.random.Generator) -> Maps | None:
    """Every map of ``pool.maps`` under test, by the free true reward, else by the labels; None without either.

    ``kl``: the budget in nats per prompt, on average, at which gains are compared. Intervals resample the prompts with
    the fits kept (the draws, where prompts are fewer than 5). Raises `InputError` where ``kl`` is not positive or no
    map is named. Cost: no draws, no labels; time 4 N d^2 for N distinct draws, and 60 d^3, for each map.
    """
    if not kl > 0.0 or not pool.maps:
        raise InputError(f"maps: expected a KL above 0 and at least one map, got {kl} and {len(pool.maps)}: give both")
    if pool.rewards is not None:
        return _by_rewards(pool, kl, rng)
    if pool.labels is not None and len(pool.labels.values):
        return _by_labels(pool, rng)
    return None


def _by_rewards(pool: Pool, kl: float, rng: np.random.Generator) -> Maps | None:
    names, parts = list(pool.maps), list(pool.parts)
    measured = []
    for _ in range(SPLITS):
        groups = _groups(pool, rng)
        folds: Folds = "prompts" if len({g.prompt for g in groups}) >= FOLDS else "draws"
        if not groups:
            return None
        thetas = {name: _thetas(pool, name, groups) for name in names}
        predicted = [[g.features(pool, name) @ fit[g.fold] for g in groups] for name, fit in thetas.items()]
        measured.append(_measured(groups, predicted, kl, folds, rng))
    carriers = measured[0][1]
    sums = np.stack([found for found, _ in measured])  # [SPLITS, 1 + B, ..]
    replicates = np.concatenate([sums[:, 0].mean(axis=0, keepdims=True), *sums[:, 1:]])
    width, start = 1 + len(parts), (1 + len(names)) * (1 + len(parts))
    shares = [_ratios(replicates[:, start + m], replicates[:, start]) for m in range(1, 1 + len(names))]
    varies = [float(_ratios(replicates[:1, j], replicates[:1, 0])[0]) for j in range(width)]
    rows = []
    for name, kept, left in zip(names, shares, range(width, start, width), strict=True):
        fits = [_interval(1.0 - _ratios(replicates[:, left + j], replicates[:, j]), carriers[j]) for j in range(width)]
        told = tuple(PartRow(*row) for row in zip(parts, varies[1:], fits[1:], strict=True))
        rows.append(MapRow(name, _dim(pool, name), fits[0], _interval(kept, carriers[width]), told))
    if math.isnan(rows[0].r2.value):
        why = "The reward is the same for all draws of each prompt: no map can be told from another."
        return _undefined(rows, "true reward", 0, folds, why)
    best, reason = _best(rows, shares, "keeps", f"of the optimum's gain at KL = {few(kl)}")
    top = max(row.share.value for row in rows)
    if top < HALF:
        reason += f" The best keeps {share(top)}, less than half: the features are the bottleneck."
    still = [part for j, part in enumerate(parts, start=1) if not replicates[0, j] > 0.0]
    statements = _left_out(folds, folds, min(carriers[0], carriers[width]))
    if still:
        statements.append(f"Never varies within a prompt in these draws: {', '.join(still)}.")
    return Maps(tuple(rows), best, reason, "true reward", 0, folds, tuple(statements))


def _measured(
    groups: Sequence[_Group],
    predicted: Sequence[Sequence[FloatArray]],
    kl: float,
    folds: Folds,
    rng: np.random.Generator,
) -> tuple[FloatArray, FloatArray]:
    """([1 + B, (1 + M) (T + 1)], [T + 1]): sums over groups, of the data and of B resamples of them; their carriers.

    The sums: squares of the T targets, then of what is left of each by map 1, 2 ..; last, what tilting gains by the
    reward itself and by each map's prediction of it.
    """
    values = [np.concatenate([g.targets, *(g.targets - p[i] for p in predicted)], axis=1) for i, g in enumerate(groups)]
    scores = [np.stack([g.targets[:, 0], *(p[i][:, 0] for p in predicted)], axis=1) for i, g in enumerate(groups)]
    base = padded([g.counts / g.counts.sum() for g in groups])
    betas = np.array([beta_for_kl(base, padded([s[:, m] for s in scores]), kl) for m in range(scores[0].shape[1])])

    def sums(counts: Sequence[FloatArray]) -> FloatArray:
        out = []
        for g, c, v, s in zip(groups, counts, values, scores, strict=True):
            mean = c @ v / c.sum()
            weights = c[:, None] * np.exp(np.minimum(s - s[c > 0].max(axis=0), 0.0) / betas)
            gains = g.targets[:, 0] @ weights / weights.sum(axis=0) - mean[0]
            out.append(np.concatenate([np.maximum(c @ v**2 - c.sum() * mean**2, 0.0), c.sum() * gains]))
        return np.array(out)

    seen = [g.counts for g in groups]
    found, width = sums(seen), groups[0].targets.shape[1]
    if folds == "prompts":
        carried = np.concatenate([found[:, :width], found[:, [len(betas) * width]]], axis=1)
        return _resample(len(groups), RESAMPLES // SPLITS, rng) @ found, _carriers(np.maximum(carried, 0.0))
    again = []
    for _ in range(RESAMPLES // (3 * SPLITS)):
        drawn = [rng.multinomial(int(c.sum()), c / c.sum()).astype(np.float64) for c in seen]
        again.append(sums(drawn).sum(axis=0))
    single = np.repeat(np.concatenate([g.targets for g in groups]), np.concatenate(seen).astype(np.int64), axis=0) ** 2
    return np.array([found.sum(axis=0), *again]), _carriers(single[:, [*range(width), 0]].astype(np.float64))


def _groups(pool: Pool, rng: np.random.Generator) -> list[_Group]:
    """Graded draws by prompt, in folds of prompts; with few prompts, in folds of each prompt's distinct responses."""
    assert pool.rewards is not None  # the caller has looked
    found = []
    for x, d in enumerate(pool.draws):
        values = np.stack([pool.rewards[x], *(part[x] for part in pool.parts.values())], axis=1)
        rows = np.flatnonzero(np.all(np.isfinite(values), axis=1) & (d.counts > 0))
        if len(rows):
            found.append((x, rows, values[rows]))
    whole = len(found) >= FOLDS
    turns = rng.permutation(len(found))
    groups = []
    for position, (x, rows, values) in zip(turns, found, strict=True):
        where = np.full(len(rows), position % FOLDS) if whole else rng.permutation(len(rows)) % FOLDS
        for fold in np.unique(where):
            mine = where == fold
            counts = pool.draws[x].counts[rows[mine]].astype(np.float64)
            targets = values[mine] - counts @ values[mine] / counts.sum()
            targets[:, np.ptp(values[mine], axis=0) == 0.0] = 0.0
            groups.append(_Group(x, int(fold), rows[mine], counts, targets))
    return groups


def _thetas(pool: Pool, name: str, groups: Sequence[_Group]) -> dict[int, FloatArray]:
    """Fold -> [d, T] fit of every target on one map, on the other folds; 0 where the map never varies."""
    folds = sorted({g.fold for g in groups})
    d, t, size = _dim(pool, name), groups[0].targets.shape[1], 0.0
    outer = {k: np.zeros((d, d)) for k in folds}
    cross = {k: np.zeros((d, t)) for k in folds}
    for g in groups:
        phi = g.features(pool, name)
        size += float(g.counts @ np.sum(pool.draws[g.prompt].features[g.rows, pool.maps[name]] ** 2, axis=1))
        weighted = phi * g.counts[:, None]
        outer[g.fold] += weighted.T @ phi
        cross[g.fold] += weighted.T @ g.targets
    if sum(float(np.trace(gram)) for gram in outer.values()) <= ROUNDING * size:
        return {k: np.zeros((d, t)) for k in folds}
    return _fits(outer, cross)


def _fits(outer: Mapping[int, FloatArray], cross: Mapping[int, FloatArray]) -> dict[int, FloatArray]:
    """Fold -> [d, T] ridge fit on the other folds; for each target the penalty that predicts those best in turn."""
    folds = list(outer)
    whole, right = sum(outer.values(), np.zeros(1)), sum(cross.values(), np.zeros(1))
    trace = float(np.trace(whole))
    if len(folds) < 2:
        return {k: np.zeros_like(cross[k]) for k in folds}
    penalties = trace * np.asarray(PENALTIES)
    losses = {k: np.zeros((len(penalties), right.shape[1])) for k in folds}
    for j, k in combinations(folds, 2):  # a fit without both is judged on either, when the other is left out
        values, vectors = np.linalg.eigh(whole - outer[j] - outer[k])
        target = vectors.T @ (right - cross[j] - cross[k])
        turned = {i: (vectors.T @ outer[i] @ vectors, vectors.T @ cross[i]) for i in (j, k)}
        for level, penalty in enumerate(penalties):
            theta = target / (np.maximum(values, 0.0) + penalty)[:, None]
            for left_out, judge in ((j, k), (k, j)):
                gram, moment = turned[judge]
                losses[left_out][level] += np.sum(theta * (gram @ theta - 2.0 * moment), axis=0)
    found = {}
    for k in folds:
        values, vectors = np.linalg.eigh(whole - outer[k])
        chosen = penalties[np.argmin(losses[k], axis=0)]  # [T]
        found[k] = vectors @ (vectors.T @ (right - cross[k]) / (np.maximum(values, 0.0)[:, None] + chosen))
    return found


def _by_labels(pool: Pool, rng: np.random.Generator) -> Maps:
    assert pool.labels is not None  # the caller has looked
    prompts, rows, values = pool.labels.prompts, pool.labels.rows, pool.labels.values
    folds: Folds = "prompts" if len(np.unique(prompts)) >= FOLDS else "draws"
    keys = prompts[:, None] if folds == "prompts" else np.stack([prompts, rows], axis=1)
    unit = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)  # [k] what is left out and resampled together
    units = int(unit.max()) + 1
    splits = [(rng.permutation(units) % FOLDS)[unit] for _ in range(SPLITS)]
    within = len(values) - len(np.unique(prompts)) >= WITHIN * len(values)
    level = prompts if within else np.zeros_like(prompts)  # [k] labels of one level are compared with each other
    squares = _less_mean(values, level) ** 2
    resamples = [_resample(units, RESAMPLES // SPLITS, rng) for _ in splits]
    total = np.asarray(np.bincount(unit, squares, units), dtype=np.float64)
    flat = float(np.sqrt(total.sum())) <= ROUNDING * float(np.linalg.norm(values))
    total, carriers = (0.0 * total if flat else total), CARRIERS / LABELLED * float(_carriers(squares[:, None])[0])
    found, fits = [], []
    for name in pool.maps:
        errors = [_less_mean(values - predicted, level) for predicted in _predict_labels(pool, name, splits)]
        left = [np.bincount(unit, e**2, units) for e in errors]
        ratios = [1.0 - _ratios(w @ e, w @ total) for w, e in zip(resamples, left, strict=True)]
        fits.append(np.concatenate([np.mean(ratios, axis=0)[:1], *(ratio[1:] for ratio in ratios)]))
        found.append(MapRow(name, _dim(pool, name), _interval(fits[-1], carriers, WIDER), UNDEFINED, ()))
    if flat:
        return _undefined(
            found, "labels", len(values), folds, "The labels do not vary: no map can be told from another."
        )
    spread = f"of the {'within-prompt ' if within else ''}variance of {count(len(values))} labels"
    best, reason = _best(found, fits, "explains", spread)
    if max(row.r2.low for row in found) <= 0.0:
        reason += " None is sure to explain anything: with more labels one may."
    statements = [
        *_left_out(folds, "labels", carriers),
        "R2 is of the labels, noise included: 1 is not to be reached, and a low value may be noise.",
        "What share of the gain a map keeps is not told: labels alone are too noisy for that.",
    ]
    if not within:
        statements.append("Most prompts have one label: differences between prompts count as unexplained.")
    if not pool.labels.random:
        statements.append("The labels are no random draws: R2 is of what was labelled, not of what the model says.")
    return Maps(tuple(found), best, reason, "labels", len(values), folds, tuple(statements))


def _predict_labels(pool: Pool, name: str, splits: Sequence[IntArray]) -> FloatArray:
    """[SPLITS, k] each label, less its prompt's level, as other folds predict it by the fit that a run makes."""
    assert pool.labels is not None
    prompts, rows, values = pool.labels.prompts, pool.labels.rows, pool.labels.values
    x, dim = len(pool.prompts), _dim(pool, name)
    draws = tuple(Draws(i, d.responses, d.counts, d.features[:, pool.maps[name]]) for i, d in enumerate(pool.draws))
    learner = Learner.start(Spec(np.full(x, 1.0 / x), dim, len(values), None, 1)).absorb(Drawn(draws, pool.n * x))
    phi = np.array([draws[i].features[row] for i, row in zip(prompts, rows, strict=True)])
    predicted = np.zeros((len(splits), len(values)))
    for row, fold in zip(predicted, splits, strict=True):
        for k in np.unique(fold) if np.ptp(fold) else ():
            rest, mine = fold != k, fold == k
            stats = LabelStats.empty(x, dim).add(prompts[rest], phi[rest], values[rest] - np.mean(values[rest]))
            row[mine] = (phi[mine] - learner.centres[prompts[mine]]) @ replace(learner, stats=stats).theta
    return predicted


def _less_mean(values: FloatArray, groups: IntArray) -> FloatArray:
    """[k] the values less the mean of their group."""
    sizes = np.maximum(np.bincount(groups), 1)
    return np.asarray(values - (np.bincount(groups, values) / sizes)[groups])


def _resample(units: int, size: int, rng: np.random.Generator) -> FloatArray:
    """[1 + B, units] how often each counts: the data first, then resamples with replacement."""
    again = rng.multinomial(units, np.full(units, 1.0 / units), size=size).astype(np.float64)
    return np.concatenate([np.ones((1, units)), again])


def _ratios(above: FloatArray, below: FloatArray) -> FloatArray:
    """[n] ratios, nan where there is nothing to divide by."""
    return np.asarray(np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0.0))


def _carriers(carried: FloatArray) -> FloatArray:
    """[Q] how many units carry each column [units, Q], equally weighed: (sum)^2 / sum of squares; 0 where none does."""
    squares = np.sum(carried**2, axis=0)
    return np.asarray(np.divide(np.sum(carried, axis=0) ** 2, squares, out=np.zeros_like(squares), where=squares > 0.0))


def _interval(replicates: FloatArray, carriers: float, wider: float = 1.0) -> Interval:
    """Percentiles of the resamples, the data first; the trivial bounds where too few units carry the ratio."""
    if math.isnan(replicates[0]):
        return UNDEFINED
    value = min(1.0, float(replicates[0]))
    if carriers < CARRIERS:
        return Interval(value, min(0.0, value) if wider == 1.0 else -math.inf, 1.0)
    tail = 50.0 * (1.0 - CONFIDENCE)
    low, high = value + wider * (np.nanpercentile(replicates[1:], [tail, 100.0 - tail]) - value)
    return Interval(value, min(value - FINEST, float(low)), min(1.0, max(value + FINEST, float(high))))


def _best(rows: Sequence[MapRow], replicates: Sequence[FloatArray], verb: str, unit: str) -> tuple[str, str]:
    """(map to use, why): the smallest that is less than a standard error, or 2 points, behind the first."""
    first = int(np.argmax([r[0] for r in replicates]))
    behind = [replicates[first] - r for r in replicates]
    near = [m for m, gap in enumerate(behind) if gap[0] <= max(TOLERANCE, float(np.nanstd(gap[1:])))]
    best = min(near, key=lambda m: (rows[m].dim, -replicates[m][0]))
    told = f"{rows[best].map} ({rows[best].dim} dimensions) {verb} {share(replicates[best][0])} {unit}"
    if len(rows) == 1:
        return rows[best].map, f"{told}; no other map was tested."
    rival = first if best != first else max((m for m in range(len(rows)) if m != first), key=lambda m: replicates[m][0])
    other = f"{rows[rival].map} ({rows[rival].dim}) {verb} {share(replicates[rival][0])}"
    end = "which cannot be told from it, and fewer dimensions need fewer labels" if best != first else "the next best"
    return rows[best].map, f"{told}; {other}, {end}."


def _undefined(rows: Sequence[MapRow], by: By, labels: int, folds: Folds, why: str) -> Maps:
    """Nothing can be told apart: the smallest map will do."""
    return Maps(tuple(rows), min(rows, key=lambda row: row.dim).map, why, by, labels, folds, (why,))


def _dim(pool: Pool, name: str) -> int:
    return int(pool.draws[0].features[:0, pool.maps[name]].shape[1])


def _left_out(folds: Folds, what: str, carriers: float) -> list[str]:
    """What was left out of the fits, and whether that is enough for intervals."""
    told = f"Each map was fitted on four fifths of the prompts and judged on the rest, {FOLDS} times over."
    if folds == "draws":
        told = "Fewer than five prompts: fits were judged on draws left out, which says nothing of other prompts."
    few_carry = f"A few {what} carry nearly all of what is to be explained or gained: no bound can be given."
    return [told, few_carry] if carriers < CARRIERS else [told]
