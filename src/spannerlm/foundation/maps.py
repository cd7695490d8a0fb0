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
from spannerlm.wording import count, few, short

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
    names = list(pool.maps)
    if not groups:
        return _undefined(pool, "true reward", 0, folds, "The reward was declined for every draw: nothing is known.")
    predicted = [_predict(pool, name, groups) for name in names]  # [M] of [G] of [n, T]
    targets = [g.targets for g in groups]
    base = padded([g.counts / g.counts.sum() for g in groups])
    rows = [np.concatenate([t, *(t - p[i] for p in predicted)], axis=1) for i, t in enumerate(targets)]
    scores = [[t[:, 0] for t in targets], *([p[:, 0] for p in prediction] for prediction in predicted)]
    betas = [beta_for_kl(base, padded(score), kl) for score in scores]
    tilts = [
        np.stack([_weights(score[i], beta) for score, beta in zip(scores, betas, strict=True)], axis=1)
        for i in range(len(groups))
    ]  # [G] of [n, 1 + M]

    def sums(counts: Sequence[FloatArray]) -> FloatArray:
        """[G, T (1 + M) + 1 + M] squares within each group, then what each tilt gains there."""
        out = []
        for c, v, w, t in zip(counts, rows, tilts, targets, strict=True):
            mean = c @ v / c.sum()
            out.append(np.concatenate([c @ v**2 - c.sum() * mean**2, (c * t[:, 0]) @ w / (c @ w) - mean[0]]))
        return np.array(out)

    replicates = _resampled(groups, sums, folds, rng)  # [1 + B, Q], the data first
    carried = sums([g.counts for g in groups])  # [G, Q]
    width, t = targets[0].shape[1], len(names)
    parts = list(pool.parts)
    scale = sum(float(g.counts @ g.targets[:, 0] ** 2) for g in groups)
    rows_out, shares, explained = [], [], []
    for m, name in enumerate(names):
        errors = replicates[:, width * (m + 1) : width * (m + 2)]
        fits = [_ratios(errors[:, j], replicates[:, j], less=True) for j in range(width)]
        gain = _ratios(replicates[:, width * (t + 1) + m + 1], replicates[:, width * (t + 1)])
        shares.append(gain)
        explained.append(fits[0])
        part_rows = tuple(
            PartRow(
                part,
                _over(replicates[0, j], scale),
                _interval(fits[j], carried[:, j], folds),
            )
            for j, part in enumerate(parts, start=1)
        )
        share = _interval(gain, np.maximum(carried[:, width * (t + 1)], 0.0), folds)
        rows_out.append(MapRow(name, _dim(pool, name), _interval(fits[0], carried[:, 0], folds), share, part_rows))
    if math.isnan(rows_out[0].r2.value):
        why = "The reward is the same for all draws of each prompt: no map can be told from another."
        return replace(_undefined(pool, "true reward", 0, folds, why), rows=tuple(rows_out))
    best, reason = _best(rows_out, shares, f"of the optimum's gain at KL = {few(kl)}")
    if max(row.share.value for row in rows_out) < HALF:
        reason += f" No map keeps {100 * HALF:.0f} %: the features are the bottleneck, not labels or draws."
    statements = [_how(folds, "reward"), *_carriers(carried[:, 0], folds), *_still(pool, replicates[0], len(parts))]
    return Maps(tuple(rows_out), best, reason, "true reward", 0, folds, tuple(statements))


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


def _predict(pool: Pool, name: str, groups: Sequence[_Group]) -> list[FloatArray]:
    """[G] of [n, T]: each target of each group as the other folds predict it from one map."""
    folds = sorted({g.fold for g in groups})
    d, t = _dim(pool, name), groups[0].targets.shape[1]
    outer = {k: np.zeros((d, d)) for k in folds}
    cross = {k: np.zeros((d, t)) for k in folds}
    for g in groups:
        phi = g.features(pool, name)
        weighted = phi * g.counts[:, None]
        outer[g.fold] += weighted.T @ phi
        cross[g.fold] += weighted.T @ g.targets
    thetas = _fits(outer, cross)
    return [g.features(pool, name) @ thetas[g.fold] for g in groups]


def _fits(outer: Mapping[int, FloatArray], cross: Mapping[int, FloatArray]) -> dict[int, FloatArray]:
    """Fold -> [d, T] ridge fit on the other folds; for each target the penalty that predicts those best in turn."""
    folds = list(outer)
    whole, right = sum(outer.values(), np.zeros(1)), sum(cross.values(), np.zeros(1))
    trace = float(np.trace(whole))
    if len(folds) < 2 or trace <= 0.0:
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
