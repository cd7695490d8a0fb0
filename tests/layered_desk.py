"""The other side of a layered explorer and of the sequence-level one: the same draws and labels for both."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from spannerlm.environments.token import TokenEnvironment
from spannerlm.explorers.layered_parts import accepted
from spannerlm.policy import TruncatedSoftmaxPolicy
from spannerlm.records import (
    Drawn,
    DrawRequest,
    Draws,
    Event,
    FloatArray,
    Label,
    Labelled,
    LabelRequest,
    Request,
    Spec,
    StopRequest,
)
from spannerlm.stepwise import rolled


def spec_of(env: TokenEnvironment, **changes: Any) -> Spec:
    spec = Spec(env.prompt_probs, env.dim, 60, None, 8, beta=env.beta, fresh=True, horizon=env.horizon)
    return replace(spec, **changes)


class Desk:
    """Draws and labels for either algorithm; what it draws depends on how many requests came, roll-outs apart."""

    def __init__(self, env: TokenEnvironment, seed: int) -> None:
        self.env, self.seed, self.turn = env, seed, 0
        self.reward, self.replicates = env.reward(seed), Counter[tuple[int, str]]()

    def rng(self, *more: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.turn, *more])

    def answer(self, request: DrawRequest | LabelRequest) -> Drawn | Labelled:
        if isinstance(request, LabelRequest):
            return Labelled(tuple(map(self._label, request.items)), self._features(request), request.info)
        if request.prefixes is not None:
            return rolled(self.env, request, rng=self.rng(1))
        if request.tilt is None:
            draws = self.env.draw(request.prompts, request.n, rng=self.rng(1))
            return Drawn(draws, request.n * len(draws), info=request.info)
        return self._tilted(request)

    def _tilted(self, request: DrawRequest) -> Drawn:
        """The sampler of THEORY 3, fed from draws that are all recorded first."""
        law: Any = request.tilt
        most = 2 * math.ceil(4.0 * law.bound * math.log(4.0 / law.delta)) + 1
        records = self.env.draw(request.prompts, most, rng=self.rng(1))
        policy = TruncatedSoftmaxPolicy(law.theta, law.beta, law.root, law.nu)
        rng, found = np.random.default_rng(int(self.rng().integers(2**31))), []
        for record, anchor in zip(records, law.anchors, strict=True):
            kept = accepted(
                record, lambda phi, a=anchor: policy.scores(phi, a) / law.beta, law.bound, law.delta, rng=rng
            )
            found.append(Draws(record.prompt, kept.responses, np.ones(1, dtype=np.int64), kept.features))
        return Drawn(tuple(found), most * len(found), (False,) * len(found), request.info)

    def _features(self, request: LabelRequest) -> FloatArray:
        found = np.zeros((len(request.items), self.env.horizon, self.env.step_dim))  # a sequence may end early
        for row, item in enumerate(request.items):
            state = item.prompt
            for h, action in enumerate(map(int, item.response.split(" "))):
                found[row, h] = self.env.features[h, state, action]
                state = self.env.next_state[h, state, action]
        return found.reshape(len(found), -1)

    def _label(self, item: Any) -> Label:
        key = item.prompt, item.response
        k = self.replicates[key]
        self.replicates[key] += 1
        value = self.reward([str(item.prompt)], [item.response], replicate=[k])[0]
        return Label(item.prompt, item.response, value, k)


def driven(explorer: Any, env: TokenEnvironment, seed: int, **changes: Any) -> tuple[list[Event], list[Any]]:
    """Every event, the last stop request included, and the state after each."""
    desk, state, events, states = Desk(env, seed), explorer.init(spec_of(env, **changes)), [], []
    while True:
        request: Request = explorer.decide(state, rng=desk.rng())
        events.append(request)
        if isinstance(request, StopRequest):
            return events, [*states, state]
        state = explorer.absorb(state, request)
        states.append(state)
        events.append(desk.answer(request))
        state = explorer.absorb(state, events[-1])
        states.append(state)
        desk.turn += request.info["phase"] != "roll-out"
