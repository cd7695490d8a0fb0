"""What `multi-turn-spanner` knows: its state, the design that its labels make, and the regret that they leave ahead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from spannerlm.explorers.learner import Learner
from spannerlm.explorers.paths import PathFit, Paths, Place, Store, information, step_prior
from spannerlm.records import FloatArray, Rollout

INTERCEPT = 10.0
"""Variance of a prompt's intercept in noise units that the design allows for: hardly any prior."""
RIDGE = 0.1
"""Precision that the design starts from, relative to what one draw tells of an average direction."""
SAMPLES = 64
"""Posterior draws whose policies are compared with the learned one."""


@dataclass(frozen=True)
class Core:
    """A pair that was found far apart at some place: the draw that was kept and the one that was not."""

    place: Place
    kept: str
    other: str


@dataclass(frozen=True, eq=False)
class Foresight:
    """What is left to gain, as the policy and the labels of the moment see it; in reward units."""

    expected: float
    """sigma^2 / (2 beta) sum_h E tr(Cov_h Cov_pi(phi_h)) along trunks: the second-order term."""
    sampled: float
    """Mean over posterior draws of beta times the KL of the policy from theirs, along trunks: right for large errors
    too."""
    labels: int
    """After how many."""

    @property
    def worse(self) -> float:
        """The larger of the two."""
        return max(self.expected, self.sampled)


@dataclass(frozen=True, eq=False)
class TrunkState:
    """Everything known, and what is planned."""

    learner: Learner
    nu: float
    """Radius beyond which a trunk is branched now."""
    alike: float = 0.0
    """Prior correlation of the steps' parameters."""
    store: Store = field(default_factory=Store)
    labelled: tuple[Rollout, ...] = ()
    """Sequences with labels, one entry per label."""
    values: tuple[float, ...] = ()
    branches: tuple[tuple[int, tuple[str, ...]], ...] = ()
    """Prompts and prefixes to roll out."""
    waiting: tuple[Rollout, ...] = ()
    """Sequences to be labelled."""
    asked: Mapping[tuple[int, str], Rollout] = field(default_factory=dict)
    """By prompt and response, what labels were or are to be asked for."""
    cores: tuple[Core, ...] = ()
    fit: PathFit | None = None
    bold: bool = True
    """Whether this round of trunks explores with the parameters that believe the labels as they are: every second."""
    rechecked: bool = False
    """Whether the core pairs were looked at since the last trunks."""
    ahead: Foresight | None = None
    """From the last trunks that the policy rolled out; None before the first."""
    calm: int = 0
    """Looks ahead in a row, each after further labels, that saw less regret than the run may leave."""
    idle: int = 0
    """Rounds of trunks since the last label that was bought: all sequences that they found had labels before."""

    @property
    def shape(self) -> tuple[int, int]:
        """(H, d)"""
        horizon = self.learner.spec.horizon or 1
        return horizon, self.learner.spec.dim // horizon

    @cached_property
    def theta(self) -> FloatArray:
        """[H, d]; 0 before the first label."""
        return np.zeros(self.shape) if self.fit is None else self.fit.theta

    def rolled(self, bold: bool) -> FloatArray:
        """[H, d] what a round rolls out with."""
        return self.fit.bold if self.fit is not None and bold else self.theta

    @property
    def beta(self) -> float:
        """KL temperature, which the spec tells."""
        assert self.learner.spec.beta is not None  # init has looked
        return self.learner.spec.beta

    @property
    def free(self) -> int:
        """Labels that are not planned for yet."""
        return self.learner.labels_left - len(self.waiting) - len(self.branches)


@dataclass(frozen=True, eq=False)
class Design:
    """What the labels will know of theta once all that are planned are in: covariance in noise units."""

    covariance: FloatArray
    """[H d, H d]"""
    dim: int
    """d"""

    @classmethod
    def of(cls, state: TrunkState) -> Design:
        """From the sequences that are labelled, asked for or waiting."""
        pending = [state.asked[key] for i in state.learner.pending if (key := (i.prompt, i.response)) in state.asked]
        rollouts = (*state.labelled, *pending, *state.waiting)
        horizon, dim = state.shape
        known = np.zeros((horizon * dim, horizon * dim))
        if rollouts:
            jacobian = Paths.of(state.store, rollouts, state.shape).at(state.rolled(state.bold), state.beta).jacobian()
            owners = np.array([path.prompt for path in rollouts])
            known = information(jacobian, owners, len(state.learner.spec.prompt_probs), INTERCEPT)
        precision: FloatArray = known + RIDGE * typical(state.store, dim) * step_prior(state.shape, state.alike)
        return cls(np.asarray(np.linalg.inv(precision), dtype=np.float64), dim)

    def squares(self, h: int, relative: FloatArray) -> FloatArray:
        """[k] squared lengths, in the norm of step h, of differences [k, d]."""
        block = self.covariance[h * self.dim : (h + 1) * self.dim, h * self.dim : (h + 1) * self.dim]
        return np.asarray(np.einsum("ki,ij,kj->k", relative, block, relative))

    def with_pair(self, h: int, relative: FloatArray) -> Design:
        """With two sequences more that differ by this [d] at step h: half an observation of the difference."""
        return self._observed(h, relative, 2.0)

    def with_label(self, h: int, own: FloatArray) -> Design:
        """With one sequence more of this Jacobian [d] at step h; what it tells of other steps is left out."""
        return self._observed(h, own, 1.0)

    def told(self, h: int, relative: FloatArray, own: FloatArray) -> float:
        """By how much a label of Jacobian ``own`` [d] at step h lowers the square of ``relative`` [d]."""
        block = self.covariance[h * self.dim : (h + 1) * self.dim, h * self.dim : (h + 1) * self.dim]
        return float((relative @ block @ own) ** 2 / (1.0 + own @ block @ own))

    def _observed(self, h: int, direction: FloatArray, noise: float) -> Design:
        onto = self.covariance[:, h * self.dim : (h + 1) * self.dim] @ direction
        own = float(direction @ onto[h * self.dim : (h + 1) * self.dim])
        less: FloatArray = np.outer(onto, onto) / (noise + own)
        return Design(self.covariance - less, self.dim)


def typical(store: Store, dim: int) -> float:
    """Variance of a feature at one place under pi_ref, mean over places and directions; 1 where there is none."""
    traces = []
    for choice in store.choices.values():
        share = choice.counts / choice.counts.sum()
        traces.append(float(share @ np.sum((choice.features - share @ choice.features) ** 2, axis=1)))
    mean = float(np.mean(traces)) / dim if traces else 0.0
    return mean if mean > 0.0 else 1.0


def foresight(state: TrunkState, trunks: Sequence[Rollout]) -> Foresight:
    """The regrets that the fit predicts along these trunks; pure, its randomness depends on the labels alone."""
    assert state.fit is not None  # the caller has looked
    paths, fit, beta = Paths.of(state.store, trunks, state.shape), state.fit, state.beta
    (horizon, dim), here = state.shape, paths.at(fit.theta, beta)
    weight = np.bincount(paths.rows[paths.rows >= 0], minlength=len(paths.steps)) / len(trunks)
    blocks = fit.covariance.reshape(horizon, dim, horizon, dim)[range(horizon), :, range(horizon)]
    off = paths.features - here.means[:, None]
    squares = np.einsum("rki,rij,rkj->rk", off, blocks[paths.steps], off)
    expected = float(weight @ np.sum(here.laws * squares, axis=1)) * fit.noise_std**2 / (2.0 * beta)
    rng = np.random.default_rng([state.learner.bought, 65])
    lost = [
        weight @ np.sum(here.laws * (here.gains - paths.at(theta, beta).gains), axis=1)
        for theta in fit.samples(SAMPLES, rng=rng)
    ]
    return Foresight(expected, float(np.mean(lost)), len(state.values))
