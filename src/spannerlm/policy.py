"""Linear-softmax and truncated-softmax policies, exact on finite sets (THEORY 1, 3).

A policy here is pi_ref tilted by exp(score / beta). On a finite set its density is exact; on a real model it is
drawn from by a sampler. All densities are computed in log space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_softmax, rel_entr

from spannerlm.errors import InputError
from spannerlm.records import FloatArray


class FiniteEnvironment(Protocol):
    """What an exact density needs of an environment: pi_ref [X, Y] and phi [X, Y, d]."""

    @property
    def base_probs(self) -> FloatArray:
        """[X, Y] pi_ref(y | x)."""

    @property
    def features(self) -> FloatArray:
        """[X, Y, d] phi(x, y)."""


@runtime_checkable
class StepEnvironment(Protocol):
    """What an exact density needs of an environment of H steps: pi_ref [H, S, A] and phi [H, S, A, d]."""

    @property
    def base_probs(self) -> FloatArray:
        """[H, S, A] pi_ref,h(a | s)."""

    @property
    def features(self) -> FloatArray:
        """[H, S, A, d] phi_h(s, a)."""

    def tilted(self, scores: FloatArray) -> FloatArray:
        """[H, S, A] step by step, the law of sequences tilted by the sum of these scores [H, S, A] over beta."""


class Policy(Protocol):
    """A policy over a frozen base model."""

    @property
    def theta(self) -> FloatArray:
        """[d] reward parameter; [H, d], one of each step, where the policy acts step by step."""

    def table(self, env: FiniteEnvironment | StepEnvironment) -> FloatArray:
        """[X, Y] probabilities on a finite environment, rows summing to 1; [H, S, A] on one of steps."""


def tilt(base_probs: FloatArray, scores: FloatArray, beta: float) -> FloatArray:
    """[..., Y] probabilities proportional to base_probs exp(scores / beta), normalised over the last axis."""
    with np.errstate(divide="ignore"):
        logits = np.log(base_probs) + scores / beta
    probabilities: FloatArray = np.exp(log_softmax(logits, axis=-1))
    return probabilities


def kl_divergence(probs: FloatArray, base_probs: FloatArray) -> FloatArray:
    """[...] KL(probs || base_probs) in nats over the last axis; inf where probs leaves the base's support."""
    divergence: FloatArray = np.sum(rel_entr(probs, base_probs), axis=-1)
    return divergence


def padded(rows: Sequence[FloatArray]) -> FloatArray:
    """[X, n] the rows [n_x] of different lengths, filled up with zeros: what has base probability 0 has no weight."""
    table = np.zeros((len(rows), max((len(row) for row in rows), default=0)))
    for x, row in enumerate(rows):
        table[x, : len(row)] = row
    return table


def beta_for_kl(base_probs: FloatArray, scores: FloatArray, kl: float) -> float:
    """The KL temperature at which tilting base_probs [X, n] by scores [X, n] costs ``kl`` nats on average over X.

    Returns inf where every prompt's scores are equal (no tilt is possible) or ``kl`` is below 1e-11 nats, and the
    smallest temperature tried where ``kl`` is beyond what the support allows (the tilt is then the arg max). Raises
    `InputError` for a negative budget.
    """
    if not kl >= 0.0:
        raise InputError(f"expected a KL budget of at least 0 nats, got {kl}: give a non-negative number")
    inside = base_probs > 0.0
    highest = np.max(scores, axis=1, where=inside, initial=-np.inf)
    spread = highest - np.min(scores, axis=1, where=inside, initial=np.inf)
    if kl == 0.0 or not np.any(spread > 0.0):
        return float("inf")

    def gap(log_beta: float) -> float:
        return float(np.mean(kl_divergence(tilt(base_probs, scores, np.exp(log_beta)), base_probs))) - kl

    widest = np.log(np.max(spread))
    low, high = widest - 12.0, widest + 12.0
    if gap(low) < 0.0:
        return float(np.exp(low))
    if gap(high) > 0.0:  # less than rounding can tell from 0
        return float("inf")
    return float(np.exp(brentq(gap, low, high, xtol=1e-6)))


@dataclass(frozen=True, eq=False)
class LinearSoftmaxPolicy:
    """pi_theta(y | x) proportional to pi_ref(y | x) exp(<theta, phi(x, y)> / beta) (THEORY 1)."""

    theta: FloatArray
    """[d]"""
    beta: float

    def table(self, env: FiniteEnvironment | StepEnvironment) -> FloatArray:
        """[X, Y] exact probabilities on a finite environment; [H, S, A] on one of steps, where d is H times theirs."""
        if isinstance(env, StepEnvironment):
            steps = self.theta.reshape(len(env.base_probs), -1)
            return env.tilted(np.einsum("hsad,hd->hsa", env.features, steps))
        return tilt(env.base_probs, env.features @ self.theta, self.beta)


@dataclass(frozen=True, eq=False)
class StepSoftmaxPolicy:
    """pi_h(a | x, prefix) proportional to pi_ref,h exp(<theta_h, phi_h> / beta), step by step (THEORY 5)."""

    theta: FloatArray
    """[H, d] parameter of each step."""
    beta: float

    def table(self, env: FiniteEnvironment | StepEnvironment) -> FloatArray:
        """[H, S, A] exact probabilities. Raises `InputError` for an environment of whole responses."""
        if not isinstance(env, StepEnvironment):
            raise InputError(f"env: expected one of steps for a policy of steps, got {type(env).__name__}")
        return tilt(env.base_probs, np.einsum("hsad,hd->hsa", env.features, self.theta), self.beta)


@dataclass(frozen=True, eq=False)
class TruncatedSoftmaxPolicy:
    """The output of SpannerSampling: score <theta, phi(x, y, y')> where the pair lies in the span, else 0 (THEORY 3).

    The comparison response y' is drawn from pi_ref afresh for each answer, so the policy is the average over y'.
    """

    theta: FloatArray
    """[d]"""
    beta: float
    root: FloatArray
    """[d, d] W with ||phi||_{Sigma_span^-1} = |W phi|."""
    nu: float

    def scores(self, features: FloatArray, anchor: FloatArray) -> FloatArray:
        """[n] truncated scores of responses with features [n, d] against the comparison response's [d]."""
        relative = features - anchor
        norms = np.linalg.norm(relative @ self.root.T, axis=-1)
        return np.where(norms <= self.nu, relative @ self.theta, 0.0)

    def table(self, env: FiniteEnvironment | StepEnvironment) -> FloatArray:
        """[X, Y] exact probabilities: the mean over y' ~ pi_ref of the tilts against y'. Time: X Y^2 d.

        Raises `InputError` for an environment of steps: where a pair lies in the span is no sum over steps.
        """
        if isinstance(env, StepEnvironment):
            raise InputError("env: expected whole responses for a truncated policy, got steps: pass env.to_table()")
        table = np.zeros_like(env.base_probs)
        for x, (base, features) in enumerate(zip(env.base_probs, env.features, strict=True)):
            for anchor in np.flatnonzero(base):
                table[x] += base[anchor] * tilt(base, self.scores(features, features[anchor]), self.beta)
        return table
