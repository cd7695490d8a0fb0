"""`epsilon-greedy`: single labels of draws of the current policy, and now and then of the base model.

Source: Sutton and Barto, "Reinforcement learning: an introduction" (1998), section 2.2; Auer, Cesa-Bianchi and Fischer,
"Finite-time analysis of the multiarmed bandit problem" (2002) for a decaying epsilon. Published objective: the arm of
highest estimated reward with probability 1 - epsilon, else a uniformly random arm.

Departures. (1) The greedy arm is a draw of pi_theta, which is what maximises the regularised objective J_beta; a random
arm is a draw of pi_ref, because a language model's responses have no uniform law. (2) Both come from the stored pools.
(3) The policy is the shared Bayesian regression's. (4) Responses whose features are those of every other draw of their
prompt are skipped, for they say nothing of theta; ``skip=False`` buys them. It is a proper explorer (THEORY 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from spannerlm.explorers.candidates import SAME
from spannerlm.explorers.pooled import PoolExplorer, PoolState
from spannerlm.records import LabelItem

TRIES = 200
"""Draws tried per label, at most."""


@dataclass(frozen=True)
class EpsilonGreedy(PoolExplorer):
    """Labels draws of the current policy, and base draws with probability ``epsilon`` after a start that is all base.

    The probability is epsilon + (1 - epsilon) half / (half + n) at n labels asked for. Cost: one label a draw.
    """

    epsilon: float = 0.1
    """Probability of a base draw in the long run."""
    half: int = 50
    """Labels after which the excess over ``epsilon`` has fallen to one half; 0: there is none."""
    name: ClassVar[str] = "epsilon-greedy"

    def choose(self, state: PoolState, size: int, *, rng: np.random.Generator) -> tuple[LabelItem, ...]:
        """Draws of pi_theta or pi_ref for prompts from rho, up to ``size``; repeats only where labels are fresh."""
        learner, candidates = state.learner, state.candidates
        base = candidates.weights * candidates.prompt_weights(learner.spec.prompt_probs)[candidates.owners]
        tilted = candidates.tilted(candidates.features @ state.theta, state.beta)
        greedy = tilted * candidates.prompt_weights(learner.spec.prompt_probs)[candidates.owners]
        open_rows = candidates.open(learner)
        if self.skip:
            open_rows &= np.sum(candidates.features**2, axis=1) > SAME * learner.scale
        tries = TRIES * size
        random = rng.random(tries) < self.chance(state)
        drawn = np.where(random, *(rng.choice(len(candidates), size=tries, p=p / p.sum()) for p in (base, greedy)))
        rows = drawn[open_rows[drawn]]
        if not learner.spec.fresh:
            rows = rows[np.sort(np.unique(rows, return_index=True)[1])]
        return tuple(candidates.item(learner, int(row)) for row in rows[:size])

    def chance(self, state: PoolState) -> float:
        """The probability of a base draw now."""
        excess = self.half / (self.half + state.asked) if self.half > 0 else 0.0
        return self.epsilon + (1.0 - self.epsilon) * excess
