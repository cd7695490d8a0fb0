"""`coreset`: representation-based exploration, single labels where the features are least known.

Source: Tuyls, Foster, Krishnamurthy and Ash, "Representation-based exploration for language models: from test-time to
post-training" (2025); the rule itself is greedy leverage, a greedy G-optimal design (Kiefer and Wolfowitz, "The
equivalence of two extremum problems", 1960). Published objective: choose among sampled responses, one by one, the one
of largest phi' Sigma^-1 phi, with Sigma = lambda I + sum of phi phi' over those chosen before.

Departures. (1) phi is centred by the prompt's own mean over draws, which is free and leaves out what no policy depends
on. (2) lambda I is the shared regression's prior precision: at the posterior's mode, before the first label its
largest. (3) Candidates are all draws of all prompts at once instead of those of one prompt. (4) What is chosen is
labelled and regressed on; the published bonus is not added to a reward. (5) Responses with the mean feature of their
prompt are skipped; ``skip=False`` lets them compete, though they are the last that it would buy. It has no form for
comparisons: `active-preference` is the same idea for pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from spannerlm.explorers.candidates import SAME
from spannerlm.explorers.learner import Learner
from spannerlm.explorers.pooled import PoolExplorer, PoolState
from spannerlm.explorers.spanner_adaptive import prior_precision
from spannerlm.records import FloatArray, LabelItem


@dataclass(frozen=True)
class Coreset(PoolExplorer):
    """Labels the responses of largest leverage, each measured in the design that has those before it.

    Cost: one label a response; time n d^2 a batch and n d a label for n candidates.
    """

    name: ClassVar[str] = "coreset"

    def choose(self, state: PoolState, size: int, *, rng: np.random.Generator) -> tuple[LabelItem, ...]:  # noqa: ARG002
        """The ``size`` open responses that greedy leverage takes; the same one again where labels are fresh."""
        learner, candidates = state.learner, state.candidates
        index, out = candidates.index, learner.pending
        pending = [index[item.prompt, item.response] for item in out if (item.prompt, item.response) in index]
        sigma = design(learner)
        sigma = sigma + candidates.features[pending].T @ candidates.features[pending]
        allowed = candidates.open(learner)
        if self.skip:
            allowed &= np.sum(candidates.features**2, axis=1) > SAME * learner.scale
        rows = greedy_leverage(candidates.features, sigma, allowed, size, again=learner.spec.fresh)
        return tuple(candidates.item(learner, row) for row in rows)


def design(learner: Learner) -> FloatArray:
    """[d, d] Sigma: the prior precision and the sum of f f' over all labels, f centred, in units of the label noise."""
    prior = prior_precision(learner)
    if learner.posterior is None:
        return prior
    share = learner.posterior.lambdas[learner.posterior.mode()[1]] / learner.scale
    return np.asarray(share * prior + learner.stats.centred(learner.centres).outer)


def greedy_leverage(
    features: FloatArray, sigma: FloatArray, allowed: NDArray[np.bool_], size: int, *, again: bool
) -> list[int]:
    """Up to ``size`` allowed rows of features [n, d], each of largest x' Sigma^-1 x, then Sigma += x x'.

    The same row twice only if ``again``. Of equal leverages the first row counts.
    """
    inverse = np.linalg.inv(sigma)
    leverage = np.einsum("nd,nd->n", features @ inverse, features)
    mask, rows = np.where(allowed, 0.0, -np.inf), list[int]()
    for _ in range(min(size, size if again else int(allowed.sum())) if allowed.any() else 0):
        row = int(np.argmax(leverage + mask))
        rows.append(row)
        along = inverse @ features[row]
        total = 1.0 + float(features[row] @ along)
        inverse = inverse - np.outer(along, along) / total
        leverage = np.maximum(leverage - (features @ along) ** 2 / total, 0.0)
        if not again:
            mask[row] = -np.inf
    return rows
