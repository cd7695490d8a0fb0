"""`best-of-n`: the best of n draws by the estimated reward, labelled beside one base draw.

Source: best-of-n sampling as an explorer: Stiennon et al., "Learning to summarize from human feedback" (2020), Nakano
et al., "WebGPT" (2021); labelling the winner is one step of expert iteration (Gulcehre et al., "Reinforced
self-training (ReST) for language modeling", 2023). Published objective: answer with the argmax of the reward model over
n draws of pi_ref(. | x).

Departures. (1) It is run as a label rule: the winner is labelled, not only played, and one base draw of the same prompt
beside it, so that the winner's advantage is measured. (2) The reward model is the shared Bayesian regression instead of
a network. (3) The n draws are taken from the stored pool by their frequencies. (4) Equal estimates, as before the
first label, are decided by the draws' frequencies. (5) Where a label settles a response, the winner is the best of
those drawn that have none. (6) Pairs of equal features are skipped; ``skip=False`` buys them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from spannerlm.explorers.candidates import Candidates
from spannerlm.explorers.learner import Learner
from spannerlm.explorers.pooled import PoolExplorer, PoolState
from spannerlm.records import LabelItem

TRIES = 200
"""Prompts tried per label, at most, before an explorer of random pairs finds nothing to label."""


@dataclass(frozen=True)
class BestOfN(PoolExplorer):
    """Labels pairs of the best of ``n`` draws and a base draw. Cost: two labels a pair, or one comparison."""

    n: int = 64
    """Draws that the best is taken of."""
    name: ClassVar[str] = "best-of-n"
    comparisons: ClassVar[bool] = True

    def choose(self, state: PoolState, size: int, *, rng: np.random.Generator) -> tuple[LabelItem, ...]:
        """Pairs (best of n, base draw) of prompts from rho, up to ``size`` labels."""
        return bought(state.candidates, state.learner, size, self._pairs(state, TRIES * size, rng=rng))

    def _pairs(self, state: PoolState, tries: int, *, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
        """Rows of the best of n and of a base draw, where labels of both would say something."""
        learner, candidates = state.learner, state.candidates
        scores, known = candidates.features @ state.theta, np.zeros(len(candidates), dtype=np.bool_)
        paired = learner.spec.feedback == "comparison"
        if not paired:
            known = ~candidates.open(learner)
        prompt_weights = candidates.prompt_weights(learner.spec.prompt_probs)
        for owner in rng.choice(len(prompt_weights), size=tries, p=prompt_weights):
            rows = candidates.rows(int(owner))
            counts = rng.multinomial(self.n, candidates.weights[rows]) * ~known[rows]
            second = rows.start + int(rng.choice(rows.stop - rows.start, p=candidates.weights[rows]))
            if not counts.any():
                continue
            top = np.where(counts > 0, scores[rows], -np.inf)
            chances = counts * (top == top.max())
            first = rows.start + int(rng.choice(len(chances), p=chances / chances.sum()))
            if (self.skip and candidates.same(learner, first, second)) or (paired and first == second):
                continue
            yield first, second


def bought(
    candidates: Candidates, learner: Learner, size: int, pairs: Iterable[tuple[int, int]]
) -> tuple[LabelItem, ...]:
    """What is still to be bought of these pairs of rows: at most ``size`` labels, but two where the budget has them.

    Pairs stay together: one that does not fit ends the request. The last single label of a budget is the first's.
    """
    room = size if learner.spec.feedback == "comparison" else max(size, min(2, learner.labels_left))
    items: list[LabelItem] = []
    for first, second in pairs:
        found = candidates.pair(learner, first, second, items)
        if items and len(items) + len(found) > room:
            break
        items += found
        if len(items) >= room:
            break
    return tuple(items[:room])
