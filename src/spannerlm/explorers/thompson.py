"""`thompson`: what a random member of an ensemble likes best, alone or against what the members disagree on most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from spannerlm.errors import InputError
from spannerlm.explorers.online_dpo import played
from spannerlm.explorers.pairing import Basket, random_rows
from spannerlm.explorers.pooled import PoolExplorer, PoolState
from spannerlm.records import FloatArray, LabelItem

TRIES = 64
"""Prompts and members tried per slot, at most."""


@dataclass(frozen=True)
class Thompson(PoolExplorer):
    """Thompson sampling with 20 anchored members: SEA's rule.

    Source: Liu et al., "Sample-Efficient Alignment for LLMs" (2024), Thompson sampling for contextual duelling bandits
    in its best-arm form: x ~ rho; y is the response of largest reward under a random member of an ensemble; y' the
    one whose difference to y has the largest variance over members; the pair is labelled, and all learn from all data.

    Departures. The members are ``members`` draws of theta from the shared posterior, anew for each request: an ensemble
    of linear models, each anchored at its own draw of the prior and fitted to labels with its own noise, is exactly
    that. Responses come from the pools, not from a search by the policy; the variance is that of the difference, not
    of its sigmoid; the policy is the shared estimate's, and no preference is made up by the members. Before the first
    label the members are draws of the prior. Pairs of equal features are left out (``skip``), and single responses of
    prompts whose draws are all alike. Where labels are rewards only y gets one (``singles``, stronger where values are
    rare, weaker where nothing is); without it the published pair does, and an odd budget's last label is that of y.

    With ``proper`` y is drawn from the member's softmax policy, and y' from another member's, so that a policy in
    training could have played both (THEORY 4).

    Cost of a round: no draws beyond the pools; two labels a pair, one with comparisons or ``singles``.
    """

    members: int = 20
    """Draws from the posterior per request."""
    singles: bool = True
    """Whether only the first response is labelled; comparisons need both. Labels to 10 % of the starting regret for
    singles and pairs: rare-skill .1 / .01 / .001 100 / 80 / 120 and 100 / 120 / 140; decoys 720 and 960; deceptive 140
    and 120 (medians of 5 seeds, batches of 5); tie 270 and 190 (10 seeds)."""
    proper: bool = False
    """Whether responses are drawn from the members' softmax policies instead of picked."""
    name: ClassVar[str] = "thompson"
    comparisons: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.members < 2:
            raise InputError(f"members: expected at least 2, got {self.members}: one alone disagrees with nobody")

    def choose(self, state: PoolState, size: int, *, rng: np.random.Generator) -> tuple[LabelItem, ...]:
        """Members, then slot by slot a prompt, a member, and its pair or single."""
        candidates, learner = state.candidates, state.learner
        singles = self.singles and learner.spec.feedback == "scalar"
        basket = Basket.of(state, size, self.skip, pairs=not singles)
        thetas = self.thetas(state, rng=rng)
        scores = candidates.features @ thetas.T  # [n, K]
        tables = np.array([played(state, theta) for theta in thetas]) if self.proper else np.empty((0, 0))
        rho = candidates.prompt_weights(learner.spec.prompt_probs)
        for x in rng.choice(len(rho), size=TRIES * basket.room, p=rho).tolist():
            if basket.left == 0 if singles else basket.full:
                break
            first, second = rng.choice(self.members, 2, replace=False).tolist()
            if self.proper:
                at = np.array([x])
                row, other = (int(random_rows(candidates, tables[k], at, rng=rng)[0]) for k in (first, second))
            else:
                row = favourite(basket, x, scores[:, first], new=singles)
                other = row if singles else disputed(basket, row, scores)
            if singles:
                basket.add_single(row)
            else:
                basket.add(row, other)
        return tuple(basket.items)

    def thetas(self, state: PoolState, *, rng: np.random.Generator) -> FloatArray:
        """[K, d] the members, within the box: posterior draws, or draws of the prior before the first label.

        The prior's scale is relative to the noise, of which nothing is known then: only their directions count, and a
        ``proper`` explorer plays pi_ref.
        """
        posterior, dim = state.learner.posterior, state.learner.spec.dim
        if posterior is not None:
            return state.bounded(posterior.sample(self.members, rng=rng))
        scale = 0.0 if self.proper else 1.0
        return state.bounded(scale * rng.standard_normal((self.members, dim)) @ state.learner.transform)


def favourite(basket: Basket, owner: int, scores: FloatArray, *, new: bool) -> int:
    """The row of largest score [n] of the prompt at this position; with ``new``, of those whose label would be new."""
    rows = basket.candidates.rows(owner)
    liked = np.where(basket.open[rows], scores[rows], -np.inf) if new else scores[rows]
    return int(rows.start + np.argmax(liked))


def disputed(basket: Basket, first: int, scores: FloatArray) -> int:
    """Of the rows that make a pair with this one: that of the largest variance of the difference; scores [n, K].

    The row itself where there is none.
    """
    if first in basket.hopeless:
        return first
    rows = basket.candidates.rows(int(basket.candidates.owners[first]))
    partners = basket.partners(first) > 0.0
    variance = np.var(scores[rows] - scores[first], axis=1)
    return int(rows.start + np.argmax(np.where(partners, variance, -1.0))) if partners.any() else first
