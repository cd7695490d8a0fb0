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
from spannerlm.wording import count, few

FOLDS = 5
"""Parts of the prompts that are left out in turn; with fewer prompts than that, parts of each prompt's draws."""
PENALTIES = tuple(10.0 ** (k / 2.0) for k in range(-18, 3))
"""Ridge penalties tried, in units of the trace of the Gram matrix: 1e-9 (least squares) to 10 (next to nothing)."""
RESAMPLES = 999
"""Of the prompts, for intervals; of the draws, with few prompts, a third as many."""
CARRIERS = 4.0
"""Prompts, counted by what they weigh, from which on resampling them tells how far a ratio may be off."""
TOLERANCE = 0.02
"""A share, or R2, by which a map may fall short without being called worse."""
HALF = 0.5
"""Share of the optimum's gain below which the features are called the bottleneck."""
WITHIN = 1.0 / 3.0
"""Share of the labels beyond one per prompt from which on R2 is of their variance within prompts alone."""
ROUNDING = 1e-12
"""Variance, relative to the mean square, that is taken for rounding."""

Folds = Literal["prompts", "draws"]


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
    by: Literal["true reward", "labels"]
    labels: int
    """Labels that it rests on; 0 where the reward is free."""
    folds: Folds
    """What was left out of the fits."""
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
    map is named. Cost: no draws, no labels; time N d^2 for N distinct draws, and 15 d^3, for each map.
    """
    if not kl > 0.0 or not pool.maps:
        raise InputError(f"maps: expected a KL above 0 and at least one map, got {kl} and {len(pool.maps)}: give both")
    if pool.rewards is not None:
        return _by_rewards(pool, kl, rng)
    if pool.labels is not None and len(pool.labels.values):
        return _by_labels(pool, rng)
    return None


# --- free rewards ----------------------------------------------------------------------------------------------------


def _by_rewards(pool: Pool, kl: float, rng: np.random.Generator) -> Maps:
    groups = _groups(pool, rng)
    folds: Folds = "prompts" if len({g.prompt for g in groups}) >= FOLDS else "draws"
    if not groups:
        return _undefined(pool, "true reward", 0, folds, "The reward was declined for every draw: nothing is known.")
    names, parts = list(pool.maps), list(pool.parts)
    thetas = [_thetas(pool, name, groups) for name in names]
    predicted = [
        [g.features(pool, name) @ fit[g.fold] for g in groups] for name, fit in zip(names, thetas, strict=True)
    ]
    replicates, carriers = _measured(groups, predicted, kl, folds, rng)
    width, start = 1 + len(parts), (1 + len(names)) * (1 + len(parts))
    rows, shares = [], []
    for m, name in enumerate(names, start=1):
        errors = replicates[:, width * m : width * (m + 1)]
        fits = [_interval(1.0 - _ratios(errors[:, j], replicates[:, j]), carriers[j]) for j in range(width)]
        kept = _ratios(replicates[:, start + m], replicates[:, start])
        part_rows = tuple(
            PartRow(part, float(_ratios(replicates[:1, j], replicates[:1, 0])[0]), fits[j])
            for j, part in enumerate(parts, start=1)
        )
        shares.append(kept)
        rows.append(MapRow(name, _dim(pool, name), fits[0], _interval(kept, carriers[width]), part_rows))
    if math.isnan(rows[0].r2.value):
        why = "The reward is the same for all draws of each prompt: no map can be told from another."
        return replace(_undefined(pool, "true reward", 0, folds, why), rows=tuple(rows))
    best, reason = _best(rows, shares, "keeps", f"of the optimum's gain at KL = {few(kl)}")
    top = max(row.share.value for row in rows)
    if top < HALF:
        reason += f" The best keeps {_percent(top)}, less than half: the features are the bottleneck."
    still = [part for j, part in enumerate(parts, start=1) if not replicates[0, j] > 0.0]
    statements = [_left_out(folds)]
    if min(carriers[0], carriers[width]) < CARRIERS:
        statements.append(f"A few {folds} carry nearly all of the reward's variance or gain: no bound can be given.")
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
    scores = [
        np.stack([g.targets[:, 0], *(p[i][:, 0] for p in predicted)], axis=1) for i, g in enumerate(groups)
    ]  # [G] of [n, 1 + M]
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
        return _resample(len(groups), rng) @ found, _carriers(np.maximum(carried, 0.0))
    again = []
    for _ in range(RESAMPLES // 3):
        drawn = [rng.multinomial(int(c.sum()), c / c.sum()).astype(np.float64) for c in seen]
        again.append(sums(drawn).sum(axis=0))
    single = np.repeat(np.concatenate([g.targets for g in groups]), np.concatenate(seen).astype(np.int64), axis=0) ** 2
    return np.array([found.sum(axis=0), *again]), _carriers(single[:, [*range(width), 0]])


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


# --- labels ----------------------------------------------------------------------------------------------------------


def _by_labels(pool: Pool, rng: np.random.Generator) -> Maps:
    assert pool.labels is not None  # the caller has looked
    prompts, rows, values = pool.labels.prompts, pool.labels.rows, pool.labels.values
    k = len(values)
    folds: Folds = "prompts" if len(np.unique(prompts)) >= FOLDS else "draws"
    keys = prompts[:, None] if folds == "prompts" else np.stack([prompts, rows], axis=1)
    unit = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)  # [k] what is left out and resampled together
    units = int(unit.max()) + 1
    fold = (rng.permutation(units) % FOLDS)[unit]
    within = k - len(np.unique(prompts)) >= WITHIN * k
    level = prompts if within else np.zeros_like(prompts)  # [k] labels of one level are compared with each other
    centred = _less_mean(values, level)
    resamples = _resample(units, rng)
    total = np.bincount(unit, centred**2, units)
    flat = np.ptp(values) == 0.0 or float(total.sum()) <= ROUNDING * float(values @ values)
    found, fits = [], []
    for name in pool.maps:
        predicted = _predict_labels(pool, name, fold)
        errors = _less_mean(values - predicted, level)
        left = np.bincount(unit, errors**2, units)
        denominators = np.zeros(len(resamples)) if flat else resamples @ total
        fits.append(1.0 - _ratios(resamples @ left, denominators))
        r2 = _interval(fits[-1], float(_carriers(total[:, None])[0]))
        found.append(MapRow(name, _dim(pool, name), r2, Interval(math.nan, math.nan, math.nan), ()))
    if math.isnan(found[0].r2.value):
        why = "The labels do not vary: no map can be told from another." if flat else "Too few labels to judge a map."
        return replace(_undefined(pool, "labels", k, folds, why), rows=tuple(found))
    spread = "within-prompt variance" if within else "variance"
    best, reason = _best(found, fits, "explains", f"of the {spread} of {count(k)} labels")
    statements = [
        _left_out(folds),
        "R2 is of the labels, noise included: 1 is not to be reached, and a low value may be noise.",
        "What share of the gain a map keeps is not told: labels alone are too noisy for that.",
    ]
    if not within:
        statements.append("Most prompts have one label: differences between prompts count as unexplained.")
    if not pool.labels.random:
        statements.append(
            "The labels are no random draws: R2 is of the responses labelled, not of what the model says."
        )
    return Maps(tuple(found), best, reason, "labels", k, folds, tuple(statements))


def _predict_labels(pool: Pool, name: str, fold: IntArray) -> FloatArray:
    """[k] each label as those of the other folds predict it, less its prompt's level, by the fit that a run makes."""
    assert pool.labels is not None  # the caller has looked
    prompts, rows, values = pool.labels.prompts, pool.labels.rows, pool.labels.values
    x, dim = len(pool.prompts), _dim(pool, name)
    draws = tuple(Draws(i, d.responses, d.counts, d.features[:, pool.maps[name]]) for i, d in enumerate(pool.draws))
    learner = Learner.start(Spec(np.full(x, 1.0 / x), dim, len(values), None, 1)).absorb(Drawn(draws, pool.n * x))
    phi = np.array([draws[i].features[row] for i, row in zip(prompts, rows, strict=True)])
    predicted = np.zeros(len(values))
    for k in np.unique(fold):
        rest, mine = fold != k, fold == k
        if np.any(rest):
            stats = LabelStats.empty(x, dim).add(prompts[rest], phi[rest], values[rest])
            predicted[mine] = (phi[mine] - learner.centres[prompts[mine]]) @ replace(learner, stats=stats).theta
    return predicted


# --- figures and words -----------------------------------------------------------------------------------------------


def _less_mean(values: FloatArray, groups: IntArray) -> FloatArray:
    """[k] the values less the mean of their group."""
    sizes = np.maximum(np.bincount(groups), 1)
    return np.asarray(values - (np.bincount(groups, values) / sizes)[groups])


def _resample(units: int, rng: np.random.Generator) -> FloatArray:
    """[1 + B, units] how often each counts: the data first, then resamples with replacement."""
    again = rng.multinomial(units, np.full(units, 1.0 / units), size=RESAMPLES).astype(np.float64)
    return np.concatenate([np.ones((1, units)), again])


def _ratios(above: FloatArray, below: FloatArray) -> FloatArray:
    """[n] ratios, nan where there is nothing to divide by."""
    return np.asarray(np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0.0))


def _carriers(carried: FloatArray) -> FloatArray:
    """[Q] how many units carry each column [units, Q], equally weighed: (sum)^2 / sum of squares; 0 where none does."""
    squares = np.sum(carried**2, axis=0)
    return np.asarray(np.divide(np.sum(carried, axis=0) ** 2, squares, out=np.zeros_like(squares), where=squares > 0.0))


def _interval(replicates: FloatArray, carriers: float) -> Interval:
    """Percentiles of the resamples around the data's ratio; the trivial bounds where too few units carry it."""
    value = float(replicates[0])
    if math.isnan(value):
        return Interval(math.nan, math.nan, math.nan)
    if carriers < CARRIERS:
        return Interval(value, min(0.0, value), 1.0)
    tail = 50.0 * (1.0 - CONFIDENCE)
    low, high = np.nanpercentile(replicates[1:], [tail, 100.0 - tail])
    return Interval(value, min(value, float(low)), max(value, min(1.0, float(high))))


def _best(rows: Sequence[MapRow], replicates: Sequence[FloatArray], verb: str, unit: str) -> tuple[str, str]:
    """(map to use, why): the smallest that is less than a standard error, or 2 points, behind the first."""
    first = int(np.argmax([r[0] for r in replicates]))
    behind = [replicates[first] - r for r in replicates]
    near = [m for m, gap in enumerate(behind) if gap[0] <= max(TOLERANCE, float(np.nanstd(gap[1:])))]
    best = min(near, key=lambda m: (rows[m].dim, -replicates[m][0]))
    told = f"{rows[best].map} ({rows[best].dim} dimensions) {verb} {_percent(replicates[best][0])} {unit}"
    if len(rows) == 1:
        return rows[best].map, f"{told}; no other map was tested."
    if best != first:
        more = f"{rows[first].map} ({rows[first].dim}) {verb} {_percent(replicates[first][0])}"
        return rows[best].map, f"{told}; {more}, not distinguishably more, and fewer dimensions need fewer labels."
    second = max((m for m in range(len(rows)) if m != first), key=lambda m: replicates[m][0])
    other = f"{rows[second].map} ({rows[second].dim}), {verb} {_percent(replicates[second][0])}"
    return rows[best].map, f"{told}; the next, {other}."


def _undefined(pool: Pool, by: Literal["true reward", "labels"], labels: int, folds: Folds, why: str) -> Maps:
    """Nothing can be told apart: the smallest map will do."""
    nothing = Interval(math.nan, math.nan, math.nan)
    rows = tuple(
        MapRow(name, _dim(pool, name), nothing, nothing, tuple(PartRow(p, math.nan, nothing) for p in pool.parts))
        for name in pool.maps
    )
    return Maps(rows, min(rows, key=lambda row: row.dim).map, why, by, labels, folds, (why,))


def _dim(pool: Pool, name: str) -> int:
    return int(pool.draws[0].features[:0, pool.maps[name]].shape[1])


def _percent(share: float) -> str:
    return f"{100.0 * share:.0f} %"


def _left_out(folds: Folds) -> str:
    if folds == "prompts":
        return f"Each map was fitted on four fifths of the prompts and judged on the rest, {FOLDS} times."
    return "Fewer than five prompts: fits were judged on draws left out, which says nothing of other prompts."
