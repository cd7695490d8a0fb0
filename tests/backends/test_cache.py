"""Rows that branch and end: the cache against copying everything."""

from __future__ import annotations

import numpy as np
import pytest

from spannerlm.backends.cache import RowBuffer, make_cache, move_rows, plan_move

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def random_parents(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Between 1 and 2 * rows children, each row's number at random, often 0."""
    children = rng.choice([0, 1, 1, 2, 4], size=rows)
    children[rng.integers(rows)] += 1
    return np.repeat(np.arange(rows), children)


def test_a_plan_puts_every_child_behind_its_parent_with_the_fewest_copies():
    rng = np.random.default_rng(0)
    for _ in range(300):
        rows = int(rng.integers(1, 12))
        parents = random_parents(rng, rows)
        plan = plan_move(parents)
        content = np.arange(max(rows, len(parents)))
        content[plan.targets] = content[plan.sources]
        assert sorted(plan.order.tolist()) == list(range(len(parents)))
        np.testing.assert_array_equal(content[: plan.rows], parents[plan.order])
        assert not set(plan.sources) & set(plan.targets)
        stay = sum(p < len(parents) for p in set(parents.tolist()))
        assert len(plan.sources) == len(parents) - stay


@pytest.mark.parametrize("room", [(1, 1), (64, 64)])
def test_buffers_hold_what_copying_everything_would(room):
    rng = np.random.default_rng(1)
    config = transformers.LlamaConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2)
    cache = make_cache(config, *room)
    assert isinstance(cache.layers[0], RowBuffer)
    rows, slow = 3, None
    for step in range(12):
        new = torch.from_numpy(rng.normal(size=(rows, 2, 4 if step == 0 else 1, 4)))
        slow = new if slow is None else torch.cat([slow, new], dim=2)
        keys, values = cache.update(new, -new, 0)
        assert torch.equal(keys, slow)
        assert torch.equal(values, -slow)
        assert cache.get_seq_length() == slow.shape[2]
        parents = random_parents(rng, rows)[:9]
        plan = plan_move(parents)
        move_rows(cache, plan, parents[plan.order])
        slow, rows = slow[parents[plan.order]], plan.rows
        assert torch.equal(cache.layers[0].keys, slow)
