"""The tree of known prefixes against a plain dictionary of every token's states."""

from __future__ import annotations

import numpy as np
import pytest

from spannerlm.backends.prefixes import Chunk, PrefixStore, Tail

torch = pytest.importorskip("torch")
LAYERS = (0, 2)


def states(ids: tuple[int, ...], start: int) -> Chunk:
    """Two layers; each token's values are a hash of what precedes it and itself."""
    rows = [[hash((layer, ids[: k + 1])) % 1000 for k in range(start, len(ids))] for layer in range(2)]
    keys = [torch.tensor(row, dtype=torch.float32)[None, :, None].repeat(3, 1, 4) for row in rows]
    return tuple((k, -k) for k in keys)


def tail(ids: tuple[int, ...]) -> Tail:
    value = float(hash(ids) % 1000)
    return Tail(torch.full((5,), value), {layer: torch.full((6,), value) for layer in LAYERS})


def joined(chunks: tuple[Chunk, ...]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [tuple(torch.cat([c[layer][side] for c in chunks], dim=1) for side in (0, 1)) for layer in range(2)]


@pytest.mark.parametrize("limit", [2**30, 4000, 300])
def test_what_is_found_is_what_was_encoded(limit):
    rng = np.random.default_rng(0)
    store, ends = PrefixStore(limit), set()
    hits = 0
    for _ in range(400):
        ids = tuple(int(i) for i in rng.integers(3, size=rng.integers(1, 9)))
        held = store.find(ids, LAYERS)
        hits += held.length
        for found, whole in zip(joined(held.chunks) if held.length else (), states(ids, 0), strict=held.length > 0):
            for x, y in zip(found, whole, strict=True):
                assert torch.equal(x, y[:, : held.length])
        if limit == 2**30:
            known = [n for n in range(len(ids) + 1) if any(end[:n] == ids[:n] for end in ends)]
            assert held.length == max(known, default=0)
            assert (held.tail is not None) == (ids in ends)
        if held.tail is not None:
            assert torch.equal(held.tail.logits, tail(ids).logits)
        start = int(rng.integers(held.length + 1))
        store.add(ids, start, states(ids, start), tail(ids))
        ends.add(ids)
        assert store.bytes <= limit
        assert store.bytes == sum(k.nbytes + v.nbytes for node in store._nodes for k, v in node.chunk) + sum(
            node.tail.logits.nbytes + 48 for node in store._nodes if node.tail is not None
        )
    assert hits > 0


def test_the_least_recently_used_goes_first_and_never_before_what_builds_on_it():
    size = sum(k.nbytes + v.nbytes for k, v in states((1,), 0))
    store = PrefixStore(4 * size)
    for ids in ((1, 2), (3,), (1, 2, 4)):
        store.add(ids, 0, states(ids, 0), None)
    assert list(store) == [(3,), (1, 2, 4), (1, 2)]
    store.find((3,), ())
    store.add((5,), 0, states((5,), 0), None)
    assert list(store) == [(1, 2), (3,), (5,)]
    store.add((7, 8, 9), 1, states((7, 8, 9), 1), None)  # what precedes it is not known
    assert len(list(store)) == 3
    store.add((1, 3), 0, states((1, 3), 0), None)  # (1, 2) is split
    assert set(store) == {(3,), (5,), (1,), (1, 3)} or (1, 2) in set(store)
    assert store.bytes == 4 * size
    store.clear()
    assert (store.bytes, list(store)) == (0, [])
    assert store.find((3,), ()).length == 0


def test_a_tail_serves_only_those_who_ask_for_no_more_layers():
    store = PrefixStore(2**20)
    store.add((1, 2), 0, states((1, 2), 0), tail((1, 2)))
    assert store.find((1, 2), (0,)).tail is not None
    assert store.find((1, 2), (0, 1)).tail is None
    assert store.find((1,), ()).tail is None
    assert store.find((1, 2, 3), ()).upto(1).length == 1
    store.add((1,), 0, states((1,), 0), tail((1,)))
    assert store.find((1,), LAYERS).tail is not None
    assert store.find((1, 2), LAYERS).tail is not None
