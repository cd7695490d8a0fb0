"""What every explorer shares: the labels it has, the draws' moments, and the regression on them.

An explorer's own file then holds only what it decides. The learner's state is sufficient statistics: its size does
not grow with labels or draws, beyond one count per distinct labelled response, and the comparisons themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from spannerlm.logistic import ComparisonStats, LogisticPosterior, Rewards, fit_comparisons
from spannerlm.records import Drawn, Event, FloatArray, Label, LabelItem, Labelled, LabelRequest, Spec
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


Asked = tuple[int, str] | tuple[int, str, str]
"""What a label settles: a response of a prompt, or a pair of them in alphabetical order."""


def asked(label: Label | LabelItem) -> Asked:
    """What this label settles; a comparison settles its pair whichever way round."""
    if label.opponent is None:
        return label.prompt, label.response
    first, second = sorted((label.response, label.opponent))
    return label.prompt, first, second


@dataclass(frozen=True, eq=False)
class Learner:
    """Everything learned so far; `absorb` folds requests and outcomes into it."""

    spec: Spec
    moments: Moments
    stats: LabelStats
    comparisons: ComparisonStats = field(default_factory=ComparisonStats)
    labelled: Mapping[Asked, int] = field(default_factory=dict)
    """How many labels each response or pair has, skips and failures included: what need not be asked again."""
    pending: tuple[LabelItem, ...] = ()
    """Asked and not answered yet."""
    bought: int = 0
    """Labels charged, skips included; not those that somebody had already (info ``given``)."""
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
        if not event.exhausted and not event.info.get("enumerate"):  # others say nothing of the base model's moments
            for draws in (record for record in event.draws if record.prefix is None):
                counts[draws.prompt] += draws.counts.sum()
                sums[draws.prompt] += draws.counts @ draws.features
                outer = outer + (draws.features * draws.counts[:, None]).T @ draws.features
        return replace(self, moments=Moments(counts, sums, outer), drawn=self.drawn + event.spent)

    def _absorb_labels(self, event: Labelled) -> Learner:
        known = [(i, label) for i, label in enumerate(event.labels) if label.value is not None and label.charged]
        scalar = [(i, label) for i, label in known if label.opponent is None]
        paired = [(i, label) for i, label in known if label.opponent is not None]
        stats, comparisons = self.stats, self.comparisons
        if scalar:
            prompts = np.array([label.prompt for _, label in scalar], dtype=np.int64)
            stats = stats.add(prompts, event.features[[i for i, _ in scalar]], _values(scalar))
        if paired:
            comparisons = comparisons.add(event.features[[i for i, _ in paired]], _values(paired))
        labelled, pending = dict(self.labelled), list(self.pending)
        for label in event.labels:
            key = asked(label)
            labelled[key] = labelled.get(key, 0) + 1
            matches = [item for item in pending if asked(item) == key]
            if matches:
                pending.remove(matches[0])
        cost = 0 if event.info.get("given") else sum(label.charged for label in event.labels)
        learned = replace(self, stats=stats, comparisons=comparisons, labelled=labelled)
        return replace(learned, pending=tuple(pending), bought=self.bought + cost)

    def open(self, prompt: int, response: str, opponent: str | None = None) -> bool:
        """Whether a label for this response or pair would be new: always where labels are fresh and noisy."""
        if self.spec.fresh:
            return True
        key = asked(LabelItem(prompt, response, opponent=opponent))
        return key not in self.labelled and key not in self.out

    @cached_property
    def out(self) -> frozenset[Asked]:
        """What labels were asked for and not answered yet."""
        return frozenset(asked(item) for item in self.pending)

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
        return self.prior_transform(PRIOR_POWER)

    def prior_transform(self, power: float) -> FloatArray:
        """[d, d] T of the prior C^(-2 power) in shape."""
        values, vectors = np.linalg.eigh(self.covariance)
        values = np.maximum(values, 0.0)
        mean = float(np.mean(values))
        if mean <= 0.0:
            return np.eye(self.spec.dim)
        shrink = np.maximum(values / mean, PRIOR_FLOOR) ** -power
        shrink *= np.sqrt(np.sum(values) / np.sum(values * shrink**2))
        transform: FloatArray = (vectors * shrink) @ vectors.T
        return transform

    @cached_property
    def posterior(self) -> Posterior | LogisticPosterior | None:
        """The posterior over theta; from comparisons, and rewards beside them, where comparisons are the feedback. None
        before the first label."""
        if self.spec.feedback == "comparison":
            if self.comparisons.comparisons == 0 and self.stats.labels == 0:
                return None
            rewards = self.rewards(self.transform)
            told = self.spec.scale
            return fit_comparisons(self.comparisons, self.scale, scale=told, transform=self.transform, rewards=rewards)
        if self.stats.labels == 0:
            return None
        return fit_labels(self.stats, self.centres, self.scale, transform=self.transform)

    def rewards(self, transform: FloatArray) -> Rewards | None:
        """What rewards say beside comparisons, for features transformed by T [d, d]; None where there are none."""
        if self.stats.labels == 0:
            return None
        return Rewards.of(fit_labels(self.stats, self.centres, self.scale, transform=transform), self.spec.scale)

    @cached_property
    def theta(self) -> FloatArray:
        """[d] posterior mean; 0 before the first label, and where all labels are equal but for rounding."""
        n, total = self.stats.labels, float(self.stats.value_sums.sum())
        if self.posterior is None:
            return np.zeros(self.spec.dim)
        if self.spec.feedback == "comparison":
            return self.posterior.mean
        if n * self.stats.square - total * total <= 1e-12 * n * self.stats.square:
            return np.zeros(self.spec.dim)
        return self.posterior.mean


def _values(labels: Sequence[tuple[int, Label]]) -> FloatArray:
    return np.array([label.value for _, label in labels], dtype=np.float64)
