"""An exact environment that remembers what was drawn: what a policy is worth when nothing else can be played."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spannerlm.environments import TabularEnvironment
from spannerlm.records import Draws, FloatArray


class WatchedEnvironment(TabularEnvironment):
    """The environment, with a record of the responses drawn and of the regret within them.

    A policy over a frozen model plays what the model has drawn: a response that never came up cannot be the answer,
    however well its reward is known (THEORY 2). Nothing that an explorer sees is changed.
    """

    regrets: list[float]
    """Of every policy that `regret` was asked about: that of the policy restricted to what was drawn by then."""

    def __init__(self, env: TabularEnvironment) -> None:
        arrays = (env.prompt_probs, env.base_probs, env.features, env.mean_rewards)
        super().__init__(*arrays, beta=env.beta, noise_std=env.noise_std)
        object.__setattr__(self, "regrets", [])
        object.__setattr__(self, "_seen", np.zeros(env.base_probs.shape, dtype=np.bool_))

    def draw(self, prompts: Sequence[int], n: int, *, rng: np.random.Generator) -> tuple[Draws, ...]:
        """[m] records of ``n`` draws each, remembered. Cost: n m draws."""
        records = super().draw(prompts, n, rng=rng)
        for record in records:
            self._seen[record.prompt, list(map(int, record.responses))] = True  # type: ignore[attr-defined]
        return records

    def regret(self, policy: FloatArray) -> float:
        """The regret of a table [X, Y]; that within the responses drawn so far joins `regrets`.

        A prompt of which nothing was drawn, or nothing that the policy plays, is answered by pi_ref.
        """
        inside = np.where(self._seen, policy, 0.0)  # type: ignore[attr-defined]
        total = inside.sum(axis=1, keepdims=True)
        played = np.where(total > 0.0, inside / np.where(total > 0.0, total, 1.0), self.base_probs)
        self.regrets.append(super().regret(played))
        return super().regret(policy)
