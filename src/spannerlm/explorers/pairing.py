"""What rivals that label pairs share: a request being filled, and which rows still make a pair worth a label."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from spannerlm.explorers.candidates import SAME, Candidates
from spannerlm.explorers.pooled import PoolState
from spannerlm.records import FloatArray, IntArray, LabelItem


@dataclass(eq=False)
class Basket:
    """Labels chosen so far for one request, and what may be added to them."""

    state: PoolState
    room: int
    """Labels it may hold in all."""
    skip: bool
    """Whether pairs of equal features are left out."""
    items: list[LabelItem] = field(default_factory=list)
    hopeless: set[int] = field(default_factory=set)
    """Rows found to make no pair worth a label; they will not make one while the basket fills, either."""

    @classmethod
    def of(cls, state: PoolState, size: int, skip: bool, *, pairs: bool = True) -> Basket:
        """An empty one for ``size`` labels; two, where pairs of rewards would not fit into a batch of one label."""
        paired = pairs and state.learner.spec.feedback == "scalar"
        return cls(state, max(size, min(2, state.learner.labels_left)) if paired else size, skip)

    @property
    def candidates(self) -> Candidates:
        """What it is filled from."""
        return self.state.candidates

    @cached_property
    def open(self) -> NDArray[np.bool_]:
        """[n] whether a reward label of the row would be new, labels in the basket included."""
        return self.candidates.open(self.state.learner)

    @cached_property
    def compared(self) -> dict[int, set[int]]:
        """Row -> rows it was compared with, where a comparison settles its pair."""
        found: dict[int, set[int]] = {}
        learner, index = self.state.learner, self.candidates.index
        if not learner.spec.fresh:
            for key in (*learner.labelled, *learner.out):
                rows = [index.get((key[0], text), -1) for text in key[1:]]
                if len(rows) == 2 and min(rows) >= 0:
                    found.setdefault(rows[0], set()).add(rows[1])
                    found.setdefault(rows[1], set()).add(rows[0])
        return found

    @property
    def left(self) -> int:
        """Labels that still fit in."""
        return self.room - len(self.items)

    @property
    def full(self) -> bool:
        """Whether no further pair fits in; the last label of a budget is spent on one response."""
        learner = self.state.learner
        whole = 1 if learner.spec.feedback == "comparison" or self.room == 1 else 2
        return self.left < whole

    def worth(self, first: IntArray, second: IntArray) -> NDArray[np.bool_]:
        """[k] whether the pairs of rows [k], each of one prompt, may be asked for: new, and with something to say."""
        spec = self.state.learner.spec
        if spec.feedback == "comparison":
            fine = first != second
            if not spec.fresh:
                known = [j in self.compared.get(i, ()) for i, j in zip(first.tolist(), second.tolist(), strict=True)]
                fine &= ~np.array(known, dtype=np.bool_)
        else:
            fine = self.open[first] | self.open[second]
        if self.skip:
            relative = self.candidates.features[first] - self.candidates.features[second]
            fine &= np.sum(relative**2, axis=1) > SAME * self.state.learner.scale
        return np.asarray(fine)

    def partners(self, first: int) -> FloatArray:
        """[n_x] 1 for the rows of its prompt that make a pair worth a label with this one, else 0."""
        rows = self.candidates.rows(int(self.candidates.owners[first]))
        second = np.arange(rows.start, rows.stop)
        found = self.worth(np.full_like(second, first), second)
        if not found.any():
            self.hopeless.add(first)
        return found.astype(np.float64)

    def add(self, first: int, second: int) -> None:
        """Add the labels of a pair that is worth some, as far as they fit in."""
        learner = self.state.learner
        if not self.worth(np.array([first]), np.array([second]))[0]:
            return
        new = self.candidates.pair(learner, first, second, self.items)[: self.left]
        self.items += new
        if learner.spec.fresh:
            return
        if learner.spec.feedback == "comparison":
            self.compared.setdefault(first, set()).add(second)
            self.compared.setdefault(second, set()).add(first)
        else:
            self._close(new)

    def add_single(self, row: int) -> None:
        """Add the reward label of a row, where that is new and, with the skip, its prompt's draws are not all alike."""
        phi, scale = self.candidates.features[row], self.state.learner.scale
        if self.left > 0 and self.open[row] and not (self.skip and phi @ phi <= SAME * scale):
            item = self.candidates.item(self.state.learner, row)
            self.items.append(item)
            if not item.fresh:
                self._close((item,))

    def _close(self, items: tuple[LabelItem, ...]) -> None:
        for item in items:
            self.open[self.candidates.index[item.prompt, item.response]] = False


def random_rows(candidates: Candidates, table: FloatArray, owners: IntArray, *, rng: np.random.Generator) -> IntArray:
    """[k] one row for each prompt position in ``owners`` [k], by the probabilities ``table`` [n] within prompts."""
    last = np.append(candidates.starts[1:], len(candidates))[owners] - 1
    sums = np.cumsum(table)
    below = (sums - table)[candidates.starts[owners]]
    found = np.searchsorted(sums, below + rng.random(len(owners)) * (sums[last] - below), side="right")
    return np.asarray(np.clip(found, candidates.starts[owners], last))
