"""A small explorer that asks for comparisons: what the driver's own tests run where no published one is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from spannerlm.explorers.learner import Learner
from spannerlm.policy import LinearSoftmaxPolicy, Policy
from spannerlm.records import (
    Drawn,
    DrawRequest,
    Event,
    Info,
    LabelItem,
    Labelled,
    LabelRequest,
    Request,
    Spec,
    StopRequest,
)


@dataclass(frozen=True)
class Duels:
    """Draws once from every prompt, then compares random pairs; ``rewards`` of every batch are rewards instead."""

    rewards: int = 0
    fresh: bool = True
    name: str = "duels"

    def init(self, spec: Spec) -> tuple[Spec, tuple[Event, ...]]:
        return spec, ()

    def decide(self, state: Any, *, rng: np.random.Generator) -> Request:
        spec, events = state
        drawn = [event for event in events if isinstance(event, Drawn)]
        if not drawn:
            return DrawRequest(tuple(range(len(spec.prompt_probs))), 6)
        bought = sum(len(event.labels) for event in events if isinstance(event, Labelled))
        if bought >= spec.labels:
            return StopRequest("labels spent")
        pools = [draws for draws in drawn[0].draws if len(draws.responses) > 1]
        items = []
        for i in range(min(spec.batch, spec.labels - bought)):
            pool = pools[rng.integers(len(pools))]
            first, second = rng.choice(pool.responses, size=2, replace=False).tolist()
            items.append(LabelItem(pool.prompt, first, self.fresh, None if i < self.rewards else second))
        return LabelRequest(tuple(items))

    def absorb(self, state: Any, event: Event) -> Any:
        return state[0], (*state[1], event)

    def policy(self, state: Any) -> Policy:
        return LinearSoftmaxPolicy(np.zeros(state[0].dim), 1.0)

    def learner(self, state: Any) -> Learner:
        return Learner.start(state[0])

    def progress(self, state: Any) -> Info:
        return {}
