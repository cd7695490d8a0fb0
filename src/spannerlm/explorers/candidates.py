"""The pools as arrays: every distinct response that was drawn, one row each, prompts one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr

from spannerlm.explorers.learner import Learner
from spannerlm.explorers.pools import Pools
from spannerlm.records import FloatArray, IntArray, LabelItem

SAME = 1e-12
"""Squared length of a relative feature, relative to S, that is taken for rounding: such a pair says nothing."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """What may be labelled: n distinct responses of m prompts."""

    ids: IntArray
    """[m] prompt indices, ascending."""
    starts: IntArray
    """[m] first row of each prompt."""
    owners: IntArray
    """[n] position in ``ids`` of each row's prompt."""
    responses: tuple[str, ...]
    """[n]"""
    features: FloatArray
    """[n, d] phi less the prompt's own mean over draws."""
    weights: FloatArray
    """[n] draw frequency within the prompt: sums to 1 per prompt."""

    @classmethod
    def of(cls, pools: Pools) -> Candidates:
        """The candidates of non-empty pools."""
        ids = np.array(sorted(pools), dtype=np.int64)
        records = [pools[int(x)] for x in ids]
        sizes = np.array([len(draws.responses) for draws in records], dtype=np.int64)
        weights = [draws.counts / draws.counts.sum() for draws in records]
        centred = [draws.features - w @ draws.features for draws, w in zip(records, weights, strict=True)]
        return cls(
            ids,
            np.concatenate([[0], np.cumsum(sizes)[:-1]]),
            np.repeat(np.arange(len(ids)), sizes),
            tuple(response for draws in records for response in draws.responses),
            np.concatenate(centred),
            np.concatenate(weights),
        )

    def __len__(self) -> int:
        return len(self.responses)

    def rows(self, owner: int) -> slice:
        """The rows of the prompt at this position."""
        end = self.starts[owner + 1] if owner + 1 < len(self.starts) else len(self)
        return slice(int(self.starts[owner]), int(end))

    def prompt_weights(self, prompt_probs: FloatArray) -> FloatArray:
        """[m] rho restricted to these prompts, normalised."""
        weights = prompt_probs[self.ids]
        return np.asarray(weights / weights.sum())

    def per_prompt(self, values: FloatArray) -> FloatArray:
        """[..., m] sums of values [..., n] over each prompt's rows."""
        return np.asarray(np.add.reduceat(values, self.starts, axis=-1))

    def tilted(self, scores: FloatArray, beta: float) -> FloatArray:
        """[..., n] probabilities within each prompt: weight times exp(scores / beta), normalised; scores [..., n]."""
        logits = np.log(self.weights) + scores / beta
        logits -= np.maximum.reduceat(logits, self.starts, axis=-1)[..., self.owners]
        weights = np.exp(logits)
        return np.asarray(weights / self.per_prompt(weights)[..., self.owners])

    def log_partition(self, scores: FloatArray) -> FloatArray:
        """[..., m] log E exp(score) over each prompt's draws: scores [..., n]."""
        highest = np.maximum.reduceat(scores, self.starts, axis=-1)
        return np.asarray(highest + np.log(self.per_prompt(self.weights * np.exp(scores - highest[..., self.owners]))))

    def divergence(self, probs: FloatArray) -> FloatArray:
        """[..., m] KL in nats of probabilities [..., n] from the draw frequencies."""
        return self.per_prompt(rel_entr(probs, self.weights))

    def temperature(self, scores: FloatArray, kl: float) -> float:
        """beta at which tilting by scores [n] costs ``kl`` nats on average over prompts, within 1 %: see `beta_for_kl`.

        By bisection on the rows as they are, without padding them: it is asked for every posterior draw.
        """
        spread = float(np.ptp(scores))
        if kl <= 0.0 or spread <= 0.0:
            return float("inf")
        low, high = np.log(spread) - 12.0, np.log(spread) + 12.0
        while high - low > 0.01:
            middle = 0.5 * (low + high)
            spent = float(np.mean(self.divergence(self.tilted(scores, float(np.exp(middle))))))
            low, high = (middle, high) if spent > kl else (low, middle)
        return float(np.exp(0.5 * (low + high)))

    def first(self, size: int) -> Candidates:
        """The candidates of the first ``size`` prompts."""
        return self if size >= len(self.ids) else self.of_prompts(np.arange(size))

    def of_prompts(self, owners: IntArray) -> Candidates:
        """The candidates of the prompts at these positions [k], ascending."""
        if len(owners) == len(self.ids):
            return self
        slices = [self.rows(int(owner)) for owner in owners]
        rows = np.concatenate([np.arange(part.start, part.stop) for part in slices])
        sizes = np.array([part.stop - part.start for part in slices], dtype=np.int64)
        return Candidates(
            self.ids[owners],
            np.concatenate([[0], np.cumsum(sizes)[:-1]]),
            np.repeat(np.arange(len(owners)), sizes),
            tuple(self.responses[i] for i in rows),
            self.features[rows],
            self.weights[rows],
        )

    @cached_property
    def index(self) -> dict[tuple[int, str], int]:
        """(prompt, response) -> row."""
        owners = self.ids[self.owners]
        return {(int(x), response): i for i, (x, response) in enumerate(zip(owners, self.responses, strict=True))}

    def open(self, learner: Learner) -> NDArray[np.bool_]:
        """[n] whether a reward label of the row would be new."""
        mask = np.ones(len(self), dtype=np.bool_)
        if not learner.spec.fresh:
            for key in (*learner.labelled, *learner.out):
                if len(key) == 2 and key in self.index:
                    mask[self.index[key]] = False
        return mask

    def item(self, learner: Learner, row: int) -> LabelItem:
        """The reward label of a row."""
        return LabelItem(int(self.ids[self.owners[row]]), self.responses[row], learner.spec.fresh)

    def pair(self, learner: Learner, first: int, second: int, taken: Sequence[LabelItem] = ()) -> tuple[LabelItem, ...]:
        """What a pair of rows costs: one comparison, or the rewards of both that are not known or taken yet."""
        fresh = learner.spec.fresh
        if learner.spec.feedback == "comparison":
            x = int(self.ids[self.owners[first]])
            if not fresh and not learner.open(x, self.responses[first], self.responses[second]):
                return ()
            found = LabelItem(x, self.responses[first], fresh, self.responses[second])
            turned = LabelItem(x, self.responses[second], fresh, self.responses[first])
            return (found,) if fresh or (found not in taken and turned not in taken) else ()
        items = [self.item(learner, row) for row in (first, second)]
        if fresh:
            return tuple(items)
        return tuple(i for i in dict.fromkeys(items) if learner.open(i.prompt, i.response) and i not in taken)

    def same(self, learner: Learner, first: int, second: int) -> bool:
        """Whether the pair's features are equal but for rounding: its labels say nothing of theta."""
        relative = self.features[first] - self.features[second]
        return bool(relative @ relative <= SAME * learner.scale)
