"""`directed` (ours): buy the label that most lowers the predicted regret of the policy (DIRECTED.md).

The base rule is goal-directed design: irrelevant rare directions cost nothing, and no knob is tuned per task. What has
changed against DIRECTED.md's first version, each measured on its tuning families: the first `opening` labels are base
draws, none chosen by leverage (which chases malformed outliers: countdown); a label's noise is taken to grow with the
length of its feature by `damping` (the same); pools double with every ten labels, so that p need not be known; and the
regression's cap on the prior precision yields to evidence (decoys; see `regression.SHRINKAGE`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
from scipy.special import expit

from spannerlm.errors import InputError
from spannerlm.explorers.candidates import Candidates
from spannerlm.explorers.design import PairDesign, pick, single_design
from spannerlm.explorers.foresight import (
    SUSPICION,
    Foresight,
    Replicates,
    add_replicates,
    lack_of_fit,
    predicted_regret,
)
from spannerlm.explorers.learner import Learner
from spannerlm.explorers.pooled import PoolExplorer, PoolState
from spannerlm.logistic import LogisticPosterior
from spannerlm.records import Event, FloatArray, Info, IntArray, LabelItem, Labelled, Request, Spec, StopRequest
from spannerlm.regression import Posterior

MISFIT = "the features do not explain the reward: labels of one response agree better than the fit with them"
FARTHEST = 10.0
"""Noise variance, relative to that of an ordinary label, that is held against any response at most: where all that
matters is rare, all else has next to no length, and unbounded damping cancels what a long feature tells (max-k-dnf)."""
MARGIN = 2.0
"""By how much both predicted regrets must lie below the one that was asked for: at 1 half of the runs end above it."""
TOP, OPPONENTS = 200, 32
"""Rows, and opponents of each, among which a comparison is chosen."""


@dataclass(frozen=True, eq=False)
class DirectedState(PoolState):
    """A pool state that can look ahead."""

    replicates: Mapping[tuple[int, str], Replicates] = field(default_factory=dict)
    """All rewards by response."""

    @cached_property
    def foresight(self) -> Foresight:
        """Predicted regrets of the current policy; their randomness depends on the number of labels alone."""
        rng = np.random.default_rng([self.learner.bought, 64])
        return predicted_regret(self.learner, self.candidates, self.theta, self.beta, bounded=self.bounded, rng=rng)

    @cached_property
    def misfit(self) -> bool:
        """Whether replicates show that the reward is not linear in the features."""
        return lack_of_fit(self.replicates) < SUSPICION


@dataclass(frozen=True)
class Directed(PoolExplorer):
    """Goal-directed design. After ``opening`` random labels, each label is the one that most lowers tr(M Cov(theta)).

    M is the covariance of features under the mean of policies that the posterior holds possible. Learns from rewards
    and from comparisons. With ``target_regret`` it stops as soon as both predicted regrets are below half of it. Cost:
    the pools of `PoolExplorer`; one label each; about 10 n d^2 flops a request for n candidates.
    """

    opening: int = 20
    """Labels of base draws before the design begins."""
    samples: int = 16
    """Posterior draws whose policies are mixed."""
    base_share: float = 0.1
    """Share of the base model in the mixture."""
    damping: float = 1.0
    """Label noise variance is taken to be 1 + damping |f|^2 / S, at most 10: what lies far out tells less than it
    seems to."""
    round_prompts: int = 32
    """Prompts looked at per request, at most."""
    name: ClassVar[str] = "directed"
    comparisons: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.samples < 1 or self.round_prompts < 1 or not 0.0 < self.base_share <= 1.0:
            raise InputError(
                "directed: expected samples and round_prompts of at least 1 and base_share in (0, 1], got "
                f"{self.samples}, {self.round_prompts}, {self.base_share}"
            )

    def init(self, spec: Spec) -> DirectedState:
        """The state before the first request."""
        start = super().init(spec)
        return DirectedState(start.learner, box=start.box)

    def decide(self, state: PoolState, *, rng: np.random.Generator) -> Request:
        """As every `PoolExplorer`, unless both predicted regrets are below the target by the margin."""
        target = state.learner.spec.target_regret
        ready = state.size > 0 and not state.learner.pending and state.learner.bought >= 2 * self.opening
        if target is not None and ready and isinstance(state, DirectedState):
            ahead = state.foresight
            if MARGIN * max(ahead.expected, ahead.wide) <= target:
                return StopRequest(f"predicted regret below {target:g}", self.progress(state))
        return super().decide(state, rng=rng)

    def absorb(self, state: PoolState, event: Event) -> PoolState:
        """The state after an event; rewards are remembered by response."""
        after = super().absorb(state, event)
        if isinstance(event, Labelled) and isinstance(after, DirectedState):
            return replace(after, replicates=add_replicates(after.replicates, event))
        return after

    def progress(self, state: PoolState) -> Info:
        """Phase, updates, both predicted regrets, and a warning where the features do not fit."""
        info = dict(super().progress(state))
        if isinstance(state, DirectedState) and state.learner.posterior is not None and state.size:
            ahead = state.foresight
            info |= {"predicted_regret": ahead.expected, "predicted_regret_wide": ahead.wide}
            if state.misfit:
                info["warning"] = MISFIT
        return info

    def choose(self, state: PoolState, size: int, *, rng: np.random.Generator) -> tuple[LabelItem, ...]:
        """Base draws at first, then what lowers the predicted regret most."""
        learner, posterior = state.learner, state.learner.posterior
        if posterior is None or learner.bought + len(learner.pending) < self.opening:
            return self._random(state, size, rng=rng)
        rho = state.candidates.prompt_weights(learner.spec.prompt_probs)
        m = min(self.round_prompts, int(np.count_nonzero(rho)))
        part = state.candidates.of_prompts(np.sort(rng.choice(len(rho), m, replace=False, p=rho)))
        thetas = state.bounded(posterior.sample(self.samples, rng=rng))
        mixed = mixture(learner, part, thetas, self.base_share)
        target = covariance(part, mixed, part.prompt_weights(learner.spec.prompt_probs))
        if isinstance(posterior, LogisticPosterior):
            found = self._comparisons(learner, posterior, part, mixed, target, size, rng=rng)
        else:
            found = self._singles(learner, posterior, part, target, size)
        return found or self._random(state, size, rng=rng)

    def _singles(
        self, learner: Learner, posterior: Posterior, part: Candidates, target: FloatArray, size: int
    ) -> tuple[LabelItem, ...]:
        lengths = np.einsum("nd,nd->n", part.features, part.features)
        extra = np.minimum(1.0 + self.damping * lengths / learner.scale, FARTHEST)
        design = single_design(learner, posterior, target, part.features, part.owners, part.ids, extra)
        for item in learner.pending:
            row = part.index.get((item.prompt, item.response))
            if row is not None:
                design.take(row)
        rows = pick(design, part.open(learner), size, again=learner.spec.fresh)
        return tuple(part.item(learner, row) for row in rows)

    def _comparisons(
        self,
        learner: Learner,
        posterior: LogisticPosterior,
        part: Candidates,
        mixed: FloatArray,
        target: FloatArray,
        size: int,
        *,
        rng: np.random.Generator,
    ) -> tuple[LabelItem, ...]:
        first, second = contenders(part, posterior.covariance(), target, mixed, rng=rng)
        if len(first) == 0:
            return ()
        relative = part.features[first] - part.features[second]
        odds = expit(relative @ posterior.mean / posterior.scale)
        design = PairDesign(posterior.covariance(), target, relative, odds * (1.0 - odds))
        for item in learner.pending:
            rows = [part.index.get((item.prompt, text)) for text in (item.response, item.opponent or "")]
            if rows[0] is not None and rows[1] is not None:
                design.account(part.features[rows[0]] - part.features[rows[1]], 0.25)
        items: list[LabelItem] = []
        mask = np.zeros(len(first))
        while len(items) < size:
            gains = design.gains() + mask
            k = int(np.argmax(gains))
            if not gains[k] > 0.0:
                break
            found = part.pair(learner, int(first[k]), int(second[k]), items)
            if found:
                items += found
                design.take(k)
            if not found or not learner.spec.fresh:
                mask[k] = -np.inf
        return tuple(items)

    def _random(self, state: PoolState, size: int, *, rng: np.random.Generator) -> tuple[LabelItem, ...]:
        """Base draws of random prompts: single ones, or pairs where labels are comparisons."""
        learner, c = state.learner, state.candidates
        chance = c.weights * c.prompt_weights(learner.spec.prompt_probs)[c.owners]
        if learner.spec.feedback == "comparison":
            return self._random_pairs(learner, c, chance, size, rng=rng)
        chance = chance * c.open(learner)
        if self.skip:
            chance = chance * (np.einsum("nd,nd->n", c.features, c.features) > 0.0)
        some = int(np.count_nonzero(chance))
        if some == 0:
            return ()
        again = learner.spec.fresh
        rows = rng.choice(len(c), size if again else min(size, some), replace=again, p=chance / chance.sum())
        return tuple(c.item(learner, int(row)) for row in rows)

    def _random_pairs(
        self, learner: Learner, c: Candidates, chance: FloatArray, size: int, *, rng: np.random.Generator
    ) -> tuple[LabelItem, ...]:
        items: list[LabelItem] = []
        tries = rng.choice(len(c), 64 * size, p=chance / chance.sum())
        for first in map(int, tries):
            rows = c.rows(int(c.owners[first]))
            second = rows.start + int(rng.choice(rows.stop - rows.start, p=c.weights[rows]))
            if first != second and not (self.skip and c.same(learner, first, second)):
                items += c.pair(learner, first, second, items)
            if len(items) == size:
                break
        return tuple(items)


def mixture(learner: Learner, c: Candidates, thetas: FloatArray, base_share: float) -> FloatArray:
    """[n] mean of the policies of thetas [k, d] within each prompt, with a share of the base model."""
    scores, beta = thetas @ c.features.T, learner.spec.beta
    if beta is not None:
        policies = c.tilted(scores, beta)
    else:
        policies = np.array([c.tilted(s, c.temperature(s, learner.spec.kl or 0.0)) for s in scores])
    return np.asarray((1.0 - base_share) * policies.mean(axis=0) + base_share * c.weights)


def covariance(c: Candidates, probs: FloatArray, rho: FloatArray) -> FloatArray:
    """[d, d] M: mean over prompts of the covariance of features under probabilities [n]."""
    weights = probs * rho[c.owners]
    means = c.per_prompt((c.features * probs[:, None]).T).T
    return np.asarray((c.features * weights[:, None]).T @ c.features - (means * rho[:, None]).T @ means)


def contenders(
    c: Candidates, sigma: FloatArray, target: FloatArray, mixed: FloatArray, *, rng: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """Pairs of rows worth looking at: the rows of greatest reach, each with opponents of its prompt by the mixture."""
    onto = c.features @ sigma
    reach = np.einsum("nd,nd->n", onto @ target, onto)
    first = np.repeat(np.argsort(-reach, kind="stable")[:TOP], OPPONENTS)
    ends = np.append(c.starts[1:], len(c))[c.owners[first]]
    total = np.cumsum(mixed)
    before = total[c.starts[c.owners[first]]] - mixed[c.starts[c.owners[first]]]
    aim = before + rng.random(len(first)) * (total[ends - 1] - before)
    second = np.clip(np.searchsorted(total, aim), c.starts[c.owners[first]], ends - 1)
    pairs = np.unique(np.stack([first, second])[:, first != second], axis=1)
    return pairs[0], pairs[1]
