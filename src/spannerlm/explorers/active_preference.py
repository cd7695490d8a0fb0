"""`active-preference`: pairs of responses of one prompt whose reward difference is least known.

Source: Das, Chakraborty, Pacchiano and Ray Chowdhury, "Active preference optimization for sample efficient RLHF"
(2024); Muldrew, Hayes, Zhang and Barber, "Active preference learning for large language models" (2024). Published
objective (Das et al.): the prompt and pair of largest ||phi(x, y) - phi(x, y')||_{H^-1}, H the information of the
logistic loss over all comparisons so far.

Departures. (1) H is the shared regression's posterior precision, prior included; before the first label the prior's.
(2) A batch is chosen pair by pair: each enters H before the next is measured. (3) With comparisons the squared norm is
weighted by the pair's expected information E p (1 - p), in which Muldrew et al.'s preference certainty lives: a pair
whose outcome is foreseen teaches little. (4) With scalar rewards the same rule buys both rewards. (5) Candidates are
all draws of all prompts; one of the pair is among the ``top`` responses farthest from their prompt's mean in H^-1.
(6) Pairs of equal features are skipped; ``skip=False`` lets them compete, though they are the last that it would buy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import expit

from spannerlm.explorers.candidates import SAME, Candidates
from spannerlm.explorers.learner import Learner
from spannerlm.explorers.pooled import PoolExplorer, PoolState
from spannerlm.explorers.spanner_adaptive import prior_precision
from spannerlm.linalg import whiten, whitening_root
from spannerlm.records import FloatArray, IntArray, LabelItem


@dataclass(frozen=True)
class ActivePreference(PoolExplorer):
    """Labels the pairs of largest posterior variance of the reward difference.

    Cost: two labels a pair, or one comparison; time n d^2 + top n_x d a pair, for n candidates, n_x of a prompt.
    """

    top: int = 128
    """Responses that are tried as one of the pair, against all draws of their prompt."""
    name: ClassVar[str] = "active-preference"
    comparisons: ClassVar[bool] = True

    def choose(self, state: PoolState, size: int, *, rng: np.random.Generator) -> tuple[LabelItem, ...]:  # noqa: ARG002
        """The pairs of largest variance, up to ``size`` labels; the same pair again where labels are fresh."""
        learner, candidates = state.learner, state.candidates
        paired = learner.spec.feedback == "comparison"
        logits = candidates.features @ state.theta / learner.spec.scale if paired else None
        sigma = _with_pending(precision(learner), candidates, learner, logits)
        room = size if paired else max(size, min(2, learner.labels_left))
        items: list[LabelItem] = []
        while len(items) < room:
            best = self._best(candidates, learner, sigma, logits, items)
            if best is None:
                break
            first, second = best
            new = candidates.pair(learner, first, second, items)
            if items and len(items) + len(new) > room:
                break
            items += new
            sigma = sigma + _information(candidates, first, second, logits)
        return tuple(items[:room])

    def _best(
        self,
        candidates: Candidates,
        learner: Learner,
        sigma: FloatArray,
        logits: FloatArray | None,
        items: list[LabelItem],
    ) -> tuple[int, int] | None:
        """The rows of the best pair that has something to buy beyond ``items``; None where there is none."""
        open_rows = np.ones(len(candidates), dtype=np.bool_) if logits is not None else candidates.open(learner)
        if logits is None and not learner.spec.fresh:
            open_rows[[candidates.index[item.prompt, item.response] for item in items]] = False
        whitened = whiten(whitening_root(sigma), candidates.features)
        lengths = np.where(open_rows, np.sum(whitened**2, axis=1), -np.inf)
        rows = np.argsort(-lengths, kind="stable")[: min(self.top, int(open_rows.sum()))]
        for first, second in self._ordered(candidates, learner, whitened, logits, rows):
            if candidates.pair(learner, first, second, items):
                return first, second
        return None

    def _ordered(
        self,
        candidates: Candidates,
        learner: Learner,
        whitened: FloatArray,
        logits: FloatArray | None,
        rows: IntArray,
    ) -> Iterator[tuple[int, int]]:
        """Pairs of one of ``rows`` and another row of its prompt that say something, the best first."""
        firsts, seconds, values = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)], [np.zeros(0)]
        for first in map(int, rows):
            inside = candidates.rows(int(candidates.owners[first]))
            second = np.delete(np.arange(inside.start, inside.stop), first - inside.start)
            if self.skip:
                apart = np.sum((candidates.features[second] - candidates.features[first]) ** 2, axis=1)
                second = second[apart > SAME * learner.scale]
            variance = np.sum((whitened[second] - whitened[first]) ** 2, axis=1)
            if logits is not None:
                variance = variance * outcome_variance(logits[first] - logits[second], variance)
            firsts.append(np.full(len(second), first))
            seconds.append(second)
            values.append(variance)
        order = np.argsort(-np.concatenate(values), kind="stable")
        yield from zip(np.concatenate(firsts)[order].tolist(), np.concatenate(seconds)[order].tolist(), strict=True)


def precision(learner: Learner) -> FloatArray:
    """[d, d] Sigma: ||phi||_{Sigma^-1} is the posterior standard deviation of <theta, phi> in units of the noise.

    With comparisons in units of s. Before the first label the prior's, at lambda = S.
    """
    return prior_precision(learner) if learner.posterior is None else learner.posterior.precision()


def outcome_variance(mean: FloatArray, variance: FloatArray) -> FloatArray:
    """[n] E p (1 - p), p = sigmoid(logit) with logits N(mean [n], variance [n]), as in MacKay, "The evidence framework
    applied to classification networks" (1992): the slope in the mean of E p, which is about sigmoid(k mean)."""
    k = 1.0 / np.sqrt(1.0 + np.pi * variance / 8.0)
    p = expit(k * mean)
    return np.asarray(k * p * (1.0 - p))


def _information(candidates: Candidates, first: int, second: int, logits: FloatArray | None) -> FloatArray:
    """[d, d] what labelling a pair adds to the precision: p (1 - p) f f' for a comparison, f f' / 2 for both rewards.

    Where one of the rewards is known already, the other completes the pair.
    """
    relative = candidates.features[first] - candidates.features[second]
    p = 0.5 if logits is None else float(expit(logits[first] - logits[second]))
    weight = 0.5 if logits is None else p * (1.0 - p)
    return np.asarray(weight * np.outer(relative, relative))


def _with_pending(sigma: FloatArray, candidates: Candidates, learner: Learner, logits: FloatArray | None) -> FloatArray:
    """``sigma`` [d, d] with what is asked for and not answered yet; a reward as if its prompt's mean were known."""
    for item in learner.pending:
        first = candidates.index.get((item.prompt, item.response))
        second = candidates.index.get((item.prompt, item.opponent or ""))
        if first is not None and second is not None:
            sigma = sigma + _information(candidates, first, second, logits)
        elif first is not None and item.opponent is None:
            sigma = sigma + np.outer(candidates.features[first], candidates.features[first])
    return sigma
