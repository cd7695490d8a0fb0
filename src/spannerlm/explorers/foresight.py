"""What the posterior says of the regret that is left, and whether to believe it (DIRECTED.md, "Predicted regret")."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import fdtrc

from spannerlm.explorers.candidates import Candidates
from spannerlm.explorers.learner import Learner
from spannerlm.logistic import LogisticPosterior, fit_comparisons
from spannerlm.records import FloatArray, Labelled
from spannerlm.regression import LAMBDAS, Posterior, fit_labels

SAMPLES = 64
"""Posterior draws of theta that a predicted regret is the mean over."""
PROMPTS = 32
"""Prompts that it is the mean over, at most: the first of the pool."""
WIDE_POWER = 0.5
"""The wide prior is C^-1 in shape: every direction is as likely to matter, however rare."""
WIDE_LAMBDAS = tuple(value for value in LAMBDAS if value <= 0.1 * (1.0 + 1e-9))
"""Its precisions: the prior signal is at least ten times the noise."""
SUSPICION = 0.01
"""Chance of a lack-of-fit warning where the features do explain the reward, by one look."""


ROUNDING = 1e-12
"""Spread of labels of one response, relative to their mean square, that is taken for rounding: no test then."""


@dataclass(frozen=True)
class Foresight:
    """Predicted regret of the current policy, in reward units; NaN where nothing can be said."""

    expected: float
    """Mean over the posterior."""
    wide: float
    """If something rare matters: the same labels under a prior that leaves rare directions wide open."""


def predicted_regret(
    learner: Learner,
    candidates: Candidates,
    theta: FloatArray,
    beta: float,
    *,
    bounded: Callable[[FloatArray], FloatArray] = lambda thetas: thetas,
    rng: np.random.Generator,
) -> Foresight:
    """Mean of beta KL(pi_theta || pi_k) over theta_k from the posterior, on the pools; under both priors.

    ``bounded`` brings sampled thetas [k, d] within the task's box. Nothing is known of responses that were never drawn.
    Cost: no draws, no labels; one more fit.
    """
    posterior = learner.posterior
    if posterior is None or not np.isfinite(beta):
        return Foresight(float("nan"), float("nan"))
    part = candidates.first(PROMPTS)
    rho = part.prompt_weights(learner.spec.prompt_probs)
    found = []
    for fit in (posterior, wide_posterior(learner)):
        thetas = bounded(fit.sample(SAMPLES, rng=rng))
        found.append(float(np.mean(divergences(part, rho, theta, thetas, beta))) * beta)
    return Foresight(*found)


def divergences(
    candidates: Candidates, rho: FloatArray, theta: FloatArray, thetas: FloatArray, beta: float
) -> FloatArray:
    """[k] mean over prompts of KL(pi_theta || pi_theta_k) on the candidates, in nats: thetas [k, d]."""
    own, others = candidates.features @ theta / beta, thetas @ candidates.features.T / beta
    mean = candidates.per_prompt(candidates.tilted(own, 1.0) * (own - others))
    return np.asarray((mean - candidates.log_partition(own) + candidates.log_partition(others)) @ rho)


def wide_posterior(learner: Learner) -> Posterior | LogisticPosterior:
    """The posterior of the same labels under the wide prior."""
    turn = learner.prior_transform(WIDE_POWER)
    if learner.spec.feedback == "comparison":
        told, scale, rewards = learner.comparisons, learner.spec.scale, learner.rewards(turn)
        return fit_comparisons(told, learner.scale, scale=scale, transform=turn, lambdas=WIDE_LAMBDAS, rewards=rewards)
    return fit_labels(learner.stats, learner.centres, learner.scale, transform=turn, lambdas=WIDE_LAMBDAS)


@dataclass(frozen=True, eq=False)
class Replicates:
    """All labels of one response."""

    count: int
    total: float
    square: float
    features: FloatArray
    """[d] phi, not centred."""


def add_replicates(known: Mapping[tuple[int, str], Replicates], event: Labelled) -> dict[tuple[int, str], Replicates]:
    """The replicates with the rewards of an outcome added."""
    found = dict(known)
    for label, phi in zip(event.labels, event.features, strict=True):
        if label.value is None or label.opponent is not None or not label.charged:
            continue
        key, value = (label.prompt, label.response), label.value
        old = found.get(key) or Replicates(0, 0.0, 0.0, phi)
        found[key] = Replicates(old.count + 1, old.total + value, old.square + value**2, old.features)
    return found


def lack_of_fit(known: Mapping[tuple[int, str], Replicates]) -> float:
    """p-value that the features explain the rewards of responses labelled more than once; 1 where none can be tested.

    The classical F test of lack of fit: what least squares leaves of the responses' mean labels, an intercept for each
    prompt included, beside the spread of the labels of one and the same response. The posterior mean would not do: what
    its prior shrinks would count as lack of fit. Label noise that differs by response passes for lack of fit as well.
    """
    groups = [(x, g) for (x, _), g in known.items()]
    error = sum(g.square - g.total**2 / g.count for _, g in groups)
    degrees = sum(g.count - 1 for _, g in groups)
    if degrees < 1 or error <= ROUNDING * sum(g.square for _, g in groups):
        return 1.0
    owners = np.unique([x for x, _ in groups], return_inverse=True)[1]
    counts = np.array([g.count for _, g in groups], dtype=np.float64)
    table = np.array([np.append(g.features, g.total / g.count) for _, g in groups])  # [k, d + 1]
    mass = np.bincount(owners, counts)
    means = np.array([np.bincount(owners, counts * column) / mass for column in table.T]).T
    table = (table - means[owners]) * np.sqrt(counts)[:, None]
    fitted, _, rank, _ = np.linalg.lstsq(table[:, :-1], table[:, -1], rcond=None)
    free = len(groups) - len(mass) - int(rank)
    if free < 1:
        return 1.0
    left = float(np.sum((table[:, -1] - table[:, :-1] @ fitted) ** 2))
    return float(fdtrc(free, degrees, left / free / (error / degrees)))
