"""`online-dpo`: both responses of a pair from the policy of the last update, and no other exploration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from spannerlm.explorers.pairing import Basket, random_rows
from spannerlm.explorers.pooled import PoolExplorer, PoolState
from spannerlm.records import FloatArray, IntArray, LabelItem

TRIES = 256
"""Pairs that the policies are asked for, per pair wanted, before a round is taken for barren."""
DESPERATE = 64
"""Pairs tried after that with the second response drawn from those that are worth a label."""


@dataclass(frozen=True)
class OnlineDPO(PoolExplorer):
    """Online direct preference optimisation: x ~ rho, y and y' ~ pi_theta_t, both labelled, theta_{t+1} from all data.

    Source: Guo et al., "Direct Language Model Alignment from Online AI Feedback" (2024); on all rounds' data, as in
    Xiong et al., "Iterative Preference Learning from Human Feedback" (2023). Published objective: minimise over pi the
    sum over labelled pairs of -log sigmoid(b log(pi(y+)/pi_ref(y+)) - b log(pi(y-)/pi_ref(y-))). On linear softmax
    policies b log(pi_theta(y)/pi_ref(y)) = <theta, phi(y)> - b log Z(x): the normaliser drops out of the difference,
    and what is left is logistic regression on <theta, phi(x, y, y')>; with rewards instead of preferences the same
    difference is fitted by least squares. The anchor pi_ref is the softmax form itself, at the task's temperature.

    Departures: the regression is the one that every explorer here gets (its posterior mean; from rewards the two
    labels of a pair and an intercept of the prompt instead of their difference); pi_theta is drawn from the pools, by
    importance weights on their base draws; pairs of equal features are drawn again (``skip``). Where even that finds
    nothing and the prompts are fixed, the second response is drawn from those that differ from the first. The last
    label of an odd budget is a single response's. Before the first label the policy is pi_ref.

    Cost of a round: no draws beyond the pools; two labels a pair, one with comparisons.
    """

    name: ClassVar[str] = "online-dpo"
    comparisons: ClassVar[bool] = True

    def choose(self, state: PoolState, size: int, *, rng: np.random.Generator) -> tuple[LabelItem, ...]:
        """On-policy pairs (THEORY 4: proper exploration)."""
        table = played(state, state.theta)
        return self.pairs(state, size, table, table, rng=rng)

    def pairs(
        self, state: PoolState, size: int, first: FloatArray, second: FloatArray, *, rng: np.random.Generator
    ) -> tuple[LabelItem, ...]:
        """Labels of random pairs that are worth some, responses by the probabilities [n] within prompts."""
        basket, candidates = Basket.of(state, size, self.skip), state.candidates
        rho = candidates.prompt_weights(state.learner.spec.prompt_probs)
        left, right = _random_pairs(state, rho, first, second, TRIES * basket.room, rng=rng)
        for k in np.flatnonzero(basket.worth(left, right)):
            if basket.full:
                break
            basket.add(int(left[k]), int(right[k]))
        if self.fresh_prompts == 0:
            left, _ = _random_pairs(state, rho, first, second, DESPERATE * basket.room, rng=rng)
            for row in left.tolist():
                if basket.full:
                    break
                if row in basket.hopeless:
                    continue
                rows = candidates.rows(int(candidates.owners[row]))
                partners = basket.partners(row)
                chances = second[rows] * partners
                if chances.sum() == 0.0:  # none, or of a mass that rounds to nothing
                    chances = candidates.weights[rows] * partners
                if chances.sum() > 0.0:
                    basket.add(row, rows.start + int(rng.choice(len(chances), p=chances / chances.sum())))
        return tuple(basket.items)


def played(state: PoolState, theta: FloatArray) -> FloatArray:
    """[n] pi_theta on the pools: theta [d], probabilities within each prompt."""
    return state.candidates.tilted(state.candidates.features @ theta, state.beta)


def _random_pairs(
    state: PoolState, rho: FloatArray, first: FloatArray, second: FloatArray, tries: int, *, rng: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """Rows [tries] of independent pairs: x ~ rho, y and y' by the tables."""
    owners = rng.choice(len(rho), size=tries, p=rho)
    left, right = (random_rows(state.candidates, table, owners, rng=rng) for table in (first, second))
    return left, right
