"""`linucb-enumerate`: optimism over the whole response set, the statistical standard that samplers are measured by.

Source: Li, Chu, Langford and Schapire, "A contextual-bandit approach to personalized news article recommendation"
(2010); Abbasi-Yadkori, Pal and Szepesvari, "Improved algorithms for linear stochastic bandits" (2011). Published
objective: for each context the arm of largest <theta, phi> + alpha ||phi||_{Sigma^-1}, over all arms.

It has to see every response of every prompt, which no language model allows: it runs on exact environments alone, and
its list of responses costs as many draws as there are responses.

Departures. (1) phi is centred by the prompt's own mean over draws. (2) theta and Sigma are the shared regression's
posterior mean and precision, mu and the prompts' intercepts integrated out, and the bonus is in units of its noise.
(3) In a batch each choice enters Sigma before the next is made (Desautels, Krause and Burdick, "Parallelizing
exploration-exploitation tradeoffs in Gaussian process bandit optimization", 2014). (4) ``alpha`` is 3 rather than a
confidence radius, because what counts is the policy at the end and not the reward on the way. Greedy leverage over all
responses, a design for the predicted regret, pairs with a base draw and smaller alpha were no better over rare-skill,
tie and decoys together. (5) Responses with the mean feature of their prompt are skipped; ``skip=False`` buys them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from spannerlm.explorers import pools
from spannerlm.explorers.active_preference import precision
from spannerlm.explorers.best_of_n import TRIES
from spannerlm.explorers.candidates import SAME, Candidates
from spannerlm.explorers.pooled import MAX_POOL, PoolExplorer, PoolState
from spannerlm.records import Drawn, DrawRequest, Draws, FloatArray, LabelItem, Request, Spec


@dataclass(frozen=True, eq=False)
class ListedState(PoolState):
    """A state that knows all responses of its prompts."""

    listed: pools.Pools = field(default_factory=dict)
    """Prompt index -> its responses, each with count 1. They are no draws: no frequency or moment has them."""

    @cached_property
    def everything(self) -> Candidates:
        """All responses of the prompts that have a pool; weights are frequencies in the pool, 0 where never drawn."""
        return Candidates.of({x: self._responses(x) for x in self.pools})

    def _responses(self, prompt: int) -> Draws:
        drawn, listed = self.pools[prompt], self.listed.get(prompt)
        return drawn if listed is None else pools.merge(drawn, replace(listed, counts=np.zeros_like(listed.counts)))


@dataclass(frozen=True)
class LinUCB(PoolExplorer):
    """Labels, for prompts from rho, the response whose reward may be the highest, among all there are.

    The list follows the pool, once per prompt; of a draws budget it takes what is left, and is cut there. Cost beyond
    the pools: one draw a response listed, one label a prompt; time n_x d^2 a label for the n_x responses of a prompt.
    """

    alpha: float = 3.0
    """Posterior standard deviations that are added to the predicted reward."""
    name: ClassVar[str] = "linucb-enumerate"
    enumerates: ClassVar[bool] = True

    def init(self, spec: Spec) -> ListedState:
        """The state before the first request."""
        start = super().init(spec)
        return ListedState(start.learner, box=start.box)

    def decide(self, state: PoolState, *, rng: np.random.Generator) -> Request:
        """The list of responses of prompts that have a pool and no list yet; else as any explorer on pools."""
        learner = state.learner
        missing = tuple(sorted(set(state.pools) - set(_listed(state))))
        size = pools.affordable(learner.draws_left, len(missing), MAX_POOL) if missing else 0
        if size > 0 and learner.labels_left > 0:
            return DrawRequest(missing, size, info={"phase": "pool", "enumerate": True})
        return super().decide(state, rng=rng)

    def choose(self, state: PoolState, size: int, *, rng: np.random.Generator) -> tuple[LabelItem, ...]:
        """The most promising response of each of ``size`` prompts from rho; the same again where labels are fresh."""
        assert isinstance(state, ListedState)  # what `init` starts with
        learner, candidates = state.learner, state.everything
        allowed = candidates.open(learner)
        if self.skip:
            allowed &= np.sum(candidates.features**2, axis=1) > SAME * learner.scale
        covariance: FloatArray = np.asarray(np.linalg.inv(precision(learner)), dtype=np.float64)
        scores, rho = candidates.features @ state.theta, candidates.prompt_weights(learner.spec.prompt_probs)
        radius = self.alpha * (1.0 if learner.posterior is None else learner.posterior.noise_std)
        rows: list[int] = []
        for owner in rng.choice(len(rho), size=TRIES * size, p=rho):
            inside = candidates.rows(int(owner))
            if not allowed[inside].any():
                continue
            bounds = upper_bounds(candidates.features[inside], scores[inside], covariance, radius)
            row = inside.start + int(np.argmax(np.where(allowed[inside], bounds, -np.inf)))
            rows.append(row)
            if len(rows) == size:
                break
            phi = candidates.features[row]
            along = covariance @ phi
            covariance = covariance - np.outer(along, along) / (1.0 + float(phi @ along))
            allowed[row] &= learner.spec.fresh
        return tuple(candidates.item(learner, row) for row in rows)

    def _drawn(self, state: PoolState, event: Drawn) -> PoolState:
        if not event.info.get("enumerate"):
            return super()._drawn(state, event)
        listed = {**_listed(state), **{record.prompt: record for record in event.draws}}
        return replace(state, listed=MappingProxyType(listed))  # type: ignore[call-arg]


def upper_bounds(features: FloatArray, scores: FloatArray, covariance: FloatArray, radius: float) -> FloatArray:
    """[n] scores [n] + radius |phi| in the norm of the posterior covariance [d, d] in noise units; features [n, d]."""
    variances = np.einsum("nd,nd->n", features @ covariance, features)
    return np.asarray(scores + radius * np.sqrt(np.maximum(variances, 0.0)))


def _listed(state: PoolState) -> pools.Pools:
    assert isinstance(state, ListedState)  # what `init` starts with
    return state.listed
