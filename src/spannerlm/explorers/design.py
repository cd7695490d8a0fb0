"""Goal-directed design: how much one more label is expected to lower the regret of the policy (DIRECTED.md, "Choose").

Near the optimum the regret of a softmax policy is beta KL ~ (1 / 2 beta) tr(M Cov(theta)), M the covariance of features
under the policy. A label lowers tr(M Sigma) by an amount known before it is bought: its gain. Everything here is in
centred features f = phi - centre and in units of the label noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spannerlm.explorers.learner import Learner
from spannerlm.records import FloatArray, IntArray
from spannerlm.regression import Posterior


@dataclass
class SingleDesign:
    """Gains of single labels with the mean mu and the prompts' intercepts integrated out; downdated pick by pick.

    Cost: 6 n d^2 flops to set up, about 8 n d a pick, for n candidates.
    """

    features: FloatArray
    """[n, d] f of the candidates."""
    owners: IntArray
    """[n] position of each candidate's prompt among the m prompts of the design."""
    sigma: FloatArray
    """[d, d] covariance of theta in noise units."""
    target: FloatArray
    """[d, d] M."""
    gamma: float
    counts: FloatArray
    """[m] labels per prompt, in precision units."""
    sums: FloatArray
    """[m, d] sum of f over a prompt's labels."""
    mass: float
    """o: precision of mu."""
    slope: FloatArray
    """[d] a1."""
    extra: FloatArray
    """[n] h: noise variance of a candidate's label, relative to that of an ordinary one."""

    def __post_init__(self) -> None:
        spread = self.features @ self.sigma
        self._variance = np.einsum("nd,nd->n", spread, self.features)
        half = spread @ self.target
        self._goal = np.einsum("nd,nd->n", half, spread)

    def gains(self) -> FloatArray:
        """[n] by how much a label of each candidate lowers tr(M Sigma)."""
        kappa = self.gamma / (1.0 + self.gamma * self.counts)  # [m]
        rest = 1.0 - kappa * self.counts
        mass = max(self.mass, 1e-12)
        shift = kappa[:, None] * self.sums + (rest / mass)[:, None] * self.slope  # [m, d]
        spread = shift @ self.sigma
        crossed = np.einsum("nd,nd->n", self.features, spread[self.owners])
        variance = self._variance - 2.0 * crossed + np.einsum("md,md->m", spread, shift)[self.owners]
        moved = spread @ self.target @ self.sigma
        crossed = np.einsum("nd,nd->n", self.features, moved[self.owners])
        goal = self._goal - 2.0 * crossed + np.einsum("md,md->m", moved, shift)[self.owners]
        noise = self.extra + (kappa + rest**2 / mass)[self.owners]
        return np.asarray(np.maximum(goal, 0.0) / (noise + np.maximum(variance, 0.0)))

    def take(self, row: int) -> None:
        """Account for a label of this candidate, whatever its value will be."""
        x = self.owners[row]
        kappa = self.gamma / (1.0 + self.gamma * self.counts[x])
        rest = 1.0 - kappa * self.counts[x]
        z, h, mass = self.features[row], self.extra[row], max(self.mass, 1e-12)
        u = z - kappa * self.sums[x]
        seen = u - rest / mass * self.slope
        along = self.sigma @ seen
        total = h + kappa + rest**2 / mass + float(seen @ along)
        onto, goal = self.features @ along, self.target @ along
        moved = self.features @ (self.sigma @ goal)
        self._goal += (-2.0 * onto * moved + float(along @ goal) * onto**2 / total) / total
        self._variance -= onto**2 / total
        self.sigma = self.sigma - np.outer(along, along) / total
        self.slope = self.slope + rest * u / (h + kappa)
        self.mass += rest**2 / (h + kappa)
        self.sums[x] += z / h
        self.counts[x] += 1.0 / h


def single_design(
    learner: Learner,
    posterior: Posterior,
    target: FloatArray,
    features: FloatArray,
    owners: IntArray,
    ids: IntArray,
    extra: FloatArray,
) -> SingleDesign:
    """The design at the posterior's mode, for candidates f [n, d] of the prompts ``ids`` [m]."""
    g, _ = posterior.mode()
    gamma = float(posterior.gammas[g])
    stats, centres = learner.stats, learner.centres
    known = stats.centred(centres)
    rest = 1.0 - gamma / (1.0 + gamma * known.counts) * known.counts
    counts = stats.counts[ids]
    return SingleDesign(
        features,
        owners,
        posterior.covariance(),
        target,
        gamma,
        counts,
        stats.feature_sums[ids] - counts[:, None] * centres[ids],
        float(np.sum(known.counts * rest)),
        rest @ known.feature_sums,
        extra,
    )


def pick(design: SingleDesign, allowed: NDArray[np.bool_], size: int, *, again: bool) -> list[int]:
    """Up to ``size`` rows of greatest gain, one after the other; the same row twice only if ``again``."""
    mask = np.where(allowed, 0.0, -np.inf)
    rows: list[int] = []
    for _ in range(size):
        gains = design.gains() + mask
        row = int(np.argmax(gains))
        if not gains[row] > 0.0:
            break
        rows.append(row)
        design.take(row)
        if not again:
            mask[row] = -np.inf
    return rows


@dataclass
class PairDesign:
    """Gains of comparisons, each an observation of precision w of its relative feature; downdated pick by pick."""

    sigma: FloatArray
    """[d, d] covariance of theta, in logits."""
    target: FloatArray
    """[d, d] M."""
    relative: FloatArray
    """[n, d] relative features of the candidate pairs."""
    precisions: FloatArray
    """[n] w = p (1 - p): what the outcome of each pair tells."""

    def gains(self) -> FloatArray:
        """[n] by how much each comparison lowers tr(M Sigma)."""
        onto = self.relative @ self.sigma
        goal = np.einsum("nd,nd->n", onto @ self.target, onto)
        variance = np.einsum("nd,nd->n", onto, self.relative)
        return np.asarray(self.precisions * goal / (1.0 + self.precisions * variance))

    def account(self, relative: FloatArray, precision: float) -> None:
        """Account for a comparison of relative feature [d], whatever its outcome will be."""
        along = self.sigma @ relative
        self.sigma = self.sigma - precision * np.outer(along, along) / (1.0 + precision * float(relative @ along))

    def take(self, row: int) -> None:
        """Account for a comparison of this candidate."""
        self.account(self.relative[row], float(self.precisions[row]))
