"""Statistics of a suite against slow rewrites, infinities included."""

import math
import statistics as slow

import numpy as np
import pyarrow as pa
import pytest

from spannerlm.bench.rows import SCHEMA
from spannerlm.bench.statistics import (
    NEVER,
    RESAMPLES,
    curve,
    exponent,
    first_held,
    geometric_mean,
    median,
    paired_ratio,
    runs,
    summary,
    value_at,
)
from spannerlm.errors import InputError

INF, NAN = math.inf, math.nan


def table(labels, regret, **given):
    """Rows of one job; draws are 10 times the labels, tokens 5 times the draws."""
    fixed = {"job": "a", "suite": "s", "task": "t", "variant": "v", "explorer": "v", "environment": "e", "seed": 0}
    fixed |= {"start": float(regret[0]), "phase": "x", "status": "done", **given}
    rows = [
        {**fixed, "labels": int(n), "draws": 10 * int(n), "tokens": 50 * int(n), "rounds": i, "regret": float(r)}
        for i, (n, r) in enumerate(zip(labels, regret, strict=True))
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def slowly_held(labels, regret, share, hold, spacing):
    for i, first in enumerate(labels):
        if spacing is None:
            window = regret[i : i + hold]
            if len(window) < hold:
                continue
        else:
            end = first + (hold - 1) * spacing
            if labels[-1] < end:
                continue
            window = [r for n, r in zip(labels, regret, strict=True) if first <= n <= end]
        if all(r <= share * regret[0] for r in window):
            return labels[i], 10 * labels[i], i, 50 * labels[i]
    return NEVER


@pytest.mark.parametrize("spacing", [None, 1, 7, 20])
def test_first_held_is_the_first_row_of_a_window_that_stays_low(spacing):
    rng = np.random.default_rng(0)
    found = []
    for _ in range(300):
        labels = [0, *np.cumsum(rng.integers(1, 9, size=rng.integers(1, 40)))]
        regret = [1.0, *(10.0 ** rng.uniform(-2.5, 0.5 if rng.random() < 0.1 else -0.9, size=len(labels) - 1))]
        hold = int(rng.integers(1, 6))
        held = first_held(table(labels, regret), share=0.1, hold=hold, spacing=spacing)
        assert tuple(held) == tuple(slowly_held(labels, regret, 0.1, hold, spacing))
        found.append(held.labels)
    assert 0.2 < np.mean(np.isfinite(found)) < 0.98  # both outcomes were met


@pytest.mark.parametrize("low", [0.05, 0.5])
def test_a_table_has_no_tokens_whether_it_held_or_not(low):
    rows = table(range(0, 160, 20), [1.0, *[low] * 7])
    position = rows.schema.get_field_index("tokens")
    tokenless = rows.set_column(position, SCHEMA.field("tokens"), pa.nulls(rows.num_rows, pa.int64()))
    assert first_held(tokenless)[:3] == first_held(rows)[:3]
    assert math.isnan(first_held(tokenless).tokens)
    record = summary(tokenless, "v")[0]
    assert math.isnan(record["tokens"].value)
    assert math.isnan(record["ratio_tokens"].value)
    assert summary(rows, "v")[0]["tokens"].value == (1000.0 if low < 0.1 else INF)


def test_first_held_with_rows_every_spacing_labels_is_the_count_of_rows():
    regret = [1.0, 0.05, 0.3, 0.1, 0.02, 0.1, 0.09, 0.4]
    rows = table(range(0, 160, 20), regret)
    assert first_held(rows) == first_held(rows, spacing=20) == (60.0, 600.0, 3.0, 3000.0)
    assert first_held(rows, hold=5) == NEVER


def test_an_undefined_regret_is_never_low_and_the_record_must_be_long_enough():
    assert first_held(table([0, 20, 40, 60], [1.0, NAN, NAN, NAN]), hold=1) == NEVER
    assert first_held(table([0, 20, 40], [1.0, 0.0, 0.0]), hold=3, spacing=20) == NEVER
    assert first_held(table([0, 20, 40, 60], [0.0] * 4)).labels == 0.0  # nothing to learn
    with pytest.raises(InputError, match="at least 1, got 0"):
        first_held(table([0], [1.0]), hold=0)


def test_an_explorer_that_stopped_by_itself_holds_what_it_ended_with():
    rows = [1.0, 0.5, 0.05, 0.02]
    for spacing in (None, 20):
        assert first_held(table([0, 20, 40, 60], rows), spacing=spacing) == NEVER
        assert first_held(table([0, 20, 40, 60], rows, stopped=True), spacing=spacing).labels == 40.0
        assert first_held(table([0, 20, 40, 60], [*rows[:3], 0.2], stopped=True), spacing=spacing) == NEVER


def test_requests_of_uneven_size_count_from_the_first_row_at_or_beyond_each_spacing():
    labels = [0, 4, 9, 14, 18, 23, 28, 32, 37, 42, 46, 51, 56, 60, 65, 69, 74]
    regret = [1.0, 0.5, 0.5, *[0.05] * 14]
    assert first_held(table(labels, regret), spacing=20).labels == 14.0  # 74 labels are there
    assert first_held(table(labels[:-1], regret[:-1]), spacing=20) == NEVER  # they are not
    regret[13] = 0.3  # at 60 labels, within the 60 that follow 14
    assert first_held(table(labels, regret), spacing=20) == NEVER


def test_the_regret_that_counts_may_be_that_of_what_was_drawn():
    rows = table(range(0, 120, 20), [1.0, 0.05, 0.05, 0.05, 0.05, 0.05])
    drawn = pa.array([1.0, 0.9, 0.05, 0.05, 0.05, 0.05], pa.float64())
    rows = rows.set_column(rows.schema.names.index("regret_drawn"), "regret_drawn", drawn)
    assert (first_held(rows).labels, first_held(rows, column="regret_drawn").labels) == (20.0, 40.0)


def resampled(values):
    """Every bootstrap sample, as lists."""
    rows = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    return [[values[i] for i in row] for row in rows]


def ends(values):
    """A share of 2.5 % of the values lies below the first and above the second."""
    ordered = sorted(values)
    return ordered[RESAMPLES // 40], ordered[-RESAMPLES // 40 - 1]


@pytest.mark.parametrize("values", [[3.0], [5.0, 1.0, 2.0, 9.0], [4.0, INF, 1.0, 2.0, INF], [INF, INF], [1.0, INF]])
def test_median_and_its_interval_take_inf_as_a_number(values):
    found = median(values)
    assert found.value == slow.median(values)
    assert (found.low, found.high) == ends([slow.median(sample) for sample in resampled(values)])


def test_median_of_nothing_or_of_the_undefined_is_undefined():
    for values in ([], [1.0, NAN]):
        assert all(map(math.isnan, (median(values).value, median(values).low, median(values).high)))


def test_the_interval_covers_the_true_median_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    inside = [found.low <= 0.0 <= found.high for found in (median(rng.standard_normal(20)) for _ in range(400))]
    assert (
        abs(np.mean(inside) - 0.95) < 3.0 * math.sqrt(0.95 * 0.05 / 400) + 0.02
    )  # the bootstrap itself is off by 1-2 %


def test_paired_ratio_without_infinities_is_the_median_of_ratios():
    values, reference = [4.0, 9.0, 1.0, 5.0], [2.0, 3.0, 4.0, 5.0]
    assert paired_ratio(values, reference) == median([2.0, 3.0, 0.25, 1.0])


def test_paired_ratio_holds_whatever_the_undecided_pairs_may_be():
    values, reference = [INF, 6.0, INF, 2.0, 3.0], [INF, 2.0, 4.0, INF, 1.0]
    found = paired_ratio(values, reference)
    for guess in (0.0, 0.5, 3.0, 100.0, INF):
        decided = median([guess, 3.0, INF, 0.0, 3.0])
        assert found.low <= decided.low
        assert decided.high <= found.high
    assert found.value == 3.0  # the undecided pair does not move the median
    assert math.isnan(paired_ratio([INF, INF], [INF, INF]).value)
    assert (paired_ratio([INF], [INF]).low, paired_ratio([INF], [INF]).high) == (0.0, INF)
    assert paired_ratio([INF, INF, INF], [1.0, 2.0, 3.0]).low == INF
    with pytest.raises(InputError, match="one value a seed"):
        paired_ratio([1.0], [1.0, 2.0])


def test_exponent_is_the_slope_through_the_medians_and_seeds_are_resampled_as_a_whole():
    rng = np.random.default_rng(2)
    x = np.array([2.0, 8.0, 16.0, 100.0])
    y = 3.0 * x[:, None] ** 0.7 * np.exp(0.3 * rng.standard_normal((4, 9)))
    found = exponent(x, y)
    assert found.value == pytest.approx(np.polyfit(np.log(x), np.log(np.median(y, axis=1)), 1)[0], rel=1e-10)
    slopes = [
        np.polyfit(np.log(x), np.log(np.median(np.array(sample).T, axis=1)), 1)[0] for sample in resampled(list(y.T))
    ]
    assert (found.low, found.high) == pytest.approx(ends(slopes), rel=1e-10)
    exact = exponent(x, np.repeat(5.0 * x[:, None] ** 1.5, 3, axis=1))
    assert (exact.value, exact.low, exact.high) == pytest.approx((1.5, 1.5, 1.5))


def test_exponent_with_infinite_medians_is_undefined_and_with_few_infinities_widens():
    assert math.isnan(exponent([1.0, 2.0], [[1.0, 1.0], [INF, INF]]).value)
    wide = exponent([1.0, 2.0], [[1.0, 1.0, 1.0], [4.0, 4.0, INF]])
    assert (wide.value, wide.low, wide.high) == (pytest.approx(2.0), -INF, INF)
    for x, y in (([1.0], [[1.0]]), ([1.0, -1.0], [[1.0], [1.0]]), ([1.0, 2.0], [1.0, 2.0])):
        with pytest.raises(InputError, match="exponent: expected positive x"):
            exponent(x, y)


def test_exponent_of_geometric_means_uses_every_seed():
    rng = np.random.default_rng(4)
    x = np.array([1.0, 4.0, 16.0])
    y = 2.0 * x[:, None] ** 1.2 * np.exp(rng.standard_normal((3, 7)))
    found = exponent(x, y, geometric=True)
    assert found.value == pytest.approx(np.polyfit(np.log(x), np.log(y).mean(axis=1), 1)[0], rel=1e-10)
    middle = geometric_mean(y[0])
    assert middle.value == pytest.approx(slow.geometric_mean(y[0]))
    assert (middle.low, middle.high) == pytest.approx(ends([slow.geometric_mean(s) for s in resampled(list(y[0]))]))
    assert math.isnan(geometric_mean([]).value)


def test_value_at_is_the_last_row_until_then_and_curve_its_median():
    rng = np.random.default_rng(3)
    tables = []
    for _ in range(5):
        labels = np.cumsum(rng.integers(1, 9, size=12))
        tables.append(table(labels, rng.random(12)))
    at = [0, 5, 17, 30, 1000]
    for rows in tables:
        pairs = list(zip(rows["labels"].to_pylist(), rows["regret"].to_pylist(), strict=True))
        expected = [next((r for n, r in reversed(pairs) if n <= k), NAN) for k in at]
        np.testing.assert_array_equal(value_at(rows, at), expected)
    found = curve(tables, at)
    assert math.isnan(found[0].value)
    assert found[3] == median([value_at(rows, [30])[0] for rows in tables])


def suite_rows():
    """Two tasks, two variants, three seeds; one job failed and one never got there."""
    tables = []
    for task in ("one", "two"):
        for seed in range(3):
            for variant, factor in (("ours", 1), ("theirs", 2)):
                n = 20 * factor * (seed + 1)
                labels = range(0, 400, 20)
                low = 0.5 if (task, variant, seed) == ("two", "theirs", 2) else 0.01
                regret = [1.0 if x < n else low for x in labels]
                warning = "misfit" if task == "two" else None
                key = {"job": f"{task}{variant}{seed}", "task": task, "variant": variant, "seed": seed}
                tables.append(table(labels, regret, warning=warning, **key))
    failed = table([0], [0.0], job="f", task="two", variant="ours", seed=3, status="failed", error="E: x")
    return pa.concat_tables([*tables, failed])


def test_runs_groups_rows_in_any_order_by_task_variant_and_seed():
    rows = suite_rows()
    shuffled = rows.take(pa.array(np.random.default_rng(0).permutation(rows.num_rows)))
    found = runs(shuffled)
    assert {key: sorted(seeds) for key, seeds in found.items()} == {
        (task, variant): [0, 1, 2] for task in ("one", "two") for variant in ("ours", "theirs")
    }
    assert all(t["labels"].to_pylist() == list(range(0, 400, 20)) for seeds in found.values() for t in seeds.values())
    assert runs(SCHEMA.empty_table()) == {}


def test_summary_gives_costs_ratios_and_shares_for_each_task_and_variant():
    found = {(r["task"], r["variant"]): r for r in summary(suite_rows(), "ours")}
    assert list(found) == [("one", "ours"), ("one", "theirs"), ("two", "ours"), ("two", "theirs")]
    assert found["one", "ours"]["labels"] == median([20.0, 40.0, 60.0])
    assert found["one", "theirs"]["draws"].value == 800.0
    assert found["one", "theirs"]["rounds"].value == 4.0
    assert found["one", "theirs"]["ratio"] == median([2.0, 2.0, 2.0])
    assert found["two", "theirs"]["ratio"] == median([2.0, 2.0, INF])
    assert found["two", "theirs"]["reached"] == pytest.approx(2 / 3)
    assert (found["two", "ours"]["seeds"], found["two", "ours"]["failed"]) == (3, 1)
    assert (found["one", "ours"]["warned"], found["two", "ours"]["warned"]) == (0.0, 1.0)
    assert found["one", "ours"]["regret_share"].value == pytest.approx(0.01)
    assert math.isnan(summary(suite_rows(), "nobody")[0]["ratio"].value)
