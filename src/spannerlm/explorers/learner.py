"""What every explorer shares: the labels it has, the draws' moments, and the regression on them.

An explorer's own file then holds only what it decides. The learner's state is sufficient statistics: its size does
not grow with labels or draws, beyond one count per distinct labelled response.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from spannerlm.records import Drawn, Event, FloatArray, LabelItem, Labelled, LabelRequest, Spec
from spannerlm.regression import LabelStats, Posterior, fit_labels

PRIOR_POWER = 0.15
"""The prior of theta is C^(-2 * 0.15) in shape, C the covariance of relative features under pi_ref: a mild
preference for rewards that live in directions where the base model seldom varies (DIRECTED.md, "Model")."""
PRIOR_FLOOR = 0.01
"""Smallest eigenvalue of C, relative to the mean, that the prior tells apart from zero."""
ROUNDING = 1e-12
"""Spread of features, relative to their mean square, that is taken for rounding: sums of up to 1e4 draws keep that."""


@dataclass(frozen=True, eq=False)
class Moments:
    """First and second moments of all draws so far, by prompt."""

    counts: FloatArray
    """[X] draws per prompt."""
    sums: FloatArray
    """[X, d] sum of phi per prompt."""
    outer: FloatArray
    """[d, d] sum of phi phi' over all draws."""

    def centres(self) -> FloatArray:
        """[X, d] mean feature of each prompt's own draws; 0 for a prompt without draws."""
        return self.sums / np.maximum(self.counts, 1.0)[:, None]

    def covariance(self) -> FloatArray:
        """[d, d] covariance within prompts, pooled; 0 where no prompt has two draws that differ."""
        centres = self.centres()
        within = self.outer - (centres * self.counts[:, None]).T @ centres
        if np.trace(within) <= ROUNDING * np.trace(self.outer):
            return np.zeros_like(within)
        degrees = float(np.sum(np.maximum(self.counts - 1.0, 0.0)))
        return 0.5 * (within + within.T) / max(degrees, 1.0)


@dataclass(frozen=True, eq=False)
class Learner:
    """Everything learned so far; `absorb` folds requests and outcomes into it."""

    spec: Spec
    moments: Moments
    stats: LabelStats
    labelled: Mapping[tuple[int, str], int] = field(default_factory=dict)
    """How many labels each response has, skips and failures included: what need not be asked again."""
    pending: tuple[LabelItem, ...] = ()
    """Asked and not answered yet."""
    bought: int = 0
    """Labels charged, skips included."""
    drawn: int = 0
    """Oracle queries spent."""

    @classmethod
    def start(cls, spec: Spec) -> Learner:
        """The learner before any draw."""
        x, d = len(spec.prompt_probs), spec.dim
        moments = Moments(np.zeros(x), np.zeros((x, d)), np.zeros((d, d)))
        return cls(spec, moments, LabelStats.empty(x, d))

    @property
    def labels_left(self) -> int:
        """Labels that may still be asked for: the budget less what was bought and what is pending."""
        return self.spec.labels - self.bought - len(self.pending)

    @property
    def draws_left(self) -> float:
        """Draws that may still be spent; inf without a limit."""
        return float("inf") if self.spec.draws is None else self.spec.draws - self.drawn

    def batch(self) -> int:
        """Labels to ask for now: a batch, or what is left of the budget."""
        return min(self.spec.batch, self.labels_left)

    def absorb(self, event: Event) -> Learner:
        """The learner after a request was issued or an outcome came."""
        if isinstance(event, LabelRequest):
            return replace(self, pending=self.pending + event.items)
        if isinstance(event, Drawn):
            return self._absorb_draws(event)
        if isinstance(event, Labelled):
            return self._absorb_labels(event)
        return self

    def _absorb_draws(self, event: Drawn) -> Learner:
        moments = self.moments
        counts, sums, outer = moments.counts.copy(), moments.sums.copy(), moments.outer
        if not event.exhausted:  # tilted draws say nothing of the base model's moments
            for draws in event.draws:
                counts[draws.prompt] += draws.counts.sum()
                sums[draws.prompt] += draws.counts @ draws.features
                outer = outer + (draws.features * draws.counts[:, None]).T @ draws.features
        return replace(self, moments=Moments(counts, sums, outer), drawn=self.drawn + event.spent)

    def _absorb_labels(self, event: Labelled) -> Learner:
        known = [(i, label.value) for i, label in enumerate(event.labels) if label.value is not None and label.charged]
        rows = np.array([i for i, _ in known], dtype=np.int64)
        prompts = np.array([event.labels[i].prompt for i in rows], dtype=np.int64)
        stats = self.stats.add(prompts, event.features[rows], np.array([v for _, v in known])) if known else self.stats
        labelled, pending = dict(self.labelled), list(self.pending)
        for label in event.labels:
            key = (label.prompt, label.response)
            labelled[key] = labelled.get(key, 0) + 1
            matches = [item for item in pending if (item.prompt, item.response) == key]
            if matches:
                pending.remove(matches[0])
        bought = self.bought + sum(label.charged for label in event.labels)
        return replace(self, stats=stats, labelled=labelled, pending=tuple(pending), bought=bought)

    def open(self, prompt: int, response: str) -> bool:
        """Whether a label for this response would be new: always where labels are fresh and noisy."""
        if self.spec.fresh:
            return True
        asked = any(item.prompt == prompt and item.response == response for item in self.pending)
        return not asked and (prompt, response) not in self.labelled

    @cached_property
    def centres(self) -> FloatArray:
        """[X, d] mean features of the prompts' own draws."""
        return self.moments.centres()

    @cached_property
    def covariance(self) -> FloatArray:
        """[d, d] C: covariance of features within prompts under pi_ref."""
        return self.moments.covariance()

    @property
    def scale(self) -> float:
        """S = tr C, the feature scale in which prior precisions are expressed; 1 where features do not vary."""
        trace = float(np.trace(self.covariance))
        return trace if trace > 0.0 else 1.0

    @cached_property
    def transform(self) -> FloatArray:
        """[d, d] T: the prior of theta is isotropic in z = T (phi - centre), scaled so that tr(T C T) = S."""
        values, vectors = np.linalg.eigh(self.covariance)
        values = np.maximum(values, 0.0)
        mean = float(np.mean(values))
        if mean <= 0.0:
            return np.eye(self.spec.dim)
        shrink = np.maximum(values / mean, PRIOR_FLOOR) ** -PRIOR_POWER
        shrink *= np.sqrt(np.sum(values) / np.sum(values * shrink**2))
        transform: FloatArray = (vectors * shrink) @ vectors.T
        return transform

    @cached_property
    def posterior(self) -> Posterior | None:
        """The posterior over theta; None before the first label."""
        if self.stats.labels == 0:
            return None
        return fit_labels(self.stats, self.centres, self.scale, transform=self.transform)

    @cached_property
    def theta(self) -> FloatArray:
        """[d] posterior mean; 0 before the first label, and where all labels are equal but for rounding."""
        n, total = self.stats.labels, float(self.stats.value_sums.sum())
        if self.posterior is None or n * self.stats.square - total * total <= 1e-12 * n * self.stats.square:
            return np.zeros(self.spec.dim)
        return self.posterior.mean
