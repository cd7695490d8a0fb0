"""What the two random baselines share: fresh base draws of random prompts, labelled as they come."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from spannerlm.errors import InputError
from spannerlm.explorers import pools
from spannerlm.explorers.candidates import SAME
from spannerlm.explorers.learner import Learner, asked
from spannerlm.policy import Policy
from spannerlm.records import (
    Drawn,
    DrawRequest,
    Draws,
    Event,
    Info,
    LabelItem,
    LabelRequest,
    Request,
    Spec,
    StopRequest,
)

PATIENCE = 100
"""Draw requests in a row without a response that is not labelled yet, after which there is nothing left to buy."""


@dataclass(frozen=True, eq=False)
class RandomState:
    """The learner, its pools, and the draws that may be labelled next."""

    learner: Learner
    pools: pools.Pools = field(default_factory=dict)
    fresh: tuple[LabelItem, ...] = ()
    """Random draws that were not asked for yet."""
    idle: int = 0
    """Draw requests in a row that brought nothing new."""


@dataclass(frozen=True)
class RandomDraws:
    """Labels for ``group`` fresh draws of each random prompt.

    The same opening pool as the explorers get serves to centre features; the draws labelled come afterwards, so
    that they are independent of it. Cost: X * pool draws, then at least one draw a label. With comparisons the two
    draws of a group are one label, unless their features are equal: that comparison would say nothing.
    """

    pool: int = 64
    """Draws per prompt of the opening pool."""
    max_prompts: int = 128
    """Prompts that get a pool, at most."""
    name: ClassVar[str]
    group: ClassVar[int]
    comparisons: ClassVar[bool] = False
    """Whether it can learn from comparisons."""

    def init(self, spec: Spec) -> RandomState:
        """The state before the first request."""
        if spec.feedback == "comparison" and not self.comparisons:
            raise InputError(f"explorer {self.name!r}: expected scalar rewards, got feedback='comparison'")
        return RandomState(Learner.start(spec))

    def decide(self, state: RandomState, *, rng: np.random.Generator) -> Request:
        """The opening pool, then in turn a batch of random draws and their labels."""
        learner = state.learner
        labels = 1 if learner.spec.feedback == "comparison" else self.group  # what a group costs
        if learner.labels_left <= 0:
            return StopRequest("labels spent")
        if not state.pools and not state.fresh:
            reserve = self.group * -(-learner.labels_left // labels)
            return pools.opening(learner, self.pool, self.max_prompts, rng=rng, reserve=reserve)
        if state.fresh:
            return LabelRequest(state.fresh[: learner.batch()], {"phase": self.name})
        if state.idle >= PATIENCE:
            return StopRequest(f"no unlabelled response in {PATIENCE} requests for draws")
        size = pools.affordable(learner.draws_left, self.group, max(1, learner.batch() // labels))
        if size == 0:
            return StopRequest("draws spent")
        prompts = pools.random_prompts(learner.spec, state.pools, size, rng=rng)
        return DrawRequest(tuple(int(x) for x in prompts), self.group, info={"phase": self.name})

    def absorb(self, state: RandomState, event: Event) -> RandomState:
        """The state after an event; draws that are not labelled yet become the next request."""
        learner = state.learner.absorb(event)
        if isinstance(event, LabelRequest):
            left = list(state.fresh)
            for item in event.items:
                if item in left:
                    left.remove(item)
            return replace(state, learner=learner, fresh=tuple(left))
        if isinstance(event, Drawn) and event.info.get("phase") == "pool":
            return replace(state, learner=learner, pools=pools.add(state.pools, event.draws))
        if isinstance(event, Drawn):
            waiting = set(map(asked, state.fresh))
            found = _pairs(event, learner) if learner.spec.feedback == "comparison" else _items(event, learner)
            items = tuple(item for item in found if item.fresh or asked(item) not in waiting)
            return replace(state, learner=learner, fresh=state.fresh + items, idle=0 if items else state.idle + 1)
        fresh = tuple(item for item in state.fresh if learner.open(item.prompt, item.response, item.opponent))
        return replace(state, learner=learner, fresh=fresh)

    def policy(self, state: RandomState) -> Policy:
        """The linear softmax policy of the posterior mean."""
        return pools.tilted_policy(state.learner, state.pools)

    def learner(self, state: RandomState) -> Learner:
        """Labels, moments and posterior."""
        return state.learner

    def progress(self, state: RandomState) -> Info:
        """The phase only: a baseline has no spanner."""
        return {"phase": self.name if state.pools else "pool"}


def _items(event: Drawn, learner: Learner) -> tuple[LabelItem, ...]:
    """The draws as label items: every copy where labels are fresh, else each open response once."""
    items: list[LabelItem] = []
    for draws in event.draws:
        for response, count in zip(draws.responses, draws.counts, strict=True):
            item = LabelItem(draws.prompt, response, learner.spec.fresh)
            if learner.spec.fresh:
                items += [item] * int(count)
            elif learner.open(draws.prompt, response) and item not in items:
                items.append(item)
    return tuple(items)


def _pairs(event: Drawn, learner: Learner) -> tuple[LabelItem, ...]:
    """Each prompt's draws two by two as comparisons: every copy where labels are fresh, else each open pair once."""
    items: dict[object, LabelItem] = {}
    for draws in event.draws:
        copies = np.repeat(np.arange(len(draws.responses)), draws.counts)
        half = len(copies) // 2
        for first, second in zip(copies[:half], copies[half : 2 * half], strict=True):
            item = LabelItem(draws.prompt, draws.responses[first], learner.spec.fresh, draws.responses[second])
            if not _same(draws, first, second, learner) and learner.open(item.prompt, item.response, item.opponent):
                items.setdefault(len(items) if item.fresh else asked(item), item)
    return tuple(items.values())


def _same(draws: Draws, first: int, second: int, learner: Learner) -> bool:
    relative = draws.features[first] - draws.features[second]
    return bool(relative @ relative <= SAME * learner.scale)
