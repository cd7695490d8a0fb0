"""Recorded draws as an oracle: the law of what was stored, and the same books as any other."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chisquare

from spannerlm.errors import InputError
from spannerlm.oracle import RecordedOracle
from spannerlm.records import Draws


def record(prompt: int, **counts: int) -> Draws:
    """Draws whose features tell the response: its first letter's number, and 1."""
    features = np.array([[float(ord(response[0])), 1.0] for response in counts])
    return Draws(prompt, tuple(counts), np.array(list(counts.values())), features)


STORED = [record(0, a=5, b=1, c=2), record(2, d=1), record(0, b=3, e=4)]
ORACLE = RecordedOracle(["p", "q", "r"], STORED)


def test_draws_have_the_stored_frequencies() -> None:
    """30,000 draws against the pooled frequencies of both records; a chi-square at 1e-6."""
    (drawn,) = ORACLE.draw([0], 30_000, rng=np.random.default_rng(1))
    counts = dict(zip(drawn.responses, drawn.counts, strict=True))
    assert set(counts) == set("abce")
    expected = 30_000 * np.array([5, 4, 2, 4]) / 15
    assert chisquare([counts[y] for y in "abce"], expected).pvalue > 1e-6


def test_draws_are_with_replacement_and_independent() -> None:
    """Counts of 2,000 pairs of draws are multinomial: their variance is n p (1 - p), within five standard errors."""
    rng = np.random.default_rng(2)
    found = [ORACLE.draw([0], 2, rng=rng)[0] for _ in range(2000)]
    twice = np.array([dict(zip(d.responses, d.counts, strict=True)).get("a", 0) for d in found])
    for k, p in enumerate([4 / 9, 4 / 9, 1 / 9]):
        assert abs(np.mean(twice == k) - p) < 5 * np.sqrt(p * (1 - p) / 2000)


def test_books_of_what_was_drawn() -> None:
    drawn = ORACLE.draw([2, 0, 0], 50, rng=np.random.default_rng(3))
    assert [d.prompt for d in drawn] == [2, 0, 0]
    for d in drawn:
        assert d.counts.sum() == 50
        assert d.counts.min() > 0
        assert len(set(d.responses)) == len(d.responses), "a record lists each response once"
        np.testing.assert_array_equal(d.features[:, 0], [ord(y) for y in d.responses])
    assert drawn[0].responses == ("d",)
    assert drawn[1].counts.tolist() != drawn[2].counts.tolist()
    assert ORACLE.dim == 2
    assert list(ORACLE.prompts) == ["p", "q", "r"]


def test_the_same_seed_draws_the_same() -> None:
    first, again = (ORACLE.draw([0], 40, rng=np.random.default_rng(4))[0] for _ in range(2))
    assert first.responses == again.responses
    np.testing.assert_array_equal(first.counts, again.counts)


def test_what_was_not_recorded_can_not_be_drawn() -> None:
    with pytest.raises(InputError, match=r"prompt 1.*stored draws"):
        ORACLE.draw([1], 5, rng=np.random.default_rng(5))
    with pytest.raises(InputError, match="at least one stored draw"):
        RecordedOracle(["p"], [])
