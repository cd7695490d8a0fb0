"""The draw itself: inversion of a distribution, and end-of-sequence ids as one event."""

from __future__ import annotations

import numpy as np
import pytest

from spannerlm.backends import decoding
from spannerlm.backends.decoding import distribution, pick
from spannerlm.errors import ModelError

torch = pytest.importorskip("torch")


def test_inversion_picks_the_first_token_beyond_u(monkeypatch):
    monkeypatch.setattr(decoding, "BLOCK", 7)  # several blocks
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(5), size=3)
    probs[1] = [0.0, 0.5, 0.0, 0.5, 0.0]
    rows, u = rng.integers(0, 3, size=200), rng.random(200)
    u[:2] = 0.0, np.nextafter(1.0, 0.0)
    rows[:2] = 1
    slow = [next(k for k in range(5) if probs[r, : k + 1].sum() > v) for r, v in zip(rows, u, strict=True)]
    np.testing.assert_array_equal(pick(torch.from_numpy(probs), rows, u), slow)
    assert set(np.array(slow)[rows == 1]) == {1, 3}


def test_logits_that_are_not_numbers_are_an_error():
    with pytest.raises(ModelError, match="not finite numbers; load it with dtype='float32'"):
        pick(distribution(torch.tensor([[0.0, float("nan")]]), ()), np.zeros(1, dtype=np.int64), np.array([0.5]))


def test_end_ids_are_merged_into_the_first():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    plain = torch.softmax(logits.double(), -1)[0]
    merged = distribution(logits, (2, 0))[0]
    np.testing.assert_allclose(merged, [0.0, plain[1], plain[2] + plain[0], plain[3]])
    np.testing.assert_allclose(distribution(logits, (2,))[0], plain)
