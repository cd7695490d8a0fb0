"""Batches: every draw once, none too large, similar lengths together."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_models import make, tiny_model

from spannerlm.backends.batching import MOST_ROWS, plan, rows_that_fit
from spannerlm.errors import InputError

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(("n", "rows"), [(1, 1), (5, 2), (3, 100), (7, 7), (10, 4)])
def test_every_draw_is_planned_once(n, rows):
    lengths = [4, 9, 2, 4]
    batches = plan(lengths, n, rows)
    drawn = [(p.prompt, p.start + k) for batch in batches for p in batch for k in range(p.n)]
    assert sorted(drawn) == [(i, k) for i in range(4) for k in range(n)]
    assert all(sum(p.n for p in batch) <= rows for batch in batches)
    assert len(batches) == -(-4 * n // rows)
    order = [lengths[p.prompt] for batch in batches for p in batch]
    assert order == sorted(order)


def test_no_prompts_and_no_draws_make_no_batches():
    assert plan([], 3, 8) == []
    assert plan([2], 0, 8) == []
    assert make().generate([], 3, rng=np.random.default_rng(0)) == ()
    with pytest.raises(InputError, match="n: expected a whole number above 0, got 0"):
        make().generate(["a"], 0, rng=np.random.default_rng(0))


def test_small_models_fill_a_batch_and_large_ones_share_memory():
    config = tiny_model("llama").config
    assert rows_that_fit(config, torch.device("cpu"), 4, 20) == MOST_ROWS
    config.update({"num_hidden_layers": 32, "num_key_value_heads": 32, "head_dim": 128, "vocab_size": 150_000})
    assert 1 <= rows_that_fit(config, torch.device("cpu"), 4, 2000) < 4
    assert 8 < rows_that_fit(config, torch.device("cpu"), 2, 100) < 64
