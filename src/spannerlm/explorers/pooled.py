"""What explorers that choose from pools of draws share: how the pools grow, and the order of draws and labels.

Every rival built on it gets the same draws per label, the same regression and the same zero-information skip; its own
file holds only `choose`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

import numpy as np

from spannerlm.errors import InputError
from spannerlm.explorers import pools
from spannerlm.explorers.candidates import Candidates
from spannerlm.explorers.learner import Learner
from spannerlm.policy import LinearSoftmaxPolicy, Policy
from spannerlm.records import (
    Drawn,
    DrawRequest,
    Event,
    FloatArray,
    Info,
    LabelItem,
    LabelRequest,
    Request,
    Spec,
    StopRequest,
)

PATIENCE = 3
"""Pools in a row, each as large as all before it, that bring nothing to label, after which no more are drawn."""
MAX_BARREN = 5000
"""Rounds in a row on fresh prompts that bring nothing to label, after which an explorer gives up."""
MAX_POOL = 10**8
"""Draws of one prompt in one request, at most."""


@dataclass(frozen=True, eq=False)
class PoolState:
    """The learner, its pools, and how far it has come."""

    learner: Learner
    pools: pools.Pools = field(default_factory=dict)
    size: int = 0
    """Draws per prompt that were asked for; 0 before the first pool. A prompt with foreign draws alone has fewer."""
    asked: int = 0
    """Labels asked for by this explorer."""
    rounds: int = 0
    """Label requests, and with fresh prompts also pools that brought none: updates of the policy."""
    barren: int = 0
    """Pools in a row that were drawn because nothing was left to label."""
    used: bool = False
    """Whether labels were asked for since the last pool."""
    box: float | None = None
    """Bound on every coordinate of theta."""

    @cached_property
    def candidates(self) -> Candidates:
        """The pools as arrays."""
        return Candidates.of(self.pools)

    @cached_property
    def theta(self) -> FloatArray:
        """[d] posterior mean, within the box."""
        return self.bounded(self.learner.theta)

    @cached_property
    def beta(self) -> float:
        """The KL temperature of the current policy."""
        return pools.temperature(self.learner, self.pools, self.theta)

    def bounded(self, theta: FloatArray) -> FloatArray:
        """``theta`` [..., d] with every coordinate clipped to the box."""
        return theta if self.box is None else np.clip(theta, -self.box, self.box)


@dataclass(frozen=True)
class PoolExplorer:
    """Draws pools that grow with the labels asked for, and labels what `choose` takes from them.

    The pools of each prompt have ``pool`` draws at first and double with every ``doubling`` labels: geometric growth
    finds a response of mass p after about doubling * log2(1 / (pool p)) labels, whatever p is. They double as well
    whenever nothing is left to label. Cost: at most 2 X pool 2^(labels / doubling) draws, unless the budget is smaller.
    """

    pool: int = 64
    """Draws per prompt of the first pool."""
    doubling: int | None = 10
    """Labels after which the pools have doubled; None: they keep their size."""
    max_prompts: int = 128
    """Prompts that get a pool, at most; chosen once, from rho."""
    fresh_prompts: int = 0
    """If positive: as many prompts are drawn from rho anew for each round, with pools of their own."""
    skip: bool = True
    """Whether pairs of equal features, which say nothing, are left out instead of paid for."""
    box: float | None = None
    """Bound on every coordinate of theta, where the task's family has one; None: none."""
    name: ClassVar[str]
    comparisons: ClassVar[bool] = False
    """Whether it can learn from comparisons."""
    enumerates: ClassVar[bool] = False
    """Whether it has to see every response of every prompt, which no language model allows."""

    def choose(self, state: PoolState, size: int, *, rng: np.random.Generator) -> tuple[LabelItem, ...]:
        """At most ``size`` labels to ask for next, from ``state.candidates``; none where nothing is worth a label."""
        raise NotImplementedError

    def init(self, spec: Spec) -> PoolState:
        """The state before the first request."""
        if spec.feedback == "comparison" and not self.comparisons:
            raise InputError(f"explorer {self.name!r}: expected scalar rewards, got feedback='comparison'")
        return PoolState(Learner.start(spec), box=self.box)

    def decide(self, state: PoolState, *, rng: np.random.Generator) -> Request:
        """A pool when one is due, else labels; a larger pool where there is nothing to label."""
        learner = state.learner
        if learner.labels_left <= 0:
            return StopRequest("labels spent", self.progress(state))
        due = self._pool(state, rng=rng)
        if due is not None:
            return due
        items = self.choose(state, learner.batch(), rng=rng)
        if items:
            return LabelRequest(items, {"phase": self.name})
        larger = self._pool(state, rng=rng, barren=True)
        return larger or StopRequest("nothing that is worth a label is left, and more draws bring none")

    def _pool(self, state: PoolState, *, rng: np.random.Generator, barren: bool = False) -> Request | None:
        """The request for draws that is due; None where there is none, or where draws or patience are at an end."""
        learner = state.learner
        if self.fresh_prompts > 0:
            if state.size > 0 and not state.used and not barren:
                return None
            if state.barren >= MAX_BARREN:
                return StopRequest(f"nothing that is worth a label in {MAX_BARREN} rounds")
            size = self._target(state)
            drawn = np.unique(
                rng.choice(len(learner.spec.prompt_probs), self.fresh_prompts, p=learner.spec.prompt_probs)
            )
            if pools.affordable(learner.draws_left, len(drawn), size) < size:
                return StopRequest("draws spent")
            return DrawRequest(tuple(int(x) for x in drawn), size, info={"phase": "pool", "barren": barren})
        if state.size == 0:
            return pools.opening(learner, self.pool, self.max_prompts, rng=rng)
        if barren and (state.barren >= PATIENCE or self.doubling is None):
            return None
        prompts = tuple(sorted(state.pools))
        more = state.size if barren else self._target(state) - state.size
        size = pools.affordable(learner.draws_left, len(prompts), min(more, MAX_POOL))
        return DrawRequest(prompts, size, info={"phase": "pool", "barren": barren}) if size > 0 else None

    def _target(self, state: PoolState) -> int:
        """Draws per prompt that the labels asked for so far call for."""
        if self.doubling is None:
            return self.pool
        return min(self.pool * int(2 ** min(state.asked // self.doubling, 60)), MAX_POOL)

    def absorb(self, state: PoolState, event: Event) -> PoolState:
        """The state after an event."""
        state = replace(state, learner=state.learner.absorb(event))
        if isinstance(event, LabelRequest) and event.info.get("phase") == self.name:
            return replace(state, asked=state.asked + len(event.items), rounds=state.rounds + 1, barren=0, used=True)
        if isinstance(event, Drawn) and not event.exhausted and event.draws:
            return self._drawn(state, event)
        return state

    def _drawn(self, state: PoolState, event: Drawn) -> PoolState:
        if event.info.get("phase") != "pool":  # draws from elsewhere: welcome, but no pool is done with them
            return replace(state, pools=pools.add(state.pools, event.draws))
        barren = bool(event.info.get("barren"))
        old = {} if self.fresh_prompts > 0 else state.pools
        rounds = state.rounds + (barren and self.fresh_prompts > 0)
        size = state.size + min(int(draws.counts.sum()) for draws in event.draws)
        return replace(
            state,
            pools=pools.add(old, event.draws),
            size=size,
            rounds=rounds,
            barren=state.barren + barren,
            used=False,
        )

    def policy(self, state: PoolState) -> Policy:
        """The linear softmax policy of the posterior mean."""
        return LinearSoftmaxPolicy(state.theta, state.beta)

    def learner(self, state: PoolState) -> Learner:
        """Labels, moments and posterior."""
        return state.learner

    def progress(self, state: PoolState) -> Info:
        """The phase, and how often the policy was updated."""
        return {"phase": self.name if state.size else "pool", "rounds": state.rounds}
