"""What a suite's rows say: labels to a target, medians and ratios with 95 % intervals, exponents, curves.

Intervals are percentile bootstraps over seeds. A seed that never got there counts as inf and stays inf: medians, order
statistics and ratios are taken with it, never without it. What infinities leave undecided widens the interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike

from spannerlm.errors import InputError
from spannerlm.records import FloatArray, IntArray

RESAMPLES = 2000
"""Bootstrap samples: the ends of a 95 % interval are then order statistics 51 and 1950, known to about half a percent
in level."""

Runs = Mapping[tuple[str, str], Mapping[int, pa.Table]]
"""(task, variant) -> seed -> rows of that job, labels rising."""


class Held(NamedTuple):
    """What it cost until the regret stayed low; inf where it never did."""

    labels: float
    draws: float
    rounds: float
    tokens: float
    """nan on a table, which has none."""


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval; nan where it is undefined."""

    value: float
    low: float
    high: float


NEVER = Held(*(4 * (float("inf"),)))
UNDEFINED = Interval(float("nan"), float("nan"), float("nan"))


def runs(rows: pa.Table) -> dict[tuple[str, str], dict[int, pa.Table]]:
    """The rows of each job that did not fail, by (task, variant) and seed, tasks and variants in the rows' order."""
    codes = rows["job"].combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.lexsort((rows["rounds"].to_numpy(), codes))
    ordered = rows.take(pa.array(order)).combine_chunks()
    ends = [*(np.flatnonzero(np.diff(codes[order])) + 1).tolist(), len(order)] if len(order) else []
    found: dict[tuple[str, str], dict[int, pa.Table]] = {}
    start = 0
    for end in ends:
        table = ordered.slice(start, end - start)
        first = {name: table[name][0].as_py() for name in ("task", "variant", "status", "seed")}
        seeds = found.setdefault((first["task"], first["variant"]), {})
        if first["status"] == "done":
            seeds[first["seed"]] = table
        start = end
    return found


def first_held(
    rows: pa.Table, share: float = 0.1, hold: int = 4, spacing: int | None = None, column: str = "regret"
) -> Held:
    """Costs at the first row of a job from which regret stays at most ``share`` of its start for ``hold`` checks.

    A check is a row; with ``spacing`` it is ``spacing`` labels: regret then stays low at every row of the next
    ``(hold - 1) * spacing`` labels, which is the same where a row comes every ``spacing`` labels. A job that ends
    before the checks do has not held: give it labels enough. Where the explorer stopped with labels left, its policy
    is final: what its last rows say then holds. ``column`` is the regret that counts, ``start`` what it begins with.
    """
    if hold < 1 or (spacing is not None and spacing < 1):
        raise InputError(f"first_held: expected hold and spacing of at least 1, got {hold} and {spacing}")
    labels, regret = _column(rows, "labels"), _column(rows, column)
    size = len(labels)
    outside = np.append(np.flatnonzero(~(regret <= share * _column(rows, "start"))), size)
    stopped = bool(rows["stopped"][0].as_py())
    next_outside = outside[np.searchsorted(outside, np.arange(size))]
    if spacing is None:
        last = np.arange(size) + hold - 1
        long_enough = (last < size) | stopped
    else:
        end = labels + (hold - 1) * spacing
        last = np.searchsorted(labels, end, side="right") - 1
        long_enough = (labels[-1] >= end) | stopped
    held = np.flatnonzero((next_outside > np.minimum(last, size - 1)) & long_enough)
    if len(held) == 0:
        return NEVER if rows["tokens"][0].is_valid else NEVER._replace(tokens=float("nan"))
    return Held(*(float(_column(rows, name)[held[0]]) for name in Held._fields))


def value_at(rows: pa.Table, labels: ArrayLike, column: str = "regret") -> FloatArray:
    """[k] what a column of one job was when these numbers of labels were bought: that of the last row until then."""
    at = np.searchsorted(_column(rows, "labels"), np.asarray(labels, dtype=np.float64), side="right") - 1
    return np.where(at >= 0, _column(rows, column)[np.maximum(at, 0)], np.nan)


def curve(tables: Sequence[pa.Table], labels: ArrayLike, column: str = "regret") -> list[Interval]:
    """[k] median over jobs, with interval, of a column at each of these numbers of labels."""
    values = np.array([value_at(table, labels, column) for table in tables])
    return [median(one) for one in values.T]


def geometric_mean(values: ArrayLike) -> Interval:
    """Geometric mean over seeds [S] of positive values, with its interval; nan makes all undefined."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or np.isnan(array).any():
        return UNDEFINED
    return Interval(float(_geometric(array)), *_ends(_geometric(array[_resamples(len(array))])))


def median(values: ArrayLike) -> Interval:
    """Median over seeds [S] with its interval; inf counts as larger than any number, nan makes all undefined.

    Below 6 seeds no interval of a median can reach 95 %: that of 4 seeds covers about 88 %, that of 2 half.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or np.isnan(array).any():
        return UNDEFINED
    low, high = _ends(_medians(array[_resamples(len(array))]))
    return Interval(float(_medians(array)), low, high)


def paired_ratio(values: ArrayLike, reference: ArrayLike) -> Interval:
    """Median over seeds [S] of value / reference, seed by seed, with its interval.

    inf / x is inf and x / inf is 0. inf / inf may be anything: the interval's low end takes it as 0 and its high end
    as inf, and the median is nan where the two disagree.
    """
    above, below = np.asarray(values, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if above.shape != below.shape:
        raise InputError(f"paired_ratio: expected one value a seed from each, got shapes {above.shape}, {below.shape}")
    unknown = np.isinf(above) & np.isinf(below)
    known = np.divide(above, below, out=np.zeros_like(above), where=~unknown)
    least, most = median(known), median(np.where(unknown, np.inf, known))
    return Interval(least.value if least.value == most.value else float("nan"), least.low, most.high)


def exponent(x: ArrayLike, y: ArrayLike, *, geometric: bool = False) -> Interval:
    """Least-squares slope of log median y over log x, with its interval; of the geometric mean if ``geometric``.

    ``x`` [m] positive, ``y`` [m, S] with one column per seed. Seeds are resampled as a whole, because they share their
    random numbers. nan where a median is not positive and finite; resamples in which one is widen the interval to
    -inf and inf.
    """
    across, values = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if values.ndim != 2 or across.shape != values.shape[:1] or len(across) < 2 or not np.all(across > 0.0):
        raise InputError(f"exponent: expected positive x [m >= 2] and y [m, S], got {across.shape} and {values.shape}")
    if values.shape[1] == 0 or np.isnan(values).any():
        return UNDEFINED
    middle = _geometric if geometric else _medians
    slope = float(_slopes(across, middle(values)[:, None])[0])
    if np.isnan(slope):
        return UNDEFINED
    slopes = _slopes(across, middle(values[:, _resamples(values.shape[1])]))
    low, _ = _ends(np.where(np.isnan(slopes), -np.inf, slopes))
    _, high = _ends(np.where(np.isnan(slopes), np.inf, slopes))
    return Interval(slope, low, high)


def summary(
    rows: pa.Table, reference: str, share: float = 0.1, hold: int = 4, spacing: int | None = 20
) -> list[dict[str, Any]]:
    """One record per task and variant: costs to the target with intervals, and ratios of labels, and of tokens
    (``ratio_tokens``; undefined on tables), to the reference.

    ``seeds`` counts jobs that finished, ``failed`` those that did not, ``reached`` is the share of seeds that got to
    the target, ``ratio`` is undefined where the reference has no seed in common, ``regret_share`` is the last
    regret as a share of the first, and ``warned`` the share of seeds with a warning in any row.
    """
    found = runs(rows)
    held = {key: {s: first_held(t, share, hold, spacing) for s, t in seeds.items()} for key, seeds in found.items()}
    failed = rows.filter(pc.equal(rows["status"], "failed"))
    fallen = list(zip(failed["task"].to_pylist(), failed["variant"].to_pylist(), strict=True))
    records = []
    for (task, variant), seeds in found.items():
        costs = held[task, variant]
        others = held.get((task, reference), {})
        common = [seed for seed in costs if seed in others]
        ratio, ratio_tokens = (
            paired_ratio([getattr(costs[s], name) for s in common], [getattr(others[s], name) for s in common])
            for name in ("labels", "tokens")
        )
        records.append(
            {
                "task": task,
                "variant": variant,
                "seeds": len(seeds),
                "failed": fallen.count((task, variant)),
                "reached": float(np.mean([np.isfinite(c.labels) for c in costs.values()])) if costs else float("nan"),
                **{name: median([getattr(c, name) for c in costs.values()]) for name in Held._fields},
                "ratio": ratio,
                "ratio_tokens": ratio_tokens,
                "regret_share": median([_last_share(table) for table in seeds.values()]),
                "warned": _share_warned(list(seeds.values())),
            }
        )
    return records


def _last_share(rows: pa.Table) -> float:
    """The last regret of a job as a share of its first; nan where there was none to begin with."""
    start = float(_column(rows, "start")[0])
    return float(_column(rows, "regret")[-1]) / start if start > 0.0 else float("nan")


def _share_warned(tables: Sequence[pa.Table]) -> float:
    warned = [table["warning"].null_count < table.num_rows for table in tables]
    return float(np.mean(warned)) if warned else float("nan")


def _column(rows: pa.Table, name: str) -> FloatArray:
    """[n] a column as float64, null as nan."""
    return np.asarray(rows[name].cast(pa.float64()).to_numpy(), dtype=np.float64)


def _resamples(size: int) -> IntArray:
    """[R, S] seeds of each bootstrap sample; the same ones each time, so that equal rows give equal intervals."""
    return np.random.default_rng(0).integers(size, size=(RESAMPLES, size))


def _medians(values: FloatArray) -> FloatArray:
    """[...] medians over the last axis, inf among them."""
    return np.asarray(np.median(values, axis=-1))


def _geometric(values: FloatArray) -> FloatArray:
    """[...] geometric means over the last axis of positive values, inf among them."""
    return np.asarray(np.exp(np.mean(np.log(values), axis=-1)))


def _ends(values: FloatArray) -> tuple[float, float]:
    """The 2.5 and 97.5 % order statistics of bootstrap values [R]: no interpolation, which inf would not survive."""
    ordered, cut = np.sort(values), RESAMPLES // 40
    return float(ordered[cut]), float(ordered[-cut - 1])


def _slopes(x: FloatArray, y: FloatArray) -> FloatArray:
    """[R] least-squares slopes of log y [m, R] over log x [m]; nan where a y is not positive and finite."""
    usable = np.all((y > 0.0) & np.isfinite(y), axis=0)
    across = np.log(x) - np.log(x).mean()
    slopes = across @ np.log(np.where(usable, y, 1.0)) / (across @ across)
    return np.where(usable, slopes, np.nan)
