"""Which comparisons are open, against loops over all pairs."""

from __future__ import annotations

import numpy as np
import pytest

from spannerlm.explorers.duels import Duels
from spannerlm.explorers.learner import Learner
from spannerlm.records import Draws, Label, LabelItem, Labelled, LabelRequest, Spec
from spannerlm.spanner import Spanner

N = 7
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(N, 3))
FEATURES[6] = FEATURES[5]
POOL = Draws(0, tuple("abcdefg"), np.ones(N, dtype=np.int64), FEATURES)


def learner(*known: str, fresh: bool = False) -> Learner:
    """Pairs such as "ab" have a comparison, the last of them is still out."""
    found = Learner.start(Spec(np.ones(2) / 2, 3, 50, None, 5, 1.0, fresh=fresh, feedback="comparison"))
    labels = tuple(Label(0, a, 1.0, opponent=b) for a, b in known[:-1])
    found = found.absorb(Labelled(labels, np.ones((len(labels), 3))))
    return found.absorb(LabelRequest(tuple(LabelItem(0, a, opponent=b) for a, b in known[-1:])))


def naive(known: tuple[str, ...]) -> set[tuple[int, int]]:
    pairs = {(i, j) for i in range(N) for j in range(N) if i != j} - {(5, 6), (6, 5)}
    return {(i, j) for i, j in pairs if not {"abcdefg"[i] + "abcdefg"[j], "abcdefg"[j] + "abcdefg"[i]} & set(known)}


@pytest.mark.parametrize("known", [(), ("ab",), ("ba", "cd", "ac", "ge")])
def test_open_pairs_are_new_and_differ(known: tuple[str, ...]) -> None:
    duels = Duels(learner(*known))
    found = {(i, j) for i in range(N) for j in np.flatnonzero(duels.partners(POOL, i)).tolist()}
    assert found == naive(known) == {(i, j) for i in range(N) for j in range(N) if duels.open(POOL, i, j)}
    assert duels.any(POOL)
    other = Draws(1, POOL.responses, POOL.counts, POOL.features)
    assert duels.partners(other, 0).sum() == N - 1


def test_where_labels_are_fresh_a_known_pair_stays_open() -> None:
    assert Duels(learner("ab", "cd", fresh=True)).open(POOL, 0, 1)


def test_the_farthest_open_pair_against_all_of_them() -> None:
    """One after the other is settled, down to the last; then there is none."""
    spanner = Spanner.start(np.diag([1.0, 2.0, 0.5]))
    known: list[str] = []
    for _ in range(N * (N - 1) // 2 - 1):
        duels = Duels(learner(*known))
        pair = duels.farthest(spanner, POOL, 0.0)
        best = max(spanner.norms(FEATURES[i] - FEATURES[j]) for i, j in naive(tuple(known)))
        assert pair is not None
        assert pair.norm == pytest.approx(best, rel=1e-9)
        assert (pair.first, pair.second) in naive(tuple(known))
        assert duels.farthest(spanner, POOL, pair.norm * (1 + 1e-9)) is None
        known.append("abcdefg"[pair.first] + "abcdefg"[pair.second])
    assert Duels(learner(*known)).farthest(spanner, POOL, 0.0) is None
    assert not Duels(learner(*known)).any(POOL)


def test_some_pairs_are_open_different_and_as_many_as_asked_for() -> None:
    known = ("ab", "cd")
    duels = Duels(learner(*known))
    for size in (1, 5):
        items = duels.some({0: POOL}, size, rng=np.random.default_rng(1))
        rows = [("abcdefg".index(item.response), "abcdefg".index(item.opponent or "")) for item in items]
        assert len({frozenset(pair) for pair in rows}) == len(items) == size
        assert set(rows) <= naive(known)
    alike = Draws(0, ("f", "g"), np.ones(2, dtype=np.int64), FEATURES[5:])
    assert duels.some({0: alike}, 5, rng=np.random.default_rng(1)) == ()
