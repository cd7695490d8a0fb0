"""Which comparisons within a pool would be new, and have something to say of theta."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from spannerlm.explorers.candidates import SAME
from spannerlm.explorers.learner import Asked, Learner, asked
from spannerlm.explorers.pools import Pools
from spannerlm.records import Draws, IntArray, LabelItem
from spannerlm.spanner import Pair, Spanner, greedy_pair


@dataclass(frozen=True, eq=False)
class Duels:
    """The comparisons that are still open, as the learner stands. A pair of equal features never is."""

    learner: Learner

    @cached_property
    def known(self) -> dict[tuple[int, str], set[str]]:
        """(prompt, response) -> those it was or is being compared with, where a comparison settles its pair."""
        found: dict[tuple[int, str], set[str]] = {}
        if not self.learner.spec.fresh:
            for key in (*self.learner.labelled, *self.learner.out):
                if len(key) == 3:
                    x, first, second = key
                    found.setdefault((x, first), set()).add(second)
                    found.setdefault((x, second), set()).add(first)
        return found

    def partners(self, draws: Draws, row: int) -> NDArray[np.bool_]:
        """[n] which of the prompt's responses are worth a comparison with this one. Time n d."""
        gaps = draws.features - draws.features[row]
        fine = np.sum(gaps**2, axis=1) > SAME * self.learner.scale
        known = self.known.get((draws.prompt, draws.responses[row]))
        if known:
            fine &= np.array([response not in known for response in draws.responses])
        return np.asarray(fine)

    def open(self, draws: Draws, first: int, second: int) -> bool:
        """Whether these two are worth a comparison."""
        return bool(self.partners(_rows(draws, np.array([first, second])), 0)[1])

    def any(self, draws: Draws) -> bool:
        """Whether the prompt has a comparison left."""
        return any(self.partners(draws, row).any() for row in range(len(draws.responses)))

    def some(self, pools: Pools, size: int, *, rng: np.random.Generator) -> tuple[LabelItem, ...]:
        """Up to ``size`` open pairs of random prompts, as comparisons: each response comes with one random partner."""
        items: dict[Asked, LabelItem] = {}
        for x in rng.permutation(sorted(pools)).tolist():
            draws = pools[x]
            for row in rng.permutation(len(draws.responses)).tolist():
                partners = np.flatnonzero(self.partners(draws, row))
                if len(partners):
                    other = draws.responses[int(rng.choice(partners))]
                    item = LabelItem(x, draws.responses[row], self.learner.spec.fresh, other)
                    items.setdefault(asked(item), item)
                if len(items) == size:
                    return tuple(items.values())
        return tuple(items.values())

    def farthest(self, spanner: Spanner, draws: Draws, nu: float) -> Pair | None:
        """The open pair of the prompt's draws farthest apart, if beyond ``nu``; all pairs are screened.

        Time: that of `greedy_pair`, twice where the farthest pair is known, and n d for each response with known pairs.
        """
        pair = greedy_pair(spanner, draws, nu)
        if pair is None or self.open(draws, pair.first, pair.second):
            return pair
        used = np.array([(draws.prompt, response) in self.known for response in draws.responses])
        rest = np.flatnonzero(~used)
        found = greedy_pair(spanner, _rows(draws, rest), nu) if len(rest) > 1 else None
        best = None if found is None else Pair(int(rest[found.first]), int(rest[found.second]), found.norm)
        for row in np.flatnonzero(used).tolist():
            norms = spanner.norms(draws.features - draws.features[row]) * self.partners(draws, row)
            other = int(np.argmax(norms))
            if norms[other] > (nu if best is None else best.norm):
                best = Pair(row, other, float(norms[other]))
        return best


def _rows(draws: Draws, rows: IntArray) -> Draws:
    return Draws(draws.prompt, tuple(draws.responses[i] for i in rows), draws.counts[rows], draws.features[rows])
