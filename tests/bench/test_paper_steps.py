"""Locks on the page: growth of tokens and labels with length against slow fits, and the figures that show it."""

import math

import numpy as np
import pyarrow as pa
import pytest
from test_paper import grouped, job_rows

from spannerlm.bench import SCHEMA
from spannerlm.bench import paper_plan as plan
from spannerlm.bench.paper_claims import stepwise
from spannerlm.bench.paper_figures import FIGURES, build
from spannerlm.bench.paper_words import sentences


def lock_rows(task, variant, h, seed, reach, tokens, budget):
    """Rows of a lock: as ``job_rows``, opened (regret .04) at ``reach`` labels, ``tokens`` from the first row on."""
    rows = job_rows(task, variant, seed, reach, budget, end=0.04).to_pylist()
    sizes = {"horizon": h, "c_cov": 1.8**h, "c_cond": 1.8}
    return pa.Table.from_pylist(
        [{**row, "tokens": 0 if row["labels"] == 0 else round(tokens), **sizes} for row in rows], schema=SCHEMA
    )


def locked(steps, labels, whole, misses=()):
    """(h): tokens 100 H^steps and labels 100 (H / 4)^labels step by step, 10 2^(whole H) tokens of whole sequences."""
    tables = []
    for family, horizons in plan.STEPWISE.items():
        for h in horizons:
            for seed in range(4):
                task, reach = plan.lock_task(family, h), 20 * round(5 * (h / 4) ** labels)
                tokens = 100 * h**steps * (1 + 0.1 * seed)
                tables.append(lock_rows(task, "multi-turn-spanner", h, seed, reach, tokens, reach + 100))
                if h <= 8:
                    late = math.inf if h in misses else 40
                    tables.append(lock_rows(task, "directed", h, seed, late, 10 * 2.0 ** (whole * h), 200))
    return stepwise(grouped(tables))


def test_growth_with_length_is_fitted_in_tokens_and_labels_and_judged_by_what_it_is():
    good = locked(1.9, 1.0, 1.0)
    lock = good["delayed-lock"]
    ours, theirs = lock["methods"]["multi-turn-spanner"], lock["methods"]["directed"]
    assert ours["exponent_tokens"]["value"] == pytest.approx(1.9, abs=0.01)
    xs = np.log(plan.STEPWISE["delayed-lock"])
    values = [p["labels"]["value"] for p in ours["points"]]
    assert ours["exponent_labels"]["value"] == pytest.approx(np.polyfit(xs, np.log(values), 1)[0])
    assert theirs["rate_tokens"]["value"] == pytest.approx(1.0, abs=0.01)
    assert [p["tokens"] for p in lock["exact"]] == [pytest.approx(1.8**h * h) for h in plan.STEPWISE["delayed-lock"]]
    said = sentences({"h": good})["h"]
    assert "at most 2.1: holds) in tokens" in said[1]
    assert "at most 1.3: holds) in labels" in said[1]
    assert "at least 2^(0.8 H): holds" in said[2]
    assert "C_cov H = 42 tokens at H = 4" in said[3]
    assert not any("at most 1.3" in s for s in said if s.startswith("gated"))  # asked of delayed locks alone
    bad = sentences({"h": locked(2.5, 1.6, 0.3)})["h"]
    assert "at most 2.1: does not hold" in bad[1]
    assert "at most 1.3: does not hold" in bad[1]
    assert "at least 2^(0.8 H): does not hold" in bad[2]


def test_a_lock_that_was_not_opened_bounds_the_growth_from_below_only():
    said = sentences({"h": locked(1.9, 1.0, 0.5, misses=(8,))})["h"]
    assert "not reached by half of the seeds at H = 8; 4 seeds" in said[2]
    assert "with e = at least 0.50" in said[2]
    assert "at least 2^(0.8 H): undecided" in said[2]
    assert stepwise({}) == {}


def test_both_locks_are_drawn_and_only_what_is_there():
    numbers = {"h": locked(1.9, 1.0, 1.0, misses=(8,))}
    assert {name for name in FIGURES if build(name, numbers) is not None} == {"delayed", "gated"}
    assert build("gated", {"h": {"delayed-lock": numbers["h"]["delayed-lock"]}}) is None
